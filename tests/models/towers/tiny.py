"""A pair of towers small enough for tests, in open_clip's format, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

NAME = "tiny-towers"
"""Under which `register` makes one known to open_clip."""
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
RESNET = {"image_size": 64, "patch_size": None, "width": 8, "layers": [1, 1, 1, 1]}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def config(vision: dict[str, Any] = VIT, embed: int = 16, quick_gelu: bool = True, **text: Any) -> dict[str, Any]:
    return {"embed_dim": embed, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": TEXT | text}


def make(described: dict[str, Any], seed: int = 0) -> Any:
    """open_clip's own model, random in all that it has: norms, biases and running statistics too."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**described).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point() or name == "attn_mask":
                continue
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.ndim == 1:
                value.add_(0.2 * torch.randn_like(value))
            elif name.endswith(("proj.weight", "in_proj_weight", "c_fc.weight", "c_proj.weight")):
                value.copy_(torch.randn_like(value) / value.shape[-1] ** 0.5)
    return model


def write_folder(folder: Path, described: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Any:
    """The folder as open_clip writes it to a hub; gives the model."""
    model = make(described)
    folder.mkdir(parents=True, exist_ok=True)
    norm = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described, "preprocess_cfg": norm}))
    state = model.state_dict() if tensors is None else tensors
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    return model


def register() -> str:
    """Makes the network of `tiny-towers.json` known to open_clip by name, as `add_model_config` does for users; gives
    the backbone's name."""
    open_clip.add_model_config(Path(__file__).with_name(f"{NAME}.json"))
    return f"clip:{NAME}"

"""GroupViT's checkpoints: finds a pair of towers, reads it under our names, and writes it as transformers does.

Formats: the authors' (`img_encoder.`, `text_encoder.`), and transformers' `GroupViTModel`, fp16 or fp32. A folder holds
transformers' `config.json` beside `model.safetensors` or `pytorch_model.bin`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskwright.data.trust.files import atomic_write, write_json
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.keymaps import unwrap_entry
from maskwright.models.backbones.weights import WeightsFile, hub_cached, hub_weights, read_weights_file
from maskwright.models.towers.groupvit.network import ImageTower, TextTower
from maskwright.models.towers.groupvit.shape import GROUPVIT, HUB, USUAL, GroupShape

CONFIG = "config.json"
FILES = ("model.safetensors", "pytorch_model.bin")
TOWERS = "towers"
"""Folder of a run in which a training leaves both towers."""
IMAGE, TEXT = "image.", "text."
"""Prefixes of the two towers' tensors under our names."""
MULTI = "multi_log_scale"
"""The scale of the contrast with words, which transformers leaves out."""


@dataclass(frozen=True)
class GroupPair:
    """A GroupViT's two towers.

    Attributes:
        name: as it was asked for.
        shape: their build.
        place: where the file can be read again; None for the hub's, and where there is none.
        file: what the file holds; None for weights that are drawn.
        hub: repository whose weights they are; empty where they are no hub's.
    """

    name: str
    shape: GroupShape
    place: Path | None = None
    file: WeightsFile | None = None
    hub: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under our names, in fp32; read again where they were put away.

        Raises:
            MaskwrightError: the file changed, or lacks some.
        """
        if self.file is None:
            return {}
        file = self.file
        if not file.tensors:
            file = _hub(self.hub) if self.hub else read_weights_file(str(self.place))
        if file.sha256 != self.file.sha256:
            raise MaskwrightError(f"{file.source} changed while it was read", "the same file throughout", "start again")
        return pair_tensors(file.tensors, self.shape, file.source)

    def without_tensors(self) -> GroupPair:
        """The same, without what a file holds: a text tower is read when it is needed."""
        return self if self.file is None else replace(self, file=replace(self.file, tensors={}))


def find_group_pair(name: str, weights: str | None) -> GroupPair:
    """Finds build and tensors.

    Args:
        name: `groupvit`, `groupvit:NAME` or a line of a build.
        weights: None for the hub's (a build that nobody publishes is drawn), a file, a folder, or "random".

    Raises:
        MaskwrightError: unknown name, no such weights, or a file of another kind.
    """
    named = name.removeprefix(GROUPVIT).removeprefix(":")
    shape = GroupShape.of(name)
    hub = HUB.get(named or USUAL, "")
    if weights == "random" or (weights is None and not hub):
        return GroupPair(name, shape)
    if weights is None:
        return GroupPair(name, shape, None, _hub(hub), hub)
    place, described = Path(weights), None
    if place.is_dir():
        described = _described(place)
        there = [place / file for file in FILES if (place / file).is_file()]
        if described is None or not there:
            raise MaskwrightError(
                f"{place} holds no GroupViT", f"{CONFIG} and {FILES[0]}, as transformers saves a model",
                "give the folder of such a model, or its file with --backbone groupvit",
            )  # fmt: skip
        if named and described != shape:
            raise MaskwrightError(
                f"--backbone {name}, and {place} holds another network, {described.text()}", "one network",
                f"leave the name out: --backbone {GROUPVIT}",
            )  # fmt: skip
        place = there[0]
    return GroupPair(name, described or shape, place, read_weights_file(place))


def _hub(repo: str) -> WeightsFile:
    there = next((file for file in FILES if hub_cached(repo, file)), FILES[1])
    return hub_weights(repo, there, f"give both towers with --backbone {GROUPVIT} --weights FILE or FOLDER")


def holds_group_pair(folder: Path) -> bool:
    """Whether a folder holds transformers' description of a GroupViT."""
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, Mapping) and record.get("model_type") == GROUPVIT


def _described(folder: Path) -> GroupShape | None:
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        return GroupShape.described(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise MaskwrightError(
            f"{path} describes no GroupViT ({type(error).__name__}: {error})", "the description of a GroupViTModel",
            "fetch it again",
        ) from error  # fmt: skip


# --------------------------------------------------------------------- names of tensors

_AUTHORS = (
    (r"^image\.log_scale$", "logit_scale"), (r"^multi_log_scale$", "multi_label_logit_scale"),
    (r"^image\.encoder\.", "img_encoder."), (r"^image\.projector\.([01])\.", r"img_projector.linear_hidden.\1."),
    (r"^image\.projector\.3\.", "img_projector.linear_out."), (r"^text\.encoder\.blocks\.(\d+)\.norm([12])\.",
     r"text_encoder.transformer.resblocks.\1.ln_\2."),
    (r"^text\.encoder\.blocks\.", "text_encoder.transformer.resblocks."), (r"^text\.encoder\.", "text_encoder."),
    (r"^(text_encoder\..*)attn\.qkv\.", r"\1attn.in_proj_"), (r"^(text_encoder\..*)attn\.proj\.", r"\1attn.out_proj."),
    (r"^(text_encoder\..*)mlp\.fc1\.", r"\1mlp.c_fc."), (r"^(text_encoder\..*)mlp\.fc2\.", r"\1mlp.c_proj."),
    (r"^text\.projector\.([01])\.", r"text_projector.linear_hidden.\1."),
    (r"^text\.projector\.3\.", "text_projector.linear_out."),
)  # fmt: skip
_TRANSFORMERS = (
    (r"^image\.log_scale$", "logit_scale"),
    (r"^image\.encoder\.pos_embed$", "vision_model.embeddings.position_embeddings"),
    (r"^image\.encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embeddings.projection."),
    (r"^image\.encoder\.patch_embed\.norm\.", "vision_model.embeddings.layernorm."),
    (r"^image\.encoder\.norm\.", "vision_model.layernorm."),
    (r"^image\.encoder\.layers\.(\d+)\.blocks\.", r"vision_model.encoder.stages.\1.layers."),
    (r"^image\.encoder\.layers\.", "vision_model.encoder.stages."),
    (r"^image\.projector\.", "visual_projection."), (r"^text\.projector\.", "text_projection."),
    (r"^text\.encoder\.token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^text\.encoder\.positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^text\.encoder\.ln_final\.", "text_model.final_layer_norm."),
    (r"^text\.encoder\.blocks\.", "text_model.encoder.layers."),
    (r"\.layers\.(\d+)\.norm([12])\.", r".layers.\1.layer_norm\2."),
    (r"\.layers\.(\d+)\.attn\.proj\.", r".layers.\1.self_attn.out_proj."),
    (r"\.layers\.(\d+)\.attn\.", r".layers.\1.self_attn."),
    (r"\.pre_assign_attn\.attn\.proj\.", ".pre_assign_attn.attn.out_proj."),
)  # fmt: skip


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def transformers_names(name: str) -> tuple[str, ...]:
    """What transformers calls one of our tensors; queries, keys and values apart where we have them in one."""
    found = _renamed(name, _TRANSFORMERS)
    if ".self_attn.qkv." not in found:
        return (found,)
    return tuple(found.replace(".qkv.", f".{one}_proj.") for one in "qkv")


@functools.cache
def wanted(shape: GroupShape) -> Mapping[str, Tensor]:
    """Both towers' tensors under our names, without memory."""
    with torch.device("meta"):
        towers: dict[str, nn.Module] = {IMAGE: ImageTower(shape), TEXT: TextTower(shape)}
    return {prefix + name: value for prefix, tower in towers.items() for name, value in tower.state_dict().items()}


def pair_tensors(checkpoint: Mapping[str, Any], shape: GroupShape, source: str) -> dict[str, Tensor]:
    """A checkpoint's tensors under our names, in fp32; `multi_log_scale` among them where it has one.

    Args:
        checkpoint: what the file holds.
        shape: the build that it should be of.
        source: for the error.

    Raises:
        MaskwrightError: it holds no GroupViT, or one of another build.
    """
    given = {str(k): v for k, v in unwrap_entry(checkpoint).items() if isinstance(v, Tensor)}
    for prefix in ("module.", "model."):
        if all(k.startswith(prefix) for k in given):
            given = {k.removeprefix(prefix): v for k, v in given.items()}
    theirs = any(k.startswith("vision_model.") for k in given)
    if not theirs and not any(k.startswith("img_encoder.") for k in given):
        raise MaskwrightError(
            f"{source} holds no GroupViT: its tensors are {', '.join(list(given)[:3]) or 'none'}",
            "both towers in the format of the authors or of transformers", "give the file of such a pair",
        )  # fmt: skip
    found: dict[str, Tensor] = {}
    for name, like in wanted(shape).items():
        names = transformers_names(name) if theirs else (_renamed(name, _AUTHORS),)
        if missing := [n for n in names if n not in given]:
            if name.endswith("num_batches_tracked"):
                found[name] = torch.tensor(0)
                continue
            raise _misfit(source, shape, f"lacks {missing[0]}")
        value = torch.cat([given[n] for n in names]) if len(names) > 1 else given[names[0]]
        if value.ndim == like.ndim + 1 and value.shape[-1] == 1:
            value = value[..., 0]  # a projector's layer as a convolution of length 1
        if value.shape != like.shape:
            raise _misfit(source, shape, f"has {names[0]} {tuple(value.shape)}, not {tuple(like.shape)}")
        found[name] = value.float() if value.is_floating_point() else value
    if "multi_label_logit_scale" in given:
        found[MULTI] = given["multi_label_logit_scale"].float()
    return found


def _misfit(source: str, shape: GroupShape, told: str) -> MaskwrightError:
    return MaskwrightError(
        f"{source} does not fit {shape.text()}: it {told}", "both towers of the network that --backbone names",
        "give the --backbone that the file was made for, or the folder with its config.json",
    )  # fmt: skip


def write_pair(folder: Path, shape: GroupShape, tensors: Mapping[str, Tensor]) -> Path:
    """Writes both towers as transformers saves a `GroupViTModel`.

    Args:
        folder: is made.
        shape: the build.
        tensors: under our names.

    Returns:
        The file of the tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved: dict[str, Tensor] = {}
    for name in wanted(shape):
        names, value = transformers_names(name), tensors[name].detach().cpu()
        saved |= {n: part.contiguous().clone() for n, part in zip(names, value.chunk(len(names)) if len(names) > 1
                                                                  else [value])}  # fmt: skip
    if MULTI in tensors:
        saved["multi_label_logit_scale"] = tensors[MULTI].detach().cpu().clone()
    write_json(folder / CONFIG, shape.description())
    path = folder / FILES[0]
    with atomic_write(path) as beside:
        save_file(dict(sorted(saved.items())), beside, {"format": "pt"})  # one entry: of several the order is random
    return path


def text_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower's tensors, without their prefix."""
    return {k.removeprefix(TEXT): v for k, v in tensors.items() if k.startswith(TEXT)}


def image_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's tensors, without their prefix."""
    return {k.removeprefix(IMAGE): v for k, v in tensors.items() if k.startswith(IMAGE)}

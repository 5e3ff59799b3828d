"""The build of a CLIP image tower as one line of text, from which it can be built again without any file.

`clip:vit/image=224/patch=16/width=768/layers=12/heads=12/mlp=4.0/embed=512/act=quick_gelu/eps=1e-05`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskwright.errors import MaskwrightError
from maskwright.models.parts.part import MAX_DEPTH, MAX_WIDTH

CLIP = "clip"
"""Prefix of the backbones of this kind: `clip:ViT-B-16`, as open_clip names it, or `clip:vit/...`."""
HUB_NAME = f"{CLIP}:hf:"
"""Before the name of a repository of a model hub."""
USUAL = "ViT-B-16"
"""The pair that is taken where no name is given."""
USUAL_TAG = "openai"
USUAL_HUB = "timm/vit_base_patch16_clip_224.openai"
"""Where the hub has the weights of the two."""
HUB_FILE = "open_clip_model.safetensors"
PLAIN: dict[str, Any] = {
    "timm_model_name": None, "attentional_pool": False, "pool_type": "tok", "no_ln_pre": False,
    "pos_embed_type": "learnable", "final_ln_after_pool": False, "act_kwargs": None, "block_type": None,
    "ls_init_value": None, "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False,
    "scale_attn_inner": False, "scale_attn": False, "scale_fc": False,
}  # fmt: skip
"""What open_clip's description of an image tower may say, and the values with which it is CLIP's own network."""


def is_clip(name: str) -> bool:
    """Whether a backbone's name is that of a CLIP tower."""
    return name == CLIP or name.startswith(f"{CLIP}:")


@dataclass(frozen=True)
class TowerShape:
    """What the tensors of an image tower depend on.

    Attributes:
        kind: `vit` or `resnet`.
        image: pixels; side of the images of pretraining.
        patch: pixels; side of a patch, 0 for a ResNet.
        width: channels of the tokens, or of a ResNet's stem.
        layers: blocks: one number, or one a stage.
        heads: of the attention, or of the attention pool.
        mlp: width of the MLP over that of the tokens.
        embed: E, channels of the joint space.
        act: `gelu` or `quick_gelu`.
        eps: of the layer norms.
    """

    kind: str
    image: int
    patch: int
    width: int
    layers: tuple[int, ...]
    heads: int
    mlp: float
    embed: int
    act: str
    eps: float = 1e-5

    def __post_init__(self) -> None:
        numbers = (self.image, self.width, self.heads, self.embed, *self.layers)
        fits = (
            self.kind in ("vit", "resnet")
            and self.act in ("gelu", "quick_gelu")
            and all(0 < n <= MAX_WIDTH for n in numbers)
            and len(self.layers) == (1 if self.kind == "vit" else 4)
            and all(n <= 4 * MAX_DEPTH for n in self.layers)
            and 0 < self.mlp <= MAX_DEPTH
            and 0 < self.eps < 1
        )
        if fits and self.kind == "vit":
            fits = 0 < self.patch <= self.image and not self.image % self.patch and not self.width % self.heads
        elif fits:
            fits = not self.image % 32 and not self.width % 2 and self.heads * 64 == self.width * 32
        if not fits:
            raise MaskwrightError(f"an image tower of {self.text()}", "CLIP's vision transformer or ResNet")

    def text(self) -> str:
        """The line; `parse` reads it."""
        layers = "-".join(map(str, self.layers))
        parts = (f"image={self.image}", f"patch={self.patch}", f"width={self.width}", f"layers={layers}",
                 f"heads={self.heads}", f"mlp={self.mlp}", f"embed={self.embed}", f"act={self.act}",
                 f"eps={self.eps}")  # fmt: skip
        return f"{CLIP}:{self.kind}/" + "/".join(parts)

    @classmethod
    def parse(cls, text: str) -> TowerShape | None:
        """The shape of a line; None where the text is no such line but a name.

        Raises:
            MaskwrightError: it is one and is damaged.
        """
        kind, *parts = text.removeprefix(f"{CLIP}:").split("/")
        if not parts or text.startswith(HUB_NAME):
            return None
        said = dict(part.partition("=")[::2] for part in parts)
        try:
            if set(said) != {"image", "patch", "width", "layers", "heads", "mlp", "embed", "act", "eps"}:
                raise ValueError
            whole = {name: int(said[name]) for name in ("image", "patch", "width", "heads", "embed")}
            layers = tuple(int(n) for n in said["layers"].split("-"))
            mlp, eps = float(said["mlp"]), float(said["eps"])
        except ValueError as error:
            raise MaskwrightError(f"backbone {text[:120]}", "a line as a model's file has it, or clip:NAME") from error
        return cls(kind, layers=layers, mlp=mlp, act=said["act"], eps=eps, **whole)

    @classmethod
    def of(cls, config: Mapping[str, Any], name: str) -> TowerShape:
        """The shape that a description in open_clip's format asks for.

        Args:
            config: with `embed_dim`, `vision_cfg` and, if it is so, `quick_gelu`.
            name: for the error.

        Raises:
            MaskwrightError: it is no network of CLIP's own kind, or incomplete.
        """
        vision = config.get("vision_cfg")
        if not isinstance(vision, Mapping):
            raise MaskwrightError(f"{name} describes no image tower", "vision_cfg, as open_clip writes it")
        other = [key for key, plain in PLAIN.items() if vision.get(key, plain) != plain]
        if other:
            raise MaskwrightError(
                f"the image tower of {name} has {other[0]} = {vision[other[0]]!r}",
                "CLIP's own vision transformer or ResNet, whose dense features are known to lie near words",
                "take one of these, as --backbone clip:ViT-B-16 or clip:RN50",
            )
        try:
            layers, width = vision.get("layers", 12), int(vision.get("width", 768))
            resnet = isinstance(layers, list | tuple)
            head = int(vision.get("head_width", 64))
            return cls(
                kind="resnet" if resnet else "vit",
                image=int(vision.get("image_size", 224)),
                patch=0 if resnet else int(vision.get("patch_size", 16)),
                width=width,
                layers=tuple(int(n) for n in layers) if resnet else (int(layers),),
                heads=(width * 32 if resnet else width) // head,
                mlp=float(vision.get("mlp_ratio", 4.0)),
                embed=int(config["embed_dim"]),
                act="quick_gelu" if config.get("quick_gelu") else "gelu",
                eps=float((vision.get("norm_kwargs") or {}).get("eps", 1e-5)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MaskwrightError(f"the description of {name} is incomplete ({error})", "open_clip's format") from error

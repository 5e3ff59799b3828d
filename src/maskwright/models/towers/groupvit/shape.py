"""The build of a GroupViT as one line of text, from which it can be built again without any file.

`groupvit:image=224/patch=16/width=384/heads=6/depths=6+3+3/groups=64+8/embed=256/hidden=4096/words=256/layers=12`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from maskwright.errors import MaskwrightError, unknown
from maskwright.models.parts.part import MAX_DEPTH, MAX_WIDTH

GROUPVIT = "groupvit"
"""Prefix of the backbones of this kind: `groupvit`, `groupvit:NAME` or a line of a build."""
HEAD = 64
"""Channels of a head of the text tower, as in all of CLIP's."""


@dataclass(frozen=True)
class GroupShape:
    """What the tensors of a GroupViT depend on.

    Attributes:
        image: pixels; side of the photographs of training.
        patch: pixels; side of a patch.
        width: channels of image tokens and groups.
        heads: of the image tower's attention.
        depths: blocks of each stage.
        groups: groups that each stage but the last sorts into.
        embed: E, channels of the joint space.
        hidden: channels inside the two projectors.
        words: channels of the text tower, which has a head for each 64.
        layers: its blocks.
    """

    image: int = 224
    patch: int = 16
    width: int = 384
    heads: int = 6
    depths: tuple[int, ...] = (6, 3, 3)
    groups: tuple[int, ...] = (64, 8)
    embed: int = 256
    hidden: int = 4096
    words: int = 256
    layers: int = 12

    def __post_init__(self) -> None:
        single = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("depths", "groups")}
        low = [name for name, value in single.items() if not 1 <= value <= MAX_WIDTH]
        if low or self.layers > MAX_DEPTH or sum(self.depths) > MAX_DEPTH:
            raise MaskwrightError(f"{self.text()}: {', '.join(low) or 'layers'} out of range", "numbers above 0")
        if len(self.depths) != len(self.groups) + 1 or not self.groups or min(*self.depths, *self.groups) < 1:
            raise MaskwrightError(f"{self.text()}: {len(self.depths)} stages and groups of {len(self.groups)}",
                                  "groups of each stage but the last")  # fmt: skip
        if self.image % self.patch or self.width % self.heads:
            raise MaskwrightError(f"{self.text()}: image / patch or width / heads is no whole number", "whole numbers")
        if max(self.groups) > MAX_WIDTH:
            raise MaskwrightError(f"{self.text()}: {max(self.groups)} groups", f"at most {MAX_WIDTH}")

    def text(self) -> str:
        """The line."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        parts = (f"{n}={'+'.join(map(str, v)) if isinstance(v, tuple) else v}" for n, v in values)
        return f"{GROUPVIT}:{'/'.join(parts)}"

    @property
    def text_heads(self) -> int:
        """Heads of the text tower's attention."""
        return max(1, self.words // HEAD)

    @classmethod
    def of(cls, name: str) -> GroupShape:
        """The build of a backbone's name.

        Raises:
            MaskwrightError: an unknown name, or a line that is none.
        """
        line = name.removeprefix(GROUPVIT).removeprefix(":")
        if "=" not in line:
            if (line or USUAL) not in BUILDS:
                raise unknown("GroupViT", line, BUILDS)
            return BUILDS[line or USUAL]
        given = dict(piece.partition("=")[::2] for piece in line.split("/"))
        names = {f.name: f.type for f in fields(cls)}
        try:
            if set(given) - set(names):
                raise ValueError(f"{', '.join(sorted(set(given) - set(names)))} unknown")
            values: dict[str, Any] = {
                k: tuple(int(n) for n in v.split("+")) if k in ("depths", "groups") else int(v)
                for k, v in given.items()
            }
        except ValueError as error:
            raise MaskwrightError(
                f"backbone {name[:80]!r} ({error})", "numbers, as groupvit:width=192/depths=3+2+1/groups=16+8",
                "give --backbone groupvit or groupvit:small",
            ) from error  # fmt: skip
        return cls(**values)

    @classmethod
    def described(cls, record: Any) -> GroupShape:
        """The build that transformers' description of a `GroupViTModel` says; what it leaves out is as there by
        default, which is the paper's.

        Raises:
            ValueError: it describes another model.
        """
        if record.get("model_type") != "groupvit":
            raise ValueError(f"model_type {record.get('model_type')!r}")
        vision, text = (record.get(f"{side}_config") or {} for side in ("vision", "text"))
        usual = cls()
        width, words = int(vision.get("hidden_size", usual.width)), int(text.get("hidden_size", usual.words))
        shape = replace(
            usual,
            image=int(vision.get("image_size", usual.image)), patch=int(vision.get("patch_size", usual.patch)),
            width=width, heads=int(vision.get("num_attention_heads", usual.heads)),
            depths=tuple(map(int, vision.get("depths", usual.depths))),
            groups=tuple(int(n) for n in vision.get("num_group_tokens", (*usual.groups, 0)) if n),
            embed=int(record.get("projection_dim", usual.embed)),
            hidden=int(record.get("projection_intermediate_dim", usual.hidden)),
            words=words, layers=int(text.get("num_hidden_layers", usual.layers)),
        )  # fmt: skip
        told = _settled(shape)
        for side, own in (("vision", vision), ("text", text)):
            for key, value in told[f"{side}_config"].items():
                if own.get(key, value) != value:
                    raise ValueError(f"{side}_config has {key} {own[key]!r}, expected {value!r}")
        return shape

    def description(self) -> dict[str, Any]:
        """transformers' description of a `GroupViTModel` of this build."""
        return {"model_type": "groupvit", "architectures": ["GroupViTModel"], **_settled(self)}


def _settled(shape: GroupShape) -> Mapping[str, Any]:
    return {
        "projection_dim": shape.embed,
        "projection_intermediate_dim": shape.hidden,
        "vision_config": {
            "model_type": "groupvit_vision_model", "hidden_size": shape.width, "depths": list(shape.depths),
            "num_group_tokens": [*shape.groups, 0], "num_output_groups": [*shape.groups, shape.groups[-1]],
            "num_hidden_layers": sum(shape.depths), "num_attention_heads": shape.heads, "image_size": shape.image,
            "patch_size": shape.patch, "intermediate_size": 4 * shape.width, "hidden_act": "gelu",
            "layer_norm_eps": 1e-5, "assign_eps": 1.0, "assign_mlp_ratio": [0.5, 4],
        },
        "text_config": {
            "model_type": "groupvit_text_model", "vocab_size": 49408, "hidden_size": shape.words,
            "intermediate_size": 4 * shape.words, "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.text_heads, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    }  # fmt: skip


USUAL = "gcc-yfcc"
BUILDS = {
    "gcc-yfcc": GroupShape(),
    "gcc-redcaps": GroupShape(),
    "small": GroupShape(
        image=128, width=192, heads=3, depths=(3, 2, 1), groups=(16, 8), hidden=512, words=128, layers=4
    ),
}
"""Builds by name: those of the authors' two checkpoints, and one that learns on two cores, which nobody publishes."""
HUB = {"gcc-yfcc": "nvidia/groupvit-gcc-yfcc", "gcc-redcaps": "nvidia/groupvit-gcc-redcaps"}
"""Where a hub has their weights."""


def is_groupvit(name: str) -> bool:
    """Whether a backbone's name is that of a GroupViT."""
    return name == GROUPVIT or name.startswith(f"{GROUPVIT}:")

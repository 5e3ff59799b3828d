"""A CLIP image tower with a second network beside it that sees the same pixels: what saved models of ProxyCLIP and of
ReCo hold.

Legend: B batch, E channels of the joint space, D channels of the second network, P words, C classes, (h, w) and
(h', w') the grids of the second network and of the tower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import autocast
from maskwright.models.parts.heads import Sequential
from maskwright.models.parts.part import MAX_WIDTH, Part
from maskwright.models.parts.table import build_part
from maskwright.models.towers.image import ClipViT
from maskwright.models.towers.parts import JointEncoder
from maskwright.ops.cosegmentation import fused_scores
from maskwright.ops.language import of_classes


class TowerBeside(Part):
    """Two maps of a picture: a second network's, and a CLIP tower's in the space of words.

    Args:
        joint: the tower, with its last block as it says.
        other: an encoder that gives one map; None: the tower's own tokens are the second map.
        factor, offset: (3,) from the tower's normalised channels to the other's: factor x + offset.

    Raises:
        ValueError: numbers are out of range.
    """

    numbers: tuple[str, ...] = ("factor", "offset")

    def __init__(
        self, joint: Part, other: Part | None, factor: Sequence[float] = (1, 1, 1), offset: Sequence[float] = (0, 0, 0)
    ) -> None:
        super().__init__()
        if not isinstance(joint, JointEncoder) or not len(factor) == len(offset) == 3:
            raise ValueError(f"factor {factor} and offset {offset}, expected three numbers each, beside a CLIP tower")
        self.joint, self.other = joint, other
        self.factor, self.offset = [float(v) for v in factor], [float(v) for v in offset]

    @property
    def _sees(self) -> Part:
        """The part of the second network that sees the pixels."""
        other = self.joint if self.other is None else self.other
        return other[0] if isinstance(other, Sequential) else other

    @property
    def stride(self) -> int:
        """Input pixels a place: the second network's."""
        return int(getattr(self._sees, "stride", self.joint.stride))

    @property
    def multiple_of(self) -> int:
        """Input sides should be multiples of this: what both take."""
        return math.lcm(self.joint.multiple_of, int(getattr(self._sees, "multiple_of", 1)))

    def spec(self) -> dict[str, Any]:
        """The specs of both, and the numbers."""
        other = None if self.other is None else self.other.spec()
        numbers = {name: getattr(self, name) for name in self.numbers}
        return {"kind": type(self).__name__, "joint": self.joint.spec(), "other": other, **numbers}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds both with drawn weights.

        Raises:
            MaskwrightError: numbers are missing or out of range, or as the parts do.
        """
        if set(spec) != {"kind", "joint", "other", *cls.numbers}:
            expected = ", ".join(("joint", "other", *cls.numbers))
            raise MaskwrightError(f"part {cls.__name__} has {', '.join(map(str, sorted(spec)))}", expected)
        joint, other = build_part(spec["joint"]), spec["other"]
        try:
            numbers = {name: spec[name] for name in cls.numbers}
            return cls(joint, None if other is None else build_part(other), **numbers)
        except (ValueError, TypeError) as error:
            raise MaskwrightError(f"part {cls.__name__} cannot be built: {error}", "its own arguments") from error

    def beside(self, x: Tensor) -> Tensor:
        """The second map (B, D, h, w) of pictures (B, 3, H, W) that are normalised for the tower."""
        if self.other is None:
            found: Tensor = self.joint.backbone.dense(x)
            return found
        scale, move = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (self.factor, self.offset))
        other: Tensor = self.other(x * scale.view(3, 1, 1) + move.view(3, 1, 1))
        return other

    def forward(self, x: Tensor) -> Any:
        """(B, 3, H, W) to [(B, D, h, w), (B, E, h', w')]."""
        return [self.beside(x), self.joint(x)]


class ProxyEncoder(TowerBeside):
    """A CLIP tower whose places gather by what a second network finds alike (ProxyCLIP); how its last block is run is
    not looked at.

    Args:
        joint, other, factor, offset: as for `TowerBeside`; there is a second network.
        beta, gamma: as for `surgery.proxy_weights`.

    Raises:
        ValueError: the tower is no vision transformer, there is no second network, or numbers are out of range.
    """

    numbers = ("factor", "offset", "beta", "gamma")

    def __init__(
        self, joint: Part, other: Part | None, factor: Sequence[float], offset: Sequence[float], beta: float,
        gamma: float,
    ) -> None:  # fmt: skip
        super().__init__(joint, other, factor, offset)
        if not isinstance(self.joint.backbone, ClipViT) or other is None or not gamma > 0:
            raise ValueError(f"ProxyCLIP wants a CLIP vision transformer, a second network and gamma {gamma} above 0")
        self.beta, self.gamma = float(beta), float(gamma)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, E, h, w) on the second network's grid."""
        features, tower = self.beside(x), self.joint.backbone
        assert isinstance(tower, ClipViT)
        with autocast(x.device, self.joint.precision):
            return tower.proxy_maps(x, features, self.beta, self.gamma).to(x.dtype)


class RecoScores(Part):
    """ReCo's score of each class at each place: likeness to its reference, times the attention of its words.

    Args:
        references: (C, D), of unit length.
        vectors: (P, E), one word each, of unit length.
        owner: int64 (P,), the class of each; each class has a word.
    """

    references: Tensor
    vectors: Tensor
    owner: Tensor

    def __init__(self, references: Tensor, vectors: Tensor, owner: Tensor) -> None:
        super().__init__()
        if references.ndim != 2 or vectors.ndim != 2 or owner.shape != vectors.shape[:1]:
            raise ValueError(
                f"references {tuple(references.shape)}, words {tuple(vectors.shape)}, {tuple(owner.shape)}"
            )
        for name, value in (("references", references), ("vectors", vectors)):
            self.register_buffer(name, value.detach().float().clone())
        self.register_buffer("owner", owner.detach().long().clone())

    def spec(self) -> dict[str, Any]:
        """The numbers C, D, P and E."""
        (classes, width), (words, joint) = self.references.shape, self.vectors.shape
        return {"kind": "RecoScores", "classes": classes, "width": width, "words": words, "joint": joint}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds it with zeros; raises `MaskwrightError` on numbers that are missing or out of range."""
        numbers = [spec.get(name) for name in ("classes", "width", "words", "joint")]
        if len(spec) != 5 or not all(type(n) is int and 0 < n <= MAX_WIDTH for n in numbers):
            expected = "classes, width, words and joint"
            raise MaskwrightError(f"part RecoScores has {', '.join(map(str, sorted(spec)))}", expected)
        c, d, p, e = (int(n or 0) for n in numbers)
        return cls(torch.zeros(c, d), torch.zeros(p, e), torch.zeros(p, dtype=torch.int64))

    def check_tensors(self) -> None:
        """Each word must be of a class that is there, and each class must have one."""
        classes = len(self.references)
        if set(self.owner.tolist()) != set(range(classes)):
            raise ValueError(f"words are of classes {sorted(set(self.owner.tolist()))[:5]}, expected each of {classes}")

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[(B, D, h, w), (B, E, h', w')] to (B, C, h", w") in (0, 1), on the finer of both grids."""
        features, places = maps
        words = F.conv2d(F.normalize(places, dim=1), self.vectors[..., None, None].to(places.dtype))
        cosines = of_classes(words, self.owner, len(self.references))
        h, w = max((m.shape[-2:] for m in maps), key=lambda s: s[0] * s[1])
        return fused_scores(features, self.references.to(features.dtype), cosines, (h, w))

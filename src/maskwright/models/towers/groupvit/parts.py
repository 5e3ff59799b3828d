"""The two parts of a segmenter that a GroupViT becomes: an encoder into groups, and a vocabulary for them.

Legend: B batch, G groups, E channels of the joint space, P words, C classes, (h, w) grid of patches.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.models.backbones.dense import autocast
from maskwright.models.parts.part import Part
from maskwright.models.towers.groupvit.shape import GROUPVIT, is_groupvit
from maskwright.models.towers.groupvit.tower import GroupTower, build_groupvit
from maskwright.models.towers.parts import VocabularyClassifier
from maskwright.ops.groups import behind, group_affinity, paint_groups
from maskwright.ops.language import of_classes

LEAST = 1e-6
"""Score of a class that a picture has not, for its logarithm."""
MOST_VALUES = 1 << 25
"""Values of all classes' maps together, up to which they are made at the input's own resolution."""


class GroupEncoder(Part):
    """A GroupViT image tower.

    What it gives is one map (B, G + (G + 1) E, h, w): how much a patch is of each group, then the vectors of all groups
    and of the whole picture in the space of words, the same at each place.

    Args:
        backbone: the tower; its weights belong to the segmenter and are saved with it.
    """

    fields = ("tower",)

    def __init__(self, backbone: GroupTower) -> None:
        super().__init__()
        self.backbone, self.tower = backbone, backbone.architecture
        self.precision: str | None = None

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """`tower`: a line of `GroupShape`; weights are drawn, no file and no hub is asked."""
        tower = arguments.pop("tower")
        if not isinstance(tower, str) or not is_groupvit(tower) or "=" not in tower:
            raise ValueError(f"tower is {str(tower)[:60]!r}, expected a line of a build, {GROUPVIT}:...")
        made = build_groupvit(tower, "random")
        made.pair = None  # a saved segmenter has no text tower
        return cls(made)

    @property
    def width(self) -> int:
        """Channels that it gives."""
        g = self.backbone.groups
        return g + (g + 1) * self.backbone.shape.embed

    @property
    def stride(self) -> int:
        """Input pixels a patch."""
        return self.backbone.shape.patch

    @property
    def multiple_of(self) -> int:
        """Input sides should be multiples of this."""
        return self.backbone.multiple_of

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, G + (G + 1) E, h, w)."""
        with autocast(x.device, self.precision):
            found = self.backbone.grouped(x)
            places = torch.cat((found.tokens, found.average[:, None]), 1)
            vectors = self.backbone.tower.projector(places)  # (B, G + 1, E)
        h, w = found.maps.shape[-2:]
        spread = vectors.flatten(1)[..., None, None].expand(-1, -1, h, w)
        return torch.cat((found.maps.to(x.dtype), spread.to(x.dtype)), 1)


class GroupClassifier(VocabularyClassifier):
    """Logits of classes by the cosines of groups to words, as logarithms of the authors' scores.

    Args:
        vectors: (P, E), one word each, of unit length.
        owner: int64 (P,), the class of each.
        classes: C.
        scale: cosines times this are logits; what training learned.
        groups: G.
        top: classes that a picture may have.
        enlarge: factor by which the groups' maps are enlarged before each pixel takes its group; less where all
            classes' maps would have more than 2^25 values together.
        background: the class that is what no other is, by `threshold`; None: there is none.
        threshold: score.
    """

    fields = ("width", "words", "classes", "scale", "groups", "top", "enlarge", "background", "threshold")

    def __init__(
        self,
        vectors: Tensor,
        owner: Tensor,
        classes: int,
        scale: float,
        groups: int,
        top: int = 5,
        enlarge: int = 16,
        background: int | None = None,
        threshold: float = 0.0,
    ) -> None:
        super().__init__(vectors, owner, classes, scale, background=background, threshold=threshold)
        if groups < 1 or top < 1 or enlarge < 1:
            raise ValueError(f"groups {groups}, top {top}, enlarge {enlarge}, expected at least 1")
        self.groups, self.top, self.enlarge = int(groups), int(top), int(enlarge)

    def like(
        self, vectors: Tensor, owner: Tensor, classes: int, background: int | None = None, threshold: float = 0.0
    ) -> Self:
        """The same with other words."""
        return type(self)(
            vectors, owner, classes, self.scale, self.groups, self.top, self.enlarge, background, threshold
        )

    def size(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Size of the logits' maps for a grid (h, w) of patches."""
        room = math.isqrt(max(1, MOST_VALUES // (self.classes * grid[0] * grid[1])))
        factor = max(1, min(self.enlarge, room))
        return grid[0] * factor, grid[1] * factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, G + (G + 1) E, h, w) to logits (B, C, H, W), at most `enlarge` times (h, w)."""
        maps = x[:, : self.groups]
        vectors = x[:, self.groups :, 0, 0].unflatten(1, (self.groups + 1, self.width))  # (B, G + 1, E)
        words = self.scale * F.normalize(vectors, dim=-1) @ self.vectors.to(x.dtype).T  # (B, G + 1, P)
        logits = of_classes(words.transpose(1, 2)[..., None], self.owner, self.classes)[..., 0].transpose(1, 2)
        affinity = group_affinity(logits[:, :-1], logits[:, -1], self.top)  # (B, G, C)
        scores = paint_groups(maps, affinity, self.size((maps.shape[2], maps.shape[3])))
        if self.background is not None:
            scores = behind(scores, affinity, self.background, self.threshold)
        return scores.clamp(min=LEAST).log()

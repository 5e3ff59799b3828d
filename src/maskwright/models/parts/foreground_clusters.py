"""Leopart's two clusterings as a classifier: one says what is foreground, the other what it is (CVPR 2022).

Legend: B images, E width, K fine clusters, G clusters that say what is foreground, C classes, (h, w) map size.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.models.parts.part import Part


class ForegroundClusters(Part):
    """The class of the nearest fine cluster, or the background's class where the nearest of the other clusters is
    background.

    A class's logit is its best cluster's cosine over the temperature. That of the background exceeds all exactly
    where the best background cluster is nearer than the best foreground cluster.

    Args:
        centers: of fine clusters (K, E), of any length.
        class_of: their classes, int64 (K,), 0 to C - 1.
        classes: C.
        gate: centres (G, E) of the other clustering; None where everything is foreground.
        foreground: which of them are, int64 or bool (G,).
        background: the background's class.
        temperature: of the logits.

    Raises:
        ValueError: shapes or classes out of range.
    """

    fields = ("width", "clusters", "classes", "gates", "background", "temperature")
    centers: Tensor
    class_of: Tensor
    gate: Tensor
    foreground: Tensor
    steepness = 5.0
    """What a cosine of the gate counts in logits over the temperature; only the sign of the gap decides."""

    def __init__(
        self,
        centers: Tensor,
        class_of: Tensor,
        classes: int,
        gate: Tensor | None = None,
        foreground: Tensor | None = None,
        background: int = 0,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if centers.ndim != 2 or class_of.shape != centers.shape[:1] or not temperature > 0:
            raise ValueError(f"centres {tuple(centers.shape)} of {tuple(class_of.shape)} classes, at {temperature}")
        self.clusters, self.width = int(centers.shape[0]), int(centers.shape[1])
        gate = centers.new_zeros(0, self.width) if gate is None else gate
        foreground = torch.ones(len(gate)) if foreground is None else foreground
        if gate.shape[1:] != centers.shape[1:] or foreground.shape != gate.shape[:1]:
            raise ValueError(f"a gate of {tuple(gate.shape)} and {tuple(foreground.shape)} for {tuple(centers.shape)}")
        self.classes, self.gates, self.background = int(classes), int(gate.shape[0]), int(background)
        self.temperature = float(temperature)
        if not 0 <= self.background < self.classes:
            raise ValueError(f"background {background} of {classes} classes")
        self.register_buffer("centers", centers.detach().float().contiguous().clone())
        self.register_buffer("class_of", class_of.detach().long().clone())
        self.register_buffer("gate", gate.detach().float().contiguous().clone())
        self.register_buffer("foreground", foreground.detach().long().clone())
        if not self.centers.is_meta:
            self.check_tensors()

    def check_tensors(self) -> None:
        """Raises `ValueError` where a cluster's class is none of the C."""
        if bool(((self.class_of < 0) | (self.class_of >= self.classes)).any()):
            raise ValueError(f"a cluster of a class that is none of {self.classes}")

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """`width`: E, `clusters`: K, `gates`: G; the others as of the constructor."""
        width, clusters, gates = (arguments.pop(k) for k in ("width", "clusters", "gates"))
        return cls(
            torch.zeros(clusters, width), torch.zeros(clusters, dtype=torch.int64), arguments.pop("classes"),
            torch.zeros(gates, width), torch.ones(gates, dtype=torch.int64), **arguments,
        )  # fmt: skip

    def _best(self, x: Tensor, centers: Tensor, member: Tensor, groups: int) -> Tensor:
        """The best cosine (B, groups, h, w) of unit vectors x to the centres of each group; -2 where it has none."""
        cosines = F.conv2d(x, F.normalize(centers, dim=1)[..., None, None].to(x.dtype))
        at = member[:, None, None].expand(cosines.shape)
        out = cosines.new_full((len(x), groups, *x.shape[2:]), -2.0)
        return out.scatter_reduce(1, at, cosines, "amax")

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) to logits (B, C, h, w)."""
        x = F.normalize(x, dim=1)
        best = self._best(x, self.centers, self.class_of, self.classes)
        if self.gates:
            ground, figure = self._best(x, self.gate, self.foreground, 2).unbind(1)
            beyond = best.amax(1) + self.steepness * (ground - figure)
            b = self.background
            best = torch.cat((best[:, :b], torch.maximum(best[:, b], beyond)[:, None], best[:, b + 1 :]), 1)
        return best / self.temperature

"""Read-outs of pixel embeddings by segments: prototypes in place of pixels, and the vote of the nearest of a bank.

Segments are found by spherical k-means in the map itself (SegSort, ICCV 2019); a photograph that is seen in windows has
segments of each.

Legend: B images, E width of the embedding, S segments of an image, M rows of the bank, C classes, (h, w) map size.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.parts.part import Part
from maskwright.ops.clustering.segments import Layout, segments_within

FAINT = 1e-4
"""Share of the votes that a class without any has, so that logits are finite."""


class EmbeddingHead(Part):
    """Two 1x1 convolutions around batch norm and ReLU (HSG, CVPR 2022).

    Args:
        width: of the input.
        hidden: between the two.
        out: E.
    """

    fields = ("width", "hidden", "out")

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.width, self.hidden, self.out = int(width), int(hidden), int(out)
        self.layers = nn.Sequential(
            nn.Conv2d(self.width, self.hidden, 1, bias=False), nn.BatchNorm2d(self.hidden), nn.ReLU(),
            nn.Conv2d(self.hidden, self.out, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to (B, E, h, w)."""
        return self.layers(x)


class SegmentPrototypes(Part):
    """Each pixel's embedding becomes the prototype of its segment.

    Args:
        grid: k-means starts from a grid of so many cells down and across; 0: pixels stay, of unit length.
        iterations: of k-means.
        layout: of the grid (`ops.clustering.segments`).
    """

    fields: tuple[str, ...] = ("grid", "iterations", "layout")

    def __init__(self, grid: int, iterations: int, layout: Layout = "corner") -> None:
        super().__init__()
        if not 0 <= grid <= 64 or not 0 <= iterations <= 1000 or layout not in ("corner", "centred"):
            raise ValueError(f"grid {grid}, iterations {iterations}, layout {layout!r}; expected up to 64, up to 1000")
        self.grid, self.iterations, self.layout = int(grid), int(iterations), layout

    def segments(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, E, h, w) to prototypes (B, S, E), 0 of one without pixels, and which segment each pixel
        belongs to, one-hot (B, h w, S)."""
        found = segments_within(v, self.grid, self.iterations, self.layout).flatten(1)
        member = F.one_hot(found, self.grid**2).to(v.dtype)
        return F.normalize(member.transpose(1, 2) @ v.flatten(2).transpose(1, 2), dim=2), member

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) to unit vectors of that shape."""
        v = F.normalize(x.float(), dim=1)
        if self.grid == 0:
            return v
        mu, member = self.segments(v)
        return (member @ mu).transpose(1, 2).reshape(v.shape)


class NeighbourClassifier(SegmentPrototypes):
    """Each segment takes the vote of the k rows of a bank that its prototype has the greatest products with.

    Logits are logarithms of the shares of the votes; of classes that tie the smaller is predicted.

    Args:
        bank: (M, E), unit vectors.
        ids: int64 (M,), their classes, in [0, C).
        classes: C.
        k: neighbours, at most M.
        grid: at least 1.
        iterations: of k-means.
        layout: of the grid.
    """

    fields = ("width", "count", "classes", "k", *SegmentPrototypes.fields)
    bank: Tensor
    ids: Tensor

    def __init__(
        self, bank: Tensor, ids: Tensor, classes: int, k: int, grid: int, iterations: int, layout: Layout = "corner"
    ) -> None:
        super().__init__(grid, iterations, layout)
        self.count, self.width, self.classes, self.k = len(bank), int(bank.shape[1]), int(classes), int(k)
        if ids.shape != (self.count,) or not 1 <= self.k <= self.count or grid < 1:
            raise ValueError(f"{self.k} neighbours of {self.count} rows of {tuple(ids.shape)} classes, grid {grid}")
        self.register_buffer("bank", bank.detach().float().contiguous().clone())
        self.register_buffer("ids", ids.detach().long().clone())
        if not self.ids.is_meta:
            self.check_tensors()

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """`width`: E, `count`: M, `classes`: C, `k`, and those of the segments."""
        width, count = arguments.pop("width"), arguments.pop("count")
        return cls(torch.zeros(count, width), torch.zeros(count, dtype=torch.int64), **arguments)

    def check_tensors(self) -> None:
        """Raises `ValueError` where a row is of no class."""
        if bool(((self.ids < 0) | (self.ids >= self.classes)).any()):
            raise ValueError(f"a row of a class outside 0 to {self.classes - 1}")

    def votes(self, rows: Tensor) -> Tensor:
        """Votes (..., C) of unit vectors (..., E)."""
        nearest = (rows.to(self.bank) @ self.bank.T).topk(self.k).indices  # (..., k)
        return F.one_hot(self.ids[nearest], self.classes).sum(-2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) to logits (B, C, h, w)."""
        mu, member = self.segments(F.normalize(x.float(), dim=1))
        logits = (self.votes(mu).to(mu.dtype) / self.k + FAINT).log()  # (B, S, C)
        return (member @ logits).transpose(1, 2).reshape(len(x), self.classes, *x.shape[2:])

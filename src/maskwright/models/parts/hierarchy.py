"""HSG's clustering transformers and the classifier that can tell each of its levels (Ke et al., CVPR 2022,
https://arxiv.org/abs/2204.11432).

The nodes of a graph are segments of a photograph (in training of two views of it). An encoder mixes them, a decoder
turns queries into the centroids of groups, and each node is assigned softly to these. All normalisation is batch norm
over nodes and graphs, padding included, behind each sum, as in the authors' code.

Legend: B graphs, N slots for nodes, G groups, d width, S segments, (h, w) map size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.errors import MaskwrightError
from maskwright.models.parts.part import Part, check_argument
from maskwright.models.parts.segments import SegmentPrototypes
from maskwright.models.parts.table import build_part
from maskwright.ops.clustering.segments import Layout

LEVELS = ("segments", "fine", "coarse")
"""What a photograph falls into, from many parts to few."""
FAINT = 1e-6
"""Share of a group that has none, so that logits are finite."""
TINY = 1e-16
"""Variance of nodes, at least."""


class Groups(NamedTuple):
    """Groups of nodes.

    Attributes:
        centroids: (B, G, d), of any length.
        features: (B, G, d), what the groups are as nodes of the next level.
        logits: (B, G, N).
        assignment: (B, G, N), softmax of them over the groups; 0 at padding.
    """

    centroids: Tensor
    features: Tensor
    logits: Tensor
    assignment: Tensor


class _Norm(nn.Module):
    """Batch norm of (B, N, d) over graphs and slots."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class _Layer(nn.Module):
    """Self attention, attention to a memory where there is one, and two linear layers, each added and normalised."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, crosses: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True) if crosses else None
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norms = nn.ModuleList(_Norm(width) for _ in range(3 if crosses else 2))
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, position: Tensor, padding: Tensor | None, memory: Tensor | None = None, at: Any = None
    ) -> Tensor:
        """Nodes with their positions; or queries, the memory and its positions `at`, whose padding is then meant."""
        q = x + position
        own = padding if self.cross_attn is None else None
        x = self.norms[0](x + self.drop(self.self_attn(q, q, x, key_padding_mask=own, need_weights=False)[0]))
        if self.cross_attn is not None and memory is not None:
            seen = self.cross_attn(x + position, memory + at, memory, key_padding_mask=padding, need_weights=False)[0]
            x = self.norms[1](x + self.drop(seen))
        inner = self.linear2(self.drop(F.relu(self.linear1(x))))
        return self.norms[-1](x + self.drop(inner))


def _projection(width: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Linear(width, width, bias=False), _Norm(width))


class ClusteringTransformer(Part):
    """Nodes to soft groups.

    Args:
        width: d.
        groups: G.
        heads: of attention.
        hidden: width inside the layers.
        layers: of encoder and decoder each.
        dropout: inside the layers.
    """

    fields = ("width", "groups", "heads", "hidden", "layers", "dropout")

    def __init__(self, width: int, groups: int, heads: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        if min(width, groups, heads, hidden, layers) < 1 or width % heads or layers > 64 or not 0 <= dropout < 1:
            raise ValueError(f"width {width}, groups {groups}, heads {heads}, hidden {hidden}, layers {layers}")
        self.width, self.groups, self.heads, self.hidden = int(width), int(groups), int(heads), int(hidden)
        self.layers, self.dropout = int(layers), float(dropout)
        self.query = nn.Parameter(torch.randn(self.groups, self.width))
        build = (self.width, self.heads, self.hidden, self.dropout)
        self.encoder = nn.ModuleList(_Layer(*build, crosses=False) for _ in range(self.layers))
        self.decoder = nn.ModuleList(_Layer(*build, crosses=True) for _ in range(self.layers))
        self.last = _Norm(self.width)
        both = 2 * self.width
        self.start = nn.Sequential(
            nn.Linear(both, both, bias=False), nn.BatchNorm1d(both), nn.ReLU(), nn.Linear(both, self.width)
        )
        self.centroid, self.feature = _projection(self.width), _projection(self.width)

    def forward(self, nodes: Tensor, position: Tensor, padding: Tensor | None = None) -> Groups:
        """Groups of nodes (B, N, d) with their positions (B, N, d); padding bool (B, N), slots without a node."""
        memory = nodes
        for layer in self.encoder:
            memory = layer(memory, position, padding)
        x = self.start(mean_and_deviation(memory, padding))[:, None].expand(-1, self.groups, -1)
        query = self.query[None].expand(len(nodes), -1, -1)
        for layer in self.decoder:
            x = layer(x, query, padding, memory, position)
        x = self.last(x)
        centroids = self.centroid(x)
        logits = centroids @ memory.transpose(1, 2) / self.width**0.5
        assignment = logits.softmax(1)
        if padding is not None:
            assignment = assignment.masked_fill(padding[:, None], 0.0)
        return Groups(centroids, self.feature(x), logits, assignment)


def mean_and_deviation(x: Tensor, padding: Tensor | None) -> Tensor:
    """Mean and standard deviation of nodes (B, N, d), joined: (B, 2 d). With padding the authors count every empty slot
    as a zero in the deviation, and divide by one more than there are nodes."""
    if padding is None:
        return torch.cat((x.mean(1), x.std(1)), 1)
    inside = (~padding)[:, :, None].to(x.dtype)
    count = inside.sum(1)
    mean = (x * inside).sum(1) / count
    variance = (x * inside - mean[:, None]).square().sum(1) / (count + 1)
    return torch.cat((mean, variance.clamp(min=TINY).sqrt()), 1)  # of equal nodes a root has no gradient


class Hierarchy(Part):
    """Positions of a map, and groups of segments from fine to coarse.

    Args:
        width: d, of nodes and positions; even.
        fine: groups of the fine level.
        coarse: of the coarse level; 0: there is none.
        heads, hidden, layers, dropout: of the transformers.
        table: rows and columns of the learned positions, which cover a map of any size.
    """

    fields = ("width", "fine", "coarse", "heads", "hidden", "layers", "dropout", "table")

    def __init__(
        self, width: int, fine: int, coarse: int, heads: int, hidden: int, layers: int, dropout: float, table: int
    ) -> None:
        super().__init__()
        if width % 2 or coarse < 0 or table < 1:
            raise ValueError(f"width {width}, {coarse} coarse groups, a table of {table}")
        self.width, self.fine, self.coarse, self.heads = int(width), int(fine), int(coarse), int(heads)
        self.hidden, self.layers, self.dropout, self.table = int(hidden), int(layers), float(dropout), int(table)
        inside = (self.heads, self.hidden, self.layers, self.dropout)
        self.rows, self.columns = (nn.Parameter(torch.rand(self.table, self.width // 2)) for _ in range(2))
        self.to_fine = ClusteringTransformer(self.width, self.fine, *inside)
        self.to_coarse = ClusteringTransformer(self.width, self.coarse, *inside) if self.coarse else None

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, segments among them."""
        return LEVELS if self.coarse else LEVELS[:2]

    def positions(self, size: tuple[int, int]) -> Tensor:
        """Learned positions (1, d, h, w): the tables brought to the map's sides, columns first."""
        y, x = (
            F.interpolate(t.T[None], n, mode="linear", align_corners=False)[0] if n != self.table else t.T
            for t, n in ((self.rows, size[0]), (self.columns, size[1]))
        )
        across = x[:, None].expand(-1, *size)
        return torch.cat((across, y[:, :, None].expand(-1, *size)))[None]

    def groups(self, nodes: Tensor, position: Tensor, padding: Tensor | None = None) -> dict[str, Groups]:
        """Groups of nodes (B, N, d) with positions (B, N, d), by level.

        A coarse group is one of fine groups: their nodes are the fine features, their positions the means of the
        segments that belong to them, and segments are assigned by the chain rule.
        """
        fine = self.to_fine(nodes, position, padding)
        if self.to_coarse is None:
            return {"fine": fine}
        member = F.one_hot(fine.assignment.argmax(1), self.fine).to(position)  # (B, N, G)
        if padding is not None:
            member = member.masked_fill(padding[:, :, None], 0.0)
        places = member.transpose(1, 2) @ position / member.sum(1).clamp(min=1)[:, :, None]
        coarse = self.to_coarse(fine.features, places)
        return {"fine": fine, "coarse": coarse._replace(assignment=coarse.assignment @ fine.assignment)}


class LevelClassifier(SegmentPrototypes):
    """Classes of pixels, or one of the levels that the photograph itself falls into.

    Groups mean nothing beyond the photograph that they are of, nor beyond a window of it.

    Args:
        embed: a decoder's map to an embedding (B, d, h, w).
        hierarchy: groups of its segments.
        readout: classifier of the embedding.
        grid, iterations, layout: of the k-means that finds segments (`SegmentPrototypes`).
        level: `classes`, or one of the hierarchy's levels.
    """

    fields = ("embed", "hierarchy", "readout", *SegmentPrototypes.fields, "level")

    def __init__(
        self, embed: Part, hierarchy: Hierarchy, readout: Part, grid: int, iterations: int, layout: Layout,
        level: str = "classes",
    ) -> None:  # fmt: skip
        super().__init__(grid, iterations, layout)
        if level not in ("classes", *hierarchy.levels) or grid < 1:
            raise ValueError(f"level {level!r} and grid {grid}, expected one of classes, {', '.join(hierarchy.levels)}")
        self.embed, self.hierarchy, self.readout, self.level = embed, hierarchy, readout, level
        if level != "classes":
            self.classes = {"segments": grid**2, "fine": hierarchy.fine, "coarse": hierarchy.coarse}[level]

    def spec(self) -> dict[str, Any]:
        """The specs of the parts inside, and the arguments."""
        inside = {name: getattr(self, name).spec() for name in self.fields[:3]}
        return {"kind": "LevelClassifier", **inside, **{name: getattr(self, name) for name in self.fields[3:]}}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds the parts inside, and this around them.

        Raises:
            MaskwrightError: an incomplete spec, and as the parts inside do.
        """
        if set(spec) != {"kind", *cls.fields}:
            raise MaskwrightError("part LevelClassifier has other arguments", ", ".join(cls.fields))
        for name in cls.fields[3:]:
            check_argument(cls.__name__, name, spec[name])
        inside = [build_part(spec[name]) for name in cls.fields[:3]]
        if not isinstance(inside[1], Hierarchy):
            raise MaskwrightError("part LevelClassifier has no hierarchy", "a part of kind Hierarchy")
        try:
            return cls(*inside, *(spec[name] for name in cls.fields[3:]))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise MaskwrightError(f"part LevelClassifier cannot be built: {error}", "its own arguments") from error

    def at(self, level: str) -> LevelClassifier:
        """The same at another level; it shares its tensors with this one."""
        return LevelClassifier(
            self.embed, self.hierarchy, self.readout, self.grid, self.iterations, self.layout, level
        ).eval()

    def forward(self, x: Tensor) -> Tensor:
        """A decoder's map (B, D, h, w) to logits of classes, or of groups: logarithms of their shares (B, G, h, w)."""
        e = self.embed(x)
        if self.level == "classes":
            return self.readout(e)
        mu, member = self.segments(F.normalize(e.float(), dim=1))  # (B, S, d), (B, h w, S)
        shares = torch.eye(mu.shape[1], device=x.device)[None].expand(len(x), -1, -1)
        if self.level != "segments":
            count = member.sum(1)  # (B, S)
            places = self.hierarchy.positions((x.shape[2], x.shape[3])).flatten(2).transpose(1, 2)
            position = member.transpose(1, 2) @ places.to(member) / count.clamp(min=1)[:, :, None]
            shares = self.hierarchy.groups(mu, position, count == 0)[self.level].assignment.transpose(1, 2)
        logits = member @ (shares + FAINT).log()
        return logits.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])

"""HSG's graphs of segments, their two levels of groups, and its losses (CVPR 2022).

Legend: B pairs of views, N pixels, S segments of the batch, M slots of a graph, G groups, d width, kappa concentration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.models.parts.hierarchy import Groups
from maskwright.ops.clustering.segments import numbered
from maskwright.ops.graphs.modularity import collapse_loss, modularity_loss, neighbour_graph
from maskwright.ops.losses.segment_contrast import segment_contrast
from maskwright.recipes.segments.training import Segments


class Graphs(NamedTuple):
    """A graph of the segments of both views of each photograph.

    Attributes:
        nodes: prototypes (B, M, d), 0 at padding.
        position: mean positions (B, M, d), 0 at padding.
        padding: bool (B, M).
        view: int64 (B, M), which crop each node is of, -1 at padding.
        pair: int64 (S,) in [0, B), the graph of each segment.
        slot: int64 (S,), and its place there.
    """

    nodes: Tensor
    position: Tensor
    padding: Tensor
    view: Tensor
    pair: Tensor
    slot: Tensor


def mean_positions(position: Tensor, found: Segments) -> Tensor:
    """Mean over the pixels of each segment (S, d) of a map (B, d, h, w)."""
    rows = position.permute(0, 2, 3, 1).flatten(0, 2)[found.pixels]
    sums = rows.new_zeros(len(found.mu), rows.shape[1]).index_add(0, found.own, rows)
    return sums / found.own.bincount(minlength=len(found.mu)).clamp(min=1)[:, None].to(sums)


def make_graphs(found: Segments, position: Tensor, slots: int = 0) -> Graphs:
    """Graphs of segments whose crops 2 i and 2 i + 1 are views of one photograph; pairs without segments have none.

    Args:
        found: segments of the batch.
        position: (S, d), of each.
        slots: M; 0: as many as the largest graph has segments.
    """
    pair, first = numbered(found.crop // 2)
    slot = torch.arange(len(pair), device=pair.device) - first[pair]
    b, m = len(first), slots or int(slot.max()) + 1
    at = pair * m + slot

    def placed(x: Tensor) -> Tensor:
        return x.new_zeros(b * m, x.shape[1]).index_copy(0, at, x).view(b, m, -1)

    padding = torch.ones(b * m, dtype=torch.bool, device=at.device).index_fill(0, at, False)
    view = torch.full_like(padding, -1, dtype=torch.int64).index_copy(0, at, found.crop)
    return Graphs(placed(found.mu), placed(position), padding.view(b, m), view.view(b, m), pair, slot)


def group_labels(graphs: Graphs, assignment: Tensor) -> Tensor:
    """Of each segment its group, numbered over the batch: int64 (S,)."""
    return graphs.pair * assignment.shape[1] + assignment.argmax(1)[graphs.pair, graphs.slot]


def repulsion(centroids: Tensor, kappa: float) -> Tensor:
    """- log( e^kappa / sum_j e^{kappa c_i c_j} ) of the centroids (B, G, d) of all groups of the batch.

    The paper contrasts centroids of two views; its code has one set a pair, each its own target.
    """
    c = F.normalize(centroids.flatten(0, 1), dim=1)
    each = torch.arange(len(c), device=c.device)
    return segment_contrast(c, each, c, each, concentration=kappa)


def level_losses(
    found: Segments, graphs: Graphs, groups: Mapping[str, Groups], kappa: float, neighbours: int, by_view: bool
) -> dict[str, Tensor]:
    """Of each level: pixels against segments by group (`fine`), goodness of the grouping (`fine_modularity`), its
    balance (`fine_balance`) and the repulsion of centroids (`fine_centroids`)."""
    adjacency = neighbour_graph(graphs.nodes, graphs.padding, neighbours, graphs.view if by_view else None)
    terms = {}
    for name, of_level in groups.items():
        labels = group_labels(graphs, of_level.assignment)
        terms[name] = segment_contrast(found.v, found.own, found.mu, labels, concentration=kappa)
        terms[f"{name}_modularity"] = modularity_loss(adjacency, of_level.assignment)
        terms[f"{name}_balance"] = collapse_loss(of_level.assignment)
        terms[f"{name}_centroids"] = repulsion(of_level.centroids, kappa)
    return terms


def region_loss(found: Segments, kappa: float) -> Tensor:
    """Pixels against segments; those of one region of a photograph are positives, in whichever view."""
    labels, _ = numbered(found.crop // 2, found.region)
    return segment_contrast(found.v, found.own, found.mu, labels, concentration=kappa)

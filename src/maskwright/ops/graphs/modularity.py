"""Soft groups of a graph's nodes by modularity, and what keeps them from falling into one.

Deep modularity networks (Tsitsulin et al., JMLR 2023, https://arxiv.org/abs/2006.16904), as HSG has them (Ke et al.,
CVPR 2022, https://arxiv.org/abs/2204.11432): a graph of the nearest neighbours of each node, not made symmetric, with
n = 2 sum d, twice the usual 2 m. So one group for all has the loss 3/4, where the usual n gives 1.

Legend: B graphs, N slots for nodes (what is not a node is padding), G groups, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def neighbour_graph(nodes: Tensor, padding: Tensor, k: int, parts: Tensor | None = None) -> Tensor:
    """Edges from each node to the k others of the greatest cosine, in each part of its graph; ties are kept.

    In a part of at most k nodes each has edges to all, itself included, as in the authors' code.

    Args:
        nodes: (B, N, D).
        padding: bool (B, N), slots without a node.
        k: at least 1.
        parts: int64 (B, N), the part of each node (its view); one part if None.

    Returns:
        A (B, N, N) of 0 and 1, from row to column.
    """
    unit = F.normalize(nodes, dim=2)
    cosine = unit @ unit.transpose(1, 2)
    # A node is as far from itself as can be: below every other, and above what is no node.
    cosine = cosine.masked_fill(torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device), -2.0)
    found = torch.zeros_like(cosine)
    parts = torch.zeros_like(padding, dtype=torch.int64) if parts is None else parts
    for part in parts[~padding].unique():
        inside = (parts == part) & ~padding
        scores = cosine.masked_fill(~inside[:, None], -torch.inf)
        members = inside.sum(1).clamp(min=1, max=k)  # (B,)
        ordered = scores.sort(2, descending=True).values
        least = ordered.gather(2, (members - 1)[:, None, None].expand(-1, scores.shape[1], 1))
        found += (scores >= least) & inside[:, None]
    return found.masked_fill(padding[:, :, None], 0.0)


def modularity_loss(adjacency: Tensor, assignment: Tensor) -> Tensor:
    """L_D = mean over graphs of 1 - Tr(C^T A C - C^T d d^T C / n) / n, d = A 1, n = 2 sum d.

    Args:
        adjacency: A (B, N, N).
        assignment: C (B, G, N), shares of each node, 0 at padding.
    """
    degrees = adjacency.sum(2)  # (B, N)
    n = 2 * degrees.sum(1)  # (B,)
    inside = torch.einsum("bgi,bij,bgj->b", assignment, adjacency, assignment)
    expected = torch.einsum("bgi,bi->bg", assignment, degrees).square().sum(1) / n
    return (1 - (inside - expected) / n).mean()


def collapse_loss(assignment: Tensor) -> Tensor:
    """L_R = mean over graphs of |sum_i C_i| sqrt(G) / N: 1 where groups are equally large and no slot is padding,
    sqrt(G) where one has all.

    Args:
        assignment: C (B, G, N).
    """
    g, slots = assignment.shape[1:]
    return (assignment.sum(2).norm(dim=1) * g**0.5 / slots).mean()

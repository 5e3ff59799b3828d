"""Fine clusters joined to fewer: Ward's criterion on the centres of k-means (Ward, JASA 1963; scipy's linkage).

k-means of K clusters divides what is frequent and varies, and leaves none for what is rare. Many fine clusters, each
counted once whatever its share of the rows, are joined by how alike their centres are.

Legend: F fine clusters, D width, K clusters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import linkage
from torch import Tensor


def ward_groups(centers: Tensor, k: int) -> Tensor:
    """Joins, one pair after another, the two groups whose union has the least more squared distance to its mean.

    Args:
        centers: (F, D), finite; they get unit length first.
        k: groups K that are left, 1 to F.

    Returns:
        (F,) int64, the group of each centre, 0 to K - 1 in the order of their first centres.

    Raises:
        ValueError: k out of range, or centres that are not finite.
    """
    count = len(centers)
    if centers.ndim != 2 or not 1 <= k <= count:
        raise ValueError(f"{k} groups of centres {tuple(centers.shape)}, expected 1 to {count} of (F, D)")
    if not bool(torch.isfinite(centers).all()):
        raise ValueError("centres that are not finite")
    members: dict[int, list[int]] = {i: [i] for i in range(count)}
    if k < count:
        tree = linkage(F.normalize(centers.detach().cpu().double(), dim=1).numpy(), "ward")
        for step, (a, b, _, _) in enumerate(tree[: count - k]):
            members[count + step] = members.pop(int(a)) + members.pop(int(b))
    group = torch.empty(count, dtype=torch.int64)
    for number, own in enumerate(sorted(members.values(), key=min)):
        group[own] = number
    return group

"""Lloyd's step for k-means, with the rows that cannot have changed their cluster left alone.

Legend: N rows, K clusters, D width.

On a CPU a row is looked at again only when its label may have changed: its margin, by how much the second nearest
center is farther than its own, shrinks at each step by at most the path of its own center and the longest path of
another (Hamerly, Making k-means even faster, SDM 2010, with one bound a row in place of two). Labels are those of the
whole computation; later steps cost a small part of the first.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from maskwright.ops.kmeans_rows import FAST, Rows, best_two, half_squares, tally, unit


class Lloyd:
    """Labels of the rows and the sums of their clusters, from step to step.

    On a CPU sums are kept in float64 and changed by the rows that move; elsewhere each step forms them anew, since a
    GPU is faster at products than at picking rows.
    """

    def __init__(self, rows: Rows, k: int, dtype: torch.dtype | None) -> None:
        self.rows, self.k = rows, k
        self.coarse = dtype == torch.bfloat16
        # Products of bfloat16 err by up to 2^-8 of the lengths; of float32 by a few units in the last place.
        self.error = 2.0**-7 if self.coarse else 8 * torch.finfo(rows.dtype).eps
        self.on_cpu = rows.device.type == "cpu"
        self.labels = torch.full((rows.n,), -1, dtype=torch.int32 if self.on_cpu else torch.int64, device=rows.device)
        self.sums = torch.zeros(k, rows.d, dtype=rows.wide, device=rows.device)
        self.counts = torch.zeros(k, dtype=rows.wide, device=rows.device)
        self.changed = 0
        if self.on_cpu:
            self.margin = torch.full((rows.n,), -1.0, dtype=rows.dtype)
            self.active = np.empty(rows.n, np.int64)
            self.assigned_by: Tensor | None = None

    def full_precision(self) -> None:
        """From here on scores are in the rows' own precision."""
        if self.coarse:
            self.coarse, self.error = False, 8 * torch.finfo(self.rows.dtype).eps
            if self.on_cpu:
                self.margin.fill_(-1)

    def step(self, centers: Tensor) -> tuple[Tensor, Tensor, int]:
        """Assigns every row to its nearest center.

        Returns:
            Sums (K, D), counts (K,) and how many labels changed, over all processes.
        """
        c = centers.to(self.rows.dtype).contiguous()
        half = half_squares(c, self.rows.metric)
        scored = c.to(torch.bfloat16) if self.coarse else c
        self.changed = 0
        if self.on_cpu:
            self._step_pruned(c, scored, half)
        else:
            self._step_whole(scored, half)
        packed = torch.cat([self.sums.flatten(), self.counts, self.counts.new_tensor([self.changed])])
        packed = self.rows.share.sum(packed)
        sums, counts = packed[: self.k * self.rows.d], packed[self.k * self.rows.d : -1]
        return sums.reshape(self.k, self.rows.d), counts, round(packed[-1].item())

    def _step_whole(self, scored: Tensor, half: Tensor) -> None:
        rows = self.rows
        self.sums.zero_()
        self.counts.zero_()
        for s, e in rows.spans():
            at = rows.mass[s:e], rows.weight[s:e]
            labels = tally(rows.block(s, e), *at, scored, half, self.sums, self.counts)
            self.changed += int((labels != self.labels[s:e]).sum())
            self.labels[s:e] = labels

    def _step_pruned(self, c: Tensor, scored: Tensor, half: Tensor) -> None:
        rows = self.rows
        count = rows.n
        if self.assigned_by is not None:
            path = torch.linalg.vector_norm((c - self.assigned_by).double(), dim=1)  # (K,)
            far = path.topk(min(2, self.k)).values
            other = torch.where(path == far[0], far[-1], far[0]) if self.k > 1 else torch.zeros_like(path)
            # Rounded up, so that many small steps cannot eat a margin unseen.
            drop = ((path + other) * (1 + 1e-6)).to(rows.dtype)
            count = _shrink(self.margin.numpy(), self.labels.numpy(), drop.numpy(), self.active)
        self.assigned_by = c
        largest = float(c.square().sum(1).max())
        # Where most rows are looked at, picking them costs more than it saves.
        picked = count < 0.7 * rows.n
        for s in range(0, count if picked else rows.n, rows.chunk):
            e = min(s + rows.chunk, count if picked else rows.n)
            index = self.active[s:e] if picked else np.arange(s, e)
            block = rows.take(torch.from_numpy(index)) if picked else rows.block(s, e)
            scores = (scored @ block.to(scored.dtype).T).to(rows.dtype)  # (K, n)
            label = np.empty(e - s, np.int32)
            first, second = np.empty_like(scores[0].numpy()), np.empty_like(scores[0].numpy())
            best_two(scores.numpy(), half.numpy(), label, first, second)
            self.changed += _settle(
                index, block.numpy(), label, first, second, rows.metric == "cosine", self.error, largest,
                rows.scale.numpy(), rows.square.numpy(), rows.mass.numpy(), rows.weight.numpy(),
                self.labels.numpy(), self.margin.numpy(), self.sums.numpy(), self.counts.numpy(),
            )  # fmt: skip


@njit(cache=True, nogil=True, fastmath=FAST)
def _shrink(margin, labels, drop, active):  # type: ignore[no-untyped-def]
    """Takes drop (K,) off the margins (N,); writes the rows without margin to `active` and returns their number."""
    count = 0
    for i in range(margin.shape[0]):
        margin[i] -= drop[labels[i]]
        active[count] = i
        count += margin[i] <= 0
    return count


@njit(cache=True, nogil=True, fastmath=FAST)
def _settle(  # type: ignore[no-untyped-def]
    index, rows, label, first, second, cosine, error, largest,
    scale, square, mass, weight, labels, margin, sums, counts,
):  # fmt: skip
    """Writes labels and margins of the rows at `index` and moves those whose label changed; returns their number.

    The margin is a lower bound of the distance by which the second center is farther, `error` being the relative
    error of a score.
    """
    changed = 0
    for n in range(index.shape[0]):
        i = index[n]
        new, old = label[n], labels[i]
        if second[n] == -np.inf or scale[i] == 0:
            margin[i] = np.inf
        elif cosine:
            # On the unit sphere a center's path bounds the change of a cosine.
            margin[i] = (first[n] - second[n]) * scale[i] - error
        else:
            slack = error * (square[i] + largest)
            near = math.sqrt(max(square[i] - 2 * first[n], 0.0) + slack)
            far = math.sqrt(max(square[i] - 2 * second[n], 0.0) + slack)
            margin[i] = (2 * (first[n] - second[n]) - slack) / (near + far) if near + far > 0 else -1.0
        if new != old:
            changed += 1
            labels[i] = new
            f, w = np.float64(mass[i]), np.float64(weight[i])
            if old >= 0:
                counts[old] -= w
                for j in range(rows.shape[1]):
                    v = f * rows[n, j]
                    sums[old, j] -= v
                    sums[new, j] += v
            else:
                for j in range(rows.shape[1]):
                    sums[new, j] += f * rows[n, j]
            counts[new] += w
    return changed


def means(rows: Rows, sums: Tensor, counts: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Centers (K, D) from sums, and the ids of clusters without rows, which stay where they were.

    Counts formed by adding and taking away leave a rest where weights are not whole numbers.
    """
    filled = counts > 1e-12 * counts.sum()
    mean = sums / torch.where(filled, counts, 1)[:, None]
    if rows.metric == "cosine":
        # Rows that cancel out have no mean direction; their center stays.
        directed = filled & (torch.linalg.vector_norm(mean, dim=1) > 1e-9)
        return torch.where(directed[:, None], unit(mean), before), (~filled).nonzero().flatten()
    return torch.where(filled[:, None], mean, before), (~filled).nonzero().flatten()


def path_length(after: Tensor, before: Tensor) -> float:
    """Root mean square of the centers' paths."""
    return (after - before).square().sum(1).mean().sqrt().item()

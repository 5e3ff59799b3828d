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

from maskwright.ops.clustering.kmeans_rows import FAST, Rows, half_squares, padded, score_chunk, tally, unit

# A product of rows and centers rounded to bfloat16 errs by 2^-8 of their lengths, its own rounding by 2^-9 more; two
# such scores are compared.
COARSE_ERROR = 0.012


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16; without them they are slower than float32."""
    asks = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # the only way to ask, in newer torch
    return device.type == "cpu" and asks is not None and bool(asks())


class Lloyd:
    """Labels of the rows and the sums of their clusters, from step to step.

    On a CPU sums are kept in float64 and changed by the rows that move; elsewhere each step forms them anew, since a
    GPU is faster at products than at picking rows. Where the CPU multiplies bfloat16, a look at all rows is in two
    rounds: scores in bfloat16 settle the rows whose margin is beyond their rounding, the rest are scored again.

    Args:
        rows: this process's rows.
        k: clusters.
        dtype: torch.bfloat16 for coarse scores first (on a GPU until `full_precision`), torch.float32 or float64
            for none, None for coarse scores first on a CPU that has them.
    """

    def __init__(self, rows: Rows, k: int, dtype: torch.dtype | None) -> None:
        self.rows, self.k = rows, k
        self.on_cpu = rows.device.type == "cpu"
        able = dtype is None and rows.dtype == torch.float32 and multiplies_bfloat16(rows.device)
        self.coarse = dtype == torch.bfloat16 or able
        self.error = 8 * torch.finfo(rows.dtype).eps
        self.labels = torch.full((rows.n,), -1, dtype=torch.int32 if self.on_cpu else torch.int64, device=rows.device)
        self.sums = torch.zeros(k, rows.d, dtype=rows.wide, device=rows.device)
        self.counts = torch.zeros(k, dtype=rows.wide, device=rows.device)
        self.changed = 0
        if self.on_cpu:
            self.margin = torch.full((rows.n,), -1.0, dtype=rows.dtype)
            self.active = np.empty(rows.n, np.int64)
            self.assigned_by: Tensor | None = None

    def full_precision(self) -> None:
        """From here on a GPU scores in the rows' own precision, as a CPU does in its second round."""
        self.coarse = self.coarse and self.on_cpu

    def step(self, centers: Tensor) -> tuple[Tensor, Tensor, int]:
        """Assigns every row to its nearest center.

        Returns:
            Sums (K, D), counts (K,) and how many labels changed, over all processes.
        """
        c = centers.to(self.rows.dtype).contiguous()
        half = half_squares(c, self.rows.metric)
        self.changed = 0
        if self.on_cpu:
            self._step_pruned(c, half)
        else:
            self._step_whole(c.to(torch.bfloat16) if self.coarse else c, half)
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

    def _step_pruned(self, c: Tensor, half: Tensor) -> None:
        rows = self.rows
        active = None
        if self.assigned_by is not None:
            path = torch.linalg.vector_norm((c - self.assigned_by).double(), dim=1)  # (K,)
            far = path.topk(min(2, self.k)).values
            other = torch.where(path == far[0], far[-1], far[0]) if self.k > 1 else torch.zeros_like(path)
            # Rounded up, so that many small steps cannot eat a margin unseen.
            drop = ((path + other) * (1 + 1e-6)).to(rows.dtype)
            count = _shrink(self.margin.numpy(), self.labels.numpy(), drop.numpy(), self.active)
            # Where most rows are looked at, picking them costs more than it saves.
            active = self.active[:count] if count < 0.7 * rows.n else None
        self.assigned_by = c
        largest = float(c.square().sum(1).max())
        c = padded(c)
        if active is None and self.coarse:
            doubtful = self._look(None, c.to(torch.bfloat16), half, largest, COARSE_ERROR, self.active)
            active = self.active[:doubtful]
            # Two rounds over most rows would cost more than one.
            self.coarse = doubtful < 0.4 * rows.n
        self._look(active, c, half, largest, self.error, self.active[:0])

    def _look(
        self, index: np.ndarray | None, c: Tensor, half: Tensor, largest: float, error: float, doubtful: np.ndarray
    ) -> int:
        """Scores and settles the rows at `index` (all by default).

        Returns:
            How many rows stay as they were because `error` is beyond their margin: their indices come first in
            `doubtful`. Where that is empty every row is settled.
        """
        rows, doubts = self.rows, 0
        count = rows.n if index is None else len(index)
        known = [t.numpy() for t in (rows.scale, rows.square, rows.mass, rows.weight)]
        kept = [t.numpy() for t in (self.labels, self.margin, self.sums, self.counts)]
        cosine = rows.metric == "cosine"
        for s in range(0, count, rows.chunk):
            e = min(s + rows.chunk, count)
            if index is None:
                at, block = np.arange(s, e), rows.block(s, e)
            else:
                at = index[s:e]
                block = rows.take(torch.from_numpy(at))
            label, first, second = score_chunk(block, c, half)
            moved, more = _settle(  # type: ignore[call-arg]
                at, block.numpy(), label, first, second, cosine, error, largest, *known, *kept, doubtful[doubts:]
            )
            self.changed += moved
            doubts += more
        return doubts


@njit(cache=True, nogil=True, fastmath=FAST)
def _shrink(margin, labels, drop, active):
    """Takes drop (K,) off the margins (N,); writes the rows without margin to `active` and returns their number."""
    count = 0
    for i in range(margin.shape[0]):
        margin[i] -= drop[labels[i]]
        active[count] = i
        count += margin[i] <= 0
    return count


@njit(cache=True, nogil=True, fastmath=FAST)
def _settle(
    index, rows, label, first, second, cosine, error, largest,
    scale, square, mass, weight, labels, margin, sums, counts, doubtful,
):  # fmt: skip
    """Writes labels and margins of the rows at `index` and moves those whose label changed.

    The margin is a lower bound of the distance by which the second center is farther, `error` being the error of the
    difference of two scores, in lengths of row and center. Rows without margin are left alone and noted in `doubtful`
    unless that is empty. Returns the numbers of rows that moved and of doubtful ones.
    """
    changed = doubts = 0
    noting = doubtful.shape[0] > 0
    for n in range(index.shape[0]):
        i = index[n]
        new, old = label[n], labels[i]
        if second[n] == -np.inf or scale[i] == 0:
            room = np.inf
        elif cosine:
            # On the unit sphere a center's path bounds the change of a cosine.
            room = (first[n] - second[n]) * scale[i] - error
        else:
            slack = error * (square[i] + largest)
            near = math.sqrt(max(square[i] - 2 * first[n], 0.0) + slack)
            far = math.sqrt(max(square[i] - 2 * second[n], 0.0) + slack)
            room = (2 * (first[n] - second[n]) - slack) / (near + far) if near + far > 0 else -1.0
        if noting and room <= 0:
            doubtful[doubts] = i
            doubts += 1
            continue
        margin[i] = room
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
    return changed, doubts


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

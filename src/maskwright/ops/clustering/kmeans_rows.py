"""Rows as k-means sees them, kept where they are: chunks in working precision, their masses, and the sums over them.

Legend: N rows of this process, K clusters, D width, L candidates. A row x stands for the point z: x over its length
where clusters are compared by cosine, x less a common shift where they are compared by Euclidean distance. Neither
is stored for all rows: z = scale * x by one factor a row, and the shift is taken off one chunk at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numba import njit
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
SAME_DIRECTION = 1e-12  # squared distance of unit rows below which float32 cannot tell their directions apart
FAST = {"nsz", "contract"}


class Share:
    """Which of all processes' rows this process holds.

    Args:
        n: rows here.
        device: where sums are formed.
        all_reduce: sums a tensor over the processes, in place or not; None in a single process.
        offset: rows of the processes before this one; by default as ranks of torch.distributed say.
        total: rows of all processes.

    Raises:
        ValueError: when offset or total do not fit the rows there are.
    """

    def __init__(
        self, n: int, device: torch.device, all_reduce: Reduce | None, offset: int | None, total: int | None
    ) -> None:
        self.n, self.device, self.all_reduce = n, device, all_reduce
        self.total = round(self.sum(self._numbers(n)).item())
        if total is not None and total != self.total:
            raise ValueError(f"total is {total}, but the processes hold {self.total} rows together")
        if offset is None:
            offset = self._offset()
        fits = offset >= 0 and offset + n <= self.total
        if self.sum(self._numbers(0 if fits else 1)).item() > 0:
            raise ValueError(f"offset {offset} and {n} rows do not fit a total of {self.total}")
        self.offset = offset
        self.rank, self.world = self._place()

    def _numbers(self, *values: float) -> Tensor:
        return torch.tensor(values, dtype=wide(self.device), device=self.device)

    def _offset(self) -> int:
        if self.total == self.n or self.n == 0:
            return 0
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"these are {self.n} of {self.total} rows; pass offset, the number of rows of the processes before this"
            )
        counts = self._numbers(*[0] * dist.get_world_size())
        counts[dist.get_rank()] = self.n
        return round(self.sum(counts)[: dist.get_rank()].sum().item())

    def _place(self) -> tuple[int, int]:
        """Place among the shares that have rows, and their number, from nothing but sums.

        The offsets of such shares differ. A first sum says which stretches of about sqrt(total) rows hold a start, a
        second where in these stretches.
        """
        if self.all_reduce is None:
            return 0, 1
        width = math.isqrt(self.total) + 1
        stretch, within = divmod(self.offset, width)
        starts = self._numbers(*[0] * width)
        if self.n:
            starts[stretch] = 1
        used = self.sum(starts).nonzero().flatten().tolist()
        marks = torch.zeros(max(1, len(used)), width, dtype=starts.dtype, device=self.device)
        if self.n:
            marks[used.index(stretch), within] = 1
        at = self.sum(marks).flatten().nonzero().flatten().tolist()
        if sum(self.sum(self._numbers(1.0 if self.n else 0.0)).tolist()) != len(at):
            raise ValueError("two processes have rows at the same offset")
        return (at.index(used.index(stretch) * width + within) if self.n else -1), max(1, len(at))

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over the processes."""
        if self.all_reduce is None:
            return x
        out = self.all_reduce(x)
        return x if out is None else out

    def gather(self, x: Tensor) -> Tensor:
        """(W, *x.shape): the tensors of all shares that have rows, in order; all of one shape."""
        if self.all_reduce is None:
            return x[None]
        out = torch.zeros(self.world, *x.shape, dtype=x.dtype, device=x.device)
        if self.rank >= 0:
            out[self.rank] = x
        return self.sum(out)

    def first(self, x: Tensor) -> Tensor:
        """The first share's `x`, so that rounding on different machines cannot part the processes."""
        return self.gather(x)[0]


def wide(device: torch.device) -> torch.dtype:
    """The precision of sums: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Rows:
    """This process's rows (N, D) and what k-means needs to know of each.

    Attributes:
        scale: (N,) 1 / |x| for cosine (0 for a zero row), 1 for Euclidean.
        square: (N,) |z|^2.
        weight: (N,) weight of each row; 0 for zero rows under cosine, which have no direction.
        mass: (N,) weight * scale, what a row adds to its cluster's sum.
        shift: (D,) taken off each row, or None. It is the mean where the mean is long beside the spread: squared
            distances formed from products lose digits by that ratio.
        spread: root mean square of |z| about the mean; 1 for cosine.
        usable: rows of all processes with weight.

    Raises:
        ValueError: for values or weights that are not finite, and negative weights.
    """

    def __init__(self, x: Tensor, metric: str, weights: Tensor | None, chunk: int, k: int, share: Share) -> None:
        self.x, self.metric, self.share = x.detach(), metric, share
        self.n, self.d = x.shape
        self.device = x.device
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.wide = wide(self.device)
        # Scores of one chunk stay in the cache of a CPU; a GPU wants few and large kernels instead.
        cells = max(k, self.d)
        self.chunk = min(chunk, max(256, 2**20 // k)) if self.device.type == "cpu" else max(chunk, 2**26 // cells)
        self.shift: Tensor | None = None
        self.square = self._squares()
        if weights is None:
            self.weight = torch.ones(self.n, dtype=self.dtype, device=self.device)
        else:
            self.weight = weights.detach().to(self.device, self.dtype).contiguous()
        bad = torch.stack([(~torch.isfinite(self.square)).sum(), (~(self.weight >= 0)).sum()]).to(self.wide)
        bad[1] += torch.isinf(self.weight).sum()
        bad = share.sum(bad)
        if bad[0] > 0:
            raise ValueError(f"{int(bad[0])} of {share.total} rows hold NaN, infinite or overflowing values")
        if bad[1] > 0:
            raise ValueError(f"{int(bad[1])} weights are negative, NaN or infinite")
        self.spread = 1.0
        if metric == "euclidean":
            self._center()
            self.scale = torch.ones_like(self.square)
        else:
            self.scale = torch.where(self.square > 0, self.square.rsqrt(), 0)
            self.square = (self.square > 0).to(self.dtype)
            self.weight = self.weight * self.square
        self.mass = self.weight * self.scale
        self.usable = round(share.sum((self.weight > 0).sum().to(self.wide)[None]).item())

    def _squares(self) -> Tensor:
        square = torch.empty(self.n, dtype=self.dtype, device=self.device)
        for s, e in self.spans():
            square[s:e] = self.block(s, e).square().sum(1)
        return square

    def _center(self) -> None:
        moments = torch.zeros(self.d + 2, dtype=self.wide, device=self.device)
        for s, e in self.spans():
            moments[: self.d] += self.block(s, e).sum(0)
        moments[self.d] = self.n
        moments[self.d + 1] = self.square.sum(dtype=self.wide)
        moments = self.share.sum(moments)
        mean = moments[: self.d] / moments[self.d]
        length, energy = mean.square().sum().item(), (moments[self.d + 1] / moments[self.d]).item()
        if length > 0.5 * energy:
            self.shift = mean.to(self.dtype)
            self.square = self._squares()
            total = self.share.sum(self.square.sum(dtype=self.wide)[None])
            energy, length = total.item() / self.share.total, 0.0
        self.spread = math.sqrt(max(energy - length, 0.0))

    def spans(self) -> Iterator[tuple[int, int]]:
        """Chunks of this process's rows as (start, end)."""
        return ((s, min(s + self.chunk, self.n)) for s in range(0, self.n, self.chunk))

    def _working(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return (x if self.shift is None else x - self.shift).contiguous()

    def block(self, start: int, end: int) -> Tensor:
        """Rows start to end in working precision, less the shift, not scaled."""
        return self._working(self.x[start:end])

    def take(self, index: Tensor) -> Tensor:
        """The rows of these indices, as `block`."""
        return self._working(self.x.index_select(0, index))

    def points(self, index: Tensor) -> Tensor:
        """z of these rows of this process, wide."""
        return self.take(index).to(self.wide) * self.scale[index, None]

    def fetch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(z, weight) of the rows at these places of all processes' rows, on every process."""
        local = positions.to(self.device) - self.share.offset
        here = ((local >= 0) & (local < self.n)).nonzero().flatten()
        out = torch.zeros(len(positions), self.d + 1, dtype=self.wide, device=self.device)
        index = local[here]
        out[here, : self.d] = self.points(index)
        out[here, self.d] = self.weight[index].to(self.wide)
        out = self.share.sum(out)
        return out[:, : self.d], out[:, self.d]

    def to_centers(self, centers: Tensor) -> Tensor:
        """Given centers (K, D) as points z, wide."""
        c = centers.detach().to(self.device, self.wide)
        if self.metric == "cosine":
            return unit(c)
        return c if self.shift is None else c - self.shift

    def from_centers(self, z: Tensor) -> Tensor:
        """Points (K, D) as centers of the rows that came in."""
        return (z if self.shift is None else z + self.shift).to(self.dtype)

    def own_distances(self, labels: Tensor, centers: Tensor) -> Tensor:
        """(N,) squared distance of each z to its label's center, from differences, so that 0 means equal."""
        c = centers.to(self.dtype).contiguous()
        out = torch.empty(self.n, dtype=self.dtype, device=self.device)
        for s, e in self.spans():
            block = self.block(s, e)
            if self.device.type == "cpu":
                at = labels[s:e].numpy(), self.scale[s:e].numpy()
                _own_distances(block.numpy(), *at, c.numpy(), out[s:e].numpy())
            else:
                out[s:e] = (block * self.scale[s:e, None] - c[labels[s:e].long()]).square().sum(1)
        return out


def unit(x: Tensor) -> Tensor:
    """Rows over their lengths; a zero row stays."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1)


def padded(centers: Tensor) -> Tensor:
    """Centers (K, D) with rows of zeros up to a multiple of 16, which matrix products of a CPU like better."""
    missing = -len(centers) % 16
    return F.pad(centers, (0, 0, 0, missing)) if 4 * missing < len(centers) else centers


def score_chunk(block: Tensor, centers: Tensor, half: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label (n,) int32, greatest and second score of rows (n, D) on a CPU.

    Args:
        block: rows in working precision.
        centers: (K or more, D) `padded`, in the precision to multiply in.
        half: (K,) `half_squares`.
    """
    scores = (centers @ block.to(centers.dtype).T).to(block.dtype)[: len(half)].numpy()  # (K, n)
    label = np.empty(len(block), np.int32)
    first, second = np.empty_like(scores[0]), np.empty_like(scores[0])
    best_two(scores, half.numpy(), label, first, second)
    return label, first, second


def half_squares(centers: Tensor, metric: str) -> Tensor:
    """(K,) what is taken off z c to make the greatest score the nearest center: |c|^2 / 2, 0 for cosine."""
    return torch.zeros_like(centers[:, 0]) if metric == "cosine" else centers.square().sum(1) / 2


# Sums of one row may be reordered, which vector registers need; the order is fixed when it is compiled.
@njit(cache=True, nogil=True, fastmath=FAST | {"reassoc"})
def _own_distances(rows, labels, scale, centers, out):
    for i in range(rows.shape[0]):
        c, f = centers[labels[i]], scale[i]
        total = rows.dtype.type(0)
        for j in range(rows.shape[1]):
            gap = rows[i, j] * f - c[j]
            total += gap * gap
        out[i] = total


@njit(cache=True, nogil=True, fastmath=FAST)
def best_two(scores, half, label, first, second):
    """Label (n,), greatest and second score of each column of scores (K, n) - half (K,); ties to the lower label.

    The loop over columns is the inner one and has no branch, so that it runs in vector registers.
    """
    for i in range(scores.shape[1]):
        first[i], second[i], label[i] = scores[0, i] - half[0], -np.inf, 0
    for k in range(1, scores.shape[0]):
        h, name = half[k], np.int32(k)
        for i in range(scores.shape[1]):
            v, b = scores[k, i] - h, first[i]
            greater = v > b
            second[i] = max(second[i], b if greater else v)
            first[i] = v if greater else b
            label[i] = name if greater else label[i]


@njit(cache=True, nogil=True, fastmath=FAST)
def add_rows(rows, label, mass, weight, sums, counts):
    """Adds each row times its mass to the sum of its label, and its weight to the count."""
    for i in range(rows.shape[0]):
        k, f = label[i], np.float64(mass[i])
        counts[k] += weight[i]
        for j in range(rows.shape[1]):
            sums[k, j] += f * rows[i, j]


def tally(
    block: Tensor, mass: Tensor, weight: Tensor, centers: Tensor, half: Tensor, sums: Tensor, counts: Tensor
) -> Tensor:
    """Assigns the rows of one chunk and adds them to the sums of their clusters.

    Args:
        block: (n, D) rows, not scaled: scaling a row changes all its cosines alike.
        mass: (n,) factor of each row in the sums.
        weight: (n,) what each row adds to the counts.
        centers: (K, D), in the precision of the rows or in bfloat16, which then rounds the scores.
        half: (K,) `half_squares` of them.
        sums: (K, D), added to in place.
        counts: (K,), added to in place.

    Returns:
        Labels (n,), int32 on a CPU, int64 elsewhere.
    """
    if block.device.type == "cpu":
        label, _, _ = score_chunk(block, padded(centers), half)
        add_rows(block.numpy(), label, mass.numpy(), weight.numpy(), sums.numpy(), counts.numpy())
        return torch.from_numpy(label)
    scores = (block.to(centers.dtype) @ centers.T).to(block.dtype) - half  # (n, K)
    labels = scores.argmax(1)
    # Products with one-hot rows, unlike index_add_, add in a fixed order on a GPU.
    chosen = torch.zeros_like(scores).scatter_(1, labels[:, None], 1)
    sums += (chosen * mass[:, None]).T @ block
    counts += (chosen * weight[:, None]).sum(0, dtype=counts.dtype)
    return labels

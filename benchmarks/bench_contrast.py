"""The contrastive loss and its gradient at the size of CAC's Pascal recipe, beside the dense matrix.

6400 anchors of width 128 against 12,800 negatives with pseudo-labels, negatives of the anchor's own class dropped.
Once with 21 equally common classes, once with Pascal's share of background (about 3 of 4 pixels), where tiles of one
class are skipped altogether. One thread on both sides. Peak memory is of processes of their own that do one pass.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.ops.losses.contrast import contrastive_loss

N, M, D, C, TAU = 6400, 12_800, 128, 21, 0.1
SHARES = {"even classes": 1 / C, "3/4 background": 0.73}

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(background: float) -> Inputs:
    """Anchors, positives, negatives and the labels of anchors and negatives."""
    g = torch.Generator().manual_seed(0)
    a, p, k = (F.normalize(torch.randn(n, D, generator=g), dim=1) for n in (N, N, M))
    shares = torch.tensor([background] + [(1 - background) / (C - 1)] * (C - 1))
    ai, ki = (torch.multinomial(shares, n, replacement=True, generator=g) for n in (N, M))
    return a.requires_grad_(), p, k, ai, ki


def ours(x: Inputs) -> tuple[Tensor, Tensor]:
    """Loss and gradient, tile by tile."""
    a, p, k, ai, ki = x
    loss = contrastive_loss(a, p, k, temperature=TAU, anchor_ids=ai, negative_ids=ki)
    return loss, torch.autograd.grad(loss, a)[0]


def dense(x: Inputs) -> tuple[Tensor, Tensor]:
    """The same with the whole matrix of logits, in as few passes as plain torch needs."""
    a, p, k, ai, ki = x
    z = (a @ k.T / TAU).masked_fill(ai[:, None] == ki[None], -math.inf)
    s = (a * p).sum(1) / TAU
    loss = F.softplus(z.logsumexp(1) - s).mean()
    return loss, torch.autograd.grad(loss, a)[0]


def peak(way: Callable[[Inputs], object], background: float) -> float:
    """Megabytes that one pass adds to the peak of this process."""
    torch.set_num_threads(1)
    small: Inputs = tuple(t.detach()[:64].requires_grad_(t.requires_grad) for t in inputs(background))  # type: ignore[assignment]
    way(small)  # libraries load on their first use
    x = inputs(background)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    way(x)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def rows() -> list[Row]:
    """Against the dense matrix, for both shares of classes."""
    found = []
    start = multiprocessing.get_context("spawn")
    for name, background in SHARES.items():
        x = inputs(background)
        memory = []
        for way in (ours, dense):
            with start.Pool(1) as pool:
                memory.append(pool.apply(peak, (way, background)))
        with one_thread():
            a, b = side_by_side(lambda: ours(x), lambda: dense(x), repeats=3)  # noqa: B023
            mine, theirs = ours(x)[1], dense(x)[1]
            gap = float((mine - theirs).norm() / theirs.norm())
        found.append(
            Row(
                f"contrast + gradient, {N} x {M} x {D}, {name}", a, "dense matrix", b, 2.0, None,
                f"gradients to {gap:.0e}; peak {memory[0]:.0f} MB, dense {memory[1]:.0f} MB",
            )
        )  # fmt: skip
    return found


if __name__ == "__main__":
    for row in rows():
        print(f"{row.path}: {row.ours_s * 1e3:.0f} ms, {row.other} {row.other_s * 1e3:.0f} ms, {row.ratio:.2f}x"
              f" ({row.asked}x), {row.agrees}")  # fmt: skip

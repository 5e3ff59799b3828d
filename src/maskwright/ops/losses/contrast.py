"""The contrastive loss of pixels, regions and objects, without the matrix of all logits.

Legend: N anchors, M keys shared by all anchors, K keys of each anchor's own, P positives of an anchor, D width.

Every contrast of this package is l_i = -log( e^{s_i} / (e^{s_i} + sum_j keep_ij e^{a_i . n_j / tau}) ), s_i the
logit of the positive: in CAC a key of the anchor's own, in U2PL and ReCo a class centre, in MaskContrast and SegSort
keys that lie among the others. What is dear is the N x M logits. Here they are computed tile by tile with a running
maximum, and the softmax-weighted mean of the keys, which is the gradient with respect to the anchor, is accumulated
in the same pass (the way of Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867, and of memory-efficient
attention). So the backward pass to the anchors is a product of (N, D) tensors; only keys that need gradients have
their tiles computed a second time.

Where labels say which pairs count, anchors and keys are sorted by label: tiles of one label alone are skipped, not
masked. Results are deterministic; on CUDA, gradients to keys given by `index` are sums in no fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_CPU = 1 << 20
"""Logits of a tile: 4 MB, about what a core's cache holds."""

CHUNK_CUDA = 1 << 24

CHUNK_OWN = 1 << 18
"""Numbers gathered at once on the CPU, where keys are of each anchor's own: 1 MB."""

# Beyond it log(1 + e^x) is x in float64 too.
SOFTPLUS_LINEAR = 40.0


def contrastive_loss(
    anchors: Tensor,
    positives: Tensor | None,
    negatives: Tensor,
    *,
    temperature: float,
    anchor_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    keep: Tensor | None = None,
    negative_index: Tensor | None = None,
    positive_mask: Tensor | None = None,
    pool: Literal["mean", "sum"] = "mean",
    weights: Tensor | None = None,
    chunk: int | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """InfoNCE with masked negatives at bounded memory.

    Rows are used as they come: normalise them for cosines. Gradients go to every tensor that requires them; detach
    positives and negatives where the paper does. Half precision is computed in float32, also under autocast.

    Args:
        anchors: (N, D).
        positives: (N, D), one of each anchor; (N, P, D), several; or None where they lie among the negatives: then
            positives of an anchor are the keys of its own label, or those of `positive_mask`, their exponentials
            summed.
        negatives: (M, D) shared by all anchors, or (N, K, D), each anchor's own.
        temperature: tau, above 0.
        anchor_ids: (N,) integers; a negative with the anchor's label is dropped.
        negative_ids: integers (M,), or (N, K) for negatives (N, K, D).
        keep: bool (N, M) or (N, K), which negatives count, in place of the labels. By default all.
        negative_index: (N, K) rows of `negatives` (M, D) that are each anchor's own, repetitions allowed; gathered tile
            by tile. `keep` is then (N, K), `negative_ids` (M,).
        positive_mask: bool (N, P) which positives count, or (N, M) with `positives` None.
        pool: of several positives, the `mean` of their losses, each with the same negatives, or `sum`, one loss of
            their summed exponentials (NCA). With `positives` None it is the latter.
        weights: (N,) at least 0, or bool. Anchors of weight 0 cost nothing.
        chunk: the most logits held at once, or of negatives of each anchor's own the most numbers; by default what
            is fastest, some megabytes.
        reduction: `mean` is sum_i w_i l_i / sum_i w_i, 0 where the weights sum to 0; `sum`; `none` is w_i l_i (N,).

    Returns:
        The loss, at least 0, in float32 (float64 for such anchors). An anchor whose negatives are all dropped has a
        loss of exactly 0; one without a positive does not count.

    Raises:
        ValueError: shapes that do not belong together or arguments out of range.
    """
    if reduction not in ("mean", "sum", "none") or pool not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r} and pool {pool!r}, expected mean, sum or none, and mean or sum")
    n, d = _check_rows(anchors, negatives, temperature)
    for name, x in (("weights", weights), ("anchor_ids", anchor_ids)):
        if x is not None and x.shape != (n,):
            raise ValueError(f"{name} is {tuple(x.shape)}, expected ({n},)")
    if positives is None:
        if negatives.ndim != 2 or negative_index is not None:
            raise ValueError("positives among the negatives need shared negatives (M, D)")
        if positive_mask is None and (anchor_ids is None or negative_ids is None):
            raise ValueError("without positives, expected anchor_ids and negative_ids, or positive_mask")
    elif positives.shape not in ((n, d), (n, positives.shape[-2], d)):
        raise ValueError(f"positives are {tuple(positives.shape)}, expected ({n}, {d}) or ({n}, P, {d})")
    if positive_mask is not None:
        wide = (n, len(negatives)) if positives is None else tuple(positives.shape[:2])
        if positive_mask.shape != wide or (positives is not None and positives.ndim != 3):
            raise ValueError(f"positive_mask is {tuple(positive_mask.shape)}, expected {wide}")

    own = [anchors, positives, keep, negative_index, positive_mask, anchor_ids]
    own_keys, own_ids = negatives.ndim == 3, negative_ids is not None and negative_ids.ndim == 2
    scale = torch.ones(n, device=anchors.device) if weights is None else weights.detach()
    rows = None
    if weights is not None:
        rows = weights.detach().nonzero().flatten()
        own = [None if x is None else x[rows] for x in own]
        negatives = negatives[rows] if own_keys else negatives
        negative_ids = negative_ids[rows] if own_ids and negative_ids is not None else negative_ids
        scale = scale[rows]
    a, positives, keep, negative_index, positive_mask, anchor_ids = own
    assert a is not None

    with torch.autocast(anchors.device.type, enabled=False):
        a = _full(a)
        lse = masked_logsumexp(
            a, negatives, temperature=temperature, keep=keep, anchor_ids=anchor_ids, key_ids=negative_ids,
            index=negative_index, chunk=chunk,
        )  # fmt: skip
        if positives is None:
            ids = (None, None) if positive_mask is not None else (anchor_ids, negative_ids)
            s = masked_logsumexp(
                a, negatives, temperature=temperature, keep=positive_mask, anchor_ids=ids[0], key_ids=ids[1],
                equal=True, chunk=chunk,
            )  # fmt: skip
            counts = s.detach() != -math.inf
            losses = _against(torch.where(counts, s, 0.0), lse)
        else:
            losses, counts = _with_positives(a, positives.to(a), lse, positive_mask, temperature, pool)
        scale = torch.where(counts, scale.to(losses), 0.0)
        losses = torch.where(counts, losses, 0.0) * scale
        if reduction == "sum":
            return losses.sum()
        if reduction == "mean":
            total = scale.sum()
            return losses.sum() / torch.where(total > 0, total, 1.0)
        return losses if rows is None else losses.new_zeros(n).index_copy(0, rows, losses)


def masked_logsumexp(
    anchors: Tensor,
    keys: Tensor,
    *,
    temperature: float = 1.0,
    keep: Tensor | None = None,
    anchor_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    equal: bool = False,
    index: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """log sum_j keep_ij exp(a_i . n_j / tau) at bounded memory; -inf, with a gradient of 0, where nothing is kept.

    Args:
        anchors: (N, D).
        keys: n, (M, D) or (N, K, D).
        temperature: tau, above 0.
        keep: bool (N, M), or (N, K) for keys of each anchor's own.
        anchor_ids: (N,) integers, together with `key_ids` and in place of `keep`.
        key_ids: integers (M,), or (N, K) for keys (N, K, D).
        equal: keep pairs of equal labels rather than of different ones.
        index: (N, K) rows of `keys` (M, D) that are each anchor's own.
        chunk: the most logits held at once; for keys of each anchor's own, the most numbers gathered at once.

    Returns:
        (N,), float32, or float64 for such anchors.

    Raises:
        ValueError: shapes that do not belong together or arguments out of range.
    """
    n, _ = _check_rows(anchors, keys, temperature)
    m = len(keys)
    if chunk is None:
        shared = keys.ndim == 2 and index is None
        chunk = CHUNK_CUDA if anchors.is_cuda else CHUNK_CPU if shared else CHUNK_OWN
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1")
    if index is not None and (keys.ndim != 2 or index.ndim != 2 or len(index) != n):
        raise ValueError(f"index is {tuple(index.shape)}, keys {tuple(keys.shape)}, expected ({n}, K) and (M, D)")
    own = index if index is not None else (keys if keys.ndim == 3 else None)
    pairs = (n, m) if own is None else (n, own.shape[1])
    if keep is not None and (keep.shape != pairs or anchor_ids is not None or key_ids is not None):
        raise ValueError(f"keep is {tuple(keep.shape)}, expected {pairs} and no labels beside it")
    if (anchor_ids is None) != (key_ids is None):
        raise ValueError("anchor_ids and key_ids say which pairs count only together")
    if anchor_ids is not None and key_ids is not None:
        wide = pairs if keys.ndim == 3 else (m,)
        if anchor_ids.shape != (n,) or key_ids.shape != wide:
            raise ValueError(f"labels {tuple(anchor_ids.shape)} and {tuple(key_ids.shape)}, expected ({n},) and {wide}")
        if own is not None:
            key_ids = key_ids if index is None else key_ids[index]
            keep = (key_ids == anchor_ids[:, None]) == equal
            anchor_ids = key_ids = None
    with torch.autocast(anchors.device.type, enabled=False):
        a = _full(anchors)
        if own is not None:
            return _OwnKeys.apply(a, keys, index, keep, 1 / temperature, chunk)
        labels = None if anchor_ids is None or key_ids is None else _Labels(anchor_ids, key_ids, equal)
        return _SharedKeys.apply(a, keys.to(a), keep, labels, 1 / temperature, chunk)


def directional_mask(p1: Tensor, p2: Tensor, threshold: float) -> Tensor:
    """[p2 > t][p1 < p2]: where view 1 is to move towards view 2, which is surer (CAC).

    Both comparisons are strict, so that equal views and a confidence of exactly t give nothing.

    Source: Lai et al., CVPR 2021, https://arxiv.org/abs/2106.14133.

    Args:
        p1: confidences of the moving view, any shape.
        p2: confidences of the other, the same shape.
        threshold: t in [0, 1].

    Returns:
        bool, the same shape.
    """
    return (p2 > threshold) & (p1 < p2)


# ------------------------------------------------------------------ parts


def _check_rows(anchors: Tensor, keys: Tensor, temperature: float) -> tuple[int, int]:
    if anchors.ndim != 2 or not anchors.is_floating_point():
        raise ValueError(f"anchors are {tuple(anchors.shape)} {anchors.dtype}, expected floating (N, D)")
    n, d = anchors.shape
    if keys.ndim not in (2, 3) or keys.shape[-1] != d or (keys.ndim == 3 and len(keys) != n):
        raise ValueError(f"negatives are {tuple(keys.shape)}, expected (M, {d}) or ({n}, K, {d})")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected above 0")
    return n, d


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _against(s: Tensor, lse: Tensor) -> Tensor:
    """-log(e^s / (e^s + e^lse)) = log(1 + e^{lse - s}), 0 for lse = -inf."""
    return F.softplus(lse - s, threshold=SOFTPLUS_LINEAR)


def _with_positives(
    a: Tensor, positives: Tensor, lse: Tensor, mask: Tensor | None, temperature: float, pool: str
) -> tuple[Tensor, Tensor]:
    """Losses (N,) and which anchors have a positive (N,)."""
    if positives.ndim == 2:
        s = (a * positives).sum(1, keepdim=True) / temperature  # (N, 1)
    else:
        s = torch.bmm(positives, a[:, :, None]).squeeze(2) / temperature  # (N, P)
    mask = torch.ones_like(s, dtype=torch.bool) if mask is None else mask.bool()
    counts = mask.any(1)
    if pool == "mean":
        each = torch.where(mask, _against(s, lse[:, None]), 0.0)
        return each.sum(1) / mask.sum(1).clamp(min=1), counts
    s = torch.where(mask | ~counts[:, None], s, -math.inf)
    return _against(s.logsumexp(1) if s.shape[1] else s.new_zeros(len(s)), lse), counts


class _Labels(NamedTuple):
    """Which pairs count: those of equal labels, or of different ones."""

    anchors: Tensor
    keys: Tensor
    equal: bool


class _Tile(NamedTuple):
    """Rows r0 to r1 against columns c0 to c1, some of whose pairs may be dropped."""

    r0: int
    r1: int
    c0: int
    c1: int
    mixed: bool


class _Plan:
    """The tiles to compute of N x M logits, row block by row block, and which of their pairs are dropped."""

    def __init__(self, n: int, m: int, keep: Tensor | None, labels: _Labels | None, chunk: int) -> None:
        self.keep, self.labels = keep, labels
        self.row_order: Tensor | None = None
        self.column_order: Tensor | None = None
        self.rows = max(1, min(n, math.isqrt(chunk)))
        self.columns = max(1, chunk // self.rows)
        self.blocks: list[list[_Tile]] = []
        if labels is None:
            for r0 in range(0, n, self.rows):
                self._add(r0, min(n, r0 + self.rows), [(0, m, keep is not None)])
            return
        ids, self.row_order = labels.anchors.sort(stable=True)
        key_ids, self.column_order = labels.keys.sort(stable=True)
        self.labels = _Labels(ids, key_ids, labels.equal)
        starts = torch.searchsorted(key_ids, ids).tolist()
        ends = torch.searchsorted(key_ids, ids, right=True).tolist()
        names = ids.tolist()
        for r0, r1 in self._cuts(ids):
            low, high, single = starts[r0], ends[r1 - 1], names[r0] == names[r1 - 1]
            if labels.equal:
                self._add(r0, r1, [(low, high, not single)])
            else:
                middle = [] if single else [(low, high, True)]
                self._add(r0, r1, [(0, low, False), *middle, (high, m, False)])

    def _cuts(self, ids: Tensor) -> Iterator[tuple[int, int]]:
        """Blocks of at most `rows` rows; runs of one label long enough to pay for it have blocks of their own."""
        start = done = 0
        for length in ids.unique_consecutive(return_counts=True)[1].tolist():
            end, long = start + length, length >= self.rows // 8
            if done < start and (long or end - done > self.rows):
                yield done, start
                done = start
            if long:
                yield from ((r, min(end, r + self.rows)) for r in range(start, end, self.rows))
                done = end
            start = end
        if done < start:
            yield done, start

    def _add(self, r0: int, r1: int, spans: list[tuple[int, int, bool]]) -> None:
        self.blocks.append(
            [
                _Tile(r0, r1, c, min(end, c + self.columns), mixed)
                for first, end, mixed in spans
                for c in range(first, end, self.columns)
            ]
        )

    def dropped(self, tile: _Tile) -> Tensor | None:
        """bool (rows, columns) of a tile, or None where all its pairs count."""
        if not tile.mixed:
            return None
        r, c = slice(tile.r0, tile.r1), slice(tile.c0, tile.c1)
        if self.labels is not None:
            same = self.labels.anchors[r, None] == self.labels.keys[None, c]
            return ~same if self.labels.equal else same
        assert self.keep is not None
        return ~self.keep[r, c].bool()

    def sort(self, x: Tensor, order: Tensor | None) -> Tensor:
        return x if order is None else x[order]

    def unsort(self, x: Tensor, order: Tensor | None) -> Tensor:
        return x if order is None else torch.empty_like(x).index_copy_(0, order, x)


class _SharedKeys(torch.autograd.Function):
    """`masked_logsumexp` of keys (M, D)."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, keys: Tensor, keep: Tensor | None, labels: _Labels | None, beta: float, chunk: int
    ) -> Tensor:
        plan = _Plan(len(anchors), len(keys), keep, labels, chunk)
        wants_mean = ctx.needs_input_grad[0]
        a, k = plan.sort(anchors, plan.row_order) * beta, plan.sort(keys, plan.column_order)
        lse, mean = a.new_full((len(a),), -math.inf), torch.zeros_like(a) if wants_mean else None
        for tiles in plan.blocks:
            if not tiles:
                continue
            r = slice(tiles[0].r0, tiles[0].r1)
            top, total = lse[r], a.new_zeros(tiles[0].r1 - tiles[0].r0)
            for tile in tiles:
                columns = k[tile.c0 : tile.c1]
                z = a[r] @ columns.T
                dropped = plan.dropped(tile)
                if dropped is not None:
                    z.masked_fill_(dropped, -math.inf)
                new = torch.maximum(top, z.amax(1))
                base = torch.where(new == -math.inf, 0.0, new)  # -inf - -inf is NaN
                z.sub_(base[:, None]).exp_()
                shrink = (top - base).exp_()
                total = total.mul_(shrink).add_(z.sum(1))
                if mean is not None:
                    mean[r].mul_(shrink[:, None]).addmm_(z, columns)
                top = new
            lse[r] = top + total.log()
            if mean is not None:
                mean[r] /= torch.where(total > 0, total, 1.0)[:, None]
        lse = plan.unsort(lse, plan.row_order)
        mean = None if mean is None else plan.unsort(mean, plan.row_order)
        ctx.plan, ctx.beta = plan, beta
        wants_keys = ctx.needs_input_grad[1]
        ctx.save_for_backward(mean, *((anchors, keys, lse) if wants_keys else (None, None, None)))
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, anchors, keys, lse = ctx.saved_tensors
        plan, beta = ctx.plan, ctx.beta
        with torch.autocast(grad.device.type, enabled=False):
            to_anchors = None if mean is None else mean * (grad * beta)[:, None]
            if keys is None:
                return to_anchors, None, None, None, None, None
            a, k = plan.sort(anchors, plan.row_order) * beta, plan.sort(keys, plan.column_order)
            g, level = plan.sort(grad, plan.row_order), plan.sort(lse, plan.row_order)
            level = torch.where(level == -math.inf, 0.0, level)
            to_keys = torch.zeros_like(k)
            for tile in (tile for tiles in plan.blocks for tile in tiles):
                r, c = slice(tile.r0, tile.r1), slice(tile.c0, tile.c1)
                z = a[r] @ k[c].T
                dropped = plan.dropped(tile)
                if dropped is not None:
                    z.masked_fill_(dropped, -math.inf)
                z.sub_(level[r, None]).exp_().mul_(g[r, None])
                to_keys[c].addmm_(z.T, a[r])
            return to_anchors, plan.unsort(to_keys, plan.column_order), None, None, None, None


class _OwnKeys(torch.autograd.Function):
    """`masked_logsumexp` of keys (N, K, D), or of rows (N, K) of keys (M, D)."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, keys: Tensor, index: Tensor | None, keep: Tensor | None, beta: float, chunk: int
    ) -> Tensor:
        wants_mean = ctx.needs_input_grad[0]
        lse = anchors.new_full((len(anchors),), -math.inf)
        mean = torch.zeros_like(anchors) if wants_mean else None
        for r, k, z in _own_logits(anchors, keys, index, keep, beta, chunk):
            lse[r] = z.logsumexp(1)
            if mean is not None:
                p = (z - torch.where(lse[r] == -math.inf, 0.0, lse[r])[:, None]).exp_()
                mean[r] = torch.bmm(p[:, None], k).squeeze(1)
        ctx.beta, ctx.chunk = beta, chunk
        kept = (anchors, keys, index, keep, lse) if ctx.needs_input_grad[1] else (None,) * 5
        ctx.save_for_backward(mean, *kept)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, anchors, keys, index, keep, lse = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            to_anchors = None if mean is None else mean * (grad * ctx.beta)[:, None]
            if keys is None:
                return to_anchors, None, None, None, None, None
            to_keys = torch.zeros_like(keys, dtype=anchors.dtype)
            level = torch.where(lse == -math.inf, 0.0, lse)
            for r, _, z in _own_logits(anchors, keys, index, keep, ctx.beta, ctx.chunk):
                p = z.sub_(level[r, None]).exp_().mul_((grad[r] * ctx.beta)[:, None])
                part = p[:, :, None] * anchors[r, None]  # (r, K, D)
                if index is None:
                    to_keys[r] = part
                else:
                    to_keys.index_add_(0, index[r].flatten(), part.flatten(0, 1))
            return to_anchors, to_keys.to(keys), None, None, None, None


def _own_logits(
    anchors: Tensor, keys: Tensor, index: Tensor | None, keep: Tensor | None, beta: float, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of rows, their keys (r, K, D), which the next block overwrites, and logits (r, K)."""
    k, d = keys.shape[1] if index is None else index.shape[1], anchors.shape[1]
    if k == 0:
        return
    step = max(1, chunk // (k * d))
    rows = min(step, len(anchors))
    # A block of its own for each step would be new pages each time, dearer than all else together.
    gathered = None if index is None else keys.new_empty(rows * k, d)
    cast = None if keys.dtype == anchors.dtype else anchors.new_empty(rows * k, d)
    for r0 in range(0, len(anchors), step):
        r = slice(r0, min(len(anchors), r0 + step))
        used = (r.stop - r0) * k
        if index is None or gathered is None:
            block = keys[r].reshape(used, d)
        else:
            block = torch.index_select(keys, 0, index[r].flatten(), out=gathered[:used])
        if cast is not None:
            block = cast[:used].copy_(block)
        block = block.to(anchors.device).view(-1, k, d)
        z = torch.bmm(anchors[r, None], block.transpose(1, 2)).squeeze(1).mul_(beta)
        if keep is not None:
            z.masked_fill_(~keep[r].bool(), -math.inf)
        yield r, block, z

"""Contrast between regions: queries of each class against its mean, with negatives drawn by class.

What ReCo and U2PL share: of each class that is there, `count` queries are drawn from its pixels; each is pulled to the
mean of its class and pushed from keys of its own, rows of a store given by index. The loss is averaged over the queries
of a class, then over the classes that are there.

Legend: C classes, P pixels, D width, G classes with queries, N = G count queries, K negatives of a query, M keys.

Sources: ReCo, Liu et al., ICLR 2022, https://arxiv.org/abs/2104.04465; U2PL, Wang et al., CVPR 2022,
https://arxiv.org/abs/2203.03884.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from maskwright.ops.losses.contrast import contrastive_loss


class Queries(NamedTuple):
    """Pixels drawn of each class.

    Attributes:
        places: int64 (N,), which pixels; those of one class follow each other.
        ids: int64 (N,), their classes.
        classes: int64 (G,), the classes, ascending.
        each: N / G, draws of each class.
    """

    places: Tensor
    ids: Tensor
    classes: Tensor
    each: int


def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps at another size, each pixel that of the nearest centre, where two are as near the lower right.

    Args:
        x: (..., H, W) of any type.
        size: (h, w) of the result.
    """
    if x.shape[-2:] == torch.Size(size):
        return x
    rows, columns = (
        ((2 * torch.arange(n, device=x.device) + 1) * whole).div(2 * n, rounding_mode="floor")
        for n, whole in zip(size, x.shape[-2:])
    )
    return x[..., rows[:, None], columns]


def as_rows(x: Tensor) -> Tensor:
    """Maps (B, D, h, w) as rows of pixels (B h w, D)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def class_means(rows: Tensor, ids: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Means of the rows of each class.

    Args:
        rows: (P, D).
        ids: (P,) integers in [0, C).
        classes: C.

    Returns:
        (C, D), 0 for classes without a row, and the number of rows of each class, int64 (C,).
    """
    # A product, whose order of summation is fixed; index_add is not on CUDA.
    member = F.one_hot(ids, classes).T  # (C, P)
    counts = member.sum(1)
    return member.to(rows.dtype) @ rows / counts.clamp(min=1)[:, None].to(rows.dtype), counts


def draw_queries(
    ids: Tensor, candidates: Tensor, classes: int, count: int, generator: Generator | None = None
) -> Queries:
    """Draws `count` pixels of each class that has candidates, with replacement.

    Args:
        ids: (P,) class of each pixel, in [0, C).
        candidates: bool (P,), which pixels may be drawn.
        classes: C.
        count: draws of each class, above 0.
        generator: of the draw, on the pixels' device; the global one by default.

    Raises:
        ValueError: shapes that do not fit, or count below 1.
    """
    if ids.shape != candidates.shape or ids.ndim != 1 or count < 1:
        raise ValueError(
            f"ids {tuple(ids.shape)}, candidates {tuple(candidates.shape)}, count {count}; expected (P,) twice, 1"
        )
    places = candidates.nonzero().flatten()
    order = ids[places].argsort(stable=True)
    places = places[order]
    numbers = torch.bincount(ids[places], minlength=classes)
    present = numbers.nonzero().flatten()
    drawn = _uniform_rows((numbers.cumsum(0) - numbers)[present], numbers[present], count, generator)
    return Queries(places[drawn.flatten()], present.repeat_interleave(count), present, count)


def similarity_weights(means: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """softmax_j(cos(mu_c, mu_j) / tau) over the classes j other than c that are there (ReCo).

    Args:
        means: mu (C, D).
        counts: (C,), 0 where a class is not there.
        temperature: tau, above 0.

    Returns:
        (C, C): row c sums to 1, to 0 where no other class is there; 0 on the diagonal.
    """
    unit = F.normalize(means, dim=1)
    absent = (counts == 0)[None] | torch.eye(len(means), dtype=torch.bool, device=means.device)
    logits = (unit @ unit.T / temperature).masked_fill(absent, -torch.inf)
    return logits.softmax(1).nan_to_num(0.0)


def draw_negatives(
    queries: Queries, weights: Tensor, ids: Tensor, count: int, generator: Generator | None = None
) -> Tensor:
    """Draws negatives of each query: first a class by weight, then one of its rows, all alike; with replacement.

    Args:
        queries: whose classes have a positive weight of another class each.
        weights: (C, C), row c the chances of each class to be contrasted with c.
        ids: (M,) classes of the rows to draw from, ascending.
        count: K.
        generator: of the draw, on the rows' device; the global one by default.

    Returns:
        int64 (N, K), rows.

    Raises:
        ValueError: ids that do not ascend, or weights of classes that have no row.
    """
    if bool((ids.diff() < 0).any()):
        raise ValueError("ids do not ascend; sort the rows by class")
    numbers = torch.bincount(ids, minlength=len(weights))
    if bool((weights[queries.classes][:, numbers == 0] > 0).any()):
        raise ValueError("a class without rows has a weight above 0")
    if not len(queries.classes):
        return ids.new_zeros(0, count)
    drawn = torch.multinomial(weights[queries.classes], queries.each * count, replacement=True, generator=generator)
    drawn = drawn.view(-1, count)  # (N, K) classes
    stored, first = numbers[drawn], (numbers.cumsum(0) - numbers)[drawn]
    u = torch.rand(drawn.shape, device=ids.device, generator=generator)
    return first + torch.minimum((u * stored).long(), stored - 1)


def region_contrast(
    rows: Tensor,
    queries: Queries,
    means: Tensor,
    keys: Tensor,
    index: Tensor,
    *,
    temperature: float,
    present: int,
) -> Tensor:
    """The mean over classes of the mean over their queries of -log(e^{s_q} / (e^{s_q} + sum_k e^{cos(r_q, r_k)/tau})).

    s_q = cos(r_q, mu_c) / tau. Gradients flow through the queries alone.

    Args:
        rows: r (P, D), of any length.
        queries: which of them are queries.
        means: mu (C, D), of any length.
        keys: (M, D), unit vectors.
        index: (N, K), each query's negatives among the keys.
        temperature: tau, above 0.
        present: number of classes that are there; those without a query count with a loss of 0.

    Returns:
        The loss, at least 0; 0 without queries.
    """
    anchors = F.normalize(rows[queries.places].float(), dim=1)
    positives = F.normalize(means.detach().float(), dim=1)[queries.ids]
    total = contrastive_loss(
        anchors, positives, keys.detach(), temperature=temperature, negative_index=index, reduction="sum"
    )
    return total / (queries.each * max(1, present))


def _uniform_rows(first: Tensor, numbers: Tensor, count: int, generator: Generator | None) -> Tensor:
    """(G, count) whole numbers, row g uniform in [first_g, first_g + numbers_g)."""
    u = torch.rand(len(numbers), count, device=numbers.device, generator=generator, dtype=torch.float64)
    return first[:, None] + torch.minimum((u * numbers[:, None]).long(), numbers[:, None] - 1)

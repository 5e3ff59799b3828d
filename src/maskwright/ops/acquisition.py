"""What to label next: scores of pixels, regions and images, larger meaning ask first; pure functions on probabilities.

Sources: Settles, 2009 (least confidence, margin, entropy); Houlsby et al., 2011 (mutual information, which for a
committee is its Jensen-Shannon divergence); Sener & Savarese, ICLR 2018 (core-set, k-centre greedy); Xie et al.,
RIPU, CVPR 2022 (region impurity times uncertainty); Shin et al., PixelPick, ICCVW 2021.

Legend: C classes, M networks, N images, D width, (H, W) map size. All scores are invariant under permutations of the
classes and under shifts of the logits behind the probabilities, and those of a mirrored map are mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-12


def entropy(probs: Tensor) -> Tensor:
    """-sum_c p log p / log C, in [0, 1].

    Args:
        probs: (C, H, W), or any (C, ...), summing to 1 over C.

    Returns:
        (H, W); zeros where C is 1.
    """
    if len(probs) < 2:
        return torch.zeros_like(probs[0])
    return _nats(probs) / math.log(len(probs))


def least_confidence(probs: Tensor) -> Tensor:
    """1 - max_c p, in [0, 1 - 1/C], (H, W) of (C, H, W)."""
    return 1 - probs.amax(0)


def margin(probs: Tensor) -> Tensor:
    """1 - (p_(1) - p_(2)), in [0, 1]: 1 where the two likeliest classes are equal, (H, W) of (C, H, W)."""
    if len(probs) < 2:
        return torch.zeros_like(probs[0])
    first, second = probs.topk(2, dim=0).values
    return 1 - (first - second)


def disagreement(probs: Tensor, other: Tensor, how: Literal["js", "kl"] = "js") -> Tensor:
    """How differently two networks see each pixel.

    Args:
        probs: (C, H, W) of the first network (student).
        other: (C, H, W) of the second (teacher).
        how: `js` H((p + q) / 2) - (H(p) + H(q)) / 2 over log 2, in [0, 1]; `kl` sum_c q log(q / p), nats, not bounded.

    Returns:
        (H, W).

    Raises:
        ValueError: maps of different shapes, or an unknown divergence.
    """
    if probs.shape != other.shape:
        raise ValueError(f"probabilities of shapes {tuple(probs.shape)} and {tuple(other.shape)}, expected one")
    if how == "kl":
        return (other * (other.clamp(min=TINY).log() - probs.clamp(min=TINY).log())).sum(0).clamp(min=0)
    if how == "js":
        apart = _nats((probs + other) / 2) - (_nats(probs) + _nats(other)) / 2
        return (apart / math.log(2)).clamp(0, 1)
    raise ValueError(f"divergence {how!r}, expected js or kl")


def _nats(probs: Tensor) -> Tensor:
    return -(probs * probs.clamp(min=TINY).log()).sum(0)


# ---------------------------------------------------------------------- regions


class Box(NamedTuple):
    """A region of a map: rows [top, top + height), columns [left, left + width), and its score."""

    top: int
    left: int
    height: int
    width: int
    score: float


def window_sums(x: Tensor, size: tuple[int, int], border: Literal["inside", "clip"] = "inside") -> Tensor:
    """Sums over all windows of a size, by integral images.

    Args:
        x: (..., H, W).
        size: (h, w) of the window.
        border: `inside`: only windows that lie in the map, entry (i, j) being the one whose corner is there; `clip`:
            one centred on each pixel (h and w odd), cut at the border.

    Returns:
        float64 (..., H - h + 1, W - w + 1), or (..., H, W) for `clip`.

    Raises:
        ValueError: the window is larger than the map, or even for `clip`.
    """
    h, w = size
    x = x.double()
    if border == "clip":
        if h % 2 == 0 or w % 2 == 0:
            raise ValueError(f"a window of {h} x {w} has no centre, expected odd sides")
        x = F.pad(x, (w // 2, w // 2, h // 2, h // 2))
    if h < 1 or w < 1 or h > x.shape[-2] or w > x.shape[-1]:
        raise ValueError(f"a window of {h} x {w} in a map of {x.shape[-2]} x {x.shape[-1]}")
    total = F.pad(x.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    return total[..., h:, w:] - total[..., :-h, w:] - total[..., h:, :-w] + total[..., :-h, :-w]


def window_means(x: Tensor, size: tuple[int, int], border: Literal["inside", "clip"] = "inside") -> Tensor:
    """Means over windows; one cut at the border counts what it holds. Arguments and result as `window_sums`."""
    return window_sums(x, size, border) / window_sums(torch.ones_like(x), size, border)


def impurity(ids: Tensor, classes: int, size: tuple[int, int], border: Literal["inside", "clip"] = "inside") -> Tensor:
    """RIPU's region impurity: entropy of the shares that predicted classes have in a window, over log C, in [0, 1].

    Args:
        ids: integers (H, W), below `classes`.
        classes: C.
        size, border: as for `window_sums`.
    """
    area = window_sums(torch.ones_like(ids, dtype=torch.float64), size, border)
    total = torch.zeros_like(area)
    for c in ids.unique().tolist():  # one class at a time: C maps at once would not fit where both are large
        share = (window_sums(ids == c, size, border) / area).clamp(0, 1)
        total -= share * share.clamp(min=TINY).log()
    return total.clamp(min=0) / math.log(max(2, classes))


def region_scores(
    probs: Tensor,
    size: tuple[int, int],
    border: Literal["inside", "clip"] = "inside",
    uncertainty: Tensor | None = None,
) -> Tensor:
    """RIPU's score of each window: impurity of its predictions times its mean uncertainty.

    Args:
        probs: (C, H, W).
        size, border: as for `window_sums`; RIPU takes 3 x 3 and `clip`.
        uncertainty: (H, W) of each pixel; the entropy if None.
    """
    pixel = entropy(probs) if uncertainty is None else uncertainty
    return impurity(probs.argmax(0), len(probs), size, border) * window_means(pixel, size, border)


def choose_regions(
    scores: Tensor, size: tuple[int, int], count: int, gap: int = 0, ties: Tensor | None = None
) -> list[Box]:
    """The best windows that do not overlap, greedily: the best of all, then the best of those left.

    RIPU suppresses a (4r + 1)^2 neighbourhood round a window of (2r + 1)^2, which is what `gap` 0 does.

    Args:
        scores: (H - h + 1, W - w + 1) of the windows by their corner (`border="inside"`); of equals that with the
            greatest tie, then the first in reading order.
        size: (h, w) of the windows.
        count: how many; fewer where no more fit.
        gap: least number of pixels between two windows, on one of the axes.
        ties: second scores of the same shape; all alike if None.

    Returns:
        Boxes by falling score.
    """
    h, w = size
    left = scores.double().clone()
    boxes: list[Box] = []
    while len(boxes) < count and left.numel():
        k = int(left.argmax())
        if ties is not None:
            k = int(torch.where(left == left.flatten()[k], ties.double(), -math.inf).argmax())
        i, j = divmod(k, left.shape[1])
        best = float(left[i, j])
        if best == -math.inf:
            break
        boxes.append(Box(i, j, h, w, best))
        left[max(0, i - h - gap + 1) : i + h + gap, max(0, j - w - gap + 1) : j + w + gap] = -math.inf
    return boxes


# ---------------------------------------------------------------------- images


def distances(x: Tensor, y: Tensor, chunk: int = 4096) -> Tensor:
    """Euclidean distance of each row of x (N, D) to the nearest row of y (M, D), (N,); infinite where y is empty."""
    if not len(y):
        return torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device)
    return torch.cat([torch.cdist(part, y).amin(1) for part in x.split(chunk)]) if len(x) else x.new_zeros(0)


def k_center_greedy(features: Tensor, count: int, taken: Tensor | None = None) -> tuple[list[int], list[float]]:
    """Core-set by k-centre greedy: again and again the row that is farthest from all chosen ones.

    Its largest distance of a row to its nearest centre is at most twice the best possible (Gonzalez, 1985).

    Args:
        features: (N, D).
        count: rows to choose; all where there are no more.
        taken: (M, D) rows that are centres already (labelled images). Where there are none, the first choice is the
            row nearest to the mean.

    Returns:
        The rows in the order of their choice, and each one's distance to the centres before it (infinite for the
        first, where there were none).
    """
    x = features.double()
    nearest = distances(x, x[:0] if taken is None else taken.double())
    order: list[int] = []
    reach: list[float] = []
    free = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(min(count, len(x))):
        if torch.isinf(nearest).all():
            k = int((x - x.mean(0)).norm(dim=1).argmin())
        else:
            k = int(torch.where(free, nearest, -1.0).argmax())
        order.append(k)
        reach.append(float(nearest[k]))
        free[k] = False
        nearest = torch.minimum(nearest, (x - x[k]).norm(dim=1))
    return order, reach


def rank_normalize(scores: Tensor) -> Tensor:
    """Ranks of scores (N,) spread over [0, 1], the largest 1; equal scores share the mean of their ranks.

    Puts scores of different units on one scale. A single score, or scores that are all equal, become 1/2.
    """
    x = scores.double()
    if len(x) < 2:
        return torch.full_like(x, 0.5)
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks = last - (counts + 1) / 2  # mean of the places last - count .. last - 1
    return ranks[inverse] / (len(x) - 1)


def mixture(scores: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Weighted mean of rank-normalised scores (N,), in [0, 1].

    Args:
        scores: several scores of the same images.
        weights: of each, not negative; equal if None.

    Raises:
        ValueError: no scores, or weights that do not fit.
    """
    shares = [1.0] * len(scores) if weights is None else list(weights)
    if not scores or len(shares) != len(scores) or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(f"{len(scores)} scores with weights {shares}, expected one weight each, not all 0")
    mixed = torch.stack([w * rank_normalize(s) for s, w in zip(scores, shares)]).sum(0)
    return mixed / sum(shares)


def uncertain_and_diverse(
    uncertainty: Tensor, features: Tensor, count: int, taken: Tensor | None = None, diversity: float = 0.5
) -> tuple[list[int], list[float]]:
    """Images that are both uncertain and unlike those chosen before, greedily.

    Each choice maximises (1 - d) rank(uncertainty) + d rank(distance to the nearest labelled or chosen image), ranks
    among the images that are left.

    Args:
        uncertainty: (N,).
        features: (N, D).
        count: images to choose; all where there are no more.
        taken: (M, D) features of labelled images.
        diversity: d in [0, 1]; 0 sorts by uncertainty, 1 is k-centre greedy.

    Returns:
        The images in the order of their choice, and the score each was chosen by.
    """
    x, order, scores = features.double(), [], []
    nearest = distances(x, x[:0] if taken is None else taken.double())
    free = torch.arange(len(x), device=x.device)
    for _ in range(min(count, len(x))):
        near = nearest[free]
        mixed = mixture([uncertainty[free], near], [1 - diversity, diversity])
        best = int(mixed.argmax())
        k = int(free[best])
        order.append(k)
        scores.append(float(mixed[best]))
        nearest = torch.minimum(nearest, (x - x[k]).norm(dim=1))
        free = torch.cat([free[:best], free[best + 1 :]])
    return order, scores

"""How sure a network is of a photograph: the variance of what it says of several views, and whom a round believes.

Legend: K views, (H, W) size of the photograph, p saliency in [0, 1], v variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.views import View, resample
from maskwright.ops.style import fda_bytes

Ask = Callable[[np.ndarray], Tensor]
"""uint8 (h, w, 3) to the saliency float (h, w)."""

MIDDLE = 128
"""A pixel counts as salient where round(255 p) is above: p at least 0.506, as the authors' code has it."""


def predictions(ask: Ask, image: np.ndarray, style: np.ndarray, beta: float, small: float) -> Tensor:
    """The saliency under the paper's four views, each brought back by its recorded geometry.

    Args:
        ask: the network.
        image: uint8 (H, W, 3).
        style: uint8 (H, W, 3), a photograph that lends its light and colours.
        beta: of `fda`.
        small: factor of the size at which the smaller view is seen, relative to the photograph.

    Returns:
        float32 (4, H, W): as it is, mirrored, in the other's style, smaller.
    """
    plain = View.identity(image.shape[:2])
    height, width = plain.size
    planes, light = (torch.from_numpy(x).permute(2, 0, 1) for x in (image, style))
    tinted = fda_bytes(planes, light, beta).permute(1, 2, 0)
    shrunk = plain.resize(max(1, round(small * height)), max(1, round(small * width)))
    views = ((plain, image), (plain.hflip(), image), (plain, tinted.contiguous().numpy()), (shrunk, image))
    found = []
    for view, pixels in views:
        seen = view.render(pixels)
        assert isinstance(seen, np.ndarray)
        found.append(resample(ask(seen).float()[None], view, plain)[0][0].clamp(0, 1))
    return torch.stack(found)


def disagreement(p: Tensor) -> Tensor:
    """v (H, W): variance of predictions (K, H, W) over the views, of all K, not of a sample; at most 1/4."""
    return p.var(0, unbiased=False)


def salient_share(p: Tensor) -> float:
    """Share of the pixels of a map (H, W) that are salient."""
    return float(((p * 255).round() > MIDDLE).double().mean())


def relative_variance(mean: float, share: float) -> float:
    """A mean variance over views, as a part of the variance over places of a mask with this salient share a: a (1 - a).

    The mean alone is smallest where next to nothing is salient, whether rightly or not.
    """
    spread = share * (1 - share)
    return mean / spread if spread > 0 else math.inf


class Believed(NamedTuple):
    """What a round learns from.

    Attributes:
        names: the photographs, the surest first.
        dropped: those of which nearly nothing or nearly all is salient.
        ranking: all others, the surest first.
    """

    names: list[str]
    dropped: list[str]
    ranking: list[str]


def believed(
    scores: Mapping[str, float],
    shares: Mapping[str, float],
    *,
    portion: float,
    skip: float = 0.0,
    threshold: float | None = None,
    black: float = 0.01,
    white: float = 0.99,
    relative: bool = False,
) -> Believed:
    """Whom a round believes: those of least mean variance, or relative variance. Equals come in order of their names.

    Args:
        scores: mean variance by name.
        shares: `salient_share` by name.
        portion: of those that are not dropped; q = int(n portion) of them, at least one where there is any.
        skip: from the int(q skip)-th on, which leaves out the surest, of which little is learned.
        threshold: instead of a portion all of at most this mean variance.
        black, white: photographs with a share below or above are dropped.
        relative: the surest are those of least `relative_variance`.
    """
    order = {n: relative_variance(v, shares[n]) for n, v in scores.items()} if relative else scores
    fits = {name: black <= shares[name] <= white for name in scores}
    ranking = sorted((n for n in scores if fits[n]), key=lambda n: (order[n], n))
    dropped = sorted(n for n in scores if not fits[n])
    if threshold is not None:
        return Believed([n for n in ranking if scores[n] <= threshold], dropped, ranking)
    q = min(len(ranking), max(1, int(len(ranking) * portion + 1e-9))) if portion > 0 else 0
    first = int(q * skip)
    return Believed(ranking[first : first + q], dropped, ranking)


def portions(rounds: int, first: float, growth: float, most: float = math.inf) -> list[float]:
    """A portion for each round, first x growth^r, at most `most`."""
    return [min(most, first * growth**r) for r in range(rounds)]

"""Dropping whole channels of an encoder's maps before its decoder: the feature perturbation of UniMatch.

Sources: Tompson et al., CVPR 2015 (dropout of channels); Yang et al., UniMatch, CVPR 2023; Yang et al., UniMatch V2,
TPAMI 2025 (complementary pairs). Masks are drawn on the CPU, so that one seed gives the same on every device.

Legend: B batch, D_i width of map i, (h, w) its size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def channel_dropout(maps: Sequence[Tensor], p: float = 0.5, generator: Generator | None = None) -> list[Tensor]:
    """Each channel of each map and image is 0 with chance p, and 1/(1 - p) times itself otherwise.

    Args:
        maps: (B, D_i, h_i, w_i) each; they are not changed.
        p: chance in [0, 1); at 0 the maps are returned as they are.
        generator: CPU generator; torch's default one when None.

    Returns:
        As many maps of the same shapes and types.

    Raises:
        ValueError: p is out of range.
    """
    if not 0 <= p < 1:
        raise ValueError(f"p is {p}, expected at least 0 and less than 1")
    if p == 0:
        return list(maps)
    dropped = []
    for x in maps:
        kept = torch.rand(x.shape[:2], generator=generator) >= p
        dropped.append(x * _spread(kept.float() / (1 - p), x))
    return dropped


def complementary_masks(
    pairs: int, widths: Sequence[int], *, kept: float = 0.5, generator: Generator | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Factors m1 = 2 Bernoulli(1/2) and m2 = 2 - m1 of each channel, for two views of each of some images.

    A channel that one view loses the other has twice, so that together they see all of them. Of int(kept * pairs)
    pairs, chosen at random, both factors are 1 throughout. Maps of one width share their factors, as the layers of a
    transformer do, whose channels are those of one stream.

    Args:
        pairs: B.
        widths: D_i of each map.
        kept: share of the pairs that lose nothing, in [0, 1].
        generator: CPU generator; torch's default one when None.

    Returns:
        For each map (m1, m2), float32 (B, D_i) in {0, 1, 2}, m1 + m2 = 2.

    Raises:
        ValueError: `kept` is out of range.
    """
    if not 0 <= kept <= 1:
        raise ValueError(f"kept is {kept}, expected a share")
    whole = torch.randperm(pairs, generator=generator)[: int(kept * pairs)]
    factors: dict[int, Tensor] = {}
    for width in dict.fromkeys(widths):
        m = 2.0 * (torch.rand(pairs, width, generator=generator) < 0.5)
        m[whole] = 1.0
        factors[width] = m
    return [(factors[width], 2 - factors[width]) for width in widths]


def complementary_dropout(
    maps: Sequence[Tensor], *, kept: float = 0.5, generator: Generator | None = None
) -> list[Tensor]:
    """Multiplies the maps of two views by `complementary_masks`.

    Args:
        maps: (2B, D_i, h_i, w_i) each: the first views of B images, then their second views, in the same order.
        kept: share of the pairs that lose nothing.
        generator: CPU generator.

    Raises:
        ValueError: an odd number of items, or `kept` is out of range.
    """
    sizes = {len(x) for x in maps}
    if len(sizes) != 1 or sizes.pop() % 2:
        raise ValueError(f"maps of {[len(x) for x in maps]} items, expected the same even number: two views an image")
    masks = complementary_masks(len(maps[0]) // 2, [x.shape[1] for x in maps], kept=kept, generator=generator)
    return [x * _spread(torch.cat(pair), x) for x, pair in zip(maps, masks, strict=True)]


def _spread(factor: Tensor, x: Tensor) -> Tensor:
    """(B, D) as (B, D, 1, 1) of the type and device of a map."""
    return factor.to(x)[:, :, None, None]

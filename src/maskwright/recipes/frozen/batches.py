"""Maps of photographs of several sizes in one batch: stacked by shape, or cut to the largest window that all have.

Legend: D channels, (h, w) grid of a photograph, B maps of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stacked_by_shape(maps: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Stacks what belongs to photographs of one grid; nothing is cut or resized.

    Args:
        maps: for each photograph tensors whose last two dimensions are its grid, as features (D, h, w) and labels
            (h, w).

    Returns:
        One tuple a shape, in the order in which shapes first come, of tensors with a batch dimension in front.
    """
    groups: dict[torch.Size, list[tuple[Tensor, ...]]] = {}
    for one in maps:
        groups.setdefault(one[0].shape, []).append(one)
    return [tuple(torch.stack(parts) for parts in zip(*group)) for group in groups.values()]


def windows(maps: Sequence[Tensor], random: torch.Generator) -> Tensor:
    """A random window of each map, of the greatest height and width that all of them have.

    Args:
        maps: (D, h, w) each.
        random: for the places; maps of just this size are taken whole and draw nothing.

    Returns:
        (B, D, h, w).
    """
    h, w = min(m.shape[1] for m in maps), min(m.shape[2] for m in maps)
    return torch.stack([_window(m, h, w, random) for m in maps])


def _window(f: Tensor, h: int, w: int, random: torch.Generator) -> Tensor:
    if f.shape[1:] == (h, w):
        return f
    top = int(torch.randint(f.shape[1] - h + 1, (), generator=random))
    left = int(torch.randint(f.shape[2] - w + 1, (), generator=random))
    return f[:, top : top + h, left : left + w]

"""Batches as large as the memory of a GPU allows, which nobody knows before they are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class PixelBudget:
    """Input pixels of a batch; half as many from the moment on that a batch did not fit.

    Attributes:
        pixels: of a batch; one image always makes a batch, however large it is.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def batches(
        self, items: Sequence[T], size: tuple[int, int], work: Callable[[Sequence[T]], R]
    ) -> Iterator[tuple[Sequence[T], R]]:
        """Batches of items with what the work made of them, in order.

        Args:
            items: one for each image.
            size: (h, w) of an image at the network's input.
            work: called with a batch; once more with each half of it where the GPU's memory was not enough.

        Raises:
            torch.OutOfMemoryError: a single image does not fit.
        """
        start, area = 0, max(1, size[0] * size[1])
        while start < len(items):
            chosen = items[start : start + max(1, self.pixels // area)]
            found: list[R] = []
            try:
                found.append(work(chosen))
            except torch.OutOfMemoryError:
                if len(chosen) == 1:
                    raise
            if not found:  # behind the except clause, whose error holds what the batch had taken
                self.pixels = len(chosen) // 2 * area
                torch.cuda.empty_cache()
                continue
            yield chosen, found[0]
            start += len(chosen)

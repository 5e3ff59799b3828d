"""Random crops of photographs as images of their own, whose features are learned from in place of whole ones."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from maskwright.data.training.views import Size

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset


class Crops:
    """Windows of a data set's photographs, in the order of these. Where they lie is a function of what a photograph
    shows: runs of any seed share them, and the feature cache.

    Args:
        data: the photographs.
        share: of each side that a window shows, in (0, 1]; there are as many as cover a photograph's area once.
    """

    def __init__(self, data: Dataset, share: float) -> None:
        self.data, self.share = data, share
        self.each = max(1, round(1 / share**2))
        self._read: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.each * len(self.data)

    def size(self, i: int) -> Size:
        """(h, w) of window i, pixels."""
        height, width = self.data.size(i // self.each)
        return max(1, round(self.share * height)), max(1, round(self.share * width))

    def window(self, i: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of window i, pixels of its photograph."""
        photograph, number = divmod(i, self.each)
        draw = torch.Generator().manual_seed(int(self.data.content_hash(photograph)[:15], 16) + number)
        (height, width), (h, w) = self.data.size(photograph), self.size(i)
        top, left = (int(torch.randint(free + 1, (), generator=draw)) for free in (height - h, width - w))
        return top, left, top + h, left + w

    def image(self, i: int) -> np.ndarray:
        """uint8 (h, w, 3)."""
        photograph = i // self.each
        if self._read is None or self._read[0] != photograph:
            self._read = photograph, self.data.image(photograph)
        top, left, bottom, right = self.window(i)
        return self._read[1][top:bottom, left:right]

    def content_hash(self, i: int) -> str:
        """Of the photograph and the window."""
        what = f"{self.data.content_hash(i // self.each)} {self.window(i)}"
        return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()

"""The files of a dataset: which they are, how they are read, and what is known of them once they were looked at."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskwright.data.masking.masks import read_mask
from maskwright.data.pictures.headers import Header
from maskwright.data.pictures.image_errors import image_error
from maskwright.data.pictures.images import read_header
from maskwright.data.pictures.scale import Scale, survey_scale


@dataclass(frozen=True, slots=True)
class Item:
    """One image and where its labels lie.

    Attributes:
        name: path below images/ without suffix.
        image: the image file.
        mask: the mask file, None where there is none or it is hidden.
        tags: class names in the image; None: no statement, (): a row without tags.
        captions: descriptions of the image.
    """

    name: str
    image: Path
    mask: Path | None = None
    tags: tuple[str, ...] | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Readers:
    """How the files of a dataset are read. Layouts with encodings of their own put their functions here.

    Attributes:
        image: path -> uint8 (H, W, 3); None: the files are images as `data.pictures.images` reads them, with all that
            this can: parts, smaller decodes, and the range of the data set for those of more than 8 bits.
        size: path -> (H, W) of what `image` gives; None: from the header.
        mask: path -> uint8 or uint16 (H, W).
        verify: path -> None, raises `MaskwrightError` where `image` would; None: the file is decoded.
        digest: path -> hash of the image's content; None: of the bytes of its file.

    All must be functions at the top of a module, so that worker processes can receive them.
    """

    image: Callable[[Path], np.ndarray] | None = None
    size: Callable[[Path], tuple[int, int]] | None = None
    mask: Callable[[Path], np.ndarray] = read_mask
    verify: Callable[[Path], object] | None = None
    digest: Callable[[Path], str] | None = None


_surveying = threading.RLock()


class KnownFiles:
    """Headers of image files, kept while the files are unchanged, and the scale of all of them, found once.

    Args:
        paths: the images of a folder.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._headers: dict[str, tuple[int, int, Header]] = {}
        self._surveyed: list[Scale | None] = []

    def header(self, path: str | os.PathLike[str]) -> Header:
        """What the header of a file says, be it of the folder or not. Raises `MaskwrightError` as `read_header`."""
        key = os.fspath(path)
        try:
            state = os.stat(key)
        except OSError as error:
            raise image_error(path, error) from error
        known = self._headers.get(key)
        if known is None or known[:2] != (state.st_size, state.st_mtime_ns):
            known = self._headers[key] = (state.st_size, state.st_mtime_ns, read_header(path))
        return known[2]

    def scale(self) -> Scale | None:
        """The scale of the images of more than 8 bits, None if there are none. Raises as `survey_scale`."""
        with _surveying:
            if not self._surveyed:
                self._surveyed.append(survey_scale(self.paths, header=self.header))
            return self._surveyed[0]

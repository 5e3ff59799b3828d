"""Photographs that a network made (translated into another domain), on disk: a folder that is itself a data set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from maskwright.data.pictures.images import read_image
from maskwright.data.trust.files import atomic_write, file_for


class ImageStore:
    """Photographs by name, without losses, so that what is read is what was written.

    Args:
        folder: where; made when missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        (self.folder / "images").mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The file of a photograph, whether or not it is there."""
        return file_for(self.folder / "images", name, ".png")

    @property
    def names(self) -> list[str]:
        """Names of the photographs, sorted; of a name too long for a file the shortened one."""
        base = self.folder / "images"
        return sorted(path.relative_to(base).as_posix().removesuffix(".png") for path in base.rglob("[!.]*.png"))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        """Whether a photograph is there; it is then whole, so that a killed run passes it over."""
        return self.path(name).exists()

    def write(self, name: str, image: np.ndarray) -> None:
        """Stores a photograph, beside its place and then renamed into it.

        Args:
            name: of the photograph it was made from.
            image: uint8 (H, W, 3).

        Raises:
            ValueError: another shape or type.
            MaskwrightError: the folder cannot be written.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"an image of shape {image.shape} and type {image.dtype}, expected uint8 (H, W, 3)")
        with atomic_write(self.path(name), durable=False) as beside, open(beside, "wb") as file:
            Image.fromarray(image).save(file, format="PNG", compress_level=1)

    def read(self, name: str) -> np.ndarray:
        """A photograph, uint8 (H, W, 3).

        Raises:
            MaskwrightError: there is none, or it is damaged.
        """
        return read_image(self.path(name))

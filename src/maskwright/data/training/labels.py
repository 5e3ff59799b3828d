"""Label maps: ids, confidence and validity, which every crop, flip, mix and resize moves together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskwright.data.masking.classes import IGNORE8, IGNORE16, ClassTable
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.masking.masks import read_mask, write_grey16, write_mask
from maskwright.data.training import rendering
from maskwright.data.training.views import View
from maskwright.data.trust.files import atomic_write, file_for, write_text
from maskwright.errors import MaskwrightError
from maskwright.ops.transfer import to_device


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Labels of one image, or of a batch.

    Attributes:
        ids: int64 (H, W) or (B, H, W), class of each pixel; 0 where not valid.
        confidence: float32, the same shape, in [0, 1]; 1 for labels of people.
        valid: bool, the same shape; False in void, in padding and where nothing is known.
    """

    ids: Tensor
    confidence: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(self.ids.shape), tuple(self.confidence.shape), tuple(self.valid.shape)}
        if len(shapes) != 1 or self.ids.dim() not in (2, 3):
            raise ValueError(f"ids, confidence and valid of shapes {sorted(shapes)}, expected one (H, W) or (B, H, W)")

    @staticmethod
    def from_mask(ids: Tensor | np.ndarray, ignore: int | Sequence[int] = IGNORE8) -> LabelMap:
        """Labels of a mask file: confidence 1, not valid where the id is `ignore` (or one of several)."""
        if isinstance(ids, np.ndarray):
            ids = torch.from_numpy(ids.astype(np.int64))
        ids = ids.long()
        valid = torch.ones_like(ids, dtype=torch.bool)
        for value in [ignore] if isinstance(ignore, int) else ignore:
            valid &= ids != value
        return LabelMap(torch.where(valid, ids, 0), valid.float(), valid)

    @staticmethod
    def from_probs(probs: Tensor, threshold: float = 0.0) -> LabelMap:
        """Pseudo-labels: the likeliest class, its probability, valid where that is at least the threshold.

        Args:
            probs: (C, H, W) or (B, C, H, W), probabilities over C. The result carries no gradient.
            threshold: least confidence of a valid pixel.
        """
        confidence, ids = probs.detach().float().max(-3)
        return LabelMap(ids, confidence, confidence >= threshold)

    @staticmethod
    def unlabeled(size: tuple[int, int]) -> LabelMap:
        """Labels of an image without a mask: nothing is valid."""
        return LabelMap(torch.zeros(size, dtype=torch.int64), torch.zeros(size), torch.zeros(size, dtype=torch.bool))

    @staticmethod
    def stack(maps: Sequence[LabelMap]) -> LabelMap:
        """A batch (B, H, W) of maps (H, W) of one size."""
        return LabelMap(
            torch.stack([m.ids for m in maps]),
            torch.stack([m.confidence for m in maps]),
            torch.stack([m.valid for m in maps]),
        )

    def __len__(self) -> int:
        if self.ids.dim() == 2:
            raise TypeError("the map of one image has no length")
        return len(self.ids)

    def __getitem__(self, index: int | slice | Tensor) -> LabelMap:
        """Item or items of a batch."""
        if self.ids.dim() == 2:
            raise TypeError("the map of one image cannot be indexed")
        return LabelMap(self.ids[index], self.confidence[index], self.valid[index])

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.ids.shape[-2], self.ids.shape[-1]

    def to(self, device: torch.device | str) -> LabelMap:
        """The map on another device."""
        return LabelMap(*(to_device(part, device) for part in (self.ids, self.confidence, self.valid)))

    def through(self, view: View) -> LabelMap:
        """The labels as a view of the image sees them: nearest pixel; not valid outside the image.

        Raises:
            ValueError: when the map is not of the view's source size.
        """
        if self.size != view.source_size:
            raise ValueError(f"labels of {self.size} pixels for a view of a source of {view.source_size}")
        parts = [
            rendering.render(part.reshape(1, -1, *self.size), view.matrix, view.size, mode="nearest")
            for part in (self.ids, self.confidence, self.valid)
        ]
        shape = (*self.ids.shape[:-2], *view.size)
        return LabelMap(*(part.reshape(shape) for part in parts))

    def crop(self, top: int, left: int, height: int, width: int) -> LabelMap:
        """A window, which may exceed the map (not valid there)."""
        return self.through(View.identity(self.size).crop(top, left, height, width))

    def resize(self, height: int, width: int) -> LabelMap:
        """Another number of pixels, each with the labels of the nearest."""
        return self.through(View.identity(self.size).resize(height, width))

    def hflip(self) -> LabelMap:
        """Mirrored left to right."""
        return LabelMap(self.ids.flip(-1), self.confidence.flip(-1), self.valid.flip(-1))

    def vflip(self) -> LabelMap:
        """Mirrored top to bottom."""
        return LabelMap(self.ids.flip(-2), self.confidence.flip(-2), self.valid.flip(-2))

    def mix(self, other: LabelMap, mask: Tensor) -> LabelMap:
        """These labels where the mask is True, the other's elsewhere; neither is changed.

        Args:
            other: labels of the same shape.
            mask: bool (H, W) or (B, H, W).
        """
        mask = mask.bool()
        return LabelMap(
            torch.where(mask, self.ids, other.ids),
            torch.where(mask, self.confidence, other.confidence),
            torch.where(mask, self.valid, other.valid),
        )

    def restrict(self, mask: Tensor) -> LabelMap:
        """Valid only where the mask is True as well."""
        return LabelMap(self.ids, self.confidence, self.valid & mask.bool())

    def threshold(self, least: float | Tensor) -> LabelMap:
        """Valid only where the confidence is at least so much: one number, or (C,) one for each class."""
        limit = least[self.ids] if isinstance(least, Tensor) and least.dim() == 1 else least
        return self.restrict(self.confidence >= limit)

    def target(self, ignore: int = IGNORE8) -> Tensor:
        """int64 ids for a loss, `ignore` where not valid."""
        return torch.where(self.valid, self.ids, ignore)

    def save(self, folder: str | os.PathLike[str], name: str, classes: ClassTable | None = None) -> None:
        """Writes masks/NAME.png and confidence/NAME.png (16 bit) into a dataset folder, each renamed into
        place.

        Pixels that are not valid get the ignore id, 255, or 65535 where there are more than 255 classes.

        Raises:
            MaskwrightError: the folder cannot be written.
            ValueError: a batch, or ids that are in the way of the ignore id.
        """
        if self.ids.dim() != 2:
            raise ValueError("save the maps of a batch one by one")
        highest = int(self.ids[self.valid].max()) if bool(self.valid.any()) else 0
        ignore = classes.ignore if classes is not None else (IGNORE8 if highest < IGNORE8 else IGNORE16)
        if highest >= ignore:
            raise ValueError(f"class id {highest} in masks whose ignore id is {ignore}")
        root = Path(folder)
        # Confidence first: a store whose mask exists is complete, and resuming goes by the masks.
        grey = (self.confidence.cpu().double().clamp(0, 1) * 65535).round().numpy().astype(np.uint16)
        write_grey16(file_for(root / "confidence", name, ".png"), grey)
        target = file_for(root / "masks", name, ".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_mask(target, self.target(ignore).cpu().numpy().astype(np.uint16), classes)

    @staticmethod
    def load(folder: str | os.PathLike[str], name: str, ignore: int | None = None) -> LabelMap:
        """Reads what `save` wrote; a folder without confidence/NAME.png (an ordinary dataset) gives
        confidence 1.

        Args:
            folder: the dataset folder.
            name: the image's name.
            ignore: id of pixels that are not valid; by default 255 in 8-bit and 65535 in 16-bit masks.

        Raises:
            MaskwrightError: a file is missing or damaged, or the two differ in size.
        """
        mask = read_mask(file_for(Path(folder) / "masks", name, ".png"))
        if ignore is None:
            ignore = ignore_of(mask)
        labels = LabelMap.from_mask(mask, ignore)
        path = file_for(Path(folder) / "confidence", name, ".png")
        if not path.exists():
            return labels
        grey = read_mask(path)
        if grey.shape != mask.shape:
            raise MaskwrightError(
                f"{path} is {grey.shape[0]}x{grey.shape[1]}",
                f"{mask.shape[0]}x{mask.shape[1]} as its mask",
                "delete both and write them again",
            )
        scale = 255 if grey.dtype == np.uint8 else 65535
        return LabelMap(labels.ids, torch.from_numpy(grey.astype(np.float32) / scale), labels.valid)


class LabelStore:
    """Pseudo-labels on disk: a folder that is itself a dataset, so that any method can train on it.

    Args:
        folder: where; made when missing.
        classes: class names and colours, written as classes.txt; decides the ignore id.
    """

    def __init__(self, folder: str | os.PathLike[str], classes: ClassTable | None = None) -> None:
        self.folder, self.classes = Path(folder), classes
        for sub in ("masks", "confidence"):
            (self.folder / sub).mkdir(parents=True, exist_ok=True)
        if classes is not None:
            write_text(self.folder / "classes.txt", "\n".join(classes.names) + "\n")

    @property
    def names(self) -> list[str]:
        """Names of the images with labels, sorted; of a name too long for a file the shortened one."""
        masks = self.folder / "masks"
        return sorted(str(path.relative_to(masks).with_suffix("")) for path in masks.rglob("[!.]*.png"))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return file_for(self.folder / "masks", name, ".png").exists()

    def write(self, name: str, labels: LabelMap, image: str | os.PathLike[str] | None = None) -> None:
        """Stores the labels of one image, and links the image into images/ when its path is given."""
        if image is not None:  # first: who finds labels finds their image
            self._link(name, Path(image))
        labels.save(self.folder, name, self.classes)

    def read(self, name: str) -> LabelMap:
        """The labels of one image.

        Raises:
            MaskwrightError: there are none, or they are damaged.
        """
        wide = self.classes is not None and self.classes.ignore == IGNORE16
        return LabelMap.load(self.folder, name, IGNORE16 if wide else None)

    def _link(self, name: str, image: Path) -> None:
        link = file_for(self.folder / "images", name, image.suffix)
        if link.exists():
            return
        with atomic_write(link, durable=False) as beside:
            try:
                beside.symlink_to(image.resolve())
            except (OSError, NotImplementedError):
                # Systems without symbolic links (Windows without the right): a copy.
                beside.write_bytes(image.read_bytes())

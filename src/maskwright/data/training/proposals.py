"""Proposals: what another network or an algorithm says of photographs before anything is learned from them.

Four things are proposed: `regions` (a label map whose ids mean something within one photograph alone: superpixels,
masks of an object detector), `classes` (ids of a class table: another run's masks), `objects` (1 where one is, 0
elsewhere), and `soft` maps in [0, 1] (saliency, contours). A store is a folder:

    FOLDER/proposals.json           what it holds, of whom, and which labels that saw
    FOLDER/regions/NAME.png         16 bits, 65535: no region
    FOLDER/masks, confidence, ...   a `LabelStore`, an ordinary data set, where it holds classes
    FOLDER/objects/NAME.png         masks of objects
    FOLDER/maps/NAME.png            soft maps, 16 bits

A folder without `proposals.json` is somebody else's: its files, or those of its `masks/`, are read as they are asked
for.

Legend: (H, W) image size, (h, w) size of a view.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.scan import threaded
from maskwright.data.masking.classes import IGNORE16, ClassTable
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.masking.masks import read_mask, read_stored, write_grey16, write_mask
from maskwright.data.pictures.headers import open_regular, parse_header
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.views import View
from maskwright.data.trust.artefacts import read_record, write_record
from maskwright.data.trust.files import file_for
from maskwright.errors import MaskwrightError

Holds = Literal["regions", "classes", "objects", "soft"]
"""What a store holds."""

RECORD = "proposals.json"
SHAPE = {"holds": str, "says": str, "labels_seen": str}
FOLDERS = {"regions": "regions", "classes": "masks", "objects": "objects", "soft": "maps"}
"""Where the files of a store lie, by what it holds."""


@dataclass(frozen=True, eq=False)
class SoftMap:
    """A value in [0, 1] for each pixel of a photograph.

    Attributes:
        values: float32 (H, W); 0 where not valid.
        valid: bool (H, W); False outside the photograph.
    """

    values: Tensor
    valid: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.values.shape[-2], self.values.shape[-1]

    def through(self, view: View) -> SoftMap:
        """The map as a view of the photograph sees it, bilinear; not valid outside the photograph.

        Raises:
            ValueError: when the map is not of the view's source size.
        """
        values = view.render(self.values[None], mode="bilinear", fill=0.0)
        assert isinstance(values, Tensor)
        valid = view.valid()
        return SoftMap(torch.where(valid, values[0], 0.0), valid)


class Proposals:
    """The proposals of a folder, by the names of their photographs.

    Args:
        folder: what `Proposals.begin` made, or a folder of PNG files named as the photographs.

    Attributes:
        holds: what it holds; None where the folder does not say.
        says: whose proposals they are, in a few words.
        labels_seen: the labels that whoever made them saw; "unknown" where the folder does not say.

    Raises:
        MaskwrightError: there is no such folder, or its record is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise MaskwrightError(f"{self.folder} is no folder", "a folder of masks or maps named as the photographs")
        self.holds: Holds | None = None
        self._labels: LabelStore | None = None
        self.says, self.labels_seen = "files of a folder", "unknown"
        if (self.folder / RECORD).exists():
            repair = f"delete {self.folder} and make them again"
            record = read_record(self.folder / RECORD, SHAPE, what="what these proposals are", repair=repair)
            if record["holds"] not in FOLDERS:
                raise MaskwrightError(f"{self.folder} holds {record['holds'][:40]!r}", f"one of {', '.join(FOLDERS)}")
            self.holds, self.says, self.labels_seen = record["holds"], record["says"], record["labels_seen"]

    @classmethod
    def begin(
        cls,
        folder: str | os.PathLike[str],
        holds: Holds,
        says: str,
        labels_seen: str,
        classes: ClassTable | None = None,
    ) -> Proposals:
        """Makes a store, or goes on with one that a killed run left.

        Args:
            folder: where; made if missing.
            holds: what it will hold.
            says: whose proposals they are, in a few words.
            labels_seen: the labels that whoever makes them saw, "none" where that is known.
            classes: the class table where it holds classes.

        Raises:
            MaskwrightError: other proposals lie there, or the folder cannot be written.
        """
        if holds not in get_args(Holds) or (holds == "classes") != (classes is not None):
            raise ValueError(f"holds={holds!r} {'with' if classes else 'without'} classes")
        folder = Path(folder)
        if (folder / RECORD).exists():
            found = cls(folder)
            if (found.holds, found.says, found.labels_seen) != (holds, says, labels_seen):
                raise MaskwrightError(
                    f"{folder} holds {found.holds} of {found.says} (labels seen: {found.labels_seen})",
                    f"{holds} of {says} (labels seen: {labels_seen})", "choose another folder",
                )  # fmt: skip
        (folder / FOLDERS[holds]).mkdir(parents=True, exist_ok=True)
        labels = None if classes is None else LabelStore(folder, classes)
        if not (folder / RECORD).exists():
            write_record(folder / RECORD, {"holds": holds, "says": says, "labels_seen": labels_seen})
        store = cls(folder)
        store._labels = labels
        return store

    # ------------------------------------------------------------------ names

    def _files(self) -> Path:
        """Where the files lie."""
        if self.holds is not None:
            return self.folder / FOLDERS[self.holds]
        return self.folder / "masks" if (self.folder / "masks").is_dir() else self.folder

    @property
    def names(self) -> list[str]:
        """Names of the photographs with proposals, sorted; of a name too long for a file the shortened one."""
        base = self._files()
        return sorted(path.relative_to(base).as_posix().removesuffix(".png") for path in base.rglob("[!.]*.png"))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return self.path_of(name).exists()

    def path_of(self, name: str) -> Path:
        """The file of a photograph, whether or not it is there."""
        return file_for(self._files(), name, ".png")

    def fingerprint(self) -> str:
        """Hash over the names and contents of the files, and what they hold.

        Raises:
            MaskwrightError: a file cannot be read.
        """
        total = hashlib.blake2b(f"{self.holds}\0".encode(), digest_size=16)
        base, names = self._files(), self.names

        def digest(name: str) -> str:
            path = base / f"{name}.png"
            try:
                with path.open("rb") as file:
                    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            except OSError as error:
                raise MaskwrightError(f"cannot read {path}: {error.strerror}", "a file of proposals") from error

        for name, found in zip(names, threaded(digest, names)):
            total.update(f"{name}\0{found}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    # ------------------------------------------------------------------ reading

    def read(self, name: str, size: tuple[int, int] | None = None) -> LabelMap:
        """The regions, classes or objects of a photograph, (H, W); of a folder without a record its values are the ids.

        Args:
            name: of the photograph.
            size: its (H, W), which the proposals must have; None: whatever they have.

        Raises:
            MaskwrightError: there are none, they are damaged, of another size, or the store holds soft maps.
        """
        self._must_hold("regions, classes or objects", "regions", "classes", "objects")
        path = self._known(name)
        if self._files() == self.folder / "masks":
            labels = LabelMap.load(self.folder, name)
        else:
            ids = read_mask(path)
            labels = LabelMap.from_mask(ids, ignore_of(ids))
        self._must_fit(path, labels.size, size)
        return labels

    def soft(self, name: str, size: tuple[int, int] | None = None) -> SoftMap:
        """The soft map of a photograph, (H, W); of a folder without a record its grey values, black is 0, white 1.

        Args:
            name: of the photograph.
            size: its (H, W), which the map must have; None: whatever it has.

        Raises:
            MaskwrightError: there is none, it is damaged, of another size, no grey picture of 8 or 16 bits, or the
                store holds something else.
        """
        self._must_hold("soft maps", "soft")
        path = self._known(name)
        stored = read_stored(path)
        with open_regular(path) as file:
            bits = parse_header(file).bits
        if stored.kind not in ("grey", "wide") or bits not in (8, 16):
            raise MaskwrightError(
                f"{path} is a picture of kind {stored.kind} with {bits} bits", "a soft map: grey of 8 or 16 bits",
                "write it again, from 0 to 255",
            )  # fmt: skip
        scale = 255 if stored.kind == "grey" else 65535
        values = torch.from_numpy(stored.values.astype(np.float32) / np.float32(scale))
        self._must_fit(path, (int(values.shape[0]), int(values.shape[1])), size)
        return SoftMap(values, torch.ones_like(values, dtype=torch.bool))

    def _must_hold(self, wanted: str, *kinds: str) -> None:
        if self.holds is not None and self.holds not in kinds:
            raise MaskwrightError(f"{self.folder} holds {self.holds}", wanted, "give another folder of proposals")

    def _known(self, name: str) -> Path:
        path = self.path_of(name)
        if not path.exists():
            raise MaskwrightError(f"{self.folder} has no proposals for {name}", str(path), "make them for all images")
        return path

    @staticmethod
    def _must_fit(path: Path, found: tuple[int, int], size: tuple[int, int] | None) -> None:
        if size is not None and found != tuple(size):
            raise MaskwrightError(
                f"{path} is {found[0]}x{found[1]}",
                f"{size[0]}x{size[1]} as its photograph",
                "make it again at that size",
            )

    # ------------------------------------------------------------------ writing

    def write(self, name: str, found: LabelMap | SoftMap, image: str | os.PathLike[str] | None = None) -> None:
        """Stores what is proposed for a photograph, beside and renamed.

        Args:
            name: of the photograph.
            found: a label map (H, W) of regions, classes or objects, or a soft map.
            image: path of the photograph, which a store of classes links so that it is a data set.

        Raises:
            ValueError: it is not what the store holds, or a region's id is 65535 or more.
            MaskwrightError: the folder cannot be written.
        """
        if self.holds is None or isinstance(found, SoftMap) != (self.holds == "soft"):
            raise ValueError(f"a {type(found).__name__} for a store of {self.holds}")
        if isinstance(found, SoftMap):
            values = torch.where(found.valid, found.values, 0.0).cpu().double()
            write_grey16(self.path_of(name), (values.clamp(0, 1) * 65535).round().numpy().astype(np.uint16))
        elif self.holds == "classes":
            if self._labels is None:
                raise ValueError("a store of classes is written where `begin` was told them")
            self._labels.write(name, found, image)
        elif self.holds == "objects":
            write_mask(self.path_of(name), ((found.ids > 0) & found.valid).cpu().numpy().astype(np.uint8))
        else:
            ids = found.target(IGNORE16).cpu().numpy()
            if ids.min() < 0 or (found.valid.any() and int(found.ids[found.valid].max()) >= IGNORE16):
                raise ValueError(f"ids up to {ids.max()}, expected 0 to {IGNORE16 - 1}")
            write_grey16(self.path_of(name), ids.astype(np.uint16))

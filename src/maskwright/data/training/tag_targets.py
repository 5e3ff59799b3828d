"""What the images of a dataset are tagged with, as classes of a table: read from `tags.csv` and what stands for it, or
from masks.

Legend: B batch, T tags, C classes of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.scan import nearest
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.trust.artefacts import Damage, parse_record, unreadable, write_record
from maskwright.errors import MaskwrightError

TARGETS = "tags.json"
BACKGROUND_NAMES = ("background", "bg")
_SHAPE = {"ids": [int], "names": [str], "background": (int, None), "tagged": {str: [int]}, "source": str}


@dataclass(frozen=True)
class TagTargets:
    """What the images are tagged with.

    Attributes:
        ids: class id of each of the T tags, ascending; every class but the background.
        names: their names.
        background: class id of what no tag names, or None: then pixels without evidence have no label.
        tagged: {image: channels}; an image that is missing says nothing, one with () says that none is there.
        source: "tags" or "masks".
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    background: int | None
    tagged: Mapping[str, tuple[int, ...]]
    source: str = "tags"

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self.tagged

    def multi_hot(self, name: str) -> Tensor:
        """float32 (T,), 1 where the image is tagged.

        Raises:
            KeyError: the image says nothing.
        """
        y = torch.zeros(len(self.ids))
        y[list(self.tagged[name])] = 1
        return y

    def indices(self, data: Dataset) -> list[int]:
        """The images that say something, ascending."""
        return [i for i, item in enumerate(data.items) if item.name in self.tagged]

    def counts(self) -> Tensor:
        """int64 (T,): images of each tag."""
        counts = torch.zeros(len(self.ids), dtype=torch.int64)
        for channels in self.tagged.values():
            counts[list(channels)] += 1
        return counts

    def save(self, folder: Path) -> None:
        """Writes tags.json into a stage's folder."""
        write_record(folder / TARGETS, {**asdict(self), "tagged": {k: list(v) for k, v in self.tagged.items()}})

    @staticmethod
    def load(folder: Path) -> TagTargets:
        """Reads what `save` wrote.

        Raises:
            MaskwrightError: there is none, or it is damaged.
        """
        path = folder / TARGETS
        try:
            record = parse_record(path.read_bytes(), _SHAPE)
            count = len(record["ids"])
            channels = {c for found in record["tagged"].values() for c in found}
            if len(record["names"]) != count or not all(0 <= c < count for c in channels):
                raise Damage("its tags are none of its classes")
        except (OSError, Damage) as error:
            repair = f"delete {folder} and repeat the command with --resume"
            raise unreadable(path, error, f"the tags of the {folder.name} stage", repair) from error
        tagged = {name: tuple(channels) for name, channels in record["tagged"].items()}
        return TagTargets(tuple(record["ids"]), tuple(record["names"]), record["background"], tagged, record["source"])


def find_targets(data: Dataset, table: ClassTable, *, from_masks: bool = False, background: str = "auto") -> TagTargets:
    """Reads all tags (or masks) and finds which class each names. The ledger notes what was read.

    Args:
        data: the images.
        table: the classes; tags are found by name.
        from_masks: tags are the classes in the image's mask, instead.
        background: name of the class that no tag names, "auto", or "none".

    Raises:
        MaskwrightError: tags that are no class, an unknown background, or no image with a tag.
    """
    place = {name: c for c, name in enumerate(table.names)}
    classes: dict[str, set[int]] = {}
    strange: dict[str, str] = {}
    for i, item in enumerate(data.items):
        if from_masks:
            if data.has_mask(i):
                mask = data.mask(i)
                classes[item.name] = {int(c) for c in np.unique(mask) if c != ignore_of(mask)}
            continue
        tags = data.tags(i)
        if tags is not None:
            strange.update({t: item.name for t in tags if t not in place})
            classes[item.name] = {place[t] for t in tags if t in place}
    kind = "masks" if from_masks else "tags"
    if strange:
        tag, image = next(iter(strange.items()))
        raise MaskwrightError(
            f"{len(strange)} tag(s) are no class, the first {tag!r} of {image}",
            f"names of the class table{_nearest(tag, table)}",
            "correct tags.csv, or write all names into classes.txt, one a line, the background first",
        )
    if not classes:
        raise MaskwrightError(f"{data.root} has no image with {kind}", "at least one")
    if max((max(c, default=0) for c in classes.values()), default=0) >= len(table):
        raise MaskwrightError(f"masks with classes beyond the {len(table)} of the table", "masks that fit it")
    ground = _background(table, background, set().union(*classes.values()))
    ids = tuple(c for c in range(len(table)) if c != ground)
    if not ids or not any(c - {ground} for c in classes.values()):
        raise MaskwrightError(
            f"no image in {data.root} is tagged with a class", "at least one tag besides the background"
        )
    channel = {c: k for k, c in enumerate(ids)}
    tagged = {name: tuple(sorted(channel[c] for c in found if c != ground)) for name, found in classes.items()}
    return TagTargets(ids, tuple(table.names[c] for c in ids), ground, tagged, kind)


def _nearest(name: str, table: ClassTable) -> str:
    """A hint at a name that is meant, if one is near."""
    found = nearest(name, table.names)
    return f" (the nearest is {found!r})" if found else ""


def _background(table: ClassTable, background: str, used: set[int]) -> int | None:
    if background == "none":
        return None
    if background != "auto":
        if background not in table.names:
            raise MaskwrightError(
                f"background={background}",
                f"a class, auto or none{_nearest(background, table)}",
            )
        return table.names.index(background)
    for c, name in enumerate(table.names):
        if name.lower().strip("_ ") in BACKGROUND_NAMES:
            return c
    # A class that is listed first and never tagged, in a table where tags are used at all, is what tags leave over.
    return 0 if 0 not in used and len(table) > 1 else None

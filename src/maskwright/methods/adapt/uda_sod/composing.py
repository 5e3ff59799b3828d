"""Synthetic photographs with known masks: objects of a source, pasted onto grounds without any.

Objects come from masks of the source, from pictures with transparency, or from the objects that another run found in
the source's photographs. Grounds are a data set of their own, or the largest windows of the source's photographs that
show no object. Each composite is a function of the run's seed and of its number alone, so that a killed run goes on.

    FOLDER/composites/{images,masks,confidence}, classes.txt    an ordinary data set
    FOLDER/geometry/NAME.json                                   of what, on what, and the matrix that brought it there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.classes import BACKGROUND_NAMES, ClassTable
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.pictures.turning import resize
from maskwright.data.training.cutouts import Box, Placing, free_window, paste, read_cutout
from maskwright.data.training.image_store import ImageStore
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.trust.artefacts import write_record
from maskwright.data.trust.files import file_for
from maskwright.engine import seeding
from maskwright.engine.config import option
from maskwright.engine.distributed import each
from maskwright.errors import MaskwrightError, unknown
from maskwright.ops.refinement.components import bounding_box, label_components
from maskwright.recipes.proposals.objects import StoredObjects

if TYPE_CHECKING:
    from maskwright.engine.context import Context

COMPOSITES = "composites"
GEOMETRY = "geometry"
OTHER_OBJECTS = {
    "masks": "name other classes by --set objects.classes=NAME,...",
    "alpha": "give other cut-outs as --source DATA",
    "found": "give what shows objects there as --input objects=RUN",
}
"""What to do where a source shows none, by where objects come from."""


@dataclass(kw_only=True)
class ObjectOptions:
    """What is pasted."""

    of: str = option(
        "masks",
        "where objects come from: masks of the source; alpha: its pictures are cut-outs with transparency; found: what "
        "--input objects=RUN found in its photographs, without a label",
        choices=("masks", "alpha", "found"), main=True,
    )  # fmt: skip
    classes: tuple[str, ...] = option(
        (), "names of the source's classes that are objects; empty: all but background, where a class is so called",
        main=True,
    )  # fmt: skip
    least: float = option(0.01, "parts smaller than this share of their photograph are no objects", low=0, high=1)
    cut: bool = option(False, "take objects that the border of their photograph cuts off")
    soften: float = option(0.7, "sigma of the border of objects that come from masks, pixels", low=0, high=10)


@dataclass(kw_only=True)
class CompositeOptions:
    """How composites are made."""

    count: int = option(1000, "composites", low=1, main=True)
    side: int = option(352, "longer side of a composite, pixels, at most", low=16)
    size_min: float = option(0.4, "least size of an object, a share of the largest that fits", low=0.01, high=1)
    size_max: float = option(1.0, "greatest size", low=0.01, high=1)
    enlarge: float = option(1.1, "greatest factor on an object's own pixels", low=0.01, high=10)
    rotate: int = option(5, "greatest angle either way, whole degrees", low=0, high=180)
    flip: float = option(0.5, "chance of an object to be mirrored", low=0, high=1)
    centred: float = option(0.0, "chance of an object to lie in the middle; else anywhere", low=0, high=1)
    ground_least: float = option(
        0.4, "least height and width of a window without objects, shares of its photograph's", low=0.01, high=1
    )

    def check(self) -> None:
        """Raises `MaskwrightError` on sizes in the wrong order."""
        if self.size_min > self.size_max:
            raise MaskwrightError(f"size_min={self.size_min}", f"at most size_max={self.size_max}")

    @property
    def placing(self) -> Placing:
        """How cut-outs are placed."""
        return Placing(self.rotate, (self.size_min, self.size_max), self.enlarge, self.flip, self.centred)


def object_ids(table: ClassTable | None, asked: Sequence[str]) -> tuple[list[int] | None, str]:
    """Which ids of a source are objects, and a sentence on it.

    Args:
        table: its classes; None where it has no names.
        asked: names of classes; empty: all but those called background.

    Returns:
        The ids; None: all but 0.

    Raises:
        MaskwrightError: a name that the table has not, or nothing says which classes are objects.
    """
    if table is None:
        if asked:
            raise MaskwrightError(
                f"objects.classes={','.join(asked)} and a source without class names", "a classes.txt beside its masks",
                "add one, or leave objects.classes out: then every id but 0 is an object",
            )  # fmt: skip
        return None, "the source names no classes, so every id but 0 is an object"
    for name in asked:
        if name not in table.names:
            raise unknown("class", name, table.names)
    named = [name for name in table.names if name.lower() in BACKGROUND_NAMES]
    if not asked and not named:
        raise MaskwrightError(
            f"which of the source's {len(table)} classes are objects is not said ({', '.join(table.names)})",
            f"one called {' or '.join(BACKGROUND_NAMES)}, all others being objects",
            "--set objects.classes=NAME,NAME,... names them",
        )
    kept = [name for name in table.names if (name in asked if asked else name not in named)]
    if not kept:
        raise MaskwrightError(
            f"the source's classes are all background ({', '.join(table.names)})", "a class of objects",
            "--set objects.classes=NAME,NAME,... names them",
        )  # fmt: skip
    rest = [name for name in table.names if name not in kept]
    return [table.index(n) for n in kept], f"objects are {_some(kept)}; background are {_some(rest) or 'none'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


class Source(Protocol):
    """Photographs with objects."""

    data: Dataset

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of photograph `i` its pixels uint8 (H, W, 3), opacity of its objects float (H, W), and bool (H, W), of what
        that is known."""
        ...


class MaskSource:
    """Objects of a data set's masks; each reading is noted in its ledger.

    Args:
        data: fully labelled.
        ids: of objects; None: all but 0.
    """

    def __init__(self, data: Dataset, ids: list[int] | None) -> None:
        self.data, self.ids = data, ids

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As the protocol says; unknown is what has no class."""
        mask = self.data.mask(i)
        known = mask != ignore_of(mask)
        inside = mask > 0 if self.ids is None else np.isin(mask, self.ids)
        return self.data.image(i), (inside & known).astype(np.float32), known


class AlphaSource:
    """Pictures with transparency; that of each is noted in its data set's ledger as a mask, which it is."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As the protocol says."""
        pixels, alpha = read_cutout(self.data.items[i].image)
        self.data.ledger.note("masks", self.data.items[i].name)
        return pixels, alpha, np.ones(alpha.shape, bool)


class FoundSource:
    """What another run, or somebody's folder of masks, says are the objects of photographs."""

    def __init__(self, objects: StoredObjects) -> None:
        self.data, self.objects = objects.data, objects

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As the protocol says."""
        inside, known = self.objects.read(i)
        return self.data.image(i), inside.astype(np.float32), known


@dataclass(frozen=True)
class Ground:
    """A window of a photograph without objects.

    Attributes:
        image: index of the photograph.
        window: where in it.
    """

    image: int
    window: Box


@dataclass(frozen=True)
class Cut:
    """An object of a photograph.

    Attributes:
        image: index of the photograph.
        box: around it.
    """

    image: int
    box: Box


class Composer:
    """Makes composites.

    Args:
        context: of the run.
        source: photographs with objects.
        grounds: photographs without any; None: windows of the source's.
        objects: which are taken.
        options: how they are pasted.
    """

    def __init__(
        self, context: Context, source: Source, grounds: Dataset | None, objects: ObjectOptions,
        options: CompositeOptions,
    ) -> None:  # fmt: skip
        self.context, self.source, self.objects, self.options = context, source, objects, options
        self.backdrop = source.data if grounds is None else grounds
        self.own, self.matte = grounds is None, objects.of == "alpha"
        self.cuts: list[Cut] = []
        self.grounds: list[Ground] = []

    def look(self) -> None:
        """Lists objects and grounds: every label of the source is read.

        Raises:
            MaskwrightError: there is no object, or no ground.
        """
        whole: list[Cut] = []
        cut: list[Cut] = []
        data = self.source.data
        for i in self.context.progress.track(range(len(data)), "objects", len(data)):
            _, alpha, known = self.source.read(i)
            for box, touches in object_boxes(alpha > 0, self.objects.least, whole=self.matte):
                (cut if touches else whole).append(Cut(i, box))
            if self.own:
                window = free_window(alpha == 0)
                if window is not None and _serves(window, known, self.options.ground_least):
                    self.grounds.append(Ground(i, window))
        self.cuts = [*whole, *cut] if self.objects.cut else whole
        left = 0 if self.objects.cut else len(cut)
        if not self.cuts and cut:
            self.cuts, left = cut, 0
            self.context.note("Each object of the source is cut off by the border of its photograph; they are taken.")
        if not self.cuts:
            raise MaskwrightError(
                f"no object of at least {100 * self.objects.least:g} % of its photograph in the source "
                f"({data.root}, {len(data)} images)",
                "photographs with objects",
                f"{OTHER_OBJECTS[self.objects.of]}, or lower objects.least",
            )
        if not self.own:
            sizes = [self.backdrop.size(i) for i in range(len(self.backdrop))]
            self.grounds = [Ground(i, (0, 0, *size)) for i, size in enumerate(sizes)]
        if not self.grounds:
            raise MaskwrightError(
                f"no photograph of the source ({data.root}) has a window without objects of "
                f"{100 * self.options.ground_least:g} % of its height and width",
                "grounds to paste objects onto",
                "add --source grounds=DATA, photographs without objects, or lower composites.ground_least",
            )
        where = "windows of the source's photographs" if self.own else f"photographs of {self.backdrop.root}"
        cut_off = f", {left} more are left out that the border cuts off" if left else ""
        self.context.note(f"Composites: {len(self.cuts)} objects{cut_off}; {len(self.grounds)} grounds, {where}.")

    def make(self, number: int) -> tuple[np.ndarray, LabelMap, dict[str, Any]]:
        """Composite `number`: pixels uint8 (H, W, 3), labels (H, W) with 1 for the object, and its geometry."""
        random = seeding.generator(self.context.seed, "composite", number)
        cut = self.cuts[int(torch.randint(len(self.cuts), (), generator=random))]
        ground = self.grounds[int(torch.randint(len(self.grounds), (), generator=random))]
        pixels, alpha, _ = self.source.read(cut.image)
        if not self.matte:
            alpha = alpha * _part(alpha > 0, cut.box)
        below, known = self.ground(ground)
        view = self.options.placing.draw(alpha.shape, cut.box, below.shape[:2], random)
        soften = 0.0 if self.matte else self.objects.soften
        image, mask = paste(_planes(pixels), torch.from_numpy(alpha), _planes(below), view, soften)
        labels = LabelMap(mask.long(), torch.ones(mask.shape), mask | torch.from_numpy(known))
        names, lower = self.source.data.names, self.backdrop.names
        geometry = {
            "object": names[cut.image], "box": cut.box, "ground": lower[ground.image], "window": ground.window,
            "size": below.shape[:2], "matrix": view.matrix.tolist(),
        }  # fmt: skip
        return image.permute(1, 2, 0).contiguous().numpy(), labels, geometry

    def ground(self, ground: Ground) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 (H, W, 3) of a ground, no longer than asked for, and bool (H, W), where it is known that there
        is no object."""
        top, left, bottom, right = ground.window
        if self.own:
            pixels, _, known = self.source.read(ground.image)
        else:
            pixels = self.backdrop.image(ground.image)
            known = np.ones(pixels.shape[:2], bool)
        pixels, known = pixels[top:bottom, left:right], known[top:bottom, left:right]
        factor = self.options.side / max(pixels.shape[:2])
        if factor >= 1:
            return np.ascontiguousarray(pixels), np.ascontiguousarray(known)
        size = tuple(max(1, round(factor * n)) for n in pixels.shape[:2])
        shrunk = torch.nn.functional.interpolate(torch.from_numpy(known)[None, None].float(), size, mode="area")
        return resize(np.ascontiguousarray(pixels), size), (shrunk[0, 0] == 1).numpy()

    def fill(self, folder: Path) -> None:
        """Writes all composites; those that are there already stay."""
        images, labels = ImageStore(folder / COMPOSITES), LabelStore(folder / COMPOSITES, self.context.table)
        numbers = range(self.options.count)
        for k in each(self.context.progress, numbers, "composites", done=lambda k: name_of(k) in labels):
            image, mask, geometry = self.make(k)
            write_record(file_for(folder / GEOMETRY, name_of(k), ".json"), geometry, durable=False)
            images.write(name_of(k), image)
            labels.write(name_of(k), mask)  # last: who finds labels finds all


def name_of(number: int) -> str:
    """Of a composite."""
    return f"composite_{number:06d}"


def object_boxes(inside: np.ndarray, least: float, whole: bool = False) -> list[tuple[Box, bool]]:
    """Boxes of the connected parts of bool (H, W) that are a share of it at least, and whether a border cuts each.

    Args:
        inside: where objects are.
        least: share of all pixels.
        whole: all of it is one object, which may reach to the border: a cut-out.
    """
    if whole:
        around = bounding_box(inside)
        return [(around, False)] if around and inside.sum() >= max(1.0, least * inside.size) else []
    parts, count = label_components(inside, connectivity=8)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    found = []
    for k in range(1, count + 1):
        if sizes[k] < max(1.0, least * inside.size):
            continue
        box = bounding_box(parts == k)
        assert box is not None
        top, left, bottom, right = box
        touches = top == 0 or left == 0 or bottom == inside.shape[0] or right == inside.shape[1]
        found.append((box, touches))
    return found


def _part(inside: np.ndarray, box: Box) -> np.ndarray:
    """The connected part (H, W) that has this box."""
    parts, count = label_components(inside, connectivity=8)
    for k in range(1, count + 1):
        if bounding_box(parts == k) == tuple(box):
            return parts == k
    raise AssertionError("the object of a box that was found")


def _serves(window: Box, known: np.ndarray, least: float) -> bool:
    """Whether a window is large enough for a ground, and more of it known to be one than not."""
    top, left, bottom, right = window
    height, width = known.shape
    large = bottom - top >= least * height and right - left >= least * width
    return bool(large and known[top:bottom, left:right].mean() > 0.5)


def _planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)

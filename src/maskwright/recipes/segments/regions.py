"""Regions of photographs as a stage: made here from superpixels and contours, or those of an input.

Legend: (H, W) image size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals
from maskwright.data.training.sources import StoredLabels
from maskwright.data.training.views import View
from maskwright.engine.config import Idle
from maskwright.engine.needs import InputNeed
from maskwright.errors import MaskwrightError
from maskwright.ops.refinement.regions import gradient_contours, merge_regions
from maskwright.ops.refinement.superpixels import slic
from maskwright.recipes.proposals.making import PROPOSALS, propose
from maskwright.recipes.segments.options import RegionOptions

if TYPE_CHECKING:
    from maskwright.engine.context import Context

REGIONS = "regions"
"""Name of the input, and of the stage."""
INPUTS: Mapping[str, InputNeed] = {
    REGIONS: InputNeed(says="regions of the photographs, or maps of contours", kind="proposals", required=False)
}


def given(context: Context, options: RegionOptions) -> Literal["none", "regions", "contours"]:
    """What `--input regions` holds.

    Raises:
        MaskwrightError: it holds something else than the option says, or contours that superpixels do not look at.
    """
    if REGIONS not in context.inputs:
        return "none"
    holds, said = store_of(context).holds, options.given
    found: Literal["regions", "contours"] = "contours" if holds == "soft" else "regions"
    if holds is None and said != "auto":
        found = "contours" if said == "contours" else "regions"
    if said not in ("auto", found):
        raise MaskwrightError(f"regions.given={said} and an input of {holds}", found, "leave regions.given out")
    if found == "contours" and options.by != "contours":
        raise MaskwrightError(
            f"--input regions of contours and regions.by={options.by}", "one of the two",
            "add --set regions.by=contours, or leave --input out",
        )  # fmt: skip
    return found


def idle_by_input(found: Literal["none", "regions", "contours"]) -> Idle:
    """Options of the part `regions` that have no use with what `--input regions` holds (`given`)."""
    if found == "none":
        yield ("regions.given",), "no --input regions"
    if found == "regions":
        yield [f"regions.{name}" for name in ("by", "most", "threshold", "superpixels")], "--input regions"


def store_of(context: Context) -> Proposals:
    """The input's store."""
    store = context.input(REGIONS)
    assert isinstance(store, Proposals)
    return store


def regions_of(image: np.ndarray, options: RegionOptions, contours: np.ndarray | None = None) -> np.ndarray:
    """Regions of one photograph.

    Args:
        image: uint8 (H, W, 3).
        options: how.
        contours: (H, W) in [0, 1]; the photograph's own gradients if None.

    Returns:
        (H, W) uint16, contiguous from 0.
    """
    if options.by == "superpixels":
        return slic(image, options.most)
    contours = gradient_contours(image) if contours is None else contours
    return merge_regions(slic(image, max(options.superpixels, options.most)), contours, options.threshold, options.most)


def make_regions(context: Context, options: RegionOptions, long_side: int, folder: Path) -> None:
    """The stage: regions of all photographs, found at the size that training begins with and stored at their own."""
    detector = store_of(context) if given(context, options) == "contours" else None
    data = context.data

    def make(i: int) -> LabelMap:
        image = data.image(i)
        size = (image.shape[0], image.shape[1])
        scale = min(1.0, long_side / max(size))
        view = View.identity(size).resize(*(max(1, round(scale * side)) for side in size))
        small = view.render(image)
        contours = None if detector is None else detector.soft(data.names[i], size).through(view).values.numpy()
        ids = regions_of(np.ascontiguousarray(small), options, contours).astype(np.int64)
        found = LabelMap(torch.from_numpy(ids), torch.ones(ids.shape), torch.ones(ids.shape, dtype=torch.bool))
        return found.resize(*size)

    whose = "superpixels" if options.by == "superpixels" else "superpixels joined across weak contours"
    whose += "" if detector is None else f" of {detector.says}"
    propose(context, folder, "regions", whose, make, "none" if detector is None else detector.labels_seen)


def stored_regions(context: Context, options: RegionOptions) -> StoredLabels:
    """The regions of the run's photographs; a note says what is left out."""
    if given(context, options) != "regions":
        return StoredLabels(context.data, Proposals(context.run.path / REGIONS / PROPOSALS))
    store = store_of(context)
    labels = StoredLabels(context.data, store)
    left = len(context.data) - len(labels.indices)
    kind = "" if store.holds else "; its files are read as numbers of regions (regions.given=contours reads contours)"
    without = f"; {left} photographs without any are left out" if left else ""
    context.note(f"Regions are those of {store.says} (labels seen: {store.labels_seen}){kind}{without}.")
    return labels

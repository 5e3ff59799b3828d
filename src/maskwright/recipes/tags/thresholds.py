"""What counts as background: found without masks, asked for, or the oracle of the literature.

Legend: K tags of one image, (H, W) image size, (h, w) size of the stored maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.training.tag_targets import TagTargets
from maskwright.errors import MaskwrightError
from maskwright.evaluate.seeds import ThresholdSweep
from maskwright.ops.cam import minimum_cross_entropy
from maskwright.ops.graphs.objectness import otsu_threshold
from maskwright.recipes.tags.maps import CamStore
from maskwright.recipes.tags.options import RULES, SeedOptions

THRESHOLD_IMAGES = 400
"""Images that a threshold is chosen on: more move it by less than a bin."""
HOW = {"entropy": "the least cross entropy of the maps", "otsu": "Otsu's split of the maps"}


class Threshold(NamedTuple):
    """Where background ends.

    Attributes:
        value: in [0, 1]; a pixel is background where no map reaches it.
        why: where it comes from, as the end of a sentence.
    """

    value: float
    why: str


def sample_names(names: Sequence[str], most: int = THRESHOLD_IMAGES) -> list[str]:
    """At most so many names, evenly spaced."""
    step = max(1, -(-len(names) // most))
    return list(names[::step])


def find_threshold(store: CamStore, names: Sequence[str], rule: str = "entropy") -> float:
    """Where background ends, from the maps alone: one split of all cells' largest values into evidence and none.

    Args:
        store: maps.
        names: of images with maps; those without tags say nothing.
        rule: "entropy": the split with the least cross entropy (`ops.cam.minimum_cross_entropy`), which suits the
            skewed values of class maps. "otsu": the split with the least variance within (Otsu, 1979): it lies higher.

    Returns:
        A value in [0.01, 0.99]; 0.3 where no image has a tag.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r}, expected one of {', '.join(RULES)}")
    values = largest_values(store, names)
    if not len(values):
        return 0.3
    split = minimum_cross_entropy if rule == "entropy" else otsu_threshold
    return float(np.clip(split(values), 0.01, 0.99))


def largest_values(store: CamStore, names: Sequence[str]) -> np.ndarray:
    """The largest map's value at each cell of a sample of the images that have a tag, float32 (n,) in [0, 1]."""
    read = (store.read(name) for name in sample_names(names))
    values = [cams.maps.amax(0).flatten().numpy() for cams in read if len(cams.keys)]
    return np.concatenate(values) if values else np.zeros(0, np.float32)


def labelled_share(values: np.ndarray, threshold: float) -> float:
    """Share of cells that get a label where no class stands for the background: what reaches the threshold and is
    above 0; NaN without cells."""
    return float(((values >= threshold) & (values > 0)).mean()) if len(values) else float("nan")


def choose_threshold(
    options: SeedOptions,
    store: CamStore,
    data: Dataset,
    targets: TagTargets,
    classes: int,
    known: Threshold | None = None,
) -> Threshold:
    """The background threshold that the options ask for.

    Where no class stands for the background, every pixel is of some class: what a threshold above 0 leaves out is not
    background but without a label, so the choice is 0. On msrc_v2 the split cost 7 to 11 mIoU (docs/weak.md).

    Args:
        options: what was asked for.
        store: the maps that seeds are made from.
        data: the images.
        targets: what they are tagged with.
        classes: C.
        known: that of maps that say themselves where background begins.
    """
    o = options
    if o.threshold is not None:
        return Threshold(o.threshold, "as asked")
    if o.oracle_threshold:
        best = sweep_thresholds(store, data, targets, classes, "select").best()
        return Threshold(
            best.threshold, f"the best against the masks (an oracle; mIoU {100 * best.miou:.1f} before the CRF)"
        )
    if known is not None:
        return known
    names = [data.items[i].name for i in targets.indices(data)]
    if targets.background is None:
        values = largest_values(store, names)
        split = find_threshold(store, names, o.threshold_rule)
        return Threshold(
            0.0,
            f"as no class stands for the background: {100 * labelled_share(values, 0):.0f} % of the maps' cells get a "
            f"class; with --set threshold={split:.2f}, {HOW[o.threshold_rule]}, "
            f"{100 * labelled_share(values, split):.0f} % would, and the least certain stay without a label",
        )
    return Threshold(find_threshold(store, names, o.threshold_rule), f"{HOW[o.threshold_rule]}, without masks")


def sweep_thresholds(
    store: CamStore, data: Dataset, targets: TagTargets, classes: int, purpose: str, bins: int = 100
) -> ThresholdSweep:
    """Counts at every threshold, against the masks of the images that have one and maps.

    Args:
        purpose: what the ledger notes the masks under: "select" or "evaluate".

    Raises:
        MaskwrightError: no image has both.
    """
    sweep, judged = ThresholdSweep(classes, targets.background, bins), 0
    with data.ledger.purpose(purpose):
        for i, item in enumerate(data.items):
            if item.name in store and data.has_mask(i):
                true = data.mask(i)
                value, top = store.read(item.name).top(targets.background)
                sweep.update(value.numpy(), top.numpy(), true, ignore_of(true))
                judged += 1
    if not judged:
        raise MaskwrightError("no image with maps has a mask", "masks to judge thresholds by", "leave the oracle out")
    return sweep

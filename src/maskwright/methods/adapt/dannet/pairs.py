"""Which photograph by day belongs to a photograph by night, and which classes do not move between the two.

Legend: N photographs by night, M by day, D feature width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.names import written
from maskwright.data.folders.tables import csv_text
from maskwright.data.training.pairing import paired, pairs_by_features, pairs_by_name, pairs_from_file
from maskwright.errors import MaskwrightError, unknown
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.frozen.features import stored_features

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.context import Context

BY_NAME, BY_FEATURES = "name", "features"
HEADER = ("night_photograph", "day_photograph")
SHORT_SIDE = 224
"""Pixels of the photographs whose features are compared."""
STATIC: tuple[tuple[str, ...], ...] = (
    ("road", "street"),
    ("sidewalk", "pavement", "footpath"),
    ("building", "house"),
    ("wall",),
    ("fence",),
    ("pole", "columnpole"),
    ("trafficlight",),
    ("trafficsign", "signsymbol", "sign"),
    ("vegetation", "tree", "plant"),
    ("terrain", "grass", "ground"),
    ("sky",),
)
"""The paper's static classes, the first eleven of Cityscapes, each with what other data sets call it."""


# ---------------------------------------------------------------------- pairs


def find_pairs(context: Context, how: str) -> np.ndarray:
    """Places of the photographs by day for those of the run, int64 (N,), -1 without a partner.

    Args:
        context: of a run with a data set called `day`.
        how: `name`, `features`, or a CSV file of pairs.

    Raises:
        MaskwrightError: no photograph has a partner, or the file cannot be read.
    """
    night, day = context.data, context.data_of("day")
    if how == BY_FEATURES:
        return _nearest(context, night, day)
    if how != BY_NAME:
        return pairs_from_file(how, night, day)
    try:
        return pairs_by_name(night, day)
    except MaskwrightError as error:
        header = ",".join(HEADER)
        raise MaskwrightError(
            error.found, "photographs by day that are called as those by night",
            f"--set pairs={BY_FEATURES} takes the nearest by features; --set pairs=FILE.csv reads lines under {header}",
        ) from error  # fmt: skip


def _nearest(context: Context, night: Dataset, day: Dataset) -> np.ndarray:
    if context.backbone.provenance.source == "random":
        context.note("The backbone has random weights: which photographs its features call near says little.")
    encoder = BackboneEncoder(context.backbone)
    preprocess = Preprocess.for_backbone(
        context.backbone.provenance, short_side=SHORT_SIDE, multiple_of=encoder.multiple_of
    )
    rows = []
    for data in (night, day):
        store = stored_features(context, encoder, preprocess, data)
        rows.append(centred(torch.stack([store[i].float().mean((1, 2)) for i in range(len(store))])))
    pairs, cosine = pairs_by_features(*rows)
    context.note(
        f"{len(pairs)} photographs by night have {len(set(pairs.tolist()))} of {len(day)} by day as partners, by their "
        f"features: cosine {cosine.mean():.2f} on average, {cosine.min():.2f} at least."
    )
    return pairs


def centred(rows: Tensor) -> Tensor:
    """Feature vectors (N, D) without what all of their data set share, which is mostly the light; a single one, or such
    as are all the same, as they are."""
    found = rows - rows.mean(0)
    return found if bool((found.norm(dim=1) > 1e-6 * rows.norm(dim=1)).all()) else rows


def table_of(pairs: np.ndarray, night: Dataset, day: Dataset) -> str:
    """The pairs as a file that `pairs=FILE` takes."""
    rows = [(night.names[i], day.names[int(pairs[i])]) for i in paired(pairs)]
    return csv_text(HEADER, rows)


# ---------------------------------------------------------------------- static classes


def static_classes(named: str, classes: Sequence[str]) -> list[int]:
    """Ids of the classes that do not move, ascending.

    Args:
        named: their names with commas between; empty: those whose names are in `STATIC`.
        classes: names of all C classes.

    Raises:
        MaskwrightError: an unknown name, or fewer than two classes.
    """
    asked = [name.strip() for name in named.split(",") if name.strip()]
    for name in asked:
        if name not in classes:
            raise unknown("static class", name, classes)
    known = {name for names in STATIC for name in names}
    found = [c for c, name in enumerate(classes) if (name in asked if asked else _plain(name) in known)]
    if len(found) < 2:
        shown = ", ".join(classes[:12]) + (" ..." if len(classes) > 12 else "")
        of = "in static.classes" if asked else "called as one that the paper knows not to move"
        example = ",".join(classes[:2])
        raise MaskwrightError(
            f"{len(found)} of the classes ({shown}) {of}", "at least two, which the loss tells apart",
            f"name those that stay where they are: --set static.classes={example}",
        )  # fmt: skip
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


DOUBT = " If partners found by features are other places, these labels are wrong: --set static.weight=0 takes none."
"""What follows `told` where nobody named the pairs."""


def told(static: Sequence[int], classes: Sequence[str]) -> str:
    """What is taken to be static, as a sentence."""
    others = [written(name) for c, name in enumerate(classes) if c not in static]
    return (
        f"Day lends labels to night in the static classes {', '.join(written(classes[c]) for c in static)}"
        f"{'; not in ' + ', '.join(others) if others else ''}."
    )

"""From class maps to pseudo masks: a threshold, a dense CRF, label maps.

    write_seeds     CamStore -> LabelStore: ids, confidence, validity at the photograph's size

Legend: K tags of one image, (H, W) image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from maskwright.data.folders.folder import Dataset
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.ops.cam import with_background
from maskwright.ops.refinement.crf import CRF_SETTINGS, dense_crf, label_probs
from maskwright.recipes.tags.maps import CamStore, ImageCams

Label = Callable[[ImageCams, np.ndarray | None], LabelMap]
"""Another way from the maps of an image, and its pixels where a CRF is asked for, to labels (H, W)."""


def seed_labels(
    cams: ImageCams,
    background: int | None,
    threshold: float,
    *,
    band: float = 0.0,
    image: np.ndarray | None = None,
    crf: str = "irn",
) -> LabelMap:
    """Labels of one image from its maps.

    A pixel takes the class with the largest map where that reaches the threshold. Elsewhere it is background; where the
    class table has none, nothing is known about it and it is not valid.

    Args:
        cams: its maps.
        background: class id, or None.
        threshold: in [0, 1].
        band: pixels whose largest value is nearer than this to the threshold are not valid.
        image: uint8 (H, W, 3); the labels are refined with a dense CRF that trusts each to 0.7 (IRN).
        crf: a name of `ops.refinement.crf.CRF_SETTINGS`.

    Returns:
        (H, W). The confidence of a class is its map (or the CRF's probability), that of the background what the
        largest map leaves to 1.
    """
    rest = 0 if background is None else background
    value, ids = cams.top(background)
    inside = (value >= threshold) & (value > 0)
    confidence = torch.where(inside, value, 1 - value)
    sure = (value - threshold).abs() >= band
    if image is not None and len(cams.keys):
        # Of the labels, not of the scores: scores that hardly differ let the background win everywhere.
        channel = torch.where(inside, torch.searchsorted(cams.keys, ids) + 1, 0)
        probs = label_probs(channel.numpy(), len(cams.keys) + 1)
        refined = torch.from_numpy(np.asarray(dense_crf(probs, image, **CRF_SETTINGS[crf])))  # type: ignore[arg-type]
        confidence, channel = refined.max(0)
        inside = channel > 0
        ids = torch.cat([torch.tensor([rest]), cams.keys])[channel]
    valid = sure & (inside if background is None else torch.ones_like(inside))
    ids = torch.where(inside, ids, rest)
    return LabelMap(torch.where(valid, ids, 0), confidence.clamp(0, 1).float(), valid)


def seeds_by_power(
    cams: ImageCams,
    background: int | None,
    *,
    alpha: float = 1.0,
    sure: float = 0.95,
    image: np.ndarray | None = None,
    crf: str = "clip_es",
) -> LabelMap:
    """Labels of one image from maps among which (1 - max)^alpha is the background's; unsure pixels are not valid.

    Args:
        cams: its maps.
        background: class id, or None: what the background wins has no label.
        alpha: of the background's map.
        sure: least probability of a label.
        image: uint8 (H, W, 3); a dense CRF decides on the maps as probabilities. Without it they are divided by their
            sum.
        crf: a name of `ops.refinement.crf.CRF_SETTINGS`.

    Returns:
        (H, W).
    """
    scores = with_background(cams.full(), alpha=alpha) if len(cams.keys) else torch.ones(1, *cams.size)
    if image is not None and len(cams.keys):
        given = scores.clamp(0, 1).numpy()
        scores = torch.from_numpy(np.asarray(dense_crf(given, image, **CRF_SETTINGS[crf])))  # type: ignore[arg-type]
    confidence, channel = (scores / scores.sum(0).clamp(min=1e-12)).max(0)
    ids = torch.cat([torch.tensor([background or 0]), cams.keys])[channel]
    valid = confidence >= sure
    if background is None:
        valid = valid & (channel > 0)
    return LabelMap(torch.where(valid, ids, 0), confidence.clamp(0, 1).float(), valid)


def write_seeds(
    store: CamStore,
    data: Dataset,
    indices: Iterable[int],
    labels: LabelStore,
    background: int | None,
    threshold: float,
    *,
    band: float = 0.0,
    crf: bool = False,
    label: Label | None = None,
) -> Iterator[int]:
    """Writes label maps of images that have maps and no labels yet, by `seed_labels` or another way; yields how many
    are done."""
    for done, i in enumerate(indices, 1):
        name = data.items[i].name
        if name not in labels:
            image = np.ascontiguousarray(data.image(i)) if crf else None
            cams = store.read(name)
            if label is not None:
                found = label(cams, image)
            else:
                found = seed_labels(cams, background, threshold, band=band, image=image)
            labels.write(name, found, data.items[i].image)
        yield done

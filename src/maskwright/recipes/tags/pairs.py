"""Labels that are sure enough to tell which nearby pixels are of one thing.

    pairs (label)     CamStore -> LabelStore: what the affinity learns from          masks/, confidence/

Legend: K tags of one image, (H, W) image size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.ops.cam import with_background
from maskwright.ops.refinement.crf import CRF_SETTINGS, dense_crf
from maskwright.recipes.tags.maps import CamStore, ImageCams
from maskwright.recipes.tags.seeds import seed_labels
from maskwright.recipes.tags.walk_options import PairOptions


def power_at(threshold: float) -> float:
    """The exponent with which (1 - v)^alpha meets v at the threshold: 6 at 0.22, 4 at 0.28, 24 at 0.10."""
    return math.log(threshold) / math.log(1 - threshold)


def pair_bounds(options: PairOptions, kind: str, found: float) -> tuple[float, float]:
    """The two thresholds (irn) or exponents (psa) between which nothing is sure.

    Args:
        options: what was asked for.
        kind: "irn" or "psa".
        found: threshold found without masks, for what was not.
    """
    if kind == "psa" and options.alphas:
        return float(options.alphas[0]), float(options.alphas[1])
    low, high = options.thresholds or (found / 2, min(1.5 * found, (1 + found) / 2))
    # An exponent of a threshold in (0, 1); the larger threshold has the smaller one.
    return (power_at(min(high, 0.99)), power_at(max(low, 0.001))) if kind == "psa" else (float(low), float(high))


def sure_by_threshold(cams: ImageCams, low: float, high: float, image: np.ndarray | None = None) -> tuple[Any, Any]:
    """IRN's confident areas: classes of the labelling at the high threshold, background where neither finds a class.

    Args:
        cams: maps of one image.
        low: threshold below which nothing is seen.
        high: threshold above which a class is sure.
        image: uint8 (H, W, 3), with which a dense CRF refines both labellings.

    Returns:
        Class ids (H, W), -1 where none is sure, and bool (H, W), where background is.
    """
    strict = seed_labels(cams, None, high, image=image)
    lax = seed_labels(cams, None, low, image=image)
    return torch.where(strict.valid, strict.ids, -1), ~strict.valid & ~lax.valid


def sure_by_power(cams: ImageCams, low: float, high: float, image: np.ndarray | None = None) -> tuple[Any, Any]:
    """PSA's: a class that beats the background (1 - max)^low, and background of (1 - max)^high that beats all classes.

    Arguments and result as for `sure_by_threshold`; a small exponent makes a strong background.
    """
    if not len(cams.keys):
        nothing = torch.full(cams.size, -1, dtype=torch.int64)
        return nothing, torch.ones(cams.size, dtype=torch.bool)
    maps = cams.full()
    found = []
    for alpha in (low, high):
        scores = with_background(maps, alpha=alpha)
        if image is not None:
            refined = dense_crf(scores.clamp(0, 1).numpy(), image, **CRF_SETTINGS["psa"])  # type: ignore[arg-type]
            scores = torch.from_numpy(np.asarray(refined))
        found.append(scores.argmax(0))
    strict, lax = found
    ids = torch.where(strict > 0, cams.keys[(strict - 1).clamp(min=0)], -1)
    return ids, (lax == 0) & (strict == 0)


def sure_labels(ids: Tensor, ground: Tensor, background: int | None) -> LabelMap:
    """Sure classes and sure background as labels; without a class for the background it stays without a label."""
    valid = ids >= 0
    rest = 0 if background is None else background
    if background is not None:
        valid = valid | ground
    ids = torch.where(ids >= 0, ids, rest)
    return LabelMap(torch.where(valid, ids, 0), valid.float(), valid)


def write_sure_labels(
    store: CamStore,
    data: Dataset,
    indices: Iterable[int],
    labels: LabelStore,
    background: int | None,
    kind: str,
    bounds: tuple[float, float],
    crf: bool,
) -> Iterator[int]:
    """Writes the sure labels of images that have maps and no labels yet; yields how many are done."""
    sure = sure_by_power if kind == "psa" else sure_by_threshold
    for done, i in enumerate(indices, 1):
        name = data.items[i].name
        if name not in labels:
            image = np.ascontiguousarray(data.image(i)) if crf else None
            found = sure_labels(*sure(store.read(name), *bounds, image), background)
            labels.write(name, found, data.items[i].image)
        yield done

"""What is foreground in whole photographs, and the clusters of tokens that are (Leopart's CBFE).

Legend: (H, W) photograph, (h, w) map size, G clusters, E width of reduced features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.leopart.losses import attention_masks
from maskwright.methods.unsupervised.leopart.options import CbfeOptions, ForegroundOptions
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.frozen.features import frozen_features
from maskwright.recipes.proposals.making import propose
from maskwright.recipes.proposals.objects import StoredObjects
from maskwright.recipes.proposals.spectral_objects import spectral_object

if TYPE_CHECKING:
    from pathlib import Path

    from maskwright.engine.context import Context

ForegroundMaps = Callable[[int], Tensor]
"""Index of a photograph to its foreground, float32 (H, W) in [0, 1]."""
INPUT = "saliency"
STEP = 0.05
"""The authors round the oracle's threshold to multiples of it."""


def source_of(context: Context, options: ForegroundOptions) -> str:
    """Who says what is foreground: `attention`, `saliency` or `spectral`.

    Raises:
        MaskwrightError: what is asked for is not there.
    """
    has_attention, given = bool(getattr(context.backbone, "has_cls", False)), INPUT in context.inputs
    by = options.by
    if by == "auto":
        return INPUT if given else "attention" if has_attention else "spectral"
    if by == "attention" and not has_attention:
        raise MaskwrightError(
            f"foreground.by=attention on {context.backbone.name}, which has no class token", "one with a class token",
            "take foreground.by=spectral, or give --input saliency=PLACE",
        )  # fmt: skip
    if by == INPUT and not given:
        raise MaskwrightError("foreground.by=saliency without maps", "them", f"add --input {INPUT}=PLACE")
    if given and by != INPUT:
        raise MaskwrightError(f"--input {INPUT} and foreground.by={by}", "one of the two", "leave one out")
    return by


def propose_foreground(
    context: Context, options: ForegroundOptions, by: str, short_side: int, folder: Path
) -> Proposals:
    """Foreground of each photograph by the weights that the run starts from: attention, or the object of a spectral
    cut."""
    if by == "attention":
        backbone = context.backbone.to(context.device).eval()
        preprocess = Preprocess.for_backbone(
            backbone.provenance, short_side=short_side, multiple_of=backbone.multiple_of
        )

        @torch.no_grad()
        def mask(i: int) -> Tensor:
            x = preprocess.apply(context.data.image(i))[None].to(context.device)
            return attention_masks(backbone.cls_attention(x), options.mass, options.smallest)[0].cpu()

        def object_of(i: int) -> np.ndarray:
            return F.interpolate(mask(i)[None], context.data.size(i), mode="nearest")[0, 0].numpy() > 0

    else:
        vit = context.backbone.is_vit
        layers = (-1,) if vit else (context.backbone.default_layer,)
        cells = frozen_features(context, short_side=short_side, layers=layers, kind="k" if vit else "tokens").store

        def object_of(i: int) -> np.ndarray:
            return spectral_object(context.data.image(i), cells[i].float(), context.seed)

    def found(i: int) -> LabelMap:
        ids = torch.from_numpy(object_of(i)).long()
        return LabelMap(ids, torch.ones(ids.shape), torch.ones(ids.shape, dtype=torch.bool))

    return propose(context, folder, "objects", f"leopart, by {by}", found)


def stored_maps(context: Context, store: Proposals) -> ForegroundMaps:
    """The foreground that a store holds: soft maps as they are, else the objects of `StoredObjects`."""
    data, objects = context.data, StoredObjects(context, store, 0.5)

    def read(i: int) -> Tensor:
        if objects.grey:
            return store.soft(data.names[i], data.size(i)).values
        return torch.from_numpy(objects.mask(i)).float()

    return read


def on_grid(values: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Foreground (H, W) on a grid of cells, bool (h, w)."""
    return F.adaptive_avg_pool2d(values[None, None], size)[0, 0].numpy() >= 0.5


# --------------------------------------------------------------------- CBFE


def cluster_precisions(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Of each cluster the mean, over the photographs that show it, of the share of its cells in their foreground.

    Args:
        maps: cluster ids (h, w) of each photograph.
        masks: bool (h, w).
        count: G.

    Returns:
        float64 (G,); NaN for a cluster that no photograph shows.
    """
    total, seen = np.zeros(count), np.zeros(count)
    for ids, mask in zip(maps, masks):
        cells = np.bincount(ids.ravel(), minlength=count)
        inside = np.bincount(ids[mask].ravel(), minlength=count)
        has = cells > 0
        total[has] += inside[has] / cells[has]
        seen += has
    with np.errstate(invalid="ignore"):
        return total / seen


def cuts(count: int, options: CbfeOptions) -> range:
    """How many clusters of so many may be background."""
    return range(max(1, int(options.cut_min * count)), max(2, int(options.cut_max * count)))


@dataclass(frozen=True)
class Cut:
    """Which precision is foreground, and how that was found: `gap`, `given` or `oracle`."""

    threshold: float
    how: str
    iou: float | None = None


def gap_cut(precisions: np.ndarray, options: CbfeOptions) -> Cut:
    """The middle of the largest gap of the sorted precisions where the shares of background allow it; no label is
    read."""
    found = np.sort(precisions[~np.isnan(precisions)])
    allowed = [k for k in cuts(len(found), options) if k < len(found)] or [len(found) - 1]
    best = max(allowed, key=lambda k: found[k] - found[k - 1])
    return Cut(float(found[best] + found[best - 1]) / 2, "gap")


def truth_on_grid(mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which cells are foreground in a mask, and which are known: void pixels count as neither, and a cell of which more
    than half is void is left out.

    Args:
        mask: class ids (H, W), 0 the background.
        size: (h, w).

    Returns:
        bool (h, w) twice.
    """
    known = mask != ignore_of(mask)
    pair = torch.from_numpy(np.stack([known & (mask != 0), known])).double()
    foreground, whole = F.adaptive_avg_pool2d(pair, size).numpy()
    return foreground >= 0.5 * whole, whole >= 0.5


def cut_ious(
    precisions: np.ndarray,
    maps: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    options: CbfeOptions,
    known: Sequence[np.ndarray] | None = None,
) -> list[tuple[float, int, float]]:
    """What the authors sweep: of each cut its precision, how many clusters are below, and the mean over photographs
    of the foreground's IoU with true masks.

    Args:
        precisions: (G,).
        maps: cluster ids (h, w).
        truth: bool (h, w), what is no background.
        options: of the cuts.
        known: bool (h, w), cells that count; None: all.
    """
    counted = [np.ones_like(true) for true in truth] if known is None else known
    order, rows = np.argsort(precisions, kind="stable"), []
    first = min(int(options.cut_min * len(order)), len(order) - 1)  # one cut at least, of few clusters too
    for k in range(first, max(first + 1, int(options.cut_max * len(order)))):
        kept = np.zeros(len(order), bool)
        kept[order[k:]] = True
        ious = []
        for ids, true, counts in zip(maps, truth, counted):
            found, true = kept[ids] & counts, true & counts
            union = (found | true).sum()
            ious.append((found & true).sum() / union if union else 1.0)
        rows.append((float(precisions[order[k]]), k, float(np.mean(ious))))
    return rows


def oracle_cut(
    precisions: np.ndarray,
    maps: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    options: CbfeOptions,
    known: Sequence[np.ndarray] | None = None,
) -> Cut:
    """The authors' cut: the best by IoU (`cut_ious`), its precision rounded to the nearest twentieth."""
    precision, _, iou = max(cut_ious(precisions, maps, truth, options, known), key=lambda row: row[2])
    return Cut(round(precision / STEP) * STEP, "oracle", iou)

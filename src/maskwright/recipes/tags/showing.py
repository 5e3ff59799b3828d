"""What the report shows of the way from tags to pseudo masks: maps, walked maps, sure pairs and masks of some
photographs, tags that left no pixel, and, where masks may be read for judging, how good the seeds are.

Legend: C classes, T tags, (H, W) image size, (h, w) size of a picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from maskwright.data.examining.findings import some
from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.pictures.images import resize
from maskwright.data.training.labels import LabelStore
from maskwright.data.training.tag_targets import TagTargets
from maskwright.engine.shown import Curve, Shown, Strip
from maskwright.errors import MaskwrightError
from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.evaluate.metrics import false_rates, iou, miou
from maskwright.evaluate.seeds import ThresholdSweep
from maskwright.ops.cam import resize_maps
from maskwright.predict.sheet import heat_colors
from maskwright.predict.writers import boundaries, overlay
from maskwright.recipes.tags.maps import CamStore, ImageCams
from maskwright.recipes.tags.thresholds import Threshold, labelled_share, largest_values

if TYPE_CHECKING:
    from maskwright.recipes.tags.method import TagMethod

SIDE = 280
"""Pixels of a picture's longer side."""
EVEN, FAILED = 8, 4
"""Photographs shown: so many spread evenly over all, and so many more of those with a tag without a pixel."""
STRENGTH = 0.6
"""Share of the heat in pictures of maps; the rest is the photograph in grey."""
LINE = (0, 230, 255)
LEGEND = (
    "Maps: the largest of the tags' maps at each pixel, from dark (0) to light (1). Lines enclose what is of one class;"
    " those of the maps that masks are made of leave out what does not reach the threshold."
)


@dataclass(frozen=True, kw_only=True)
class Way:
    """The artefacts on the way from tags to pseudo masks.

    Attributes:
        data: the images.
        table: the classes.
        targets: what the images are tagged with.
        labels: the pseudo masks of all tagged images.
        maps: the classifier's maps, where there are any.
        walked: the same after the walk, where there is one.
        sure: labels that pairs were made of, where there are any.
    """

    data: Dataset
    table: ClassTable
    targets: TagTargets
    labels: LabelStore
    maps: CamStore | None = None
    walked: CamStore | None = None
    sure: LabelStore | None = None

    @classmethod
    def of(cls, method: TagMethod, labels: LabelStore) -> Way:
        """That of a method's run, to these pseudo masks."""
        context, walk = method.context, method.walk
        return cls(
            data=context.data, table=context.table, targets=method.targets, labels=labels, maps=method.raw_store,
            walked=None if walk is None else walk.store, sure=None if walk is None else walk.label_store,
        )  # fmt: skip

    @property
    def last(self) -> CamStore:
        """The maps that pseudo masks are made of."""
        found = self.walked or self.maps
        assert found is not None, "a way with maps"
        return found

    def tags_of(self, name: str) -> list[int]:
        """Class ids of an image's tags."""
        return [self.targets.ids[k] for k in self.targets.tagged[name]]


@dataclass(frozen=True)
class Count:
    """Pixels of the pseudo masks.

    Attributes:
        pixels: int64 (C,), of each class.
        unlabelled: pixels without a label.
        lost: names of images with the class ids of tags of theirs that have no pixel.
    """

    pixels: np.ndarray
    unlabelled: int
    lost: dict[str, list[int]]

    @property
    def labelled(self) -> float:
        """Share of the pixels with a label."""
        total = int(self.pixels.sum()) + self.unlabelled
        return float(self.pixels.sum()) / total if total else float("nan")


def count_labels(way: Way) -> Count:
    """Counts the pixels of all pseudo masks."""
    pixels, unlabelled, lost = np.zeros(len(way.table), np.int64), 0, {}
    for i in way.targets.indices(way.data):
        name = way.data.items[i].name
        found = way.labels.read(name)
        here = torch.bincount(found.ids[found.valid], minlength=len(way.table)).numpy()
        pixels += here
        unlabelled += int((~found.valid).sum())
        gone = [c for c in way.tags_of(name) if not here[c]]
        if gone:
            lost[name] = gone
    return Count(pixels, unlabelled, lost)


def judge_labels(way: Way) -> np.ndarray:
    """Counts (C + 1, C) of the pseudo masks against the masks of the images that have both; row C: without a label.

    The ledger notes the masks as read to judge.

    Raises:
        MaskwrightError: no image has both, or a mask holds an unknown class.
    """
    classes = len(way.table)
    matrix, judged = ConfusionMatrix(classes, classes, None, extra=True), 0
    with way.data.ledger.purpose("evaluate"):
        for i in way.targets.indices(way.data):
            if not way.data.has_mask(i):
                continue
            name, true = way.data.items[i].name, way.data.mask(i)
            try:
                matrix.update(way.labels.read(name).target(ignore_of(true)).numpy().astype(true.dtype), true)
            except MaskwrightError as error:
                raise MaskwrightError(f"{name}: {error.found}", error.expected, error.repair) from error
            judged += 1
    if not judged:
        raise MaskwrightError("judge=true, and no tagged image has a mask", "masks to judge by", "leave judge out")
    return np.asarray(matrix.counts)


def lost_sentence(way: Way, count: Count) -> str:
    """Which tags have no pixel in the pseudo masks, counted and named."""
    total = sum(len(way.targets.tagged[way.data.items[i].name]) for i in way.targets.indices(way.data))
    lost = Counter(way.table.names[c] for gone in count.lost.values() for c in gone)
    if not lost:
        return f"Each of the {total} tags has a pixel in its photograph's pseudo mask."
    named = ", ".join(f"{name} {n}" for name, n in lost.most_common(12)) + (", ..." if len(lost) > 12 else "")
    return (
        f"{sum(lost.values())} of {total} tags have not a single pixel in their photograph's pseudo mask: {named} "
        f"({some(list(count.lost))})."
    )


def what_is_shown(
    way: Way, *, threshold: Threshold | None = None, sweep: ThresholdSweep | None = None, judge: bool = False
) -> Shown:
    """What the report shows of pseudo masks.

    Args:
        way: the artefacts.
        threshold: where background ends, where a threshold was chosen.
        sweep: figures of the maps at all thresholds, where asked for.
        judge: whether the masks are judged, for which masks of people are read.
    """
    count = count_labels(way)
    shown = Shown(title="From tags to pseudo masks")
    shown.sentences.append(lost_sentence(way, count))
    if threshold is not None:
        shown.facts.append(("background threshold", f"{threshold.value:.2f}"))
        shown.sentences.append(f"Threshold {threshold.value:.3f} of a map's maximum, {threshold.why}.")
    if count.unlabelled:
        shown.facts.append(("pixels with a label", f"{100 * count.labelled:.1f} %"))
    judged = judge_labels(way) if judge else None
    if judged is not None:
        rates = false_rates(judged, "paper", way.targets.background)
        shown.facts += [
            ("mIoU of the masks", f"{100 * miou(judged):.1f} %"), ("mFN", f"{rates.mfn:.2f}"),
            ("mFP", f"{rates.mfp:.2f}"),
        ]  # fmt: skip
        shown.sentences.append(
            "mIoU is that of the pseudo masks against the masks of the same photographs, which were read to judge and "
            "for nothing else; pixels without a label count as missed. mFN and mFP are missed and added pixels over "
            "right ones, the mean over classes that have a right pixel"
            + (f" ({rates.left_out} have none)." if rates.left_out else ".")
        )
    shown.head, shown.table = _by_class(way, count, judged)
    shown.curves = [*_trade_off(way, threshold), *_measured(sweep, threshold)]
    at = 0.0 if threshold is None else threshold.value
    shown.strips = [_strip(way, i, count, at) for i in _chosen(way, count)]
    if way.maps is not None:
        shown.sentences.append(LEGEND)
    if len(shown.strips) > EVEN:
        shown.sentences.append(f"The photographs from the {EVEN + 1}th on are some with a tag that has no pixel.")
    return shown


def _by_class(way: Way, count: Count, judged: np.ndarray | None) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of classes, those of most photographs first."""
    photographs = dict(zip(way.targets.ids, way.targets.counts().tolist()))
    lost = Counter(c for gone in count.lost.values() for c in gone)
    total = max(1, int(count.pixels.sum()) + count.unlabelled)
    ious = None if judged is None else iou(judged)
    rows = []
    for c in sorted(range(len(way.table)), key=lambda c: -photographs.get(c, len(way.data) + 1)):
        row = [
            way.table.names[c], str(photographs[c]) if c in photographs else "no tag",
            str(lost[c]) if c in photographs else "", f"{100 * count.pixels[c] / total:.1f} %",
        ]  # fmt: skip
        if ious is not None:
            row.append(f"{100 * ious[c]:.1f} %" if np.isfinite(ious[c]) else "–")
        rows.append(row)
    head = ["class", "photographs tagged", "of them without a pixel", "area of the masks"]
    return head + ([] if ious is None else ["IoU"]), rows


def _trade_off(way: Way, threshold: Threshold | None) -> list[Curve]:
    """Where no class stands for the background: what share of the maps' cells gets a label, by threshold."""
    if threshold is None or way.targets.background is not None:
        return []
    values = largest_values(way.last, [way.data.items[i].name for i in way.targets.indices(way.data)])
    places = np.linspace(0, 1, 51)
    shares = [100 * labelled_share(values, t) for t in places]
    return [Curve("cells with a label, percent", "threshold", places.tolist(), shares, threshold.value)]


def _measured(sweep: ThresholdSweep | None, threshold: Threshold | None) -> list[Curve]:
    """Figures of the maps by threshold, before any CRF."""
    if sweep is None or threshold is None:
        return []
    points, mark = sweep.curve(), threshold.value
    x = [p.threshold for p in points]
    return [
        Curve("mIoU of the maps, percent", "threshold", x, [100 * p.miou for p in points], mark),
        Curve("mFN of the maps", "threshold", x, [p.mfn for p in points], mark),
        Curve("mFP of the maps", "threshold", x, [p.mfp for p in points], mark),
    ]


# ---------------------------------------------------------------------- pictures


def _chosen(way: Way, count: Count) -> list[int]:
    """Images to show: some spread evenly, then some that lost a tag."""
    tagged = [i for i in way.targets.indices(way.data) if way.targets.tagged[way.data.items[i].name]]
    even = _spread(tagged, EVEN)
    lost = [i for i in tagged if way.data.items[i].name in count.lost and i not in even]
    return [*even, *_spread(lost, FAILED)]


def _spread(indices: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly spaced, the first and last among them."""
    if len(indices) <= most:
        return list(indices)
    return [indices[int(k)] for k in np.linspace(0, len(indices) - 1, most).round()]


def _strip(way: Way, i: int, count: Count, threshold: float) -> Strip:
    name = way.data.items[i].name
    image = way.data.image(i)
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    photo = resize(np.ascontiguousarray(image), size)
    pictures = [("photograph", photo)]
    for caption, maps in (("class maps", way.maps), ("walked maps", way.walked)):
        if maps is not None:
            pictures.append((caption, heated(photo, maps.read(name), threshold if maps is way.last else 0.0)))
    for caption, store in (("sure pixels", way.sure), ("pseudo mask", way.labels)):
        if store is not None:
            ids = store.read(name).resize(*size).target(way.table.ignore).numpy()
            pictures.append((caption, overlay(photo, ids, way.table, 0.65)))
    gone = count.lost.get(name, [])
    said = [(way.table.names[c] + (" (no pixel)" if c in gone else ""), way.table.colors[c]) for c in way.tags_of(name)]
    return Strip(name, said, pictures)


def heated(photo: np.ndarray, cams: ImageCams, threshold: float = 0.0) -> np.ndarray:
    """A grey photograph under the heat of its largest map, with lines around what is of one class.

    Args:
        photo: uint8 (h, w, 3).
        cams: maps of the image.
        threshold: what does not reach it is of no class.
    """
    size = (photo.shape[0], photo.shape[1])
    grey = np.repeat(photo.mean(2, keepdims=True), 3, 2)
    if not len(cams.keys):
        return grey.astype(np.uint8)
    value, channel = resize_maps(cams.maps, size).max(0)
    inside = (value >= threshold) & (value > 0)
    drawn = np.rint((1 - STRENGTH) * grey + STRENGTH * heat_colors(value.numpy())).clip(0, 255).astype(np.uint8)
    drawn[boundaries(torch.where(inside, channel, -1).numpy())] = LINE
    return drawn

"""Which images to label next, and which regions of them: a model looks at those without masks and says what it does
not know.

Every image is seen once, whole, in evaluation mode and without test-time augmentation; of each only a few numbers and
one feature vector are kept, so memory does not depend on the images' size nor much on their number.

Legend: C classes, D width, N images, (h, w) the grid that scores lie on, a cell every `CELL` input pixels.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.names import written
from maskwright.data.folders.scan import threaded
from maskwright.data.folders.tables import csv_text
from maskwright.data.trust.files import write_text
from maskwright.errors import MaskwrightError, shown, unknown
from maskwright.models.segmenter import Segmenter
from maskwright.ops import acquisition as aq
from maskwright.predict.model import Bar, Model, image_size, read_ahead, say
from maskwright.predict.sheet import Shown, write_sheet
from maskwright.predict.starting import check_start, write_start
from maskwright.predict.tiles import much_larger, trained_size

STRATEGIES = {
    "mixed": "half uncertainty (entropy; also disagreement of two networks), half distance to what is labelled",
    "entropy": "mean entropy of the pixels",
    "margin": "mean closeness of the two likeliest classes",
    "confidence": "mean lack of confidence of the pixels",
    "disagreement": "mean divergence of student and teacher",
    "coreset": "distance to the nearest labelled or chosen image, in the encoder's features",
    "random": "by lot",
}
"""How images can be chosen."""
CELL = 4
"""Input pixels a cell of the scores."""
LONG_SIDE = 1024
"""Pixels of the longer side at which an image is looked at, at most."""
REGION_SHARE = 6
"""A region's side is the image's shorter side over this where nothing else is asked."""
SHEET_ROWS = 24
"""Suggestions that the picture sheet shows at most."""
_FILES = ("suggestions.csv", "regions.csv", "names.txt", "sheet.png")


class Region(NamedTuple):
    """Part of an image worth labelling: rows [top, top + height), columns [left, left + width), pixels; its score."""

    top: int
    left: int
    height: int
    width: int
    score: float


@dataclass(frozen=True)
class Suggestion:
    """An image worth labelling.

    Attributes:
        name: of the image.
        rank: its place, from 1.
        score: what it was chosen by; larger means ask first, the unit is that of the strategy.
        regions: of the image, by falling score.
    """

    name: str
    rank: int
    score: float
    regions: tuple[Region, ...] = ()


@dataclass
class Suggestions:
    """What to label next, best first.

    Attributes:
        rows: the suggestions.
        by: the strategy.
        pool: images without a mask that were looked at.
        skipped: (name, reason) of images that could not be read.
        notices: what was guessed of the images, or left aside, in sentences; `progress` said them as well.
        start: the folder for an annotation tool, if one was written.
    """

    rows: list[Suggestion]
    by: str
    pool: int
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    start: Path | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Suggestion]:
        return iter(self.rows)

    @property
    def names(self) -> list[str]:
        """The images' names, best first."""
        return [row.name for row in self.rows]

    def write(self, out: str | os.PathLike[str]) -> None:
        """Writes suggestions.csv (rank, name, score, strategy), names.txt, and regions.csv where there are regions.

        Names that a line, or a spreadsheet's cell, would change are JSON strings there: `data.folders.names.meant` and
        `data.folders.tables.read_csv` give them back, and `--labeled names.txt` reads them.

        Raises:
            MaskwrightError: the folder cannot be written.
        """
        folder = Path(out)
        lines = [(r.rank, r.name, Decimal(f"{r.score:.6g}"), self.by) for r in self.rows]
        write_text(folder / "suggestions.csv", csv_text(("rank", "name", "score", "strategy"), lines))
        write_text(folder / "names.txt", "".join(f"{written(name)}\n" for name in self.names))
        boxes = [
            (r.name, k, g.top, g.left, g.height, g.width, Decimal(f"{g.score:.6g}"))
            for r in self.rows
            for k, g in enumerate(r.regions, 1)
        ]
        if boxes:
            header = ("name", "region", "top", "left", "height", "width", "score")
            write_text(folder / "regions.csv", csv_text(header, boxes))


def suggest(
    model: Model,
    data: Dataset,
    count: int,
    *,
    by: str = "mixed",
    regions: int = 0,
    region_size: int = 0,
    out: str | os.PathLike[str] | None = None,
    other: Segmenter | None = None,
    diversity: float = 0.5,
    seed: int = 0,
    to: str | None = None,
    progress: Any = None,
) -> Suggestions:
    """Suggests which of the images without a mask to label next.

    Args:
        model: what looks.
        data: the images; those with a mask that may be read count as labelled.
        count: images to suggest; all where there are no more.
        by: a name of `STRATEGIES`.
        regions: regions to suggest in each image, that do not overlap; fewer where no more fit.
        region_size: their side, pixels of the image; a sixth of its shorter side if 0.
        out: folder for suggestions.csv, regions.csv, names.txt and sheet.png; nothing is written if None.
        other: a second network of the same classes, for disagreement.
        diversity: share of diversity in `mixed`.
        seed: of `random`.
        to: a format of outlines: a folder of that name in `out` gets the photographs with the model's masks as a start
            (`predict.starting`).
        progress: an `engine.progress.Progress`, or a function of (done, total), or None.

    Raises:
        MaskwrightError: no image is without a mask, the strategy is unknown or needs a second network, or `out` cannot
            be written.
    """
    _check(by, count, regions, region_size, other)
    if to is not None:
        check_start(out, to)
    pool = data.subset(i for i in range(len(data)) if not data.has_mask(i))
    if not len(pool):
        raise MaskwrightError(
            f"all {len(data)} images of {data.root} have masks", "images without one",
            "name another folder, or say with --labeled which masks there are",
        )  # fmt: skip
    eye = _Eye(model, other, by)
    notices = [*data.notices, *eye.shrunk(pool)]
    for sentence in notices:
        say(progress, sentence)
    rows, skipped = _choose(eye, data, pool, count, by, diversity, seed, progress)
    if regions or out is not None:
        shown: list[Shown] = []
        chosen = data.subset(data.index(row.name) for row in rows)
        for k, (_, pixels) in enumerate(read_ahead(chosen)):
            if isinstance(pixels, str):  # it was read a moment ago
                continue
            look = eye.look(pixels)
            found = look.regions(regions, region_size, pixels.shape[:2])
            rows[k] = Suggestion(rows[k].name, rows[k].rank, rows[k].score, found)
            if out is not None and k < SHEET_ROWS:
                shown.append(look.show(rows[k], pixels))
    suggestions = Suggestions(rows, by, len(pool), skipped, notices)
    if out is not None:
        _forget(Path(out))
        suggestions.write(out)
        if shown:
            write_sheet(Path(out) / "sheet.png", shown, model.classes, _unit(by))
        if to is not None:
            suggestions.start = write_start(Path(out) / to, to, model, data, suggestions.names, progress)
    return suggestions


def _check(by: str, count: int, regions: int, region_size: int, other: Segmenter | None) -> None:
    if by not in STRATEGIES:
        raise unknown("strategy", by, STRATEGIES)
    if by == "disagreement" and other is None:
        raise MaskwrightError(
            "the model is one network, which agrees with itself", "a run that trained a student and its teacher",
            "give a run folder of mean_teacher or another method with a teacher, or choose another --by",
        )  # fmt: skip
    for name, value, low in (("--count", count, 1), ("--regions", regions, 0), ("--region-size", region_size, 0)):
        if value < low:
            raise MaskwrightError(f"{name} {value}", f"at least {low}")


def _forget(out: Path) -> None:
    """Removes the files of earlier suggestions, of which regions.csv might otherwise outlive its images."""
    for name in _FILES:
        try:
            (out / name).unlink(missing_ok=True)
        except OSError as error:
            raise MaskwrightError(
                f"{out / name} cannot be replaced ({error.strerror})", "a folder that may be written"
            ) from error


def _unit(by: str) -> str:
    return {
        "margin": "1 - margin",
        "confidence": "1 - confidence",
        "disagreement": "divergence of the two networks",
    }.get(by, "entropy, 1 = all classes equally likely")


def _choose(
    eye: _Eye, data: Dataset, pool: Dataset, count: int, by: str, diversity: float, seed: int, progress: Any
) -> tuple[list[Suggestion], list[tuple[str, str]]]:
    """The images in order, without regions, and those that could not be read."""
    diverse = by == "coreset" or (by == "mixed" and diversity > 0)
    labeled = data.subset(i for i in range(len(data)) if data.has_mask(i)) if diverse else data.subset([])
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    scores, apart, vectors, taken = [], [], [], []
    with Bar(progress, "looking", len(pool) + len(labeled)) as show:
        for done, (name, pixels) in enumerate(read_ahead(pool), 1):
            if isinstance(pixels, str):
                skipped.append((name, pixels))
            else:
                names.append(name)
                if by != "random":
                    look = eye.look(pixels)
                    scores.append(float(look.uncertainty.mean()))
                    apart.append(float(look.apart.mean()) if look.apart is not None else 0.0)
                    vectors.append(look.vector)
            show(done)
        for done, (_, pixels) in enumerate(read_ahead(labeled), len(pool) + 1):
            if not isinstance(pixels, str):
                taken.append(eye.vector(pixels))
            show(done)
    if not names:
        raise MaskwrightError(f"none of the {len(pool)} images can be read", "at least one", "run maskwright doctor")
    order: list[int]
    if by == "random":
        draw = torch.rand(len(names), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        order, chosen = _largest(draw, count)
    elif diverse:
        x, around = torch.stack(vectors), torch.stack(taken) if taken else None
        if by == "coreset":
            order, chosen = aq.k_center_greedy(x, count, around)
        else:
            unsure = torch.tensor(scores, dtype=torch.float64)
            if eye.other is not None:
                unsure = aq.mixture([unsure, torch.tensor(apart, dtype=torch.float64)])
            order, chosen = aq.uncertain_and_diverse(unsure, x, count, around, diversity)
    else:
        order, chosen = _largest(torch.tensor(scores, dtype=torch.float64), count)
    rows = [Suggestion(names[k], n, s) for n, (k, s) in enumerate(zip(order, chosen, strict=True), 1)]
    return rows, skipped


def _largest(scores: Tensor, count: int) -> tuple[list[int], list[float]]:
    """Places of the largest scores, of equals the first."""
    order = scores.argsort(descending=True, stable=True)[:count]
    return order.tolist(), scores[order].tolist()


@dataclass(frozen=True)
class _Look:
    """What the model says of one image.

    Attributes:
        probs: (C, h, w), or one more for void.
        uncertainty: (h, w) by the strategy; the entropy where it has none of its own.
        apart: (h, w) divergence of the two networks, or None.
        vector: (D,) of unit length.
    """

    probs: Tensor
    uncertainty: Tensor
    apart: Tensor | None
    vector: Tensor

    def regions(self, count: int, side: int, image: tuple[int, int]) -> tuple[Region, ...]:
        """The best windows: impurity of the predictions times mean uncertainty (RIPU), in pixels of the image; of
        those alike, as all are where one class alone is predicted, the more uncertain."""
        if not count:
            return ()
        h, w = self.uncertainty.shape
        scale = (image[0] / h, image[1] / w)
        pixels = side or max(1, min(image) // REGION_SHARE)
        window = tuple(min(n, max(1, round(pixels / s))) for n, s in zip((h, w), scale))
        size = (window[0], window[1])
        scores = aq.region_scores(self.probs, size, uncertainty=self.uncertainty)
        found = []
        for box in aq.choose_regions(scores, size, count, ties=aq.window_means(self.uncertainty, size)):
            # All edges are rounded alike, so that squares that share no cell share no pixel.
            top, bottom = (min(image[0], round(y * scale[0])) for y in (box.top, box.top + box.height))
            left, right = (min(image[1], round(x * scale[1])) for x in (box.left, box.left + box.width))
            found.append(Region(top, left, max(1, bottom - top), max(1, right - left), box.score))
        return tuple(found)

    def show(self, row: Suggestion, pixels: np.ndarray) -> Shown:
        """The image as the sheet wants it."""
        ids = self.probs.argmax(0).cpu().numpy()
        boxes = [(g.top, g.left, g.height, g.width) for g in row.regions]
        return Shown.of(
            f"{row.rank}  {shown(row.name)}", f"{row.score:.3g}", pixels, ids, self.uncertainty.cpu().numpy(), boxes
        )


class _Eye:
    """One or two networks that look at images."""

    def __init__(self, model: Model, other: Segmenter | None, by: str) -> None:
        self.model, self.by = model, by
        self.other = None if other is None else other.to(model.device).eval()
        if other is not None and len(other.classes) != len(model.classes):
            raise MaskwrightError(
                f"a second network of {len(other.classes)} classes", f"{len(model.classes)} as the first"
            )
        if other is not None and (other.naming is None) != (model.segmenter.naming is None):
            raise MaskwrightError(
                "two networks of which one has named clusters", "both, as void is one more answer of it",
                "give the second by model.rename too, or choose another --by",
            )  # fmt: skip

    def seen(self, image: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the input that an image (H, W) becomes."""
        preprocess = self.model.segmenter.preprocess
        size = preprocess.target_size(image)
        if max(size) > LONG_SIDE:
            m, scale = preprocess.multiple_of, LONG_SIDE / max(size)
            size = (max(1, round(size[0] * scale / m)) * m, max(1, round(size[1] * scale / m)) * m)
        return size

    def shrunk(self, pool: Dataset) -> list[str]:
        """What to say where images are much larger than those trained on, which are looked at whole."""
        sizes = [size for size in threaded(lambda i: image_size(pool, i), range(len(pool))) if size is not None]
        larger = sum(much_larger(self.model.segmenter, size, self.seen(size)) for size in sizes)
        trained = trained_size(self.model.segmenter)
        if not larger or trained is None or self.by == "random":
            return []
        return [
            f"{larger} of {len(pool)} images without a mask are much larger than those trained on ({trained[0]} x "
            f"{trained[1]}) and are looked at whole, shrunk: small things count little; cut into images of that size "
            "they would be suggested piece by piece"
        ]

    def _input(self, pixels: np.ndarray) -> Tensor:
        size = self.seen((pixels.shape[0], pixels.shape[1]))
        return self.model.segmenter.preprocess.apply(pixels, size)[None].to(self.model.device)

    @torch.inference_mode()
    def look(self, pixels: np.ndarray) -> _Look:
        """What the networks say of an image, uint8 (H, W, 3)."""
        x = self._input(pixels)
        segmenter = self.model.segmenter
        features = segmenter.features(x)
        probs = _probabilities(segmenter, features, x)
        other = self.other
        apart = None if other is None else aq.disagreement(probs, _probabilities(other, other.features(x), x))
        if self.by == "disagreement" and apart is not None:
            unsure = apart
        else:
            unsure = {"margin": aq.margin, "confidence": aq.least_confidence}.get(self.by, aq.entropy)(probs)
        return _Look(probs, unsure, apart, _pooled(features))

    @torch.inference_mode()
    def vector(self, pixels: np.ndarray) -> Tensor:
        """(D,) of an image, of unit length."""
        return _pooled(self.model.segmenter.features(self._input(pixels)))


def _probabilities(segmenter: Segmenter, features: Any, x: Tensor) -> Tensor:
    """(C, h, w) of an input (1, 3, H, W) with its features; of classes made of clusters one more, void, at the end."""
    size = [max(1, -(-n // CELL)) for n in x.shape[-2:]]
    logits = segmenter.told_apart(segmenter.decode(features))
    probs = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)[0].softmax(0)
    return probs if segmenter.naming is None else segmenter.naming.join(probs)


def _pooled(features: Any) -> Tensor:
    """Mean of the deepest map, of unit length, on the CPU."""
    deepest = features if isinstance(features, Tensor) else features[-1]
    return F.normalize(deepest[0].float().mean((-2, -1)), dim=0).cpu()


def second_network(segmenter: Segmenter, parts: Mapping[str, Any]) -> Segmenter | None:
    """The other network of a training: the first of its modules, the teacher before others, that has the segmenter's
    tensors with other values of its parameters; batch-norm statistics are retaken after training and tell nothing.
    Of a run that chose its iterate by held-out images neither student nor teacher counts.

    Args:
        segmenter: the network that the run kept.
        parts: of the training's checkpoint, by name; those called `module.NAME` are states of modules.

    Returns:
        A copy of the segmenter with the other weights, or None where there are none.
    """
    mine, learned = segmenter.state_dict(), dict(segmenter.named_parameters())
    names = [n for n in parts if n.startswith("module.")]
    if "extra.selection" in parts:  # the kept one is an iterate of these modules: the last one is no other network
        names = [n for n in names if n not in ("module.network", "module.teacher")]
    for name in sorted(names, key=lambda n: n != "module.teacher"):
        theirs = {k.removeprefix("module."): v for k, v in parts[name].items() if isinstance(v, Tensor)}
        if any(k not in theirs or theirs[k].shape != v.shape for k, v in mine.items()):
            continue
        if all(torch.equal(theirs[k].to(v), v) for k, v in learned.items()):
            continue
        other = copy.deepcopy(segmenter)
        other.load_state_dict({k: theirs[k] for k in mine})
        return other
    return None

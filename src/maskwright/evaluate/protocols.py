"""The protocols by which predictions are judged, and the one function that judges a folder by any of them.

A protocol says how predicted ids become classes and which figures are the point. Whatever the protocol,
counts are summed over the whole data set, pixels are compared at the size of the truth, and ignored pixels
are dropped. Figures of different protocols, or of one many-to-one protocol with different K, do not compare.

Legend: K predicted ids, C classes, (H, W) image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.reading import Reading
from maskwright.errors import MaskwrightError, unknown
from maskwright.evaluate.judging import judge
from maskwright.evaluate.luss import LussMatching
from maskwright.evaluate.scores import Scores, class_names, hash_names
from maskwright.ops import matching as match

Progress = Callable[[int, int], object]

_LOOKAHEAD = 8


@dataclass(frozen=True)
class Protocol:
    """One way to judge.

    Attributes:
        name: what `--protocol` takes.
        matching: how predicted ids become classes.
        description: what the figures mean and where they are used.
        match: counts (K, C) to the class of each id (K,), -1 for none; None for protocols without matching on
            counts.
    """

    name: str
    matching: str
    description: str
    match: Callable[[np.ndarray], Any] | None = None


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("direct", "none: ids are classes", "Supervised, semi- and weakly supervised, adapted models."),
        Protocol(
            "hungarian",
            "one-to-one, most right pixels (Hungarian on counts); unmatched ids count as wrong",
            "Unsupervised segmentation as IIC, PiCIE and STEGO judge it; fitted on the judged images.",
            match.hungarian,
        ),
        Protocol(
            "hungarian_iou",
            "one-to-one, largest sum of IoU (Hungarian on IoU); unmatched ids count as wrong",
            "Unsupervised segmentation as MaskContrast, Deep Spectral Methods and Leopart (K = C) judge it.",
            match.hungarian_iou,
        ),
        Protocol(
            "majority",
            "many-to-one, each id its most frequent class",
            "Over-clustering as IIC judges it. Rises with K: one id a pixel would give 100 %.",
            match.majority,
        ),
        Protocol(
            "majority_iou",
            "many-to-one, each id the class with the largest IoU",
            "Over-clustering as MaskContrast and Leopart judge it. Rises with K.",
            match.majority_iou,
        ),
        Protocol(
            "precision",
            "many-to-one, each id the class with the largest precision",
            "Over-clustering as Leopart's headline figures judge it. Rises with K.",
            match.precision,
        ),
        Protocol(
            "luss",
            "one-to-one by images together (image-level Hungarian), 0 stays 0",
            "The ImageNet-S benchmark: mIoU over C + 1 ids, boundary mIoU, sizes, image accuracy, F-measure.",
        ),
        Protocol(
            "saliency",
            "none: id 1 is the foreground",
            "Salient objects: F-measure (beta squared 0.3), IoU and mean absolute error of binary masks.",
        ),
    )
}


def protocol_named(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        MaskwrightError: an unknown name, with the nearest one.
    """
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def evaluate_arrays(
    pairs: Iterable[tuple[Any, Any]],
    classes: int | Sequence[str],
    protocol: str = "direct",
    *,
    ignore: int | Sequence[int] | None = None,
    matching: Mapping[int, int] | LussMatching | None = None,
    other: bool | None = None,
) -> Scores:
    """Judges predictions held in memory.

    Args:
        pairs: (prediction, truth), integer ids (H, W) each; gone through twice for "luss".
        classes: C or the class names.
        protocol: a name of `PROTOCOLS`.
        ignore: true ids that are dropped; None means 255 in 8-bit and 65535 in 16-bit masks (and 1000 for
            "luss").
        matching: class of each predicted id found on another split (`Scores.mapping`), used instead of
            matching here.
        other: for "luss", whether class 0 of the truth means "other"; None looks at its name. Without, ids
            move up by one, because the benchmark keeps 0 for "other".

    Returns:
        The scores.

    Raises:
        MaskwrightError: shapes differ, ids are out of range, or there is no image.
    """
    held = [(str(i), np.asarray(p), np.asarray(t)) for i, (p, t) in enumerate(pairs)]
    return judge(lambda: iter(held), class_names(classes), protocol_named(protocol), ignore, matching, other, [])


def evaluate_folder(
    predictions: str | Path,
    truth: Any,
    protocol: str = "direct",
    split: str | None = None,
    *,
    classes: int | Sequence[str] | None = None,
    ignore: int | Sequence[int] | None = None,
    matching: Mapping[int, int] | LussMatching | None = None,
    other: bool | None = None,
    allow_missing: bool = False,
    progress: Progress | None = None,
    reading: Reading | None = None,
    predicted: Reading | None = None,
) -> Scores:
    """Judges a folder of index PNGs against a data set.

    Args:
        predictions: folder with NAME.png for every image, of the size of its truth; where all names begin with a
            split's folder, as of ImageNet-S, also without it (WNID/NAME.png), as the benchmark's tools write them.
        truth: a `Dataset`, a dataset folder, "layout:PATH", or a folder of masks alone.
        protocol: a name of `PROTOCOLS`.
        split: only the images of this split of the truth.
        classes: C or the class names, where the truth has no class table.
        ignore, matching, other: as in `evaluate_arrays`.
        allow_missing: leaves out images without a prediction instead of raising; the scores say how many.
        progress: called with (done, total) after each image.
        reading: what was said of the values of the truth; nothing if None.
        predicted: what was said of the values of the predictions; nothing if None.

    Returns:
        The scores. Masks read are noted in the truth's ledger for the purpose "evaluate"; images of the truth
        without a mask are left out.

    Raises:
        MaskwrightError: an unknown protocol, missing predictions, no masks, sizes that differ, ids out of
            range.
    """
    chosen = protocol_named(protocol)
    folder = Path(predictions)
    if not folder.is_dir():
        raise MaskwrightError(f"no folder {folder}", "a folder of index PNGs named as the images", "predict first")
    source = _open_truth(truth, split, reading or Reading())
    present = [(name, i) for i, name in enumerate(source.names) if source.has_mask(i)]
    if not present:
        raise MaskwrightError(
            f"no masks among the {len(source.names)} images of the truth",
            "masks/NAME.png for at least one",
            "add masks",
        )
    file_of = _prediction_files(folder, [name for name, _ in present])
    judged = [(name, i) for name, i in present if file_of[name].is_file()]
    missing = len(present) - len(judged)
    if missing and (not allow_missing or not judged):
        kept = {name for name, _ in judged}
        first = next(name for name, _ in present if name not in kept)
        raise MaskwrightError(
            f"{missing} of {len(present)} predictions are missing in {folder}, the first {first}.png",
            "one index PNG for each image with a mask",
            "predict all of them, name the split, or allow missing ones",
        )
    names = _class_names_of(source, judged, classes, ignore)
    passes = 2 if chosen.name == "luss" and matching is None else 1
    done = [0]

    def pairs(pool: ThreadPoolExecutor) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        paths = iter([file_of[name] for name, _ in judged])
        waiting = [pool.submit(_read_prediction, path) for path in islice(paths, _LOOKAHEAD)]
        for name, i in judged:
            pred = waiting.pop(0).result()
            waiting += [pool.submit(_read_prediction, path) for path in islice(paths, 1)]
            yield name, pred, source.mask(i)
            done[0] += 1
            if progress is not None:
                progress(done[0], passes * len(judged))

    notes = []
    if missing:
        notes.append(f"{missing} of {len(present)} images left out: no prediction")
    if len(present) < len(source.names):
        notes.append(f"{len(source.names) - len(present)} images of the truth have no mask and are left out")
    # Predictions are decoded in a thread of their own, ahead of the truth, which this thread reads.
    with ThreadPoolExecutor(1) as pool, source.ledger.purpose("evaluate"):
        scores = judge(lambda: pairs(pool), names, chosen, ignore, matching, other, notes)
    return replace(scores, split=split, names_hash=hash_names(name for name, _ in judged))


def _prediction_files(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Where the prediction of each image lies: NAME.png, or without the first folder of all names where none does."""
    whole = {name: folder / f"{name}.png" for name in names}
    tails = {name: name.partition("/")[2] for name in names}
    if any(path.is_file() for path in whole.values()) or not all(tails.values()):
        return whole
    below = {name: folder / f"{tail}.png" for name, tail in tails.items()}
    # Two splits may share a tail: then it does not say which image is meant.
    if len(set(tails.values())) < len(names) or not any(path.is_file() for path in below.values()):
        return whole
    return below


def _read_prediction(path: Path) -> np.ndarray:
    from maskwright.data.masks import read_mask, read_mask_rg

    try:
        return read_mask(path)
    except MaskwrightError:
        # Submissions to the ImageNet-S benchmark are RGB files with id = R + 256 G and an empty blue channel.
        try:
            return read_mask_rg(path)
        except MaskwrightError:
            pass
        raise


class _MaskFolder:
    """A folder of masks alone, with what an evaluation asks of a `Dataset`."""

    def __init__(self, folder: Path) -> None:
        from maskwright.data.ledger import Ledger

        self._paths = {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*.png"))}
        self.names = list(self._paths)
        self.classes: Any = None
        self.ledger = Ledger()
        table = folder.parent / "classes.txt"
        if table.is_file():
            from maskwright.data.classes import read_classes

            self.classes = read_classes(table)

    def has_mask(self, i: int) -> bool:
        return True

    def mask(self, i: int) -> np.ndarray:
        from maskwright.data.masks import read_mask

        self.ledger.note("masks", self.names[i])
        return read_mask(self._paths[self.names[i]])


def _open_truth(truth: Any, split: str | None, reading: Reading) -> Any:
    if not isinstance(truth, str | Path):
        opened = truth if reading == Reading() else truth.with_reading(reading)
        return opened.split(split) if split else opened
    path = Path(truth)
    parts = [(path / name).is_dir() for name in ("images", "masks")]
    if path.is_dir() and not any(parts) and path.name == "masks":
        if split is None:
            return _MaskFolder(path)
        path = path.parent  # splits and classes lie beside the masks
    elif path.is_dir() and not any(parts) and split is None and any(path.glob("*.png")):
        return _MaskFolder(path)
    from maskwright.data.layouts import open_data

    opened = open_data(str(path if path.is_dir() else truth), reading)
    return opened.split(split) if split else opened


def _class_names_of(
    source: Any,
    judged: list[tuple[str, int]],
    classes: int | Sequence[str] | None,
    ignore: int | Sequence[int] | None,
) -> list[str]:
    if classes is not None:
        return class_names(classes)
    if source.classes is not None:
        return list(source.classes.names)
    highest = 0
    with source.ledger.purpose("evaluate"):
        for _, i in judged:
            ids = source.mask(i)
            dropped = ignore if ignore is not None else (255 if ids.dtype.itemsize == 1 else 65535)
            kept = ids[~np.isin(ids, dropped)]
            highest = max(highest, int(kept.max()) if kept.size else 0)
    return class_names(highest + 1)

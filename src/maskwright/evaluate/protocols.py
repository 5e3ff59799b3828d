"""The protocols by which predictions are judged, and the one function that judges a folder by any of them.

A protocol says how predicted ids become classes and which figures are the point. Whatever the protocol,
counts are summed over the whole data set, pixels are compared at the size of the truth, and ignored pixels
are dropped. Figures of different protocols, or of one many-to-one protocol with different K, do not compare.

Legend: K predicted ids, C classes, (H, W) image size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.annotations.recognising import recognised
from maskwright.data.examining.findings import some
from maskwright.data.examining.reading import Reading
from maskwright.data.examining.understanding import highest_id, understand
from maskwright.data.folders.folder import Dataset, Item
from maskwright.data.folders.recognise import recognise
from maskwright.data.folders.scan import Folder, is_regular, names_below, same_form
from maskwright.data.layouts import open_data
from maskwright.data.masking.classes import read_classes
from maskwright.data.masking.label_check import check_labels
from maskwright.data.masking.label_rules import LabelRule
from maskwright.data.masking.label_values import binary_finding
from maskwright.data.masking.masks import read_mask_rg, read_stored
from maskwright.data.masking.survey import survey_masks
from maskwright.data.trust.files import file_for
from maskwright.data.trust.identity import label_identity
from maskwright.data.trust.photographs import Photographs
from maskwright.errors import MaskwrightError, unknown
from maskwright.evaluate.judging import judge
from maskwright.evaluate.luss import LussMatching
from maskwright.evaluate.scores import Scores, class_names, hash_names
from maskwright.evaluate.seen import seen_notes, without_seen
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

    @property
    def counts(self) -> bool:
        """Whether its figures are those of counts (K, C), so that a class can be left out of them."""
        return self.match is not None or self.name == "direct"


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
        Protocol(
            "either_polarity",
            "ids 0 and 1 may change places: in each image, and in all images at once",
            "Two regions without a foreground: accuracy and IoU as ReDO judges them, and of one polarity for all.",
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
    if ignore is None and len(class_names(classes)) > 1:
        asked = binary_finding({n: _values_of(t) for n, _, t in held if t.dtype == np.uint8}, 255, "ignore=")
        if asked is not None:
            raise MaskwrightError(
                asked.message, "ids", "give the object as 1, or pass ignore=255 if 255 means no class"
            )
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
    exclude: Sequence[Photographs] = (),
    trained: Sequence[Photographs] = (),
    predicted_names: Sequence[str] | None = None,
    by_name: bool = False,
    without: str | Iterable[str] = (),
) -> Scores:
    """Judges a folder of index PNGs against a data set.

    Args:
        predictions: folder with NAME.png for every image, of the size of its truth; where all names begin with a
            split's folder, as of ImageNet-S, also without it (WNID/NAME.png), as the benchmark's tools write them. A
            store of pseudo masks (RUN/seeds, with `masks/` and `confidence/`) is judged on the images that it holds.
        truth: a `Dataset`, a dataset folder, "layout:PATH", or a folder of masks alone.
        protocol: a name of `PROTOCOLS`.
        split: only the images of this split of the truth.
        classes: C or the class names, where the truth has no class table.
        ignore, matching, other: as in `evaluate_arrays`.
        allow_missing: leaves out images without a prediction instead of raising; the scores say how many.
        progress: called with (done, total) after each image.
        reading: what was said of the values of the truth; nothing if None.
        predicted: what was said of the values of the predictions; nothing if None.
        exclude: photographs that these runs saw are left out, and counted in the notes.
        trained: the notes say how many of the photographs judged these runs saw.
        predicted_names: of the predicted ids, where they are known. Under "direct" the same name must not stand at
            another id of the truth, unless `by_name` or `predicted` says how ids are meant.
        by_name: under "direct" a predicted id is the truth's class of the same name.
        without: names of the truth's classes that are left out of all figures with their true pixels, as those that
            nothing taught; each a name, or several with commas between.

    Returns:
        The scores. Masks read are noted in the truth's ledger for the purpose "evaluate"; images of the truth
        without a mask are left out.

    Raises:
        MaskwrightError: an unknown protocol, missing predictions, no masks, sizes that differ, ids out of
            range.
    """
    chosen = protocol_named(protocol)
    texts = [without] if isinstance(without, str) else list(without)
    if texts and not chosen.counts:
        raise MaskwrightError(
            f"--without {texts[0]} with --protocol {protocol}", "one whose figures are of counts by class, as direct",
            "leave one of the two out",
        )  # fmt: skip
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
    present, notes = without_seen(source, present, exclude)
    if is_store := _is_store(folder):
        folder = folder / "masks"
    found, spare = _predictions_below(folder, [name for name, _ in present])
    judged = [(name, i) for name, i in present if name in found]
    missing = len(present) - len(judged)
    if missing and not ((allow_missing or is_store) and judged):
        kept = {name for name, _ in judged}
        lost = next(name for name, _ in present if name not in kept)
        first = file_for(folder, lost, ".png").relative_to(folder).as_posix()
        raise MaskwrightError(
            f"{missing} of {len(present)} predictions are missing in {folder}, the first {first}",
            "one index PNG for each image with a mask",
            "add --allow-missing to leave their images out, or --split to judge a part, or predict all of them"
            if judged
            else "name the folder of the masks",
        )
    notes += [*_left_out(source, present, judged, spare), *seen_notes(source, judged, trained)]
    # Only masks that are judged are looked at.
    source = understand(source.subset(i for _, i in judged), masks=True, images=False)
    notes += source.notices
    judged = [(name, i) for i, (name, _) in enumerate(judged)]
    rule, said = _prediction_rule(folder, {name: found[name] for name, _ in judged}, source, predicted or Reading())
    notes += said
    values: dict[str, frozenset[int]] = {}
    grey: dict[str, None] = {}  # predictions that hold their ids in three equal channels
    names = _class_names_of(source, judged, classes, ignore)
    left = classes_without(texts, names)
    if by_name or (chosen.name == "direct" and matching is None and predicted_names and source.classes is not None):
        joined, said = joined_by_name(predicted_names, names, chosen, by_name, predicted or Reading())
        matching = joined if by_name else matching
        notes += said
    passes = 2 if chosen.name == "luss" and matching is None else 1
    done = [0]

    def pairs(pool: ThreadPoolExecutor) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        paths = iter([found[name] for name, _ in judged])
        waiting = [pool.submit(_read_prediction, path, rule) for path in islice(paths, _LOOKAHEAD)]
        for name, i in judged:
            pred, values[name], equal = waiting.pop(0).result()
            if equal:
                grey.setdefault(name)
            waiting += [pool.submit(_read_prediction, path, rule) for path in islice(paths, 1)]
            yield name, pred, source.mask(i)
            done[0] += 1
            if progress is not None:
                progress(done[0], passes * len(judged))

    # Predictions are decoded in a thread of their own, ahead of the truth, which this thread reads.
    with ThreadPoolExecutor(1) as pool, source.ledger.purpose("evaluate"):
        scores = judge(lambda: pairs(pool), names, chosen, ignore, matching, other, notes, left)
    _check_predictions(values, predicted or Reading(), folder, found)
    if by_name:
        scores = replace(scores, matching="by name: an id is the truth's class of the same name")
    if grey:
        scores.notes.append(
            f"{len(grey)} predictions hold their ids in three equal channels and are read so ({some(list(grey))})"
        )
    return replace(
        scores, split=split, names_hash=hash_names(name for name, _ in judged), labels_hash=_labels_hash(source)
    )


def classes_without(given: Sequence[str], names: Sequence[str]) -> list[int]:
    """The ids of classes that are to be left out.

    Args:
        given: class names, or several with commas between.
        names: of the truth's classes.

    Raises:
        MaskwrightError: an unknown name, or no class is left.
    """
    wanted = [name for text in given for name in ([text] if text in names else map(str.strip, text.split(",")))]
    for name in wanted:
        if name not in names:
            raise unknown("class", name, names)
    found = sorted({names.index(name) for name in wanted})
    if found and len(found) == len(names):
        raise MaskwrightError(
            f"--without {','.join(names)}", "at least one class that is judged", "leave one of them in"
        )
    return found


def joined_by_name(
    predicted: Sequence[str] | None, true: Sequence[str], protocol: Protocol, wanted: bool, reading: Reading
) -> tuple[dict[int, int], list[str]]:
    """The class of the truth for each predicted id, -1 for none, and what is to be said.

    Args:
        predicted: names of the predicted ids, where they are known.
        true: names of the truth's classes.
        protocol: "direct" alone has ids that are classes.
        wanted: ids are matched by name; else they are classes as they stand.
        reading: "ids" says that they are, whatever their names.

    Raises:
        MaskwrightError: a name that both have stands at different ids, and nothing says which counts; or names are
            wanted and not known, or none is the same.
    """
    if wanted and protocol.name != "direct":
        raise MaskwrightError(f"--by-name with --protocol {protocol.name}", "direct", "leave one of them out")
    if not predicted:
        raise MaskwrightError(
            "predictions whose class names are not known", "masks that predict wrote with a run's model",
            "leave --by-name out, or predict again",
        )  # fmt: skip
    places = {name.casefold(): i for i, name in enumerate(true)}
    joined = {i: places.get(name.casefold(), -1) for i, name in enumerate(predicted)}
    lost = [name for i, name in enumerate(predicted) if joined[i] < 0]
    if wanted and len(lost) == len(predicted):
        raise MaskwrightError(
            f"no class of the predictions ({some(lost)}) is one of the truth ({some(list(true))})",
            "names that both have", "leave --by-name out, or take a protocol that matches, as --protocol hungarian",
        )  # fmt: skip
    if wanted:
        return joined, [f"not a class of the truth, and wrong where they are predicted: {some(lost)}"] if lost else []
    moved = [i for i, place in joined.items() if place not in (-1, i)]
    if moved and reading.how != "ids":
        first = moved[0]
        there = f"{true[first]} in the truth" if first < len(true) else "none of the truth's"
        here = f"id {first} is {predicted[first]} in the predictions and {there}"
        raise MaskwrightError(
            f"classes in another order than the truth's: {here}",
            "ids that mean the same",
            "add --by-name to match them by their names, or --predicted-labels ids to judge the ids as they stand",
        )
    other = [i for i, name in enumerate(predicted[: len(true)]) if joined[i] != i]
    if not other:
        return joined, []
    pair = f"id {other[0]} is {predicted[other[0]]} in the predictions and {true[other[0]]} in the truth"
    return joined, [f"ids are judged as they stand, though {pair}"]


def _labels_hash(source: Dataset) -> str:
    """Of the contents of the masks judged and of the rule that makes ids of them."""
    masks = label_identity(source, masks=True, tags=False, captions=False).summary()["masks"]
    rule = source.rule
    read = None if rule is None else (rule.labels, rule.void, rule.levels, rule.colours)
    return hashlib.sha256(json.dumps([masks, read]).encode()).hexdigest()


def _is_store(folder: Path) -> bool:
    """Whether a folder is a store of pseudo masks (`LabelStore`), which says itself which images it labels."""
    return (folder / "masks").is_dir() and (folder / "confidence").is_dir()


def _without_first_folder(names: Sequence[str]) -> dict[str, str]:
    """{name below the first folder: name} where every name has one and these differ; else empty.

    Splits that share a tail would not say which image is meant.
    """
    tails = {name.partition("/")[2]: name for name in names}
    return tails if len(tails) == len(names) and all(tails) else {}


def _read_prediction(path: Path, rule: LabelRule) -> tuple[np.ndarray, frozenset[int], bool]:
    """A prediction's ids, its distinct values where those are to be watched (else empty), and whether it is grey in
    three equal channels."""
    try:
        stored = read_stored(path)
        ids = rule.ids(stored, path)
    except MaskwrightError as error:
        # Submissions to the ImageNet-S benchmark are RGB files with id = R + 256 G and an empty blue channel.
        try:
            return read_mask_rg(path), frozenset(), False
        except MaskwrightError:
            raise _predicted(error, error.found) from error
    if ids.dtype != np.uint8:
        return ids, frozenset(), stored.equal
    held = _values_of(ids)
    return ids, held, stored.equal and held != {0}


def _values_of(ids: np.ndarray) -> frozenset[int]:
    """Distinct values of uint8 (H, W)."""
    return frozenset(np.flatnonzero(np.bincount(ids.ravel(), minlength=256)).tolist())


def _check_predictions(
    values: Mapping[str, frozenset[int]], predicted: Reading, folder: Path, found: Mapping[str, Path]
) -> None:
    """Asks where predictions hold 255 that may be the object, or values that look drawn."""
    narrow = {name: v for name, v in values.items() if v}
    if predicted != Reading() or not narrow:
        return
    asked = binary_finding(narrow, 255, "--predicted-labels")
    if asked is not None:
        raise asked.error()
    if any(255 in v and max(v - {255}, default=0) >= 128 for v in narrow.values()):
        data = Dataset(folder, [Item(name, found[name], found[name]) for name in narrow])
        surveys = survey_masks(data)
        counts = [(v, n) for survey in surveys.values() for v, n in survey.values.items()]
        ends = sum(n for v, n in counts if v < 16 or v >= 240)
        drawn = 2 * ends > sum(n for _, n in counts)  # else as many clusters
        for seen in check_labels(data, surveys).findings:
            if seen.kind == "drawn-levels" or (seen.kind == "smooth-edges" and drawn):
                raise _predicted(seen.error(), f"predictions in {folder}: {seen.message}")


def _predicted(error: MaskwrightError, found: str) -> MaskwrightError:
    """An error on masks as one on predictions, whose values have an option of their own."""
    repair = error.repair.replace("--labels", "--predicted-labels")
    return MaskwrightError(found, error.expected, repair.replace("beside classes.txt", "among the predictions"))


def _prediction_rule(
    folder: Path, paths: Mapping[str, Path], truth: Dataset, predicted: Reading
) -> tuple[LabelRule, Sequence[str]]:
    """How values of predictions become ids, and what is to be said of it."""
    if predicted.how in ("auto", "ids"):
        return LabelRule("ids", predicted.void), ()
    items = [Item(name, path, path) for name, path in paths.items()]
    data = Dataset(folder, items, classes=truth.classes, reading=predicted)
    try:
        data = understand(data, masks=True, images=False)
    except MaskwrightError as error:
        raise _predicted(error, f"predictions in {folder}: {error.found}") from error
    assert data.rule is not None
    return data.rule, [f"predictions: {sentence}" for sentence in data.notices]


def _predictions_below(folder: Path, names: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Index PNG of a folder by the name of the image that they are of, and the names of files of no such image.

    Where none lies at NAME.png, predictions may lie without the first folder of all names (directly under WNID/).
    """
    files = {same_form(name): path for name, path in names_below(Folder(folder), frozenset({".png"})).found.items()}
    found: dict[str, Path] = {}
    for name in names:
        file = same_form(file_for(folder, name, ".png").relative_to(folder).with_suffix("").as_posix())
        if file in files:
            found[name] = files.pop(file)
    if not found:
        for tail, name in _without_first_folder(names).items():
            if same_form(tail) in files:
                found[name] = files.pop(same_form(tail))
    return found, list(files)


def _left_out(
    source: Dataset,
    present: Sequence[tuple[str, int]],
    judged: Sequence[tuple[str, int]],
    spare: Sequence[str],
) -> list[str]:
    """What is not judged, counted and named; masks without an image are among the notices of the truth."""
    notes = []
    kept = {name for name, _ in judged}
    lost = [name for name, _ in present if name not in kept]
    if lost:
        notes.append(f"{len(lost)} of {len(present)} images left out: no prediction ({some(lost)})")
    bare = [name for i, name in enumerate(source.names) if not source.has_mask(i)]
    if bare:
        notes.append(f"{len(bare)} images of the truth have no mask and are left out ({some(bare)})")
    known = {same_form(name) for name in (*source.known_names, *(name for name, _ in source.skipped))}
    strange = [name for name in spare if name not in known]
    if strange:
        notes.append(f"{len(strange)} files of the predictions match no image of the truth ({some(strange)})")
    return notes


def _mask_folder(folder: Path, reading: Reading) -> Dataset:
    """A folder of masks alone as a dataset: each mask stands for its image too."""
    table = folder.parent / "classes.txt"
    notices: list[str] = []
    classes = read_classes(table, notices) if is_regular(table) else None
    items = [Item(name, path, path) for name, path in names_below(Folder(folder), frozenset({".png"})).found.items()]
    return Dataset(folder, items, classes=classes, reading=reading, notices=notices)


def _bare(folder: Path) -> bool:
    """Whether a folder holds index PNG alone, no images with masks beside them."""
    if not any(folder.glob("[!.]*.png")):
        return False
    here = recognise(folder)
    return not here.masks and not recognised(folder, here)


def _open_truth(truth: Any, split: str | None, reading: Reading) -> Dataset:
    if not isinstance(truth, str | Path):
        opened = truth if reading == Reading() else truth.with_reading(reading)
        return opened.split(split) if split else opened
    path = Path(truth)
    parts = [(path / name).is_dir() for name in ("images", "masks")]
    if path.is_dir() and not any(parts) and path.name == "masks":
        if split is None:
            return _mask_folder(path, reading)
        path = path.parent  # splits and classes lie beside the masks
    elif path.is_dir() and not any(parts) and split is None and _bare(path):
        return _mask_folder(path, reading)
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
    with source.ledger.purpose("evaluate"):
        if ignore is None:
            return class_names(highest_id(source) + 1)
        highest = 0
        for _, i in judged:
            ids = source.mask(i)
            kept = ids[~np.isin(ids, ignore)]
            highest = max(highest, int(kept.max()) if kept.size else 0)
    return class_names(highest + 1)

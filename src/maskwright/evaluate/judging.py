"""The judges behind the table of protocols: counts, the ImageNet-S benchmark, salient objects.

Each goes through (name, prediction, truth) and gives `Scores`. Legend: K predicted ids, C classes, (H, W)
image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from maskwright.data.masking.label_rules import ignore_of
from maskwright.errors import MaskwrightError
from maskwright.evaluate import metrics
from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.evaluate.luss import LussEvaluator, LussMatcher, LussMatching
from maskwright.evaluate.saliency import BinaryForeground, EitherPolarity
from maskwright.evaluate.scores import Scores, scores_from_counts

if TYPE_CHECKING:
    from maskwright.evaluate.protocols import Protocol

Pairs = Callable[[], Iterator[tuple[str, np.ndarray, np.ndarray]]]

# A table of counts above this (1 GiB of int64) means that ids are not cluster numbers.
_MOST_CELLS = 1 << 27
_OTHER_NAMES = {"other", "others", "background", "bg", "unlabelled", "unlabeled", "void", "none", "ground"}


def is_other(name: str) -> bool:
    """Whether a class of this name is what the LUSS benchmark calls "other"; the rule of `evaluate --protocol luss`."""
    return name.strip().lower() in _OTHER_NAMES


def judge(
    pairs: Pairs,
    names: list[str],
    protocol: Protocol,
    ignore: int | Sequence[int] | None,
    matching: Mapping[int, int] | LussMatching | None,
    other: bool | None,
    notes: list[str],
    without: Sequence[int] = (),
) -> Scores:
    """Judges by `protocol`; other arguments as in `protocols.evaluate_arrays`, `notes` grows; `without` as of
    `scores_from_counts`, where counts are judged (`protocols.Protocol.counts`)."""
    if protocol.name == "luss":
        return _judge_luss(pairs, names, protocol, ignore, matching, other, notes)
    if protocol.name in ("saliency", "either_polarity"):
        return _judge_saliency(pairs, names, protocol, ignore, notes)
    return _judge_counts(pairs, names, protocol, ignore, matching, notes, without)


def _check(name: str, pred: np.ndarray, true: np.ndarray) -> None:
    if pred.shape != true.shape:
        raise MaskwrightError(
            f"prediction {name} has shape {pred.shape}, its truth {true.shape}",
            "the same height and width",
            "predict these images again, or resize the ids with nearest neighbour",
        )


def _largest_id(pred: np.ndarray) -> int:
    """The largest id that is not the type's own "no class" (255 in 8 bits, 65535 above); -1 for none."""
    nothing = ignore_of(pred)
    highest = int(pred.max()) if pred.size else -1
    if highest == nothing:
        rest = pred[pred != nothing]
        highest = int(rest.max()) if rest.size else -1
    return highest


def _judge_counts(
    pairs: Pairs,
    names: list[str],
    protocol: Protocol,
    ignore: int | Sequence[int] | None,
    given: Mapping[int, int] | LussMatching | None,
    notes: list[str],
    without: Sequence[int],
) -> Scores:
    classes = len(names)
    # The extra row takes pixels whose prediction says "no class": they are wrong, under every protocol.
    matrix = ConfusionMatrix(classes, classes, ignore, extra=True)
    images = 0
    matched = protocol.match is not None or given is not None
    for name, pred, true in pairs():
        _check(name, pred, true)
        largest = _largest_id(pred)
        if largest >= matrix.predicted:
            if not matched:
                repair = "predictions of clusters need a protocol that matches them, as `--protocol hungarian`"
                if largest >= 128:
                    repair = f"add --predicted-labels binary255 if they are drawn in 0 and 255; {repair}"
                raise MaskwrightError(
                    f"prediction {name} has id {largest}", f"0 to {classes - 1}, the {classes} classes", repair
                )
            size = max(largest + 1, min(2 * matrix.predicted, 65535))
            if size * classes > _MOST_CELLS or size > 65535:
                raise MaskwrightError(
                    f"prediction {name} has id {largest}", "cluster numbers from 0", "renumber the ids"
                )
            matrix = matrix.grown(size)
        try:
            matrix.update(pred, true)
        except MaskwrightError as error:
            raise MaskwrightError(f"{name}: {error.found}", error.expected, error.repair) from error
        images += 1
    if not images:
        raise MaskwrightError("no images to evaluate", "at least one prediction with its truth")
    counts = matrix.counts
    counts[:, list(without)] = 0
    used = np.flatnonzero(counts[:-1].any(1))
    if counts[-1].any():
        notes.append(f"{int(counts[-1].sum())} pixels have no predicted class and count as wrong")
    if not matched:
        return scores_from_counts(
            counts,
            names,
            protocol=protocol.name,
            matching=protocol.matching,
            images=images,
            predicted=len(used),
            notes=notes,
            without=without,
        )
    clusters = int(used[-1]) + 1 if used.size else 1
    if given is not None:
        mapping = _given(given, clusters, classes)
        text = "given, found on other images"
    else:
        assert protocol.match is not None
        # Ids that never occur must not take a class from those that do.
        mapping = np.full(clusters, -1, dtype=np.int64)
        mapping[used] = np.asarray(protocol.match(counts[used])) if used.size else -1
        text = protocol.matching
    unmatched = int((mapping[used] < 0).sum())
    if unmatched:
        notes.append(f"{unmatched} of {len(used)} predicted ids are matched to no class")
    whole = np.concatenate([mapping, np.full(len(counts) - clusters, -1)])
    return scores_from_counts(
        metrics.apply_mapping(counts, whole),
        names,
        protocol=protocol.name,
        matching=text,
        images=images,
        predicted=len(used),
        mapping={int(k): int(mapping[k]) for k in used},
        notes=notes,
        without=without,
    )


def _given(given: Mapping[int, int] | LussMatching, clusters: int, classes: int) -> np.ndarray:
    pairs = dict(enumerate(given.mapping.tolist())) if isinstance(given, LussMatching) else dict(given)
    wrong = [c for c in pairs.values() if not -1 <= int(c) < classes]
    if wrong:
        raise MaskwrightError(f"a matching to class {wrong[0]}", f"-1 to {classes - 1}", "find it on this data set")
    # A cluster that did not occur where the matching was found means no class.
    return np.array([int(pairs.get(k, -1)) for k in range(clusters)], dtype=np.int64)


def _judge_luss(
    pairs: Pairs,
    names: list[str],
    protocol: Protocol,
    ignore: int | Sequence[int] | None,
    given: Mapping[int, int] | LussMatching | None,
    other: bool | None,
    notes: list[str],
) -> Scores:
    has_other = is_other(names[0]) if other is None else other
    if not has_other:
        notes.append("the truth has no class for other: its ids moved up by one; predicted id 0 means other")
        names = ["other", *names]
    classes = len(names) - 1

    def shifted() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for name, pred, true in pairs():
            _check(name, pred, true)
            yield name, pred, true if has_other else _moved_up(true, classes, ignore)

    dropped = ignore if has_other else (65535,)
    if given is None:
        matcher = LussMatcher(classes, ignore=dropped)
        for _, pred, true in shifted():
            matcher.update(pred, true)
        found = matcher.matching()
        text = protocol.matching
    else:
        text = "given, found on other images"
        if isinstance(given, LussMatching):
            found = given
        else:
            mapping = [max(0, int(given.get(k, 0))) for k in range(max(given, default=0) + 1)]
            found = LussMatching(np.array(mapping), classes, cost="given")
    evaluator = LussEvaluator(classes, found, ignore=dropped)
    seen = np.zeros(65536, dtype=bool)
    for name, pred, true in shifted():
        try:
            evaluator.update(pred, true)
        except MaskwrightError as error:
            raise MaskwrightError(f"{name}: {error.found}", error.expected, error.repair) from error
        seen[np.unique(pred)] = True
    table = evaluator.compute()
    if not table.images:
        raise MaskwrightError("no images to evaluate", "at least one prediction with its truth")
    used = np.flatnonzero(seen)
    if given is None:
        rule = ", where ties go to the lowest class: these figures hang on that rule" if found.tied else ""
        notes.append(f"{found.tied} of {(used > 0).sum()} predicted ids are tied in the matching{rule}")
    left = int((found.mapping[used[used > 0]] == 0).sum())
    if left:
        notes.append(f"{left} predicted ids above 0 are matched to no class and count as 0 (other)")
    absent = int((table.iou == 0).sum())
    if absent:
        notes.append(f"{absent} of {classes + 1} ids have IoU 0 (absent ones included, as the benchmark has it)")
    extra = {k: v for k, v in table.summary().items() if k != "mIoU"}
    return Scores(
        protocol="luss",
        matching=text,
        miou=table.miou,
        pixel_accuracy=table.pixel_accuracy,
        mean_accuracy=table.mean_accuracy,
        per_class=[{"name": n, "iou": float(x)} for n, x in zip(names, table.iou)],
        mapping={k: int(v) for k, v in enumerate(found.mapping)},
        images=table.images,
        predicted=len(used),
        classes=classes + 1,
        averaging=f"mean over all {classes + 1} ids, other included, absent ones as 0",
        extra=extra,
        notes=notes,
    )


def _moved_up(true: np.ndarray, classes: int, ignore: int | Sequence[int] | None) -> np.ndarray:
    """Truth without "other": ids plus one, ignored ones 65535."""
    ignored = ignore if ignore is not None else ignore_of(true)
    keep = ~np.isin(true, ignored)
    highest = int(true[keep].max()) if keep.any() else 0
    if highest >= classes:
        raise MaskwrightError(
            f"true id {highest} in a mask of {classes} classes",
            f"0 to {classes - 1}",
            "run maskwright doctor on the truth",
        )
    return np.where(keep, true.astype(np.int64) + 1, 65535).astype(np.uint16)


def _judge_saliency(
    pairs: Pairs, names: list[str], protocol: Protocol, ignore: int | Sequence[int] | None, notes: list[str]
) -> Scores:
    either = EitherPolarity() if protocol.name == "either_polarity" else None
    binary = BinaryForeground() if either is None else either
    counts = np.zeros((2, 2), dtype=np.int64)
    images = 0
    for name, pred, true in pairs():
        _check(name, pred, true)
        dropped = ignore if ignore is not None else ignore_of(true)
        valid = ~np.isin(true, dropped)
        held = {"--predicted-labels": _largest_id(pred), "--labels": int(true[valid].max()) if valid.any() else 0}
        for option, largest in held.items():
            if largest > 1:
                what = "prediction" if "predicted" in option else "truth"
                raise MaskwrightError(
                    f"id {largest} in the {what} of {name}",
                    "0 (background) and 1 (foreground)",
                    f"choose --protocol direct for more classes, or add {option} binary255 if the {what} is drawn in 0 "
                    "and 255",
                )
        p, t = pred == 1, true == 1
        binary.update(p, t, valid)
        counts += np.bincount((2 * p + t)[valid], minlength=4).reshape(2, 2)
        images += 1
    if not images:
        raise MaskwrightError("no images to evaluate", "at least one prediction with its truth")
    extra = binary.compute()
    if either is None:
        notes.append("f_measure, iou and mae are means over images, *_pixels are of all pixels together")
    else:
        counts = counts[::-1] if either.turned else counts
        notes.append("means over images; *_either of the better polarity of each (optimistic), all else of one for all")
    return scores_from_counts(
        counts,
        names if len(names) == 2 else ["background", "foreground"],
        protocol=protocol.name,
        matching=protocol.matching,
        images=images,
        extra=extra,
        notes=notes,
    )

"""One look at each mask that may be read: what its file holds, so that a data set's values can be judged together.

A mask is decoded once; afterwards what was seen is remembered by the file's size and time, and a repeat costs a stat.
Nothing is noted in the ledger: the look decides whether values are valid, and nothing is learned from it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.folders.folder import Dataset, Item
from maskwright.data.folders.scan import threaded
from maskwright.data.masking.label_rules import UNKNOWN, LabelRule
from maskwright.data.masking.masks import MaskError, StoredMask, codes_of, colour_of, read_mask, read_stored
from maskwright.data.masking.turned import turn_scores
from maskwright.data.pictures.images import read_header
from maskwright.data.trust.remembered import Remembered
from maskwright.errors import MaskwrightError

MOST_VALUES = 4096
"""Distinct values of a mask that are kept."""
MOST_COLOURS = 512
"""Distinct colours of a colour mask that are kept."""
_SETTLED = 2_000_000_000
"""Nanoseconds after which a file's time tells that it changed again: file systems count in steps."""


@dataclass(frozen=True)
class Problem:
    """Why a mask cannot be read: the doctor's name for it, and the parts of the error."""

    kind: str
    found: str
    expected: str
    repair: str

    def error(self) -> MaskwrightError:
        """The error that reading raises."""
        return MaskwrightError(self.found, self.expected, self.repair)


@dataclass(frozen=True)
class Survey:
    """What one look at a mask showed.

    Attributes:
        size: (H, W) as seen; None where it cannot be read.
        kind: "grey", "palette", "wide", "colour", or "ids" where a layout's own reader gives ids.
        values: pixels of each stored value; of each colour code where the kind is "colour" and the channels differ.
        runs: for each stored value the number of runs it forms along rows or along columns, the larger.
        equal: whether the three channels of a colour mask hold the same; `values` are then those of one.
        cut: whether there are more values than are kept.
        drawn: {entry: colour code} of the entries of a palette that occur.
        wide: whether the values have more than 8 bits.
        problem: why it cannot be read.
        image_size: (H, W) of its image, None where that cannot be read.
        orientation: EXIF orientation of its image.
        turn: how well the mask fits the picture as it is turned and as it is stored; None where only one can be.
    """

    size: tuple[int, int] | None = None
    kind: str = "grey"
    values: dict[int, int] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)
    equal: bool = False
    cut: bool = False
    drawn: dict[int, int] = field(default_factory=dict)
    wide: bool = False
    problem: Problem | None = None
    image_size: tuple[int, int] | None = None
    orientation: int = 1
    turn: tuple[float, float] | None = None

    @property
    def coloured(self) -> bool:
        """Whether it is a colour image whose channels differ."""
        return self.kind == "colour" and not self.equal

    def meaning(self, rule: LabelRule | None) -> dict[int, int]:
        """{stored value: id} under a rule, VOID and UNKNOWN as in `LabelRule.meaning`; None: the values are ids."""
        if not self.values:
            return {}
        listed = np.array(list(self.values), np.int64)
        if rule is None:
            rule = LabelRule()
        if rule.labels == "colours" and self.kind == "palette":
            palette = np.zeros((256, 3), np.uint8)
            for entry, code in self.drawn.items():
                palette[entry] = colour_of(code)
            meant = rule.entries(palette)[listed]
        elif rule.labels == "colours" and not self.coloured:
            meant = rule.meaning((listed >> 8 if self.wide else listed) * 0x010101, wide=False, peak=0)
        else:
            meant = rule.meaning(listed, wide=self.wide, peak=int(listed.max()))
        return dict(zip(listed.tolist(), meant.tolist()))

    def counts(self, rule: LabelRule | None) -> dict[int, int]:
        """Pixels of each id under a rule, VOID among them; of colours and values that it does not know, none."""
        found: dict[int, int] = {}
        if self.coloured and (rule is None or rule.labels != "colours"):
            return found
        for value, meant in self.meaning(rule).items():
            if meant != UNKNOWN:
                found[meant] = found.get(meant, 0) + self.values[value]
        return found

    def to_json(self) -> list[Any]:
        """What is remembered of the mask alone."""
        rows = [[v, n, self.runs.get(v, 0)] for v, n in self.values.items()]
        p = self.problem
        told = None if p is None else [p.kind, p.found, p.expected, p.repair]
        return [self.size, self.kind, rows, self.equal, self.cut, list(self.drawn.items()), self.wide, told]


def _survey_from_json(value: Any) -> Survey | None:
    """What `to_json` gave; None if it is of another shape."""
    try:
        size, kind, rows, equal, cut, drawn, wide, told = value
        return Survey(
            size=None if size is None else (int(size[0]), int(size[1])),
            kind=str(kind),
            values={int(v): int(n) for v, n, _ in rows},
            runs={int(v): int(r) for v, _, r in rows},
            equal=bool(equal),
            cut=bool(cut),
            drawn={int(e): int(c) for e, c in drawn},
            wide=bool(wide),
            problem=None if told is None else Problem(*map(str, told)),
        )
    except (TypeError, ValueError):
        return None


def survey_masks(
    data: Dataset, progress: Callable[[int, int], object] | None = None, *, fresh: bool = False
) -> dict[int, Survey]:
    """Looks at every mask that may be read.

    Args:
        data: the images; masks that this dataset hides are left alone.
        progress: called with (done, total) after each.
        fresh: look at all files again, whatever is remembered of them.

    Returns:
        {place of the image: what was seen}.
    """
    places = [i for i in range(len(data)) if data.has_mask(i)]
    if not places:
        return {}
    with Surveyor(data, fresh=fresh) as surveyor:
        found: dict[int, Survey] = {}
        for i, seen in zip(places, threaded(surveyor.look, places)):
            found[i] = seen
            if progress is not None:
                progress(len(found), len(places))
    return found


class Surveyor:
    """Looks at masks one by one, from several threads; on leaving, what was seen is remembered.

    Args:
        data: the images.
        fresh: look at all files again.
    """

    def __init__(self, data: Dataset, *, fresh: bool = False) -> None:
        self.data, self.fresh = data, fresh
        self._masks = Remembered(f"masks-1{_reader_key(data.readers.mask)}", data.root)
        self._pairs = Remembered("masked-1", data.root)

    def __enter__(self) -> Surveyor:
        return self

    def __exit__(self, *raised: object) -> None:
        self._masks.save()
        self._pairs.save()

    def look(self, i: int) -> Survey:
        """What the mask of image `i` holds, and how it fits its image."""
        item = self.data.items[i]
        assert item.mask is not None
        stored: StoredMask | None = None
        state = _state(item.mask)
        known = None if state is None or self.fresh else _survey_from_json(self._masks.get(item.mask, state))
        if known is None:
            known, stored = survey_mask(item.mask, self.data)
            if state is not None and _is_settled(state):
                self._masks.put(item.mask, state, known.to_json())
        return self._paired(item, known, stored, i, state)

    def _paired(
        self, item: Item, seen: Survey, stored: StoredMask | None, i: int, mask_state: os.stat_result | None
    ) -> Survey:
        if item.image == item.mask or seen.size is None or mask_state is None:
            return seen
        state = _state(item.image)
        if state is None:
            return seen
        stamp = [mask_state.st_size, mask_state.st_mtime_ns]
        known = None if self.fresh else self._pairs.get(item.image, state)
        if known is None or known[3] != stamp:
            try:
                size = self.data.size(i)
                orientation = read_header(item.image).orientation
            except MaskwrightError:
                return seen
            turn = None
            if orientation != 1 and seen.kind != "ids" and seen.size == size:
                turn = turn_scores(item.image, stored or read_stored(item.mask or ""), orientation)
            known = [*size, orientation, stamp, turn]
            if _is_settled(state) and _is_settled(mask_state):
                self._pairs.put(item.image, state, known)
        turned = None if known[4] is None else (float(known[4][0]), float(known[4][1]))
        return replace(seen, image_size=(known[0], known[1]), orientation=known[2], turn=turned)


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_settled(state: os.stat_result) -> bool:
    return time.time_ns() - state.st_mtime_ns > _SETTLED


def _reader_key(reader: Any) -> str:
    """What tells the readers of layouts apart, with the tables that they were given; empty for the plain one."""
    if reader is read_mask:
        return ""
    function, given = reader, ()  # type: Any, Any
    if isinstance(reader, partial):
        function, given = reader.func, (reader.args, sorted(reader.keywords.items()))
    text = f"{function.__module__}.{function.__qualname__} {given!r}"
    return "-" + hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def survey_mask(path: Path, data: Dataset) -> tuple[Survey, StoredMask | None]:
    """Decodes a mask and counts its values; the second is what was decoded, None where that failed."""
    plain = data.readers.mask is read_mask
    try:
        stored = read_stored(path) if plain else StoredMask("ids", data.readers.mask(path))
    except MaskwrightError as error:
        kind = error.kind if isinstance(error, MaskError) else "unreadable-mask"
        return Survey(problem=Problem(kind, error.found, error.expected, error.repair)), None
    height, width = stored.values.shape[:2]
    equal = stored.equal
    if stored.kind == "colour" and not equal:
        values, pixels = _colour_counts(stored.codes())
        cut = len(values) > MOST_COLOURS
        counts = dict(zip(values[:MOST_COLOURS].tolist(), pixels[:MOST_COLOURS].tolist()))
        return Survey((height, width), "colour", counts, cut=cut), stored
    ids = np.ascontiguousarray(stored.values[..., 0]) if equal else stored.values
    table, starts = _counts(ids)
    present = np.flatnonzero(table)
    cut = len(present) > MOST_VALUES
    present = present[:MOST_VALUES]
    palette = stored.palette
    drawn = {} if palette is None else dict(zip(present.tolist(), codes_of(palette[present]).tolist()))
    return Survey(
        size=(height, width),
        kind=stored.kind,
        values=dict(zip(present.tolist(), table[present].tolist())),
        runs=dict(zip(present.tolist(), starts[present].tolist())),
        equal=equal,
        cut=cut,
        drawn=drawn,
        wide=ids.dtype != np.uint8,
    ), stored


def _counts(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each value and its runs along rows or columns, the larger; int64 (256 or 65536,) each."""
    n = 256 if ids.dtype == np.uint8 else 65536
    pixels = np.bincount(ids.ravel(), minlength=n)
    along = np.bincount(ids[:, 0], minlength=n) + np.bincount(ids[:, 1:][ids[:, 1:] != ids[:, :-1]], minlength=n)
    down = np.bincount(ids[0], minlength=n) + np.bincount(ids[1:][ids[1:] != ids[:-1]], minlength=n)
    return pixels, np.maximum(along, down)


def _colour_counts(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour codes that occur and the pixels of each, the commonest first."""
    flat = codes.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))  # masks are mostly runs
    lengths = np.diff(np.append(starts, flat.size))
    values, where = np.unique(flat[starts], return_inverse=True)
    pixels = np.bincount(where, weights=lengths).astype(np.int64)
    order = np.argsort(-pixels, kind="stable")
    return values[order], pixels[order]

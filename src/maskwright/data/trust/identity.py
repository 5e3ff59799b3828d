"""What a run's labels are, by their contents: so that a run is never continued on other labels without a word.

A mask is known by a hash of its file (kept by size and time, so that it is read once), tags and captions by one of
their rows. With a hash for each image it can be told how many changed, and which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.scan import threaded
from maskwright.data.masking.classes import ClassTable
from maskwright.data.trust.artefacts import misfit
from maskwright.data.trust.remembered import Remembered
from maskwright.errors import MaskwrightError

KINDS = ("masks", "tags", "captions")
_DIGITS = 16
_SHAPE = {"kinds": {str: {str: str}}, "classes": ([str], None), "colours": (str, None), "sources?": {str: dict}}


@dataclass(frozen=True)
class LabelIdentity:
    """The labels that a run reads.

    Attributes:
        kinds: {kind: {image: 16 hexadecimal digits}}, of the kinds that are read.
        classes: class names in the order of their ids; None where there are none.
        colours: hash of their colours; None where there are none.
        sources: likewise of the data sets beside the run's own, by name.
    """

    kinds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    colours: str | None = None
    sources: Mapping[str, LabelIdentity] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` reads them back."""
        return {
            "kinds": {kind: dict(sorted(found.items())) for kind, found in self.kinds.items()},
            "classes": None if self.classes is None else list(self.classes),
            "colours": self.colours,
            "sources": {name: labels.to_json() for name, labels in self.sources.items()},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LabelIdentity:
        """What `to_json` gave.

        Raises:
            MaskwrightError: it is of another shape.
        """
        if told := misfit(record, _SHAPE):
            raise MaskwrightError(f"a list of labels whose {told}", "what an earlier run wrote", "choose another --out")
        names = record["classes"]
        return cls(
            record["kinds"],
            None if names is None else tuple(names),
            record["colours"],
            {name: cls.from_json(labels) for name, labels in record.get("sources", {}).items()},
        )

    def summary(self) -> dict[str, Any]:
        """One hash for each kind, for a record that people read."""
        sums: dict[str, Any] = {
            kind: _hash(f"{n}\0{h}" for n, h in sorted(v.items())) for kind, v in self.kinds.items()
        }
        if self.classes is not None:
            sums["classes"] = _hash([*self.classes, self.colours or ""])
        if self.sources:
            sums["sources"] = {name: labels.summary() for name, labels in self.sources.items()}
        return sums

    def changes_since(self, was: LabelIdentity) -> list[str]:
        """What is not as it was, a phrase each ("the masks of 4 images changed (first: p0)").

        Args:
            was: as recorded; a kind that is not in both was not recorded, and is not compared.
        """
        told = [t for kind in self.kinds if kind in was.kinds for t in _told(kind, was.kinds[kind], self.kinds[kind])]
        if self.classes != was.classes:
            told.append(_classes_told(was.classes, self.classes))
        elif self.colours != was.colours:
            told.append("the colours of the classes changed")
        for name in sorted(self.sources.keys() & was.sources.keys()):
            told += [f"in the {name} data {t}" for t in self.sources[name].changes_since(was.sources[name])]
        return told


def label_identity(
    data: Dataset, *, masks: bool, tags: bool, captions: bool, sources: Mapping[str, LabelIdentity] | None = None
) -> LabelIdentity:
    """The identity of a data set's labels. Nothing is noted in the ledger: no label is understood.

    Args:
        data: the images; only masks that may be read count.
        masks: whether masks are read.
        tags: whether tags are.
        captions: whether captions are.
        sources: the identities of the data sets beside it, by name.

    Raises:
        MaskwrightError: a mask file cannot be read.
    """
    kinds: dict[str, dict[str, str]] = {}
    if masks:
        kinds["masks"] = _mask_hashes(data)
    if tags:
        kinds["tags"] = {i.name: _hash(i.tags)[:_DIGITS] for i in data.items if i.tags is not None}
    if captions:
        kinds["captions"] = {i.name: _hash(i.captions)[:_DIGITS] for i in data.items if i.captions}
    others = dict(sources or {})
    table: ClassTable | None = data.stored_classes
    if table is None:
        return LabelIdentity(kinds, sources=others)
    return LabelIdentity(kinds, tuple(table.names), _digest(table.colors.tobytes()).hex(), others)


def _mask_hashes(data: Dataset) -> dict[str, str]:
    known = Remembered("hash-1", data.root)
    paths = [(i.name, i.mask) for i in data.items if i.mask is not None]

    def file_hash(path: Path) -> str:
        try:
            state = path.stat()
            found = known.get(path, state)
            if not isinstance(found, str):
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGITS // 2)).hexdigest()
                known.put(path, state, found)
            return found
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise MaskwrightError(f"cannot read {path}: {reason}", "a mask", "see maskwright doctor") from error

    hashes = list(threaded(file_hash, [path for _, path in paths]))
    known.save()
    return {name: found for (name, _), found in zip(paths, hashes)}


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _hash(parts: Iterable[str]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return total.hexdigest()


def _told(kind: str, was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    groups = (
        ("changed", [n for n in was if n in now and was[n] != now[n]]),
        ("are new", [n for n in now if n not in was]),
        ("are gone", [n for n in was if n not in now]),
    )
    return [
        f"the {kind} of {len(names)} {'image' if len(names) == 1 else 'images'} {what} (first: {min(names)})"
        for what, names in groups
        if names
    ]


def _classes_told(was: tuple[str, ...] | None, now: tuple[str, ...] | None) -> str:
    if was is None or now is None:
        return f"classes.txt {'is new' if was is None else 'is gone'}"
    if len(was) != len(now):
        return f"the number of classes changed from {len(was)} to {len(now)}"
    k = next(k for k, (a, b) in enumerate(zip(was, now)) if a != b)
    moved = " (they stand in another order)" if sorted(was) == sorted(now) else ""
    return f"the class names changed{moved}: class {k} was {was[k]!r} and is {now[k]!r}"

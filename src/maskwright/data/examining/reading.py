"""How the values of a folder's files are to be understood: what its owner said of them.

A file does not say whether 255 means "object" or "no class", or which stored value is white. What is certain is
read; what is not is asked, with one of these options as the answer. The answer travels with the data set, the run
and the bundle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from maskwright.errors import MaskwrightError, unknown

LABELS: dict[str, str] = {
    "auto": "ids where that is certain, else ask",
    "ids": "the stored value is the class id, whatever it looks like",
    "binary255": "0 is the background and 255 the object (128 and above, so smooth edges are cut in the middle)",
    "from1": "ids counted from 1: 1 is class 0, and 0 means no class",
    "grey": "three equal colour channels hold the id",
    "levels": "the grey levels that occur, ascending, are the classes 0, 1, 2, ...; levels:0,128,255 names them",
    "colours": "colours are the classes: those of colors.txt, else of the palette that most files share",
}
"""What `--labels` takes, and what each means."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was said of a folder's values; the defaults mean that nothing was said.

    Attributes:
        labels: a name of `LABELS`, or "levels:" and the levels in the order of the classes.
        void: stored values of masks that mean no class; None: 255 in 8 bits and 65535 in 16, (): none does.
        range: stored values of images (low, high) that become 0 and 255; None: not said.
    """

    labels: str = "auto"
    void: tuple[int, ...] | None = None
    range: tuple[float, float] | None = None

    @classmethod
    def parse(
        cls,
        labels: str | None = None,
        void: str | int | Iterable[int] | None = None,
        range: str | Iterable[float] | None = None,
    ) -> Reading:
        """The reading that options say.

        Args:
            labels: a name of `LABELS`, or "levels:0,128,255"; None: auto.
            void: "255", "0,255", "none", an int or several; None: not said.
            range: "0,4095", or two numbers; None: not said.

        Raises:
            MaskwrightError: an unknown name, or values that are no ids or no range.
        """
        if labels is not None and labels not in LABELS and not _levels(labels):
            raise unknown("way to read labels", labels, LABELS)
        return cls(labels=labels or "auto", void=_void(void), range=_range(range))

    @property
    def how(self) -> str:
        """The name of `LABELS` alone."""
        return self.labels.partition(":")[0]

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that were named, in the order of the classes; () where none were."""
        return _levels(self.labels)

    def arguments(self) -> dict[str, str]:
        """What was said, as values of the options `labels`, `void` and `range`; those not said are left out."""
        said = {} if self.labels == "auto" else {"labels": self.labels}
        if self.void is not None:
            said["void"] = ",".join(map(str, self.void)) or "none"
        if self.range is not None:
            said["range"] = ",".join(f"{v:g}" if float(f"{v:g}") == v else repr(v) for v in self.range)
        return said

    def options(self) -> str:
        """What was said, as options of the command line; empty where nothing was."""
        return " ".join(f"--{name} {value}" for name, value in self.arguments().items())

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` reads them back."""
        return {
            "labels": self.labels,
            "void": None if self.void is None else list(self.void),
            "range": None if self.range is None else list(self.range),
        }

    @classmethod
    def from_json(cls, value: object) -> Reading:
        """The reading that `to_json` wrote; None and {} mean that nothing was said.

        Raises:
            MaskwrightError: it is of another shape.
        """
        if value is None:
            return cls()
        if not isinstance(value, Mapping):
            raise MaskwrightError(f"a record of how values are read that is {type(value).__name__}", "an object")
        labels, void, range = (value.get(key) for key in ("labels", "void", "range"))
        if not isinstance(labels, str | None) or not all(isinstance(v, list | None) for v in (void, range)):
            raise MaskwrightError("a record of how values are read whose values are damaged", "what to_json wrote")
        return cls.parse(labels, void, range)


def _levels(labels: str) -> tuple[int, ...]:
    """The levels of "levels:0,128,255"; () where the text says none."""
    name, colon, listed = labels.partition(":")
    if name != "levels" or not colon:
        return ()
    words = [w.strip() for w in listed.split(",")]
    values = tuple(int(w) for w in words if w.isascii() and w.isdigit() and len(w) <= 5)
    if len(values) != len(words) or len(set(values)) != len(values) or max(values) > 65535:
        raise MaskwrightError(
            f"--labels {labels}",
            "different levels from 0 to 65535 in the order of the classes",
            "--labels levels:0,255",
        )
    return values


def _void(said: object) -> tuple[int, ...] | None:
    if said is None:
        return None
    parts: list[object]
    if isinstance(said, str):
        parts = [] if said.strip().lower() == "none" else [p.strip() for p in said.split(",")]
    else:
        parts = list(said) if isinstance(said, Iterable) else [said]
    try:
        values = tuple(int(str(p)) for p in parts)
    except ValueError:
        values = (-1,)
    if any(not 0 <= v <= 65535 for v in values):
        raise MaskwrightError(
            f"--void {said}", "values of masks from 0 to 65535 joined by commas, or none", "--void 255"
        )
    return values


def _range(said: object) -> tuple[float, float] | None:
    if said is None:
        return None
    parts: list[object] = (
        list(said.split(",")) if isinstance(said, str) else list(said) if isinstance(said, Iterable) else []
    )
    try:
        values = [float(str(p)) for p in parts]
    except ValueError:
        values = []
    if len(values) != 2 or not all(map(math.isfinite, values)) or values[0] >= values[1]:
        shown = said if isinstance(said, str) else ",".join(map(str, parts))
        raise MaskwrightError(
            f"--range {shown}", "LOW,HIGH: the stored values that become black and white", "--range 0,4095"
        )
    return values[0], values[1]

"""What is asked of a file from outside before its values are used: size, depth, numbers, names.

Whatever is not as the format has it is one line that names the file and the place in it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from maskwright.data.pictures.images import MAX_PIXELS
from maskwright.errors import MaskwrightError

MOST_BYTES = 1 << 31
"""Bytes of an annotation file at most."""
MOST_POINTS = 100_000
"""Points of one outline at most."""
MOST_SHAPES = 1_000_000
"""Shapes of one photograph at most."""
MOST_NESTED = 64
"""Elements of XML in one another at most."""
FARTHEST = 1e6
"""Pixels from the corner of the image that a point may lie, in each direction."""
HIGHEST_ID = 2**31 - 1
"""Ids of classes at most, as in the programs that read these formats."""
_HEAD = 1 << 16
_PIECE = 1 << 24


class _Large:
    """A file that is read in large pieces whatever is asked for: with each the parser begins a long attribute anew."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """The next 16 MiB."""
        return self._file.read(_PIECE)


class Source:
    """A file that is read, for the errors that name it.

    Args:
        path: where it lies.
        kind: what it should be ("a COCO file").
        repair: what mends it.
    """

    def __init__(self, path: Path, kind: str, repair: str = "export it again") -> None:
        self.path, self.kind, self.repair = path, kind, repair

    def error(self, found: str, expected: str = "", repair: str = "") -> MaskwrightError:
        """The error for what was found in the file."""
        return MaskwrightError(f"{self.path}: {found}", expected or self.kind, repair or self.repair)

    def read_bytes(self, most: int = MOST_BYTES) -> bytes:
        """The whole file. Raises `MaskwrightError` where it cannot be read or has too many bytes."""
        try:
            if self.path.stat().st_size > most:
                raise self.error(f"more than {most >> 20} MiB", f"{self.kind} of fewer", "split it")
            return self.path.read_bytes()
        except OSError as error:
            raise self.error(f"cannot be read ({error.strerror or type(error).__name__})") from error

    def json(self) -> dict[str, Any]:
        """The JSON object that the file holds; NaN and infinities are refused, and what is nested too deeply."""

        def refuse(name: str) -> float:
            raise self.error(f"{name}, which is no JSON", "finite numbers")

        try:
            value = json.loads(self.read_bytes(), parse_constant=refuse)
        except RecursionError:
            raise self.error("nested too deeply", self.kind) from None
        except ValueError as error:
            raise self.error(f"no JSON ({str(error)[:100]})") from None
        if not isinstance(value, dict):
            raise self.error(f"a {type(value).__name__} at the top", f"{self.kind}, an object")
        return value

    def elements(self) -> Iterator[tuple[str, Any, int]]:
        """(start or end, element, depth) of an XML file, without entities and document types."""
        from xml.etree.ElementTree import ParseError

        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import iterparse

        depth = 0
        if self.path.stat().st_size > MOST_BYTES:
            raise self.error(f"more than {MOST_BYTES >> 20} MiB", f"{self.kind} of fewer", "split it")
        try:
            with open(self.path, "rb") as file:
                for event, element in iterparse(_Large(file), events=("start", "end"), forbid_dtd=True):
                    depth += event == "start"
                    if depth > MOST_NESTED:
                        raise self.error(f"more than {MOST_NESTED} elements in one another")
                    yield event, element, depth
                    depth -= event == "end"
        except DefusedXmlException as error:
            raise self.error(f"defines entities or a document type ({type(error).__name__})") from None
        except (ParseError, LookupError, ValueError) as error:
            raise self.error(f"no XML ({str(error)[:100]})") from None
        except OSError as error:
            raise self.error(f"cannot be read ({error.strerror})") from error

    # ------------------------------------------------------------------ values

    def listed(self, value: Any, where: str) -> list[Any]:
        """A list of objects."""
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise self.error(f"{where} is no list of objects")
        return value

    def text(self, value: Any, where: str) -> str:
        """A text that is not empty."""
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{where} is {_shown(value)}", "text")
        return value.strip()

    def whole(self, value: Any, where: str, low: int = 0, high: int = HIGHEST_ID) -> int:
        """A whole number in a range; text of digits counts (XML holds nothing else)."""
        if isinstance(value, str) and value.strip().lstrip("-").isascii() and len(value) < 20:
            value = int(value) if value.strip().lstrip("-").isdigit() else value
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(f"{where} is {_shown(value)}", f"a whole number from {low} to {high}")
        return value

    def size(self, height: Any, width: Any, where: str) -> tuple[int, int]:
        """(H, W) of an image."""
        size = self.whole(height, f"the height of {where}", 1), self.whole(width, f"the width of {where}", 1)
        if size[0] * size[1] > MAX_PIXELS:
            raise self.error(f"{where} is {size[0]}x{size[1]}", f"at most {MAX_PIXELS / 1e6:.0f} million pixels")
        return size

    def numbers(self, value: Any, where: str) -> np.ndarray:
        """float64 (n,) of a list of finite numbers that may be coordinates."""
        if not isinstance(value, list):
            raise self.error(f"{where} is {_shown(value)}", "a list of numbers")
        if len(value) > 2 * MOST_POINTS:
            raise self.error(f"{where} has {len(value) // 2} points", f"at most {MOST_POINTS}", "simplify it")
        for number in value:
            if not isinstance(number, int | float) or isinstance(number, bool) or not abs(number) <= FARTHEST:
                raise self.error(f"{where} has the coordinate {_shown(number)}", f"numbers up to {FARTHEST:.0f}")
        return np.array(value, np.float64)

    def points(self, value: Any, where: str) -> np.ndarray:
        """float64 (n, 2) of a list of pairs (x, y)."""
        if not isinstance(value, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in value):
            raise self.error(f"{where} has points that are no pairs", "a list of [x, y]")
        return self.numbers([v for point in value for v in point], where).reshape(-1, 2)

    def lengths(self, value: Any, total: int, where: str) -> np.ndarray:
        """int64 (n,) of the lengths of runs that fill `total` pixels."""
        if not isinstance(value, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in value):
            raise self.error(f"{where} has runs that are no list of whole numbers")
        if any(not 0 <= n <= total for n in value) or sum(value) != total:
            raise self.error(f"{where} has runs of {_shown(sum(value))} pixels", f"{total}, as its box has")
        return np.array(value, np.int64)

    def decimal(self, value: Any, where: str) -> float:
        """A finite number, also as text."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not abs(number) <= FARTHEST or isinstance(value, bool):
            raise self.error(f"{where} is {_shown(value)}", f"a number up to {FARTHEST:.0f}")
        return number


def head_of(path: str | os.PathLike[str]) -> str:
    """The first and the last 64 KiB of a file as text, "" where it cannot be read; only to tell what it may be."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            if len(head) == _HEAD:
                file.seek(max(_HEAD, os.fstat(file.fileno()).st_size - _HEAD))
                head += b"\n" + file.read(_HEAD)
            return head.decode("utf-8", "replace")
    except OSError:
        return ""


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Files that a later step trusts: JSON records and arrays that carry a checksum and are read against what is expected.

A file on a disk may be cut, hold a flipped bit, or come from somebody who means harm. What is read here either is what
was written, or is told in one line. Nothing is unpickled, and no value reaches its reader with another type than it
expects.

The checksum is CRC-32: it finds every flipped bit and every run of up to 32 wrong ones, and all but one in four
thousand million of other damages. It is no protection against a person, who can write a fitting one; against those
stand the checks of types, sizes and ranges.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.trust.files import atomic_write, write_bytes
from maskwright.errors import MaskwrightError

CHECKSUM = "checksum"
"""The field of a JSON record that holds its checksum."""
MAX_DEPTH = 64
"""Levels of lists and objects in JSON; more is damage or malice, and deep recursion in whoever reads it."""
MAX_DIGITS = 20
"""Digits of a whole number: 64 bits have no more."""
MAX_ARRAY_BYTES = 2**31
"""Bytes of one array in a file."""
CHUNK = 1 << 20
"""Bytes read at a time for a checksum."""


class Damage(ValueError):
    """A file is not what was written: cut, changed, or never of this kind."""


# -------------------------------------------------------------------------------------------------------------- JSON


def parse_json(text: str | bytes, *, lenient: bool = False) -> Any:
    """The value of a JSON text that any reader can bear: finite numbers of at most 64 bits, not nested deeply.

    Args:
        text: UTF-8 where it is bytes.
        lenient: NaN and infinities, which are no JSON, become None.

    Raises:
        Damage: it is no such text.
    """
    constant = _no_value if lenient else _no_constant
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=constant)
    except Damage:
        raise
    except RecursionError:
        raise Damage(f"JSON nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:  # also bytes that are no UTF-8
        raise Damage(f"no JSON ({error})") from None
    _must_be_flat(value)
    return value


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise Damage(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Damage("a number that is not finite")
    return value


def _no_constant(name: str) -> float:
    raise Damage(f"{name}, which is no JSON")


def _no_value(_: str) -> None:
    return None


def _must_be_flat(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for v in level:
            if isinstance(v, dict):
                inner.extend(v.values())
            elif isinstance(v, list):
                inner.extend(v)
        level = [v for v in inner if isinstance(v, dict | list)]
        if not level:
            return
    raise Damage(f"JSON nested deeper than {MAX_DEPTH} levels")


def misfit(value: Any, shape: Any, place: str = "") -> str:
    """Where a JSON value is not of a shape, as "config.steps is text"; empty where it is.

    Args:
        value: what `parse_json` gave.
        shape: `str`, `int` (no bool), `float` (also whole numbers), `bool`, None, or `object` (anything);
            a tuple: one of several; `[s]`: a list of s; `{str: s}`: an object with any names;
            `{"a": s, "b?": t}`: an object with `a` and perhaps `b`, and whatever else.
        place: where the value stands.
    """
    if shape is object:
        return ""
    if isinstance(shape, tuple):
        return "" if any(not misfit(value, one, place) for one in shape) else _told(value, place)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _told(value, place)
        return next((m for i, v in enumerate(value) if (m := misfit(v, shape[0], f"{place}[{i}]"))), "")
    if isinstance(shape, dict):
        return _object_misfit(value, shape, place)
    if shape is None:
        good = value is None
    elif shape is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
    elif shape is int:
        good = isinstance(value, int) and not isinstance(value, bool)
    else:
        good = isinstance(value, shape)
    return "" if good else _told(value, place)


def _object_misfit(value: Any, shape: dict[Any, Any], place: str) -> str:
    if not isinstance(value, dict):
        return _told(value, place)
    dot = f"{place}." if place else ""
    if str in shape:
        return next((m for k, v in value.items() if (m := misfit(v, shape[str], f"{dot}{str(k)[:40]}"))), "")
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if name in value:
            if told := misfit(value[name], inner, f"{dot}{name}"):
                return told
        elif name == key:
            return f"{dot}{name} is missing"
    return ""


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


def _told(value: Any, place: str) -> str:
    return f"{place or 'the whole'} is {'null' if value is None else _KINDS.get(type(value), type(value).__name__)}"


def _sum_of(value: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in value.items() if k != CHECKSUM}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x}"


def write_record(path: str | os.PathLike[str], value: Mapping[str, Any], *, durable: bool = True) -> None:
    """Writes an object as indented JSON with its checksum as the last field, beside and renamed.

    Args:
        path: the file.
        value: JSON values by name; tuples become lists.
        durable: as for `data.trust.files.atomic_write`.

    Raises:
        MaskwrightError: the disk is full, or the place cannot be written.
        ValueError: NaN or infinities, or a field called `checksum`.
    """
    if CHECKSUM in value:
        raise ValueError(f"a record with a field {CHECKSUM!r} of its own")
    plain = json.loads(json.dumps(dict(value), allow_nan=False))
    full = plain | {CHECKSUM: _sum_of(plain)}
    try:
        text = json.dumps(full, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        text = json.dumps(full, indent=2).encode()
    write_bytes(path, text + b"\n", durable=durable)


def parse_record(text: str | bytes, shape: Any = dict) -> dict[str, Any]:
    """The object that `write_record` wrote, without its checksum. One without a checksum (of an earlier version, or
    whose checksum somebody took out) is taken as it is.

    Raises:
        Damage: no JSON object, another checksum, or another shape.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise Damage(_told(value, ""))
    if CHECKSUM in value:
        if value[CHECKSUM] != _sum_of(value):
            raise Damage("its checksum does not fit: it was damaged, or changed by hand")
        del value[CHECKSUM]
    if shape is not dict and (told := misfit(value, shape)):
        raise Damage(told)
    return value


def read_record(path: str | os.PathLike[str], shape: Any, *, what: str, repair: str) -> dict[str, Any]:
    """Reads what `write_record` wrote.

    Args:
        path: the file.
        shape: what it holds, as for `misfit`.
        what: its name in the error ("the record of a run").
        repair: what mends it.

    Raises:
        MaskwrightError: it is missing, damaged or of another shape.
    """
    try:
        return parse_record(Path(path).read_bytes(), shape)
    except (OSError, Damage) as error:
        raise unreadable(path, error, what, repair) from error


def unreadable(path: str | os.PathLike[str], error: Exception, what: str, repair: str) -> MaskwrightError:
    """The one-line error for a file that cannot be trusted."""
    reason = (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
    return MaskwrightError(f"{path} cannot be read: {reason[:200]}", what, repair)


# ------------------------------------------------------------------------------------------------------------ arrays


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any], *, compressed: bool, durable: bool) -> None:
    """Writes arrays as .npz, beside and renamed; its zip entries hold checksums.

    Raises:
        MaskwrightError: the disk is full, or the place cannot be written.
    """
    save = np.savez_compressed if compressed else np.savez
    with atomic_write(path, durable=durable) as beside, open(beside, "wb") as out:
        save(out, **arrays)


def read_arrays(path: str | os.PathLike[str], shapes: Mapping[str, tuple[str, str]]) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file, each entry's checksum checked.

    Args:
        path: the file.
        shapes: by name, the kind of its type ("f", "iu") and a letter for each dimension; equal letters are equal
            lengths, a digit is that length.

    Returns:
        The arrays, without NaN and infinities.

    Raises:
        Damage: it is missing, damaged or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name: _entry(archive, name) for name in shapes}
    except Damage:
        raise
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, EOFError, zlib.error, struct.error) as error:
        raise Damage(f"no whole .npz file ({type(error).__name__})") from error
    except (NotImplementedError, RuntimeError, MemoryError, OverflowError, TypeError, SyntaxError) as error:
        raise Damage(f"no .npz file of ours ({type(error).__name__})") from error
    must_fit({name: (array.dtype.kind, array.shape) for name, array in found.items()}, shapes)
    for name, array in found.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Damage(f"{name} has values that are not finite")
    return found


def _entry(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > MAX_ARRAY_BYTES:
        raise Damage(f"{name} of {info.file_size} bytes")
    with archive.open(info) as file:
        content = file.read(info.file_size + 1)  # to the end: only there is the entry's checksum compared
    if len(content) != info.file_size:
        raise Damage(f"{name} of another length than its entry says")
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def must_fit(
    found: Mapping[str, tuple[str, tuple[int, ...]]], expected: Mapping[str, tuple[str, str]]
) -> dict[str, int]:
    """Compares kinds and shapes with letters.

    Args:
        found: by name, kind of the type and shape.
        expected: by name, kinds that will do, and a letter or digit for each dimension, as for `read_arrays`.

    Returns:
        The length that each letter stands for.

    Raises:
        Damage: something is missing or does not fit.
    """
    lengths: dict[str, int] = {}
    for name, (kinds, letters) in expected.items():
        if name not in found:
            raise Damage(f"{name} is missing")
        kind, shape = found[name]
        told = f"{name} has the shape {tuple(shape)}, not ({', '.join(letters)})"
        if kind not in kinds:
            raise Damage(f"{name} has values of another type")
        if len(shape) != len(letters):
            raise Damage(told)
        for length, letter in zip(shape, letters):
            if length != (int(letter) if letter.isdigit() else lengths.setdefault(letter, length)):
                raise Damage(told)
    return lengths


def file_checksum(path: str | os.PathLike[str], end: int | None = None) -> int:
    """CRC-32 of a file's bytes, or of those before `end`.

    Raises:
        OSError: it cannot be read.
    """
    crc, left = 0, math.inf if end is None else end
    with open(path, "rb", buffering=0) as file:
        while left > 0 and (part := file.read(int(min(CHUNK, left)))):
            crc = zlib.crc32(part, crc)
            left -= len(part)
    return crc

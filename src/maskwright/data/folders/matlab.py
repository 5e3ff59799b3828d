"""Numeric arrays out of MATLAB files of level 5, as SBD and IIC's Potsdam use them, and nothing else of the format.

Libraries for the whole format run native code on whatever bytes there are, and a damaged file can end the process.
Here every length is checked against what is left before it is used, and decompression stops at a limit.

    file      128 bytes of header, then elements
    element   type (4 bytes), length (4), data padded to 8; or, up to 4 bytes of data, length and type in 4 bytes
    matrix    an element whose data are elements: flags, dimensions, name, then numbers, or the fields of a structure

The format is described in The MathWorks, "MAT-File Format", chapter 1.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maskwright.errors import MaskwrightError

MOST_BYTES = 1 << 28
"""A file, or a variable once it is decompressed, of more bytes is refused."""
_MOST_DIMENSIONS = 8
_MOST_FIELDS = 256

_NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_STRUCT, _COMPLEX = 2, 0x0800


class _Damaged(Exception):
    """The bytes are not what the format asks for; says what was found."""


def read_matlab(path: str | os.PathLike[str], key: str, kind: str, field: str | None = None) -> np.ndarray:
    """One numeric variable of a MATLAB file, or one field of a structure.

    Args:
        path: the file.
        key: the variable's name.
        kind: what the file should be, for the error.
        field: the field, where the variable is a structure (1, 1).

    Returns:
        The array in MATLAB's shape and type.

    Raises:
        MaskwrightError: missing, too large, damaged, of another version, or without that variable or field.
    """
    path = Path(path)
    wanted = key if field is None else f"{key}.{field}"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _Damaged(f"it has more than {MOST_BYTES >> 20} MiB")
        return _variable(path.read_bytes(), key, field)
    except _Damaged as error:
        raise MaskwrightError(f"{path} holds no {wanted!r}: {error}", kind, "unpack it again") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MaskwrightError(f"cannot read {path}: {reason}", kind, "unpack it again") from error


def _variable(data: bytes, key: str, field: str | None) -> np.ndarray:
    if data.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise _Damaged("it is of version 7.3, which is HDF5")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise _Damaged("it is no MATLAB file of level 5")
    for kind, body in _elements(memoryview(data)[128:], order):
        if kind == _COMPRESSED:
            inner = list(_elements(memoryview(_decompress(body)), order))
            if len(inner) != 1:
                raise _Damaged("a compressed part with other than one variable")
            kind, body = inner[0]
        if kind == _MATRIX and (found := _matrix(body, order, key, field)) is not None:
            return found
    raise _Damaged("there is no variable of that name")


def _decompress(body: memoryview) -> bytes:
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(body, MOST_BYTES)
    except zlib.error as error:
        raise _Damaged("its compressed part is damaged") from error
    if not stream.eof:
        raise _Damaged("its compressed part is cut off or too large")
    return data


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, data) of the elements one after another."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise _Damaged("it is cut off")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # up to four bytes stand where the length would be
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise _Damaged(f"a short element of {size} bytes")
            yield kind, data[at + 4 : at + 4 + size]
            at += 8
            continue
        if size > len(data) - at - 8:
            raise _Damaged("it is cut off")
        yield kind, data[at + 8 : at + 8 + size]
        # All but compressed elements are padded to eight bytes.
        at += 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)


def _matrix(body: memoryview, order: str, key: str | None, field: str | None) -> np.ndarray | None:
    """The numbers of a matrix, or of a field of it; None where its name is not `key`, which is not asked if None."""
    parts = _elements(body, order)
    flags = _integers(parts, order, _UINT32)
    shape = tuple(_integers(parts, order, _INT32))
    name_kind, name = _next(parts)
    if len(flags) != 2 or not 2 <= len(shape) <= _MOST_DIMENSIONS or min(shape) < 0 or name_kind != _INT8:
        raise _Damaged("a variable with a damaged head")
    if key is not None and bytes(name) != key.encode():
        return None
    kind = flags[0] & 0xFF
    count = math.prod(shape)
    if kind == _STRUCT:
        if field is None or count != 1:
            raise _Damaged("a structure where numbers should be")
        return _field(parts, order, field)
    if field is not None or kind not in _CLASSES or flags[0] & _COMPLEX:
        raise _Damaged("the variable is of another kind")
    stored, numbers = _next(parts)
    if stored not in _NUMBERS:
        raise _Damaged(f"numbers of type {stored}")
    dtype = np.dtype(order + _NUMBERS[stored])
    if len(numbers) != count * dtype.itemsize or count * 8 > 8 * MOST_BYTES:
        raise _Damaged(f"{len(numbers)} bytes for an array of shape {shape}")
    values = np.frombuffer(numbers, dtype).reshape(shape, order="F")
    with np.errstate(invalid="ignore"):
        return values.astype(_CLASSES[kind])


def _field(parts: Iterator[tuple[int, memoryview]], order: str, field: str) -> np.ndarray:
    width = _integers(parts, order, _INT32)
    kind, names = _next(parts)
    if len(width) != 1 or not 0 < width[0] <= 64 or kind != _INT8 or len(names) > 64 * _MOST_FIELDS:
        raise _Damaged("a structure with damaged names")
    text = bytes(names)
    fields = [text[i : i + width[0]].split(b"\0")[0] for i in range(0, len(text), width[0])]
    if field.encode() not in fields:
        raise _Damaged("the structure has no field of that name")
    for name in fields:
        kind, body = _next(parts)
        if kind != _MATRIX:
            raise _Damaged("a field that is no matrix")
        if name == field.encode():
            found = _matrix(body, order, None, None)
            assert found is not None
            return found
    raise _Damaged("the structure has no field of that name")


def _next(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    found = next(parts, None)
    if found is None:
        raise _Damaged("it is cut off")
    return found


def _integers(parts: Iterator[tuple[int, memoryview]], order: str, kind: int) -> list[int]:
    found, data = _next(parts)
    if found != kind or len(data) % 4 or len(data) > 64:
        raise _Damaged("a variable with a damaged head")
    return [int(v) for v in np.frombuffer(data, np.dtype(order + _NUMBERS[kind]))]

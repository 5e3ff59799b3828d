"""Mutations of files: of bytes, of text, and of the structure of JSON, safetensors, PNG and zip files.

A mutation is a function of (data, generator) alone, so that its number finds it again. One that computes a file's own
checksums anew, or puts another valid file in its place, is called sealed: nobody could tell it from a file that was
meant so.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from numpy.random import Generator

from benchmarks.fuzz.seals import TRAILER, sealed


@dataclass(frozen=True)
class Mutant:
    """A changed file.

    Attributes:
        data: its bytes.
        says: what was changed, for people.
        sealed: whether every checksum that the format holds fits the changed content.
    """

    data: bytes
    says: str
    sealed: bool = False


Operation = Callable[[bytes, Generator], Mutant]

MOST_BYTES = 4 << 20
"""No mutation makes a file larger than this, unless it was larger before."""

NUMBERS = (0, 1, 2, 255, 256, 32767, 32768, 65535, 65536, 100_000, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
"""Values at which lengths and sizes go wrong."""


def mutate(data: bytes, form: str, rng: Generator, others: Sequence[bytes] = ()) -> Mutant:
    """A mutation of a file.

    Args:
        data: the file.
        form: "png", "image", "text", "json", "lines", "safetensors", "zip" or "bytes": which operations on structure
            there are beside those on bytes.
        rng: decides everything.
        others: valid files that may take its place.
    """
    if form == "name":
        return STRUCTURE[form][0](data, rng)
    kinds: list[tuple[float, Operation]] = [(0.5 if form in STRUCTURE else 0.9, _bytes)]
    kinds += [(0.45 / len(STRUCTURE[form]), operation) for operation in STRUCTURE.get(form, ())]
    if others:
        kinds.append((0.06, lambda d, r: Mutant(others[r.integers(len(others))], "another valid file", sealed=True)))
    weights = [w for w, _ in kinds]
    operation = kinds[rng.choice(len(kinds), p=[w / sum(weights) for w in weights])][1]
    try:
        mutant = operation(data, rng)
    except (ValueError, IndexError, KeyError, struct.error, zipfile.BadZipFile):  # it has no such structure
        mutant = _bytes(data, rng)
    if rng.random() < 0.3 and not mutant.sealed and (again := sealed(mutant.data, form)) is not None:
        return Mutant(again, f"{mutant.says}, checksum right", sealed=True)
    return mutant


# ---------------------------------------------------------------------- bytes


def _bytes(data: bytes, rng: Generator) -> Mutant:
    if not data:
        return Mutant(bytes(rng.integers(0, 256, int(rng.integers(1, 64)), dtype="uint8")), "random bytes for none")
    return BYTES[rng.choice(len(BYTES), p=_BYTE_WEIGHTS)](data, rng)


def _place(data: bytes, rng: Generator) -> int:
    """A place in the file; half of them in its first 512 bytes, where headers are."""
    return int(rng.integers(min(len(data), 512) if rng.random() < 0.5 else len(data)))


def flip_bit(data: bytes, rng: Generator) -> Mutant:
    """One bit, anywhere."""
    at, bit = int(rng.integers(len(data))), int(rng.integers(8))
    out = bytearray(data)
    out[at] ^= 1 << bit
    return Mutant(bytes(out), f"bit {bit} of byte {at}")


def flip_bits(data: bytes, rng: Generator) -> Mutant:
    """Several bits."""
    out = bytearray(data)
    places = [_place(data, rng) for _ in range(int(rng.integers(2, 33)))]
    for at in places:
        out[at] ^= 1 << int(rng.integers(8))
    return Mutant(bytes(out), f"{len(places)} bits from byte {min(places)} to {max(places)}")


def set_bytes(data: bytes, rng: Generator) -> Mutant:
    """A few bytes to one value."""
    at, count = _place(data, rng), int(rng.integers(1, 9))
    value = int(rng.choice([0, 255, 127, 128, int(rng.integers(256))]))
    out = bytearray(data)
    out[at : at + count] = bytes([value]) * min(count, len(data) - at)
    return Mutant(bytes(out), f"{count} bytes at {at} are {value}")


def number(data: bytes, rng: Generator) -> Mutant:
    """A field of 2, 4 or 8 bytes to a number at which lengths go wrong."""
    size, order = int(rng.choice([2, 4, 8])), str(rng.choice(["<", ">"]))
    if len(data) < size:
        return flip_bit(data, rng)
    at = min(_place(data, rng), len(data) - size)
    if rng.random() < 0.5:
        at -= at % size
    value = int(NUMBERS[rng.integers(len(NUMBERS))]) & (256**size - 1)
    out = bytearray(data)
    out[at : at + size] = struct.pack(order + {2: "H", 4: "I", 8: "Q"}[size], value)
    return Mutant(bytes(out), f"{size} bytes at {at} are the number {value} ({order})")


def truncate(data: bytes, rng: Generator) -> Mutant:
    """Cut off somewhere, one time in five near the beginning or the end."""
    keep = int(rng.integers(len(data)))
    if rng.random() < 0.2:
        keep = min(len(data) - 1, int(rng.choice([0, 1, 4, 8, 16, len(data) - 1, max(0, len(data) - 4)])))
    return Mutant(data[:keep], f"cut to {keep} of {len(data)} bytes")


def remove(data: bytes, rng: Generator) -> Mutant:
    """A range is missing."""
    at, count = _place(data, rng), int(rng.choice([1, 2, 4, 16, 64, 512]))
    return Mutant(data[:at] + data[at + count :], f"{count} bytes at {at} are missing")


def insert(data: bytes, rng: Generator) -> Mutant:
    """Bytes are inserted: noise, zeros, or a repetition of what stands there."""
    at, count = _place(data, rng), int(rng.choice([1, 2, 4, 16, 64, 512, 4096]))
    kind = int(rng.integers(3))
    extra = (
        bytes(rng.integers(0, 256, count, dtype="uint8")),
        bytes(count),
        (data[at : at + count] or b"\0") * 2,
    )[kind]
    return Mutant(data[:at] + extra + data[at:], f"{len(extra)} bytes inserted at {at}")


def swap_blocks(data: bytes, rng: Generator) -> Mutant:
    """Two blocks change places."""
    size = int(rng.choice([1, 4, 16, 64, 256, 4096]))
    if len(data) < 2 * size:
        return flip_bits(data, rng)
    a = int(rng.integers(len(data) - 2 * size + 1))
    b = int(rng.integers(a + size, len(data) - size + 1))
    out = bytearray(data)
    out[a : a + size], out[b : b + size] = data[b : b + size], data[a : a + size]
    return Mutant(bytes(out), f"{size} bytes at {a} and {b} have changed places")


def fill(data: bytes, rng: Generator) -> Mutant:
    """A block is one value, as a bad sector is."""
    size = int(rng.choice([16, 64, 512, 4096]))
    at = _place(data, rng)
    size = min(size, len(data) - at)
    return Mutant(
        data[:at] + bytes([int(rng.choice([0, 255]))]) * size + data[at + size :], f"{size} bytes filled at {at}"
    )


def append(data: bytes, rng: Generator) -> Mutant:
    """Something follows the end."""
    extra = data if rng.random() < 0.3 else bytes(rng.integers(0, 256, int(rng.integers(1, 300)), dtype="uint8"))
    return Mutant(data + extra[:MOST_BYTES], f"{len(extra)} bytes appended")


BYTES: tuple[Operation, ...] = (
    flip_bit, flip_bits, set_bytes, number, truncate, remove, insert, swap_blocks, fill, append,
)  # fmt: skip
_BYTE_WEIGHTS = (0.26, 0.08, 0.12, 0.14, 0.12, 0.06, 0.07, 0.06, 0.06, 0.03)


# ---------------------------------------------------------------------- text

ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "utf-8-sig", "cp037", "latin-1")
ODD = (
    "\x1b[2J\x1b[31m", "\x00", "\u202e", "\r", "\x85", "\u2028", '"', "'", ";", ",,,,", "=cmd|' /C calc'!A0", "../../x",
    "/etc/passwd", "-1", "nan", "1e999", "é", "e\u0301", "\ufeff", "\ud83d\ude00", "%s%n", "{0}", "<script>", "\t", " ",
    "__ignore__", "_background_", "255", "9" * 400,
)  # fmt: skip
"""Pieces of text that are special somewhere."""


def encoding(data: bytes, rng: Generator) -> Mutant:
    """The same text in another encoding."""
    name = ENCODINGS[rng.integers(len(ENCODINGS))]
    text = data.decode("utf-8", "replace")
    extra = "\u00e9\u00fc" if name == "latin-1" else ""
    return Mutant((extra + text).encode(name, "replace"), f"as {name}", sealed=True)


def odd_piece(data: bytes, rng: Generator) -> Mutant:
    """A special piece of text is put somewhere."""
    piece = ODD[rng.integers(len(ODD))].encode("utf-8", "surrogatepass")
    at = _place(data + b"\n", rng)
    return Mutant(data[:at] + piece + data[at:], f"{piece[:20]!r} at {at}", sealed=True)


def lines(data: bytes, rng: Generator) -> Mutant:
    """Lines are dropped, doubled, moved, repeated many times, or made very long."""
    rows = data.split(b"\n")
    at, kind = int(rng.integers(len(rows))), int(rng.integers(7))
    if kind == 0:
        del rows[at]
    elif kind == 1:
        rows.insert(at, rows[at])
    elif kind == 2:
        to = int(rng.integers(len(rows)))
        rows[at], rows[to] = rows[to], rows[at]
    elif kind == 3:  # as many lines as a hostile or generated table has
        count = int(rng.choice([1000, 60_000]))
        rows[at:at] = [b"%s%d" % (rows[at][:16], i) for i in range(count)]
    elif kind == 4:
        rows[at] = rows[at] + b"x" * int(rng.choice([300, 70_000, 1 << 20]))
    elif kind == 5:
        rows.insert(at, b"")
    else:
        rows = [b"\r\n".join(rows)] if rng.random() < 0.5 else [b"\r".join(rows)]
    return Mutant(b"\n".join(rows), f"line {at}, change {kind}", sealed=True)


def digits(data: bytes, rng: Generator) -> Mutant:
    """A number in a text becomes another, possibly a huge one."""
    runs = [i for i in range(len(data)) if data[i : i + 1].isdigit() and not data[max(0, i - 1) : i].isdigit()]
    at = runs[rng.integers(len(runs))]
    end = at
    while data[end : end + 1].isdigit():
        end += 1
    new = [b"9" * 400, b"-1", b"1e400", b"0", b"NaN", b"4294967296", b"99999999", b"0x10", b""][rng.integers(9)]
    return Mutant(data[:at] + new + data[end:], f"the number at {at} is {new[:20]!r}", sealed=True)


# ---------------------------------------------------------------------- JSON


def odd_value(rng: Generator) -> Any:
    """A JSON value that a reader may not expect."""
    deep: Any = []
    for _ in range(int(rng.choice([3, 200]))):
        deep = [deep]
    values: tuple[Any, ...] = (
        None, True, False, 0, -1, 1e308, -0.0, 10**400, 2**63, 100_000, "", "x", "NaN", "../../etc/passwd",
        "\x1b[31mred", "a" * 100_000, [], {}, [[]], [None], {"x": []}, {"": {}}, ["x"], [1, 2, 3], deep,
        float("inf"), float("nan"), "\ud800", 3, 1.5, [10**30], {"a": {"b": {"c": 1}}},
    )  # fmt: skip
    return values[rng.integers(len(values))]


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value in a JSON value, the whole first."""
    found = [at]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += _paths(inner, (*at, key))
    return found


def change_json(value: Any, rng: Generator) -> tuple[Any, str]:
    """A JSON value with one change somewhere in it, and what was changed.

    Text that is JSON itself (as a bundle's metadata holds it) may be changed within.
    """
    paths = _paths(value)
    # Values near the top steer more than the hundredth colour of a table.
    ranks = [1.0 / (1 + len(p)) ** 2 for p in paths]
    where = paths[rng.choice(len(paths), p=[r / sum(ranks) for r in ranks])]
    if not where:
        return odd_value(rng), "the whole is another value"
    holder = value
    for key in where[:-1]:
        holder = holder[key]
    key, said = where[-1], "/".join(map(str, where))[:80]
    inner = holder[key]
    if isinstance(inner, str) and inner[:1] in ("{", "[") and rng.random() < 0.8:
        changed, more = change_json(json.loads(inner), rng)
        holder[key] = json.dumps(changed)
        return value, f"{said}: {more}"
    kind = rng.random()
    if kind < 0.12:
        del holder[key]
        return value, f"{said} is missing"
    if kind < 0.2 and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
        return value, f"{said} has another key"
    if kind < 0.28 and isinstance(holder, list):
        holder[key:key] = [inner] * int(rng.choice([1, 1000]))
        return value, f"{said} is repeated"
    if kind < 0.45 and isinstance(inner, int | float) and not isinstance(inner, bool):
        holder[key] = [inner + 1, -inner, inner * 1000, float(inner), str(inner), inner + 0.5][rng.integers(6)]
        return value, f"{said} is {str(holder[key])[:30]}, not {str(inner)[:30]}"
    holder[key] = odd_value(rng)
    return value, f"{said} is {str(holder[key])[:30]!r}"


def dump_json(value: Any) -> bytes:
    """As JSON text; what Python cannot write as UTF-8 is escaped."""
    return json.dumps(value, indent=2).encode("utf-8", "surrogatepass")


def json_value(data: bytes, rng: Generator) -> Mutant:
    """One value of a JSON file."""
    changed, said = change_json(json.loads(data), rng)
    return Mutant(dump_json(changed), said, sealed=True)


def json_nesting(data: bytes, rng: Generator) -> Mutant:
    """Brackets nested deeper than parsers recurse, in place of the whole or of a value."""
    depth = int(rng.choice([500, 5_000, 200_000]))
    opened, closed = [(b"[", b"]"), (b'{"a":', b"}")][rng.integers(2)]
    text = opened * depth + b"1" + closed * depth
    at = data.find(b": ")
    if at > 0 and rng.random() < 0.5:
        text = data[: at + 2] + text + b"}"
    return Mutant(text, f"nested {depth} deep", sealed=True)


def json_key_twice(data: bytes, rng: Generator) -> Mutant:
    """A key is there twice."""
    at = data.index(b"{") + 1
    key = [b"status", b"step", b"train", b"name", b"version"][rng.integers(5)]
    return Mutant(data[:at] + b'"' + key + b'": 7, "' + key + b'": [],' + data[at:], "a key twice", sealed=True)


def json_line(data: bytes, rng: Generator) -> Mutant:
    """One value of one line of a file that has JSON in each line."""
    rows = [r for r in data.split(b"\n") if r]
    at = int(rng.integers(len(rows)))
    changed, said = change_json(json.loads(rows[at]), rng)
    rows[at] = json.dumps(changed).encode("utf-8", "surrogatepass")
    return Mutant(b"\n".join(rows) + b"\n", f"line {at}: {said}", sealed=True)


# ---------------------------------------------------------------------- safetensors


def safetensors_header(data: bytes, rng: Generator) -> Mutant:
    """The header's JSON: metadata, types, shapes, offsets; its length is right again."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    kind = rng.random()
    names = [n for n in header if n != "__metadata__"]
    if kind < 0.45 and "__metadata__" in header:
        changed, said = change_json(header["__metadata__"], rng)
        header["__metadata__"] = changed
    else:
        name = names[rng.integers(len(names))]
        entry = header[name]
        if kind < 0.6:
            shape = entry["shape"]
            entry["shape"] = [shape[::-1], [*shape, 1], shape[1:], [0], [2**40], [-1], [[]], [1.5], "x"][
                rng.integers(9)
            ]
            said = f"shape of {name}"
        elif kind < 0.7:
            entry["dtype"] = str(rng.choice(["F16", "BF16", "I64", "BOOL", "F64", "U8", "X", "F8_E4M3"]))
            said = f"type of {name}"
        elif kind < 0.8:
            entry["data_offsets"] = [[0, 2**63], [-1, 4], [4, 0], [0], [0, 4], "x"][rng.integers(6)]
            said = f"offsets of {name}"
        elif kind < 0.9:
            header[f"{name}x"] = header.pop(name)
            said = f"name of {name}"
        else:
            other = names[rng.integers(len(names))]
            header[name], header[other] = header[other], header[name]
            said = f"{name} and {other} have changed places"
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return Mutant(struct.pack("<Q", len(text)) + text + data[8 + length :], said[:120])


def safetensors_length(data: bytes, rng: Generator) -> Mutant:
    """The length of the header is another."""
    length = struct.unpack("<Q", data[:8])[0]
    choices = (0, 1, length - 1, length + 1, len(data), 100_000_000, 2**40, 2**63, 2**64 - 1)
    new = int(choices[rng.integers(len(choices))])
    return Mutant(struct.pack("<Q", new) + data[8:], f"header of {new} bytes")


# ---------------------------------------------------------------------- PNG

_PNG = b"\x89PNG\r\n\x1a\n"


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Type and content of each chunk. Raises `ValueError` where the file is no PNG."""
    if data[:8] != _PNG:
        raise ValueError("no PNG")
    found, at = [], 8
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def join_png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with their checksums."""
    parts = [_PNG]
    for kind, content in chunks:
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(parts)


def png_header(data: bytes, rng: Generator) -> Mutant:
    """Size, depth, colour type or interlacing are others, with a right checksum."""
    chunks = png_chunks(data)
    head = bytearray(chunks[0][1])
    kind = int(rng.integers(4))
    if kind == 0:
        sizes = (0, 1, 7, 25, 4096, 32_000, 100_000, 2**31 - 1)
        for at in ((0,), (4,), (0, 4))[rng.integers(3)]:
            head[at : at + 4] = struct.pack(">I", sizes[rng.integers(len(sizes))])
    elif kind == 1:
        head[8] = int(rng.choice([0, 1, 2, 4, 8, 16, 32]))
    elif kind == 2:
        head[9] = int(rng.integers(8))
    else:
        head[10 + int(rng.integers(3))] = int(rng.integers(3))
    chunks[0] = (b"IHDR", bytes(head))
    return Mutant(join_png(chunks), f"header {bytes(head).hex()}, checksum right", sealed=True)


def png_chunk(data: bytes, rng: Generator) -> Mutant:
    """A chunk's content is changed, or it is dropped, doubled, moved; the checksums are right."""
    chunks = png_chunks(data)
    at, kind = int(rng.integers(len(chunks))), int(rng.integers(5))
    name, content = chunks[at]
    if kind <= 1 and content:
        content = _bytes(content, rng).data
        chunks[at] = (name, content)
    elif kind == 2:
        del chunks[at]
    elif kind == 3:
        chunks.insert(at, chunks[at])
    else:
        to = int(rng.integers(len(chunks)))
        chunks[at], chunks[to] = chunks[to], chunks[at]
    return Mutant(
        join_png(chunks), f"chunk {name.decode('latin-1')} at {at}, change {kind}, checksums right", sealed=True
    )


@cache
def _unpacks_large() -> bytes:
    return zlib.compress(bytes(64 << 20), 9)


def png_bomb(data: bytes, rng: Generator) -> Mutant:
    """A chunk of text or a profile that unpacks to 64 MB, or many small chunks."""
    chunks = png_chunks(data)
    kind = int(rng.integers(3))
    if kind == 0:
        extra = [(b"zTXt", b"Comment\0\0" + _unpacks_large())]
    elif kind == 1:
        extra = [(b"iCCP", b"icc\0\0" + _unpacks_large())]
    else:
        extra = [(b"tEXt", b"a\0b")] * 20_000
    return Mutant(join_png([chunks[0], *extra, *chunks[1:]]), f"a bomb, kind {kind}", sealed=True)


# ---------------------------------------------------------------------- sizes in other images, zip files


def image_size(data: bytes, rng: Generator) -> Mutant:
    """A field near the beginning that holds a size of the picture (20 to 32) is another number."""
    found = []
    for order, code, size in (("<", "H", 2), (">", "H", 2), ("<", "I", 4), (">", "I", 4)):
        for at in range(min(len(data), 700) - size):
            if 20 <= struct.unpack(order + code, data[at : at + size])[0] <= 32:
                found.append((at, order + code, size))
    if data[:2] in (b"P5", b"P6"):
        return digits(data, rng)
    at, code, size = found[rng.integers(len(found))]
    places = [at]
    if rng.random() < 0.5 and (at + size, code, size) in found:  # height and width mostly lie side by side
        places.append(at + size)
    small, large = (0, 1, 7, 25), (4096, 32_000, 65_535) if size == 2 else (4096, 32_000, 100_000, 2**31 - 1, 2**32 - 1)
    values = (small if rng.random() < 0.4 else large, large)
    out, said = bytearray(data), []
    for place, choices in zip(places, values):
        value = choices[rng.integers(len(choices))]
        out[place : place + size] = struct.pack(code, value)
        said.append(f"a size at {place} is {value}")
    return Mutant(bytes(out), ", ".join(said))


def zip_member(data: bytes, rng: Generator) -> Mutant:
    """A member of a zip file is changed or missing; its checksums are right, but for one that follows it."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(i, old.read(i)) for i in old.infolist()]
    small = [k for k, (i, c) in enumerate(members) if len(c) < 100_000]
    at = int(rng.choice(small)) if small and rng.random() < 0.7 else int(rng.integers(len(members)))
    info, content = members[at]
    kind = rng.random()
    if kind < 0.1:
        del members[at]
    elif content:
        members[at] = (info, _bytes(content, rng).data)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for i, c in members:
            new.writestr(i.filename, c)
    after = found[0] if (found := TRAILER.search(data)) else b""
    said = "is missing" if kind < 0.1 else "changed"
    return Mutant(out.getvalue() + after, f"member {info.filename} {said}, checksums of the zip file right")


STRUCTURE: dict[str, tuple[Operation, ...]] = {
    "png": (png_header, png_chunk, png_chunk, png_bomb),
    "image": (image_size,),
    "text": (encoding, odd_piece, odd_piece, lines, lines, digits),
    "json": (json_value, json_value, json_value, json_value, json_nesting, json_key_twice, encoding, digits, odd_piece),
    "lines": (json_line, json_line, json_nesting, lines, digits, odd_piece),
    "safetensors": (safetensors_header, safetensors_header, safetensors_header, safetensors_length),
    "zip": (zip_member,),
}
"""Operations on the structure of each form of file."""

"""Records and arrays with checksums: what was written comes back, all else is told, whoever wrote it."""

from __future__ import annotations

import json
import random
import zlib

import numpy as np
import pytest

from maskwright.data.trust.artefacts import (
    CHECKSUM,
    Damage,
    file_checksum,
    misfit,
    must_fit,
    parse_json,
    parse_record,
    read_arrays,
    read_record,
    write_arrays,
    write_record,
)
from maskwright.errors import MaskwrightError

RECORD = {"name": "größe", "steps": 3, "rate": 0.1, "list": [1, 2.5, None, True], "inner": {"a": "b"}, "empty": {}}


def test_a_record_is_json_that_anybody_reads(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, RECORD)
    plain = json.loads(path.read_text())
    checksum = plain.pop(CHECKSUM)
    assert plain == RECORD
    canonical = json.dumps(RECORD, sort_keys=True, separators=(",", ":")).encode()
    assert checksum == f"{zlib.crc32(canonical):08x}"
    assert read_record(path, dict, what="x", repair="y") == RECORD


def test_other_spacing_is_no_damage_and_a_missing_checksum_is_an_earlier_version(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, RECORD)
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_record(path, dict, what="x", repair="y") == RECORD
    path.write_text(json.dumps(RECORD))
    assert read_record(path, dict, what="x", repair="y") == RECORD


def test_a_changed_value_is_told_with_the_repair(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, RECORD)
    path.write_text(path.read_text().replace('"steps": 3', '"steps": 4'))
    with pytest.raises(MaskwrightError) as error:
        read_record(path, dict, what="a record", repair="do this")
    told = "cannot be read: its checksum does not fit: it was damaged, or changed by hand; expected a record; do this"
    assert str(error.value) == f"{path} {told}"
    with pytest.raises(MaskwrightError, match="No such file"):
        read_record(tmp_path / "none.json", dict, what="a record", repair="do this")


def test_a_record_of_its_own_checksum_is_refused(tmp_path):
    with pytest.raises(ValueError, match="checksum"):
        write_record(tmp_path / "a.json", {CHECKSUM: 1})
    with pytest.raises(ValueError):
        write_record(tmp_path / "a.json", {"a": float("nan")})


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "no JSON"), ("{", "no JSON"), (b"\xff\xfe", "no JSON"), ("nul", "no JSON"),
        ("1" * 400, "400 digits"), ("-" + "1" * 21, "22 digits"), ("1e999", "finite"), ("[NaN]", "NaN"),
        ("[" * 100_000, "nested"), ("[" * 70 + "]" * 70, "nested"), ('{"a":' * 66 + "1" + "}" * 66, "nested"),
    ],
)  # fmt: skip
def test_json_that_no_reader_could_bear(text, told):
    with pytest.raises(Damage, match=told):
        parse_json(text)


def test_json_of_the_usual_kind():
    assert parse_json("[" * 60 + "]" * 60)
    assert parse_json(str(2**64 - 1)) == 2**64 - 1
    assert parse_json("[NaN, -Infinity]", lenient=True) == [None, None]


@pytest.mark.parametrize(
    "value, shape, told",
    [
        ({"a": 1}, {"a": int}, ""),
        ({"a": True}, {"a": int}, "a is true or false"),
        ({"a": True}, {"a": float}, "a is true or false"),
        ({"a": 1, "more": 2}, {"a": float, "b?": str}, ""),
        ({"a": 1, "b": 2}, {"a": float, "b?": str}, "b is a whole number"),
        ({}, {"a": int}, "a is missing"),
        ({"a": {"b": [1, "x"]}}, {"a": {"b": [int]}}, "a.b[1] is text"),
        ({"x": [], "y": {}}, {str: [int]}, "y is an object"),
        ([], dict, "the whole is a list"),
        (None, (int, None), ""),
        ("x", (int, None), "the whole is text"),
        ({"a": [object]}, {"a": [object]}, ""),
    ],
)
def test_shapes(value, shape, told):
    assert misfit(value, shape) == told


def flips(content: bytes, count: int, seed: int):
    draw = random.Random(seed)
    for _ in range(count):
        at, bit = draw.randrange(len(content)), draw.randrange(8)
        yield content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def test_no_flipped_bit_passes_in_a_record(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, RECORD | {"reliability": {f"p{i}": i / 7 for i in range(20)}})
    whole = path.read_bytes()
    expected, told = parse_record(whole), 0
    for changed in flips(whole, 2000, 0):
        try:
            # A flip in the word "checksum" leaves the values: no harm, but one more field.
            assert {k: v for k, v in parse_record(changed).items() if k in expected} == expected
        except Damage:
            told += 1
    assert told > 1000


def test_arrays(tmp_path):
    arrays = {"maps": np.random.default_rng(0).random((3, 4, 5)).astype(np.float16), "n": np.array(7)}
    shapes = {"maps": ("f", "Khw"), "n": ("iu", "")}
    for compressed in (True, False):
        path = tmp_path / "a.npz"
        write_arrays(path, arrays, compressed=compressed, durable=False)
        found = read_arrays(path, shapes)
        assert all(np.array_equal(found[k], v) and found[k].dtype == v.dtype for k, v in arrays.items())
        whole, told = path.read_bytes(), 0
        for changed in flips(whole, 100, 1):
            path.write_bytes(changed)
            try:
                found = read_arrays(path, shapes)
                assert all(np.array_equal(found[k], v) for k, v in arrays.items())
            except Damage:
                told += 1
        assert told > 30


@pytest.mark.parametrize(
    "shapes, told",
    [
        ({"a": ("iu", "KD")}, "another type"), ({"a": ("f", "K")}, "shape"), ({"b": ("f", "K")}, "KeyError"),
        ({"a": ("f", "KK")}, "shape"), ({"a": ("f", "K4")}, "shape"), ({"a": ("f", "KD"), "c": ("f", "D")}, "shape"),
    ],
)  # fmt: skip
def test_arrays_of_another_shape(tmp_path, shapes, told):
    write_arrays(tmp_path / "a.npz", {"a": np.zeros((2, 3)), "c": np.zeros(2)}, compressed=False, durable=False)
    with pytest.raises(Damage, match=told):
        read_arrays(tmp_path / "a.npz", shapes)


def test_arrays_that_are_not_finite_or_pickled(tmp_path):
    write_arrays(tmp_path / "a.npz", {"a": np.array([np.nan])}, compressed=False, durable=False)
    with pytest.raises(Damage, match="finite"):
        read_arrays(tmp_path / "a.npz", {"a": ("f", "N")})
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(Damage):
        read_arrays(tmp_path / "a.npz", {"a": ("f", "N")})


def test_letters_are_lengths():
    assert must_fit({"a": ("f", (2, 3)), "b": ("f", (3,))}, {"a": ("f", "KD"), "b": ("f", "D")}) == {"K": 2, "D": 3}


def test_the_checksum_of_a_file(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)
    assert file_checksum(tmp_path / "a") == zlib.crc32(content)
    assert file_checksum(tmp_path / "a", 1_500_001) == zlib.crc32(content[:1_500_001])

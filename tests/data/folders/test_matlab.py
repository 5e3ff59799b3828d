"""The reader of MATLAB files against scipy's, and against damage; annotations of VOC against hostile XML."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from maskwright.data.folders.matlab import read_matlab
from maskwright.data.layouts.potsdam import read_tile, read_tile_mask
from maskwright.data.layouts.voc import read_annotation, read_voc_mask
from maskwright.errors import MaskwrightError

TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


@pytest.mark.parametrize("compressed", [False, True])
def test_numbers_are_those_of_scipy(tmp_path, compressed: bool) -> None:
    rng = np.random.default_rng(0)
    values = {f"v_{t}": (rng.random((3, 5)) * 100).astype(t) for t in TYPES}
    values |= {
        "cube": rng.integers(0, 255, (4, 3, 2), dtype=np.uint8),
        "one": np.float64([[2.5]]),
        "none": np.zeros((0, 3)),
    }
    savemat(tmp_path / "a.mat", values, do_compression=compressed)
    for key, value in loadmat(tmp_path / "a.mat").items():
        if not key.startswith("__"):
            found = read_matlab(tmp_path / "a.mat", key, "a file")
            assert found.dtype == value.dtype and np.array_equal(found, value), key
    with pytest.raises(MaskwrightError, match=r"'absent'.*no variable of that name"):
        read_matlab(tmp_path / "a.mat", "absent", "a file")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_field_of_a_structure(tmp_path, compressed: bool) -> None:
    """As SBD has it: the mask, a cell of sparse matrices that is left alone, and a list of classes."""
    ids = np.random.default_rng(1).integers(0, 21, (37, 50), dtype=np.uint8)
    cell = np.empty((2, 1), object)
    cell[:] = [[np.eye(3)], [np.ones((2, 2))]]
    value = {"Boundaries": cell, "Segmentation": ids, "CategoriesPresent": np.uint8([[3], [7]])}
    savemat(tmp_path / "a.mat", {"other": 1, "GTcls": value}, do_compression=compressed)
    assert np.array_equal(read_voc_mask(tmp_path / "a.mat"), ids)
    expected = loadmat(tmp_path / "a.mat")["GTcls"]["CategoriesPresent"][0, 0]
    assert np.array_equal(read_matlab(tmp_path / "a.mat", "GTcls", "a mask", "CategoriesPresent"), expected)
    for field in ("Boundaries", "Nothing"):
        with pytest.raises(MaskwrightError, match="expected a mask"):
            read_matlab(tmp_path / "a.mat", "GTcls", "a mask", field)
    savemat(tmp_path / "b.mat", {"GTcls": {"Segmentation": ids.astype(float)}})
    with pytest.raises(MaskwrightError, match="float64"):
        read_voc_mask(tmp_path / "b.mat")


def test_big_endian(tmp_path) -> None:
    """Written by hand after the format's description, because scipy writes the machine's own order only."""
    body = b"".join(
        (
            struct.pack(">II", 6, 8), struct.pack(">II", 11, 0), struct.pack(">II", 5, 8), struct.pack(">ii", 2, 3),
            struct.pack(">HH", 1, 1), b"a\0\0\0", struct.pack(">II", 4, 12),
            struct.pack(">6H", 1, 2, 3, 4, 5, 600), b"\0" * 4,
        )
    )  # fmt: skip
    (tmp_path / "a.mat").write_bytes(b"x" * 124 + b"\x01\x00MI" + struct.pack(">II", 14, len(body)) + body)
    assert np.array_equal(loadmat(tmp_path / "a.mat")["a"], [[1, 3, 5], [2, 4, 600]])
    found = read_matlab(tmp_path / "a.mat", "a", "a file")
    assert found.dtype == np.uint16 and np.array_equal(found, [[1, 3, 5], [2, 4, 600]])


def test_other_files_are_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("maskwright.data.folders.matlab.MOST_BYTES", 1 << 20)
    path = tmp_path / "a.mat"
    head = b"x" * 124 + b"\x00\x01IM"
    bomb = zlib.compress(b"\0" * (1 << 22), 1)
    for content, words in (
        (b"", "no MATLAB file"),
        (b"not a matrix", "no MATLAB file"),
        (b"MATLAB 7.3 MAT-file" + b" " * 200, "HDF5"),
        (head, "no variable"),
        (head + struct.pack("<II", 15, len(bomb)) + bomb, "too large"),
        (head + struct.pack("<II", 14, 0xFFFFFFF0), "cut off"),
        (head + struct.pack("<II", 15, 8) + b"12345678", "compressed part is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(MaskwrightError, match=words):
            read_matlab(path, "GTcls", "a mask")
    with pytest.raises(MaskwrightError, match="cannot read"):
        read_matlab(tmp_path / "none.mat", "GTcls", "a mask")
    savemat(path, {"img": np.zeros((4, 5)), "gt": np.zeros((4, 5, 2))})
    with pytest.raises(MaskwrightError, match="shape"):
        read_tile(path)
    with pytest.raises(MaskwrightError, match="shape"):
        read_tile_mask(path, bytes(256))


def test_damage_is_one_line(tmp_path) -> None:
    """300 seeded mutations: the array, perhaps another one, or an error; nothing else."""
    ids = np.random.default_rng(0).integers(0, 21, (20, 30), dtype=np.uint8)
    rng = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for compressed in (False, True):
        savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": ids, "Other": np.eye(3)}}, do_compression=compressed)
        whole = (tmp_path / "a.mat").read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                kind = rng.randrange(4)
                at = rng.randrange(100, len(data) - 8) if len(data) > 120 else 0
                if kind == 0:
                    data[at] ^= 1 << rng.randrange(8)
                elif kind == 1:
                    data[at : at + 4] = struct.pack(
                        "<I", rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, rng.getrandbits(32)])
                    )
                elif kind == 2:
                    del data[at : at + rng.randint(1, 40)]
                else:
                    data = data[:at] + data[at : at + 16] * rng.randint(1, 3) + data[at:]
            (tmp_path / "b.mat").write_bytes(bytes(data))
            try:
                found = read_voc_mask(tmp_path / "b.mat")
                assert found.ndim == 2 and found.dtype == np.uint8
                outcomes["read"] += 1
            except MaskwrightError as error:
                assert "\n" not in str(error)
                outcomes["refused"] += 1
    assert outcomes["refused"] > 150, outcomes


def test_annotations(tmp_path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(
        "<?xml version='1.0' encoding='latin-1'?><annotation><name>no</name><object><name> caf\u00e9 </name>"
        "<name>second</name><part><name>head</name></part></object><object><pose/><name><!-- x -->cat</name></object>"
        "<object><part><object><name>in</name></object></part></object></annotation>".encode("latin-1")
    )
    assert read_annotation(path) == [" caf\u00e9 ", "cat", "in"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<?xml version='1.0' encoding='no-such'?><a/>", "not XML"),
        (b"<?xml version='1.0' encoding='utf-7'?><a>+AGE-</a>", "not XML"),
        (b"<?xml version='1.0' encoding='hex'?><a/>", "not XML"),
        (b"<?xml version='1.0' encoding='big5'?><a>\xa4\xa4</a>", "not XML"),
        (b"<a><b></a>", "not XML"),
        (b"", "not XML"),
        (b"\xff\xfe\x00", "not XML"),
        (b"<a>" * 100_000, "nests more than"),
        (b"<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>", "defines entities"),
        (b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>", "defines entities"),
        (
            b"<!DOCTYPE l [<!ENTITY a 'lol'>" + b"".join(
                b"<!ENTITY %c '%s'>" % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(12)
            ) + b"]><l>&m;</l>",
            "defines entities",
        ),
    ],
)  # fmt: skip
def test_hostile_annotations(tmp_path, content: bytes, words: str) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(MaskwrightError, match=words) as error:
        read_annotation(tmp_path / "a.xml")
    assert "\n" not in str(error.value)


def test_an_annotation_of_any_size(tmp_path: Path) -> None:
    with open(tmp_path / "a.xml", "wb") as file:
        file.truncate(1 << 25)
    with pytest.raises(MaskwrightError, match="MiB"):
        read_annotation(tmp_path / "a.xml")

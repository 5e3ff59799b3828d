"""Class tables and palettes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from maskwright.data.masking.classes import ClassTable, default_palette, given_names, read_classes
from maskwright.errors import MaskwrightError


def voc_colour(i: int) -> tuple[int, int, int]:
    """The VOC development kit's loop, one id at a time."""
    r = g = b = 0
    c = i
    for j in range(8):
        r |= ((c >> 0) & 1) << (7 - j)
        g |= ((c >> 1) & 1) << (7 - j)
        b |= ((c >> 2) & 1) << (7 - j)
        c >>= 3
    return r, g, b


def test_palette_is_vocs() -> None:
    assert default_palette(256).tolist() == [list(voc_colour(i)) for i in range(256)]
    assert default_palette(21)[15].tolist() == [192, 128, 128]  # person, as every VOC mask shows it


def test_palette_colours_differ() -> None:
    assert len(np.unique(default_palette(920), axis=0)) == 920


def test_read_classes(tmp_path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffsky\r\nbus stop\r\nbicyclist\r\n\r\n\r\n".encode())
    table = read_classes(path)
    assert table.names == ("sky", "bus stop", "bicyclist")
    assert table.colors.shape == (3, 3) and table.colors.dtype == np.uint8
    assert table.index("bicyclist") == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "names no class"),
        (b"a\n\nb\n", "line 2"),
        (b"a\nb\na\n", "twice"),
        (b"\xff\xd8\xff\xe0", "UTF-8"),
    ],
)
def test_bad_classes(tmp_path, content: bytes, said: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(MaskwrightError, match=said):
        read_classes(path)


def test_table() -> None:
    table = ClassTable.numbered(3)
    assert len(table) == 3 and table.ignore == 255
    assert ClassTable.from_json(table.to_json()) == table
    assert hash(ClassTable.from_json(table.to_json())) == hash(table)
    assert ClassTable.numbered(255).ignore == 255 and ClassTable.numbered(256).ignore == 65535
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    table = ClassTable(("ground", "disc", "square"))
    assert table.colorize(ids).tolist() == [[[0, 0, 0], [128, 0, 0]], [[0, 128, 0], [255, 255, 255]]]
    with pytest.raises(ValueError, match="shape"):
        ClassTable(("a", "b"), np.zeros((3, 3), np.uint8))


def test_lists_of_labelme(tmp_path) -> None:
    """`__ignore__` has id -1 there and `_background_` 0, so the line is dropped and the others keep their ids."""
    path = tmp_path / "classes.txt"
    path.write_text("__ignore__\n_background_\ncat\n")
    said: list[str] = []
    table = read_classes(path, said)
    assert table.names == ("background", "cat") and read_classes(path) == table
    assert "begins with __ignore__" in said[0] and "class 0 is '_background_'" in said[0]
    assert "background here" in said[1] and len(said) == 2
    path.write_text("__ignore__\ncat\n\ndog\n")
    with pytest.raises(MaskwrightError, match=r"line 3 of .* is blank"):
        read_classes(path)
    path.write_text("_background_\nbackground\n")
    assert read_classes(path).names == ("_background_", "background")


@pytest.mark.parametrize(("lines", "id"), [("void\ncat\n", 0), ("cat\nUnlabelled\n", 1), ("cat\n__ignore__\n", 1)])
def test_classes_of_a_doubtful_name(tmp_path, lines: str, id: int) -> None:
    """They count as classes; the sentence names the option that leaves them out, which silences it."""
    path = tmp_path / "classes.txt"
    path.write_text(lines)
    said: list[str] = []
    assert len(read_classes(path, said)) == 2
    assert len(said) == 1 and said[0].endswith(f"--void {id}")
    said.clear()
    read_classes(path, said, (id,))
    assert said == []


def test_sixty_thousand_names(tmp_path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("".join(f"class {i}\n" for i in range(60_000)))
    start = time.perf_counter()
    table = read_classes(path)
    assert len(table) == 60_000 and len(ClassTable.numbered(60_000)) == 60_000
    assert time.perf_counter() - start < 5
    path.write_text("".join(f"class {i}\n" for i in range(60_000)) + "class 7\n")
    with pytest.raises(MaskwrightError, match="as ids 7 and 60000"):
        read_classes(path)


def test_names_as_they_are_given(tmp_path, monkeypatch):
    file = tmp_path / "names.txt"
    file.write_text("road\nsky, blue\n\n")
    assert given_names("road, sky ,tree") == given_names(["road", "sky", "tree"]) == ("road", "sky", "tree")
    assert given_names("road") == ("road",)
    assert given_names("road; sky, blue ;tree") == ("road", "sky, blue", "tree"), "or with semicolons"
    assert given_names(file) == given_names(str(file)) == ("road", "sky, blue"), "in a file commas are part of a name"
    monkeypatch.chdir(tmp_path)
    assert given_names("names.txt") == ("road", "sky, blue")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("road,,sky", "an empty name"),
        ("", "an empty name"),
        ([], "no name"),
        ("road,sky,road", "'road' twice"),
        ("no/such/file", "there is no such file"),
        ("nosuch.txt", "there is no such file"),
        (Path("nosuch"), "there is no such file"),
    ],
)
def test_names_that_are_none(names, words):
    with pytest.raises(MaskwrightError, match=words) as raised:
        given_names(names)
    assert raised.value.expected

"""Class tables and palettes."""

from __future__ import annotations

import numpy as np
import pytest

from maskwright.data.classes import ClassTable, default_palette, read_classes
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

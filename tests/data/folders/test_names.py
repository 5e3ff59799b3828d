"""Names as text: whatever a file may be called comes back as it was, and nothing that it is called is obeyed."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskwright.data.folders.names import meant, written
from maskwright.data.folders.tables import NameIndex, csv_text, read_csv, read_names
from maskwright.data.trust.files import write_text
from maskwright.errors import shown

FILE_NAMES = st.text(st.characters(blacklist_characters="\0/", blacklist_categories=()), min_size=1, max_size=12)
"""Any characters but those that no file name has; lone surrogates stand for bytes that are no text."""
FORMULAS = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "a;=1",
    "a|=1",
    "＝1",
    '"=1"',
]


@given(FILE_NAMES)
def test_a_written_name_is_one_line_and_comes_back(name):
    for spreadsheet in (False, True):
        line = written(name, spreadsheet=spreadsheet)
        assert meant(line) == name
        assert line == line.strip() and len(line.splitlines()) == 1
        line.encode("utf-8")


def test_plain_names_stay_as_they_are():
    for name in ("a", "übung/été 01", "航空写真", "a,b", "a-b=c", "it's", "🙂"):
        assert written(name) == written(name, spreadsheet=True) == name == shown(name)
    assert written("=a") == "=a", "a list is no spreadsheet"


@given(st.lists(FILE_NAMES, min_size=1, max_size=5))
def test_names_come_back_from_lists_and_tables(tmp_path_factory, names):
    folder = tmp_path_factory.getbasetemp() / "names"
    write_text(folder / "names.txt", "".join(f"{written(n)}\n" for n in names))
    assert read_names(folder / "names.txt") == names
    index = NameIndex(names, [".png"])
    assert [index.find(n) for n in read_names(folder / "names.txt")] == names
    write_text(folder / "t.csv", csv_text(("rank", "name"), list(enumerate(names))))
    assert read_csv(folder / "t.csv") == [{"rank": str(k), "name": n} for k, n in enumerate(names)]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_is_a_formula(name):
    text = csv_text(("name", "score"), [(name, -0.5)])
    for delimiter in ",;|\t":  # as spreadsheets of other languages split it
        for row in csv.reader(io.StringIO(text), delimiter=delimiter):
            for cell in row:
                assert cell.strip()[:1] not in ("=", "+", "@", "＝") and (cell == "-0.5" or cell[:1] != "-"), cell
    assert meant(next(csv.DictReader(io.StringIO(text)))["name"]) == name


def test_a_name_copied_from_a_table_is_found():
    index = NameIndex(["=a", " b ", '"c"', "d"], [".png"])
    assert [index.find(t) for t in ('"=a"', "=a", " b ", '" b "', '"c"', "d.png")] == [
        "=a",
        "=a",
        " b ",
        " b ",
        '"c"',
        "d",
    ]


def test_control_characters_are_shown_and_not_obeyed():
    assert shown("a\x1b[2Jb\n\u202egnp.exe\udcff") == "a\\x1b[2Jb\\n\\u202egnp.exe\\xff"
    assert shown("a\nb\x1b", lines=True) == "a\nb\\x1b"
    assert shown("👩‍👩‍👧 né") == "👩‍👩‍👧 né"

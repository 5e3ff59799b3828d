"""The table in which a person says what clusters are: written, filled in by a spreadsheet, read, refused."""

from __future__ import annotations

import csv

import pytest

from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.cluster_map import ClusterRow, masks_beside, read_map, read_rows, write_map
from maskwright.errors import MaskwrightError

ROWS = [
    ClusterRow(0, 0.75, (0.25, 0.5), (1, 2, 255)),
    ClusterRow(1, 0.25, (0.5, 0.125), (10, 20, 30)),
    ClusterRow(2, 0.0, None, (0, 0, 0)),
]
EMPTY = """\
cluster,share,row,column,colour,name,agreement,model
0,0.7500,0.25,0.50,#0102ff,,,kmeans-1
1,0.2500,0.50,0.12,#0a141e,,,kmeans-1
2,0.0000,,,#000000,,,kmeans-1
"""


def fill(path, names, mark=",", end="\n", mark_first=False):
    """Fills in the names as a spreadsheet would save them."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="", encoding="utf-8-sig" if mark_first else "utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=mark, lineterminator=end)
        writer.writeheader()
        writer.writerows(row | {"name": name} for row, name in zip(rows, names))


@pytest.fixture
def table(tmp_path):
    write_map(tmp_path / "map.csv", ROWS, "kmeans-1")
    return tmp_path / "map.csv"


def test_it_is_written_with_an_empty_column(table):
    assert table.read_text() == EMPTY
    assert read_map(table, 3, "kmeans-1").names == ("", "", "")


@pytest.mark.parametrize("how", [{}, {"mark": ";"}, {"mark": "\t", "end": "\r\n"}, {"mark": ";", "mark_first": True}])
def test_it_is_read_as_spreadsheets_save_it(table, how):
    names = ["road", " größe, 2 ", "=SUM(a)"]
    fill(table, names, **how)
    assert read_map(table, 3, "kmeans-1").names == ("road", "größe, 2", "=SUM(a)")


def test_two_columns_in_any_order_are_enough(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("Name,Cluster\nsky,1\n\nroad,0\n")
    filled = read_map(path, 2, "kmeans-1")
    assert filled.names == ("road", "sky") and filled.model == "" and filled.masks == ()


def test_names_that_somebody_filled_in_are_never_replaced(table):
    write_map(table, ROWS[:2], "kmeans-1")  # no names yet
    fill(table, ["a", ""])
    before = table.read_bytes()
    with pytest.raises(MaskwrightError, match=r"has names already.*--map .*map-new\.csv"):
        write_map(table, ROWS[:2], "kmeans-1")
    assert table.read_bytes() == before
    named = [ClusterRow(0, 0.5, None, (0, 0, 0), "a", 0.9), ClusterRow(1, 0.5, None, (0, 0, 0), "", 0.8)]
    write_map(table, named, "kmeans-1", ["x", "y"])  # the same names
    assert "0.90" in table.read_text()


def test_names_from_masks_keep_the_list_of_these(table):
    rows = [ClusterRow(0, 1.0, (0.5, 0.5), (0, 0, 0), "sky", 0.87)]
    write_map(table, rows, "m-1", ["b", "folder/a", " odd"])
    assert read_map(table, 1, "m-1").masks == ("b", "folder/a", " odd")
    masks_beside(table).rename(table.with_name("elsewhere"))
    with pytest.raises(
        MaskwrightError, match=r"masks\.txt, which lists these masks, is not beside it.*copy it"
    ) as error:
        read_map(table, 1, "m-1")
    assert "--from-masks" in error.value.repair
    table.with_name("elsewhere").rename(masks_beside(table))  # the repair
    assert len(read_map(table, 1, "m-1").masks) == 3


def test_shares_are_taken_over_from_a_map_of_the_same_model(table):
    colors = ClassTable.numbered(3)
    rows = read_rows(table, colors, "kmeans-1")
    assert [(r.share, r.place) for r in rows] == [(0.75, (0.25, 0.5)), (0.25, (0.5, 0.12)), (0.0, None)]
    assert read_rows(table, colors, "kmeans-2") is None and read_rows(table, ClassTable.numbered(4), "kmeans-1") is None
    table.write_text(EMPTY.replace("0.7500", "much"))
    assert read_rows(table, colors, "kmeans-1") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("1,0.25", "7,0.25"), ("line 3", "cluster 7", "0 to 2", "delete the line")),
        (("1,0.25", "one,0.25"), ("cluster one",)),
        (("1,0.25", "0,0.25"), ("two rows for cluster 0", "line 3", "delete line 3")),
        (("0,0.75", ",0.75"), ("cluster nothing",)),
        (("1,0.2500,0.50,0.12,#0a141e,,,kmeans-1\n", ""), ("no row for cluster 1", "1,void")),
        (("kmeans-1", "kmeans-2"), ("another run's clusters (kmeans-2)", "kmeans-1", "maskwright name RUN --map")),
        (("cluster,share", "id,share"), ("begins with 'id,share", "cluster,name")),
        (("name,agreement", "label,agreement"), ("header line with cluster and name",)),
        ((EMPTY, ""), ("begins with ''",)),
        ((EMPTY, "\0"), ("not text",)),
    ],
)
def test_what_is_wrong_is_told_in_one_line(table, change, words):
    table.write_text(EMPTY.replace(*change))
    with pytest.raises(MaskwrightError) as error:
        read_map(table, 3, "kmeans-1")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert error.value.expected and error.value.repair and "\n" not in str(error.value)


def test_the_repairs_of_lines_are_carried_out(table):
    table.write_text(EMPTY.replace("1,0.25", "0,0.25"))
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:2] + lines[3:]))  # delete line 3
    with pytest.raises(MaskwrightError, match="add the line 1,void to it"):
        read_map(table, 3, "kmeans-1")
    table.write_text("cluster,name\n0,a\n2,b\n")
    with pytest.raises(MaskwrightError, match="no row for cluster 1"):
        read_map(table, 3, "kmeans-1")
    table.write_text(table.read_text() + "1,void\n")
    assert read_map(table, 3, "kmeans-1").names == ("a", "void", "b")

"""Each row of a table script has settings that its method takes; what a table of the tables counts."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import adapt, lift, saliency, tags, unsupervised
from benchmarks.pair_agreement import agreeing
from benchmarks.round_labels import overlap, right

from maskwright.engine.config import configure
from maskwright.methods import find_method

ROWS = {
    "adapt": adapt.ENTRIES,
    "lift": lift.ENTRIES,
    "saliency": saliency.ROWS,
    "tags": {name: (row.method, row.settings) for name, row in tags.ROWS.items()},
    "unsupervised": {e.name: (e.method, e.settings) for e in unsupervised.ENTRIES if e.method not in ("otsu", "box")},
}
EACH = [(table, name) for table, rows in ROWS.items() for name in rows]


@pytest.mark.parametrize(("table", "name"), EACH, ids=[f"{t}-{n}" for t, n in EACH])
def test_the_row_is_taken_by_its_method(table, name):
    method, settings = ROWS[table][name]
    configure(find_method(method).Config, settings)


def test_row_names_are_given_once():
    names = [e.name for e in unsupervised.ENTRIES]
    assert len(names) == len(set(names))


def test_agreement_of_day_and_night_forgives_a_pixel_and_counts_no_void():
    night = np.full((5, 7), 2)
    night[2, 2], night[0] = 1, 255
    day = np.zeros((5, 7), int)
    day[:, 3:5] = 1
    hit, asked = agreeing(night, day, (0, 1), 3)
    assert asked.tolist() == [20, 8, 0], "four rows that the night knows, of five and of two columns"
    assert hit.tolist() == [0, 3, 0], "the neighbours of the only 1, right of it"


def test_labels_of_rounds_are_right_where_the_mask_has_their_class():
    labels, mask = np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 1]])
    assert right(labels, mask, 2).tolist() == [[1, 1], [2, 1]], "void labels and void truth count for nothing"
    assert right(np.array([[0, 1]]), np.array([[255, 0]]), 2).tolist() == [[0, 0], [0, 1]]
    found, true = np.array([[True, True, False, False]]), np.array([[False, True, True, True]])
    assert overlap(found, true) == (50.0, 75.0, 0.25)
    assert overlap(~found & found, true & ~true)[2] == 1.0

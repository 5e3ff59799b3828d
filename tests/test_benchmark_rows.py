"""Each row of a table script has settings that its method takes."""

from __future__ import annotations

import pytest
from benchmarks import adapt, lift, saliency, tags, unsupervised

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

"""Shapes of label maps, painted in the order in which a format draws them, against the maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskwright.data.annotations.shapes import NO_CLASS
from maskwright.data.annotations.tracing import changed_pixels, pieces_of
from maskwright.data.masking.classes import ClassTable

VALUES = st.sampled_from([0, 1, 2, 255])


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("names", [("background", "a", "b"), ("a", "b", "background"), ("a", "b", "c")])
@settings(max_examples=30)
@given(ids=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=VALUES))
def test_shapes_are_exact(names, ordered, ids):
    table = ClassTable(names)
    pieces = pieces_of(ids, table, tolerance=0, ordered=ordered)
    ground = names.index("background") if "background" in names else 255
    painted = np.full(ids.shape, ground)
    for piece in pieces:
        assert not (ordered and piece.holes)
        painted[piece.mask(ids.shape)] = 255 if piece.label == NO_CLASS else names.index(piece.label)
    assert np.array_equal(painted, ids) and changed_pixels(ids, table, pieces) == 0
    if not ordered and (ids != ground).any():
        assert "background" not in [piece.label for piece in pieces]

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.recipes.banks import FeatureBank


@given(st.integers(1, 7), st.lists(st.integers(0, 17), max_size=8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_is_a_deque(size, lengths, labels):
    bank, oracle, n = FeatureBank(size, 3, labels), deque(maxlen=size), 0
    for length in lengths:
        ids = torch.arange(n, n + length)
        rows = ids[:, None] * torch.tensor([1.0, 10.0, 100.0])
        bank.add(rows, ids if labels else None)
        oracle.extend(zip(rows.tolist(), ids.tolist()))
        n += length
        assert len(bank) == len(oracle) == len(bank.get())
        assert bank.get().tolist() == [row for row, _ in oracle]
        if labels:
            assert bank.get_ids().tolist() == [i for _, i in oracle]


def test_round_trip_in_the_middle_of_a_turn():
    a, b = FeatureBank(5, 2, labels=True), FeatureBank(5, 2, labels=True)
    a.add(torch.rand(4, 2), torch.arange(4))
    a.add(torch.rand(3, 2), torch.arange(4, 7))
    b.load_state_dict(a.state_dict())
    for bank in (a, b):
        bank.add(torch.ones(1, 2), torch.tensor([9]))
    assert torch.equal(a.get(), b.get()) and a.get_ids().tolist() == b.get_ids().tolist() == [3, 4, 5, 6, 9]


def test_keeps_no_gradient_and_no_alias():
    bank, rows = FeatureBank(4, 2), torch.rand(4, 2, requires_grad=True)
    bank.add(rows * 1)
    kept = bank.get().clone()
    with torch.no_grad():
        rows.zero_()
    assert not bank.get().requires_grad and torch.equal(bank.get(), kept)
    bank.get().zero_()
    assert torch.equal(bank.get(), kept)
    bank.add(torch.rand(2, 2, dtype=torch.float64))
    assert bank.get().dtype == torch.float32


def test_empty():
    bank = FeatureBank(3, 2)
    assert len(bank) == 0 and bank.get().shape == (0, 2)
    bank.add(torch.zeros(0, 2))
    assert len(bank) == 0


@pytest.mark.parametrize(
    "labels, rows, ids, words",
    [
        (True, (2, 3), None, "stores labels"),
        (False, (2, 3), (2,), "stores no labels"),
        (False, (2, 1), None, r"rows are \(2, 1\), expected \(n, 3\)"),
        (False, (3,), None, "rows are"),
        (True, (2, 3), (1,), "labels are"),
    ],
)
def test_what_does_not_fit_is_refused(labels, rows, ids, words):
    bank = FeatureBank(4, 3, labels)
    with pytest.raises(ValueError, match=words):
        bank.add(torch.zeros(rows), None if ids is None else torch.zeros(ids, dtype=torch.long))
    assert len(bank) == 0
    with pytest.raises(ValueError, match="at least one row"):
        FeatureBank(0, 3)

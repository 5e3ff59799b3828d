from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.losses.contrast import contrastive_loss
from maskwright.recipes.consistency import class_banks
from maskwright.recipes.consistency.class_banks import ClassBanks, RecentBank, gather_rows


def numbered(first, ids):
    """Rows (n, 2) that tell their own number."""
    number = torch.arange(first, first + len(ids)).float()
    return torch.stack([number, number * 10], 1)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 3), max_size=15), max_size=8),
)  # fmt: skip
@settings(max_examples=60)
def test_each_class_is_a_deque(sizes, additions):
    banks, oracle, n = ClassBanks(sizes, 2), [deque(maxlen=s) for s in sizes], 0
    for ids in additions:
        ids = torch.tensor([i % len(sizes) for i in ids], dtype=torch.long)
        rows = numbered(n, ids)
        banks.enqueue(rows, ids)
        n += len(ids)
        for row, i in zip(rows.tolist(), ids.tolist()):
            oracle[i].append(row)
        assert [banks.get(c).tolist() for c in range(len(sizes))] == [list(q) for q in oracle]
        assert [banks.count(c) for c in range(len(sizes))] == [len(q) for q in oracle]
    assert len(banks) == sum(map(len, oracle))


def test_enqueueing_past_the_size_keeps_the_newest():
    banks = ClassBanks([5, 3], 2)
    ids = torch.tensor([0, 1] * 20)
    banks.enqueue(numbered(0, ids), ids)
    assert banks.get(0)[:, 0].tolist() == [30, 32, 34, 36, 38] and banks.get(1)[:, 0].tolist() == [35, 37, 39]


def test_state_has_fixed_shapes_and_comes_back():
    a, b = ClassBanks([4, 3], 2), ClassBanks([4, 3], 2)
    empty = {k: v.shape for k, v in a.state_dict().items()}
    ids = torch.tensor([0, 0, 1, 0, 0, 0, 1])
    a.enqueue(numbered(0, ids), ids)
    assert {k: v.shape for k, v in a.state_dict().items()} == empty
    b.load_state_dict(a.state_dict())
    for banks in (a, b):
        banks.enqueue(numbered(50, ids[:2]), ids[:2])
    for c in range(2):
        assert torch.equal(a.get(c), b.get(c))
        draws = [x.sample(c, 3, torch.Generator().manual_seed(1)) for x in (a, b)]
        assert torch.equal(*draws)


def test_keeps_no_gradient_and_no_alias():
    banks, rows = ClassBanks([4], 2, dtype=torch.float16), torch.rand(3, 2, requires_grad=True)
    banks.enqueue(rows * 1, torch.zeros(3).long())
    kept = banks.get(0).clone()
    with torch.no_grad():
        rows.zero_()
    banks.sample(0, 2).zero_()
    assert banks.rows.dtype == torch.float16 and not banks.rows.requires_grad and torch.equal(banks.get(0), kept)


def test_sampling():
    banks, ids = ClassBanks([4, 100, 6], 2), torch.tensor([0, 1] * 8)
    banks.enqueue(numbered(0, ids), ids)
    g = torch.Generator().manual_seed(0)
    drawn = banks.sample(0, 500, g)
    assert drawn.shape == (500, 2) and set(drawn[:, 0].tolist()) == {8.0, 10.0, 12.0, 14.0}
    assert sorted(banks.sample(1, 8, g, replacement=False)[:, 0].tolist()) == list(range(1, 16, 2))
    assert len(banks.sample(1, 5, g, replacement=False)[:, 0].unique()) == 5
    assert len(banks.sample(1, 50, g, replacement=False)) == 8
    for replacement in (True, False):
        assert banks.sample(2, 5, g, replacement).shape == (0, 2)
    torch.manual_seed(3)
    a = banks.sample(1, 5)
    torch.manual_seed(3)
    assert torch.equal(a, banks.sample(1, 5))


def test_places_for_the_contrastive_loss():
    banks, ids = ClassBanks([4, 100, 6], 2), torch.tensor([0, 1] * 8)
    banks.enqueue(numbered(0, ids), ids)
    classes = torch.tensor([1, 0, 0, 1, 1])
    places = banks.index(classes, 300, torch.Generator().manual_seed(0))
    assert places.shape == (5, 300)
    for c, row in zip(classes.tolist(), banks.rows[places][..., 0]):
        assert set(row.tolist()) == set(banks.get(c)[:, 0].tolist())
    with pytest.raises(ValueError, match=r"classes \[2\] are empty"):
        banks.index(torch.tensor([0, 2]), 1)
    assert banks.index(classes[:0], 7).shape == (0, 7)
    anchors, positives = torch.rand(5, 2), torch.rand(5, 2)
    options = {"temperature": 50.0}
    gathered = contrastive_loss(anchors, positives, banks.rows, negative_index=places, **options)
    assert torch.allclose(gathered, contrastive_loss(anchors, positives, banks.rows[places], **options))


def test_shares_of_a_total():
    assert ClassBanks.within(650_000, 21, 1).sizes.tolist() == [50_000, *[30_000] * 20]
    for total, classes in ((21, 21), (100, 3), (7, 1), (1000, 150)):
        sizes = ClassBanks.within(total, classes, 4).sizes
        assert int(sizes.sum()) == total and len(sizes) == classes and int(sizes.min()) >= 1


def two_processes(monkeypatch, other):
    """This process is the first of two; the second says `other`."""
    monkeypatch.setattr(class_banks, "world_size", lambda: 2)
    monkeypatch.setattr(class_banks, "gather_objects", lambda value: [value, other])


def test_rows_of_all_processes_in_their_order(monkeypatch):
    ids, others = torch.tensor([0, 1, 0]), torch.tensor([1, 0])
    alone = gather_rows(numbered(0, ids), ids)
    assert torch.equal(alone[0], numbered(0, ids)) and torch.equal(alone[1], ids)
    banks, local = ClassBanks([3, 3], 2), ClassBanks([3, 3], 2)
    two_processes(monkeypatch, (numbered(100, others), others))
    banks.enqueue(numbered(0, ids), ids)
    assert banks.get(0)[:, 0].tolist() == [0, 2, 101] and banks.get(1)[:, 0].tolist() == [1, 100]
    local.enqueue(numbered(0, ids), ids, gather=False)
    assert local.get(0)[:, 0].tolist() == [0, 2]
    recent = RecentBank(1, 3, 2)
    recent.add(numbered(0, ids), ids)
    assert len(recent.rows) == 6 and recent.get()[:, 0].tolist() == [0, 1, 2, 100, 101]
    assert recent.get_ids().tolist() == [0, 1, 0, 1, 0]


@given(st.integers(1, 4), st.lists(st.integers(0, 6), max_size=9))
@settings(max_examples=60)
def test_the_last_iterations(iterations, lengths):
    bank, oracle, n = RecentBank(iterations, 6, 2), deque(maxlen=iterations), 0
    for length in lengths:
        ids = torch.arange(n, n + length)
        bank.add(numbered(n, ids), ids)
        oracle.append(ids.tolist())
        n += length
        expected = [i for added in oracle for i in added]
        assert bank.get_ids().tolist() == expected and len(bank) == len(expected)
        assert bank.get()[:, 0].tolist() == expected


def test_the_last_iterations_come_back():
    a, b, ids = RecentBank(2, 4, 2), RecentBank(2, 4, 2), torch.arange(4)
    for k in (4, 2, 3):
        a.add(numbered(0, ids[:k]), ids[:k])
    b.load_state_dict(a.state_dict())
    for bank in (a, b):
        bank.add(numbered(9, ids[:1]), ids[:1])
    assert torch.equal(a.get(), b.get()) and a.get_ids().tolist() == b.get_ids().tolist() == [0, 1, 2, 0]


def test_what_does_not_fit_is_refused():
    banks, recent = ClassBanks([2, 2], 3), RecentBank(2, 3, 2)
    for call, words in (
        (lambda: ClassBanks([], 3), "queues of"),
        (lambda: ClassBanks([2, 0], 3), "queues of"),
        (lambda: ClassBanks([2], 3, torch.int64), "floating"),
        (lambda: ClassBanks.within(2, 3, 4), "2 rows for 3 classes"),
        (lambda: banks.enqueue(torch.zeros(2, 2), torch.zeros(2).long()), "rows are"),
        (lambda: banks.enqueue(torch.zeros(2, 3), torch.zeros(1).long()), "ids"),
        (lambda: banks.enqueue(torch.zeros(2, 3), torch.tensor([0, 2])), "expected 0 to 1"),
        (lambda: banks.enqueue(torch.zeros(2, 3), torch.tensor([0, -1])), "expected 0 to 1"),
        (lambda: RecentBank(0, 3, 2), "0 iterations"),
        (lambda: recent.add(torch.zeros(4, 2), torch.zeros(4).long()), "at most 3"),
        (lambda: recent.add(torch.zeros(2, 2)), "stores labels"),
        (lambda: recent.add(torch.zeros(2, 3), torch.zeros(2).long()), "rows are"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert len(banks) == len(recent) == 0 and not recent.added.any()

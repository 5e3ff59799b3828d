from __future__ import annotations

import pytest
import torch

from maskwright.ops.memory import PixelBudget


class Card:
    """Holds so many images at a time."""

    def __init__(self, fits: int) -> None:
        self.fits, self.tried = fits, []

    def work(self, items):
        self.tried.append(len(items))
        if len(items) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [i * 10 for i in items]


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("count", [0, 1, 7, 16])
def test_every_item_comes_once_in_order_whatever_fits(fits, count):
    card, budget = Card(fits), PixelBudget(16 * 6)
    made = list(budget.batches(range(count), (2, 3), card.work))
    assert [i for chosen, _ in made for i in chosen] == list(range(count))
    assert [r for _, results in made for r in results] == [10 * i for i in range(count)]
    assert all(len(chosen) <= fits for chosen, _ in made)


def test_what_was_learned_is_kept():
    card, budget = Card(3), PixelBudget(16 * 6)
    list(budget.batches(range(16), (2, 3), card.work))
    assert card.tried[:4] == [16, 8, 4, 2] and budget.pixels == 12
    card.tried.clear()
    list(budget.batches(range(4), (2, 3), card.work))
    assert card.tried == [2, 2]


def test_one_that_does_not_fit_is_told():
    with pytest.raises(torch.OutOfMemoryError):
        list(PixelBudget(1).batches([1], (2, 3), Card(0).work))


def test_other_errors_pass():
    def work(items):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(PixelBudget(100).batches([1, 2], (2, 3), work))

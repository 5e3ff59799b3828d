"""The replay pool and the gate of accuracies."""

from __future__ import annotations

import pytest
import torch

from maskwright.recipes.adversarial.replay import AccuracyGate, ReplayPool, accuracy


def numbered(first: int, count: int = 1) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.float32).reshape(-1, 1, 1, 1)


def test_stored_images_come_back_half_of_the_time():
    torch.manual_seed(0)
    pool, n = ReplayPool(50), 4000
    assert [float(pool(numbered(k))) for k in range(50)] == list(range(50)), "it fills first"
    given = [float(pool(numbered(k))) for k in range(50, 50 + n)]
    old = sum(one != k for k, one in enumerate(given, 50))
    assert abs(old / n - 0.5) < 4 * 0.5 / n**0.5
    assert len(pool.images) == 50 and len(set(given)) == n, "what was given back is kept no more"


def test_what_is_given_has_no_gradient_and_no_pool_gives_what_comes():
    x = numbered(0, 3).requires_grad_(True)
    assert not ReplayPool(2)(x).requires_grad
    none = ReplayPool(0)
    assert torch.equal(none(x), x) and not none.images


def test_a_pool_goes_on_where_its_state_was_taken():
    torch.manual_seed(1)
    pool, other = ReplayPool(3), ReplayPool(3)
    pool(numbered(0, 9))
    other.load_state_dict(pool.state_dict())
    for k in range(10, 30):
        torch.manual_seed(k)
        one = pool(numbered(k, 2))
        torch.manual_seed(k)
        assert torch.equal(other(numbered(k, 2)), one)


def test_the_gate_is_closed_to_a_discriminator_that_guesses():
    gate = AccuracyGate(0.6, 4)
    assert not gate.open, "nothing was seen yet"
    assert not any(gate.push(0.5) for _ in range(9))
    assert not gate.push(0.9), "(0.5 + 0.5 + 0.5 + 0.9) / 4 is 0.6, and not above it"
    assert gate.push(0.6) and gate.opened == 1
    other = AccuracyGate(0.6, 4)
    other.load_state_dict(gate.state_dict())
    assert other.open and other.opened == 1 and other.push(0.0) is gate.push(0.0) is False


def test_accuracy_is_the_share_that_is_right():
    assert accuracy(torch.tensor([True, False, True, True])) == pytest.approx(0.75)

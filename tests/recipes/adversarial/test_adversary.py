"""A discriminator as a part: its loss, its freeze, its step."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from maskwright.engine.updating import take_step
from maskwright.recipes.adversarial.adversary import Adversary, adversarial

CPU = torch.device("cpu")


class Plain:
    """What is asked of a fabric here."""

    def backward(self, loss):
        loss.backward()


def adversary(lr: float = 0.01) -> Adversary:
    torch.manual_seed(0)
    return Adversary(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), CPU, lr)


def maps(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- the loss


def test_adversarial_is_binary_cross_entropy():
    g = torch.Generator().manual_seed(0)
    d, valid = torch.randn(2, 3, 4, generator=g), torch.rand(2, 3, 4, generator=g) > 0.4
    for real in (True, False):
        total, n = 0.0, 0
        for v, ok in zip(d.flatten().tolist(), valid.flatten().tolist()):
            p = 1 / (1 + math.exp(-v))
            if ok:
                total -= math.log(p if real else 1 - p)
                n += 1
        assert float(adversarial(d, real, valid)) == pytest.approx(total / n, rel=1e-5)
    assert float(adversarial(torch.zeros(3), True)) == pytest.approx(math.log(2))


def test_label_convention():
    """The segmenter wants the verdict that the discriminator gives to people's labels."""
    d = torch.tensor([4.0])
    assert adversarial(d, True) < adversarial(d, False)
    d.requires_grad_(True)
    adversarial(d, True).backward()
    assert d.grad < 0, "S pushes the verdict up"


def test_no_valid_pixel_is_zero_and_a_sure_verdict_is_finite():
    assert float(adversarial(torch.ones(1, 2, 2), True, torch.zeros(1, 2, 2, dtype=torch.bool))) == 0
    assert float(adversarial(torch.tensor([1000.0]), False)) == 1000


# ---------------------------------------------------------------------- the freeze


def test_freeze_gives_the_state_back():
    a = adversary()
    d = a.discriminator
    d[2].bias.requires_grad_(False)
    x = maps(3, 1).requires_grad_(True)
    with pytest.raises(RuntimeError, match="on purpose"), a.frozen() as judge:
        assert judge is d and not any(p.requires_grad for p in d.parameters())
        judge(x).sum().backward()
        raise RuntimeError("on purpose")
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in d.parameters())
    assert all(p.requires_grad for p in (*d[0].parameters(), d[2].weight)) and not d[2].bias.requires_grad


def test_a_frozen_judge_says_the_same_and_gives_the_same_gradient():
    a, x, y = adversary(), maps(3, 1).requires_grad_(True), maps(3, 1).requires_grad_(True)
    with a.frozen() as judge:
        verdicts = judge(x)
        verdicts.sum().backward()
    learning = a(y)
    learning.sum().backward()
    assert torch.equal(verdicts, learning) and torch.equal(x.grad, y.grad)
    assert all(p.grad is not None for p in a.discriminator.parameters()), "outside it learns"


# ---------------------------------------------------------------------- the step


def test_a_step_is_adams_on_its_own_gradient_alone():
    a, real, fake = adversary(), maps(5, 1), maps(5, 2)
    alone = copy.deepcopy(a.discriminator)
    adam = torch.optim.Adam(alone.parameters(), lr=0.01, betas=(0.9, 0.99))
    for _ in range(3):
        a(maps(2, 3)).sum().backward()  # left by another loss
        take_step([a.optimizer], Plain(), adversarial(a(real), True) + adversarial(a(fake), False))
        adam.zero_grad()
        labels = torch.cat([torch.ones(5, 1), torch.zeros(5, 1)])
        both = nn.functional.binary_cross_entropy_with_logits(alone(torch.cat([real, fake])), labels)
        (2 * both).backward()
        adam.step()
    for p, q in zip(a.discriminator.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_steps_tell_real_from_fake():
    a, real, fake = adversary(lr=0.05), maps(20, 1) + 1, maps(20, 2) - 1
    for _ in range(60):
        take_step([a.optimizer], Plain(), adversarial(a(real), True) + adversarial(a(fake), False))
    assert float((a(real) > 0).float().mean()) > 0.9 and float((a(fake) < 0).float().mean()) > 0.9

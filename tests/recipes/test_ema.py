"""The six sanity tests of Mean Teacher, and the policies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskwright.recipes.ema import EMATeacher


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def shake(module: nn.Module, seed: int = 1) -> None:
    """Moves parameters and batch-norm statistics."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))
    module.train()(torch.randn(4, 3, 8, 8))


def floats(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_before_any_update_it_is_the_student():
    s, x = student(), torch.randn(2, 3, 8, 8)
    shake(s)
    assert torch.equal(EMATeacher(s)(x), s.eval()(x))


@pytest.mark.parametrize("buffers", ["ema", "copy"])
def test_the_first_update_copies(buffers):
    s = student()
    teacher = EMATeacher(s, 0.99, buffers)
    shake(s)
    teacher.update(s)
    assert all(torch.equal(v, s.state_dict()[k]) for k, v in teacher.module.state_dict().items())


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.register_buffer("b", torch.tensor(value, dtype=torch.float64))
        self.register_buffer("n", torch.tensor(int(value)))


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9, 0.999, 1.0])
def test_closed_form(a):
    """Student at 1, teacher at 0, constant momentum: 1 - a^k after k updates."""
    teacher, s = EMATeacher(Scalar(0.0), a, warm=False), Scalar(1.0)
    for k in range(1, 30):
        teacher.update(s)
        assert float(teacher.module.w) == pytest.approx(1 - a**k, abs=1e-12)
        assert float(teacher.module.b) == pytest.approx(1 - a**k, abs=1e-12)
        assert int(teacher.module.n) == 1


def test_closed_form_after_the_copy():
    """With a_max = 1/2: the first update copies (1), then the student stays at 0: a^k."""
    teacher = EMATeacher(Scalar(0.0), 0.5)
    teacher.update(Scalar(1.0))
    assert float(teacher.module.w) == 1.0
    for k in range(1, 10):
        teacher.update(Scalar(0.0))
        assert float(teacher.module.w) == pytest.approx(0.5**k)


def test_while_warm_it_is_the_mean_of_all_students():
    """With a = 1 - 1/(n + 1) the teacher is the plain mean of the students seen, until a_max."""
    teacher, seen = EMATeacher(Scalar(7.0), 0.9), []
    for n in range(10):
        seen.append(float(n * n % 7))
        teacher.update(Scalar(seen[-1]))
        assert float(teacher.module.w) == pytest.approx(sum(seen) / len(seen))
    before = float(teacher.module.w)
    teacher.update(Scalar(1.0))
    assert float(teacher.module.w) == pytest.approx(0.9 * before + 0.1)
    teacher.update(Scalar(5.0), momentum=0.0)
    assert float(teacher.module.w) == 5.0


def test_a_student_that_stands_still_leaves_it():
    s = student()
    teacher = EMATeacher(s, 0.9)
    before = floats(teacher.module)
    for _ in range(5):
        teacher.update(s)
    assert all(torch.allclose(v, before[k], rtol=1e-6) for k, v in teacher.module.state_dict().items())


def test_it_shares_nothing_with_the_student():
    s = student()
    teacher = EMATeacher(s)
    for buffers in ("ema", "copy", "own"):
        teacher.buffer_policy = buffers
        teacher.update(s)
    mine = {t.data_ptr() for t in teacher.module.state_dict().values()}
    assert mine.isdisjoint(t.data_ptr() for t in s.state_dict().values())
    before = floats(teacher.module)
    shake(s)
    assert all(torch.equal(v, before[k]) for k, v in teacher.module.state_dict().items())


def test_an_optimiser_holds_none_of_it():
    s = student()
    teacher = EMATeacher(s)
    optimizer = torch.optim.SGD([p for p in nn.ModuleList([s, teacher]).parameters() if p.requires_grad], lr=1.0)
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in s.parameters()}
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert not teacher(x).requires_grad


def test_a_round_trip_keeps_the_count():
    s, other = student(), student()
    teacher = EMATeacher(s, 0.99)
    for k in range(3):
        shake(s, k)
        teacher.update(s)
    again = EMATeacher(other, 0.99)
    again.load_state_dict(teacher.state_dict())
    assert again.updates == 3
    shake(s, 9)
    teacher.update(s)
    again.update(s)
    assert all(torch.equal(v, again.module.state_dict()[k]) for k, v in teacher.module.state_dict().items())


def test_policies_for_buffers():
    s = student()
    teachers = {b: EMATeacher(s, 0.75, b, warm=False) for b in ("ema", "copy", "own")}
    old = floats(s)
    shake(s)
    new = floats(s)
    expected = {"ema": 0.75 * old["1.running_mean"] + 0.25 * new["1.running_mean"], "copy": new["1.running_mean"],
                "own": old["1.running_mean"]}  # fmt: skip
    for policy, teacher in teachers.items():
        teacher.update(s)
        state = teacher.module.state_dict()
        assert torch.allclose(state["1.running_mean"], expected[policy], rtol=1e-6, atol=1e-7), policy
        assert int(state["1.num_batches_tracked"]) == (0 if policy == "own" else 1)
        assert torch.allclose(state["0.weight"], 0.75 * old["0.weight"] + 0.25 * new["0.weight"], atol=1e-6)


def test_its_mode_is_its_own():
    both = nn.ModuleList([student(), EMATeacher(student()), EMATeacher(student(), mode="train")])
    both.train()
    evaluating, training = both[1].module, both[2].module
    assert not any(m.training for m in evaluating.modules())
    assert training[1].training and not training[3].training
    both.eval()
    assert training[1].training

    before = both[2].module[1].running_mean.clone()
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(both[2](x), both[2](x)), "no dropout"
    assert not torch.equal(both[2].module[1].running_mean, before), "its own statistics move"
    before = both[1].module[1].running_mean.clone()
    both[1](x)
    assert torch.equal(both[1].module[1].running_mean, before)


def test_bad_arguments():
    with pytest.raises(ValueError, match="momentum"):
        EMATeacher(student(), 1.1)
    with pytest.raises(ValueError, match="buffers"):
        EMATeacher(student(), 0.9, "average")
    with pytest.raises((ValueError, RuntimeError)):
        EMATeacher(student()).update(nn.Linear(2, 2))


def test_frozen_norms_of_the_student_stay_frozen_in_the_teacher():
    """`mode="train"` trains the statistics of those layers alone whose student's learn."""
    s = nn.Sequential(student(), nn.BatchNorm2d(2)).train()
    s[0][1].eval()
    teacher, x = EMATeacher(s, 0.9, "own", mode="train"), torch.randn(4, 3, 8, 8)
    teacher(x)
    assert float(teacher.module[0][1].running_mean.abs().sum()) == 0
    assert float(teacher.module[1].running_mean.abs().sum()) > 0

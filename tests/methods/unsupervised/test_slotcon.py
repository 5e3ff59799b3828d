"""SlotCon: invariants of its losses, the teacher, ablations, readouts, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from tests.conftest import write_tiny_folder
from tests.methods.unsupervised.small import parts_of, steps_of, trainer

from maskwright.engine.config import configure
from maskwright.engine.schedules import cosine_value
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.slotcon import losses as L
from maskwright.methods.unsupervised.slotcon.options import SlotConConfig
from maskwright.models.parts.projector import Projector
from maskwright.models.parts.table import build_part

TINY = {
    "crops.size": 32,
    "crops.batch": 4,
    "groups.hidden": 16,
    "groups.width": 8,
    "clusters.restarts": 2,
    "precision": "fp32",
}
train = trainer("slotcon", TINY)


@pytest.fixture(autouse=True)
def seeded():
    """Networks that tests make have the same weights each time."""
    torch.manual_seed(0)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_slots_of_a_constant_map_are_that_constant_and_scores_are_cosines():
    x = draw(2, 6, 1, 1).expand(-1, -1, 3, 4)
    g = L.group(x, draw(5, 6, seed=1), 0.07)
    torch.testing.assert_close(g.slots, x[:, :, 0, 0][:, None].expand(-1, 5, -1))
    assert float(g.scores.abs().max()) <= 1 + 1e-6
    again = L.group(3 * x, 0.5 * draw(5, 6, seed=1), 0.07)
    torch.testing.assert_close(again.scores, g.scores)
    torch.testing.assert_close(again.slots, 3 * g.slots)  # slots are of projections as they are


def test_of_equal_scores_the_grouping_loss_is_entropy_and_divergence_and_the_teacher_is_sharper():
    q = draw(2, 5, 3, 3)
    p_t, p_s = (q / 0.07).softmax(1), (q / 0.1).softmax(1)
    entropy = -torch.special.xlogy(p_t, p_t).sum(1).mean()
    divergence = (torch.special.xlogy(p_t, p_t) - p_t * p_s.log()).sum(1).mean()
    loss = L.grouping_loss(q, q, torch.zeros(5), 0.1, 0.07)
    torch.testing.assert_close(loss, entropy + divergence)
    assert bool((p_t.amax(1) >= p_s.amax(1)).all())


def test_no_gradient_reaches_the_teacher_and_the_centre_is_a_running_mean():
    q, k = draw(2, 4, 3, 3).requires_grad_(), draw(2, 4, 3, 3, seed=1).requires_grad_()
    slots = draw(2, 4, 6, seed=2).requires_grad_()
    center = L.Center(4, 0.9)
    everywhere = torch.ones(2, 4, dtype=torch.bool)
    slot, *_ = L.slot_loss(draw(2, 4, 6), slots, everywhere, everywhere, Projector(6, 8, 6), 0.2)
    (L.grouping_loss(q, k, center.value, 0.1, 0.07) + slot).backward()
    assert q.grad.any() and k.grad is None and slots.grad is None
    for _ in range(60):
        center.update(torch.ones(1, 4, 2, 2))
    torch.testing.assert_close(center.value, torch.full((4,), 1 - 0.9**60))
    # a score that is high everywhere counts no more once it is the centre
    high = torch.zeros(1, 4, 1, 1)
    high[:, 0] = 5.0
    even = L.grouping_loss(torch.zeros(1, 4, 1, 1), high, high[0, :, 0, 0], 0.1, 0.07)
    torch.testing.assert_close(even, torch.tensor(4.0).log())


def test_a_perfect_match_of_one_prototype_costs_little_and_a_wrong_one_much():
    one = torch.zeros(4, 3, dtype=torch.bool)
    one[:, 1] = True
    k = torch.eye(4)[:, None].expand(-1, 3, -1)
    right, n, _ = L.slot_loss(k, k, one, one, lambda x: x, 0.05)
    wrong, *_ = L.slot_loss(k.roll(1, 0), k, one, one, lambda x: x, 0.05)
    assert int(n) == 4 and float(right) < 1e-4 < 1 < float(wrong)


def test_winners_and_momentum():
    scores = torch.tensor([[3.0, 1, 2], [0, 2, 9], [1, 1, 1]]).view(1, 3, 1, 3)
    assert L.winners(scores).tolist() == [[True, True, False]]
    assert cosine_value(0.99, 1.0, 0, 100) == pytest.approx(0.99)
    assert cosine_value(0.99, 1.0, 100, 100) == 1.0


def test_a_projector_is_the_same_for_places_and_rows_and_survives_its_spec():
    head = Projector(5, 7, 3).train()
    x = draw(2, 5, 3, 4)
    rows = head(x.permute(0, 2, 3, 1).flatten(0, 2))
    torch.testing.assert_close(head(x).permute(0, 2, 3, 1).flatten(0, 2), rows)
    again = build_part(json.loads(json.dumps(head.spec())))
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.eval()(x), head.eval()(x))


def test_ablations_and_features_that_are_clustered(data, tmp_path):
    """More prototypes than clusters, k-means of the features; no slots, no centre."""
    settings = {"groups.count": 5, "readout.by": "clusters", "loss.slots": False, "loss.centring": False}
    model = train(data, tmp_path / "run", **settings, **{"teacher.keep": "student"})
    assert model.segmenter.classifier.classes == 3
    lines = steps_of(tmp_path / "run")
    assert all("slot" not in m and m["loss"] == m["group"] for m in lines)
    left = parts_of(tmp_path / "run")
    assert not left["module.center"]["value"].any()
    prototypes = left["module.network"]["classifier.centers"]
    assert len(prototypes) == 5
    lengths = prototypes.norm(dim=1)  # k-means of features gave them, each as long as random ones are on average
    torch.testing.assert_close(lengths, torch.full((5,), 8.0).sqrt(), atol=0.05, rtol=0)


def test_more_prototypes_than_places_are_refused_by_the_option_that_asks_for_them(data, tmp_path):
    by = {"readout.by": "clusters", "groups.start": "kmeans"}
    with pytest.raises(MaskwrightError, match=r"3000 clusters from .*ask for fewer with groups\.count"):
        train(data, tmp_path / "many", 1, **by, **{"groups.count": 3000})
    train(data, tmp_path / "fewer", 1, **by, **{"groups.count": 4})


def test_a_photograph_left_over_begins_with_both_its_views_and_single_places_are_told(tmp_path):
    """Maps of one place: the last of three photographs in twos is alone where the first prototypes are found."""
    three = write_tiny_folder(tmp_path / "three", count=3)
    small = {"crops.size": 16, "network.name": "auto"}
    with pytest.raises(MaskwrightError, match=r"one value a channel.*crops\.size=16, crops\.batch=1.*raise one"):
        train(three, tmp_path / "one", steps=1, **small, **{"crops.batch": 1})
    train(three, tmp_path / "two", steps=1, **small, **{"crops.batch": 2})


@pytest.mark.slow
def test_lars_as_published_and_the_teacher_follows(data, tmp_path):
    settings = {"optimizer.name": "lars", "optimizer.lr": 0.5, "schedule": "cosine", "warm": 1.0, "start": "random"}
    train(data, tmp_path / "run", steps=6, **settings)
    left = parts_of(tmp_path / "run")
    teacher, student = left["module.teacher"], left["module.network"]
    moved = [k for k in student if not torch.equal(teacher[f"module.{k}"], student[k])]
    assert any(k.startswith("encoder") for k in moved) and "classifier.centers" in moved
    assert left["module.center"]["value"].any()
    assert all("slot" in m and m["shared"] == 1.0 for m in steps_of(tmp_path / "run"))


def test_what_cannot_be(data, tmp_path):
    paper = configure(SlotConConfig, {"preset": "paper"})
    assert (paper.optimizer.name, paper.optimizer.lr, paper.groups.hidden) == ("lars", 2.0, 4096)
    assert configure(SlotConConfig, {"preset": "paper_features"}).groups.count == 256
    with pytest.raises(MaskwrightError, match="lars"):
        configure(SlotConConfig, {"optimizer.name": "lars"})
    with pytest.raises(MaskwrightError, match="whole photograph"):
        configure(SlotConConfig, {"scale_max": 1.5})
    with pytest.raises(MaskwrightError, match="5 prototypes for 3 clusters"):
        train(data, tmp_path / "a", **{"groups.count": 5})
    with pytest.raises(MaskwrightError, match="the encoder has"):
        train(data, tmp_path / "b", **{"groups.level": -8})

"""InfoSeg: landmarks of the bound, gradients, a toy that it divides, options."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import write_tiny_folder
from tests.methods.unsupervised.small import trainer

import maskwright as mw
from maskwright.engine.config import configure
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised import infoseg as I
from maskwright.methods.unsupervised.infoseg import InfoSegConfig, imbalance, jensen_shannon
from maskwright.models.parts.class_vectors import ClassVectors
from maskwright.models.parts.heads import Identity


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class First(Identity):
    """The first map of a list."""

    def forward(self, x):
        return x[0]


def test_landmarks():
    """Nothing: 2 log 2. Right: 0. Equal photographs: at least 2 log 2."""
    local, vectors = torch.zeros(2, 3, 2, 2), draw(2, 4, 3)
    assert float(jensen_shannon(local, vectors, 1.0).loss) == pytest.approx(2 * math.log(2))
    local = torch.tensor([50.0, -50.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert float(jensen_shannon(local, local[:, :, 0, 0][:, None], 1.0).loss) == pytest.approx(0, abs=1e-6)
    same = draw(1, 3, 2, 2, seed=1).expand(2, -1, -1, -1)
    assert float(jensen_shannon(same, draw(1, 4, 3).expand(2, -1, -1), 1.0).loss) >= 2 * math.log(2)
    assert jensen_shannon(1e3 * draw(2, 3, 2, 2), 1e3 * draw(2, 4, 3), 1.0).loss.isfinite()


def test_one_class_is_deep_infomax_and_assignments_are_convex():
    local, vectors = draw(3, 5, 2, 2), draw(3, 1, 5)
    bound = jensen_shannon(local, vectors, 1.0)
    assert torch.equal(bound.s, vectors[:, 0, :, None, None].expand_as(bound.s))
    many = jensen_shannon(local, draw(3, 4, 5), 1.0)
    low, high = draw(3, 4, 5).amin(1), draw(3, 4, 5).amax(1)
    assert bool(((many.s >= low[..., None, None] - 1e-5) & (many.s <= high[..., None, None] + 1e-5)).all())


@pytest.mark.parametrize("negatives", ["local", "classes"])
def test_gradients_reach_both_sides_and_choices_differ(negatives):
    def of(**options):
        local, vectors = draw(3, 5, 2, 2, seed=3).requires_grad_(), draw(3, 4, 5, seed=4).requires_grad_()
        loss = jensen_shannon(local, vectors, 0.5, negatives=negatives, **options).loss
        loss.backward()
        assert bool(local.grad.any()) and bool(vectors.grad.any())
        return loss.item(), local.grad

    loss, grad = of()
    held, held_grad = of(detach=True)
    assert held == loss and not torch.allclose(grad, held_grad)
    assert of(shift=2)[0] != loss
    other = {"local": "classes", "classes": "local"}[negatives]
    assert jensen_shannon(draw(3, 5, 2, 2, seed=3), draw(3, 4, 5, seed=4), 0.5, negatives=other).loss.item() != loss


def test_even_assignments_are_not_punished():
    assert float(imbalance(torch.full((2, 4, 3, 3), 0.25))) == pytest.approx(0, abs=1e-6)
    one = torch.zeros(2, 4, 3, 3)
    one[:, 1] = 1
    assert float(imbalance(one)) == pytest.approx(math.log(4))


@pytest.mark.parametrize("negatives", ["local", "classes"])
def test_places_outside_a_photograph_do_not_count(negatives):
    """Pairs by hand: a negative counts where both photographs' places do."""
    local, vectors = draw(3, 5, 4, 4), draw(3, 2, 5, seed=1)
    valid = torch.ones(3, 4, 4, dtype=torch.bool)
    valid[0, 3], valid[1, :, 0] = False, False
    bound = jensen_shannon(local, vectors, 0.7, negatives=negatives, valid=valid)
    positive = [math.log1p(math.exp(-float(t))) for t in bound.positive[valid]]
    negative = [
        math.log1p(math.exp(float(bound.negative[b, y, x])))
        for b in range(3) for y in range(4) for x in range(4) if valid[b, y, x] and valid[(b + 1) % 3, y, x]
    ]  # fmt: skip
    assert (len(positive), len(negative)) == (40, 48 - 4 - 7 - 4)
    mean = sum(positive) / len(positive) + sum(negative) / len(negative)
    assert float(bound.loss) == pytest.approx(mean, rel=1e-5)
    other = torch.where(valid[:, None], local, 9.0)
    assert float(jensen_shannon(other, vectors, 0.7, negatives=negatives, valid=valid).loss) == pytest.approx(mean)
    p = torch.zeros(1, 2, 2, 4)
    p[:, 0, :, :2], p[:, 1, :, 2:] = 1, 1
    assert float(imbalance(p)) == pytest.approx(0, abs=1e-6)
    assert float(imbalance(p, torch.tensor([True, True, False, False]).expand(1, 2, 4))) == pytest.approx(math.log(2))


def test_two_crops_of_one_photograph_are_no_negatives():
    """Of three crops the first two are of one photograph: what the first is told apart from is itself."""
    local, vectors = draw(3, 5, 2, 2), draw(3, 2, 5, seed=1)
    bound = jensen_shannon(local, vectors, 1.0, photographs=torch.tensor([7, 7, 2]))
    wanted = F.softplus(-bound.positive).mean() + F.softplus(bound.negative[1:]).mean()
    torch.testing.assert_close(bound.loss, wanted)
    alone = jensen_shannon(local, vectors, 1.0, photographs=torch.tensor([7, 7, 7]))
    torch.testing.assert_close(alone.loss, F.softplus(-bound.positive).mean())


def test_padding_is_told_to_the_bound(tmp_path, monkeypatch):
    """Crops of 96 around photographs of at most 64 pixels."""
    seen = []
    real = I.jensen_shannon
    monkeypatch.setattr(I, "jensen_shannon", lambda *a, **k: seen.append(k) or real(*a, **k))
    settings = {"network.name": "infoseg_cnn", "local": "encoder", "crops.size": 96, "crops.batch": 2, "dim": 8}
    settings |= {"crops.scale_min": 1.0, "crops.scale_max": 1.0}
    trainer("infoseg", settings)(write_tiny_folder(tmp_path / "tiny"), tmp_path / "run", 1)
    assert 0.2 < float(seen[0]["valid"].float().mean()) < 0.5, "about 48 x 64 of 96 x 96"
    assert len(set(seen[0]["photographs"].tolist())) == 2


def test_negatives_need_two_photographs_in_each_process(monkeypatch):
    monkeypatch.setattr("maskwright.engine.distributed.world_size", lambda: 2)
    context = SimpleNamespace(data=range(8))
    with pytest.raises(MaskwrightError, match="at least 4: negatives are other"):
        I.InfoSegTraining(context, configure(InfoSegConfig, {"batch": 3}), 10)


def test_a_shift_gives_crops_a_negative_where_there_is_one_and_it_is_said_where_there_is_none():
    assert I.negative_shift((4, 5, 6), 2) == 2, "as drawn"
    assert I.negative_shift((4, 5, 4, 5), 2) == 3 and I.negative_shift((4, 4, 5, 5, 4, 4), 5) == 5
    assert I.negative_shift((4, 4), 1) is None and I.negative_shift((4,), 1) is None
    local, vectors, notes = draw(2, 5, 2, 2), draw(2, 3, 5, seed=1), []
    training = SimpleNamespace(
        config=configure(InfoSegConfig, {}), context=SimpleNamespace(note=notes.append), health=lambda *_: {},
        network=SimpleNamespace(decoder=SimpleNamespace(both=lambda _: (local, vectors)), features=lambda x: x),
        student=SimpleNamespace(autocast=nullcontext),
    )  # fmt: skip
    for images, negatives in (((4, 4), 0), ((4, 5), 1)):
        u = SimpleNamespace(weak=local, valid=torch.ones(2, 2, 2, dtype=torch.bool), images=images)
        assert I.InfoSegTraining.losses(training, {"u": u}, 0)["negatives"] == negatives
    assert notes == [I.NO_NEGATIVE]


def test_two_colours_are_divided():
    """Photographs of two of four colours, left and right, in shares of their own: 150 steps divide each at its edge."""
    torch.manual_seed(0)
    colours = torch.tensor([[1.0, -1, 0], [-1, 1, 0]])
    images = torch.zeros(8, 3, 6, 8)
    for b in range(8):
        edge = 2 + b % 5
        images[b, :, :, :edge], images[b, :, :, edge:] = colours[0][:, None, None], colours[1][:, None, None]
    images += 0.1 * draw(*images.shape)
    head = ClassVectors(First(), 3, 3, 2, 8)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    for step in range(150):
        bound = jensen_shannon(*head.both([images]), 1.0, shift=1 + step % 7)
        optimizer.zero_grad()
        (bound.loss + imbalance(bound.p)).backward()
        optimizer.step()
    ids = head([images]).argmax(1)
    for b in range(8):
        edge = 2 + b % 5
        left, right = ids[b, :, :edge].float().mean(), ids[b, :, edge:].float().mean()
        assert abs(float(left - right)) > 0.95
    assert len({int(i[0, 0]) for i in ids}) == 1, "a cluster is the same colour in every photograph"


def test_the_papers_network_and_what_cannot_be(tmp_path):
    paper = configure(InfoSegConfig, {"preset": "paper"})
    assert (paper.network.name, paper.vectors.local, paper.bound.balance) == ("infoseg_cnn", "encoder", 0.0)
    with pytest.raises(MaskwrightError, match="negatives are other photographs"):
        configure(InfoSegConfig, {"batch": 1})
    data = write_tiny_folder(tmp_path / "tiny")
    settings = {"network.name": "infoseg_cnn", "local": "encoder", "crops.size": 32, "crops.batch": 2, "dim": 16}

    def train(data, out):
        return mw.train(
            data, "infoseg", out=out, classes=3, backbone="mobilenetv3_small_050", weights="random", steps=1,
            device="cpu", settings=settings | {"unit_length": True, "negatives": "classes"}, report=False,
            progress=Progress(quiet=True),
        )  # fmt: skip

    train(data, tmp_path / "run")
    head = mw.load(tmp_path / "run").segmenter.decoder
    assert (head.width, head.deep, head.unit_length) == (256, 512, True)
    with pytest.raises(MaskwrightError, match="at least 2 for infoseg"):
        train(write_tiny_folder(tmp_path / "one", count=1), tmp_path / "other")

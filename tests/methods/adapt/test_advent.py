"""AdvEnt: losses against slow formulas with their gradients, who learns from what, one output or two."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from tests.golden.formulas import as64, draw, softmax
from tests.methods.adapt.two_folders import SMALL, context_of

from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.adapt import advent
from maskwright.methods.adapt.advent import Advent, AdventConfig, AdventTraining, entropy_loss, self_information


def training_of(context, **options) -> AdventTraining:
    method = Advent(configure(AdventConfig, {**SMALL, **options}), context)
    return AdventTraining(context, method.config, method.labels(), 10)


def drawn(t: AdventTraining):
    return t.on_device(t.batch(t.sampler.next(), torch.Generator().manual_seed(0)))


def test_entropy_of_the_network_and_its_gradient():
    logits, valid = draw(2, 4, 3, 3).double().requires_grad_(), draw(2, 3, 3, seed=1) > -0.5
    loss = entropy_loss(self_information(logits), valid)
    loss.backward()
    p, places = softmax(as64(logits)), valid.nonzero().tolist()
    total, gradient = 0.0, np.zeros((2, 4, 3, 3))
    for b, i, j in places:
        q = p[b, :, i, j]
        h = -(q * np.log(q)).sum()
        total += h / math.log(4) / len(places)
        gradient[b, :, i, j] = -q * (np.log(q) + h) / math.log(4) / len(places)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-9)
    np.testing.assert_allclose(as64(logits.grad), gradient, atol=1e-12)


def test_maps_lie_between_certainty_and_doubt():
    certain, doubtful = torch.tensor([[800.0, 0.0, 0.0]]), torch.zeros(1, 3)
    everywhere = torch.ones(1, 1, 1, dtype=torch.bool)
    for logits, expected in ((certain, 0.0), (doubtful, 1.0)):
        assert float(entropy_loss(self_information(logits[..., None, None]), everywhere)) == pytest.approx(expected)
    assert not self_information(torch.randn(1, 1, 2, 2)).any(), "one class leaves no doubt"


def test_total_of_one_output_and_what_each_player_learns_from(domains, tmp_path, monkeypatch):
    context = context_of(domains, tmp_path / "run", Advent)
    t = training_of(context, weight=0.5)
    assert list(t.adversaries) == ["main"] and any("one output" in note for note in context.notes)
    batch = drawn(t)
    terms, said = t.segmenter_loss(batch, 0)
    found = {name: float(term.detach()) for name, term in terms.items()}
    assert found["loss"] == pytest.approx(found["s"] + 0.5 * found["t"], rel=1e-6)
    terms["loss"].backward()
    judge = t.adversaries["main"].discriminator
    assert all(p.grad is None for p in judge.parameters()), "the network's step leaves the discriminator alone"
    assert all(p.grad is not None for p in t.setup.network.parameters())
    t.setup.network.zero_grad()
    i_s, i_t = said["main"]
    assert i_s.shape == i_t.shape == (2, 3, 32, 32) and not i_s.requires_grad and not i_t.requires_grad
    t.discriminator_loss("main", batch, i_s, i_t).backward()
    assert all(p.grad is not None for p in judge.parameters())
    assert all(p.grad is None for p in t.setup.network.parameters()), "and its step the network"
    # L_D by hand: source 1, target 0, mean over pixels inside the photograph.
    d_s, d_t = (as64(judge(i)) for i in (i_s, i_t))
    inside = np.stack([v.valid().numpy() for v in batch["s"].geometry])
    real = np.log1p(np.exp(-d_s))[inside].mean()
    fake = np.log1p(np.exp(d_t))[batch["t"].valid.numpy()].mean()
    expected = 0.5 * (real + fake)
    assert float(t.discriminator_loss("main", batch, i_s, i_t).detach()) == pytest.approx(expected, rel=1e-5)
    terms = t.update(Fabric(accelerator="cpu"), batch, 0)
    assert set(terms) == {"loss", "s", "t", "d"}
    clips = []
    monkeypatch.setattr(advent, "take_step", lambda *given: clips.append(given[3:]))
    t.clip = 0.5
    t.update(Fabric(accelerator="cpu"), batch, 0)
    assert clips == [(0.5,), (0.5,)], "the training's greatest norm holds for both players"


def test_each_output_has_its_discriminator_and_its_share(domains, tmp_path):
    context = context_of(domains, tmp_path / "run", Advent)
    t = training_of(context, **{"network.name": "pspnet", "weight": 0.5, "aux_share": 0.25})
    aux = list(t.setup.network.aux)
    assert len(aux) == 1, "PSPNet has an auxiliary head"
    assert list(t.adversaries) == ["main", *aux] and not any("one output" in note for note in context.notes)
    terms, said = t.segmenter_loss(drawn(t), 0)
    found = {name: float(term.detach()) for name, term in terms.items()}
    assert found["loss"] == pytest.approx(found["s"] + 0.5 * (found["t"] + 0.25 * found[f"t_{aux[0]}"]), rel=1e-6)
    assert set(said) == {"main", *aux}


def test_entropy_alone_has_no_discriminator(domains, tmp_path):
    context = context_of(domains, tmp_path / "run", Advent)
    t = training_of(context, variant="minent", weight=0.5)
    assert not t.adversaries and set(t.optimizers) == {"network"}
    batch = drawn(t)
    terms, said = t.segmenter_loss(batch, 0)
    assert not said and set(terms) == {"loss", "s", "t"} and 0 < float(terms["t"].detach()) <= 1
    waits = training_of(context, variant="minent", start=0.9)
    assert set(waits.losses(batch, 0)) == {"loss", "s"}


def test_crops_that_a_discriminator_cannot_judge(domains, tmp_path):
    with pytest.raises(MaskwrightError, match="at least 32 pixels"):
        training_of(context_of(domains, tmp_path / "run", Advent), **{"crops.size": 16})


def test_width_of_the_discriminators(domains, tmp_path):
    for options, widths in (({}, [64, 128, 256, 512]), ({"d_width": 6}, [6, 12, 24, 48])):
        context = context_of(domains, tmp_path / str(widths[0]), Advent)
        judge = training_of(context, **options).adversaries["main"].discriminator
        assert [conv.out_channels for conv in judge.convs] == widths and judge.verdict.in_channels == widths[-1]
        assert judge(torch.rand(2, judge.convs[0].in_channels, 32, 48)).shape == (2, 32, 48)

"""A network and the modes in which it is asked."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskwright.recipes.training import forward as module
from maskwright.recipes.training.forward import Forward, Output, precision_of, upsample

CPU = torch.device("cpu")
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """What is asked of a `Network` here, with batch norm and dropout in encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.decoder = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Dropout(0.5))
        self.classifier = nn.Conv2d(6, 5, 1)

    def features(self, x):
        return [x, self.encoder(x)]

    def decode(self, features):
        return self.decoder(features[-1])

    def classify(self, embedding):
        return self.classifier(embedding)


def forward(**options) -> Forward:
    torch.manual_seed(0)
    return Forward(Net(), CPU, **options)


def modes(network) -> dict[str, bool]:
    """Which batch norms and dropouts are in training mode."""
    return {
        "encoder norm": network.encoder[1].training, "encoder dropout": network.encoder[2].training,
        "decoder norm": network.decoder[1].training, "decoder dropout": network.decoder[2].training,
    }  # fmt: skip


def statistics(network) -> list[torch.Tensor]:
    return [network.encoder[1].running_mean.clone(), network.decoder[1].running_mean.clone()]


POLICIES = [(freeze, dropout) for freeze in (False, True) for dropout in (True, False)]


def learning(freeze_norm: bool, dropout: bool) -> dict[str, bool]:
    """The modes in which it is to learn."""
    return {
        "encoder norm": not freeze_norm, "encoder dropout": dropout, "decoder norm": True, "decoder dropout": dropout,
    }  # fmt: skip


@pytest.mark.parametrize(("freeze_norm", "dropout"), POLICIES)
def test_it_learns_as_the_policies_say(freeze_norm, dropout):
    f = forward(freeze_norm=freeze_norm, dropout=dropout)
    assert modes(f.network) == learning(freeze_norm, dropout) and f.network.training
    f.network.eval()
    f.learn()
    assert modes(f.network) == learning(freeze_norm, dropout)
    before = statistics(f.network)
    a, b = f(X), f(X)
    assert torch.equal(a.logits, b.logits) != dropout
    moved = [not torch.equal(p, q) for p, q in zip(before, statistics(f.network))]
    assert moved == [not freeze_norm, True]


@pytest.mark.parametrize(("freeze_norm", "dropout"), POLICIES)
def test_plain_passes_have_no_dropout_and_the_statistics_of_their_batch(freeze_norm, dropout):
    f = forward(freeze_norm=freeze_norm, dropout=dropout)
    before = statistics(f.network)
    with f.plain() as plain:
        assert plain is f and modes(f.network) == learning(freeze_norm, False)
        a, b = f(X), f(X)
    assert torch.equal(a.logits, b.logits) and a.logits.requires_grad, "it may learn too"
    assert [not torch.equal(p, q) for p, q in zip(before, statistics(f.network))] == [not freeze_norm, True]
    assert modes(f.network) == learning(freeze_norm, dropout)
    z = F.conv2d(X, f.network.encoder[0].weight, f.network.encoder[0].bias, 4, 1)
    own = (z - z.mean((0, 2, 3), keepdim=True)) / (z.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = z / (1 + 1e-5) ** 0.5 if freeze_norm else own  # untrained statistics are 0 and 1
    torch.testing.assert_close(a.features[-1], expected, rtol=1e-4, atol=1e-4)


def test_the_modes_come_back_from_an_error():
    f = forward()
    with pytest.raises(RuntimeError, match="on purpose"), f.plain():
        raise RuntimeError("on purpose")
    assert modes(f.network) == learning(False, True)


@pytest.mark.parametrize(("freeze_norm", "dropout"), POLICIES)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_it_labels_in_the_mode_that_is_asked(mode, freeze_norm, dropout):
    f = forward(freeze_norm=freeze_norm, dropout=dropout)
    f(X)  # statistics of their own
    before, alone = statistics(f.network), copy.deepcopy(f.network)
    q = f.ask(X, mode)
    assert not q.requires_grad and modes(f.network) == learning(freeze_norm, dropout)
    moved = [not torch.equal(p, m) for p, m in zip(before, statistics(f.network))]
    assert moved == [mode == "train" and not freeze_norm, mode == "train"]
    alone.eval()
    for part, frozen in ((alone.encoder, freeze_norm), (alone.decoder, False)):
        part[1].train(mode == "train" and not frozen)
    logits = alone.classify(alone.decode(alone.features(X)))
    expected = F.interpolate(logits, (16, 16), mode="bilinear", align_corners=False).softmax(1)
    torch.testing.assert_close(q, expected)


def test_probabilities_are_of_the_present_mode():
    f = forward()
    assert not torch.equal(f.probabilities(X), f.probabilities(X)) and f.network.training
    f.network.eval()
    assert torch.equal(f.probabilities(X), f.probabilities(X)) and not f.network.training
    q = f.probabilities(X)
    torch.testing.assert_close(q.sum(1), torch.ones(4, 16, 16))
    assert not q.requires_grad


def test_a_pass_gives_maps_embedding_and_logits_of_the_crops_size():
    f = forward(dropout=False)
    out = f(X)
    assert out.features[0] is X and out.features[1].shape == (4, 8, 4, 4)
    assert out.embedding.shape == (4, 6, 4, 4) and out.logits.shape == (4, 5, 16, 16)
    first = out.first(1)
    assert [len(t) for t in (*first.features, first.embedding, first.logits)] == [1] * 4
    assert torch.equal(first.logits, out.logits[:1]) and torch.equal(first.features[1], out.features[1][:1])
    assert isinstance(first, Output)


def test_another_network_goes_the_same_way():
    f, other = forward(), Net().eval()
    before, out = statistics(f.network), f.through(other, X)
    assert all(torch.equal(p, q) for p, q in zip(before, statistics(f.network))), "its own saw nothing"
    f.network.load_state_dict(other.state_dict())
    f.network.eval()
    # but for the order of sums: the other network lies otherwise in memory
    torch.testing.assert_close(out.logits, f(X).logits, rtol=1e-5, atol=1e-6)


def test_half_precision_is_of_the_pass_and_logits_are_whole():
    f = forward(dropout=False, precision="bf16")
    out = f(X)
    assert out.embedding.dtype == torch.bfloat16 and out.logits.dtype == torch.float32
    with f.autocast():
        assert f.network.classifier(torch.randn(1, 6, 2, 2)).dtype == torch.bfloat16
    whole = forward(dropout=False)(X)
    assert whole.embedding.dtype == torch.float32
    torch.testing.assert_close(out.logits, whole.logits, rtol=0, atol=0.1)


def test_logits_are_enlarged_by_the_centres_of_their_pixels():
    x = torch.tensor([[[[0.0, 1.0]]]])
    assert upsample(x, (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]
    half = upsample(x.half(), (1, 2))
    assert half.dtype == torch.float32 and torch.equal(half, x)


def test_precision_is_what_is_asked_or_what_is_fastest(monkeypatch):
    for fast, found in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(module, "cpu_has_bf16", lambda fast=fast: fast)
        assert precision_of("auto", CPU) == found
        assert precision_of("auto", torch.device("cuda")) == "bf16"
        assert (precision_of("fp32", CPU), precision_of("bf16", CPU)) == ("fp32", "bf16")

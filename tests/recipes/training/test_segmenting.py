"""Supervised training of a segmentation network: the loss, its options and the schedule."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from maskwright.recipes.training.segmenting import NetworkConfig, SegmentationTraining

from maskwright.data.training.sources import MaskLabels
from maskwright.ops.losses.seg_losses import dice_loss, ohem_cross_entropy


def training(context, steps=10, **options):
    config = NetworkConfig(crop=32, batch=2, precision="fp32", scale_min=0.4, scale_max=0.6, **options)
    return SegmentationTraining(context, config, MaskLabels(context.data, context.classes), steps)


def draw(t):
    b = t.batch(t.sampler.next(), torch.Generator().manual_seed(0))
    assert 0 < int(b.y.valid.sum()) < b.y.valid.numel(), "some padding"
    return b


def mean_nll(logits, y):
    """Cross-entropy over valid pixels, of logits brought to the labels' size."""
    logits = F.interpolate(logits, y.size, mode="bilinear", align_corners=False)
    nll = -logits.log_softmax(1).gather(1, y.ids[:, None])[:, 0]
    return nll[y.valid].mean()


# ---------------------------------------------------------------------- auxiliary heads


@pytest.mark.parametrize("name", ["pspnet", "ocr"])
def test_the_loss_is_the_main_ones_and_two_fifths_of_the_auxiliary_heads(semi_context, name):
    t = training(semi_context, network=name)
    b = draw(t)
    t.network.eval()  # without dropout
    features = t.network.features(b.x)
    main = mean_nll(t.network.classify(t.network.decode(features)), b.y)
    aux = mean_nll(t.network.aux["aux"](features), b.y)
    loss = t.losses(b, 0)["loss"]
    torch.testing.assert_close(loss, main + 0.4 * aux)
    loss.backward()
    assert abs(float((main - aux).detach())) > 1e-3
    head = t.network.aux["aux"] if name == "pspnet" else t.network.decoder.aux_head
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters() if p.ndim > 1)


def test_each_auxiliary_head_has_its_weight_and_each_network_its_heads(semi_context):
    t = training(semi_context, network="pspnet")
    b, other = draw(t), copy.deepcopy(t.network)
    other.aux["second"] = copy.deepcopy(other.aux["aux"])
    for p in other.aux["second"].parameters():
        torch.nn.init.normal_(p, std=0.1)
    other.aux_weights = {"aux": 0.3, "second": 0.1}
    other.eval()
    out = t.run(other, b.x)
    parts = [mean_nll(out.logits, b.y), *(mean_nll(head(out.features), b.y) for head in other.aux.values())]
    torch.testing.assert_close(t.supervised(out, b.y, other), parts[0] + 0.3 * parts[1] + 0.1 * parts[2])


# ---------------------------------------------------------------------- options


def balanced(logits, target, t):
    """Cross-entropy with the classes of the labelled masks weighed by hand, as PyTorch means it."""
    counts = torch.zeros(3)
    for i in t.labels.indices:
        counts += torch.bincount(torch.from_numpy(t.context.data.mask(i)).long().flatten(), minlength=3)
    weight = (counts.sum() / counts).sqrt()
    return F.cross_entropy(logits, target, weight / weight.mean(), ignore_index=-1)


OHEM = functools.partial(ohem_cross_entropy, ignore=-1)
CRITERIA = {
    "loss": ({"loss": "dice"}, lambda x, y, t: dice_loss(x, y, ignore=-1)),
    "sum": ({"loss": "ce+dice"}, lambda x, y, t: F.cross_entropy(x, y, ignore_index=-1) + dice_loss(x, y, ignore=-1)),
    "threshold": ({"loss": "ohem", "ohem_threshold": 0.2}, lambda x, y, t: OHEM(x, y, 0.2, y.numel() // 16)),
    "kept": (
        {"loss": "ohem", "ohem_threshold": 0.01, "ohem_kept": 0.25},
        lambda x, y, t: OHEM(x, y, 0.01, y.numel() // 4),
    ),
    "balance": ({"balance": True}, balanced),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_the_configured_loss_is_the_one_that_is_taken(semi_context, name):
    options, by_hand = CRITERIA[name]
    t, plain = training(semi_context, **options), training(semi_context, loss=options.get("loss", "ce"))
    b = draw(t)
    logits = 2 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = t.run(t.network, b.x)._replace(logits=logits)
    loss = t.supervised(out, b.y)
    torch.testing.assert_close(loss, by_hand(logits, b.y.target(-1), t))
    if name not in ("loss", "sum"):
        assert float(loss) != pytest.approx(float(plain.supervised(out, b.y)), rel=1e-2), "unlike the default"


def test_rates_fall_by_the_power_nine_tenths(semi_context):
    t = training(semi_context, steps=8)
    assert [t.schedule(step) for step in range(8)] == pytest.approx([(1 - step / 8) ** 0.9 for step in range(8)])

"""AdvSemiSeg and s4GAN: verdicts, what is learnt of them, and who learns when."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.methods.semi.checks import batch_of, check_resumes, relabelled

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.semi.adv_semi import (
    AdvSemiConfig,
    AdvSemiTraining,
    ImageDiscriminator,
    PixelDiscriminator,
    feature_matching,
    real_maps,
    self_training,
    unit_range,
)
from maskwright.methods.supervised import SupervisedConfig
from maskwright.recipes.training.training import NetworkTraining

VARIANTS = ["pixel", "s4gan"]


def training(context, variant="pixel", **options):
    settings = {"crop": 32, "batch": 2, "precision": "fp32", "variant": variant, **options}
    config = configure(AdvSemiConfig, settings)
    return AdvSemiTraining(context, config, MaskLabels(context.data, context.classes), 10)


def weights(module):
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def same(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


def holed(b):
    """The batch with void in a labelled crop and padding in all unlabelled ones."""
    x, u = b["x"], b["u"]
    void, padding = torch.zeros_like(x.valid), torch.zeros_like(u.valid)
    void[0, 20:] = True
    padding[:, :, 50:] = True
    return {"x": relabelled(x, x.y.restrict(~void)), "u": u._replace(valid=u.valid & ~padding)}


def far_apart(d, gain=1.0):
    """Gives D random weights whose verdicts differ; untrained ones all lie about 0."""
    torch.manual_seed(2)
    for p in d.parameters():
        if p.ndim > 1:
            torch.nn.init.kaiming_normal_(p)
    with torch.no_grad():
        d.verdict.weight.mul_(gain)


def passes(t, b):
    """The segmenter's logits on labelled and on unlabelled crops, and real maps of `one_hot=0.9`, written out."""
    y = b["x"].y
    torch.manual_seed(1)  # of the dropout on labelled crops
    with torch.no_grad():
        f_x = t.setup.student(b["x"].weak).logits
        with t.setup.student.plain():
            f_u = t.setup.student(b["u"].weak).logits
    labels = 0.05 + 0.85 * F.one_hot(y.ids, 3).movedim(-1, 1)
    return f_x, f_u, torch.where(y.valid[:, None], labels, f_x.softmax(1))


def bce(verdicts, target):
    return F.binary_cross_entropy_with_logits(verdicts, torch.full_like(verdicts, target))


def midway(t, verdicts):
    """Sets T between the least and the greatest verdict."""
    p = verdicts.sigmoid()
    t.threshold = float(p.min() + p.max()) / 2
    return t.threshold


def check_terms(terms, expected):
    for name, value in expected.items():
        assert float(terms[name].detach()) == pytest.approx(float(value), rel=1e-4), name
        assert terms[name].requires_grad or name == "sure", name


def test_shapes():
    assert PixelDiscriminator(4)(torch.rand(2, 4, 33, 70)).shape == (2, 33, 70)
    z, y = ImageDiscriminator(4, 0.5)(torch.randn(2, 3, 48, 32), torch.rand(2, 4, 48, 32))
    assert z.shape == (2,) and y.shape == (2, 512)
    sizes = []
    d = PixelDiscriminator(4)
    d.verdict.register_forward_hook(lambda m, i, o: sizes.append(o.shape[-2:]))
    d(torch.rand(1, 4, 321, 321))
    assert sizes == [(10, 10)], "a verdict for 32 x 32 pixels"


def test_variants_have_their_papers_values():
    def decided(**options):
        c = configure(AdvSemiConfig, options)
        return c.self_training.weight, c.self_training.start, c.least_verdict

    assert decided() == (0.1, 0.25, 0.2)
    assert decided(variant="s4gan") == (1.0, 0.0, 0.6)
    assert decided(start=0.0, threshold=0.0) == (0.1, 0.0, 0.0), "zero is no missing value"
    assert decided(weight=0.0) == (0.0, 0.25, 0.2)


def test_the_options_decide_what_the_training_does(semi_context):
    t = training(semi_context, "s4gan", weight=0.5, ramp_up=0.5)
    assert (t.threshold, t.ramp(9), t.ramp(0)) == (0.6, 0.5, pytest.approx(0.5 * math.exp(-5)))
    t = training(semi_context, threshold=0.7)
    assert (t.threshold, t.ramp(2), t.ramp(3)) == (0.7, 0.0, 0.1)


def test_real_maps():
    y = LabelMap.from_mask(torch.tensor([[[0, 2, 255]]]))
    p = torch.tensor([0.2, 0.5, 0.3])[None, :, None, None].expand(1, 3, 1, 3).clone().requires_grad_(True)
    hard, soft = real_maps(y, p), real_maps(y, p, 0.9)
    assert hard[0, :, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], pytest.approx([0.2, 0.5, 0.3])]
    assert torch.allclose(soft[0, :, 0, 1], torch.tensor([0.05, 0.05, 0.9]))
    assert torch.allclose(soft.sum(1), torch.ones(1, 1, 3)) and not hard.requires_grad


def test_a_void_pixel_cannot_be_told_from_a_prediction(semi_context):
    t = training(semi_context)
    p = torch.rand(1, 3, 32, 32).softmax(1)
    nothing = LabelMap.unlabeled((32, 32))
    y = LabelMap(nothing.ids[None], nothing.confidence[None], nothing.valid[None])
    d = t.adversary.discriminator
    assert torch.equal(d(real_maps(y, p)), d(p))


def test_feature_matching():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 5, generator=g), torch.randn(4, 5, generator=g)
    slow = sum(abs(float(a[:, k].mean() - b[:, k].mean())) for k in range(5)) / 5
    a.requires_grad_(True)
    b.requires_grad_(True)
    loss = feature_matching(a, b)
    assert float(loss.detach()) == pytest.approx(slow, rel=1e-5)
    loss.backward()
    assert a.grad is None and b.grad.abs().sum() > 0


def test_self_training_against_a_loop_and_without_a_pixel():
    g = torch.Generator().manual_seed(0)
    logits, selected = torch.randn(2, 3, 4, 5, generator=g), torch.rand(2, 4, 5, generator=g) > 0.5
    losses = [
        -float(logits[b, :, i, j].log_softmax(0).max())
        for b in range(2)
        for i in range(4)
        for j in range(5)
        if selected[b, i, j]
    ]
    assert float(self_training(logits, selected)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    logits.requires_grad_(True)
    none = self_training(logits, torch.zeros_like(selected))
    none.backward()
    assert float(none.detach()) == 0 and not logits.grad.any()


def test_unit_range():
    x = torch.randn(3, 3, 5, 5)
    x[2] = 4.0
    u = unit_range(x)
    assert torch.allclose(u.amin((1, 2, 3)), torch.zeros(3)) and torch.allclose(u.amax((1, 2, 3))[:2], torch.ones(2))
    assert not u[2].any()
    assert torch.allclose(unit_range(x[:1]), u[:1]), "no image depends on its neighbours"


@pytest.mark.parametrize("variant", VARIANTS)
def test_discriminator_gets_nothing_from_the_segmenters_loss(semi_context, variant):
    t = training(semi_context, variant)
    t.losses(batch_of(t), 9)["loss"].backward()
    assert all(p.grad is None for p in t.adversary.discriminator.parameters())
    assert any(p.grad is not None and p.grad.any() for p in t.setup.network.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_segmenter_gets_nothing_from_the_discriminators_loss(semi_context, variant):
    t = training(semi_context, variant)
    b = batch_of(t)
    _, play = t.segmenter_loss(b, 9)
    t.discriminator_loss(b, play).backward()
    assert all(p.grad is None for p in t.setup.network.parameters())
    assert all(p.grad is not None for p in t.adversary.discriminator.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_optimiser_moves_its_own(semi_context, variant):
    for frozen, moves in (("network", "discriminator"), ("discriminator", "network")):
        t = training(semi_context, variant)
        for group in t.optimizers[frozen].param_groups:
            group["lr"] = 0.0
        parts = {"network": t.setup.network, "discriminator": t.adversary.discriminator}
        before = {k: [p.detach().clone() for p in m.parameters()] for k, m in parts.items()}
        t.update(semi_context.fabric, batch_of(t), 9)
        moved = {k: any(not torch.equal(p, q) for p, q in zip(m.parameters(), before[k])) for k, m in parts.items()}
        assert moved == {moves: True, frozen: False}


def test_threshold_zero_takes_all_and_one_none(semi_context):
    for threshold, share in ((0.0, 1.0), (1.0, 0.0)):
        t = training(semi_context, threshold=threshold)
        terms = t.losses(batch_of(t), 9)
        assert float(terms["sure"]) == share
        assert torch.isfinite(terms["loss"]) and (share == 1 or float(terms["semi"].detach()) == 0)
        t = training(semi_context, "s4gan", threshold=threshold)
        assert float(t.losses(batch_of(t), 9)["sure"]) == share


def test_self_training_sets_in_after_start(semi_context):
    t = training(semi_context)
    b = batch_of(t)
    assert "semi" not in t.losses(b, 2) and "semi" in t.losses(b, 3), "a quarter of ten steps"
    assert "adv" in t.losses(b, 0), "the adversary plays from the beginning"


def test_loss_is_the_weighted_sum(semi_context):
    t = training(semi_context)
    x = {k: float(v.detach()) for k, v in t.losses(batch_of(t), 9).items()}
    assert x["loss"] == pytest.approx(x["x"] + 0.01 * x["adv"] + 0.001 * x["adv_u"] + 0.1 * x["semi"], rel=1e-5)
    t = training(semi_context, "s4gan", threshold=0.0)
    x = {k: float(v.detach()) for k, v in t.losses(batch_of(t), 9).items()}
    assert x["loss"] == pytest.approx(x["x"] + 0.1 * x["fm"] + x["semi"], rel=1e-5)


def test_terms_of_advsemiseg_written_out(semi_context):
    t = training(semi_context, crop=64, batch_unlabeled=3, one_hot=0.9)
    far_apart(t.adversary.discriminator)
    b = holed(batch_of(t))
    truth, inside = b["x"].y.valid, b["u"].valid
    f_x, f_u, real = passes(t, b)
    with torch.no_grad():
        d_x, d_u, d_real = (t.adversary.discriminator(maps) for maps in (f_x.softmax(1), f_u.softmax(1), real))
    d_x, d_real = d_x[truth], d_real[truth]
    chosen = (d_u.sigmoid() >= midway(t, d_u[inside])) & inside
    said, d_u, share = f_u.movedim(1, -1)[chosen], d_u[inside], chosen.sum() / inside.sum()
    assert 0 < share < 1 and not truth.all()
    torch.manual_seed(1)
    terms, play = t.segmenter_loss(b, 9)
    semi = F.cross_entropy(said, said.argmax(1))
    check_terms(terms, {"adv": bce(d_x, 1), "adv_u": bce(d_u, 1), "semi": semi, "sure": share})
    d = 0.5 * (bce(torch.cat([d_x, d_u]), 0) + bce(d_real, 1))
    check_terms({"d": t.discriminator_loss(b, play)}, {"d": d})


def test_terms_of_s4gan_written_out(semi_context):
    t = training(semi_context, "s4gan", crop=64, batch_unlabeled=3, one_hot=0.9, d_dropout=0.0)
    far_apart(t.adversary.discriminator, gain=4.0)  # verdicts are of means over the image
    b = holed(batch_of(t))
    _, f_u, real = passes(t, b)
    with torch.no_grad():
        pairs = (b["x"].weak, real), (b["u"].weak, f_u.softmax(1))
        (z_real, y_real), (z_u, y_u) = (t.adversary.discriminator(*pair) for pair in pairs)
    images = z_u.sigmoid() > midway(t, z_u)
    assert 0 < images.sum() < 3
    said = f_u.movedim(1, -1)[images[:, None, None] & b["u"].valid]
    torch.manual_seed(1)
    terms, play = t.segmenter_loss(b, 9)
    fm, semi = (y_real.mean(0) - y_u.mean(0)).abs().mean(), F.cross_entropy(said, said.argmax(1))
    check_terms(terms, {"fm": fm, "semi": semi, "sure": images.float().mean()})
    check_terms({"d": t.discriminator_loss(b, play)}, {"d": 0.5 * (bce(z_u, 0) + bce(z_real, 1))})


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_its_terms_it_is_supervised_training(semi_context, variant, tmp_path):
    lams = {"lam_fm": 0.0} if variant == "s4gan" else {"lam_adv": 0.0, "lam_adv_u": 0.0}
    t = training(semi_context, variant, **lams, weight=0.0)
    config = configure(SupervisedConfig, {"crop": 32, "batch": 2, "precision": "fp32"})
    alone = NetworkTraining(semi_context, config, MaskLabels(semi_context.data, semi_context.classes), 10)
    untrained = weights(t.adversary.discriminator)
    for k, one in enumerate((t, alone)):
        (tmp_path / str(k)).mkdir()
        semi_context.fit(one, "train", tmp_path / str(k), 3)
    assert same(weights(t.setup.network), weights(alone.setup.network))
    assert same(untrained, weights(t.adversary.discriminator))


def test_small_crops_are_refused(semi_context):
    with pytest.raises(MaskwrightError, match="at least 32"):
        training(semi_context, crop=16)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_and_resumed(semi_context, variant, tmp_path, monkeypatch):
    check_resumes(semi_context, lambda: training(semi_context, variant), tmp_path, monkeypatch)


def test_what_is_matched_loses_no_channel():
    """Dropout lies between the convolutions, not on y."""
    torch.manual_seed(0)
    d = ImageDiscriminator(3, 1.0).train()  # everything between is dropped: what is left is the last bias
    y = d(torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32).softmax(1))[1]
    torch.testing.assert_close(y, F.leaky_relu(d.convs[-1].bias, 0.2).expand(2, -1))


def test_labels_come_from_a_pass_without_dropout(semi_context):
    t = training(semi_context)
    x = batch_of(t)["u"].weak
    with t.setup.student.plain():
        assert torch.equal(t.setup.student(x).logits, t.setup.student(x).logits)
    assert not torch.equal(t.setup.student(x).logits, t.setup.student(x).logits)

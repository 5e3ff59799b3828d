"""CCT: auxiliary decoders under perturbed embeddings."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.methods.semi.checks import batch_of, check_resumes, drop_in_training, sharpen

from maskwright.data.masking.classes import ClassTable
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.semi import cct as module
from maskwright.methods.semi.cct import (
    PAPER,
    CCTConfig,
    CCTTraining,
    ShuffleDecoder,
    annealed,
    consistency,
    parse_counts,
)
from maskwright.methods.supervised import SupervisedConfig
from maskwright.recipes.training.training import NetworkTraining


def training(context, **options):
    config = configure(CCTConfig, {"crop": 32, "batch": 2, "precision": "fp32", **options})
    return CCTTraining(context, config, MaskLabels(context.data, context.classes), 10)


def with_background(context):
    return replace(context, table=ClassTable(("background", "disc", "square")))


def views_of(t):
    """Unlabelled crops."""
    return batch_of(t)["u"]


def padded(context, **options):
    """A training whose background is class 2, with unlabelled crops that reach beyond their photographs; all classes
    are seen."""
    context = replace(context, table=ClassTable(("disc", "square", "background")))
    t = training(context, scale_min=0.3, scale_max=0.5, **options)
    u = views_of(t)
    sharpen(t.setup.network, u.weak)
    return t, u


def plain(t, x):
    """z, and the main decoder's probabilities at the crop's size, without dropout."""
    for m in t.setup.network.modules():
        if isinstance(m, torch.nn.modules.dropout._DropoutNd):
            m.eval()
    z = t.setup.network.decode(t.setup.network.features(x)).detach()
    logits = F.interpolate(t.setup.network.classifier.conv(z), x.shape[-2:], mode="bilinear", align_corners=False)
    t.setup.network.train()
    return z, logits.softmax(1).detach()


def test_counts():
    assert sum(PAPER.values()) == 30 and parse_counts("paper") == PAPER
    assert parse_counts("one") == dict.fromkeys(PAPER, 1)
    assert parse_counts("noise:2, vat") == {"noise": 2, "vat": 1}
    for wrong in ("niose:2", "noise:x", "noise:0", "", "noise:-1"):
        with pytest.raises(MaskwrightError):
            CCTConfig(counts=wrong).check()


def test_consistency_against_a_loop():
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 4, 5, generator=g).softmax(1)
    valid = torch.rand(2, 4, 5, generator=g) > 0.3
    heads = [torch.randn(2, 3, 4, 5, generator=g) for _ in range(3)]
    total = 0.0
    for logits in heads:
        p, sum_, n = logits.softmax(1), 0.0, 0
        for b in range(2):
            for i in range(4):
                for j in range(5):
                    if valid[b, i, j]:
                        sum_ += float((p[b, :, i, j] - q[b, :, i, j]).square().mean())
                        n += 1
        total += sum_ / n
    assert float(consistency(heads, q, valid)) == pytest.approx(total / 3, rel=1e-5)
    assert float(consistency([q.log()], q, valid)) == pytest.approx(0, abs=1e-12)


def test_decoder_begins_without_a_checkerboard():
    decoder = ShuffleDecoder(6, 3, 2)
    x = decoder(torch.randn(2, 6, 5, 7))
    assert x.shape == (2, 3, 20, 28)
    cells = x.unfold(2, 4, 4).unfold(3, 4, 4)
    assert torch.allclose(cells, cells[..., :1, :1].expand_as(cells), atol=1e-6)
    assert (x < 0).any(), "logits of both signs"


def test_identity_and_shared_weights_give_zero(semi_context, monkeypatch):
    t = training(semi_context, counts="noise:1")
    monkeypatch.setattr(t, "perturb", lambda kind, z, *_: z)
    t.auxiliary = [t.setup.network.classifier]
    t.setup.network.eval()
    assert float(t.consistency(views_of(t)).detach()) == pytest.approx(0, abs=1e-12)


def test_gradient_reaches_what_lies_before_z_but_not_the_main_classifier(semi_context):
    t = training(with_background(semi_context))
    t.consistency(views_of(t)).backward()
    assert all(p.grad is None for p in t.setup.network.classifier.parameters())
    assert sum(float(p.grad.abs().sum()) for p in t.setup.network.decoder.parameters() if p.grad is not None) > 0
    assert sum(float(p.grad.abs().sum()) for p in t.setup.network.encoder.parameters() if p.grad is not None) > 0
    for kind, decoder in zip(t.kinds, t.auxiliary):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters()), kind


def test_no_dropout_falls_on_z_and_its_label(semi_context, monkeypatch):
    t, found = training(semi_context, counts="noise"), []
    drop_in_training(t.setup.network.decoder)
    monkeypatch.setattr(t, "perturb", lambda kind, z, *rest: found.append(z.detach()) or z)
    u = views_of(t)
    for _ in range(2):
        t.consistency(u)
    assert torch.equal(*found) and t.setup.network.decoder.training


def test_vat_writes_no_gradient_into_its_decoder(semi_context):
    t = training(semi_context, counts="vat:1")
    z = torch.randn(2, t.setup.network.width, 8, 8)
    changed = t.perturb("vat", z, t.auxiliary[0], None, [])
    assert torch.allclose((changed - z).flatten(1).norm(dim=1), torch.tensor(2.0), atol=1e-3)
    assert all(p.grad is None for p in t.auxiliary.parameters())


def test_strength_does_not_depend_on_the_number_of_classes(semi_context, monkeypatch):
    """Two classes, or the same two among many that never come: the squared errors and their weight are the same."""
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    logits = torch.randn(1, 2, 2, 2)
    q = torch.randn(1, 2, 2, 2).softmax(1)
    more = torch.cat([logits, torch.full((1, 40, 2, 2), -1e4)], 1)
    q_more = torch.cat([q, torch.zeros(1, 40, 2, 2)], 1)
    few, many = consistency([logits], q, valid) * 2 / 21, consistency([more], q_more, valid) * 42 / 21
    assert float(few) == pytest.approx(float(many), rel=1e-5)
    t = training(semi_context, counts="noise:1")
    monkeypatch.setattr(module, "consistency", lambda auxiliary, q, valid: torch.tensor(21.0))
    assert float(t.consistency(views_of(t))) == pytest.approx(3), "classes"


def test_ramp(semi_context):
    t = training(semi_context)
    assert t.ramp(0) == pytest.approx(30 * math.exp(-5))
    assert t.ramp(1) == pytest.approx(30), "a tenth of the steps"


def test_background_by_name_only(semi_context):
    t = training(semi_context)  # ground, disc, square
    assert t.background is None and t.kinds == ["dropout", "drop", "noise", "vat"]
    assert any("cutout, context, object" in note for note in semi_context.notes)
    assert training(semi_context, background="ground").kinds == list(PAPER)
    context = with_background(semi_context)
    assert training(context).background == 0
    assert training(context, background="none").background is None
    swapped = replace(semi_context, table=ClassTable(("disc", "square", "Background")))
    assert training(swapped).background == 2
    with pytest.raises(MaskwrightError, match="backgruond"):
        training(context, background="backgruond")
    with pytest.raises(MaskwrightError, match="without a background"):
        training(semi_context, counts="object:2")


def test_each_perturbation_changes_z_in_shape(semi_context):
    t = training(with_background(semi_context))
    z = (torch.rand(2, t.setup.network.width, 8, 8) + 0.1) * torch.rand(2, 1, 8, 8)
    foreground = torch.zeros(2, 32, 32, dtype=torch.bool)
    foreground[:, 4:28, 4:28] = True
    assert t.kinds == list(PAPER)
    for kind, decoder in zip(t.kinds, t.auxiliary):
        x = t.perturb(kind, z, decoder, foreground, [[(4, 4, 28, 28)]] * 2)
        assert x.shape == z.shape and not torch.equal(x, z), kind


def test_perturbations_get_the_configured_numbers_and_the_objects_of_the_photograph(semi_context, monkeypatch):
    t, u = padded(semi_context, noise=0.2, dropout=0.25, erase=0.3, vat_eps=1.5)
    calls = {}

    def spy(name):
        op = getattr(module, name)

        def spied(*args, **kwargs):
            calls[name] = {**inspect.signature(op).bind(*args, **kwargs).arguments, "result": op(*args, **kwargs)}
            return calls[name]["result"]

        monkeypatch.setattr(module, name, spied)

    masks = ("object_boxes", "guided_cutout", "context_mask", "object_mask")
    for name in ("channel_dropout", "feature_drop", "feature_noise", "vat_direction", *masks):
        spy(name)
    t.consistency(u)
    assert calls["channel_dropout"]["p"] == 0.25 and calls["feature_noise"]["bound"] == 0.2
    assert set(calls["feature_drop"]) == {"z", "result"}, "the paper's bounds"
    assert calls["vat_direction"]["eps"] == 1.5
    assert calls["vat_direction"]["head"] is t.auxiliary[list(PAPER).index("vat")]
    assert calls["object_boxes"]["min_contour"] == 5, "50 pixels at the paper's crop of 320"
    assert calls["guided_cutout"]["share"] == 0.3 and calls["guided_cutout"]["size"] == (32, 32)
    assert calls["guided_cutout"]["boxes"] == calls["object_boxes"]["result"] != [[], []]
    ids = plain(t, u.weak)[1].argmax(1)
    foreground = (ids != 2) & u.valid
    assert all(set(part.tolist()) == {0, 1, 2} for part in (ids[u.valid], ids[~u.valid]))
    for name in ("object_boxes", "context_mask", "object_mask"):
        assert torch.equal(calls[name]["foreground"], foreground), name


def test_each_decoder_learns_the_main_ones_word_of_the_photograph(semi_context):
    """L_u by hand, from what each decoder was given; context and object masks by hand too."""
    t, u = padded(semi_context)
    given = [[] for _ in t.kinds]
    for decoder, inputs in zip(t.auxiliary, given):
        decoder.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0].detach()))
    loss = float(t.consistency(u).detach())
    seen = {kind: inputs[-1] for kind, inputs in zip(t.kinds, given)}  # behind vat's trials
    z, q = plain(t, u.weak)
    assert list(seen) == list(PAPER) and z.shape[-1] == 8
    objects = ((q.argmax(1) != 2) & u.valid)[:, None, 2::4, 2::4]
    assert 0 < int(objects.sum()) < objects.numel()
    torch.testing.assert_close(seen["context"], z * objects, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen["object"], z * ~objects, rtol=1e-3, atol=1e-3)
    assert float(z.abs().mean()) > 0.1
    losses = []
    for kind, decoder in zip(t.kinds, t.auxiliary):
        logits = F.interpolate(decoder(seen[kind]).detach(), (32, 32), mode="bilinear", align_corners=False)
        losses.append(float((logits.softmax(1) - q).square().mean(1)[u.valid].mean()))
    assert max(losses) > 1.05 * min(losses)
    assert loss == pytest.approx(sum(losses) / 7 * 3 / 21, rel=1e-4)


def test_what_is_said_of_padding_does_not_count(semi_context, monkeypatch):
    t, u = padded(semi_context)
    upsample, noise = module.upsample, 9 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def loss(where):
        monkeypatch.setattr(module, "upsample", lambda logits, size: upsample(logits, size) + noise * where[:, None])
        torch.manual_seed(0)
        return float(t.consistency(u).detach())

    unchanged = loss(torch.zeros_like(u.valid))
    assert loss(~u.valid) == pytest.approx(unchanged, rel=1e-5)
    assert loss(u.valid) != pytest.approx(unchanged, rel=1e-2)


def test_the_papers_thirty_decoders(semi_context):
    t = training(with_background(semi_context), counts="paper")
    assert len(t.auxiliary) == 30 and {k: t.kinds.count(k) for k in t.kinds} == PAPER
    assert len({id(p) for p in t.auxiliary.parameters()}) == 30 * len(list(t.auxiliary[0].parameters()))


def test_annealed_leaves_out_what_is_known():
    logits = torch.tensor([[[[4.0, 0.0, -4.0]], [[0.0, 0.0, 0.0]]]])
    y = LabelMap.from_mask(torch.tensor([[[0, 0, 0]]]))
    assert annealed(logits, y, 0.9).valid.tolist() == [[[False, True, True]]]
    assert annealed(logits, y, 0.5).valid.tolist() == [[[False, False, True]]]


def test_the_bootstrapped_threshold_grows_from_chance_to_nine_tenths(semi_context, monkeypatch):
    t, etas, asked = training(semi_context, bootstrap=True), [], []
    b, u, real = batch_of(t), torch.tensor(0.5), t.setup.supervised

    def spied(logits, y, eta):
        etas.append(eta)
        return y.restrict(torch.rand(y.ids.shape) < 0.5)

    monkeypatch.setattr(module, "annealed", spied)
    monkeypatch.setattr(t, "supervised", lambda out, y: asked.append(y) or real(out, y))
    monkeypatch.setattr(t, "consistency", lambda views: u)
    for step in (0, 5, 9, 10):
        terms = t.losses(b, step)
        torch.testing.assert_close(terms["loss"], terms["x"] + t.ramp(step) * u)
    assert etas == pytest.approx([1 / 3, (1 / 3 + 0.9) / 2, 0.1 / 3 + 0.9 * 0.9, 0.9])
    assert all(0 < int(y.valid.sum()) < 0.7 * int(b["x"].y.valid.sum()) for y in asked)


def test_bootstrapped_supervision_trains(semi_context):
    t = training(semi_context, bootstrap=True)
    terms = t.losses(batch_of(t), 0)
    assert terms["loss"].requires_grad and torch.isfinite(terms["loss"])


def test_weight_zero_is_supervised_training(semi_context, tmp_path):
    """The auxiliary decoders neither get a gradient nor disturb the random numbers of the rest."""
    labels = MaskLabels(semi_context.data, semi_context.classes)
    config = configure(SupervisedConfig, {"crop": 32, "batch": 2, "precision": "fp32"})
    trainings = [training(semi_context, weight=0.0), NetworkTraining(semi_context, config, labels, 10)]
    for k, t in enumerate(trainings):
        (tmp_path / str(k)).mkdir()
        semi_context.fit(t, "train", tmp_path / str(k), 3)
    a, b = (t.setup.network.state_dict() for t in trainings)
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.slow
@pytest.mark.parametrize("counts", ["one", "vat:1,noise:2"])
def test_interrupted_and_resumed(semi_context, counts, tmp_path, monkeypatch):
    check_resumes(semi_context, lambda: training(semi_context, counts=counts), tmp_path, monkeypatch)

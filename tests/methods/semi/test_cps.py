"""CPS: two networks that label for each other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.methods.semi.checks import batch_of, check_resumes, labels_of, relabelled

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.semi import cps
from maskwright.methods.semi.cps import CPSConfig, CPSTraining, agreement, cross_pseudo_supervision
from maskwright.methods.supervised import SupervisedConfig
from maskwright.recipes.training import setup as setups
from maskwright.recipes.training.network import make_network
from maskwright.recipes.training.training import NetworkTraining


def training(context, **options):
    config = configure(CPSConfig, {"crop": 32, "batch": 2, "precision": "fp32", **options})
    return CPSTraining(context, config, MaskLabels(context.data, context.classes), 10)


def over_valid(logits, ids, valid):
    """CE of the valid pixels alone."""
    return float(F.cross_entropy(logits.movedim(1, -1)[valid], ids[valid]).detach())


def two_logits():
    g = torch.Generator().manual_seed(0)
    f1, f2 = (torch.randn(2, 3, 4, 5, generator=g) for _ in range(2))
    valid = torch.rand(2, 4, 5, generator=g) > 0.3
    k1, k2 = (LabelMap.from_probs(f.softmax(1)).restrict(valid) for f in (f1, f2))
    return f1, f2, k1, k2


def test_loss_against_a_loop():
    f1, f2, k1, k2 = two_logits()
    total = 0.0
    for f, k in ((f1, k2), (f2, k1)):
        part, n = 0.0, 0
        for b in range(2):
            for i in range(4):
                for j in range(5):
                    if k.valid[b, i, j]:
                        part -= float(f[b, :, i, j].log_softmax(0)[k.ids[b, i, j]])
                        n += 1
        total += part / n
    assert float(cross_pseudo_supervision(f1, f2, k1, k2)) == pytest.approx(total, rel=1e-5)


def test_swapping_the_networks_leaves_the_loss():
    f1, f2, k1, k2 = two_logits()
    assert torch.equal(cross_pseudo_supervision(f1, f2, k1, k2), cross_pseudo_supervision(f2, f1, k2, k1))
    assert torch.equal(agreement(k1, k2), agreement(k2, k1))


def test_no_gradient_through_the_labels():
    f1, f2, _, _ = two_logits()
    f1.requires_grad_(True)
    f2.requires_grad_(True)
    k1, k2 = LabelMap.from_probs(f1.softmax(1)), LabelMap.from_probs(f2.softmax(1))
    nothing = LabelMap(k1.ids, k1.confidence, torch.zeros_like(k1.valid))
    cross_pseudo_supervision(f1, f2, nothing, k2).backward()  # CE(f1, k2) alone
    assert f1.grad.abs().sum() > 0 and not f2.grad.any()


def test_confidence_does_not_weigh():
    f1, f2, k1, k2 = two_logits()
    sure = [LabelMap(k.ids, torch.ones_like(k.confidence), k.valid) for k in (k1, k2)]
    assert torch.equal(cross_pseudo_supervision(f1, f2, k1, k2), cross_pseudo_supervision(f1, f2, *sure))


def test_same_encoder_other_head(semi_context):
    t = training(semi_context)
    a, b = t.setup.network, t.student2.network
    assert all(torch.equal(p, q) for p, q in zip(a.encoder.parameters(), b.encoder.parameters()))
    heads = [[p for p in n.head_parameters() if p.ndim > 1] for n in (a, b)]
    assert heads[0] and not any(torch.equal(p, q) for p, q in zip(*heads))
    ours, theirs = ({p.data_ptr() for p in n.parameters()} for n in (a, b))
    assert not ours & theirs


@pytest.mark.parametrize("cutmix", [False, True])
def test_identical_networks_say_the_same(semi_context, cutmix):
    t = training(semi_context, cutmix=cutmix)
    t.student2.network.load_state_dict(t.setup.network.state_dict())
    for student in (t.setup.student, t.student2):
        student.network.eval()
        student.learn = student.network.eval
    terms = t.losses(batch_of(t), 5)
    assert float(terms["agree"]) == 1
    assert torch.equal(terms["x"], terms["x2"])


def test_each_learns_what_the_other_says_of_both_kinds_of_crops(semi_context):
    t = training(semi_context, cutmix=False)
    x, u = batch_of(t).values()
    valid = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(1)) < 0.7
    x, u = relabelled(x, x.y.restrict(valid[:2])), u._replace(valid=u.valid & valid[2:])
    valid = torch.cat([x.y.valid, u.valid])
    f1, f2 = (torch.cat([student(crops.weak).logits for crops in (x, u)]) for student in (t.setup.student, t.student2))
    k1, k2 = f1.argmax(1), f2.argmax(1)
    terms = t.losses({"x": x, "u": u}, 5)
    expected = over_valid(f1, k2, valid) + over_valid(f2, k1, valid)
    assert float(terms["u"].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(terms["agree"]) == pytest.approx(float((k1 == k2)[valid].float().mean())) and terms["agree"] < 1


def test_each_learns_what_the_other_says_of_the_parts_of_mixed_crops(semi_context, monkeypatch):
    t = training(semi_context, batch_unlabeled=3)
    b, m = batch_of(t), torch.zeros(3, 32, 32, dtype=torch.bool)
    m[:, 8:24, 4:20] = True
    monkeypatch.setitem(cps.MASKS, "cps", lambda n, size: m)
    k1, k2 = labels_of(3, 32, 32, 3, seed=1), labels_of(3, 32, 32, 3, seed=2)
    t.label = lambda student, u: k1 if student is t.setup.student else k2

    def mixed(p):
        return torch.where(m[:, None] if p.dim() == 4 else m, p, p.roll(-1, 0))

    f1, f2 = (student(mixed(b["u"].weak)).logits for student in (t.setup.student, t.student2))
    expected = over_valid(f1, mixed(k2.ids), mixed(k2.valid)) + over_valid(f2, mixed(k1.ids), mixed(k1.valid))
    assert float(t.losses(b, 5)["u"].detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cutmix", [False, True])
def test_both_networks_learn(semi_context, cutmix):
    t = training(semi_context, cutmix=cutmix)
    terms = t.losses(batch_of(t), 5)
    assert float(terms["loss"].detach()) == pytest.approx(
        float((terms["x"] + terms["x2"] + 1.5 * terms["u"]).detach()), rel=1e-5
    )
    terms["u"].backward()
    for network in (t.setup.network, t.student2.network):
        assert sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None) > 0


def test_mixed_labels_come_from_where_the_pixels_come(semi_context):
    """Three constant pictures: what a pixel shows says whose label it must carry."""
    t = training(semi_context)
    u, n = batch_of(t)["u"], 3
    tone = torch.arange(n, dtype=torch.float32)
    w = tone[:, None, None, None].expand(n, 3, 32, 32).contiguous()
    valid = torch.ones(n, 32, 32, dtype=torch.bool)
    valid[1] = False
    ids = tone.long()[:, None, None].expand(n, 32, 32)
    t.label = lambda student, u: LabelMap(ids, torch.ones(n, 32, 32), u.valid)
    x, k1, k2 = t.cutmix(u._replace(weak=w, valid=valid))
    assert torch.equal(x[:, 0].long(), k1.ids) and torch.equal(k1.ids, k2.ids)
    assert torch.equal(k1.valid, k1.ids != 1) and torch.equal(k2.valid, k1.valid)
    assert len(x[0].unique()) == 2, "a box of the next picture"


def test_labelling_in_evaluation_mode_leaves_the_statistics(semi_context):
    t = training(semi_context, teacher_mode="eval")
    before = {k: v.clone() for k, v in t.setup.network.named_buffers()}
    t.label(t.setup.student, batch_of(t)["u"])
    assert all(torch.equal(v, before[k]) for k, v in t.setup.network.named_buffers()) and t.setup.network.training
    t = training(semi_context)  # by default as in training
    t.label(t.setup.student, batch_of(t)["u"])
    assert not all(torch.equal(v, before[k]) for k, v in t.setup.network.named_buffers())


def test_weight_zero_is_two_supervised_runs(semi_context, tmp_path):
    labels = MaskLabels(semi_context.data, semi_context.classes)
    t = training(semi_context, weight=0.0)
    config = configure(SupervisedConfig, {"crop": 32, "batch": 2, "precision": "fp32"})
    alone = NetworkTraining(semi_context, config, labels, 10, dropout=False)
    second = NetworkTraining(semi_context, config, labels, 10, dropout=False, network=copy.deepcopy(t.student2.network))
    for k, one in enumerate((t, alone, second)):
        (tmp_path / str(k)).mkdir()
        semi_context.fit(one, "train", tmp_path / str(k), 3)
    a, b = t.setup.network.state_dict(), alone.setup.network.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in b)
    c, d = t.student2.network.state_dict(), second.setup.network.state_dict()
    assert all(torch.equal(c[name], d[name]) for name in d)
    assert not all(torch.equal(c[name], b[name]) for name in b)


def test_weights_that_fill_both_networks_are_refused(semi_context, monkeypatch):
    one = make_network(semi_context, CPSConfig())
    for place in (setups, cps):
        monkeypatch.setattr(place, "make_network", lambda context, config, second=False: copy.deepcopy(one))
    with pytest.raises(MaskwrightError, match=r"network_weights=whole\.pth fills both networks"):
        training(semi_context, network_weights="whole.pth")


def test_second_network_is_supervised_with_its_own_auxiliary_heads(semi_context):
    t = training(semi_context, network="pspnet")
    x = batch_of(t)["x"]
    t.setup.supervised(t.student2(x.weak), x.y, t.student2).backward()
    assert all(p.grad is None for p in t.setup.network.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in t.student2.network.aux.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("cutmix", [False, True])
def test_interrupted_and_resumed(semi_context, cutmix, tmp_path, monkeypatch):
    check_resumes(semi_context, lambda: training(semi_context, cutmix=cutmix), tmp_path, monkeypatch)

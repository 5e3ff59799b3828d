"""ToCo: its losses against loops and closed forms, its crops, its one step, its stages, and its backbone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.data.training.labels import LabelStore
from maskwright.data.training.tag_targets import TagTargets, find_targets
from maskwright.engine.config import configure
from maskwright.engine.opening import find_backbone, open_run
from maskwright.engine.progress import Progress
from maskwright.engine.request import RunRequest
from maskwright.errors import MaskwrightError
from maskwright.methods.weak.toco import method as toco
from maskwright.ops.cam_labels import IGNORE, cam_regions

VIT = "test_vit"
SMALL = {
    "tag_crop": 48, "tag_batch": 3, "local_side": 16, "local_crops": 5, "decoder_width": 8, "hidden": 8,
    "projection": 12, "scales": (1.0, 0.5), "precision": "fp32", "par_rounds": 2, "reg_cells": 12,
}  # fmt: skip
RETRAINED = {"crop": 32, "batch": 2}
"""What makes the network small that learns afterwards."""


# ---------------------------------------------------------------------- losses


def tokens(seed: int, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, n, n, generator=g), torch.randint(-1, 3, (2, n, n), generator=g)


@examples(max_examples=10)
@given(st.integers(0, 999))
def test_patch_token_contrast_against_a_loop(seed):
    x, y = tokens(seed)
    pos, neg = [], []
    for z, labels in zip(x.flatten(2), y.flatten(1)):
        for i in range(9):
            for j in range(9):
                if i == j or IGNORE in (labels[i], labels[j]):
                    continue
                cos = abs(float(F.cosine_similarity(z[:, i], z[:, j], dim=0)))
                (pos if labels[i] == labels[j] else neg).append(cos)
    expected = 0.5 * (1 - np.mean(pos) if pos else 0) + 0.5 * (np.mean(neg) if neg else 0)
    assert float(toco.L_ptc(x, y)) == pytest.approx(expected, abs=1e-5)


def test_identical_tokens_cost_half():
    x = torch.randn(1, 5, 1, 1).expand(2, 5, 4, 4)
    y = torch.zeros(2, 4, 4, dtype=torch.int64)
    y[:, 2:] = 1
    assert float(toco.L_ptc(x, y)) == pytest.approx(0.5 * 0 + 0.5 * 1)
    assert float(toco.L_ptc(x, torch.zeros_like(y))) == pytest.approx(0, abs=1e-6)
    assert float(toco.L_ptc(x, torch.full_like(y, IGNORE))) == 0


def test_ignored_tokens_get_no_gradient():
    x, y = tokens(3)
    x.requires_grad_(True)
    toco.L_ptc(x, y).backward()
    grads = x.grad.abs().sum(1)
    assert not grads[y == IGNORE].any() and (grads[y != IGNORE] > 0).all()


def test_only_tokens_of_one_image_are_compared():
    x, y = tokens(4)
    changed = x.clone()
    changed[1] = torch.randn(5, 3, 3)
    a = torch.autograd.functional.jacobian(lambda t: toco.L_ptc(t, y), x)[0]
    b = torch.autograd.functional.jacobian(lambda t: toco.L_ptc(t, y), changed)[0]
    assert torch.allclose(a, b, atol=1e-6)


@examples(max_examples=10)
@given(st.integers(0, 999), st.floats(0.3, 2))
def test_class_token_contrast_against_a_loop(seed, temperature):
    """Dot products of projections as they are, the mean over an image's positives and then over images."""
    g = torch.Generator().manual_seed(seed)
    p, q = torch.randn(3, 2, 6, generator=g), torch.randn(3, 5, 6, generator=g)
    pos, neg = torch.rand(3, 5, generator=g) < 0.5, torch.rand(3, 5, generator=g) < 0.5
    images = []
    for b in range(3):
        terms = []
        for i in range(2):
            e = [math.exp(sum(float(x) * float(y) for x, y in zip(p[b, i], v)) / temperature) for v in q[b]]
            rest = sum(v for v, n in zip(e, neg[b]) if n)
            terms += [-math.log(v / (v + rest + 1e-4)) for v, k in zip(e, pos[b]) if k]
        images.append(np.mean(terms) if terms else 0.0)
    assert float(toco.L_ctc(p, q, pos, neg, temperature)) == pytest.approx(np.mean(images), rel=1e-4, abs=1e-5)


def test_projections_keep_their_length_in_the_contrast():
    """With the paper's widths they are about 2 long; as cosines they would give a quarter of the gradient."""
    torch.manual_seed(0)
    projector = toco.Projector(64)
    z = projector(torch.randn(20, 64)).detach()
    assert 1.7 < float(z.norm(dim=1).mean()) < 2.3
    p, q = z[:4].view(2, 2, -1), z[4:].view(2, 8, -1).clone().requires_grad_(True)
    pos = torch.tensor([[True] * 5 + [False] * 3] * 2)
    grads = []
    for a, b in ((p, q), (F.normalize(p, dim=-1), F.normalize(q, dim=-1))):
        grads.append(torch.autograd.grad(toco.L_ctc(a, b, pos, ~pos), q)[0].norm())
    assert float(grads[0] / grads[1]) > 3


def test_large_views_are_positives_of_themselves_and_of_each_other(training, monkeypatch):
    """And small ones where they do not show background."""
    batch, caught = batch_of(training), []
    monkeypatch.setattr(toco, "L_ctc", lambda p, q, pos, neg, t: caught.append((p, q, pos, neg)) or q.sum())
    vectors = torch.randn(3, training.setup.network.width)
    roi = torch.zeros(3, 48, 48)
    roi[1] = 1.0
    training.class_contrast(batch, vectors, roi)
    p, q, pos, neg = caught[0]
    assert p.shape[:2] == (3, 2) and q.shape[:2] == pos.shape == neg.shape == (3, 7)
    assert pos[:, :2].all() and torch.equal(pos, ~neg)
    assert neg[0, 2:].all() and pos[1].all() and neg[2, 2:].all()


def test_class_token_contrast_moves_the_student_alone():
    p, q = torch.randn(2, 2, 6, requires_grad=True), torch.randn(2, 3, 6, requires_grad=True)
    neg = torch.tensor([[False, False, True]] * 2)
    pos = ~neg
    loss = toco.L_ctc(p, q, pos, neg)
    loss.backward()
    assert p.grad is None and (q.grad.abs().sum(-1) > 0).all()
    moved = q.detach() - 0.5 * q.grad
    assert toco.L_ctc(p, moved, pos, neg) < loss
    assert float(toco.L_ctc(p, q.detach(), torch.zeros_like(pos), neg)) == 0


def test_segmentation_loss_weighs_background_and_classes_alike():
    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(2, 4, 5, 5, generator=g), torch.full((2, 5, 5), IGNORE)
    y[0, 0, 0], y[0, 1:4], y[1, 4, 4] = 2, 0, 1
    targets = TagTargets((0, 2, 3), ("a", "b", "c"), 1, {})
    ground, things = toco.split_ground(y, targets)
    assert ground[0, 1, 0] == 1 and things[0, 0, 0] == 2 and things[1, 4, 4] == 0
    log = logits.log_softmax(1)
    expected = -0.5 * log[0, 1, 1:4].mean() - 0.25 * (log[0, 2, 0, 0] + log[1, 0, 4, 4])
    assert torch.allclose(toco.L_seg(logits, ground, things), expected)
    nothing = torch.full_like(y, IGNORE)
    assert float(toco.L_seg(logits, nothing, nothing)) == 0
    bare = TagTargets((0, 1, 2, 3), ("a", "b", "c", "d"), None, {})
    assert (toco.split_ground(y, bare)[0] == IGNORE).all()


def test_energy_spares_what_is_sure():
    """Gradients to the logits where a label is known are those elsewhere times what is not sure yet."""
    g = torch.Generator().manual_seed(0)
    logits, rgb = torch.randn(1, 3, 6, 6, generator=g), torch.rand(1, 3, 6, 6, generator=g) * 20
    y, valid = torch.full((1, 6, 6), IGNORE), torch.ones(1, 6, 6, dtype=torch.bool)
    grads = []
    for labels in (y, torch.zeros_like(y)):
        x = logits.clone().requires_grad_(True)
        toco.L_reg(x, rgb, labels, valid, sigma_xy=3).backward()
        grads.append(x.grad)
    gate = 1 - logits.softmax(1).amax(1, keepdim=True)
    assert torch.allclose(grads[1], grads[0] * gate, atol=1e-8) and grads[0].any()


def test_rates_rise_and_fall():
    factor = toco.warm_poly(100, 10)
    assert factor(0) == pytest.approx(1e-6) and factor(5) == pytest.approx(0.5 * (1 + 1e-6))
    assert factor(10) == pytest.approx(0.9**0.9) and factor(50) == pytest.approx(0.5**0.9)
    assert 0 < factor(99) == factor(200) and all(factor(t) > factor(t + 1) for t in range(10, 98))
    assert toco.warm_poly(10, 0)(0) == 1


# ---------------------------------------------------------------------- training


@pytest.fixture
def training(tmp_path) -> toco.TocoTraining:
    config = configure(toco.TocoConfig, SMALL)
    request = RunRequest(
        data=open_folder(write_tiny_folder(tmp_path / "tiny")), method=toco.Toco, config=config, out=tmp_path / "run",
        backbone=VIT, weights="random", steps=20, device="cpu", progress=Progress(quiet=True),
    )  # fmt: skip
    context = open_run(request)
    targets = find_targets(context.data, context.table)
    return toco.TocoTraining(context, config, targets, 20)


def batch_of(t: toco.TocoTraining) -> toco.LargeViews:
    return t.on_device(t.batch(t.sampler.next(), torch.Generator().manual_seed(0)))["x"]


def losses_of(t: toco.TocoTraining, step: int) -> dict[str, torch.Tensor]:
    return t.losses({"x": batch_of(t)}, step)


def test_a_batch_is_drawn_on_the_cpu_as_a_function_of_images_and_generator(training):
    first, again, other = (training.batch({"x": [0, 3]}, torch.Generator().manual_seed(s))["x"] for s in (1, 1, 2))
    for name in ("x", "second", "changed"):
        a, b, c = (getattr(views, name) for views in (first, again, other))
        assert a.dtype == torch.uint8 and torch.equal(a, b) and not torch.equal(a, c)
    assert first.y.tolist() == [[1, 0], [0, 1]]


def test_crops_are_cut_where_the_map_is_unsure(training):
    batch = batch_of(training)
    cams = torch.zeros(3, 2, 24, 24)
    cams[0, 0, :, :12] = 1.0  # a class on the left half, background on the right
    cams[1, 1] = 0.5  # unsure everywhere
    cams[2, 0] = 1.0  # the class everywhere: nowhere wanted
    roi = cam_regions(cams, 0.7, 0.25)
    small, ground = training.crops(batch._replace(valid=torch.ones(3, 24, 24, dtype=torch.bool)), roi)
    assert small.shape == (15, 3, 16, 16) and ground.shape == (3, 5)
    assert ground[0].any() and not ground[1].any() and not ground[2].any()
    # Each crop is a slice of the view with changed colours.
    for b in range(3):
        shown = torch.where(batch.valid[b], batch.changed[b], 0.0)
        slices = shown.unfold(1, 16, 1).unfold(2, 16, 1)  # (3, 33, 33, 16, 16)
        for crop in small[5 * b : 5 * b + 5]:
            assert float((slices - crop[:, None, None]).abs().amax((0, 3, 4)).min()) == 0


def test_maps_over_scales_against_a_loop(training):
    batch = batch_of(training)
    with torch.no_grad():
        out = training.setup.network(batch.x)
    found = training.multi_scale(batch, (out.cams, out.cams_aux))
    for k in (0, 1):
        total = torch.zeros(3, 2, 48, 48)
        for side in (48, 32):  # half of 48 is 1.5 patches, rounded up
            x = F.interpolate(batch.x, (side, side), mode="bilinear", align_corners=False)
            with torch.no_grad():
                pair = [training.setup.network(x), training.setup.network(x.flip(-1))]
            signed = [out.cams_aux if k else out.cams for out in pair]
            assert (signed[0] < 0).any()
            a, b = (F.interpolate(maps, (48, 48), mode="bilinear", align_corners=False) for maps in signed)
            total += torch.maximum(a, b.flip(-1)).clamp(min=0)
        low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
        expected = (total - low) / (high - low + 1e-5) * batch.y[..., None, None]
        assert torch.allclose(found[k], expected, atol=1e-3) and not found[k].requires_grad
        assert not found[k][batch.y == 0].any()


def test_the_teacher_gets_no_gradient_and_follows(training):
    before = [p.clone() for p in training.teacher.parameters()]
    terms = losses_of(training, 10)
    assert set(terms) == {"loss", "cls", "cls_aux", "ptc", "ctc", "seg", "reg"}
    total = terms["cls"] + terms["cls_aux"] + 0.2 * terms["ptc"] + 0.5 * terms["ctc"] + 0.1 * terms["seg"]
    assert torch.allclose(terms["loss"], total + 0.05 * terms["reg"])
    terms["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in training.teacher.parameters())
    idle = [n for n, p in training.setup.network.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle and all(p.grad is not None for p in training.projector.parameters())
    for p in training.projector.parameters():
        p.data.add_(1.0)
    training.after_step(10)
    for old, mean, p in zip(before, training.teacher.parameters(), training.projector.parameters()):
        assert torch.allclose(mean, 0.9 * old + 0.1 * p, atol=1e-6)


def test_the_branch_waits(training):
    early = losses_of(training, 1)
    assert float(early["seg"]) == float(early["reg"]) == 0
    early["loss"].backward()
    assert all(p.grad is None for p in training.setup.network.segment.parameters())


def test_every_trained_weight_has_a_rate(training):
    ids = {id(p) for g in training.optimizers["network"].param_groups for p in g["params"]}
    trained = [*training.setup.network.parameters(), *training.projector.parameters()]
    assert ids == {id(p) for p in trained if p.requires_grad}
    assert isinstance(training.optimizers["network"], torch.optim.AdamW)
    rates = sorted({g["lr"] for g in training.optimizers["network"].param_groups})
    assert rates == pytest.approx([6e-5, 6e-4])


def test_padding_has_no_label(training):
    """A view that reaches beyond its photograph teaches nothing there."""
    batch = batch_of(training)
    assert not batch.valid.all(), "some crops are larger than their photographs"
    valid = F.interpolate(batch.valid[:, None].float(), training.grid)[:, 0] > 0
    cams = torch.rand(3, 2, 24, 24) * batch.y[..., None, None]
    features = torch.randn(3, 64, 3, 3)
    labels = []
    real = toco.refined_cam_labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toco, "refined_cam_labels", lambda *a: labels.append(real(*a)) or labels[-1])
        training.segmentation_losses(batch, features, cams)
    assert (labels[0][~valid] == IGNORE).all() and (labels[0][valid] != IGNORE).any()


# ---------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny")
    rows = (root / "tags.csv").read_text().splitlines()
    (root / "tags.csv").write_text("\n".join([*rows[:6], "picture_05,"]) + "\n")  # one empty, two silent
    return root


def run(data, out, steps: int = 2, backbone: str = VIT, **settings):
    model = mw.train(
        data, "toco", out=out, steps=steps, backbone=backbone, weights="random", device="cpu", report=False,
        settings={**SMALL, **settings}, progress=Progress(quiet=True),
    )  # fmt: skip
    return model, json.loads((out / "run.json").read_text())


@pytest.mark.parametrize(
    ("retrain", "names"),
    [("masks", ["classify", "masks", "retrain"]), ("cams", ["classify", "cams", "seeds", "retrain"])],
)
def test_retraining_on_masks_and_on_seeds(data, tmp_path, retrain, names):
    own = {"mask_scales": (1.0,)} if retrain == "masks" else {}
    model, record = run(data, tmp_path / "run", retrain=retrain, **RETRAINED, **own)
    assert [s["name"] for s in record["stages"]] == names
    assert record["labels_read"]["train"] == {"masks": 0, "tags": 6, "captions": 0}
    store = LabelStore(tmp_path / "run" / names[-2], mw.open_folder(data).classes)
    targets = TagTargets.load(tmp_path / "run" / "classify")
    assert len(store) == 6
    for name in store.names:
        own = {0, *(targets.ids[k] for k in targets.tagged[name])}
        assert set(store.read(name).ids.unique().tolist()) <= own, "only tagged classes and the background"
    assert type(model.segmenter.decoder).__name__ != "TokenLargeFOV"
    shown = json.loads((tmp_path / "run" / names[-2] / "shown.json").read_text())
    captions = ["photograph", *(["class maps"] if retrain == "cams" else []), "pseudo mask"]
    assert [c for c, _ in shown["rows"][0]["pictures"]] == captions and len(shown["rows"]) == 5


def test_the_branch_is_the_result(data, tmp_path):
    model, record = run(data, tmp_path / "run", background="none")
    assert [s["name"] for s in record["stages"]] == ["classify"]
    assert type(model.segmenter.decoder).__name__ == "TokenLargeFOV" and len(model.classes) == 3
    assert any("no class stands for the background" in n for n in record["notes"])


def test_a_convolutional_backbone_is_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(MaskwrightError, match=r"toco on the convolutional.*vision transformer.*--backbone"):
        run(data, tmp_path / "run", backbone="mobilenetv3_small_050")
    assert not (tmp_path / "run").exists()
    assert all(mw.METHODS[name].backbones in ("any", "vit", "joint", "groups") for name in mw.METHODS)
    assert mw.METHODS["cam"].backbones == "any" and mw.METHODS["toco"].backbones == "vit"


def test_the_automatic_backbone_is_a_transformer(monkeypatch):
    from maskwright.models.backbones import build as backbones

    asked = []
    monkeypatch.setattr(backbones, "hub_cached", lambda *_: None)
    monkeypatch.setattr(backbones, "hub_reachable", lambda: False)
    with pytest.raises(MaskwrightError, match="no vision transformer is in the local hub cache"):
        find_backbone("auto", None, Progress(quiet=True), 0, "vit")
    real = backbones.build_backbone
    made = "maskwright.engine.opening.build_backbone"
    monkeypatch.setattr(made, lambda name, weights: asked.append(name) or real(VIT, weights))
    backbone, _ = find_backbone("auto", "random", Progress(quiet=True), 0, "vit")
    assert backbone.is_vit and asked == ["dinov2_small"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"low": 0.8}, "low=0.8"), ({"local_side": 48}, "local_side"), ({"mask_scales": ()}, "mask_scales")],
)
def test_refuses(settings, says):
    with pytest.raises(MaskwrightError, match=says):
        configure(toco.TocoConfig, {**SMALL, **settings})


@pytest.mark.slow
def test_learns_masks_from_tags(tmp_path):
    """Discs and squares on a plain ground, a tiny untrained transformer: 92 mIoU where this was written."""
    data = write_tiny_folder(tmp_path / "tiny", count=24, size=(96, 128))
    settings = {
        "tag_crop": 96, "tag_batch": 4, "tag_scale_min": 0.9, "tag_scale_max": 1.3, "tag_lr": 2e-3, "local_side": 32,
        "local_crops": 4, "decoder_width": 64, "decoder_dilation": 1, "hidden": 64, "scales": (1.0,),
        "par_rounds": 10, "reg_cells": 24, "projection": 1024,
    }  # fmt: skip
    model, record = run(data, tmp_path / "run", steps=200, **settings)
    model.predict_folder(mw.open_folder(data), tmp_path / "masks", refine="none")
    assert record["labels_read"]["train"]["masks"] == 0
    assert mw.evaluate(tmp_path / "masks", data, protocol="direct").to_json()["miou"] > 0.75

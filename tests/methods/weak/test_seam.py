"""SEAM's losses against slow versions and its paper's invariants; its stages with and without the walk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.data.training.tag_targets import find_targets
from maskwright.data.training.views import View
from maskwright.engine.config import configure
from maskwright.engine.progress import Progress
from maskwright.methods.weak.seam.method import (
    SeamConfig,
    SeamTraining,
    adaptive_min_pooling,
    classification_loss,
    equivariant_cross_regularization,
    equivariant_regularization,
    hard_pixel_mean,
    one_class,
    with_rest,
)
from maskwright.models.backbones.build import build_backbone
from maskwright.recipes.tags.maps import CamStore
from maskwright.recipes.tags.seeding import read_threshold

SMALL = {
    "batch": 2, "crop": 32, "tag_crop": 64, "tag_batch": 4, "scales": (0.5, 1.0), "precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_folder(write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny"))


def training(data, **options) -> SeamTraining:
    context = SimpleNamespace(
        data=data, table=data.classes, seed=0, steps=None, device=torch.device("cpu"),
        backbone=build_backbone("mobilenetv2_050", "random"),
    )  # fmt: skip
    settings = {"tag_crop": 64, "tag_batch": 4, "precision": "fp32", **options}
    return SeamTraining(context, configure(SeamConfig, settings), find_targets(data, data.classes), 10)


def drawn(train: SeamTraining, images: list[int], seed: int = 0) -> dict:
    """A batch on the device."""
    return train.on_device(train.batch({"x": images}, torch.Generator().manual_seed(seed)))


def test_a_batch_is_drawn_on_the_cpu_as_a_function_of_images_and_generator(data):
    train = training(data, mirror=0.5, rotate=20.0)
    first, again, other = (train.batch({"x": [0, 3]}, torch.Generator().manual_seed(s))["x"] for s in (1, 1, 2))
    assert first.x1.dtype == torch.uint8 and first.x2 is None, "A is applied where the network is"
    assert torch.equal(first.x1, again.x1) and not torch.equal(first.x1, other.x1)
    for a, b in zip(first.views2, again.views2):
        assert torch.equal(torch.as_tensor(a.matrix), torch.as_tensor(b.matrix))


def test_norms_are_not_trained_and_half_of_what_the_classifier_sees_is_dropped(data):
    t = training(data)
    assert t.setup.network.drop.p == 0.5
    norms = [m for m in t.setup.network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and not any(p.requires_grad for m in norms for p in m.parameters())
    trained = {id(p) for g in t.optimizers["network"].param_groups for p in g["params"]}
    assert not trained & {id(p) for m in norms for p in m.parameters()}


def draw(b: int, c: int, seed: int = 0, side: int = 6) -> torch.Tensor:
    return torch.rand(b, c, side, side, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------------------- losses


def test_min_pooling_against_a_slow_version():
    refined, y = draw(3, 4), torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).float()
    total = 0.0
    for b in range(3):
        values = [
            max([float(refined[b, t, i, j]) for t in range(4) if y[b, t]], default=0.0)
            for i in range(6)
            for j in range(6)
        ]
        total += sum(sorted(values)[:9]) / 9
    assert float(adaptive_min_pooling(refined, y)) == pytest.approx(total / 3, rel=1e-5)


def test_equivariance_against_a_slow_version_and_zero_for_the_same():
    y1, y2 = draw(2, 3), draw(2, 3, 1)
    valid = draw(2, 1, 2)[:, 0] < 0.6
    gaps = [abs(float(y1[b, t, i, j] - y2[b, t, i, j])) for b, i, j in valid.nonzero().tolist() for t in range(3)]
    assert float(equivariant_regularization(y1, y2, valid)) == pytest.approx(np.mean(gaps), rel=1e-5)
    assert float(equivariant_regularization(y1, y1, valid)) == 0
    assert float(equivariant_regularization(y1, y2, torch.zeros_like(valid))) == 0


def test_hard_pixel_mean_is_that_of_the_largest_fifth_and_no_less_than_the_mean():
    gap = draw(2, 3)
    slow = np.mean([np.mean(sorted(g.flatten().tolist())[-int(108 * 0.2) :]) for g in gap])
    assert float(hard_pixel_mean(gap)) == pytest.approx(slow, rel=1e-5)
    assert float(hard_pixel_mean(gap)) >= float(gap.mean())
    assert float(hard_pixel_mean(gap, 1.0)) == pytest.approx(float(gap.mean()), rel=1e-5)


def test_one_class_keeps_the_background_and_the_largest_class():
    y = with_rest(draw(2, 3)).requires_grad_(True)
    target = one_class(y)
    assert not target.requires_grad and torch.equal(target[:, 0], y[:, 0].detach())
    for b, i, j in ((0, 0, 0), (1, 3, 2), (1, 5, 5)):
        values = y[b, 1:, i, j].tolist()
        kept = [v if v == max(values) else 0.0 for v in values]
        assert target[b, 1:, i, j].tolist() == kept
    assert torch.allclose(y[:, 0] + y[:, 1:].amax(1), torch.ones(2, 6, 6))


def test_cross_regularization_against_a_slow_version():
    y1, y2, yr1, yr2 = (with_rest(draw(2, 3, s)) for s in range(4))
    valid = draw(2, 1, 9)[:, 0] < 0.8
    total = 0.0
    for target, refined in ((y2, yr1), (y1, yr2)):
        for b in range(2):
            gaps = []
            for c in range(4):
                for i in range(6):
                    for j in range(6):
                        t = float(target[b, c, i, j])
                        if c and t < float(target[b, 1:, i, j].max()):
                            t = 0.0
                        gaps.append(abs(t - float(refined[b, c, i, j])) * bool(valid[b, i, j]))
            total += np.mean(sorted(gaps)[-int(144 * 0.2) :]) / 2
    got = equivariant_cross_regularization(y1, yr1, y2, yr2, valid)
    assert float(got) == pytest.approx(total, rel=1e-5)


# ------------------------------------------------------------------------------------------------------ training


def test_identical_branches_have_no_equivariance_loss(data):
    train = training(data, rescale=1.0, tag_dropout=0.0)
    batch = drawn(train, [0, 1, 2, 3])
    x = batch["x"]
    assert torch.equal(x.x1, x.x2) and train.small == train.setup.crop
    terms = train.losses(batch, 0)
    assert float(terms["l_er"].detach()) == 0
    torch.testing.assert_close(terms["loss"], terms["l_cls"] + terms["l_ecr"])


@pytest.mark.parametrize("rotate, mirror", [(0.0, 0.0), (0.0, 1.0), (40.0, 0.5)])
def test_the_second_view_shows_what_its_geometry_says(data, rotate, mirror):
    train = training(data, rescale=0.5, rotate=rotate, mirror=mirror)
    x = drawn(train, [0, 1, 4, 7], 1)["x"]
    assert x.x2.shape == (4, 3, 32, 32) and train.grid == (8, 8)
    for view, other in zip(x.views1, x.views2):
        between = view.matrix_to(other)
        det = between[0, 0] * between[1, 1] - between[0, 1] * between[1, 0]
        assert float(det.abs().sqrt()) == pytest.approx(0.5)
        assert (det < 0) == (mirror == 1.0) or mirror == 0.5
    image = torch.from_numpy(data.image(0)).permute(2, 0, 1).float()
    shown = train.setup.preprocess.denormalise(x.x2[0].contiguous()).float()
    inside = View(x.views2[0].matrix, x.views2[0].size, x.views2[0].source_size).valid()
    direct = x.views2[0].render(image)
    core = inside.clone()
    core[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    gap = (shown - direct).abs().mean(0)[core]
    assert float(gap.median()) < 12, "the same part of the photograph, up to interpolation"


def test_maps_that_follow_the_image_cost_nothing(data):
    """What A does to maps of the first view is what the second would show of the same maps."""
    train = training(data, rescale=0.5, mirror=1.0)
    x = drawn(train, [0, 1], 1)["x"]
    smooth = torch.linspace(0, 1, 8)[None, None, None].expand(2, 2, 8, 8).contiguous()
    out1 = SimpleNamespace(cams=smooth, refined=torch.cat([smooth, smooth[:, :1]], 1))
    out2 = SimpleNamespace(cams=smooth.flip(-1), refined=out1.refined.flip(-1))
    y = torch.ones(2, 2)
    y1, _, valid = train.seen(out1, y, x.views1, x.views2)
    y2, _, _ = train.seen(out2, y, x.views2, x.views2)
    assert valid.any() and float(equivariant_regularization(y1, y2, valid)) < 0.02
    assert float(equivariant_regularization(y1.flip(-1), y2, valid)) > 0.2


def test_absent_classes_stay_zero_and_cross_terms_train_the_module_alone(data):
    train = training(data)
    batch = drawn(train, [0, 2])
    x = batch["x"]
    out = train.setup.network(x.x1, x.y)
    y1, yr1, _ = train.seen(out, x.y, x.views1, x.views2)
    assert not y1[:, 1].any() and not yr1[:, 2].any(), "both photographs show a disc and no square"
    train.losses(batch, 0)["l_ecr"].backward()
    assert all(p.grad is None or not p.grad.any() for p in train.setup.network.encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in train.setup.network.pcm.parameters())
    train.setup.network.zero_grad(set_to_none=True)
    train.losses(batch, 0)["l_er"].backward()
    assert train.setup.network.classifier.linear.weight.grad.any()
    assert all(p.grad is None or not p.grad.any() for p in train.setup.network.pcm.parameters())


def test_classification_loss_is_the_mean_of_the_branches(data):
    train = training(data)
    x = drawn(train, [0, 1])["x"]
    out = train.setup.network(x.x1, x.y)
    margin = torch.nn.functional.multilabel_soft_margin_loss(out.scores, x.y)
    least = adaptive_min_pooling(out.refined[:, 1:], x.y)
    torch.testing.assert_close(classification_loss(out, out, x.y), margin + least)


def test_small_crops_keep_cells(data):
    train = training(data, tag_crop=16, rescale=0.1, output_stride=8)
    assert train.small == 16 and train.setup.crop == 32


# ---------------------------------------------------------------------------------------------------------- runs


def run(data, out: Path, method: str = "seam", **settings):
    model = mw.train(
        data.root, method, out=out, steps=2, backbone="mobilenetv2_050", weights="random", device="cpu", report=False,
        settings={**SMALL, **settings}, progress=Progress(quiet=True),
    )  # fmt: skip
    return model, json.loads((out / "run.json").read_text())


def test_seeds_are_the_refined_maps(data, tmp_path):
    model, record = run(data, tmp_path / "run")
    assert [s["name"] for s in record["stages"]] == ["classify", "cams", "seeds", "retrain"]
    assert record["labels_read"]["train"] == {"masks": 0, "tags": 8, "captions": 0}
    store = CamStore(tmp_path / "run" / "cams" / "maps")
    maps = store.read("picture_00").maps
    assert maps.shape[0] == 1 and float(maps.min()) >= 0 and float(maps.max()) <= 1 and len(model.classes) == 3


@pytest.mark.parametrize("kind", ["irn", "psa"])
def test_with_a_walk(data, tmp_path, kind):
    _, record = run(data, tmp_path / "run", walk=kind, walk_steps=8, affinity_radius=4)
    names = ["classify", "cams", "pairs", "affinity", "walk", "seeds", "retrain"]
    assert [s["name"] for s in record["stages"]] == names
    assert record["labels_read"]["train"] == {"masks": 0, "tags": 8, "captions": 0}
    assert len(list((tmp_path / "run" / "pairs" / "masks").glob("*.png"))) == 8
    assert len(list((tmp_path / "run" / "walk" / "maps").glob("*.npz"))) == 8
    threshold = read_threshold(tmp_path / "run" / "seeds")
    assert threshold == 0.5 if kind == "psa" else 0 < threshold < 1


def test_equivariance_grows_over_its_share_of_the_steps(data):
    t = training(data, er=2.0, er_ramp=0.5)
    assert t.steps == 10 and [t.er_weight(s) for s in (0, 1, 4, 5, 9)] == pytest.approx([0, 0.4, 1.6, 2, 2])
    assert training(data, er=2.0, er_ramp=0.0).er_weight(0) == 2.0

"""Looking Beyond: votes, what is drawn, labels of a run, contrast within single photographs, labels given."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.methods.unsupervised.small import steps_of, trainer

import maskwright as mw
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals
from maskwright.data.training.streams import Views
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.looking_beyond import labelling as Lb
from maskwright.methods.unsupervised.looking_beyond.losses import assign_margin, cross_image_contrast, draw_pixels
from maskwright.methods.unsupervised.looking_beyond.method import LookingBeyond, check_links, with_counts
from maskwright.methods.unsupervised.looking_beyond.options import PRESETS, LabelOptions, LookingBeyondConfig
from maskwright.methods.unsupervised.looking_beyond.training import LookingBeyondTraining, linking
from maskwright.ops.label_quality import label_counts, label_quality
from maskwright.recipes.self_training import rounds

SMALL = {
    "crops.size": 32, "crops.batch": 4, "precision": "fp32", "features.short_side": 64, "clusters.restarts": 1,
    "labels.count": 6, "labels.superpixels": 20, "labels.side": 64, "contrast.hidden": 8, "contrast.width": 8,
    "contrast.anchors": 8,
}  # fmt: skip
SMALL_ROWS = 9
train = trainer("looking_beyond", SMALL)


def stages_of(out) -> list[str]:
    return [s["name"] for s in json.loads((out / "run.json").read_text())["stages"]]


# --------------------------------------------------------------------- labels


def test_votes_are_weighed_and_the_outvoted_are_unsure():
    ids, superpixels = torch.tensor([[0, 0, 0, 1], [2, 2, 1, 1]]), np.array([[0, 0, 0, 0], [1, 1, 1, 1]])
    margin = torch.tensor([[0.1, 0.1, 0.1, 0.5], [0.2, 0.2, 0.2, 0.2]])
    voted, sure = Lb.vote(ids, margin, superpixels)
    assert voted.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]], "0.5 against 0.3; of a tie the lower label"
    assert sure.tolist() == [[0, 0, 0, 0.5], [0, 0, pytest.approx(0.2), pytest.approx(0.2)]]
    again, _ = Lb.vote(voted, margin, superpixels)
    assert torch.equal(again, voted)


def test_labels_of_features_that_are_classes():
    """Two halves of a photograph with features of their own: labels follow the halves, and tell them exactly."""
    f = torch.zeros(3, 4, 6)
    f[0, :, :3], f[1, :, 3:] = 1, 1
    mu = torch.eye(3)
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    for superpixels in (0, 12):
        found = Lb.labelled(f, mu, image, LabelOptions(superpixels=superpixels, side=30))
        assert found.size == (40, 60)
        truth = np.repeat(np.arange(2), 30)[None].repeat(40, 0)
        quality = label_quality(label_counts(found.ids.numpy(), truth))
        assert all(v == pytest.approx(1) for v in quality.values()), "oracle features saturate every measure"
        assert 0 < float(found.confidence.max()) <= 1
    assert assign_margin(f[None], mu[:1])[1].unique().tolist() == [2]
    parts = Lb.own_superpixels(image, LabelOptions(superpixels=12, side=30)).ids
    assert 4 <= len(parts.unique()) <= 24
    with pytest.raises(ValueError, match="no pixel"):
        label_quality(np.zeros((2, 2)))


def test_labels_that_are_not_linked_are_judged_photograph_by_photograph():
    first, second = np.array([[5, 0], [0, 7]]), np.array([[0, 5, 0], [7, 0, 0]])
    none = np.zeros((0, 0), np.int64)
    apart = with_counts(with_counts(none, first, False), second, False)
    assert apart.tolist() == [[5, 0, 0], [0, 7, 0], [0, 5, 0], [7, 0, 0]] and label_quality(apart)["purity"] == 1
    joined = with_counts(with_counts(none, first, True), second, True)
    assert joined.tolist() == [[5, 5, 0], [7, 7, 0]] and label_quality(joined)["purity"] == 0.5


def test_regions_of_single_photographs_are_no_labels_of_all(tmp_path):
    for holds in ("regions", "soft"):
        with pytest.raises(MaskwrightError, match=f"holds {holds}"):
            check_links(Proposals.begin(tmp_path / holds, holds, "somebody", "none"))
    check_links(Proposals.begin(tmp_path / "objects", "objects", "somebody", "none"))


def test_photographs_without_given_labels_are_told(monkeypatch):
    notes: list[str] = []
    method = object.__new__(LookingBeyond)
    method.config, method.given = configure(LookingBeyondConfig, {}), True
    method.context = SimpleNamespace(data=range(3), note=notes.append)
    method.auxiliary = SimpleNamespace(indices=[0, 2])
    monkeypatch.setattr("maskwright.methods.unsupervised.looking_beyond.method.LookingBeyondTraining", print)
    method.training(1)
    assert notes == ["1 photographs without labels are left out of the training."]


# --------------------------------------------------------------------- what is drawn


def test_pixels_are_drawn_evenly_of_labels_that_two_photographs_show():
    labels = torch.zeros(3, 4, 4, dtype=torch.int64)
    labels[0, :2], labels[1, 3:] = 1, 1
    labels[2, 0] = 2
    margin, valid = torch.ones(3, 4, 4), torch.ones(3, 4, 4, dtype=torch.bool)
    valid[1, 0, 0] = False
    at = draw_pixels(labels, margin, valid, 9, 6, 0.0, True)
    drawn, image = labels.flatten()[at], torch.arange(3).repeat_interleave(16)[at]
    assert sorted(drawn.unique().tolist()) == [0, 1], "2 is in one photograph alone"
    assert [int((image[drawn == 0] == i).sum()) for i in range(3)] == [2, 2, 2]
    assert [int((image[drawn == 1] == i).sum()) for i in range(3)] == [3, 3, 0]
    assert len(at.unique()) == len(at) and 16 not in at.tolist()
    assert 2 in labels.flatten()[draw_pixels(labels, margin, valid, 9, 6, 0.0, False)]
    assert len(draw_pixels(labels, margin, valid, 1, 6, 0.0, True)) == 6, "one label"
    margin[:, :, :2] = 0.1
    sure = draw_pixels(labels, margin, valid, 9, 16, 0.4, True)
    assert float(margin.flatten()[sure].float().mean()) > 0.7 and len(sure) > 0
    assert not len(draw_pixels(labels, margin, torch.zeros_like(valid), 9, 6, 0.2, True))
    alone = draw_pixels(labels[:1], margin[:1], valid[:1], 9, 4, 0.0, True)
    assert len(alone) == 8, "of a single photograph any label will do"


def test_contrast_of_nothing_and_of_one_label():
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    images, zero = torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
    for labels, across in ((torch.arange(6), False), (zero, False), (zero, True)):
        loss = cross_image_contrast(z, labels, images, 0.1, across)
        assert loss.item() == 0, "no positive, or no negative"
        if loss.requires_grad:
            (grad,) = torch.autograd.grad(loss, z, allow_unused=True)
            assert grad is None or not grad.isnan().any()
    assert cross_image_contrast(z[:0], zero[:0], zero[:0], 0.1).item() == 0
    assert float(linking(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))["across"]) == pytest.approx(4 / 6)


# --------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def linked(data, tmp_path_factory):
    """A run on clusters, whose labels are judged."""
    out = tmp_path_factory.mktemp("runs") / "linked"
    train(data, out, **{"labels.judge": True})
    return out


def test_a_run_on_clusters(linked):
    assert stages_of(linked) == ["dictionary", "label", "judge", "train", "cluster"]
    assert any(step["across"] > 0 for step in steps_of(linked)) and all(step["loss"] > 0 for step in steps_of(linked))
    quality = json.loads((linked / "judge" / "quality.json").read_text())
    assert quality["photographs"] == 8 and 0 < quality["purity"] <= 1
    read = json.loads((linked / "run.json").read_text())["labels_read"]
    assert read["evaluate"]["masks"] == 8 and not read["train"].get("masks")
    store = mw.open_folder(linked / "label" / "labels")
    assert len(store) == 8 and store.labels_present()["masks"] == 8, "the labels are a data set"


def test_both_clusterings_may_learn_from_crops(data, linked, tmp_path, monkeypatch):
    """Labels are of whole photographs still; crops give as many rows as these did."""
    seen: list[tuple[int, tuple[int, int]]] = []
    rows_of = rounds.live_rows

    def spied(context, features, preprocess, number, per_image, data=None):
        seen.append((len(data), data.image(0).shape[:2]))
        rows = rows_of(context, features, preprocess, number, per_image, data)
        assert len(rows) <= SMALL_ROWS * len(context.data)
        return rows

    monkeypatch.setattr("maskwright.recipes.training.network.live_rows", spied)
    train(data, tmp_path / "crops", **{"features.crop": 0.5, "rows": SMALL_ROWS})
    folder, (h, w) = mw.open_folder(data), mw.open_folder(data).size(0)
    assert seen == [(4 * len(folder), (round(h / 2), round(w / 2)))]
    words = [load_file(out / "dictionary" / "dictionary.safetensors") for out in (linked, tmp_path / "crops")]
    assert not torch.equal(words[0]["mean"], words[1]["mean"])
    assert mw.open_folder(tmp_path / "crops" / "label" / "labels").size(0) == (h, w)
    with pytest.raises(MaskwrightError, match="margin"):
        configure(LookingBeyondConfig, {"features.margin": 0.1, "labels.by": "superpixels"})
    assert configure(LookingBeyondConfig, {"features.crop": 0.5, "labels.by": "superpixels"}).features.crop == 0.5
    assert configure(LookingBeyondConfig, {"crop": 96}).crops.size == 96, "the former name of crops.size"


@pytest.mark.slow
def test_runs_on_superpixels_and_on_labels_that_are_given(data, linked, tmp_path):
    train(data, tmp_path / "single", **{"labels.by": "superpixels"})
    assert stages_of(tmp_path / "single") == ["label", "train", "cluster"]
    assert all(step["across"] == 0 for step in steps_of(tmp_path / "single")), "nothing links two photographs"
    given = {"labels": linked / "label" / "labels"}
    small = {name: value for name, value in SMALL.items() if not name.startswith(("features.", "labels."))}
    trainer("looking_beyond", small)(data, tmp_path / "given", backbone="test_vit", inputs=given)
    assert stages_of(tmp_path / "given") == ["train", "cluster"]
    with pytest.raises(MaskwrightError, match="one of the two"):
        train(data, tmp_path / "both", inputs=given, **{"labels.by": "superpixels"})


@pytest.mark.parametrize("linked", [True, False])
def test_two_crops_of_one_photograph_are_one_photograph(linked):
    """A batch of more crops than photographs: labels still link two of the three crops alone, or their superpixels."""
    seen = []

    def same(x):
        return x

    def project(rows):
        seen.append(rows[:, 0, 0, 0].tolist())
        return rows

    e = torch.arange(3.0)[:, None, None, None].expand(3, 4, 4, 4)  # each crop's own number
    y = LabelMap(torch.zeros(3, 4, 4, dtype=torch.int64), torch.ones(3, 4, 4), torch.ones(3, 4, 4, dtype=torch.bool))
    u = Views(e, y, y.valid, (), (), (5, 5, 9))
    training = SimpleNamespace(
        config=configure(LookingBeyondConfig, {"contrast.anchors": 6}), linked=linked, projection=project,
        student=SimpleNamespace(autocast=nullcontext), network=SimpleNamespace(features=same, decode=same),
    )  # fmt: skip
    torch.manual_seed(0)
    found = LookingBeyondTraining.losses(training, {"u": u}, 0)
    first, second, third = (seen[0].count(k) for k in range(3))
    pairs = (len(seen[0]) * (len(seen[0]) - 1)) if linked else 6 * 5 + 6 * 5
    across = 2 * (first + second) * third if linked else 0
    assert float(found["across"]) == pytest.approx(across / pairs)
    if not linked:
        assert (first + second, third) == (6, 6), "one superpixel of each photograph, both crops of it"


def test_positives_of_other_photographs_need_two_in_each_process(data, tmp_path, monkeypatch):
    across = {"contrast.across": True, "labels.judge": False}
    one = write_tiny_folder(tmp_path / "one", count=1)
    with pytest.raises(MaskwrightError, match=r"across=true and 1 photographs.* leave contrast\.across out"):
        train(one, tmp_path / "alone", 1, **across)
    train(one, tmp_path / "not_across", 1)
    with pytest.raises(MaskwrightError, match=r"crops\.batch=1 in 1 processes.* add --set crops\.batch=2"):
        train(data, tmp_path / "single", 1, **across, **{"crops.batch": 1})
    train(data, tmp_path / "pair", 1, **across, **{"crops.batch": 2})
    monkeypatch.setattr("maskwright.engine.distributed.world_size", lambda: 2)
    config = configure(LookingBeyondConfig, {"contrast.across": True, "crops.batch": 3})
    labels = SimpleNamespace(indices=range(8))
    with pytest.raises(MaskwrightError, match="batch of at least 4: positives are other photographs of the same"):
        LookingBeyondTraining(SimpleNamespace(), config, 1, labels, True)


def test_options():
    for name in PRESETS:
        config = configure(LookingBeyondConfig, {"preset": name})
        assert config.crops.size == PRESETS[name]["crop"] and config.optimizer.name == PRESETS[name]["optimizer"]
    assert configure(LookingBeyondConfig, {"across": True}).contrast.across
    with pytest.raises(MaskwrightError, match="across=True with labels"):
        configure(LookingBeyondConfig, {"across": True, "labels.by": "superpixels"})

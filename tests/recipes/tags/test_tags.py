from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.data.training.tag_targets import TagTargets, find_targets
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.recipes.tags.method import TagMethod
from maskwright.recipes.tags.network import tag_steps
from maskwright.recipes.tags.options import TagsConfig
from maskwright.recipes.tags.telling import note_targets
from maskwright.recipes.tags.training import TagTraining, multi_label_soft_margin


@pytest.fixture
def data(tmp_path):
    return open_folder(write_tiny_folder(tmp_path / "tiny"))


def rewrite(data, rows: str):
    (data.root / "tags.csv").write_text("name,tags\n" + rows)
    return open_folder(data.root)


def context(data, **more):
    notes: list[str] = []
    found = SimpleNamespace(
        data=data, table=data.classes, seed=0, steps=None, device=torch.device("cpu"), notes=notes, note=notes.append,
        backbone=build_backbone("mobilenetv3_small_050", "random"), **more,
    )  # fmt: skip
    return found


def config(**options):
    return configure(TagsConfig, {"tag_crop": 32, "tag_batch": 4, "precision": "fp32", **options})


def test_tags_by_name_and_the_ledger(data):
    targets = find_targets(data, data.classes)
    assert targets.names == ("disc", "square") and targets.ids == (1, 2)
    assert targets.background == 0, "nothing is tagged with the first class"
    assert targets.multi_hot("picture_00").tolist() == [1, 0] and targets.multi_hot("picture_01").tolist() == [0, 1]
    assert targets.counts().tolist() == [4, 4] and len(targets) == 2
    assert data.ledger.counts()["train"] == {"masks": 0, "tags": 8, "captions": 0}


def test_tags_from_masks_read_masks_and_say_so(data):
    targets = find_targets(data, data.classes, from_masks=True, background="ground")
    assert targets.tagged == find_targets(data, data.classes).tagged and targets.source == "masks"
    assert data.ledger.counts()["train"]["masks"] == 8


def test_a_class_called_background_is_it_wherever_it_stands(data):
    table = ClassTable(("disc", "square", "Background"))
    targets = find_targets(rewrite(data, "picture_00,disc;Background\n"), table)
    assert targets.background == 2 and targets.ids == (0, 1) and targets.tagged == {"picture_00": (0,)}


def test_without_a_background_class_every_class_is_a_tag(data):
    fresh = rewrite(data, "picture_00,ground;disc\npicture_01,ground;square\n")
    targets = find_targets(fresh, fresh.classes)
    assert targets.background is None and targets.ids == (0, 1, 2)
    ctx = context(fresh)
    note_targets(ctx, targets)
    assert any("no class stands for the background" in n for n in ctx.notes)
    assert any("2 of 8 images" in n and "6 have none" in n for n in ctx.notes)


def test_named_background_and_none(data):
    assert find_targets(data, data.classes, background="none").background is None
    assert find_targets(data, data.classes, background="square").background == 2
    with pytest.raises(MaskwrightError, match="'square'"):
        find_targets(data, data.classes, background="sqare")


def test_images_without_a_row_say_nothing_and_empty_rows_say_none(data):
    fresh = rewrite(data, "picture_00,disc\npicture_01,\n")
    targets = find_targets(fresh, fresh.classes)
    assert targets.indices(fresh) == [0, 1] and "picture_02" not in targets
    assert not targets.multi_hot("picture_01").any()
    ctx = context(fresh)
    note_targets(ctx, targets)
    assert any("1 say that no class is there" in n for n in ctx.notes)
    assert any("never tagged" in n and "square" in n for n in ctx.notes)


def test_unknown_tags_are_refused_with_the_nearest(data):
    fresh = rewrite(data, "picture_00,disk\n")
    with pytest.raises(MaskwrightError, match=r"'disk' of picture_00.*'disc'"):
        find_targets(fresh, fresh.classes)


def test_nothing_to_learn_is_refused(data):
    fresh = rewrite(data, "picture_00,\n")
    with pytest.raises(MaskwrightError, match="is tagged"):
        find_targets(fresh, fresh.classes)
    shutil.rmtree(data.root / "masks")
    with pytest.raises(MaskwrightError, match="no image with masks"):
        find_targets(open_folder(data.root), data.classes, from_masks=True)


def test_targets_are_read_back(data, tmp_path):
    targets = find_targets(data, data.classes)
    targets.save(tmp_path)
    assert TagTargets.load(tmp_path) == targets
    with pytest.raises(MaskwrightError, match="tags of the nowhere stage"):
        TagTargets.load(tmp_path / "nowhere")


def test_loss_against_a_slow_version():
    s, y = torch.randn(3, 4), torch.randint(2, (3, 4)).float()
    total = 0.0
    for b in range(3):
        for c in range(4):
            p = 1 / (1 + np.exp(-float(s[b, c])))
            total -= float(y[b, c]) * np.log(p) + (1 - float(y[b, c])) * np.log(1 - p)
    assert float(multi_label_soft_margin(s, y)) == pytest.approx(total / 12, rel=1e-5)


def test_batch_has_crops_targets_and_their_views(data):
    ctx = context(data)
    training = TagTraining(ctx, config(), find_targets(data, data.classes), 10)
    random = torch.Generator().manual_seed(3)
    drawn = training.batch({"x": [0, 1, 4, 7]}, random)["x"]
    assert drawn.weak.dtype == torch.uint8, "normalised where the network is"
    x = training.on_device({"x": drawn})["x"]
    assert x.weak.shape == (4, 3, 32, 32) and x.t.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert x.images == (0, 1, 4, 7)
    for k, i in enumerate(x.images):
        view = x.geometry[k]
        inside = view.valid()
        shown = training.setup.preprocess.denormalise(x.weak[k].contiguous())
        expected = torch.from_numpy(view.render(data.image(i))).permute(2, 0, 1)
        assert torch.equal(shown[:, inside], expected[:, inside]), "the view is the one the crop was taken with"
        assert torch.equal(drawn.weak[k], shown) and torch.equal(drawn.valid[k], inside)
    again = training.batch({"x": [0, 1, 4, 7]}, torch.Generator().manual_seed(3))["x"]
    assert torch.equal(drawn.weak, again.weak)
    jittered = TagTraining(ctx, config(tag_jitter=0.3), training.setup.targets, 10)
    other = jittered.batch({"x": [0, 1, 4, 7]}, torch.Generator().manual_seed(3))["x"]
    assert not torch.equal(other.weak, drawn.weak)
    outside = ~drawn.valid[:, None].expand_as(drawn.weak)
    assert outside.any() and torch.equal(other.weak[outside], drawn.weak[outside]), "the margin is not jittered"


def test_only_tagged_images_are_drawn(data):
    fresh = rewrite(data, "picture_02,disc\npicture_05,square\n")
    training = TagTraining(context(fresh), config(), find_targets(fresh, fresh.classes), 10)
    drawn = {i for _ in range(4) for i in training.batch(training.sampler.next(), torch.Generator())["x"].images}
    assert drawn == {2, 5}


def test_loss_is_that_of_the_pooled_maps_and_falls(data):
    training = TagTraining(context(data), config(), find_targets(data, data.classes), 20)
    batch = training.on_device(training.batch({"x": range(8)}, torch.Generator().manual_seed(0)))
    terms = training.losses(batch, 0)
    expected = multi_label_soft_margin(training.setup.network(batch["x"].weak).scores, batch["x"].t)
    assert float(terms["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    fabric = SimpleNamespace(backward=lambda loss: loss.backward())
    first = float(training.losses(batch, 0)["loss"].detach())
    for step in range(12):
        training.update(fabric, batch, step)
    assert float(training.losses(batch, 0)["loss"].detach()) < first


def test_steps_and_contradictions(data):
    ctx = context(data)
    assert tag_steps(ctx, config()) == 800 and tag_steps(ctx, config(tag_steps=5)) == 5
    ctx.steps = 30
    assert tag_steps(ctx, config()) == 30 and tag_steps(ctx, config(tag_steps=5)) == 5
    with pytest.raises(MaskwrightError, match=r"classifier: scale_min=2.0.*at most scale_max=1.25"):
        config(tag_scale_min=2.0)


def test_masks_that_stand_for_tags_are_the_labels_needed():
    def needed(**options):
        return TagMethod.terms(configure(TagsConfig, options)).needs

    assert needed(tags_from_masks=True) == {"masks"} and needed() == {"tags", "names"}

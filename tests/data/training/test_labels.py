"""Label maps: ids, confidence and validity stay together; the store is a dataset folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.masks import read_mask
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.views import View
from maskwright.errors import MaskwrightError

CASES = settings(max_examples=40, deadline=None)


def linked(h: int, w: int, seed: int = 0) -> LabelMap:
    """A map whose confidence and validity are functions of its ids, so that a mismatch shows."""
    ids = torch.randint(0, 50, (h, w), generator=torch.Generator().manual_seed(seed))
    return LabelMap(ids, (ids / 64).float(), ids % 3 != 0)


def is_linked(labels: LabelMap) -> bool:
    inside = labels.confidence > 0
    same = torch.equal(labels.confidence, (labels.ids / 64).float())
    return same and torch.equal(labels.valid[inside], (labels.ids % 3 != 0)[inside])


@CASES
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 99), st.data())
def test_everything_moves_together(h, w, seed, data):
    labels = linked(h, w, seed)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["crop", "hflip", "vflip", "resize", "mix", "rotate"]))
        if kind == "crop":
            a = [data.draw(st.integers(-2, 5)), data.draw(st.integers(-2, 5))]
            labels = labels.crop(*a, data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
        elif kind == "resize":
            labels = labels.resize(data.draw(st.integers(1, 15)), data.draw(st.integers(1, 15)))
        elif kind == "mix":
            mask = torch.rand(labels.size) < 0.5
            labels = labels.mix(linked(*labels.size, seed + 1), mask)
        elif kind == "rotate":
            labels = labels.through(View.identity(labels.size).rotate(data.draw(st.floats(-180, 180)), expand=True))
        else:
            labels = getattr(labels, kind)()
        assert is_linked(labels)
        assert not labels.valid[labels.confidence == 0].any() or (labels.ids[labels.confidence == 0] == 0).all()


def test_through_a_whole_pixel_view_is_a_slice_and_padding_is_not_valid():
    labels = linked(6, 8)
    view = View.identity((6, 8)).crop(-1, 2, 5, 8).hflip()
    moved = labels.through(view)
    assert torch.equal(moved.ids.flip(-1)[1:, :6], labels.ids[:4, 2:])
    assert not moved.valid[~view.valid()].any() and (moved.target(255)[~view.valid()] == 255).all()
    assert torch.equal(labels.hflip().ids, labels.through(View.identity((6, 8)).hflip()).ids)
    assert torch.equal(labels.vflip().valid, labels.through(View.identity((6, 8)).vflip()).valid)
    batch = LabelMap.stack([linked(6, 8, 1), linked(6, 8, 2)])
    assert torch.equal(batch.through(view)[1].ids, linked(6, 8, 2).through(view).ids)


def test_resize_by_a_whole_factor_repeats_pixels():
    labels = linked(4, 5)
    assert torch.equal(labels.resize(8, 15).ids, labels.ids.repeat_interleave(2, 0).repeat_interleave(3, 1))
    assert torch.equal(labels.resize(8, 15).resize(4, 5).ids, labels.ids)


def test_from_mask_and_target():
    ids = np.array([[0, 255], [254, 3]], np.uint8)
    assert LabelMap.from_mask(ids).target().tolist() == [[0, 255], [254, 3]]
    both = LabelMap.from_mask(ids, (255, 254))
    assert both.target(-100).tolist() == [[0, -100], [-100, 3]] and both.confidence.tolist() == [
        [1, 0],
        [0, 1],
    ]
    assert both.valid.float().mean() == 0.5 and not LabelMap.unlabeled((2, 2)).valid.any()


def test_from_probs():
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    probs = logits.softmax(1)
    labels = LabelMap.from_probs(probs, 0.5)
    assert torch.equal(labels.ids, probs.argmax(1)) and not labels.confidence.requires_grad
    assert torch.equal(labels.valid, probs.amax(1) >= 0.5)
    limits = torch.tensor([0.0, 1.1, 0.0, 1.1])
    kept = LabelMap.from_probs(probs).threshold(limits)
    assert torch.equal(kept.valid, labels.ids % 2 == 0)


def test_errors():
    with pytest.raises(ValueError, match="shapes"):
        LabelMap(torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="source of"):
        linked(3, 4).through(View.identity((4, 3)))
    with pytest.raises(TypeError):
        linked(3, 4)[0]


@pytest.mark.parametrize("classes", [3, 255, 300])
def test_store_is_exact_and_a_dataset(tmp_path, classes):
    table = ClassTable.numbered(classes)
    store = LabelStore(tmp_path / "labels", table)
    ids = torch.randint(0, classes, (9, 7))
    ids[0, 0] = classes - 1
    labels = LabelMap(ids, torch.rand(9, 7), torch.rand(9, 7) < 0.8)
    picture = tmp_path / "one.jpg"
    Image.new("RGB", (7, 9)).save(picture)
    store.write("one", labels, picture)
    read = store.read("one")
    assert torch.equal(read.valid, labels.valid) and torch.equal(read.ids[read.valid], ids[labels.valid])
    assert torch.allclose(read.confidence, labels.confidence, atol=0.5 / 65535 + 1e-7)
    assert "one" in store and store.names == ["one"] and len(store) == 1
    mask = read_mask(tmp_path / "labels" / "masks" / "one.png")
    assert (mask[~labels.valid.numpy()] == table.ignore).all()
    assert (tmp_path / "labels" / "images" / "one.jpg").exists()
    assert (tmp_path / "labels" / "classes.txt").read_text().split("\n")[0] == table.names[0]
    assert not list((tmp_path / "labels").rglob("*.tmp*"))


def test_store_reads_ordinary_masks_and_tells_of_missing_ones(tmp_path):
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.array([[1, 255]], np.uint8)).save(tmp_path / "masks" / "a.png")
    labels = LabelMap.load(tmp_path, "a")
    assert labels.target().tolist() == [[1, 255]] and labels.confidence.tolist() == [[1, 0]]
    with pytest.raises(MaskwrightError):
        LabelMap.load(tmp_path, "b")

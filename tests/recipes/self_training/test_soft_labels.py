"""Soft labels on disk and in crops, and spatial priors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.golden.formulas import draw

from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.sources import StoredLabels
from maskwright.data.training.streams import CropRecipe, Stream
from maskwright.errors import MaskwrightError
from maskwright.recipes.self_training.priors import CELLS, PlaceCounts
from maskwright.recipes.self_training.soft_labels import SoftStore, SoftStream


def test_what_is_stored_is_read_to_sixteen_bits(tmp_path):
    store, y = SoftStore(tmp_path), draw(5, 7, 9).softmax(0)
    store.write("folder/name", y)
    assert (store.read("folder/name") - y).abs().max() < 1e-5
    file = tmp_path / "soft" / "folder" / "name.npz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(MaskwrightError, match="soft labels") as raised:
        store.read("folder/name")
    assert "--resume" in raised.value.repair


def test_crops_bring_hard_and_soft_labels_of_the_same_pixels(semi_context, tmp_path):
    data = semi_context.data
    store, soft = LabelStore(tmp_path / "labels", semi_context.table), SoftStore(tmp_path / "labels")
    y = (4 * draw(3, 48, 64)).softmax(0)
    ids, valid = y.argmax(0), y.max(0).values > 0.6
    for name in data.names[:3]:
        soft.write(name, y)
        store.write(name, LabelMap(torch.where(valid, ids, 0), valid.float(), valid))
    labels = StoredLabels(data, store)
    plain = Stream(data, labels.indices, Sampler(3, 2), CropRecipe(32, (1.0, 1.0), 64), (0.5, 0.5, 0.5), labels)
    found = SoftStream(plain, soft).draw([0, 2], torch.Generator().manual_seed(1))
    v = found.views.valid
    assert found.soft.shape == (2, 3, 32, 32) and v.any() and not v.all()
    assert torch.allclose(found.soft.sum(1)[v], torch.ones(int(v.sum()))) and not found.soft.sum(1)[~v].any()
    assert torch.equal(found.soft.argmax(1)[v], found.views.y.ids[v]), "at scale 1 both are the same pixels"


def test_a_prior_is_the_share_of_each_class_at_each_place():
    counts = PlaceCounts(3)
    for size in ((48, 64), (100, 30)):  # class 0 above, class 1 below, whatever the size
        ids = torch.zeros(size, dtype=torch.int64)
        ids[size[0] // 2 :] = 1
        ids[0, 0] = 255
        counts.add(LabelMap.from_mask(ids))
    q = counts.prior()
    assert q.shape == (3, CELLS, CELLS) and torch.allclose(q.sum(0), torch.ones(CELLS, CELLS))
    assert not q[2].any(), "what no mask shows is nowhere"
    far = CELLS // 2 - 10
    assert float(q[0, :far].min()) > 0.999 and float(q[1, -far:].min()) > 0.999
    middle = q[1, CELLS // 2 - 8 : CELLS // 2 + 8].mean(1)
    assert bool((middle.diff() >= -1e-6).all()), "smooth from one to the other"
    np.testing.assert_allclose(float(middle.mean()), 0.5, atol=0.05)
    with pytest.raises(ValueError, match="no labelled pixel"):
        PlaceCounts(2).prior()

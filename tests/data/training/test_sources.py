"""Training labels from masks and from stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import Readers, open_folder
from maskwright.data.masking.masks import write_mask
from maskwright.data.pictures.images import read_image
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.proposals import Proposals
from maskwright.data.training.sources import BothLabels, MaskLabels, StoredLabels, read_view
from maskwright.data.training.views import View
from maskwright.errors import MaskwrightError


@pytest.fixture
def data(tmp_path):
    return open_folder(write_tiny_folder(tmp_path / "tiny"))


def test_masks_only_of_images_that_may_be_read_and_noted(data):
    some = data.labeled(data.names[2:5])
    labels = MaskLabels(some, 3)
    assert labels.indices == [2, 3, 4]
    assert not some.ledger.counts()["train"].get("masks")
    y = labels.read(3)
    assert y.size == (48, 64) and bool(y.valid.all()) and set(y.ids.unique().tolist()) == {0, 2}
    assert some.ledger.counts()["train"]["masks"] == 1


def test_no_mask_and_unknown_classes_are_told(data, tmp_path):
    with pytest.raises(MaskwrightError, match="no mask"):
        MaskLabels(data.labeled([]), 3)
    (data.root / "classes.txt").unlink()
    nameless = open_folder(data.root)
    with pytest.raises(MaskwrightError, match="class 2"):
        MaskLabels(nameless, 2).read(1)


def test_ignored_pixels_are_not_valid(data):
    path = data.root / "masks" / "picture_00.png"
    ids = np.array(Image.open(path))
    ids[:5] = 255
    Image.fromarray(ids).save(path)
    y = MaskLabels(open_folder(data.root), 3).read(0)
    assert not y.valid[:5].any() and y.valid[5:].all()


def test_store_and_both(data, tmp_path):
    store = LabelStore(tmp_path / "store", data.classes)
    with pytest.raises(MaskwrightError, match="none of the images"):
        StoredLabels(data, store)
    ones = LabelMap(torch.ones(48, 64, dtype=torch.long), torch.full((48, 64), 0.5), torch.ones(48, 64).bool())
    for name in data.names[1:3]:
        store.write(name, ones)
    stored = StoredLabels(data, store)
    assert stored.indices == [1, 2]
    assert StoredLabels(data, store, {data.names[2], "other"}).indices == [2]
    both = BothLabels(MaskLabels(data.labeled(data.names[:2]), 3), stored)
    assert both.indices == [0, 1, 2]
    assert float(both.read(1).confidence.min()) == 1 and abs(float(both.read(2).confidence.max()) - 0.5) < 1e-4
    assert data.ledger.counts()["train"]["masks"] == 1


def test_stored_labels_of_another_size_are_refused(data, tmp_path):
    """Somebody's folder of regions at half the size: one line, not an error inside the training."""
    for name in data.names:
        write_mask(tmp_path / "half" / f"{name}.png", np.zeros((24, 32), np.uint8))
    with pytest.raises(MaskwrightError, match="are 24x32"):
        StoredLabels(data, Proposals(tmp_path / "half")).read(0)


def test_a_view_reads_the_same_pixels_through_any_reader(data):
    view = View.identity(data.size(0)).crop(5, 7, 20, 30).hflip()
    own = data.with_items(data.items)
    own.readers = Readers(image=lambda path: read_image(path), size=own.readers.size, mask=own.readers.mask)
    assert np.array_equal(read_view(data, 0, view), read_view(own, 0, view))
    assert read_view(data, 0, view).shape == (20, 30, 3)

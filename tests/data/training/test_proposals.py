"""Stores of proposals: exact, seen through views as labels are, of somebody else's files too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.proposals import RECORD, Proposals, SoftMap
from maskwright.data.training.sources import StoredLabels
from maskwright.data.training.views import View
from maskwright.errors import MaskwrightError


def begin(folder, holds="regions", says="SLIC", seen="none", classes=None) -> Proposals:
    return Proposals.begin(folder, holds, says, seen, classes)


def regions(h=6, w=8, most=70) -> LabelMap:
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(0, most, (h, w), generator=draw)
    valid = torch.rand(h, w, generator=draw) < 0.8
    return LabelMap(torch.where(valid, ids, 0), valid.float(), valid)


@pytest.mark.parametrize("most", [2, 256, 65535])
def test_regions_are_exact_whatever_their_ids(tmp_path, most):
    found = regions(most=most)
    found.ids[0, 0], found.valid[0, 0] = most - 1, True
    begin(tmp_path / "s").write("a/b", found)
    store = Proposals(tmp_path / "s")
    assert (store.holds, store.says, store.labels_seen) == ("regions", "SLIC", "none")
    read = store.read("a/b", (6, 8))
    assert torch.equal(read.valid, found.valid) and torch.equal(read.ids[read.valid], found.ids[found.valid])
    assert store.names == ["a/b"] and len(store) == 1 and "a/b" in store and "b" not in store
    with Image.open(tmp_path / "s" / "regions" / "a" / "b.png") as image:
        assert image.mode.startswith("I;16"), "16 bits, so that no region is taken for the ignore id of 8"


def test_objects_are_ordinary_masks_of_0_and_1(tmp_path):
    found = regions(most=3)
    begin(tmp_path / "s", "objects").write("a", found)
    read = Proposals(tmp_path / "s").read("a", (6, 8))
    assert read.valid.all() and torch.equal(read.ids.bool(), (found.ids > 0) & found.valid)
    assert (tmp_path / "s" / "objects" / "a.png").is_file()


def test_regions_through_a_view_are_those_of_the_nearest_pixel(tmp_path):
    found = regions()
    begin(tmp_path / "s").write("a", found)
    view = View.identity((6, 8)).crop(-1, 2, 5, 7).hflip()
    seen = Proposals(tmp_path / "s").read("a").through(view)
    for i in range(5):
        for j in range(7):
            y, x = i - 1, 2 + 6 - j
            inside = 0 <= y < 6 and 0 <= x < 8
            assert bool(seen.valid[i, j]) == (inside and bool(found.valid[y, x]))
            if seen.valid[i, j]:
                assert seen.ids[i, j] == found.ids[y, x]


def test_soft_maps_keep_16_bits_and_go_through_views(tmp_path):
    values = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    begin(tmp_path / "s", "soft", "a saliency network", "DUTS masks").write(
        "a", SoftMap(values, torch.ones(6, 8, dtype=torch.bool))
    )
    read = Proposals(tmp_path / "s").soft("a", (6, 8))
    assert float((read.values - values).abs().max()) <= 0.5 / 65535 + 1e-7
    moved = read.through(View.identity((6, 8)).crop(-1, 2, 5, 7).hflip())
    for i in range(5):
        for j in range(7):
            y, x = i - 1, 2 + 6 - j
            inside = 0 <= y < 6 and 0 <= x < 8
            assert bool(moved.valid[i, j]) == inside
            assert float(moved.values[i, j]) == (float(read.values[y, x]) if inside else 0.0)
    half = read.through(View.identity((6, 8)).resize(3, 4)).values
    assert half.mean() == pytest.approx(float(read.values.mean()), abs=0.02) and half.shape == (3, 4)


def test_a_store_of_classes_is_a_data_set(tmp_path):
    data = open_folder(write_tiny_folder(tmp_path / "tiny"))
    store = begin(tmp_path / "s", "classes", "another run", "none", data.classes)
    for i in (1, 2):
        store.write(data.names[i], LabelMap.from_mask(data.mask(i)), data.items[i].image)
    made = open_folder(tmp_path / "s")
    assert made.names == data.names[1:3] and made.classes.names == data.classes.names
    assert np.array_equal(made.mask(0), data.mask(1))
    labels = StoredLabels(data, Proposals(tmp_path / "s"))
    assert labels.indices == [1, 2] and torch.equal(labels.read(2).ids, LabelMap.from_mask(data.mask(2)).ids)


def test_going_on_with_a_store_and_other_proposals_in_its_place(tmp_path):
    begin(tmp_path / "s").write("a", regions())
    again = begin(tmp_path / "s")
    assert "a" in again
    for other in ({"says": "SEEDS"}, {"seen": "COCO masks"}, {"holds": "soft"}):
        with pytest.raises(MaskwrightError, match="holds regions of SLIC") as raised:
            begin(tmp_path / "s", **other)
        assert raised.value.repair == "choose another folder"
    with pytest.raises(ValueError, match="holds="):
        begin(tmp_path / "t", "classes")
    with pytest.raises(ValueError, match="begin"):
        begin(tmp_path / "c", "classes", classes=ClassTable.numbered(3))
        Proposals(tmp_path / "c").write("a", regions(most=3))


def test_somebody_elses_folder(tmp_path):
    grey = np.array([[0, 51], [255, 102]], np.uint8)
    (tmp_path / "plain" / "day").mkdir(parents=True)
    Image.fromarray(grey).save(tmp_path / "plain" / "day" / "a.png")
    plain = Proposals(tmp_path / "plain")
    assert (plain.holds, plain.labels_seen, plain.names) == (None, "unknown", ["day/a"])
    assert plain.soft("day/a").values.tolist() == pytest.approx(grey / 255)  # type: ignore[arg-type]
    assert plain.read("day/a").target(255).tolist() == grey.tolist()
    labels = LabelMap(torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.25]]), torch.tensor([[True, True]]))
    LabelStore(tmp_path / "labels").write("a", labels)
    read = Proposals(tmp_path / "labels").read("a")
    assert torch.equal(read.ids, labels.ids) and read.confidence[0].tolist() == pytest.approx([0.5, 0.25], abs=1e-4)


def test_errors(tmp_path):
    store = begin(tmp_path / "s")
    store.write("a", regions())
    with pytest.raises(MaskwrightError, match="no proposals for b"):
        store.read("b")
    with pytest.raises(MaskwrightError, match=r"is 6x8; expected 8x6 as its photograph"):
        store.read("a", (8, 6))
    with pytest.raises(MaskwrightError, match="holds regions; expected soft maps"):
        store.soft("a")
    with pytest.raises(ValueError, match="LabelMap for a store of soft"):
        begin(tmp_path / "t", "soft").write("a", regions())
    with pytest.raises(ValueError, match="65534"):
        store.write("b", LabelMap(torch.full((2, 2), 65535), torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)))
    with pytest.raises(MaskwrightError, match="no folder"):
        Proposals(tmp_path / "nowhere")
    (tmp_path / "p").mkdir()
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "p" / "a.png")
    with pytest.raises(MaskwrightError, match="1 bits; expected a soft map"):
        Proposals(tmp_path / "p").soft("a")
    text = (tmp_path / "s" / RECORD).read_text()
    (tmp_path / "s" / RECORD).write_text(text.replace("none", "nine"))
    with pytest.raises(MaskwrightError, match="checksum"):
        Proposals(tmp_path / "s")


def test_the_fingerprint_is_of_names_and_contents(tmp_path):
    def made(folder: str, name: str = "a", most: int = 70, **options: str) -> str:
        store = begin(tmp_path / folder, **options)
        store.write(name, regions(most=most))
        return store.fingerprint()

    first = made("1")
    assert first == made("2") and len({first, made("3", name="b"), made("4", most=71)}) == 3
    (tmp_path / "2" / "regions" / "more.png").write_bytes((tmp_path / "2" / "regions" / "a.png").read_bytes())
    assert Proposals(tmp_path / "2").fingerprint() != first

"""SegSort: what a step trains on, regions made and given, the memory, both read-outs, presets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import write_tiny_folder
from tests.methods.unsupervised.small import parts_of, trainer

import maskwright as mw
from maskwright.data.masking.masks import read_mask, write_mask
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals, SoftMap
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.segsort import SegSortConfig
from maskwright.recipes.segments.training import find_segments, segment_figures

SMALL = {"crops.size": 32, "crops.batch": 4, "precision": "fp32", "clusters.restarts": 2}
train = trainer("segsort", SMALL)


def record(out) -> dict:
    return json.loads((out / "run.json").read_text())


def test_segments_are_regions_of_each_crop_cut_by_k_means():
    """What lies in no region takes no part; the same region of two crops is two segments."""
    v = F.normalize(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    ids = torch.zeros(2, 8, 8, dtype=torch.int64)
    ids[:, :, 4:] = 7
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[1, :4] = False
    regions = LabelMap(ids, torch.ones(2, 8, 8), valid)
    found = find_segments(v, regions, 1, 5, "corner")
    assert found.crop.tolist() == [0, 0, 1, 1] and found.region.tolist() == [0, 7, 0, 7]
    assert found.v.shape == (24, 3) and found.own.bincount().tolist() == [8, 8, 4, 4]
    torch.testing.assert_close(found.mu[1], F.normalize(v[0, :, :, 2:].flatten(1).sum(1), dim=0))
    cut = find_segments(v, regions, 2, 5, "corner")
    assert len(cut.mu) > 4 and set(zip(cut.crop.tolist(), cut.region.tolist())) == {(0, 0), (0, 7), (1, 0), (1, 7)}
    one = segment_figures(found._replace(v=torch.ones(24, 1), mu=torch.ones(4, 1)))
    assert (float(one["compact"]), float(one["alike"])) == pytest.approx((1, 1))
    nothing = find_segments(v, LabelMap(ids, torch.ones(2, 8, 8), torch.zeros_like(valid)), 2, 5, "corner")
    assert len(nothing.mu) == 0 and float(segment_figures(nothing)["alike"]) == 0


def test_regions_are_stored_at_the_size_of_the_photograph(data, tmp_path):
    train(data, tmp_path / "run", 1, **{"crops.long_side": 32, "regions.most": 6, "regions.superpixels": 20})
    assert [s["name"] for s in record(tmp_path / "run")["stages"]] == ["regions", "train", "prototypes"]
    store = Proposals(tmp_path / "run" / "regions" / "proposals")
    assert store.labels_seen == "none" and len(store) == len(list((data / "images").iterdir()))
    for name in store.names:
        found = store.read(name, read_mask(data / "masks" / f"{name}.png").shape)
        assert 1 <= int(found.ids.max()) + 1 <= 6 and bool(found.valid.all())


@pytest.fixture(scope="module")
def places(data, tmp_path_factory):
    """Of each photograph but the first its halves, as a store and as a bare folder; and the contour between them."""
    root = tmp_path_factory.mktemp("places")
    soft = Proposals.begin(root / "soft", "soft", "a detector", "contours of 200 photographs")
    given = Proposals.begin(root / "given", "regions", "halves", "none")
    (root / "bare").mkdir()
    for path in sorted((data / "masks").iterdir()):
        h, w = read_mask(path).shape
        ids = torch.zeros(h, w, dtype=torch.int64)
        ids[:, w // 2 :] = 1
        contours = torch.zeros(h, w)
        contours[:, w // 2 - 1 : w // 2 + 1] = 1
        valid = torch.ones(h, w, dtype=torch.bool)
        soft.write(path.stem, SoftMap(contours, valid))
        if path.stem != "picture_00":
            given.write(path.stem, LabelMap(ids, torch.ones(h, w), valid))
            write_mask(root / "bare" / path.name, ids.numpy().astype(np.uint8))
    return root


@pytest.mark.slow
def test_regions_between_given_contours(data, places, tmp_path):
    train(data, tmp_path / "a", 1, {"regions": str(places / "soft")}, **{"regions.threshold": 0.3})
    made = Proposals(tmp_path / "a" / "regions" / "proposals")
    assert made.labels_seen == "contours of 200 photographs" and "of a detector" in made.says
    ids = made.read("picture_00").ids
    assert len(ids[:, : ids.shape[1] // 3].unique()) == 1
    for settings, wrong in (
        ({"regions.by": "superpixels"}, "regions.by=superpixels"),
        ({"regions.given": "regions"}, "input of soft"),
    ):
        with pytest.raises(MaskwrightError, match=wrong):
            train(data, tmp_path / wrong, 1, {"regions": str(places / "soft")}, **settings)


@pytest.mark.parametrize(
    "place, says", [pytest.param("given", "halves", marks=pytest.mark.slow), ("bare", "read as numbers of regions")]
)
def test_given_regions_are_taken_as_they_are(data, places, tmp_path, place, says):
    """With whose they are, and how many photographs have none."""
    train(data, tmp_path / "run", 1, {"regions": str(places / place)})
    told = record(tmp_path / "run")
    assert [s["name"] for s in told["stages"]] == ["train", "prototypes"]
    notes = " ".join(told["notes"])
    assert says in notes and "1 photographs without any are left out" in notes


@pytest.mark.slow
def test_the_memory_fills_and_raises_the_loss(data, tmp_path):
    for memory in (0, 30):
        train(data, tmp_path / f"{memory}", 2, **{"loss.memory": memory})
    parts = parts_of(tmp_path / "30")
    assert int(parts["module.memory"]["count"]) == 30
    torch.testing.assert_close(parts["module.memory"]["rows"].norm(dim=1), torch.ones(30))
    losses = {
        n: [json.loads(t)["loss"] for t in (tmp_path / str(n) / "metrics.jsonl").read_text().splitlines()]
        for n in (0, 30)
    }
    assert losses[0][0] == losses[30][0], "it is empty at first"
    assert losses[30][1] > losses[0][1]


def test_neighbours_read_masks_and_have_their_classes(data, tmp_path):
    model = train(data, tmp_path / "run", 1, classes=None, **{"readout.by": "neighbours", "readout.k": 3})
    assert model.classes.names == ("ground", "disc", "square")
    assert record(tmp_path / "run")["labels_read"]["train"]["masks"] == len(list((data / "masks").iterdir()))
    vote = mw.load(tmp_path / "run").segmenter.classifier[1]
    assert (vote.k, vote.classes) == (3, 3)
    torch.testing.assert_close(vote.bank.norm(dim=1), torch.ones(vote.count))
    bare = write_tiny_folder(tmp_path / "bare", masks=False)
    with pytest.raises(MaskwrightError, match="needs masks"):
        train(bare, tmp_path / "other", 1, **{"readout.by": "neighbours"})


def test_a_process_may_have_no_photograph_with_a_mask(data, tmp_path, monkeypatch):
    """Its bank is then the others': here there are none."""
    monkeypatch.setattr("maskwright.recipes.segments.method.share", lambda items: items[:0])
    with pytest.raises(MaskwrightError, match="no segment of a class in any mask"):
        train(data, tmp_path / "run", 1, classes=None, **{"readout.by": "neighbours"})


def test_presets_say_what_the_papers_commands_say():
    paper = configure(SegSortConfig, {"preset": "paper"})
    assert (paper.crops.size, paper.crops.batch, paper.steps, paper.network.name) == (336, 8, 10_000, "pspnet")
    assert (paper.optimizer.name, paper.optimizer.lr, paper.optimizer.encoder_lr) == ("sgd", 0.02, 0.1)
    assert (paper.loss.concentration, paper.dim, paper.readout.grid, paper.readout.k) == (10, 32, 5, 15)
    assert configure(SegSortConfig, {"preset": "paper", "crops.batch": 4}).crops.batch == 4

"""Deep Spectral Methods: how many segments, from which starts, and which object and box."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.methods.unsupervised.small import trainer

from maskwright.app.stage_view import stage_views
from maskwright.data.masking.masks import read_mask, write_mask
from maskwright.data.training.proposals import Proposals
from maskwright.engine.config import configure
from maskwright.engine.context import Context
from maskwright.engine.progress import Progress
from maskwright.engine.records import RunFolder
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised import deep_spectral as D
from maskwright.ops.graphs.spectral import spectral_embedding


def method(tmp_path=None, **settings) -> D.DeepSpectral:
    image = np.zeros((40, 60, 3), np.uint8)
    found = object.__new__(D.DeepSpectral)
    found.config = configure(D.DeepSpectralConfig, settings)
    data = SimpleNamespace(names=["a"], image=lambda i: image)
    run = RunFolder(tmp_path or Path("nowhere"))
    found.context = Context(
        data=data, table=None, seed=0, steps=None, fabric=None, run=run, cache=None, backbone=None,
        progress=Progress(quiet=True),
    )  # fmt: skip
    return found


def blocks(parts: int, side: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectrum of a grid whose columns fall into so many parts, each alike inside and unlike the others."""
    part = (torch.arange(side) * parts // side).expand(side, side).flatten()
    w = torch.where(part[:, None] == part[None], 1.0, 0.01)
    values, vectors = spectral_embedding(w, 8, "dense")
    return values.float(), vectors.float().reshape(side, side, -1)


@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_the_eigengap_gives_as_many_segments_as_there_are_parts(parts):
    """The authors: the index of the largest gap but the first, plus one, which is the number of values below it."""
    values, vectors = blocks(parts)
    gaps = np.diff(values.numpy())
    assert 1 + int(np.argsort(-gaps)[np.argsort(-gaps) != 0][0]) == parts
    ids = method(segments=0).segment(0, values, vectors)
    assert len(np.unique(ids)) == parts
    # Each part is whole: a segment too many would cut one of them at random.
    assert all(len(np.unique(ids[:, x])) == 1 for x in range(12))


def test_more_than_256_segments_stay_apart_in_their_file(tmp_path):
    """A grid of 20 x 20 positions that differ in two vectors."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    ids = method(segments=300).segment(0, torch.zeros(3), torch.stack((torch.ones_like(x), x, y), -1))
    assert len(np.unique(ids)) == 300
    write_mask(tmp_path / "a.png", ids)
    assert np.array_equal(read_mask(tmp_path / "a.png"), ids)


def test_segments_have_ten_starts(monkeypatch):
    seen = []
    real = D.kmeans
    monkeypatch.setattr(D, "kmeans", lambda *a, **k: seen.append(k["restarts"]) or real(*a, **k))
    method(segments=3).segment(0, *blocks(3))
    assert seen == [10]


def test_objects_by_each_rule():
    """A band of ground that is smaller than what it crosses, and a corner that the object shares with the border."""
    vector = torch.full((6, 8), -1.0)
    vector[1:5, :7] = 1.0
    vectors = torch.stack([torch.ones(6, 8), vector, torch.rand(6, 8)], -1)
    values = torch.tensor([0.0, 0.1, 0.9])
    assert torch.equal(method(object="fiedler").object_map(values, vectors) > 0, vector < 0)
    assert torch.equal(method(object="fiedler_border").object_map(values, vectors) > 0, vector > 0)
    assert method().object_map(values, vectors).unique().numel() > 2


def test_the_box_is_that_of_the_largest_part_whose_corners_touch(tmp_path, monkeypatch):
    mask = np.zeros((40, 60), bool)
    mask[2:10, 2:10] = mask[10:14, 10:14] = True  # 80 pixels that touch at a corner
    mask[20:29, 30:38] = True  # 72 pixels
    found, folder = method(tmp_path), tmp_path / "segments"
    found.context.backbone = SimpleNamespace(provenance=SimpleNamespace(labels_seen="none"))
    monkeypatch.setattr(D.DeepSpectral, "_spectrum", lambda self, i: blocks(2))
    monkeypatch.setattr(D.DeepSpectral, "object_mask", lambda self, *_: mask)
    for name in ("objects", "segments", "boxes"):
        (folder / name).mkdir(parents=True)
    found.segments(folder)
    assert json.loads((folder / "boxes.json").read_text())["boxes"]["a"] == [2, 2, 14, 14]
    ((title, body),) = stage_views(tmp_path, ["segments"])
    assert title == "Objects" and "segments/objects/NAME.png" in body and body.count("<img") == 2
    assert (folder / "objects" / "a.png").is_file()
    store = Proposals(folder)
    assert (store.holds, store.says) == ("objects", "deep_spectral"), "another run's --input"
    assert np.array_equal(store.read("a").ids.numpy(), mask)
    mask[2:10, 2:6] = False  # now 48 pixels in two parts that only a corner joins
    mask[20:29, 30:38] = False
    mask[30:37, 30:36] = True  # 42 pixels: more than either part, fewer than both
    (folder / "boxes" / "a.json").unlink()
    found.segments(folder)
    assert json.loads((folder / "boxes.json").read_text())["boxes"]["a"] == [2, 6, 14, 14]


def test_where_no_segment_lies_in_its_object_all_can_be_clustered(data, tmp_path, monkeypatch):
    train = trainer("deep_spectral", {"short_side": 64, "segments.count": 4, "head.train": False})
    monkeypatch.setattr(D.DeepSpectral, "object_mask", lambda self, i, *_: np.zeros(self.context.data.size(i), bool))
    with pytest.raises(MaskwrightError, match="1 clusters from 0 segments that lie more than half in their") as raised:
        train(data, tmp_path / "zero", None, classes=2)
    assert raised.value.repair == "set segments.background=cluster, or another segments.count"
    train(data, tmp_path / "all", None, classes=2, **{"segments.background": "cluster"})

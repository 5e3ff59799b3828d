"""What of photographs clusters are learned from: whole ones, crops, or what lies inside a margin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.engine.cache import FeatureCache
from maskwright.engine.progress import Progress
from maskwright.models.backbones.build import build_backbone
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.frozen.crops import Crops
from maskwright.recipes.frozen.features import FrozenFeatures, feature_rows, inside, moments


@pytest.fixture
def data(tmp_path):
    return mw.open_folder(write_tiny_folder(tmp_path / "tiny", count=5, size=(48, 80)))


@pytest.mark.parametrize(("share", "each", "size"), [(0.5, 4, (24, 40)), (0.7, 2, (34, 56)), (1.0, 1, (48, 80))])
def test_windows_of_one_share_cover_the_area_of_a_photograph(data, share, each, size):
    crops = Crops(data, share)
    assert len(crops) == each * len(data)
    for i in range(len(crops)):
        top, left, bottom, right = crops.window(i)
        assert 0 <= top < bottom <= 48 and 0 <= left < right <= 80
        assert (bottom - top, right - left) == crops.size(i) == size
        assert np.array_equal(crops.image(i), data.image(i // each)[top:bottom, left:right])


def test_windows_hang_on_the_photograph_alone_and_differ_within_it(data):
    one, two = Crops(data, 0.5), Crops(data.subset(range(4, -1, -1)), 0.5)
    for i in range(len(one)):
        other = 4 * (4 - i // 4) + i % 4
        assert one.window(i) == two.window(other) and one.content_hash(i) == two.content_hash(other)
    hashes = {one.content_hash(i) for i in range(len(one))}
    assert len(hashes) == len({(i // 4, one.window(i)) for i in range(len(one))}) > 15


def test_features_are_those_of_the_window_at_the_scale_of_the_whole(data, tmp_path):
    """A crop of half of each side is seen at half of the side that the whole is seen at."""
    backbone = build_backbone("tf_efficientnet_lite0", "random")
    encoder = BackboneEncoder(backbone, layers=(3,)).eval()
    preprocess = Preprocess.for_backbone(backbone.provenance, short_side=48, multiple_of=encoder.multiple_of)
    crops = Crops(data, 0.5)
    store = FeatureCache(tmp_path / "cache").features(encoder, preprocess, crops, progress=Progress(quiet=True))
    assert len(store) == len(crops)
    top, left, bottom, right = crops.window(7)
    with torch.inference_mode():
        alone = encoder(preprocess.apply(data.image(1)[top:bottom, left:right])[None])[0]
    assert torch.equal(store[7], alone.to(torch.bfloat16))


def test_clusters_of_crops_are_of_crops_and_the_model_sees_whole_photographs(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    seen = []
    real = Preprocess.apply

    def apply(self, image, size=None):
        seen.append((image.shape[:2], self.short_side))
        return real(self, image, size)

    monkeypatch.setattr(Preprocess, "apply", apply)
    models = {}
    for name, crop in (("whole", "1"), ("crops", "0.5"), ("again", "0.5")):
        seen.clear()
        settings = {"crop": crop, "short_side": "64", "restarts": "1"}
        models[name] = mw.train(
            data, "kmeans", out=tmp_path / name, classes=2, backbone="tf_efficientnet_lite0", weights="random",
            settings=settings, report=False, progress=Progress(quiet=True),
        )  # fmt: skip
        if name == "crops":
            assert set(seen) == {((24, 40), 32)} and len(seen) == 20
        elif name == "again":
            assert not seen
    whole, crops, again = (load_file(tmp_path / name / "model.safetensors") for name in models)
    assert any(not torch.equal(whole[k], crops[k]) for k in whole)
    assert all(torch.equal(crops[k], again[k]) for k in crops)
    assert models["crops"].segmenter.preprocess == models["whole"].segmenter.preprocess
    assert models["crops"].predict(data.image(0)).mask.shape == (48, 80)


@pytest.mark.parametrize("method", ["stego", "primaps"])
def test_methods_behind_clusters_take_crops_and_a_margin(data, tmp_path, monkeypatch, method):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    settings = {"crop": "0.5", "margin": "0.2", "short_side": "64", "restarts": "1"}
    settings |= {"batch": "3"} if method == "stego" else {}
    model = mw.train(
        data, method, out=tmp_path / "run", classes=2, backbone="tf_efficientnet_lite0", weights="random", steps=3,
        settings=settings, report=False, progress=Progress(quiet=True),
    )  # fmt: skip
    assert model.predict(data.image(0)).mask.shape == (48, 80)
    if method == "stego":
        nearest = load_file(tmp_path / "run" / "prepare" / "prepared.safetensors")["nearest"]
        assert len(nearest) == 20 and int(nearest.max()) < 20


@pytest.mark.parametrize(
    ("shape", "margin", "left"),
    [((20, 28), 0.2, (12, 16)), ((20, 28), 0, (20, 28)), ((1, 2), 0.4, (1, 2)), ((3, 5), 0.45, (1, 1))],
)
def test_the_margin_is_a_share_of_each_side_and_something_stays(shape, margin, left):
    f = torch.arange(shape[0] * shape[1]).view(1, *shape)
    kept = inside(f, margin)
    assert kept.shape[1:] == left
    assert torch.equal(kept.flip(1, 2), inside(f.flip(1, 2), margin))


def test_moments_and_rows_are_of_positions_inside_the_margin():
    """A map whose border is full of another value: none of it is seen."""
    f = torch.full((2, 3, 10, 10), 100.0)
    f[:, :, 2:8, 2:8] = torch.randn(2, 3, 6, 6)

    class Store(list):
        width = 3

    features = FrozenFeatures(None, None, Store(f), 0.2)
    rows = feature_rows(features, 1000, torch.Generator())
    assert rows.shape == (72, 3) and float(rows.max()) < 100
    mean, std = moments(features.store, 0.2)
    assert torch.allclose(mean, rows.mean(0), atol=1e-5) and torch.allclose(std, rows.std(0, correction=0), atol=1e-5)
    assert torch.equal(features.std, std) and features.width == 3
    assert float(moments(features.store, 0)[0].min()) > 50

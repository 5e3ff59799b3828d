from __future__ import annotations

import errno
import shutil

import numpy as np
import pytest
import torch
from fakes import ColorSegmenter, scene
from PIL import Image

from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.masks import read_mask
from maskwright.errors import MaskwrightError
from maskwright.predict.model import Model, as_picture, check_device, load, read_ahead


@pytest.fixture
def model() -> Model:
    return Model(ColorSegmenter())


def test_predict_gives_the_contract(model):
    image, ids = scene(50, 70)
    result = model.predict(image)
    assert result.mask.dtype == np.uint16 and result.confidence.dtype == np.float32
    assert result.mask.shape == result.confidence.shape == (50, 70)
    assert result.confidence.min() >= 0 and result.confidence.max() <= 1
    assert (result.mask == ids).mean() > 0.95
    assert result.classes == model.classes
    assert result.shares().sum() == pytest.approx(1)
    np.testing.assert_allclose(model.probabilities(image).max(0), result.confidence, atol=1e-6)


def test_path_pillow_and_array_agree(model, tmp_path):
    image, _ = scene(30, 40)
    Image.fromarray(image).save(tmp_path / "a.png")
    masks = [
        model.predict(x).mask for x in (image, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image))
    ]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])
    model.predict(image).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), masks[0])


def test_arrays_that_are_no_pictures_are_refused(model):
    assert as_picture(np.zeros((4, 5), np.uint8)).shape == (4, 5, 3)
    assert as_picture(np.zeros((4, 5, 4), np.uint8)).shape == (4, 5, 3)
    for bad in (np.zeros((4, 5, 3)), np.zeros((0, 5, 3), np.uint8), np.zeros((4, 5, 7), np.uint8), None):
        with pytest.raises(MaskwrightError):
            model.predict(bad)


def test_folder_is_written_and_bad_images_are_named(model, tiny_folder, tmp_path):
    (tiny_folder / "images" / "empty.jpg").write_bytes(b"")
    (tiny_folder / "images" / "text.jpg").write_text("not a picture")
    data, seen = open_folder(tiny_folder), []
    out = tmp_path / "deep" / "out"
    done = model.predict_folder(
        data, out, confidence=True, overlays=True, progress=lambda done, total: seen.append((done, total))
    )
    assert done.written == 8 and sorted(n for n, _ in done.skipped) == ["empty", "text"]
    assert all(reason for _, reason in done.skipped)
    assert seen[-1] == (len(data), len(data))
    assert done.shares.sum() == pytest.approx(1)
    for name in data.names:
        if name.startswith("picture"):
            assert read_mask(out / f"{name}.png").shape == (48, 64)
            assert Image.open(out / "confidence" / f"{name}.png").mode == "L"
            assert Image.open(out / "overlays" / f"{name}.jpg").size == (64, 48)
    truth = np.stack([data.mask(i) for i in range(len(data)) if data.has_mask(i)])
    found = np.stack([read_mask(out / f"{n}.png") for n in data.names if n.startswith("picture")])
    assert (truth == found).mean() > 0.95
    assert data.ledger.counts()["train"]["masks"] == 8  # noted by this test, not by the prediction


def test_prediction_reads_no_labels(model, tiny_folder, tmp_path):
    data = open_folder(tiny_folder)
    model.predict_folder(data, tmp_path / "out")
    assert all(n == 0 for kinds in data.ledger.counts().values() for n in kinds.values())


def test_existing_masks_are_replaced(model, tiny_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "picture_00.png").write_bytes(b"old")
    model.predict_folder(tiny_folder, out)
    assert read_mask(out / "picture_00.png").shape == (48, 64)
    assert not [p for p in out.iterdir() if ".tmp" in p.name]


def test_images_and_labels_are_never_written_over(model, tiny_folder):
    before = {p: p.read_bytes() for p in tiny_folder.rglob("*") if p.is_file()}
    (tiny_folder / "here.txt").write_text("a file")
    flat = tiny_folder.parent / "flat"
    shutil.copytree(tiny_folder / "images", flat)
    for data, out in (
        (tiny_folder, tiny_folder / "images"),
        (tiny_folder, tiny_folder / "masks"),
        (tiny_folder, tiny_folder / "splits" / ".." / "images"),
        (tiny_folder, tiny_folder / "here.txt"),
        (flat, flat),
    ):
        with pytest.raises(MaskwrightError):
            model.predict_folder(data, out)
    with pytest.raises(MaskwrightError):  # hidden labels are labels
        model.predict_folder(open_folder(tiny_folder).labeled(["picture_00"]), tiny_folder / "masks")
    assert {p: p.read_bytes() for p in before} == before


def test_a_full_disk_is_no_skipped_image(model, tiny_folder, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("maskwright.data.trust.files.os.replace", full)
    with pytest.raises(MaskwrightError, match="no space left"):
        model.predict_folder(tiny_folder, tmp_path / "out")
    assert not [p for p in (tmp_path / "out").iterdir() if p.suffix == ".png"]


def test_reading_ahead_keeps_order_and_frees_pictures(tiny_folder):
    import weakref

    data = open_folder(tiny_folder)
    names, last = [], None
    for name, picture in read_ahead(data):
        names.append(name)
        np.testing.assert_array_equal(picture, data.image(len(names) - 1))
        kept = weakref.ref(picture)
        del picture
        last = kept
    assert names == data.names and last is not None and last() is None


def test_devices():
    assert check_device("cpu") == torch.device("cpu")
    assert check_device("auto").type in ("cpu", "cuda")
    for bad in ("cuda:99", "gpu"):
        with pytest.raises(MaskwrightError):
            check_device(bad)


def test_saved_model_predicts_the_same(tmp_path):
    from maskwright.models.backbones.build import build_backbone
    from maskwright.models.parts.encoder import BackboneEncoder
    from maskwright.models.parts.heads import CosineClassifier
    from maskwright.models.preprocess import Preprocess
    from maskwright.models.segmenter import Segmenter

    torch.manual_seed(0)
    backbone = build_backbone("resnet18", "random")
    encoder = BackboneEncoder(backbone, layers=1)
    segmenter = Segmenter(
        encoder, None, CosineClassifier(torch.randn(5, encoder.width)), ClassTable.numbered(5),
        Preprocess(short_side=64, multiple_of=encoder.multiple_of), backbone.provenance, method="test",
    )  # fmt: skip
    model = Model(segmenter, {"seed": 3})
    model.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.extra == {"seed": 3} and again.classes == model.classes
    image, _ = scene(70, 90)
    a, b = model.predict(image, tile=48, flips=True), again.predict(image, tile=48, flips=True)
    np.testing.assert_array_equal(a.mask, b.mask)
    np.testing.assert_array_equal(a.confidence, b.confidence)
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(MaskwrightError):
        load(tmp_path / "broken.safetensors")


def test_only_some_classes_share_all_probability(model):
    image, ids = scene(40, 60)
    every = model.probabilities(image)
    found = model.probabilities(image, only=[2, 0])
    assert not found[1].any()
    expected = every[[0, 2]] / every[[0, 2]].sum(0)
    certain = every[[0, 2]].sum(0) > 1e-6
    np.testing.assert_allclose(found[[0, 2]][:, certain], expected[:, certain], atol=1e-5)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
    tiled = model.predict(image, tile=16, only=["cluster 0", "cluster 2"])
    assert set(np.unique(tiled.mask)) <= {0, 2} and (tiled.mask[ids == 2] == 2).mean() > 0.9
    # the classes that are ruled out were all that the network believed in
    sure = Model(ColorSegmenter(sharpness=1e4)).predict(image, only=[1])
    assert (sure.mask == 1).all() and sure.confidence.min() > 0.99
    with pytest.raises(MaskwrightError, match="no such class"):
        model.predict(image, only=["no such class"])
    for wrong in ([], [-1], [3]):
        with pytest.raises(MaskwrightError, match="at least one of 0 to 2"):
            model.predict(image, only=wrong)


def test_tags_limit_what_is_found_in_a_folder(model, tmp_path):
    for name in "abc":
        (tmp_path / "data" / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(32, 48)[0]).save(tmp_path / "data" / "images" / f"{name}.png")
    model.segmenter.classes = ClassTable(("ground", "disc", "square"))
    (tmp_path / "data" / "tags.csv").write_text("name,tags\na,disc\nb,\n")
    done = model.predict_folder(tmp_path / "data", tmp_path / "out", tags=True)
    found = {n: set(np.unique(read_mask(tmp_path / "out" / f"{n}.png"))) for n in "abc"}
    assert found == {"a": {0, 1}, "b": {0}, "c": {0, 1, 2}}, "c has no row, so nothing is known of it"
    assert done.tagged == 2 and done.written == 3
    model.segmenter.extra["background"] = "none"
    assert model.tagged(open_folder(tmp_path / "data")) == {"a": [1]}, "b says that nothing is there, which has no name"
    (tmp_path / "data" / "tags.csv").write_text("name,tags\na,disk\n")
    with pytest.raises(MaskwrightError, match="nearest is 'disc'"):
        model.predict_folder(tmp_path / "data", tmp_path / "out", tags=True)


class Heard:
    """Stands for a `Progress`: keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_tiles_that_nobody_asked_for_are_said_once_with_the_other_way(tmp_path):
    for k, size in enumerate([(60, 80), (240, 320), (300, 400)]):
        Image.fromarray(scene(*size)[0]).save(tmp_path / f"{k}.png")
    model = Model(ColorSegmenter(short_side=48), {"image_size": [60, 80]})
    data = open_folder(tmp_path).with_notices("a sentence of the data set")
    ways = {}
    for tile in (None, 0, 60):
        heard = Heard()
        done = model.predict_folder(data, tmp_path / "out" / str(tile), tile=tile, progress=heard)
        ways[tile] = [read_mask(tmp_path / "out" / str(tile) / f"{k}.png") for k in range(3)]
        assert heard.said == done.notices and heard.said[0] == "a sentence of the data set"
        assert len(heard.said) == (2 if tile is None else 1)
        if tile is None:
            said = heard.said[1]
            assert said.startswith("2 of 3 images (up to 300 x 400 pixels) are seen in tiles of 60 pixels")
            assert "(60 x 80)" in said and "--tile none" in said
    for k in (1, 2):
        np.testing.assert_array_equal(ways[None][k], ways[60][k])
        assert (ways[None][k] != ways[0][k]).any()
    np.testing.assert_array_equal(ways[None][0], ways[0][0])
    large = data.image(2)
    assert model.predict(large).tile == 60 and model.predict(large, tile=0).tile is None
    assert model.predict(data.image(0)).tile is None


def test_tiles_see_small_things_that_the_whole_view_loses():
    """A mosaic of pictures: each of its parts comes out as the picture itself does."""
    image, ids = scene(60, 80)
    model = Model(ColorSegmenter(short_side=60), {"image_size": [60, 80]})
    large, truth = np.tile(image, (6, 6, 1)), np.tile(ids, (6, 6))
    right = {tile: (model.predict(large, tile=tile).mask == truth).mean() for tile in (None, 0)}
    alone = (model.predict(image).mask == ids).mean()
    assert right[None] > alone - 0.01 and right[0] < alone - 0.05, (right, alone)

"""Methods whose classes are words: from names to masks, by the commands that people type."""

from __future__ import annotations

import json
import sys

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.conftest import write_tiny_folder
from tests.models.towers.tiny import RESNET, config, write_folder

import maskwright as mw
from maskwright import cli
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.towers.image import build_clip
from maskwright.models.towers.surgery import LastBlock

NAMES = "a red disc|ball,blue squares,background"
SMALL = {"words.short_side": 48, "words.prompts": "scene"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of photographs `photos`, without any label, and one of towers, `towers`."""
    root = tmp_path_factory.mktemp("words")
    write_tiny_folder(root / "photos", count=3)
    for name in ("tags.csv", "captions.csv", "classes.txt"):
        (root / "photos" / name).unlink()
    for mask in (root / "photos" / "masks").iterdir():
        mask.unlink()
    (root / "photos" / "masks").rmdir()
    write_folder(root / "towers", config())
    return root


def train(place, out, method="maskclip", names=NAMES, weights="towers", settings=None):
    return mw.train(
        place / "photos", method, names=names, backbone="clip", weights=place / weights, out=out, device="cpu",
        settings=SMALL | (settings or {}), report=False, progress=Progress(quiet=True),
    )  # fmt: skip


def test_masks_are_those_of_the_formula(place, tmp_path):
    """Value and projection of the last block against names, computed from open_clip's own model."""
    model = train(place, tmp_path / "run", names="disc|ball,square", settings={"words.prompts": "photo"})
    assert model.classes.names == ("disc", "square")
    tower, pair = build_clip("clip", str(place / "towers")), write_folder(tmp_path / "same", config())
    path = next((place / "photos" / "images").iterdir())
    with torch.no_grad():
        texts = open_clip.tokenize([f"a photo of a {word}." for word in ("disc", "ball", "square")])
        words = pair.encode_text(texts, normalize=True).double()
        x = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255
        x = (x - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[:, None, None]
        places, _ = tower.joint_maps(x[None], LastBlock("value"))
    cosines = torch.einsum("bdhw,pd->bphw", F.normalize(places.double(), dim=1), words)
    logits = torch.stack([cosines[:, :2].amax(1), cosines[:, 2]], 1) * 100
    found = model.predict(path)
    expected = F.interpolate(logits, found.mask.shape, mode="bilinear", align_corners=False)
    clear = (expected[0, 0] - expected[0, 1]).abs().numpy() > 1e-2
    assert clear.mean() > 0.9
    assert np.array_equal(found.mask[clear], expected.argmax(1)[0].numpy()[clear])


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("maskclip", {"refinement.denoise": 0.5, "refinement.smooth": 1.0}),
        ("maskclip", {"words.background.threshold": 0.4, "last_block.rest": False}),
        ("clip_seg", {"variant": "sclip"}),
        ("clip_seg", {"variant": "clearclip", "words.background.threshold": 0.4}),
        ("clip_seg", {"variant": "naclip", "std": 2.0}),
    ],
)
def test_a_model_predicts_without_towers_and_without_open_clip(place, tmp_path, monkeypatch, method, settings):
    model = train(place, tmp_path / "run", method, settings=settings)
    assert model.classes.names == ("a red disc", "blue squares", "background")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    picture = next((place / "photos" / "images").iterdir())
    ours, again = model.predict(picture), mw.load(tmp_path / "run").predict(picture)
    assert np.array_equal(ours.mask, again.mask) and np.array_equal(ours.confidence, again.confidence)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["backbone"]["labels_seen"] == "image captions" and not any(record["labels_read"]["train"].values())
    assert any("blue squares as blue square" in note for note in record["notes"])
    assert any(note.startswith("Background (class 2)") for note in record["notes"])


def test_a_resnet_has_values_and_no_other_attention(place, tmp_path):
    write_folder(place / "resnet", config(RESNET))
    model = train(place, tmp_path / "run", weights="resnet", settings={"refinement.smooth": 1.0})
    assert model.predict(next((place / "photos" / "images").iterdir())).mask.shape == (48, 64)
    with pytest.raises(MaskwrightError, match="vision transformer"):
        train(place, tmp_path / "other", "clip_seg", weights="resnet")


def test_other_methods_stand_on_a_tower(place, tmp_path):
    model = mw.train(
        place / "photos", "kmeans", classes=2, backbone="clip", weights=place / "towers", out=tmp_path / "run",
        device="cpu", settings={"short_side": 64, "restarts": 1, "dim": 4}, report=False,
        progress=Progress(quiet=True),
    )  # fmt: skip
    picture = next((place / "photos" / "images").iterdir())
    assert np.array_equal(model.predict(picture).mask, mw.load(tmp_path / "run").predict(picture).mask)
    train(place, tmp_path / "words")
    again = mw.train(
        place / "photos", "kmeans", classes=2, weights=tmp_path / "words", out=tmp_path / "from", device="cpu",
        settings={"short_side": 64, "restarts": 1, "dim": 4}, report=False, progress=Progress(quiet=True),
    )  # fmt: skip
    assert np.array_equal(again.predict(picture).mask, model.predict(picture).mask), "from a model on the same tower"


@pytest.fixture
def typed(place, tmp_path, monkeypatch, capfd):
    """Types a training with further words; gives exit code and what was said."""

    def run(*more: str) -> tuple[int, str]:
        words = ["train", place / "photos", "--method", "maskclip", "--backbone", "clip", "--weights", place / "towers",
                 "--out", tmp_path / "run", "--device", "cpu", "--set", "words.short_side=48", *more]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["maskwright", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capfd.readouterr().err

    return run


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--names LIST_OR_FILE"),
        (("--names", "class 0,class 1"), "says nothing of how it looks"),
        (("--names", "car,cars"), "the same word"),
        (("--names", "road,,sky"), "empty name"),
        (("--names", "road,road"), "twice"),
        (("--names", "road," + "word " * 400), "tokens long"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(typed, more, said, tmp_path):
    code, told = typed(*more)
    assert code == 2 and said in told.splitlines()[-1], told
    assert (tmp_path / "run").exists() == (said == "tokens long"), "names are mended, and --out is free"


def test_without_the_extra_or_the_weights_the_line_says_what_to_install(typed, place, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    code, told = typed("--names", "road,sky")
    assert code == 2 and "pip install 'maskwright[clip]'" in told
    with pytest.raises(MaskwrightError, match="--backbone clip:ViT-B-16"):
        mw.train(
            place / "photos", "maskclip", names="road,sky", backbone="test_vit", weights="random", device="cpu",
            out=tmp_path / "other", progress=Progress(quiet=True),
        )  # fmt: skip
    assert build_backbone("test_vit", "random").joint_width == 0


def test_other_names_at_prediction_give_what_a_training_with_them_gives(place, tmp_path, monkeypatch, capfd):
    train(place, tmp_path / "first", settings={"words.background.threshold": 0.3})
    train(place, tmp_path / "other", names="ball;grass;background", settings={"words.background.threshold": 0.3})
    assert mw.load(tmp_path / "other").classes.names == ("ball", "grass", "background")

    def predict(run: str, *more: str) -> tuple[int, str]:
        words = [
            "predict",
            tmp_path / run,
            place / "photos",
            "--out",
            tmp_path / f"masks-{run}",
            "--device",
            "cpu",
            *more,
        ]
        monkeypatch.setattr(sys, "argv", ["maskwright", *map(str, words)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), capfd.readouterr().err
        return 0, capfd.readouterr().err

    assert predict("other")[0] == 0
    code, told = predict("first", "--names", "balls;grass;background")
    assert code == 0 and "balls as ball" in told and "Background (class 2)" in told
    for mask in sorted((tmp_path / "masks-other").glob("*.png")):
        ours = np.asarray(Image.open(tmp_path / "masks-first" / mask.name))
        assert np.array_equal(ours, np.asarray(Image.open(mask))) and ours.max() <= 2
    again = mw.load(tmp_path / "first" / "model.safetensors")
    assert again.with_names(["ball", "grass"], place / "towers").classes.names == ("ball", "grass")
    write_folder(tmp_path / "towers", config(quick_gelu=False) | {"embed_dim": 24})
    for weights, said in ((None, "came from file"), (tmp_path / "towers", "sha256 begins with")):
        with pytest.raises(MaskwrightError, match=said):
            again.with_names("ball,grass", weights)
    again.segmenter.extra["words"]["chunk"] = "many"
    with pytest.raises(MaskwrightError, match=r"words\.chunk"):
        again.with_names("ball,grass", place / "towers")
    assert predict("first", "--names", "class 1,class 2")[0] == 2
    assert "--weights without --names" in predict("first", "--weights", str(place / "towers"))[1]


def test_other_names_are_for_models_whose_classes_are_words(place, tmp_path):
    model = mw.train(
        place / "photos", "kmeans", classes=2, backbone="mobilenetv3_small_050", weights="random", out=tmp_path / "run",
        device="cpu", settings={"short_side": 64, "restarts": 1, "dim": 4}, report=False, progress=Progress(quiet=True),
    )  # fmt: skip
    with pytest.raises(MaskwrightError, match="whose classes are fixed"):
        model.with_names("road,sky")

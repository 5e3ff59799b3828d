"""Pseudo-labels of whole photographs: class-balanced thresholds, and going on after a kill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.ops.losses.thresholds import BINS
from maskwright.predict.inference import predict_probs
from maskwright.recipes.self_training.labelling import LABELS, THRESHOLDS, Labelling
from maskwright.recipes.training.network import make_network, make_segmenter
from maskwright.recipes.training.options import NetworkConfig

IMAGES = [3, 4, 5, 6, 7]


@pytest.fixture
def segmenter(semi_context):
    """Of random weights, whose probabilities differ from place to place and whose classes all occur."""
    config = configure(NetworkConfig, {"crop": 32, "precision": "fp32"})
    torch.manual_seed(0)
    made = make_segmenter(semi_context, config, make_network(semi_context, config), "supervised", range(8))
    probs = [predict_probs(made, semi_context.data.image(i)) for i in IMAGES]
    logits = torch.from_numpy(np.stack(probs)).log()
    conv = made.classifier.conv
    with torch.no_grad():
        scale = 2 / logits.std((0, 2, 3))
        conv.bias.sub_(logits.mean((0, 2, 3))).mul_(scale)
        conv.weight.mul_(scale[:, None, None, None])
    return made


def labelling(context, portion=0.4, **options):
    return Labelling(context, "fp32", portion=portion, **options)


def names(context, images=IMAGES):
    return [context.data.items[i].name for i in images]


def said(segmenter, image):
    """Probabilities (C, H, W), the mean over the photograph and its mirror image."""
    plain, mirrored = (predict_probs(segmenter, np.ascontiguousarray(x)) for x in (image, image[:, ::-1]))
    return (plain + mirrored[..., ::-1]) / 2


def slow_thresholds(segmenter, images, portion):
    """Of each photograph each fourth confidence of each class, in reading order; of all of them, n_c pixels sorted, the
    confidence of number portion n_c."""
    confidences = [[], [], []]
    for image in images:
        of_image = [[], [], []]
        for column in said(segmenter, image).reshape(3, -1).T:
            of_image[int(column.argmax())].append(float(column.max()))
        for values, found in zip(confidences, of_image):
            values += found[::4]
    lam = []
    for values in confidences:
        wanted = int(portion * len(values) + 1e-9)
        lam.append(sorted(values, reverse=True)[wanted - 1] if wanted else 1.0)
    return lam, [len(v) for v in confidences]


def test_thresholds_are_the_confidences_that_a_portion_of_each_class_reaches(semi_context, segmenter):
    folder, data = semi_context.run.stage_folder("label"), semi_context.data
    lam = labelling(semi_context).thresholds(folder, segmenter, IMAGES)
    expected, counts = slow_thresholds(segmenter, [data.image(i) for i in IMAGES], 0.4)
    assert min(counts) > 5, "all classes occur"
    assert lam.tolist() == pytest.approx(expected, abs=2 / BINS + 1e-5)
    kept = load_file(folder / THRESHOLDS)
    assert torch.equal(kept["lam"], lam)
    assert (
        kept["counts"].tolist() == pytest.approx(counts, abs=2)
        and abs(int(kept["counts"].sum()) - 5 * 48 * 64 // 4) <= 15
    )


def test_labels_are_the_classes_that_exceed_their_threshold_most(semi_context, segmenter):
    folder = semi_context.run.stage_folder("label")
    labelling(semi_context).label(folder, segmenter, names(semi_context))
    store, lam = LabelStore(folder / LABELS), load_file(folder / THRESHOLDS)["lam"].numpy()
    assert set(store.names) == set(names(semi_context)), "the named images alone"
    left_out, swapped = 0, 0
    for i in IMAGES:
        y, probs = store.read(semi_context.data.items[i].name), said(segmenter, semi_context.data.image(i))
        ratio = probs / lam[:, None, None]
        ids, clear = ratio.argmax(0), np.abs(np.sort(ratio, 0)[-1] - np.sort(ratio, 0)[-2]) > 1e-3
        clear &= np.abs(ratio.max(0) - 1) > 1e-3  # rounding may decide the others
        valid = y.valid.numpy()
        assert np.array_equal(valid[clear], (ratio.max(0) >= 1)[clear])
        assert np.array_equal(y.ids.numpy()[clear & valid], ids[clear & valid])
        own = np.take_along_axis(probs, ids[None], 0)[0]
        assert np.abs(y.confidence.numpy() - own)[clear & valid].max() < 2e-3
        left_out, swapped = left_out + int((~valid).sum()), swapped + int((ids != probs.argmax(0)).sum())
    assert left_out > 100 and swapped > 0, "thresholds decide"


def test_without_a_portion_every_pixel_gets_its_likeliest_class(semi_context, segmenter):
    folder = semi_context.run.stage_folder("label")
    labelling(semi_context, portion=None).label(folder, segmenter, names(semi_context, [4]))
    y = LabelStore(folder / LABELS).read("picture_04")
    probs = said(segmenter, semi_context.data.image(4))
    assert y.valid.all() and y.size == (48, 64) and not (folder / THRESHOLDS).exists()
    assert float((y.ids.numpy() == probs.argmax(0)).mean()) > 0.99
    assert np.abs(y.confidence.numpy() - probs.max(0)).max() < 2e-3
    with pytest.raises(AssertionError, match="every pixel"):
        labelling(semi_context, portion=None).thresholds(folder, segmenter, IMAGES)


def test_mirror_images_and_scales_are_asked_as_configured(semi_context, segmenter):
    image = semi_context.data.image(4)
    for options in ({"flips": False}, {"scales": (0.5, 1.0)}, {"flips": False, "scales": (0.5,)}):
        asked = {"flips": True, "scales": (1.0,), **options}
        probs = predict_probs(segmenter, image, flips=asked["flips"], scales=asked["scales"])
        for lam in (None, torch.full((3,), 0.01)):  # below all confidences
            y = labelling(semi_context, **options).pseudo_label(segmenter, image, lam)
            assert np.abs(y.confidence.numpy() - probs.max(0)).max() < 2e-3 and y.valid.all()
        plain = labelling(semi_context, **options).predict(segmenter, image, plain=True)
        alone = predict_probs(segmenter, image).argmax(0)
        assert plain.confidence is None and float((plain.ids == alone).mean()) > 0.99


def test_photographs_of_another_data_set_are_labelled(semi_context, segmenter, tmp_path):
    other = open_folder(write_tiny_folder(tmp_path / "other", count=2, size=(40, 72), masks=False))
    folder = semi_context.run.stage_folder("label")
    labelling(semi_context, data=other).label(folder, segmenter, other.names)
    store = LabelStore(folder / LABELS)
    assert set(store.names) == set(other.names) and store.read(other.names[1]).size == (40, 72)
    expected, _ = slow_thresholds(segmenter, [other.image(i) for i in range(2)], 0.4)
    assert load_file(folder / THRESHOLDS)["lam"].tolist() == pytest.approx(expected, abs=2 / BINS + 1e-5)
    assert not other.ledger.counts()["train"].get("masks")


# ---------------------------------------------------------------------- going on


@pytest.mark.parametrize("dies_in", ["predict", "pseudo_label"])
def test_a_killed_run_goes_on_to_the_same_labels(semi_context, segmenter, monkeypatch, dies_in):
    whole, killed = (semi_context.run.stage_folder(name) for name in ("whole", "killed"))
    labelling(semi_context).label(whole, segmenter, names(semi_context))
    real, calls = getattr(Labelling, dies_in), []

    def interrupted(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Labelling, dies_in, interrupted)
    with pytest.raises(KeyboardInterrupt):
        labelling(semi_context).label(killed, segmenter, names(semi_context))
    left = set(LabelStore(killed / LABELS).names) if (killed / LABELS).exists() else set()
    assert len(left) == (2 if dies_in == "pseudo_label" else 0)
    assert (killed / THRESHOLDS).exists() == (dies_in == "pseudo_label"), "no threshold of a part of the images"
    labelling(semi_context).label(killed, segmenter, names(semi_context))
    if dies_in == "pseudo_label":
        assert len(calls) == 3 + 3, "two were there already"
    assert torch.equal(*(load_file(f / THRESHOLDS)["lam"] for f in (whole, killed)))
    for name in names(semi_context):
        a, b = (LabelStore(f / LABELS).read(name) for f in (whole, killed))
        assert torch.equal(a.ids, b.ids) and torch.equal(a.valid, b.valid) and torch.equal(a.confidence, b.confidence)


def test_labels_and_thresholds_that_are_there_stay(semi_context, segmenter, monkeypatch):
    folder = semi_context.run.stage_folder("label")
    labelling(semi_context).label(folder, segmenter, names(semi_context, [3, 4]))
    mine = LabelMap(torch.full((48, 64), 2), torch.full((48, 64), 0.5), torch.ones(48, 64, dtype=torch.bool))
    store = LabelStore(folder / LABELS, semi_context.table)
    store.write("picture_03", mine, semi_context.data.items[3].image)
    monkeypatch.setattr(Labelling, "predict", lambda *args, **kwargs: pytest.fail("thresholds are there"))
    labelling(semi_context).label(folder, segmenter, names(semi_context, [3, 4, 5]))
    again = LabelStore(folder / LABELS)
    assert set(again.names) == {"picture_03", "picture_04", "picture_05"}
    assert (again.read("picture_03").ids == 2).all()


def test_damaged_thresholds_are_told(semi_context, segmenter):
    folder = semi_context.run.stage_folder("label")
    (folder / THRESHOLDS).write_bytes(b"nothing")
    with pytest.raises(MaskwrightError, match=r"thresholds\.safetensors"):
        labelling(semi_context).label(folder, segmenter, names(semi_context))

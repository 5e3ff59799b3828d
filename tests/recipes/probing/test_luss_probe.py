"""Distance matching and the semi-supervised protocol as whole verbs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import maskwright as mw
from maskwright import api
from maskwright.errors import MaskwrightError
from maskwright.evaluate.scores import hash_names
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.probing.luss_probe import class_scores, distance_scores, semi_scores


def colour(x: torch.Tensor) -> torch.Tensor:
    """Features that are the blurred colours: enough to tell red discs from blue squares."""
    return torch.nn.functional.avg_pool2d(x, 4)


def test_truth_as_prediction_is_perfect_and_reading_is_for_evaluation(tiny_folder):
    data = mw.open_folder(tiny_folder)
    scores = class_scores(lambda i: data.mask(i), data, "luss_semi", "none")
    assert scores.miou == pytest.approx(1) and scores.protocol == "luss_semi"
    assert data.ledger.counts()["train"]["masks"] == 0 and data.ledger.counts()["evaluate"]["masks"] == 8


def test_a_table_without_other_is_moved_up_on_both_sides(tiny_folder):
    (tiny_folder / "classes.txt").write_text("grass\ndisc\nsquare\n")
    data = mw.open_folder(tiny_folder)
    scores = class_scores(lambda i: data.mask(i), data, "luss_semi", "none")
    assert [c["iou"] for c in scores.per_class] == pytest.approx([0, 1, 1, 1]), "other is absent and counts as 0"


def test_distance_matching_names_colours(tiny_folder):
    data = mw.open_folder(tiny_folder)
    bank, test = data.split("train"), data.split("test")
    scores = distance_scores(colour, Preprocess(), bank, test)
    assert scores.miou > 0.6 and scores.protocol == "luss_distance"
    counts = data.ledger.counts()
    assert counts["train"]["masks"] == 0 and counts["evaluate"]["masks"] == 8, "no model learned from the bank"


def test_the_verb_probes_a_backbone(tiny_folder):
    scores = api.probe("resnet18", tiny_folder, "distance", weights="random", device="cpu")
    assert 0 <= scores.miou <= 1 and np.isfinite(scores.miou)
    judged = hash_names(mw.open_folder(tiny_folder).split("test").names)
    assert (scores.images, scores.split, scores.names_hash) == (4, "test", judged)
    with pytest.raises(MaskwrightError, match="distance"):
        api.probe("resnet18", tiny_folder, "distanse", weights="random", device="cpu")


def test_the_verb_fine_tunes_on_the_labelled_share_and_tells_which_list_it_judged(tiny_folder, tmp_path):
    scores = api.probe(
        "resnet18", tiny_folder, "semi", weights="random", device="cpu", steps=2, out=tmp_path / "run",
        settings={"crop": "32", "batch": "2", "norm_images": "0"},
    )  # fmt: skip
    assert scores.protocol == "luss_semi" and scores.matching == "none: fine-tuned on 4 masks"
    assert (scores.split, scores.names_hash) == ("test", hash_names(mw.open_folder(tiny_folder).split("test").names))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["labels_read"]["train"]["masks"] == 4


def test_semi_needs_the_datasets_classes(tiny_folder):
    class Model:
        classes = ("a", "b")

    with pytest.raises(MaskwrightError, match="same classes"):
        semi_scores(Model(), mw.open_folder(tiny_folder), 1)  # type: ignore[arg-type]

"""The iterate is chosen by held-out labelled images, and the ledger says so."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import write_tiny_folder
from torch import nn

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure
from maskwright.methods.supervised import Supervised, SupervisedConfig
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.training import network, setup
from maskwright.recipes.training import selection as module
from maskwright.recipes.training.selection import Selection, every, hold_out


@given(steps=st.integers(1, 500), looks=st.integers(1, 20))
def test_looks_are_evenly_spaced_and_the_last_step_is_one(steps, looks):
    chosen = [s for s in range(steps) if every(steps, looks)(s)]
    assert len(chosen) == min(steps, looks)
    assert chosen[-1] == steps - 1


def test_hold_out_splits_without_loss(tmp_path):
    labels = MaskLabels(open_folder(write_tiny_folder(tmp_path / "tiny")), 3)
    kept, held = hold_out(labels, 0.3, 0)
    assert len(held) == 2 and sorted([*kept.indices, *held]) == labels.indices
    assert hold_out(labels, 0.0, 0) == (labels, [])
    assert len(hold_out(labels, 0.9, 0)[0].indices) == 1


class Constant(nn.Module):
    def __init__(self, winner: int) -> None:
        super().__init__()
        self.register_buffer("scores", torch.eye(3)[winner])

    def logits(self, x):
        return self.scores[None, :, None, None].expand(len(x), 3, *x.shape[-2:])


def test_keeps_the_best_and_survives_a_round_trip(tmp_path):
    data = open_folder(write_tiny_folder(tmp_path / "tiny"))
    labels = MaskLabels(data, 3)
    selection = Selection(data, labels, [0, 1], 3, Preprocess())
    worse = selection.look(Constant(1), 0, torch.device("cpu"))
    better = selection.look(Constant(0), 1, torch.device("cpu"))
    selection.look(Constant(2), 2, torch.device("cpu"))
    assert better > worse and selection.best_score == (1, better)
    assert torch.equal(selection.best["scores"], torch.eye(3)[0])
    counts = data.ledger.counts()
    assert counts["select"]["masks"] == 2 and not counts["train"].get("masks")
    again = Selection(data, labels, [0, 1], 3, Preprocess())
    again.load_state_dict(selection.state_dict())
    assert again.scores == selection.scores and torch.equal(again.best["scores"], selection.best["scores"])


def test_a_look_without_a_labelled_pixel_is_below_all_others(tmp_path, monkeypatch):
    data = open_folder(write_tiny_folder(tmp_path / "tiny"))
    selection = Selection(data, MaskLabels(data, 3), [0, 1], 3, Preprocess())
    scores = iter([float("nan"), 0.2, float("nan"), 0.3, 0.3])
    monkeypatch.setattr(module, "miou", lambda counts: next(scores))
    for step in range(5):
        selection.look(Constant(min(step, 2)), step, torch.device("cpu"))
        kept = int(selection.best["scores"].argmax())
        assert kept == min((0, 1, 1, 3, 3)[step], 2)
    assert selection.best_score == (3, 0.3)


def test_the_kept_model_is_the_best_iterate_with_the_statistics_it_was_judged_by(semi_context, monkeypatch, tmp_path):
    """Looks are scored 0.1, 0.2, 0.9, 0.3 ...: the model that is saved is the one of the third look."""
    seen, scores, weights = [], iter([0.1, 0.2, 0.9, 0.3]), []
    monkeypatch.setattr(module, "miou", lambda counts: next(scores))
    for place in (network, setup):  # for the kept model, and for looks at it
        monkeypatch.setattr(place, "retake", lambda *args, **told: seen.append(list(args[4])))
    config = configure(SupervisedConfig, {"crop": 32, "batch": 2, "precision": "fp32", "holdout": 0.4})
    method = Supervised(config, semi_context)
    look = Selection.look

    def spy(self, network, step, *rest):
        weights.append({k: v.clone() for k, v in network.state_dict().items()})
        return look(self, network, step, *rest)

    monkeypatch.setattr(Selection, "look", spy)
    (semi_context.run.path / "train").mkdir()
    method.train(semi_context.run.path / "train")
    kept = method.network().state_dict()
    assert len(weights) == 4 and all(torch.equal(v, kept[k]) for k, v in weights[2].items())
    assert any(not torch.equal(v, kept[k]) for k, v in weights[3].items())
    method.segmenter()
    held = hold_out(method.labels(), 0.4, semi_context.seed)[1]
    assert held and len(seen) == 5 and all(s == seen[0] and not set(held) & set(s) for s in seen)

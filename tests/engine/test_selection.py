"""The iterate is chosen by held-out labelled images, and the ledger says so."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import write_tiny_folder
from torch import nn

from maskwright.data.folder import open_folder
from maskwright.data.sources import MaskLabels
from maskwright.engine.selection import Selection, every, hold_out
from maskwright.models.preprocess import Preprocess


@given(steps=st.integers(1, 500), looks=st.integers(1, 20))
def test_looks_are_evenly_spaced_and_the_last_step_is_one(steps, looks):
    chosen = [s for s in range(steps) if every(steps, looks)(s)]
    assert len(chosen) == min(steps, looks)
    assert chosen[-1] == steps - 1


def test_hold_out_splits_without_loss(tmp_path):
    labels = MaskLabels(open_folder(write_tiny_folder(tmp_path / "tiny")), 3)
    kept, held = hold_out(labels, 0.3, torch.Generator().manual_seed(0))
    assert len(held) == 2 and sorted([*kept.indices, *held]) == labels.indices
    assert hold_out(labels, 0.0, torch.Generator()) == (labels, [])
    assert len(hold_out(labels, 0.9, torch.Generator())[0].indices) == 1


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

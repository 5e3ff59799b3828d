"""IIC: heads in turn, the kept head, presets, edges."""

from __future__ import annotations

import json

import pytest
import torch
from tests.methods.unsupervised.small import trainer

import maskwright as mw
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised import iic as I

SMALL = {"crops.size": 32, "crops.batch": 4, "precision": "fp32", "information.displacement": 1}
train = trainer("iic", SMALL)


def test_presets_say_what_the_papers_commands_say():
    paper = configure(I.IICConfig, {"preset": "paper"})
    assert (paper.network.name, paper.sobel, paper.crops.batch, paper.crops.size) == ("iic10a", True, 60, 128)
    assert (paper.optimizer.lr, paper.optimizer.weight_decay, paper.schedule) == (1e-4, 0.0, "constant")
    assert (paper.information.displacement, paper.information.cell, paper.heads.sub_heads) == (10, 1, 1)
    assert configure(I.IICConfig, {"preset": "paper", "lr": 1e-5}).optimizer.lr == 1e-5, "what is given wins"
    potsdam = configure(I.IICConfig, {"preset": "paper_potsdam"})
    assert (potsdam.sobel, potsdam.optimizer.lr, potsdam.information.displacement) == (False, 1e-6, 5)
    assert (paper.heads.over * 15, potsdam.heads.over * 6) == (45, 36), "clusters of the over-clustering heads"
    with pytest.raises(MaskwrightError, match="zoom_min"):
        configure(I.IICConfig, {"zoom_min": 2, "zoom_max": 1})


def test_one_kind_of_heads_learns_at_a_time_and_over_clustering_begins(data, tmp_path, monkeypatch):
    moved: list[tuple[bool, bool]] = []
    real = I.IICTraining.update

    def watched(training, fabric, batch, step):
        terms = real(training, fabric, batch, step)
        grads = [next(iter(m.parameters())).grad for m in (training.heads.over[0], training.setup.network.classifier)]
        moved.append(tuple(g is not None and bool(g.any()) for g in grads))
        return terms

    monkeypatch.setattr(I.IICTraining, "update", watched)
    train(data, tmp_path / "run", 5, **{"heads.turn": 2, "heads.sub_heads": 2})
    assert moved == [(True, False), (True, False), (False, True), (False, True), (True, False)]


@pytest.mark.parametrize("turn", [0, 2])
def test_the_main_head_has_its_turn_in_short_runs_too(turn, data, tmp_path):
    """A pass over eight photographs, one a step, is longer than the two steps."""
    train(data, tmp_path / "run", 2, **{"crops.batch": 1, "heads.turn": turn})
    checkpoint = torch.load(tmp_path / "run" / "train" / "checkpoint.pt", weights_only=True)
    assert checkpoint["parts"]["module.heads"]["seen"].tolist() == ([1, 1] if turn == 0 else [2, 0])
    notes = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    assert any("never had its turn" in note for note in notes) == (turn == 2)


def test_the_main_head_of_least_loss_is_kept_and_said(data, tmp_path, monkeypatch):
    real = I.Heads.remember

    def second_is_best(heads, kind, losses):
        real(heads, kind, losses - torch.tensor([0.0, 5.0, 0.0], dtype=losses.dtype) if kind == 1 else losses)

    monkeypatch.setattr(I.Heads, "remember", second_is_best)
    model = train(data, tmp_path / "run", 2, **{"heads.over": 0, "heads.sub_heads": 3})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert any(note.startswith("Main head 2 of 3 is kept, by its training loss: ") for note in record["notes"])
    checkpoint = torch.load(tmp_path / "run" / "train" / "checkpoint.pt", weights_only=True)
    kept = checkpoint["parts"]["module.heads"]["main.0.linear.weight"]
    assert torch.equal(model.segmenter.classifier.linear.weight, kept)


def test_the_alarm_of_collapse_counts_no_padding(data, tmp_path, monkeypatch):
    """Crops of 96 around photographs of 48 x 64 pixels: what lies outside is in no cluster."""
    seen = []
    real = I.ClusteringHealth.__call__
    watched = lambda self, p, valid=None: seen.append((p, valid)) or real(self, p, valid)  # noqa: E731
    monkeypatch.setattr(I.ClusteringHealth, "__call__", watched)
    settings = {"crops.size": 96, "crops.batch": 2, "crops.scale_min": 1.0, "crops.scale_max": 1.0}
    train(data, tmp_path / "run", 1, **settings)
    ((p, valid),) = seen
    assert valid.shape == (2, 24, 24) and p.shape[-2:] == valid.shape[-2:], "cells of 4 pixels"
    assert float(valid.float().mean()) == pytest.approx(48 * 64 / 96**2, abs=0.05)


def test_running_losses():
    heads = I.Heads(4, 3, 9, 2)
    for step in range(200):
        heads.remember(1, torch.tensor([1.0, 0.0] if step < 100 else [0.0, 1.0], dtype=torch.float64))
    assert heads.best() == 0 and heads.recent[1].tolist() == pytest.approx([0.98**100, 1 - 0.98**100], abs=1e-12)
    assert heads.seen.tolist() == [0, 200]


@pytest.mark.parametrize("network", ["iic10a", "auto"])
def test_edges_on_the_papers_network_and_on_others(network, data, tmp_path):
    settings = {"sobel": True, "network.name": network, "warp.rotate": 20, "warp.zoom_min": 0.8, "form": "collapsed"}
    train(data, tmp_path / "run", 1, **settings)
    model = mw.load(tmp_path / "run")
    assert type(model.segmenter.encoder).__name__ == "SobelEncoder"
    assert (model.segmenter.encoder.mix is None) == (network == "iic10a")


def test_cells_that_do_not_fit_the_crop_are_refused(data, tmp_path):
    with pytest.raises(MaskwrightError, match="cells of 5 pixels"):
        train(data, tmp_path / "run", 1, **{"information.cell": 5})

"""HSG: two views in a step, when levels join, levels as outputs, the baseline, presets."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import write_tiny_folder
from tests.methods.unsupervised.small import steps_of, trainer
from typer.testing import CliRunner

import maskwright as mw
from maskwright.cli import app
from maskwright.data.masking.masks import read_mask
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.streams import Repeated
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.hsg.method import HSGConfig
from maskwright.methods.unsupervised.hsg.training import HSGTraining
from maskwright.models.parts.heads import CosineClassifier, LinearClassifier, Sequential
from maskwright.models.parts.hierarchy import Hierarchy, LevelClassifier
from maskwright.models.parts.segments import EmbeddingHead, SegmentPrototypes
from maskwright.models.parts.table import build_part, check_loadable

SMALL = {
    "crops.size": 32, "crops.batch": 4, "precision": "fp32", "clusters.restarts": 2, "dim": 16, "levels.fine": 3,
    "levels.coarse": 2, "levels.inner": 16, "segments.grid": 2, "readout.grid": 3,
}  # fmt: skip
train = trainer("hsg", SMALL)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny", count=4)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(data, out, 2, **{"levels.start": 0.5})
    return out


def test_each_photograph_is_drawn_twice_and_side_by_side():
    class Photographs:
        order = None

        def draw(self, images, random):
            return images.tolist()

    assert Repeated(Photographs(), 2).draw([3, 1], torch.Generator()) == [3, 3, 1, 1]


def test_levels_join_after_their_share_of_the_steps(run):
    first, second = steps_of(run)
    assert first["loss"] == first["region"] and "fine" not in first
    grouped = 0.1 * (second["fine"] + second["coarse"])
    parts = [second[f"{a}_{b}"] for a in ("fine", "coarse") for b in ("modularity", "balance", "centroids")]
    assert second["loss"] == pytest.approx(second["region"] + grouped + sum(parts), rel=1e-5)
    assert 0 <= second["entropy"] <= 1


def test_levels_as_outputs(run, data, tmp_path):
    """Each photograph falls into as many parts at most, coarse ones being unions of fine ones; ids of `--level`."""
    model = mw.load(run)
    image = next((data / "images").iterdir())
    masks = {level: model.at_level(level).predict(image).mask for level in ("segments", "fine", "coarse")}
    for level, most in (("segments", 9), ("fine", 3), ("coarse", 2)):
        assert len(model.at_level(level).classes) == most and masks[level].max() < most
    assert np.array_equal(model.predict(image).mask, mw.load(run).predict(image).mask)
    with pytest.raises(MaskwrightError, match="finer"):
        model.at_level("finer")
    runner = CliRunner()
    call = ["predict", str(run), str(image), "--level", "fine", "--device", "cpu", "--out"]
    done = runner.invoke(app, [*call, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    written = read_mask(next((tmp_path / "out").glob("*.png")))
    assert np.array_equal(written, masks["fine"])
    refused = runner.invoke(app, [*call, str(tmp_path / "other"), "--flips"])
    assert refused.exit_code == 2 or isinstance(refused.exception, MaskwrightError)


def test_graphs_of_equal_nodes_have_a_gradient():
    """The deviation that starts the decoder is 0 there, and a root has none."""
    levels = Hierarchy(8, 4, 2, 2, 8, 1, 0.0, 10)
    for slots in (1, 3):
        nodes = torch.randn(2, 1, 8).expand(2, slots, 8).clone().requires_grad_()
        found = levels.groups(nodes, torch.zeros(2, slots, 8), torch.zeros(2, slots, dtype=torch.bool))
        torch.stack([g.assignment.square().sum() for g in found.values()]).sum().backward()
        assert nodes.grad is not None and bool(nodes.grad.isfinite().all())


def test_pixels_of_a_segment_are_of_one_group():
    torch.manual_seed(0)
    part = LevelClassifier(
        LinearClassifier(6, 8), Hierarchy(8, 4, 2, 2, 16, 1, 0.1, 5),
        Sequential(SegmentPrototypes(3, 5, "centred"), CosineClassifier(torch.randn(3, 8), 0.1)), 3, 5, "centred",
    ).eval()  # fmt: skip
    check_loadable(part)
    x = torch.randn(2, 6, 7, 8)
    twin = build_part(part.at("coarse").spec()).eval()
    twin.load_state_dict(part.state_dict())
    torch.testing.assert_close(twin(x), part.at("coarse")(x))
    segments = part.at("segments")(x).argmax(1)
    for level, groups in (("fine", 4), ("coarse", 2)):
        shares = part.at(level)(x).softmax(1)
        assert shares.shape == (2, groups, 7, 8)
        for b in range(2):
            for s in segments[b].unique():
                inside = shares[b][:, segments[b] == s]
                torch.testing.assert_close(inside, inside[:, :1].expand_as(inside))
    with pytest.raises(MaskwrightError, match="Hierarchy"):
        build_part(part.spec() | {"hierarchy": {"kind": "Identity"}})
    head = EmbeddingHead(6, 12, 8)
    check_loadable(head)
    assert head(x).shape == (2, 8, 7, 8)


def test_levels_that_were_never_trained_are_left_out_and_that_is_said(data, tmp_path):
    """The training ends before they join, as that of a run does which is finished early."""
    model = train(data, tmp_path / "run", 2, **{"levels.start": 0.9})
    notes = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    assert [n for n in notes if "levels were never trained" in n and "levels.start=0.9" in n]
    with pytest.raises(MaskwrightError, match=r"without levels.*a model of hsg with trained levels"):
        model.at_level("fine")
    assert not hasattr(mw.load(tmp_path / "run").segmenter.classifier, "hierarchy")


@pytest.mark.slow
def test_the_baseline_has_no_levels(data, tmp_path):
    model = train(data, tmp_path / "run", 1, **{"levels.which": "regions", "hidden": 24})
    assert "fine" not in steps_of(tmp_path / "run")[0]
    with pytest.raises(MaskwrightError, match="without levels"):
        model.at_level("fine")
    train(data, tmp_path / "fine", 1, **{"levels.which": "fine", "levels.start": 0.0})
    step = steps_of(tmp_path / "fine")[0]
    assert "fine" in step and "coarse" not in step
    assert mw.load(tmp_path / "fine").segmenter.classifier.hierarchy.levels == ("segments", "fine")


def test_levels_need_two_photographs_in_a_step(data, tmp_path):
    with pytest.raises(MaskwrightError, match="=1 with levels"):
        train(data, tmp_path / "one", **{"crops.batch": 1})
    training = SimpleNamespace(
        config=configure(HSGConfig, {"segments.grid": 2}), levels=Hierarchy(8, 4, 2, 2, 8, 1, 0.0, 10).train(), start=0,
        layout="centred", embed=lambda x: F.normalize(x, dim=1),
    )  # fmt: skip
    ids, there = torch.zeros(4, 8, 8, dtype=torch.int64), torch.zeros(4, 8, 8, dtype=torch.bool)
    there[:2] = True  # the other photograph has no region in view
    views = SimpleNamespace(weak=torch.randn(4, 8, 8, 8), y=LabelMap(ids, torch.ones(4, 8, 8), there))
    terms = HSGTraining.losses(training, {"u": views}, 0)
    assert terms["loss"] == terms["region"] and "fine" not in terms


def test_presets_say_what_the_papers_commands_say():
    first, second = (configure(HSGConfig, {"preset": name}) for name in ("paper_regions", "paper"))
    assert (first.crops.size, first.crops.batch, first.steps, first.segments.grid) == (224, 128, 350_000, 1)
    assert (first.levels.which, second.levels.which, second.levels.start) == ("regions", "fine+coarse", 0)
    assert (second.crops.size, second.crops.batch, second.steps, second.segments.grid) == (448, 48, 20_000, 4)
    assert (second.levels.fine, second.levels.coarse, second.dim, second.hidden) == (8, 4, 128, 2048)
    assert (first.optimizer.lr, second.optimizer.lr, second.levels.rate) == (1e-1, 8e-3, 10)
    assert first.optimizer.encoder_lr == second.optimizer.encoder_lr == 1, "the embedding learns as fast as the encoder"
    with pytest.raises(MaskwrightError, match="coarse=9"):
        configure(HSGConfig, {"levels.coarse": 9})
    with pytest.raises(MaskwrightError, match="no step left"):
        configure(HSGConfig, {"levels.start": 1.0})
    with pytest.raises(MaskwrightError, match="dim=30"):
        configure(HSGConfig, {"dim": 30})

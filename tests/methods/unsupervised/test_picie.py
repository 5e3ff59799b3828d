"""PiCIE: views at the same places, what rounds leave, MDC's classifier, readouts, presets."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.methods.unsupervised.small import parts_of, steps_of, trainer

import maskwright as mw
from maskwright.data.training.views import View
from maskwright.data.training.warped import WarpedPairs
from maskwright.engine import seeding
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised import picie as P
from maskwright.models.parts.heads import LinearClassifier
from maskwright.recipes.self_training.rounds import Rounds

SMALL = {"crops.size": 32, "crops.batch": 4, "precision": "fp32", "rounds.rows": 40}
train = trainer("picie", SMALL)


@pytest.mark.parametrize("flip", [False, True])
def test_a_network_that_sees_coordinates_sees_the_same_in_both_views(flip):
    """f is a mean over 4x4 pixels of where they lie in the photograph; z1 = f(G x) is then z2 = G f(x)."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    photograph = torch.stack((x, y, torch.full_like(x, 40.0)))[None]
    crop = View.identity((64, 96)).crop(4, 10, 56, 56)
    window = crop.window(9.3, 5.7, 35.0, 35.0, (56, 56))
    window = window.hflip() if flip else window
    u = WarpedPairs(crop.render(photograph), window.render(photograph), (crop,), (window,))
    network = SimpleNamespace(features=lambda x: x, decode=lambda x: F.avg_pool2d(x, 4))
    training = SimpleNamespace(config=SimpleNamespace(mdc=False), student=SimpleNamespace(autocast=nullcontext))
    (z1, z2), valid = P.PicieTraining.embed(training, network, u)
    assert z1.shape == z2.shape == (1, 3, 14, 14) and bool(valid.all())
    torch.testing.assert_close(z1, z2, rtol=0, atol=2e-3)
    other = u._replace(views2=(window.vflip(),))
    assert not torch.allclose(*P.PicieTraining.embed(training, network, other)[0], atol=0.05)


def test_the_loss_has_a_floor_and_centroids_no_gradient(data, tmp_path):
    """Of unit vectors the greatest gap of two scores is 2."""
    k = 5
    mu = torch.zeros(k, 4)
    mu[:, 0] = torch.tensor([1.0, -1, -1, -1, -1])
    z = torch.zeros(1, 4, 2, 2)
    z[:, 0] = 1
    floor = math.log(1 + (k - 1) * math.exp(-2))
    y = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert float(P.weighted_cross_entropy(P.scores(z, mu), y, None)) == pytest.approx(floor)
    assert float(P.weighted_cross_entropy(P.scores(z, mu), y - 1, None)) == 0, "no cell has a label"
    assert float(P.weighted_cross_entropy(P.scores(z, mu), y, torch.tensor([0.0, 1, 1, 1, 1]))) == 0
    train(data, tmp_path / "run", 1)
    assert not any(c.requires_grad for c in parts_of(tmp_path / "run")["extra.rounds"]["result"]["centers"][0])


def test_views_that_do_not_differ_have_the_same_clusters(data, tmp_path):
    train(data, tmp_path / "same", 2, **{"views.invariance": False, "views.equivariance": False})
    for step in steps_of(tmp_path / "same"):
        assert step["within"] == pytest.approx(step["cross"], rel=1e-6) and step["mse"] == 0
    centers = parts_of(tmp_path / "same")["extra.rounds"]["result"]["centers"][0]
    assert torch.equal(*centers)
    train(data, tmp_path / "other", 1)
    assert steps_of(tmp_path / "other")[0]["mse"] > 0
    assert not torch.equal(*parts_of(tmp_path / "other")["extra.rounds"]["result"]["centers"][0])


def test_rounds_leave_centroids_and_counts_of_each_view_and_number_of_clusters(data, tmp_path):
    """Eight photographs, 40 cells of each; k-means begins with four of them and is moved by the others."""
    settings = {"rounds.over": 2, "rounds.first": 4, "rounds.every": 2, "loss.mse": True, "loss.terms": "cross"}
    train(data, tmp_path / "run", 3, **settings)
    rounds = parts_of(tmp_path / "run")["extra.rounds"]
    assert rounds["number"] == 2 and rounds["step"] == 2
    for k, centers, counts in zip((3, 6), rounds["result"]["centers"], rounds["result"]["counts"]):
        assert [c.shape for c in centers] == [(k, 128)] * 2
        assert [float(c.sum()) for c in counts] == [320, 320]
        assert all(float(c.norm(dim=1).max()) <= 1 + 1e-5 for c in centers), "means of unit vectors"
    for step in steps_of(tmp_path / "run"):
        assert step["loss"] == pytest.approx((step["cross"] + step["mse"]) / 2, rel=1e-5)
        assert 0 <= step["entropy"] <= 1 and 1 / 3 <= step["largest_share"] <= 1
    assert P.loss_shares(3, 6) == pytest.approx([math.log(6) / math.log(18), math.log(3) / math.log(18)])


def test_more_clusters_than_cells_are_refused_by_the_option_that_asks_for_them(data, tmp_path):
    few = {"rounds.first": 4, "rounds.rows": 10}
    for option, many, fewer in (("rounds.count", 50, 5), ("rounds.over", 20, 2)):
        with pytest.raises(MaskwrightError, match=rf"clusters from 40 .*ask for fewer with {option}"):
            train(data, tmp_path / option, 1, **few, **{option: many})
        train(data, tmp_path / f"{option}-fewer", 1, **few, **{option: fewer})


def test_mdc_learns_a_classifier_that_begins_anew_each_round(data, tmp_path, monkeypatch):
    seen: list[tuple[float, int]] = []
    real = P.PicieTraining.before_step

    def watched(training, step):
        real(training, step)
        states = len(training.optimizers["heads"].state)
        seen.append((float(training.heads[0].linear.weight.detach().abs().max()), states))

    monkeypatch.setattr(P.PicieTraining, "before_step", watched)
    settings = {"mdc": True, "rounds.every": 2, "readout.by": "rounds", "optimizer.lr": 0.1}
    model = train(data, tmp_path / "run", 4, **settings)
    (first, empty), (moved, held), (again, emptied), _ = seen
    assert first < 0.06 < moved and again < 0.06 and (empty, held, emptied) == (0, 2, 0)
    assert "cross" not in steps_of(tmp_path / "run")[0]
    linear = model.segmenter.classifier[1].linear
    kept = parts_of(tmp_path / "run")["module.heads"]
    torch.testing.assert_close(linear.weight, kept["0.linear.weight"] / 0.1)
    torch.testing.assert_close(linear.bias, kept["0.linear.bias"] / 0.1)


def test_mdcs_classifier_begins_alike_in_all_processes():
    """Gradients are averaged, weights are not: processes that begin apart would stay apart."""

    def begun(rank, step=0):
        heads = torch.nn.ModuleList([LinearClassifier(8, 3)])
        rounds = Rounds(1, lambda number: None)
        rounds.number = step
        optimizers = {"heads": torch.optim.AdamW(heads.parameters())}
        context = SimpleNamespace(seed=0)
        training = SimpleNamespace(rounds=rounds, heads=heads, optimizers=optimizers, context=context)
        seeding.seed_step(0, step, rank, "train")
        P.PicieTraining.before_step(training, step)
        return heads[0].linear.weight.detach()

    assert torch.equal(begun(0), begun(1)) and not torch.equal(begun(0), begun(0, step=1))
    assert 0.005 < float(begun(0).std()) < 0.02


def test_readout_of_the_last_round(data, tmp_path):
    train(data, tmp_path / "run", 1, **{"readout.by": "rounds"})
    mu = parts_of(tmp_path / "run")["extra.rounds"]["result"]["centers"][0][0]
    saved = mw.load(tmp_path / "run").segmenter
    torch.testing.assert_close(saved.classifier[1].linear.weight[:, :, 0, 0], mu / 0.1)
    assert type(saved.decoder).__name__ == "LateralFPN"
    embedding = torch.randn(1, 128, 2, 2)
    torch.testing.assert_close(saved.classify(embedding), saved.classify(7 * embedding))
    with pytest.raises(MaskwrightError, match="4 clusters in training and 3 asked for"):
        train(data, tmp_path / "other", 1, **{"readout.by": "rounds", "rounds.count": 4})


def test_what_is_predicted_is_the_nearest_centroid(data, tmp_path):
    train(data, tmp_path / "run", 1)
    mu = load_file(tmp_path / "run" / "cluster" / P.CENTERS)["weight"]  # (K, E)
    saved = mw.load(tmp_path / "run").segmenter
    z = F.normalize(mu.T + 0.1 * torch.randn(len(mu.T), len(mu), generator=torch.Generator().manual_seed(1)), dim=0)
    said = saved.classify(z.T[:, :, None, None])[:, :, 0, 0].argmax(1)
    assert torch.equal(said, torch.cdist(z.T, mu).argmin(1))
    assert torch.allclose(saved.classifier[1].linear.bias, -0.5 * mu.square().sum(1) / 0.1)


def test_presets_say_what_the_papers_commands_say():
    paper, small = (configure(P.PicieConfig, {"preset": name}) for name in ("paper", "small"))
    assert (paper.crops.size, paper.crops.batch, paper.optimizer.lr, paper.schedule) == (320, 128, 1e-4, "constant")
    assert (paper.loss.balance, small.loss.balance) == ("frequency", "inverse")
    assert configure(P.PicieConfig, {"preset": "paper", "balance": "none"}).loss.balance == "none"
    with pytest.raises(MaskwrightError, match="terms=cross with mdc"):
        configure(P.PicieConfig, {"mdc": True, "terms": "cross"})
    with pytest.raises(MaskwrightError, match="side_min"):
        configure(P.PicieConfig, {"side_min": 0.9, "side_max": 0.6})

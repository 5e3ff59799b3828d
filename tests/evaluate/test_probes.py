"""Probes on features whose answer is known, against scikit-learn, and their determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from maskwright.errors import MaskwrightError
from maskwright.evaluate.probes import (
    KnnProbe,
    ProbeConfig,
    evaluate_probe,
    fit_linear_probe,
    labelled_places,
)


def pictures(count: int, noise: float = 0.5, seed: int = 0, factor: int = 4) -> list[tuple[torch.Tensor, np.ndarray]]:
    """Features (5, 6, 8) around a centre for each of three classes, badly scaled; larger labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, 5)) * 2
    out = []
    for _ in range(count):
        ids = rng.integers(0, 3, (6, 8))
        f = centres[ids] + rng.normal(size=(6, 8, 5)) * noise
        f = f * np.array([1, 100, 0.01, 1, 1]) + np.array([0, 50, 0, 0, 3])
        labels = np.kron(ids, np.ones((factor, factor), int)).astype(np.uint8)
        labels[0, :5] = 255
        out.append((torch.tensor(f.transpose(2, 0, 1), dtype=torch.float32), labels))
    return out


@pytest.mark.parametrize(
    "config",
    [
        ProbeConfig(optimizer="lbfgs", steps=100),
        ProbeConfig(steps=150, lr=0.05, batch=1),
        ProbeConfig(steps=60, lr=0.05, resolution="labels", batch=4),
    ],
)
def test_linear_probe_learns_and_is_deterministic(config: ProbeConfig) -> None:
    train, test = pictures(8), pictures(4, seed=1)
    scores = evaluate_probe(fit_linear_probe(train, 3, config), test, ["a", "b", "c"])
    assert scores.protocol == "linear_probe" and scores.images == 4
    # Bilinear logits blur the borders of labels that change at every place.
    assert scores.pixel_accuracy > 0.8
    again = fit_linear_probe(train, 3, config)
    assert torch.equal(again.weight, fit_linear_probe(train, 3, config).weight)
    at_features = evaluate_probe(again, test, 3, resolution="features")
    assert at_features.pixel_accuracy > 0.95


def test_lbfgs_finds_the_optimum_of_logistic_regression() -> None:
    train = pictures(6, noise=2.0)
    x, y = labelled_places(train, 3)
    decay = 0.01
    probe = fit_linear_probe(train, 3, ProbeConfig(optimizer="lbfgs", steps=500, weight_decay=decay))
    rows = ((x - probe.mean) / probe.scale).numpy()
    oracle = LogisticRegression(C=1 / (decay * len(y)), max_iter=2000, tol=1e-8).fit(rows, y.numpy())
    ours = torch.log_softmax(torch.from_numpy(rows) @ probe.weight.T + probe.bias, 1).numpy()
    assert np.abs(ours - oracle.predict_log_proba(rows)).max() < 0.02


def test_knn_probe_against_sklearn() -> None:
    train, test = pictures(5), pictures(2, seed=4)
    x, y = labelled_places(train, 3)
    probe = KnnProbe(x, y, 3, k=5, temperature=1e6)  # equal weights
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    oracle = KNeighborsClassifier(5).fit(unit, y.numpy())
    for f, _ in test:
        q = f.flatten(1).T
        q = (q / q.norm(dim=1, keepdim=True)).numpy()
        shares = probe.logits(f).flatten(1).T.numpy()
        assert np.abs(shares - oracle.predict_proba(q)).max() < 0.21  # equal distances may swap one neighbour
        assert (shares.argmax(1) == oracle.predict(q)).mean() > 0.97
    scores = evaluate_probe(probe, test, 3)
    assert scores.protocol == "knn_probe" and "5 nearest" in scores.matching


def test_places_and_bad_input() -> None:
    train = pictures(2)
    x, y = labelled_places(train, 3)
    assert len(x) == len(y) == 2 * (48 - 2) and x.shape[1] == 5  # five ignored pixels reach two places
    fewer, _ = labelled_places(train, 3, per_image=7, seed=1)
    assert len(fewer) == 14 and torch.equal(fewer, labelled_places(train, 3, per_image=7, seed=1)[0])
    nothing = [(train[0][0], np.full((6, 8), 255, np.uint8))]
    for config in (ProbeConfig(), ProbeConfig(resolution="labels")):
        with pytest.raises(MaskwrightError, match="labelled"):
            fit_linear_probe(nothing, 3, config)
    with pytest.raises(MaskwrightError, match="label 2"):
        labelled_places(train, 2)
    with pytest.raises(MaskwrightError, match="adam"):
        ProbeConfig(optimizer="adan")
    with pytest.raises(MaskwrightError, match="Adam there"):
        ProbeConfig(optimizer="lbfgs", resolution="labels")

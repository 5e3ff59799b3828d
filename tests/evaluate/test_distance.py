"""Distance matching against a plain loop over the definition of the protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maskwright.errors import MaskwrightError
from maskwright.evaluate.distance import NeighbourVote, nearest_resize, predict_by_distance
from maskwright.evaluate.luss import EmbeddingBank, distance_matching


def slow_matching(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int = 10) -> list[int]:
    out = []
    for q in query.astype(np.float64):
        sims = [float(q @ b / np.linalg.norm(q) / np.linalg.norm(b)) for b in bank.astype(np.float64)]
        votes: dict[int, float] = {}
        for i in sorted(range(len(sims)), key=lambda i: -sims[i])[:k]:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0) + float(np.exp(sims[i] / 0.07))
        out.append(max(votes, key=lambda c: votes[c]))
    return out


@pytest.mark.parametrize("ids", [51, 301, 920])
def test_votes(ids: int) -> None:
    rng = np.random.default_rng(ids)
    bank, query = rng.normal(size=(200, 16)), rng.normal(size=(60, 16))
    labels = rng.integers(0, ids, 200)
    found = distance_matching(bank, labels, query)
    assert found.tolist() == slow_matching(bank, labels, query)
    assert np.array_equal(
        distance_matching(3 * bank, labels, 7 * query, classes=ids), found
    )  # cosine: scale is nothing
    shares = NeighbourVote(bank, labels, classes=ids).probabilities(query)
    assert shares.shape == (60, ids) and np.allclose(shares.sum(1), 1)


def test_small_bank_and_bad_input() -> None:
    assert distance_matching(np.eye(3), [4, 5, 6], np.eye(3)[[2, 0]]).tolist() == [6, 4]
    for bad in (
        lambda: distance_matching(np.zeros((0, 3)), [], np.eye(3)),
        lambda: distance_matching(np.eye(3), [0, 1, 2], np.eye(4)),
        lambda: distance_matching(np.eye(3), [0, 1, 2], np.eye(3), classes=2),
        lambda: distance_matching(np.eye(3), [0, 1, 2], np.eye(3), k=0),
    ):
        with pytest.raises(MaskwrightError):
            bad()


def test_bank_is_the_mean_over_each_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = torch.tensor(rng.normal(size=(6, 5, 7)), dtype=torch.float32)
    mask = rng.integers(0, 3, (40, 56)).astype(np.uint16)
    mask[:8] = 1000
    bank = EmbeddingBank()
    bank.add(features, mask)
    up = F.interpolate(features[None], scale_factor=4, mode="bilinear", align_corners=False)[0].numpy()
    small = F.interpolate(torch.tensor(mask.astype(np.float32))[None, None], (20, 28), mode="nearest")[0, 0].numpy()
    assert np.array_equal(nearest_resize(mask, (20, 28)), small)
    assert bank.labels.tolist() == [0, 1, 2]
    for i, row in zip(bank.labels, bank.features):
        mean = up[:, small == i].mean(1)
        assert np.allclose(row, mean / np.linalg.norm(mean), atol=1e-5)
    bank.save(tmp_path / "bank.npz")
    again = EmbeddingBank.load(tmp_path / "bank.npz")
    assert np.array_equal(again.features, bank.features) and again.labels.tolist() == [0, 1, 2]
    (tmp_path / "bad.npz").write_bytes(b"no bank")
    with pytest.raises(MaskwrightError):
        EmbeddingBank.load(tmp_path / "bad.npz")
    with pytest.raises(MaskwrightError, match="empty"):
        _ = EmbeddingBank().features


def test_prediction_of_an_image() -> None:
    # Two halves of orthogonal features come back as two halves of ids at the image's size.
    features = torch.zeros(2, 4, 6)
    features[0, :, :3], features[1, :, 3:] = 1, 1
    names = NeighbourVote(np.eye(2), [0, 700])
    ids = predict_by_distance(features, (33, 48), names)
    assert ids.shape == (33, 48) and ids.dtype == np.uint16
    assert (ids[:, :22] == 0).all() and (ids[:, 26:] == 700).all()

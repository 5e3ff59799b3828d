"""PriMaPs-EM (Hahn et al., TMLR 2024): mask proposals, and one step of expectation and maximisation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tests.golden.formulas import as64, draw, softmax

from maskwright.methods.unsupervised.primaps import focal_loss, principal_masks, pseudo_labels


def proposals(f: np.ndarray, psi: float, cover: float) -> np.ndarray:
    """The paper, cell by cell: SVD of the centred rest, the cell along it, what is like that cell, and again."""
    _, h, w = f.shape
    cells = [f[:, i, j] for i in range(h) for j in range(w)]
    ids, z = [0] * len(cells), 0
    while ids.count(0) / len(cells) > 1 - cover:
        z += 1
        rest = [k for k in range(len(cells)) if ids[k] == 0]
        centred = np.array([cells[k] for k in rest]) - np.mean([cells[k] for k in rest], 0)
        v = np.linalg.svd(centred)[2][0]
        first = max(rest, key=lambda k: abs(v @ cells[k]) / np.linalg.norm(cells[k]))
        for k in rest:
            if k == first or cells[k] @ cells[first] / np.linalg.norm(cells[k]) / np.linalg.norm(cells[first]) > psi:
                ids[k] = z
    return np.array(ids).reshape(h, w)


@pytest.mark.parametrize("psi", [0.2, 0.6])
@pytest.mark.parametrize("cover", [0.5, 0.95, 1.0])
def test_masks(psi, cover):
    f = draw(5, 6, 7, seed=3)
    assert np.array_equal(principal_masks(f, psi, cover).numpy(), proposals(as64(f), psi, cover))


def test_expectation_and_maximisation():
    n, k = 30, 4
    y, logits = draw(n, k, seed=1), draw(n, k, seed=2)
    masks = torch.arange(n) * 7 % 5  # 0 in no mask, 1 to 4
    labels = pseudo_labels(y.argmax(1), masks, k)
    winner = {}
    for z in range(1, 5):
        votes = Counter(int(as64(y)[i].argmax()) for i in range(n) if masks[i] == z)
        winner[z] = min(c for c in votes if votes[c] == max(votes.values()))
    assert labels.tolist() == [winner.get(int(z), -1) for z in masks]
    p = softmax(as64(logits))
    chi = p.mean(0)
    terms = [-((1 - chi[c]) ** 2) * np.log(p[i, c]) for i, c in enumerate(labels.tolist()) if c >= 0]
    assert float(focal_loss(logits, labels, 2.0)) == pytest.approx(sum(terms) / n, rel=1e-5)


def test_a_fixed_photograph_has_the_masks_it_had():
    """Three bands of features at right angles, the lowest twice as long, with noise."""
    bands = np.linalg.qr(as64(draw(8, 3, seed=5)))[0].T * np.array([[1.0], [1.0], [2.0]])
    f = np.repeat(bands[:, :, None], 4, 2).transpose(1, 0, 2)  # (8, 3, 4)
    noisy = torch.from_numpy(f).float() + 0.05 * draw(8, 3, 4, seed=6)
    assert principal_masks(noisy, 0.6, 0.95).tolist() == [[2] * 4, [3] * 4, [1] * 4]

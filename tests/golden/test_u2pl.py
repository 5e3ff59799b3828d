"""U2PL (Wang et al., CVPR 2022): reliable pixels are learnt, unreliable ones are negatives of improbable classes."""

from __future__ import annotations

import numpy as np
import pytest
from tests.golden.formulas import as64, draw, labels, nll, pixels, softmax

from maskwright.methods.semi.u2pl import annealed, negative_pixels, ranks, reliable_cross_entropy
from maskwright.ops.losses.thresholds import entropy_masks

C = 5
Q = (draw(4, C, 5, 5) * 2).softmax(1)
Y = labels(4, C)


def test_unsupervised_loss_drops_the_most_uncertain_pixels():
    """The percentile is numpy's over valid pixels; the mean over what is kept is weighed by |valid| / |kept|."""
    logits, drop = draw(4, C, 5, 5, seed=3), 20.0
    p = softmax(as64(Q.log()))
    h = {x: -sum(v * np.log(v) for v in p[x[0], :, x[1], x[2]]) for x in pixels(Y)}
    limit = np.percentile(list(h.values()), 100 - drop)
    losses = nll(logits, Y)
    kept = [losses[x] for x in pixels(Y) if h[x] <= limit]
    expected = len(h) / len(kept) * np.mean(kept)
    found = Y.restrict(entropy_masks(Q, 100 - drop, 100, Y.valid).reliable)
    assert len(pixels(found)) == len(kept) < len(h)
    assert float(reliable_cross_entropy(logits, found, Y.valid)) == pytest.approx(expected, rel=1e-5)
    assert [annealed(20.0, t, 10) for t in (0, 5, 10)] == [20.0, 10.0, 0.0]


def test_negatives_of_each_class():
    """Labelled: of another class, rank below 3. Unlabelled: high entropy, rank from 3. Never by its own label."""
    q, low, high, b = as64(Q), 3, 5, 2
    unsure = draw(4, 5, 5, seed=5) > 0
    found = negative_pixels(Q, Y, unsure, b, (low, high))
    rank = ranks(Q)
    for n in range(4):
        for i in range(5):
            for j in range(5):
                order = np.argsort(-q[n, :, i, j], kind="stable").tolist()
                for c in range(C):
                    r = order.index(c)
                    assert int(rank[n, c, i, j]) == r
                    if n < b:
                        expected = bool(Y.valid[n, i, j]) and int(Y.ids[n, i, j]) != c and r < low
                    else:
                        expected = bool(unsure[n, i, j]) and low <= r < high
                    assert bool(found[n, c, i, j]) == expected

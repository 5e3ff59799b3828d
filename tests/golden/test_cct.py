"""CCT (Ouali et al., CVPR 2020): auxiliary decoders agree with the main one."""

from __future__ import annotations

import numpy as np
import pytest
from tests.golden.formulas import as64, draw, labels, pixels, softmax

from maskwright.methods.semi.cct import annealed, consistency


def test_consistency():
    """The mean over decoders, valid pixels and classes of (softmax g_k(z_k) - softmax g(z))^2."""
    y, q = labels(2, 3), draw(2, 3, 5, 5).softmax(1)
    auxiliary = [draw(2, 3, 5, 5, seed=k) for k in (1, 2, 3)]
    main = as64(q)
    terms = []
    for logits in auxiliary:
        p = softmax(as64(logits))
        terms.append(np.mean([(p[b, c, i, j] - main[b, c, i, j]) ** 2 for b, i, j in pixels(y) for c in range(3)]))
    assert float(consistency(auxiliary, q, y.valid)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_annealed_cross_entropy_counts_what_is_not_known_yet():
    y, logits = labels(2, 3), draw(2, 3, 5, 5, seed=4)
    p = softmax(as64(logits))
    known = {x for x in pixels(y) if p[x[0], int(y.ids[x]), x[1], x[2]] >= 0.4}
    assert set(pixels(annealed(logits, y, 0.4))) == set(pixels(y)) - known and known

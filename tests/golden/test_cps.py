"""CPS (Chen et al., CVPR 2021): two networks label for each other."""

from __future__ import annotations

import numpy as np
import pytest
from tests.golden.formulas import draw, labels, nll

from maskwright.methods.semi.cps import agreement, cross_pseudo_supervision


def test_cross_pseudo_supervision():
    f1, f2, k1, k2 = draw(2, 4, 5, 5, seed=1), draw(2, 4, 5, 5, seed=2), labels(2, 4, seed=3), labels(2, 4, seed=4)
    expected = np.mean(list(nll(f1, k2).values())) + np.mean(list(nll(f2, k1).values()))
    assert float(cross_pseudo_supervision(f1, f2, k1, k2)) == pytest.approx(expected, rel=1e-5)
    both = (k1.valid & k2.valid).nonzero().tolist()
    same = np.mean([int(k1.ids[tuple(x)]) == int(k2.ids[tuple(x)]) for x in both])
    assert float(agreement(k1, k2)) == pytest.approx(same)

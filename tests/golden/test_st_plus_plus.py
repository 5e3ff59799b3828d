"""ST++ (Yang et al., CVPR 2022): photographs are ranked by how stable their pseudo-labels were."""

from __future__ import annotations

import numpy as np
import pytest

from maskwright.methods.semi.st_plus_plus import snapshot_steps, split_by_reliability, stability


def test_score_is_the_mean_iou_of_earlier_networks_with_the_last():
    rng = np.random.default_rng(0)
    last = rng.integers(0, 4, (8, 9)).astype(np.uint8)
    scores = {}
    for name, noise in (("steady", 0.1), ("shaky", 0.7)):
        earlier = [np.where(rng.random(last.shape) < noise, rng.integers(0, 4, last.shape), last) for _ in range(2)]
        expected = []
        for x in earlier:
            ious = []
            for c in range(6):  # classes 4 and 5 are in neither and do not count
                both, either = ((x == c) & (last == c)).sum(), ((x == c) | (last == c)).sum()
                if either:
                    ious.append(both / either)
            expected.append(np.mean(ious))
        found = [stability(x.astype(np.uint8), last, 6) for x in earlier]
        assert found == pytest.approx(expected)
        scores[name] = float(np.mean(found))
    assert split_by_reliability(scores, 0.5) == (["steady"], ["shaky"])
    assert snapshot_steps(80) == [27, 54, 80]

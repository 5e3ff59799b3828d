"""Cross-entropy, OHEM (Shrivastava et al.), Dice (Milletari et al.), Lovasz-Softmax (Berman et al., CVPR 2018)."""

from __future__ import annotations

import numpy as np
import pytest
from tests.golden.formulas import as64, draw, labels, nll, pixels, softmax

from maskwright.ops.losses.seg_losses import cross_entropy, dice_loss, lovasz_softmax, ohem_cross_entropy

C = 4
LOGITS, Y = draw(2, C, 5, 5) * 2, labels(2, C)
TARGET = Y.target(255)


def test_cross_entropy_with_ignore():
    found = list(nll(LOGITS, Y).values())
    assert float(cross_entropy(LOGITS, TARGET)) == pytest.approx(np.mean(found), rel=1e-5)
    assert float(cross_entropy(LOGITS, TARGET, denominator="all")) == pytest.approx(np.sum(found) / 50, rel=1e-5)


@pytest.mark.parametrize(("threshold", "kept"), [(0.3, 4), (0.05, 15), (0.9, 0)])
def test_ohem(threshold, kept):
    """Pixels whose class has at most the greater of the threshold and the kept-th lowest probability."""
    losses = sorted(nll(LOGITS, Y).values(), reverse=True)
    likely = np.exp(-np.array(losses))
    limit = max(threshold, likely[kept - 1] if kept else 0.0)
    expected = np.mean([x for x, p in zip(losses, likely) if p <= limit + 1e-9])
    assert float(ohem_cross_entropy(LOGITS, TARGET, threshold, kept)) == pytest.approx(expected, rel=1e-5)


def test_dice():
    p, terms = softmax(as64(LOGITS)), []
    for c in range(C):
        own = [x for x in pixels(Y) if int(Y.ids[x]) == c]
        both = sum(p[b, c, i, j] for b, i, j in pixels(Y)) + len(own)
        if own:
            terms.append(1 - 2 * sum(p[b, c, i, j] for b, i, j in own) / both)
    assert float(dice_loss(LOGITS, TARGET)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_lovasz():
    """Each class: errors in falling order, each times the step that the Jaccard loss takes when its pixel is added."""
    p, terms = softmax(as64(LOGITS)), []
    for c in range(C):
        rows = [(int(Y.ids[x]) == c, p[x[0], c, x[1], x[2]]) for x in pixels(Y)]
        if not any(own for own, _ in rows):
            continue
        errors = sorted(((1 - q if own else q, own) for own, q in rows), key=lambda t: -t[0])
        truth, loss, before = sum(own for own, _ in rows), 0.0, 0.0
        missed = added = 0
        for error, own in errors:
            missed, added = missed + own, added + (not own)
            jaccard = 1 - (truth - missed) / (truth + added)
            loss, before = loss + error * (jaccard - before), jaccard
        terms.append(loss)
    assert float(lovasz_softmax(LOGITS, TARGET)) == pytest.approx(np.mean(terms), rel=1e-4)

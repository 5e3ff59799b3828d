"""How much one labelling tells of another, by counts: purity, normalised mutual information, and pairs.

Legend: K labels, C classes, counts (K, C): pixels of label k and class c.

Sources: Manning, Raghavan & Schuetze, Introduction to Information Retrieval, 2008, chapter 16. Used to judge labels
before anything is trained on them (Zhang et al., Looking Beyond Single Images, NeurIPS 2021, asks for such a measure).
"""

from __future__ import annotations

from typing import Any

import numpy as np


def label_counts(labels: Any, classes: Any) -> np.ndarray:
    """int64 (K, C) of two labellings of the same pixels, numbers of any kind from 0 on.

    Raises:
        ValueError: of other shapes, or below 0.
    """
    a, b = np.asarray(labels).ravel().astype(np.int64), np.asarray(classes).ravel().astype(np.int64)
    if a.shape != b.shape or (len(a) and min(a.min(), b.min()) < 0):
        raise ValueError(f"{len(a)} labels and {len(b)} classes, expected as many, from 0 on")
    k, c = (int(x.max()) + 1 if len(x) else 0 for x in (a, b))
    return np.bincount(a * c + b, minlength=k * c).reshape(k, c)


def label_quality(counts: np.ndarray) -> dict[str, float]:
    """How well labels tell classes.

    Args:
        counts: (K, C), at least 0.

    Returns:
        `purity`: share of the pixels that are of their label's most frequent class; `nmi`: mutual information over the
        mean of both entropies, 1 where both are constant; `pair_precision`: chance that two pixels of one label are
        of one class; `pair_recall`: that two of one class have one label; `pair_f1`, their harmonic mean. 0 where
        there is no such pair, all in [0, 1].

    Raises:
        ValueError: no pixel.
    """
    n = np.asarray(counts, np.float64)
    total = n.sum()
    if not total > 0:
        raise ValueError("no pixel to judge labels by")
    joint = n / total
    entropies = [_entropy(joint.sum(axis)) for axis in (1, 0)]
    information = sum(entropies) - _entropy(joint)
    mean = sum(entropies) / 2
    both, of_label, of_class = _pairs(n), _pairs(n.sum(1)), _pairs(n.sum(0))
    precision, recall = both / of_label if of_label else 0.0, both / of_class if of_class else 0.0
    return {
        "purity": float(n.max(1).sum() / total),
        "nmi": float(np.clip(information / mean, 0, 1)) if mean > 0 else 1.0,
        "pair_precision": precision,
        "pair_recall": recall,
        "pair_f1": 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0,
    }


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _pairs(n: np.ndarray) -> float:
    return float((n * (n - 1) / 2).sum())

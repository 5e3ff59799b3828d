"""Inputs from seeds and the plainest formulas, in float64 with loops, that the golden tests of all papers share.

Each test here holds a paper's loss to a number that a formula written in the test gives on the same tensors, so that
nothing that is rearranged may change a loss. Where a test beside a module has such a formula already, and more inputs,
it stays there: `test_crf.py` (mean field over all pairs), `test_seg_losses.py`, `test_contrast.py`,
`test_walk.py`, `test_cam.py`, `test_instance.py` (SimSiam, MoCo) and the tests of each method's step.

Legend: B batch, C classes, S crop side, D width, P pixels.
"""

from __future__ import annotations

import numpy as np
import torch

from maskwright.data.training.labels import LabelMap

SIDE = 5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers, float32."""
    return torch.randn(*shape, generator=generator(seed))


def as64(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def softmax(x: np.ndarray, axis: int = 1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def unit(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return x / np.maximum(np.sqrt((x**2).sum(axis, keepdims=True)), 1e-8)


def labels(b: int, classes: int, seed: int = 0, side: int = SIDE) -> LabelMap:
    """Random ids with confidences in [0, 1], a fifth of them not valid."""
    g = generator(seed + 1000)
    ids = torch.randint(0, classes, (b, side, side), generator=g)
    valid = torch.rand(b, side, side, generator=g) < 0.8
    return LabelMap(torch.where(valid, ids, 0), torch.rand(b, side, side, generator=g), valid)


def pixels(y: LabelMap) -> list[tuple[int, int, int]]:
    """(image, row, column) of all valid pixels."""
    return [tuple(p) for p in y.valid.nonzero().tolist()]


def nll(logits: torch.Tensor, y: LabelMap) -> dict[tuple[int, int, int], float]:
    """-log softmax at the label of each valid pixel."""
    p = softmax(as64(logits))
    return {(b, i, j): -float(np.log(p[b, int(y.ids[b, i, j]), i, j])) for b, i, j in pixels(y)}

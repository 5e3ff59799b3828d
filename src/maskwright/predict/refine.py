"""Refinement: class probabilities moved to the edges that the photograph shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskwright.errors import MaskwrightError, unknown

REFINEMENTS = ("none", "crf", "guided")
"""none; crf: fully connected CRF (Kraehenbuehl & Koltun, NeurIPS 2011); guided: colour guided filter (He et al., 2013),
several times as fast."""


AUTO = "auto"
"""What the model's method does: a CRF after STEGO, nothing after k-means."""


def check_refinement(how: str) -> str:
    """The name itself. Raises `MaskwrightError` with the nearest match if there is no such refinement."""
    if how not in REFINEMENTS:
        raise unknown("refinement", str(how), REFINEMENTS)
    return how


def refine(probs: Any, image: np.ndarray, how: str = "none", **settings: Any) -> np.ndarray:
    """Refines class probabilities with the photograph they belong to.

    Args:
        probs: float (C, H, W), array or tensor, in [0, 1], summing to 1 over C.
        image: uint8 (H, W, 3).
        how: one of `REFINEMENTS`.
        settings: options of `ops.refinement.crf.dense_crf` or `ops.refinement.guided.guided_filter`.

    Returns:
        float32 (C, H, W), summing to 1 over C. `none` gives what it got.

    Raises:
        MaskwrightError: an unknown refinement or option, or sizes that differ.
    """
    check_refinement(how)
    values = np.ascontiguousarray(probs.cpu() if hasattr(probs, "cpu") else probs, dtype=np.float32)
    if values.ndim != 3 or values.shape[1:] != image.shape[:2]:
        raise MaskwrightError(
            f"probabilities of shape {values.shape} for an image of {image.shape[:2]}", "(C, H, W) of the same size"
        )
    if how == "none" or len(values) == 1:
        return values
    try:
        return _crf(values, image, settings) if how == "crf" else _guided(values, image, settings)
    except (TypeError, ValueError) as error:
        raise MaskwrightError(f"refinement {how} cannot be done: {error}", f"options of {how} as documented") from error


def _crf(probs: np.ndarray, image: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    from maskwright.ops.refinement.crf import dense_crf  # numba takes a second to import

    return np.asarray(dense_crf(probs, np.ascontiguousarray(image), **settings), dtype=np.float32)


def _guided(probs: np.ndarray, image: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    from maskwright.ops.refinement.guided import guided_filter

    filtered = np.asarray(guided_filter(probs, np.ascontiguousarray(image), **settings), dtype=np.float32)
    # The filter is a local linear fit, so it may leave [0, 1] by a little next to strong edges.
    filtered = np.clip(filtered, 1e-6, None)
    return filtered / filtered.sum(0, keepdims=True)

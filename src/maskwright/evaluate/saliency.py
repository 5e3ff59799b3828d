"""Measures of saliency maps: F-measure, mean absolute error, S-measure and E-measure, averaged over images.

A map holds a saliency in [0, 1] for each pixel, the truth is a binary mask. All curves come from two
histograms of 256 bins an image, because F and E at a threshold depend only on four counts of pixels.

Legend: (H, W) image size; 256 thresholds 0/255 to 255/255, a pixel is salient at t when its saliency is at
least t. `BinaryForeground` judges masks, in the protocol `saliency`, `EitherPolarity`
regions of which either may be the foreground; `SaliencyMeasures` judges graded maps, as those of
UDA-SOD (AAAI 2022), which is to come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskwright.errors import MaskwrightError

BETA_SQUARED = 0.3
_EPS = float(np.finfo(np.float64).eps)


def f_from_counts(both: Any, predicted: Any, true: Any, beta_squared: float = BETA_SQUARED) -> Any:
    """F-measure (1 + b) P R / (b P + R) from pixel counts; 0 where nothing is right.

    Args:
        both: salient in prediction and truth; a number or an array.
        predicted, true: salient in the prediction, in the truth; of the same shape.
        beta_squared: b; 0.3 weights precision above recall (Achanta et al., CVPR 2009).
    """
    both, predicted, true = (np.asarray(x, dtype=np.float64) for x in (both, predicted, true))
    weight = beta_squared * true + predicted  # (1 + b) P R / (b P + R) with P = both / predicted, R = both / true
    f = np.divide((1 + beta_squared) * both, weight, out=np.zeros(np.broadcast(both, weight).shape), where=weight > 0)
    return float(f) if f.ndim == 0 else f


def normalise_map(saliency: Any) -> np.ndarray:
    """The map stretched to [0, 1], float64 (H, W); a constant map is only clipped."""
    s = np.asarray(saliency, dtype=np.float64)
    low, high = float(s.min()), float(s.max())
    return (s - low) / (high - low) if high > low else s.clip(0, 1)


def s_measure(saliency: Any, truth: Any, alpha: float = 0.5) -> float:
    """Structure measure (Fan et al., ICCV 2017): alpha times the object part plus the rest times the region
    part.

    Args:
        saliency: (H, W) in [0, 1].
        truth: bool (H, W).
        alpha: weight of the object part.
    """
    s, g = np.asarray(saliency, dtype=np.float64), np.asarray(truth, dtype=bool)
    share = float(g.mean())
    if share == 0:
        return 1 - float(s.mean())
    if share == 1:
        return float(s.mean())
    objects = share * _object_similarity(s[g]) + (1 - share) * _object_similarity(1 - s[~g])
    rows, columns = np.nonzero(g)
    # The quadrants meet after the pixel nearest to the centroid.
    y, x = int(np.round(rows.mean())) + 1, int(np.round(columns.mean())) + 1
    regions = 0.0
    for part in (np.s_[:y, :x], np.s_[:y, x:], np.s_[y:, :x], np.s_[y:, x:]):
        if g[part].size:
            regions += g[part].size / g.size * _ssim(s[part], g[part].astype(np.float64))
    return max(0.0, alpha * objects + (1 - alpha) * regions)


def _object_similarity(x: np.ndarray) -> float:
    mean = float(x.mean())
    spread = float(x.std(ddof=1)) if x.size > 1 else 0.0
    return 2 * mean / (mean * mean + 1 + spread + _EPS)


def _ssim(s: np.ndarray, g: np.ndarray) -> float:
    ms, mg, n = float(s.mean()), float(g.mean()), max(s.size - 1, 1)
    vs, vg, cov = ((s - ms) ** 2).sum() / n, ((g - mg) ** 2).sum() / n, ((s - ms) * (g - mg)).sum() / n
    above, below = 4 * ms * mg * cov, (ms * ms + mg * mg) * (vs + vg)
    if above != 0:
        return float(above / (below + _EPS))
    return 1.0 if below == 0 else 0.0


def e_from_counts(both: Any, predicted: Any, true: Any, pixels: int) -> np.ndarray:
    """Enhanced-alignment measure (Fan et al., IJCAI 2018) of binary maps from pixel counts.

    Args:
        both, predicted: counts of any shape, one entry for each binary prediction.
        true: salient pixels of the truth, one number.
        pixels: H W.

    Returns:
        float64 of the shape of `both`.
    """
    both, predicted = np.asarray(both, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if true == 0:
        total = pixels - predicted
    elif true == pixels:
        total = predicted.copy()
    else:
        mp, mt = predicted / pixels, true / pixels
        total = np.zeros(both.shape)
        for p, t, n in (
            (1, 1, both),
            (1, 0, predicted - both),
            (0, 1, true - both),
            (0, 0, pixels - predicted - true + both),
        ):
            a, b = p - mp, t - mt
            aligned = 2 * a * b / (a * a + b * b + _EPS)
            total = total + n * (aligned + 1) ** 2 / 4
    return total / max(pixels - 1, 1)


@dataclass
class SaliencyMeasures:
    """Accumulates the measures of images.

    Args:
        beta_squared: of the F-measure.
        threshold: the fixed threshold in [0, 1] of `f_fixed`.
        normalise: stretches each map to [0, 1] first, as the public evaluation tools do.
    """

    beta_squared: float = BETA_SQUARED
    threshold: float = 0.5
    normalise: bool = True
    _curves: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list, repr=False)
    _numbers: list[tuple[float, ...]] = field(default_factory=list, repr=False)

    def update(self, saliency: Any, truth: Any) -> None:
        """Adds one image.

        Args:
            saliency: (H, W); uint8 means 0..255, floats must lie in [0, 1] unless `normalise`.
            truth: (H, W); bool, or a grey mask that is salient above 128 when it has values above 1.

        Raises:
            MaskwrightError: shapes differ, or the map is empty, not finite or out of range.
        """
        s, g = np.asarray(saliency), np.asarray(truth)
        if s.shape != g.shape or s.ndim != 2 or s.size == 0:
            raise MaskwrightError(
                f"a saliency map {s.shape} for a truth {g.shape}", "the same (H, W)", "resize the map"
            )
        g = g > 128 if g.dtype != bool and g.max() > 1 else g.astype(bool)
        s = s.astype(np.float64) / (255 if s.dtype == np.uint8 else 1)
        if not np.isfinite(s).all():
            raise MaskwrightError("a saliency map with NaN or infinity", "finite numbers", "check the network's output")
        if self.normalise:
            s = normalise_map(s)
        elif s.min() < 0 or s.max() > 1:
            raise MaskwrightError(f"saliency from {s.min():.3g} to {s.max():.3g}", "0 to 1", "use normalise=True")
        levels = np.floor(s * 255 + 1e-9).astype(np.int64)
        # at[t] = pixels whose level is at least t
        inside = np.bincount(levels[g], minlength=256)[::-1].cumsum()[::-1]
        outside = np.bincount(levels[~g], minlength=256)[::-1].cumsum()[::-1]
        predicted, true = inside + outside, int(g.sum())
        self._curves.append(
            (
                f_from_counts(inside, predicted, np.full(256, true), self.beta_squared),
                e_from_counts(inside, predicted, true, g.size),
            )
        )
        adaptive = s >= min(2 * s.mean(), 1.0)
        fixed = s >= self.threshold
        f = [f_from_counts((m & g).sum(), m.sum(), true, self.beta_squared) for m in (adaptive, fixed)]
        union = (fixed | g).sum()
        self._numbers.append(
            (
                float(np.abs(s - g).mean()),
                s_measure(s, g),
                f[0],
                f[1],
                float(e_from_counts((adaptive & g).sum(), adaptive.sum(), true, g.size)),
                float((fixed & g).sum() / union) if union else 1.0,
            )
        )

    def compute(self) -> dict[str, float]:
        """Means over the images.

        Returns:
            `mae`, `s_measure`, `f_adaptive` (threshold twice the map's mean), `f_fixed` and `iou_fixed` (at
            `threshold`), `f_mean` and `e_mean` (over the 256 thresholds), `oracle_f_max` and `oracle_e_max`
            (of the mean
            curve: the threshold is chosen on the truth), `e_adaptive`; NaN without images.
        """
        if not self._numbers:
            f = e = np.full(256, math.nan)
            numbers = np.full(6, math.nan)
        else:
            f, e = (np.mean([c[i] for c in self._curves], axis=0) for i in (0, 1))
            numbers = np.mean(self._numbers, axis=0)
        names = ("mae", "s_measure", "f_adaptive", "f_fixed", "e_adaptive", "iou_fixed")
        return dict(zip(names, map(float, numbers))) | {
            "f_mean": float(f.mean()),
            "oracle_f_max": float(f.max()),
            "e_mean": float(e.mean()),
            "oracle_e_max": float(e.max()),
        }


@dataclass
class BinaryForeground:
    """F-measure, IoU and MAE of binary foreground masks, over images and over the pixels of all images."""

    beta_squared: float = BETA_SQUARED
    _rows: list[tuple[int, int, int, int]] = field(default_factory=list, repr=False)

    def update(self, pred: Any, true: Any, valid: Any = None) -> None:
        """Adds one image: bool arrays of one shape; pixels outside `valid` are dropped first."""
        p, t = np.asarray(pred, dtype=bool), np.asarray(true, dtype=bool)
        if p.shape != t.shape:
            raise MaskwrightError(f"a prediction {p.shape} for a truth {t.shape}", "the same shape")
        v = np.ones(t.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
        p, t = p & v, t & v
        self._rows.append((int((p & t).sum()), int(p.sum()), int(t.sum()), int(v.sum())))

    def compute(self) -> dict[str, float]:
        """`f_measure`, `iou`, `mae` as means over images, `f_measure_pixels`, `iou_pixels` from summed
        counts.

        An image without foreground in truth and prediction has IoU 1 and F 0, the value of the formula.
        """
        if not self._rows:
            return dict.fromkeys(("f_measure", "iou", "mae", "f_measure_pixels", "iou_pixels"), math.nan)
        both, p, t, n = np.array(self._rows, dtype=np.float64).T
        union = p + t - both
        all_both, all_p, all_t = both.sum(), p.sum(), t.sum()
        whole = all_p + all_t - all_both
        return {
            "f_measure": float(np.mean(f_from_counts(both, p, t, self.beta_squared))),
            "iou": float(np.divide(both, union, out=np.ones_like(both), where=union > 0).mean()),
            "mae": float(np.divide(union - both, n, out=np.zeros_like(n), where=n > 0).mean()),
            "f_measure_pixels": float(f_from_counts(all_both, all_p, all_t, self.beta_squared)),
            "iou_pixels": float(all_both / whole) if whole else 1.0,
        }


@dataclass
class EitherPolarity:
    """Accuracy and IoU of two regions of which either may be the foreground, means over images.

    ReDO (Chen et al., NeurIPS 2019) takes for each image, and for each figure on its own, the better of both
    polarities, which is optimistic; beside it stands one polarity for all images, the one of the larger mean IoU.
    """

    _rows: list[tuple[float, float, float, float]] = field(default_factory=list, repr=False)

    def update(self, pred: Any, true: Any, valid: Any = None) -> None:
        """Adds one image: bool arrays of one shape; pixels outside `valid` are dropped first."""
        p, t = np.asarray(pred, dtype=bool), np.asarray(true, dtype=bool)
        v = np.ones(t.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
        p, t = p[v], t[v]
        row: list[float] = []
        for q in (p, ~p):
            union = int((q | t).sum())
            row += [float((q == t).mean()) if t.size else 1.0, float((q & t).sum() / union) if union else 1.0]
        self._rows.append((row[0], row[1], row[2], row[3]))

    @property
    def turned(self) -> bool:
        """Whether one polarity for all images is the reverse one."""
        _, iou, _, reverse = np.mean(self._rows, axis=0)
        return bool(reverse > iou)

    def compute(self) -> dict[str, float]:
        """`accuracy_either` and `iou_either`, the better polarity of each image; `accuracy_one` and `iou_one`, one
        polarity for all. An image without foreground in truth and region has IoU 1 (the original: not a number)."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 2, 2)
        either = rows.max(1).mean(0)
        one = rows[:, int(self.turned)].mean(0)
        names = ("accuracy_either", "iou_either", "accuracy_one", "iou_one")
        return dict(zip(names, map(float, (*either, *one))))

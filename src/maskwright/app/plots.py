"""Curves and bars as inline SVG. Colours come from the page's CSS, so they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 26
MAX_POINTS = 240
"""Points of a curve: more than a phone has pixels for would only make the page heavy."""


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high], about `count` of them."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return []
    span = high - low
    # Below this the numbers next to each other cannot be told apart in floating point.
    if span <= max(abs(low), abs(high)) * 1e-9:
        return [low]
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(n * step, 12) + 0.0 for n in range(first, last + 1)]


def format_number(value: float) -> str:
    """A number as a reader wants it: 4 significant digits, thousands with k and M."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-4:
        return f"{value:.2e}"
    for limit, letter in ((1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e6 if letter == 'M' else 1e3):.4g}{letter}"
    return f"{value:.4g}"


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Exponential moving average of about `window` values, corrected at the start (Kingma & Ba, 2015, section 3)."""
    if window <= 1:
        return values.astype(np.float64)
    decay = 1 - 2 / (window + 1)
    out = np.empty(len(values))
    total = weight = 0.0
    for i, value in enumerate(values):
        total = decay * total + (1 - decay) * float(value)
        weight = decay * weight + (1 - decay)
        out[i] = total / weight
    return out


def thin(x: np.ndarray, y: np.ndarray, points: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """A curve with at most about `points` points that keeps the lowest and highest value of each stretch."""
    if len(x) <= points:
        return x, y
    kept = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), points // 2):
        kept |= {int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])}
    order = np.array(sorted(kept))
    return x[order], y[order]


class _Axes:
    """The axes of one plot: where values lie on it, its ticks and its lines.

    Args:
        x: rising.
        y: of all lines.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.low, self.high = _limits(y)
        self.x0 = float(x.min())
        self.x1 = float(x.max()) if x.max() > self.x0 else self.x0 + 1

    def px(self, v: np.ndarray | float) -> np.ndarray | float:
        return LEFT + (v - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def py(self, v: np.ndarray | float) -> np.ndarray | float:
        share = (np.clip(v, self.low, self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def drawn(self) -> list[str]:
        """Grid, ticks and the axis below."""
        parts = []
        for tick in nice_ticks(self.low, self.high):
            y = f"{self.py(tick):.1f}"
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            y = f"{self.py(tick) + 3.5:.1f}"
            parts.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">{format_number(tick)}</text>')
        ticks = [t for t in nice_ticks(self.x0, self.x1) if LEFT <= float(self.px(t)) <= WIDTH - RIGHT]
        for n, tick in enumerate(ticks):
            anchor = "end" if n == len(ticks) - 1 and float(self.px(tick)) > WIDTH - 40 else "middle"
            x = f"{self.px(tick):.1f}"
            parts.append(f'<text x="{x}" y="{HEIGHT - 9}" text-anchor="{anchor}">{format_number(tick)}</text>')
        base = HEIGHT - BOTTOM
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
        return parts

    def line(self, kind: str, x: np.ndarray, y: np.ndarray) -> str:
        """One line of a CSS class, no heavier than a screen needs."""
        tx, ty = thin(x, y)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(np.atleast_1d(self.px(tx)), np.atleast_1d(self.py(ty))))
        return f'<polyline class="{kind}" points="{points}"/>'


LINE_COLORS = 8
"""Colours of lines that the page's style knows; those behind them are dashed."""


def line_class(number: int) -> str:
    """CSS class of the line (and the key) of the setting with this number."""
    return f"c{number % LINE_COLORS}" + (" again" if number >= LINE_COLORS else "")


def curves(lines: Sequence[tuple[int, Sequence[Sequence[float]]]], label: str, x_label: str = "step") -> str:
    """Curves of several settings over the same axes: thin one line a run, thick their smoothed mean.

    Args:
        lines: (number of the setting, which is its colour; the runs' steps and values in turn: x, y, x, y, ...).
            Values that are not finite are left out.
        label: what they show, for those who cannot see it.
        x_label: what x is.

    Returns:
        An `<svg>` element, or an empty string without finite values.
    """
    drawn: list[tuple[int, list[tuple[np.ndarray, np.ndarray]]]] = []
    for number, flat in lines:
        runs = []
        for steps, values in zip(flat[::2], flat[1::2]):
            x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
            good = np.isfinite(x) & np.isfinite(y)
            if good.any():
                runs.append((x[good], y[good]))
        if runs:
            drawn.append((number, runs))
    every = [run for _, runs in drawn for run in runs]
    if not every:
        return ""
    # Each run's own limits, else one with a wild start would flatten those of the others.
    ends = [limit for _, y in every for limit in _limits(y)]
    axes = _Axes(np.concatenate([x for x, _ in every]), np.asarray(ends))
    parts = axes.drawn()
    for number, runs in drawn:
        if len(runs) > 1:
            parts += [axes.line(f"each {line_class(number)}", x, y) for x, y in runs]
    for number, runs in drawn:
        x, y = mean_curve(runs)
        parts.append(axes.line(f"mean {line_class(number)}", x, smooth(y, max(1, len(y) // 20))))
    told = f"{label} over {x_label} {format_number(axes.x0)} to {format_number(axes.x1)}, {len(drawn)} settings"
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">'
        f"<title>{escape(told)}</title>{''.join(parts)}</svg>"
    )


def mean_curve(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of several runs' values at the steps that all of them have; that of the first where they share none."""
    shared = runs[0][0]
    for x, _ in runs[1:]:
        shared = np.intersect1d(shared, x)
    if not len(shared):
        return runs[0]
    return shared, np.mean([y[np.searchsorted(x, shared)] for x, y in runs], axis=0)


def curve(
    steps: Sequence[float],
    values: Sequence[float],
    label: str,
    x_label: str = "step",
    *,
    smoothed: bool = True,
    mark: float | None = None,
) -> str:
    """One curve, raw and smoothed, with axes.

    Args:
        steps: x of each value, rising.
        values: y; those that are not finite are left out and told of.
        label: what it shows, for those who cannot see it.
        x_label: what x is.
        smoothed: whether the thick line is a moving average, or the values themselves.
        mark: an x at which a line is drawn.

    Returns:
        An `<svg>` element, or an empty string without finite values.
    """
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    lost = len(good) - int(good.sum())
    x, y = x[good], y[good]
    if not len(x):
        return ""
    soft = smooth(y, max(1, len(y) // 20) if smoothed else 1)
    axes = _Axes(x, y)
    x0 = axes.x0
    parts = axes.drawn()
    if mark is not None and x0 <= mark <= axes.x1:
        at = axes.px(mark)
        base = HEIGHT - BOTTOM
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{base}"/>')
    parts += [axes.line(name, x, line) for name, line in (("raw", y), ("smooth", soft))]
    told = (
        f"{label}: from {format_number(float(soft[0]))} to {format_number(float(soft[-1]))} over {x_label} "
        f"{format_number(x0)} to {format_number(float(x[-1]))}"
    )
    if mark is not None:
        told += f", chosen at {format_number(mark)}"
    if lost:
        told += f"; {lost} values are not finite and left out"
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">'
        f"<title>{escape(told)}</title>{''.join(parts)}</svg>"
    )


def _limits(y: np.ndarray) -> tuple[float, float]:
    """Lower and upper end of the y axis: all values, but a few wild ones at the start may not flatten the rest."""
    low, high = float(y.min()), float(y.max())
    if len(y) >= 50:
        inner_low, inner_high = (float(q) for q in np.quantile(y, (0.005, 0.995)))
        reach = max(inner_high - inner_low, 1e-12)
        low, high = max(low, inner_low - reach), min(high, inner_high + reach)
    if high - low <= max(abs(low), abs(high)) * 1e-9:
        pad = abs(high) * 0.05 or 1.0
    else:
        pad = 0.04 * (high - low)
    return low - pad, high + pad


def bar(share: float, color: str, label: str, full: float = 1.0) -> str:
    """One horizontal bar as long as `share` of `full`.

    Args:
        share: in [0, full].
        color: CSS colour of the bar.
        label: for those who cannot see it.
        full: share of a bar of full length.
    """
    known = math.isfinite(share) and full > 0
    length = 100 * min(1.0, max(0.0, share / full)) if known else 0.0
    return (
        f'<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<rect class="track" width="100" height="8"/>'
        f'<rect class="value" width="{length:.2f}" height="8" fill="{escape(color)}"/></svg>'
    )


def spread_bar(values: Sequence[float], kind: str, label: str, full: float = 1.0) -> str:
    """A bar as long as the mean of some values, each of which is a tick on it.

    Args:
        values: finite, in [0, full].
        kind: CSS class of its colour.
        label: for those who cannot see it.
        full: value of a bar of full length.
    """
    places = [100 * min(1.0, max(0.0, v / full)) if full > 0 else 0.0 for v in values]
    mean = sum(places) / max(1, len(places))
    ticks = "".join(f'<rect class="tick" x="{max(0.0, p - 0.35):.2f}" width="0.7" height="8"/>' for p in places)
    return (
        f'<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<rect class="track" width="100" height="8"/><rect class="of {kind}" width="{mean:.2f}" height="8"/>'
        f"{ticks if len(places) > 1 else ''}</svg>"
    )

"""From uint8 (H, W, 3) to the network's input inside an ONNX graph, as `models/preprocess` does it.

The resize is torch's on bytes, to the byte: horizontal before vertical, each pass with weights in whole numbers and
rounded to bytes. A float resize would differ by up to half a grey level, and its ids along edges.

Legend: n pixels of a side, m of the resized side, K weights of a pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskwright.models.preprocess import MAX_ASPECT, STRIP_PIXELS, Preprocess
from maskwright.predict.export.graph import Graph

WEIGHT_BITS = 15
"""torch holds the weights of a byte resize in int16."""
MOST_BITS = 22
"""and shifts them by at most so many bits."""

Sides = tuple[str, str]
"""Names of two scalars, height and width."""


def network_input(g: Graph, image: str, preprocess: Preprocess, multiple: int, fixed: tuple[int, int] | None) -> str:
    """Appends what brings an image to the network's input.

    Args:
        g: the graph.
        image: uint8 (H, W, 3).
        preprocess: of the segmenter.
        multiple: both sides of the input become multiples of it.
        fixed: (h, w) of every input, or None where the image's size decides.

    Returns:
        float32 (1, 3, h, w).
    """
    source = g.side(image, 0), g.side(image, 1)
    if fixed is not None:
        target = g.whole(fixed[0]), g.whole(fixed[1])
    else:
        real = g.to(source[0], np.float64), g.to(source[1], np.float64)
        sides = input_size(g, target_size(g, real, preprocess), multiple)
        target = g.to(sides[0], np.int64), g.to(sides[1], np.int64)
    x = g.to(image, np.int32)
    x = g("Transpose", x, perm=[1, 0, 2])  # (W, H, 3)
    x = resize_first(g, x, source[1], target[1])
    x = g("Transpose", x, perm=[1, 0, 2])  # (H, w, 3)
    x = resize_first(g, x, source[0], target[0])  # (h, w, 3)
    x = g.to(g("Transpose", x, perm=[2, 0, 1]), np.float32)
    mean = np.asarray(preprocess.mean, np.float32) * np.float32(255)
    std = np.asarray(preprocess.std, np.float32) * np.float32(255)
    x = g("Sub", x, g.constant(mean[:, None, None], np.float32))
    x = g("Div", x, g.constant(std[:, None, None], np.float32))
    return g("Unsqueeze", x, g.whole([0]))


# ---------------------------------------------------------------------- sizes


def target_size(g: Graph, size: Sides, preprocess: Preprocess) -> Sides:
    """`Preprocess.target_size` where the image's size decides; float64 scalars in and out."""
    height, width = size
    short, long = g("Min", height, width), g("Max", height, width)
    scale = g.real(1.0)
    if preprocess.short_side is not None:
        side = g.real(preprocess.short_side)
        area = g("Sqrt", g("Div", g.real(MAX_ASPECT), g("Mul", height, width)))
        scale = g("Min", g("Div", side, short), g("Mul", area, side))
    if preprocess.long_side is not None:
        scale = g("Min", scale, g("Div", g.real(preprocess.long_side), long))
    wanted = g("Mul", height, scale), g("Mul", width, scale)
    return _rounded_unless_strip(g, wanted, preprocess.multiple_of, size)


def input_size(g: Graph, target: Sides, multiple: int) -> Sides:
    """What `predict.tiles` makes of a target size for a network that wants multiples; float64 scalars."""
    return _rounded_unless_strip(g, target, multiple, target)


def _rounded_unless_strip(g: Graph, wanted: Sides, multiple: int, judged: Sides) -> Sides:
    """Sides rounded to multiples; where the aspect of `judged` exceeds `MAX_ASPECT`, those of `strip_size`."""
    m = g.real(multiple)
    rounded = _whole(g, wanted[0], m), _whole(g, wanted[1], m)
    least = g("Min", *judged)
    plain = g("LessOrEqual", g("Max", *judged), g("Mul", g.real(MAX_ASPECT), least))
    short, long = g("Min", *rounded), g("Max", *rounded)
    area = g("Mul", *wanted)
    narrow = g("And", g("Equal", short, m), g("Less", g("Min", *wanted), short))
    area = g("Where", narrow, g("Min", area, g.real(STRIP_PIXELS)), area)
    area = g("Max", area, g("Mul", g("Mul", g.real(MAX_ASPECT), short), short))
    long = g("Min", long, _whole(g, g("Div", area, short), m))
    upright = g("LessOrEqual", *rounded)
    strip = g("Where", upright, short, long), g("Where", upright, long, short)
    return g("Where", plain, rounded[0], strip[0]), g("Where", plain, rounded[1], strip[1])


def _whole(g: Graph, length: str, multiple: str) -> str:
    """The nearest positive multiple."""
    count = g("Floor", g("Add", g("Div", length, multiple), g.real(0.5)))
    return g("Mul", g("Max", g.real(1), count), multiple)


# ---------------------------------------------------------------------- bytes


def resize_first(g: Graph, x: str, n: str, m: str) -> str:
    """Bytes held as int32, (n, A, B) to (m, A, B), with antialiasing; n and m are int64 scalars."""
    places, weights, bits = byte_weights(g, n, m)
    taps = g("Gather", x, places, axis=0)  # (m, K, A, B)
    shape = g("Shape", taps)
    flat = g("Reshape", taps, g.whole([0, 0, -1]))  # (m, K, A B)
    y = g("MatMul", g("Unsqueeze", weights, g.whole([1])), flat)  # (m, 1, A B)
    half = g("Gather", g.constant([1 << max(0, b - 1) for b in range(MOST_BITS + 1)], np.int32), bits)
    unit = g("Gather", g.constant([1 << b for b in range(MOST_BITS + 1)], np.int32), bits)
    y = g("Min", g("Div", g("Add", y, half), unit), g.constant(255, np.int32))
    ends = g.list_of(m, g("Gather", shape, g.whole(2)), g("Gather", shape, g.whole(3)))
    return g("Reshape", y, ends)


def byte_weights(g: Graph, n: str, m: str) -> tuple[str, str, str]:
    """Which pixels count for each resized one, and how much, as torch's resize of bytes has it.

    Returns:
        Places int64 (m, K), weights int32 (m, K) that sum to 2^bits, and bits (int64 scalar).
    """
    last = g.to(n, np.float64)
    scale = g("Div", last, g.to(m, np.float64))
    reach = g("Max", g.real(1), scale)
    taps = g("Add", g("Mul", g("Ceil", reach), g.real(2)), g.real(1))  # K
    centre = g("Mul", scale, g("Add", g.range(m, np.float64), g.real(0.5)))  # (m,)
    first = g("Max", g("Floor", g("Add", g("Sub", centre, reach), g.real(0.5))), g.real(0))
    end = g("Min", g("Floor", g("Add", g("Add", centre, reach), g.real(0.5))), last)
    count = g("Min", g("Max", g("Sub", end, first), g.real(0)), taps)
    j = g.range(g.to(taps, np.int64), np.float64)  # (K,)
    place = g("Add", j, g.column(first))  # (m, K)
    away = g("Mul", g("Add", g("Sub", place, g.column(centre)), g.real(0.5)), g("Div", g.real(1), reach))
    weight = g("Max", g("Sub", g.real(1), g("Abs", away)), g.real(0))
    weight = g("Where", g("Less", j, g.column(count)), weight, g.real(0))
    weight = g("Div", weight, g("ReduceSum", weight, g.whole([1]), keepdims=1))
    shifted = g("Mul", g("ReduceMax", weight, keepdims=0), g.real([2.0 ** (b + 1) for b in range(MOST_BITS)]))
    fits = g("Less", g("Floor", g("Add", shifted, g.real(0.5))), g.real(1 << WEIGHT_BITS))
    bits = g("ReduceSum", g.to(fits, np.int64), keepdims=0)
    unit = g("Gather", g.real([2.0**b for b in range(MOST_BITS + 1)]), bits)
    whole = g.to(g("Floor", g("Add", g("Mul", weight, unit), g.real(0.5))), np.int32)
    places = g.to(g("Min", place, g("Sub", last, g.real(1))), np.int64)
    return places, whole, bits


def fixed_size(segmenter: Any, multiple: int) -> tuple[int, int] | None:
    """(h, w) of the network's input where it is one for all images, else None."""
    if segmenter.preprocess.size is None:
        return None
    from maskwright.predict.tiles import make_plan

    return make_plan(segmenter, (64, 64), tile=0, overlap=0.0, scales=(1.0,)).inputs[0]

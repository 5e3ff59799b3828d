"""From logits to ids and confidence at the image's size inside an ONNX graph, as `predict/inference` does it.

Rows are worked off in blocks, so that probabilities of a large image are never all in memory.

Legend: C classes, K what the network tells apart (its clusters, where classes are made of them, else C), (H, W) image
size, (h, w) size of the logits, R rows of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskwright.data.masking.classes import IGNORE8, IGNORE16
from maskwright.predict.export.graph import Graph

BLOCK = 1 << 21
"""Probabilities of a block, about: 8 MiB, which stay near the processor."""


def ids_and_confidence(
    g: Graph, logits: str, image: str, classes: int, outputs: tuple[str, str], slots: Sequence[int] | None = None
) -> None:
    """Appends what makes ids and confidence of logits.

    Args:
        g: the graph.
        logits: float32 (1, K, h, w).
        image: uint8 (H, W, 3), for its size.
        classes: C.
        outputs: names of the ids, (H, W), uint8 up to 255 classes, else uint16, and of the confidence, float32 (H, W).
        slots: the class of each of K clusters, C for void (`NamedClusters.slots`); None: classes are told apart.
    """
    height, width = g.side(image, 0), g.side(image, 1)
    x = g("Squeeze", logits, g.whole([0]))
    columns = g("Transpose", resize_matrix(g, g.range(width, np.float64), g.side(x, 2), width), perm=[1, 0])  # (w, W)
    matrix = resize_matrix(g, g.range(height, np.float64), g.side(x, 1), height)  # (H, h)
    apart = classes if slots is None else len(slots)
    rows = g("Div", g.whole(BLOCK // max(1, apart)), width)
    rows = g("Min", g("Max", rows, g.whole(1)), height)  # R
    blocks = g("Div", g("Sub", g("Add", height, rows), g.whole(1)), rows)
    body = _block(g, x, matrix, columns, rows, height, classes, slots)
    from onnx import helper

    ids, confidence = f"{g.prefix}/ids", f"{g.prefix}/confidence"
    loop = helper.make_node("Loop", [blocks, ""], [ids, confidence], name=f"{g.prefix}/blocks", body=body)
    g.nodes.append(loop)
    size = g.list_of(height, width)
    for name, output in zip((ids, confidence), outputs, strict=True):
        flat = g("Reshape", name, g("Concat", g.whole([-1]), g("Unsqueeze", width, g.whole([0])), axis=0))
        g("Slice", flat, g.whole([0]), g("Slice", size, g.whole([0]), g.whole([1])), g.whole([0]), output=output)


def _block(
    g: Graph, x: str, matrix: str, columns: str, rows: str, height: str, classes: int, slots: Sequence[int] | None
) -> Any:
    """The loop's body: from its number to ids and confidence (R, W); rows past the last repeat it."""
    from onnx import TensorProto, helper

    b = Graph(f"{g.prefix}/block")
    number, going = f"{b.prefix}/number", f"{b.prefix}/going"
    place = b("Add", b("Mul", number, rows), b("Range", b.whole(0), rows, b.whole(1)))
    place = b("Min", place, b("Sub", height, b.whole(1)))
    part = b("Gather", matrix, place, axis=0)  # (R, h)
    y = b("MatMul", b("MatMul", part, x), columns)  # (K, R, w) then (K, R, W)
    best = b("ReduceMax", y, b.whole([0]), keepdims=0)
    powers = b("Exp", b("Sub", y, best))
    total = b("ReduceSum", powers, b.whole([0]), keepdims=0)
    winner = b("ArgMax", y, axis=0, keepdims=0)
    if slots is None:
        confidence = b("Reciprocal", total)
    else:
        winner, confidence = _as_classes(b, winner, b("Div", powers, total), classes, slots)
    ids = b.to(winner, np.uint8 if classes <= 255 else np.uint16)
    kept = b("Identity", going)
    kind = TensorProto.UINT8 if classes <= 255 else TensorProto.UINT16
    return helper.make_graph(
        b.nodes,
        b.prefix,
        [
            helper.make_tensor_value_info(number, TensorProto.INT64, []),
            helper.make_tensor_value_info(going, TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info(kept, TensorProto.BOOL, []),
            helper.make_tensor_value_info(ids, kind, None),
            helper.make_tensor_value_info(confidence, TensorProto.FLOAT, None),
        ],
        initializer=b.initializers,
    )


def _as_classes(b: Graph, winner: str, probs: str, classes: int, slots: Sequence[int]) -> tuple[str, str]:
    """Ids of the classes of the most probable clusters (R, W), void as ignore, and what these classes' clusters, or
    void's, have together of the probabilities (K, R, W)."""
    ignore = IGNORE8 if classes <= IGNORE8 else IGNORE16
    slot = b("Gather", b.whole(list(slots)), winner, axis=0)  # (R, W)
    members = np.arange(classes + 1)[:, None] == np.asarray(slots)[None]  # (C + 1, K)
    sizes = b("Shape", probs)
    flat = b("Reshape", probs, b.whole([len(slots), -1]))
    joined = b("MatMul", b.constant(members, np.float32), flat)  # (C + 1, R W)
    wanted = b("Concat", b.whole([classes + 1]), b("Slice", sizes, b.whole([1]), b.whole([3])), axis=0)
    joined = b("Reshape", joined, wanted)  # (C + 1, R, W)
    own = b("GatherElements", joined, b("Unsqueeze", slot, b.whole([0])), axis=0)
    ids = b.whole([ignore if s == classes else s for s in slots])
    return b("Gather", ids, winner, axis=0), b("Squeeze", own, b.whole([0]))


def resize_matrix(g: Graph, places: str, n: str, m: str) -> str:
    """Bilinear weights, antialiased where a map is made smaller: float32 (m, n), each row sums to 1.

    Args:
        g: the graph.
        places: 0 to m - 1, float64 (m,).
        n: cells of the map's side, int64 scalar.
        m: pixels of the image's side, int64 scalar.
    """
    scale = g("Div", g.to(n, np.float64), g.to(m, np.float64))
    reach = g("Max", g.real(1), scale)
    centre = g("Sub", g("Mul", g("Add", places, g.real(0.5)), scale), g.real(0.5))
    away = g("Abs", g("Sub", g.column(centre), g.range(n, np.float64)))
    weight = g("Max", g("Sub", g.real(1), g("Div", away, reach)), g.real(0))
    return g.to(g("Div", weight, g("ReduceSum", weight, g.whole([1]), keepdims=1)), np.float32)

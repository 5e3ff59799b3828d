"""A model that sees each pixel's colour alone, and its network's graph by hand, which spares the seconds of tracing."""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto, helper, numpy_helper

from maskwright.data.masking.classes import ClassTable
from maskwright.models.parts.heads import Identity, LinearClassifier
from maskwright.models.preprocess import Preprocess
from maskwright.models.provenance import Provenance
from maskwright.models.segmenter import Segmenter


def colours() -> Segmenter:
    """Three classes, a short side of 32."""
    torch.manual_seed(0)
    table, source = ClassTable.numbered(3), Provenance("colours", "random", "none needed", "none")
    return Segmenter(Identity(), None, LinearClassifier(3, 3), table, Preprocess(short_side=32), source).eval()


def network_graph(segmenter: Segmenter, multiple: int, fixed: Any, opset: int) -> Any:
    """As `models.tracing.network_graph`, for this model."""
    linear = segmenter.classifier.linear
    weights = [numpy_helper.from_array(t.detach().numpy(), n) for n, t in linear.named_parameters()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, None, None]) for n in ("input", "logits")]
    node = helper.make_node("Conv", ["input", "weight", "bias"], ["logits"])
    graph = helper.make_graph([node], "network", ends[:1], ends[1:], initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)

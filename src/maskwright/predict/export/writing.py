"""A model as one ONNX file that holds preprocessing, network and reduction to ids, checked before it is left.

What the graph holds is `predict` with refinement "none" on one whole picture; the rest of `predict` is said in
`OUTSIDE`, in the file's metadata and in docs/export.md.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.data.trust.files import atomic_write
from maskwright.errors import MaskwrightError, unknown
from maskwright.models.segmenter import Segmenter
from maskwright.predict.export.after import ids_and_confidence
from maskwright.predict.export.before import fixed_size, network_input
from maskwright.predict.export.checking import Parity, check_parity
from maskwright.predict.export.graph import OPSET, Graph

if TYPE_CHECKING:
    from maskwright.predict.model import Model

FORMATS = ("onnx",)
IMAGE, IDS, CONFIDENCE = "image", "ids", "confidence"
"""Names of the graph's input and outputs."""
INSIDE = (
    "resize to the network's input, to the byte as predict does it",
    "normalisation",
    "network",
    "logits resized to the image's size",
    "softmax",
    "ids and confidence of the most probable class; of named clusters, the class of the most probable cluster",
)
OUTSIDE = (
    "decoding, conversion to 8-bit RGB and the turn that an EXIF tag asks for",
    "tiles of large images (as predict --tile none)",
    "refinement by CRF or guided filter (as predict --refine none)",
    "averages over flips and scales",
    "the limit to an image's tags",
)
MAX_BYTES = (1 << 31) - (1 << 20)
"""A file without others beside it holds two gibibytes at most."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: where it lies.
        bytes: its size.
        parity: the comparison with torch at each size.
        notices: what `predict` would have done by itself and the file does not, in sentences.
    """

    path: Path
    bytes: int
    parity: tuple[Parity, ...]
    notices: tuple[str, ...]

    @property
    def largest(self) -> float:
        """The largest difference from torch."""
        return max(p.difference for p in self.parity)

    @property
    def rounding(self) -> str:
        """Why a file stays that differs from torch by more than 1e-4, as a sentence; empty where it does not."""
        exact = [p.exact for p in self.parity if p.exact is not None]
        own = [p.rounding for p in self.parity if p.rounding is not None]
        if not exact:
            return ""
        return (
            f"this network rounds much in float32: from itself in float64 the file differs by {max(exact):.2g}, and "
            f"torch by {max(own):.2g}"
        )


def export(model: Model, path: str | os.PathLike[str], format: str = "onnx") -> Exported:
    """Writes a model as a file for other programs; it is left only if it does what torch does.

    Args:
        model: what to write; it stays as it is.
        path: the file, written beside and renamed.
        format: one of `FORMATS`.

    Raises:
        MaskwrightError: an unknown format, the extra is not installed, the network cannot be traced, the result differs
            from torch by more than 1e-4 at one of three sizes and by more than rounding explains (`checking`), or the
            place cannot be written.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    _need_extra()
    path = Path(path)
    if path.is_dir():
        raise MaskwrightError(f"{path} is a folder", "a file", f"for example --out {path / 'model.onnx'}")
    proto = build(model)
    data = proto.SerializeToString()
    with atomic_write(path) as beside:
        beside.write_bytes(data)
        parity = check_parity(model, beside)
    return Exported(path, len(data), parity, notices(model))


def build(model: Model) -> Any:
    """The whole graph as an `onnx.ModelProto`: `image` uint8 (H, W, 3) to `ids` and `confidence`, both (H, W).

    Raises:
        MaskwrightError: the network cannot be traced or is too large for one file.
    """
    from onnx import TensorProto, helper

    from maskwright.models.tracing import INPUT, LOGITS, network_graph

    segmenter: Segmenter = model.segmenter
    if (size := sum(t.numel() * t.element_size() for t in segmenter.state_dict().values())) > MAX_BYTES:
        raise MaskwrightError(f"the network takes {size} bytes", f"at most {MAX_BYTES} for one ONNX file")
    multiple = math.lcm(segmenter.preprocess.multiple_of, segmenter.multiple_of)
    fixed = fixed_size(segmenter, multiple)
    network = network_graph(segmenter, multiple, fixed, OPSET)
    before, after = Graph("before"), Graph("after")
    ready = network_input(before, IMAGE, segmenter.preprocess, multiple, fixed)
    before("Identity", ready, output=INPUT)
    classes = len(segmenter.classes)
    naming = segmenter.naming
    slots = None if naming is None else naming.slots.tolist()
    ids_and_confidence(after, LOGITS, IMAGE, classes, (IDS, CONFIDENCE), slots)
    kind = TensorProto.UINT8 if classes <= 255 else TensorProto.UINT16
    graph = helper.make_graph(
        [*before.nodes, *network.graph.node, *after.nodes],
        "maskwright",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["height", "width", 3])],
        [
            helper.make_tensor_value_info(IDS, kind, ["height", "width"]),
            helper.make_tensor_value_info(CONFIDENCE, TensorProto.FLOAT, ["height", "width"]),
        ],
        initializer=[*before.initializers, *network.graph.initializer, *after.initializers],
    )
    proto = helper.make_model(
        graph, producer_name="maskwright", functions=list(network.functions), ir_version=network.ir_version,
        opset_imports=list(network.opset_import),
    )  # fmt: skip
    helper.set_model_props(proto, metadata(model))
    return proto


def metadata(model: Model) -> dict[str, str]:
    """What the file says of itself: text by name; all but `maskwright` and `method` is JSON."""
    from importlib import metadata as installed

    segmenter = model.segmenter
    told: dict[str, Any] = {
        "classes": list(segmenter.classes.names),
        "colors": segmenter.classes.colors.tolist(),
        "preprocess": segmenter.preprocess.to_json(),
        "provenance": segmenter.provenance.to_json(),
        "labels_read": segmenter.extra.get("labels_read", {}),
        "inside": list(INSIDE),
        "outside": list(OUTSIDE),
        "notices": list(notices(model)),
    }
    text = {name: json.dumps(value) for name, value in told.items()}
    try:
        version = installed.version("maskwright")
    except installed.PackageNotFoundError:  # run from its sources
        version = "unknown"
    return {"maskwright": version, "method": segmenter.method, **text}


def notices(model: Model) -> tuple[str, ...]:
    """What `predict` does with this model by itself and the file does not."""
    said = []
    own = str(model.extra.get("refine", "none"))
    if own != "none":
        said.append(f"predict refines by {own} after this method, and the file does not: compare with --refine none")
    if model.value_range() is not None:
        low, high = model.value_range() or (0, 0)
        said.append(
            f"images of more than 8 bits were read from {low:g} to {high:g}; the file takes bytes of that range"
        )
    return tuple(said)


def _need_extra() -> None:
    import importlib.util

    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise MaskwrightError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            "the packages of the extra `export`",
            "pip install 'maskwright[export]'",
        )

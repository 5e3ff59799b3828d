"""Whether an ONNX file does what torch does: both see the same pictures of three sizes.

Sums in float32 depend on their order. Where a network makes so much of that that both differ by more than `TOLERANCE`,
the same network in float64 decides: the file stays where it is as near to it as torch in float32 is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.segmenter import Segmenter
from maskwright.models.tracing import exact_logits
from maskwright.predict.inference import predict_mask, predict_probs
from maskwright.predict.tiles import make_plan

if TYPE_CHECKING:
    from maskwright.predict.model import Model

TOLERANCE = 1e-4
"""Probability by which the file may differ from torch."""
ROUNDING = 2.0
"""Times that the file may be as far from float64 as torch in float32 is: both are the largest of many roundings."""
CEILING = 1e-3
"""Probability by which it may differ from either in any case."""
SIDE = 320
"""Pixels of a picture's shorter side where preprocessing names none."""


@dataclass(frozen=True)
class Parity:
    """File and torch on one picture.

    Attributes:
        size: (H, W) of the picture, pixels.
        confidence: largest difference of the confidences.
        ids: largest probability that torch gives its own class beyond the file's at the same pixel: 0 where all ids are
            equal, next to nothing where two classes are equally probable.
        unequal: share of pixels with another id.
        exact: the same difference of the file from the network in float64; None where that was not asked.
        rounding: the same of torch in float32.
    """

    size: tuple[int, int]
    confidence: float
    ids: float
    unequal: float
    exact: float | None = None
    rounding: float | None = None

    @property
    def difference(self) -> float:
        """The larger of both."""
        return max(self.confidence, self.ids)


def check_parity(model: Model, path: Path) -> tuple[Parity, ...]:
    """Runs a file in onnxruntime beside torch, on the processor, at three sizes.

    Raises:
        MaskwrightError: onnxruntime cannot run it, or it differs by more than `TOLERANCE` and than rounding explains.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    found = []
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for size in sizes(model):
            found.append(compare(model, session, picture(size)))
    except MaskwrightError:
        raise
    except Exception as error:  # its errors share no class of their own
        where = f" at {size[0]} x {size[1]}" if "size" in locals() else ""
        raise MaskwrightError(
            f"onnxruntime cannot run the file{where} ({' '.join(str(error).split())[:200]}); it was not kept",
            "a network that is the same graph for images of any size",
        ) from error
    worst = max(found, key=lambda parity: parity.difference if np.isfinite(parity.difference) else np.inf)
    if worst.difference <= TOLERANCE:
        return tuple(found)
    told = ""
    if worst.difference <= CEILING:
        found = [against_float64(model, session, parity) for parity in found]
        exact, rounding = (max(getattr(p, side) for p in found) for side in ("exact", "rounding"))
        if exact <= min(CEILING, ROUNDING * rounding):
            return tuple(found)
        told = f"; from the network in float64 it differs by {exact:.2g}, and torch by {rounding:.2g}"
    raise MaskwrightError(
        f"at {worst.size[0]} x {worst.size[1]} pixels the file differs from torch by {worst.difference:.2g}{told}; "
        "it was not kept",
        f"at most {TOLERANCE:g}, or what rounding in float32 explains",
    )


def sizes(model: Model) -> tuple[tuple[int, int], ...]:
    """Wide, upright and small pictures, whose sides are multiples of nothing."""
    pre = model.segmenter.preprocess
    side = min(SIDE, pre.short_side or min(pre.size or (SIDE,)))
    return (side + 1, side * 4 // 3 + 2), (side * 5 // 4 + 1, side * 3 // 4 + 1), (61, 47)


def picture(size: tuple[int, int]) -> np.ndarray:
    """Blobs of colours with noise, uint8 (H, W, 3): edges and texture, the same each time."""
    rng = np.random.default_rng(0)
    height, width = size
    cells = rng.integers(0, 256, (7, 9, 3))
    rows, cols = np.arange(height) * 7 // height, np.arange(width) * 9 // width
    return (cells[rows][:, cols] + rng.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8)


def compare(model: Model, session: object, image: np.ndarray) -> Parity:
    """Both on one picture (H, W, 3)."""
    ids, confidence = session.run(["ids", "confidence"], {"image": image})  # type: ignore[attr-defined]
    device = model.device
    wanted = predict_mask(model.segmenter, image, tile=0, device="cpu")
    apart, slots = told_apart(model.segmenter)
    probs = predict_probs(apart, image, tile=0, device="cpu")  # (K, H, W)
    model.segmenter.to(device)
    if ids.shape != wanted.ids.shape or ids.dtype != wanted.ids.dtype:
        raise MaskwrightError(f"the file gives ids {ids.dtype} {ids.shape}", f"{wanted.ids.dtype} {wanted.ids.shape}")
    assert wanted.confidence is not None
    own = slots[:, None, None] == np.where(ids < len(model.classes), ids, len(model.classes))  # (K, H, W)
    chosen = np.where(own, probs, 0).max(0)
    # of named clusters, what all clusters of the class have: two that are equally probable may be of different classes
    sure = wanted.confidence if model.segmenter.naming is None else np.where(own, probs, 0).sum(0)
    return Parity(
        (int(image.shape[0]), int(image.shape[1])),
        float(np.abs(confidence - sure).max()),
        float((probs.max(0) - chosen).max()),
        float((ids != wanted.ids).mean()),
    )


def against_float64(model: Model, session: object, parity: Parity) -> Parity:
    """A comparison with how far the file and torch in float32 are from the same network in float64, which reads the
    same input: as confidences, and as probabilities that float64 gives its own class beyond the one that was chosen."""
    image = picture(parity.size)
    ids, confidence = session.run(["ids", "confidence"], {"image": image})  # type: ignore[attr-defined]
    device, segmenter = model.device, model.segmenter
    single = predict_mask(segmenter, image, tile=0, device="cpu")
    apart, slots = told_apart(segmenter)
    (height, width), *_ = make_plan(segmenter, parity.size, tile=0, overlap=0.0, scales=(1.0,)).inputs
    logits = exact_logits(apart, segmenter.preprocess.apply(image, (height, width))[None])
    probs = F.interpolate(logits, parity.size, mode="bilinear", antialias=True)[0].softmax(0).numpy()  # (K, H, W)
    segmenter.to(device)

    def away(chosen_ids: np.ndarray, sure: np.ndarray | None) -> float:
        assert sure is not None
        own = slots[:, None, None] == np.where(chosen_ids < len(model.classes), chosen_ids, len(model.classes))
        of_class = np.where(own, probs, 0)
        wanted = of_class.max(0) if segmenter.naming is None else of_class.sum(0)
        return float(max(np.abs(sure - wanted).max(), (probs.max(0) - of_class.max(0)).max()))

    return replace(parity, exact=away(ids, confidence), rounding=away(single.ids, single.confidence))


def told_apart(segmenter: Segmenter) -> tuple[Segmenter, np.ndarray]:
    """A segmenter whose classes are what the network tells apart (K), and the class of each, (K,), C for void."""
    naming = segmenter.naming
    if naming is None:
        return segmenter, np.arange(len(segmenter.classes))
    table = ClassTable.numbered(naming.count)
    apart = Segmenter(
        segmenter.encoder, segmenter.decoder, naming.clusters, table, segmenter.preprocess, segmenter.provenance
    )
    return apart.eval(), naming.slots.cpu().numpy()

"""Whether an ONNX file does what torch does: both see the same pictures of three sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.segmenter import Segmenter
from maskwright.predict.inference import predict_mask, predict_probs

if TYPE_CHECKING:
    from maskwright.predict.model import Model

TOLERANCE = 1e-4
"""Probability by which the file may differ from torch."""
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
    """

    size: tuple[int, int]
    confidence: float
    ids: float
    unequal: float

    @property
    def difference(self) -> float:
        """The larger of both."""
        return max(self.confidence, self.ids)


def check_parity(model: Model, path: Path) -> tuple[Parity, ...]:
    """Runs a file in onnxruntime beside torch, on the processor, at three sizes.

    Raises:
        MaskwrightError: onnxruntime cannot run it, or it differs by more than `TOLERANCE`.
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
    for parity in found:
        if not parity.difference <= TOLERANCE:
            raise MaskwrightError(
                f"at {parity.size[0]} x {parity.size[1]} pixels the file differs from torch by "
                f"{parity.difference:.2g}; it was not kept",
                f"at most {TOLERANCE:g}",
            )
    return tuple(found)


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

"""A network in an ONNX file that says of each pixel how salient it is, by onnxruntime (the extra `export`).

Two kinds of files are understood: those of `maskwright export`, whose classes but the background are objects, and
saliency networks of others (U2-Net, BASNet and the like), which take one RGB image (1, 3, h, w) as normalised floats
and give a map (1, 1, h, w) or (1, h, w) first.

Legend: (H, W) size of a photograph, (h, w) of the network's input.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from maskwright.data.masking.classes import BACKGROUND_NAMES
from maskwright.errors import MaskwrightError
from maskwright.models.preprocess import Preprocess

SIDE = 320
"""Pixels of both sides of an input whose size the file leaves open: U2-Net's and BASNet's are about as large."""
TAKES = "one RGB image of (1, 3, h, w) floats, as saliency networks do, or a file of `maskwright export`"


class OnnxNetwork:
    """The network of a file, on the processor.

    Args:
        path: of the file.

    Attributes:
        own: whether `maskwright export` wrote it.
        labels_seen: the labels that its training saw, as our own files say; "unknown" of others.
        labels_read: {purpose: {kind: images}} of the run that made it, or None.
        hash: of the file.
        notes: what is taken for granted of it, a sentence.

    Raises:
        MaskwrightError: onnxruntime is not installed, cannot read the file, or it takes something else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        session = _session(self.path)
        self._session: Any = session
        with self.path.open("rb") as file:
            self.hash = hashlib.file_digest(file, "sha256").hexdigest()
        told: dict[str, str] = session.get_modelmeta().custom_metadata_map
        self.own = "maskwright" in told and "classes" in told
        self.labels_seen, self.labels_read = "unknown", None
        given = session.get_inputs()
        if self.own:
            self.labels_seen = str(_json(told, "provenance", {}).get("labels_seen", "unknown"))
            self.labels_read = _json(told, "labels_read", None)
            names = [str(n).lower() for n in _json(told, "classes", [])]
            self._background = [i for i, n in enumerate(names) if n in BACKGROUND_NAMES] or [0]
            self.notes = f"Classes of {self.path.name} but the background are objects."
            return
        shape = given[0].shape if len(given) == 1 else []
        floats = len(given) == 1 and given[0].type == "tensor(float)"
        if not floats or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            seen = ", ".join(f"{g.name} {g.type} {g.shape}" for g in given)
            raise MaskwrightError(f"{self.path} takes {seen or 'nothing'}", TAKES)
        h, w = (n if isinstance(n, int) and n > 0 else SIDE for n in shape[2:])
        self._preprocess, self._input = Preprocess(size=(h, w)), given[0].name
        self.notes = (
            f"{self.path.name} is given photographs of {h} x {w} pixels, normalised by ImageNet's mean and deviation, "
            "and its first output is taken as the saliency."
        )

    def to(self, device: Any) -> OnnxNetwork:
        """Itself: it runs on the processor."""
        return self

    def saliency(self, image: np.ndarray) -> np.ndarray:
        """How salient each pixel is, float32 (H, W) in [0, 1]; of an own file 1 where an object is, else 0.

        Args:
            image: uint8 (H, W, 3), RGB.

        Raises:
            MaskwrightError: the network fails, or gives no map.
        """
        if self.own:
            ids = self._run({self._session.get_inputs()[0].name: image})
            return (~np.isin(ids, self._background)).astype(np.float32)
        found = np.asarray(self._run({self._input: self._preprocess.apply(image)[None].numpy()}), np.float32)
        if found.ndim not in (3, 4) or found.shape[0] != 1 or (found.ndim == 4 and found.shape[1] != 1):
            raise MaskwrightError(f"{self.path} gives {found.shape}", "a map (1, 1, h, w) or (1, h, w) as first output")
        soft = torch.from_numpy(found).reshape(1, 1, *found.shape[-2:])
        if float(soft.min()) < -1e-3 or float(soft.max()) > 1 + 1e-3:  # logits
            soft = soft.sigmoid()
        full = F.interpolate(soft, image.shape[:2], mode="bilinear", align_corners=False)
        return full[0, 0].clamp(0, 1).numpy()

    def _run(self, given: dict[str, np.ndarray]) -> np.ndarray:
        try:
            return self._session.run(None, given)[0]
        except Exception as error:  # its errors share no class of their own
            raise MaskwrightError(f"onnxruntime cannot run {self.path}: {_line(error)}", TAKES) from error


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MaskwrightError(
            "onnxruntime is not installed", f"the extra `export`, to run {path}", "pip install 'maskwright[export]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise MaskwrightError(f"onnxruntime cannot read {path}: {_line(error)}", "an ONNX file of a network") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _json(told: dict[str, str], name: str, default: Any) -> Any:
    try:
        return json.loads(told[name])
    except (KeyError, ValueError):
        return default

"""The released checkpoints of PASS (TPAMI 2022, https://arxiv.org/abs/2106.03149) as our parts.

Three kinds, each a file with `state_dict` whose names begin with `module.`: `pretrained` (backbone, heads, prototypes),
`pixelatt` (with the gate) and `finetuning` (with the last layer), and the centroids beside as `.npy`. The backbone's
names are torchvision's, so `--weights FILE` takes any of the three; here the rest is translated too. The names are
those of the released code; the files themselves have not been at hand.

Legend: F width of the deepest stage, K clusters, C classes without "other".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.keymaps import unwrap
from maskwright.models.backbones.weights import read_weights_file
from maskwright.models.parts.attended_clusters import AttendedClusters, PixelAttention
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter

Kind = Literal["pretrained", "pixelatt", "finetuning"]

_TRUNK = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
_HEADS = (
    ("projection_head_pixel.", "pixel_head."),
    ("predictor_head_pixel.", "predictor."),
    ("projection_head.", "image_head."),
)
_SHALLOW = (
    ("projection_head_pixel_shallow.projection_head_pixel", "mapping."),
    ("projection_head_shallow.projection_head_shallow", "mlp."),
)
SHORT_SIDE = 256
"""Pixels of the shorter side at which the authors cluster, label and predict."""


@dataclass(frozen=True)
class PassCheckpoint:
    """A released checkpoint, its tensors under our names.

    Attributes:
        kind: which of the three.
        backbone: torchvision's and timm's names of a ResNet.
        heads: names of PASS's network in training, without its backbone; shallow branches deep to shallow.
        stages: the shallow stages that have a branch, deep to shallow.
        prototypes: (K, d), or None.
        attention: names of `PixelAttention`; empty where there is none.
        classifier: names of `heads.LinearClassifier`; empty where there is none.
    """

    kind: Kind
    backbone: dict[str, Tensor]
    heads: dict[str, Tensor]
    stages: tuple[int, ...]
    prototypes: Tensor | None
    attention: dict[str, Tensor]
    classifier: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        """The timm name of the backbone: resnet18 or resnet50."""
        return "resnet50" if "layer1.0.conv3.weight" in self.backbone else "resnet18"


def translate_pass(checkpoint: Mapping[str, Any], source: str = "the checkpoint") -> PassCheckpoint:
    """A released checkpoint as `torch.load` gives it, under our names.

    Raises:
        MaskwrightError: it is none of the three kinds, or holds tensors of no known name.
    """
    tensors = unwrap(checkpoint)
    backbone: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    attention: dict[str, Tensor] = {}
    classifier: dict[str, Tensor] = {}
    branches: dict[int, dict[str, Tensor]] = {}
    prototypes, odd = None, []
    for name, value in tensors.items():
        if name.startswith(_TRUNK):
            backbone[name] = value
        elif name == "prototypes.weight":
            prototypes = value
        elif name.startswith("fbg.atten."):
            attention["gate." + name.removeprefix("fbg.atten.")] = value
        elif name == "fbg.threshold":
            attention["offset"] = value.reshape(-1, 1, 1)
        elif name.startswith("last_layer."):
            classifier["linear." + name.removeprefix("last_layer.")] = value
        elif found := _shallow_name(name):
            branches.setdefault(found[0], {})[found[1]] = value
        elif head := next((new + name[len(old) :] for old, new in _HEADS if name.startswith(old)), None):
            heads[head] = value
        else:
            odd.append(name)
    if odd or not backbone:
        found_ = f"tensors of unknown names ({', '.join(odd[:3])})" if odd else "no ResNet"
        raise MaskwrightError(f"{source} has {found_}", "a checkpoint that PASS released", "give it as --weights")
    stages = tuple(sorted(branches, reverse=True))
    for place, stage in enumerate(stages):
        heads |= {f"shallow.{place}.{k}": v for k, v in branches[stage].items()}
    kind: Kind = "finetuning" if classifier else "pixelatt" if attention else "pretrained"
    return PassCheckpoint(kind, backbone, heads, stages, prototypes, attention, classifier)


def _shallow_name(name: str) -> tuple[int, str] | None:
    for old, new in _SHALLOW:
        if name.startswith(old):
            stage, _, rest = name[len(old) :].partition(".")
            return (int(stage), new + rest) if stage.isdigit() else None
    return None


def read_pass_checkpoint(path: str | Path) -> PassCheckpoint:
    """Reads `pass50_pretrained.pth.tar` and its like; nothing but tensors is unpickled.

    Raises:
        MaskwrightError: the file is missing or none of the three kinds.
    """
    return translate_pass(read_weights_file(path).tensors, str(path))


def read_centroids(path: str | Path) -> Tensor:
    """Centroids (K, F), float32, of a `.npy` file; never unpickles.

    Raises:
        MaskwrightError: the file is missing, damaged or of another shape.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MaskwrightError(f"{path} cannot be read ({error})", "centroids as .npy") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f" or not np.isfinite(rows).all():
        shape = getattr(rows, "shape", "several arrays")
        raise MaskwrightError(f"{path} holds {shape}", "finite centroids (K, F)")
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))


def official_segmenter(path: str | Path, centroids: str | Path | None = None, threshold: float = 0.0) -> Segmenter:
    """A released checkpoint as a segmenter: fine-tuned, or gate and centroids.

    Args:
        path: a `finetuning` checkpoint; or `pixelatt`, or `pretrained` without a gate, with centroids.
        centroids: the `.npy` beside it.
        threshold: least mean gate of a pixel that is not "other"; the authors' are 0.41, 0.40 and 0.37 for 50, 300 and
            919 classes, chosen on validation labels.

    Raises:
        MaskwrightError: parts are missing or do not fit each other.
    """
    found = read_pass_checkpoint(path)
    backbone = build_backbone(found.architecture, str(path))
    encoder = BackboneEncoder(backbone, layers=-1)
    classifier: LinearClassifier | AttendedClusters
    if found.classifier:
        weight = found.classifier["linear.weight"]
        classifier = LinearClassifier(weight.shape[1], weight.shape[0])
        classifier.load_state_dict(found.classifier)
        count = weight.shape[0]
    elif centroids is None:
        raise MaskwrightError(f"{path} is of kind {found.kind}", "its centroids beside it", "give the .npy file")
    else:
        rows, gate = read_centroids(centroids), None
        if rows.shape[1] != encoder.width:
            raise MaskwrightError(f"centroids of width {rows.shape[1]}", f"{encoder.width} as {found.architecture} has")
        if found.attention:
            gate = PixelAttention(encoder.width)
            gate.load_state_dict(found.attention)
        classifier, count = AttendedClusters(rows, threshold, gate), len(rows) + 1
    table = ClassTable(("other", *ClassTable.numbered(count).names[1:]))
    preprocess = Preprocess(short_side=SHORT_SIDE, multiple_of=encoder.multiple_of)
    return Segmenter(encoder, None, classifier, table, preprocess, backbone.provenance, "pass").eval()

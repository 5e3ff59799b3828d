"""The parts of a segmenter that knows its classes by words: an encoder into the joint space, a vocabulary, and the head
of a network that learns into it.

Legend: B batch, E channels of the joint space, D channels of keys, P words, C classes, (h, w) feature-map size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import autocast
from maskwright.models.parts.part import MAX_WIDTH, Part
from maskwright.models.parts.table import build_part
from maskwright.models.towers.image import ClipTower, build_clip
from maskwright.models.towers.surgery import LastBlock
from maskwright.ops.language import REMOVED, denoise_prompts, of_classes, smooth_by_keys, threshold_logit


class JointEncoder(Part):
    """A CLIP image tower whose places lie in the space of words.

    Args:
        backbone: the tower; its weights belong to the segmenter and are saved with it.
        attention: what the last block does instead of its own, as `surgery.ATTENTIONS`; "value" of a ResNet.
        rest: it keeps its residual connection and its MLP.
        std: patches; of NACLIP's Gaussian.
        keys: also give the keys, behind the other channels.
    """

    fields = ("tower", "attention", "rest", "std", "keys")

    def __init__(
        self, backbone: ClipTower, attention: str = "value", rest: bool = True, std: float = 5.0, keys: bool = False
    ) -> None:
        super().__init__()
        self.how = LastBlock(attention, bool(rest), float(std))
        self.backbone, self.keys = backbone, bool(keys)
        self.tower = backbone.architecture
        self.attention, self.rest, self.std = attention, bool(rest), float(std)
        self.precision: str | None = None

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """`tower`: a line of `TowerShape`, and the arguments; weights are drawn, no file and no hub is asked."""
        tower = arguments.pop("tower")
        if not isinstance(tower, str) or "/" not in tower:
            raise ValueError(f"tower is {str(tower)[:60]!r}, expected a line of a tower's build")
        return cls(build_clip(tower, "random"), **arguments)

    @property
    def width(self) -> int:
        """Channels that it gives: E, or E + D with keys."""
        return self.backbone.joint_width + (self.backbone.key_width if self.keys else 0)

    @property
    def stride(self) -> int:
        """Input pixels a place."""
        return self.backbone.strides[-1]

    @property
    def multiple_of(self) -> int:
        """Input sides should be multiples of this."""
        return self.backbone.multiple_of

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, E, h, w), or (B, E + D, h, w) with keys."""
        with autocast(x.device, self.precision):
            words, keys = self.backbone.joint_maps(x, self.how)
        return (torch.cat([words, keys], 1) if self.keys else words).to(x.dtype)


class VocabularyClassifier(Part):
    """Logits of classes by the cosines of places to words.

    Args:
        vectors: (P, E), one word each, of unit length.
        owner: int64 (P,), the class of each.
        classes: C.
        scale: cosines times this are logits.
        denoise: threshold of prompt denoising; 0: none.
        smooth: threshold of key smoothing, which then reads its keys behind the first E channels; 0: none.
        background: the class that is what no other is, by `threshold`; None: there is none.
        threshold: probability.
    """

    fields: tuple[str, ...] = ("width", "words", "classes", "scale", "denoise", "smooth", "background", "threshold")
    vectors: Tensor
    owner: Tensor

    def __init__(
        self,
        vectors: Tensor,
        owner: Tensor,
        classes: int,
        scale: float = 100.0,
        denoise: float = 0.0,
        smooth: float = 0.0,
        background: int | None = None,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        if vectors.ndim != 2 or owner.shape != vectors.shape[:1]:
            raise ValueError(f"words are {tuple(vectors.shape)} and owners {tuple(owner.shape)}, expected (P, E), (P,)")
        if not (scale > 0 and 0 <= denoise <= 1 and 0 <= smooth <= 1 and 0 <= threshold < 1):
            raise ValueError(f"scale {scale}, denoise {denoise}, smooth {smooth}, threshold {threshold} out of range")
        if background is not None and not (0 <= background < classes and threshold > 0):
            raise ValueError(f"background is class {background} of {classes} with threshold {threshold}")
        self.words, self.width = int(vectors.shape[0]), int(vectors.shape[1])
        self.classes, self.scale, self.background = int(classes), float(scale), background
        self.denoise, self.smooth, self.threshold = float(denoise), float(smooth), float(threshold)
        self.vectors = nn.Parameter(vectors.detach().float().contiguous().clone(), requires_grad=False)
        self.register_buffer("owner", owner.detach().long().clone())

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """The numbers of `fields`, `width`: E and `words`: P among them."""
        words, width = arguments.pop("words"), arguments.pop("width")
        owner = torch.zeros(words, dtype=torch.int64)
        return cls(torch.zeros(words, width), owner, **arguments)

    def like(
        self, vectors: Tensor, owner: Tensor, classes: int, background: int | None = None, threshold: float = 0.0
    ) -> Self:
        """The same with other words."""
        return type(self)(
            vectors, owner, classes, self.scale, self.denoise, self.smooth, background=background, threshold=threshold
        )

    def check_tensors(self) -> None:
        """Each word must be of a class that is there, and each class but a background by threshold must have one."""
        owners = set(self.owner.tolist())
        wanted = set(range(self.classes)) - ({self.background} if self.background is not None else set())
        if not wanted <= owners or not owners <= set(range(self.classes)):
            raise ValueError(f"words are of classes {sorted(owners)[:5]}, expected each of {self.classes}")

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w), or (B, E + D, h, w) with keys, to logits (B, C, h, w)."""
        places, keys = x[:, : self.width], x[:, self.width :]
        words = F.conv2d(F.normalize(places, dim=1), self.vectors[..., None, None].to(x.dtype))  # (B, P, h, w)
        cosines = of_classes(words, self.owner, self.classes)
        if self.background is not None:
            cosines[:, self.background].clamp_(min=REMOVED)
        if self.denoise:
            left = denoise_prompts(cosines, self.denoise, self.scale)
            if self.background is None:  # else a picture without a sure class is background
                left = torch.where((left == REMOVED).all(1, keepdim=True), cosines, left)
            cosines = left
        logits = cosines * self.scale
        floor = threshold_logit(words * self.scale, self.threshold) if self.background is not None else None
        if self.smooth:
            voted, mass = smooth_by_keys(cosines, keys, self.smooth, self.scale)
            unsure = logits.softmax(1).amax(1, keepdim=True) < self.smooth
            logits = torch.where(unsure, voted / mass * self.scale, logits)
            if floor is not None:
                floor = torch.where(unsure, torch.full_like(floor, self.threshold * self.scale), floor)
        if self.background is not None and floor is not None:
            logits = logits.clone()
            logits[:, self.background] = torch.maximum(logits[:, self.background], floor[:, 0])
        return logits


class WordHead(Part):
    """The classifier of MaskCLIP+: a layer into the joint space, and its dot products with fixed words, of which each
    class has that of the best.

    Args:
        inner: embedding to (B, E, h, w), of any length.
        vectors: (P, E), one word each.
        owner: int64 (P,), the class of each; each class has a word.
        classes: C.
    """

    vectors: Tensor
    owner: Tensor

    def __init__(self, inner: Part, vectors: Tensor, owner: Tensor, classes: int) -> None:
        super().__init__()
        if vectors.ndim != 2 or owner.shape != vectors.shape[:1]:
            raise ValueError(f"words are {tuple(vectors.shape)} and owners {tuple(owner.shape)}, expected (P, E), (P,)")
        self.inner, self.classes = inner, int(classes)
        self.register_buffer("vectors", vectors.detach().float().clone())
        self.register_buffer("owner", owner.detach().long().clone())

    def spec(self) -> dict[str, Any]:
        """The layer's spec, and the numbers P, E and C."""
        words, width = self.vectors.shape
        return {
            "kind": "WordHead", "inner": self.inner.spec(), "words": words, "width": width, "classes": self.classes,
        }  # fmt: skip

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds it with words that are zero.

        Raises:
            MaskwrightError: numbers are missing or out of range, or as the layer does.
        """
        numbers = [spec.get(name) for name in ("words", "width", "classes")]
        if set(spec) != {"kind", "inner", "words", "width", "classes"} or not all(
            type(n) is int and 0 < n <= MAX_WIDTH for n in numbers
        ):
            raise MaskwrightError(
                f"part WordHead has {', '.join(map(str, sorted(spec)))}", "inner, words, width, classes"
            )
        words, width, classes = numbers
        owner = torch.zeros(words, dtype=torch.int64)  # type: ignore[arg-type]
        return cls(build_part(spec["inner"]), torch.zeros(words, width), owner, classes)  # type: ignore[arg-type]

    def check_tensors(self) -> None:
        """Each word must be of a class that is there, and each class must have one."""
        if set(self.owner.tolist()) != set(range(self.classes)):
            raise ValueError(f"words are of classes {sorted(set(self.owner.tolist()))[:5]}, expected {self.classes}")

    def forward(self, x: Tensor) -> Tensor:
        """Embedding to logits (B, C, h, w)."""
        places = self.inner(x)
        words = F.conv2d(places, self.vectors[..., None, None].to(places.dtype))  # (B, P, h, w)
        return of_classes(words, self.owner, self.classes)

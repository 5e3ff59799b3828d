"""A trained network labels whole photographs: everything, or by class-balanced thresholds, with hard or soft labels.

The thresholds are those of Zou et al., Unsupervised domain adaptation for semantic segmentation via class-balanced
self-training (CBST), ECCV 2018, https://arxiv.org/abs/1810.07911: lam_c is the confidence that a portion of the pixels
predicted as c reach; a label is argmax_c p_c / lam_c, and there is none where p_c / lam_c < 1. With a spatial prior
(CBST-SP) p_c is first multiplied by q_c, how often a place shows c. Soft labels are those of Zou et al., Confidence
regularized self-training (CRST), ICCV 2019, https://arxiv.org/abs/1908.09822: y_c ~ (p_c / lam_c)^{1 / alpha}, where
the sum over classes of that power is above 1.

Legend: C classes, (H, W) image size, (h, w) size of the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.engine.distributed import all_reduce_sum, barrier, each
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.losses.thresholds import ClassHistogram, class_balanced_labels, lrent_labels
from maskwright.predict.inference import predict_mask, predict_probs
from maskwright.predict.refine import refine
from maskwright.recipes.self_training.soft_labels import SoftStore
from maskwright.recipes.training.criteria import IGNORE

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.context import Context

THRESHOLDS = "thresholds.safetensors"
LABELS = "labels"
DS_RATE = 4
"""Of the pixels of a photograph that are predicted as one class each so-many-th counts for the thresholds."""


@dataclass(frozen=True)
class Labelling:
    """How photographs are labelled.

    Attributes:
        context: of the run.
        precision: of the network's passes.
        flips: the mean over the photograph and its mirror image.
        scales: the mean over these input sizes.
        portion: of each predicted class that is kept; None: every pixel gets a label.
        data: the photographs; those of the run if None.
        only: ids of the classes that may be labels; all if None.
        prior: q (C, h, w) in [0, 1] over the places of a photograph; none if None. With a portion alone.
        alpha: of soft labels; None: hard ones. With a portion alone.
        refine: of the probabilities before labels are taken everywhere (`predict.refine`).
    """

    context: Context
    precision: str
    flips: bool = True
    scales: tuple[float, ...] = (1.0,)
    portion: float | None = None
    data: Dataset | None = None
    only: tuple[int, ...] | None = None
    prior: Tensor | None = None
    alpha: float | None = None
    refine: str = "none"

    @property
    def images(self) -> Dataset:
        """The photographs."""
        return self.context.data if self.data is None else self.data

    def label(self, folder: Path, segmenter: Segmenter, names: Sequence[str]) -> None:
        """Writes pseudo-labels as a dataset; those that are there already stay, so that a killed run goes on.

        Args:
            folder: of the stage.
            segmenter: that labels.
            names: of the images.
        """
        wanted, data = set(names), self.images
        chosen = [i for i in range(len(data)) if data.items[i].name in wanted]
        lam = None if self.portion is None else self.thresholds(folder, segmenter, chosen)
        store = LabelStore(folder / LABELS, self.context.table)
        for i in each(self.context.progress, chosen, "labelled", lambda i: data.items[i].name in store):
            item = data.items[i]
            if self.alpha is None:
                labels = self.pseudo_label(segmenter, data.image(i), lam)
            else:
                labels, soft = self.soft_label(segmenter, data.image(i), lam)
                SoftStore(folder / LABELS).write(item.name, soft)  # first: a store whose mask exists is complete
            store.write(item.name, labels, item.image)

    def pseudo_label(self, segmenter: Segmenter, image: np.ndarray, lam: Tensor | None) -> LabelMap:
        """Hard labels (H, W), everywhere, or by class-balanced thresholds lam (C,)."""
        if lam is None and self.refine != "none":
            probs = torch.from_numpy(refine(self.probabilities(segmenter, image), image, self.refine))
            return _label_map(probs, probs.argmax(0), torch.ones(image.shape[:2], dtype=torch.bool))
        if lam is None:
            found = self.predict(segmenter, image)
            assert found.confidence is not None
            ids = torch.from_numpy(found.ids.astype(np.int64))
            return LabelMap(ids, torch.from_numpy(found.confidence), torch.ones_like(ids, dtype=torch.bool))
        probs = self.probabilities(segmenter, image)
        ids = class_balanced_labels(probs, lam, IGNORE)
        return _label_map(probs, ids, ids != IGNORE)

    def soft_label(self, segmenter: Segmenter, image: np.ndarray, lam: Tensor | None) -> tuple[LabelMap, Tensor]:
        """Hard labels (H, W) and soft ones y (C, H, W) of the same pixels, by class-balanced thresholds lam (C,)."""
        assert lam is not None and self.alpha is not None, "soft labels without thresholds"
        probs = self.probabilities(segmenter, image)
        y, kept = lrent_labels(probs, lam, self.alpha)
        return _label_map(probs, y.argmax(0), kept), y

    def probabilities(self, segmenter: Segmenter, image: np.ndarray) -> Tensor:
        """p (C, H, W), or q p where there is a prior."""
        probs = torch.from_numpy(
            predict_probs(
                segmenter, image, flips=self.flips, scales=self.scales, device=self.context.device,
                precision=self.precision, only=self.only,
            )
        )  # fmt: skip
        if self.prior is None:
            return probs
        size = (probs.shape[-2], probs.shape[-1])
        return probs * F.interpolate(self.prior[None].to(probs), size, mode="bilinear", align_corners=False)[0]

    def most_probable(self, segmenter: Segmenter, image: np.ndarray) -> tuple[Tensor, Tensor]:
        """Confidence and ids (H, W) that the thresholds are of."""
        if self.prior is not None:
            confidence, ids = self.probabilities(segmenter, image).max(0)
            return confidence, ids
        found = self.predict(segmenter, image)
        assert found.confidence is not None
        return torch.from_numpy(found.confidence), torch.from_numpy(found.ids.astype(np.int64))

    def thresholds(self, folder: Path, segmenter: Segmenter, images: Sequence[int]) -> Tensor:
        """lam (C,) over all these images, from the artefact where a killed run left it."""
        assert self.portion is not None, "every pixel gets a label"
        context, path = self.context, folder / THRESHOLDS
        if not path.exists():
            histogram = ClassHistogram(context.classes)
            for i in each(self.context.progress, images, "looked at"):
                confidence, ids = self.most_probable(segmenter, self.images.image(i))
                histogram.update(confidence, ids, every=DS_RATE)
            histogram.counts = all_reduce_sum(histogram.counts.to(context.device)).cpu()
            if context.run.writes:
                save_tensors(path, {"lam": histogram.thresholds(self.portion), "counts": histogram.counts.sum(1)})
            barrier()
        return context.run.tensors(folder.name, THRESHOLDS, {"lam": "C"})["lam"]

    def predict(self, segmenter: Segmenter, image: np.ndarray, plain: bool = False) -> Any:
        """Ids and confidence (H, W); `plain`: ids alone, at one scale and not mirrored."""
        return predict_mask(
            segmenter, image, flips=self.flips and not plain, scales=(1.0,) if plain else self.scales,
            device=self.context.device, precision=self.precision, confidence=None if plain else np.float32,
            only=self.only,
        )  # fmt: skip


def _label_map(probs: Tensor, ids: Tensor, valid: Tensor) -> LabelMap:
    """Labels (H, W) with the probabilities (C, H, W) of their classes."""
    ids = torch.where(valid, ids, 0)
    return LabelMap(ids, probs.gather(0, ids[None])[0].clamp(0, 1), valid)

"""A trained network labels whole photographs: everything, or by class-balanced thresholds.

The thresholds are those of Zou et al., Unsupervised domain adaptation for semantic segmentation via class-balanced
self-training (CBST), ECCV 2018, https://arxiv.org/abs/1810.07911: lam_c is the confidence that a portion of the pixels
predicted as c reach; a label is argmax_c p_c / lam_c, and there is none where p_c / lam_c < 1.

Legend: C classes, (H, W) image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.engine.distributed import all_reduce_sum, barrier
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.losses.thresholds import ClassHistogram, class_balanced_labels
from maskwright.predict.inference import predict_mask, predict_probs
from maskwright.recipes.training.criteria import IGNORE

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.context import Context

THRESHOLDS = "thresholds.safetensors"
LABELS = "labels"
DS_RATE = 4
"""Each so-many-th row and column counts for the thresholds."""


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
    """

    context: Context
    precision: str
    flips: bool = True
    scales: tuple[float, ...] = (1.0,)
    portion: float | None = None
    data: Dataset | None = None

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
        for i in self.context.each(chosen, "labelled", lambda i: data.items[i].name in store):
            item = data.items[i]
            store.write(item.name, self.pseudo_label(segmenter, data.image(i), lam), item.image)

    def pseudo_label(self, segmenter: Segmenter, image: np.ndarray, lam: Tensor | None) -> LabelMap:
        """Hard labels (H, W), everywhere, or by class-balanced thresholds lam (C,)."""
        if lam is None:
            found = self.predict(segmenter, image)
            assert found.confidence is not None
            ids = torch.from_numpy(found.ids.astype(np.int64))
            return LabelMap(ids, torch.from_numpy(found.confidence), torch.ones_like(ids, dtype=torch.bool))
        found_probs = predict_probs(
            segmenter, image, flips=self.flips, scales=self.scales, device=self.context.device,
            precision=self.precision,
        )  # fmt: skip
        probs = torch.from_numpy(found_probs)
        ids = class_balanced_labels(probs, lam, IGNORE)
        valid = ids != IGNORE
        ids = torch.where(valid, ids, 0)
        return LabelMap(ids, probs.gather(0, ids[None])[0].clamp(0, 1), valid)

    def thresholds(self, folder: Path, segmenter: Segmenter, images: Sequence[int]) -> Tensor:
        """lam (C,) over all these images, from the artefact where a killed run left it."""
        assert self.portion is not None, "every pixel gets a label"
        context, path = self.context, folder / THRESHOLDS
        if not path.exists():
            histogram = ClassHistogram(context.classes)
            for i in self.context.each(images, "looked at"):
                found = self.predict(segmenter, self.images.image(i))
                assert found.confidence is not None
                ids = torch.from_numpy(found.ids.astype(np.int64))
                histogram.update(torch.from_numpy(found.confidence), ids, stride=DS_RATE)
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
        )  # fmt: skip

"""Fine-tuning of a network with a linear layer on pseudo-labels, as PASS does it (TPAMI 2022, arXiv 2106.03149).

Legend: B photographs, C classes, S crop side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.crops import random_resized_crop
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import StoredLabels, read_view
from maskwright.engine.loop import Indices, Training
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.pretraining.instance import synchronised
from maskwright.recipes.pretraining.larc import LARC, two_rates
from maskwright.recipes.training.criteria import IGNORE


class Finetuning(Training):
    """Cross-entropy over all ids, "other" included, at half the crop's size.

    Batch norm: all layers in training mode; with `freeze_norm` the encoder's stay in evaluation mode.

    Args:
        segmenter: the network, on its device.
        labels: pseudo-labels.
        crop: S, pixels.
        scale: range of a crop's share of the photograph's area.
        lr: LARC's factor.
        encoder_share: share of it for the encoder.
        freeze_norm: keep the encoder's batch-norm statistics.
        weight_decay: on every tensor.
        precision: of the encoder's forward pass, "bf16" or None.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        labels: StoredLabels,
        *,
        crop: int,
        scale: tuple[float, float],
        lr: float,
        encoder_share: float = 1.0,
        freeze_norm: bool = False,
        weight_decay: float,
        precision: str | None,
    ) -> None:
        self.labels, self.crop, self.scale = labels, crop, scale
        self.preprocess, self.device = segmenter.preprocess, next(segmenter.parameters()).device
        self.network = synchronised(segmenter).train()
        encoder: Any = self.network.encoder
        encoder.precision = precision
        if freeze_norm:
            encoder.eval()
        self.modules = {"network": self.network}
        groups = two_rates(self.network.parameters(), encoder.parameters(), lr, encoder_share)
        self.optimizers = {"larc": LARC(groups, lr, weight_decay=weight_decay)}

    def batch(self, indices: Indices, random: torch.Generator) -> tuple[Tensor, LabelMap]:
        """Resized crops with flips, and their labels at half the size, nearest."""
        pixels, maps, half = [], [], max(1, self.crop // 2)
        for i in (self.labels.indices[int(k)] for k in indices):
            size = self.labels.data.size(i)
            view = random_resized_crop(size, (self.crop, self.crop), scale=self.scale, generator=random)
            pixels.append(torch.from_numpy(read_view(self.labels.data, i, view)).permute(2, 0, 1))
            maps.append(self.labels.read(i).through(view.resize(half, half)))
        return self.preprocess.network_input(torch.stack(pixels), self.device), LabelMap.stack(maps).to(self.device)

    def losses(self, batch: tuple[Tensor, LabelMap], step: int) -> dict[str, Tensor]:
        """Plain cross-entropy."""
        x, y = batch
        logits = F.interpolate(self.network(x).float(), y.size, mode="bilinear", align_corners=False)
        return {"loss": F.cross_entropy(logits, y.target(IGNORE), ignore_index=IGNORE)}

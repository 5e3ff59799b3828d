"""PASS's three training stages: pretraining, the gate, and fine-tuning on pseudo-labels (TPAMI 2022, arXiv 2106.03149).

Legend: B photographs, C classes, S crop side, A the gate, n features of unit length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.crops import random_resized_crop
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import StoredLabels, read_view
from maskwright.engine.loop import Indices, Training
from maskwright.methods.unsupervised.pass_.network import Embedded, PassNetwork
from maskwright.methods.unsupervised.pass_.options import PassConfig
from maskwright.models.parts.attended_clusters import PixelAttention, upsampled
from maskwright.models.segmenter import Segmenter
from maskwright.ops.losses.pixel_alignment import p2p_loss
from maskwright.recipes.pretraining.instance import InstanceLoss, SwAV, synchronised
from maskwright.recipes.pretraining.larc import LARC, two_rates
from maskwright.recipes.pretraining.multicrop import Crops, MultiCrops

IGNORE = -1
"""What has no label, in the targets of the cross-entropy."""


class Pretraining(Training):
    """L = (L_e + sum_s w_s L_d2s^s) / (1 + sum_s w_s) + L_p2p.

    Batch norm: all layers in training mode, statistics of all global crops together and of all local crops together;
    with `freeze_norm` the backbone's stay in evaluation mode.
    """

    def __init__(self, network: PassNetwork, instance: InstanceLoss, crops: MultiCrops, config: PassConfig) -> None:
        c, self.crops, self.shape = config.pretrain, crops, config.shape
        self.network, self.instance = synchronised(network).train(), synchronised(instance).train()
        if config.freeze_norm:
            self.network.backbone.eval()
        self.modules: dict[str, nn.Module] = {"network": self.network, "instance": self.instance}
        trained = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        groups = two_rates(trained, network.backbone.parameters(), c.lr, c.backbone_share)
        self.optimizers = {"larc": LARC(groups, c.lr, weight_decay=config.weight_decay)}

    def batch(self, indices: Indices, random: torch.Generator) -> Crops:
        """Crops with the geometry that relates the two global ones."""
        return self.crops.draw(indices, random)

    def on_device(self, batch: Crops) -> Crops:
        """The same, as the network's input."""
        return self.crops.prepared(batch, next(self.network.parameters()).device)

    def losses(self, batch: Crops, step: int) -> dict[str, Tensor]:
        """L_e, L_d2s and L_p2p."""
        c, net = self.shape, self.network
        self.instance.before_step(step)
        out: Embedded = net(batch.global_, batch.local)
        l_e = self.instance(out.z, batch.global_.chunk(2), step)
        terms = {"instance": l_e}
        total, weight = l_e, 1.0
        for s, z in zip(c.d2s, out.shallow):
            terms[f"d2s_{s}"] = l_d2s = self.instance.supervise(z.chunk(2))
            total, weight = total + c.weight * l_d2s, weight + c.weight
        loss = total / weight
        if c.p2p:
            u1, u2 = net.pixel_head(out.deep).chunk(2)
            terms["p2p"] = l_p2p = p2p_loss(u1, u2, *batch.grids, net.predictor)
            loss = loss + l_p2p
        return {"loss": loss, **terms}

    def after_step(self, step: int) -> None:
        """Queues and momentum encoders."""
        self.instance.after_step(step, self.network)


class AttentionTraining(Training):
    """The gate, by the clustering loss of mean(A(n) n) on the frozen network; n has unit length at every pixel.

    Batch norm: all layers in training mode, also those of the frozen network and head, whose running statistics go on
    moving; no parameter of theirs does. With `freeze_norm` the backbone's stay in evaluation mode.
    """

    def __init__(
        self,
        network: PassNetwork,
        attention: PixelAttention,
        swav: SwAV,
        crops: MultiCrops,
        config: PassConfig,
    ) -> None:
        self.crops = crops
        self.network = synchronised(network.requires_grad_(False)).train()
        if config.freeze_norm:
            self.network.backbone.eval()
        self.attention, self.swav = synchronised(attention).train(), swav
        self.modules = {"network": self.network, "attention": self.attention, "swav": swav}
        trained = [*attention.parameters(), *swav.parameters()]
        self.optimizers = {"larc": LARC(trained, config.attention.lr, weight_decay=config.weight_decay)}

    def batch(self, indices: Indices, random: torch.Generator) -> Crops:
        """The crops of pretraining."""
        return self.crops.draw(indices, random)

    def on_device(self, batch: Crops) -> Crops:
        """The same, as the network's input."""
        return self.crops.prepared(batch, next(self.network.parameters()).device)

    def attended(self, x: Tensor) -> Tensor:
        """Crops to mean(A(n) n), (B, F)."""
        with torch.no_grad():
            n = F.normalize(upsampled(self.network.deepest(x)), dim=1)
        return (self.attention(n) * n).mean((-2, -1))

    def losses(self, batch: Crops, step: int) -> dict[str, Tensor]:
        """L_swav alone."""
        self.swav.before_step(step)
        pooled = [self.attended(x) for x in (batch.global_, batch.local) if x is not None]
        z = self.network.image_head(torch.cat(pooled)).split(len(batch.global_) // 2)
        return {"loss": self.swav(z, batch.global_.chunk(2), step)}

    def after_step(self, step: int) -> None:
        """Queues."""
        self.swav.after_step(step, self.network)


class Finetuning(Training):
    """The linear layer and the network, by cross-entropy over all ids, "other" included, at half the crop's size.

    Batch norm: all layers in training mode; with `freeze_norm` the encoder's stay in evaluation mode.

    Args:
        segmenter: the network, on its device.
        labels: pseudo-labels.
        crop: S, pixels.
        config: options.
        precision: of the encoder's forward pass, "bf16" or None.
    """

    def __init__(
        self, segmenter: Segmenter, labels: StoredLabels, crop: int, config: PassConfig, precision: str | None
    ) -> None:
        c = config.finetune
        self.labels, self.crop, self.scale = labels, crop, (c.scale_min, 1.0)
        self.preprocess, self.device = segmenter.preprocess, next(segmenter.parameters()).device
        segmenter.encoder.precision = precision  # type: ignore[assignment]
        self.network = synchronised(segmenter).train()
        encoder: Any = self.network.encoder
        if config.freeze_norm:
            encoder.eval()
        self.modules = {"network": self.network}
        groups = two_rates(self.network.parameters(), encoder.parameters(), c.lr, c.share)
        self.optimizers = {"larc": LARC(groups, c.lr, weight_decay=config.weight_decay)}

    def batch(self, indices: Indices, random: torch.Generator) -> tuple[Tensor, LabelMap]:
        """Resized crops with flips, uint8 (B, 3, S, S), and their labels at half the size, nearest."""
        pixels, maps, half = [], [], max(1, self.crop // 2)
        for i in (self.labels.indices[int(k)] for k in indices):
            size = self.labels.data.size(i)
            view = random_resized_crop(size, (self.crop, self.crop), scale=self.scale, generator=random)
            pixels.append(torch.from_numpy(read_view(self.labels.data, i, view)).permute(2, 0, 1))
            maps.append(self.labels.read(i).through(view.resize(half, half)))
        return torch.stack(pixels), LabelMap.stack(maps)

    def on_device(self, batch: tuple[Tensor, LabelMap]) -> tuple[Tensor, LabelMap]:
        """The same, as the network's input, and where the network is."""
        x, y = batch
        return self.preprocess.network_input(x, self.device), y.to(self.device)

    def losses(self, batch: tuple[Tensor, LabelMap], step: int) -> dict[str, Tensor]:
        """Plain cross-entropy."""
        x, y = batch
        logits = F.interpolate(self.network(x).float(), y.size, mode="bilinear", align_corners=False)
        return {"loss": F.cross_entropy(logits, y.target(IGNORE), ignore_index=IGNORE)}

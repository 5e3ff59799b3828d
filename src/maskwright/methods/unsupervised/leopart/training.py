"""Leopart's network and its training (CVPR 2022, arXiv 2204.13101).

Legend: B photographs, V crops, K prototypes, D width of the backbone, d embedding width, (h, w) map size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from maskwright.data.training.augment import photometric
from maskwright.data.training.proposals import SoftMap
from maskwright.engine import seeding
from maskwright.engine.checkpoint import trained
from maskwright.engine.context import Context
from maskwright.engine.distributed import reducer, sampler, world_size
from maskwright.engine.loop import Indices, Training
from maskwright.engine.schedules import cosine, cosine_value
from maskwright.methods.unsupervised.leopart.foreground import ForegroundMaps
from maskwright.methods.unsupervised.leopart.losses import (
    GLOBAL,
    Boxes,
    assign,
    attention_masks,
    foreground_bins,
    overlap_boxes,
    spatial_loss,
)
from maskwright.methods.unsupervised.leopart.options import LeopartConfig
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.preprocess import Preprocess
from maskwright.ops.transfer import to_device
from maskwright.recipes.banks import FeatureBank
from maskwright.recipes.clustering_health import ClusteringHealth
from maskwright.recipes.ema import EMATeacher
from maskwright.recipes.frozen.features import default_layers
from maskwright.recipes.pretraining.multicrop import Crops, MultiCrops
from maskwright.recipes.training.forward import precision_of

OVERLAPS = (0.02, 0.01)
"""Least share of the photograph's area that two global crops share, and that any other shares with each of them."""
TRIES = 100
"""Draws of a crop for that. Where they do not suffice the crops do not overlap enough; those that do not at all give
no term."""


def projection_head(width: int, hidden: int, dim: int) -> nn.Sequential:
    """Feature maps (B, width, h, w) to embeddings (B, dim, h, w) by three 1x1 convolutions with GELU."""
    return nn.Sequential(
        nn.Conv2d(width, hidden, 1), nn.GELU(), nn.Conv2d(hidden, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1)
    )


class LeopartNetwork(nn.Module):
    """Encoder, projection, and prototypes of unit length.

    Args:
        encoder: images to (B, D, h, w).
        hidden: width inside the projection.
        dim: d.
        prototypes: K.
    """

    def __init__(self, encoder: BackboneEncoder, hidden: int, dim: int, prototypes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = projection_head(encoder.width, hidden, dim)
        self.prototypes = nn.Linear(dim, prototypes, bias=False)

    @torch.no_grad()
    def normalise_prototypes(self) -> None:
        """Brings the prototypes to unit length."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (B, 3, S, S) to unit embeddings (B, d, h, w) and their cosines to the prototypes (B, K, h, w)."""
        z = F.normalize(self.head(self.encoder(x).float()), dim=1)
        return z, F.conv2d(z, self.prototypes.weight[..., None, None])


def leopart_network(context: Context, config: LeopartConfig) -> LeopartNetwork:
    """The run's backbone, its weights copied, with a new projection and new prototypes."""
    backbone = copy.deepcopy(context.backbone).requires_grad_(True)
    layers = config.features.layers or default_layers(backbone)
    h = config.head
    return LeopartNetwork(BackboneEncoder(backbone, layers), h.hidden, h.width, h.prototypes)


def drop_paths(network: nn.Module, rate: float) -> None:
    """Stochastic depth that grows from 0 at the first block to `rate` at the last, where timm's blocks have a place."""
    names = ("drop_path", "drop_path1", "drop_path2")
    blocks = [m for m in network.modules() if any(isinstance(getattr(m, n, None), nn.Module) for n in names)]
    for k, block in enumerate(blocks):
        for name in names:
            if isinstance(getattr(block, name, None), nn.Module):
                setattr(block, name, DropPath(rate * k / max(1, len(blocks) - 1)))


def crops_of(context: Context, config: LeopartConfig, encoder: BackboneEncoder) -> MultiCrops:
    """Two global crops and local ones, none mirrored, all of which overlap; sides whole cells of the encoder."""
    c, m = config.crops, encoder.multiple_of if context.backbone.is_vit else 1
    side, small = (-(-s // m) * m for s in (c.size, c.local_size))
    groups = [(GLOBAL, (side, side), (c.scale_min, 1.0)), (c.local, (small, small), (0.05, c.scale_min))]
    preprocess = Preprocess.for_backbone(context.backbone.provenance)
    return MultiCrops(
        context.data,
        groups,
        photometric(c.recipe),
        preprocess,
        threads=c.threads,
        overlaps=OVERLAPS,
        tries=TRIES,
        flip=0.0,
    )


class Drawn(NamedTuple):
    """Crops of B photographs.

    Attributes:
        crops: crop-major.
        boxes: where they overlap.
        foreground: of the global crops at their size, float32 (2 B, 1, S, S) in [0, 1], crop-major; None where
            attention says it, or nobody.
    """

    crops: Crops
    boxes: Boxes
    foreground: Tensor | None


class LeopartTraining(Training):
    """Tokens of overlapping crops that predict each other's assignment.

    Batch norm: a convolutional backbone's stays in evaluation mode where `freeze_norm` says so; the teacher's always.

    Args:
        context: of the run.
        config: options.
        steps: of the stage.
        maps: foreground of whole photographs; None where attention says it, or all cells count.
    """

    def __init__(self, context: Context, config: LeopartConfig, steps: int, maps: ForegroundMaps | None) -> None:
        self.context, self.c, self.steps, self.device = context, config, steps, context.device
        seeding.initialise(context.seed, "train")
        o, h = config.optimizer, config.head
        self.network = leopart_network(context, config).to(self.device)
        self.network.normalise_prototypes()
        self.network.encoder.precision = precision_of(config.precision, self.device)
        self.teacher = EMATeacher(self.network, o.momentum, warm=False)
        if o.drop_path:
            drop_paths(self.network.encoder, o.drop_path)
        self.network.train()
        if o.freeze_norm and not context.backbone.is_vit:
            self.network.encoder.eval()
        self.crops, self.maps = crops_of(context, config, self.network.encoder), maps
        self.attends = config.foreground.use and maps is None
        rows = -(-h.queue // world_size())
        self.queues = nn.ModuleList(FeatureBank(rows, h.width) for _ in range(GLOBAL if h.queue else 0)).to(self.device)
        self.modules = {"network": self.network, "teacher": self.teacher, "queues": self.queues}
        self.optimizers = {"adamw": self._optimizer()}
        self.sampler = sampler(context.seed, len(context.data), config.crops.batch)
        self.schedule = cosine(steps)
        self.health = ClusteringHealth(h.prototypes, steps, context.note)

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW; norms and biases are not decayed."""
        o, net = self.c.optimizer, self.network
        heads = [*net.head.parameters(), *net.prototypes.parameters()]
        groups = []
        for parameters, rate in ((list(net.encoder.parameters()), o.lr * o.backbone_share), (heads, o.lr)):
            for decays in (True, False):
                chosen = [p for p in parameters if (p.ndim > 1) is decays]
                decay = o.decay if decays else 0.0
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay, "decays": decays})
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=o.lr)

    # ------------------------------------------------------------------ batches

    def batch(self, indices: Indices, random: torch.Generator) -> Drawn:
        """Crops, their boxes, and the global ones' foreground where a store says it."""
        crops = self.crops.draw(indices, random)
        found = None
        if self.c.foreground.use and self.maps is not None:
            maps = [self.maps(int(i)) for i in indices]
            seen = [SoftMap(m, torch.ones_like(m, dtype=torch.bool)) for m in maps]
            found = torch.stack(
                [m.through(v[g]).values[None] for g in range(GLOBAL) for m, v in zip(seen, crops.views)]
            )
        return Drawn(crops, overlap_boxes(crops.views), found)

    def on_device(self, batch: Drawn) -> Drawn:
        """The same, as the network's input."""
        boxes = Boxes(*(to_device(b, self.device) for b in batch.boxes))
        found = None if batch.foreground is None else to_device(batch.foreground, self.device)
        return Drawn(self.crops.prepared(batch.crops, self.device), boxes, found)

    # ------------------------------------------------------------------ the step

    def before_step(self, step: int) -> None:
        """Unit prototypes, and the step's weight decay."""
        self.network.normalise_prototypes()
        self.taught.normalise_prototypes()
        decay = cosine_value(self.c.optimizer.decay, self.c.optimizer.last_decay, step, self.steps)
        for group in self.optimizers["adamw"].param_groups:
            group["weight_decay"] = decay if group["decays"] else 0.0

    @property
    def taught(self) -> LeopartNetwork:
        """The teacher's network."""
        module = self.teacher.module
        assert isinstance(module, LeopartNetwork)
        return module

    def masks(self, batch: Drawn, size: tuple[int, int]) -> list[Tensor] | None:
        """Foreground (B, 1, h, w) of each global crop, or None where all cells count."""
        if self.attends:
            c = self.c.foreground
            with torch.no_grad():
                attention = self.taught.encoder.backbone.cls_attention(batch.crops.global_)
            found = attention_masks(attention, c.mass, c.smallest)
        elif batch.foreground is not None:
            found = (F.adaptive_avg_pool2d(batch.foreground, size) >= 0.5).float()
        else:
            return None
        return list(found.chunk(GLOBAL))

    def losses(self, batch: Drawn, step: int) -> dict[str, Tensor]:
        """L of the student against the teacher's assignments; the teacher then follows, before the optimiser's step."""
        h, crops = self.c.head, batch.crops
        z, scores = self.teacher(crops.global_)
        masks = self.masks(batch, z.shape[-2:])
        q = [
            assign(s, self.queued_scores(g), h.eps, h.iterations, reducer()) for g, s in enumerate(scores.chunk(GLOBAL))
        ]
        predicted = list(self.network(crops.global_)[1].chunk(GLOBAL))
        if crops.local is not None:
            predicted += self.network(crops.local)[1].chunk(self.c.crops.local)
        m = None if masks is None else foreground_bins(masks, batch.boxes)
        loss = spatial_loss(q, predicted, batch.boxes, m, h.temperature)
        self.enqueue(z.chunk(GLOBAL), masks)
        o = self.c.optimizer
        self.teacher.update(self.network, cosine_value(o.momentum, 1.0, step, self.steps))
        health = self.health(predicted[0].detach())
        share = loss.new_tensor(1.0) if masks is None else torch.cat(masks).mean()
        return {"loss": loss, "foreground": share} | health

    @torch.no_grad()
    def queued_scores(self, view: int) -> Tensor | None:
        """Cosines (N, K) of a full queue's rows to the student's prototypes."""
        if not len(self.queues) or len(self.bank(view)) < self.bank(view).size:
            return None
        return self.bank(view).get() @ self.network.prototypes.weight.T

    def bank(self, view: int) -> FeatureBank:
        """The tokens of earlier steps, of one of the global crops."""
        bank = self.queues[view]
        assert isinstance(bank, FeatureBank)
        return bank

    @torch.no_grad()
    def enqueue(self, z: Sequence[Tensor], masks: Sequence[Tensor] | None) -> None:
        """Puts random foreground tokens of each global crop (B, d, h, w) into its queue, all of them where they are
        few."""
        for view in range(len(self.queues)):
            rows = z[view].permute(0, 2, 3, 1).flatten(0, 2)
            if masks is not None:
                rows = rows[masks[view].flatten() > 0]
            wanted = min(len(z[view]) * self.c.head.queued, self.bank(view).size)
            self.bank(view).add(rows[torch.randperm(len(rows))[:wanted].to(rows.device)])

    def after_step(self, step: int) -> None:
        """Watches for collapse."""
        self.health.after_step(step)


def trained_encoder(context: Context, config: Any) -> BackboneEncoder:
    """The student's encoder as training left it."""
    return trained(context.run.path / "train", "network", leopart_network(context, config)).encoder

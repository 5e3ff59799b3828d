"""SegSort: Segmentation by Discriminative Sorting of Segments.

Hwang, Yu, Shi, Collins, Yang, Zhang, Chen, ICCV 2019, https://arxiv.org/abs/1910.06962; its unsupervised form.

Each photograph is cut into regions, which are not learned. The network gives each pixel a unit vector; the vectors of a
region are drawn to their mean direction, its prototype, and away from those of all other regions of the batch: a
softmax of concentration kappa over segments. Behind the training, whole photographs fall into segments by spherical
k-means, and segments take classes by their prototypes.

Deviates: regions are superpixels joined across weak colour gradients, which saw no label; the authors' are of a
detector of contours that learned from people's (`--input regions` takes such, or its maps). What lies in no region, as
padding, takes no part. Predictions are clusters of all prototypes (`readout.by=clusters`), which read no label; the
paper's are votes of the k nearest segments of photographs with masks (`neighbours`), so its figures are not without
labels. Votes are of one scale; the authors add those of windows, scales and mirrored ones. A bank holds at most 65,536
segments, drawn. `segments.grid` cuts regions further by k-means, and `loss.memory` adds prototypes of earlier batches
to the others; the authors do either only with labels.

What the original gets wrong: positives of its supervised loss are found by subtraction, which loses them in float32
(`ops/losses/segment_contrast.py`); padding is one more segment, and shares its number with region 255; regions from 256
on are taken for those of the next photograph; prototypes of narrow photographs have scrambled places.

Legend: B crops, N pixels, S segments, D width of the embedding, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskwright.engine import seeding
from maskwright.engine.checkpoint import trained
from maskwright.engine.config import Idle, fill_from_preset, option, part
from maskwright.engine.context import Context
from maskwright.engine.distributed import sampler
from maskwright.engine.loop import Training
from maskwright.models.networks.build import Network
from maskwright.ops.losses.segment_contrast import segment_contrast
from maskwright.recipes.banks import FeatureBank
from maskwright.recipes.clustering import ClusterOptions
from maskwright.recipes.segments.method import SegmentMethod, embedding_network
from maskwright.recipes.segments.options import RegionOptions, SegmentOptions, SegmentReadout, idle_segment_options
from maskwright.recipes.segments.training import Segments, SegmentTraining, segment_figures
from maskwright.recipes.training.options import CropConfig, CropOptions, NetworkOptions, OptimizerOptions

PAPER: dict[str, Any] = {
    "network": "pspnet", "crop": 336, "batch": 8, "long_side": 500, "scale_min": 0.5, "scale_max": 2.0,
    "optimizer": "sgd", "lr": 2e-2, "encoder_lr": 0.1, "weight_decay": 5e-4, "steps": 10_000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "network": "auto", "crop": 160, "long_side": 480, "optimizer": "adamw", "lr": 1e-3, "encoder_lr": 0.3,
        "weight_decay": 0.01, "steps": 400,
    },
    "paper": PAPER,
}  # fmt: skip
"""By flat names. `small` finishes on two cores; `paper` is VOC on ResNet-101."""


@dataclass(kw_only=True)
class LossOptions:
    """The softmax over segments."""

    concentration: float = option(10.0, "kappa, factor of the cosines", low=1e-3, high=1000, main=True)
    memory: int = option(0, "prototypes of earlier batches among the others; 0: none", low=0, high=65536)


@dataclass(kw_only=True)
class SegSortConfig(CropConfig):
    """Options of `segsort`; those without a value of their own take the preset's, those that are given win."""

    preset: str = option("small", "sets the other options' defaults", choices=tuple(PRESETS), main=True)
    dim: int = option(32, "D, width of the embedding", low=2, high=4096)
    network: NetworkOptions = part(NetworkOptions, name=None)
    crops: CropOptions = part(
        CropOptions, without=("sample",), size=None, batch=None, long_side=None, scale_min=None, scale_max=None,
        says={"batch": "photographs in a step", "scale_min": "least random scale of a crop"},
    )  # fmt: skip
    optimizer: OptimizerOptions = part(OptimizerOptions, name=None, lr=None)
    regions: RegionOptions = part(RegionOptions)
    segments: SegmentOptions = part(SegmentOptions)
    loss: LossOptions = part(LossOptions)
    readout: SegmentReadout = part(SegmentReadout)
    clusters: ClusterOptions = part(ClusterOptions)
    steps: int = option(None, "optimiser steps where --steps does not say (preset)", low=1, main=True)

    def __post_init__(self) -> None:
        fill_from_preset(self, PRESETS.get(self.preset, {}))

    def idle(self) -> Idle:
        """Options of segments and of the read-out that the others leave without a use."""
        yield from super().idle()
        yield from idle_segment_options(self.regions, self.segments, self.readout)


def segsort_network(context: Context, config: SegSortConfig) -> Network:
    """The configured network and a linear layer to the embedding."""
    return embedding_network(context, config, config.dim)


class SegSortTraining(SegmentTraining):
    """Crops with regions through one network."""

    def __init__(self, context: Any, config: SegSortConfig, steps: int) -> None:
        seeding.initialise(context.seed, "train")
        super().__init__(context, config, steps, segsort_network(context, config))
        c, images = self.config, self.regions.indices
        order = sampler(context.seed, len(images), c.crops.batch)
        self.setup.streams["u"] = self.setup.stream(images, order, self.regions)
        self.memory: FeatureBank | None = None
        if c.loss.memory:
            self.memory = FeatureBank(c.loss.memory, c.dim).to(context.device)
            self.modules["memory"] = self.memory

    def sorting_loss(self, found: Segments) -> Tensor:
        """L = - mean_i log( e^{kappa v_i mu_s(i)} / sum_s e^{kappa v_i mu_s} ): each segment is a label of its own."""
        labels, memory, others = torch.arange(len(found.mu), device=found.mu.device), None, None
        if self.memory is not None:
            memory = self.memory.get()
            others = len(labels) + torch.arange(len(memory), device=memory.device)
            self.memory.add(found.mu)
        kappa = self.config.loss.concentration
        return segment_contrast(
            found.v, found.own, found.mu, labels, concentration=kappa, memory=memory, memory_labels=others
        )

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L, and how close pixels and segments lie."""
        u = batch["u"]
        found = self.segments(self.embed(u.weak), u.y)
        return {"loss": self.sorting_loss(found), **segment_figures(found)}


class SegSort(SegmentMethod):
    """An embedding in which regions are compact and lie apart, and clusters of its segments."""

    name: ClassVar[str] = "segsort"
    title: ClassVar[str] = "SegSort: Segmentation by Discriminative Sorting of Segments"
    venue: ClassVar[str] = "Hwang et al., ICCV 2019"
    link: ClassVar[str] = "https://arxiv.org/abs/1910.06962"
    summary: ClassVar[str] = "Sorts segments by their mean embedding."
    Config: ClassVar[type] = SegSortConfig
    trainer: ClassVar[type[Training]] = SegSortTraining
    says: ClassVar[str] = "an embedding in which each region is compact and lies apart from all others"
    config: SegSortConfig

    def network(self) -> Network:
        """The trained network, its classifier the layer to the embedding."""
        return trained(self.context.run.path / "train", "network", segsort_network(self.context, self.config))

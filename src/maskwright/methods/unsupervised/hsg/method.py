"""HSG: Unsupervised Hierarchical Semantic Segmentation with Multiview Cosegmentation and Clustering Transformers.

Ke, Hwang, Guo, Wang, Yu, CVPR 2022, https://arxiv.org/abs/2204.11432; with `levels.which=regions` its baseline, SegSort
across views.

Two views of each photograph are cut into segments: regions that are not learned, cut further by k-means. Pixels are
drawn to the segments of their region in both views. Two small transformers group the segments of a photograph, into
fine groups and these into coarse ones, so that neighbours in the embedding fall together (modularity) and no group has
all (collapse); pixels are drawn to the segments of their group as well.

Deviates: all beside SegSort's deviations of regions, read-out and bank (`segsort`). It is one training, whose levels
join after a share of the steps (`levels.start`; a run that ends before has none); the authors' two are
`preset=paper_regions`, then `preset=paper --weights RUN`, which keeps encoder and decoder. `paper` stands on DeepLab v3
of stride 16 in place of a plain dilated network. A graph has as many slots as the largest of its batch (the authors'
second setting; 256 in the first, where more crash). Biases learn as fast as weights, the authors' twice as fast.
Learned positions cover maps of any size. Void pixels take no part in the votes. What is predicted has no regions:
k-means alone.

What the original gets wrong: positives are found by subtraction, which loses them in float32; the number of edges is
counted twice in the modularity; edges are not symmetric; padding enters the batch norms, the deviation that starts the
decoder, and the balance; the contrast of centroids, said to be of two views, is a repulsion of one set from itself.

Legend: B photographs, S segments, d width of the embedding, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from maskwright.data.training.augment import PRESETS as RECIPES
from maskwright.engine.checkpoint import trained
from maskwright.engine.config import Idle, fill_from_preset, option, part
from maskwright.engine.context import Context
from maskwright.engine.distributed import world_size
from maskwright.engine.loop import Training
from maskwright.engine.needs import Terms
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.hsg.training import (
    LEAST,
    HSGTraining,
    LevelOptions,
    LossOptions,
    hsg_network,
    new_levels,
)
from maskwright.models.networks.build import Network
from maskwright.models.parts.hierarchy import Hierarchy, LevelClassifier
from maskwright.models.segmenter import Segmenter
from maskwright.ops.clustering.segments import Layout
from maskwright.recipes.clustering import ClusterOptions
from maskwright.recipes.segments.method import SegmentMethod
from maskwright.recipes.segments.options import RegionOptions, SegmentOptions, SegmentReadout, idle_segment_options
from maskwright.recipes.training.network import make_segmenter
from maskwright.recipes.training.options import CropConfig, CropOptions, NetworkOptions, OptimizerOptions

PAPER: dict[str, Any] = {
    "network": "deeplabv3", "hidden": 2048, "crop": 448, "batch": 48, "long_side": 640, "scale_min": 0.5,
    "scale_max": 1.5, "optimizer": "sgd", "lr": 8e-3, "encoder_lr": 1.0, "weight_decay": 1e-4, "schedule": "steps",
    "which": "fine+coarse", "start": 0.0, "rate": 10.0, "segments.grid": 4, "steps": 20_000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "network": "auto", "hidden": 0, "crop": 160, "batch": 4, "long_side": 480, "optimizer": "adamw", "lr": 1e-3,
        "encoder_lr": 0.3, "weight_decay": 0.01, "schedule": "poly", "start": 0.25, "rate": 1.0,
        "steps": 300,
    },
    "paper": PAPER,
    "paper_regions": PAPER | {
        "crop": 224, "batch": 128, "lr": 1e-1, "which": "regions", "segments.grid": 1, "steps": 350_000,
    },
}  # fmt: skip
"""By flat names. `small` finishes on two cores; the others are COCO on ResNet-50: first regions alone, from nothing,
then all levels."""


@dataclass(kw_only=True)
class HSGConfig(CropConfig):
    """Options of `hsg`; those without a value of their own take the preset's, those that are given win."""

    preset: str = option("small", "sets the other options' defaults", choices=tuple(PRESETS), main=True)
    dim: int = option(128, "d, width of the embedding; even, and a multiple of levels.heads", low=2, high=4096)
    hidden: int = option(None, "width of a hidden layer before the embedding; 0: none (preset)", low=0, high=8192)
    recipe: str = option("hsg", "photometric recipe of each view", choices=tuple(RECIPES))
    network: NetworkOptions = part(NetworkOptions, name=None)
    crops: CropOptions = part(
        CropOptions, without=("sample",), size=None, batch=None, long_side=None, scale_min=None, scale_max=None,
        says={"batch": "photographs in a step, two views of each", "scale_min": "least random scale of a view"},
    )  # fmt: skip
    optimizer: OptimizerOptions = part(OptimizerOptions, name=None, lr=None)
    schedule: str = option(
        None, "of the learning rate; steps: a tenth at .32, .56 and .75 of the way (preset)", choices=("poly", "steps")
    )
    regions: RegionOptions = part(RegionOptions)
    segments: SegmentOptions = part(SegmentOptions, grid=None)
    levels: LevelOptions = part(LevelOptions)
    loss: LossOptions = part(LossOptions)
    readout: SegmentReadout = part(SegmentReadout, grid=6, iterations=15, k=20)
    clusters: ClusterOptions = part(ClusterOptions)
    steps: int = option(None, "optimiser steps where --steps does not say (preset)", low=1, main=True)

    def __post_init__(self) -> None:
        fill_from_preset(self, PRESETS.get(self.preset, {}))

    def idle(self) -> Idle:
        """Options of levels that are not learned, and of segments and the read-out that the others leave without a
        use."""
        yield from super().idle()
        yield from idle_segment_options(self.regions, self.segments, self.readout)
        which = self.levels.which
        if which == "fine":
            yield ("levels.coarse",), "levels.which=fine"
        if which == "regions":
            rest = ("fine", "coarse", "rate", "heads", "inner", "layers", "dropout", "table", "neighbours", "by_view")
            yield [f"levels.{name}" for name in rest], "levels.which=regions"
            yield ("loss.groups", "loss.modularity", "loss.centroids"), "levels.which=regions"
            if self.segments.grid == 1:  # else regions are cut from levels.start on
                yield ("levels.start",), "levels.which=regions and segments.grid=1"

    def check(self) -> None:
        """Raises `MaskwrightError` on a width that the levels cannot have."""
        self.levels.check_width(self.dim)


class HSG(SegmentMethod):
    """An embedding of regions and of groups of them, clusters of its segments, and the groups themselves."""

    name: ClassVar[str] = "hsg"
    title: ClassVar[str] = (
        "Unsupervised Hierarchical Semantic Segmentation with Multiview Cosegmentation and Clustering Transformers"
    )
    venue: ClassVar[str] = "Ke et al., CVPR 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2204.11432"
    summary: ClassVar[str] = "Groups segments of views, fine to coarse."
    Config: ClassVar[type] = HSGConfig
    trainer: ClassVar[type[Training]] = HSGTraining
    says: ClassVar[str] = "an embedding of regions in two views, and of fine and coarse groups of them"
    layout: ClassVar[Layout] = "centred"
    config: HSGConfig

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """Its first steps learn regions alone."""
        joins = {"levels": config.levels.which != "regions", "smaller segments": config.segments.grid > 1}
        later = [what for what, does in joins.items() if does]
        waits = later and config.levels.start > 0
        untimed = f"steps from {config.levels.start:.0%} on, which learn {' and '.join(later)} too" if waits else ""
        return replace(super().terms(config, images), untimed=untimed)

    def __init__(self, config: HSGConfig, context: Context) -> None:
        super().__init__(config, context)
        least = LEAST * world_size()
        if config.levels.which != "regions" and config.crops.batch < least:
            raise MaskwrightError(
                f"crops.batch={config.crops.batch} with levels", f"at least {least}, {LEAST} a process",
                f"add --set crops.batch={least}, or levels.which=regions",
            )  # fmt: skip

    def network(self) -> Network:
        """The trained network, its classifier the layers to the embedding."""
        return trained(self.context.run.path / "train", "network", hsg_network(self.context, self.config))

    def hierarchy(self) -> Hierarchy | None:
        """The trained groups; None without levels, and where the training ended before these joined it."""
        empty = new_levels(self.config.levels, self.config.dim)
        if empty is None:
            return None
        found = trained(self.context.run.path / "train", "levels", empty)
        norms = [m for m in found.modules() if isinstance(m, nn.BatchNorm1d)]
        if any(m.num_batches_tracked for m in norms):
            return found
        self.context.note(
            f"The levels were never trained (they join at levels.start={self.config.levels.start:g} of the steps), so "
            "the model has none: predict --level will be refused."
        )
        return None

    def segmenter(self) -> Segmenter:
        """The network, its embedding, the read-out by segments, and the levels beside it."""
        hierarchy = self.hierarchy()
        if hierarchy is None:
            return super().segmenter()
        r, network = self.config.readout, self.network()
        network.classifier = LevelClassifier(
            network.classifier, hierarchy.cpu(), self.read_out(), r.grid, r.iterations, self.layout
        )
        return make_segmenter(self.context, self.config, network, self.name, range(len(self.context.data)))

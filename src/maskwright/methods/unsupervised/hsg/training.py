"""HSG's training: two views of each photograph, their segments, and groups of these (CVPR 2022).

Legend: B photographs, S segments, d width of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskwright.data.training.augment import photometric
from maskwright.data.training.streams import Repeated
from maskwright.engine import seeding
from maskwright.engine.config import option
from maskwright.engine.distributed import sampler
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.hsg.losses import level_losses, make_graphs, mean_positions, region_loss
from maskwright.models.networks.build import Network
from maskwright.models.parts.hierarchy import Hierarchy
from maskwright.ops.clustering.segments import Layout
from maskwright.recipes.clustering_health import ClusteringHealth
from maskwright.recipes.segments.method import embedding_network
from maskwright.recipes.segments.training import Segments, SegmentTraining, find_segments, segment_figures

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.methods.unsupervised.hsg.method import HSGConfig

VIEWS = 2
LEAST = 2
"""Photographs of a process's batch, at least, for levels."""
DECAYS, GAMMA, WARM = (0.32, 0.56, 0.75), 0.1, 100
"""Of the schedule by steps: where on the way the rate becomes a tenth, and steps until it is whole."""


@dataclass(kw_only=True)
class LevelOptions:
    """Groups of segments."""

    which: str = option(
        None, "levels that are learned; regions: none but these, in two views, the baseline (preset)",
        choices=("fine+coarse", "fine", "regions"), main=True,
    )  # fmt: skip
    fine: int = option(8, "fine groups of a photograph, at most", low=2, high=256, main=True)
    coarse: int = option(4, "coarse groups, at most", low=2, high=256)
    start: float = option(None, "share of the steps on whole regions alone, before levels (preset)", low=0, high=1)
    rate: float = option(None, "factor on the head's learning rate for them (preset)", low=0, high=100)
    heads: int = option(4, "of attention in the transformers", low=1, high=64)
    inner: int = option(256, "width inside their layers", low=1, high=8192)
    layers: int = option(2, "of encoder and decoder each", low=1, high=12)
    dropout: float = option(0.1, "inside their layers", low=0, high=0.9)
    table: int = option(50, "rows and columns of the learned positions", low=1, high=1024)
    neighbours: int = option(2, "nearest segments that a segment has edges to", low=1, high=64)
    by_view: bool = option(True, "so many in each view; false: in both together")

    def check_width(self, dim: int) -> None:
        """Raises `MaskwrightError` on a width that neither halves nor divides by the heads."""
        if self.which != "regions" and (dim % 2 or dim % self.heads):
            raise MaskwrightError(f"dim={dim}", f"an even multiple of levels.heads={self.heads}", "add --set dim=128")

    def check(self) -> None:
        """Raises `MaskwrightError` on coarse groups that are more than the fine ones, and levels that never begin."""
        if self.which == "fine+coarse" and self.coarse > self.fine:
            raise MaskwrightError(f"levels.coarse={self.coarse}", f"at most levels.fine={self.fine}")
        if self.which != "regions" and self.start == 1:
            raise MaskwrightError(
                "levels.start=1, when there is no step left", "less", "set it lower, or levels.which=regions"
            )


@dataclass(kw_only=True)
class LossOptions:
    """The terms."""

    concentration: float = option(16.0, "kappa, factor of the cosines", low=1e-3, high=1000, main=True)
    groups: float = option(0.1, "weight of pixels against segments of their group, each level", low=0)
    modularity: float = option(1.0, "weight of modularity and balance, each level", low=0)
    centroids: float = option(1.0, "weight of the repulsion of centroids, each level", low=0)


def hsg_network(context: Context, config: HSGConfig) -> Network:
    """The configured network and the layers to the embedding."""
    return embedding_network(context, config, config.dim, config.hidden)


def new_levels(c: LevelOptions, dim: int) -> Hierarchy | None:
    """Untrained groups as the options say; None without levels."""
    if c.which == "regions":
        return None
    coarse = c.coarse if c.which == "fine+coarse" else 0
    return Hierarchy(dim, c.fine, coarse, c.heads, c.inner, c.layers, c.dropout, c.table)


def stepped(steps: int, warm: int = WARM) -> Callable[[int], float]:
    """Factor of the learning rate: from a tenth to 1 in `warm` steps, then a tenth of it at each of `DECAYS`."""

    def factor(step: int) -> float:
        begun = min(1.0, 0.1 + 0.9 * step / warm)
        return begun * GAMMA ** sum(step >= round(at * steps) for at in DECAYS)

    return factor


class HSGTraining(SegmentTraining):
    """Views through one network, and groups of their segments."""

    layout: Layout = "centred"

    def __init__(self, context: Any, config: HSGConfig, steps: int) -> None:
        seeding.initialise(context.seed, "train")
        super().__init__(context, config, steps, hsg_network(context, config))
        c, images = self.config, self.regions.indices
        order = sampler(context.seed, len(images), c.crops.batch)
        photographs = self.setup.stream(images, order, self.regions)
        photographs.jitter = photometric(c.recipe)
        self.setup.streams["u"] = Repeated(photographs, VIEWS)
        levels = new_levels(c.levels, c.dim)
        self.levels: Hierarchy | None = (
            None if levels is None else self.setup.learn_too("levels", levels, c.levels.rate)
        )
        self.start = round(c.levels.start * steps)
        self.health = ClusteringHealth(c.levels.fine, steps, context.note)
        if c.schedule == "steps":
            self.schedule = stepped(steps)

    # ------------------------------------------------------------------ the step

    def grouped_terms(self, found: Segments, levels: Hierarchy, size: tuple[int, int], crops: int) -> dict[str, Tensor]:
        """What the levels ask of the segments of crops whose maps have a size (h, w)."""
        c = self.config
        position = levels.positions(size).expand(crops, -1, -1, -1)
        graphs = make_graphs(found, mean_positions(position, found))
        groups = levels.groups(graphs.nodes, graphs.position, graphs.padding)
        ids = groups["fine"].assignment.detach().argmax(1).masked_fill(graphs.padding, -1)
        kappa, k = c.loss.concentration, c.levels.neighbours
        return level_losses(found, graphs, groups, kappa, k, c.levels.by_view) | self.health(ids)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_e + w_g (L_f + L_c) + w_m (modularity and balance of both) + w_c (repulsion of both)."""
        c, u = self.config, batch["u"]
        v = self.embed(u.weak)
        levels = self.levels if step >= self.start else None
        grid = 1 if step < self.start else c.segments.grid
        found = find_segments(v, u.y, grid, c.segments.iterations, self.layout)
        region = region_loss(found, c.loss.concentration)
        figures = segment_figures(found)
        # The transformers' batch norms have no statistics of a single graph.
        if levels is None or len((found.crop // 2).unique()) < LEAST:
            return {"loss": region, "region": region, **figures}
        terms = self.grouped_terms(found, levels, (v.shape[2], v.shape[3]), len(v))

        def both(*kinds: str) -> Tensor:
            names = [f"{level}{kind}" for level in ("fine", "coarse") for kind in kinds]
            return torch.stack([terms[name] for name in names if name in terms]).sum()

        groups, goodness, apart = both(""), both("_modularity", "_balance"), both("_centroids")
        loss = region + c.loss.groups * groups + c.loss.modularity * goodness + c.loss.centroids * apart
        return {"loss": loss, "region": region, **terms, **figures}

    def after_step(self, step: int) -> None:
        """Watches for groups that fall together."""
        self.health.after_step(step)

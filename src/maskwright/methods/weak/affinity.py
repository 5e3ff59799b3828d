"""AffinityNet and IRN: class maps take a random walk along a learned affinity of pixels before they become labels.

Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations, Ahn, Cho and Kwak, CVPR 2019,
https://arxiv.org/abs/1904.05044 (variant=irn).
Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic Segmentation, Ahn
and Kwak, CVPR 2018, https://arxiv.org/abs/1803.10464 (variant=psa).

Where class maps are sure, pairs of nearby pixels are known to be alike or not, whatever their class is. From these
pairs a network learns an affinity of pixels: exp(-mean |f_i - f_j|) of its features (PSA), or 1 minus the strongest
boundary on the straight path between the two (IRN), which no label ever showed it. A random walk with the affinity as
its transition spreads the maps over what they belong to and stops at boundaries. `maps.by` chooses whose maps walk;
SEAM's do with `--method seam --set walk=irn`.

Deviates: the walk is repeated sparse products, where both originals take the power of a dense matrix. AffinityNet's
features come from three stages of any backbone, at the finest of their grids. Sure areas follow the threshold that is
found without masks (half and one and a half of it, or the exponents that draw the line there): IRN's 0.05 and 0.3 and
PSA's powers 4 and 24 (or 32) around 16 suit other maps than small networks give. Pairs at the border of a crop count,
too (`ops/graphs/pair_affinity.py`). Labels of a cell are those of its central pixel. Paths between pixels are wide
enough that a diagonal boundary cannot be crossed between two cells. The background threshold of IRN's walked maps is
found without masks too; PSA needs none, as its background walks along. A walk's length is in proportion to the cells
of the photograph's grid, and the published 256 at 375 x 500 pixels: one of fixed length spreads over a larger share of
a smaller photograph. IRN's exponent is 20 instead of 10, as boundaries learned from a tenth of the crops are lower and
more leaks through them. IRN's displacement field, which separates instances and shares nothing with the boundaries, is
left out.

What the originals get wrong: their optimiser's argument `momentum` is the power of the learning-rate schedule, so both
are trained with plain SGD; here `affinity.momentum` is one. Powers of dense matrices take 550 MB for a photograph of
500 x 375.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from maskwright.engine.config import option, part
from maskwright.models.networks.cam import VARIANTS as MAPS
from maskwright.models.networks.cam import activation_maps
from maskwright.models.networks.irn import VARIANTS
from maskwright.recipes.tags.method import TagMethod
from maskwright.recipes.tags.options import MapOptions
from maskwright.recipes.tags.walk_options import WalkConfig, WalkOptions
from maskwright.recipes.tags.walking import STEPS, Walk


@dataclass(kw_only=True)
class AffinityMaps(MapOptions):
    """How class maps are made, and by whom."""

    by: str = option("cam", "whose maps walk", choices=MAPS, old="seeds", main=True)


@dataclass(kw_only=True)
class AffinityWalk(WalkOptions):
    """The random walk, which this method always takes."""

    kind: str = option(
        "irn", "irn: boundaries on a frozen backbone; psa: features of a trained one", choices=VARIANTS, old="variant",
        main=True,
    )  # fmt: skip


@dataclass(kw_only=True)
class AffinityConfig(WalkConfig):
    """Options of `affinity`."""

    maps: AffinityMaps = part(AffinityMaps)
    walk: AffinityWalk = part(AffinityWalk)


class Affinity(TagMethod):
    """Class maps, sure pairs, an affinity, a walk."""

    name: ClassVar[str] = "affinity"
    title: ClassVar[str] = "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations"
    venue: ClassVar[str] = "Ahn, Cho and Kwak, CVPR 2019"
    link: ClassVar[str] = "https://arxiv.org/abs/1904.05044"
    summary: ClassVar[str] = "Walks class maps along learned affinities."
    Config: ClassVar[type] = AffinityConfig
    published: ClassVar[Mapping[str, int]] = STEPS

    @cached_property
    def walk(self) -> Walk:
        """IRN's or AffinityNet's."""
        return Walk(self.context, self.config, lambda: self.targets, self.published)

    def maps(self, network: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """Maps of the tagged classes, as `maps.by` says."""
        return lambda x, tags: activation_maps(network, x, tags, self.config.maps.by)

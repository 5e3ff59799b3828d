"""Training of embeddings on segments: a crop's regions, cut by k-means, and their prototypes.

Legend: B crops, N pixels of all crops that lie in regions, S their segments, D width of the embedding, (h, w) map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.engine.loop import Training
from maskwright.ops.clustering.segments import Layout, numbered, prototypes, segments_within
from maskwright.ops.losses.region_contrast import as_rows, nearest
from maskwright.recipes.segments.regions import stored_regions
from maskwright.recipes.training.setup import CropSetup

if TYPE_CHECKING:
    from maskwright.models.networks.build import Network


class Segments(NamedTuple):
    """Segments of a batch.

    Attributes:
        v: unit embeddings (N, D).
        pixels: int64 (N,), their places among the B h w.
        own: int64 (N,), the segment of each.
        mu: prototypes (S, D).
        crop: int64 (S,), which crop each is of; they ascend.
        region: int64 (S,), and which region there.
    """

    v: Tensor
    pixels: Tensor
    own: Tensor
    mu: Tensor
    crop: Tensor
    region: Tensor


def find_segments(v: Tensor, regions: LabelMap, grid: int, iterations: int, layout: Layout) -> Segments:
    """Segments of crops: clusters of k-means in each crop, cut by its regions. What lies in no region takes no part.

    Args:
        v: unit embeddings (B, D, h, w).
        regions: of the crops, at any size; each cell of the map takes that of its centre.
        grid, iterations, layout: of k-means (`ops.clustering.segments`).
    """
    ids = nearest(regions.target(-1), (v.shape[2], v.shape[3]))
    counted = ids >= 0
    clusters = segments_within(v, grid, iterations, layout, counted).flatten()
    crops = torch.arange(len(v), device=v.device).repeat_interleave(v.shape[2] * v.shape[3])
    pixels = counted.flatten().nonzero()[:, 0]
    own, place = numbered(crops[pixels], clusters[pixels], ids.flatten()[pixels])
    rows, first = as_rows(v)[pixels], pixels[place]
    return Segments(rows, pixels, own, prototypes(rows, own, len(place)), crops[first], ids.flatten()[first])


@torch.no_grad()
def segment_figures(found: Segments) -> dict[str, Tensor]:
    """For the metrics: the mean cosine of pixels and their prototype (`compact`), and of two segments (`alike`, 1
    where all embeddings are one)."""
    s = len(found.mu)
    total = found.mu.sum(0).square().sum() - found.mu.square().sum()
    compact = (found.v * found.mu[found.own]).sum(1).sum() / max(1, len(found.v))
    return {"compact": compact, "alike": total / max(1, s * (s - 1)), "segments": found.mu.new_tensor(float(s))}


class SegmentTraining(Training):
    """A network whose output is an embedding, on crops with regions; methods write `losses`.

    Attributes:
        layout: of k-means within a crop.
    """

    layout: Layout = "corner"
    setup: CropSetup

    def __init__(self, context: Any, config: Any, steps: int, network: Network) -> None:
        setup = CropSetup(context, config, steps, network=network)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.network = setup.student, setup.network
        self.regions = stored_regions(context, self.config.regions)

    def embed(self, x: Tensor) -> Tensor:
        """Unit embeddings (B, D, h, w) of crops."""
        with self.student.autocast():
            embedding = self.network.classify(self.network.decode(self.network.features(x)))
        return F.normalize(embedding.float(), dim=1)

    def segments(self, v: Tensor, regions: LabelMap) -> Segments:
        """The segments of crops, as the options say."""
        c = self.config.segments
        return find_segments(v, regions, c.grid, c.iterations, self.layout)

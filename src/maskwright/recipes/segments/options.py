"""Options of methods that learn from segments."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.engine.config import Idle, option


@dataclass(kw_only=True)
class RegionOptions:
    """Regions of each photograph, which are not learned."""

    by: str = option(
        "contours", "superpixels alone, or joined across weak contours: of --input regions, or colour gradients",
        choices=("contours", "superpixels"), main=True,
    )  # fmt: skip
    most: int = option(48, "regions of a photograph, at most; of superpixels about", low=2, high=4096, main=True)
    threshold: float = option(0.25, "contours of a mean strength below it are removed", low=0, high=1)
    superpixels: int = option(400, "superpixels that are joined", low=2, high=8192)
    given: str = option(
        "auto", "what --input regions holds; auto: what its record says, regions where there is none",
        choices=("auto", "regions", "contours"),
    )  # fmt: skip


@dataclass(kw_only=True)
class SegmentOptions:
    """Segments that are trained on: regions, cut by k-means within the photograph."""

    grid: int = option(1, "k-means starts from so many cells down and across; 1: regions stay whole", low=1, high=16)
    iterations: int = option(15, "of this k-means", low=1, high=100)


@dataclass(kw_only=True)
class SegmentReadout:
    """From the trained embedding to predictions."""

    by: str = option(
        "clusters", "segments take the nearest cluster of all segments' prototypes, or the vote of the nearest "
        "segments of photographs with masks (reads these)", choices=("clusters", "neighbours"), main=True,
    )  # fmt: skip
    grid: int = option(5, "k-means within a photograph starts from so many cells down and across", low=1, high=16)
    iterations: int = option(10, "of this k-means", low=1, high=100)
    k: int = option(15, "neighbours that vote", low=1, high=1000)
    most: int = option(65536, "segments of all photographs that are kept as neighbours or clustered", low=2, high=65536)
    temperature: float = option(
        0.1, "cosines to clusters are divided by it to give logits; for confidence and refinement only", low=1e-4
    )


def idle_segment_options(regions: RegionOptions, segments: SegmentOptions, readout: SegmentReadout) -> Idle:
    """For a method's `idle`, whose parts have these names: options of contours, of k-means within regions, and of the
    other read-out, the part `clusters` among them."""
    if regions.by == "superpixels":
        yield ("regions.threshold", "regions.superpixels"), "regions.by=superpixels"
    if segments.grid == 1:
        yield ("segments.iterations",), "segments.grid=1"
    if readout.by == "clusters":
        yield ("readout.k",), "readout.by=clusters"
    else:
        yield ("clusters", "readout.temperature"), "readout.by=neighbours"

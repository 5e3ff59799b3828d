"""Options of methods on frozen features, a group for each part."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.engine.config import option
from maskwright.models.preprocess import MAX_SIDE


@dataclass(kw_only=True)
class FeatureOptions:
    """Which features are read, and at what size."""

    short_side: int = option(320, "pixels; shorter side of the network's input", low=16, high=MAX_SIDE, main=True)
    layers: tuple[int, ...] | None = option(None, "blocks or stages to read; none chooses by the network")
    kind: str = option("tokens", "what of a transformer block", choices=("tokens", "q", "k", "v"))


@dataclass(kw_only=True)
class LearnedFeatureOptions(FeatureOptions):
    """The same, and what of a photograph is learned from."""

    crop: float = option(
        0.5, "share of each side of random crops that are learned from in place of whole photographs; 1: no crops",
        low=0.2, high=1,
    )  # fmt: skip
    margin: float = option(
        0.0, "share of each side along which positions are not learned from: there features tell of the border",
        low=0, high=0.45,
    )  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether all of each photograph is learned from: neither crops nor a margin."""
        return self.crop == 1 and not self.margin


@dataclass(kw_only=True)
class ReductionOptions:
    """PCA of the features."""

    dim: int = option(
        32, "channels kept by PCA; more keep noise, which whitening would raise to full power; 0 keeps all", low=0
    )
    whiten: bool = option(True, "divide each kept channel by its standard deviation")
    max_rows: int = option(
        400_000, "positions that PCA and k-means are fitted on; more are drawn from, the same number an image", low=1
    )


@dataclass(kw_only=True)
class ReadoutOptions:
    """From clusters to predictions."""

    crf: bool = option(False, "the dense CRF after prediction unless --refine says otherwise", main=True)
    temperature: float = option(
        0.1, "cosines are divided by it to give logits; for confidence and refinement only", low=1e-4
    )

"""Options of methods whose class maps take a random walk, a group for each part of it."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.engine.config import Idle, option, part
from maskwright.errors import MaskwrightError
from maskwright.models.networks.irn import VARIANTS
from maskwright.recipes.tags.options import TagsConfig


@dataclass(kw_only=True)
class PairOptions:
    """From which pixels of the maps pairs are made."""

    thresholds: tuple[float, ...] = option(
        (),
        "irn: sure background below the first, sure class above the second (published: 0.05,0.3 around a threshold of "
        "0.15); empty: half and one and a half of the threshold found without masks",
        low=0, high=1, old="pair_thresholds",
    )  # fmt: skip
    alphas: tuple[float, ...] = option(
        (),
        "psa: a class is sure that beats (1 - max)^first, background of ^second that beats all (published: 4,24 "
        "or 4,32); empty: the exponents that draw the line where pairs.thresholds would",
        low=0.01, high=1000, old="pair_alphas",
    )  # fmt: skip
    crf: bool = option(True, "a dense CRF decides on both labellings, as published", old="pair_crf")

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        for name, values, example in (("thresholds", self.thresholds, "0.05,0.3"), ("alphas", self.alphas, "4,24")):
            if len(values) not in (0, 2) or list(values) != sorted(values):
                raise MaskwrightError(f"{name}={tuple(values)}", "two, ascending", f"--set pairs.{name}={example}")


@dataclass(kw_only=True)
class AffinityOptions:
    """How the affinity of pixels is learned; crops, batch and decay are the classifier's."""

    steps: int = option(
        0, "steps of the affinity's training; 0: as many as the classifier's", low=0, old="affinity_steps"
    )
    lr: float = option(0.1, "learning rate of what is new in it, poly schedule", low=0, old="affinity_lr")
    momentum: float = option(
        0.9, "of its sgd; published code has none and ten times the steps", low=0, high=0.99, old="affinity_momentum"
    )
    radius: int = option(
        0, "pairs closer than this are learned from, cells; 0: 10 for irn, 5 for psa", low=0, high=32,
        old="affinity_radius",
    )  # fmt: skip

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.radius == 1:
            raise MaskwrightError("radius=1", "0 or at least 2: below 2 there are no pairs")


@dataclass(kw_only=True)
class WalkOptions:
    """The random walk that maps take along the affinity."""

    kind: str = option(
        "none", "a random walk along a learned affinity: of boundaries (irn), of features (psa), or none",
        choices=("none", *VARIANTS), old="walk", main=True,
    )  # fmt: skip
    radius: int = option(
        5, "pixels of the walk's graph are joined when closer than this, cells", low=2, high=32, old="walk_radius"
    )
    beta: float = option(
        0.0, "exponent of the affinity; 0: 20 for irn (published: 10), 8 for psa", low=0, high=1000, old="walk_beta"
    )
    steps: int = option(
        0, "length of the walk; 0: the published 256 (SEAM's psa: 64) at 375 x 500 pixels, in proportion to the cells",
        low=0, high=100_000, old="walk_steps",
    )  # fmt: skip
    alpha: float = option(
        0.0, "psa: (1 - max)^alpha walks as the background (published: 16, SEAM 6); 0: from the threshold found",
        low=0, high=1000, old="walk_alpha",
    )  # fmt: skip


@dataclass(kw_only=True)
class WalkConfig(TagsConfig):
    """Options of the whole way with an affinity and a walk in it."""

    pairs: PairOptions = part(PairOptions)
    affinity: AffinityOptions = part(AffinityOptions)
    walk: WalkOptions = part(WalkOptions)

    @property
    def finds_threshold(self) -> bool:
        """Also for the pairs, and for the background that walks, where nothing else draws their line."""
        kind, p = self.walk.kind, self.pairs
        pairs = bool(p.thresholds or (kind == "psa" and p.alphas))
        background = kind != "psa" or self.walk.alpha > 0
        return super().finds_threshold or (kind != "none" and not (pairs and background))

    def idle(self) -> Idle:
        """Options of a walk where there is none, and of the other kind."""
        yield from super().idle()
        kind = self.walk.kind
        if kind == "none":
            yield ("pairs", "affinity", "walk.radius", "walk.beta", "walk.steps", "walk.alpha"), "walk.kind=none"
        elif kind == "irn":
            yield ("pairs.alphas", "walk.alpha"), "walk.kind=irn"
        elif self.pairs.alphas:
            yield ("pairs.thresholds",), f"pairs.alphas={','.join(f'{a:g}' for a in self.pairs.alphas)}"

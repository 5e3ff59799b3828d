"""Options of methods that learn from labelled and unlabelled photographs side by side, a group for each part."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.data.training.augment import PRESETS
from maskwright.engine.config import Idle, option, part
from maskwright.recipes.training.options import NetworkConfig, NormOptions

NOTHING_UNLABELED = "ramp.weight=0"
"""What leaves options without a use that decide on what is learned from photographs without masks."""


@dataclass(kw_only=True)
class UnlabeledOptions:
    """What a step sees of the photographs without masks."""

    batch: int = option(0, "unlabelled crops in a step; 0: as many as labelled ones", low=0, old="batch_unlabeled")
    images: str = option(
        "rest", "rest: images without masks (all where there are none); all", choices=("rest", "all"), old="unlabeled"
    )
    strong: str = option("unimatch", "photometric recipe of the strong views", choices=tuple(PRESETS))


@dataclass(kw_only=True)
class RampOptions:
    """lambda(t), the weight of the unsupervised loss."""

    weight: float = option(1.0, "weight of the unsupervised loss", low=0, main=True)
    up: float = option(
        0.0, "share of the steps over which the weight grows as exp(-5 (1 - t)^2)", low=0, high=1, old="ramp_up"
    )
    start: float = option(0.0, "share of the steps before the unsupervised loss sets in", low=0, high=1)


@dataclass(kw_only=True)
class SemiConfig(NetworkConfig):
    """Options of methods that look at labelled and unlabelled photographs side by side; a method adds its teacher's."""

    norms: NormOptions = part(NormOptions, without=("photographs",), photographs="all")  # training looks at all
    unlabeled: UnlabeledOptions = part(UnlabeledOptions)
    ramp: RampOptions = part(RampOptions)

    def idle(self) -> Idle:
        """What is looked at of photographs without masks where nothing is learned from them."""
        yield from super().idle()
        if self.ramp.weight == 0:
            yield ("ramp.up", "ramp.start", "unlabeled"), NOTHING_UNLABELED

    @property
    def unlabeled_batch(self) -> int:
        """Unlabelled crops in a step, over all processes."""
        return self.unlabeled.batch or self.crops.batch

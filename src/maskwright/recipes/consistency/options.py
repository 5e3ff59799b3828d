"""Options of methods that learn from labelled and unlabelled photographs side by side, a group for each part."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.data.training.augment import PRESETS
from maskwright.engine.config import option, part
from maskwright.errors import MaskwrightError
from maskwright.recipes.training.options import NetworkConfig, NormOptions


@dataclass(kw_only=True)
class UnlabeledOptions:
    """What a step sees of the photographs without masks."""

    batch: int = option(0, "unlabelled crops in a step; 0: as many as labelled ones", low=0, old="batch_unlabeled")
    images: str = option(
        "rest", "rest: images without masks (all where there are none); all", choices=("rest", "all"), old="unlabeled"
    )
    strong: str = option("unimatch", "photometric recipe of the strong views", choices=tuple(PRESETS))


@dataclass(kw_only=True)
class TeacherOptions:
    """The EMA teacher."""

    ema: float = option(
        0.99, "greatest momentum of the EMA teacher; min(1 - 1/(n + 1), ema) at update n", low=0, high=1
    )
    buffers: str = option(
        "ema", "the teacher's batch-norm statistics: averaged, copied or its own", choices=("ema", "copy", "own"),
        old="ema_buffers",
    )  # fmt: skip
    mode: str = option("eval", "batch norm of the network that labels", choices=("eval", "train"), old="teacher_mode")
    final: str = option("student", "the network that is kept: student or teacher", choices=("student", "teacher"))

    @property
    def kept(self) -> str:
        """Name in a training's `modules` of the network that is kept."""
        return "teacher" if self.final == "teacher" else "network"

    def check(self) -> None:
        """Raises `MaskwrightError` on a teacher that would label with the statistics it began with."""
        if self.buffers == "own" and self.mode == "eval":
            raise MaskwrightError(
                "ema_buffers=own with teacher_mode=eval: statistics that nothing ever moves", "teacher_mode=train",
                "or take ema_buffers=ema",
            )  # fmt: skip


NO_TEACHER = ("ema", "buffers", "final")
"""Options of a teacher that methods whose student labels have no use for: what is left is the mode in which it does."""


@dataclass(kw_only=True)
class RampOptions:
    """lambda(t), the weight of the unsupervised loss."""

    weight: float = option(1.0, "weight of the unsupervised loss", low=0, main=True)
    up: float = option(
        0.0, "share of the steps over which the weight grows as exp(-5 (1 - t)^2)", low=0, high=1, old="ramp_up"
    )
    start: float = option(0.0, "share of the steps before the unsupervised loss sets in", low=0, high=1)


@dataclass(kw_only=True)
class TargetConfig(NetworkConfig):
    """Options of methods that look at a labelled source and an unlabelled target side by side."""

    norms: NormOptions = part(NormOptions, without=("photographs",), photographs="all")
    target: UnlabeledOptions = part(
        UnlabeledOptions, without=("images", "strong"),
        says={"batch": "crops of the target in a step; 0: as many as of the source"},
    )  # fmt: skip


@dataclass(kw_only=True)
class SemiConfig(NetworkConfig):
    """Options of methods that look at labelled and unlabelled photographs side by side; a method adds its teacher's."""

    norms: NormOptions = part(NormOptions, without=("photographs",), photographs="all")  # training looks at all
    unlabeled: UnlabeledOptions = part(UnlabeledOptions)
    ramp: RampOptions = part(RampOptions)

    @property
    def unlabeled_batch(self) -> int:
        """Unlabelled crops in a step, over all processes."""
        return self.unlabeled.batch or self.crops.batch

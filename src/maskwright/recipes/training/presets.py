"""Options of methods whose authors published several settings: a preset says what is not given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from maskwright.engine.config import fill_from_preset, option, part
from maskwright.recipes.training.options import CropConfig, CropOptions, OptimizerOptions


def preset_option(presets: Mapping[str, object]) -> Any:
    """The option `preset` of a method that has these, `small` among them."""
    return option("small", "sets the other options' defaults", choices=tuple(presets), main=True)


@dataclass(kw_only=True)
class PresetConfig(CropConfig):
    """Options of methods without labels whose presets say how photographs are seen and weights move. Those without a
    value of their own take the preset's, those that are given win.

    Attributes:
        presets: options by flat names, by the preset's name.
        preset: which; `preset_option` of a method's own.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    preset: str = preset_option({"small": {}})
    crops: CropOptions = part(
        CropOptions, without=("sample",), size=None, batch=None, long_side=None, scale_min=None, scale_max=None,
        says={"batch": "photographs in a step", "scale_min": "least random scale of a crop"},
    )  # fmt: skip
    optimizer: OptimizerOptions = part(OptimizerOptions, lr=None)
    schedule: str = option(None, "of the learning rate (preset)", choices=("poly", "constant"))
    steps: int = option(None, "optimiser steps where --steps does not say (preset)", low=1, main=True)

    def __post_init__(self) -> None:
        fill_from_preset(self, self.presets.get(self.preset, {}))

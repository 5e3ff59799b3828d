"""Options of methods that learn from a source and then, round by round, from labels of their own on a target."""

from __future__ import annotations

from typing import Any

from maskwright.engine.config import option
from maskwright.errors import MaskwrightError


def steps_of_all(default: int) -> Any:
    """The option `steps`, shared by all trainings of a run."""
    says = "optimiser steps of all trainings where --steps does not say: twice the other methods'"
    return option(default, says, low=1, main=True)


def rounds_on_target(default: int) -> Any:
    """The option `rounds`."""
    return option(default, "how often the target is labelled and learned from", low=1, high=100, main=True)


def share_before_rounds(default: float, of: str) -> Any:
    """The option `source_share`, of what comes first in words."""
    return option(default, f"share of the steps on {of} alone; rounds share the rest", low=0.01, high=0.99)


def check_portions(group: str, first: float, greatest: float) -> None:
    """Raises `MaskwrightError` where the portion of the first round, which grows, is above the greatest.

    Args:
        group: of the options `portion` and `portion_max`.
        first: the first round's.
        greatest: what it grows to.
    """
    if first > greatest:
        raise MaskwrightError(
            f"{group}.portion={first:g} above {group}.portion_max={greatest:g}", "a portion that can grow up to the "
            "greatest", f"--set {group}.portion_max={first:g}, or a smaller {group}.portion",
        )  # fmt: skip

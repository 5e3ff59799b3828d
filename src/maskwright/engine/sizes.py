"""Options of a method that decide how long its work takes and how much memory it needs, for what is said of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch

from maskwright.engine.config import Option, idle_options, options
from maskwright.errors import MaskwrightError

SIZES = re.compile(r"(side|size|batch|restarts|max_rows|scales|images)$")
"""Last names of options that decide how long something takes."""
MOST_SIZES = 4
ONE_VALUE = "more than 1 value per channel"
"""What torch's batch norm says of a single value a channel."""


def sizes(config: Any) -> str:
    """The options that make a run shorter, with their values: "crops.size=256, crops.batch=4"; empty without any."""
    found = sorted((o for o in _live(config) if SIZES.search(o.path[-1])), key=lambda o: not o.main)
    given = [f"{o.name}={_written(o.of(config))}" for o in found if o.of(config)]
    return ", ".join(given[:MOST_SIZES])


def _live(config: Any) -> list[Option]:
    """The options on which something depends; none of what is no configuration."""
    if not is_dataclass(config):
        return []
    idle = idle_options(config)
    return [o for o in options(type(config)) if o.used and o.name not in idle]


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def shorter(config: Any) -> str:
    """The sentence on what makes a long stage shorter; empty where nothing does."""
    less = sizes(config)
    return f"Shorter: smaller values by --set (now {less}), or fewer photographs." if less else ""


@contextmanager
def explained(stage: str, config: Any) -> Iterator[None]:
    """What does not fit, or is too small for batch norm, is told with the options that mend it.

    Raises:
        MaskwrightError: in place of torch's errors of either.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise too_large(stage, config) from error
    except ValueError as error:
        if ONE_VALUE in str(error):
            raise too_small(stage, config) from error
        raise


def too_large(stage: str, config: Any) -> MaskwrightError:
    """The error of a stage that does not fit into a GPU: which options make it smaller, and where they stand."""
    return MaskwrightError(
        f"stage {stage} does not fit into the GPU's memory{_now(config, 2)}", "a smaller batch or crop",
        "lower one of them by --set under another --out, or add --device cpu",
    )  # fmt: skip


def too_small(stage: str, config: Any) -> MaskwrightError:
    """The error of a stage whose batches are one place of one crop to some batch norm: no variance can be had of it."""
    return MaskwrightError(
        f"stage {stage} leaves a batch norm one value a channel, which has no variance{_now(config, 1)}",
        "a larger batch or crop", "raise one of them by --set under another --out",
    )  # fmt: skip


def _now(config: Any, least: int) -> str:
    """The options that decide how large a batch is, with their values, where these are no smaller."""
    given = [(o.name, o.of(config)) for o in _live(config)]
    found = [f"{k}={v}" for k, v in given if type(v) is int and v >= least and re.search("batch|crop|side", k)]
    return f" (now {', '.join(found)})" if found else ""

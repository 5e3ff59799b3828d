"""What comes behind the training of a network, told in steps of it, for forecasts and `--minutes`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from maskwright.engine.forecast import photographs_shown

if TYPE_CHECKING:
    from maskwright.engine.contract import Method


def steps_of_photographs(method: Method, fitted: bool = False) -> float:
    """So many steps of the training cost as much as the whole photographs that pass through the network behind it.

    These are for batch-norm statistics, for the report, and for what is fitted to what the training left. A step passes
    each of its pixels forward and back, which costs three times a pass forward.

    Args:
        method: with a `CropConfig`.
        fitted: whether all photographs pass once more, for statistics and what is fitted.
    """
    c, data = method.config, method.context.data
    looked = list(range(0, len(data), max(1, len(data) // 16)))
    shrunk = [min(1.0, c.crops.long_side / max(data.size(i))) ** 2 * math.prod(data.size(i)) for i in looked]
    norms = min(c.norms.images, len(data))
    photographs = norms + photographs_shown(method) + (norms + len(data) if fitted else 0)
    return photographs * sum(shrunk) / len(shrunk) / (3 * c.crops.batch * c.crops.size**2)

"""The one switch of all training kernels in this room.

They are on unless the environment variable MASKWRIGHT_ACCEL is 0 when the program starts, and `use` turns them on or
off in a running one. Off, every module computes what torch computes. The results are the same up to rounding, so a run
that is resumed gives the same bits only under the switch that it began with.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

VARIABLE = "MASKWRIGHT_ACCEL"

_on = os.environ.get(VARIABLE, "1") != "0"


def enabled() -> bool:
    """Whether the kernels are used."""
    return _on


def use(on: bool) -> None:
    """Turns all kernels of this process on or off, from the next forward pass on."""
    global _on
    _on = bool(on)


@contextlib.contextmanager
def using(on: bool) -> Iterator[None]:
    """As `use`, and back as it was at the end of the block."""
    before = enabled()
    use(on)
    try:
        yield
    finally:
        use(before)

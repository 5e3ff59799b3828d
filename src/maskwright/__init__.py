"""Maskwright: segmentation masks, and a model that makes more of them, from photographs and whatever labels there are.

    import maskwright as mw
    data = mw.open_folder("photos")
    model = mw.train(data, method="stego", out="runs/photos")
    result = model.predict("a.jpg")

Names are resolved when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskwright.api import evaluate, load, open_folder, suggest, train
    from maskwright.errors import MaskwrightError
    from maskwright.methods import METHODS

__version__ = "0.1.0"

__all__ = ["METHODS", "MaskwrightError", "evaluate", "load", "open_folder", "suggest", "train"]

_WHERE = {
    "METHODS": "maskwright.methods",
    "MaskwrightError": "maskwright.errors",
    "evaluate": "maskwright.api",
    "load": "maskwright.api",
    "open_folder": "maskwright.api",
    "suggest": "maskwright.api",
    "train": "maskwright.api",
}


def _place_for_compiled_code() -> None:
    """Gives numba a folder of its own where it would find none: it stops at import where neither its caller's folder
    nor the user's cache can be written (a system account without a home, an installation that is read-only)."""
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    while os.path.isabs(user) and not os.path.exists(user):
        user = os.path.dirname(user)
    ours = os.path.join(os.path.dirname(__file__), "ops")
    if "NUMBA_CACHE_DIR" in os.environ or any(os.path.isabs(p) and os.access(p, os.W_OK) for p in (ours, user)):
        return
    with contextlib.suppress(OSError):
        # A new one each time: numba runs what lies in it, so it must be nobody else's.
        os.environ["NUMBA_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="maskwright-compiled-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


_place_for_compiled_code()


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'maskwright' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

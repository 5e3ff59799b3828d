"""Maskwright: segmentation masks, and a model that makes more of them, from photographs and whatever labels there are.

    import maskwright as mw
    data = mw.open_folder("photos")
    model = mw.train(data, method="stego", out="runs/photos")
    result = model.predict("a.jpg")

Importing the package is light: what is slow is imported when a function first needs it. `maskwright.evaluate` is the
function; the package of that name is imported by its modules, `from maskwright.evaluate.protocols import ...`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import shutil
import tempfile

from maskwright.errors import MaskwrightError
from maskwright.methods import METHODS

# Python binds a package in its parent when it is first imported. Done here, before the function of that name is bound,
# it does not happen later, when somebody imports one of its modules.
importlib.import_module("maskwright.evaluate")
from maskwright.api import (  # noqa: E402
    compare,
    convert,
    evaluate,
    finish,
    load,
    name,
    open_folder,
    suggest,
    train,
    train_seeds,
)

__version__ = "0.1.0"

# What is said and recorded goes to this logger; where it is shown is for the program that uses the package to say.
logging.getLogger("maskwright").addHandler(logging.NullHandler())

__all__ = [
    "METHODS", "MaskwrightError", "compare", "convert", "evaluate", "finish", "load", "name", "open_folder", "suggest",
    "train", "train_seeds",
]  # fmt: skip


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

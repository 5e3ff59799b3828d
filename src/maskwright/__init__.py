"""Maskwright: segmentation masks, and a model that makes more of them, from photographs and whatever labels there are.

    import maskwright as mw
    data = mw.open_folder("photos")
    model = mw.train(data, method="stego", out="runs/photos")
    result = model.predict("a.jpg")

Names are resolved when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
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


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'maskwright' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

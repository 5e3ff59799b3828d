"""The functions behind the verbs, of which `maskwright/__init__.py` offers all but `probe` and `other_network`."""

from maskwright.api.comparing import compare, train_seeds
from maskwright.api.converting import convert
from maskwright.api.finishing import finish
from maskwright.api.judging import evaluate, probe
from maskwright.api.naming import name
from maskwright.api.opening import load, open_folder
from maskwright.api.suggesting import other_network, suggest
from maskwright.api.training import train

__all__ = [
    "compare", "convert", "evaluate", "finish", "load", "name", "open_folder", "other_network", "probe", "suggest",
    "train", "train_seeds",
]  # fmt: skip

"""The Python surface: `open_folder`, `train`, `load`, `suggest`, `evaluate`, `convert`; the command line
adds nothing to it."""

from maskwright.api.converting import convert
from maskwright.api.judging import evaluate, probe
from maskwright.api.opening import load, open_folder
from maskwright.api.suggesting import other_network, suggest
from maskwright.api.training import train

__all__ = ["convert", "evaluate", "load", "open_folder", "other_network", "probe", "suggest", "train"]

"""The Python surface: `open_folder`, `train`, `finish`, `load`, `suggest`, `evaluate`; the command line adds
nothing to it."""

from maskwright.api.finishing import finish
from maskwright.api.judging import evaluate, probe
from maskwright.api.opening import load, open_folder
from maskwright.api.suggesting import other_network, suggest
from maskwright.api.training import train

__all__ = ["evaluate", "finish", "load", "open_folder", "other_network", "probe", "suggest", "train"]

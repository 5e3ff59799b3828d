"""The Python surface: `open_folder`, `train`, `load`, `name`, `suggest`, `evaluate`; the verbs add nothing to it."""

from maskwright.api.judging import evaluate, probe
from maskwright.api.naming import name
from maskwright.api.opening import load, open_folder
from maskwright.api.suggesting import other_network, suggest
from maskwright.api.training import train

__all__ = ["evaluate", "load", "name", "open_folder", "other_network", "probe", "suggest", "train"]

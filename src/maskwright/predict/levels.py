"""A model's other outputs: the levels into which a photograph itself falls, where the model has such (`hsg`)."""

from __future__ import annotations

import copy

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError, unknown
from maskwright.models.parts.hierarchy import LevelClassifier
from maskwright.models.segmenter import Segmenter

SIZES = ("image_size", "largest_size")
"""What the choice of windows goes by."""


def at_level(segmenter: Segmenter, level: str) -> Segmenter:
    """The segmenter whose classes are the groups of a level; ids are those of one photograph alone.

    Raises:
        MaskwrightError: it has no levels, or none of that name.
    """
    classifier = segmenter.classifier if segmenter.naming is None else segmenter.naming.clusters
    if not isinstance(classifier, LevelClassifier):
        made = f", which {segmenter.method} made" if segmenter.method else ""
        raise MaskwrightError(
            f"--level {level} and a model without levels{made}", "a model of hsg with trained levels", "leave it out"
        )
    if level not in classifier.hierarchy.levels:
        raise unknown("level", level, classifier.hierarchy.levels)
    found = copy.copy(segmenter)
    found._modules = dict(segmenter._modules)
    found.classifier = classifier.at(level)
    found.classes = ClassTable.numbered(int(found.classifier.classes))
    # Groups of two windows have nothing in common, so photographs are seen whole.
    found.extra = {name: value for name, value in segmenter.extra.items() if name not in SIZES}
    return found

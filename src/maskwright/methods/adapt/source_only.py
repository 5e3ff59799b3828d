"""Source only: the floor of every method that adapts to another domain.

    maskwright train TARGET --source SOURCE --method source_only

A network learns from the labelled photographs of the source and is used on the target, whose photographs it has not
seen. `norms.photographs=all` takes its batch-norm statistics from the target's photographs once training is over
(AdaBN, Li et al., Revisiting batch normalization for practical domain adaptation, ICLR Workshop 2017,
https://arxiv.org/abs/1603.04779): the cheapest adaptation there is, and no label of the target is read for it.

Deviates: AdaBN's statistics are those of whole photographs, retaken once, not those of test batches.
What published floors get wrong: they are often trained for fewer steps, or with weaker augmentation, than the methods
beside them. Here crops, optimiser and steps are those of the methods that adapt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskwright.recipes.adaptation import SourceMethod
from maskwright.recipes.training.options import NetworkConfig


@dataclass(kw_only=True)
class SourceOnlyConfig(NetworkConfig):
    """Options of `source_only`."""


class SourceOnly(SourceMethod):
    """A network trained on the source's masks."""

    name: ClassVar[str] = "source_only"
    title: ClassVar[str] = "Revisiting batch normalization for practical domain adaptation"
    venue: ClassVar[str] = "Li et al., ICLRW 2017"
    link: ClassVar[str] = "https://arxiv.org/abs/1603.04779"
    summary: ClassVar[str] = "Trains on a labelled source: the floor."
    Config: ClassVar[type] = SourceOnlyConfig
    says: ClassVar[str] = "a segmentation network on the source's masks"

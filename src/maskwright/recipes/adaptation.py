"""Methods that learn from a labelled source and look at an unlabelled target, the run's own photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskwright.data.training.sources import Labels, MaskLabels
from maskwright.engine.config import part
from maskwright.recipes.consistency.options import UnlabeledOptions
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.options import NetworkConfig, NormOptions


@dataclass(kw_only=True)
class TargetConfig(NetworkConfig):
    """Options of methods that look at a labelled source and an unlabelled target side by side."""

    norms: NormOptions = part(NormOptions, without=("photographs",), photographs="all")
    target: UnlabeledOptions = part(
        UnlabeledOptions, without=("images", "strong"),
        says={"batch": "crops of the target in a step; 0: as many as of the source"},
    )  # fmt: skip


class SourceMethod(NetworkMethod):
    """One that learns from the masks of a labelled source; no label of the run's own photographs, the target, is
    read."""

    family: ClassVar[str] = "adapt"
    needs: ClassVar[frozenset[str]] = frozenset({"source"})

    def labels(self) -> Labels:
        """The source's masks."""
        return MaskLabels(self.context.data_of("source"), self.context.classes)

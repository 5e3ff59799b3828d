"""What methods on the frozen features of one backbone have in common: options, the features, a linear probe."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from maskwright.engine.config import option, part
from maskwright.engine.contract import Method, Stage
from maskwright.models.parts.part import Part
from maskwright.recipes.frozen.features import FrozenFeatures, frozen_features
from maskwright.recipes.frozen.options import FeatureOptions, ReadoutOptions
from maskwright.recipes.probing.linear import linear_probe


@dataclass(kw_only=True)
class FrozenConfig:
    """Options of all methods on frozen features."""

    features: FeatureOptions = part(FeatureOptions)
    readout: ReadoutOptions = part(ReadoutOptions)
    linear_probe: bool = option(
        False, "also fit a linear probe on the masks that may be read, as a model beside this one"
    )


class FrozenMethod(Method):
    """A method on frozen features; its own stages are followed by a linear probe where that is asked for."""

    family: ClassVar[str] = "unsupervised"
    classes_from: ClassVar[Literal["labels", "clusters"]] = "clusters"
    Config: ClassVar[type] = FrozenConfig
    config: Any

    @classmethod
    def judges(cls, config: Any) -> bool:
        """A linear probe is fitted to masks."""
        return bool(config.linear_probe)

    @property
    def refinement(self) -> str:
        """The dense CRF, where that is asked for."""
        return "crf" if self.config.readout.crf else "none"

    @cached_property
    def features(self) -> FrozenFeatures:
        """The features of the run's images."""
        c = self.config.features
        return frozen_features(self.context, short_side=c.short_side, layers=c.layers, kind=c.kind)

    @abstractmethod
    def own_stages(self) -> list[Stage]:
        """The method's stages."""

    @abstractmethod
    def embedding(self) -> Part:
        """From features to what a linear probe is put on, from the stages' artefacts."""

    def stages(self) -> list[Stage]:
        """The method's own, and a linear probe if asked for."""
        probe = Stage("linear_probe", "fit", self.linear_probe, "a linear probe on what was learned, with masks")
        return [*self.own_stages(), *([probe] if self.config.linear_probe else [])]

    def linear_probe(self, folder: Path) -> None:
        """How much of the classes is in the embedding; reads masks, for evaluation only."""
        linear_probe(self.context, self.features, self.embedding(), folder)

"""What methods on the frozen features of one backbone have in common: options, the features, a linear probe."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from maskwright.engine.config import option, part
from maskwright.engine.contract import Method, Stage
from maskwright.engine.forecast import photographs_shown
from maskwright.engine.needs import Terms
from maskwright.engine.result import assembled
from maskwright.models.parts.heads import CosineClassifier
from maskwright.models.parts.part import Part
from maskwright.predict.inference import predict_mask
from maskwright.recipes.frozen.features import FrozenFeatures, frozen_features, learned_features
from maskwright.recipes.frozen.options import LearnedFeatureOptions, ReadoutOptions
from maskwright.recipes.probing.linear import linear_probe


@dataclass(kw_only=True)
class FrozenConfig:
    """Options of all methods on frozen features."""

    features: LearnedFeatureOptions = part(LearnedFeatureOptions, main=("crop", "margin"))
    readout: ReadoutOptions = part(ReadoutOptions)
    linear_probe: bool = option(
        False, "also fit a linear probe on the masks that may be read, as a model beside this one"
    )


def seconds_of(work: Callable[[], object]) -> float:
    """How long work takes when it is done again: the first time caches fill and kernels compile."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class FrozenMethod(Method):
    """A method on frozen features; its own stages are followed by a linear probe where that is asked for."""

    family: ClassVar[str] = "unsupervised"
    classes_from: ClassVar[Literal["labels", "clusters"]] = "clusters"
    Config: ClassVar[type] = FrozenConfig
    config: Any

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """A linear probe is fitted to masks."""
        return replace(super().terms(config, images), judges=config.linear_probe)

    @property
    def refinement(self) -> str:
        """The dense CRF, where that is asked for."""
        return "crf" if self.config.readout.crf else "none"

    @cached_property
    def features(self) -> FrozenFeatures:
        """The features of the run's images."""
        c = self.config.features
        return frozen_features(self.context, short_side=c.short_side, layers=c.layers, kind=c.kind)

    @cached_property
    def learned(self) -> FrozenFeatures:
        """The features that clusters are learned from: of crops, or without a margin, where that is asked for."""
        c = self.config.features
        return self.features if c.whole else learned_features(self.context, c)

    def seconds_behind(self) -> float:
        """The photographs that the report shows, by the time that one takes under a head of the same width."""
        return photographs_shown(self) * self.seconds_a_photograph()

    def seconds_a_photograph(self) -> float:
        """How long the backbone takes for one photograph of middle size, with a mask of as many classes."""
        data, f = self.context.data, self.learned
        images = range(0, len(data), max(1, len(data) // 16))
        place = sorted(images, key=lambda i: math.prod(data.size(i)))[len(images) // 2]
        with torch.random.fork_rng(devices=[]):
            head = CosineClassifier(torch.randn(self.context.classes, f.width), 1.0)
        segmenter = assembled(self, f.encoder, None, head, f.preprocess).to(self.context.device)
        return seconds_of(lambda: predict_mask(segmenter, data.image(place), device=self.context.device))

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

"""The way from image tags to a trained segmenter, stage by stage, for every method that goes it.

    classify (train)  a classifier that localises                    tags.json, checkpoint
    cams (label)      multi-scale maps of the tagged classes         maps/NAME.npz
    [a walk's stages, where a method has one: `walking.Walk`]
    seeds (label)     background threshold, dense CRF, label maps    masks/, confidence/, threshold.json
    retrain (train)   any network on the label maps                  checkpoint

Methods override what is theirs: the training (`trainer`, `network`), the maps (`maps`), a walk. Maps that a
transformer's attention weighs (WeakTr) are another `network` and `maps`; maps of a network that needs no training
(CLIP-ES) are another `maps`, behind a first stage that is `read_targets` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from maskwright.data.training.labels import LabelStore
from maskwright.data.training.sources import Labels, StoredLabels
from maskwright.data.training.tag_targets import TagTargets
from maskwright.engine.checkpoint import trained
from maskwright.engine.contract import Method, Stage
from maskwright.engine.loop import Training
from maskwright.engine.needs import Terms
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.tags.maps import MAPS, CamStore, Maps, MultiScale, multi_scale, plain_maps, write_cams
from maskwright.recipes.tags.network import make_cam_network, tag_steps
from maskwright.recipes.tags.options import TagsConfig
from maskwright.recipes.tags.seeding import make_seeds
from maskwright.recipes.tags.showing import Way
from maskwright.recipes.tags.targets import read_targets
from maskwright.recipes.tags.telling import named_background, note_stride
from maskwright.recipes.tags.training import TagTraining
from maskwright.recipes.tags.walking import Walk
from maskwright.recipes.training.network import make_segmenter, trained_network
from maskwright.recipes.training.training import train_network


class TagMethod(Method):
    """A method that learns masks from tags by way of class maps.

    Attributes:
        trainer: the classifier's `Training`, called with (context, config, targets, steps).
    """

    family: ClassVar[str] = "weak"
    needs: ClassVar[frozenset[str]] = frozenset({"tags"})
    Config: ClassVar[type] = TagsConfig
    trainer: ClassVar[Callable[..., Training]] = TagTraining
    config: Any

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """Tags and the names of their classes, or masks that stand for both; masks also choose the threshold, and judge
        it, where asked. The last network learns what the classifier's maps became."""
        c = config.seeds
        return replace(
            super().terms(config, images), needs=frozenset({"masks"} if config.tags.from_masks else {"tags", "names"}),
            peeks=c.oracle_threshold, judges=c.threshold_curve or c.judge, steps=config.steps,
            backbone=config.network.encoder,
            fixed="its trainings follow one another, and the later ones learn what the earlier ones wrote",
        )  # fmt: skip

    def stages(self) -> list[Stage]:
        """Classify, cams, a walk where there is one, seeds, retrain."""
        steps = tag_steps(self.context, self.config)
        return [
            Stage("classify", "train", self.classify, "a classifier of the tags that says where it sees them", steps),
            Stage("cams", "label", self.cams, "class maps of each photograph at several sizes"),
            *(self.walk.stages() if self.walk is not None else ()),
            Stage("seeds", "label", self.seeds, "background threshold and label maps"),
            Stage("retrain", "train", self.retrain, "a segmentation network on the label maps", self.steps),
        ]

    @property
    def steps(self) -> int:
        """Of the network that is trained last."""
        return int(self.context.steps or self.config.steps)

    def folder(self, stage: str) -> Path:
        """Where a stage left its artefacts."""
        return self.context.run.path / stage

    @cached_property
    def walk(self) -> Walk | None:
        """What spreads the maps before they become labels; nothing, unless a method says otherwise."""
        return None

    # ---------------------------------------------------------------------- classify

    @cached_property
    def targets(self) -> TagTargets:
        """What the images are tagged with, as the first stage found it."""
        return TagTargets.load(self.folder("classify"))

    def read_targets(self, folder: Path) -> TagTargets:
        """Reads the tags into the first stage's folder, for all stages behind it."""
        self.__dict__["targets"] = targets = read_targets(self.context, self.config.tags, folder)
        return targets

    def classify(self, folder: Path) -> None:
        """Reads the tags and trains on them; the artefacts are both."""
        steps = tag_steps(self.context, self.config)
        training: Any = self.trainer(self.context, self.config, self.read_targets(folder), steps)
        note_stride(self.context, training.setup.network.stride, self.config.classifier.output_stride)
        self.context.fit(training, "classify", folder, steps)

    def network(self) -> Any:
        """The classifier, untrained."""
        return make_cam_network(self.context, self.config, self.targets)

    def trained(self) -> Any:
        """The classifier, from the artefact, in evaluation mode on the device."""
        network = trained(self.folder("classify"), "network", self.network())
        return network.to(self.context.device, memory_format=torch.channels_last).eval()

    # ---------------------------------------------------------------------- cams

    def maps(self, network: Any) -> Maps:
        """A function from images (B, 3, H, W) and tags (B, T) to maps (B, T, h, w), not negative."""
        return plain_maps(network)

    def inference(self, network: Any) -> MultiScale:
        """The network and the configured scales."""
        return multi_scale(self.context, self.config, self.maps(network), network.multiple_of)

    @cached_property
    def raw_store(self) -> CamStore:
        """The classifier's maps."""
        return CamStore(self.folder("cams") / MAPS)

    def cams(self, folder: Path) -> None:
        """Maps of all tagged images; the artefact is a file an image."""
        write_cams(self.context, self.targets, self.inference(self.trained()), CamStore(folder / MAPS))

    # ---------------------------------------------------------------------- seeds

    @property
    def label_store(self) -> LabelStore:
        """The pseudo masks."""
        return LabelStore(self.folder("seeds"), self.context.table)

    def seeds(self, folder: Path) -> None:
        """Chooses the threshold and writes label maps; the folder is a dataset of its own."""
        known = None if self.walk is None else self.walk.threshold(self.targets)
        make_seeds(self.context, self.config.seeds, Way.of(self, LabelStore(folder, self.context.table)), folder, known)

    # ---------------------------------------------------------------------- retrain

    def pseudo_labels(self) -> Labels:
        """What the network is retrained on."""
        return StoredLabels(self.context.data, self.label_store)

    def retrain(self, folder: Path) -> None:
        """The configured network on the pseudo masks; the artefact is its checkpoint."""
        train_network(self.context, self.config, self.pseudo_labels(), "retrain", folder, self.steps)

    def segmenter(self) -> Segmenter:
        """The retrained network over the class table."""
        network = trained_network(self.context, self.config, self.folder("retrain"))
        found = make_segmenter(self.context, self.config, network, self.name, self.pseudo_labels().indices)
        return named_background(found, self.targets)

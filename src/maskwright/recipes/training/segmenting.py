"""Supervised training of a segmentation network: what `supervised`, all semi-supervised methods and every stage that
retrains on pseudo masks have in common.

Legend: B batch, C classes, S crop side, (H, W) image size, (h, w) feature-map size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.crops import random_scale_crop
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.sources import Labels, MaskLabels, fill_outside, read_view
from maskwright.data.training.views import View
from maskwright.data.trust.artefacts import Damage, parse_json
from maskwright.engine.checkpoint import load_part, stage_parts
from maskwright.engine.config import option
from maskwright.engine.contract import Method, Stage
from maskwright.engine.devices import cpu_has_bf16
from maskwright.engine.distributed import rank, world_size
from maskwright.engine.loop import CHECKPOINT, Indices, Training, poly
from maskwright.engine.seeding import seed_step
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import autocast
from maskwright.models.networks.build import Network, brings_encoder, build_network
from maskwright.models.preprocess import MAX_LONG_SIDE, Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.training.criteria import Criterion, class_aware_chances, class_weights, make_criterion
from maskwright.recipes.training.norm_statistics import evenly, retake_statistics, train_norms
from maskwright.recipes.training.optimizers import OPTIMIZERS, make_optimizer
from maskwright.recipes.training.selection import Selection, every, hold_out

if TYPE_CHECKING:
    from maskwright.engine.context import Context

LOOKS = 10
"""How often the held-out images are looked at in a run."""


@dataclass(kw_only=True)
class NetworkConfig:
    """Options of everything that trains a segmentation network."""

    network: str = option(
        "auto", "a name of the table of networks; auto: deeplabv3plus on a CNN, dpt on a ViT", main=True
    )
    encoder: str = option("", "timm name of its encoder, the same as --backbone; empty: the run's backbone")
    network_weights: str = option("", "official checkpoint of a network that has an encoder of its own")
    network_options: str = option("", "options of its builder, key=value joined by ;, as output_stride=8")
    crop: int = option(
        256, "side of the square training crops, pixels; rounded up to what the network takes", low=16, main=True
    )
    long_side: int = option(
        1024, "larger images are first scaled to this longer side, pixels", low=16, high=MAX_LONG_SIDE
    )
    scale_min: float = option(0.5, "least random scale of a labelled crop", low=0.05, high=10)
    scale_max: float = option(2.0, "greatest random scale", low=0.05, high=10)
    batch: int = option(4, "labelled crops in a step", low=1, main=True)
    steps: int = option(2000, "optimiser steps where --steps does not say", low=1, main=True)
    optimizer: str = option("adamw", "adamw, or sgd with Nesterov momentum 0.9", choices=OPTIMIZERS)
    lr: float = option(
        0.0, "the head's rate, poly schedule; 0: adamw 1e-3, 2e-4 on a vision transformer; sgd 0.01", low=0, main=True
    )
    encoder_lr: float | None = option(
        None,
        "the encoder's share of lr; none: adamw 0.3, 1/40 on a vision transformer; sgd 1; without pretrained weights 1",
        low=0,
        high=10,
    )
    layer_decay: float = option(
        1.0, "further factor on the rate for each encoder layer towards the input", low=0.1, high=1
    )
    weight_decay: float | None = option(None, "of all but norms and biases; none: adamw 0.01, sgd 1e-4", low=0)
    loss: str = option("ce", "terms joined by +: ce, ohem, dice, lovasz; ce+dice adds the two", choices=None)
    ohem_threshold: float = option(0.7, "ohem keeps pixels whose probability of their class is below", low=0, high=1)
    ohem_kept: float = option(1 / 16, "and at least this share of the pixels", low=0, high=1)
    balance: bool = option(
        False, "weigh classes by the inverse square root of their share in the labels (reads them all)"
    )
    sample: str = option(
        "photographs",
        "which labelled photograph comes next: each as often as any other, or first a class at random, then one of the "
        "photographs that show it (reads all labels)",
        choices=("photographs", "classes"),
    )
    freeze_norm: bool = option(False, "keep the encoder's batch-norm statistics")
    norm_images: int = option(
        64, "whole photographs that batch-norm statistics are retaken on after the last step; 0: training's own", low=0
    )
    holdout: float = option(
        0.0, "share of the labelled images held out to choose the iterate; 0: the last", low=0, high=0.9
    )
    norm_from: str = option(
        "seen", "which photographs these are: those that training looked at, or all of the run", choices=("seen", "all")
    )
    precision: str = option(
        "auto", "bf16 where the processor has it (1.4 x), or fp32", choices=("auto", "bf16", "fp32")
    )

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.scale_min > self.scale_max:
            raise MaskwrightError(f"scale_min={self.scale_min}", f"at most scale_max={self.scale_max}")


C = TypeVar("C", bound=NetworkConfig)


def learns_vit(config: Any, context: Context) -> bool:
    """Whether the network that will be trained has a vision transformer as its encoder."""
    return context.backbone.is_vit and not brings_encoder(config.network)


def starts_pretrained(config: Any, context: Context) -> bool:
    """Whether the encoder that will be trained starts from weights that learned something."""
    untrained = brings_encoder(config.network) or context.backbone.provenance.source == "random"
    return bool(config.network_weights) or not untrained


def resolved(config: C, context: Context) -> C:
    """The configuration with its rates and decay decided.

    AdamW by default, also on a convolutional network, where papers have SGD and schedules of many epochs: with a dozen
    masks and 800 steps it was ahead of SGD on photographs that were not trained on (docs/semi.md). A vision transformer
    has UniMatch V2's rates. An encoder of random weights learns as fast as the head.
    """
    sgd, is_vit = config.optimizer == "sgd", learns_vit(config, context)
    lr = 0.01 if sgd else (2e-4 if is_vit else 1e-3)
    slower = 1 / 40 if is_vit else 0.3
    share = slower if not sgd and starts_pretrained(config, context) else 1.0
    return replace(
        config,
        lr=config.lr or lr,
        encoder_lr=share if config.encoder_lr is None else config.encoder_lr,
        weight_decay=(1e-4 if sgd else 0.01) if config.weight_decay is None else config.weight_decay,
    )


class Batch(NamedTuple):
    """Labelled crops.

    Attributes:
        x: (B, 3, S, S), normalised.
        y: labels (B, S, S).
    """

    x: Tensor
    y: LabelMap


class Output(NamedTuple):
    """What a network makes of crops.

    Attributes:
        features: the encoder's maps.
        embedding: (B, E, h, w).
        logits: (B, C, S, S), at the crop's size.
    """

    features: list[Tensor]
    embedding: Tensor
    logits: Tensor


class SegmentationTraining(Training):
    """Supervised training on crops; the semi-supervised step builds on it.

    Attributes:
        dropout: whether dropout is on while the network learns; methods whose learning pass also labels turn it off.
        sees_all: whether training looks at all images of the run, or at the labelled ones alone.

    Args:
        context: of the run.
        config: options.
        labels: where labels come from.
        steps: of the stage.
        network: the network to train; built from the configuration if None.
        stage: the stage's name, part of the seed of the initial weights.
    """

    dropout: ClassVar[bool] = True
    sees_all: ClassVar[bool] = False

    def __init__(
        self,
        context: Context,
        config: Any,
        labels: Labels,
        steps: int,
        network: Network | None = None,
        stage: str = "train",
    ) -> None:
        config = resolved(config, context)
        self.context, self.config, self.steps = context, config, steps
        self.device = context.device
        self.labels, self.held = hold_out(labels, config.holdout, context.generator("holdout"))
        seed_step(context.seed, -1, stage=stage)  # initial weights
        self.network = network or make_network(context, config)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train_mode(self.network)
        self.preprocess = make_preprocess(context, config, self.network)
        self.crop = -(-config.crop // self.network.multiple_of) * self.network.multiple_of
        self.criterion: Criterion = make_criterion(
            config.loss, self._class_weights(), config.ohem_threshold, config.ohem_kept
        )
        self.modules: dict[str, nn.Module] = {"network": self.network}
        self.optimizers = {"network": make_optimizer(config, self.network)}
        self.sampler = self.make_sampler()
        self.schedule = poly(steps)
        self.selection: Selection | None = None
        if self.held:
            self.selection = Selection(context.data, labels, self.held, context.classes, self.preprocess)
            self.extra = {"selection": self.selection}

    def _class_weights(self) -> Tensor | None:
        if not self.config.balance:
            return None
        return class_weights(self.labels, self.context.classes).to(self.device)

    def make_sampler(self) -> Any:
        """Which images come."""
        return Sampler(
            len(self.labels.indices), self.config.batch, seed=self.context.seed, world=world_size(), rank=rank(),
            weights=self.chances(),
        )  # fmt: skip

    def chances(self) -> np.ndarray | None:
        """How often each labelled image comes; None: all alike."""
        return class_aware_chances(self.labels) if self.config.sample == "classes" else None

    def train_mode(self, network: nn.Module) -> None:
        """Training mode, with the encoder's batch norm kept in evaluation where the configuration says so."""
        network.train()
        if not self.dropout:
            train_norms(network)
        if self.config.freeze_norm:
            for m in network.encoder.modules():  # type: ignore[union-attr,operator]
                if isinstance(m, nn.modules.batchnorm._BatchNorm):
                    m.eval()

    def seen(self) -> list[int]:
        """Images that training looks at."""
        return list(range(len(self.context.data))) if self.sees_all else list(self.labels.indices)

    # ------------------------------------------------------------------ crops

    def weak_view(self, i: int, random: torch.Generator) -> View:
        """A random scale, crop and flip of image `i`."""
        c, size = self.config, self.context.data.size(i)
        base = min(max(size), c.long_side)
        scale = (c.scale_min, c.scale_max)
        return random_scale_crop(size, (self.crop, self.crop), base=base, scale=scale, generator=random)

    def pixels(self, i: int, view: View) -> Tensor:
        """uint8 (3, S, S) of image `i`; outside it the mean colour."""
        x = torch.from_numpy(read_view(self.context.data, i, view)).permute(2, 0, 1)
        return fill_outside(x, view, self.preprocess.mean)

    def normalise(self, x: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to the network's input on the device."""
        return self.preprocess.network_input(x, self.device)

    def labeled_crops(self, indices: Indices, random: torch.Generator) -> Batch:
        """Random crops of images, with their labels."""
        pixels, maps = [], []
        for i in indices:
            view = self.weak_view(int(i), random)
            pixels.append(self.pixels(int(i), view))
            maps.append(self.labels.read(int(i)).through(view))
        return Batch(self.normalise(torch.stack(pixels)), LabelMap.stack(maps).to(self.device))

    def batch(self, indices: Indices, random: torch.Generator) -> Any:
        """Labelled crops."""
        return self.labeled_crops([self.labels.indices[i] for i in indices], random)

    # ------------------------------------------------------------------ the step

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return autocast(self.device, precision_of(self.config, self.device))

    def run(self, network: Any, x: Tensor) -> Output:
        """Forward pass; logits in fp32 at the crop's size."""
        with self.autocast():
            features = network.features(x)
            embedding = network.decode(features)
            logits = network.classify(embedding)
        return Output(features, embedding, upsample(logits, x.shape[-2:]))

    def supervised(self, out: Output, y: LabelMap, network: Network | None = None) -> Tensor:
        """L_x: the criterion, weighted by the labels' confidence, and auxiliary heads with their paper's weights.

        Args:
            out: what the network made of the crops.
            y: their labels (B, S, S).
            network: the network it comes from; the trained one if None.
        """
        network = network or self.network
        loss = self.criterion(out.logits, y)
        if len(network.aux):
            with self.autocast():
                aux = network.aux_logits(out.features)
            for name, logits in aux.items():
                loss = loss + network.aux_weights[name] * self.criterion(upsample(logits, y.size), y)
        return loss

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """The supervised loss."""
        return {"loss": self.supervised(self.run(self.network, batch.x), batch.y)}

    def after_step(self, step: int) -> None:
        """Looks at the held-out images, where there are any."""
        if self.selection is not None and every(self.steps, LOOKS)(step):
            network: Any = self.modules.get(getattr(self.config, "final", ""), self.network)
            network = getattr(network, "module", network)
            judged = copy.deepcopy(network)  # with the statistics that the kept network will have
            retake(self.context, self.config, judged, self.preprocess, self.seen())
            self.selection.look(network, step, self.device, judged)
            step_, score = self.selection.best_score
            last = self.selection.scores[-1][1]
            if step + 1 == self.steps:
                self.context.note(
                    f"Held-out images ({len(self.held)}): mIoU {100 * score:.1f} at step {step_ + 1}, which is kept; "
                    f"{100 * last:.1f} at the last step."
                )


def upsample(logits: Tensor, size: Any) -> Tensor:
    """Logits (B, C, h, w) in fp32 at another size, bilinear with align_corners=False."""
    logits = logits.float()
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def precision_of(config: Any, device: torch.device) -> str | None:
    """`bf16` or `fp32` as asked; what is fastest for `auto`."""
    if config.precision != "auto":
        return str(config.precision)
    fast = device.type == "cuda" or cpu_has_bf16()
    return "bf16" if fast else "fp32"


def make_network(context: Context, config: Any) -> Network:
    """The configured network on the run's backbone, with an untrained head."""
    return build_network(
        config.network, context.backbone, context.classes, options=network_options(config.network_options),
        weights=config.network_weights or None,
    )  # fmt: skip


def network_options(text: str) -> dict[str, Any]:
    """Options of a network, `key=value` joined by `;`, values as JSON ("output_stride=8;rates=[6, 12]").

    Raises:
        MaskwrightError: a part is of another form.
    """
    options: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, _, value = part.partition("=")
        try:
            options[name.strip()] = parse_json(value)
        except Damage as error:
            expected = "key=value, the value as JSON, as output_stride=8"
            raise MaskwrightError(f"network_options: {part!r}", expected) from error
    return options


def make_preprocess(context: Context, config: Any, network: Network) -> Preprocess:
    """Normalisation of the encoder's weights, native resolution up to `long_side`."""
    return Preprocess.for_backbone(network.provenance, long_side=config.long_side, multiple_of=network.multiple_of)


def retake(context: Context, config: Any, network: Network, preprocess: Preprocess, seen: Sequence[int]) -> None:
    """Batch-norm statistics of the photographs that the configuration says, as `make_segmenter` wants them."""
    chosen = evenly(range(len(context.data)) if config.norm_from == "all" else seen, config.norm_images)
    kept = network.encoder if config.freeze_norm else None
    retake_statistics(network, context.data, chosen, preprocess, context.device, kept)


def make_segmenter(context: Context, config: Any, network: Network, method: str, seen: Sequence[int]) -> Segmenter:
    """The network as what every method ends in, with the batch-norm statistics of photographs that it learned from.

    Args:
        context: of the run.
        config: options.
        network: trained.
        method: its name.
        seen: indices of these photographs; `norm_from=all` takes all of the run instead.
    """
    preprocess = make_preprocess(context, config, network)
    retake(context, config, network.to(context.device), preprocess, seen)
    network = network.cpu().eval()
    return Segmenter(
        encoder=network.encoder,
        decoder=network.decoder,
        classifier=network.classifier,
        classes=context.table,
        preprocess=preprocess,
        provenance=network.provenance,
        method=method,
    )


def train_network(context: Context, config: Any, labels: Labels, name: str, folder: Path, steps: int) -> None:
    """A training stage: the configured network on labels; its checkpoint is the artefact."""
    training = SegmentationTraining(context, config, labels, steps, stage=name)
    context.fit(training, name, folder, steps)


def trained_network(context: Context, config: Any, folder: Path, part: str = "network", chosen: bool = True) -> Network:
    """The network that a training stage left.

    Args:
        context: of the run.
        config: options.
        folder: of the stage.
        part: name in the training's `modules`; of an EMA teacher, its module is given.
        chosen: whether the iterate that `holdout` chose is given, where there is one, or that of the last step.

    Raises:
        MaskwrightError: there is no checkpoint.
    """
    path = folder / CHECKPOINT
    parts = stage_parts(path)
    network = make_network(context, config)
    weights = parts.get(f"module.{part}")
    selection = parts.get("extra.selection")
    if chosen and config.holdout > 0 and isinstance(selection, dict):
        weights = selection.get("best")
    if isinstance(weights, dict):
        prefix = "module." if "_extra_state" in weights else ""
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k != "_extra_state"}
    load_part(network, {part: weights}, part, path)
    return network.eval()


class NetworkMethod(Method):
    """A method with one training stage on masks, whose result is a network.

    Attributes:
        trainer: its `Training`, called with (context, config, labels, steps).
        says: one sentence for the progress line.
        result: name in the training's `modules` of the network that is kept.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"masks"})
    trainer: ClassVar[type[SegmentationTraining]] = SegmentationTraining
    says: ClassVar[str] = ""
    result: ClassVar[str] = "network"
    config: Any

    def stages(self) -> list[Stage]:
        """One: train."""
        return [Stage("train", "train", self.train, self.says)]

    def labels(self) -> Labels:
        """The masks that may be read."""
        return MaskLabels(self.context.data, self.context.classes)

    def train(self, folder: Path) -> None:
        """Trains; the artefact is the checkpoint of the last step."""
        steps = self.context.steps or self.config.steps
        training = self.trainer(self.context, self.config, self.labels(), steps)
        c, decoder = training.config, type(training.network.decoder).__name__
        self.context.note(f"Decoder {decoder}, {c.optimizer} at {c.lr:g}, encoder at {c.encoder_lr:g} of it.")
        self.context.fit(training, "train", folder, steps)

    def network(self) -> Network:
        """The trained network, from the artefact."""
        return trained_network(self.context, self.config, self.context.run.path / "train", self.result)

    def seen(self) -> list[int]:
        """Images that training looked at: of the labelled ones not those held out."""
        if self.trainer.sees_all:
            return list(range(len(self.context.data)))
        return list(hold_out(self.labels(), self.config.holdout, self.context.generator("holdout"))[0].indices)

    def segmenter(self) -> Segmenter:
        """The last iterate."""
        return make_segmenter(self.context, self.config, self.network(), self.name, self.seen())

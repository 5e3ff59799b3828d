"""Training on image tags: which class each tag is, which images say something, crops with their targets, and the loss.

It knows no method: a `TagTraining` with another network or further loss terms is SEAM's or ToCo's.

Legend: B batch, T tags, C classes of the table, S crop side.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.augment import Photometric
from maskwright.data.training.crops import random_scale_crop
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.sources import fill_outside, read_view
from maskwright.data.training.tag_targets import TagTargets
from maskwright.data.training.views import View
from maskwright.engine.checkpoint import load_part, stage_parts
from maskwright.engine.config import option
from maskwright.engine.distributed import rank, world_size
from maskwright.engine.loop import CHECKPOINT, Indices, Training, poly
from maskwright.engine.seeding import seed_step
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import autocast
from maskwright.models.networks.cam import CamNetwork
from maskwright.models.preprocess import MAX_LONG_SIDE, Preprocess
from maskwright.recipes.training.forward import precision_of
from maskwright.recipes.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from maskwright.engine.context import Context


@dataclass(kw_only=True)
class TagConfig:
    """Options of everything that trains a classifier on tags; other training has its own, so all begin with `tag_`."""

    tags_from_masks: bool = option(False, "take the classes in each mask as its tags; the ledger shows the masks read")
    background: str = option(
        "auto", "class that no tag names; auto: the one called background, else class 0 where nothing is tagged with it"
    )
    tag_steps: int = option(0, "steps of the classifier; 0: --steps, or 800 where that is not given", low=0)
    tag_batch: int = option(8, "crops in a step", low=1)
    tag_crop: int = option(320, "side of the square crops, pixels; rounded up to what the network takes", low=16)
    tag_long_side: int = option(
        512, "long side of images before the random scale, and of seeds, pixels", low=16, high=MAX_LONG_SIDE
    )
    tag_scale_min: float = option(0.65, "least random scale: crops see most of a smaller image", low=0.05, high=10)
    tag_scale_max: float = option(1.25, "greatest random scale", low=0.05, high=10)
    tag_jitter: float = option(0.0, "strength of the colour jitter (SEAM: 0.3)", low=0, high=1)
    tag_optimizer: str = option("sgd", "sgd with momentum, or adamw", choices=OPTIMIZERS)
    tag_momentum: float = option(0.9, "of sgd", low=0, high=1)
    tag_lr: float = option(0.1, "learning rate of the classifier, poly schedule", low=0)
    tag_encoder_lr: float = option(0.1, "the pretrained layers' rate as a share of tag_lr", low=0, high=10)
    tag_weight_decay: float = option(1e-4, "on all weights but norms and biases", low=0)
    tag_dropout: float = option(0.0, "chance of a channel to be dropped before the classifier", low=0, high=0.95)
    tag_freeze: int = option(
        -1, "stem and so many first stages without gradient, half the cost of training; 0: none; -1: as the papers, "
        "two of a ResNet (IRN) and of others, one of ResNet-38d (SEAM)", low=-1,
    )  # fmt: skip
    output_stride: int = option(16, "pixels a cell of the maps; 0: as the network is", choices=(0, 8, 16, 32))

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.tag_scale_min > self.tag_scale_max:
            raise MaskwrightError(f"tag_scale_min={self.tag_scale_min}", f"at most tag_scale_max={self.tag_scale_max}")

    @property
    def labels_needed(self) -> frozenset[str]:
        """The labels that a run with these options reads."""
        return frozenset({"masks" if self.tags_from_masks else "tags"})


def note_targets(context: Context, targets: TagTargets) -> None:
    """Tells the report what is tagged, what is not, and what stands for the background."""
    silent = len(context.data) - len(targets.tagged)
    empty = sum(not c for c in targets.tagged.values())
    context.note(
        f"Tags: {len(targets.tagged)} of {len(context.data)} images have {targets.source} to take them from"
        + (f"; {silent} have none and train only what needs no tags" if silent else "")
        + (f"; {empty} say that no class is there" if empty else "")
        + "."
    )
    if targets.background is None:
        context.note("Tags: no class stands for the background, so pixels without evidence stay without a label.")
    else:
        context.note(f"Tags: {context.table.names[targets.background]!r} is the class that no tag names.")
    never = [name for name, n in zip(targets.names, targets.counts().tolist()) if n == 0]
    if never:
        context.note(
            f"Tags: never tagged, so never found: {', '.join(never[:12])}{', ...' if len(never) > 12 else ''}."
        )


class TagBatch(NamedTuple):
    """Crops with their tags.

    Attributes:
        x: (B, 3, S, S), normalised.
        y: (B, T), 1 where the whole image is tagged.
        views: the crops, for losses that compare several of one image.
        indices: of the images.
    """

    x: Tensor
    y: Tensor
    views: list[View]
    indices: list[int]


def multi_label_soft_margin(scores: Tensor, y: Tensor) -> Tensor:
    """L_cls = - mean over classes and images of y log s(x) + (1 - y) log s(-x), s the logistic function.

    Args:
        scores: (B, T), logits.
        y: (B, T) in [0, 1].
    """
    return F.multilabel_soft_margin_loss(scores.float(), y.to(scores.device, torch.float32))


class TagTraining(Training):
    """A classifier that localises, trained on tags.

    Methods with further terms override `losses`; those with another network give it.

    Args:
        context: of the run.
        config: options.
        targets: what the images are tagged with.
        steps: of the stage.
        network: to train; a `CamNetwork` on the run's backbone if None.
        stage: the stage's name, part of the seed of the initial weights.
    """

    def __init__(
        self,
        context: Context,
        config: Any,
        targets: TagTargets,
        steps: int,
        network: Any | None = None,
        stage: str = "classify",
    ) -> None:
        self.context, self.config, self.targets, self.steps = context, config, targets, steps
        self.device = context.device
        seed_step(context.seed, -1, stage=stage)  # initial weights
        self.network: Any = network or make_cam_network(context, config, targets)
        self.network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.train()
        self.network.freeze_norm()
        self.preprocess = tag_preprocess(context, config, self.network.multiple_of)
        self.crop = -(-config.tag_crop // self.network.multiple_of) * self.network.multiple_of
        b = config.tag_jitter
        self.jitter = Photometric(brightness=b, contrast=b, saturation=b, hue=b / 3)
        self.images = targets.indices(context.data)
        self.modules: dict[str, nn.Module] = {"network": self.network}
        self.optimizers = {"network": self.make_optimizer()}
        self.sampler = Sampler(len(self.images), config.tag_batch, seed=context.seed, world=world_size(), rank=rank())
        self.schedule = poly(steps)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that the `TagConfig` asks for, over the network's groups."""
        c = self.config
        groups = self.network.groups(c.tag_lr, c.tag_encoder_lr, c.tag_weight_decay)
        if c.tag_optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=c.tag_lr)
        return sgd(groups, c.tag_lr, c.tag_momentum)

    def view(self, i: int, random: torch.Generator) -> View:
        """A random scale, crop and flip of image `i`."""
        c, size = self.config, self.context.data.size(i)
        scale = (c.tag_scale_min, c.tag_scale_max)
        base = min(max(size), c.tag_long_side)
        return random_scale_crop(size, (self.crop, self.crop), base=base, scale=scale, generator=random)

    def pixels(self, i: int, view: View, random: torch.Generator) -> Tensor:
        """uint8 (3, S, S) of image `i`, its colours jittered; outside it the mean colour."""
        x = torch.from_numpy(read_view(self.context.data, i, view)).permute(2, 0, 1)
        if self.config.tag_jitter > 0:
            x = self.jitter(x, random)
        return fill_outside(x, view, self.preprocess.mean)

    def normalise(self, x: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to the network's input on the device."""
        return self.preprocess.network_input(x, self.device)

    def draw_crops(self, indices: Indices, random: torch.Generator) -> tuple[Tensor, list[View], list[int]]:
        """Crops (B, 3, S, S), normalised, with their views and images."""
        chosen = [self.images[int(k)] for k in indices]
        views = [self.view(i, random) for i in chosen]
        x = torch.stack([self.pixels(i, v, random) for i, v in zip(chosen, views)])
        return self.normalise(x), views, chosen

    def batch(self, indices: Indices, random: torch.Generator) -> TagBatch:
        """Crops of tagged images."""
        x, views, chosen = self.draw_crops(indices, random)
        y = torch.stack([self.targets.multi_hot(self.context.data.items[i].name) for i in chosen])
        return TagBatch(x, y.to(self.device), views, chosen)

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return autocast(self.device, precision_of(self.config.precision, self.device))

    def losses(self, batch: TagBatch, step: int) -> dict[str, Tensor]:
        """L_cls of the pooled maps."""
        with self.autocast():
            out = self.network(batch.x)
        return {"loss": multi_label_soft_margin(out.scores, batch.y)}


def tag_steps(context: Context, config: Any, default: int = 800) -> int:
    """Steps of a training stage on tags: the option's, else the run's, else the default."""
    return int(config.tag_steps or context.steps or default)


def sgd(groups: list[dict[str, Any]], lr: float, momentum: float) -> torch.optim.Optimizer:
    """SGD over parameter groups, Nesterov's where there is momentum."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def make_cam_network(context: Context, config: Any, targets: TagTargets) -> CamNetwork:
    """An untrained classifier on a copy of the run's backbone."""
    return CamNetwork(
        context.backbone,
        len(targets),
        config.output_stride or None,
        config.tag_dropout,
        frozen_stages=config.tag_freeze,
    )


def tag_preprocess(context: Context, config: Any, multiple_of: int) -> Preprocess:
    """Normalisation of the backbone's weights; images up to `tag_long_side`."""
    provenance = context.backbone.provenance
    return Preprocess.for_backbone(provenance, long_side=config.tag_long_side, multiple_of=multiple_of)


def load_trained(network: nn.Module, folder: Path, part: str = "network") -> Any:
    """Loads what a training stage left into a network of the same build, in evaluation mode.

    Args:
        network: of the same build.
        folder: of the stage.
        part: name in the training's `modules`.

    Raises:
        MaskwrightError: there is no checkpoint, or it is of another build.
    """
    path = folder / CHECKPOINT
    load_part(network, stage_parts(path), f"module.{part}", path)
    return network.eval()

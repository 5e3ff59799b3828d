"""Training a classifier on image tags that says where it sees them.

Methods with further losses write `losses`, their whole step; those with another network say how it is made.

Legend: B batch, T tags, S crop side.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.augment import Photometric
from maskwright.data.training.streams import CropRecipe, Stream, Streams
from maskwright.data.training.tag_targets import TagTargets
from maskwright.engine.schedules import poly
from maskwright.models.backbones.dense import autocast
from maskwright.recipes.tags.network import Make, make_cam_network, tag_optimizer, tag_preprocess
from maskwright.recipes.training.drawing import DrawnTraining
from maskwright.recipes.training.forward import precision_of

if TYPE_CHECKING:
    from maskwright.engine.context import Context


def multi_label_soft_margin(scores: Tensor, y: Tensor) -> Tensor:
    """L_cls = - mean over classes and images of y log s(x) + (1 - y) log s(-x), s the logistic function.

    Args:
        scores: (B, T), logits.
        y: (B, T) in [0, 1].
    """
    return F.multilabel_soft_margin_loss(scores.float(), y.to(scores.device, torch.float32))


class TagTraining(DrawnTraining):
    """A network that learns from the tagged crops of stream `x`.

    Attributes:
        network: what learns.
        streams: what a step draws from, by name.
        targets: what the images are tagged with.

    Args:
        context: of the run.
        config: options, a `TagsConfig`.
        targets: what the images are tagged with.
        steps: of the stage.
        make: builds the network.
        stage: the stage's name, part of the seed of the initial weights.
    """

    def __init__(
        self,
        context: Context,
        config: Any,
        targets: TagTargets,
        steps: int,
        make: Make = make_cam_network,
        stage: str = "classify",
    ) -> None:
        self.context, self.config, self.targets, self.steps = context, config, targets, steps
        self.device = context.device
        context.initialise(stage)
        self.network: Any = make(context, config, targets)
        self.network.to(device=self.device, memory_format=torch.channels_last)
        self.network.train()
        self.network.freeze_norm()
        self.preprocess = tag_preprocess(context, config, self.network.multiple_of)
        self.crop = self.crop_side()
        self.modules: dict[str, nn.Module] = {"network": self.network}
        self.optimizers = {"network": self.make_optimizer()}
        self.streams = Streams(x=self.stream())
        self.sampler = self.streams
        self.schedule = poly(steps)

    def crop_side(self) -> int:
        """S, pixels: as asked for, rounded up to what the network takes."""
        m = self.network.multiple_of
        return -(-self.config.classifier.size // m) * m

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The classifier's."""
        return tag_optimizer(self.config.classifier, self.network)

    def stream(self) -> Stream:
        """The tagged photographs, cropped as the options say."""
        c, data, b = self.config.classifier, self.context.data, self.config.classifier.jitter
        images = self.targets.indices(data)
        return Stream(
            data,
            images,
            self.context.sampler(len(images), c.batch),
            CropRecipe(self.crop, (c.scale_min, c.scale_max), c.long_side),
            self.preprocess.mean,
            tags=self.targets,
            jitter=Photometric(brightness=b, contrast=b, saturation=b, hue=b / 3) if b > 0 else None,
        )

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return autocast(self.device, precision_of(self.config.precision, self.device))

    # ------------------------------------------------------------------ the step

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L_cls of the pooled maps."""
        x = batch["x"]
        with self.autocast():
            out = self.network(x.weak)
        return {"loss": multi_label_soft_margin(out.scores, x.t)}

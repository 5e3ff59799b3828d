"""Training a classifier on image tags that says where it sees them.

A method's training holds a `TagSetup` and writes `losses`, its whole step; one with a network of its own says how that
is made.

Legend: B batch, T tags, S crop side.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.augment import Photometric
from maskwright.data.training.streams import CropRecipe, Stream
from maskwright.data.training.tag_targets import TagTargets
from maskwright.engine import seeding
from maskwright.engine.distributed import sampler
from maskwright.engine.loop import Training
from maskwright.engine.schedules import poly
from maskwright.models.backbones.dense import autocast
from maskwright.recipes.tags.network import Make, make_cam_network, tag_optimizer, tag_preprocess
from maskwright.recipes.training.drawing import StreamSetup
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


class TagSetup(StreamSetup):
    """A network that learns from the tagged crops of stream `x`.

    Attributes:
        network: what learns.
        preprocess: pixels to its input.
        crop: S, pixels: as asked for, rounded up to what the network takes.
        targets: what the images are tagged with.

    Args:
        context: of the run.
        config: options, a `TagsConfig`.
        targets: what the images are tagged with.
        steps: of the stage.
        make: builds the network.
        stage: the stage's name, part of the seed of the initial weights.
        least: side of a crop at least, in units of what the network takes.
    """

    def __init__(
        self,
        context: Context,
        config: Any,
        targets: TagTargets,
        steps: int,
        make: Make = make_cam_network,
        *,
        stage: str = "classify",
        least: int = 1,
    ) -> None:
        self.context, self.config, self.targets = context, config, targets
        seeding.initialise(context.seed, stage)
        self.network: Any = make(context, config, targets)
        self.network.to(device=context.device, memory_format=torch.channels_last)
        self.network.train()
        self.network.freeze_norm()
        m = self.network.multiple_of
        self.preprocess = tag_preprocess(context, config, m)
        super().__init__(self.preprocess.network_input, context.device)
        self.crop = max(-(-config.classifier.size // m), least) * m
        self.modules["network"] = self.network
        self.optimizers["network"] = tag_optimizer(config.classifier, self.network)
        self.streams["x"] = self.stream()
        self.schedule = poly(steps)

    def stream(self) -> Stream:
        """The tagged photographs, cropped as the options say."""
        c, data, b = self.config.classifier, self.context.data, self.config.classifier.jitter
        images = self.targets.indices(data)
        return Stream(
            data,
            images,
            sampler(self.context.seed, len(images), c.batch),
            CropRecipe(self.crop, (c.scale_min, c.scale_max), c.long_side),
            self.preprocess.mean,
            tags=self.targets,
            jitter=Photometric(brightness=b, contrast=b, saturation=b, hue=b / 3) if b > 0 else None,
        )

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return autocast(self.device, precision_of(self.config.precision, self.device))


class TagTraining(Training):
    """Tagged crops x through a network; arguments as of `TagSetup`."""

    setup: TagSetup

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(TagSetup(*args, **options))

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L_cls of the pooled maps."""
        x = batch["x"]
        with self.setup.autocast():
            out = self.setup.network(x.weak)
        return {"loss": multi_label_soft_margin(out.scores, x.t)}

"""What a training of a segmentation network on crops is set up with: `CropSetup` knows nothing of labels,
`NetworkSetup` adds a labelled stream and its loss.

A method's training holds one of them beside its own parts (a teacher, a ramp, an adversary, a bank), adds streams, and
writes `losses`: its whole step. So do `supervised`, all semi-supervised methods, adaptation, and stages that retrain.

Legend: B batch, C classes, S crop side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from maskwright.data.training.sources import Labels
from maskwright.data.training.streams import CropRecipe, Order, Stream
from maskwright.engine import seeding
from maskwright.engine.distributed import sampler
from maskwright.engine.schedules import poly
from maskwright.models.networks.build import Network
from maskwright.recipes.training.criteria import SupervisedLoss, class_aware_chances
from maskwright.recipes.training.drawing import StreamSetup
from maskwright.recipes.training.forward import Forward, precision_of
from maskwright.recipes.training.network import make_network, make_preprocess, retake
from maskwright.recipes.training.optimizers import add_module, make_optimizer
from maskwright.recipes.training.rates import resolved
from maskwright.recipes.training.selection import Selection, hold_out

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.context import Context


class CropSetup(StreamSetup):
    """A segmentation network that learns from crops, and streams, none yet, that they are drawn from.

    Attributes:
        config: options, with rates and decay decided.
        student: the network that learns, with its precision and modes.
        network: the same without them.
        preprocess: pixels to the network's input.
        crop: S, pixels: as asked for, rounded up to what the network takes.
        crops: how photographs are cropped.

    Args:
        context: of the run.
        config: options, a `CropConfig`.
        steps: of the stage.
        stage: the stage's name, part of the seed of the initial weights.
        dropout: whether dropout is on while the network learns; methods whose learning pass also labels turn it off.
        network: the network to train; built from the configuration if None.
    """

    def __init__(
        self,
        context: Context,
        config: Any,
        steps: int,
        *,
        stage: str = "train",
        dropout: bool = True,
        network: Network | None = None,
    ) -> None:
        config = resolved(config, context)
        self.context, self.config, self.steps, self.device = context, config, steps, context.device
        seeding.initialise(context.seed, stage)
        self.student = self.forward_of(network or make_network(context, config), dropout=dropout)
        self.network = self.student.network
        self.preprocess = make_preprocess(config, self.network)
        super().__init__(self.preprocess.network_input, self.device)
        self.crop = -(-config.crops.size // self.network.multiple_of) * self.network.multiple_of
        self.crops = CropRecipe(self.crop, (config.crops.scale_min, config.crops.scale_max), config.crops.long_side)
        self.modules["network"] = self.network
        self.optimizers["network"] = make_optimizer(config.optimizer, self.network)
        self.schedule = poly(steps)

    def forward_of(self, network: Network, dropout: bool = True) -> Forward:
        """A network with the configured precision and batch norm."""
        precision = precision_of(self.config.precision, self.device)
        return Forward(network, self.device, precision, freeze_norm=self.config.norms.freeze, dropout=dropout)

    def stream(
        self,
        indices: Sequence[int],
        order: Order,
        labels: Labels | None = None,
        data: Dataset | None = None,
        **more: Any,
    ) -> Stream:
        """A stream of the run's images (or of another data set's), cropped as the configuration says; `more` as of
        `Stream`."""
        data = self.context.data if data is None else data
        return Stream(data, indices, order, self.crops, self.preprocess.mean, labels, **more)

    def learn_too(self, name: str, module: nn.Module, rate: float = 1.0) -> Any:
        """A module of the method's own that the network's optimiser trains; biases and norms are not decayed.

        Args:
            name: in `modules`, and so in the checkpoint.
            module: with parameters that the network does not hold.
            rate: factor on the head's learning rate.
        """
        module = module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.modules[name] = module
        o = self.config.optimizer
        add_module(self.optimizers["network"], module, rate * o.lr, o.weight_decay)
        return module


class NetworkSetup(CropSetup):
    """A segmentation network that learns from labelled crops, those of stream `x` unless `name` says otherwise.

    Attributes:
        labels: those that are trained on.
        supervised: L_x of an output and its labels.
        held: labelled images that are held out.
        kept: the network that the method keeps, which held-out images choose an iterate of.

    Args:
        context: of the run.
        config: options, a `NetworkConfig`.
        labels: where labels come from, and of which data set.
        steps: of the stage.
        name: of the labelled stream.
        options: further arguments of `CropSetup`.
    """

    def __init__(
        self, context: Context, config: Any, labels: Labels, steps: int, *, name: str = "x", **options: Any
    ) -> None:
        super().__init__(context, config, steps, **options)
        c = self.config
        self.labels, self.held = hold_out(labels, c.holdout, context.seed)
        self.kept: nn.Module = self.network
        self.supervised = SupervisedLoss(self.student, c.loss, self.labels, context.classes)
        chances = class_aware_chances(self.labels) if c.crops.sample == "classes" else None
        order = sampler(context.seed, len(self.labels.indices), c.crops.batch, chances=chances)
        self.streams[name] = self.stream(self.labels.indices, order, self.labels, data=labels.data)
        self.selection: Selection | None = None
        if self.held:
            self.selection = Selection(labels.data, labels, self.held, context.classes, self.preprocess)
            self.extra = {"selection": self.selection}

    def after_step(self, step: int) -> None:
        """Looks at the held-out images, where there are any."""
        if self.selection is not None:
            self.selection.after_step(self, step)

    def with_statistics(self, network: Any) -> None:
        """Gives a copy of the network the batch-norm statistics that the kept network will have."""
        retake(self.context, self.config, network, self.preprocess, self.labels.indices, self.labels.data)

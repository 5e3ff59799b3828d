"""The segmenter against a discriminator of domains that sees its scores or its features.

Legend: B batch, C classes, E width of the embedding, S crop side, (h, w) size of the decoder's maps.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from maskwright.data.training.sources import Labels
from maskwright.engine.distributed import sampler
from maskwright.engine.loop import Training
from maskwright.engine.updating import take_step
from maskwright.methods.adapt.cycada.losses import domain_loss, fooling, told_apart
from maskwright.methods.adapt.cycada.networks import DomainDiscriminator
from maskwright.methods.adapt.cycada.options import CycadaConfig
from maskwright.models.networks.build import Network
from maskwright.recipes.adversarial.adversary import Adversary
from maskwright.recipes.adversarial.replay import AccuracyGate, accuracy
from maskwright.recipes.consistency.parts import SECOND
from maskwright.recipes.training.rates import resolved
from maskwright.recipes.training.setup import NetworkSetup

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskwright.engine.context import Context


class AlignTraining(Training):
    """A step of D, then, where D is good enough, one of the network that fools it on the target, and one on the
    source's labels.

    Args:
        context: of the run.
        config: options.
        labels: of the source, on its translated photographs.
        steps: of the stage.
        network: as its training left it.
    """

    must_fall: ClassVar[str] = "s"  # while the gate is open; D's falls only where it can tell the domains apart

    def __init__(self, context: Context, config: CycadaConfig, labels: Labels, steps: int, network: Network) -> None:
        config = resolved(config, context)
        a, o = config.align, config.optimizer
        slower = replace(config, optimizer=replace(o, lr=o.lr * a.slower))
        setup = NetworkSetup(context, slower, labels, steps, name="s", stage="align", network=network)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.network, self.supervised = setup.student, setup.network, setup.supervised
        order = sampler(context.seed, len(context.data), config.crops.batch, SECOND)
        setup.streams["t"] = setup.stream(range(len(context.data)), order)
        channels = context.classes if a.on == "scores" else network.width
        self.adversary = Adversary(DomainDiscriminator(channels), setup.device, a.d_lr)
        self.modules["discriminator"] = self.adversary.discriminator
        self.optimizers["discriminator"] = self.adversary.optimizer
        self.gate = AccuracyGate(a.gate, a.window)
        self.extra = {**self.extra, "gate": self.gate}
        self.source: Network | None = None  # of the source, where it has one of its own
        if not a.shared:
            self.source = copy.deepcopy(setup.network).eval().requires_grad_(False)
            self.modules["source"] = self.source

    def seen(self, network: Any, x: Tensor) -> Tensor:
        """What D sees of a network on crops (B, 3, S, S): scores (B, C, h, w) or features (B, E, h, w), in fp32."""
        with self.student.autocast():
            embedding = network.decode(network.features(x))
            maps = network.classify(embedding) if self.config.align.on == "scores" else embedding
        return maps.float()

    def judge(self, of: Any, maps: Tensor) -> Tensor:
        """D's logits (B, 2, h, w), D frozen or not, in fp32."""
        with self.student.autocast():
            return of(maps).float()

    def maps(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Of source and target, the latter with gradients."""
        with self.student.plain(), torch.no_grad():
            s = self.seen(self.source or self.network, batch["s"].weak)
        with self.student.plain():
            return s, self.seen(self.network, batch["t"].weak)

    def discriminator_loss(self, s: Tensor, t: Tensor, batch: Any) -> tuple[Tensor, float]:
        """L_D on what the network said of a batch, and D's accuracy before its step."""
        verdicts = self.judge(self.adversary, s), self.judge(self.adversary, t.detach())
        inside = batch["s"].inside, batch["t"].inside
        return domain_loss(*verdicts, inside), accuracy(told_apart(*verdicts, inside))

    def fooling(self, t: Tensor, batch: Any) -> Tensor:
        """lambda_g CE(D(f(x_t)), source), with gradients into the network alone."""
        with self.adversary.frozen() as frozen:
            return self.config.align.weight * fooling(self.judge(frozen, t), batch["t"].inside)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """What the network minimises while the gate is open."""
        adversarial = self.fooling(self.maps(batch)[1], batch)
        if self.source is not None:
            return {"loss": adversarial, "fool": adversarial}
        loss_s = self.supervised(self.student(batch["s"].weak), batch["s"].y)
        return {"loss": adversarial + loss_s, "fool": adversarial, "s": loss_s}

    def update(self, fabric: Fabric, batch: Any, step: int) -> dict[str, Tensor]:
        """D; and through the open gate f against D, then f on the source's labels where it labels both domains."""
        s, t = self.maps(batch)
        loss_d, right = self.discriminator_loss(s, t, batch)
        take_step([self.adversary.optimizer], fabric, loss_d, self.clip)
        terms = {"loss": loss_d, "d": loss_d, "accuracy": torch.tensor(right)}
        terms["open"] = torch.tensor(float(self.gate.push(right)))
        if not self.gate.open:
            return terms
        terms["fool"] = self.fooling(t, batch)
        take_step([self.optimizers["network"]], fabric, terms["fool"], self.clip)
        if self.source is None:
            terms["s"] = self.supervised(self.student(batch["s"].weak), batch["s"].y)
            take_step([self.optimizers["network"]], fabric, terms["s"], self.clip)
        return terms

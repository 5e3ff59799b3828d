"""AdvEnt: Adversarial entropy minimization for domain adaptation in semantic segmentation, Vu et al., CVPR 2019,
https://arxiv.org/abs/1811.12833

    maskwright train TARGET --source SOURCE --method advent

A network is sure of the source, which it was taught, and unsure of the target. It is asked to be as sure there, pixel
by pixel (`variant=minent`), or so that a discriminator D takes its maps of weighted self-information for the source's:

    I(p) = -p log p / log C, a map for each class;  E(p) = sum_c I(p)_c in [0, 1]
    minent   L = L_s + lambda mean_i E(p_t)_i
    advent   L = L_s + lambda BCE(D(I(p_t)), 1),   L_D = (BCE(D(I(p_s)), 1) + BCE(D(I(p_t)), 0)) / 2

1 stands for the source. p_s are the probabilities of source crops, p_t those of target crops. lambda is 0.001, and
0.0002 for each auxiliary head of the network, which has a discriminator of its own. A network without such heads has
one output, which is said. No label of the target is read.

Deviates: D's verdicts are enlarged to the crop, so that those on padding do not count; the authors average them as they
are. Auxiliary heads are those of the network with the weights of its paper, where the authors add one to DeepLabv2 at
0.1. L_D is halved as theirs, over the two domains. Optimiser, rates, crops and steps are those that all methods here
share; batch-norm statistics are taken from the target's photographs once training is over.
What the original gets wrong: it freezes no batch norm and runs D's batches domain by domain (kept: each domain has the
statistics of its own crops), and reports the best iterate on the images that it is judged on; here it is the last, or
the best on held-out source images (`holdout`).

Legend: B batch, C classes, S crop side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from maskwright.data.training.sources import Labels
from maskwright.engine.config import Idle, option, part
from maskwright.engine.distributed import sampler
from maskwright.engine.loop import Training
from maskwright.engine.updating import take_step
from maskwright.ops.losses.seg_losses import reduce_pixels
from maskwright.recipes.adaptation import SourceMethod, TargetConfig
from maskwright.recipes.adversarial.adversary import Adversary, adversarial
from maskwright.recipes.adversarial.discriminators import PixelDiscriminator, check_side
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, RampOptions
from maskwright.recipes.consistency.parts import SECOND, Ramp
from maskwright.recipes.training.forward import Output, upsample
from maskwright.recipes.training.setup import NetworkSetup

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MAIN = "main"
"""What the network's own output is called beside its auxiliary heads."""


@dataclass(kw_only=True)
class AdventConfig(TargetConfig):
    """Options of `advent`."""

    ramp: RampOptions = part(
        RampOptions, weight=0.001, says={"weight": "lambda, weight of the loss on the target's output"}
    )
    variant: str = option(
        "advent", "advent: against a discriminator; minent: the entropy itself", choices=("advent", "minent"), main=True
    )
    aux_share: float = option(0.2, "an auxiliary head's share of lambda", low=0)
    d_width: int = option(64, "channels of the discriminators' first convolution", low=1)
    d_lr: float = option(1e-4, "the discriminators' learning rate (Adam, betas 0.9 and 0.99), poly schedule", low=0)

    def idle(self) -> Idle:
        """The discriminators' options where there are none, and all of the target's where its loss does not weigh."""
        yield from super().idle()
        if self.ramp.weight == 0:
            yield ("ramp.up", "ramp.start", "variant", "aux_share", "target"), NOTHING_UNLABELED
        if self.variant == "minent" or self.ramp.weight == 0:
            yield ("d_width", "d_lr"), "variant=minent" if self.ramp.weight else NOTHING_UNLABELED


def self_information(logits: Tensor) -> Tensor:
    """I(p) = -p log p / log C of p = softmax(logits) (B, C, S, S), with 0 log 0 = 0; zeros of a single class."""
    classes = logits.shape[1]
    return torch.special.entr(logits.softmax(1)) / (math.log(classes) if classes > 1 else 1.0)


def entropy_loss(information: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels of E(p) = sum_c I(p)_c.

    Args:
        information: I(p) (B, C, S, S).
        valid: bool (B, S, S).
    """
    return reduce_pixels(information.sum(1), valid)


class AdventTraining(Training):
    """First the network takes a step against frozen discriminators, then they learn from what it had said."""

    def __init__(self, context: Any, config: AdventConfig, labels: Labels, steps: int, **options: Any) -> None:
        setup = NetworkSetup(context, config, labels, steps, name="s", **options)
        super().__init__(setup)
        self.student, self.network, self.supervised = setup.student, setup.network, setup.supervised
        c, images = setup.config, range(len(context.data))
        order = sampler(context.seed, len(images), c.target.batch or c.crops.batch, SECOND)
        setup.streams["t"] = setup.stream(images, order)
        self.ramp = Ramp(c.ramp, steps)
        self.shares = {MAIN: 1.0, **dict.fromkeys(setup.network.aux, c.aux_share)}
        if len(self.shares) == 1:
            context.note("The network has one output: there is no second one whose entropy is lowered.")
        self.adversaries: dict[str, Adversary] = {}
        if c.variant == "advent":
            check_side(setup.crop)
            for name in self.shares:
                judge = PixelDiscriminator(context.classes, c.d_width)
                self.adversaries[name] = Adversary(judge, setup.device, c.d_lr)
                self.modules[f"discriminator_{name}"] = self.adversaries[name].discriminator
                self.optimizers[f"discriminator_{name}"] = self.adversaries[name].optimizer

    def information(self, out: Output) -> dict[str, Tensor]:
        """I(p) (B, C, S, S) of each of the network's outputs."""
        maps = {MAIN: out.logits}
        if len(self.network.aux):
            with self.student.autocast():
                aux = self.network.aux_logits(out.features)
            maps |= {name: upsample(logits, out.logits.shape[-2:]) for name, logits in aux.items()}
        return {name: self_information(logits) for name, logits in maps.items()}

    def segmenter_loss(self, batch: Any, step: int) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """L of the network, and for each discriminator I(p_s) and I(p_t), detached."""
        s, t, lam = batch["s"], batch["t"], self.ramp(step)
        out = self.student(s.weak)
        loss_s = self.supervised(out, s.y)
        if lam == 0:
            return {"loss": loss_s, "s": loss_s}, {}
        i_t = self.information(self.student(t.weak))
        terms, loss = {"s": loss_s}, loss_s
        for name, share in self.shares.items():
            if self.adversaries:
                with self.adversaries[name].frozen() as judge, self.student.autocast():
                    term = adversarial(judge(i_t[name]), True, t.valid)
            else:
                term = entropy_loss(i_t[name], t.valid)
            terms["t" if name == MAIN else f"t_{name}"] = term
            loss = loss + lam * share * term
        with torch.no_grad():
            i_s = self.information(out) if self.adversaries else {}
        return {"loss": loss, **terms}, {name: (i, i_t[name].detach()) for name, i in i_s.items()}

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L of the network."""
        return self.segmenter_loss(batch, step)[0]

    def discriminator_loss(self, name: str, batch: Any, i_s: Tensor, i_t: Tensor) -> Tensor:
        """L_D of one output: the source is real, the target is not.

        Args:
            name: of the output.
            batch: with the validity of both domains' crops.
            i_s: I(p_s) (B, C, S, S).
            i_t: I(p_t).
        """
        judge = self.adversaries[name]
        with self.student.autocast():
            d_s, d_t = judge(i_s), judge(i_t)
        return 0.5 * (adversarial(d_s, True, batch["s"].inside) + adversarial(d_t, False, batch["t"].valid))

    def update(self, fabric: Fabric, batch: Any, step: int) -> dict[str, Tensor]:
        """A step of the network, then one of each discriminator on what the network had said before its step."""
        terms, said = self.segmenter_loss(batch, step)
        take_step([self.optimizers["network"]], fabric, terms["loss"], self.clip)
        for name, (i_s, i_t) in said.items():
            key = "d" if name == MAIN else f"d_{name}"
            terms[key] = self.discriminator_loss(name, batch, i_s, i_t)
            take_step([self.adversaries[name].optimizer], fabric, terms[key], self.clip)
        return terms


class Advent(SourceMethod):
    """A target that looks as sure as the source."""

    name: ClassVar[str] = "advent"
    title: ClassVar[str] = "AdvEnt: Adversarial entropy minimization for domain adaptation in semantic segmentation"
    venue: ClassVar[str] = "Vu et al., CVPR 2019"
    link: ClassVar[str] = "https://arxiv.org/abs/1811.12833"
    summary: ClassVar[str] = "Makes a target look as sure as a source."
    Config: ClassVar[type] = AdventConfig
    trainer: ClassVar[type[Training]] = AdventTraining
    says: ClassVar[str] = "a network whose entropy on the target looks like that on the source"

"""The generators against their discriminators, with the segmenter of the source as a judge.

Legend: B batch, C classes, S crop side.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from maskwright.data.training.sources import Labels
from maskwright.data.training.streams import CropRecipe, Stream, Views
from maskwright.engine import seeding
from maskwright.engine.distributed import sampler
from maskwright.engine.loop import Training
from maskwright.engine.updating import take_step
from maskwright.methods.adapt.cycada.losses import (
    Played,
    discriminator_loss,
    generator_terms,
    is_heard,
    semantic_consistency,
)
from maskwright.methods.adapt.cycada.networks import MULTIPLE, Generator, PatchDiscriminator
from maskwright.methods.adapt.cycada.options import CycadaConfig
from maskwright.models.backbones.dense import autocast
from maskwright.models.networks.build import Network
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.recipes.adversarial.adversary import Adversary
from maskwright.recipes.adversarial.replay import ReplayPool
from maskwright.recipes.consistency.parts import SECOND
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.drawing import StreamSetup, to_signed
from maskwright.recipes.training.forward import precision_of
from maskwright.recipes.training.network import make_preprocess

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskwright.engine.context import Context

BETAS = (0.5, 0.999)
TO_TARGET, TO_SOURCE = "to_target", "to_source"
GREY = (0.5, 0.5, 0.5)
"""Outside a photograph, which is 0 in [-1, 1]."""


def constant_then_linear(steps: int, constant: float) -> Callable[[int], float]:
    """The factor 1 for a share of the steps, then linear towards 0, which the step behind the last would have.

    Args:
        steps: in all.
        constant: the share.
    """
    kept = round(constant * steps)
    return lambda step: 1.0 - max(0, step + 1 - kept) / (steps - kept + 1)


class PaddedPool(ReplayPool):
    """Images with what lies inside the photographs that they were made from, as a fourth channel."""

    def shown(self, images: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """New images (B, 3, S, S) and bool (B, S, S) to as many of both, new and old, without gradient."""
        given = self(torch.cat([images, inside[:, None].to(images)], 1))
        return given[:, :3], given[:, 3] > 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the images of a state; those of earlier versions, without the channel, count whole."""
        super().load_state_dict(state)
        self.images = [x if len(x) > 3 else torch.cat([x, torch.ones_like(x[:1])]) for x in self.images]


class GeneratorTraining(Training):
    """A step of G and F against frozen discriminators, then D_T's, then D_S's, on what was made before the first.

    Args:
        context: of the run.
        config: options.
        steps: of the stage.
        labels: of the source, where a judge is asked; its photographs are then those that have some.
        judge: the segmenter of the source; frozen here. None: no semantic consistency.
    """

    must_fall: ClassVar[str] = "cycle"

    def __init__(
        self,
        context: Context,
        config: CycadaConfig,
        steps: int,
        labels: Labels | None = None,
        judge: Network | None = None,
    ) -> None:
        g = config.generators
        setup = StreamSetup(to_signed, context.device)
        super().__init__(setup)
        self.config, self.weights, self.device = config, config.weights, context.device
        self.precision = precision_of(config.precision, self.device)
        seeding.initialise(context.seed, "generators")
        self.to_target, self.to_source = (Generator(g.blocks, g.width).to(self.device) for _ in range(2))
        self.of_target, self.of_source = (
            Adversary(PatchDiscriminator(g.width), self.device, g.g_lr, BETAS) for _ in range(2)
        )
        players = chain(self.to_target.parameters(), self.to_source.parameters())
        self.generators = torch.optim.Adam(players, lr=g.g_lr, betas=BETAS)
        self.modules = {
            TO_TARGET: self.to_target, TO_SOURCE: self.to_source,
            "d_target": self.of_target.discriminator, "d_source": self.of_source.discriminator,
        }  # fmt: skip
        self.optimizers = {
            "generators": self.generators,
            "d_target": self.of_target.optimizer, "d_source": self.of_source.optimizer,
        }  # fmt: skip
        self.pool_t, self.pool_s = PaddedPool(g.pool), PaddedPool(g.pool)
        self.extra = {"pool_t": self.pool_t, "pool_s": self.pool_s}
        self.schedule = constant_then_linear(steps, g.constant)

        self.judge = None if judge is None else judge.to(self.device).eval().requires_grad_(False)
        if self.judge is not None:
            self.preprocess = make_preprocess(config, self.judge)
        side = -(-g.side // MULTIPLE) * MULTIPLE
        crops = CropRecipe(side, (g.scale_min, g.scale_max), config.crops.long_side)
        source, target = context.data_of("source"), context.data
        images = range(len(source)) if labels is None else labels.indices
        orders = sampler(context.seed, len(images), g.each), sampler(context.seed, len(target), g.each, SECOND)
        setup.streams["s"] = Stream(source, images, orders[0], crops, GREY, labels)
        setup.streams["t"] = Stream(target, range(len(target)), orders[1], crops, GREY)

    def play(self, s: Tensor, t: Tensor) -> Played:
        """What the generators make of crops (B, 3, S, S) of both domains, with gradients."""
        to_target, to_source = self.to_target, self.to_source
        with autocast(self.device, self.precision):
            fake_t, fake_s = to_target(s), to_source(t)
            back_s, back_t = to_source(fake_t), to_target(fake_s)
            same = (to_target(t), to_source(s)) if self.weights.identity > 0 else (None, None)
        return Played(*(None if x is None else x.float() for x in (fake_t, fake_s, back_s, back_t, *same)))  # type: ignore[arg-type]

    def verdicts(self, of: Any, images: Tensor) -> Tensor:
        """What a discriminator, frozen or not, says of images (B, 3, S, S), in fp32."""
        with autocast(self.device, self.precision):
            return of(images).float()

    def judged(self, x: Tensor) -> Tensor:
        """Logits (B, C, S, S) of the judge on crops in [-1, 1]."""
        assert self.judge is not None
        mean, std = (
            torch.tensor(v, device=x.device)[:, None, None] for v in (self.preprocess.mean, self.preprocess.std)
        )
        with autocast(self.device, self.precision):
            return self.judge.logits(((x + 1) / 2 - mean) / std).float()

    def consistency(self, s: Views, t: Views, played: Played) -> Tensor:
        """Semantic consistency of a step, with gradients into the generators alone."""
        y = s.y.target(IGNORE)
        with torch.no_grad():
            judge_loss = cross_entropy(self.judged(s.weak), y, ignore=IGNORE)
            k = torch.where(t.valid, self.judged(t.weak).argmax(1), IGNORE)
        if not is_heard(judge_loss, self.config.semantic.limit):
            return torch.zeros((), device=self.device)
        return semantic_consistency(self.judged(played.fake_t), y, self.judged(played.fake_s), k)

    def generator_losses(self, batch: dict[str, Views]) -> tuple[dict[str, Tensor], Played]:
        """What G and F minimise, by terms, and what they made."""
        s, t = batch["s"], batch["t"]
        played = self.play(s.weak, t.weak)
        with self.of_target.frozen() as d_t, self.of_source.frozen() as d_s:
            verdicts = self.verdicts(d_t, played.fake_t), self.verdicts(d_s, played.fake_s)
            terms = generator_terms(s.weak, t.weak, played, *verdicts, self.weights, (s.inside, t.inside))
        if self.judge is not None:
            terms["semantic"] = self.consistency(s, t, played)
            terms["loss"] = terms["loss"] + self.weights.semantic * terms["semantic"]
        return terms, played

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L of the generators."""
        return self.generator_losses(batch)[0]

    def update(self, fabric: Fabric, batch: Any, step: int) -> dict[str, Tensor]:
        """G and F, then D_T, then D_S."""
        terms, played = self.generator_losses(batch)
        take_step([self.generators], fabric, terms["loss"], self.clip)
        s, t = batch["s"], batch["t"]
        for name, of, pool, real, fake, origin in (
            ("d_t", self.of_target, self.pool_t, t, played.fake_t, s),
            ("d_s", self.of_source, self.pool_s, s, played.fake_s, t),
        ):
            shown, inside = pool.shown(fake, origin.inside)
            verdicts = self.verdicts(of, real.weak), self.verdicts(of, shown)
            terms[name] = discriminator_loss(*verdicts, (real.inside, inside))
            take_step([of.optimizer], fabric, terms[name], self.clip)
        return terms

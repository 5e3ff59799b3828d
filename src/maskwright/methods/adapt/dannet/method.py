"""DANNet: A one-stage domain adaptation network for unsupervised nighttime semantic segmentation, Wu et al.,
CVPR 2021, https://arxiv.org/abs/2104.10834

    maskwright train NIGHT --source SOURCE --source day=DAY --method dannet

Photographs of the source (labelled), by day and by night are relit by one network, R = I + r, before one segmenter sees
them. Discriminators tell what it says of day and night from what it says of the source, and day labels night where
nothing moves:

    L_light = 10 L_tv(r) + L_ssim(R, I) + L_exp(R, m),  m the mean light of the night's crops
    L = CE(P_s, y; w') + L_light(s) + lambda L_t
    L_t = .01 (D_d(P_d)^2 + D_n(P_n)^2 + L_light(d) + L_light(n)) + L_static(P_n, k)
    L_D = ((D(P_s) - 0)^2 + (D(P_t) - 1)^2) / 2,  t = d, n

k is the likeliest class of both, w' weighs classes by their rarity. What is saved relights and weighs logits by w'.

Deviates: in place of a network that learned the source beforehand, the source alone is learned for `ramp.start` of the
steps. Relighting begins as the identity and learns at a tenth of the head's rate (`light.lr`), theirs at the
segmenter's: a step of AdamW moves the 3,000 weights behind each output of its last layer alike, and so the output far.
Labels go over at the crop's size, day and night cropped alike. The target's crops see no dropout, as their predictions
label. Pixels outside a photograph count in L_tv alone. Optimiser, crops, schedule and batch-norm statistics are those
that all methods here share; `norms.freeze` keeps the encoder's, and the relighting's are retaken. f_c are the source's
own class shares; the deviation of w' shrinks where a weight would be below 0.05.
What the original gets wrong: its eight shifted labels of L_static are one tensor written in place, which leaves a
tenth of the labels where they were; here all are looked at. Ignored neighbours and crops without a label break it (here
they teach nothing). SSIM has constants for [0, 1] on normalised images; w' multiplies logits, so that a negative one of
a rare class sinks (both kept).

Legend: B crops, C classes, K static classes, S crop side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from maskwright.data.training.pairing import paired, pairs_from_file
from maskwright.data.training.sources import Labels
from maskwright.data.training.twins import TwinStream
from maskwright.data.trust.files import write_text
from maskwright.engine.config import Idle, option, part
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import sampler
from maskwright.engine.loop import Training
from maskwright.engine.needs import StreamNeed, Terms
from maskwright.engine.updating import take_step
from maskwright.errors import MaskwrightError
from maskwright.methods.adapt.dannet.discriminator import OutputDiscriminator
from maskwright.methods.adapt.dannet.losses import (
    exposure,
    mean_light,
    rarity_weights,
    static_labels,
    static_loss,
    structure,
    total_variation,
    widest,
)
from maskwright.methods.adapt.dannet.pairs import BY_FEATURES, DOUBT, find_pairs, static_classes, table_of, told
from maskwright.models.networks.build import Network
from maskwright.models.parts.relighting import Relighting, RelitEncoder, WeightedClassifier
from maskwright.recipes.adaptation import SourceMethod, TargetConfig
from maskwright.recipes.adversarial.adversary import Adversary, least_squares
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, RampOptions, UnlabeledOptions
from maskwright.recipes.consistency.parts import SECOND, Ramp
from maskwright.recipes.training.criteria import SupervisedLoss, pixel_counts
from maskwright.recipes.training.network import make_network, trained_network
from maskwright.recipes.training.optimizers import add_module
from maskwright.recipes.training.options import LossOptions
from maskwright.recipes.training.setup import NetworkSetup

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskwright.engine.context import Context

PAIRS = "pairs.csv"
SOURCE, TARGET = 0.0, 1.0
"""What discriminators ought to say."""


@dataclass(kw_only=True)
class LightOptions:
    """The relighting network and what is asked of it."""

    width: int = option(64, "channels of the relighting network; its cost grows with the square", low=1, main=True)
    lr: float = option(
        0.1,
        "its share of the head's rate: 3,000 inputs of its last layer that move together move its output far",
        low=0,
    )
    tv: float = option(10.0, "weight of the residual's total variation", low=0)
    ssim: float = option(1.0, "weight of the loss of structure", low=0)
    exposure: float = option(1.0, "weight of the distance from the night's mean light", low=0)
    window: int = option(32, "side of the windows whose light is compared, pixels", low=2)
    target: float = option(0.01, "weight of the light's loss on day and night; on the source it is 1", low=0)


@dataclass(kw_only=True)
class RarityOptions:
    """Weights of classes by their rarity in the source."""

    train: float = option(0.05, "standard deviation of the classes' weights in losses and labels", low=0, high=0.3)
    test: float = option(0.16, "the same of what multiplies logits in prediction", low=0, high=0.3)


@dataclass(kw_only=True)
class StaticOptions:
    """Labels that go from day to night."""

    classes: str = option(
        "", "classes that do not move, with commas between; empty: those called as the paper's", main=True
    )
    weight: float = option(1.0, "weight of the loss on them", low=0)
    threshold: float = option(0.4, "logit by day above which day counts as sure")
    sure: float = option(0.8, "share of day in the label's logits where it is sure", low=0, high=1)
    unsure: float = option(0.2, "and where it is not", low=0, high=1)
    gamma: float = option(1.0, "of the focal factor", low=0)


@dataclass(kw_only=True)
class DANNetConfig(TargetConfig):
    """Options of `dannet`."""

    loss: LossOptions = part(LossOptions, without=("balance",))
    target: UnlabeledOptions = part(
        UnlabeledOptions, without=("images", "strong"),
        says={"batch": "pairs of night and day in a step; 0: as many as crops of the source"},
    )  # fmt: skip
    ramp: RampOptions = part(
        RampOptions, start=0.75, main=("start",),
        says={
            "weight": "lambda, weight of all that is asked of day and night",
            "start": "share of the steps for the source alone; the paper: 150,000 of 200,000",
        },
    )  # fmt: skip
    pairs: str = option(
        "name", "which day belongs to a night: name (equal names), features (the nearest), or a CSV file night,day",
        main=True,
    )  # fmt: skip
    light: LightOptions = part(LightOptions)
    rarity: RarityOptions = part(RarityOptions)
    static: StaticOptions = part(StaticOptions)
    lam_adv: float = option(0.01, "weight of each adversarial loss", low=0)
    d_width: int = option(64, "channels of the discriminators' first convolution", low=1)
    d_lr: float = option(1e-4, "their learning rate (Adam, betas 0.9 and 0.99), poly schedule", low=0)

    @property
    def exposes(self) -> bool:
        """Whether windows of light are compared with the night's."""
        return self.light.lr > 0 and self.light.exposure > 0

    @property
    def lends(self) -> bool:
        """Whether day labels night."""
        return self.ramp.weight > 0 and self.static.weight > 0

    def idle(self) -> Idle:
        """Options of losses that do not weigh, and of a relighting that does not learn: it stays the identity."""
        yield from super().idle()
        if self.ramp.weight == 0:
            judges = ("lam_adv", "d_width", "d_lr")
            yield ("ramp.up", "ramp.start", "target", "light.target", "static", *judges), NOTHING_UNLABELED
        elif not self.lam_adv:
            yield ("d_width", "d_lr"), "lam_adv=0"
        if not self.static.weight:
            yield [f"static.{n}" for n in ("classes", "threshold", "sure", "unsure", "gamma")], "static.weight=0"
        if not self.light.lr:
            others = ("width", "tv", "ssim", "exposure", "window", "target")
            yield [f"light.{name}" for name in others], "light.lr=0"
        elif not self.light.exposure:
            yield ("light.window",), "light.exposure=0"


class Play(NamedTuple):
    """What the segmenter said in a step, detached: the discriminators' material.

    Attributes:
        source: probabilities on source crops (B, C, S, S).
        targets: on crops by day and by night, with the pixels inside the photographs.
        inside: bool (B, S, S), of the source.
    """

    source: Tensor
    targets: dict[str, tuple[Tensor, Tensor]]
    inside: Tensor


def relit(network: Network, relighting: Relighting, weight: Tensor) -> Network:
    """A network that relights what it sees and weighs its logits by class (C,); it shares all modules."""
    return Network(
        RelitEncoder(relighting, network.encoder),
        network.decoder,
        WeightedClassifier(network.classifier, weight),
        width=network.width, provenance=network.provenance, aux=dict(network.aux), aux_weights=network.aux_weights,
    )  # fmt: skip


class DANNetTraining(Training):
    """First relighting and segmenter take a step against frozen discriminators, then they learn from what was said."""

    setup: NetworkSetup

    def __init__(
        self, context: Context, config: DANNetConfig, labels: Labels, steps: int, pairs: Path, static: list[int]
    ) -> None:
        setup = NetworkSetup(context, config, labels, steps, name="s")
        super().__init__(setup)
        self.config = setup.config
        self.student, self.context, self.device = setup.student, context, setup.device
        c, classes = self.config, context.classes
        if c.exposes and setup.crop < c.light.window:
            raise MaskwrightError(
                f"light.window={c.light.window} on crops of {setup.crop} pixels", "a window that fits into a crop",
                f"--set light.window={setup.crop // 2}, or larger crops",
            )  # fmt: skip
        setup.streams["t"] = self.twins(pairs)
        self.ramp, self.static = Ramp(c.ramp, steps), static
        counts = pixel_counts(setup.labels, classes)
        self.note_spread(counts)
        self.weight = rarity_weights(counts, c.rarity.train).to(setup.device)
        self.supervised = SupervisedLoss(setup.student, c.loss, setup.labels, classes, self.weight)
        lasting = {"memory_format": torch.channels_last}
        self.relighting: Relighting = Relighting(c.light.width).to(setup.device, **lasting)  # type: ignore[call-overload]
        rate, decay = c.light.lr * c.optimizer.lr, c.optimizer.weight_decay
        add_module(self.optimizers["network"], self.relighting, rate, decay or 0.0)
        whole = relit(setup.network, self.relighting, rarity_weights(counts, c.rarity.test)).to(setup.device)
        self.modules["network"] = setup.kept = whole
        self.adversaries: dict[str, Adversary] = {}
        for name in ("day", "night"):
            self.adversaries[name] = Adversary(OutputDiscriminator(classes, c.d_width), setup.device, c.d_lr)
            self.modules[f"discriminator_{name}"] = self.adversaries[name].discriminator
            self.optimizers[f"discriminator_{name}"] = self.adversaries[name].optimizer

    def note_spread(self, counts: Tensor) -> None:
        """Says so where weights of classes (C,) that occur so often would reach 0."""
        r, most = self.config.rarity, widest(counts)
        for name, asked in (("train", r.train), ("test", r.test)):
            if asked > most:
                self.context.note(
                    f"rarity.{name}={asked:g} would leave the most frequent class a weight near or below 0: "
                    f"{most:.3g} is taken."
                )

    def twins(self, file: Path) -> TwinStream:
        """Night and day, from the file of their pairs."""
        night, day = self.context.data, self.context.data_of("day")
        partner = pairs_from_file(file, night, day)
        images = paired(partner).tolist()
        order = sampler(self.context.seed, len(images), self.config.target.batch or self.config.crops.batch, SECOND)
        stream = self.setup.stream
        return TwinStream(stream(images, order), stream(range(len(day)), order, data=day), partner)

    # ------------------------------------------------------------------ the step

    def relight(self, x: Tensor, m: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """R (B, 3, S, S), and L_light.

        Args:
            x: I (B, 3, S, S), normalised.
            m: the night's mean light.
            inside: bool (B, S, S), what lies in the photograph.
        """
        c = self.config.light
        with self.student.autocast():
            r = self.relighting(x)
        r = r.float()
        light_tv, light_ssim = total_variation(r), structure(x + r, x, inside)
        light_exp = exposure(x + r, m, c.window, inside) if self.config.exposes else light_tv.new_zeros(())
        return x + r, c.tv * light_tv + c.ssim * light_ssim + c.exposure * light_exp

    def segmenter_loss(self, batch: Any, step: int) -> tuple[dict[str, Tensor], Play | None]:
        """L of relighting and segmenter, and what discriminators learn from; these are to be given no gradients."""
        s, (n, d), lam = batch["s"], batch["t"], self.ramp(step)
        m, inside = mean_light(n.weak, n.valid), s.inside
        seen, light_s = self.relight(s.weak, m, inside)
        out = self.student(seen)
        loss_s = self.supervised(out, s.y)
        terms = {"s": loss_s, "light": light_s}
        if lam == 0:
            return {"loss": loss_s + light_s, **terms}, None
        seen_d, light_d = self.relight(d.weak, m, d.valid)
        seen_n, light_n = self.relight(n.weak, m, n.valid)
        with self.student.plain():
            day, night = self.student(seen_d).logits, self.student(seen_n).logits
        said = {"day": (day.softmax(1), d.valid), "night": (night.softmax(1), n.valid)}
        adv = {name: self.fooled(name, p, valid) for name, (p, valid) in said.items()}
        loss_static = self.from_day(day, night, d.valid & n.valid)
        c = self.config
        loss_t = (
            c.lam_adv * (adv["day"] + adv["night"])
            + c.light.target * (light_d + light_n)
            + c.static.weight * loss_static
        )
        terms |= {"adv_day": adv["day"], "adv_night": adv["night"], "static": loss_static}
        detached = {name: (p.detach(), valid) for name, (p, valid) in said.items()}
        play = Play(out.logits.detach().softmax(1), detached, inside)
        return {"loss": loss_s + light_s + lam * loss_t, **terms}, play

    def fooled(self, name: str, p: Tensor, valid: Tensor) -> Tensor:
        """(D(p) - 0)^2: how far the discriminator takes a target's probabilities (B, C, S, S) for the source's."""
        with self.adversaries[name].frozen() as judge, self.student.autocast():
            verdicts = judge(p)
        return least_squares(verdicts, SOURCE, valid)

    def from_day(self, day: Tensor, night: Tensor, valid: Tensor) -> Tensor:
        """L_static of logits by day and by night (B, C, S, S), with gradient into the night's alone; 0 where it has no
        weight."""
        if not self.config.lends:
            return night.new_zeros(())
        c = self.config.static
        k = static_labels(day, night, self.weight, self.static, c.threshold, c.sure, c.unsure).restrict(valid)
        return static_loss(night[:, self.static], k, self.weight[self.static], c.gamma)

    def discriminator_loss(self, name: str, play: Play) -> Tensor:
        """L_D of the discriminator of `day` or `night`."""
        p, valid = play.targets[name]
        with self.student.autocast():
            d_s, d_t = self.adversaries[name](play.source), self.adversaries[name](p)
        return 0.5 * (least_squares(d_s, SOURCE, play.inside) + least_squares(d_t, TARGET, valid))

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L of relighting and segmenter."""
        return self.segmenter_loss(batch, step)[0]

    def update(self, fabric: Fabric, batch: Any, step: int) -> dict[str, Tensor]:
        """A step of relighting and segmenter, then one of each discriminator on what had been said before it."""
        terms, play = self.segmenter_loss(batch, step)
        take_step([self.optimizers["network"]], fabric, terms["loss"], self.clip)
        if play is not None:
            for name, adversary in self.adversaries.items():
                terms[f"d_{name}"] = self.discriminator_loss(name, play)
                take_step([adversary.optimizer], fabric, terms[f"d_{name}"], self.clip)
        return terms


class DANNet(SourceMethod):
    """Night relit, and labelled by day."""

    name: ClassVar[str] = "dannet"
    title: ClassVar[str] = (
        "DANNet: A one-stage domain adaptation network for unsupervised nighttime semantic segmentation"
    )
    venue: ClassVar[str] = "Wu et al., CVPR 2021"
    link: ClassVar[str] = "https://arxiv.org/abs/2104.10834"
    summary: ClassVar[str] = "Relights night and lets day label it."
    streams: ClassVar[dict[str, StreamNeed]] = {
        "day": StreamNeed(says="unlabelled photographs of the same places by day")
    }
    Config: ClassVar[type] = DANNetConfig
    says: ClassVar[str] = "relighting, a segmenter and two discriminators on source, day and night"

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """Its first steps learn the source alone."""
        waits = config.ramp.weight > 0 and config.ramp.start > 0
        untimed = f"steps from {config.ramp.start:.0%} on, which learn from day and night too" if waits else ""
        return replace(super().terms(config, images), untimed=untimed)

    def __init__(self, config: DANNetConfig, context: Context) -> None:
        super().__init__(config, context)
        self.static = static_classes(config.static.classes, context.table.names) if config.lends else []

    def stages(self) -> list[Stage]:
        """Pairs, then the training."""
        return [Stage("pair", "fit", self.pair, "which photograph by day belongs to one by night"), *super().stages()]

    def pair(self, folder: Path) -> None:
        """Leaves a table of the pairs, which `pairs=` takes too."""
        context = self.context
        pairs = find_pairs(context, self.config.pairs)
        night, day, some = context.data, context.data_of("day"), len(paired(pairs))
        if some < len(night):
            context.note(f"{len(night) - some} of {len(night)} photographs by night have none by day: not trained on.")
        if context.run.writes:
            write_text(folder / PAIRS, table_of(pairs, night, day))

    def training(self, steps: int) -> DANNetTraining:
        """On the source's labels and the pairs that were found."""
        context = self.context
        if self.static:
            doubt = DOUBT if self.config.pairs == BY_FEATURES else ""
            context.note(told(self.static, context.table.names) + doubt)
        pairs = context.run.path / "pair" / PAIRS
        return DANNetTraining(context, self.config, self.labels(), steps, pairs, self.static)

    def network(self) -> Network:
        """The trained network with its relighting and its weights, from the artefact."""
        context, c = self.context, self.config
        whole = relit(make_network(context, c), Relighting(c.light.width), torch.ones(context.classes))
        return trained_network(context, c, context.run.path / "train", network=whole)

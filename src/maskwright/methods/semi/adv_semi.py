"""Adversarial learning for semi-supervised semantic segmentation (AdvSemiSeg), Hung et al., BMVC 2018,
https://arxiv.org/abs/1802.07934; with s4GAN of Semi-supervised semantic segmentation with high- and low-level
consistency, Mittal et al., TPAMI 2021, https://arxiv.org/abs/1908.05724 (`variant=s4gan`)

A discriminator D learns to tell maps made of people's labels from what the segmenter S says. S learns to look like
labels, and D's verdict tells which predictions on unlabelled photographs are good enough to learn from.

    pixel   D(map) is a map of verdicts     L = CE + lam_adv BCE(D(S(x_l)), 1) + lam_adv_u BCE(D(S(x_u)), 1)
                                                + lam_semi CE(S(x_u), argmax) where sigma(D) >= T, after `start`
    s4gan   D(image, map) is one verdict z  L = CE + lam_fm |mean y(real) - mean y(S(x_u))|_1
                                                + lam_semi CE(S(x_u), argmax) of images with sigma(z) > T

D's loss is (BCE(D(fake), 0) + BCE(D(real), 1)) / 2; y are D's last features. lam_semi is the option `weight`.

Deviates: real maps are the labels of the step's own labelled crops, not of a further batch. Where they are void, the
segmenter's own prediction stands in them, and no verdict of a pixel on void or padding counts. `start` is a share of
the steps. The segmenter keeps the shared optimiser and crops, and has dropout on labelled crops alone, as it labels the
others. Verdicts are enlarged with align_corners=False. s4GAN's images are brought to [0, 1] each by its own range.
s4GAN's second branch, a classifier of the image's classes that removes some at test time (MLMT), is not here: it is a
method of its own and needs a second network.
What the originals get wrong: a void pixel is a vector of zeros in their real maps, by which D knows them at once; s4GAN
scales images for D by the range of another batch. Real maps of zeros and ones are easy to tell from soft ones
whatever their shape; `one_hot=0.9` softens them.

Legend: B batch, C classes, S crop side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import Labels
from maskwright.data.training.streams import Views
from maskwright.engine.config import Idle, option, part
from maskwright.engine.loop import Training
from maskwright.engine.updating import take_step
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.recipes.adversarial.adversary import Adversary, adversarial
from maskwright.recipes.adversarial.discriminators import WIDTHS, PixelDiscriminator, check_side, convolutions
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, RampOptions, SemiConfig, UnlabeledOptions
from maskwright.recipes.consistency.parts import Ramp, unlabeled_stream
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.options import NetworkConfig
from maskwright.recipes.training.setup import NetworkSetup

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskwright.engine.context import Context

DEFAULTS = {
    "pixel": {"weight": 0.1, "start": 0.25, "threshold": 0.2},
    "s4gan": {"weight": 1.0, "start": 0.0, "threshold": 0.6},
}
"""The papers' values of what differs between the variants; AdvSemiSeg starts at 5,000 of 20,000 steps."""


@dataclass(kw_only=True)
class AdvRampOptions:
    """When self-training sets in, and how much it weighs."""

    weight: float | None = option(None, "lam_semi, weight of self-training; none: 0.1, s4gan 1", low=0, main=True)
    up: float = option(
        0.0, "share of the steps over which the weight grows as exp(-5 (1 - t)^2)", low=0, high=1, old="ramp_up"
    )
    start: float | None = option(None, "share of the steps before self-training; none: 0.25, s4gan 0", low=0, high=1)

    def decided(self, variant: str) -> RampOptions:
        """With the variant's values in place of `None`."""
        papers = DEFAULTS[variant]
        weight = papers["weight"] if self.weight is None else self.weight
        return RampOptions(weight=weight, up=self.up, start=papers["start"] if self.start is None else self.start)


@dataclass(kw_only=True)
class AdvSemiConfig(SemiConfig):
    """Options of `adv_semi`."""

    unlabeled: UnlabeledOptions = part(UnlabeledOptions, without=("strong",))
    ramp: AdvRampOptions = part(AdvRampOptions)  # type: ignore[assignment]
    variant: str = option(
        "pixel", "pixel: AdvSemiSeg; s4gan: one verdict an image", choices=("pixel", "s4gan"), main=True
    )
    lam_adv: float = option(0.01, "pixel: weight of the adversarial loss on labelled crops", low=0)
    lam_adv_u: float = option(0.001, "pixel: the same on unlabelled crops", low=0)
    lam_fm: float = option(0.1, "s4gan: weight of feature matching", low=0)
    threshold: float | None = option(
        None, "T, least verdict of what is learnt from; none: 0.2, s4gan 0.6", low=0, high=1, main=True
    )
    one_hot: float = option(
        1.0, "probability of the labelled class in real maps; the others share the rest", low=0.5, high=1
    )
    d_lr: float = option(1e-4, "the discriminator's learning rate (Adam, betas 0.9 and 0.99), poly schedule", low=0)
    d_dropout: float = option(0.5, "s4gan: dropout of the discriminator's channels", low=0, high=0.99)

    def idle(self) -> Idle:
        """Options of the other variant, of self-training that does not weigh, and of a discriminator of no use."""
        yield from NetworkConfig.idle(self)
        pixel, weight = self.variant == "pixel", self.self_training.weight
        lams = {"lam_adv": self.lam_adv, "lam_adv_u": self.lam_adv_u} if pixel else {"lam_fm": self.lam_fm}
        yield ("lam_fm", "d_dropout") if pixel else ("lam_adv", "lam_adv_u"), f"variant={self.variant}"
        if not weight:
            yield ("ramp.up", "ramp.start", "threshold"), NOTHING_UNLABELED
        if not any((weight, *lams.values())):
            yield ("unlabeled", "one_hot", "d_lr", "d_dropout"), f"{', '.join(lams)} and ramp.weight=0"

    @property
    def self_training(self) -> RampOptions:
        """Weight and start of self-training, the variant's where none are given."""
        return self.ramp.decided(self.variant)

    @property
    def least_verdict(self) -> float:
        """T, the variant's where none is given."""
        return DEFAULTS[self.variant]["threshold"] if self.threshold is None else self.threshold


class ImageDiscriminator(nn.Module):
    """Four such convolutions with dropout between them on image and map together, pooled to one verdict.

    Args:
        classes: C.
        dropout: chance of a channel to be dropped.
    """

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        self.convs = convolutions(classes + 3)
        self.dropout = nn.Dropout2d(dropout)
        self.verdict = nn.Linear(WIDTHS[-1], 1)

    def forward(self, images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Judges pairs.

        Args:
            images: (B, 3, H, W), of any range.
            maps: probabilities (B, C, H, W).

        Returns:
            Logits of being real (B,), and features y (B, 512).
        """
        x = torch.cat([unit_range(images).to(maps), maps], 1)
        for k, conv in enumerate(self.convs):
            x = F.leaky_relu(conv(x), 0.2)
            if k + 1 < len(self.convs):  # not on y, which is matched
                x = self.dropout(x)
        y = x.mean((2, 3))
        return self.verdict(y)[:, 0].float(), y.float()


def unit_range(images: Tensor) -> Tensor:
    """Each image (B, 3, H, W) by its own least and greatest value to [0, 1]; a constant one to 0."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=torch.finfo(images.dtype).eps)


def real_maps(y: LabelMap, p: Tensor, one_hot: float = 1.0) -> Tensor:
    """Labels as probability maps (B, C, S, S).

    Args:
        y: labels (B, S, S).
        p: the segmenter's probabilities (B, C, S, S), which stand where a pixel has no label.
        one_hot: probability of the labelled class; the other classes share the rest.
    """
    classes = p.shape[1]
    rest = (1 - one_hot) / max(1, classes - 1)
    maps = torch.full_like(p, rest).scatter_(1, y.ids[:, None], one_hot)
    return torch.where(y.valid[:, None], maps, p.detach())


def feature_matching(y_real: Tensor, y_fake: Tensor) -> Tensor:
    """L_fm = mean |mean_B y(real) - mean_B y(fake)| over the features; no gradient into the real ones.

    Args:
        y_real: (B, D).
        y_fake: (B', D).
    """
    return (y_real.detach().mean(0) - y_fake.mean(0)).abs().mean()


def self_training(logits: Tensor, selected: Tensor) -> Tensor:
    """L_semi: cross-entropy with the segmenter's own argmax, mean over the selected pixels; 0 where there are none.

    Args:
        logits: (B, C, S, S).
        selected: bool (B, S, S).
    """
    target = torch.where(selected, logits.detach().argmax(1), IGNORE)
    return cross_entropy(logits, target, ignore=IGNORE)


class Play(NamedTuple):
    """What the segmenter said in a step, detached: the discriminator's material.

    Attributes:
        real: label maps (B, C, S, S).
        labeled: probabilities on labelled crops.
        unlabeled: probabilities on unlabelled crops.
    """

    real: Tensor
    labeled: Tensor
    unlabeled: Tensor


class AdvSemiTraining(Training):
    """First S takes a step against a frozen D, then D against what S had said."""

    def __init__(self, context: Context, config: AdvSemiConfig, labels: Labels, steps: int, **options: Any) -> None:
        setup = NetworkSetup(context, config, labels, steps, **options)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.supervised = setup.student, setup.supervised
        check_side(setup.crop)
        c, classes = self.config, context.classes
        self.s4gan, self.threshold = c.variant == "s4gan", c.least_verdict
        setup.streams["u"] = unlabeled_stream(setup, strong_views=0)
        self.ramp = Ramp(c.self_training, steps)
        judge = ImageDiscriminator(classes, c.d_dropout) if self.s4gan else PixelDiscriminator(classes)
        self.adversary = Adversary(judge, setup.device, c.d_lr)
        self.modules["discriminator"] = judge
        self.optimizers["discriminator"] = self.adversary.optimizer
        lams = (c.lam_fm,) if self.s4gan else (c.lam_adv, c.lam_adv_u)
        self.plays = max(*lams, self.ramp.options.weight) > 0  # whether any term needs the discriminator

    def segmenter_loss(self, batch: Any, step: int) -> tuple[dict[str, Tensor], Play | None]:
        """L = L_x + L_g of the segmenter, and what D learns from; only the segmenter is to be given gradients."""
        x, u = batch["x"], batch["u"]
        out = self.student(x.weak)
        loss_x = self.supervised(out, x.y)
        if not self.plays:
            return {"loss": loss_x, "x": loss_x}, None
        with self.student.plain():
            logits_u = self.student(u.weak).logits
        p_x, p_u = out.logits.softmax(1), logits_u.softmax(1)
        play = Play(real_maps(x.y, p_x, self.config.one_hot), p_x.detach(), p_u.detach())
        if self.s4gan:
            terms = self.of_images(x, u, play, p_u, logits_u, self.ramp(step))
        else:
            terms = self.of_pixels(x, u, p_x, p_u, logits_u, self.ramp(step))
        return {"loss": loss_x + terms.pop("g"), "x": loss_x, **terms}, play

    def of_pixels(
        self, x: Views, u: Views, p_x: Tensor, p_u: Tensor, logits_u: Tensor, lam_semi: float
    ) -> dict[str, Tensor]:
        """AdvSemiSeg: L_g = lam_adv L_adv + lam_adv_u L_adv_u + lam_semi L_semi, with a verdict for each pixel.

        Args:
            x: labelled crops.
            u: unlabelled crops.
            p_x: probabilities on labelled crops (B, C, S, S), with gradient.
            p_u: on unlabelled crops.
            logits_u: their logits.
            lam_semi: weight of self-training.
        """
        c = self.config
        with self.adversary.frozen() as judge, self.student.autocast():
            d_x, d_u = judge(p_x), judge(p_u)
        adv_x, adv_u = adversarial(d_x, True, x.valid), adversarial(d_u, True, u.valid)
        g = c.lam_adv * adv_x + c.lam_adv_u * adv_u
        terms = {"adv": adv_x, "adv_u": adv_u}
        if lam_semi > 0:
            selected = (d_u.detach().sigmoid() >= self.threshold) & u.valid
            terms["semi"] = self_training(logits_u, selected)
            terms["sure"] = selected.sum() / u.valid.sum().clamp(min=1)
            g = g + lam_semi * terms["semi"]
        return {"g": g, **terms}

    def of_images(
        self, x: Views, u: Views, play: Play, p_u: Tensor, logits_u: Tensor, lam_semi: float
    ) -> dict[str, Tensor]:
        """s4GAN: L_g = lam_fm L_fm + lam_semi L_semi, the latter on images that D takes for labelled ones."""
        c = self.config
        with self.adversary.frozen() as judge, self.student.autocast():
            with torch.no_grad():
                _, y_real = judge(x.weak, play.real)
            z_u, y_u = judge(u.weak, p_u)
        terms = {"fm": feature_matching(y_real, y_u)}
        g = c.lam_fm * terms["fm"]
        if lam_semi > 0:
            chosen = z_u.detach().sigmoid() > self.threshold
            terms["semi"] = self_training(logits_u, chosen[:, None, None] & u.valid)
            terms["sure"] = chosen.float().mean()
            g = g + lam_semi * terms["semi"]
        return {"g": g, **terms}

    def discriminator_loss(self, batch: Any, play: Play) -> Tensor:
        """L_D: labels are real, what S said is not: of labelled and unlabelled crops for pixels, of unlabelled ones for
        whole images."""
        x, u, judge = batch["x"], batch["u"], self.adversary
        if self.s4gan:
            with self.student.autocast():
                z_real, _ = judge(x.weak, play.real)
                z_fake, _ = judge(u.weak, play.unlabeled)
            return 0.5 * (adversarial(z_fake, False) + adversarial(z_real, True))
        with self.student.autocast():
            d_real = judge(play.real)
            d_fake = judge(torch.cat([play.labeled, play.unlabeled]))
        valid = torch.cat([x.valid, u.valid])
        return 0.5 * (adversarial(d_fake, False, valid) + adversarial(d_real, True, x.valid))

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L of the segmenter."""
        return self.segmenter_loss(batch, step)[0]

    def update(self, fabric: Fabric, batch: Any, step: int) -> dict[str, Tensor]:
        """A step of S, then a step of D on what S had said before its step."""
        terms, play = self.segmenter_loss(batch, step)
        take_step([self.optimizers["network"]], fabric, terms["loss"], self.clip)
        if play is not None:
            terms["d"] = self.discriminator_loss(batch, play)
            take_step([self.adversary.optimizer], fabric, terms["d"], self.clip)
        return terms


class AdvSemi(NetworkMethod):
    """A discriminator that says which predictions look like labels."""

    name: ClassVar[str] = "adv_semi"
    title: ClassVar[str] = "Adversarial learning for semi-supervised semantic segmentation"
    venue: ClassVar[str] = "Hung et al., BMVC 2018"
    link: ClassVar[str] = "https://arxiv.org/abs/1802.07934"
    summary: ClassVar[str] = "Lets a discriminator judge predictions."
    family: ClassVar[str] = "semi"
    Config: ClassVar[type] = AdvSemiConfig
    says: ClassVar[str] = "a segmenter that a discriminator takes for people's labels"

    trainer: ClassVar[type[Training]] = AdvSemiTraining

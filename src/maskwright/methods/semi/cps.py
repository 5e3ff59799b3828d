"""Semi-supervised semantic segmentation with cross pseudo supervision (CPS), Chen et al., CVPR 2021,
https://arxiv.org/abs/2106.01226

Two networks of one architecture whose heads start from different random weights label for each other: what one says is
most likely, k, is the hard target of the other, on labelled and unlabelled photographs, without a threshold and
without an average. Where the two disagree they have something to learn.

    L = L_x(f1) + L_x(f2) + lam (CE(f1, k2) + CE(f2, k1))

With `cutmix=true` (the paper's stronger variant) the k are found on whole unlabelled crops, and boxes of another crop
are pasted into both photograph and label before either network learns from them.

Deviates: the batch of unlabelled crops is paired with itself (item i with i + 1) instead of two batches; padding and,
of labelled crops, void pixels are not taught; lam is 1.5 with and without CutMix, as in the paper's text (its scripts
differ). The first network is the result. Dropout is off in every pass of both networks, also where `supervised` has it:
it would fall on labels. Optimiser, rates, schedule and crops are those that all methods here share, where the authors
have SGD. With CutMix a network labels in training mode, as the authors' does: in a short run the running averages of
batch norm that evaluation mode goes by are those of a dozen batches of four crops, and what they mislabel is learnt
(`teacher_mode=eval` loses nine mIoU, docs/semi.md).
What the original gets wrong: it averages the losses over processes before the backward pass, which leaves the gradients
as they were. And nothing but the order of two calls keeps its two heads different: of equal networks, k1 = k2 and the
method is plain self-training.

Legend: B batch, C classes, S crop side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.mixing import MASKS, mix, partner
from maskwright.data.training.sources import Labels
from maskwright.data.training.streams import Views
from maskwright.engine.config import Idle, option, part
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, RampOptions, SemiConfig, UnlabeledOptions
from maskwright.recipes.consistency.parts import Ramp, note_unmixed, pseudo_labels, unlabeled_stream
from maskwright.recipes.consistency.teacher_options import NO_TEACHER, TeacherOptions
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.forward import Forward
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.network import make_network
from maskwright.recipes.training.optimizers import make_optimizer
from maskwright.recipes.training.setup import NetworkSetup


@dataclass(kw_only=True)
class CPSConfig(SemiConfig):
    """Options of `cps`."""

    teacher: TeacherOptions = part(
        TeacherOptions, without=NO_TEACHER, mode="train",
        says={"mode": "with CutMix: batch norm of the network that labels"},
    )  # fmt: skip
    unlabeled: UnlabeledOptions = part(UnlabeledOptions, without=("strong",))
    cutmix: bool = option(True, "teach on photographs with boxes of others in them; unlabelled ones alone", main=True)
    ramp: RampOptions = part(RampOptions, weight=1.5, says={"weight": "lam, weight of the sum of both cross losses"})

    def idle(self) -> Idle:
        """How labels for mixed crops are made, where none are mixed, and all of it where nothing is learned of them."""
        yield from super().idle()
        if self.ramp.weight == 0:
            yield ("cutmix", "teacher.mode"), NOTHING_UNLABELED
        elif not self.cutmix:
            yield ("teacher.mode",), "cutmix=false"


def cross_pseudo_supervision(logits1: Tensor, logits2: Tensor, k1: LabelMap, k2: LabelMap) -> Tensor:
    """L_cps = CE(f1, k2) + CE(f2, k1), each the mean over valid pixels.

    Args:
        logits1: of the first network (B, C, S, S).
        logits2: of the second.
        k1: labels by the first network (B, S, S); their confidence does not count.
        k2: labels by the second.
    """
    loss1 = cross_entropy(logits1, k2.target(IGNORE), ignore=IGNORE)
    loss2 = cross_entropy(logits2, k1.target(IGNORE), ignore=IGNORE)
    return loss1 + loss2


def agreement(k1: LabelMap, k2: LabelMap) -> Tensor:
    """Share of the valid pixels on which both networks say the same."""
    valid = k1.valid & k2.valid
    return ((k1.ids == k2.ids) & valid).sum() / valid.sum().clamp(min=1)


class CPSTraining(Training):
    """Two students, two optimisers."""

    def __init__(self, context: Any, config: CPSConfig, labels: Labels, steps: int, **options: Any) -> None:
        # Without CutMix the pass that learns also labels; the authors' network has no dropout.
        setup = NetworkSetup(context, config, labels, steps, dropout=False, **options)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.supervised = setup.student, setup.supervised
        self.crop, self.device = setup.crop, setup.device
        if self.config.cutmix:
            note_unmixed(setup)
        setup.streams["u"] = unlabeled_stream(setup, strong_views=0)
        self.ramp = Ramp(self.config.ramp, steps)
        # The random state has moved on since the first head was drawn.
        network2 = make_network(context, self.config, second=True)
        if all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(setup.network.parameters(), network2.parameters())):
            raise MaskwrightError(
                f"network_weights={self.config.network.weights} fills both networks, which then are one",
                "heads that differ", "give the weights of the encoder alone, by --weights",
            )  # fmt: skip
        self.student2 = setup.forward_of(network2, dropout=False)
        self.modules["network2"] = network2
        self.optimizers["network2"] = make_optimizer(self.config.optimizer, network2)

    def label(self, student: Forward, u: Views) -> LabelMap:
        """k of whole unlabelled crops (B_u, S, S), without gradient."""
        return pseudo_labels(student.ask(u.weak, self.config.teacher.mode), u.valid)

    def cutmix(self, u: Views) -> tuple[Tensor, LabelMap, LabelMap]:
        """Mixed unlabelled crops (B_u, 3, S, S) and what both networks said of their parts."""
        w, k1, k2 = u.weak, self.label(self.student, u), self.label(self.student2, u)
        m = MASKS["cps"](len(w), (self.crop, self.crop)).to(self.device)
        other = partner(len(w)).to(self.device)
        return mix(w, w[other], m), k1.mix(k1[other], m), k2.mix(k2[other], m)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x(f1) + L_x(f2) + lam L_cps."""
        x, u, lam = batch["x"], batch["u"], self.ramp(step)
        out1, out2 = self.student(x.weak), self.student2(x.weak)
        loss1 = self.supervised(out1, x.y, self.student)
        loss2 = self.supervised(out2, x.y, self.student2)
        if lam == 0:
            return {"loss": loss1 + loss2, "x": loss1, "x2": loss2}
        if self.config.cutmix:
            mixed, k1, k2 = self.cutmix(u)
            f1, f2 = self.student(mixed).logits, self.student2(mixed).logits
        else:
            f1 = torch.cat([out1.logits, self.student(u.weak).logits])
            f2 = torch.cat([out2.logits, self.student2(u.weak).logits])
            valid = torch.cat([x.valid, u.valid])
            k1, k2 = pseudo_labels(f1.softmax(1), valid), pseudo_labels(f2.softmax(1), valid)
        loss_cps = cross_pseudo_supervision(f1, f2, k1, k2)
        loss = loss1 + loss2 + lam * loss_cps
        return {"loss": loss, "x": loss1, "x2": loss2, "u": loss_cps, "agree": agreement(k1, k2)}


class CPS(NetworkMethod):
    """Two networks that teach each other."""

    name: ClassVar[str] = "cps"
    title: ClassVar[str] = "Semi-supervised semantic segmentation with cross pseudo supervision"
    venue: ClassVar[str] = "Chen et al., CVPR 2021"
    link: ClassVar[str] = "https://arxiv.org/abs/2106.01226"
    summary: ClassVar[str] = "Lets two networks label for each other."
    family: ClassVar[str] = "semi"
    Config: ClassVar[type] = CPSConfig
    trainer: ClassVar[type[Training]] = CPSTraining
    says: ClassVar[str] = "two networks that label for each other"

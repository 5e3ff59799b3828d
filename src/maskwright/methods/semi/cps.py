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
from maskwright.engine.config import option
from maskwright.errors import MaskwrightError
from maskwright.models.networks.build import Network
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.recipes.consistency.consistency import TEACHER, SemiBatch, SemiConfig, SemiMethod, SemiTraining
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.optimizers import make_optimizer
from maskwright.recipes.training.segmenting import make_network


@dataclass(kw_only=True)
class CPSConfig(SemiConfig):
    """Options of `cps`."""

    unused: ClassVar[frozenset[str]] = TEACHER | {"strong"}
    teacher_mode: str = option("train", "with CutMix: batch norm of the network that labels", choices=("eval", "train"))
    cutmix: bool = option(True, "teach on photographs with boxes of others in them; unlabelled ones alone", main=True)
    weight: float = option(1.5, "lam, weight of the sum of both cross losses", low=0, main=True)


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


class CPSTraining(SemiTraining):
    """Two students, two optimisers."""

    strong_views: ClassVar[int] = 0
    has_teacher: ClassVar[bool] = False
    dropout: ClassVar[bool] = False  # without CutMix the pass that learns also labels; the authors' network has none

    @property
    def mixes(self) -> bool:
        """With CutMix."""
        return bool(self.config.cutmix)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The random state has moved on since the first head was drawn.
        self.network2 = make_network(self.context, self.config)
        if all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(self.network.parameters(), self.network2.parameters())):
            raise MaskwrightError(
                f"network_weights={self.config.network_weights} fills both networks, which then are one",
                "heads that differ", "give the weights of the encoder alone, by --weights",
            )  # fmt: skip
        self.network2.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train_mode(self.network2)
        self.modules["network2"] = self.network2
        self.optimizers["network2"] = make_optimizer(self.config, self.network2)

    def label(self, network: Network, batch: SemiBatch) -> LabelMap:
        """k of whole unlabelled crops (B_u, S, S), without gradient."""
        return self.pseudo_labels(self.ask(network, batch.w), batch.valid)

    def cutmix(self, batch: SemiBatch) -> tuple[Tensor, LabelMap, LabelMap]:
        """Mixed unlabelled crops (B_u, 3, S, S) and what both networks said of their parts."""
        k1, k2 = self.label(self.network, batch), self.label(self.network2, batch)
        m = MASKS["cps"](len(batch.w), (self.crop, self.crop)).to(self.device)
        other = partner(len(batch.w)).to(self.device)
        return mix(batch.w, batch.w[other], m), k1.mix(k1[other], m), k2.mix(k2[other], m)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x(f1) + L_x(f2) + lam L_cps."""
        lam = self.ramp(step)
        out1, out2 = self.run(self.network, batch.x), self.run(self.network2, batch.x)
        loss1 = self.supervised(out1, batch.y, self.network)
        loss2 = self.supervised(out2, batch.y, self.network2)
        if lam == 0:
            return {"loss": loss1 + loss2, "x": loss1, "x2": loss2}
        if self.config.cutmix:
            x, k1, k2 = self.cutmix(batch)
            f1, f2 = self.run(self.network, x).logits, self.run(self.network2, x).logits
        else:
            f1 = torch.cat([out1.logits, self.run(self.network, batch.w).logits])
            f2 = torch.cat([out2.logits, self.run(self.network2, batch.w).logits])
            valid = torch.cat([batch.y.valid, batch.valid])
            k1, k2 = self.pseudo_labels(f1.softmax(1), valid), self.pseudo_labels(f2.softmax(1), valid)
        loss_cps = cross_pseudo_supervision(f1, f2, k1, k2)
        loss = loss1 + loss2 + lam * loss_cps
        return {"loss": loss, "x": loss1, "x2": loss2, "u": loss_cps, "agree": agreement(k1, k2)}


class CPS(SemiMethod):
    """Two networks that teach each other."""

    name: ClassVar[str] = "cps"
    title: ClassVar[str] = "Semi-supervised semantic segmentation with cross pseudo supervision"
    venue: ClassVar[str] = "Chen et al., CVPR 2021"
    link: ClassVar[str] = "https://arxiv.org/abs/2106.01226"
    summary: ClassVar[str] = "Lets two networks label for each other."
    family: ClassVar[str] = "semi"
    Config: ClassVar[type] = CPSConfig
    trainer: ClassVar[type[SemiTraining]] = CPSTraining
    says: ClassVar[str] = "two networks that label for each other"

"""UniMatch V2: Pushing the limit of semi-supervised semantic segmentation, Yang et al., TPAMI 2025,
https://arxiv.org/abs/2410.10777; with its forerunners UniMatch, Yang et al., CVPR 2023,
https://arxiv.org/abs/2208.09910, and FixMatch, Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685

What a network is sure of on a weak view is the label of strong views of the same crop. `--set version=`:

    fixmatch  one strong view; the label comes from the network itself
    v1        two strong views, and the weak view once more with half of its channels dropped before the decoder
    v2        two strong views that lose complementary channels; the label comes from an EMA teacher

Strong views are colour, blur and a CutMix box whose pixels, label, confidence and validity come from a donor image.

Deviates: v2 is the default on convolutional networks too, where its paper has transformers alone: with a dozen masks
v1, whose network labels for itself, confirms its errors on photographs of other light (docs/semi.md). L = (L_x + lambda
L_u) / (1 + lambda), the papers' half-half at lambda = 1 and supervised training (of fixmatch and v1 without dropout) at
0; the unlabelled images' own masks are never opened, not even for their padding; in v1 only the unlabelled half of the
batch goes through the decoder a second time (the authors' labelled half does too; its logits are thrown away, but it
enters the batch norm, which moves the loss by 5 to 7 %); where the label comes from a pass in training mode (fixmatch,
v1), dropout inside the network is off, as the authors' network has none and it would fall on labels; the threshold is
0.95 everywhere, also where v1's authors take 0 (Cityscapes). V2's last logits are enlarged with align_corners=False,
where its authors have True, and its `lock_backbone` is `encoder_lr=0` with `freeze_norm` here. Optimiser and rates are
those of all methods here, which on a transformer are v2's: AdamW with 1/40 of the head's rate for the encoder.
What the originals get wrong: v2 takes as donors its batch in reverse, by which the middle image of an odd batch is
mixed with itself; here it gets a neighbour. Both take square crops only, and their networks run on one kind of device.

Legend: B labelled crops, U unlabelled crops, C classes, S crop side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.mixing import MASKS, mix
from maskwright.data.training.sources import Labels
from maskwright.engine.config import Idle, option, part
from maskwright.engine.loop import Training
from maskwright.ops.channel_dropout import channel_dropout, complementary_dropout
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, SemiConfig
from maskwright.recipes.consistency.parts import (
    Ramp,
    Teacher,
    note_unmixed,
    pseudo_labels,
    share_confident,
    unlabeled_stream,
)
from maskwright.recipes.consistency.teacher_options import TeacherOptions
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.forward import Output, upsample
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.setup import NetworkSetup

VERSIONS = ("v2", "v1", "fixmatch")


@dataclass(kw_only=True)
class UniMatchTeacherOptions(TeacherOptions):
    """Of v2; what contradicts what is checked with the version."""

    def check(self) -> None:
        """Nothing by itself."""


@dataclass(kw_only=True)
class UniMatchConfig(SemiConfig):
    """Options of `unimatch`."""

    version: str = option(
        "v2", "v2; v1, without a teacher; or fixmatch, with one strong view", choices=VERSIONS, main=True
    )
    threshold: float = option(
        0.95, "least confidence of a pixel whose label is learnt; above 1: none is", low=0, main=True
    )
    dropout: float = option(0.5, "chance of a channel to be dropped in v1's feature stream", low=0, high=0.99)
    feature_weight: float = option(
        0.5, "share of the feature stream in v1's L_u; the strong views have the rest", low=0, high=1
    )
    whole: float = option(0.5, "share of v2's images whose strong views lose no channel", low=0, high=1)
    teacher: TeacherOptions = part(
        UniMatchTeacherOptions, ema=0.996, final="teacher", main=("ema",),
        says={
            "ema": "greatest momentum of v2's teacher; min(1 - 1/(n + 1), ema) at update n",
            "final": "the network that is kept: student, or v2's teacher",
            "mode": "batch norm of v2's teacher; in v1 and fixmatch of the pass that labels the donors alone",
        },
    )  # fmt: skip

    def check(self) -> None:
        """Raises `MaskwrightError` on a teacher (which v2 alone has) whose statistics nothing moves."""
        if self.version == "v2":
            TeacherOptions.check(self.teacher)

    def idle(self) -> Idle:
        """Options of other versions, and of a loss that does not weigh."""
        yield from super().idle()
        v2 = self.version == "v2"
        if self.ramp.weight == 0:
            labels = self.teacher.unasked if v2 else ("teacher.mode",)
            yield ("threshold", "dropout", "feature_weight", "whole", *labels), NOTHING_UNLABELED
        if self.version != "v1":
            yield ("dropout", "feature_weight"), f"version={self.version}"
        if not v2:
            yield ("whole", "teacher.ema", "teacher.buffers", "teacher.final"), f"version={self.version}"


# ---------------------------------------------------------------------- losses


def confident_cross_entropy(logits: Tensor, labels: LabelMap, threshold: float) -> Tensor:
    """sum_i [c_i >= t] [v_i] CE(f(s)_i, k_i) / sum_i [v_i]: over all valid pixels, not only the confident ones.

    Args:
        logits: of a perturbed view (U, C, S, S).
        labels: k, c and v of its pixels (U, S, S).
        threshold: t.
    """
    sure = (labels.confidence >= threshold).float()
    return cross_entropy(logits, labels.target(IGNORE), ignore=IGNORE, pixel_weight=sure, denominator="valid")


def total_loss(loss_x: Tensor, loss_u: Tensor, weight: float) -> Tensor:
    """(L_x + lambda L_u) / (1 + lambda): half of each at lambda = 1."""
    return (loss_x + weight * loss_u) / (1 + weight)


def cutmix(s: Tensor, labels: LabelMap, donor: Tensor, donor_labels: LabelMap) -> tuple[Tensor, LabelMap]:
    """Pastes a box of the donor into each strong view, and its labels with it.

    Args:
        s: strong views (U, 3, S, S).
        labels: of their pixels (U, S, S).
        donor: strong views of other images (U, 3, S, S).
        donor_labels: of their pixels.

    Returns:
        New views and label maps.
    """
    box = MASKS["unimatch"](len(s), (s.shape[-2], s.shape[-1])).to(s.device)
    return mix(donor, s, box), donor_labels.mix(labels, box)


def reversed_partner(n: int) -> Tensor:
    """Whose box each image of a batch gets, int64 (n,): the batch in reverse; an odd one's middle its neighbour's."""
    order = torch.arange(n).flip(0)
    if n % 2 and n > 1:
        order[n // 2] = n // 2 - 1
    return order


# ---------------------------------------------------------------------- training


class FixMatchTraining(Training):
    """FixMatch and V1: one network, which also labels; the unlabelled half of a batch is followed by as many donors."""

    def __init__(self, context: Any, config: UniMatchConfig, labels: Labels, steps: int, **options: Any) -> None:
        # The pass that learns also labels.
        setup = NetworkSetup(context, config, labels, steps, dropout=False, **options)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.network, self.supervised = setup.student, setup.network, setup.supervised
        self.v1 = self.config.version == "v1"
        setup.streams["u"] = unlabeled_stream(setup, strong_views=2 if self.v1 else 1, donors=True)
        self.ramp = Ramp(self.config.ramp, steps)

    def forward_weak(self, x: Tensor, w: Tensor) -> tuple[Output, Tensor, Tensor | None]:
        """One pass in training mode over labelled and weak crops; V1's decoder also sees the weak crops' maps with
        channels dropped.

        Args:
            x: labelled crops (B, 3, S, S).
            w: weak crops (U, 3, S, S).

        Returns:
            The labelled half's output, logits of the weak half (U, C, S, S), and those of the feature stream, if any.
        """
        crops, b, u = torch.cat([x, w]), len(x), len(w)
        if not self.v1:
            out = self.student(crops)
            return out.first(b), out.logits[b:], None
        with self.student.autocast():
            features = self.network.features(crops)
            dropped = channel_dropout([f[b:] for f in features], self.config.dropout)
            embedding = self.network.decode([torch.cat([f, d]) for f, d in zip(features, dropped)])
            logits = upsample(self.network.classify(embedding), crops.shape[-2:])
        return Output(features, embedding, logits).first(b), logits[b : b + u], logits[b + u :]

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = (L_x + L_u) / 2, with L_u = L_s (FixMatch) or (L_s1 + L_s2) / 4 + L_fp / 2 (v1)."""
        c, x, u, weight = self.config, batch["x"], batch["u"], self.ramp(step)
        if weight == 0:
            loss_x = self.supervised(self.student(x.weak), x.y)
            return {"loss": loss_x, "x": loss_x}
        n, t = len(u.weak) // 2, c.threshold
        donors = pseudo_labels(self.student.ask(u.weak[n:], c.teacher.mode), u.valid[n:])
        out_x, logits_w, logits_fp = self.forward_weak(x.weak, u.weak[:n])
        own = pseudo_labels(logits_w.detach().softmax(1), u.valid[:n])
        mixed = [cutmix(s[:n], own, s[n:], donors) for s in u.strong]
        logits = self.student(torch.cat([s for s, _ in mixed])).logits  # all strong views in one pass
        strong = [confident_cross_entropy(f, k, t) for f, (_, k) in zip(logits.split(n), mixed)]
        loss_x = self.supervised(out_x, x.y)
        loss_s = torch.stack(strong).mean()
        loss_u, terms = loss_s, {"x": loss_x, "s": loss_s}
        if logits_fp is not None:
            terms["fp"] = confident_cross_entropy(logits_fp, own, t)
            loss_u = (1 - c.feature_weight) * loss_s + c.feature_weight * terms["fp"]
        return {"loss": total_loss(loss_x, loss_u, weight), **terms, "sure": share_confident(own, t).mean()}


class UniMatchV2Training(Training):
    """V2: one strong stream of two views with complementary channels, labels from an EMA teacher."""

    def __init__(self, context: Any, config: UniMatchConfig, labels: Labels, steps: int, **options: Any) -> None:
        setup = NetworkSetup(context, config, labels, steps, **options)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.network, self.supervised = setup.student, setup.network, setup.supervised
        note_unmixed(setup)  # its boxes come from the batch; those of V1 and FixMatch from donors of their own
        setup.streams["u"] = unlabeled_stream(setup, strong_views=2)
        self.teacher = Teacher.of(setup)
        self.ramp = Ramp(self.config.ramp, steps)

    def forward_strong(self, x: Tensor) -> Tensor:
        """Logits (2U, C, S, S) of first and second views (2U, 3, S, S), each pair losing complementary channels."""
        with self.student.autocast():
            features = complementary_dropout(self.network.features(x), kept=self.config.whole)
            logits = self.network.classify(self.network.decode(features))
        return upsample(logits, x.shape[-2:])

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = (L_x + L_s) / 2, L_s = (L_s1 + L_s2) / 2; labelled and unlabelled crops do not meet in one batch
        normalisation."""
        x, u, weight, t = batch["x"], batch["u"], self.ramp(step), self.config.threshold
        loss_x = self.supervised(self.student(x.weak), x.y)
        if weight == 0:
            return {"loss": loss_x, "x": loss_x}
        n, labels = len(u.weak), pseudo_labels(self.teacher(u.weak), u.valid)
        other = reversed_partner(n).to(u.weak.device)
        mixed = [cutmix(s, labels, s[other], labels[other]) for s in u.strong]
        logits = self.forward_strong(torch.cat([s for s, _ in mixed]))
        loss_s1, loss_s2 = (confident_cross_entropy(f, k, t) for f, (_, k) in zip(logits.split(n), mixed))
        loss_s = (loss_s1 + loss_s2) / 2
        sure = share_confident(labels, t).mean()
        return {"loss": total_loss(loss_x, loss_s, weight), "x": loss_x, "u": loss_s, "sure": sure}

    def after_step(self, step: int) -> None:
        """The teacher follows; the held-out images are looked at."""
        self.teacher.follow(self.ramp.waits(step))
        super().after_step(step)


class UniMatch(NetworkMethod):
    """Weak-to-strong consistency with image and feature perturbations."""

    name: ClassVar[str] = "unimatch"
    title: ClassVar[str] = "UniMatch V2: Pushing the limit of semi-supervised semantic segmentation"
    venue: ClassVar[str] = "Yang et al., TPAMI 2025"
    link: ClassVar[str] = "https://arxiv.org/abs/2410.10777"
    summary: ClassVar[str] = "Learns on strong views what weak ones say."
    family: ClassVar[str] = "semi"
    Config: ClassVar[type] = UniMatchConfig
    says: ClassVar[str] = "a network that agrees with itself on weak and strong views"

    @property
    def trainer(self) -> type[Training]:  # type: ignore[override]
        """The training of the chosen version."""
        return UniMatchV2Training if self.config.version == "v2" else FixMatchTraining

    @property
    def result(self) -> str:
        """V2's student or teacher, as configured; the one network of the other versions."""
        return self.config.teacher.kept if self.config.version == "v2" else "network"

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.mixing import MASKS, mix
from maskwright.data.training.sampler import PairSampler, Sampler
from maskwright.engine.config import option
from maskwright.engine.distributed import rank, world_size
from maskwright.ops.channel_dropout import channel_dropout, complementary_dropout
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.recipes.consistency.consistency import SemiBatch, SemiConfig, SemiMethod, SemiTraining, share_confident
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.segmenting import Output, upsample

VERSIONS = ("v2", "v1", "fixmatch")
DONORS = 0x5851F42D4C957F2D
"""Added to the seed for the order of the donors."""


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
    ema: float = option(
        0.996, "greatest momentum of v2's teacher; min(1 - 1/(n + 1), ema) at update n", low=0, high=1, main=True
    )
    final: str = option("teacher", "the network that is kept: student, or v2's teacher", choices=("student", "teacher"))
    teacher_mode: str = option(
        "eval", "batch norm of v2's teacher; in v1 and fixmatch of the pass that labels the donors alone",
        choices=("eval", "train"),
    )  # fmt: skip

    @property
    def still(self) -> bool:
        """Of v2's teacher alone: the other versions have none."""
        return self.version == "v2" and super().still


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


class TripleSampler:
    """Labelled and unlabelled images, and donors from an order of the unlabelled ones of their own.

    Args:
        labeled, unlabeled, batch, batch_unlabeled, seed, world, rank, weights: as for `PairSampler`.
    """

    def __init__(
        self,
        labeled: Sequence[int],
        unlabeled: Sequence[int],
        batch: int,
        batch_unlabeled: int,
        seed: int,
        world: int,
        rank: int,
        weights: np.ndarray | None = None,
    ) -> None:
        self.pairs = PairSampler(labeled, unlabeled, batch, batch_unlabeled, seed, world, rank, weights=weights)
        third = (seed + DONORS) & 0xFFFFFFFFFFFFFFFF
        self.donors = Sampler(len(unlabeled), batch_unlabeled, third, world, rank)

    def next(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """This process's share of the next batch: labelled, unlabelled, donors (as many as unlabelled)."""
        return *self.pairs.next(), self.pairs.unlabeled[self.donors.next()]

    def state_dict(self) -> dict[str, Any]:
        """The positions."""
        return {"pairs": self.pairs.state_dict(), "donors": self.donors.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken."""
        self.pairs.load_state_dict(state["pairs"])
        self.donors.load_state_dict(state["donors"])


class FixMatchTraining(SemiTraining):
    """One network; the unlabelled half of a batch is followed by as many donors."""

    strong_views: ClassVar[int] = 1
    has_teacher: ClassVar[bool] = False
    dropout: ClassVar[bool] = False  # the pass that learns also labels

    def make_sampler(self) -> Any:
        """Two lists, and a second order of the unlabelled one."""
        c = self.config
        return TripleSampler(
            self.labels.indices, self.unlabeled_images(), c.batch, c.batch_unlabeled or c.batch, self.context.seed,
            world_size(), rank(), self.chances(),
        )  # fmt: skip

    def batch(self, indices: Any, random: torch.Generator) -> SemiBatch:
        """Labelled crops; 2U unlabelled ones, of which the second half are the donors."""
        labeled, unlabeled, donors = indices
        crops: SemiBatch = super().batch((labeled, np.concatenate([unlabeled, donors])), random)  # type: ignore[arg-type]
        return crops

    def streams(self, batch: SemiBatch, own: LabelMap, donors: LabelMap) -> list[Tensor]:
        """L_s of each strong view; the network sees all of them in one pass.

        Args:
            batch: the crops.
            own: labels of the unlabelled crops (U, S, S).
            donors: labels of the donors.
        """
        n, t = len(own), self.config.threshold
        mixed = [cutmix(s[:n], own, s[n:], donors) for s in batch.s]
        logits = self.run(self.network, torch.cat([s for s, _ in mixed])).logits
        return [confident_cross_entropy(f, k, t) for f, (_, k) in zip(logits.split(n), mixed)]

    def forward_weak(self, batch: SemiBatch, n: int) -> tuple[Output, Tensor, Tensor | None]:
        """One pass in training mode over labelled and weak crops.

        Returns:
            The labelled half's output, logits of the weak half (U, C, S, S), and those of the feature stream, if any.
        """
        out, b = self.run(self.network, torch.cat([batch.x, batch.w[:n]])), len(batch.x)
        return Output([f[:b] for f in out.features], out.embedding[:b], out.logits[:b]), out.logits[b:], None

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = (L_x + L_u) / 2, with L_u = L_s (FixMatch) or (L_s1 + L_s2) / 4 + L_fp / 2 (v1)."""
        weight = self.ramp(step)
        if weight == 0:
            loss_x = self.supervised(self.run(self.network, batch.x), batch.y)
            return {"loss": loss_x, "x": loss_x}
        n, t = len(batch.w) // 2, self.config.threshold
        donors = self.pseudo_labels(self.teach(batch.w[n:]), batch.valid[n:])  # in evaluation mode
        out_x, logits_w, logits_fp = self.forward_weak(batch, n)
        own = self.pseudo_labels(logits_w.detach().softmax(1), batch.valid[:n])
        strong = self.streams(batch, own, donors)
        loss_x = self.supervised(out_x, batch.y)
        loss_s = torch.stack(strong).mean()
        loss_u, terms = loss_s, {"x": loss_x, "s": loss_s}
        if logits_fp is not None:
            loss_fp, share = confident_cross_entropy(logits_fp, own, t), self.config.feature_weight
            loss_u = (1 - share) * loss_s + share * loss_fp
            terms["fp"] = loss_fp
        return {"loss": total_loss(loss_x, loss_u, weight), **terms, "sure": share_confident(own, t).mean()}


class UniMatchTraining(FixMatchTraining):
    """V1: two strong views and the feature stream."""

    strong_views: ClassVar[int] = 2

    def forward_weak(self, batch: SemiBatch, n: int) -> tuple[Output, Tensor, Tensor | None]:
        """The encoder once; the decoder on its maps, and on those of the weak crops with channels dropped."""
        x, b = torch.cat([batch.x, batch.w[:n]]), len(batch.x)
        with self.autocast():
            features = self.network.features(x)
            dropped = channel_dropout([f[b:] for f in features], self.config.dropout)
            embedding = self.network.decode([torch.cat([f, d]) for f, d in zip(features, dropped)])
            logits = upsample(self.network.classify(embedding), x.shape[-2:])
        out = Output([f[:b] for f in features], embedding[:b], logits[:b])
        return out, logits[b : b + n], logits[b + n :]


class UniMatchV2Training(SemiTraining):
    """V2: one strong stream of two views with complementary channels, labels from an EMA teacher."""

    strong_views: ClassVar[int] = 2
    has_teacher: ClassVar[bool] = True

    @property
    def mixes(self) -> bool:
        """Its boxes come from the batch; those of V1 and FixMatch from donors of their own."""
        return True

    def forward_strong(self, x: Tensor) -> Tensor:
        """Logits (2U, C, S, S) of first and second views (2U, 3, S, S), each pair losing complementary channels."""
        with self.autocast():
            features = complementary_dropout(self.network.features(x), kept=self.config.whole)
            logits = self.network.classify(self.network.decode(features))
        return upsample(logits, x.shape[-2:])

    def unsupervised(self, batch: SemiBatch, step: int) -> dict[str, Tensor]:
        """L_s = (L_s1 + L_s2) / 2."""
        n, t = len(batch.w), self.config.threshold
        labels = self.pseudo_labels(self.teach(batch.w), batch.valid)
        other = reversed_partner(n).to(batch.w.device)
        mixed = [cutmix(s, labels, s[other], labels[other]) for s in batch.s]
        logits = self.forward_strong(torch.cat([s for s, _ in mixed]))
        loss_s1, loss_s2 = (confident_cross_entropy(f, k, t) for f, (_, k) in zip(logits.split(n), mixed))
        return {"u": (loss_s1 + loss_s2) / 2, "sure": share_confident(labels, t).mean()}

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = (L_x + L_s) / 2; labelled and unlabelled crops do not meet in one batch normalisation."""
        weight = self.ramp(step)
        loss_x = self.supervised(self.run(self.network, batch.x), batch.y)
        if weight == 0:
            return {"loss": loss_x, "x": loss_x}
        terms = self.unsupervised(batch, step)
        return {"loss": total_loss(loss_x, terms["u"], weight), "x": loss_x, **terms}


TRAINERS: dict[str, type[SemiTraining]] = {
    "fixmatch": FixMatchTraining,
    "v1": UniMatchTraining,
    "v2": UniMatchV2Training,
}


class UniMatch(SemiMethod):
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
    def trainer(self) -> type[SemiTraining]:  # type: ignore[override]
        """The training of the chosen version."""
        return TRAINERS[self.config.version]

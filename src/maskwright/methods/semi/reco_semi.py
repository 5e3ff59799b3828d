"""Bootstrapping semantic segmentation with regional contrast (ReCo), Liu et al., ICLR 2022,
https://arxiv.org/abs/2104.04465

Contrast between regions on few pixels, on top of a mean teacher with ClassMix or CutMix. Queries are pixels that the
network finds hard, the positive is the mean of their class in the batch, and negatives come from the classes that the
means say are easily confused:

    Q_c = {i in V_c : p_c(i) < 0.97},    class of a negative ~ softmax_{j != c}(cos(mu_c, mu_j) / tau)
    L_reco = 1/C' sum_c 1/|Q_c| sum_{q in Q_c} -log( e(r_q, mu_c) / (e(r_q, mu_c) + sum_k e(r_q, r_k)) )
    L = L_x + L_u + L_reco,    e(a, b) = exp(cos(a, b) / tau)
    L_u = mean_i eta_n CE_i,   eta_n the share of an image's pixels with a confidence of 0.97 or more

V_c are labelled pixels of c and unlabelled ones whose pseudo-label is c with confidence 0.7 or more.

Deviates: photometric changes come before the mix, as in all methods here, with DACS's recipe, whose jitter is 0.2 in
place of 0.25; the student sees labelled and mixed crops in one pass, whose batch norm they share, where the authors
pass them one after the other; there is no second scale and crop of the view that was labelled; labels and confidences
go through the mix as they are, not as pictures of 8 bits; the teacher's batch norm is in evaluation mode unless
`teacher_mode` says otherwise, and its statistics are averaged where the authors' teacher keeps its own (`ema_buffers`);
crops are scaled by 0.5 to 2, not to 1.5; representations start from what the classifier sees, behind the decoder's last
convolution; the mixed picture is not flipped once more; labelled images come in turn, not balanced by class, and there
are no partial labels; learning rates and schedule are the shared ones.
What the original gets wrong: confidences are rounded to 1/255 on their way through a picture file format; L_u leaves
pixels whose loss rounds to exactly 0 out of its mean, so that it grows when a pixel becomes certain; negatives are
drawn in two nested Python loops.

Legend: B labelled crops, U unlabelled crops, C classes, S crop side, D width of the representation, (h, w) its size,
P = (B + U) h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.mixing import class_mask, cut_out, half_box_mask, mix, partner
from maskwright.data.training.sources import Labels
from maskwright.data.training.streams import Views
from maskwright.engine.config import Idle, option, part
from maskwright.engine.loop import Training
from maskwright.ops.losses.region_contrast import (
    as_rows,
    class_means,
    draw_negatives,
    draw_queries,
    nearest,
    region_contrast,
    similarity_weights,
)
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, SemiConfig, UnlabeledOptions
from maskwright.recipes.consistency.parts import (
    Ramp,
    Teacher,
    joined,
    note_unmixed,
    pseudo_labels,
    share_confident,
    unlabeled_stream,
)
from maskwright.recipes.consistency.representation import Represent, RepresentationHead, labels_at
from maskwright.recipes.consistency.teacher_options import TeacherOptions
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.setup import NetworkSetup

MIXES = ("classmix", "cutmix", "cutout", "none")


@dataclass(kw_only=True)
class ReCoConfig(SemiConfig):
    """Options of `reco_semi`."""

    teacher: TeacherOptions = part(TeacherOptions, final="teacher")
    unlabeled: UnlabeledOptions = part(
        UnlabeledOptions, strong="dacs", says={"strong": "photometric recipe of the student's view"}
    )
    mix: str = option("classmix", "how the student's views are mixed", choices=MIXES, main=True)
    strong_threshold: float = option(
        0.97,
        "delta_s: confidence of a pixel that counts for its image's weight; hard pixels are below it",
        low=0,
        high=1,
        main=True,
    )
    weak_threshold: float = option(
        0.7, "delta_w: least confidence of an unlabelled pixel in the contrast", low=0, high=1
    )
    contrast: float = option(1.0, "weight of L_reco", low=0, main=True)
    temperature: float = option(0.5, "tau", low=1e-3, high=10)
    queries: int = option(256, "queries of each class in a step", low=1)
    negatives: int = option(512, "negatives of each query", low=1)
    representation: int = option(256, "D, width of the representation", low=1)

    def idle(self) -> Idle:
        """Options of a contrast, and of a loss, that do not weigh."""
        yield from super().idle()
        contrast = ("weak_threshold", "temperature", "queries", "negatives", "representation")
        if self.ramp.weight == 0:
            yield ("mix", "strong_threshold", "contrast", *contrast, *self.teacher.unasked), NOTHING_UNLABELED
        elif self.contrast == 0:
            yield contrast, "contrast=0"


# ---------------------------------------------------------------------- losses


def weighted_consistency(logits: Tensor, labels: LabelMap, threshold: float) -> Tensor:
    """L_u = 1/|valid| sum_n eta_n sum_i CE(f(x_n)_i, k_ni), eta_n the share of n's valid pixels that are confident.

    Args:
        logits: of the student (U, C, S, S).
        labels: pseudo-labels (U, S, S).
        threshold: delta_s.
    """
    eta = share_confident(labels, threshold)[:, None, None].expand_as(labels.confidence)
    return cross_entropy(logits, labels.target(IGNORE), ignore=IGNORE, pixel_weight=eta, denominator="valid")


def reco_loss(
    r: Tensor,
    p: Tensor,
    labels: LabelMap,
    *,
    threshold: float,
    temperature: float,
    queries: int,
    negatives: int,
) -> Tensor:
    """L_reco.

    Args:
        r: representations (P, D); gradients flow through the queries alone.
        p: the student's probabilities (P, C).
        labels: of the pixels (B + U, h, w), in the same order; valid are those of V.
        threshold: delta_s.
        temperature: tau.
        queries: of each class.
        negatives: of each query.

    Returns:
        A number, 0 with fewer than two classes.
    """
    classes, valid = p.shape[1], labels.valid.flatten()
    places = valid.nonzero().flatten()
    ids = labels.ids.flatten()[places]
    order = ids.argsort(stable=True)
    places, ids = places[order], ids[order]  # by class
    rows, p_own = r[places], p.detach()[places, ids]
    means, numbers = class_means(rows.detach(), ids, classes)
    present = int((numbers > 0).sum())
    if present < 2:
        return 0 * r.sum()
    hard = draw_queries(ids, p_own < threshold, classes, queries)
    index = draw_negatives(hard, similarity_weights(means, numbers, temperature), ids, negatives)
    keys = F.normalize(rows.detach(), dim=1)
    return region_contrast(rows, hard, means, keys, index, temperature=temperature, present=present)


class ReCoTraining(Training):
    """Mean teacher with mixing, and regional contrast."""

    def __init__(self, context: Any, config: ReCoConfig, labels: Labels, steps: int, **options: Any) -> None:
        setup = NetworkSetup(context, config, labels, steps, **options)
        super().__init__(setup)
        c = self.config = setup.config
        self.student, self.crop, self.supervised = setup.student, setup.crop, setup.supervised
        if c.mix not in ("none", "cutout"):
            note_unmixed(setup)
        setup.streams["u"] = unlabeled_stream(setup)
        self.teacher = Teacher.of(setup)
        self.ramp = Ramp(c.ramp, steps)
        self.head = setup.learn_too("head", RepresentationHead(setup.network.width, c.representation))
        self.represent = Represent(setup.student, setup.crop)

    def mixed(self, u: Views) -> tuple[Tensor, LabelMap]:
        """Views of two photographs each, with the teacher's labels."""
        how, s = self.config.mix, u.strong[0]
        labels = pseudo_labels(self.teacher(u.weak), u.valid)
        if how == "none":
            return s, labels
        if how == "classmix":
            m = class_mask(labels)
        else:
            m = half_box_mask(len(s), (self.crop, self.crop)).to(s.device)
        if how == "cutout":
            return cut_out(s, m), labels.restrict(m)
        other = partner(len(s)).to(s.device)
        return mix(s, s[other], m), labels.mix(labels[other], m)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x + lambda(t) (L_u + L_reco), labelled and mixed crops in one pass."""
        c, x, u, lam = self.config, batch["x"], batch["u"], self.ramp(step)
        if lam == 0:
            loss_x = self.supervised(self.student(x.weak), x.y)
            return {"loss": loss_x, "x": loss_x}
        views, labels = self.mixed(u)
        n, out = len(x.weak), self.student(torch.cat([x.weak, views]))
        loss_x = self.supervised(out.first(n), x.y)
        loss_u = weighted_consistency(out.logits[n:], labels, c.strong_threshold)
        r = self.represent(self.head, out.embedding)
        size = (r.shape[-2], r.shape[-1])
        loss_reco = reco_loss(
            as_rows(r), as_rows(nearest(out.logits.detach(), size).softmax(1)),
            labels_at(joined([x.y, labels]), size).threshold(c.weak_threshold), threshold=c.strong_threshold,
            temperature=c.temperature, queries=c.queries, negatives=c.negatives,
        )  # fmt: skip
        both = loss_u + c.contrast * loss_reco
        sure = share_confident(labels, c.strong_threshold).mean()
        return {
            "loss": loss_x + lam * both, "x": loss_x, "u": both, "consistency": loss_u, "contrast": loss_reco,
            "sure": sure,
        }  # fmt: skip

    def after_step(self, step: int) -> None:
        """The teacher follows; the held-out images are looked at."""
        self.teacher.follow(self.ramp.waits(step))
        super().after_step(step)


class ReCo(NetworkMethod):
    """Regional contrast on a mean teacher with mixing."""

    name: ClassVar[str] = "reco_semi"
    title: ClassVar[str] = "Bootstrapping semantic segmentation with regional contrast"
    venue: ClassVar[str] = "Liu et al., ICLR 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2104.04465"
    summary: ClassVar[str] = "Contrasts regions; the ReCo of ICLR 2022."
    family: ClassVar[str] = "semi"
    Config: ClassVar[type] = ReCoConfig
    trainer: ClassVar[type[Training]] = ReCoTraining
    says: ClassVar[str] = "a student that tells apart the classes it confuses, region by region"

    @property
    def result(self) -> str:
        """Student or teacher, as configured."""
        return self.config.teacher.kept

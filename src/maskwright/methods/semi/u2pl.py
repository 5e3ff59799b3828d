"""Semi-supervised semantic segmentation using unreliable pseudo-labels (U2PL), Wang et al., CVPR 2022,
https://arxiv.org/abs/2203.03884

A pixel whose class is unsure is still surely not of most classes. Pixels of low entropy are learnt by their
pseudo-labels; those of high entropy become negatives of the classes that are far from their likeliest ones, kept in one
queue a class, against which sure pixels are contrasted:

    L = L_x + L_u + L_c,    e(a, b) = exp(cos(a, b) / tau)
    L_u = |valid| / |kept| CE on the pixels kept: all but the drop_t percent of the highest entropy
    L_c = 1/C' sum_c 1/256 sum_i -log( e(z_ci, z_c+) / (e(z_ci, z_c+) + sum_j e(z_ci, z_cij-)) )

Anchors z_ci are the student's: pixels of class c, labelled or of an entropy among the alpha_t percent lowest, to which
the teacher gives c more than 0.3. z_c+ is the mean of the teacher's features over the pixels of c. Negatives of c are
the teacher's features of labelled pixels of other classes where it ranks c among its first 3, and of unlabelled pixels
among the alpha_t percent of highest entropy where c has rank 3 to 19, from 0. drop_t and alpha_t fall linearly from 20
to 0.

Deviates: L_u and L_c set in after a tenth of the steps, not after one of 80 epochs: L_u asks for no confidence, and the
first steps of a short run make no teacher; as the authors', it is a copy of the student until then. The teacher's batch
norm is in training mode for pseudo-labels too, where the authors have it so for features and entropies alone: in
evaluation mode it goes by running averages that a short run leaves poor, and what they mislabel is learnt to the last
pixel (docs/semi.md; `teacher_mode=eval` and `ema_buffers=own` are the authors'). A pixel at the percentile of drop_t
itself is learnt, one a step, which the authors drop. Ranks and the anchors' probabilities are read off the logits at
the crop's size, the authors' off those of the classifier, where at strides 4 and 8 a pixel in 150 to 200 has another
likeliest class. Entropy percentiles, |valid| and all pixels that count leave out what lies outside the photograph;
drop_t and alpha_t fall with each step instead of each epoch; the ranks are capped by the number of classes, so that
with three classes the third still has negatives. The queues' rows are unit vectors in half precision and all queues
share a given number of rows (the paper: 30,000 each, 50,000 for class 0); of more new rows than a queue holds random
ones enter. The representation head has one 3x3 convolution and no dropout, and starts from what the classifier sees,
behind the decoder's last convolution. With one class in a step L_c is taken from the queues, where the authors' is 0.
Optimiser, rates and schedule are those of all methods here, and the loss has no OHEM and no auxiliary head unless it is
asked for; the averaged prototypes (`anchor_ema`), off in the authors' settings, are left out. CutMix pastes half of the
picture of the next photograph, in half of the steps.
What the original gets wrong: the teacher shares storage with the student when it is first copied; percentiles are
computed on the CPU in each step. Its one-hot labels are scattered with `unsqueeze(1)` where `unsqueeze(0)` is meant:
the first image gets the labels of all images of the batch at once (multi-hot), the others none. Its negatives of class
c are multiplied by the label's own channel c, which leaves none of the labelled pixels and few of the others, and
anchors are looked up by position where queues are looked up by class; the published figures stand on that weaker term,
and here the paper's rule holds.

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
from maskwright.data.training.mixing import half_box_mask, mix, partner
from maskwright.data.training.sources import Labels
from maskwright.data.training.streams import Views
from maskwright.engine.config import Idle, option, part
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.ops.losses.region_contrast import as_rows, class_means, draw_queries, nearest, region_contrast
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.ops.losses.thresholds import entropy_masks
from maskwright.recipes.consistency.class_banks import ClassBanks
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, RampOptions, SemiConfig, UnlabeledOptions
from maskwright.recipes.consistency.parts import (
    Ramp,
    Teacher,
    follow,
    follower,
    joined,
    note_unmixed,
    pseudo_labels,
    unlabeled_stream,
)
from maskwright.recipes.consistency.representation import Represent, RepresentationHead, labels_at
from maskwright.recipes.consistency.teacher_options import TeacherOptions
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.setup import NetworkSetup

FIRST, OTHER = 50_000, 30_000
"""Rows of the queues of class 0 and of the others in the paper."""


@dataclass(kw_only=True)
class U2PLTeacherOptions(TeacherOptions):
    """Its own statistics are moved by the pass for features."""

    mode: str = option(
        "train", "batch norm of the teacher for pseudo-labels; for features it is in training mode",
        choices=("eval", "train"), old="teacher_mode",
    )  # fmt: skip

    def check(self) -> None:
        """Statistics of its own move in any case."""


@dataclass(kw_only=True)
class U2PLConfig(SemiConfig):
    """Options of `u2pl`."""

    teacher: U2PLTeacherOptions = part(U2PLTeacherOptions, mode="train", final="teacher")
    unlabeled: UnlabeledOptions = part(
        UnlabeledOptions, strong="none", says={"strong": "photometric recipe of the student's view; the paper has none"}
    )
    ramp: RampOptions = part(
        RampOptions, start=0.1, says={"start": "share of the steps before L_u and L_c set in; 0.0125 in the paper"}
    )
    cutmix: float = option(0.5, "chance of a step to mix its unlabelled crops", low=0, high=1)
    drop: float = option(
        20.0, "percent of unlabelled pixels that L_u leaves out at first, falling to 0", low=0, high=100, main=True
    )
    contrast: float = option(1.0, "weight of L_c", low=0, main=True)
    alpha: float = option(
        20.0, "percent of pixels of lowest and of highest entropy at first, falling to 0", low=0, high=50
    )
    anchor: float = option(0.3, "probability of its class above which a pixel may be an anchor", low=0, high=1)
    rank_low: int = option(3, "ranks from here on make a class improbable; at most one below the classes", low=1)
    rank_high: int = option(20, "ranks from here on say nothing; at most the classes", low=2)
    temperature: float = option(0.5, "tau", low=1e-3, high=10)
    anchors: int = option(256, "anchors of each class in a step", low=1)
    negatives: int = option(50, "negatives of each anchor", low=1)
    bank: int = option(
        100_000, "rows of all queues together, 2 D bytes each; at most 50,000 for class 0 and 30,000 for each other, "
        "as in the paper", low=1,
    )  # fmt: skip
    representation: int = option(256, "D, width of the representation", low=1)

    def check(self) -> None:
        """Raises `MaskwrightError` on a window of ranks that holds none."""
        if self.rank_low >= self.rank_high:
            raise MaskwrightError(
                f"ranks from {self.rank_low} to below {self.rank_high}: no class would be improbable",
                f"rank_low below rank_high={self.rank_high}", f"--set rank_low={max(1, self.rank_high - 1)}",
            )  # fmt: skip

    def idle(self) -> Idle:
        """Options of a contrast, and of a loss, that do not weigh."""
        yield from super().idle()
        contrast = (
            "alpha", "anchor", "rank_low", "rank_high", "temperature", "anchors", "negatives", "bank", "representation",
        )  # fmt: skip
        if self.ramp.weight == 0:
            yield ("cutmix", "drop", "contrast", *contrast, *self.teacher.unasked), NOTHING_UNLABELED
        elif self.contrast == 0:
            yield contrast, "contrast=0"


# ---------------------------------------------------------------------- which pixels


def ranks(q: Tensor) -> Tensor:
    """Rank of each class at each pixel, 0 the likeliest: int64 (B, C, h, w) of probabilities (B, C, h, w)."""
    order = q.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(q.shape[1], device=q.device).view(1, -1, 1, 1).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def rank_window(low: int, high: int, classes: int) -> tuple[int, int]:
    """Ranks [low, high) of improbable classes, capped so that with two classes or more there is at least one."""
    low = min(low, max(1, classes - 1))
    return low, max(low, min(high, classes))


def negative_pixels(q: Tensor, labels: LabelMap, unreliable: Tensor, labeled: int, window: tuple[int, int]) -> Tensor:
    """Of which classes each pixel is a negative.

    Args:
        q: the teacher's probabilities (B + U, C, h, w), labelled crops first.
        labels: of all crops (B + U, h, w).
        unreliable: bool (B + U, h, w), pixels of high entropy; of labelled crops it is not asked.
        labeled: B.
        window: ranks [low, high) of improbable classes.

    Returns:
        bool (B + U, C, h, w). Of a labelled pixel of class c never c.
    """
    rank, (low, high) = ranks(q), window
    classes = torch.arange(q.shape[1], device=q.device).view(1, -1, 1, 1)
    of_others = labels.valid[:, None] & (labels.ids[:, None] != classes) & (rank < low)
    unsure = unreliable[:, None] & (rank >= low) & (rank < high)
    return torch.cat([of_others[:labeled], unsure[labeled:]]) & (q < 1)


def annealed(percent: float, step: int, steps: int) -> float:
    """percent (1 - t), t the share of the run that is done."""
    return percent * (1 - min(1.0, step / max(1, steps)))


# ---------------------------------------------------------------------- losses


def reliable_cross_entropy(logits: Tensor, kept: LabelMap, valid: Tensor) -> Tensor:
    """L_u = |valid| / |kept| mean CE over the kept pixels.

    Args:
        logits: of the student (U, C, S, S).
        kept: pseudo-labels (U, S, S), valid where they are reliable.
        valid: bool (U, S, S), pixels of which the reliable ones were taken.
    """
    weight = valid.sum() / kept.valid.sum().clamp(min=1)
    return weight * cross_entropy(logits, kept.target(IGNORE), ignore=IGNORE, denominator="valid")


class U2PLTraining(Training):
    """Reliable pixels are learnt, unreliable ones are negatives."""

    def __init__(self, context: Any, config: U2PLConfig, labels: Labels, steps: int, **options: Any) -> None:
        setup = NetworkSetup(context, config, labels, steps, **options)
        super().__init__(setup)
        self.config = setup.config
        self.context, self.steps, self.crop = context, steps, setup.crop
        self.student, self.supervised = setup.student, setup.supervised
        c, classes = self.config, context.classes
        if c.cutmix > 0:
            note_unmixed(setup)
        setup.streams["u"] = unlabeled_stream(setup)
        # Features are taken in training mode; for pseudo-labels `teach` decides.
        self.teacher = Teacher.of(setup, "train")
        self.ramp = Ramp(c.ramp, steps)
        self.head = setup.learn_too("head", RepresentationHead(setup.network.width, c.representation))
        self.represent = Represent(setup.student, setup.crop)
        self.teacher_head = follower(self.head, c.teacher, "train")
        shares = ClassBanks.within(max(c.bank, classes), classes, 1).sizes.tolist()
        sizes = [min(share, OTHER if k else FIRST) for k, share in enumerate(shares)]
        self.banks = ClassBanks(sizes, c.representation, torch.float16).to(setup.device)
        self.modules |= {"teacher_head": self.teacher_head, "banks": self.banks}
        self.window = rank_window(c.rank_low, c.rank_high, classes)

    def teach(self, x: Tensor) -> Tensor:
        """The teacher's probabilities (B, C, S, S) in the mode that `teacher.mode` says."""
        if self.config.teacher.mode == "eval":
            self.teacher.network.eval()
        q = self.teacher(x)
        self.teacher.average.train()
        return q

    def mixed(self, u: Views) -> tuple[Tensor, LabelMap]:
        """Views with the teacher's labels; in a share of the steps half of each comes from the next photograph."""
        s, labels = u.strong[0], pseudo_labels(self.teach(u.weak), u.valid)
        if float(torch.rand(())) >= self.config.cutmix:
            return s, labels
        m, other = half_box_mask(len(s), (self.crop, self.crop)).to(s.device), partner(len(s)).to(s.device)
        return mix(s, s[other], m), labels.mix(labels[other], m)

    @torch.no_grad()
    def teach_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities (B + U, C, S, S) and representations (B + U, D, h, w)."""
        out = self.teacher.run(x)
        return out.logits.softmax(1), self.represent(self.teacher_head.module, out.embedding)

    def enqueue(self, rows: Tensor, negatives: Tensor) -> None:
        """Stores rows as negatives of classes.

        Args:
            rows: unit vectors (P, D).
            negatives: bool (C, P), of which classes each is one.
        """
        places = []
        for mine, size in zip(negatives, self.banks.sizes.tolist()):
            found = mine.nonzero().flatten()
            if len(found) > size:
                found = found[torch.randperm(len(found))[:size].to(found.device)]
            places.append(found)
        ids = torch.arange(len(places)).repeat_interleave(torch.tensor([len(p) for p in places]))
        self.banks.enqueue(rows[torch.cat(places)], ids)

    def contrast(
        self, student: Tensor, labels: LabelMap, n: int, q: Tensor, r: Tensor, reliable: Tensor, unreliable: Tensor
    ) -> Tensor:
        """L_c.

        Args:
            student: the student's representations (B + U, D, h, w).
            labels: of all crops at their size (B + U, h, w), labelled ones first.
            n: B.
            q: the teacher's probabilities (B + U, C, h, w).
            r: the teacher's representations (B + U, D, h, w).
            reliable: bool (U, h, w), unlabelled pixels of low entropy.
            unreliable: bool (U, h, w), of high entropy.
        """
        c, truth = self.config, labels.valid[:n]
        rows, ids = as_rows(r), labels.ids.flatten()  # (P, D), (P,)
        high = torch.cat([truth, unreliable])
        negatives = negative_pixels(q, labels, high, n, self.window).movedim(1, 0).flatten(1)  # (C, P)
        self.enqueue(F.normalize(rows, dim=1), negatives)

        low = torch.cat([truth, reliable]).flatten()
        means, numbers = class_means(rows[low], ids[low], self.context.classes)
        stored = (self.banks.counts > 0)[ids]
        sure = as_rows(q).gather(1, ids[:, None])[:, 0] > c.anchor
        queries = draw_queries(ids, low & sure & stored, self.context.classes, c.anchors)
        index = self.banks.index(queries.ids, c.negatives)
        return region_contrast(
            as_rows(student), queries, means, self.banks.rows, index,
            temperature=c.temperature, present=int((numbers > 0).sum()),
        )  # fmt: skip

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x + lambda(t) (L_u + L_c), labelled and mixed crops in one pass."""
        c, x, u, lam = self.config, batch["x"], batch["u"], self.ramp(step)
        if lam == 0:
            loss_x = self.supervised(self.student(x.weak), x.y)
            return {"loss": loss_x, "x": loss_x}
        views, labels = self.mixed(u)
        n, crops = len(x.weak), torch.cat([x.weak, views])
        out = self.student(crops)
        loss_x = self.supervised(out.first(n), x.y)
        r = self.represent(self.head, out.embedding)
        size = (r.shape[-2], r.shape[-1])

        q, r_t = self.teach_features(crops)
        drop, alpha = annealed(c.drop, step, self.steps), annealed(c.alpha, step, self.steps)
        kept = labels.restrict(entropy_masks(q[n:], 100 - drop, 100, labels.valid).reliable)
        loss_u = reliable_cross_entropy(out.logits[n:], kept, labels.valid)
        reliable, unreliable, _ = entropy_masks(q[n:], alpha, 100 - alpha, labels.valid)
        reliable, unreliable, q = (nearest(m, size) for m in (reliable, unreliable, q))
        loss_c = self.contrast(r, labels_at(joined([x.y, labels]), size), n, q, r_t, reliable, unreliable)
        both = loss_u + c.contrast * loss_c
        return {"loss": loss_x + lam * both, "x": loss_x, "u": both, "reliable": loss_u, "contrast": loss_c}

    def after_step(self, step: int) -> None:
        """Teacher and the teacher's head follow; the held-out images are looked at."""
        waits = self.ramp.waits(step)
        follow(self.teacher_head, self.head, waits)
        self.teacher.follow(waits)
        super().after_step(step)


class U2PL(NetworkMethod):
    """Unreliable pixels as negatives."""

    name: ClassVar[str] = "u2pl"
    title: ClassVar[str] = "Semi-supervised semantic segmentation using unreliable pseudo-labels"
    venue: ClassVar[str] = "Wang et al., CVPR 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2203.03884"
    summary: ClassVar[str] = "Takes unsure pixels as negatives."
    family: ClassVar[str] = "semi"
    Config: ClassVar[type] = U2PLConfig
    trainer: ClassVar[type[Training]] = U2PLTraining
    says: ClassVar[str] = "a student that learns sure pixels and is contrasted with unsure ones"

    @property
    def result(self) -> str:
        """Student or teacher, as configured."""
        return self.config.teacher.kept

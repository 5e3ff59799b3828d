"""Mean teachers are better role models: Weight-averaged consistency targets improve semi-supervised deep learning
results, Tarvainen & Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780

The student learns to reproduce, on a perturbed photograph, what an exponential moving average of itself says of the
plain one. What the perturbation is makes the method, `--set perturb=`:

    photometric  colour and blur alone (the plain mean teacher)
    cutout       a box of the picture is left, and asked about           French et al., BMVC 2020
    cutout_hole  a hole in the picture; nothing is asked inside it       its inverse, DeVries and Taylor, 2017
    cutmix       a box of another photograph                             French et al., BMVC 2020
    cowmix       blobs of another photograph                             French et al., 2020, arXiv 2003.12022
    classmix     half of the classes of another photograph               Olsson et al., WACV 2021
    complexmix   the same, decided anew in each cell of a grid           Chen et al., ICIP 2021

Deviates: all of them share one photometric recipe, one sampler and one schedule, so that they differ by their masks and
losses alone; the teacher's batch norm is in evaluation mode unless `teacher_mode` says otherwise, and sureness is
counted by image (`confidence`), where French et al. and ClassMix train the teacher's statistics and count by batch; it
is the share of the valid pixels that are left, where French et al. take all, and 0.968 is the threshold, where they
have 0.97. The plain mean teacher of the paper grows its weight over a ramp, leaves no pixel out and is asked for
labelled crops too; `confidence=none`, `distance=square_mean`, `weight=100` and `ramp_up=0.3` come close, on unlabelled
crops alone. ComplexMix has no official code: its mask draws half of the classes of each cell of a fixed grid anew,
which is how we understand the paper. One list of unlabelled images whose batch is paired with itself (item i with i +
1) instead of two lists.
What the originals get wrong: code bases call one loss by the same weight and mean the sum or the mean over classes,
which differ by a factor C. It is an option here, and named. Some mix in place, so that the partner of the last image is
already mixed; here all parts are new tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.mixing import MASKS, class_mask, complex_mask, cut_out, mix, partner
from maskwright.data.training.sources import Labels
from maskwright.engine.config import Idle, option, part
from maskwright.engine.loop import Training
from maskwright.ops.losses.seg_losses import cross_entropy, kl_divergence, mse_probs
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, SemiConfig
from maskwright.recipes.consistency.parts import Ramp, Teacher, note_unmixed, pseudo_labels, unlabeled_stream
from maskwright.recipes.consistency.teacher_options import TeacherOptions
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.setup import NetworkSetup

PERTURBATIONS = ("photometric", "cutout", "cutout_hole", "cutmix", "cowmix", "classmix", "complexmix")
MASK_OF = {"cutout": "cutout", "cutout_hole": "cutout_hole", "cutmix": "cutmix", "cowmix": "cow"}
"""Perturbations by a mask that needs no labels, and that mask's name."""
CUTOUTS = ("cutout", "cutout_hole")
"""Perturbations that empty a part of the picture."""
DISTANCES = ("auto", "square_sum", "square_mean", "kl", "hard")


@dataclass(kw_only=True)
class MeanTeacherConfig(SemiConfig):
    """Options of `mean_teacher`."""

    teacher: TeacherOptions = part(TeacherOptions, final="teacher")
    perturb: str = option(
        "cutmix", "what the student's view has that the teacher's has not", choices=PERTURBATIONS, main=True
    )
    distance: str = option(
        "auto",
        "square_sum or square_mean over classes, kl, or hard cross-entropy; auto: hard for class mixing",
        choices=DISTANCES,
    )
    threshold: float = option(0.968, "confidence of a pixel that counts as sure; 0: all are", low=0, high=1, main=True)
    confidence: str = option(
        "image", "how sure pixels weigh: their share in the batch or image, each pixel, or none",
        choices=("batch", "image", "pixel", "none"),
    )  # fmt: skip
    grid: int = option(4, "cells a side of complexmix", low=1, high=64)
    cells: str = option(
        "class", "what is mixed in a cell of complexmix: half of its classes, or a box", choices=("class", "box")
    )

    def idle(self) -> Idle:
        """Options of another perturbation, of sureness that does not weigh, and of a loss that does not."""
        yield from super().idle()
        if self.ramp.weight == 0:
            own = ("perturb", "distance", "threshold", "confidence", "grid", "cells")
            yield (*own, *self.teacher.unasked), NOTHING_UNLABELED
        if self.perturb != "complexmix":
            yield ("grid", "cells"), f"perturb={self.perturb}"
        if self.confidence == "none":
            yield ("threshold",), "confidence=none"
        elif self.threshold == 0:
            yield ("confidence",), "threshold=0"


def consistency(logits: Tensor, q: Tensor, weight: Tensor, distance: str) -> Tensor:
    """L_cons = sum_i weight_i D(softmax(logits)_i, q_i) / number of pixels.

    Args:
        logits: of the student (B, C, S, S).
        q: probabilities of the teacher (B, C, S, S), without gradient.
        weight: (B, S, S), 0 where nothing is asked.
        distance: `square_sum` sum_c (p - q)^2 (French), `square_mean` mean_c (p - q)^2 (TorchSemiSeg, with weight 100),
            `kl` sum_c q log (q / p), `hard` -log p[argmax q] (ClassMix).
    """
    if distance == "hard":
        return cross_entropy(logits, q.argmax(1), ignore=IGNORE, pixel_weight=weight, denominator="all")
    if distance == "kl":
        return kl_divergence(logits, q, pixel_weight=weight, denominator="all")
    d = mse_probs(logits, q, over="sum", pixel_weight=weight, denominator="all")
    return d / q.shape[1] if distance == "square_mean" else d


def sureness(labels: LabelMap, threshold: float, how: str) -> Tensor:
    """Weight (B, S, S) of each pixel by how sure the teacher is; 0 where a pixel is not valid.

    Args:
        labels: pseudo-labels (B, S, S).
        threshold: confidence of a sure pixel.
        how: `batch` or `image`: all pixels weigh the share of sure ones there; `pixel`: sure ones 1, others 0;
            `none`: all 1.
    """
    valid = labels.valid.float()
    sure = (labels.confidence >= threshold) & labels.valid
    if how == "none":
        return valid
    if how == "pixel":
        return sure.float()
    over = (0, 1, 2) if how == "batch" else (1, 2)
    share = sure.float().sum(over, keepdim=True) / valid.sum(over, keepdim=True).clamp(min=1)
    return valid * share


class MeanTeacherTraining(Training):
    """Teacher on the weak view, student on the perturbed one."""

    def __init__(self, context: Any, config: MeanTeacherConfig, labels: Labels, steps: int, **options: Any) -> None:
        setup = NetworkSetup(context, config, labels, steps, **options)
        super().__init__(setup)
        c = self.config = setup.config
        self.student, self.crop, self.supervised = setup.student, setup.crop, setup.supervised
        if c.perturb not in ("photometric", *CUTOUTS):
            note_unmixed(setup)
        setup.streams["u"] = unlabeled_stream(setup)
        self.teacher = Teacher.of(setup)
        self.ramp = Ramp(c.ramp, steps)

    def perturb(self, s: Tensor, q: Tensor, labels: LabelMap) -> tuple[Tensor, Tensor, LabelMap]:
        """The student's view with the probabilities and labels that belong to it.

        Args:
            s: strong views (B, 3, S, S).
            q: the teacher's probabilities on the weak views.
            labels: the teacher's labels.
        """
        how, size = self.config.perturb, (self.crop, self.crop)
        if how == "photometric":
            return s, q, labels
        if how in MASK_OF:
            m = MASKS[MASK_OF[how]](len(s), size).to(s.device)
        elif how == "classmix":
            m = class_mask(labels)
        else:
            m = complex_mask(labels, grid=self.config.grid, base=self.config.cells)
        if how in CUTOUTS:
            return cut_out(s, m), q, labels.restrict(m)
        other = partner(len(s)).to(s.device)
        return mix(s, s[other], m), mix(q, q[other], m), labels.mix(labels[other], m)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x + lambda(t) L_cons, the second on the perturbed views."""
        c, x, u, lam = self.config, batch["x"], batch["u"], self.ramp(step)
        loss_x = self.supervised(self.student(x.weak), x.y)
        if lam == 0:
            return {"loss": loss_x, "x": loss_x}
        q = self.teacher(u.weak)
        x_m, q_m, labels = self.perturb(u.strong[0], q, pseudo_labels(q, u.valid))
        weight = sureness(labels, c.threshold, c.confidence)
        loss_u = consistency(self.student(x_m).logits, q_m, weight, distance_of(c))
        return {"loss": loss_x + lam * loss_u, "x": loss_x, "u": loss_u, "sure": weight.mean()}

    def after_step(self, step: int) -> None:
        """The teacher follows; the held-out images are looked at."""
        self.teacher.follow(self.ramp.waits(step))
        super().after_step(step)


def distance_of(config: MeanTeacherConfig) -> str:
    """The distance, `auto` decided: hard labels where classes are mixed."""
    if config.distance != "auto":
        return config.distance
    return "hard" if config.perturb in ("classmix", "complexmix") else "square_sum"


class MeanTeacher(NetworkMethod):
    """Consistency with an EMA teacher under a chosen perturbation."""

    name: ClassVar[str] = "mean_teacher"
    title: ClassVar[str] = "Mean teachers are better role models"
    venue: ClassVar[str] = "Tarvainen & Valpola, NeurIPS 2017"
    link: ClassVar[str] = "https://arxiv.org/abs/1703.01780"
    summary: ClassVar[str] = "Learns from its own average on mixed views."
    family: ClassVar[str] = "semi"
    Config: ClassVar[type] = MeanTeacherConfig
    trainer: ClassVar[type[Training]] = MeanTeacherTraining
    says: ClassVar[str] = "a student that agrees with its moving average on perturbed photographs"

    @property
    def result(self) -> str:
        """Student or teacher, as configured."""
        return self.config.teacher.kept

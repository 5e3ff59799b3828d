"""DACS: Domain adaptation via cross-domain mixed sampling, Tranheden et al., WACV 2021,
https://arxiv.org/abs/2007.08702

    maskwright train TARGET --source SOURCE --method dacs

Half of the classes of labelled source photographs are pasted onto photographs of the target. What is pasted keeps its
label; around it an EMA teacher's labels of the target stand, weighed by how sure it is:

    s, y labelled source crops; t target crops; M = [y in C], C half of the classes of the batch, rounded up
    k = argmax p_teacher(t),  q = share of the target pixels with max p_teacher >= 0.968
    x_m = A(M s + (1 - M) t),  y_m = M y + (1 - M) k,  w = M + (1 - M) q
    L = CE(f(s), y) + lambda mean_i w_i CE(f(x_m)_i, y_mi)

A changes colours and blurs. No label of the target is read.

Deviates: each mixed crop has colour changes of its own, where the authors draw them once a batch. Pixels without a
label or outside the photograph count for neither q nor the loss, but in the mean's denominator, as there. The authors
leave out the teacher's labels of the first and last rows, where Cityscapes shows sky and bonnet: here no row is
special. Optimiser, rates, crops and steps are those that all methods here share; batch-norm statistics are taken from
the target's photographs once training is over. What the original gets wrong: void (255) is one of the classes that are
drawn, so that holes are pasted too; q is one number for a batch, so that one sure crop vouches for an unsure one
(kept). It reports the best iterate on the images that it is judged on; here it is the last, or the best on held-out
source images (`holdout`).

Legend: B crops, C classes, S crop side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskwright.data.training.augment import photometric
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.mixing import class_mask, mix
from maskwright.data.training.sources import Labels, MaskLabels
from maskwright.engine.config import option, part
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.ops.transfer import to_device
from maskwright.recipes.consistency.options import RampOptions, TeacherOptions, UnlabeledOptions
from maskwright.recipes.consistency.parts import SECOND, Ramp, Teacher, pseudo_labels
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.options import NetworkConfig, NormOptions
from maskwright.recipes.training.training import NetworkTraining


@dataclass(kw_only=True)
class DACSConfig(NetworkConfig):
    """Options of `dacs`."""

    norms: NormOptions = part(NormOptions, without=("photographs",), photographs="all")
    target: UnlabeledOptions = part(
        UnlabeledOptions, without=("images",), strong="dacs",
        says={
            "batch": "crops of the target in a step; 0: as many as of the source",
            "strong": "photometric recipe of the mixed crops",
        },
    )  # fmt: skip
    teacher: TeacherOptions = part(TeacherOptions, mode="train", main=("final",))
    ramp: RampOptions = part(RampOptions, says={"weight": "lambda, weight of the loss on mixed crops"})
    threshold: float = option(0.968, "probability from which on the teacher counts as sure", low=0, high=1, main=True)


def sure_share(labels: LabelMap, threshold: float) -> Tensor:
    """q: share of the valid pixels of a whole batch (B, S, S) whose confidence is at least the threshold; a number."""
    sure = (labels.confidence >= threshold) & labels.valid
    return sure.sum() / labels.valid.sum().clamp(min=1)


def mixed_loss(logits: Tensor, y: LabelMap, k: LabelMap, mask: Tensor, q: Tensor) -> Tensor:
    """mean_i w_i CE(f(x_m)_i, y_mi) over all pixels, those without a label at 0.

    Args:
        logits: of the mixed crops (B, C, S, S).
        y: labels of the source (B, S, S).
        k: the teacher's labels of the target (B, S, S).
        mask: bool (B, S, S), True where the source stands.
        q: weight of the target's pixels, a number.
    """
    weight = torch.where(mask, torch.ones_like(q), q)
    target = y.mix(k, mask).target(IGNORE)
    return cross_entropy(logits, target, ignore=IGNORE, pixel_weight=weight, denominator="all")


class DACSTraining(NetworkTraining):
    """Student on source and mixed crops, teacher on those of the target."""

    def __init__(self, context: Any, config: DACSConfig, labels: Labels, steps: int, **kwargs: Any) -> None:
        super().__init__(context, config, labels, steps, name="s", **kwargs)
        c, images = self.config, range(len(context.data))
        order = self.order(len(images), c.target.batch or c.crops.batch, SECOND)
        self.streams["t"] = self.stream(images, order)
        self.change = photometric(c.target.strong)
        self.teacher = Teacher.of(self)
        self.ramp = Ramp(c.ramp, steps)

    def batch(self, indices: Any, random: torch.Generator) -> dict[str, Any]:
        """Source and target crops, and crops mixed of them, x_m (B, 3, S, S) with M bool (B, S, S), B the lesser of
        both numbers of crops."""
        views = self.streams.draw(indices, random)
        s, t = views["s"], views["t"]
        n = min(len(s.weak), len(t.weak))
        mask = class_mask(s.y[:n], rule="ceil", pool="batch", generator=random)
        x_m = self.change(mix(s.weak[:n], t.weak[:n], mask), random)
        return {**views, "m": (x_m, mask)}

    def on_device(self, batch: Any) -> dict[str, Any]:
        """Views and mixed crops as the network's input."""
        x_m, mask = batch["m"]
        views = {name: self.prepared(batch[name]) for name in ("s", "t")}
        return {**views, "m": (self.normalise(x_m), to_device(mask, self.device))}

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_s + lambda(t) L_m."""
        s, t, (x_m, mask), lam = batch["s"], batch["t"], batch["m"], self.ramp(step)
        loss_s = self.supervised(self.student(s.weak), s.y)
        if lam == 0:
            return {"loss": loss_s, "s": loss_s}
        k, n = pseudo_labels(self.teacher(t.weak), t.valid), len(mask)
        q = sure_share(k, self.config.threshold)
        loss_m = mixed_loss(self.student(x_m).logits, s.y[:n], k[:n], mask, q)
        return {"loss": loss_s + lam * loss_m, "s": loss_s, "m": loss_m, "q": q}

    def after_step(self, step: int) -> None:
        """The teacher follows; the held-out images are looked at."""
        self.teacher.follow(self.ramp.waits(step))
        super().after_step(step)


class DACS(NetworkMethod):
    """Source classes pasted onto the target."""

    name: ClassVar[str] = "dacs"
    title: ClassVar[str] = "DACS: Domain adaptation via cross-domain mixed sampling"
    venue: ClassVar[str] = "Tranheden et al., WACV 2021"
    link: ClassVar[str] = "https://arxiv.org/abs/2007.08702"
    summary: ClassVar[str] = "Pastes a source's classes onto the target."
    family: ClassVar[str] = "adapt"
    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    Config: ClassVar[type] = DACSConfig
    trainer: ClassVar[type[NetworkTraining]] = DACSTraining
    says: ClassVar[str] = "a network on source crops and on their classes pasted into the target"

    def labels(self) -> Labels:
        """The source's masks."""
        return MaskLabels(self.context.data_of("source"), self.context.classes)

    @property
    def result(self) -> str:
        """Student or teacher, as configured."""
        return self.config.teacher.kept

"""The shared step of semi-supervised segmentation.

    labelled crops x with labels y             -> L_x, the supervised loss
    unlabelled photograph -> one random crop   -> weak view w
    photometric changes of the same crop       -> strong views s1, s2, ...
    teacher (EMA of the student, or itself)    -> probabilities on w -> label map with confidence and validity
    mixing                                     -> strong views and label maps by the same masks
    student on the mixed views                 -> L_u

A method's file says what happens to the views, to the labels and in L_u; it overrides `unsupervised` and, where its
paper does so, more. Pseudo-labels are label maps: ids, confidence and validity go through every mix together.

Legend: B batch, C classes, S crop side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from maskwright.data.training.augment import PRESETS, photometric
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sampler import PairSampler
from maskwright.data.training.views import View
from maskwright.engine.config import option
from maskwright.engine.distributed import rank, world_size
from maskwright.engine.loop import Indices
from maskwright.errors import MaskwrightError
from maskwright.recipes.ema import EMATeacher
from maskwright.recipes.training.norm_statistics import train_norms
from maskwright.recipes.training.segmenting import NetworkConfig, NetworkMethod, Output, SegmentationTraining

TEACHER = frozenset({"ema", "ema_buffers", "final"})
"""Options that methods without an EMA teacher have no use for."""


@dataclass(kw_only=True)
class SemiConfig(NetworkConfig):
    """Options of all semi-supervised methods."""

    unused: ClassVar[frozenset[str]] = frozenset({"norm_from"})  # training looks at all photographs
    batch_unlabeled: int = option(0, "unlabelled crops in a step; 0: as many as labelled ones", low=0)
    unlabeled: str = option(
        "rest", "rest: images without masks (all where there are none); all", choices=("rest", "all")
    )
    strong: str = option("unimatch", "photometric recipe of the strong views", choices=tuple(PRESETS))
    ema: float = option(
        0.99, "greatest momentum of the EMA teacher; min(1 - 1/(n + 1), ema) at update n", low=0, high=1, main=True
    )
    ema_buffers: str = option(
        "ema", "the teacher's batch-norm statistics: averaged, copied or its own", choices=("ema", "copy", "own")
    )
    teacher_mode: str = option("eval", "batch norm of the network that labels", choices=("eval", "train"))
    final: str = option("student", "the network that is kept: student or teacher", choices=("student", "teacher"))
    weight: float = option(1.0, "weight of the unsupervised loss", low=0, main=True)
    ramp_up: float = option(0.0, "share of the steps over which the weight grows as exp(-5 (1 - t)^2)", low=0, high=1)
    start: float = option(0.0, "share of the steps before the unsupervised loss sets in", low=0, high=1)

    @property
    def still(self) -> bool:
        """Whether the teacher would label with the statistics that it began with."""
        return self.ema_buffers == "own" and self.teacher_mode == "eval"

    def check(self) -> None:
        """Raises `MaskwrightError` on a teacher that would label with the statistics it began with."""
        super().check()
        if self.still:
            raise MaskwrightError(
                "ema_buffers=own with teacher_mode=eval: statistics that nothing ever moves", "teacher_mode=train",
                "or take ema_buffers=ema",
            )  # fmt: skip


class SemiBatch(NamedTuple):
    """Crops of a step.

    Attributes:
        x: labelled crops (B, 3, S, S), normalised.
        y: their labels (B, S, S).
        w: weak views of unlabelled images (B_u, 3, S, S).
        valid: bool (B_u, S, S), False outside the photograph.
        s: strong views of the same crops.
        views: the recorded geometry of each unlabelled crop.
        u: indices of the unlabelled images.
    """

    x: Tensor
    y: LabelMap
    w: Tensor
    valid: Tensor
    s: tuple[Tensor, ...]
    views: tuple[View, ...] = ()
    u: tuple[int, ...] = ()


class SemiTraining(SegmentationTraining):
    """Labelled and unlabelled crops side by side.

    An EMA teacher is a copy of the student until the unsupervised loss sets in: it averages none of the iterates
    that were too poor to label.

    Attributes:
        strong_views: how many strong views each unlabelled crop gets.
        has_teacher: whether an EMA teacher follows the student.
        mixes: whether unlabelled crops of a step are mixed with one another under this configuration.
    """

    strong_views: ClassVar[int] = 1
    has_teacher: ClassVar[bool] = True
    sees_all: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        c = self.config
        share = (c.batch_unlabeled or c.batch) // world_size()
        if self.mixes and share < 2:
            self.context.note(
                f"{share} unlabelled crop in a step of each process has no other to be mixed with: nothing is mixed; "
                f"--set batch_unlabeled={2 * world_size()} mends it."
            )
        self.recipe = photometric(c.strong)
        self.teacher: EMATeacher | None = None
        if self.has_teacher:
            self.teacher = EMATeacher(self.network, c.ema, c.ema_buffers, self.teacher_norms)
            self.modules["teacher"] = self.teacher

    @property
    def teacher_norms(self) -> Literal["eval", "train"]:
        """Mode of the teacher's batch norm."""
        return self.config.teacher_mode

    @property
    def mixes(self) -> bool:
        """No, unless a method says so."""
        return False

    def unlabeled_images(self) -> list[int]:
        """The images that are used without their labels; never those held out."""
        held = set(self.held)
        everything = [i for i in range(len(self.context.data)) if i not in held]
        if self.config.unlabeled == "all":
            return everything
        labeled = set(self.labels.indices)
        return [i for i in everything if i not in labeled] or everything

    def make_sampler(self) -> Any:
        """Two lists, each cycled on its own."""
        c = self.config
        return PairSampler(
            self.labels.indices, self.unlabeled_images(), c.batch, c.batch_unlabeled or c.batch,
            seed=self.context.seed, world=world_size(), rank=rank(), weights=self.chances(),
        )  # fmt: skip

    # ------------------------------------------------------------------ views

    def batch(self, indices: Indices, random: torch.Generator) -> Any:
        """Labelled crops, and weak and strong views of unlabelled ones."""
        labeled, unlabeled = indices  # type: ignore[misc]
        x, y = self.labeled_crops(labeled, random)  # type: ignore[arg-type]
        views = tuple(self.weak_view(int(i), random) for i in unlabeled)  # type: ignore[union-attr]
        pixels = torch.stack([self.pixels(int(i), v) for i, v in zip(unlabeled, views)])  # type: ignore[arg-type]
        strong = tuple(self.normalise(self.strengthen(pixels, random)) for _ in range(self.strong_views))
        valid = torch.stack([v.valid() for v in views]).to(self.device)
        u = tuple(int(i) for i in unlabeled)  # type: ignore[union-attr]
        return SemiBatch(x, y, self.normalise(pixels), valid, strong, views, u)

    def strengthen(self, pixels: Tensor, random: torch.Generator) -> Tensor:
        """A strong view: photometric changes of uint8 (B, 3, S, S), each image on its own."""
        return self.recipe(pixels, random)

    # ------------------------------------------------------------------ labels

    @torch.no_grad()
    def probabilities(self, network: Any, x: Tensor) -> Tensor:
        """softmax of a network's logits at the crop's size, (B, C, S, S), without gradient."""
        return self.run(network, x).logits.softmax(1)

    def teach(self, x: Tensor) -> Tensor:
        """The teacher's probabilities (B, C, S, S); without a teacher the student's own."""
        if self.teacher is not None:
            return self.probabilities(self.teacher.module, x)
        return self.ask(self.network, x)

    def ask(self, network: Any, x: Tensor) -> Tensor:
        """Probabilities (B, C, S, S) of a network that learns too, in the mode that `teacher_mode` says.

        Its batch norms alone can be in training mode: dropout would fall on labels.
        """
        with self.plain(network):
            if self.config.teacher_mode == "eval":
                network.eval()
            return self.probabilities(network, x)

    @contextmanager
    def plain(self, network: Any) -> Iterator[None]:
        """For passes that label, whether or not they learn too: batch norm in training mode, no dropout."""
        train_norms(network, network.encoder if self.config.freeze_norm else None)
        yield
        self.train_mode(network)

    def run_plain(self, x: Tensor) -> Output:
        """Forward pass that learns and labels at once."""
        with self.plain(self.network):
            return self.run(self.network, x)

    def pseudo_labels(self, q: Tensor, valid: Tensor, threshold: float = 0.0) -> LabelMap:
        """The likeliest class of each pixel with its probability; valid inside the photograph from the threshold on."""
        return LabelMap.from_probs(q, threshold).restrict(valid)

    def ramp(self, step: int) -> float:
        """lambda(t): 0 before `start`, then growing over `ramp_up`, 1 afterwards, times `weight`."""
        c, t = self.config, step / max(1, self.steps)
        if t < c.start:
            return 0.0
        grown = (t - c.start) / c.ramp_up if c.ramp_up > 0 else 1.0
        return float(c.weight * (math.exp(-5 * (1 - grown) ** 2) if grown < 1 else 1.0))

    # ------------------------------------------------------------------ the step

    def unsupervised(self, batch: SemiBatch, step: int) -> dict[str, Tensor]:
        """L_u under the name `u`, and whatever else is worth recording. Methods write it."""
        raise NotImplementedError

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x + lambda(t) L_u."""
        loss_x = self.supervised(self.run(self.network, batch.x), batch.y)
        if self.ramp(step) == 0:
            return {"loss": loss_x, "x": loss_x}
        terms = self.unsupervised(batch, step)
        return {"loss": loss_x + self.ramp(step) * terms["u"], "x": loss_x, **terms}

    def after_step(self, step: int) -> None:
        """The teacher follows; the held-out images are looked at."""
        if self.teacher is not None:
            self.follow(self.teacher, self.network, step)
        super().after_step(step)

    def follow(self, teacher: EMATeacher, student: nn.Module, step: int) -> None:
        """The teacher averages the student from the step on at which the unsupervised loss sets in; before, it is a
        copy."""
        teacher.update(student)
        if self.config.weight > 0 and self.ramp(step) == 0:
            teacher.updates = 0


class SemiMethod(NetworkMethod):
    """A method on masks and unlabelled photographs with one training stage."""

    @property
    def result(self) -> str:  # type: ignore[override]
        """Student or teacher, as configured; the student where there is no teacher."""
        trainer: Any = self.trainer
        return "teacher" if self.config.final == "teacher" and trainer.has_teacher else "network"


def share_confident(labels: LabelMap, threshold: float) -> Tensor:
    """Share of an image's valid pixels whose confidence is at least the threshold, (B,)."""
    sure = (labels.confidence >= threshold) & labels.valid
    return sure.flatten(1).sum(1) / labels.valid.flatten(1).sum(1).clamp(min=1)

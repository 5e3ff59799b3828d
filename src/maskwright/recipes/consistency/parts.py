"""Parts of methods that learn from labelled and unlabelled photographs side by side.

    labelled crops x with labels y             -> L_x, the supervised loss
    unlabelled photograph -> one random crop   -> weak view w
    photometric changes of the same crop       -> strong views s1, s2, ...
    teacher (EMA of the student, or itself)    -> probabilities on w -> label map with confidence and validity
    mixing                                     -> strong views and label maps by the same masks
    student on the mixed views                 -> L_u

A method's file holds the parts that its paper has and writes the step with them. Pseudo-labels are label maps: ids,
confidence and validity go through every mix together.

Legend: B batch, C classes, S crop side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from maskwright.data.training.augment import photometric
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.streams import Joined, Stream
from maskwright.engine.distributed import sampler, world_size
from maskwright.recipes.consistency.options import RampOptions, SemiConfig
from maskwright.recipes.consistency.teacher_options import TeacherOptions
from maskwright.recipes.ema import EMATeacher
from maskwright.recipes.training.forward import Forward, Output
from maskwright.recipes.training.setup import NetworkSetup

SECOND = 0x9E3779B97F4A7C15
"""Added to the seed for the order of the unlabelled images: far from any seed that a user gives."""
DONORS = 0x5851F42D4C957F2D
"""Likewise for images that others are mixed with and that have an order of their own."""


# ---------------------------------------------------------------------- the unlabelled stream


def unlabeled_images(setup: NetworkSetup, which: str) -> list[int]:
    """The images that are used without their labels; never those held out.

    Args:
        setup: whose labelled images, and held ones, these are not.
        which: `rest` or `all`, as the options have it.
    """
    held, everything = set(setup.held), range(len(setup.context.data))
    free = [i for i in everything if i not in held]
    if which == "all":
        return free
    labeled = set(setup.labels.indices)
    return [i for i in free if i not in labeled] or free


def unlabeled_stream(setup: NetworkSetup, strong_views: int = 1, donors: bool = False) -> Stream:
    """The photographs without labels, in an order of their own.

    Args:
        setup: of the method, with a `SemiConfig`.
        strong_views: of each crop.
        donors: as many images again follow in each batch, from a third order.
    """
    c: SemiConfig = setup.config
    images = unlabeled_images(setup, c.unlabeled.images)
    order = sampler(setup.context.seed, len(images), c.unlabeled_batch, SECOND)
    both = Joined(order, sampler(setup.context.seed, len(images), c.unlabeled_batch, DONORS)) if donors else order
    change = photometric(c.unlabeled.strong) if strong_views else None
    return setup.stream(images, both, change=change, strong_views=strong_views)


def note_unmixed(setup: NetworkSetup) -> None:
    """Says so where unlabelled crops are to be mixed with one another and a process has but one in a step."""
    share = setup.config.unlabeled_batch // world_size()
    if share < 2:
        setup.context.note(
            f"{share} unlabelled crop in a step of each process has no other to be mixed with: nothing is mixed; "
            f"--set batch_unlabeled={2 * world_size()} mends it."
        )


# ---------------------------------------------------------------------- the weight of the loss


class Ramp:
    """lambda(t): 0 before `start`, then growing over `up` as exp(-5 (1 - t)^2), 1 afterwards, times `weight`.

    Args:
        options: the shares and the weight.
        steps: of the stage.
    """

    def __init__(self, options: RampOptions, steps: int) -> None:
        self.options, self.steps = options, steps

    def __call__(self, step: int) -> float:
        """The weight at a step."""
        o, t = self.options, step / max(1, self.steps)
        if t < o.start:
            return 0.0
        grown = (t - o.start) / o.up if o.up > 0 else 1.0
        return float(o.weight * (math.exp(-5 * (1 - grown) ** 2) if grown < 1 else 1.0))

    def waits(self, step: int) -> bool:
        """Whether a loss that will count does not count yet."""
        return self.options.weight > 0 and self(step) == 0


# ---------------------------------------------------------------------- who labels


class Teacher:
    """An EMA teacher that labels: its average, its policies, and its passes in the student's precision.

    It is a copy of the student until the unsupervised loss sets in: it averages none of the iterates that were too poor
    to label.

    Args:
        student: the network that it follows.
        options: momentum and policies.
        mode: of its batch norm; the options' if None.
    """

    def __init__(self, student: Forward, options: TeacherOptions, mode: Literal["eval", "train"] | None = None) -> None:
        self.student = student
        self.average = follower(student.network, options, mode)

    @classmethod
    def of(cls, setup: NetworkSetup, mode: Literal["eval", "train"] | None = None) -> Teacher:
        """The teacher of a setup with `TeacherOptions`, in its checkpoint, and kept where the options say so."""
        options: TeacherOptions = setup.config.teacher
        teacher = cls(setup.student, options, mode)
        setup.modules["teacher"] = teacher.average
        if options.final == "teacher":
            setup.kept = teacher.average.module
        return teacher

    @property
    def network(self) -> nn.Module:
        """The averaged network."""
        return self.average.module

    @torch.no_grad()
    def run(self, x: Tensor) -> Output:
        """Its pass over crops (B, 3, S, S)."""
        return self.student.through(self.average.module, x)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Probabilities (B, C, S, S) of crops (B, 3, S, S), without gradient."""
        return self.run(x).logits.softmax(1)

    def follow(self, waits: bool) -> None:
        """Averages the student's new weights.

        Args:
            waits: whether the unsupervised loss has not set in; the average is then a copy.
        """
        follow(self.average, self.student.network, waits)


def follower(module: nn.Module, options: TeacherOptions, mode: Literal["eval", "train"] | None = None) -> EMATeacher:
    """The EMA of a module under the options' policies."""
    return EMATeacher(module, options.ema, options.buffers, mode or options.mode)  # type: ignore[arg-type]


def follow(average: EMATeacher, module: nn.Module, waits: bool) -> None:
    """One update; a copy where the average still waits."""
    average.update(module)
    if waits:
        average.updates = 0


def pseudo_labels(q: Tensor, valid: Tensor, threshold: float = 0.0) -> LabelMap:
    """The likeliest class of each pixel with its probability; valid inside the photograph from the threshold on.

    Args:
        q: probabilities (B, C, S, S).
        valid: bool (B, S, S).
        threshold: least confidence of a valid pixel.
    """
    return LabelMap.from_probs(q, threshold).restrict(valid)


def share_confident(labels: LabelMap, threshold: float) -> Tensor:
    """Share of an image's valid pixels whose confidence is at least the threshold, (B,)."""
    sure = (labels.confidence >= threshold) & labels.valid
    return sure.flatten(1).sum(1) / labels.valid.flatten(1).sum(1).clamp(min=1)


def joined(maps: Sequence[LabelMap]) -> LabelMap:
    """Label maps (B_k, S, S), one after the other."""
    return LabelMap(
        torch.cat([m.ids for m in maps]),
        torch.cat([m.confidence for m in maps]),
        torch.cat([m.valid for m in maps]),
    )

"""DACS: Domain adaptation via cross-domain mixed sampling, Tranheden et al., WACV 2021,
https://arxiv.org/abs/2007.08702

    maskwright train TARGET --source SOURCE --method dacs

Half of the classes of labelled source photographs are pasted onto photographs of the target. What is pasted keeps its
label; around it an EMA teacher's labels of the target stand, weighed by how sure it is:

    s, y labelled source crops; t target crops; M = [y in C], C half of the classes of the batch, rounded up
    k = argmax p_teacher(t),  q = share of the target pixels with max p_teacher >= 0.968
    x_m = A(M s + (1 - M) t),  y_m = M y + (1 - M) k,  w = M + (1 - M) q
    L = CE(f(s), y) + lambda mean_i w_i CE(f(x_m)_i, y_mi)

A changes colours and blurs. No label of the target is read. What came after it are options, all off where they are not
asked for:

    rare.temperature=0.01       rare class sampling of DAFormer, Hoyer et al., CVPR 2022, https://arxiv.org/abs/2111.14887
    things.distance=0.005       its feature distance: + 0.005 mean_i |f(s)_i - f0(s)_i|_2 over cells of things, f0 the
                                encoder as training began; `things.classes` names what is a thing
    masked.consistency=1        masked consistency of MIC, Hoyer et al., CVPR 2023, https://arxiv.org/abs/2212.01322:
                                + q mean_i CE(f(K A(t))_i, k_i), K zero in a share 0.7 of square cells

Deviates: each mixed crop has colour changes of its own, where the authors draw them once a batch. Pixels without a
label or outside the photograph count for neither q nor the loss, but in the mean's denominator, as there. The authors
leave out the teacher's labels of the first and last rows, where Cityscapes shows sky and bonnet: here no row is
special. Optimiser, rates, crops and steps are those that all methods here share; batch-norm statistics are taken from
the target's photographs once training is over. f0 has its batch norm in the mode of f's, so that both are equal at the
start. MIC's cells are whole squares also where they do not divide the crop, by default of a sixteenth of its side.
What the originals get wrong: void (255) is one of the classes that are drawn, so that holes are pasted too; q is one
number for a batch, so that one sure crop vouches for an unsure one (kept). DAFormer's feature distance is NaN where no
thing is in a batch; here it is 0. They report the best iterate on the images that they are judged on; here it is the
last, or the best on held-out source images (`holdout`).

Legend: B crops, C classes, S crop side.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from maskwright.data.training.augment import photometric
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.mixing import class_mask, mix, patch_mask
from maskwright.data.training.sources import Labels
from maskwright.data.training.streams import Views
from maskwright.engine.config import Idle, option, part
from maskwright.engine.distributed import sampler
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError, unknown
from maskwright.ops.losses.feature_distance import class_cells, feature_distance
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.ops.transfer import to_device
from maskwright.recipes.adaptation import SourceMethod, TargetConfig
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, RampOptions, UnlabeledOptions
from maskwright.recipes.consistency.parts import SECOND, Ramp, Teacher, pseudo_labels
from maskwright.recipes.consistency.teacher_options import TeacherOptions
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.forward import Output
from maskwright.recipes.training.norm_statistics import train_norms
from maskwright.recipes.training.rare_classes import RareClasses, RareOptions
from maskwright.recipes.training.setup import NetworkSetup

CELLS = 16
"""Masked cells along a crop's side: 32 of 512 pixels, 64 of 1,024."""


@dataclass(kw_only=True)
class ThingOptions:
    """The feature distance of DAFormer."""

    distance: float = option(0.0, "weight of the feature distance; DAFormer 0.005; 0: none", low=0)
    classes: tuple[str, ...] = option((), "names of the classes that are things, joined by commas")
    share: float = option(0.75, "share of a cell's pixels that one thing must have", low=0.501, high=1)

    def check(self) -> None:
        """Raises `MaskwrightError` where nobody said what is a thing."""
        if self.distance and not self.classes:
            raise MaskwrightError(
                f"distance={self.distance:g}, and no class is called a thing",
                "names of classes with a shape of their own",
                "add --set things.classes=car,person",
            )


@dataclass(kw_only=True)
class MaskedOptions:
    """The masked consistency of MIC."""

    consistency: float = option(0.0, "weight of the loss on masked target crops; MIC 1; 0: none", low=0, main=True)
    ratio: float = option(0.7, "chance of a cell to be masked", low=0, high=1)
    cell: int = option(0, "side of a cell, pixels; 0: a sixteenth of the crop's", low=0)


@dataclass(kw_only=True)
class DACSConfig(TargetConfig):
    """Options of `dacs`."""

    target: UnlabeledOptions = part(
        UnlabeledOptions, without=("images",), strong="dacs",
        says={
            "batch": "crops of the target in a step; 0: as many as of the source",
            "strong": "photometric recipe of the mixed crops",
        },
    )  # fmt: skip
    teacher: TeacherOptions = part(TeacherOptions, mode="train", main=("final",))
    ramp: RampOptions = part(RampOptions, says={"weight": "lambda, weight of the loss on mixed crops"})
    rare: RareOptions = part(RareOptions)
    things: ThingOptions = part(ThingOptions)
    masked: MaskedOptions = part(MaskedOptions)
    threshold: float = option(0.968, "probability from which on the teacher counts as sure", low=0, high=1, main=True)

    def check(self) -> None:
        """Raises `MaskwrightError` where two options choose the source's photographs."""
        if self.rare.temperature and self.crops.sample == "classes":
            raise MaskwrightError(
                f"crops.sample=classes and rare.temperature={self.rare.temperature:g}", "one of the two",
                "leave one of them out: both choose the photographs of the source by their classes",
            )  # fmt: skip

    def idle(self) -> Idle:
        """Options of what came after it, where that is not asked for, and of a loss that does not weigh."""
        yield from super().idle()
        if self.ramp.weight == 0:
            yield ("ramp.up", "ramp.start", "threshold", "target", "masked", *self.teacher.unasked), NOTHING_UNLABELED
        if not self.rare.temperature:
            yield ("rare.pixels",), "rare.temperature=0"
        if not self.things.distance:
            yield ("things.classes", "things.share"), "things.distance=0"
        if not self.masked.consistency:
            yield ("masked.ratio", "masked.cell"), "masked.consistency=0"


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


def masked_loss(logits: Tensor, k: LabelMap, q: Tensor) -> Tensor:
    """q mean_i CE(f(K A(t))_i, k_i) over all pixels: MIC's.

    Args:
        logits: of the masked crops (B, C, S, S).
        k: the teacher's labels of the whole ones (B, S, S).
        q: their weight, a number.
    """
    return q * cross_entropy(logits, k.target(IGNORE), ignore=IGNORE, denominator="all")


def ids_of(names: tuple[str, ...], known: tuple[str, ...]) -> list[int]:
    """The ids of classes by their names.

    Raises:
        MaskwrightError: the run has no such class.
    """
    for name in names:
        if name not in known:
            raise unknown("class in things.classes", name, known)
    return [known.index(name) for name in names]


def frozen_copy(encoder: nn.Module, statistics: bool) -> Any:
    """A copy of an encoder that never learns; its batch norm takes the statistics of the batch, or keeps its own."""
    kept = copy.deepcopy(encoder).eval().requires_grad_(False)
    if statistics:
        train_norms(kept)
    return kept


class DACSTraining(Training):
    """Student on source and mixed crops, teacher on those of the target."""

    setup: NetworkSetup

    def __init__(self, context: Any, config: DACSConfig, labels: Labels, steps: int, **options: Any) -> None:
        setup = NetworkSetup(context, config, labels, steps, name="s", **options)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.supervised = setup.student, setup.supervised
        self.crop, self.device = setup.crop, setup.device
        c, images = self.config, range(len(context.data))
        order = sampler(context.seed, len(images), c.target.batch or c.crops.batch, SECOND)
        setup.streams["t"] = setup.stream(images, order)
        self.change = photometric(c.target.strong)
        self.teacher = Teacher.of(setup)
        self.ramp = Ramp(c.ramp, steps)
        if c.rare.temperature:
            rare = RareClasses(setup.labels, context.classes, c.rare, setup.crops)
            indices, chances = setup.labels.indices, rare.chances
            order = sampler(context.seed, len(indices), c.crops.batch, chances=chances)
            setup.streams["s"] = setup.stream(indices, order, setup.labels, data=setup.labels.data, choose=rare)
        self.things = ids_of(c.things.classes, context.table.names)
        self.start: Any = frozen_copy(setup.network.encoder, not c.norms.freeze) if c.things.distance else None
        self.cell = c.masked.cell or max(1, setup.crop // CELLS)

    def batch(self, indices: Any, random: torch.Generator) -> dict[str, Any]:
        """Source and target crops, and crops mixed of them, x_m (B, 3, S, S) with M bool (B, S, S), B the lesser of
        both numbers of crops; of masked consistency the target crops with other colours, and K bool (B, S, S)."""
        c = self.config.masked
        views = self.setup.streams.draw(indices, random)
        s, t = views["s"], views["t"]
        n = min(len(s.weak), len(t.weak))
        mask = class_mask(s.y[:n], rule="ceil", pool="batch", generator=random)
        x_m = self.change(mix(s.weak[:n], t.weak[:n], mask), random)
        batch = {**views, "m": (x_m, mask)}
        if c.consistency:
            kept = patch_mask(len(t.weak), (self.crop, self.crop), block=self.cell, ratio=c.ratio, generator=random)
            batch["k"] = (self.change(t.weak, random), kept)
        return batch

    def on_device(self, batch: Any) -> dict[str, Any]:
        """Views and mixed crops as the network's input."""
        pairs = {name: batch[name] for name in ("m", "k") if name in batch}
        views = {name: self.setup.prepared(batch[name]) for name in ("s", "t")}
        as_input = self.setup.normalise
        return {**views, **{n: (as_input(x), to_device(mask, self.device)) for n, (x, mask) in pairs.items()}}

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_s + distance L_FD + lambda(t) (L_m + consistency L_K)."""
        c, s, t, (x_m, mask), lam = self.config, batch["s"], batch["t"], batch["m"], self.ramp(step)
        out = self.student(s.weak)
        loss_s = self.supervised(out, s.y)
        terms, loss = {"s": loss_s}, loss_s
        if self.start is not None:
            terms["fd"] = self.distance(out, s)
            loss = loss + c.things.distance * terms["fd"]
        if lam == 0:
            return {"loss": loss, **terms}
        k, n = pseudo_labels(self.teacher(t.weak), t.valid), len(mask)
        q = sure_share(k, c.threshold)
        terms["m"] = mixed_loss(self.student(x_m).logits, s.y[:n], k[:n], mask, q)
        loss = loss + lam * terms["m"]
        if "k" in batch:
            x_a, kept = batch["k"]
            terms["k"] = masked_loss(self.student(x_a * kept[:, None]).logits, k, q)
            loss = loss + lam * c.masked.consistency * terms["k"]
        return {"loss": loss, **terms, "q": q}

    def distance(self, out: Output, s: Views) -> Tensor:
        """L_FD of the source crops' deepest features and those of the encoder as training began."""
        f = out.features[-1]
        with torch.no_grad(), self.student.autocast():
            f0 = self.start(s.weak)[-1]
        cells = class_cells(
            s.y.target(IGNORE), self.things, (f.shape[-2], f.shape[-1]), self.config.things.share, ignore=IGNORE
        )
        return feature_distance(f, f0, cells)

    def after_step(self, step: int) -> None:
        """The teacher follows; the held-out images are looked at."""
        self.teacher.follow(self.ramp.waits(step))
        super().after_step(step)


class DACS(SourceMethod):
    """Source classes pasted onto the target."""

    name: ClassVar[str] = "dacs"
    title: ClassVar[str] = "DACS: Domain adaptation via cross-domain mixed sampling"
    venue: ClassVar[str] = "Tranheden et al., WACV 2021"
    link: ClassVar[str] = "https://arxiv.org/abs/2007.08702"
    summary: ClassVar[str] = "Pastes a source's classes onto the target."
    Config: ClassVar[type] = DACSConfig
    trainer: ClassVar[type[Training]] = DACSTraining
    says: ClassVar[str] = "a network on source crops and on their classes pasted into the target"

    @property
    def result(self) -> str:
        """Student or teacher, as configured."""
        return self.config.teacher.kept

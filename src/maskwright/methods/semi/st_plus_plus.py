"""ST++: Make self-training work better for semi-supervised semantic segmentation, Yang et al., CVPR 2022,
https://arxiv.org/abs/2106.05095

Self-training in stages, each with its artefacts. What makes the student more than its teacher are strong changes of the
pseudo-labelled photographs, and of these alone; what makes ST++ more than ST (`plus=false`) is that photographs are
trusted in order of reliability:

    teacher   train on D_l, keep the networks at 1/3, 2/3 and 3/3 of the steps
    rank      r(x) = mean over the earlier networks of mIoU(argmax T_k(x), argmax T_K(x)); the upper half is reliable
    label     T labels the reliable half
    first     a new network on D_l and the reliable half
    relabel   it labels the other half
    retrain   a new network on D_l and everything

`class_balanced=true` keeps the same portion of each predicted class (CBST, Zou et al., ECCV 2018,
https://arxiv.org/abs/1810.07911): lam_c is the confidence that this portion of the pixels predicted as c reach, a label
is argmax_c p_c / lam_c, and there is none where p_c / lam_c < 1.

Deviates: the steps that are given are those of all trainings together, divided by `teacher_share` and `first_share`, so
that the method can be compared at an equal number of optimiser steps, which starves its teacher: without a number there
are three times as many as for the other methods (the paper gives each network a whole schedule); a step of retraining
has `batch` labelled and `batch_unlabeled` pseudo-labelled crops, the half and half that the paper gets by repeating the
labelled list. Labels are by default predicted at one scale and mirrored (`scales` for more). A new network's encoder
starts from the pretrained weights, as in the paper, its head from weights of its stage's own seed. Where every image
has a mask, the photographs of the labelled images are pseudo-labelled as if they had none. The reliable half is rounded
up. CBST's lam_c is that of the half that a network labels, not of all photographs. Optimiser, rates and crops are those
that all methods here share, where the authors have SGD with ten times the rate for the head.
What the original gets wrong: its teacher is the epoch that is best on the validation set which it reports; here it is
the last iterate, or the best on held-out labelled images (`holdout`).

Legend: B batch, C classes, S crop side, (H, W) image size, T teacher, K = 3 of its networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.augment import erase, photometric
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.mixing import unimatch_box
from maskwright.data.training.sources import BothLabels, Labels, StoredLabels
from maskwright.data.training.streams import Stream, Views
from maskwright.data.trust.artefacts import write_record
from maskwright.engine.checkpoint import load_checkpoint, load_part, save_checkpoint
from maskwright.engine.config import Idle, option, part
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import barrier, sampler, share
from maskwright.engine.loop import Training
from maskwright.engine.needs import Terms
from maskwright.errors import MaskwrightError
from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.evaluate.metrics import miou
from maskwright.models.networks.build import Network
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.consistency.options import UnlabeledOptions
from maskwright.recipes.consistency.parts import SECOND, joined
from maskwright.recipes.self_training.labelling import LABELS, Labelling
from maskwright.recipes.training.forward import precision_of
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.network import make_network, make_segmenter, trained_network
from maskwright.recipes.training.options import NetworkConfig, NormOptions
from maskwright.recipes.training.selection import hold_out
from maskwright.recipes.training.setup import NetworkSetup
from maskwright.recipes.training.training import NetworkTraining

SNAPSHOTS = 3
"""K: the last of them is the teacher itself."""
RANKING = "ranking.json"
CHUNK = 64
"""Images whose reliability is kept in one file; no kill costs more of them."""


@dataclass(kw_only=True)
class STPlusPlusConfig(NetworkConfig):
    """Options of `st_plus_plus`."""

    norms: NormOptions = part(NormOptions, without=("photographs",), photographs="all")  # the students look at all
    unlabeled: UnlabeledOptions = part(
        UnlabeledOptions, strong="st_plus_plus",
        says={
            "batch": "pseudo-labelled crops in a step; 0: as many as labelled ones",
            "strong": "photometric recipe of the pseudo-labelled crops",
        },
    )  # fmt: skip
    steps: int = option(
        6000,
        "optimiser steps of all trainings where --steps does not say: three times the other methods'",
        low=1,
        main=True,
    )
    plus: bool = option(True, "trust reliable photographs first (ST++); false: all at once (ST)", main=True)
    teacher_share: float = option(0.25, "share of the steps that the teacher trains for", low=0.01, high=0.98)
    first_share: float = option(
        0.25, "ST++: share of the steps of the first retraining; the last has the rest", low=0.01, high=0.98
    )
    reliable: float = option(
        0.5, "ST++: share of the unlabelled images that count as reliable", low=0, high=1, main=True
    )
    cutout: float = option(0.5, "chance that a pseudo-labelled crop gets a box of noise without a label", low=0, high=1)
    flips: bool = option(True, "label with the mean over the photograph and its mirror image")
    scales: tuple[float, ...] = option((1.0,), "label with the mean over these input sizes", low=0.1, high=4)
    class_balanced: bool = option(False, "keep the same portion of each predicted class (CBST)")
    portion: float = option(0.5, "CBST: that portion; the papers go from 0.2 to 0.5", low=0, high=1)

    def check(self) -> None:
        """Raises `MaskwrightError` on shares that leave nothing, and without a scale."""
        if self.plus and self.teacher_share + self.first_share >= 1:
            raise MaskwrightError(
                f"teacher_share={self.teacher_share} and first_share={self.first_share}", "less than 1 together"
            )
        if not self.scales:
            raise MaskwrightError("scales is empty", "at least one scale", "leave it out for 1.0")

    def idle(self) -> Idle:
        """Options of the order of photographs, and of CBST, where they are not asked for."""
        yield from super().idle()
        if not self.plus:
            yield ("first_share", "reliable"), "plus=false"
        if not self.class_balanced:
            yield ("portion",), "class_balanced=false"


def split_steps(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers of steps that add up to the total, each at least 1 even where the total is below their number.

    Args:
        total: steps of all trainings together.
        shares: of all trainings but the last, which gets the rest.
    """
    steps, left = [], total
    for k, share_of in enumerate(shares):
        steps.append(max(1, min(round(share_of * total), left - (len(shares) - k))))
        left -= steps[-1]
    return [*steps, max(1, left)]


def snapshot_steps(steps: int) -> list[int]:
    """How many steps are done when each of the K networks is kept, the last at the end."""
    return [-(-k * steps // SNAPSHOTS) for k in range(1, SNAPSHOTS + 1)]


def stability(earlier: np.ndarray, last: np.ndarray, classes: int) -> float:
    """mIoU of two predictions of one image, over the classes that either has; 1 for equal ones.

    Args:
        earlier: ids (H, W).
        last: ids (H, W).
        classes: C.
    """
    matrix = ConfusionMatrix(classes, classes)
    matrix.update(np.ascontiguousarray(earlier), np.ascontiguousarray(last))
    return miou(matrix.counts)


def split_by_reliability(scores: dict[str, float], portion: float) -> tuple[list[str], list[str]]:
    """Names of the images from the most to the least reliable, cut in two; equals in order of their names.

    Args:
        scores: r by name.
        portion: of the first part, rounded up; at least one image.
    """
    order = sorted(scores, key=lambda name: (-scores[name], name))
    count = min(len(order), max(1, int(np.ceil(portion * len(order) - 1e-9))))
    return order[:count], order[count:]


class TeacherTraining(NetworkTraining):
    """Supervised training that leaves its earlier networks.

    Args:
        folder: of the stage.
        args: as for `NetworkTraining`.
        kwargs: likewise.
    """

    def __init__(self, folder: Path, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.folder = folder

    def after_step(self, step: int) -> None:
        """Keeps the network at each third but the last, whose network is the stage's checkpoint."""
        for k, when in enumerate(snapshot_steps(self.setup.steps)[:-1], 1):
            if step + 1 == when and self.setup.context.run.writes:
                save_checkpoint(self.folder / f"snapshot_{k}.pt", {"network": self.setup.network.state_dict()})
        super().after_step(step)


class StrongStream:
    """Pseudo-labelled crops with strong changes: of their colours, then a box of noise that has no label.

    Args:
        photographs: the stream of pseudo-labelled crops.
        strong: photometric recipe.
        cutout: chance of a crop to get a box.
    """

    def __init__(self, photographs: Stream, strong: str, cutout: float) -> None:
        self.photographs, self.order = photographs, photographs.order
        self.recipe, self.cutout = photometric(strong), cutout

    def next(self) -> np.ndarray:
        """Indices of this process's share of the next batch."""
        return self.photographs.next()

    def strengthen(self, pixels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Photometric changes, then a box of noise.

        Args:
            pixels: uint8 (B, 3, S, S).
            random: source of all draws.

        Returns:
            New crops, and bool (B, S, S), where the box lies.
        """
        strong, size = self.recipe(pixels, random), (pixels.shape[-2], pixels.shape[-1])
        box = unimatch_box(len(pixels), size, p=self.cutout, redraw=True, generator=random)
        return erase(strong, box, "noise", random), box

    def draw(self, images: Sequence[int], random: torch.Generator) -> Views:
        """Crops whose pseudo-labels count fully or not at all: what the teacher said is not weighed."""
        views = self.photographs.draw(images, random)
        strong, box = self.strengthen(views.weak, random)
        y = views.y.restrict(~box)
        return views._replace(
            weak=strong, labels=LabelMap(y.ids, torch.ones_like(y.confidence), y.valid), valid=y.valid
        )


class RetrainTraining(Training):
    """Labelled crops as ever and pseudo-labelled crops with strong changes, in one batch.

    Args:
        pseudo: labels of the pseudo-labelled images.
        args: as for `NetworkTraining`.
        kwargs: likewise.
    """

    def __init__(self, pseudo: Labels, *args: Any, **kwargs: Any) -> None:
        setup = NetworkSetup(*args, **kwargs)
        super().__init__(setup)
        self.student, self.supervised = setup.student, setup.supervised
        c = setup.config
        order = sampler(setup.context.seed, len(pseudo.indices), c.unlabeled.batch or c.crops.batch, SECOND)
        photographs = setup.stream(pseudo.indices, order, pseudo)
        setup.streams["u"] = StrongStream(photographs, c.unlabeled.strong, c.cutout)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x over labelled and pseudo-labelled crops together."""
        x, u = batch["x"], batch["u"]
        crops = torch.cat([x.weak, u.weak]).contiguous(memory_format=torch.channels_last)
        return {"loss": self.supervised(self.student(crops), joined([x.y, u.y]))}


class STPlusPlus(NetworkMethod):
    """Offline self-training, with photographs in order of reliability."""

    name: ClassVar[str] = "st_plus_plus"
    title: ClassVar[str] = "ST++: Make self-training work better for semi-supervised semantic segmentation"
    venue: ClassVar[str] = "Yang et al., CVPR 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2106.05095"
    summary: ClassVar[str] = "Retrains on the most reliable labels first."
    family: ClassVar[str] = "semi"
    Config: ClassVar[type] = STPlusPlusConfig

    def stages(self) -> list[Stage]:
        """Three for ST, six for ST++."""
        teacher = Stage("teacher", "train", self.train_teacher, "a teacher on the masks", self.steps_of("teacher"))
        last = self.steps_of("retrain")
        if not self.config.plus:
            return [
                teacher,
                Stage("label", "label", self.label_all, "pseudo-labels of all unlabelled photographs"),
                Stage("retrain", "train", self.retrain, "a new network on masks and pseudo-labels", last),
            ]
        first = self.steps_of("first")
        return [
            teacher,
            Stage("rank", "fit", self.rank, "the photographs on which the teacher did not change its mind"),
            Stage("label", "label", self.label_reliable, "pseudo-labels of the reliable photographs"),
            Stage("first", "train", self.train_first, "a new network on masks and reliable pseudo-labels", first),
            Stage("relabel", "label", self.relabel, "its labels of the other photographs"),
            Stage("retrain", "train", self.retrain, "a new network on masks and all pseudo-labels", last),
        ]

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """The last network learns what the first ones wrote."""
        fixed = "its trainings follow one another, and the later ones learn what the earlier ones wrote"
        return replace(super().terms(config, images), fixed=fixed)

    # ------------------------------------------------------------------ what is trained on what

    def folder(self, stage: str) -> Path:
        """Where a stage's artefacts lie."""
        return self.context.run.path / stage

    def steps_of(self, stage: str) -> int:
        """A training's part of all steps."""
        c = self.config
        total = self.context.steps or c.steps
        trainings = ["teacher", "first", "retrain"] if c.plus else ["teacher", "retrain"]
        shares = [c.teacher_share, c.first_share] if c.plus else [c.teacher_share]
        return split_steps(total, shares)[trainings.index(stage)]

    def unlabeled(self) -> list[int]:
        """The images that get pseudo-labels, never those that are held out; all where every image has a mask."""
        everything, masks = range(len(self.context.data)), self.labels()
        _, held = hold_out(masks, self.config.holdout, self.context.seed)
        labeled = set(masks.indices)
        rest = [i for i in everything if i not in labeled] if self.config.unlabeled.images == "rest" else []
        return rest or [i for i in everything if i not in held]

    def stored(self, stage: str) -> StoredLabels:
        """The pseudo-labels that a stage wrote."""
        return StoredLabels(self.context.data, LabelStore(self.folder(stage) / LABELS, self.context.table))

    def train_teacher(self, folder: Path) -> None:
        """T, and its networks at 1/3 and 2/3 of its steps."""
        steps = self.steps_of("teacher")
        training = TeacherTraining(folder, self.context, self.config, self.labels(), steps, stage="teacher")
        self.context.fit(training, "teacher", folder, steps)

    def train_first(self, folder: Path) -> None:
        """S1, on masks and reliable pseudo-labels."""
        self.train_student(folder, self.stored("label"))

    def retrain(self, folder: Path) -> None:
        """S, on masks and all pseudo-labels."""
        pseudo: Labels = self.stored("label")
        if self.config.plus and self.ranking()["unreliable"]:
            pseudo = BothLabels(pseudo, self.stored("relabel"))
        self.train_student(folder, pseudo)

    def train_student(self, folder: Path, pseudo: Labels) -> None:
        """A new network; its stage's name seeds its head."""
        steps = self.steps_of(folder.name)
        training = RetrainTraining(pseudo, self.context, self.config, self.labels(), steps, stage=folder.name)
        self.context.fit(training, folder.name, folder, steps)

    # ------------------------------------------------------------------ reliability

    def teachers(self) -> list[Network]:
        """T_1 to T_K; the last is that of the last step also where `holdout` chose another to label."""
        folder, found = self.folder("teacher"), []
        for k in range(1, SNAPSHOTS):
            path = folder / f"snapshot_{k}.pt"
            state = load_checkpoint(path)
            if state is None:
                raise MaskwrightError(
                    f"the teacher left no {path.name}",
                    str(path),
                    f"delete its folder {folder} and repeat the command with --resume",
                )
            network = make_network(self.context, self.config)
            load_part(network, state, "network", path)
            found.append(network.eval())
        return [*found, trained_network(self.context, self.config, folder, chosen=False)]

    def rank(self, folder: Path) -> None:
        """Writes ranking.json: r of each unlabelled image, and the names of the reliable and the unreliable ones."""
        context = self.context
        segmenters = [self.as_segmenter(network) for network in self.teachers()]
        images = self.unlabeled()
        chunks = [images[k : k + CHUNK] for k in range(0, len(images), CHUNK)]
        files = [folder / "reliability" / f"{k:06d}.json" for k in range(len(chunks))]
        for chunk, file in share(list(zip(chunks, files))):
            if not file.exists():
                found = {context.data.items[i].name: self.reliability(segmenters, i) for i in chunk}
                write_record(file, {"reliability": found})
        barrier()
        scores: dict[str, float] = {}
        for file in files:
            at = file.relative_to(folder).as_posix()
            scores |= context.run.artefact("rank", at, {"reliability": {str: float}})["reliability"]
        if scores.keys() != {context.data.items[i].name for i in images}:
            raise MaskwrightError(
                f"{folder} judges other photographs", f"the {len(images)} of this run",
                f"delete {folder} and repeat the command with --resume",
            )  # fmt: skip
        reliable, unreliable = split_by_reliability(scores, self.config.reliable)
        if context.run.writes:
            write_record(folder / RANKING, {"reliable": reliable, "unreliable": unreliable, "reliability": scores})
        barrier()
        mean = [float(np.mean([scores[n] for n in names])) for names in (reliable, unreliable) if names]
        context.note(
            f"Reliability (mIoU of the teacher's earlier networks with its last): {len(reliable)} photographs with "
            f"{mean[0]:.2f} on average" + (f", {len(unreliable)} others with {mean[1]:.2f}." if unreliable else ".")
        )

    def reliability(self, segmenters: Sequence[Segmenter], i: int) -> float:
        """r of image `i`: the mean of the earlier networks' mIoU with the last."""
        image, labelling = self.context.data.image(i), self.labelling
        *earlier, last = (labelling.predict(s, image, plain=True).ids for s in segmenters)
        return float(np.mean([stability(ids, last, self.context.classes) for ids in earlier]))

    def ranking(self) -> dict[str, Any]:
        """What `rank` wrote."""
        return self.context.run.artefact("rank", RANKING, {"reliable": [str], "unreliable": [str]})

    # ------------------------------------------------------------------ pseudo-labels

    def label_all(self, folder: Path) -> None:
        """ST: the teacher labels everything."""
        self.label(folder, "teacher", [self.context.data.items[i].name for i in self.unlabeled()])

    def label_reliable(self, folder: Path) -> None:
        """ST++: the teacher labels the reliable half."""
        self.label(folder, "teacher", self.ranking()["reliable"])

    def relabel(self, folder: Path) -> None:
        """ST++: the first student labels the other half."""
        self.label(folder, "first", self.ranking()["unreliable"])

    def label(self, folder: Path, stage: str, names: Sequence[str]) -> None:
        """The network of a stage labels images."""
        segmenter = self.as_segmenter(trained_network(self.context, self.config, self.folder(stage)))
        self.labelling.label(folder, segmenter, names)

    @property
    def labelling(self) -> Labelling:
        """How networks label, in the precision of their training."""
        c, device = self.config, self.context.device
        portion = c.portion if c.class_balanced else None
        return Labelling(self.context, precision_of(c.precision, device), c.flips, c.scales, portion)

    def as_segmenter(self, network: Network) -> Segmenter:
        """A network ready to predict whole photographs."""
        return make_segmenter(self.context, self.config, network, self.name, range(len(self.context.data)))

    def network(self) -> Network:
        """The last student, from its artefact."""
        return trained_network(self.context, self.config, self.folder("retrain"))

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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.augment import PRESETS, erase, photometric
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.mixing import unimatch_box
from maskwright.data.training.sampler import PairSampler
from maskwright.data.training.sources import BothLabels, Labels, StoredLabels
from maskwright.data.trust.artefacts import write_record
from maskwright.engine.checkpoint import load_checkpoint, load_part, save_checkpoint
from maskwright.engine.config import option
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import all_reduce_sum, barrier, rank, share, world_size
from maskwright.errors import MaskwrightError
from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.evaluate.metrics import miou
from maskwright.models.networks.build import Network
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.losses.thresholds import ClassHistogram, class_balanced_labels
from maskwright.predict.inference import predict_mask, predict_probs
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.segmenting import (
    Batch,
    NetworkConfig,
    NetworkMethod,
    SegmentationTraining,
    make_network,
    make_segmenter,
    precision_of,
    trained_network,
)
from maskwright.recipes.training.selection import hold_out

SNAPSHOTS = 3
"""K: the last of them is the teacher itself."""
RANKING = "ranking.json"
THRESHOLDS = "thresholds.safetensors"
LABELS = "labels"
CHUNK = 64
"""Images whose reliability is kept in one file; no kill costs more of them."""
DS_RATE = 4
"""Each so-many-th row and column counts for CBST's thresholds."""


@dataclass(kw_only=True)
class STPlusPlusConfig(NetworkConfig):
    """Options of `st_plus_plus`."""

    unused: ClassVar[frozenset[str]] = frozenset({"norm_from"})
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
    batch_unlabeled: int = option(0, "pseudo-labelled crops in a step; 0: as many as labelled ones", low=0)
    unlabeled: str = option(
        "rest", "rest: images without masks (all where there are none); all", choices=("rest", "all")
    )
    strong: str = option("st_plus_plus", "photometric recipe of the pseudo-labelled crops", choices=tuple(PRESETS))
    cutout: float = option(0.5, "chance that a pseudo-labelled crop gets a box of noise without a label", low=0, high=1)
    flips: bool = option(True, "label with the mean over the photograph and its mirror image")
    scales: tuple[float, ...] = option((1.0,), "label with the mean over these input sizes", low=0.1, high=4)
    class_balanced: bool = option(False, "keep the same portion of each predicted class (CBST)")
    portion: float = option(0.5, "CBST: that portion; the papers go from 0.2 to 0.5", low=0, high=1)

    def check(self) -> None:
        """Raises `MaskwrightError` on shares that leave nothing, and without a scale."""
        super().check()
        if self.plus and self.teacher_share + self.first_share >= 1:
            raise MaskwrightError(
                f"teacher_share={self.teacher_share} and first_share={self.first_share}", "less than 1 together"
            )
        if not self.scales:
            raise MaskwrightError("scales is empty", "at least one scale", "leave it out for 1.0")


def split_steps(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers of steps that add up to the total, each at least 1 even where the total is below their number.

    Args:
        total: steps of all trainings together.
        shares: of all trainings but the last, which gets the rest.
    """
    steps, left = [], total
    for k, part in enumerate(shares):
        steps.append(max(1, min(round(part * total), left - (len(shares) - k))))
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


class TeacherTraining(SegmentationTraining):
    """Supervised training that leaves its earlier networks.

    Args:
        folder: of the stage.
        args: as for `SegmentationTraining`.
        kwargs: likewise.
    """

    sees_all: ClassVar[bool] = True  # as the method's networks, whose statistics are of all photographs

    def __init__(self, folder: Path, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.folder = folder

    def after_step(self, step: int) -> None:
        """Keeps the network at each third but the last, whose network is the stage's checkpoint."""
        for k, when in enumerate(snapshot_steps(self.steps)[:-1], 1):
            if step + 1 == when and self.context.run.writes:
                save_checkpoint(self.folder / f"snapshot_{k}.pt", {"network": self.network.state_dict()})
        super().after_step(step)


class RetrainTraining(SegmentationTraining):
    """Labelled crops as ever and pseudo-labelled crops with strong changes, in one batch.

    Args:
        pseudo: labels of the pseudo-labelled images.
        args: as for `SegmentationTraining`.
        kwargs: likewise.
    """

    sees_all: ClassVar[bool] = True

    def __init__(self, pseudo: Labels, *args: Any, **kwargs: Any) -> None:
        self.pseudo = pseudo
        super().__init__(*args, **kwargs)
        self.recipe = photometric(self.config.strong)

    def make_sampler(self) -> Any:
        """Two lists, each cycled on its own."""
        c = self.config
        return PairSampler(
            self.labels.indices, self.pseudo.indices, c.batch, c.batch_unlabeled or c.batch,
            seed=self.context.seed, world=world_size(), rank=rank(), weights=self.chances(),
        )  # fmt: skip

    def strengthen(self, pixels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Photometric changes, then a box of noise.

        Args:
            pixels: uint8 (B, 3, S, S).
            random: source of all draws.

        Returns:
            New crops, and bool (B, S, S), where the box lies.
        """
        strong = self.recipe(pixels, random)
        box = unimatch_box(len(pixels), (self.crop, self.crop), p=self.config.cutout, redraw=True, generator=random)
        return erase(strong, box, "noise", random), box

    def pseudo_crops(self, indices: Any, random: torch.Generator) -> Batch:
        """Random crops with pseudo-labels, which count fully or not at all: what the teacher said is not weighed."""
        pixels, maps = [], []
        for i in indices:
            view = self.weak_view(int(i), random)
            pixels.append(self.pixels(int(i), view))
            maps.append(self.pseudo.read(int(i)).through(view))
        strong, box = self.strengthen(torch.stack(pixels), random)
        y = LabelMap.stack(maps).restrict(~box)
        return Batch(self.normalise(strong), LabelMap(y.ids, torch.ones_like(y.confidence), y.valid).to(self.device))

    def batch(self, indices: Any, random: torch.Generator) -> Batch:
        """Labelled crops, then pseudo-labelled ones."""
        labeled, pseudo = indices
        a, b = self.labeled_crops(labeled, random), self.pseudo_crops(pseudo, random)
        y = LabelMap(*(torch.cat([p, q]) for p, q in zip(_parts(a.y), _parts(b.y))))
        return Batch(torch.cat([a.x, b.x]).contiguous(memory_format=torch.channels_last), y)


def _parts(y: LabelMap) -> tuple[Tensor, Tensor, Tensor]:
    return y.ids, y.confidence, y.valid


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
        teacher = Stage("teacher", "train", self.train_teacher, "a teacher on the masks")
        if not self.config.plus:
            return [
                teacher,
                Stage("label", "label", self.label_all, "pseudo-labels of all unlabelled photographs"),
                Stage("retrain", "train", self.retrain, "a new network on masks and pseudo-labels"),
            ]
        return [
            teacher,
            Stage("rank", "fit", self.rank, "the photographs on which the teacher did not change its mind"),
            Stage("label", "label", self.label_reliable, "pseudo-labels of the reliable photographs"),
            Stage("first", "train", self.train_first, "a new network on masks and reliable pseudo-labels"),
            Stage("relabel", "label", self.relabel, "its labels of the other photographs"),
            Stage("retrain", "train", self.retrain, "a new network on masks and all pseudo-labels"),
        ]

    # ------------------------------------------------------------------ what is trained on what

    def folder(self, stage: str) -> Path:
        """Where a stage's artefacts lie."""
        return self.context.run.path / stage

    def steps(self, stage: str) -> int:
        """A training's part of all steps."""
        c = self.config
        total = self.context.steps or c.steps
        trainings = ["teacher", "first", "retrain"] if c.plus else ["teacher", "retrain"]
        shares = [c.teacher_share, c.first_share] if c.plus else [c.teacher_share]
        return split_steps(total, shares)[trainings.index(stage)]

    def unlabeled(self) -> list[int]:
        """The images that get pseudo-labels, never those that are held out; all where every image has a mask."""
        everything, masks = range(len(self.context.data)), self.labels()
        _, held = hold_out(masks, self.config.holdout, self.context.generator("holdout"))
        labeled = set(masks.indices)
        rest = [i for i in everything if i not in labeled] if self.config.unlabeled == "rest" else []
        return rest or [i for i in everything if i not in held]

    def stored(self, stage: str) -> StoredLabels:
        """The pseudo-labels that a stage wrote."""
        return StoredLabels(self.context.data, LabelStore(self.folder(stage) / LABELS, self.context.table))

    def train_teacher(self, folder: Path) -> None:
        """T, and its networks at 1/3 and 2/3 of its steps."""
        steps = self.steps("teacher")
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
        steps = self.steps(folder.name)
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
        parts = [folder / "reliability" / f"{k:06d}.json" for k in range(len(chunks))]
        for chunk, part in share(list(zip(chunks, parts))):
            if not part.exists():
                found = {context.data.items[i].name: self.reliability(segmenters, i) for i in chunk}
                write_record(part, {"reliability": found})
        barrier()
        scores: dict[str, float] = {}
        for part in parts:
            at = part.relative_to(folder).as_posix()
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
        image = self.context.data.image(i)
        *earlier, last = (self.predict(s, image, plain=True).ids for s in segmenters)
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
        """Writes pseudo-labels as a dataset; those that are there already stay, so that a killed run goes on.

        Args:
            folder: of this stage.
            stage: whose network labels.
            names: of the images.
        """
        context = self.context
        segmenter = self.as_segmenter(trained_network(context, self.config, self.folder(stage)))
        wanted = set(names)
        images = [i for i in range(len(context.data)) if context.data.items[i].name in wanted]
        lam = self.thresholds(folder, segmenter, images) if self.config.class_balanced else None
        store = LabelStore(folder / LABELS, context.table)
        for i in share(images):
            item = context.data.items[i]
            if item.name not in store:
                store.write(item.name, self.pseudo_label(segmenter, context.data.image(i), lam), item.image)
        barrier()

    def pseudo_label(self, segmenter: Segmenter, image: np.ndarray, lam: Tensor | None) -> LabelMap:
        """Hard labels (H, W), everywhere, or by class-balanced thresholds lam (C,)."""
        if lam is None:
            found = self.predict(segmenter, image)
            assert found.confidence is not None
            ids = torch.from_numpy(found.ids.astype(np.int64))
            return LabelMap(ids, torch.from_numpy(found.confidence), torch.ones_like(ids, dtype=torch.bool))
        c = self.config
        probs = torch.from_numpy(
            predict_probs(
                segmenter, image, flips=c.flips, scales=c.scales, device=self.context.device, precision=self.precision
            )
        )
        ids = class_balanced_labels(probs, lam, IGNORE)
        valid = ids != IGNORE
        ids = torch.where(valid, ids, 0)
        return LabelMap(ids, probs.gather(0, ids[None])[0].clamp(0, 1), valid)

    def thresholds(self, folder: Path, segmenter: Segmenter, images: Sequence[int]) -> Tensor:
        """lam (C,) over all these images, from the artefact where a killed run left it."""
        context, path = self.context, folder / THRESHOLDS
        if not path.exists():
            histogram = ClassHistogram(context.classes)
            for found in self.predictions(segmenter, share(images)):
                ids = torch.from_numpy(found.ids.astype(np.int64))
                histogram.update(torch.from_numpy(found.confidence), ids, stride=DS_RATE)
            histogram.counts = all_reduce_sum(histogram.counts.to(context.device)).cpu()
            if context.run.writes:
                lam, counts = histogram.thresholds(self.config.portion), histogram.counts.sum(1)
                save_tensors(path, {"lam": lam, "counts": counts})
            barrier()
        return context.run.tensors(folder.name, THRESHOLDS, {"lam": "C"})["lam"]

    def predictions(self, segmenter: Segmenter, images: Sequence[int]) -> Iterator[Any]:
        """Ids and confidences of images, one at a time."""
        for i in images:
            yield self.predict(segmenter, self.context.data.image(i))

    def predict(self, segmenter: Segmenter, image: np.ndarray, plain: bool = False) -> Any:
        """Ids and confidence (H, W); `plain`: at one scale, not mirrored."""
        c = self.config
        return predict_mask(
            segmenter, image, flips=c.flips and not plain, scales=(1.0,) if plain else c.scales,
            device=self.context.device, precision=self.precision, confidence=None if plain else np.float32,
        )  # fmt: skip

    @property
    def precision(self) -> str:
        """Of predictions: that of the training."""
        return precision_of(self.config, self.context.device) or "fp32"

    def as_segmenter(self, network: Network) -> Segmenter:
        """A network ready to predict whole photographs."""
        return make_segmenter(self.context, self.config, network, self.name, range(len(self.context.data)))

    def network(self) -> Network:
        """The last student, from its artefact."""
        return trained_network(self.context, self.config, self.folder("retrain"))

    def seen(self) -> list[int]:
        """All images of the run: the trainings behind the first look at every one."""
        return list(range(len(self.context.data)))

"""STEGO: Unsupervised Semantic Segmentation by Distilling Feature Correspondences.

Hamilton, Zhang, Hariharan, Snavely, Freeman, ICLR 2022, https://arxiv.org/abs/2203.08414.

A frozen network's features f already say which positions belong together; a small head turns them into codes c whose
correlations are large exactly where those of f exceed a shift b. The codes then fall into clusters.

Deviates: shifts and weights come from the data's own correlations by default (`auto_shift`): the published ones are
tuned to one dataset and one network each and fail off them. Features are those of four random crops of each
photograph, half as long as its sides (`crop`), brought to equal energy per layer and reduced by PCA, from the cache;
the paper crops five parts of each. A neighbour may be another crop of the same photograph, as there. Neighbours are
found with dropout off (the original leaves it on). The learning rate falls by a cosine. The iterate that is kept
is the one whose clusters agree most with the frozen features (`iterate`), of which the features without a head are
the first: the original takes the checkpoint with the best score on validation labels. The codes are
clustered by k-means with restarts (`readout=kmeans`); the original's cluster probe, which depends on its start by
up to 15 mIoU, is `readout=probe`. Photographs are compared by the mean of tokens of unit length, in the original by
the mean of tokens as they are: 9 to 11 % of the neighbours are others (CamVid, msrc_v2). A random partner brings its
own draw of positions; the original reads all partners of an anchor at the same ones, which is the same on average.
The CRF sees colours in RGB order; the original hands it BGR, and as the lattice is not symmetric in colours that moves
1 % of the ids. `sampling=cells` reads positions by half-pixel centres, as until now.

What the original gets wrong: the five random pairings use a "permutation" that can name one image twice, which is
harmless and kept; predictions beyond the number of classes are dropped from its metric; its best checkpoint peeks
at labels.

Legend: B batch, D channels of f, E channels of c, P = points^2 sampled positions, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import faiss
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.trust.artefacts import write_record
from maskwright.engine import seeding
from maskwright.engine.checkpoint import load_checkpoint, load_part, save_checkpoint, trained
from maskwright.engine.context import Context
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import check_partners, gather_objects, sampler
from maskwright.engine.loop import Indices, Training
from maskwright.engine.needs import Terms
from maskwright.engine.result import assembled
from maskwright.engine.schedules import cosine
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.stego.losses import (
    ClusterProbe,
    balanced_weights,
    center,
    correlation,
    correspondence_loss,
    normalize,
    quantile_shift,
    sample,
    super_permutation,
)
from maskwright.methods.unsupervised.stego.options import StegoConfig
from maskwright.models.backbones.dense import autocast
from maskwright.models.parts.heads import L2Norm, Projection, Sequential, StegoHead
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.clustering.agreement import pair_agreement
from maskwright.ops.clustering.kmeans import kmeans
from maskwright.recipes.frozen.batches import windows
from maskwright.recipes.frozen.features import (
    REDUCTION,
    FrozenFeatures,
    ReducedMaps,
    centers_of,
    classifier_of,
    decoded_rows,
    fit_reduction,
    head_precision,
    joined_clusters,
    projection,
)
from maskwright.recipes.frozen.method import FrozenMethod, seconds_of

PAIRS = ("self", "knn", "rand")
PREPARED = "prepared.safetensors"
CENTERS = "centers.safetensors"
CHOICE = "choice.json"
FIRST = 25
"""Steps to the first iterate that is kept; each next one comes after twice as many."""
LAST = -1
"""The iterate behind the last step."""
RESTARTS = 3
"""Of the k-means that an iterate is judged by."""
FEWEST = 100
"""Steps below which few photographs do not lead: after 100 CamVid's validation split has what it has after 2,000."""
TRIED = 32
"""Photographs on which it is tried how long the clustering of all takes."""


def iterate_file(folder: Path, done: int) -> Path:
    """Where the head after so many steps is kept in the stage's folder."""
    return folder / f"iterate_{done}.pt"


def places_kept(steps: int | None = None) -> Iterator[int]:
    """After how many steps iterates are kept: 25, 50, 100, 200 and so on; up to `steps`, if it is given."""
    done = FIRST
    while steps is None or done <= steps:
        yield done
        done *= 2


class Pairs:
    """Loads anchors with a neighbour each from the feature store, reduced, in windows of one common size."""

    def __init__(self, maps: ReducedMaps, nearest: Tensor, points: int) -> None:
        self.maps, self.nearest, self.points = maps, nearest, points

    def draw(self, indices: Indices, random: torch.Generator) -> dict[str, Tensor]:
        """Anchors x, neighbours y (B, D, h, w) and two draws of positions p, q (B, P, 2)."""
        which = torch.randint(self.nearest.shape[1], (len(indices),), generator=random)
        partners = [int(self.nearest[i, k]) for i, k in zip(indices, which)]
        x, y = windows([self.maps[int(i)] for i in (*indices, *partners)], random).chunk(2)
        p, q = torch.rand(2, len(indices), self.points**2, 2, generator=random).mul(2).sub(1)
        return {"x": x, "y": y, "p": p, "q": q}


class Distillation(Training):
    """The training stage: head and cluster probe on cached features.

    Args:
        context: of the run.
        config: options.
        pairs: draws the photographs and positions.
        shifts: b of each pairing.
        weights: w of each pairing.
        steps: of the stage.
        folder: of the stage, where iterates are kept.

    Raises:
        MaskwrightError: a process has one photograph a step, which would be its own random negative.
    """

    def __init__(
        self, context: Context, config: StegoConfig, pairs: Pairs, shifts: Sequence[float], weights: Sequence[float],
        steps: int, folder: Path,
    ) -> None:  # fmt: skip
        check_partners("pairs.batch", config.pairs.batch, "negatives")
        seeding.initialise(context.seed, "distill")
        self.folder = folder if context.run.writes else None
        c, self.device = config.head, context.device
        self.precision = head_precision(c.precision, context.device)
        self.dropout, self.sampling, self.negatives = c.dropout, config.pairs.sampling, config.pairs.negatives
        self.pairs, self.b, self.w = pairs, dict(zip(PAIRS, shifts)), dict(zip(PAIRS, weights))
        self.head = StegoHead(pairs.maps.reduction.out, c.code, c.dropout).to(self.device)
        self.probe = ClusterProbe(context.classes, c.code).to(self.device)
        self.modules = {"head": self.head, "probe": self.probe}
        self.optimizers = {
            "head": torch.optim.Adam(self.head.parameters(), lr=c.lr),
            "probe": torch.optim.Adam(self.probe.parameters(), lr=c.probe_lr),
        }
        self.sampler = sampler(context.seed, len(pairs.nearest), config.pairs.batch)
        self.schedule = cosine(steps)

    def batch(self, indices: Indices, random: torch.Generator) -> dict[str, Tensor]:
        """Anchors, neighbours and positions."""
        return self.pairs.draw(indices, random)

    def on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same, where the head is."""
        return {k: v.to(self.device) for k, v in batch.items()}

    def losses(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """L_self, L_knn, L_rand, their weighted sum L_corr, and the probe's L_cluster."""
        x, y, p, q = batch["x"], batch["y"], batch["p"], batch["q"]
        with autocast(self.device, self.precision):
            c, c_y = self.head(x), self.head(y)
        c, c_y = c.float(), c_y.float()
        f, f_y = (F.dropout2d(v, self.dropout) for v in (x, y))
        how = self.sampling
        (f_p, c_p), (f_q, c_q) = (tuple(sample(v, at, how) for v in (f, c)) for at in (p, q))

        l_self = correspondence_loss(f_p, f_p, c_p, c_p, self.b["self"])
        l_knn = correspondence_loss(f_p, sample(f_y, q, how), c_p, sample(c_y, q, how), self.b["knn"])
        l_rand = x.new_zeros(())
        for _ in range(self.negatives):
            k = super_permutation(len(x)).to(x.device)
            l_rand = l_rand + correspondence_loss(f_p, f_q[k], c_p, c_q[k], self.b["rand"])
        l_rand = l_rand / self.negatives

        l_corr = self.w["self"] * l_self + self.w["knn"] * l_knn + self.w["rand"] * l_rand
        l_cluster = self.probe(c)
        return {
            "loss": l_corr + l_cluster,
            "self": l_self,
            "knn": l_knn,
            "rand": l_rand,
            "corr": l_corr,
            "cluster": l_cluster,
        }

    def after_step(self, step: int) -> None:
        """Keeps the head after 25, 50, 100, 200 steps and so on: places that do not hang on how many there are."""
        done = step + 1
        if self.folder is not None and done in places_kept(done):
            save_checkpoint(iterate_file(self.folder, done), {"head": self.head.state_dict()})


class Stego(FrozenMethod):
    """Distilled feature correspondences, clustered."""

    name: ClassVar[str] = "stego"
    title: ClassVar[str] = "Unsupervised Semantic Segmentation by Distilling Feature Correspondences"
    venue: ClassVar[str] = "Hamilton et al., ICLR 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2203.08414"
    summary: ClassVar[str] = "Distils feature correspondences into codes."
    Config: ClassVar[type] = StegoConfig
    config: StegoConfig

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """The option `steps`, or fewer where photographs are few."""
        scaled = max(FEWEST, config.passes * images // config.pairs.batch)
        steps = int(min(config.steps, scaled) if config.passes else config.steps)
        return replace(super().terms(config, images), steps=steps)

    @property
    def steps(self) -> int:
        """Of the head."""
        return int(self.context.steps or self.terms(self.config, len(self.context.data)).steps)

    @property
    def chooses(self) -> bool:
        """Whether an iterate is chosen: the probe is of the last one alone."""
        return bool(self.config.iterate.keep == "agreeing" and self.config.readout.by == "kmeans")

    def own_stages(self) -> list[Stage]:
        """Prepare (PCA, neighbours, shifts), distill, choose, cluster."""
        says = "features, nearest photographs, shifts from their correlations"
        return [
            Stage("prepare", "fit", self.prepare, says),
            Stage("distill", "train", self.distill, "a head whose codes correlate where features do", self.steps),
            *([Stage("choose", "fit", self.choose, "the iterate that agrees most with the features")] * self.chooses),
            Stage("cluster", "fit", self.cluster, "k-means of the codes"),
        ]

    @cached_property
    def prepared(self) -> dict[str, Tensor]:
        """The artefact of `prepare`."""
        expected: dict[str, str | tuple[str, str]] = {"nearest": ("i", "IN"), "shifts": "3", "weights": "3"}
        t = self.context.run.tensors("prepare", PREPARED, expected | REDUCTION)
        images = len(self.learned.store)
        if len(t["nearest"]) != images or not bool(((t["nearest"] >= 0) & (t["nearest"] < images)).all()):
            raise MaskwrightError(
                "the prepare stage names photographs that the run has not", f"0 to {images - 1}",
                f"delete {self.context.run.path / 'prepare'} and repeat the command with --resume",
            )  # fmt: skip
        return t

    @property
    def reduction(self) -> Projection:
        """f as the head sees it."""
        return projection(self.prepared)

    def prepare(self, folder: Path) -> None:
        """Reduction, neighbours, shifts and weights."""
        c, context = self.config, self.context
        if len(context.data) < 2:
            raise MaskwrightError(
                f"{len(context.data)} image",
                "at least 2 for stego",
                "use --method kmeans or deep_spectral on a single photograph",
            )
        images = len(self.learned.store)
        reduction = fit_reduction(self.learned, c.reduction, seeding.generator(context.seed, "pca"))
        project = projection(reduction)
        nearest = nearest_images(self.learned, project, min(c.pairs.neighbors, images - 1))
        pairs = Pairs(ReducedMaps(self.learned, project), nearest, c.pairs.points)
        shifts = [c.shifts.b_self, c.shifts.b_knn, c.shifts.b_rand]
        weights = [c.shifts.w_self, c.shifts.w_knn, c.shifts.w_rand]
        if c.shifts.auto:
            shifts, weights = self._choose(pairs, images, weights)
        context.note(
            "Shifts (self, neighbour, random): "
            + ", ".join(f"{b:.3f}" for b in shifts)
            + "; weights: "
            + ", ".join(f"{w:.3f}" for w in weights)
            + ("; both from the data." if c.shifts.auto else ".")
        )
        if context.run.writes:
            chosen = {"nearest": nearest, "shifts": torch.tensor(shifts), "weights": torch.tensor(weights)}
            save_tensors(folder / PREPARED, {**reduction, **chosen})

    def _choose(self, pairs: Pairs, images: int, weights: list[float]) -> tuple[list[float], list[float]]:
        """Shifts and weights from the centred correlations of a few batches."""
        c, random, how = self.config, seeding.generator(self.context.seed, "shifts"), self.config.pairs.sampling
        seeding.initialise(self.context.seed, "shifts")  # dropout below draws from the global state
        seen: dict[str, list[Tensor]] = {k: [] for k in PAIRS}
        for _ in range(12):
            indices = torch.randint(images, (min(c.pairs.batch, max(2, images)),), generator=random).tolist()
            d = pairs.draw(indices, random)
            f, f_y = (F.dropout2d(d[k], c.head.dropout) for k in ("x", "y"))
            f_p, f_q = sample(f, d["p"], how), sample(f, d["q"], how)
            k = super_permutation(len(indices), random)
            for name, partner in zip(PAIRS, (f_p, sample(f_y, d["q"], how), f_q[k])):
                seen[name].append(center(correlation(f_p, partner)))
        all_ = {k: torch.cat(v) for k, v in seen.items()}
        shares = (c.shifts.share_self, c.shifts.share_knn, c.shifts.share_rand)
        shifts = [quantile_shift(all_[k], s) for k, s in zip(PAIRS, shares)]
        spreads = [float((all_[k] - b).abs().mean()) for k, b in zip(PAIRS, shifts)]
        return shifts, balanced_weights(spreads, weights)

    def distill(self, folder: Path) -> None:
        """Trains the head; the artefact is its last iterate, with earlier ones beside it."""
        c, context, t = self.config, self.context, self.prepared
        steps = self.steps
        pairs = Pairs(ReducedMaps(self.learned, self.reduction), t["nearest"], c.pairs.points)
        training = Distillation(context, c, pairs, t["shifts"].tolist(), t["weights"].tolist(), steps, folder)
        context.fit(training, "distill", folder, steps)

    def seconds_behind(self) -> float:
        """Besides pictures the codes of all photographs and their k-means: tried on some, under a head that has learned
        nothing, and one start."""
        c, images = self.config, len(self.learned.store)
        tried = min(TRIED, images)
        with torch.random.fork_rng(devices=[]):
            head = StegoHead(self.reduction.out, c.head.code, c.head.dropout)
        decode = Sequential(self.reduction, head, L2Norm()).eval()
        each = max(1, c.reduction.max_rows // images)
        rows: list[Tensor] = []

        def read() -> None:
            with torch.inference_mode():
                maps = [decode(self.learned.inner(i).float()[None])[0].flatten(1).T for i in range(tried)]
            rows[:] = [e[:each] for e in maps]

        seconds = seconds_of(read)
        x = torch.cat(rows)
        if c.readout.by == "kmeans" and len(x) >= self.context.classes:
            most = c.clusters.iterations
            start = seconds_of(lambda: kmeans(x, self.context.classes, iterations=most, seed=self.context.seed))
            seconds += c.clusters.restarts * start
            if self.chooses:  # as many rows however many photographs there are
                kept = sum(1 for _ in places_kept(self.steps)) + 2
                seconds += RESTARTS * kept * start * c.iterate.rows / len(x) * tried / images
        return super().seconds_behind() + seconds * images / tried

    def iterates(self) -> list[int]:
        """After how many steps there is an iterate, in order: at 0 there is no head, the last one is at `LAST`."""
        folder = self.context.run.path / "distill"
        return [0, *takewhile(lambda done: iterate_file(folder, done).exists(), places_kept()), LAST]

    def head(self, done: int) -> StegoHead | None:
        """The head after so many steps, ready to predict; None at 0."""
        if done == 0:
            return None
        folder, c = self.context.run.path / "distill", self.config.head
        head = StegoHead(self.reduction.out, c.code, c.dropout)
        if done == LAST:
            return trained(folder, "head", head)
        load_part(head, load_checkpoint(file := iterate_file(folder, done)) or {}, "head", file)
        return head.eval()

    @torch.inference_mode()
    def choose(self, folder: Path) -> None:
        """`choice.json`: the agreement of each iterate's clusters with the features, and the iterate of the most."""
        c, context = self.config.iterate, self.context
        draw, here = seeding.generator(context.seed, "choose"), torch.device("cpu")
        mine = decoded_rows(self.learned, self.reduction, max_rows=c.rows, generator=draw, device=here)
        rows = torch.cat(gather_objects(mine))  # (N, D), the same in each process
        found: dict[str, float] = {}
        for done in self.iterates():
            head = self.head(done)
            codes = rows if head is None else head(rows.T[None, :, :, None])[0, :, :, 0].T
            labels = self._tried(codes)
            if labels is not None:
                found[str(done)] = pair_agreement(rows, labels)
        best = max(found, key=lambda done: found[done], default=str(LAST))
        told = {"0": "the features without a head", str(LAST): "the last one"}
        context.note(
            f"Iterate: {told.get(best, f'after {best} steps')}, whose clusters agree most with the features: "
            + ", ".join(f"{'last' if k == str(LAST) else k} {v:.3f}" for k, v in found.items()) + "."
        )  # fmt: skip
        if context.run.writes:
            write_record(folder / CHOICE, {"iterate": int(best), "agreement": found})

    def _tried(self, codes: Tensor) -> Tensor | None:
        """Clusters (N,) of codes; None where there are too few that differ."""
        try:
            return kmeans(codes.contiguous(), self.context.classes, restarts=RESTARTS, seed=self.context.seed).labels
        except ValueError:
            return None

    def embedding(self) -> Sequential:
        """Reduction, the chosen head and unit length: (B, D, h, w) -> (B, E, h, w)."""
        best = LAST
        if self.chooses:
            best = self.context.run.artefact("choose", CHOICE, {"iterate": int})["iterate"]
        left = self.iterates()
        if best not in left:
            raise MaskwrightError(
                f"the distill stage left no iterate of {best} steps", ", ".join(map(str, left)),
                f"delete {self.context.run.path / 'choose'} and repeat the command with --resume",
            )  # fmt: skip
        head = self.head(best)
        return Sequential(self.reduction, *([] if head is None else [head]), L2Norm()).eval()

    def cluster(self, folder: Path) -> None:
        """K centres of the codes, by k-means or from the probe."""
        c, context = self.config, self.context
        if c.readout.by == "probe":
            probe = trained(context.run.path / "distill", "probe", ClusterProbe(context.classes, c.head.code))
            t = {"centers": normalize(probe.mu.detach())}
        else:
            t, _ = joined_clusters(
                context, self.learned, self.embedding(), c.clusters, max_rows=c.reduction.max_rows,
                generator=seeding.generator(context.seed, "codes"),
            )  # fmt: skip
        if context.run.writes:
            save_tensors(folder / CENTERS, t)

    def segmenter(self) -> Segmenter:
        """Encoder, head and cosine to the cluster centres."""
        c = self.config
        expected = {"centers": "KE"} if c.readout.by == "probe" else centers_of(c.clusters)
        t = self.context.run.tensors("cluster", CENTERS, expected)
        classifier = classifier_of(t, self.context.classes, c.readout.temperature)
        return assembled(self, self.learned.encoder, self.embedding(), classifier, self.learned.preprocess)


@torch.inference_mode()
def nearest_images(features: FrozenFeatures, project: Projection, count: int) -> Tensor:
    """The nearest other photographs by cosine of their mean feature.

    Args:
        features: of the images.
        project: f as the head sees it.
        count: how many.

    Returns:
        (images, count) indices, nearest first, never the image itself.
    """
    mean = torch.stack(
        [normalize(project(features.inner(i).float()[None])).mean((0, 2, 3)) for i in range(len(features.store))]
    )
    e = F.normalize(mean, dim=1).numpy()
    index = faiss.IndexFlatIP(e.shape[1])
    index.add(e)
    found = torch.from_numpy(index.search(e, min(len(e), count + 1))[1])  # (images, count + 1)
    own = found == torch.arange(len(e))[:, None]
    own[~own.any(1), -1] = True  # duplicates may push the image itself out of its own list
    return found[~own].view(len(e), -1)

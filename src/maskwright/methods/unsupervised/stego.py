"""STEGO: Unsupervised Semantic Segmentation by Distilling Feature Correspondences.

Hamilton, Zhang, Hariharan, Snavely, Freeman, ICLR 2022, https://arxiv.org/abs/2203.08414.

A frozen network's features f already say which positions belong together; a small head turns them into codes c whose
correlations are large exactly where those of f exceed a shift b. The codes then fall into clusters.

Deviates: shifts and weights come from the data's own correlations by default (`auto_shift`): the published ones are
tuned to one dataset and one network each and fail off them. Features are those of whole photographs, brought to
equal energy per layer and reduced by PCA, from the cache; the paper crops five parts of each photograph. Neighbours
are found with dropout off (the original leaves it on). The learning rate falls by a cosine, because the last
iterate is what is kept: the original takes the checkpoint with the best score on validation labels. The codes are
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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import faiss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.engine import seeding
from maskwright.engine.checkpoint import trained
from maskwright.engine.config import Idle, option, part
from maskwright.engine.context import Context
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import sampler
from maskwright.engine.loop import Indices, Training
from maskwright.engine.needs import Terms
from maskwright.engine.result import assembled
from maskwright.engine.schedules import cosine
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import autocast
from maskwright.models.parts.heads import CosineClassifier, L2Norm, Projection, Sequential, StegoHead
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.clustering.kmeans import kmeans
from maskwright.recipes.clustering import ClusterOptions
from maskwright.recipes.frozen.batches import windows
from maskwright.recipes.frozen.features import (
    REDUCTION,
    FrozenFeatures,
    ReducedMaps,
    cluster_features,
    fit_reduction,
    head_precision,
    projection,
)
from maskwright.recipes.frozen.method import FrozenConfig, FrozenMethod, seconds_of
from maskwright.recipes.frozen.options import ReadoutOptions, ReductionOptions

PAIRS = ("self", "knn", "rand")
PREPARED = "prepared.safetensors"
CENTERS = "centers.safetensors"
TRIED = 32
"""Photographs on which it is tried how long the clustering of all takes."""


@dataclass(kw_only=True)
class HeadOptions:
    """The head, and how it learns."""

    code: int = option(70, "channels E of the codes", low=2, main=True)
    dropout: float = option(0.1, "probability of a channel to be dropped, in the head and in f", low=0.0, high=0.9)
    lr: float = option(5e-4, "Adam's learning rate of the head", low=0.0, main=True)
    probe_lr: float = option(5e-3, "Adam's learning rate of the cluster probe", low=0.0)
    precision: str = option(
        "auto", "of the head's forward pass: bf16 on a GPU, fp32 on a CPU; or as said", choices=("auto", "bf16", "fp32")
    )


@dataclass(kw_only=True)
class PairOptions:
    """Which positions of which photographs are compared."""

    batch: int = option(16, "photographs a step", low=2, main=True)
    points: int = option(11, "positions are sampled on a points x points draw a photograph", low=1)
    sampling: str = option(
        "corners", "where -1 and 1 lie: on the outer cells' centres, as the authors have it, or on their outer edges "
        "(cells), where what is within half a cell of the rim reads the rim", choices=("corners", "cells"),
    )  # fmt: skip
    neighbors: int = option(7, "nearest photographs to draw the neighbour from", low=1, main=True)
    negatives: int = option(5, "random pairings a step", low=1)


@dataclass(kw_only=True)
class ShiftOptions:
    """Shifts b and weights w of the three pairings."""

    auto: bool = option(True, "shifts b and weights w from the data's own correlations", old="auto_shift")
    share_self: float = option(0.25, "share of centred correlations with itself that exceed b_self", low=0.0, high=1.0)
    share_knn: float = option(0.20, "the same for neighbours", low=0.0, high=1.0)
    share_rand: float = option(0.10, "the same for random pairs", low=0.0, high=1.0)
    b_self: float = option(0.18, "shift where auto_shift is off")
    b_knn: float = option(0.12, "shift where auto_shift is off")
    b_rand: float = option(0.46, "shift where auto_shift is off")
    w_self: float = option(0.67, "weight of the pairing with itself")
    w_knn: float = option(0.25, "weight of the pairing with a neighbour")
    w_rand: float = option(0.63, "weight of the random pairings")


@dataclass(kw_only=True)
class CodeReadoutOptions(ReadoutOptions):
    """From codes to clusters and predictions."""

    by: str = option("kmeans", "how codes become clusters", choices=("kmeans", "probe"), old="readout")


@dataclass(kw_only=True)
class StegoConfig(FrozenConfig):
    """Options of `stego`."""

    reduction: ReductionOptions = part(
        ReductionOptions, without=("whiten",), old={"dim": "reduce"}, dim=64, whiten=False,
        says={"dim": "channels of f kept by PCA before the head; 0 keeps all"},
    )  # fmt: skip
    head: HeadOptions = part(HeadOptions)
    pairs: PairOptions = part(PairOptions)
    shifts: ShiftOptions = part(ShiftOptions)
    steps: int = option(2000, "optimiser steps; --steps overrides it", low=1, main=True)
    clusters: ClusterOptions = part(
        ClusterOptions, without=("iterations",), says={"restarts": "starts of the final k-means"}
    )
    readout: CodeReadoutOptions = part(
        CodeReadoutOptions, crf=True, temperature=0.5,
        says={"crf": "the dense CRF after prediction, as in the paper, unless --refine says otherwise",
              "temperature": "cosines are divided by it to give logits; the paper's alpha = 2 is 0.5"},
    )  # fmt: skip

    def idle(self) -> Idle:
        """The shifts of the other choice, and options of the other way to cluster codes."""
        if self.shifts.auto:
            yield ("shifts.b_self", "shifts.b_knn", "shifts.b_rand"), "shifts.auto=true"
        else:
            yield ("shifts.share_self", "shifts.share_knn", "shifts.share_rand"), "shifts.auto=false"
        if self.readout.by == "probe":
            yield ("clusters",), "readout.by=probe"
        else:  # no gradient of the probe reaches the codes
            yield ("head.probe_lr",), "readout.by=kmeans"


def normalize(x: Tensor) -> Tensor:
    """Unit length over channels (dimension 1)."""
    return F.normalize(x, dim=1, eps=1e-10)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every position of a with every position of b.

    Args:
        a: (B, D, P), unit length over D.
        b: (B, D, P), likewise.

    Returns:
        (B, P, P) in [-1, 1]; [n, i, j] of position i of a and j of b.
    """
    return a.transpose(1, 2) @ b


def center(f: Tensor) -> Tensor:
    """Spatial centring of correlations (B, P, P): each anchor position loses its mean, the mean of all is kept."""
    m = f.mean()
    f1 = f - f.mean(dim=2, keepdim=True)
    return f1 - f1.mean() + m


def correspondence_loss(f_a: Tensor, f_b: Tensor, c_a: Tensor, c_b: Tensor, b: float) -> Tensor:
    """- clamp(S, 0) (F_centred - b), averaged: codes correlate where features do by more than b.

    Args:
        f_a: features (B, D, P) of the anchors, unit length; no gradient reaches them.
        f_b: features (B, D, P) of the partners, unit length.
        c_a: codes (B, E, P) of the anchors, unit length.
        c_b: codes (B, E, P) of the partners, unit length.
        b: shift.
    """
    with torch.no_grad():
        f = center(correlation(f_a, f_b))
    s = correlation(c_a, c_b)
    return -(s.clamp(min=0) * (f - b)).mean()


def super_permutation(size: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices (size,) that never name themselves where size >= 2; an index may occur twice, as in the original."""
    p = torch.randperm(size, generator=generator)
    p[p == torch.arange(size)] += 1
    return p % size


def sample(x: Tensor, points: Tensor, sampling: str = "corners") -> Tensor:
    """Bilinear samples of unit length.

    Args:
        x: maps (B, D, h, w).
        points: (B, P, 2) in [-1, 1], x before y.
        sampling: "corners": -1 and 1 are the centres of the outer cells; "cells": their outer edges, and the half cell
            between repeats the rim, which of a 14 x 14 grid is 14 % of the points.

    Returns:
        (B, D, P).
    """
    aligned = sampling == "corners"
    return normalize(F.grid_sample(x, points[:, None], padding_mode="border", align_corners=aligned)[:, :, 0])


def quantile_shift(correlations: Tensor, share: float) -> float:
    """The shift that a share of centred correlations exceed."""
    flat = correlations.flatten()
    rank_ = min(len(flat) - 1, int((1 - share) * len(flat)))
    return float(flat.kthvalue(rank_ + 1).values)


def balanced_weights(spreads: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Weights under which each pairing pulls with the strength its weight asks for.

    A pairing's gradient on S is F_centred - b; pairings whose correlations spread less would pull less.

    Args:
        spreads: mean |F_centred - b| of each pairing.
        weights: the wanted proportions.

    Returns:
        Weights with the same sum.
    """
    raw = [w / max(s, 1e-6) for w, s in zip(weights, spreads)]
    return [r * sum(weights) / sum(raw) for r in raw]


class ClusterProbe(nn.Module):
    """K directions trained beside the head by the cosine k-means energy; no gradient reaches the codes."""

    def __init__(self, clusters: int, code: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.randn(clusters, code))

    def forward(self, c: Tensor) -> Tensor:
        """- mean over positions of the cosine to the nearest direction; c: (B, E, h, w)."""
        return -torch.einsum("behw,ke->bkhw", normalize(c.detach()), normalize(self.mu)).amax(1).mean()


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
    """

    def __init__(
        self, context: Context, config: StegoConfig, pairs: Pairs, shifts: Sequence[float], weights: Sequence[float],
        steps: int,
    ) -> None:  # fmt: skip
        seeding.initialise(context.seed, "distill")
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
        self.sampler = sampler(context.seed, len(context.data), config.pairs.batch)
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
        """The steps of the options."""
        return replace(super().terms(config, images), steps=config.steps)

    @property
    def steps(self) -> int:
        """Of the head."""
        return int(self.context.steps or self.config.steps)

    def own_stages(self) -> list[Stage]:
        """Prepare (PCA, neighbours, shifts), distill, cluster."""
        says = "features, nearest photographs, shifts from their correlations"
        return [
            Stage("prepare", "fit", self.prepare, says),
            Stage("distill", "train", self.distill, "a head whose codes correlate where features do", self.steps),
            Stage("cluster", "fit", self.cluster, "k-means of the codes"),
        ]

    @cached_property
    def prepared(self) -> dict[str, Tensor]:
        """The artefact of `prepare`."""
        expected: dict[str, str | tuple[str, str]] = {"nearest": ("i", "IN"), "shifts": "3", "weights": "3"}
        t = self.context.run.tensors("prepare", PREPARED, expected | REDUCTION)
        images = len(self.context.data)
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
        c, context, images = self.config, self.context, len(self.context.data)
        if images < 2:
            raise MaskwrightError(
                f"{images} image",
                "at least 2 for stego",
                "use --method kmeans or deep_spectral on a single photograph",
            )
        reduction = fit_reduction(self.features, c.reduction, seeding.generator(context.seed, "pca"))
        project = projection(reduction)
        nearest = nearest_images(self.features, project, min(c.pairs.neighbors, images - 1))
        pairs = Pairs(ReducedMaps(self.features, project), nearest, c.pairs.points)
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
        """Trains the head; the artefact is its last iterate."""
        c, context, t = self.config, self.context, self.prepared
        steps = self.steps
        pairs = Pairs(ReducedMaps(self.features, self.reduction), t["nearest"], c.pairs.points)
        training = Distillation(context, c, pairs, t["shifts"].tolist(), t["weights"].tolist(), steps)
        context.fit(training, "distill", folder, steps)

    def seconds_behind(self) -> float:
        """Besides pictures the codes of all photographs and their k-means: tried on some, under a head that has learned
        nothing, and one start."""
        c, images = self.config, len(self.context.data)
        tried = min(TRIED, images)
        with torch.random.fork_rng(devices=[]):
            head = StegoHead(self.reduction.out, c.head.code, c.head.dropout)
        decode = Sequential(self.reduction, head, L2Norm()).eval()
        each = max(1, c.reduction.max_rows // images)
        rows: list[Tensor] = []

        def read() -> None:
            with torch.inference_mode():
                maps = [decode(self.features.store[i].float()[None])[0].flatten(1).T for i in range(tried)]
            rows[:] = [e[:each] for e in maps]

        seconds = seconds_of(read)
        x = torch.cat(rows)
        if c.readout.by == "kmeans" and len(x) >= self.context.classes:
            most = c.clusters.iterations
            start = seconds_of(lambda: kmeans(x, self.context.classes, iterations=most, seed=self.context.seed))
            seconds += c.clusters.restarts * start
        return super().seconds_behind() + seconds * images / tried

    def embedding(self) -> Sequential:
        """Reduction, head and unit length: (B, D, h, w) -> (B, E, h, w)."""
        reduction, c = self.reduction, self.config.head
        head = trained(self.context.run.path / "distill", "head", StegoHead(reduction.out, c.code, c.dropout))
        return Sequential(reduction, head, L2Norm()).eval()

    def cluster(self, folder: Path) -> None:
        """K centres of the codes, by k-means or from the probe."""
        c, context = self.config, self.context
        if c.readout.by == "probe":
            probe = trained(context.run.path / "distill", "probe", ClusterProbe(context.classes, c.head.code))
            centers = normalize(probe.mu.detach())
        else:
            centers = cluster_features(
                context, self.features, self.embedding(), c.clusters, max_rows=c.reduction.max_rows,
                generator=seeding.generator(context.seed, "codes"),
            ).centers  # fmt: skip
        if context.run.writes:
            save_tensors(folder / CENTERS, {"centers": centers})

    def segmenter(self) -> Segmenter:
        """Encoder, head and cosine to the cluster centres."""
        centers = self.context.run.tensors("cluster", CENTERS, {"centers": "KE"})["centers"]
        classifier = CosineClassifier(centers, temperature=self.config.readout.temperature)
        return assembled(self, self.features.encoder, self.embedding(), classifier, self.features.preprocess)


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
        [normalize(project(features.store[i].float()[None])).mean((0, 2, 3)) for i in range(len(features.store))]
    )
    e = F.normalize(mean, dim=1).numpy()
    index = faiss.IndexFlatIP(e.shape[1])
    index.add(e)
    found = torch.from_numpy(index.search(e, min(len(e), count + 1))[1])  # (images, count + 1)
    own = found == torch.arange(len(e))[:, None]
    own[~own.any(1), -1] = True  # duplicates may push the image itself out of its own list
    return found[~own].view(len(e), -1)

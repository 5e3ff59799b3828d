"""PiCIE: Unsupervised Semantic Segmentation using Invariance and Equivariance in Clustering.

Cho, Mall, Bala, Hariharan, CVPR 2021, https://arxiv.org/abs/2103.17070; with `mdc=true` its baseline, Modified
DeepCluster.

In rounds the cells of all photographs are clustered, for two views apart, and the network then learns these clusters as
labels: z1 = f(G(P1(x))), z2 = G(f(P2(x))), colours P, window and mirror G. Each view is to fit its own labels (within)
and the other's (cross); the classifier is the round's centroids, so there is none to learn. MDC has one view, nothing
changed, and a classifier that learns, anew each round.

Deviates: a round's labels are not stored; the network as it stood gives them again in each step, for views drawn anew,
at the cost of the authors' pass for labels. It clusters in evaluation mode, the authors' in training mode. G is exact:
the authors round its window in pixels and in cells apart. Both views go through the network at once. No chunk of rows
is dropped. lambda of +H is balanced by log K; the released code has no such head. What is predicted is a clustering of
whole photographs under the trained network (`readout.by=clusters`), which is what the authors report, or the last
round's classifier. `preset=small` weighs clusters by the inverse of their size, `paper` as the authors do.

What the original gets wrong: classes are weighted by their share of the cells, not its inverse, and the loss is divided
by the weights, so a frequent cluster counts twice; greyscale is never applied and blur hardly, by two slips; k-means
has seed 0 whatever is asked for; labels are of the nearest centroid, predictions of the greatest product (here of the
nearest too, but with `readout.by=rounds`).

Legend: B photographs, K clusters, E width, (h, w) map, mu centroids (K, E), y labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.augment import PRESETS as RECIPES
from maskwright.data.training.augment import photometric
from maskwright.data.training.views import resample
from maskwright.data.training.warped import WarpedPairs
from maskwright.data.training.windowed import WindowStream
from maskwright.engine import seeding
from maskwright.engine.checkpoint import CHECKPOINT, stage_parts, trained
from maskwright.engine.config import Idle, option, part
from maskwright.engine.context import Context
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import rank, reducer, sampler, share
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.models.networks.build import Network
from maskwright.models.parts.heads import L2Norm, LinearClassifier, Sequential
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.recipes.clustering import ClusterOptions, cluster_rows
from maskwright.recipes.clustering_health import ClusteringHealth
from maskwright.recipes.self_training.rounds import Rounds, as_it_stands, live_rows
from maskwright.recipes.self_training.running_clusters import RunningClusters
from maskwright.recipes.training.method import CropMethod
from maskwright.recipes.training.network import make_network, make_preprocess, make_segmenter, retake
from maskwright.recipes.training.options import NetworkOptions
from maskwright.recipes.training.presets import PresetConfig, preset_option
from maskwright.recipes.training.setup import CropSetup

PAPER: dict[str, Any] = {
    "crop": 320, "batch": 128, "long_side": 427, "scale_min": 1.0, "scale_max": 1.0, "lr": 1e-4, "encoder_lr": 1.0,
    "weight_decay": 0.0, "schedule": "constant", "balance": "frequency", "first": 5120, "rows": 6400, "steps": 3880,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "crop": 160, "batch": 8, "long_side": 480, "scale_min": 0.5, "balance": "inverse", "first": 1024, "rows": 200,
        "steps": 400,
    },
    "paper": PAPER,
}  # fmt: skip
"""By flat names. `small` finishes on two cores; `paper` is COCO-Stuff of 27 classes on ResNet-18: 10 passes."""
CENTERS = "centers.safetensors"


@dataclass(kw_only=True)
class ViewOptions:
    """How the two views differ."""

    invariance: bool = option(True, "P: the colours of both are changed, each on its own", main=True)
    equivariance: bool = option(True, "G: one sees a window, of the other that window is taken", main=True)
    recipe: str = option("picie", "photometric recipe P", choices=tuple(RECIPES))
    side_min: float = option(0.5, "least side of the window, as a part of the crop's", low=0.05, high=1)
    side_max: float = option(1.0, "greatest side", low=0.05, high=1)
    hflip: float = option(0.5, "chance that the window is mirrored left to right", low=0, high=1)
    vflip: float = option(0.0, "top to bottom", low=0, high=1)

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.side_min > self.side_max:
            raise MaskwrightError(f"side_min={self.side_min}", f"at most side_max={self.side_max}")


@dataclass(kw_only=True)
class RoundOptions:
    """When and what is clustered."""

    every: int = option(0, "steps from one round to the next; 0: a pass over the photographs", low=0, main=True)
    count: int = option(0, "K, clusters in training; 0: as many as are asked for", low=0)
    over: int = option(0, "+H, over-clustering beside: so many times K; 0: none", low=0, high=100, main=True)
    first: int = option(None, "photographs whose cells k-means begins with; later ones move it (preset)", low=1)
    rows: int = option(None, "cells taken of each photograph and view (preset)", low=1)


@dataclass(kw_only=True)
class LossOptions:
    """The cross entropies."""

    balance: str = option(
        None, "weight of a cluster: its share of the cells (the authors'), the inverse (the textbook's), or none "
        "(preset)", choices=("frequency", "inverse", "none"), main=True,
    )  # fmt: skip
    terms: str = option("both", "labels that a view is to fit", choices=("both", "within", "cross"))
    mse: bool = option(False, "halved and joined by half the squared distance of the two views (ablation)")


@dataclass(kw_only=True)
class ReadoutOptions:
    """From the trained network to predictions."""

    by: str = option(
        "clusters", "a clustering of whole photographs, or the last round's classifier (of view 1)",
        choices=("clusters", "rounds"),
    )  # fmt: skip
    temperature: float = option(
        0.1, "scores are divided by it to give logits; for confidence and refinement only", low=1e-4
    )


@dataclass(kw_only=True)
class PicieConfig(PresetConfig):
    """Options of `picie`; those without a value of their own take the preset's, those that are given win."""

    presets: ClassVar = PRESETS

    preset: str = preset_option(PRESETS)
    mdc: bool = option(False, "the baseline MDC: one view, nothing changed, a classifier that learns", main=True)
    mdc_classifier: str = option("learned", "of MDC: anew each round, or its centroids", choices=("learned", "centers"))
    network: NetworkOptions = part(
        NetworkOptions, says={"name": "a name of the table of networks; auto: lateral_fpn on a CNN, dpt on a ViT"}
    )
    views: ViewOptions = part(ViewOptions)
    rounds: RoundOptions = part(RoundOptions)
    clusters: ClusterOptions = part(ClusterOptions, restarts=1, iterations=20)
    loss: LossOptions = part(LossOptions)
    readout: ReadoutOptions = part(ReadoutOptions)

    def check(self) -> None:
        """Raises `MaskwrightError` on what MDC has not: a second view."""
        for name, value, left in (("mse", self.loss.mse, False), ("terms", self.loss.terms, "both")):
            if self.mdc and value != left:
                raise MaskwrightError(f"loss.{name}={value} with mdc", "two views", "leave one of the two out")

    def idle(self) -> Idle:
        """Options of changes where nothing is changed, and of MDC's classifier where there is none."""
        yield from super().idle()
        if self.mdc:
            yield ("views",), "mdc=true"
            return
        yield ("mdc_classifier",), "mdc=false"
        if not self.views.invariance:
            yield ("views.recipe",), "views.invariance=false"
        if not self.views.equivariance:
            rest = ("side_min", "side_max", "hflip", "vflip")
            yield [f"views.{name}" for name in rest], "views.equivariance=false"


# --------------------------------------------------------------------- labels and losses


def distance_scores(z: Tensor, mu: Tensor) -> Tensor:
    """- |z - mu_k|^2 + |z|^2 - 1 = 2 z mu_k - |mu_k|^2 - 1, (B, K, h, w) of features (B, E, h, w); the label is its
    largest."""
    return 2 * scores(z, mu) - mu.to(z.dtype).square().sum(1)[:, None, None] - 1


def scores(z: Tensor, mu: Tensor) -> Tensor:
    """z mu_k, (B, K, h, w) of features (B, E, h, w): logits, without a temperature."""
    return F.conv2d(z, mu.to(z.dtype)[..., None, None])


def class_weights(counts: Tensor, balance: str) -> Tensor | None:
    """Weights w (K,) of clusters that have so many cells.

    Args:
        counts: (K,).
        balance: `frequency`: their share; `inverse`: its inverse over K, 0 for a cluster without cells; `none`.
    """
    if balance == "none":
        return None
    share_of = counts / counts.sum().clamp(min=1)
    if balance == "frequency":
        return share_of
    return torch.where(share_of > 0, 1 / (len(counts) * share_of.clamp(min=1e-12)), 0)


def weighted_cross_entropy(logits: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """L_cls = - sum_i w_yi log p_i,yi / sum_i w_yi over the cells with a label, 0 where no weight is left.

    Args:
        logits: (B, K, h, w).
        y: (B, h, w), -1 where there is none.
        weight: w (K,), or None for ones.
    """
    w = torch.ones_like(logits[0, :, 0, 0]) if weight is None else weight.to(logits)
    total = w[y.clamp(min=0)].masked_fill(y < 0, 0).sum()
    loss = F.cross_entropy(logits, y, weight=w, ignore_index=-1, reduction="sum")
    return loss / torch.where(total > 0, total, torch.ones_like(total))


def within_and_cross(
    z: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], mu: tuple[Tensor, Tensor], w: tuple[Any, Any]
) -> tuple[Tensor, Tensor]:
    """L_within = 1/2 [L(z1, y1, mu1) + L(z2, y2, mu2)], L_cross = 1/2 [L(z1, y2, mu2) + L(z2, y1, mu1)].

    Args:
        z: features (B, E, h, w) of both views at the same places.
        y: their labels (B, h, w), -1 where there is none.
        mu: centroids (K, E) of each view's clustering.
        w: weights (K,) of its clusters, or None.
    """

    def fits(view: int, labels: int) -> Tensor:
        return weighted_cross_entropy(scores(z[view], mu[labels]), y[labels], w[labels])

    return (fits(0, 0) + fits(1, 1)) / 2, (fits(0, 1) + fits(1, 0)) / 2


def view_distance(z1: Tensor, z2: Tensor, valid: Tensor) -> Tensor:
    """Mean of (z1 - z2)^2 over the channels of valid cells (B, h, w)."""
    squares = (z1 - z2).square().mean(1)
    return (squares * valid).sum() / valid.sum().clamp(min=1)


def loss_shares(k: int, over: int) -> list[float]:
    """lambda of K and of the over-clustering's K2: log K2 and log K over their sum, so that both weigh alike."""
    if not over:
        return [1.0]
    a, b = math.log(k), math.log(over)
    return [b / (a + b), a / (a + b)] if a + b > 0 else [0.5, 0.5]


# --------------------------------------------------------------------- training


def picie_network(context: Context, config: PicieConfig) -> Network:
    """The configured network; the paper's decoder unless another is asked for."""
    c = config.network
    if c.name == "auto" and not context.backbone.is_vit:
        config = replace(config, network=replace(c, name="lateral_fpn"))
    return make_network(context, config)


def cluster_streams(
    context: Context, config: PicieConfig, counts: list[int], batches: Iterable[tuple[bool, tuple[Tensor, ...]]]
) -> list[list[RunningClusters]]:
    """A clustering of each number of clusters and each view.

    Args:
        context: of the run.
        config: options.
        counts: numbers of clusters.
        batches: this process's rows (N, E) of each view, and whether they are of the photographs that k-means begins
            with.

    Returns:
        Clusterings [number of clusters][view].
    """
    found: list[list[RunningClusters]] = [[] for _ in counts]
    begun: list[tuple[Tensor, ...]] = []

    def centers(k: int, rows: Tensor) -> Tensor:
        asked = "rounds.over" if k > counts[0] else "rounds.count" if config.rounds.count else "--classes"
        return cluster_rows(context, rows, config.clusters, k, "euclidean", shown=False, asked=asked).centers

    def begin() -> None:
        for view in zip(*begun):
            rows = torch.cat(view)
            for of_k, k in zip(found, counts):
                of_k.append(RunningClusters(k, partial(centers, k), reducer()))
                of_k[-1].begin(rows)
        begun.clear()

    for first, views in batches:
        if first:
            begun.append(views)
            continue
        if begun:
            begin()
        for of_k in found:
            for clusters, rows in zip(of_k, views):
                clusters.add(rows)
    if begun:
        begin()
    return found


def chunks(images: int, batch: int, random: torch.Generator) -> list[np.ndarray]:
    """All images in a random order, in chunks of about a batch."""
    order = torch.randperm(images, generator=random).numpy()
    return np.array_split(order, max(1, images // batch))


class PicieTraining(Training):
    """Rounds of clusters, and a network that fits them from two views."""

    setup: CropSetup

    def __init__(self, context: Any, config: PicieConfig, steps: int) -> None:
        seeding.initialise(context.seed, "train")
        setup = CropSetup(context, config, steps, network=picie_network(context, config), dropout=False)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.network, self.context, self.device = setup.student, setup.network, context, setup.device
        c, v, images = self.config, self.config.views, len(context.data)
        photographs = setup.stream(range(images), sampler(context.seed, images, c.crops.batch))
        if v.invariance and not c.mdc:
            photographs.change = photometric(v.recipe)
        side = (v.side_min, v.side_max) if v.equivariance and not c.mdc else None
        setup.streams["u"] = WindowStream(photographs, side, v.hflip, v.vflip)

        k = c.rounds.count or context.classes
        self.counts = [k, c.rounds.over * k] if c.rounds.over else [k]
        self.shares = loss_shares(k, c.rounds.over * k)
        self.labeller = copy.deepcopy(setup.network).requires_grad_(False).eval()
        self.modules["labeller"] = self.labeller
        self.rounds = Rounds(c.rounds.every or max(1, -(-images // c.crops.batch)), self.cluster, setup.device)
        self.extra = {"rounds": self.rounds}
        self.heads: nn.ModuleList | None = None
        if c.mdc and c.mdc_classifier == "learned":
            self.heads = nn.ModuleList(LinearClassifier(setup.network.width, n) for n in self.counts).to(setup.device)
            self.modules["heads"] = self.heads
            decay = c.optimizer.weight_decay
            self.optimizers["heads"] = torch.optim.AdamW(self.heads.parameters(), c.optimizer.lr, weight_decay=decay)
        self.health = ClusteringHealth(k, steps, context.note)
        if c.schedule == "constant":
            self.schedule = None

    # ------------------------------------------------------------------ views

    def embed(self, network: Network, u: WarpedPairs) -> tuple[tuple[Tensor, ...], Tensor]:
        """Unit features (B, E, h, w) of each view at the same places, and which of these (B, h, w) are photograph.

        z1 is of the window's pixels, z2 the window of the crop's features; MDC has z2 alone.
        """
        x = u.u1 if self.config.mdc else torch.cat((u.u2, u.u1))
        with self.student.autocast():
            maps = network.decode(network.features(x))
        *first, second = maps.float().split(len(u.u1))
        second, valid = resample(second, u.views1, u.views2, (second.shape[-2], second.shape[-1]))
        return tuple(F.normalize(f, dim=1) for f in (*first, second)), valid

    # ------------------------------------------------------------------ rounds

    def rows(self, number: int) -> Iterable[tuple[bool, tuple[Tensor, ...]]]:
        """Cells of all photographs for the clustering of a round."""
        c, context = self.config, self.context
        seen, draw = 0, seeding.generator(context.seed, "round", number)
        for j, chunk in enumerate(chunks(len(context.data), c.crops.batch, draw)):
            random = seeding.generator(context.seed, "round", number, j, rank())
            u: WarpedPairs = self.setup.prepared(self.setup.streams["u"].draw(share(chunk.tolist()), random))
            views, valid = self.embed(self.labeller, u)
            taken = []
            for b in range(len(valid)):
                places = valid[b].flatten().nonzero()[:, 0].cpu()
                order = torch.randperm(len(places), generator=random)[: c.rounds.rows]
                taken.append(places[order] + b * valid[b].numel())
            at = torch.cat(taken).to(self.device)
            yield seen < c.rounds.first, tuple(z.permute(0, 2, 3, 1).flatten(0, 2)[at] for z in views)
            seen += len(chunk)

    @torch.no_grad()
    def cluster(self, number: int) -> dict[str, Any]:
        """Centroids, their numbers of cells and the mean squared distance to them, for [K, K2] and each view."""
        self.labeller.load_state_dict(self.network.state_dict())
        found = cluster_streams(self.context, self.config, self.counts, self.rows(number))
        return {
            "centers": [[v.centers.float() for v in of_k] for of_k in found],
            "counts": [[v.counts.float() for v in of_k] for of_k in found],
            "inertia": sum(v.inertia for v in found[0]) / len(found[0]),
        }

    def before_step(self, step: int) -> None:
        """A round where one is due; MDC's classifier then begins anew, the same in all processes."""
        if self.rounds.before_step(step) and self.heads is not None:
            # A step's own numbers differ by process.
            random = seeding.generator(self.context.seed, "heads", self.rounds.number)
            with torch.no_grad():
                for name, p in self.heads.named_parameters():
                    p.zero_() if name.endswith("bias") else p.copy_(0.01 * torch.randn(p.shape, generator=random))
            self.optimizers["heads"].state.clear()

    # ------------------------------------------------------------------ the step

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = sum over K, K2 of lambda (L_within + L_cross) / 2, or of MDC's one cross entropy."""
        c, u, clusters = self.config, batch["u"], self.rounds.result
        with torch.no_grad():
            as_clustered, valid = self.embed(self.labeller, u)
        z, _ = self.embed(self.network, u)
        terms: dict[str, list[Tensor]] = {"loss": [], "within": [], "cross": []}
        for n, (share_of, mu, counts) in enumerate(zip(self.shares, clusters["centers"], clusters["counts"])):
            y = [distance_scores(t, m).argmax(1).masked_fill(~valid, -1) for t, m in zip(as_clustered, mu)]
            w = [class_weights(x, c.loss.balance) for x in counts]
            if c.mdc:
                logits = scores(z[0], mu[0]) if self.heads is None else self.heads[n](z[0])
                within = loss = weighted_cross_entropy(logits, y[0], w[0])
                cross = None
            else:
                within, cross = within_and_cross((z[0], z[1]), (y[0], y[1]), (mu[0], mu[1]), (w[0], w[1]))
                loss = {"both": (within + cross) / 2, "within": within, "cross": cross}[c.loss.terms]
                logits = scores(z[0], mu[0])
            for name, value in (("loss", loss), ("within", within), ("cross", cross)):
                if value is not None:
                    terms[name].append(share_of * value)
            if n == 0:
                health = self.health(logits.detach(), valid)
        total = {name: torch.stack(values).sum() for name, values in terms.items() if values}
        if not c.mdc:
            total["mse"] = view_distance(z[0], z[1], valid)
            if c.loss.mse:
                total["loss"] = (total["loss"] + total["mse"]) / 2
        return total | {"inertia": total["loss"].new_tensor(clusters["inertia"])} | health

    def after_step(self, step: int) -> None:
        """Watches for collapse."""
        self.health.after_step(step)


# --------------------------------------------------------------------- method


class Picie(CropMethod):
    """A network that fits clusters of its own features under changes of colour and place."""

    name: ClassVar[str] = "picie"
    title: ClassVar[str] = "PiCIE: Unsupervised Semantic Segmentation using Invariance and Equivariance in Clustering"
    venue: ClassVar[str] = "Cho et al., CVPR 2021"
    link: ClassVar[str] = "https://arxiv.org/abs/2103.17070"
    summary: ClassVar[str] = "Clusters that survive colours and windows."
    Config: ClassVar[type] = PicieConfig
    trainer: ClassVar[type[Training]] = PicieTraining
    says: ClassVar[str] = "rounds of clusters, and a network that fits them from two views"
    config: PicieConfig

    def stages(self) -> list[Stage]:
        """Train, cluster."""
        says = "k-means of whole photographs under the trained network"
        if self.config.readout.by == "rounds":
            says = "the last round's classifier"
        return [*super().stages(), Stage("cluster", "fit", self.cluster, says)]

    def network(self) -> Network:
        """The trained network."""
        return trained(self.context.run.path / "train", "network", picie_network(self.context, self.config))

    def cluster(self, folder: Path) -> None:
        """The classifier of unit features: its weight (K, E) and bias (K,)."""
        weight, bias = self.of_rounds() if self.config.readout.by == "rounds" else self.of_photographs()
        if self.context.run.writes:
            save_tensors(folder / CENTERS, {"weight": weight.float().cpu(), "bias": bias.float().cpu()})

    def of_rounds(self) -> tuple[Tensor, Tensor]:
        """The last round's centroids of view 1, or MDC's learned classifier."""
        left = stage_parts(self.context.run.path / "train" / CHECKPOINT)
        weight: Tensor = left["extra.rounds"]["result"]["centers"][0][0]
        bias = torch.zeros(len(weight))
        if heads := left.get("module.heads"):
            weight, bias = heads["0.linear.weight"][:, :, 0, 0], heads["0.linear.bias"]
        if len(weight) != self.context.classes:
            raise MaskwrightError(
                f"readout.by=rounds with {len(weight)} clusters in training and {self.context.classes} asked for",
                "the same number", "leave rounds.count out, or take readout.by=clusters",
            )  # fmt: skip
        return weight, bias

    @torch.no_grad()
    def of_photographs(self) -> tuple[Tensor, Tensor]:
        """Centroids mu of whole photographs, under the batch-norm statistics that the segmenter will have, and biases
        -|mu|^2 / 2, with which the nearest is the largest."""
        c, context = self.config, self.context
        network = self.network().to(context.device)
        preprocess = make_preprocess(c, network)
        retake(context, c, network, preprocess, range(len(context.data)))

        def embed(x: Tensor) -> Tensor:
            return F.normalize(network.decode(network.features(x)).float(), dim=1)

        def batches() -> Iterable[tuple[bool, tuple[Tensor, ...]]]:
            seen = 0
            for chunk in chunks(len(context.data), c.crops.batch, seeding.generator(context.seed, "cluster")):
                rows = live_rows(context, embed, preprocess, 0, c.rounds.rows, chosen=chunk.tolist())
                yield seen < c.rounds.first, (rows,)
                seen += len(chunk)

        with as_it_stands(network):
            found = cluster_streams(context, c, [context.classes], batches())[0][0]
        return found.centers, -0.5 * found.centers.square().sum(1)

    def segmenter(self) -> Segmenter:
        """The network, and products of its unit features with the centroids, and their biases."""
        k, network = self.context.classes, self.network()
        found = self.context.run.tensors("cluster", CENTERS, {"weight": "KE", "bias": "K"})
        classifier, over = LinearClassifier(network.width, k), self.config.readout.temperature
        classifier.linear.load_state_dict(
            {"weight": found["weight"][..., None, None] / over, "bias": found["bias"] / over}
        )
        network.classifier = Sequential(L2Norm(), classifier)
        return make_segmenter(self.context, self.config, network, self.name, range(len(self.context.data)))

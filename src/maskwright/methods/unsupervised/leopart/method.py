"""Leopart: Self-Supervised Learning of Object Parts for Semantic Segmentation.

Ziegler & Asano, CVPR 2022, https://arxiv.org/abs/2204.13101.

A pretrained network is tuned so that its tokens tell, in one crop, which prototype a teacher assigns the same place in
another crop, on the foreground alone. Clusters of the tuned tokens are parts of objects. Cluster-based foreground
extraction (CBFE) calls those clusters background that lie where attention does not; finer clusters of the rest are
nodes of a graph whose links say who touches whom, and its communities are the classes.

Deviates: any backbone. Without a class token foreground is the object of a spectral cut, or an input (`--input
saliency=PLACE`). CBFE's threshold is the middle of the largest gap of the clusters' precisions, and reads no label
(`oracle_threshold`, off, is the authors' sweep; void pixels do not count in its IoU, in theirs they are foreground).
Clusters are of the training photographs, which keep their shape, and predict others; the authors cluster train and val
together, squeezed to a square. k-means is spherical throughout. There are at most as many communities as classes asked
for, the rest joined. Communities are infomap's where that is installed, else by our search of the same map equation;
the run says which. Bins of float32 just below 1 count as foreground. Where fewer foreground tokens than `queued` are
there, all enter the queue. One teacher pass more than the authors for its attention.

What the original gets wrong: CBFE's threshold, the fine clusters' number, weight and Markov time are chosen on masks,
and the figures called fully unsupervised stand on them; a mask of ones drops bins by rounding; too few foreground
tokens, or a part of one or two cells, end the run; diagonal neighbours count twice and those at distance 2 never
(kept: the weights are in that measure); a forced number of communities is unstable from seed to seed.

Legend: G and K clusters, E width of reduced features, C classes, (h, w) grid, (H, W) photograph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.proposals import Proposals
from maskwright.data.trust.artefacts import write_record
from maskwright.engine import seeding
from maskwright.engine.config import refuse_idle
from maskwright.engine.context import Context
from maskwright.engine.contract import Method, Stage
from maskwright.engine.distributed import gather_objects, share
from maskwright.engine.forecast import photographs_shown
from maskwright.engine.needs import InputNeed, Terms
from maskwright.engine.result import assembled
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.leopart.communities import find_communities, searcher
from maskwright.methods.unsupervised.leopart.foreground import (
    INPUT,
    Cut,
    ForegroundMaps,
    cluster_precisions,
    gap_cut,
    on_grid,
    oracle_cut,
    propose_foreground,
    source_of,
    stored_maps,
    truth_on_grid,
)
from maskwright.methods.unsupervised.leopart.options import LeopartConfig
from maskwright.methods.unsupervised.leopart.training import LeopartTraining, trained_encoder
from maskwright.models.parts.foreground_clusters import ForegroundClusters
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.clustering.kmeans import assign
from maskwright.ops.graphs.communities import co_occurrence
from maskwright.recipes.clustering import cluster_rows, fewer_clusters
from maskwright.recipes.frozen.features import (
    REDUCTION,
    FrozenFeatures,
    ReducedMaps,
    encoded_features,
    fit_reduction,
    projection,
)
from maskwright.recipes.proposals.making import PROPOSALS

REDUCED, GATE, CLUSTERS, CUT = "reduction.safetensors", "gate.safetensors", "clusters.safetensors", "cut.json"


class Leopart(Method):
    """Dense clustering of tokens, foreground by clusters, communities."""

    name: ClassVar[str] = "leopart"
    title: ClassVar[str] = "Self-Supervised Learning of Object Parts for Semantic Segmentation"
    venue: ClassVar[str] = "Ziegler & Asano, CVPR 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2204.13101"
    summary: ClassVar[str] = "Tunes tokens, joins parts that touch."
    family: ClassVar[str] = "unsupervised"
    classes_from: ClassVar[Literal["labels", "clusters", "objects"]] = "clusters"
    inputs: ClassVar[Mapping[str, InputNeed]] = {
        INPUT: InputNeed(says="what stands out: soft maps, objects or masks", kind="proposals", required=False)
    }
    Config: ClassVar[type] = LeopartConfig
    config: LeopartConfig

    def __init__(self, config: LeopartConfig, context: Context) -> None:
        super().__init__(config, context)
        self.by = source_of(context, config.foreground)
        if self.by != "attention":
            told = ("foreground.mass", "foreground.smallest"), f"foreground.by={config.foreground.by}, here {self.by}"
            refuse_idle(config, [told])
        if INPUT in context.inputs and not (config.foreground.use or config.cbfe.use):
            raise MaskwrightError(
                f"--input {INPUT} with foreground.use=false and cbfe.use=false", "a use", "leave it out"
            )
        self.searcher = searcher(config.communities.by) if config.communities.use else ""
        if (config.cbfe.use or config.communities.use) and context.classes < 2:
            raise MaskwrightError(f"--classes {context.classes}, class 0 among them", "at least 2", "ask for more")

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """The steps of the options; masks choose CBFE's threshold where that is asked for."""
        return replace(super().terms(config, images), steps=config.steps, peeks=config.cbfe.oracle_threshold)

    @property
    def refinement(self) -> str:
        """The dense CRF, where that is asked for."""
        return "crf" if self.config.readout.crf else "none"

    @property
    def steps(self) -> int:
        """Of the training."""
        return int(self.context.steps or self.config.steps)

    def tail(self) -> float:
        """A pass over all photographs and one over those that the report shows, each about what a step of as many crops
        costs."""
        return (len(self.context.data) + photographs_shown(self)) / self.config.crops.batch

    def stages(self) -> list[Stage]:
        """Foreground, train, reduce, cbfe, cluster; those that are not needed are left out."""
        c = self.config
        looks = self.by != INPUT and (c.cbfe.use or (c.foreground.use and self.by != "attention"))
        joined = f", communities by {self.searcher}" if c.communities.use else ""
        stages = [
            (looks, Stage("foreground", "label", self.foreground, f"foreground of each photograph, by {self.by}")),
            (True, Stage("train", "train", self.train, "tokens that predict each other's prototypes", self.steps)),
            (True, Stage("reduce", "fit", self.reduce, "PCA of the tuned tokens")),
            (c.cbfe.use, Stage("cbfe", "fit", self.cbfe, "which clusters are foreground")),
            (True, Stage("cluster", "fit", self.cluster, f"clusters{joined}")),
        ]
        return [stage for needed, stage in stages if needed]

    # ------------------------------------------------------------------ foreground and training

    def foreground(self, folder: Path) -> None:
        """A store of foreground masks, which another run takes by `--input NAME=RUN`."""
        propose_foreground(self.context, self.config.foreground, self.by, self.config.features.short_side, folder)

    @cached_property
    def maps(self) -> ForegroundMaps:
        """Foreground of whole photographs."""
        store = self.context.input(INPUT) if self.by == INPUT else None
        if store is None:
            store = Proposals(self.context.run.path / "foreground" / PROPOSALS)
        assert isinstance(store, Proposals)
        return stored_maps(self.context, store)

    def train(self, folder: Path) -> None:
        """Trains backbone, projection and prototypes."""
        c, context = self.config, self.context
        if c.foreground.use or c.cbfe.use:
            context.note(f"Foreground by {self.by}.")
        if c.features.layers is None and not context.backbone.is_vit:
            context.note(
                f"{context.backbone.name} is convolutional: its cells take the place of a transformer's tokens."
            )
        maps = self.maps if c.foreground.use and self.by != "attention" else None
        training = LeopartTraining(context, c, self.steps, maps)
        context.fit(training, "train", folder, self.steps)

    # ------------------------------------------------------------------ clusters

    @cached_property
    def features(self) -> FrozenFeatures:
        """Tokens of whole photographs by the trained student."""
        encoder = trained_encoder(self.context, self.config).to(self.context.device)
        return encoded_features(self.context, encoder, self.config.features.short_side)

    def reduce(self, folder: Path) -> None:
        """PCA of tokens whose channels are standardised."""
        draw = seeding.generator(self.context.seed, "reduce")
        found = fit_reduction(self.features, self.config.reduction, draw, scale=self.features.std)
        if self.context.run.writes:
            save_tensors(folder / REDUCED, found)

    @cached_property
    def reduced(self) -> ReducedMaps:
        """Reduced unit features of each photograph."""
        t = self.context.run.tensors("reduce", REDUCED, REDUCTION)
        return ReducedMaps(self.features, projection(t, normalize=True))

    def rows(self, purpose: str, keep: Any = None) -> Tensor:
        """Cells of this process's photographs (N, E), about as many as the options say, the same number of each.

        Args:
            purpose: of the draw.
            keep: index of a photograph to bool (h, w), which cells; None: all.
        """
        images = range(len(self.context.data))
        each = max(1, self.config.reduction.max_rows // len(images))
        rows = []
        for i in share(images):
            f = self.reduced[i].flatten(1).T
            f = f if keep is None else f[torch.from_numpy(keep(i).ravel())]
            rows.append(f[torch.randperm(len(f), generator=seeding.generator(self.context.seed, purpose, i))[:each]])
        return torch.cat(rows)

    def clustered(self, rows: Tensor, asked: int, least: int = 1) -> Tensor:
        """Centres of spherical k-means of all processes' rows, fewer than asked for where there are few."""
        count = fewer_clusters(self.context, asked, rows, least)
        return cluster_rows(self.context, rows, self.config.clusters, count).centers

    def ids(self, i: int, centers: Tensor) -> np.ndarray:
        """Nearest centres of the cells of a photograph, int64 (h, w)."""
        f = self.reduced[i]
        return assign(f.flatten(1).T, centers, "cosine")[0].view(f.shape[1:]).numpy()

    def everywhere(self, make: Any) -> list[Any]:
        """Something of each photograph, of all processes, in their order."""
        images = range(len(self.context.data))
        found = dict(pair for part in gather_objects([(i, make(i)) for i in share(images)]) for pair in part)
        return [found[i] for i in images]

    # ------------------------------------------------------------------ CBFE

    def cbfe(self, folder: Path) -> None:
        """Clusters and which of them are foreground."""
        centers = self.clustered(self.rows("cbfe"), self.config.cbfe.count, 2)
        ids = self.everywhere(lambda i: self.ids(i, centers))
        masks = [on_grid(self.maps(i), (x.shape[0], x.shape[1])) for i, x in enumerate(ids)]
        precisions = cluster_precisions(ids, masks, len(centers))
        cut = self.cut(precisions, ids)
        kept = np.nan_to_num(precisions) >= cut.threshold
        cells = float(np.mean([kept[x].mean() for x in ids]))
        self.context.note(
            f"CBFE: {int(kept.sum())} of {len(kept)} clusters are foreground, {100 * cells:.0f} % of the cells "
            f"(threshold {cut.threshold:.2f}, {cut.how})."
        )
        if not kept.any() or kept.all():
            raise MaskwrightError(
                f"{'no' if not kept.any() else 'every'} cluster is foreground at {cut.threshold:.2f}",
                f"some, by precisions from {np.nanmin(precisions):.2f} to {np.nanmax(precisions):.2f}",
                "begin a new run with --set cbfe.threshold between these, or with cbfe.use=false",
            )
        if self.context.run.writes:
            save_tensors(folder / GATE, {"gate": centers, "foreground": torch.from_numpy(kept).long()})
            write_record(folder / CUT, {"threshold": cut.threshold, "how": cut.how, "iou": cut.iou, "cells": cells})

    def cut(self, precisions: np.ndarray, ids: list[np.ndarray]) -> Cut:
        """The threshold of precisions: given, the largest gap, or the authors' by masks."""
        c, data = self.config.cbfe, self.context.data
        if c.threshold is not None:
            return Cut(c.threshold, "given")
        if not c.oracle_threshold:
            return gap_cut(precisions, c)
        masked = [i for i in range(len(data)) if data.has_mask(i)]
        if not masked:
            raise MaskwrightError(f"{data.root} has no mask", "masks for oracle_threshold", "leave it off")
        with data.ledger.purpose("select"):
            truth, known = zip(*(truth_on_grid(data.mask(i), (ids[i].shape[0], ids[i].shape[1])) for i in masked))
        self.context.note("CBFE's threshold is chosen on masks (oracle_threshold): not label-free.")
        return oracle_cut(np.nan_to_num(precisions), [ids[i] for i in masked], truth, c, known)

    def gate(self) -> tuple[Tensor | None, Tensor | None]:
        """The artefact of `cbfe`: centres (G, E), and which are foreground (G,)."""
        if not self.config.cbfe.use:
            return None, None
        t = self.context.run.tensors("cbfe", GATE, {"gate": "GE", "foreground": ("i", "G")})
        return t["gate"], t["foreground"]

    # ------------------------------------------------------------------ classes

    def cluster(self, folder: Path) -> None:
        """Centres (K, E) with their classes, and the background's class."""
        c, classes = self.config, self.context.classes
        gate, foreground = self.gate()
        kept = None if gate is None or foreground is None else (lambda i: foreground.numpy()[self.ids(i, gate)] > 0)
        rows = self.rows("cluster", kept)
        ground = int(c.cbfe.use)
        if not c.communities.use:
            centers = self.clustered(rows, classes - ground, classes - ground)
            class_of, background = torch.arange(classes - ground) + ground, 0
        else:
            centers = self.clustered(rows, c.communities.count, classes - ground)
            of_all = self.communities(centers, kept)
            class_of, background = of_all[: len(centers)], int(of_all[-1]) if ground else 0
        if self.context.run.writes:
            found = {"centers": centers, "class_of": class_of, "background": torch.tensor([background])}
            save_tensors(folder / CLUSTERS, found)

    def communities(self, centers: Tensor, kept: Any) -> Tensor:
        """The class of each fine cluster, and last that of the background where there is one: 0 for those without
        links, 1 and more for communities, which begin at 0 where all have links."""
        c, context, k = self.config.communities, self.context, len(centers)

        def nodes(i: int) -> np.ndarray:
            ids = self.ids(i, centers)
            return enlarged(ids if kept is None else np.where(kept(i), ids, k), c.grid)

        count = k + (kept is not None)
        p = co_occurrence(self.everywhere(nodes), count)
        wanted, most = context.classes - 1, context.classes
        found = find_communities(p, c.weight, c.markov_time, wanted, self.searcher, context.seed, most)
        first = int((found.modules < 0).any())
        if not first:  # no cluster is without links: one class more is left for communities
            found = find_communities(p, c.weight, c.markov_time, most, self.searcher, context.seed, most)
        class_of = np.where(found.modules < 0, 0, found.modules + first)
        made, alone = int(found.modules.max()) + 1, int((found.modules < 0).sum())
        context.note(
            f"{made} communities of {count} clusters, found by {found.by}; {alone} without links are class 0"
            + (f"; background is class {class_of[-1]}" if kept is not None else "")
            + (f"; links from {found.weight:.4g} on, so that enough are linked." if found.weight != c.weight else ".")
        )
        if made + first < most:
            context.note(f"{most - made - first} of {most} classes have no cluster.")
        return torch.from_numpy(class_of)

    def segmenter(self) -> Segmenter:
        """The student's encoder, PCA, and clusters as classes."""
        shape: dict[str, str | tuple[str, str]] = {"centers": "KE", "class_of": ("i", "K"), "background": ("i", "1")}
        t = self.context.run.tensors("cluster", CLUSTERS, shape)
        gate, foreground = self.gate()
        classifier = ForegroundClusters(
            t["centers"], t["class_of"], self.context.classes, gate, foreground, int(t["background"]),
            self.config.readout.temperature,
        )  # fmt: skip
        reduction = projection(self.context.run.tensors("reduce", REDUCED, REDUCTION), normalize=True)
        encoder = self.features.encoder.cpu()
        return assembled(self, encoder, reduction, classifier, self.features.preprocess)


def enlarged(ids: np.ndarray, side: int) -> np.ndarray:
    """Ids (h, w) at a grid of side x side cells, nearest; as they are where side is 0."""
    if not side:
        return ids
    rows, columns = (np.arange(side) * n // side for n in ids.shape)
    return ids[rows][:, columns]

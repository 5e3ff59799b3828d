"""Looking Beyond Single Images for Contrastive Semantic Segmentation Learning.

Zhang, Torr, Ranftl, Richter, NeurIPS 2021,
https://proceedings.neurips.cc/paper/2021/hash/1a68e5f4ade56ed1d4bf273e55510750-Abstract.html.

Frozen features of all photographs are clustered; each pixel gets the label of its centroid, and superpixels vote on
these labels, which so link regions of different photographs. A network then learns to draw pixels of one label
together and those of others apart, in whichever photographs they lie. Here a clustering of its features follows, so
that the result segments without a label; the trained network is also a start for a few masks (`--weights RUN --method
supervised`), which is what the paper reports.

Deviates, and guessed: neither code nor the full text could be had. The abstract says that auxiliary labels come from
existing networks, cross photographs and supervise a contrastive loss. Guessed are PCA, the number of clusters, SLIC,
votes weighed by the margin of the two nearest centroids, the loss (each positive against all negatives, other
positives left out), temperature, projection, what is drawn (labels of two photographs at least, as many pixels of
each, not those of least margin), optimiser and steps. The paper's measure of labels is unknown too: `labels.judge`
writes purity, mutual information and pairs. Labels of a segmenter that saw masks, the paper's other source, are taken
by `--input labels=PLACE`. Photographs are labelled at `labels.side` pixels.

What the original gets wrong: not known.

Legend: K clusters of the data set, C classes asked for, D width, (h, w) grid, (H, W) photograph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.training.labels import LabelStore
from maskwright.data.training.proposals import Proposals
from maskwright.data.training.sources import StoredLabels
from maskwright.data.trust.artefacts import write_record
from maskwright.engine import seeding
from maskwright.engine.config import refuse_idle
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import each, gather_objects, share
from maskwright.engine.loop import Training
from maskwright.engine.needs import InputNeed, Terms
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.looking_beyond.labelling import labelled, own_superpixels
from maskwright.methods.unsupervised.looking_beyond.options import OF_DICTIONARY, LookingBeyondConfig
from maskwright.methods.unsupervised.looking_beyond.training import LookingBeyondTraining
from maskwright.models.parts.heads import CosineClassifier
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.label_quality import label_counts, label_quality
from maskwright.recipes.clustering import cluster_rows, fewer_clusters
from maskwright.recipes.clustering_health import clustering_health, collapse
from maskwright.recipes.frozen.features import (
    CLUSTERED,
    FrozenFeatures,
    decoded_rows,
    fit_reduction,
    frozen_features,
    learned_features,
    projection,
)
from maskwright.recipes.proposals.making import PROPOSALS, propose
from maskwright.recipes.training.method import CropMethod
from maskwright.recipes.training.network import make_segmenter, network_rows

DICTIONARY, CENTERS, QUALITY = "dictionary.safetensors", "centers.safetensors", "quality.json"
INPUT = "labels"


def check_links(store: Proposals) -> None:
    """Raises `MaskwrightError` where ids of a store mean something within one photograph alone, or are none."""
    if store.holds in ("regions", "soft"):
        raise MaskwrightError(
            f"--input {INPUT}: {store.folder} holds {store.holds}", "labels that mean the same in all photographs",
            "give masks of a model or clusters, or leave it out",
        )  # fmt: skip


def with_counts(total: np.ndarray, one: np.ndarray, linked: bool) -> np.ndarray:
    """Counts (K, C) with those of one photograph more: its labels are those of the others, or further ones where they
    are not linked."""
    k, c = total.shape[0], max(total.shape[1], one.shape[1])
    rows, first = (max(k, len(one)), 0) if linked else (k + len(one), k)
    counts = np.zeros((rows, c), np.int64)
    counts[:k, : total.shape[1]] = total
    counts[first : first + len(one), : one.shape[1]] += one
    return counts


class LookingBeyond(CropMethod):
    """Labels that link photographs, contrast between their pixels, clusters."""

    name: ClassVar[str] = "looking_beyond"
    title: ClassVar[str] = "Looking Beyond Single Images for Contrastive Semantic Segmentation Learning"
    venue: ClassVar[str] = "Zhang et al., NeurIPS 2021"
    link: ClassVar[str] = (
        "https://proceedings.neurips.cc/paper/2021/hash/1a68e5f4ade56ed1d4bf273e55510750-Abstract.html"
    )
    summary: ClassVar[str] = "Contrasts pixels across photographs."
    inputs: ClassVar[Mapping[str, InputNeed]] = {
        INPUT: InputNeed(says="auxiliary labels of a weak segmenter", kind="proposals", required=False)
    }
    Config: ClassVar[type] = LookingBeyondConfig
    config: LookingBeyondConfig

    def __init__(self, config: LookingBeyondConfig, context: Any) -> None:
        super().__init__(config, context)
        self.given = INPUT in context.inputs
        if self.given:
            check_links(context.input(INPUT))
        if self.given and config.labels.by != "clusters":
            raise MaskwrightError(
                f"--input {INPUT} and labels.by={config.labels.by}", "one of the two", "leave one out"
            )
        if self.given:
            made = (*OF_DICTIONARY, *(f"labels.{n}" for n in ("count", "superpixels", "compactness", "side")))
            refuse_idle(config, [(made, f"--input {INPUT}")])
        if config.labels.by == "superpixels" and not config.labels.superpixels:
            raise MaskwrightError(
                "labels.by=superpixels without superpixels", "labels.superpixels above 0", "give some"
            )

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """Auxiliary labels are judged where that is asked for."""
        return replace(super().terms(config, images), judges=config.labels.judge)

    @property
    def refinement(self) -> str:
        """The dense CRF, where that is asked for."""
        return "crf" if self.config.readout.crf else "none"

    @property
    def linked(self) -> bool:
        """Whether a label means the same in all photographs."""
        return self.config.labels.by == "clusters"

    def stages(self) -> list[Stage]:
        """Dictionary, label, judge, train, cluster; those that are not needed are left out."""
        c = self.config.labels
        says = (
            "clusters of all photographs, voted on by superpixels" if c.superpixels else "clusters of all photographs"
        )
        stages = [
            (self.linked and not self.given, Stage("dictionary", "fit", self.dictionary, "k-means of frozen features")),
            (not self.given, Stage("label", "label", self.label, says if self.linked else "superpixels alone")),
            (c.judge, Stage("judge", "fit", self.judge, "how well these labels tell the masks' classes")),
            (True, Stage("train", "train", self.train, "contrast of labelled pixels across photographs", self.steps)),
            (True, Stage("cluster", "fit", self.cluster, "k-means under the trained network")),
        ]
        return [stage for needed, stage in stages if needed]

    # ------------------------------------------------------------------ auxiliary labels

    @cached_property
    def features(self) -> FrozenFeatures:
        """Of the backbone that the run starts from."""
        c = self.config.features
        return frozen_features(self.context, short_side=c.short_side, layers=c.layers, kind=c.kind)

    @cached_property
    def learned(self) -> FrozenFeatures:
        """What the data set's clusters are learned from."""
        c = self.config.features
        return self.features if c.whole else learned_features(self.context, c)

    def dictionary(self, folder: Path) -> None:
        """PCA and the data set's centroids."""
        c, context = self.config, self.context
        draw = seeding.generator(context.seed, "dictionary")
        found = fit_reduction(self.learned, c.reduction, draw)
        rows = decoded_rows(
            self.learned, projection(found, normalize=True), max_rows=c.reduction.max_rows, generator=draw,
            device=torch.device("cpu"),
        )  # fmt: skip
        count = fewer_clusters(context, c.labels.count, rows, least=2)
        centers = cluster_rows(context, rows, c.clusters, count).centers
        if context.run.writes:
            save_tensors(folder / DICTIONARY, {**found, "centers": centers})

    def label(self, folder: Path) -> None:
        """A store of the labels of each photograph."""
        c, context, images = self.config.labels, self.context, self.context.data
        if not self.linked:
            propose(
                context, folder, "regions", "looking_beyond, superpixels", lambda i: own_superpixels(images.image(i), c)
            )
            return
        t, store = self.words(), self.store()
        reduce = projection(t, normalize=True)
        for i in each(context.progress, range(len(images)), "label", done=lambda i: images.names[i] in store):
            with torch.no_grad():
                f = reduce(self.features.store[i].float()[None])[0]
            store.write(images.names[i], labelled(f, t["centers"], images.image(i), c), images.items[i].image)

    def words(self) -> dict[str, Tensor]:
        """The artefact of `dictionary`: the reduction and the centroids."""
        return self.context.run.tensors("dictionary", DICTIONARY, CLUSTERED)

    def store(self) -> LabelStore:
        """Where the labels of clusters lie: a data set of K classes."""
        return LabelStore(self.context.run.path / "label" / "labels", ClassTable.numbered(len(self.words()["centers"])))

    @cached_property
    def auxiliary(self) -> StoredLabels:
        """The labels that are trained on."""
        if self.linked and not self.given:
            return StoredLabels(self.context.data, self.store())
        store = self.context.input(INPUT) if self.given else Proposals(self.context.run.path / "label" / PROPOSALS)
        assert isinstance(store, Proposals)
        return StoredLabels(self.context.data, store)

    def judge(self, folder: Path) -> None:
        """Purity, mutual information and pairs of the labels against the masks that may be read."""
        data, counts = self.context.data, np.zeros((0, 0), np.int64)
        masked = [i for i in self.auxiliary.indices if data.has_mask(i)]
        if not masked:
            raise MaskwrightError(f"{data.root} has no mask that may be read", "masks for labels.judge", "leave it off")
        with data.ledger.purpose("evaluate"):
            for found in gather_objects([self._counts(i) for i in share(masked)]):
                for one in found:
                    counts = with_counts(counts, one, self.linked)
        figures = label_quality(counts)
        self.context.note(
            "Auxiliary labels against masks: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()) + "."
        )
        if self.context.run.writes:
            write_record(folder / QUALITY, {"photographs": len(masked), **figures})

    def _counts(self, i: int) -> np.ndarray:
        labels, mask = self.auxiliary.read(i), self.context.data.mask(i)
        known = labels.valid.numpy() & (mask != ignore_of(mask))
        a, b = labels.ids.numpy()[known].astype(np.int64), mask[known].astype(np.int64)
        if not self.linked:
            a = np.unique(a, return_inverse=True)[1].reshape(-1)
        return label_counts(a, b)

    # ------------------------------------------------------------------ training and clusters

    def training(self, steps: int) -> Training:
        """On the auxiliary labels."""
        if left := len(self.context.data) - len(self.auxiliary.indices):
            self.context.note(f"{left} photographs without labels are left out of the training.")
        if self.config.preset == "paper":
            self.context.note("Preset paper: no number of the paper's own could be had; all of them are guesses.")
        return LookingBeyondTraining(self.context, self.config, steps, self.auxiliary, self.linked)

    def cluster(self, folder: Path) -> None:
        """Centroids (C, E) of whole photographs, or of crops."""
        c, context = self.config, self.context
        rows = F.normalize(network_rows(context, c, self.network(), c.rows, c.features.crop), dim=1)
        found = cluster_rows(context, rows, c.clusters)
        told = collapse(clustering_health(found.labels.cpu(), context.classes), context.classes)
        if told is not None:
            context.note(told)
        if context.run.writes:
            save_tensors(folder / CENTERS, {"centers": found.centers.float().cpu()})

    def segmenter(self) -> Segmenter:
        """The network, and cosines of its features to the centroids."""
        network = self.network()
        centers = self.context.run.tensors("cluster", CENTERS, {"centers": "CE"})["centers"]
        network.classifier = CosineClassifier(centers, self.config.readout.temperature)
        return make_segmenter(self.context, self.config, network, self.name, range(len(self.context.data)))

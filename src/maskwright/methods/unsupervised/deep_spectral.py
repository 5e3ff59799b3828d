"""Deep Spectral Methods: A Surprisingly Strong Baseline for Unsupervised Semantic Segmentation and Localization.

Melas-Kyriazi, Rupprecht, Laina, Vedaldi, CVPR 2022, https://arxiv.org/abs/2205.07839.

The smallest eigenvectors of a graph over a photograph's patches, with deep features and colour as its affinity, are
soft segments. They give the object and its box, segments, and after clustering the segments of all photographs a
class for each of them; a segmentation head trained on these labels makes them consistent and works on new
photographs.

Deviates: the object is what lies far from the border in commute time over all vectors (`object=border`); the paper
takes the smaller side of the Fiedler vector (`object=fiedler`; `fiedler_border` the side that touches the border less),
which needs features whose first cut is the object. Object maps are sharpened by a guided filter where the paper has a
CRF. Segments are described by their mean feature, not by the class token of a crop. With scenes every segment is
clustered; with objects the segments that lie in the object are, and the rest is class 0. Self-training happens on
frozen features.

What the original gets wrong: cluster 0 collides with the background and is silently merged with it; k-means runs
without a seed, and its README warns of the variance; self-training labels are remapped by a matching that was made
with masks; images are cropped, not resized, to whole patches, which loses the right and lower rim.

Legend: N positions of one photograph, k eigenvectors, S segments of all photographs, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.masking.classes import BACKGROUND_NAMES
from maskwright.data.masking.masks import read_mask, write_mask
from maskwright.data.training.proposals import Proposals
from maskwright.data.trust.artefacts import write_record
from maskwright.data.trust.files import file_for
from maskwright.engine import seeding
from maskwright.engine.checkpoint import trained
from maskwright.engine.config import Idle, option, part
from maskwright.engine.context import Context
from maskwright.engine.contract import Method, Stage
from maskwright.engine.distributed import all_reduce_sum, barrier, each, sampler, share
from maskwright.engine.loop import Indices, Training
from maskwright.engine.needs import Terms
from maskwright.engine.result import assembled
from maskwright.engine.schedules import cosine
from maskwright.engine.seeding import derive
from maskwright.engine.shown import Shown
from maskwright.models.backbones.dense import autocast
from maskwright.models.parts.heads import ConvDecoder, CosineClassifier, LinearClassifier, Projection, Sequential
from maskwright.models.preprocess import MAX_SIDE
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.clustering.kmeans import kmeans
from maskwright.ops.graphs.objectness import border_nodes
from maskwright.ops.graphs.spectral import eigengap
from maskwright.ops.refinement.components import bounding_box, largest_component
from maskwright.recipes.clustering import ClusterOptions, cluster_rows
from maskwright.recipes.frozen.batches import stacked_by_shape
from maskwright.recipes.frozen.features import (
    REDUCTION,
    FrozenFeatures,
    fit_reduction,
    frozen_features,
    head_precision,
    projection,
)
from maskwright.recipes.frozen.options import ReadoutOptions, ReductionOptions
from maskwright.recipes.proposals.showing import object_strips
from maskwright.recipes.proposals.spectral_objects import (
    GraphOptions,
    ObjectOptions,
    graph_features,
    object_map,
    object_mask,
    spectrum,
)

LABELS = "labels.safetensors"
SEGMENT_RESTARTS = 10
"""Starts of each photograph's k-means, scikit-learn's number when the paper's code was written."""


@dataclass(kw_only=True)
class SegmentOptions:
    """The segments of one photograph."""

    count: int = option(
        15, "segments a photograph; 0: as many as eigenvalues lie below their largest gap", low=0, high=65_536,
        old="segments", main=True,
    )  # fmt: skip
    background: str = option(
        "auto",
        "class 0 is the background segment (zero), or all segments are clustered",
        choices=("auto", "zero", "cluster"),
        main=True,
    )


@dataclass(kw_only=True)
class HeadOptions:
    """The head that is trained on the labels made."""

    train: bool = option(True, "train a head on the labels made", old="self_train", main=True)
    steps: int = option(1000, "optimiser steps of self-training; --steps overrides it", low=1, main=True)
    batch: int = option(8, "photographs a step", low=1)
    hidden: int = option(128, "width of the self-trained head", low=8)
    lr: float = option(1e-3, "AdamW's learning rate", low=0.0, main=True)
    precision: str = option(
        "auto", "of the head's forward pass: bf16 on a GPU, fp32 on a CPU; or as said", choices=("auto", "bf16", "fp32")
    )


@dataclass(kw_only=True)
class DeepSpectralConfig:
    """Options of `deep_spectral`."""

    short_side: int = option(320, "pixels; shorter side of the network's input", low=16, high=MAX_SIDE, main=True)
    graph: GraphOptions = part(GraphOptions)
    objects: ObjectOptions = part(ObjectOptions)
    segments: SegmentOptions = part(SegmentOptions)
    reduction: ReductionOptions = part(
        ReductionOptions, without=("whiten",),
        says={"dim": "channels of a segment's feature kept by PCA before clustering; 0 keeps all",
              "max_rows": "positions for PCA"},
    )  # fmt: skip
    clusters: ClusterOptions = part(
        ClusterOptions, without=("iterations",), says={"restarts": "starts of the k-means over segments"}
    )
    head: HeadOptions = part(HeadOptions)
    readout: ReadoutOptions = part(ReadoutOptions, without=("temperature",))

    def idle(self) -> Idle:
        """Options of a head where none is trained."""
        if not self.head.train:
            yield [f"head.{name}" for name in ("steps", "batch", "hidden", "lr", "precision")], "head.train=false"


class SelfTraining(Training):
    """Cross-entropy of a head on frozen features against the labels of the cluster stage.

    Args:
        context: of the run.
        features: what the head is trained on.
        labels: of each photograph, (h, w) on the grid of its features.
        head: to train.
        config: its options.
        steps: of the stage.
    """

    def __init__(
        self, context: Context, features: FrozenFeatures, labels: Sequence[Tensor], head: Sequential,
        config: HeadOptions, steps: int,
    ) -> None:  # fmt: skip
        self.store, self.labels, self.device = features.store, labels, context.device
        self.head, self.precision = head.to(self.device), head_precision(config.precision, self.device)
        self.modules = {"head": self.head}
        trained = [p for p in self.head.parameters() if p.requires_grad]
        self.optimizers = {"head": torch.optim.AdamW(trained, lr=config.lr, weight_decay=1e-4)}
        self.sampler = sampler(context.seed, len(labels), config.batch)
        self.schedule = cosine(steps)

    def batch(self, indices: Indices, random: torch.Generator) -> list[tuple[Tensor, ...]]:
        """Features (B, D, h, w) and labels (B, h, w) of photographs of each shape, mirrored at random."""
        drawn: list[tuple[Tensor, ...]] = []
        for i in indices:
            f, y = self.store[int(i)].float(), self.labels[int(i)]
            drawn.append((f.flip(-1), y.flip(-1)) if torch.rand((), generator=random) < 0.5 else (f, y))
        return stacked_by_shape(drawn)

    def on_device(self, batch: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        """The same, where the head is."""
        return [tuple(x.to(self.device) for x in group) for group in batch]

    def losses(self, batch: list[tuple[Tensor, ...]], step: int) -> dict[str, Tensor]:
        """Mean cross-entropy over photographs."""
        total, terms = sum(len(y) for _, y in batch), []
        for f, y in batch:
            with autocast(self.device, self.precision):
                logits = self.head(f)
            terms.append(F.cross_entropy(logits.float(), y) * (len(y) / total))
        return {"loss": torch.stack(terms).sum()}


class DeepSpectral(Method):
    """Eigenvectors, objects, segments, clusters of segments, self-training."""

    name: ClassVar[str] = "deep_spectral"
    title: ClassVar[str] = (
        "Deep Spectral Methods: A Surprisingly Strong Baseline for Unsupervised Semantic Segmentation and Localization"
    )
    venue: ClassVar[str] = "Melas-Kyriazi et al., CVPR 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2205.07839"
    summary: ClassVar[str] = "Cuts photographs by graph eigenvectors."
    family: ClassVar[str] = "unsupervised"
    classes_from: ClassVar[Literal["labels", "clusters"]] = "clusters"
    Config: ClassVar[type] = DeepSpectralConfig
    config: DeepSpectralConfig

    @property
    def refinement(self) -> str:
        """The dense CRF, where that is asked for."""
        return "crf" if self.config.readout.crf else "none"

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """The steps of the head, where one is trained."""
        return replace(super().terms(config, images), steps=config.head.steps if config.head.train else 0)

    @property
    def steps(self) -> int:
        """Of the head."""
        return int(self.context.steps or self.config.head.steps)

    def stages(self) -> list[Stage]:
        """Spectra, segments, cluster, self_train."""
        made = [
            Stage("spectra", "fit", self.spectra, "eigenvectors of each photograph's graph"),
            Stage("segments", "label", self.segments, "the object and the segments of each photograph"),
            Stage("cluster", "label", self.cluster, "clusters of all segments, as masks"),
        ]
        last = Stage("self_train", "train", self.self_train, "a head on the masks made", self.steps)
        return [*made, last] if self.config.head.train else made

    # ------------------------------------------------------------------ features

    @cached_property
    def graph_features(self) -> FrozenFeatures:
        """What the graph is made of: keys of the last block, or the stage of stride 16."""
        return graph_features(self.context, self.config.graph, self.config.short_side)

    @cached_property
    def features(self) -> FrozenFeatures:
        """What segments are described by and the head is trained on."""
        return frozen_features(self.context, short_side=self.config.short_side, layers=None)

    @property
    def names(self) -> list[str]:
        """Names of the photographs."""
        return self.context.data.names

    @property
    def has_background(self) -> bool:
        """Whether class 0 is the background segment."""
        if self.config.segments.background != "auto":
            return self.config.segments.background == "zero"
        known = self.context.data.classes
        named = known is not None and known.names[0].lower() in BACKGROUND_NAMES
        return named or self.context.classes == 2

    # ------------------------------------------------------------------ stages

    def spectra(self, folder: Path) -> None:
        """Eigenpairs of each photograph: `NAME.safetensors` with values (k,) and vectors (h, w, k)."""
        c, f = self.config.graph, self.graph_features

        def path(i: int) -> Path:
            return file_for(folder, self.names[i], ".safetensors")

        for i in each(self.context.progress, range(len(self.names)), "spectra", done=lambda i: path(i).exists()):
            values, vectors = spectrum(self.context.data.image(i), f.store[i].float(), c, self.context.seed)
            save_tensors(path(i), {"values": values, "vectors": vectors})

    def _spectrum(self, i: int) -> tuple[Tensor, Tensor]:
        expected = {"values": "K", "vectors": "HWK"}
        t = self.context.run.tensors("spectra", file_for("", self.names[i], ".safetensors"), expected)
        return t["values"], t["vectors"]

    def segments(self, folder: Path) -> None:
        """Object masks, boxes and segments: `objects/NAME.png`, `segments/NAME.png` (on the grid), `boxes.json`. The
        objects are proposals, which another run takes by `--input NAME=RUN`."""
        if self.context.run.writes:
            Proposals.begin(folder, "objects", self.name, self.context.backbone.provenance.labels_seen)
        barrier()

        def box_of(i: int) -> Path:
            return file_for(folder / "boxes", self.names[i], ".json")  # of an image's files the last

        for i in each(self.context.progress, range(len(self.names)), "segments", done=lambda i: box_of(i).exists()):
            name, (values, vectors) = self.names[i], self._spectrum(i)
            mask = self.object_mask(i, values, vectors)
            write_mask(file_for(folder / "objects", name, ".png"), mask.astype(np.uint8))
            write_mask(file_for(folder / "segments", name, ".png"), self.segment(i, values, vectors))
            box = bounding_box(largest_component(mask, connectivity=8))
            write_record(box_of(i), {"box": box})
        if self.context.run.writes:
            read, shape = self.context.run.artefact, {"box": ([int], None)}
            boxes = {n: read("segments", file_for("boxes", n, ".json"), shape)["box"] for n in self.names}
            write_record(folder / "boxes.json", {"boxes": boxes})
            self.show(folder).write(folder)

    def show(self, folder: Path) -> Shown:
        """Where the objects lie, and those of a few photographs, for the report."""
        found = Shown(title="Objects")
        found.sentences.append(
            f"The object of each photograph lies in {folder.name}/objects/NAME.png of the run (1 is the object), "
            f"the box around its largest part in {folder.name}/boxes.json (top, left, bottom, right, in pixels)."
        )
        found.strips = object_strips(
            self.context.data, range(len(self.names)), lambda n: read_mask(file_for(folder / "objects", n, ".png"))
        )
        return found

    def object_map(self, values: Tensor, vectors: Tensor) -> Tensor:
        """How much each grid position belongs to the object (h, w), in [0, 1]."""
        return object_map(values, vectors, self.config.objects.rule)

    def object_mask(self, i: int, values: Tensor, vectors: Tensor) -> np.ndarray:
        """The object at the photograph's size, bool (H, W)."""
        soft = self.object_map(values, vectors)
        return object_mask(self.context.data.image(i), soft, self.config.objects.refine)

    def segment(self, i: int, values: Tensor, vectors: Tensor) -> np.ndarray:
        """Segments of the grid, uint16 (h, w); 0 is the one with the greatest share of the border."""
        h, w, k = vectors.shape
        n = self.config.segments.count or int(eigengap(values))
        z = vectors.reshape(h * w, k)[:, 1:]
        n = min(n, h * w)
        if n < 2 or k < 2:
            return np.zeros((h, w), np.uint16)
        try:
            seed = derive(self.context.seed, "segments", self.names[i])
            ids = kmeans(z, n, metric="euclidean", restarts=SEGMENT_RESTARTS, seed=seed % 2**31).labels
        except ValueError:  # a flat photograph has fewer distinct rows than segments
            return np.zeros((h, w), np.uint16)
        on_border = torch.bincount(ids[border_nodes(h, w)], minlength=n)
        order = torch.argsort(on_border, descending=True, stable=True)
        renumber = torch.empty_like(order)
        renumber[order] = torch.arange(n)
        return renumber[ids].reshape(h, w).numpy().astype(np.uint16)

    def _described(self, project: Projection) -> Iterator[tuple[int, np.ndarray, Tensor, Tensor]]:
        """This process's photographs: index, ids (h, w), unit features (S_i, d), which segments are object (S_i,)."""
        folder = self.context.run.path / "segments"
        for i in share(range(len(self.names))):
            ids = read_mask(file_for(folder / "segments", self.names[i], ".png"))
            f = F.normalize(project(self.features.store[i].float()[None]), dim=1)
            grid = F.interpolate(f, ids.shape, mode="bilinear", align_corners=False)[0].flatten(1).T  # (N, d)
            which = F.one_hot(torch.from_numpy(ids.astype(np.int64)).flatten()).T.float()  # (S_i, N)
            inside = torch.ones(len(which), dtype=torch.bool)
            if self.has_background:
                mask = torch.from_numpy(read_mask(file_for(folder / "objects", self.names[i], ".png"))).float()
                part = F.adaptive_avg_pool2d(mask[None], ids.shape).flatten()  # (N,)
                inside = which @ part / which.sum(1) > 0.5
            yield i, ids, F.normalize(which @ grid, dim=1), inside

    def cluster(self, folder: Path) -> None:
        """Clusters all segments: `masks/NAME.png` on the grid of the segments, and a mean feature of each class."""
        c, context = self.config, self.context
        draw = seeding.generator(context.seed, "pca")
        reduction = fit_reduction(self.features, c.reduction, draw)
        found = list(self._described(projection(reduction)))
        first, of, more = 0, "segments", "add images"
        if self.has_background:
            first, of = 1, "segments that lie more than half in their object"
            more = "set segments.background=cluster, or another segments.count"
        rows = torch.cat([z[inside] for _, _, z, inside in found])  # (S, d)
        wanted = context.classes - first
        centers = cluster_rows(context, rows, c.clusters, clusters=wanted, of=of, more=more).centers
        total = torch.zeros(context.classes, centers.shape[1])
        dtype = np.uint8 if context.classes < 255 else np.uint16
        for i, ids, z, inside in found:
            classes = torch.where(inside, (z @ centers.T).argmax(1) + first, 0)  # (S_i,)
            total.index_add_(0, classes, z)
            write_mask(file_for(folder / "masks", self.names[i], ".png"), classes.numpy()[ids].astype(dtype))
        prototypes = F.normalize(all_reduce_sum(total), dim=1)
        if context.run.writes:
            save_tensors(folder / LABELS, {**reduction, "prototypes": prototypes})
        barrier()

    def _head(self) -> Sequential:
        """Whitening, a small decoder and a classifier."""
        t = self._labels()
        reduce = projection(t)
        hidden = self.config.head.hidden
        decoder = ConvDecoder(reduce.out, hidden, hidden, depth=2)
        return Sequential(reduce, decoder, LinearClassifier(hidden, self.context.classes))

    def _labels(self) -> dict[str, Tensor]:
        return self.context.run.tensors("cluster", LABELS, {**REDUCTION, "prototypes": "CE"})

    def self_train(self, folder: Path) -> None:
        """Trains a head on the masks of the cluster stage."""
        c, context = self.config.head, self.context
        masks = context.run.path / "cluster" / "masks"
        labels = []
        for i, name in enumerate(self.names):
            ids = torch.from_numpy(read_mask(file_for(masks, name, ".png")).astype(np.int64))
            size = self.features.store[i].shape[-2:]
            labels.append(F.interpolate(ids[None, None].float(), size, mode="nearest-exact")[0, 0].long())
        seeding.initialise(context.seed, "self_train")
        steps = self.steps
        training = SelfTraining(context, self.features, labels, self._head(), c, steps)
        context.fit(training, "self_train", folder, steps)

    def segmenter(self) -> Segmenter:
        """Encoder and the self-trained head; without self-training, cosine to the mean feature of each class."""
        f, context = self.features, self.context
        if self.config.head.train:
            head = trained(context.run.path / "self_train", "head", self._head())
            return assembled(self, f.encoder, Sequential(head[0], head[1]), head[2], f.preprocess)
        t = self._labels()
        classifier = CosineClassifier(t["prototypes"], temperature=self.config.readout.temperature)
        return assembled(self, f.encoder, projection(t, normalize=True), classifier, f.preprocess)

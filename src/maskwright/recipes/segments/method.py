"""Methods whose training gives an embedding: regions before it, and behind it prototypes of all photographs' segments,
which are clustered, or which vote with the classes of their masks.

Legend: M segments of all photographs, D width of the embedding, K clusters, C classes, (h, w) map size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.sources import MaskLabels
from maskwright.engine import seeding
from maskwright.engine.config import refuse_idle
from maskwright.engine.context import Context
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import gather_objects, share, world_size
from maskwright.engine.needs import InputNeed, Terms
from maskwright.errors import MaskwrightError
from maskwright.models.networks.build import Network
from maskwright.models.parts.heads import CosineClassifier, LinearClassifier, Sequential
from maskwright.models.parts.part import Part
from maskwright.models.parts.segments import EmbeddingHead, NeighbourClassifier, SegmentPrototypes
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.clustering.segments import Layout, majority, numbered, prototypes, segments_within
from maskwright.ops.losses.region_contrast import as_rows, nearest
from maskwright.recipes.clustering import cluster_rows
from maskwright.recipes.clustering_health import clustering_health, collapse
from maskwright.recipes.segments.regions import INPUTS, REGIONS, given, idle_by_input, make_regions
from maskwright.recipes.self_training.rounds import as_it_stands
from maskwright.recipes.training.method import CropMethod
from maskwright.recipes.training.network import make_network, make_preprocess, make_segmenter, retake
from maskwright.recipes.training.options import CropConfig

BANK = "prototypes.safetensors"


def embedding_network(context: Any, config: CropConfig, dim: int, hidden: int = 0) -> Network:
    """The configured network with an embedding (B, dim, h, w) in place of its classifier: a linear layer, or two of
    them around a hidden one."""
    network = make_network(context, config)
    network.classifier = EmbeddingHead(network.width, hidden, dim) if hidden else LinearClassifier(network.width, dim)
    return network


def labelled_prototypes(v: Tensor, segments: Tensor, ids: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Prototypes of segments, each of the pixels that have its most frequent class, and these classes.

    Args:
        v: (N, D), unit.
        segments: int64 (N,), at least 0.
        ids: int64 (N,), in [0, C).
        classes: C.

    Returns:
        (S, D) and int64 (S,), in the order of the segments' numbers.
    """
    own, place = numbered(segments)
    found = majority(ids, own, classes, len(place))
    agree = ids == found[own]
    return prototypes(v[agree], own[agree], len(place)), found


class SegmentMethod(CropMethod):
    """Regions, train, prototypes.

    Attributes:
        layout: of k-means within a photograph.
    """

    inputs: ClassVar[Mapping[str, InputNeed]] = INPUTS
    layout: ClassVar[Layout] = "corner"

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        refuse_idle(config, idle_by_input(given(context, config.regions)))

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """Masks and their classes where neighbours vote."""
        terms = super().terms(config, images)
        vote = config.readout.by == "neighbours"
        return replace(terms, needs=frozenset({"masks"}), classes_from="labels") if vote else terms

    def stages(self) -> list[Stage]:
        """Regions, where they are not given; train; prototypes."""
        made = given(self.context, self.config.regions) != "regions"
        says = "prototypes of the segments of whole photographs"
        return [
            *([Stage(REGIONS, "label", self.regions, "regions of each photograph")] if made else []),
            *super().stages(),
            Stage("prototypes", "fit", self.prototypes, says),
        ]

    def regions(self, folder: Path) -> None:
        """Makes the regions."""
        make_regions(self.context, self.config.regions, self.config.crops.long_side, folder)

    # ------------------------------------------------------------------ read-out

    @torch.no_grad()
    def prototypes(self, folder: Path) -> None:
        """`prototypes.safetensors`: centres (K, D) of all segments' prototypes, or the prototypes (M, D) with their
        classes (M,)."""
        c, context = self.config, self.context
        network = self.network().to(context.device)
        preprocess = make_preprocess(c, network)
        retake(context, c, network, preprocess, range(len(context.data)))
        labels = MaskLabels(context.data, context.classes) if c.readout.by == "neighbours" else None
        # Of few photographs with masks a process may have none.
        rows, ids = [torch.zeros(0, c.dim).to(context.device)], [torch.zeros(0).long().to(context.device)]
        with as_it_stands(network):
            for i in share(range(len(context.data)) if labels is None else labels.indices):
                x = preprocess.apply(context.data.image(i))[None].to(context.device)
                v = F.normalize(network.classify(network.decode(network.features(x))).float(), dim=1)
                found, classes = self.of_photograph(v, None if labels is None else labels.read(i).target(-1))
                rows.append(found)
                ids.append(classes)
        mine, whose = self.kept(torch.cat(rows), torch.cat(ids))
        if labels is None:
            tensors = {"centers": self.cluster(mine)}
        else:
            tensors = self.bank(mine, whose)
        if context.run.writes:
            save_tensors(folder / BANK, {name: t.cpu() for name, t in tensors.items()})

    def of_photograph(self, v: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prototypes (S, D) of a photograph's segments, and their classes (S,), 0 where there are no labels.

        Args:
            v: (1, D, h, w), unit.
            y: labels int64 (H, W), below 0 where there is none; such pixels leave before the k-means.
        """
        r, size = self.config.readout, (v.shape[2], v.shape[3])
        ids = torch.zeros(size, dtype=torch.int64) if y is None else nearest(y, size)
        ids = ids.to(v.device)
        segments = segments_within(v, r.grid, r.iterations, self.layout, (ids >= 0)[None])
        inside = (ids >= 0).flatten()
        chosen = as_rows(v)[inside], segments.flatten()[inside], ids.flatten()[inside]
        return labelled_prototypes(*chosen, 1 if y is None else self.context.classes)

    def kept(self, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """At most this process's share of as many rows as the options keep, drawn without order."""
        most = -(-self.config.readout.most // world_size())
        draw = seeding.generator(self.context.seed, "prototypes")
        order = torch.randperm(len(rows), generator=draw)[:most].sort().values.to(rows.device)
        return rows[order], ids[order]

    def cluster(self, rows: Tensor) -> Tensor:
        """Centres (K, D) of the prototypes of all processes; says where they fall together."""
        k, result = self.context.classes, cluster_rows(self.context, rows, self.config.clusters, of="segments")
        sentence = collapse(clustering_health(result.labels, k), k)
        if sentence is not None:
            self.context.note(f"Of the segments' prototypes {sentence}")
        return result.centers

    def bank(self, rows: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """The prototypes (M, D) of all processes and their classes.

        Raises:
            MaskwrightError: there are none.
        """
        every = gather_objects((rows.cpu(), ids.cpu()))
        bank, classes = (torch.cat(side) for side in zip(*every))
        if not len(bank):
            raise MaskwrightError("no segment of a class in any mask", "at least one", "check the masks' ignore id")
        return {"bank": bank, "ids": classes.float()}

    def read_out(self) -> Part:
        """The classifier of embeddings (B, D, h, w): from the artefact alone."""
        r, run = self.config.readout, self.context.run
        if r.by == "clusters":
            centers = run.tensors("prototypes", BANK, {"centers": "KD"})["centers"]
            segments = SegmentPrototypes(r.grid, r.iterations, self.layout)
            return Sequential(segments, CosineClassifier(centers, r.temperature))
        t = run.tensors("prototypes", BANK, {"bank": "MD", "ids": "M"})
        k = min(r.k, len(t["bank"]))
        return NeighbourClassifier(t["bank"], t["ids"], self.context.classes, k, r.grid, r.iterations, self.layout)

    def segmenter(self) -> Segmenter:
        """The network, its embedding, and the read-out by segments."""
        network = self.network()
        network.classifier = Sequential(network.classifier, self.read_out())
        return make_segmenter(self.context, self.config, network, self.name, range(len(self.context.data)))

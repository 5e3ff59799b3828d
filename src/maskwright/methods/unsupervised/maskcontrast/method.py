"""MaskContrast: Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals.

Van Gansbeke, Vandenhende, Georgoulis, Van Gool, ICCV 2021, https://arxiv.org/abs/2102.06191.

Each photograph has one object mask, of whatever found it. Every object pixel of one view picks, among the mean
embeddings of the objects of the other views and of a queue, that of its own photograph; a second head learns the mask.
Then the salient pixels of a photograph get the cluster of their mean embedding:

    objects   the masks, from `--input objects=PLACE` or from eigenvectors of frozen features
    train     L = L_c + L_s: pixels against prototypes of a momentum network and a queue; balanced cross entropy
    cluster   object vectors of all photographs, whitened PCA, k-means; cluster 0 is the background

Deviates: on any backbone and network; the paper's masks are of a saliency network, whose ONNX file is an input here.
Object vectors are taken at the resolution of the network's map, the authors' at 512 x 512. The clustering is fitted on
the run's photographs, theirs on those that it is judged on, and keeps fewer components where objects are few. The key
network has no dropout; its batch is not shuffled between processes. `preset=small` keeps the batch-norm statistics of
trained weights (`norms.freeze`). The rate falls each step, not each epoch, and SGD is Nesterov's. The linear read-out
(`linear_probe=true`) is the house's, after the last step; theirs is of the best epoch on the validation set. Retrieval
is not built.

What the original gets wrong: photographs without a salient pixel put a zero vector into PCA and k-means, and are left
out here; a draw whose mask stays empty is repeated without end; a batch of one photograph fails; its "unsupervised"
masks are of a network that starts from Cityscapes labels, which here stands with the input.

Legend: B photographs, D width of embeddings, E components kept, K clusters with the background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.augment import PRESETS as RECIPES
from maskwright.data.training.sources import StoredLabels
from maskwright.engine.checkpoint import trained
from maskwright.engine.config import Idle, fill_from_preset, option, part, refuse_idle
from maskwright.engine.context import Context
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import all_reduce_sum, each, gather_objects, reducer
from maskwright.engine.needs import InputNeed, Terms
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.maskcontrast.training import (
    MaskContrastTraining,
    freeze_first,
    salient_network,
)
from maskwright.models.networks.build import Network
from maskwright.models.parts.heads import CosineClassifier
from maskwright.models.parts.salient_objects import THRESHOLD, ObjectClusters, object_vectors
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.clustering.pca import PCA, fit_pca
from maskwright.recipes.clustering import ClusterOptions, cluster_rows
from maskwright.recipes.clustering_health import clustering_health, collapse
from maskwright.recipes.frozen.features import CLUSTERED
from maskwright.recipes.probing.linear import network_probe
from maskwright.recipes.proposals.objects import (
    WHAT,
    ObjectMaskOptions,
    find_objects,
    object_maker,
    stored_objects,
)
from maskwright.recipes.self_training.rounds import as_it_stands
from maskwright.recipes.training.method import CropMethod
from maskwright.recipes.training.network import make_preprocess, make_segmenter, retake
from maskwright.recipes.training.options import (
    CropConfig,
    CropOptions,
    NetworkOptions,
    NormOptions,
    OptimizerOptions,
)
from maskwright.recipes.training.rates import OF_FEW_CROPS

PAPER: dict[str, Any] = {
    "network": "deeplabv3", "network_options": "output_stride=8", "crop": 224, "batch": 128, "long_side": 512,
    "queue": 256, "momentum": 0.999, "optimizer": "sgd", "lr": 0.004, "encoder_lr": 1.0, "weight_decay": 1e-4,
    "norm_images": 0, "freeze_norm": False, "freeze": 0.0, "steps": 3280,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "network": "auto", "network_options": "", "crop": 160, "batch": 8, "long_side": 320, "queue": 64,
        "momentum": 0.99, "optimizer": "adamw", "lr": 0.0, "encoder_lr": None, "weight_decay": None,
        "norm_images": 64, "freeze_norm": None, "steps": 300,
    },
    "paper": PAPER,
    "paper_supervised": PAPER | {"batch": 64, "queue": 128, "freeze": 0.47, "steps": 6600},
}  # fmt: skip
"""By flat names. `small` finishes on two cores; `paper` is VOC's trainaug, 40 passes over 10,582 photographs, on
ResNet-50 of MoCo v2's weights, `paper_supervised` on ImageNet's with masks of a supervised saliency network: stem and
first two stages (0.47 of the blocks) stay as they are."""
CENTERS = "centers.safetensors"
EACH = 10
"""Objects for each component of the whitened PCA, at least."""


@dataclass(kw_only=True)
class ViewOptions:
    """The two views of a photograph."""

    recipe: str = option("maskcontrast", "photometric recipe of both", choices=tuple(RECIPES))
    least: float = option(0.01, "views of which the object has no larger share are drawn again", low=0, high=1)
    most: float = option(0.99, "and those of which it has no smaller one", low=0, high=1)

    def check(self) -> None:
        """Raises `MaskwrightError` on bounds in the wrong order."""
        if self.least >= self.most:
            raise MaskwrightError(f"views.least={self.least}", f"below views.most={self.most}")


@dataclass(kw_only=True)
class ContrastOptions:
    """Pixels against prototypes."""

    weight: float = option(1.0, "lambda_c; 0: the masks alone are learned (ablation)", low=0)
    dim: int = option(32, "D, width of the embeddings", low=1)
    temperature: float = option(0.5, "T", low=1e-3, main=True)
    queue: int = option(
        None,
        "earlier prototypes that are negatives, few beside the photographs, of whose own some are; 0: none (preset)",
        low=0,
        main=True,
    )
    momentum: float = option(None, "of the key network (preset)", low=0, high=1)


@dataclass(kw_only=True)
class SaliencyOptions:
    """The head that learns the masks."""

    head: bool = option(
        True, "false: none; then each pixel gets the nearest cluster, of objects or the mean background (ablation)",
        main=True,
    )  # fmt: skip
    weight: float = option(1.0, "lambda_s", low=0)


@dataclass(kw_only=True)
class ReadoutOptions:
    """From the trained network to clusters."""

    of: str = option(
        "embedding", "what object vectors are of: embeddings, or the encoder's deepest map (baseline without contrast, "
        "with contrast.weight=0)", choices=("embedding", "encoder"),
    )  # fmt: skip
    threshold: float = option(THRESHOLD, "saliency (a logit) above which a pixel is object")
    dim: int = option(
        32, f"E, components of the object vectors that are kept, whitened; one for {EACH} objects at most", low=1
    )
    temperature: float = option(
        1.0, "squared distances are divided by it to give logits; for confidence and refinement only", low=1e-4
    )


@dataclass(kw_only=True)
class MaskContrastConfig(CropConfig):
    """Options of `maskcontrast`; those without a value of their own take the preset's, those that are given win."""

    preset: str = option("small", "sets the other options' defaults", choices=tuple(PRESETS), main=True)
    objects: ObjectMaskOptions = part(ObjectMaskOptions)
    network: NetworkOptions = part(NetworkOptions, name=None, options=None)
    freeze: float = option(
        None, "share of the encoder's layers, from the first, that stay as they are (preset)", low=0, high=1
    )
    crops: CropOptions = part(
        CropOptions, without=("sample",), size=None, batch=None, long_side=None, scale_min=0.2, scale_max=1.0,
        says={"batch": "photographs in a step", "long_side": "larger photographs are predicted at this longer side, "
              "pixels (preset)", "scale_min": "least share of the photograph's area that a view shows",
              "scale_max": "greatest share"},
    )  # fmt: skip
    optimizer: OptimizerOptions = part(OptimizerOptions, name=None, lr=None)
    norms: NormOptions = part(NormOptions, images=None, **OF_FEW_CROPS)
    views: ViewOptions = part(ViewOptions)
    contrast: ContrastOptions = part(ContrastOptions)
    saliency: SaliencyOptions = part(SaliencyOptions)
    clusters: ClusterOptions = part(ClusterOptions)
    readout: ReadoutOptions = part(ReadoutOptions)
    linear_probe: bool = option(
        False, "also fit a linear probe on the masks that may be read, as a model beside this one"
    )
    steps: int = option(None, "optimiser steps where --steps does not say (preset)", low=1, main=True)

    def __post_init__(self) -> None:
        fill_from_preset(self, PRESETS.get(self.preset, {}))

    def idle(self) -> Idle:
        """Options of a contrast that does not count, and of a read-out by saliency where there is none."""
        yield from super().idle()
        if not self.contrast.weight:
            yield ("contrast.temperature", "contrast.queue", "contrast.momentum"), "contrast.weight=0"
        if not self.saliency.head:
            rest = ("saliency.weight", "readout.threshold", "readout.dim", "readout.temperature")
            yield rest, "saliency.head=false"

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.crops.batch < 2:
            raise MaskwrightError(f"crops.batch={self.crops.batch}", "at least 2: negatives are other photographs")
        if self.crops.scale_max > 1:
            raise MaskwrightError(f"crops.scale_max={self.crops.scale_max}", "at most 1, a share of the area")
        if self.readout.of == "encoder" and not self.saliency.head:
            raise MaskwrightError("readout.of=encoder without a saliency head", "saliency.head=true")


def whitened(rows: Tensor, dim: int, objects: int, all_reduce: Callable[[Tensor], Tensor] | None = None) -> PCA:
    """Whitened PCA of object vectors, with at most a component for each `EACH` of them, and one at least.

    With nearly as many components as vectors whitening makes all of them equally far from each other.

    Args:
        rows: this process's share (N, D).
        dim: most components, E.
        objects: vectors of all processes.
        all_reduce: sums a tensor over processes.
    """
    kept = min(dim, rows.shape[1], max(1, objects // EACH))
    return fit_pca(rows, kept, whiten=True, all_reduce=all_reduce)


class MaskContrast(CropMethod):
    """A network whose object pixels know their photograph's object among others, and clusters of objects."""

    name: ClassVar[str] = "maskcontrast"
    title: ClassVar[str] = "Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals"
    venue: ClassVar[str] = "Van Gansbeke et al., ICCV 2021"
    link: ClassVar[str] = "https://arxiv.org/abs/2102.06191"
    summary: ClassVar[str] = "Contrasts object masks, clusters objects."
    inputs: ClassVar[Mapping[str, InputNeed]] = {
        "objects": InputNeed(says=WHAT, kind="proposals", required=False, networks=True)
    }
    Config: ClassVar[type] = MaskContrastConfig
    says: ClassVar[str] = "object pixels that pick their own object among others"
    config: MaskContrastConfig

    def __init__(self, config: MaskContrastConfig, context: Context) -> None:
        super().__init__(config, context)
        found = ("objects.graph", "objects.spectral", "objects.short_side")
        given = "objects" in context.inputs
        told = (found, "--input objects") if given else (("objects.threshold",), "no --input objects")
        refuse_idle(config, [told])

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """A linear probe is fitted to masks."""
        return replace(super().terms(config, images), judges=config.linear_probe)

    def stages(self) -> list[Stage]:
        """Objects, train, cluster, and a linear probe where one is asked for.

        Raises:
            MaskwrightError: fewer than two clusters, or more than there can be objects.
        """
        if self.context.classes < 2:
            raise MaskwrightError("one cluster", "at least 2: the background is one", "give --classes")
        if self.context.classes - 1 > len(self.context.data):
            raise MaskwrightError(
                f"{self.context.classes - 1} clusters of objects and {len(self.context.data)} photographs",
                "at least as many photographs, each of which has one object", "ask for fewer with --classes",
            )  # fmt: skip
        probe = Stage("linear_probe", "fit", self.linear_probe, "a linear probe on what was learned, with masks")
        return [
            Stage("objects", "label", self.objects, "the object mask of each photograph"),
            *super().stages(),
            Stage("cluster", "fit", self.cluster, "clusters of the photographs' objects"),
            *([probe] if self.config.linear_probe else []),
        ]

    # ------------------------------------------------------------------ objects

    def objects(self, folder: Path) -> None:
        """The masks, as proposals that other runs take."""
        options = self.config.objects
        maker = object_maker(self.context, options, self.context.inputs.get("objects"))
        find_objects(self.context, folder, maker, options)

    def masks(self) -> StoredLabels:
        """Masks of the photographs that are learned from: those whose object is neither too small nor too large.

        Raises:
            MaskwrightError: they are fewer than two.
        """
        c, context = self.config.views, self.context
        store = stored_objects(context.run.path / "objects")
        shares = {n: float((store.read(n).ids > 0).double().mean()) for n in context.data.names if n in store}
        names = {n for n, share_of in shares.items() if c.least < share_of < c.most}
        if len(names) < 2:
            raise MaskwrightError(
                f"{len(names)} of {len(shares)} photographs with an object of {100 * c.least:g} % to {100 * c.most:g} "
                "% of the area", "at least 2", self.other_objects(shares),
            )  # fmt: skip
        if left := len(shares) - len(names):
            context.note(f"{left} photographs are not learned from: nearly none or nearly all of them is object.")
        return StoredLabels(context.data, store, names)

    def other_objects(self, shares: Mapping[str, float]) -> str:
        """What would give more photographs with a fitting object, of the share of the area that each one's has."""
        c, context, objects = self.config.views, self.context, self.config.objects
        maker = object_maker(context, objects, context.inputs.get("objects"))
        empty = [i for i, name in enumerate(context.data.names) if shares.get(name) == 0]
        ways = (
            ("lower views.least", any(0 < share_of <= c.least for share_of in shares.values())),
            ("raise views.most", any(c.most <= share_of < 1 for share_of in shares.values())),
            ("lower objects.least", objects.least > 0 and any(maker.mask(i).any() for i in empty)),
            ("change objects.threshold", maker.soft),
            ("give other objects by --input objects=PLACE", True),
        )
        return ", or ".join(way for way, helps in ways if helps)

    # ------------------------------------------------------------------ training

    def training(self, steps: int) -> MaskContrastTraining:
        """The training of so many steps."""
        return MaskContrastTraining(self.context, self.config, steps, self.masks())

    def network(self) -> Network:
        """The trained network, which gives what object vectors are of, and saliency."""
        network = trained(self.context.run.path / "train", "network", salient_network(self.context, self.config))
        if self.config.freeze > 0:
            freeze_first(network, self.config.freeze)
        if self.config.readout.of == "encoder":
            side = network.multiple_of * max(1, -(-64 // network.multiple_of))
            with torch.no_grad():
                network.decoder.deep = network.features(torch.zeros(1, 3, side, side))[-1].shape[1]  # type: ignore[assignment]
        return network

    # ------------------------------------------------------------------ read-out

    def vectors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of this process's share of the photographs the object's vector (1, D), zeros where none is salient, and
        without a saliency head that of the rest; under the batch-norm statistics that the segmenter will have."""
        c, context = self.config, self.context
        network = self.network().to(context.device)
        preprocess = make_preprocess(c, network)
        retake(context, c, network, preprocess, range(len(context.data)))
        store, data = stored_objects(context.run.path / "objects"), context.data
        with as_it_stands(network):
            for i in each(context.progress, range(len(data)), "objects"):
                x = preprocess.apply(data.image(i))[None].to(context.device)
                y = network.decode(network.features(x)).float()
                if c.saliency.head:
                    e, s = y[:, :-1], y[:, -1]
                    yield object_vectors(e, s, c.readout.threshold), torch.zeros_like(e[:, :, 0, 0])
                elif data.names[i] in store:
                    mask = (store.read(data.names[i]).ids > 0).float().to(y.device)
                    inside = (F.interpolate(mask[None, None], y.shape[-2:], mode="area")[:, 0] > 0.5).float()
                    yield object_vectors(y, inside, 0.5), object_vectors(y, 1 - inside, 0.5)

    def cluster(self, folder: Path) -> None:
        """Whitening and centres of object vectors; without a saliency head prototypes, the background's the first."""
        c, context = self.config, self.context
        found = [(o.cpu(), g.cpu()) for o, g in self.vectors()]
        rows = torch.cat([o[o.any(1)] for o, _ in found] or [torch.zeros(0, c.contrast.dim)])
        counts = gather_objects(len(rows))
        clusters = context.classes - 1
        if sum(counts) < clusters:
            salient = ", lower readout.threshold, or add steps" if c.saliency.head else ", or add photographs"
            raise MaskwrightError(
                f"{clusters} clusters of objects and {sum(counts)} of {len(context.data)} photographs with one",
                "at least as many photographs", f"ask for fewer with --classes{salient}",
            )  # fmt: skip
        if c.saliency.head:
            pca = whitened(rows, c.readout.dim, sum(counts), reducer())
            if (kept := len(pca.components)) < min(c.readout.dim, rows.shape[1]):
                context.note(f"readout.dim cut to {kept}: {sum(counts)} objects, {EACH} a component.")
            result = cluster_rows(context, pca.apply(rows), c.clusters, clusters, "euclidean", of="objects")
            tensors = {"mean": pca.mean, "components": pca.components, "scale": pca.scale, "centers": result.centers}
        else:
            result = cluster_rows(context, rows, c.clusters, clusters, of="objects")
            none = [torch.zeros(0, c.contrast.dim)]  # of photographs without an object a process may have no other
            ground = all_reduce_sum(torch.cat([g for _, g in found] or none).sum(0))
            centers = F.normalize(torch.cat((ground[None], result.centers)), dim=1)
            tensors = {"centers": centers}
        self.tell(torch.cat(gather_objects(result.labels)), sum(counts))
        if context.run.writes:
            save_tensors(folder / CENTERS, {k: v.float().contiguous() for k, v in tensors.items()})

    def tell(self, labels: Tensor, objects: int) -> None:
        """Says how many photographs have an object, and where clusters fall together."""
        context, clusters = self.context, self.context.classes - 1
        context.note(f"{objects} of {len(context.data)} photographs have an object; cluster 0 is the background.")
        sentence = collapse(clustering_health(labels, clusters), clusters)
        if sentence is not None:
            context.note(f"Of the objects {sentence}")

    def segmenter(self) -> Segmenter:
        """The network, and each photograph's object in its cluster."""
        c, context, network = self.config, self.context, self.network()
        if c.saliency.head:
            t = context.run.tensors("cluster", CENTERS, CLUSTERED)
            network.classifier = ObjectClusters(
                t["mean"], t["components"], t["scale"], t["centers"], c.readout.threshold, c.readout.temperature
            )
        else:
            t = context.run.tensors("cluster", CENTERS, {"centers": "KD"})
            network.classifier = CosineClassifier(t["centers"], temperature=0.1)
        return make_segmenter(context, c, network, self.name, range(len(context.data)))

    def linear_probe(self, folder: Path) -> None:
        """How much of the classes is in the decoder's map; reads masks, for evaluation only."""
        c, context = self.config, self.context
        network = self.network().to(context.device)
        retake(context, c, network, make_preprocess(c, network), range(len(context.data)))
        network.decoder = network.decoder.decoder  # type: ignore[assignment]
        network_probe(context, network, make_preprocess(c, network), folder)

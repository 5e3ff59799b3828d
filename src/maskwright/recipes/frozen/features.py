"""Dense features of a frozen backbone, as the unsupervised methods use them: which layers, at what size, as rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from maskwright.engine import seeding
from maskwright.engine.cache import FEATURES, FeatureStore, Images
from maskwright.engine.distributed import all_reduce_sum, gather_objects, reducer, share
from maskwright.errors import MaskwrightError
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.foreground_clusters import ForegroundClusters
from maskwright.models.parts.heads import CosineClassifier, Projection
from maskwright.models.parts.part import Part
from maskwright.models.preprocess import Preprocess
from maskwright.ops.clustering.joining import ward_groups
from maskwright.ops.clustering.kmeans import KMeansResult
from maskwright.ops.clustering.pca import fit_pca
from maskwright.recipes.clustering import FineClusterOptions, cluster_rows
from maskwright.recipes.frozen.crops import Crops
from maskwright.recipes.frozen.options import LearnedFeatureOptions, ReductionOptions

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.models.backbones.build import Backbone

REDUCTION = {"mean": "D", "components": "ED", "scale": "E"}
"""What `fit_reduction` gives, a letter a dimension: D channels, E of them kept."""
CLUSTERED = {**REDUCTION, "centers": "KE"}
"""What `reduced_clusters` gives where no clusters are joined, likewise: K centres."""
FINE_STRIDE = 16
"""Stride of the finest convolutional stage that carries meaning rather than edges and colour."""


def default_layers(backbone: Backbone) -> tuple[int, ...]:
    """The layers to read dense features from where the user names none.

    A vision transformer's last block. Of a convolutional network the stages of stride 16 and above: stride 16 places
    things, the coarser ones know better what they are.
    """
    if backbone.is_vit:
        return (-1,)
    strides = backbone.strides
    return tuple(i for i, s in enumerate(strides) if s >= FINE_STRIDE) or (len(strides) - 1,)


@dataclass
class FrozenFeatures:
    """A frozen encoder with the features of all images.

    Attributes:
        encoder: image to (B, D, h, w).
        preprocess: file to image as the encoder wants it.
        store: the features of the images, or of their crops, on disk.
        margin: share of each side along which positions are not learned from.
    """

    encoder: BackboneEncoder
    preprocess: Preprocess
    store: FeatureStore
    margin: float = 0.0

    @property
    def width(self) -> int:
        """Number of channels D."""
        return self.store.width

    @cached_property
    def std(self) -> Tensor:
        """(D,) over all positions of all images that are learned from, at least 1e-6: a pass over the store."""
        return moments(self.store, self.margin)[1]

    def inner(self, i: int) -> Tensor:
        """Features (D, h', w') of image i that are learned from."""
        return inside(self.store[i], self.margin)


def inside(f: Tensor, margin: float) -> Tensor:
    """A map (..., h, w) without the positions that lie in a share of each side along its border; at least one stays."""
    (top, height), (left, width) = ((min(round(margin * n), (n - 1) // 2), n) for n in f.shape[-2:])
    return f[..., top : height - top, left : width - left]


def stored_features(
    context: Context, encoder: BackboneEncoder, preprocess: Preprocess, data: Images | None = None
) -> FeatureStore:
    """Dense features of the run's images, or of another data set's, from the cache or computed now."""
    return context.cache.features(
        encoder, preprocess, context.data if data is None else data, progress=context.progress, device=context.device,
        instead=context.run.path / FEATURES,
    )  # fmt: skip


def frozen_features(
    context: Context, *, short_side: int, layers: tuple[int, ...] | None, kind: str = "tokens", crop: float = 1.0,
    margin: float = 0.0,
) -> FrozenFeatures:  # fmt: skip
    """Computes, or finds in the cache, the dense features of the run's images, or of crops of them.

    Args:
        context: the run.
        short_side: pixels of the shorter side of the network's input.
        layers: blocks or stages to read, joined by channels; None for `default_layers`.
        kind: `tokens`, or `q`, `k`, `v` of a transformer block.
        crop: share of each side that random crops show, at the scale of the whole; 1 for whole images.
        margin: share of each side along which positions are not learned from.
    """
    if kind != "tokens" and not context.backbone.is_vit:
        raise MaskwrightError(
            f"kind={kind}, and {context.backbone.name} is convolutional and has only tokens", "kind=tokens",
            "or take a vision transformer, as --backbone dinov2_small",
        )  # fmt: skip
    chosen = tuple(layers) if layers else default_layers(context.backbone)
    encoder = BackboneEncoder(context.backbone, layers=chosen, features=kind)
    return encoded_features(context, encoder, short_side, crop, margin)


def learned_features(context: Context, options: LearnedFeatureOptions) -> FrozenFeatures:
    """The features that clusters are learned from: of crops, or without a margin, where that is asked for."""
    c = options
    return frozen_features(context, short_side=c.short_side, layers=c.layers, kind=c.kind, crop=c.crop, margin=c.margin)


def encoded_features(
    context: Context, encoder: BackboneEncoder, short_side: int, crop: float = 1.0, margin: float = 0.0
) -> FrozenFeatures:
    """The dense features of the run's images, or of crops of them, by an encoder that no longer learns, computed or
    found in the cache.

    Args:
        context: the run.
        encoder: of the run's backbone, or of what a stage made of it.
        short_side: pixels of the shorter side of the network's input.
        crop, margin: as of `frozen_features`.

    Returns:
        Their `preprocess` is that of whole images; the images of their `store` are the crops where there are some.
    """
    preprocess = Preprocess.for_backbone(
        encoder.backbone.provenance, short_side=short_side, multiple_of=encoder.multiple_of
    )
    if crop == 1:
        store = stored_features(context, encoder, preprocess)
    else:
        smaller = replace(preprocess, short_side=max(encoder.multiple_of, round(short_side * crop)))
        store = stored_features(context, encoder, smaller, Crops(context.data, crop))
    return FrozenFeatures(encoder, preprocess, store, margin)


def head_precision(asked: str, device: torch.device) -> str:
    """`bf16` or `fp32` of a small head on features that are there already; `auto` is fp32 on a CPU, which gains nothing
    by bf16 there."""
    if asked != "auto":
        return asked
    return "bf16" if device.type == "cuda" else "fp32"


def moments(store: FeatureStore, margin: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, over all positions but those of the margin, and all processes,
    accumulated in float64."""
    total = torch.zeros(2, store.width, dtype=torch.float64)
    count = torch.zeros(1, dtype=torch.float64)
    for i in share(range(len(store))):
        f = inside(store[i], margin).float().flatten(1)  # (D, h*w)
        total[0] += f.sum(1)
        total[1] += f.square().sum(1)
        count += f.shape[1]
    all_reduce_sum(total)
    all_reduce_sum(count)
    mean = total[0] / count
    std = (total[1] / count - mean.square()).clamp(min=0).sqrt().clamp(min=1e-6)
    return mean.float(), std.float()


def feature_rows(features: FrozenFeatures, limit: int, generator: torch.Generator) -> Tensor:
    """Positions of this process's share of the images as rows (N, D), float32.

    Args:
        features: of the images.
        limit: at most about this many rows over all processes; above it the same number is drawn from each image.
        generator: for the draw.
    """
    images = len(features.store)
    positions = sum(features.inner(i)[0].numel() for i in (0, images // 2, images - 1)) / 3
    each = limit / max(1, images)
    rows = []
    for i in share(range(images)):
        f = features.inner(i).flatten(1).T  # (h*w, D)
        if positions > each and len(f) > each:
            f = f[torch.randperm(len(f), generator=generator)[: max(1, int(each))]]
        rows.append(f.float())
    return torch.cat(rows) if rows else torch.empty(0, features.store.width)


def joint_scale(std: Tensor, encoder: BackboneEncoder) -> Tensor:
    """One scale per layer (D,): layers joined by channels get equal say, channels keep their proportions within one.

    Args:
        std: of the channels (D,).
        encoder: that gives them.
    """
    parts = std.split([encoder.backbone.widths[layer] for layer in encoder.layers])
    return torch.cat([p.square().mean().sqrt().expand(len(p)) for p in parts])


def fit_reduction(
    features: FrozenFeatures, options: ReductionOptions, generator: torch.Generator, scale: Tensor | None = None
) -> dict[str, Tensor]:
    """PCA of the features, each layer brought to the same energy before.

    Args:
        features: of the run's images.
        options: how many channels are kept, at most, whether each is divided by its standard deviation, and how many
            positions are looked at.
        generator: for the draw of positions.
        scale: what channels (D,) are divided by before, in place of one number a layer.

    Returns:
        `mean` (D,), `components` (d, D) and `scale` (d,), the arguments of `models.parts.heads.Projection`.
    """
    energy = joint_scale(features.std, features.encoder) if scale is None else scale
    rows = feature_rows(features, options.max_rows, generator) / energy  # (N, D)
    dim = min(options.dim or features.width, features.width)
    pca = fit_pca(rows, dim, whiten=options.whiten, all_reduce=reducer())
    # x / energy - mean, projected: the energy goes into the mean and the components
    return {"mean": pca.mean * energy, "components": pca.components / energy, "scale": pca.scale}


class ReducedMaps:
    """Reduced features of each photograph, held in memory where there is room for all of them.

    Args:
        features: of the run's images.
        reduction: (1, D, h, w) -> (1, E, h, w) on the CPU, in evaluation mode.
    """

    MEMORY = 1 << 30
    """Bytes of reduced features below which all of them are held."""

    def __init__(self, features: FrozenFeatures, reduction: Projection) -> None:
        self.features, self.reduction = features, reduction
        room = 4 * self.load(0).numel() * len(features.store) <= self.MEMORY
        self.held: dict[int, Tensor] | None = {} if room else None

    @torch.no_grad()
    def load(self, i: int) -> Tensor:
        """(E, h, w) of what is learned from photograph i, computed anew."""
        return self.reduction(self.features.inner(i).float()[None])[0]

    def __getitem__(self, i: int) -> Tensor:
        """(E, h, w) of photograph i."""
        if self.held is None:
            return self.load(i)
        if i not in self.held:
            self.held[i] = self.load(i)
        return self.held[i]


def projection(t: Mapping[str, Tensor], *, normalize: bool = False) -> Projection:
    """The reduction as a part of a segmenter.

    Args:
        t: what `fit_reduction` gave, or an artefact that holds it among other things.
        normalize: unit length afterwards.
    """
    return Projection(t["mean"], t["components"], t["scale"], normalize=normalize).eval()


@torch.inference_mode()
def decoded_rows(
    features: FrozenFeatures,
    decode: nn.Module,
    *,
    max_rows: int,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Embeddings (N, E) of this process's share of the images.

    Args:
        features: of the run's images.
        decode: (1, D, h, w) -> (1, E, h, w), in evaluation mode.
        max_rows: at most about this many rows over all processes, the same number an image.
        generator: for the draw.
        device: where `decode` runs.
    """
    each = max(1, max_rows // max(1, len(features.store)))
    rows = []
    for i in share(range(len(features.store))):
        e = decode(features.inner(i).float().to(device)[None])[0].flatten(1).T  # (h*w, E)
        rows.append((e[torch.randperm(len(e), generator=generator)[:each]] if len(e) > each else e).cpu())
    if not rows:  # more processes than images
        width = decode(features.store[0].float().to(device)[None]).shape[1]
        return torch.empty(0, width)
    return torch.cat(rows)


def reduced_clusters(
    context: Context, features: FrozenFeatures, reduction: ReductionOptions, clusters: FineClusterOptions
) -> tuple[dict[str, Tensor], KMeansResult]:
    """PCA of the features, and spherical k-means of what comes out of it: the method `kmeans`, and where others start.

    Args:
        context: the run.
        features: of its images.
        reduction: options of PCA.
        clusters: options of k-means.

    Returns:
        What `fit_reduction` gives with what `joined_clusters` gives, and the clustering.
    """
    draw = seeding.generator(context.seed, "kmeans", "rows")
    fitted = fit_reduction(features, reduction, draw)
    decode = projection(fitted, normalize=True)
    joined, found = joined_clusters(context, features, decode, clusters, max_rows=reduction.max_rows, generator=draw)
    return {**fitted, **joined}, found


def joined_clusters(
    context: Context,
    features: FrozenFeatures,
    decode: nn.Module,
    options: FineClusterOptions,
    *,
    max_rows: int,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], KMeansResult]:
    """Spherical k-means of the embeddings of all images' positions: as many clusters as the run has classes, or more
    that are joined to as many.

    Args:
        context: the run.
        features: of its images.
        decode: (1, D, h, w) -> (1, E, h, w) on the CPU, in evaluation mode.
        options: of k-means.
        max_rows: at most about this many positions, the same number an image.
        generator: for their draw.

    Raises:
        MaskwrightError: when there are fewer positions than clusters.

    Returns:
        `centers` (F, E), with the `class_of` each (F,) where they are joined (`centers_of`), and the clustering.
    """
    rows = decoded_rows(features, decode, max_rows=max_rows, generator=generator, device=torch.device("cpu"))  # (N, E)
    total = sum(gather_objects(len(rows)))
    found = cluster_rows(context, rows, options, options.count(context.classes, total))
    if options.fine == 1:
        return {"centers": found.centers}, found
    return {"centers": found.centers, "class_of": ward_groups(found.centers, context.classes)}, found


def centers_of(options: FineClusterOptions) -> dict[str, str | tuple[str, str]]:
    """What `joined_clusters` gives under these options, a letter a dimension: F centres, and the class of each."""
    return {"centers": "FE"} if options.fine == 1 else {"centers": "FE", "class_of": ("i", "F")}


def classifier_of(t: Mapping[str, Tensor], classes: int, temperature: float) -> Part:
    """What tells classes apart by cosines to centres: to one of each class, or to the nearest of several.

    Args:
        t: an artefact that holds what `joined_clusters` gave.
        classes: K.
        temperature: cosines are divided by it.
    """
    if "class_of" not in t:
        return CosineClassifier(t["centers"], temperature)
    return ForegroundClusters(t["centers"], t["class_of"], classes, temperature=temperature)

"""The object of a photograph by eigenvectors of a graph over its patches (Deep Spectral Methods, CVPR 2022): from
frozen features alone, without a label.

Legend: N positions of one photograph, k eigenvectors, (h, w) grid of the features, (H, W) size of the photograph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from maskwright.engine.config import option
from maskwright.models.preprocess import resize_uint8
from maskwright.ops.graphs.affinity import color_knn_affinity, combine, feature_affinity
from maskwright.ops.graphs.objectness import border_distance, fiedler_side, otsu_threshold
from maskwright.ops.graphs.spectral import spectral_embedding
from maskwright.ops.refinement.guided import guided_filter
from maskwright.recipes.frozen.features import FrozenFeatures, frozen_features

if TYPE_CHECKING:
    from maskwright.engine.context import Context

OBJECT_VECTORS = 6
"""Vectors, the constant one among them, that the object is found from: later ones split it into parts."""


@dataclass(kw_only=True)
class GraphOptions:
    """The graph of one photograph."""

    layers: tuple[int, ...] | None = option(None, "blocks or stages for the graph; none: last block, or stride 16")
    kind: str | None = option(None, "what of a transformer block; none: its keys", choices=("tokens", "q", "k", "v"))
    color: float = option(10.0, "weight lambda of the colour affinity beside that of features", low=0.0)
    vectors: int = option(15, "eigenvectors k beside the constant one", low=1)


@dataclass(kw_only=True)
class ObjectOptions:
    """The object of one photograph."""

    rule: str = option(
        "border", "how the object is found: far from the border; the Fiedler vector's smaller side, as the paper; or "
        "the side of it that touches the border less", choices=("border", "fiedler", "fiedler_border"), old="object",
    )  # fmt: skip
    refine: bool = option(True, "sharpen object maps by a colour guided filter")


def graph_features(context: Context, graph: GraphOptions, short_side: int) -> FrozenFeatures:
    """What the graph is made of: keys of the last block, or the stage of stride 16."""
    backbone = context.backbone
    layers = graph.layers or ((-1,) if backbone.is_vit else (backbone.default_layer,))
    kind = graph.kind or ("k" if backbone.is_vit else "tokens")
    return frozen_features(context, short_side=short_side, layers=layers, kind=kind)


def spectrum(image: np.ndarray, x: Tensor, graph: GraphOptions, seed: int) -> tuple[Tensor, Tensor]:
    """The smallest eigenpairs of a photograph's graph.

    Args:
        image: uint8 (H, W, 3).
        x: its features (D, h, w).
        graph: options.
        seed: of the solver's first vector.

    Returns:
        Values (k,), ascending, the first that of the constant vector; and vectors (h, w, k).
    """
    _, h, w = x.shape
    affinity = feature_affinity(x.flatten(1).T)  # (N, N)
    if graph.color > 0:
        small = resize_uint8(image, (h, w)).permute(1, 2, 0).numpy()
        affinity = combine(affinity, color_knn_affinity(small), graph.color)
    result = spectral_embedding(affinity, min(graph.vectors + 1, h * w), seed=seed)
    return result.values.float(), result.vectors.float().reshape(h, w, -1)


def object_map(values: Tensor, vectors: Tensor, rule: str) -> Tensor:
    """How much each grid position belongs to the object (h, w), in [0, 1], of eigenpairs (k,) and (h, w, k)."""
    h, w, k = vectors.shape
    if rule != "border" and k > 1:
        side: Literal["smaller", "border"] = "smaller" if rule == "fiedler" else "border"
        return fiedler_side(vectors[..., 1].reshape(-1), (h, w), side).float()
    return border_distance(values[:OBJECT_VECTORS], vectors[..., :OBJECT_VECTORS].reshape(h * w, -1), (h, w))


def object_mask(image: np.ndarray, soft: Tensor, refine: bool) -> np.ndarray:
    """The object at the photograph's size, bool (H, W): above Otsu's threshold.

    Args:
        image: uint8 (H, W, 3).
        soft: `object_map`.
        refine: whether the map is sharpened by a guided filter before.
    """
    full = F.interpolate(soft[None, None], image.shape[:2], mode="bilinear", align_corners=False)[0].numpy()
    if refine:
        full = np.asarray(guided_filter(full, image, radius=max(2, min(image.shape[:2]) // 40), eps=1e-3))
    found: np.ndarray = full[0] > otsu_threshold(full[0])
    return found


def spectral_object(image: np.ndarray, x: Tensor, seed: int) -> np.ndarray:
    """What lies far from the border of a photograph in commute time, with the options as they are.

    Args:
        image: uint8 (H, W, 3).
        x: its features (D, h, w).
        seed: of the eigensolver.

    Returns:
        bool (H, W).
    """
    rule = ObjectOptions()
    values, vectors = spectrum(image, x, GraphOptions(vectors=OBJECT_VECTORS - 1), seed)
    return object_mask(image, object_map(values, vectors, rule.rule), rule.refine)

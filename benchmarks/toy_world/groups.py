"""A trained GroupViT's groups judged as clusters are: no name is read, and the truth matches them to classes.

Legend: G groups, E channels of the joint space, (h, w) grid of patches, (H, W) size of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.masks import write_mask
from maskwright.methods.unsupervised.kmeans import KMeansConfig
from maskwright.ops.clustering.kmeans import assign, kmeans
from maskwright.ops.clustering.pca import PCA, fit_pca
from maskwright.ops.groups import paint_groups


@torch.no_grad()
def groups_of(segmenter: Any, image: np.ndarray) -> tuple[Tensor, Tensor]:
    """Of a picture uint8 (H, W, 3): how much each place is of each group (G, h, w), and the groups' vectors in the
    space of words (G, E)."""
    found = segmenter.encoder(segmenter.preprocess.apply(image)[None])[0]
    g = segmenter.encoder.backbone.groups
    return found[:g], found[g:, 0, 0].unflatten(0, (g + 1, -1))[:g]


def groups_a_picture(segmenter: Any, scenes: Dataset) -> float:
    """How many groups have a place of their own, in the mean over pictures; with one, all of a picture is one class."""
    found = [groups_of(segmenter, scenes.image(i))[0] for i in range(len(scenes))]
    return float(np.mean([len(maps.argmax(0).unique()) for maps in found]))


@dataclass(frozen=True)
class GroupClusters:
    """Clusters of groups.

    Attributes:
        segmenter: of a trained `groupvit`.
        reduction: of the groups' vectors.
        centres: (K, d).
    """

    segmenter: Any
    reduction: PCA
    centres: Tensor

    @classmethod
    def fitted(cls, segmenter: Any, scenes: Dataset, clusters: int, seed: int) -> GroupClusters:
        """By PCA and k-means with the options that the method `kmeans` has. A place is as its group's vector is, so
        that a group counts as often as it has places.

        Args:
            segmenter: of a trained `groupvit`.
            scenes: pictures that the clusters are of.
            clusters: K.
            seed: of k-means.
        """
        options, rows = KMeansConfig(), []
        for i in range(len(scenes)):
            maps, vectors = groups_of(segmenter, scenes.image(i))
            rows.append(vectors[maps.argmax(0).flatten()])
        x = torch.cat(rows)  # (N, E)
        reduction = fit_pca(x, min(options.reduction.dim, x.shape[1]), options.reduction.whiten)
        found = kmeans(
            reduction.apply(x), clusters, iterations=options.clusters.iterations, restarts=options.clusters.restarts,
            seed=seed,
        )  # fmt: skip
        return cls(segmenter, reduction, found.centers)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W): the cluster of each pixel's group; pixels take groups as `groupvit` lets them."""
        maps, vectors = groups_of(self.segmenter, image)
        own = assign(self.reduction.apply(vectors), self.centres)[0]  # (G,)
        scores = F.one_hot(own, len(self.centres)).float()  # (G, K)
        painted = paint_groups(maps[None], scores[None], (image.shape[0], image.shape[1]))[0]
        return np.asarray(painted.argmax(0).numpy(), np.uint8)

    def predict_folder(self, scenes: Dataset, out: Path) -> None:
        """Writes the masks of pictures, by their names."""
        out.mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(scenes.names):
            write_mask(out / f"{name}.png", self.predict(scenes.image(i)), scenes.classes)

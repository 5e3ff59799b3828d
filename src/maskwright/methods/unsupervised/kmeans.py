"""k-means on frozen dense features: the baseline of everything that reads no label.

Whitened PCA and spherical k-means, as Leopart (Ziegler & Asano, CVPR 2022, https://arxiv.org/abs/2204.13101) and
PiCIE (Cho et al., CVPR 2021, https://arxiv.org/abs/2103.17070) use them to read out a network, and as Koenig et al.
(https://arxiv.org/abs/2304.07314) ask of anyone who reports a gain by STEGO: PCA and k-means on the same features
first.

Deviates: fitted on the training photographs alone (Leopart clusters the images it is judged on), with restarts kept by
inertia (issue 39 of STEGO's repository: one unlucky start costs 15 mIoU), `tokens` of a network's last block or the
convolutional stages of stride 16 and more, each brought to the same energy before they are joined.

Legend: N positions of all images, D channels, d channels kept, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from maskwright.engine.config import option
from maskwright.engine.contract import Stage
from maskwright.models.parts.heads import CosineClassifier, Projection
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.recipes.frozen.features import REDUCTION, cluster_rows, decoded_rows, fit_reduction, projection
from maskwright.recipes.frozen.method import FrozenConfig, FrozenMethod

CLUSTERS = "clusters.safetensors"


@dataclass(kw_only=True)
class KMeansConfig(FrozenConfig):
    """Options of `kmeans`."""

    dim: int = option(
        32, "channels kept by PCA; more keep noise, which whitening would raise to full power", low=1, main=True
    )
    whiten: bool = option(True, "divide each kept channel by its standard deviation")
    restarts: int = option(10, "starts of k-means; the one with the best inertia is kept", low=1, main=True)
    iterations: int = option(100, "most iterations of each start", low=1)
    max_rows: int = option(1_000_000, "positions to fit on; more are drawn from, the same number an image", low=1)
    crf: bool = option(False, "the dense CRF after prediction unless --refine says otherwise", main=True)
    temperature: float = option(
        0.1, "cosines are divided by it to give logits; for confidence and refinement only", low=1e-4
    )


class KMeans(FrozenMethod):
    """Whitened PCA and spherical k-means on frozen dense features."""

    name: ClassVar[str] = "kmeans"
    title: ClassVar[str] = "k-means on frozen dense features"
    venue: ClassVar[str] = "baseline, as in Leopart (CVPR 2022) and PiCIE (CVPR 2021)"
    link: ClassVar[str] = "https://arxiv.org/abs/2204.13101"
    summary: ClassVar[str] = "Clusters frozen features by k-means."
    Config: ClassVar[type] = KMeansConfig
    config: KMeansConfig

    @property
    def refinement(self) -> str:
        """The dense CRF, where the option `crf` says so."""
        return "crf" if self.config.crf else "none"

    def own_stages(self) -> list[Stage]:
        """Features, PCA and clusters."""
        return [Stage("cluster", "fit", self.cluster, "features of a frozen network, PCA, k-means")]

    def cluster(self, folder: Path) -> None:
        """Fits PCA and k-means; the artefact holds both."""
        c, context = self.config, self.context
        draw = context.generator("kmeans", "rows")
        reduction = fit_reduction(self.features, c.dim, whiten=c.whiten, max_rows=c.max_rows, generator=draw)
        project = projection(reduction, normalize=True)
        rows = decoded_rows(
            self.features, project, max_rows=c.max_rows, generator=draw, device=torch.device("cpu")
        )  # (N, d), unit length
        found = cluster_rows(context, rows, restarts=c.restarts, iterations=c.iterations)
        if context.run.writes:
            save_tensors(folder / CLUSTERS, {**reduction, "centers": found.centers})
        context.run.log("cluster", found.iterations, {"loss": float(found.inertia)})

    def embedding(self) -> Projection:
        """PCA, without length."""
        return projection(self.clusters())

    def clusters(self) -> dict[str, Tensor]:
        """The artefact of `cluster`: the reduction and the centres."""
        return self.context.run.tensors("cluster", CLUSTERS, {**REDUCTION, "centers": "KE"})

    def segmenter(self) -> Segmenter:
        """Encoder, projection and cosine to the cluster centres."""
        context = self.context
        t = self.clusters()
        return Segmenter(
            encoder=self.features.encoder,
            decoder=projection(t, normalize=True),
            classifier=CosineClassifier(t["centers"], temperature=self.config.temperature),
            classes=context.table,
            preprocess=self.features.preprocess,
            provenance=context.backbone.provenance,
            method=self.name,
        )

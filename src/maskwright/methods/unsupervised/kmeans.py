"""k-means on frozen dense features: the baseline of everything that reads no label.

Whitened PCA and spherical k-means, as Leopart (Ziegler & Asano, CVPR 2022, https://arxiv.org/abs/2204.13101) and
PiCIE (Cho et al., CVPR 2021, https://arxiv.org/abs/2103.17070) use them to read out a network, and as Koenig et al.
(https://arxiv.org/abs/2304.07314) ask of anyone who reports a gain by STEGO: PCA and k-means on the same features
first.

Deviates: fitted on the training photographs alone (Leopart clusters the images it is judged on), with restarts kept by
inertia (issue 39 of STEGO's repository: one unlucky start costs 15 mIoU), `tokens` of a network's last block or the
convolutional stages of stride 16 and more, each brought to the same energy before they are joined. PCA and clusters are
learned from random crops of half of each side (`crop`): of whole photographs clusters are spent on the border, whose
features tell of the padding beside it (docs/results.md).

Legend: N positions of all images, D channels, d channels kept, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from maskwright.engine.config import part
from maskwright.engine.contract import Stage
from maskwright.engine.result import assembled
from maskwright.models.parts.heads import Projection
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.recipes.clustering import FineClusterOptions
from maskwright.recipes.frozen.features import REDUCTION, centers_of, classifier_of, projection, reduced_clusters
from maskwright.recipes.frozen.method import FrozenConfig, FrozenMethod
from maskwright.recipes.frozen.options import ReductionOptions

CLUSTERS = "clusters.safetensors"


@dataclass(kw_only=True)
class KMeansConfig(FrozenConfig):
    """Options of `kmeans`."""

    reduction: ReductionOptions = part(ReductionOptions, main=("dim",), max_rows=1_000_000)
    clusters: FineClusterOptions = part(FineClusterOptions, main=("restarts",))


class KMeans(FrozenMethod):
    """Whitened PCA and spherical k-means on frozen dense features."""

    name: ClassVar[str] = "kmeans"
    title: ClassVar[str] = "k-means on frozen dense features"
    venue: ClassVar[str] = "baseline, as in Leopart (CVPR 2022) and PiCIE (CVPR 2021)"
    link: ClassVar[str] = "https://arxiv.org/abs/2204.13101"
    summary: ClassVar[str] = "Clusters frozen features by k-means."
    Config: ClassVar[type] = KMeansConfig
    config: KMeansConfig

    def own_stages(self) -> list[Stage]:
        """Features, PCA and clusters."""
        return [Stage("cluster", "fit", self.cluster, "features of a frozen network, PCA, k-means")]

    def cluster(self, folder: Path) -> None:
        """Fits PCA and k-means; the artefact holds both."""
        c, context = self.config, self.context
        t, found = reduced_clusters(context, self.learned, c.reduction, c.clusters)
        if context.run.writes:
            save_tensors(folder / CLUSTERS, t)
        context.run.log("cluster", found.iterations, {"loss": float(found.inertia)})

    def embedding(self) -> Projection:
        """PCA, without length."""
        return projection(self.clusters())

    def clusters(self) -> dict[str, Tensor]:
        """The artefact of `cluster`: the reduction and the centres."""
        return self.context.run.tensors("cluster", CLUSTERS, REDUCTION | centers_of(self.config.clusters))

    def segmenter(self) -> Segmenter:
        """Encoder, projection and cosine to the cluster centres."""
        t = self.clusters()
        classifier = classifier_of(t, self.context.classes, self.config.readout.temperature)
        return assembled(self, self.learned.encoder, projection(t, normalize=True), classifier, self.learned.preprocess)

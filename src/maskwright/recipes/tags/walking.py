"""Stages that take class maps for a random walk: sure pairs, an affinity learned from them, the walk itself.

    classify, cams    as in `engine.tag_pipeline`
    pairs (label)     seeds sure enough to make pairs of           masks/, confidence/
    affinity (train)  which nearby pixels are of one thing         checkpoint
    walk (label)      the maps, diffused                           maps/NAME.npz
    seeds, retrain    as in `engine.tag_pipeline`, of the walked maps

Legend: K tags of one image, (h, w) grid of the walk, N = h w.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.labels import LabelStore
from maskwright.engine.config import option
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import barrier, share
from maskwright.ops.cam import EPS, resize_maps
from maskwright.ops.graphs.walk import affinity_from_edges, local_feature_affinity, random_walk
from maskwright.recipes.tags.pairs import PairConfig, PairTraining, make_affinity_network, power_at, write_sure_labels
from maskwright.recipes.tags.pipeline import MAPS, PipelineConfig, TagMethod
from maskwright.recipes.tags.seeds import CamStore, ImageCams, find_threshold
from maskwright.recipes.tags.tags import load_trained, tag_preprocess, tag_steps

BETA = {"irn": 20.0, "psa": 8.0}
"""Exponents of the affinity. IRN's code has 10, for boundaries that ten times as many crops have sharpened."""
STEPS = {"irn": 256, "psa": 256}
"""Published lengths of the walk (both 2^8), for photographs of 375 x 500 pixels."""
ALPHA = 16.0
"""AffinityNet's power of the background that walks; its sure pixels come from 4 and 24 or 32."""
CELLS = {"irn": 94 * 125, "psa": 47 * 63}
"""Cells of such a photograph, which has one for every fourth and every eighth pixel."""


@dataclass(kw_only=True)
class WalkConfig(PipelineConfig, PairConfig):
    """Options of the tag pipeline with an affinity and a walk in it."""

    walk_radius: int = option(5, "pixels of the walk's graph are joined when closer than this, cells", low=2, high=32)
    walk_beta: float = option(
        0.0, "exponent of the affinity; 0: 20 for irn (published: 10), 8 for psa", low=0, high=1000
    )
    walk_steps: int = option(
        0, "length of the walk; 0: the published 256 (SEAM's psa: 64) at 375 x 500 pixels, in proportion to the cells",
        low=0, high=100_000,
    )  # fmt: skip
    walk_alpha: float = option(
        0.0,
        "psa: (1 - max)^alpha walks as the background (published: 16, SEAM 6); 0: from the threshold found",
        low=0,
        high=1000,
    )

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        PipelineConfig.check(self)
        PairConfig.check(self)


def walk_length(kind: str, cells: int, published: Mapping[str, int] = STEPS) -> int:
    """Steps after which a walk has spread over the same share of a grid as the published one of theirs.

    The square of a walk's spread grows with its steps, so they are in proportion to the grid's cells.

    Args:
        kind: "irn" or "psa".
        cells: N = h w.
        published: length of each kind at `CELLS`.

    Returns:
        At least 1.
    """
    return max(1, round(published[kind] * cells / CELLS[kind]))


def walk_with_boundaries(cams: Tensor, edge: Tensor, radius: int = 5, beta: float = 10.0, steps: int = 256) -> Tensor:
    """IRN's walk: maps leave boundaries, diffuse within them, and share one range afterwards.

    Args:
        cams: (K, h', w') in [0, 1].
        edge: (h, w) boundary probability in [0, 1].
        radius: pixels closer than this are joined.
        beta: exponent of the affinity.
        steps: length of the walk.

    Returns:
        (K, h, w) in [0, 1]; the maximum over all maps is 1 but for `EPS`.
    """
    x = resize_maps(cams.float(), (int(edge.shape[-2]), int(edge.shape[-1]))) * (1 - edge)
    if not len(x):
        return x
    walked = random_walk(x, affinity_from_edges(edge, radius), beta, steps)
    return (walked / (walked.max() + EPS)).clamp(0, 1)


def walk_with_features(
    cams: Tensor, features: Tensor, radius: int = 5, beta: float = 8.0, steps: int = 256, alpha: float = ALPHA
) -> Tensor:
    """AffinityNet's walk, in which the background goes along.

    Args:
        cams: (K, h', w') in [0, 1].
        features: (D, h, w).
        radius: pixels closer than this are joined.
        beta: exponent of the affinity.
        steps: length of the walk.
        alpha: (1 - max)^alpha is the background's score.

    Returns:
        (K, h, w) in [0, 1]: each class's share of what it and the background have, so that a class beats the background
        where it exceeds one half, and the largest map is the largest score.
    """
    size = (int(features.shape[-2]), int(features.shape[-1]))
    if not len(cams):
        return cams.new_zeros(0, *size)
    # The background's power is taken before cells are averaged: after, thin things would be background.
    rest = (1 - cams.float().amax(0, keepdim=True)).clamp(min=0) ** alpha
    scores = F.adaptive_avg_pool2d(torch.cat([rest, cams.float()]), size).clamp(0, 1)
    walked = random_walk(scores, local_feature_affinity(features, radius), beta, steps)
    total = walked[1:] + walked[:1]
    return torch.where(total > 0, walked[1:] / total.clamp(min=1e-12), torch.zeros_like(total)).clamp(0, 1)


class WalkMethod(TagMethod):
    """A method whose maps may take a random walk before they become labels.

    Attributes:
        published: length of each kind of walk in the method's paper, at 375 x 500 pixels.
    """

    published: ClassVar[Mapping[str, int]] = STEPS

    @property
    def walk_kind(self) -> str:
        """`irn`, `psa`, or `none`: then the pipeline is that of `TagMethod`."""
        return str(self.config.walk)

    @property
    def walks(self) -> bool:
        """Whether there is a walk."""
        return self.walk_kind != "none"

    def stages(self) -> list[Stage]:
        """Classify, cams, where asked pairs, affinity and walk, seeds, retrain."""
        classify, cams, seeds, retrain = super().stages()
        if not self.walks:
            return [classify, cams, seeds, retrain]
        what = "boundaries" if self.walk_kind == "irn" else "features"
        return [
            classify,
            cams,
            Stage("pairs", "label", self.pairs, "seeds sure enough to tell which pixels are alike"),
            Stage("affinity", "train", self.affinity, f"{what} that say which nearby pixels are of one thing"),
            Stage("walk", "label", self.walk, "class maps, spread along that affinity"),
            seeds,
            retrain,
        ]

    # ----------------------------------------------------------------------------------------------------- pairs

    @cached_property
    def raw_threshold(self) -> float:
        """Where the classifier's maps end, found without masks."""
        names = [self.context.data.items[i].name for i in self.targets.indices(self.context.data)]
        return find_threshold(self.raw_store, names, self.config.threshold_rule)

    def pair_bounds(self) -> tuple[float, float]:
        """The two thresholds or exponents between which nothing is sure."""
        c, psa = self.config, self.walk_kind == "psa"
        if psa and c.pair_alphas:
            return float(c.pair_alphas[0]), float(c.pair_alphas[1])
        if c.pair_thresholds:
            low, high = c.pair_thresholds
        else:
            found = self.raw_threshold
            low, high = found / 2, min(1.5 * found, (1 + found) / 2)
        # An exponent of a threshold in (0, 1); the larger threshold has the smaller one.
        return (power_at(min(high, 0.99)), power_at(max(low, 0.001))) if psa else (float(low), float(high))

    def pairs(self, folder: Path) -> None:
        """Labels that are sure; the artefact is a dataset."""
        context = self.context
        bounds = self.pair_bounds()
        context.note(
            f"Pairs: classes are sure that beat (1 - max)^{bounds[0]:.3g}, background that wins at ^{bounds[1]:.3g}."
            if self.walk_kind == "psa"
            else f"Pairs: sure background below {bounds[0]:.3f} of a map's maximum, sure classes above {bounds[1]:.3f}."
        )
        labels = LabelStore(folder, context.table)
        mine = share(self.targets.indices(context.data))
        work = write_sure_labels(
            self.raw_store, context.data, mine, labels, self.targets.background, self.walk_kind, bounds,
            self.config.pair_crf,
        )  # fmt: skip
        for _ in context.progress.track(work, "pairs", len(mine)):
            pass
        barrier()

    # -------------------------------------------------------------------------------------------------- affinity

    def affinity(self, folder: Path) -> None:
        """Trains the affinity; the artefact is its checkpoint."""
        context, c = self.context, self.config
        steps = c.affinity_steps or tag_steps(context, c)
        labels = LabelStore(self.folder("pairs"), context.table)
        training = PairTraining(context, c, self.targets, labels, self.walk_kind, steps)
        context.fit(training, "affinity", folder, steps)

    def trained_affinity(self) -> Any:
        """The affinity's network, from the artefact, in evaluation mode on the device."""
        network = make_affinity_network(self.context, self.config, self.walk_kind)
        load_trained(network, self.folder("affinity"))
        return network.to(self.context.device, memory_format=torch.channels_last).eval()

    # ------------------------------------------------------------------------------------------------------ walk

    @cached_property
    def raw_store(self) -> CamStore:
        """The maps of the classifier."""
        return CamStore(self.folder("cams") / MAPS)

    @cached_property
    def cam_store(self) -> CamStore:
        """The maps that seeds are made from."""
        return CamStore(self.folder("walk") / MAPS) if self.walks else self.raw_store

    def walk(self, folder: Path) -> None:
        """Diffuses the maps of all tagged images; the artefact is a file an image."""
        context = self.context
        network = self.trained_affinity()
        preprocess = tag_preprocess(context, self.config, network.multiple_of)
        store = CamStore(folder / MAPS)
        mine = share(self.targets.indices(context.data))
        with context.progress.task("walk", len(mine)) as task:
            for done, i in enumerate(mine, 1):
                name = context.data.items[i].name
                if name not in store:
                    cams = self.raw_store.read(name)
                    maps = cams.maps
                    if len(cams.keys):
                        image = context.data.image(i)
                        x = preprocess.apply(image, preprocess.target_size(cams.size))
                        maps = self.walked(network, x.to(context.device), cams)
                    store.write(name, ImageCams(cams.keys, maps, cams.size))
                task.advance_to(done)
        barrier()

    @torch.no_grad()
    def walked(self, network: Any, x: Tensor, cams: ImageCams) -> Tensor:
        """Maps of one image (3, H, W) after the walk, (K, h, w)."""
        c, kind = self.config, self.walk_kind
        with self.precision():
            out = network.boundaries(x) if kind == "irn" else network(x[None])[0]
        out = out.float().cpu()
        cells = int(out.shape[-2] * out.shape[-1])
        beta, steps = c.walk_beta or BETA[kind], c.walk_steps or walk_length(kind, cells, self.published)
        if kind == "irn":
            return walk_with_boundaries(cams.maps, out, c.walk_radius, beta, steps)
        alpha = c.walk_alpha or power_at(self.raw_threshold)
        return walk_with_features(cams.maps, out, c.walk_radius, beta, steps, alpha)

    def find_threshold(self) -> tuple[float, str]:
        """The background threshold and where it comes from; one half where the background walked along."""
        c = self.config
        if self.walk_kind == "psa" and c.threshold is None and not c.oracle_threshold:
            return 0.5, "where the background that walked along has more"
        return super().find_threshold()

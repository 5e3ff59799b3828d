"""Stages that take class maps for a random walk: sure pairs, an affinity learned from them, the walk itself.

    pairs (label)     seeds sure enough to make pairs of           masks/, confidence/
    affinity (train)  which nearby pixels are of one thing         checkpoint
    walk (label)      the maps, diffused                           maps/NAME.npz

A method of the way from tags to masks holds a `Walk` as a part; its stages stand between `cams` and `seeds`.

Legend: K tags of one image, (h, w) grid of the walk, N = h w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.labels import LabelStore
from maskwright.data.training.tag_targets import TagTargets
from maskwright.engine.checkpoint import trained
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import barrier, share
from maskwright.models.backbones.dense import autocast
from maskwright.ops.cam import EPS, resize_maps
from maskwright.ops.graphs.walk import affinity_from_edges, local_feature_affinity, random_walk
from maskwright.recipes.tags.affinity import PairTraining, make_affinity_network
from maskwright.recipes.tags.maps import MAPS, CamStore, ImageCams
from maskwright.recipes.tags.network import tag_preprocess, tag_steps
from maskwright.recipes.tags.pairs import pair_bounds, power_at, write_sure_labels
from maskwright.recipes.tags.thresholds import Threshold, find_threshold
from maskwright.recipes.training.forward import precision_of

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.recipes.tags.walk_options import WalkConfig

BETA = {"irn": 20.0, "psa": 8.0}
"""Exponents of the affinity. IRN's code has 10, for boundaries that ten times as many crops have sharpened."""
STEPS = {"irn": 256, "psa": 256}
"""Published lengths of the walk (both 2^8), for photographs of 375 x 500 pixels."""
ALPHA = 16.0
"""AffinityNet's power of the background that walks; its sure pixels come from 4 and 24 or 32."""
CELLS = {"irn": 94 * 125, "psa": 47 * 63}
"""Cells of such a photograph, which has one for every fourth and every eighth pixel."""


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


class Walk:
    """Maps that take a random walk before they become labels.

    Args:
        context: of the run.
        config: options.
        targets: what the images are tagged with, once the first stage has read it.
        published: length of each kind of walk in the method's paper, at 375 x 500 pixels.
    """

    def __init__(
        self,
        context: Context,
        config: WalkConfig,
        targets: Callable[[], TagTargets],
        published: Mapping[str, int] = STEPS,
    ) -> None:
        self.context, self.config, self.published = context, config, published
        self._targets = targets

    @property
    def targets(self) -> TagTargets:
        """What the images are tagged with."""
        return self._targets()

    @property
    def kind(self) -> str:
        """`irn` or `psa`."""
        return self.config.walk.kind

    def folder(self, stage: str) -> Path:
        """Where a stage left its artefacts."""
        return self.context.run.path / stage

    def stages(self) -> list[Stage]:
        """Pairs, affinity, walk."""
        what = "boundaries" if self.kind == "irn" else "features"
        return [
            Stage("pairs", "label", self.pairs, "seeds sure enough to tell which pixels are alike"),
            Stage(
                "affinity", "train", self.affinity, f"{what} that say which nearby pixels are of one thing", self.steps
            ),
            Stage("walk", "label", self.walk, "class maps, spread along that affinity"),
        ]

    # ---------------------------------------------------------------------- pairs

    @cached_property
    def raw_store(self) -> CamStore:
        """The maps of the classifier."""
        return CamStore(self.folder("cams") / MAPS)

    @cached_property
    def store(self) -> CamStore:
        """The maps after the walk."""
        return CamStore(self.folder("walk") / MAPS)

    def threshold(self, targets: TagTargets) -> Threshold | None:
        """One half where the background has walked along; None where the walked maps have to say."""
        if self.kind != "psa" or targets.background is None:
            return None
        return Threshold(0.5, "where the background that walked along has more")

    @property
    def label_store(self) -> LabelStore:
        """The sure labels."""
        return LabelStore(self.folder("pairs"), self.context.table)

    @cached_property
    def raw_threshold(self) -> float:
        """Where the classifier's maps end, found without masks."""
        names = [self.context.data.items[i].name for i in self.targets.indices(self.context.data)]
        return find_threshold(self.raw_store, names, self.config.seeds.threshold_rule)

    def pairs(self, folder: Path) -> None:
        """Labels that are sure; the artefact is a dataset."""
        context, c = self.context, self.config
        bounds = pair_bounds(c.pairs, self.kind, self.raw_threshold)
        context.note(
            f"Pairs: classes are sure that beat (1 - max)^{bounds[0]:.3g}, background that wins at ^{bounds[1]:.3g}."
            if self.kind == "psa"
            else f"Pairs: sure background below {bounds[0]:.3f} of a map's maximum, sure classes above {bounds[1]:.3f}."
        )
        mine = share(self.targets.indices(context.data))
        work = write_sure_labels(
            self.raw_store, context.data, mine, self.label_store, self.targets.background, self.kind, bounds,
            c.pairs.crf,
        )  # fmt: skip
        for _ in context.progress.track(work, "pairs", len(mine)):
            pass
        barrier()

    # ---------------------------------------------------------------------- affinity

    def affinity(self, folder: Path) -> None:
        """Trains the affinity; the artefact is its checkpoint."""
        context, c = self.context, self.config
        training = PairTraining(context, c, self.targets, self.label_store, self.kind, self.steps)
        context.fit(training, "affinity", folder, self.steps)

    @property
    def steps(self) -> int:
        """Of the affinity's training."""
        return int(self.config.affinity.steps or tag_steps(self.context, self.config))

    def trained_affinity(self) -> Any:
        """The affinity's network, from the artefact, in evaluation mode on the device."""
        network = trained(
            self.folder("affinity"), "network", make_affinity_network(self.context, self.config, self.kind)
        )
        return network.to(self.context.device, memory_format=torch.channels_last).eval()

    # ---------------------------------------------------------------------- walk

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
        c, kind, device = self.config, self.kind, self.context.device
        with autocast(device, precision_of(c.precision, device)):
            out = network.boundaries(x) if kind == "irn" else network(x[None])[0]
        out = out.float().cpu()
        cells = int(out.shape[-2] * out.shape[-1])
        beta, steps = c.walk.beta or BETA[kind], c.walk.steps or walk_length(kind, cells, self.published)
        if kind == "irn":
            return walk_with_boundaries(cams.maps, out, c.walk.radius, beta, steps)
        alpha = c.walk.alpha or power_at(self.raw_threshold)
        return walk_with_features(cams.maps, out, c.walk.radius, beta, steps, alpha)

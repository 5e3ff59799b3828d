"""Learning which nearby pixels are of one thing, from the pixels of the seeds that are sure.

    pairs (label)     seeds sure enough to make pairs of                           masks/, confidence/
    affinity (train)  AffinityNet's features or IRN's boundaries from those pairs      checkpoint

Legend: B batch, T tags, S crop side, (h, w) grid of the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.sources import StoredLabels
from maskwright.data.training.tag_targets import TagTargets
from maskwright.engine.config import option
from maskwright.engine.loop import Indices
from maskwright.engine.seeding import seed_step
from maskwright.errors import MaskwrightError
from maskwright.models.networks.irn import AffinityNet, BoundaryNet
from maskwright.ops.cam import with_background
from maskwright.ops.graphs.pair_affinity import (
    affinity_loss,
    boundary_affinity,
    feature_affinity,
    pair_labels,
)
from maskwright.ops.refinement.crf import CRF_SETTINGS, dense_crf
from maskwright.recipes.tags.seeds import CamStore, ImageCams, seed_labels
from maskwright.recipes.tags.tags import TagTraining, sgd

if TYPE_CHECKING:
    from maskwright.engine.context import Context

RADIUS = {"irn": 10, "psa": 5}
"""Published radius of training pairs, exclusive, in cells: every fourth pixel for IRN, every eighth for PSA."""


@dataclass(kw_only=True)
class PairConfig:
    """Options of everything that learns an affinity of pixels from seeds; crops, batch and decay are the classifier's
    (`tag_...`)."""

    pair_thresholds: tuple[float, ...] = option(
        (),
        "irn: sure background below the first, sure class above the second (published: 0.05,0.3 around a threshold of "
        "0.15); empty: half and one and a half of the threshold found without masks",
        low=0,
        high=1,
    )
    pair_alphas: tuple[float, ...] = option(
        (),
        "psa: a class is sure that beats (1 - max)^first, background of ^second that beats all (published: 4,24 "
        "or 4,32); "
        "empty: the exponents that draw the line where pair_thresholds would",
        low=0.01,
        high=1000,
    )
    pair_crf: bool = option(True, "a dense CRF decides on both labellings, as published")
    affinity_steps: int = option(0, "steps of the affinity's training; 0: as many as the classifier's", low=0)
    affinity_lr: float = option(0.1, "learning rate of what is new in it, poly schedule", low=0)
    affinity_momentum: float = option(
        0.9, "of its sgd; published code has none and ten times the steps", low=0, high=0.99
    )
    affinity_radius: int = option(
        0, "pairs closer than this are learned from, cells; 0: 10 for irn, 5 for psa", low=0, high=32
    )

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if len(self.pair_thresholds) not in (0, 2) or list(self.pair_thresholds) != sorted(self.pair_thresholds):
            raise MaskwrightError(
                f"pair_thresholds={self.pair_thresholds}", "two, ascending", "--set pair_thresholds=0.05,0.3"
            )
        if len(self.pair_alphas) not in (0, 2) or list(self.pair_alphas) != sorted(self.pair_alphas):
            raise MaskwrightError(f"pair_alphas={self.pair_alphas}", "two, ascending", "--set pair_alphas=4,24")
        if self.affinity_radius == 1:
            raise MaskwrightError("affinity_radius=1", "0 or at least 2: below 2 there are no pairs")


# -------------------------------------------------------------------------------------------------------- labels


def power_at(threshold: float) -> float:
    """The exponent with which (1 - v)^alpha meets v at the threshold: 6 at 0.22, 4 at 0.28, 24 at 0.10."""
    return math.log(threshold) / math.log(1 - threshold)


def sure_by_threshold(cams: ImageCams, low: float, high: float, image: np.ndarray | None = None) -> tuple[Any, Any]:
    """IRN's confident areas: classes of the labelling at the high threshold, background where neither finds a class.

    Args:
        cams: maps of one image.
        low: threshold below which nothing is seen.
        high: threshold above which a class is sure.
        image: uint8 (H, W, 3), with which a dense CRF refines both labellings.

    Returns:
        Class ids (H, W), -1 where none is sure, and bool (H, W), where background is.
    """
    strict = seed_labels(cams, None, high, image=image)
    lax = seed_labels(cams, None, low, image=image)
    return torch.where(strict.valid, strict.ids, -1), ~strict.valid & ~lax.valid


def sure_by_power(cams: ImageCams, low: float, high: float, image: np.ndarray | None = None) -> tuple[Any, Any]:
    """PSA's: a class that beats the background (1 - max)^low, and background of (1 - max)^high that beats all classes.

    Arguments and result as for `sure_by_threshold`; a small exponent makes a strong background.
    """
    if not len(cams.keys):
        nothing = torch.full(cams.size, -1, dtype=torch.int64)
        return nothing, torch.ones(cams.size, dtype=torch.bool)
    maps = cams.full()
    found = []
    for alpha in (low, high):
        scores = with_background(maps, alpha=alpha)
        if image is not None:
            refined = dense_crf(scores.clamp(0, 1).numpy(), image, **CRF_SETTINGS["psa"])  # type: ignore[arg-type]
            scores = torch.from_numpy(np.asarray(refined))
        found.append(scores.argmax(0))
    strict, lax = found
    ids = torch.where(strict > 0, cams.keys[(strict - 1).clamp(min=0)], -1)
    return ids, (lax == 0) & (strict == 0)


def sure_labels(ids: Tensor, ground: Tensor, background: int | None) -> LabelMap:
    """Sure classes and sure background as labels; without a class for the background it stays without a label."""
    valid = ids >= 0
    rest = 0 if background is None else background
    if background is not None:
        valid = valid | ground
    ids = torch.where(ids >= 0, ids, rest)
    return LabelMap(torch.where(valid, ids, 0), valid.float(), valid)


def write_sure_labels(
    store: CamStore,
    data: Dataset,
    indices: Iterable[int],
    labels: LabelStore,
    background: int | None,
    kind: str,
    bounds: tuple[float, float],
    crf: bool,
) -> Iterator[int]:
    """Writes the sure labels of images that have maps and no labels yet; yields how many are done."""
    sure = sure_by_power if kind == "psa" else sure_by_threshold
    for done, i in enumerate(indices, 1):
        name = data.items[i].name
        if name not in labels:
            image = np.ascontiguousarray(data.image(i)) if crf else None
            found = sure_labels(*sure(store.read(name), *bounds, image), background)
            labels.write(name, found, data.items[i].image)
        yield done


# ------------------------------------------------------------------------------------------------------ training


class PairBatch(NamedTuple):
    """Crops with sure labels.

    Attributes:
        x: (B, 3, S, S), normalised.
        ids: int64 (B, h, w) on the grid of the pairs.
        valid: bool (B, h, w).
    """

    x: Tensor
    ids: Tensor
    valid: Tensor


def make_affinity_network(context: Context, config: Any, kind: str) -> Any:
    """An untrained `BoundaryNet` or `AffinityNet` on a copy of the run's backbone."""
    stride = config.output_stride or None
    if kind == "irn":
        return BoundaryNet(context.backbone, stride)
    return AffinityNet(context.backbone, stride, config.tag_freeze)


class PairTraining(TagTraining):
    """Trains an affinity on pairs of sure labels.

    Args:
        context: of the run.
        config: options.
        targets: what the images are tagged with.
        labels: the sure labels.
        kind: "irn" or "psa".
        steps: of the stage.
    """

    def __init__(
        self, context: Context, config: Any, targets: TagTargets, labels: LabelStore, kind: str, steps: int
    ) -> None:
        seed_step(context.seed, -1, stage="affinity")  # initial weights
        network = make_affinity_network(context, config, kind)
        super().__init__(context, config, targets, steps, network, stage="affinity")
        self.kind = kind
        self.radius = config.affinity_radius or RADIUS[kind]
        self.labels = StoredLabels(context.data, labels, {context.data.items[i].name for i in self.images})
        side = -(-self.crop // network.stride)
        self.grid = (side, side)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """SGD at the affinity's own rate."""
        c = self.config
        groups = self.network.groups(c.affinity_lr, c.tag_encoder_lr, c.tag_weight_decay)
        return sgd(groups, c.affinity_lr, c.affinity_momentum)

    def batch(self, indices: Indices, random: torch.Generator) -> PairBatch:
        """Crops and what is sure on the grid of the pairs."""
        x, views, chosen = self.draw_crops(indices, random)
        y = LabelMap.stack([self.labels.read(i).through(v.resize(*self.grid)) for i, v in zip(chosen, views)])
        return PairBatch(x, y.ids.to(self.device), y.valid.to(self.device))

    def losses(self, batch: PairBatch, step: int) -> dict[str, Tensor]:
        """L_aff."""
        pairs = pair_labels(batch.ids, batch.valid, self.targets.background, self.radius)
        with self.autocast():
            out = self.network(batch.x)
        if self.kind == "psa":
            return {"loss": affinity_loss(feature_affinity(out, self.radius), pairs)}
        return {"loss": affinity_loss(boundary_affinity(out.float().sigmoid(), self.radius), pairs)}

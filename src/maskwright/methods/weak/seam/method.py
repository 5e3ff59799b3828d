"""SEAM: class maps that follow the image through scaling, refined by the image's own similarities.

Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation, Wang et al., CVPR 2020,
https://arxiv.org/abs/2004.04581.

A classifier may say the same of an image at any size, but masks have to scale with it. A siamese network sees an image
I and A(I), a rescaled one, and L_ER asks that maps and A commute. A pixel correlation module (PCM) makes each pixel's
map the mean over the pixels that look like it; it sees the maps detached, and L_ECR compares the refined maps of
one branch with the raw ones of the other, so that it cannot agree with itself on nothing. Seeds are the refined maps.

Deviates: A may mirror and rotate too (`mirror`, `rotate`), through the recorded geometry of the views, and what lies
outside the photograph is not compared. Ranges of maps are taken at the network's resolution and maps compared on a grid
of every fourth pixel of the smaller view, where the code enlarges all maps to pixels first. The PCM sees only maps of
tagged classes: a class that is known to be absent otherwise takes pixels from those that are there. The
background has no logit of its own; the code has one that nothing reads. Any backbone serves; the two feature levels
are the stages before the last. Crops are smaller and cells coarser than the paper's, so A halves instead of 0.3
(`rescale`), and the small branch has a tenth of the classification loss instead of half (`small_share`): with the
published values 90 steps on photographs of VOC left the raw maps 6 mIoU behind a plain classifier's. L_ER grows over
half of the steps (`er_ramp`): it compares maps that were divided by their maxima, so that the flat maps of classes not
learned yet get the largest gradients; at full weight from the start, 400 steps on VOC left classes with few photographs
without any positive map. The random walk of the paper's second stage is `walk=psa` (or irn).

What the original gets wrong: with maps detached on the one side and targets on the other, L_ECR trains the three
convolutions of the PCM alone, not the network as the paper's figure has it; only L_ER does. The ablation of
background scores was swept on masks. Training is SGD without momentum, as the optimiser's argument of that name
is the power of the learning-rate schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from maskwright.data.training.streams import Views
from maskwright.data.training.tag_targets import TagTargets
from maskwright.data.training.views import View, resample
from maskwright.engine.config import Idle, option, part
from maskwright.engine.loop import Training
from maskwright.methods.weak.seam.network import SeamNetwork, SeamOutput
from maskwright.ops.cam import background_power, keep_tagged, normalize_cam, suppress_non_maximal
from maskwright.recipes.tags.method import TagMethod
from maskwright.recipes.tags.options import ClassifierOptions, MapOptions
from maskwright.recipes.tags.training import TagSetup, multi_label_soft_margin
from maskwright.recipes.tags.walk_options import WalkConfig
from maskwright.recipes.tags.walking import STEPS, Walk

GRID = 4
"""Pixels of the smaller view a cell of the grid that maps are compared on."""
LEAST = 2
"""Cells a side that the smaller view has at least, the larger twice as many: a map of one cell has no range."""


@dataclass(kw_only=True)
class SecondViewOptions:
    """A, which makes the second branch's view of the first's."""

    rescale: float = option(
        0.5, "side of the second branch's view over the first's (SEAM: 0.3 of 448 pixels at stride 8)", low=0.05, high=1
    )
    mirror: float = option(0.0, "chance that the second view is mirrored", low=0, high=1)
    rotate: float = option(0.0, "greatest angle it is rotated by, degrees", low=0, high=180)


@dataclass(kw_only=True)
class SeamConfig(WalkConfig):
    """Options of `seam`."""

    classifier: ClassifierOptions = part(ClassifierOptions, dropout=0.5)
    maps: MapOptions = part(
        MapOptions, norm="minmax", says={"norm": "range of each map: minmax (SEAM), or by its maximum"}
    )
    second: SecondViewOptions = part(SecondViewOptions)
    hard_share: float = option(0.2, "share of pixels, the worst ones, that L_ECR is the mean over", low=0.001, high=1)
    small_share: float = option(
        0.1, "share of the small view in the soft margin (SEAM: 0.5); small images are hard to classify", low=0, high=1
    )
    er: float = option(1.0, "weight of L_ER", low=0, main=True)
    er_ramp: float = option(0.5, "share of the steps over which that weight grows from 0; SEAM: 0", low=0, high=1)
    ecr: float = option(1.0, "weight of L_ECR", low=0, main=True)

    def idle(self) -> Idle:
        """Options of losses that do not weigh."""
        yield from super().idle()
        if not self.er:
            yield ("er_ramp",), "er=0"
        if not self.ecr:
            yield ("hard_share",), "ecr=0"


# -------------------------------------------------------------------------------------------------------- losses


def adaptive_min_pooling(refined: Tensor, y: Tensor) -> Tensor:
    """L_min: the quarter of pixels with the least evidence for any tagged class should have none.

    Args:
        refined: (B, T, h, w), refined maps of the classes.
        y: (B, T), tags.

    Returns:
        Mean over the lowest quarter of each image's largest tagged value.
    """
    x = keep_tagged(refined, y).amax(1).flatten(1)
    k = max(1, x.shape[1] // 4)
    return x.topk(k, dim=1, largest=False).values.relu().mean()


def equivariant_regularization(y1: Tensor, y2: Tensor, valid: Tensor) -> Tensor:
    """L_ER = |A(y1) - y2|_1, the mean over classes and valid pixels.

    Args:
        y1: (B, T, h, w), the first branch's maps, moved into the second's view.
        y2: (B, T, h, w), the second's.
        valid: bool (B, h, w), what both show of the photograph.
    """
    gap = (y1 - y2).abs() * valid[:, None]
    return gap.sum() / (valid.sum().clamp(min=1) * y1.shape[1])


def hard_pixel_mean(gap: Tensor, share: float = 0.2) -> Tensor:
    """Mean of the largest share of each image's entries (B, C, h, w), then over images."""
    flat = gap.flatten(1)
    return flat.topk(max(1, int(flat.shape[1] * share)), dim=1).values.mean()


def equivariant_cross_regularization(
    y1: Tensor, yr1: Tensor, y2: Tensor, yr2: Tensor, valid: Tensor, share: float = 0.2
) -> Tensor:
    """L_ECR = |A(yr1) - y2| + |A(y1) - yr2|, of the hardest pixels; raw maps are targets, one class a pixel.

    Args:
        y1: (B, 1 + T, h, w), the first branch's maps with the background first, moved into the second's view.
        yr1: the same of the refined maps.
        y2: (B, 1 + T, h, w), the second branch's.
        yr2: the same, refined.
        valid: bool (B, h, w).
        share: of entries that count.
    """
    inside = valid[:, None]
    first = (one_class(y2) - yr1).abs() * inside
    second = (one_class(y1) - yr2).abs() * inside
    return hard_pixel_mean(first, share) + hard_pixel_mean(second, share)


def one_class(y: Tensor) -> Tensor:
    """Of maps (B, 1 + T, h, w) the background and, at each pixel, the largest class; without gradient."""
    y = y.detach()
    return torch.cat([y[:, :1], suppress_non_maximal(y[:, 1:])], dim=1)


def classification_loss(out1: SeamOutput, out2: SeamOutput, y: Tensor, share: float = 0.5) -> Tensor:
    """L_cls: the soft margin of the scores and L_min of the refined maps, of both branches.

    Args:
        out1: of the first branch.
        out2: of the second.
        y: (B, T), tags.
        share: of the second branch in the margin; the mean of the two in the paper.
    """
    margin = (1 - share) * multi_label_soft_margin(out1.scores, y) + share * multi_label_soft_margin(out2.scores, y)
    least = adaptive_min_pooling(out1.refined[:, 1:], y) + adaptive_min_pooling(out2.refined[:, 1:], y)
    return margin + least / 2


def with_rest(maps: Tensor) -> Tensor:
    """Maps (B, T, h, w) with 1 minus their maximum before them, (B, 1 + T, h, w)."""
    return torch.cat([background_power(maps), maps], dim=1)


# ------------------------------------------------------------------------------------------------------ training


class Pair(NamedTuple):
    """Tagged photographs seen by the first branch and, through A, by the second.

    Attributes:
        x1: (B, 3, S, S): uint8 as drawn, the network's input once they are on the device.
        x2: (B, 3, S', S'), A(x1), made on the device; None as drawn.
        y: (B, T), tags.
        views1: the recorded geometry of x1.
        views2: that of x2.
    """

    x1: Tensor
    x2: Tensor | None
    y: Tensor
    views1: Sequence[View]
    views2: Sequence[View]


class Maps(NamedTuple):
    """Maps of tagged classes as one view sees them.

    Attributes:
        y: (B, T, h, w), N(maps), in [0, 1].
        yr: (B, 1 + T, h, w), N(refined maps), background first.
        valid: bool (B, h, w), what the branch shows there of the photograph.
    """

    y: Tensor
    yr: Tensor
    valid: Tensor


def make_seam_network(context: Any, config: SeamConfig, targets: TagTargets) -> SeamNetwork:
    """An untrained network on a copy of the run's backbone."""
    c = config.classifier
    return SeamNetwork(context.backbone, len(targets), c.output_stride or None, c.dropout, c.freeze)


class SeamTraining(Training):
    """Two branches of one network."""

    setup: TagSetup

    def __init__(self, context: Any, config: SeamConfig, targets: TagTargets, steps: int) -> None:
        setup = TagSetup(context, config, targets, steps, make_seam_network, least=2 * LEAST)
        super().__init__(setup)
        self.config, self.steps, self.network = config, steps, setup.network
        m = self.network.multiple_of
        self.small = min(setup.crop, max(LEAST, round(setup.crop * config.second.rescale / m)) * m)
        self.grid = (-(-self.small // GRID), -(-self.small // GRID))  # (h, w) that maps are compared on
        mean = torch.tensor(setup.preprocess.mean).mul(255).round().to(torch.uint8)
        self.margin = setup.normalise(mean[None, :, None, None])  # what crops show beside the photograph

    def transformed(self, view: View, random: torch.Generator) -> View:
        """A of a view: smaller, and where asked mirrored and rotated."""
        c = self.config.second
        other = view.resize(self.small, self.small)
        if c.mirror > 0 and float(torch.rand((), generator=random)) < c.mirror:
            other = other.hflip()
        if c.rotate > 0:
            other = other.rotate(c.rotate * (2 * float(torch.rand((), generator=random)) - 1))
        return other

    def batch(self, indices: Any, random: torch.Generator) -> dict[str, Pair]:
        """Crops of tagged photographs, and the geometry of A of each."""
        x: Views = self.setup.streams.draw(indices, random)["x"]
        return {"x": Pair(x.weak, None, x.t, x.geometry, [self.transformed(v, random) for v in x.geometry])}

    def on_device(self, batch: Any) -> dict[str, Pair]:
        """The network's input, and A of it."""
        x: Pair = batch["x"]
        x1 = self.setup.normalise(x.x1)
        x2, valid = resample(x1, x.views1, x.views2, (self.small, self.small), antialias=True)
        x2 = torch.where(valid[:, None], x2, self.margin).contiguous(memory_format=torch.channels_last)
        return {"x": x._replace(x1=x1, x2=x2, y=x.y.to(self.setup.device, non_blocking=True))}

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_cls + er(t) L_ER + ecr L_ECR."""
        c, x = self.config, batch["x"]
        with self.setup.autocast():
            out1, out2 = self.network(x.x1, x.y), self.network(x.x2, x.y)
        l_cls = classification_loss(out1, out2, x.y, c.small_share)
        first = self.seen(out1, x.y, x.views1, x.views2)  # A of the first branch's maps
        second = self.seen(out2, x.y, x.views2, x.views2)
        l_er = equivariant_regularization(first.y, second.y, first.valid)
        l_ecr = equivariant_cross_regularization(
            with_rest(first.y), first.yr, with_rest(second.y), second.yr, first.valid, c.hard_share
        )
        loss = l_cls + self.er_weight(step) * l_er + c.ecr * l_ecr
        return {"loss": loss, "l_cls": l_cls, "l_er": l_er, "l_ecr": l_ecr}

    def er_weight(self, step: int) -> float:
        """er(t), growing in proportion over `er_ramp` of the steps."""
        c = self.config
        return float(c.er * min(1.0, step / (c.er_ramp * self.steps)) if c.er_ramp > 0 else c.er)

    def seen(self, out: SeamOutput, y: Tensor, a: Sequence[View], b: Sequence[View]) -> Maps:
        """The maps of views a, of tagged classes and in one range, as views b see them."""
        tags = torch.cat([y.new_ones(len(y), 1), y], dim=1)
        maps = keep_tagged(normalize_cam(out.cams.float(), "minmax"), y)
        refined = keep_tagged(normalize_cam(out.refined.float(), "minmax"), tags)
        found, valid = resample(torch.cat([maps, refined], dim=1), a, b, self.grid, antialias=True)
        return Maps(found[:, : y.shape[1]], found[:, y.shape[1] :], valid)


# -------------------------------------------------------------------------------------------------------- method


class Seam(TagMethod):
    """Siamese training, refined maps as seeds."""

    name: ClassVar[str] = "seam"
    title: ClassVar[str] = "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation"
    venue: ClassVar[str] = "Wang et al., CVPR 2020"
    link: ClassVar[str] = "https://arxiv.org/abs/2004.04581"
    summary: ClassVar[str] = "Makes class maps follow a rescaled image."
    Config: ClassVar[type] = SeamConfig
    trainer: ClassVar[type[Training]] = SeamTraining
    # SEAM's copy of AffinityNet walks 2^6 steps with a background of power 6, AffinityNet 2^8 with 16.
    published: ClassVar[Mapping[str, int]] = {**STEPS, "psa": 64}

    @cached_property
    def walk(self) -> Walk | None:
        """The random walk of the paper's second stage, where asked for."""
        if self.config.walk.kind == "none":
            return None
        return Walk(self.context, self.config, lambda: self.targets, self.published)

    def network(self) -> SeamNetwork:
        """The classifier with its correlation module, untrained."""
        return make_seam_network(self.context, self.config, self.targets)

    def maps(self, network: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """cam_rv of the tagged classes."""

        @torch.no_grad()
        def refined(x: Tensor, tags: Tensor) -> Tensor:
            return keep_tagged(network(x, tags).refined[:, 1:].float(), tags)

        return refined

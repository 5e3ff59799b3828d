"""ToCo: token contrast against the over-smoothing of transformers, from image tags to masks in one stage.

Token Contrast for Weakly-Supervised Semantic Segmentation, Ru et al., CVPR 2023, https://arxiv.org/abs/2303.01267.

The deeper a vision transformer, the more alike its patch tokens, so that class maps of its last block say little. An
earlier block still tells patches apart: its auxiliary class map says which pairs of final tokens should be alike and
which not (patch token contrast). Class tokens of small crops from regions where that map is unsure are pulled to the
class token of the whole view, those of crops from the background pushed away (class token contrast). At the same time
the final class map, refined by the colours of the photograph, teaches a segmentation branch, which is the result.

    x -> tokens -> L_cls, L_cls_aux | aux map -> pairs -> L_ptc | aux map -> crops -> L_ctc | map, PAR -> L_seg, L_reg

Deviates: L_reg is computed exactly on a small grid and divided by the sum of its affinities
(`ops/refinement/dense_energy.py`), where the original needs a C++ lattice and a factor of 1e-7; its weight has another
unit for that. The refinement's weights sum to 1, which leaves its labels as they are; they stay at half size. Means
over pairs are means (the original adds 1 to their number), without pairs a term is 0. The auxiliary tokens pass the
last normalisation. Batch, crop and steps are those of this family, smaller than the paper's 448 and 20000; warm-up and
the start of L_seg are shares of the steps. What lies outside the photograph has no label and no crop. Retraining
another network, on the branch's masks or on seeds from the class maps, is an option (`retrain`) that the paper has
not.

What the original gets wrong: its class token loss ends each loop with a further term of negatives alone, which counts
once an image whatever the crops show; its refinement's weights sum to 1.01, so that maps grow with every round; it
takes absolute cosines, so that opposite tokens of one class count as alike (kept: published results rest on it). A
large view's own projection is one of its positives, which its moving average then copies (kept).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.augment import photometric
from maskwright.data.training.crops import random_resized_crop, windows_where
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.streams import Stream
from maskwright.data.training.tag_targets import TagTargets
from maskwright.data.training.views import View, resample
from maskwright.engine import seeding
from maskwright.engine.config import Idle, option, part
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import barrier, share
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.methods.weak.toco.network import Projector, TocoNetwork
from maskwright.models.segmenter import Segmenter
from maskwright.ops.cam import fuse_flips, fuse_scales, keep_tagged, normalize_cam, resize_maps
from maskwright.ops.cam_labels import IGNORE, cam_labels, cam_regions, refined_cam_labels
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.ops.refinement.crf import CRF_SETTINGS, dense_crf
from maskwright.ops.refinement.dense_energy import dense_energy
from maskwright.predict.inference import predict_probs
from maskwright.recipes.ema import EMATeacher
from maskwright.recipes.tags.method import TagMethod
from maskwright.recipes.tags.network import tag_preprocess, tag_steps
from maskwright.recipes.tags.options import ClassifierOptions, MapOptions, TagsConfig
from maskwright.recipes.tags.showing import Way, what_is_shown
from maskwright.recipes.tags.telling import named_background
from maskwright.recipes.tags.training import TagSetup, multi_label_soft_margin
from maskwright.recipes.training.optimizers import add_module

if TYPE_CHECKING:
    from maskwright.engine.context import Context

NEGATIVE_SHARE = 0.2
"""A crop whose regions (0 background, 1 unsure, 2 class) have at most this mean shows background."""


@dataclass(kw_only=True)
class LocalOptions:
    """Small crops, whose class tokens are contrasted."""

    crops: int = option(8, "small crops of each photograph", low=1, old="local_crops")
    side: int = option(
        64, "their side, pixels, rounded up to whole patches (paper: 96 of 448)", low=8, old="local_side"
    )


@dataclass(kw_only=True)
class ProjectorOptions:
    """What class tokens are projected by before they are compared."""

    hidden: int = option(2048, "width of the projector", low=1)
    projection: int = option(1024, "E, what class tokens are compared in", low=1)
    momentum: float = option(0.9, "of the projector's moving average", low=0, high=1)


@dataclass(kw_only=True)
class BranchOptions:
    """The segmentation branch and what teaches it."""

    width: int = option(512, "channels of the LargeFOV decoder", low=1, old="decoder_width")
    dilation: int = option(5, "of its convolutions, patches", low=1, old="decoder_dilation")
    after: float = option(0.1, "share of the steps before L_seg and L_reg count", low=0, high=0.9, old="seg_after")
    par_rounds: int = option(10, "rounds of pixel-adaptive refinement of the map that teaches the branch", low=0)
    reg_cells: int = option(48, "side of L_reg's grid; its cost grows with the fourth power", low=4, high=128)
    mask_scales: tuple[float, ...] = option((1.0, 1.25, 1.5), "input sizes of `retrain=masks`", low=0.05, high=8)

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if not self.mask_scales:
            raise MaskwrightError("no mask_scales", "at least one", "--set mask_scales=1")


@dataclass(kw_only=True)
class TocoConfig(TagsConfig):
    """Options of `toco`; `classifier` is its one stage, the network's groups are those of `retrain`."""

    classifier: ClassifierOptions = part(
        ClassifierOptions, batch=4, scale_min=0.5, scale_max=2.0, optimizer="adamw", lr=6e-4, weight_decay=0.01,
        freeze=0,
        says={
            "batch": "photographs in a step, each seen as two large views and several small crops",
            "optimizer": "adamw as in the paper, or sgd with momentum",
            "lr": "learning rate of classifiers, decoder and projector",
            "encoder_lr": "the transformer's rate as a share of lr (paper: 6e-5)",
            "scale_min": "least random scale",
            "freeze": "patch embedding and so many blocks without gradient",
        },
    )  # fmt: skip
    maps: MapOptions = part(
        MapOptions, scales=(1.0, 0.5, 1.5), norm="minmax",
        says={
            "scales": "input sizes of class maps, in training too",
            "norm": "range of each map in `retrain=cams`",
        },
    )  # fmt: skip
    aux_layer: int = option(-3, "block of the auxiliary class map, negative from the end")
    high: float = option(0.7, "a class where a map is at least this", low=0, high=1)
    low: float = option(0.25, "background where no map exceeds this", low=0, high=1)
    w_ptc: float = option(0.2, "weight of L_ptc", low=0, main=True)
    w_ctc: float = option(0.5, "weight of L_ctc", low=0)
    w_seg: float = option(0.1, "weight of L_seg", low=0, main=True)
    w_reg: float = option(0.05, "weight of L_reg; 0 leaves it out", low=0)
    temperature: float = option(0.5, "of L_ctc", low=1e-3)
    local: LocalOptions = part(LocalOptions)
    projector: ProjectorOptions = part(ProjectorOptions)
    branch: BranchOptions = part(BranchOptions)
    warmup: float = option(0.075, "share of the steps in which the rates grow from a millionth", low=0, high=0.9)
    retrain: str = option(
        "none", "another network afterwards, on: the branch's masks, or seeds of the class maps",
        choices=("none", "masks", "cams"), main=True,
    )  # fmt: skip

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.low > self.high:
            raise MaskwrightError(f"low={self.low}", f"at most high={self.high}")
        if self.w_ctc and self.local.side >= self.classifier.size:
            raise MaskwrightError(
                f"local_side={self.local.side}", f"less than classifier.size={self.classifier.size}",
                "--set local_side=64",
            )  # fmt: skip

    def idle(self) -> Idle:
        """Options of another network where none is trained afterwards, of masks and seeds that it does not learn from,
        and of losses that do not weigh."""
        yield from super().idle()
        why = f"retrain={self.retrain}"
        if self.retrain == "none":
            # Not the network's name and options: a run that is given as weights says those of its own.
            yield ("network.weights", "crops", "optimizer", "loss", "norms", "holdout"), why
            yield ("maps.flips", "maps.fuse", "maps.norm", "seeds", "branch.mask_scales"), why
        elif self.retrain == "masks":
            rule = [
                f"seeds.{n}" for n in ("threshold", "threshold_rule", "oracle_threshold", "threshold_curve", "band")
            ]
            yield ("maps.fuse", "maps.norm", *rule), why
        else:
            yield ("branch.mask_scales",), why
        if not self.w_ctc:
            yield ("local", "projector", "temperature"), "w_ctc=0"
        if not self.w_reg:
            yield ("branch.reg_cells",), "w_reg=0"


# -------------------------------------------------------------------------------------------------------- losses


def L_ptc(tokens: Tensor, y: Tensor) -> Tensor:
    """Patch token contrast: 1/2 (1 - mean of |cos| over pairs of one label) + 1/2 mean of |cos| over other pairs.

    Args:
        tokens: final patch tokens, (B, D, h, w).
        y: labels (B, h, w) of the auxiliary map; pairs with IGNORE, and of a token with itself, do not count.

    Returns:
        A number in [0, 1], over all pairs of all images; a half without pairs is 0.
    """
    z = F.normalize(tokens.float().flatten(2), dim=1)
    cos = (z.transpose(1, 2) @ z).abs()  # (B, N, N)
    y = y.flatten(1)
    known = (y != IGNORE)[:, :, None] & (y != IGNORE)[:, None, :]
    equal = y[:, :, None] == y[:, None, :]
    other = ~torch.eye(y.shape[1], dtype=torch.bool, device=y.device)
    pos, neg = known & equal & other, known & ~equal
    some = pos.any().to(cos)
    return 0.5 * (some - _mean(cos, pos)) + 0.5 * _mean(cos, neg)


def L_ctc(p: Tensor, q: Tensor, pos: Tensor, neg: Tensor, temperature: float = 0.5) -> Tensor:
    """Class token contrast: -log e^(p.q / t) / (e^(p.q / t) + sum over q- of e^(p.q- / t) + eps).

    Projections keep the length that they have, about 2 with the paper's widths; cosines in their place would be four
    times as flat. The mean runs over the positives of an image, then over images.

    Args:
        p: projected class tokens of the large views, (B, G, E); no gradient.
        q: projected class tokens of all views, (B, V, E).
        pos: bool (B, V), which are alike.
        neg: bool (B, V), which show background.
        temperature: t.

    Returns:
        A number; an image without positives counts as 0.
    """
    e = (torch.einsum("bge,bve->bgv", p.detach().float(), q.float()) / temperature).exp()
    rest = (e * neg[:, None]).sum(-1, keepdim=True)
    terms = (1 + (rest + 1e-4) / e).log().mean(1)  # (B, V)
    return ((terms * pos).sum(1) / pos.sum(1).clamp(min=1)).mean()


def L_seg(logits: Tensor, ground: Tensor, things: Tensor) -> Tensor:
    """Half the cross entropy on background pixels and half that on the others, so that classes are not outnumbered.

    Args:
        logits: (B, C, h, w).
        ground: (B, h, w), ids of background pixels, IGNORE elsewhere.
        things: (B, h, w), ids of other pixels, IGNORE elsewhere.
    """
    return 0.5 * cross_entropy(logits, ground, ignore=IGNORE) + 0.5 * cross_entropy(logits, things, ignore=IGNORE)


def split_ground(y: Tensor, targets: TagTargets) -> tuple[Tensor, Tensor]:
    """Labels of tags (`cam_labels`) as class ids: those of the background and those of classes, IGNORE elsewhere."""
    ids = torch.tensor([IGNORE, *targets.ids], device=y.device)
    things = torch.where(y > 0, ids[y.clamp(min=0)], IGNORE)
    ground = torch.full_like(y, IGNORE)
    return (ground if targets.background is None else ground.masked_fill(y == 0, targets.background)), things


def L_reg(logits: Tensor, rgb: Tensor, y: Tensor, valid: Tensor, *, sigma_xy: float, cells: int = 48) -> Tensor:
    """Dense energy of the branch's probabilities; where a label is known only what is not sure yet gets its gradient.

    Args:
        logits: (B, C, h, w).
        rgb: (B, 3, H', W') in [0, 255].
        y: labels (B, h, w), IGNORE where none is known.
        valid: bool (B, h, w), inside the photograph.
        sigma_xy: width of the position kernel, pixels of the logits.
        cells: side of the grid.
    """
    s = logits.float().softmax(1)
    gate = torch.where(y == IGNORE, 1.0, 1 - s.detach().amax(1))
    return dense_energy(s, rgb, gate=gate, valid=valid, sigma_rgb=15.0, sigma_xy=sigma_xy, cells=cells)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum().clamp(min=1)


def warm_poly(steps: int, warmup: int, start: float = 1e-6, power: float = 0.9) -> Callable[[int], float]:
    """A linear rise from `start` over `warmup` steps, then the polynomial decay counted from the first step."""

    def factor(step: int) -> float:
        if step < warmup:
            return start + (1 - start) * step / warmup
        return (1 - min(step, steps - 1) / steps) ** power

    return factor


# ------------------------------------------------------------------------------------------------------ training


class LargeViews(NamedTuple):
    """Large views of tagged photographs; images are uint8 as drawn, the network's input once they are on the device.

    Attributes:
        x: (B, 3, S, S), the view that is classified and segmented.
        y: (B, T), 1 where tagged.
        views: of x.
        second: (B, 3, S, S), another random crop, its colours changed.
        changed: (B, 3, S, S), x with its colours changed: what small crops are cut from.
        valid: bool (B, S, S), where x shows the photograph.
    """

    x: Tensor
    y: Tensor
    views: tuple[View, ...]
    second: Tensor
    changed: Tensor
    valid: Tensor


class LargeViewStream(Stream):
    """Two large views of each tagged photograph.

    Args:
        photographs: the tagged photographs, whose order and recipe these are.
    """

    def __init__(self, photographs: Stream) -> None:
        p = photographs
        super().__init__(p.data, p.indices, p.order, p.crops, p.mean, tags=p.tags, jitter=p.jitter)
        self.second_colors = photometric("byol_2")
        self.local_colors = replace(photometric("byol_1"), blur_p=0.5)

    def draw(self, images: Sequence[int] | np.ndarray, random: torch.Generator) -> LargeViews:  # type: ignore[override]
        """Views of images; all randomness comes from `random`."""
        side, chosen = (self.crops.side, self.crops.side), [int(i) for i in images]
        x, second, changed, views = [], [], [], []
        for i in chosen:
            view = self.view(i, random)
            other = random_resized_crop(self.data.size(i), side, scale=(0.4, 1.0), generator=random)
            views.append(view)
            x.append(self.pixels(i, view, random))
            changed.append(self.local_colors(x[-1], random))
            second.append(self.second_colors(self.pixels(i, other, random), random))
        valid, y = torch.stack([v.valid() for v in views]), self.tags_of(chosen)
        assert y is not None, "a stream with tags"
        return LargeViews(torch.stack(x), y, tuple(views), torch.stack(second), torch.stack(changed), valid)


class TocoTraining(Training):
    """The one stage: classifiers, contrasts and segmentation branch at once."""

    setup: TagSetup

    def __init__(self, context: Context, config: TocoConfig, targets: TagTargets, steps: int) -> None:
        setup = TagSetup(context, config, targets, steps, make_toco_network)
        super().__init__(setup)
        self.config, self.targets, self.steps = config, targets, steps
        self.network, self.autocast = setup.network, setup.autocast
        self.preprocess, self.crop = setup.preprocess, setup.crop
        c, m = config, self.network.multiple_of
        seeding.initialise(context.seed, "classify")  # the projector's weights hang on no size of the network
        projector = Projector(self.network.width, c.projector.hidden, out=c.projector.projection)
        self.projector = projector.to(context.device)
        self.teacher = EMATeacher(self.projector, c.projector.momentum, warm=False).to(context.device)
        self.modules |= {"projector": self.projector, "teacher": self.teacher}
        add_module(self.optimizers["network"], self.projector, c.classifier.lr, c.classifier.weight_decay)
        self.schedule = warm_poly(steps, round(c.warmup * steps))
        self.local = min(-(-c.local.side // m) * m, self.crop)
        self.grid = (-(-self.crop // 2), -(-self.crop // 2))
        setup.streams["x"] = LargeViewStream(setup.stream())

    def on_device(self, batch: Any) -> dict[str, LargeViews]:
        """Views as the network's input."""
        x: LargeViews = batch["x"]
        images = [self.setup.normalise(part) for part in (x.x, x.second, x.changed)]
        y, valid = (part.to(self.setup.device, non_blocking=True) for part in (x.y, x.valid))
        return {"x": LargeViews(images[0], y, x.views, images[1], images[2], valid)}

    @torch.no_grad()
    def multi_scale(self, x: LargeViews, once: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """CAM and auxiliary CAM over scales and flips, min-max, tagged classes only, (B, T, S, S) in [0, 1].

        Maps are enlarged with their signs; the larger of image and mirror image is taken, and what is negative dropped,
        after that.

        Args:
            x: large views.
            once: both signed maps at scale 1 without flip, which the training pass has computed already.
        """
        m, size = self.network.multiple_of, (self.crop, self.crop)
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for scale in self.config.maps.scales:
            side = max(1, int(self.crop * scale / m + 0.5)) * m
            image = x.x if side == self.crop else resize_maps(x.x, (side, side))
            with self.autocast():
                plain = once if side == self.crop else self.network.signed_maps(image)
                mirrored = self.network.signed_maps(image.flip(-1))
            for maps, *pair in zip(found, plain, mirrored):
                a, b = (resize_maps(one.detach().float(), size) for one in pair)
                maps.append(fuse_flips(a, b, "max").relu())
        main, aux = (keep_tagged(normalize_cam(fuse_scales(maps, size), "minmax"), x.y) for maps in found)
        return main, aux

    def crops(self, x: LargeViews, roi: Tensor) -> tuple[Tensor, Tensor]:
        """Small crops where the map is unsure, (B V, 3, s, s), and bool (B, V), which show background."""
        count, cropped, ground = self.config.local.crops, [], []
        for b, view in enumerate(x.views):
            for window in windows_where(roi[b] < 2, x.valid[b], view, self.local, count):
                cropped.append(resample(x.changed[b], view, window)[0])
                seen, inside = resample(roi[b][None], view, window)
                ground.append(_mean(seen[0], inside) <= NEGATIVE_SHARE)
        return torch.stack(cropped), torch.stack(ground).view(-1, count)

    def token_labels(self, x: LargeViews, cams_aux: Tensor, features: Tensor) -> Tensor:
        """Labels (B, h, w) of the final tokens by the auxiliary map, IGNORE where a patch lies mostly outside."""
        c, patches = self.config, (int(features.shape[-2]), int(features.shape[-1]))
        known = F.adaptive_avg_pool2d(x.valid[:, None].float(), patches)[:, 0] >= 0.5
        return cam_labels(resize_maps(cams_aux, patches), c.high, c.low, known)

    def class_contrast(self, x: LargeViews, vectors: Tensor, roi: Tensor) -> Tensor:
        """L_ctc of both large views, projected by the moving average, with all views, projected by the student."""
        small, ground = self.crops(x, roi)
        with self.autocast():
            _, _, second = self.network.tokens(x.second)
            _, _, local = self.network.tokens(small)
        large = torch.stack([vectors, second], 1)  # (B, 2, D)
        q = self.projector(torch.cat([large, local.unflatten(0, ground.shape)], 1))
        p = self.teacher(large.detach())
        neg = torch.cat([ground.new_zeros(len(ground), 2), ground], 1)  # (B, 2 + V)
        return L_ctc(p, q, ~neg, neg, self.config.temperature)

    def segmentation_losses(self, x: LargeViews, features: Tensor, cams: Tensor) -> list[Tensor]:
        """L_seg and L_reg of the branch, taught by the refined map."""
        c = self.config
        valid = F.interpolate(x.valid[:, None].float(), self.grid)[:, 0] > 0
        with self.autocast():
            logits = self.network.segmentation(features)
        logits = resize_maps(logits.float(), self.grid)
        images, cams = resize_maps(x.x, self.grid), resize_maps(cams, self.grid)
        y = refined_cam_labels(cams, x.y, images, c.high, c.low, valid, c.branch.par_rounds)
        l_seg = L_seg(logits, *split_ground(y, self.targets))
        if not c.w_reg:
            return [l_seg, l_seg.new_zeros(())]
        rgb = self.preprocess.denormalise(x.x).float()
        return [l_seg, L_reg(logits, rgb, y, valid, sigma_xy=100 * self.grid[0] / self.crop, cells=c.branch.reg_cells)]

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_cls + L_cls_aux + w_ptc L_ptc + w_ctc L_ctc, and w_seg L_seg + w_reg L_reg once their time has come."""
        c, x = self.config, batch["x"]
        with self.autocast():
            out = self.network(x.x)
        cams, cams_aux = self.multi_scale(x, (out.cams, out.cams_aux))
        l_cls = multi_label_soft_margin(out.scores, x.y)
        l_cls_aux = multi_label_soft_margin(out.scores_aux, x.y)
        l_ptc = L_ptc(out.features, self.token_labels(x, cams_aux, out.features))
        l_ctc = self.class_contrast(x, out.vectors, cam_regions(cams_aux, c.high, c.low))
        l_seg = l_reg = l_cls.new_zeros(())
        if step >= c.branch.after * self.steps:
            l_seg, l_reg = self.segmentation_losses(x, out.features, cams)
        loss = l_cls + l_cls_aux + c.w_ptc * l_ptc + c.w_ctc * l_ctc + c.w_seg * l_seg + c.w_reg * l_reg
        return {
            "loss": loss, "cls": l_cls, "cls_aux": l_cls_aux, "ptc": l_ptc, "ctc": l_ctc, "seg": l_seg, "reg": l_reg,
        }  # fmt: skip

    def after_step(self, step: int) -> None:
        """The projector's moving average follows."""
        self.teacher.update(self.projector)


def make_toco_network(context: Context, config: TocoConfig, targets: TagTargets) -> TocoNetwork:
    """An untrained network on a copy of the run's backbone."""
    return TocoNetwork(
        context.backbone, len(targets), context.classes, aux_layer=config.aux_layer, hidden=config.branch.width,
        dilation=config.branch.dilation, dropout=config.classifier.dropout, frozen_stages=config.classifier.freeze,
    )  # fmt: skip


class Toco(TagMethod):
    """One stage from tags to a segmenter; the rest is optional."""

    name: ClassVar[str] = "toco"
    title: ClassVar[str] = "Token Contrast for Weakly-Supervised Semantic Segmentation"
    venue: ClassVar[str] = "Ru et al., CVPR 2023"
    link: ClassVar[str] = "https://arxiv.org/abs/2303.01267"
    summary: ClassVar[str] = "Contrasts the tokens of a transformer."
    backbones: ClassVar[Literal["any", "vit"]] = "vit"
    Config: ClassVar[type] = TocoConfig
    trainer: ClassVar[type[Training]] = TocoTraining

    def stages(self) -> list[Stage]:
        """Classify, which trains all of ToCo; with `retrain` then masks or cams and seeds, and retrain."""
        stages = {stage.name: stage for stage in super().stages()}
        says = "a transformer that classifies, tells patches apart and segments at once"
        stages["classify"] = Stage("classify", "train", self.classify, says, tag_steps(self.context, self.config))
        stages["masks"] = Stage("masks", "label", self.masks, "masks of the tagged photographs by the trained branch")
        names = {
            "none": ("classify",),
            "masks": ("classify", "masks", "retrain"),
            "cams": ("classify", "cams", "seeds", "retrain"),
        }[self.config.retrain]
        return [stages[name] for name in names]

    def network(self) -> TocoNetwork:
        """ToCo's network, untrained."""
        return make_toco_network(self.context, self.config, self.targets)

    def maps(self, network: TocoNetwork) -> Callable[[Tensor, Tensor], Tensor]:
        """The final class maps, positive evidence only."""

        @torch.no_grad()
        def class_maps(x: Tensor, tags: Tensor) -> Tensor:
            return network.class_maps(x)[0].float()

        return class_maps

    def branch(self) -> Segmenter:
        """The segmentation branch, from the artefact."""
        network: TocoNetwork = self.trained()
        preprocess = tag_preprocess(self.context, self.config, network.multiple_of)
        return network.branch(self.context.table, preprocess, self.name)

    # --------------------------------------------------------------------------------------------------- retrain

    @property
    def label_store(self) -> LabelStore:
        """The pseudo masks that another network learns from."""
        return LabelStore(self.folder("masks" if self.config.retrain == "masks" else "seeds"), self.context.table)

    def masks(self, folder: Path) -> None:
        """The branch's masks of all tagged images; the folder is a dataset of its own."""
        context = self.context
        segmenter, labels = self.branch(), LabelStore(folder, context.table)
        mine = share(self.targets.indices(context.data))
        for i in context.progress.track(mine, "masks", len(mine)):
            item = context.data.items[i]
            if item.name not in labels:
                labels.write(item.name, self.mask_of(segmenter, i), item.image)
        barrier()
        if context.run.writes:
            what_is_shown(replace(Way.of(self, labels), maps=None), judge=self.config.seeds.judge).write(folder)
        barrier()

    def mask_of(self, segmenter: Segmenter, i: int) -> LabelMap:
        """Labels (H, W) of image `i`: the branch's, among the background and the image's own tags."""
        c, t, image = self.config, self.targets, np.ascontiguousarray(self.context.data.image(i))
        own = [t.ids[k] for k in t.tagged[self.context.data.items[i].name]]
        ids = own if t.background is None else [t.background, *own]
        if not ids:
            return LabelMap.unlabeled(image.shape[:2])
        probs = predict_probs(
            segmenter, image, flips=c.maps.flips, scales=c.branch.mask_scales, device=self.context.device
        )[ids]
        probs = probs / np.maximum(probs.sum(0), 1e-12)
        if c.seeds.crf and len(ids) > 1:
            probs = np.asarray(dense_crf(probs, image, **CRF_SETTINGS["toco"]))  # type: ignore[arg-type]
        found = LabelMap.from_probs(torch.from_numpy(probs))
        return LabelMap(torch.tensor(ids)[found.ids], found.confidence.clamp(0, 1), found.valid)

    def segmenter(self) -> Segmenter:
        """The branch, or the retrained network."""
        return named_background(self.branch(), self.targets) if self.config.retrain == "none" else super().segmenter()

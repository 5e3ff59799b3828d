"""InfoSeg: Unsupervised Semantic Image Segmentation with Mutual Information Maximization.

Harb and Knobelreiter, GCPR 2021, https://arxiv.org/abs/2110.03477.

A photograph's local features L_p and K class vectors H_k of the same photograph: each place is assigned softly to the
vectors, P_k = softmax_k(V_k / tau) of V_k = <L_p, H_k>, and the mean S_p = sum_k P_k H_k is what the photograph says of
the place. The mutual information of L_p and S_p is maximised, in its Jensen-Shannon bound: pairs of one photograph
against pairs of two. What is predicted is the k of the largest V_k.

Guessed, because neither the paper's full text nor its authors' code could be had, each an option: which side of a
negative pair comes from another photograph (`negatives`), whether P gets a gradient through S (`detach`), whether L
and H have unit length, tau, d, the network (`infoseg_cnn` of `models/networks/plain.py`), the rates. The defaults are
the plainest reading; they were not chosen by figures (docs/unsupervised.md).

Deviates: on any backbone; `preset=small` starts from trained weights and reads L from the network's decoder,
`preset=paper` from nothing, and reads L from block C. `balance` adds an entropy of the mean assignment; it is off in
`paper`.

What the original gets wrong: nothing in the bound keeps all places from one class, which is why the largest cluster is
watched; and photographs of one street are poor negatives of each other.

Legend: B photographs, K clusters, d width, (h, w) map of local features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.augment import PRESETS as RECIPES
from maskwright.data.training.augment import photometric
from maskwright.engine import seeding
from maskwright.engine.checkpoint import trained
from maskwright.engine.config import option, part
from maskwright.engine.context import Context
from maskwright.engine.distributed import check_partners, sampler
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.models.networks.build import Network
from maskwright.models.networks.vit_heads import LastMap
from maskwright.models.parts.class_vectors import ClassVectors, Scores
from maskwright.ops.losses.region_contrast import nearest
from maskwright.recipes.clustering_health import ClusteringHealth
from maskwright.recipes.training.method import CropMethod
from maskwright.recipes.training.network import make_network
from maskwright.recipes.training.options import NetworkOptions
from maskwright.recipes.training.presets import PresetConfig, preset_option
from maskwright.recipes.training.setup import CropSetup

PAPER: dict[str, Any] = {
    "network": "infoseg_cnn", "local": "encoder", "dim": 1024, "crop": 128, "batch": 64, "long_side": 211,
    "scale_min": 1.0, "scale_max": 1.0, "lr": 1e-4, "encoder_lr": 1.0, "weight_decay": 0.0, "schedule": "constant",
    "recipe": "iic_coco", "temperature": 32.0, "balance": 0.0, "steps": 81_000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "network": "auto", "local": "decoder", "dim": 128, "batch": 8, "long_side": 480, "scale_min": 0.5, "lr": 0.0,
        "encoder_lr": None, "weight_decay": None, "schedule": "poly", "temperature": 11.3, "balance": 1.0,
        "steps": 1000,
    },
    "paper": PAPER,
    "paper_potsdam": PAPER | {"crop": 200, "long_side": 1024, "recipe": "iic_potsdam", "steps": 13_400},
}  # fmt: skip
"""By flat names. `small` finishes on two cores; `paper` and `paper_potsdam` have IIC's photographs, as the paper
says, and guessed rates: 100 passes over COCO-Stuff's or Potsdam's. tau is the square root of d."""


NO_NEGATIVE = (
    "In some steps all crops are of one photograph: these have no negative pair, and their loss is the bound's "
    "positive half alone. A larger crops.batch, or more photographs, avoids it."
)


@dataclass(kw_only=True)
class VectorOptions:
    """Local features L and class vectors H."""

    local: str = option(
        None, "L from the network's decoder, or from the last but one map of its encoder (preset)",
        choices=("decoder", "encoder"),
    )  # fmt: skip
    dim: int = option(None, "d, width of L and H (preset)", low=2)
    temperature: float = option(None, "tau, of the assignment (preset)", low=1e-3, high=1000, main=True)
    unit_length: bool = option(False, "L and H have unit length, and the bound's scores are over tau too")


@dataclass(kw_only=True)
class BoundOptions:
    """The bound of the mutual information."""

    negatives: str = option(
        "local", "what of a negative pair is another photograph's: L, or S", choices=("local", "classes"), main=True
    )
    detach: bool = option(False, "no gradient through P inside S", main=True)
    balance: float = option(None, "weight of the entropy of the mean assignment (preset)", low=0, high=100, main=True)


@dataclass(kw_only=True)
class InfoSegConfig(PresetConfig):
    """Options of `infoseg`; those without a value of their own take the preset's, those that are given win."""

    presets: ClassVar = PRESETS

    preset: str = preset_option(PRESETS)
    network: NetworkOptions = part(NetworkOptions, name=None)
    recipe: str = option(None, "photometric recipe of the crops (preset)", choices=tuple(RECIPES))
    vectors: VectorOptions = part(VectorOptions)
    bound: BoundOptions = part(BoundOptions)

    def check(self) -> None:
        """Raises `MaskwrightError` on a batch that has no negative."""
        if self.crops.batch < 2:
            raise MaskwrightError(f"crops.batch={self.crops.batch}", "at least 2: negatives are other photographs")


class Bound(NamedTuple):
    """What the bound is made of.

    Attributes:
        v: V (B, K, h, w).
        p: P (B, K, h, w).
        s: S (B, d, h, w).
        positive: t+ (B, h, w).
        negative: t- (B, h, w).
        loss: - I, of float.
    """

    v: Tensor
    p: Tensor
    s: Tensor
    positive: Tensor
    negative: Tensor
    loss: Tensor


def jensen_shannon(
    local: Tensor,
    vectors: Tensor,
    temperature: float,
    *,
    shift: int = 1,
    negatives: str = "local",
    detach: bool = False,
    over_temperature: bool = False,
    valid: Tensor | None = None,
    photographs: Tensor | None = None,
) -> Bound:
    """- I = mean softplus(-t+) + mean softplus(t-), t+ = <L_p, S_p>.

    Args:
        local: L (B, d, h, w).
        vectors: H (B, K, d) of the same photographs.
        temperature: tau.
        shift: photograph b's negatives are those of photograph (b + shift) mod B.
        negatives: `local`: t- = <L'_p, S_p>; `classes`: t- = <L_p, S'_p>, at the same place of the other photograph.
        detach: no gradient through P inside S.
        over_temperature: scores t are divided by tau (L and H of unit length).
        valid: bool (B, h, w), places that lie in their photograph; a pair counts where both of its places do. None:
            all.
        photographs: int64 (B,), which photograph each is a crop of; two crops of one are no negatives. None: all
            differ.
    """  # fmt: skip
    v = torch.einsum("bdhw,bkd->bkhw", local, vectors)
    p = (v / temperature).softmax(1)
    s = torch.einsum("bkhw,bkd->bdhw", p.detach() if detach else p, vectors)
    other_l, other_s = local, s
    if negatives == "local":
        other_l = local.roll(-shift, 0)
    else:
        other_s = s.roll(-shift, 0)
    scale = 1 / temperature if over_temperature else 1.0
    positive, negative = (local * s).sum(1) * scale, (other_l * other_s).sum(1) * scale
    both = None if valid is None else valid & valid.roll(-shift, 0)
    if photographs is not None:
        apart = (photographs != photographs.roll(-shift, 0))[:, None, None].expand_as(negative)
        both = apart if both is None else both & apart
    loss = mean_where(F.softplus(-positive), valid) + mean_where(F.softplus(negative), both)
    return Bound(v, p, s, positive, negative, loss)


def apart_share(images: Sequence[int], shift: int) -> float:
    """The share of crops, of these photographs, whose negative under a shift is another photograph's."""
    n = len(images)
    return sum(image != images[(b + shift) % n] for b, image in enumerate(images)) / n


def negative_shift(images: Sequence[int], first: int) -> int | None:
    """The first shift from `first` on, in a circle over 1 to B - 1, that gives crops of these photographs (B,) a
    negative; None where all are of one photograph."""
    n = len(images)
    shifts = (1 + (first - 1 + k) % (n - 1) for k in range(n - 1))
    return next((shift for shift in shifts if apart_share(images, shift)), None)


def mean_where(x: Tensor, valid: Tensor | None) -> Tensor:
    """The mean of x (B, h, w) over valid places, 0 without any; over all where valid is None."""
    return x.mean() if valid is None else torch.where(valid, x, 0.0).sum() / valid.sum().clamp(min=1)


def imbalance(p: Tensor, valid: Tensor | None = None) -> Tensor:
    """log K - H(mean assignment) of P (B, K, h, w) over valid places (B, h, w): 0 where all clusters are equally
    likely."""
    if valid is None:
        mean = p.mean((0, 2, 3))
    else:
        mean = torch.where(valid[:, None], p, 0.0).sum((0, 2, 3)) / valid.sum().clamp(min=1)
    return torch.special.xlogy(mean, mean * len(mean)).sum()


def infoseg_network(context: Context, config: InfoSegConfig) -> Network:
    """The configured network with class vectors behind it: its embedding is V and its classifier the temperature."""
    c, network = config.vectors, make_network(context, config)
    side = network.multiple_of * max(1, -(-64 // network.multiple_of))
    with torch.no_grad():
        widths = [f.shape[1] for f in network.eval().features(torch.zeros(1, 3, side, side))]
    decoder, width = network.decoder, network.width
    if c.local == "encoder":
        decoder, width = LastMap(widths[-2], -2), widths[-2]
    k = network.classes
    network.decoder = ClassVectors(decoder, width, widths[-1], k, c.dim, c.unit_length)
    network.classifier = Scores(k, c.temperature)
    network.width = k
    return network.train()


class InfoSegTraining(Training):
    """Crops of photographs through one network, each against another's."""

    def __init__(self, context: Any, config: InfoSegConfig, steps: int) -> None:
        if len(context.data) < 2:
            raise MaskwrightError(
                f"{len(context.data)} photograph", "at least 2 for infoseg", "use --method kmeans on a single one"
            )
        check_partners("crops.batch", config.crops.batch, "negatives")
        seeding.initialise(context.seed, "train")
        setup = CropSetup(context, config, steps, network=infoseg_network(context, config))
        super().__init__(setup)
        self.config = setup.config
        self.student, self.network, self.context = setup.student, setup.network, context
        c, images = self.config, range(len(context.data))
        photographs = setup.stream(images, sampler(context.seed, len(images), c.crops.batch))
        photographs.jitter = photometric(c.recipe)
        setup.streams["u"] = photographs
        self.health = ClusteringHealth(context.classes, steps, context.note)
        if c.schedule == "constant":
            self.schedule = None

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = - I + balance (log K - H(mean P)); the share of crops that have a negative is told beside."""
        c, u = self.config, batch["u"]
        head: Any = self.network.decoder
        with self.student.autocast():
            local, vectors = head.both(self.network.features(u.weak))
        valid = nearest(u.valid, (local.shape[-2], local.shape[-1]))
        photographs = torch.tensor(u.images, device=valid.device)
        drawn = int(torch.randint(1, max(2, len(u.weak)), ()))
        shift = negative_shift(u.images, drawn)
        if shift is None:
            self.context.note(NO_NEGATIVE)
            shift = drawn
        bound = jensen_shannon(
            local.float(), vectors.float(), c.vectors.temperature, shift=shift, negatives=c.bound.negatives,
            detach=c.bound.detach, over_temperature=c.vectors.unit_length, valid=valid,
            photographs=photographs,
        )  # fmt: skip
        uneven = imbalance(bound.p, valid)
        loss = bound.loss + c.bound.balance * uneven
        negatives = loss.new_tensor(apart_share(u.images, shift))
        figures = {"js": bound.loss, "imbalance": uneven, "negatives": negatives}
        return {"loss": loss, **figures, **self.health(bound.v, valid)}

    def after_step(self, step: int) -> None:
        """Watches for collapse."""
        self.health.after_step(step)


class InfoSeg(CropMethod):
    """A network whose places are told by the class vectors of their photograph."""

    name: ClassVar[str] = "infoseg"
    title: ClassVar[str] = "Unsupervised Semantic Image Segmentation with Mutual Information Maximization"
    venue: ClassVar[str] = "Harb & Knöbelreiter, GCPR 2021"
    link: ClassVar[str] = "https://arxiv.org/abs/2110.03477"
    summary: ClassVar[str] = "Places told by their photograph's classes."
    Config: ClassVar[type] = InfoSegConfig
    trainer: ClassVar[type[Training]] = InfoSegTraining
    says: ClassVar[str] = "local features that their photograph's class vectors tell"
    config: InfoSegConfig

    def network(self) -> Network:
        """The trained network, from the artefact."""
        return trained(self.context.run.path / "train", "network", infoseg_network(self.context, self.config))

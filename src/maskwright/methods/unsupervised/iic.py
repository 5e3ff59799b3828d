"""IIC: Invariant Information Clustering for Unsupervised Image Classification and Segmentation.

Ji, Henriques, Vedaldi, ICCV 2019, https://arxiv.org/abs/1807.06653.

A network gives each place of a photograph probabilities of K clusters. They should tell as much as they can of those of
the same place, and of places near it, in a changed view of the photograph: the mutual information of both is maximised.
It is low where all places fall into one cluster and where none is sure. A second head with more clusters than wanted
(over-clustering) takes turns with the main one.

Deviates: on any backbone; `preset=small` starts from trained weights, `preset=paper` from nothing on the paper's
network, photographs normalised, maps that cover their crop (`models/networks/plain.py`). The main head that is kept,
of several, is the one of least training loss; the authors keep the best by labels. The mask M holds what lies in the
photograph; the authors' also leaves out, by the labels, what is no stuff. Both views go through the network at once.
Joint distributions are float64. Displacements that no pair of valid places has are left out; they are 0/0 in the
original. Photographs are RGB, so the infrared channel of Potsdam is not read. The semi-supervised variant IID+ is
`--classes` larger than the classes, judged many to one (`evaluate --protocol majority`).

What the original gets wrong: zeros come in at the border where a view is warped, and lower the information there; maps
shrink by its padding and are stretched back over the crop, which moves them by up to 4 pixels; its head's ring of
padding is uniform; its Sobel gradients are of blue, green and red taken for red, green and blue.

Legend: B photographs, K clusters, S crop side, (h, w) map, d greatest displacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.augment import PRESETS as RECIPES
from maskwright.data.training.augment import photometric
from maskwright.data.training.warped import WarpedPairs, WarpedStream
from maskwright.engine import seeding
from maskwright.engine.checkpoint import trained
from maskwright.engine.config import Idle, option, part
from maskwright.engine.context import Context
from maskwright.engine.distributed import sampler
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.models.networks.build import Network
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.parts.sobel import SobelEncoder
from maskwright.ops.losses.mutual_information import collapsed_loss, uncollapsed_loss
from maskwright.ops.losses.region_contrast import nearest
from maskwright.recipes.clustering_health import ClusteringHealth
from maskwright.recipes.training.method import CropMethod
from maskwright.recipes.training.network import make_network
from maskwright.recipes.training.options import NetworkOptions
from maskwright.recipes.training.presets import PresetConfig, preset_option
from maskwright.recipes.training.setup import CropSetup

PAPER: dict[str, Any] = {
    "network": "iic10a", "sobel": True, "crop": 128, "batch": 60, "long_side": 211, "scale_min": 1.0, "scale_max": 1.0,
    "lr": 1e-4, "encoder_lr": 1.0, "weight_decay": 0.0, "schedule": "constant", "recipe": "iic_coco", "cell": 1,
    "displacement": 10, "sub_heads": 1, "over": 3, "steps": 173_000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "network": "auto", "sobel": False, "batch": 8, "long_side": 480, "scale_min": 0.5, "lr": 0.0,
        "encoder_lr": None, "weight_decay": None, "schedule": "poly", "cell": 4, "displacement": 2, "sub_heads": 3,
        "steps": 700,
    },
    "paper": PAPER,
    "paper_potsdam": PAPER | {
        "sobel": False, "crop": 200, "long_side": 1024, "lr": 1e-6, "recipe": "iic_potsdam", "displacement": 5,
        "over": 6, "steps": 130_000,
    },
}  # fmt: skip
"""By flat names. `small` finishes on two cores; `paper` is COCO-Stuff of 15 classes (photographs at a third of their
size), `paper_potsdam` Potsdam of 6. The authors stop 4,800 epochs at the latest; the steps are 100 of COCO's and 456
of Potsdam's 8,550 tiles, each a pass for either head."""
LOSSES = {"uncollapsed": uncollapsed_loss, "collapsed": collapsed_loss}


@dataclass(kw_only=True)
class WarpOptions:
    """g, what the second view is changed by."""

    recipe: str = option(None, "photometric recipe of the second view (preset)", choices=tuple(RECIPES))
    flip: float = option(0.5, "chance that it is mirrored", low=0, high=1)
    rotate: float = option(0.0, "greatest angle by which it is turned, degrees", low=0, high=180)
    zoom_min: float = option(1.0, "least factor by which it is enlarged", low=0.2, high=5)
    zoom_max: float = option(1.0, "greatest factor", low=0.2, high=5)

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.zoom_min > self.zoom_max:
            raise MaskwrightError(f"zoom_min={self.zoom_min}", f"at most zoom_max={self.zoom_max}")


@dataclass(kw_only=True)
class InformationOptions:
    """The mutual information."""

    form: str = option("uncollapsed", "an information of each displacement, or of all together", choices=tuple(LOSSES))
    displacement: int = option(None, "d, cells up to which places are compared (preset)", low=0, high=64, main=True)
    cell: int = option(None, "side of a cell of the compared maps, pixels (preset)", low=1, high=64)
    lamb: float = option(1.0, "lambda of the main head; 1.5 in the paper for 3 clusters", low=0, high=10)
    lamb_over: float = option(1.0, "lambda of the over-clustering head", low=0, high=10)


@dataclass(kw_only=True)
class HeadOptions:
    """The two kinds of heads."""

    sub_heads: int = option(None, "heads of each kind; the main one of least training loss is kept (preset)", low=1)
    over: int = option(
        None, "over-clustering: so many times the clusters; 0: no such head (preset)", low=0, high=100, main=True
    )
    turn: int = option(0, "steps of one kind's turn; 0: a pass over the photographs, at most half of the steps", low=0)


@dataclass(kw_only=True)
class IICConfig(PresetConfig):
    """Options of `iic`; those without a value of their own take the preset's, those that are given win."""

    presets: ClassVar = PRESETS

    preset: str = preset_option(PRESETS)
    network: NetworkOptions = part(NetworkOptions, name=None)
    sobel: bool = option(None, "the network also sees Sobel gradients of the grey photograph (preset)")
    warp: WarpOptions = part(WarpOptions)
    information: InformationOptions = part(InformationOptions)
    heads: HeadOptions = part(HeadOptions)

    def idle(self) -> Idle:
        """Options of over-clustering where there is none."""
        yield from super().idle()
        if not self.heads.over:
            yield ("heads.turn", "information.lamb_over"), "heads.over=0"


def iic_network(context: Context, config: IICConfig) -> Network:
    """The configured network, with edges beside its colours where they are asked for."""
    own = config.network.name == "iic10a"
    if not config.sobel:
        return make_network(context, config)
    options = "; ".join(filter(None, (config.network.options, "channels=5" if own else "")))
    network = make_network(context, replace(config, network=replace(config.network, options=options)))
    seen = network.provenance
    network.encoder = SobelEncoder(network.encoder, seen.mean, seen.std, mix=not own)
    return network


class Heads(nn.Module):
    """What learns beside the network's own classifier, which is the first main head.

    Args:
        width: of the embedding.
        classes: K.
        over: clusters of an over-clustering head; 0: there is none.
        count: heads of each kind.

    Attributes:
        recent: float64 (2, count), running means of the losses of over-clustering (0) and main (1) heads.
        seen: steps of each kind.
    """

    recent: Tensor
    seen: Tensor

    def __init__(self, width: int, classes: int, over: int, count: int) -> None:
        super().__init__()
        self.main = nn.ModuleList(LinearClassifier(width, classes) for _ in range(count - 1))
        self.over = nn.ModuleList(LinearClassifier(width, over) for _ in range(count if over else 0))
        self.register_buffer("recent", torch.zeros(2, count, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))

    @torch.no_grad()
    def remember(self, kind: int, losses: Tensor) -> None:
        """Takes the losses (count,) of a step of one kind: at first the mean of all, then of about the last fifty."""
        self.seen[kind] += 1
        self.recent[kind] += (losses - self.recent[kind]) / self.seen[kind].clamp(max=50)

    def best(self) -> int:
        """Which main head has the least loss; the first before there is any."""
        return int(self.recent[1].argmin())


class IICTraining(Training):
    """Pairs of a crop and what it is changed to, through one network."""

    def __init__(self, context: Any, config: IICConfig, steps: int) -> None:
        seeding.initialise(context.seed, "train")
        setup = CropSetup(context, config, steps, network=iic_network(context, config))
        super().__init__(setup)
        self.config = setup.config
        self.student, self.network, self.context, self.steps = setup.student, setup.network, context, steps
        c, images, k = self.config, range(len(context.data)), context.classes
        if setup.crop % c.information.cell:
            raise MaskwrightError(
                f"cells of {c.information.cell} pixels in crops of {setup.crop}", "a whole number of them",
                f"set information.cell={setup.network.multiple_of}",
            )  # fmt: skip
        order = sampler(context.seed, len(images), c.crops.batch)
        photographs = setup.stream(images, order, change=photometric(c.warp.recipe))
        setup.streams["u"] = WarpedStream(photographs, c.warp.flip, c.warp.rotate, (c.warp.zoom_min, c.warp.zoom_max))
        heads = Heads(setup.network.width, k, c.heads.over * k, c.heads.sub_heads)
        self.heads: Heads = setup.learn_too("heads", heads)
        self.turn = c.heads.turn or max(1, min(-(-len(images) // c.crops.batch), steps // 2))
        self.side = setup.crop // c.information.cell
        self.health = ClusteringHealth(k, steps, context.note)
        if c.schedule == "constant":
            self.schedule = None

    # ------------------------------------------------------------------ the step

    def probabilities(self, embedding: Tensor, head: nn.Module) -> Tensor:
        """Phi (2 B, K, h, w) of both views; the softmax comes before the change of size, so that sums stay 1."""
        with self.student.autocast():
            logits = head(embedding)
        p = logits.float().softmax(1)
        size = (self.side, self.side)
        same = p.shape[-2:] == size
        return p if same else F.interpolate(p, size, mode="bilinear", align_corners=False, antialias=True)

    def information(self, u: WarpedPairs, p: Tensor, lamb: float) -> Tensor:
        """The loss of one head's probabilities (2 B, K, h, w) of both views."""
        p1, p2 = p.chunk(2)
        p2, valid = u.back(p2)
        c = self.config.information
        return LOSSES[c.form](p1, p2, valid, c.displacement, lamb)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = mean over sub-heads of - I, of the kind whose turn it is; over-clustering comes first."""
        c, u = self.config, batch["u"]
        with self.student.autocast():
            embedding = self.network.decode(self.network.features(torch.cat((u.u1, u.u2))))
        mains: Sequence[nn.Module] = [self.network.classifier, *self.heads.main]
        kind = 1 if not len(self.heads.over) else (step // self.turn) % 2
        heads, lamb = ((self.heads.over, c.information.lamb_over), (mains, c.information.lamb))[kind]
        each = torch.stack([self.information(u, self.probabilities(embedding, h), lamb) for h in heads])
        self.heads.remember(kind, each.detach())
        with torch.no_grad():
            p1 = self.probabilities(embedding[: len(u.u1)], mains[self.heads.best()])
            health = self.health(p1, nearest(u.valid().to(p1.device), (self.side, self.side)))
        recent = {n: self.heads.recent[k].mean() for k, n in enumerate(("over", "main")) if self.heads.seen[k] > 0}
        return {"loss": each.mean(), **recent, **health}

    def after_step(self, step: int) -> None:
        """Watches for collapse, and says in the end which main head is kept."""
        self.health.after_step(step)
        recent = self.heads.recent[1].tolist()
        if step + 1 == self.steps and len(recent) > 1:
            figures = ", ".join(f"{loss:.3f}" for loss in recent)
            best = self.heads.best() + 1
            self.context.note(f"Main head {best} of {len(recent)} is kept, by its training loss: {figures}.")


class IIC(CropMethod):
    """A network whose clusters tell most of those of a changed view."""

    name: ClassVar[str] = "iic"
    title: ClassVar[str] = "Invariant Information Clustering for Unsupervised Image Classification and Segmentation"
    venue: ClassVar[str] = "Ji et al., ICCV 2019"
    link: ClassVar[str] = "https://arxiv.org/abs/1807.06653"
    summary: ClassVar[str] = "Clusters that agree between changed views."
    Config: ClassVar[type] = IICConfig
    trainer: ClassVar[type[Training]] = IICTraining
    says: ClassVar[str] = "clusters that tell most of each other in two views"
    config: IICConfig

    def network(self) -> Network:
        """The trained network with the main head of least training loss."""
        c, context = self.config, self.context
        network = trained(context.run.path / "train", "network", iic_network(context, c))
        empty = Heads(network.width, context.classes, c.heads.over * context.classes, c.heads.sub_heads)
        heads = trained(context.run.path / "train", "heads", empty)
        if not heads.seen[1]:
            context.note("The main head never had its turn, so the clusters are random: set heads.turn lower.")
        if best := heads.best():
            network.classifier = heads.main[best - 1]  # type: ignore[assignment]
        return network

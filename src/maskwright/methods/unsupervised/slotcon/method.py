"""SlotCon: Self-Supervised Visual Representation Learning with Semantic Grouping.

Wen, Zhao, Zheng, Zhang, Qi, NeurIPS 2022, https://arxiv.org/abs/2205.15288.

K prototypes, shared by all photographs, say which group each place of a photograph belongs to. The groups of what two
views share must agree with those of a teacher, an average of the network and its prototypes, whose scores are centred;
and each group's mean feature, its slot, must tell the same group of the other view from all other slots.

Deviates: on any backbone; `preset=small` starts from trained weights and from prototypes that are k-means of their
features (`groups.start`), and keeps their batch-norm statistics (`norms.freeze`); `preset=paper` starts from nothing,
prototypes random as the authors'. What is predicted is the prototype of the greatest score at each place (the authors'
segmentation, by PiCIE's unreleased evaluation), or k-means of the features (`readout.by=clusters`) where there are
more prototypes than classes. Pairs that share nothing do not enter the grouping loss; steps with fewer than two
anchors have no slot loss. Batch norm has the statistics of each process. Crops are resized bilinearly, the authors'
bicubically. RoIAlign's samples are in double precision.

What the original gets wrong: without an overlap the aligned scores are zeros, and the loss a constant; without an
anchor it is not a number, and one anchor stops the predictor's batch norm; the default optimiser is not the published
one.

Legend: B photographs, K prototypes, d width of projections, S crop side, (h, w) map; q the student's, k the teacher's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskwright.data.training.augment import photometric
from maskwright.data.training.two_crops import TwoCropStream
from maskwright.engine import seeding
from maskwright.engine.context import Context
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import rank, sampler, share
from maskwright.engine.loop import Training
from maskwright.engine.schedules import cosine_value
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.slotcon.losses import (
    Center,
    Contrast,
    Grouped,
    group,
    grouping_loss,
    inverse_augment,
    slot_loss,
    warm_cosine,
    winners,
)
from maskwright.methods.unsupervised.slotcon.options import SlotConConfig
from maskwright.models.networks.build import Network
from maskwright.models.networks.vit_heads import LastMap
from maskwright.models.parts.heads import CosineClassifier, Sequential
from maskwright.models.parts.projector import Projector
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.recipes.clustering import cluster_rows
from maskwright.recipes.clustering_health import ClusteringHealth
from maskwright.recipes.ema import EMATeacher
from maskwright.recipes.training.method import CropMethod
from maskwright.recipes.training.network import make_network, make_segmenter, network_rows, trained_network
from maskwright.recipes.training.setup import CropSetup

CENTERS = "centers.safetensors"
BEGUN = 256
"""Photographs whose views the first prototypes are k-means of, at most."""


def slotcon_network(context: Context, config: SlotConConfig) -> Network:
    """The configured network's encoder with a projector and prototypes behind it.

    Raises:
        MaskwrightError: prototypes that are to be clusters and are not as many; a map that the encoder has not.
    """
    c, k = config.groups, config.groups.count or context.classes
    if config.readout.by == "prototypes" and k != context.classes:
        raise MaskwrightError(
            f"{k} prototypes for {context.classes} clusters", "as many, where prototypes are what is predicted",
            "leave groups.count out, or set readout.by=clusters",
        )  # fmt: skip
    network = make_network(context, config)
    side = network.multiple_of * max(1, -(-64 // network.multiple_of))
    with torch.no_grad():
        widths = [f.shape[1] for f in network.eval().features(torch.zeros(1, 3, side, side))]
    if -c.level > len(widths):
        raise MaskwrightError(f"groups.level={c.level}", f"-{len(widths)} to -1: the encoder has {len(widths)} maps")
    width = widths[c.level]
    network.decoder = Sequential(LastMap(width, c.level), Projector(width, c.hidden, c.width))
    network.classifier = CosineClassifier(torch.randn(k, c.width), config.loss.tau_t)
    network.classes, network.width = k, c.width
    return network.train()


class SlotConTraining(Training):
    """Two views of each photograph through the network and its average."""

    must_fall: ClassVar[str] = "slot_excess"
    setup: CropSetup

    def __init__(self, context: Any, config: SlotConConfig, steps: int) -> None:
        seeding.initialise(context.seed, "train")
        setup = CropSetup(context, config, steps, network=slotcon_network(context, config))
        super().__init__(setup)
        self.config = setup.config
        self.student, self.network, self.context, self.steps = setup.student, setup.network, context, steps
        c, images = self.config, len(context.data)
        recipes = (photometric(c.views.recipe1), photometric(c.views.recipe2))
        photographs = setup.stream(range(images), sampler(context.seed, images, c.crops.batch))
        setup.streams["u"] = TwoCropStream(photographs, recipes, c.views.overlap, c.views.flip)
        self.teacher = EMATeacher(setup.network, c.teacher.momentum, buffers="own", mode="train", warm=False)
        self.center = Center(setup.network.classes, c.loss.center).to(setup.device)
        self.modules |= {"teacher": self.teacher, "center": self.center}
        self.predictor = setup.learn_too("predictor", Projector(c.groups.width, c.groups.hidden, c.groups.width))
        if not c.loss.slots:
            self.predictor.requires_grad_(False)
        if c.schedule == "cosine":
            warm = int(c.warm * max(1, images // c.crops.batch))
            self.schedule = warm_cosine(steps, warm, 1e-6 / c.optimizer.lr)
        self.health = ClusteringHealth(setup.network.classes, steps, context.note)

    @torch.no_grad()
    def begin(self) -> None:
        """Prototypes that are k-means of views, as long as random ones are; batch norm is that of a step."""
        c, context, images = self.config, self.context, len(self.context.data)
        order, rows = torch.randperm(images, generator=seeding.generator(context.seed, "start"))[:BEGUN], []
        for j, chunk in enumerate(order.split(c.crops.batch)):
            random = seeding.generator(context.seed, "start", j, rank())
            mine = share(chunk.tolist())
            if mine:
                u = self.setup.prepared(self.setup.streams["u"].draw(mine, random))
                x = u.u1 if len(mine) > 1 else torch.cat((u.u1, u.u2))  # one place of one view has no variance
                with self.student.autocast():
                    z = self.network.decode(self.network.features(x))
                rows.append(z.float().permute(0, 2, 3, 1).flatten(0, 2))
        asked = "groups.count" if c.groups.count and c.readout.by == "clusters" else "--classes"
        found = cluster_rows(context, torch.cat(rows), c.clusters, self.network.classes, shown=False, asked=asked)
        for network in (self.network, self.teacher.module):
            head: Any = network.classifier
            head.centers.copy_(found.centers * math.sqrt(c.groups.width))

    def before_step(self, step: int) -> None:
        """The average follows before it is asked, as the authors' does."""
        if step == 0 and self.config.groups.start == "kmeans":
            self.begin()
        self.teacher.update(self.network, cosine_value(self.config.teacher.momentum, 1.0, step, self.steps))

    def grouped(self, network: Any, x: Tensor) -> Grouped:
        """Slots and scores of crops (B, 3, S, S)."""
        with self.student.autocast():
            z = network.decode(network.features(x))
        return group(z.float(), network.classifier.centers, self.config.loss.tau_t)

    def predicted(self, slots: Tensor) -> Tensor:
        """Slots (N, d) behind the predictor."""
        with self.student.autocast():
            y: Tensor = self.predictor(slots)
        return y.float()

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = lambda (L_group12 + L_group21) + (1 - lambda) (L_slot12 + L_slot21)."""
        c, u = self.config.loss, batch["u"]
        q1, q2 = (self.grouped(self.network, x) for x in (u.u1, u.u2))
        with torch.no_grad():
            k1, k2 = (self.grouped(self.teacher.module, x) for x in (u.u1, u.u2))

        def grouping(q: Tensor, q_at: Any, k: Tensor, k_at: Any) -> Tensor:
            aligned = inverse_augment(q, *q_at), inverse_augment(k, *k_at)
            return grouping_loss(*aligned, self.center.value, c.tau_s, c.tau_t, u.shared)

        at1, at2 = (u.boxes1, u.flips1), (u.boxes2, u.flips2)
        l_group = grouping(q1.scores, at1, k2.scores, at2) + grouping(q2.scores, at2, k1.scores, at1)
        if c.centring:
            self.center.update(torch.cat((k1.scores, k2.scores)))
        figures = {"group": l_group, "shared": u.shared.float().mean()}
        loss = l_group
        if c.slots:
            slot12, slot21 = self.contrast(q1, k2), self.contrast(q2, k1)
            l_slot, guess = slot12.loss + slot21.loss, slot12.guess + slot21.guess
            figures |= {"slot": l_slot, "slot_excess": l_slot - guess, "anchors": slot12.anchors + slot21.anchors}
            loss = c.share * l_group + (1 - c.share) * l_slot
        return {"loss": loss, **figures, **self.health(torch.cat((k1.scores, k2.scores)))}

    def contrast(self, q: Grouped, k: Grouped) -> Contrast:
        """The slot loss of one direction."""
        theirs = winners(k.scores)
        ours = winners(q.scores) & theirs
        return slot_loss(q.slots, k.slots, ours, theirs, self.predicted, self.config.loss.tau_slot)

    def after_step(self, step: int) -> None:
        """Watches for collapse."""
        self.health.after_step(step)


class SlotCon(CropMethod):
    """A network whose groups of places agree between views, and whose groups tell each other apart."""

    name: ClassVar[str] = "slotcon"
    title: ClassVar[str] = "Self-Supervised Visual Representation Learning with Semantic Grouping"
    venue: ClassVar[str] = "Wen et al., NeurIPS 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2205.15288"
    summary: ClassVar[str] = "Prototypes that agree between two views."
    Config: ClassVar[type] = SlotConConfig
    trainer: ClassVar[type[Training]] = SlotConTraining
    says: ClassVar[str] = "prototypes that group two views alike, and slots that tell their group"
    config: SlotConConfig

    @property
    def result(self) -> str:
        """The average, or the network that learned."""
        return "teacher" if self.config.teacher.keep == "teacher" else "network"

    def stages(self) -> list[Stage]:
        """Train, and cluster where prototypes are not what is predicted."""
        cluster = Stage("cluster", "fit", self.cluster, "k-means of the trained network's features")
        return [*super().stages(), *([cluster] if self.config.readout.by == "clusters" else [])]

    def network(self) -> Network:
        """The trained network, from the artefact."""
        context, folder = self.context, self.context.run.path / "train"
        untrained = slotcon_network(context, self.config)
        return trained_network(context, self.config, folder, self.result, network=untrained)

    def cluster(self, folder: Path) -> None:
        """Centres (K, d) of features of whole photographs."""
        c, context = self.config, self.context
        rows = network_rows(context, c, self.network(), c.readout.rows)
        centers = cluster_rows(context, rows, c.clusters).centers
        if context.run.writes:
            save_tensors(folder / CENTERS, {"centers": centers.float().cpu()})

    def segmenter(self) -> Segmenter:
        """The network with its prototypes, or with the clusters of its features."""
        network = self.network()
        if self.config.readout.by == "clusters":
            centers = self.context.run.tensors("cluster", CENTERS, {"centers": "KD"})["centers"]
            network.classifier = CosineClassifier(centers, self.config.loss.tau_t)
        return make_segmenter(self.context, self.config, network, self.name, range(len(self.context.data)))

"""PriMaPs-EM: Boosting Unsupervised Semantic Segmentation with Principal Mask Proposals.

Hahn, Araslanov, Schaub-Meyer, Roth, TMLR 2024, https://arxiv.org/abs/2404.16818.

A photograph falls into masks by itself: the cell of its frozen features that lies most along their first principal
component, and the cells like it, are a mask; with these taken away the next component gives the next mask. K class
prototypes are then fitted to the masks. E: a mask takes the class that the momentum prototypes theta_M give most of
its cells. M: a gradient step of the running prototypes theta_R on these labels. theta_M follows theta_R.

Deviates: psi is 0.6, chosen on CamVid's validation split, where the paper has 0.4 on DINO's features. Prototypes live
on PCA of the features and start where `kmeans` with the same options ends; the paper starts from gradients of mini-
batch k-means. Masks are of the grid's cells; the paper enlarges features and aligns masks by a CRF; here there is one
after prediction (`crf`). theta_R sees the photograph that theta_M sees, because features come from a cache; the paper
changes its colours. Logits are cosines over a temperature; the paper's are products with features of their own
length.

What the original gets wrong: a principal component has no sign, and the sign that its solver gives, from a start
without a seed, decides which end of it becomes the mask; here it is the end whose cell lies closer to the axis.

Legend: N cells of one photograph or of a batch, D channels, K prototypes, Z masks, (h, w) grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.masking.masks import read_mask, write_mask
from maskwright.data.trust.files import file_for
from maskwright.engine.checkpoint import trained
from maskwright.engine.config import option, part
from maskwright.engine.context import Context
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import each, sampler
from maskwright.engine.loop import Indices, Training
from maskwright.engine.needs import Terms
from maskwright.engine.result import assembled
from maskwright.models.parts.heads import CosineClassifier, Projection
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.recipes.clustering import FineClusterOptions
from maskwright.recipes.ema import EMATeacher
from maskwright.recipes.frozen.features import CLUSTERED, ReducedMaps, projection, reduced_clusters
from maskwright.recipes.frozen.method import FrozenConfig, FrozenMethod
from maskwright.recipes.frozen.options import ReductionOptions

START = "start.safetensors"
MOST = 254
"""Masks of a photograph at most: what 8 bits hold."""


@dataclass(kw_only=True)
class MaskOptions:
    """Masks of one photograph."""

    threshold: float = option(
        0.6, "psi: a cell joins whose cosine to the mask's first cell is above", low=0, high=1, main=True
    )
    cover: float = option(0.95, "share of the cells that lie in masks before the search ends", low=0, high=1)


@dataclass(kw_only=True)
class EmOptions:
    """Fitting prototypes to masks."""

    steps: int = option(600, "optimiser steps; --steps overrides it", low=1, main=True)
    batch: int = option(32, "photographs a step", low=1, main=True)
    lr: float = option(5e-3, "Adam's learning rate of theta_R", low=0.0, main=True)
    momentum: float = option(0.98, "of theta_M", low=0, high=1)
    every: int = option(10, "steps from one move of theta_M to the next", low=1)
    gamma: float = option(2.0, "focal weight (1 - chi_k)^gamma of a class that has the share chi_k", low=0)


@dataclass(kw_only=True)
class PrimapsConfig(FrozenConfig):
    """Options of `primaps`."""

    reduction: ReductionOptions = part(ReductionOptions, dim=64, whiten=False, max_rows=1_000_000)
    clusters: FineClusterOptions = part(FineClusterOptions, without=("fine",))
    masks: MaskOptions = part(MaskOptions)
    em: EmOptions = part(EmOptions)


def principal_masks(f: Tensor, threshold: float, cover: float) -> Tensor:
    """Mask proposals of one photograph.

    Args:
        f: features (D, h, w).
        threshold: psi, of the cosine to a mask's first cell.
        cover: share of the cells at which the search ends.

    Returns:
        (h, w) int64: 0 in no mask, 1..Z in the order in which they were found.
    """
    rows = f.flatten(1).T  # (N, D)
    unit, found = F.normalize(rows, dim=1), torch.zeros(len(rows), dtype=torch.int64)
    for z in range(1, MOST + 1):
        free = found == 0
        if not bool(free.any()) or float(free.float().mean()) <= 1 - cover:
            break
        centred = rows[free] - rows[free].mean(0)
        v = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]  # (D,), the first principal component
        first = int(torch.where(free, (unit @ v).abs(), -1.0).argmax())
        inside = free & (unit @ unit[first] > threshold)
        inside[first] = True
        found[inside] = z
    return found.view(f.shape[1:])


def pseudo_labels(classes: Tensor, masks: Tensor, count: int) -> Tensor:
    """E: each mask's most frequent class, the lower of two that tie.

    Args:
        classes: of theta_M (N,).
        masks: (N,), 0 in none.
        count: K.

    Returns:
        (N,) int64, -1 in no mask.
    """
    votes = torch.zeros(int(masks.max()) + 1, count, dtype=torch.int64, device=masks.device)
    votes.index_put_((masks, classes), torch.ones_like(classes), accumulate=True)
    return torch.where(masks > 0, votes.argmax(1)[masks], -1)


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """M: - 1/N sum_i (1 - chi_k)^gamma log p_ik of the labels k, chi_k the mean of p_ik over all cells.

    Args:
        logits: of theta_R (N, K).
        labels: (N,), -1 where nothing is asked.
        gamma: of the weight.
    """
    chi = logits.detach().softmax(1).mean(0)  # (K,)
    loss = F.cross_entropy(logits, labels, weight=(1 - chi) ** gamma, ignore_index=-1, reduction="sum")
    return loss / len(labels)


def scores(theta: CosineClassifier, f: Tensor) -> Tensor:
    """Logits (N, K) of cells (N, D) of unit length: cosines over the temperature."""
    return f @ F.normalize(theta.centers, dim=1).T / theta.temperature


class Em(Training):
    """The training stage.

    Args:
        context: of the run.
        config: options.
        maps: features of the photographs, of unit length.
        centers: (K, D), where both kinds of prototypes start.
        masks: of each photograph (h, w), uint8.
    """

    def __init__(
        self, context: Context, config: PrimapsConfig, maps: ReducedMaps, centers: Tensor, masks: Sequence[Tensor]
    ) -> None:
        c = self.c = config.em
        self.maps, self.masks, self.device = maps, masks, context.device
        self.theta_r = CosineClassifier(centers, config.readout.temperature).to(self.device)
        self.theta_m = EMATeacher(self.theta_r, c.momentum, warm=False)
        self.modules = {"theta_r": self.theta_r, "theta_m": self.theta_m}
        self.optimizers = {"theta_r": torch.optim.Adam(self.theta_r.parameters(), lr=c.lr)}
        self.sampler = sampler(context.seed, len(masks), c.batch)

    def batch(self, indices: Indices, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cells (N, D) of photographs of any size, and their masks (N,), numbered over the batch; 0 in none."""
        rows, masks, seen = [], [], 0
        for i in map(int, indices):
            m = self.masks[i].flatten().long()
            rows.append(self.maps[i].flatten(1).T)
            masks.append(torch.where(m > 0, m + seen, 0))
            seen += int(m.max())
        return torch.cat(rows), torch.cat(masks)

    def on_device(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The same, where the prototypes are."""
        f, masks = batch
        return f.to(self.device), masks.to(self.device)

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        """E by theta_M, M on theta_R."""
        f, masks = batch
        y = scores(self.theta_m.module, f)  # type: ignore[arg-type]
        labels = pseudo_labels(y.argmax(1), masks, y.shape[1])
        return {"loss": focal_loss(scores(self.theta_r, f), labels, self.c.gamma)}

    def after_step(self, step: int) -> None:
        """theta_M follows, now and then."""
        if (step + 1) % self.c.every == 0:
            self.theta_m.update(self.theta_r)


class Primaps(FrozenMethod):
    """k-means, masks from principal components, EM of prototypes."""

    name: ClassVar[str] = "primaps"
    title: ClassVar[str] = "Boosting Unsupervised Semantic Segmentation with Principal Mask Proposals"
    venue: ClassVar[str] = "Hahn et al., TMLR 2024"
    link: ClassVar[str] = "https://arxiv.org/abs/2404.16818"
    summary: ClassVar[str] = "Fits prototypes to principal masks."
    Config: ClassVar[type] = PrimapsConfig
    config: PrimapsConfig

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """The steps of expectation-maximisation."""
        return replace(super().terms(config, images), steps=config.em.steps)

    @property
    def steps(self) -> int:
        """Of EM."""
        return int(self.context.steps or self.config.em.steps)

    def own_stages(self) -> list[Stage]:
        """Start, masks, em."""
        return [
            Stage("start", "fit", self.start, "PCA and k-means: where the prototypes start"),
            Stage("masks", "label", self.masks, "masks of each photograph from its principal components"),
            Stage("em", "train", self.em, "prototypes that agree with the masks", self.steps),
        ]

    def start(self, folder: Path) -> None:
        """The reduction and the first prototypes, those of `kmeans`."""
        c = self.config
        t, _ = reduced_clusters(self.context, self.learned, c.reduction, c.clusters)
        if self.context.run.writes:
            save_tensors(folder / START, t)

    def started(self) -> dict[str, Tensor]:
        """The artefact of `start`: the reduction and the centres."""
        return self.context.run.tensors("start", START, CLUSTERED)

    def mask_file(self, i: int) -> Path:
        """Where the masks of photograph i lie."""
        return file_for(self.context.run.path / "masks", self.context.data.names[i], ".png")

    @torch.no_grad()
    def masks(self, folder: Path) -> None:
        """`NAME.png`: the masks of each photograph on the grid of its features, 0 in none."""
        c, embed, images = self.config.masks, self.embedding(), range(len(self.context.data))
        for i in each(self.context.progress, images, "masks", done=lambda i: self.mask_file(i).exists()):
            f = embed(self.features.store[i].float()[None])[0]  # (D, h, w)
            write_mask(self.mask_file(i), principal_masks(f, c.threshold, c.cover).to(torch.uint8).numpy())

    def em(self, folder: Path) -> None:
        """Trains the prototypes."""
        t, steps = self.started(), self.steps
        masks = [torch.from_numpy(read_mask(self.mask_file(i))) for i in range(len(self.context.data))]
        maps = ReducedMaps(self.features, projection(t, normalize=True))
        training = Em(self.context, self.config, maps, t["centers"], masks)
        self.context.fit(training, "em", folder, steps)

    def embedding(self) -> Projection:
        """PCA, without length."""
        return projection(self.started())

    def segmenter(self) -> Segmenter:
        """Encoder, PCA to unit length, and cosine to theta_M."""
        t, f = self.started(), self.features
        empty = EMATeacher(CosineClassifier(t["centers"], self.config.readout.temperature))
        theta_m: Any = trained(self.context.run.path / "em", "theta_m", empty).module
        return assembled(self, f.encoder, projection(t, normalize=True), theta_m, f.preprocess)

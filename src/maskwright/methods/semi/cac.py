"""Semi-supervised semantic segmentation with directional context-aware consistency (CAC), Lai et al., CVPR 2021,
https://arxiv.org/abs/2106.14133

What a network says of a pixel should not hang on what else happens to be in the crop. Two crops of an unlabelled
photograph that overlap are given to the network, and at the pixels of the overlap the less sure of the two embeddings
is pulled to the surer one, and only if that one is sure enough:

    M1_i = [p2_i > 0.75] [p1_i < p2_i],    e(a, b) = exp(a . b / tau)
    L_1 = sum_i M1_i -log( e(z1_i, sg z2_i) / (e(z1_i, sg z2_i) + sum_j [c_j != k1_i] e(z1_i, n_j)) ) / sum_i M1_i
    L = L_x + 0.1 (L_1 + L_2)

z are unit vectors from a projector on the decoder's embedding at stride 8, p and k confidence and class there, n_j with
pseudo-classes c_j embeddings of random pixels of all unlabelled crops of this iteration and the last ones.

Deviates: which cell of one crop is which of the other comes from the recorded geometry of the views, flips included,
instead of rectangles that are cut and turned back; cells that reach beyond the photograph are neither anchors nor
negatives. The number of negatives is capped by the pixels there are. Learning rates, schedule, labelled crops and
inference are those that all methods here share, logits are enlarged with align_corners=False, and the paper's variant
with image-level labels is left out. A network whose input is no multiple of 8 is compared on the cells of its patches.
Crops are blurred after their colours have changed and by a random width, where the authors blur first and by one width.
What the original gets wrong: confidences come from a pass whose dropout is on, so that which side moves is partly a
matter of chance (here it is off for unlabelled crops, in the decoder too); 1e-8 inside the logarithm ends the loss of a
pixel at 18.4, from where on it has no gradient (with 25,000 negatives it can reach 30); the row maximum of the first
chunk of negatives is used for all later ones, which is harmless at tau 0.1 and would overflow below 0.023; the number
of negatives raises when it exceeds the pixels of a small batch.

Legend: B labelled crops, U unlabelled pairs, S crop side, D width of the projection, (n, n) cells of a crop, N cells in
overlaps, M negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.overlap import PairStream
from maskwright.data.training.sources import Labels
from maskwright.engine.config import Idle, option, part
from maskwright.engine.distributed import world_size
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.ops.losses.contrast import contrastive_loss, directional_mask
from maskwright.ops.losses.region_contrast import as_rows
from maskwright.recipes.consistency.class_banks import RecentBank
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, RampOptions, SemiConfig, UnlabeledOptions
from maskwright.recipes.consistency.parts import Ramp, unlabeled_stream
from maskwright.recipes.consistency.representation import at_size
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.setup import NetworkSetup

CELL = 8
"""Input pixels a side of a cell on which embeddings are compared."""


@dataclass(kw_only=True)
class CACConfig(SemiConfig):
    """Options of `cac`."""

    unlabeled: UnlabeledOptions = part(
        UnlabeledOptions, strong="cac", says={"strong": "photometric recipe of each crop, drawn on its own"}
    )
    ramp: RampOptions = part(
        RampOptions, weight=0.1, start=0.0625,
        says={
            "weight": "weight of L_1 + L_2",
            "start": "share of the steps before L_1 + L_2 set in: 5 of the paper's 80 epochs",
        },
    )  # fmt: skip
    temperature: float = option(0.1, "tau", low=1e-3, high=10)
    threshold: float = option(
        0.75, "confidence above which the other crop's pixel is worth following", low=0, high=1, main=True
    )
    negatives: int = option(
        6400, "random pixels of each crop of the pairs of a process, capped by those there are", low=1
    )
    step_save: int = option(1, "earlier iterations whose pixels are negatives too", low=0)
    projection: int = option(128, "D, width of the projection", low=1)
    pair_scale_min: float = option(0.8, "least random scale of a pair; the greatest is scale_max", low=0.05, high=10)
    pair_iou: float = option(0.1, "least intersection over union of a pair's crops", low=0, high=1)

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.pair_scale_min > self.crops.scale_max:
            raise MaskwrightError(f"pair_scale_min={self.pair_scale_min}", f"at most scale_max={self.crops.scale_max}")

    def idle(self) -> Idle:
        """Options of a loss that does not weigh."""
        yield from super().idle()
        if self.ramp.weight == 0:
            contrast = ("temperature", "threshold", "negatives", "step_save", "projection", "pair_iou")
            yield contrast, NOTHING_UNLABELED


class Cells(NamedTuple):
    """What the network makes of the U n n = P cells of a crop of each pair.

    Attributes:
        z: unit embeddings (P, D).
        p: confidences (P,), without gradient.
        k: pseudo-classes int64 (P,).
    """

    z: Tensor
    p: Tensor
    k: Tensor


# ---------------------------------------------------------------------- losses


def directional_contrast(
    moving: Cells, still: Cells, bank: Tensor, bank_ids: Tensor, temperature: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """L_1 for moving = 1 and still = 2, and the mask M1.

    Args:
        moving: cells of the overlap (N) in the crop that learns.
        still: the same cells in the other crop, which get no gradient.
        bank: negatives n (M, D).
        bank_ids: their pseudo-classes c (M,).
        temperature: tau.
        threshold: least confidence, exclusive, of a cell that is followed.

    Returns:
        The loss, 0 where no cell is to move, and bool (N,).
    """
    mask = directional_mask(moving.p, still.p, threshold)
    loss = contrastive_loss(
        moving.z, still.z.detach(), bank.detach(), temperature=temperature,
        anchor_ids=moving.k, negative_ids=bank_ids, weights=mask,
    )  # fmt: skip
    return loss, mask


class Projector(nn.Module):
    """1x1 convolution E -> E, ReLU, 1x1 convolution E -> D.

    Args:
        width: E.
        dim: D.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(inplace=True), nn.Conv2d(width, dim, 1))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, E, h, w) to (B, D, h, w)."""
        return self.layers(embedding)


class CACTraining(Training):
    """Two overlapping crops of each unlabelled photograph through one network."""

    def __init__(self, context: Any, config: CACConfig, labels: Labels, steps: int, **options: Any) -> None:
        setup = NetworkSetup(context, config, labels, steps, **options)
        super().__init__(setup)
        c = self.config = setup.config
        self.student, self.network, self.supervised = setup.student, setup.network, setup.supervised
        self.cell = CELL if setup.crop % CELL == 0 else setup.network.multiple_of
        self.cells = setup.crop // self.cell
        pairs = -(-c.unlabeled_batch // world_size())
        self.negatives = min(c.negatives, pairs * self.cells**2)
        setup.streams["u"] = PairStream(
            unlabeled_stream(setup), self.cell, (c.pair_scale_min, c.crops.scale_max), (c.pair_iou, 1.0)
        )
        self.projector = setup.learn_too("projector", Projector(setup.network.width, c.projection))
        self.bank = RecentBank(c.step_save + 1, 2 * self.negatives, c.projection).to(setup.device)
        self.modules["bank"] = self.bank
        self.ramp = Ramp(c.ramp, steps)

    # ------------------------------------------------------------------ the step

    def embed(self, u: Tensor) -> Cells:
        """The cells of crops (U, 3, S, S), from a pass without dropout."""
        size = (self.cells, self.cells)
        with self.student.plain(), self.student.autocast():
            f = at_size(self.network.decode(self.network.features(u)), size)
            z = self.projector(f)
            with torch.no_grad():
                logits = at_size(self.network.classify(f), size)
        p, k = logits.float().softmax(1).max(1)
        return Cells(as_rows(F.normalize(z.float(), dim=1)), p.flatten(), k.flatten())

    @torch.no_grad()
    def remember(self, crops: Sequence[tuple[Cells, Tensor]]) -> None:
        """Random cells of each crop, inside the photographs, enter the bank."""
        rows, ids = [], []
        for cells, inside in crops:
            places = inside.flatten().nonzero().flatten()
            chosen = places[torch.randperm(len(places)).to(places.device)[: self.negatives]]
            rows.append(cells.z[chosen])
            ids.append(cells.k[chosen])
        self.bank.add(torch.cat(rows), torch.cat(ids))

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x + lambda(t) (L_1 + L_2)."""
        c, x, u, lam = self.config, batch["x"], batch["u"], self.ramp(step)
        loss_x = self.supervised(self.student(x.weak), x.y)
        if lam == 0:
            return {"loss": loss_x, "x": loss_x}
        first, second = self.embed(u.u1), self.embed(u.u2)
        self.remember([(first, u.inside1), (second, u.inside2)])
        bank, ids = self.bank.get(), self.bank.get_ids()
        one, two = (Cells(*(part[i] for part in v)) for v, i in ((first, u.cells1), (second, u.cells2)))
        loss_1, mask_1 = directional_contrast(one, two, bank, ids, c.temperature, c.threshold)
        loss_2, mask_2 = directional_contrast(two, one, bank, ids, c.temperature, c.threshold)
        moving = torch.cat([mask_1, mask_2]).float().sum() / max(1, len(mask_1))
        return {"loss": loss_x + lam * (loss_1 + loss_2), "x": loss_x, "u": loss_1 + loss_2, "moving": moving}


class CAC(NetworkMethod):
    """Directional context-aware consistency."""

    name: ClassVar[str] = "cac"
    title: ClassVar[str] = "Semi-supervised semantic segmentation with directional context-aware consistency"
    venue: ClassVar[str] = "Lai et al., CVPR 2021"
    link: ClassVar[str] = "https://arxiv.org/abs/2106.14133"
    summary: ClassVar[str] = "Makes overlapping crops agree."
    family: ClassVar[str] = "semi"
    Config: ClassVar[type] = CACConfig
    trainer: ClassVar[type[Training]] = CACTraining
    says: ClassVar[str] = "a network whose pixels mean the same in whichever crop they lie"

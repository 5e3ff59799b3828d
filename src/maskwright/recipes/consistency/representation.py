"""Heads that map a network's embedding into a space of contrast, beside the classifier and dropped at test time.

Legend: B labelled crops, U unlabelled crops, C classes, S crop side, E width of the embedding, D width of the
representation, (h, w) its size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.labels import LabelMap
from maskwright.ops.losses.region_contrast import nearest
from maskwright.recipes.consistency.consistency import SemiBatch, SemiTraining
from maskwright.recipes.training.segmenting import Output

STRIDE = 4
"""Input pixels a representation covers: that of the papers' decoder."""


class RepresentationHead(nn.Module):
    """3x3 convolution E -> D, batch norm, ReLU, 1x1 convolution D -> D (ReCo and U2PL).

    Args:
        width: E.
        dim: D.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, E, h, w) to (B, D, h, w)."""
        return self.layers(embedding)


def at_size(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, E, H, W) at size (h, w): means over cells where that is coarser, interpolated where it is finer."""
    if x.shape[-2:] == torch.Size(size):
        return x
    if x.shape[-2] >= size[0]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def add_module(optimizer: torch.optim.Optimizer, module: nn.Module, lr: float, weight_decay: float) -> None:
    """Trains a module with an optimiser; biases and norms are not decayed.

    Args:
        optimizer: gets one or two groups more.
        module: with parameters that none of its groups holds.
        lr: initial rate; the loop's schedule is a factor on it.
        weight_decay: of matrices and kernels.
    """
    for vector, decay in ((False, weight_decay), (True, 0.0)):
        params = [p for p in module.parameters() if (p.ndim <= 1) == vector]
        if params:
            optimizer.add_param_group({"params": params, "lr": lr, "weight_decay": decay})


def labels_at(labels: LabelMap, size: tuple[int, int]) -> LabelMap:
    """Label maps (B, S, S) at size (h, w), by nearest, as `nearest` has them."""
    return LabelMap(*(nearest(part, size) for part in (labels.ids, labels.confidence, labels.valid)))


class Together(NamedTuple):
    """A joint pass over labelled and mixed unlabelled crops.

    Attributes:
        x: (B + U, 3, S, S), labelled crops first.
        y: labels of the labelled crops (B, S, S).
        u: pseudo-labels of the mixed crops (U, S, S).
        out: the student's output for all of them.
        r: their representations (B + U, D, h, w), float32.
    """

    x: Tensor
    y: LabelMap
    u: LabelMap
    out: Output
    r: Tensor

    @property
    def logits_u(self) -> Tensor:
        """The student's logits of the mixed crops (U, C, S, S)."""
        return self.out.logits[len(self.y) :]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the representations."""
        return self.r.shape[-2], self.r.shape[-1]

    @property
    def labels(self) -> LabelMap:
        """Labels and pseudo-labels of all crops at the representations' size (B + U, h, w)."""
        y, u = labels_at(self.y, self.size), labels_at(self.u, self.size)
        return LabelMap(
            torch.cat([y.ids, u.ids]), torch.cat([y.confidence, u.confidence]), torch.cat([y.valid, u.valid])
        )


class RepresentationTraining(SemiTraining):
    """A step with an EMA teacher, mixed views, and representations of all crops from one pass of the student.

    Options beside those of `SemiConfig`: `representation`, D.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        head = RepresentationHead(self.network.width, self.config.representation)
        self.head = head.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.modules["head"] = self.head
        add_module(self.optimizers["network"], self.head, self.config.lr, self.config.weight_decay)

    def represent(self, head: nn.Module, embedding: Tensor) -> Tensor:
        """(B, E, H, W) to representations (B, D, h, w) in float32, at stride 4 or the decoder's coarser one."""
        side = -(-self.crop // STRIDE)
        size = (min(side, embedding.shape[-2]), min(side, embedding.shape[-1]))
        with self.autocast():
            r = head(at_size(embedding, size))
        return r.float()

    def mixed(self, batch: SemiBatch) -> tuple[Tensor, LabelMap]:
        """The student's views (U, 3, S, S) with their pseudo-labels (U, S, S). Methods write it."""
        raise NotImplementedError

    def terms(self, all_: Together, step: int) -> dict[str, Tensor]:
        """The unsupervised loss under the name `u`, and its parts. Methods write it."""
        raise NotImplementedError

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x + lambda(t) (L_u + L_c), labelled and unlabelled crops in one pass."""
        if self.ramp(step) == 0:
            return super().losses(batch, step)
        views, labels = self.mixed(batch)
        x, n = torch.cat([batch.x, views]), len(batch.x)
        out = self.run(self.network, x)
        loss_x = self.supervised(Output([f[:n] for f in out.features], out.embedding[:n], out.logits[:n]), batch.y)
        terms = self.terms(Together(x, batch.y, labels, out, self.represent(self.head, out.embedding)), step)
        return {"loss": loss_x + self.ramp(step) * terms["u"], "x": loss_x, **terms}

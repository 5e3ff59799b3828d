"""Small modules that several networks share: a batch norm that bears one value, convolution blocks, FCN heads.

Legend: B batch, D width, C classes, (h, w) feature-map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.accel.quicken import QuickNorm
from maskwright.models.parts.part import Part


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that also takes one value a channel in training.

    Behind a global pooling and with one image, each channel has a single value: its variance is not defined, torch
    refuses it, and normalising by it would give zero whatever the image shows. Such a call is normalised by the
    running statistics, as in evaluation, and leaves them alone. Everything else, names of tensors among it, is
    torch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to normalised values of that shape."""
        if self.training and x.numel() == self.num_features and self.running_mean is not None:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(x)


class QuickBatchNorm2d(QuickNorm, BatchNorm2d):
    """The same with the training passes of `accel`."""


def tolerate_single_values(module: nn.Module) -> nn.Module:
    """Replaces every plain `nn.BatchNorm2d` inside a module by `BatchNorm2d`, tensors kept; returns the module."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            settings = (child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            norm = BatchNorm2d(*settings)
            norm.weight, norm.bias = child.weight, child.bias
            norm.running_mean, norm.running_var = child.running_mean, child.running_var
            norm.num_batches_tracked = child.num_batches_tracked
            setattr(module, name, norm.train(child.training))
        else:
            tolerate_single_values(child)
    return module


class Handed:
    """What a decoder hands to the auxiliary heads that stand on its inner maps.

    In training, decoder and heads get the same list of maps one after the other. Computed twice, the inner step would
    cost twice and move its batch norm's running statistics twice a batch. A copy begins empty.
    """

    def __init__(self) -> None:
        self._maps: tuple[Tensor, ...] = ()
        self._value: Any = None

    def __deepcopy__(self, memo: Any) -> Handed:
        return Handed()

    def put(self, maps: Sequence[Tensor] | Tensor, value: Any, training: bool) -> None:
        """Keeps a value for these maps, and only in training with gradients; drops what was there."""
        keep = training and torch.is_grad_enabled()
        self._maps, self._value = (_several(maps), value) if keep else ((), None)

    def get(self, maps: Sequence[Tensor] | Tensor) -> Any:
        """The value of these very maps, or None."""
        asked = _several(maps)
        same = len(asked) == len(self._maps) and all(a is b for a, b in zip(asked, self._maps, strict=True))
        return self._value if same else None


def _several(maps: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
    return (maps,) if isinstance(maps, Tensor) else tuple(maps)


def conv_norm(width: int, out: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution without bias that keeps the size (over the stride), and batch norm."""
    return nn.Sequential(
        nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=False),
        BatchNorm2d(out),
    )


def conv_norm_relu(width: int, out: int, kernel: int = 1, bias: bool = False) -> nn.Sequential:
    """Convolution that keeps the size, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=bias), BatchNorm2d(out), nn.ReLU(inplace=True)
    )


def initialise(module: nn.Module) -> None:
    """He's normal initialisation (fan out) of all convolutions inside, biases 0."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def join(maps: Sequence[Tensor], aligned: bool = False) -> Tensor:
    """Feature maps (B, D_i, h_i, w_i) side by side at the size of the first, enlarged with aligned corners or not."""
    size = maps[0].shape[-2:]
    same = [m if m.shape[-2:] == size else F.interpolate(m, size, mode="bilinear", align_corners=aligned) for m in maps]
    return torch.cat(same, dim=1) if len(same) > 1 else same[0]


class FCNHead(Part):
    """The auxiliary head of PSPNet and its heirs on one feature map: 3x3 convolution, norm, ReLU, dropout, 1x1.

    Args:
        width: D of the map.
        classes: C.
        index: its place in the list of features, negative from the end.
        hidden: width between the convolutions.
        dropout: probability of a channel to be dropped in training.
    """

    fields = ("width", "classes", "index", "hidden", "dropout")

    def __init__(self, width: int, classes: int, index: int = -2, hidden: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.width, self.classes, self.index = int(width), int(classes), int(index)
        self.hidden, self.dropout = int(hidden), float(dropout)
        self.body = conv_norm_relu(self.width, self.hidden, 3)
        self.drop = nn.Dropout2d(self.dropout)
        self.last = nn.Conv2d(self.hidden, self.classes, 1)
        initialise(self.body)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps to logits (B, C, h, w) of one of them."""
        return self.last(self.drop(self.body(features[self.index])))

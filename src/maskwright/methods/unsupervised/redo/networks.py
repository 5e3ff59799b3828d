"""The networks that ReDO trains with: a generator for each region, a discriminator, and what recovers the noise.

SAGAN's residual networks (Zhang et al., ICML 2019) with spectral norm. Sizes go from 4 to the side S of the
photographs in n doublings: S = 128 has five, with widths 16, 16, 8, 4, 2, 1 times the base.

Legend: B images, nz numbers of noise a region, S side.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SNConv2d(nn.Conv2d):
    """A convolution whose weight is divided by its largest singular value (Miyato et al., ICLR 2018).

    In training mode each pass makes one power iteration, passes without gradient too: first v, then u. Both are
    constants to gradients.

    Args:
        inputs, outputs: channels.
        size: side of the kernel; the input is padded by half of it.
        bias: whether there is one.
    """

    u: Tensor
    v: Tensor

    def __init__(self, inputs: int, outputs: int, size: int = 3, bias: bool = True) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2, bias=bias)
        self.register_buffer("u", F.normalize(torch.randn(outputs), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(inputs * size * size), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        matrix = self.weight.flatten(1)
        if self.training:
            with torch.no_grad():
                self.v.copy_(F.normalize(matrix.T @ self.u, dim=0, eps=1e-12))
                self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=1e-12))
        sigma = self.u.clone() @ (matrix @ self.v.clone())  # a later pass moves them before this one's gradient
        return self._conv_forward(x, self.weight / sigma, self.bias)


class SelfAttention(nn.Module):
    """x + gamma times what places take from pooled places; the identity at first (gamma = 0).

    Args:
        width: channels, at least 8.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(1, width // 8)
        self.query, self.key = (SNConv2d(width, narrow, 1, bias=False) for _ in range(2))
        self.value, self.out = SNConv2d(width, width // 2, 1, bias=False), SNConv2d(width // 2, width, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w), sides from 2 on, to the same shape."""
        queries = self.query(x).flatten(2)  # (B, narrow, N)
        keys = F.max_pool2d(self.key(x), 2).flatten(2)  # (B, narrow, M)
        values = F.max_pool2d(self.value(x), 2).flatten(2)  # (B, width / 2, M)
        attention = (queries.mT @ keys).softmax(2)  # (B, N, M)
        return x + self.gamma * self.out((values @ attention.mT).unflatten(2, x.shape[-2:]))


class Conditioned(nn.Module):
    """Instance norm whose scale and shift are linear in the noise.

    Args:
        width: channels.
        nz: numbers of noise.
    """

    def __init__(self, width: int, nz: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Linear(nz, width), nn.Linear(nz, width)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """(B, width, h, w) and noise (B, nz) to the same shape."""
        return F.instance_norm(x) * self.gamma(z)[..., None, None] + self.beta(z)[..., None, None]


class UpBlock(nn.Module):
    """A doubling: norm relu (with the mask) conv norm relu conv, beside an enlarged 1 x 1 convolution.

    Args:
        width: channels in.
        out: channels out.
        nz: numbers of noise.
    """

    def __init__(self, width: int, out: int, nz: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Conditioned(width, nz), Conditioned(out, nz)
        self.conv1, self.conv2 = SNConv2d(width + 1, out, bias=False), SNConv2d(out, out)
        self.shortcut = SNConv2d(width, out, 1)

    def forward(self, x: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        """(B, width, s, s), noise (B, nz) and the mask (B, 1, S, S) to (B, out, 2 s, 2 s)."""
        m = F.adaptive_avg_pool2d(mask, (x.shape[-2], x.shape[-1]))
        y = torch.cat((F.relu(self.norm1(x, z)), m), 1)
        y = self.conv1(F.interpolate(y, scale_factor=2, mode="nearest"))
        y = self.conv2(F.relu(self.norm2(y, z)))
        return y + self.shortcut(F.interpolate(x, scale_factor=2, mode="nearest"))


class RegionGenerator(nn.Module):
    """G_k: what is drawn into a region, 0 outside it.

    Args:
        nz: numbers of noise.
        width: base of the channels.
        side: S.
        attention: whether self-attention stands before the last doubling.
    """

    def __init__(self, nz: int = 32, width: int = 64, side: int = 128, attention: bool = True) -> None:
        super().__init__()
        n = doublings(side)
        widths = [width * 2 ** min(4, n - i) for i in range(n + 1)]
        self.dense = nn.Linear(nz, 16 * widths[0])
        self.blocks = nn.ModuleList(UpBlock(a, b, nz) for a, b in pairwise(widths))
        self.attention = SelfAttention(widths[-2]) if attention else nn.Identity()
        self.norm, self.last = Conditioned(width, nz), SNConv2d(width + 1, 3)

    def forward(self, mask: Tensor, z: Tensor) -> Tensor:
        """The region's mask (B, 1, S, S) and noise (B, nz) to pixels (B, 3, S, S) in [-1, 1] times the mask."""
        x = self.dense(z).unflatten(1, (-1, 4, 4))
        for i, block in enumerate(self.blocks):
            x = self.attention(x) if i + 1 == len(self.blocks) else x
            x = block(x, z, mask)
        x = torch.cat((F.relu(self.norm(x, z)), mask), 1)
        return self.last(x).tanh() * mask


class DownBlock(nn.Module):
    """relu conv relu conv and a halving, beside a 1 x 1 convolution.

    Args:
        width: channels in.
        out: channels out.
        first: without the leading relu: it sees pixels.
        halves: whether it halves; where it does not, the shortcut is the input.
    """

    def __init__(self, width: int, out: int, first: bool = False, halves: bool = True) -> None:
        super().__init__()
        self.first, self.halves = first, halves
        self.conv1, self.conv2 = SNConv2d(width, out), SNConv2d(out, out)
        self.shortcut = SNConv2d(width, out, 1) if halves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to (B, out, h / 2, w / 2), or of the same size."""
        y = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if not self.halves:
            return y + self.shortcut(x)
        return F.avg_pool2d(y, 2) + self.shortcut(F.avg_pool2d(x, 2))


class Judge(nn.Module):
    """From pixels to numbers: one verdict (D), or the noise behind them (Z).

    Args:
        outputs: numbers.
        width: base of the channels.
        side: S.
        attention: whether self-attention stands behind the first halving.
    """

    def __init__(self, outputs: int = 1, width: int = 64, side: int = 128, attention: bool = False) -> None:
        super().__init__()
        n = doublings(side)
        widths = [width * 2 ** min(4, i) for i in range(n)]
        blocks = [DownBlock(3, width, first=True), *(DownBlock(a, b) for a, b in pairwise(widths))]
        self.blocks = nn.ModuleList([*blocks, DownBlock(widths[-1], widths[-1], halves=False)])
        self.attention = SelfAttention(width) if attention else nn.Identity()
        self.dense = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] to numbers (B, outputs)."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            x = self.attention(x) if i == 0 else x
        return self.dense(x.sum((2, 3)))


def doublings(side: int) -> int:
    """n of S = 4 2^n.

    Raises:
        ValueError: a side that is not so.
    """
    n = round(math.log2(max(1, side) / 4))
    if n < 2 or 4 * 2**n != side:
        raise ValueError(f"a side of {side} pixels, expected 16, 32, 64, 128 or 256")
    return n


def initialise(*modules: nn.Module, gain: float = 0.8) -> None:
    """Weights of all convolutions and linear layers orthogonal; everything else as torch makes it."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(layer.weight, gain)

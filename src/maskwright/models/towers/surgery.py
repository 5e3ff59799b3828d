"""The last block of a CLIP vision transformer, run so that its patches lie in the space of words.

CLIP trains its class token alone: what the last attention mixes into a patch is of no use to that patch. Five papers
replace that attention and leave all weights as they are:

- MaskCLIP (Zhou et al., ECCV 2022, https://arxiv.org/abs/2112.01071): each place keeps its own value;
- SCLIP (Wang et al., ECCV 2024, https://arxiv.org/abs/2312.01597): softmax(q q^T) + softmax(k k^T);
- ClearCLIP (Lan et al., ECCV 2024, https://arxiv.org/abs/2407.12442): softmax(q q^T), neither residual nor MLP;
- NACLIP (Hajimiri et al., WACV 2025, https://arxiv.org/abs/2404.08181): softmax(k k^T + a Gaussian of the distance),
  neither residual nor MLP;
- ProxyCLIP (Lan et al., ECCV 2024, https://arxiv.org/abs/2408.04883): what a second network finds alike, neither
  residual nor MLP.

Legend: B batch, T tokens (class token first), D width, (h, w) patch grid, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ATTENTIONS = ("clip", "value", "sclip", "query", "neighbour", "key")
"""What a token gathers: CLIP's own attention; its own value alone; by queries and by keys; by queries; by keys and
nearness; by keys."""


@dataclass(frozen=True)
class LastBlock:
    """How the last block is run.

    Attributes:
        attention: one of `ATTENTIONS`.
        rest: the residual connection and the MLP are kept.
        std: patches; of NACLIP's Gaussian.
    """

    attention: str
    rest: bool = True
    std: float = 5.0

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention is {self.attention!r}, expected one of {', '.join(ATTENTIONS)}")
        if not self.std > 0:
            raise ValueError(f"std is {self.std}, expected above 0")


def run_last_block(block: Any, tokens: Tensor, grid: tuple[int, int], how: LastBlock) -> tuple[Tensor, Tensor]:
    """Runs timm's last transformer block in another way.

    Args:
        block: with `norm1`, `attn`, `norm2` and `mlp`.
        tokens: (B, T, D) that enter it.
        grid: (h, w) of the patches, T = 1 + h * w.
        how: attention and what is kept beside it.

    Returns:
        The tokens that leave it (B, T, D), and the keys through the block's output projection (B, T, D), as MaskCLIP
        compares them.
    """
    q, k, v = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)  # (B, T, D) each
    gathered = v if how.attention == "value" else _gather(q, k, v, block.attn.num_heads, grid, how)
    out = block.attn.proj(gathered)
    if how.rest:
        out = tokens + out
        out = out + block.mlp(block.norm2(out))
    return out, block.attn.proj(k)


def _gather(q: Tensor, k: Tensor, v: Tensor, heads: int, grid: tuple[int, int], how: LastBlock) -> Tensor:
    """softmax(...) v, all heads side by side (B, T, D)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, T, d)
    scale = q.shape[-1] ** -0.5

    def alike(a: Tensor, b: Tensor) -> Tensor:
        return a @ b.transpose(-2, -1) * scale  # (B, heads, T, T)

    if how.attention == "clip":
        weights = alike(q, k).softmax(-1)
    elif how.attention == "sclip":
        weights = alike(q, q).softmax(-1) + alike(k, k).softmax(-1)
    elif how.attention == "query":
        weights = alike(q, q).softmax(-1)
    elif how.attention == "key":
        weights = alike(k, k).softmax(-1)
    else:
        weights = (alike(k, k) + nearness(grid, how.std, like=k)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def nearness(grid: tuple[int, int], std: float, like: Tensor) -> Tensor:
    """exp(-|a - b|^2 / (2 std^2)) between patches, 0 to and from the class token, (T, T).

    Args:
        grid: (h, w).
        std: patches.
        like: gives type and device.
    """
    rows, columns = (torch.arange(n, device=like.device, dtype=like.dtype) for n in grid)
    yy, xx = torch.meshgrid(rows, columns, indexing="ij")
    place = torch.stack([yy.flatten(), xx.flatten()], 1)  # (h*w, 2)
    square = (place[:, None] - place[None]).square().sum(-1)
    near = like.new_zeros(1 + len(place), 1 + len(place))
    near[1:, 1:] = (-square / (2 * std**2)).exp()
    return near


def proxy_weights(features: Tensor, beta: float = 1.2, gamma: float = 3.0) -> Tensor:
    """What each place gathers by the features of a second network: softmax of gamma (S - beta mean S), S their cosines,
    over the places where that is not negative.

    Args:
        features: (B, D, h, w), of any length.
        beta: how far above a picture's mean similarity a place must be.
        gamma: sharpness.

    Returns:
        (B, N, N), N = h * w, rows sum to 1. A place that is like none, not even itself, gathers itself.
    """
    unit = F.normalize(features.flatten(2), dim=1)  # (B, D, N)
    alike = unit.transpose(1, 2) @ unit
    z = gamma * (alike - beta * alike.mean((1, 2), keepdim=True))
    itself = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    return z.masked_fill((z < 0) & ~itself, float("-inf")).softmax(-1)


def run_last_block_by_proxy(
    block: Any, tokens: Tensor, grid: tuple[int, int], weights: Tensor, size: tuple[int, int]
) -> Tensor:
    """Runs timm's last transformer block on the patches alone, which gather by a second network; neither residual nor
    MLP.

    Args:
        block: with `norm1` and `attn`.
        tokens: (B, 1 + h * w, D) that enter it, the class token first.
        grid: (h, w) of the patches.
        weights: (B, N, N), the same for all heads.
        size: (h', w') of the second network's places, N = h' * w'.

    Returns:
        (B, N, D).
    """
    value = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)[2][:, 1:]  # (B, h*w, D)
    if size != grid:
        places = value.transpose(1, 2).unflatten(2, grid)
        value = F.interpolate(places, size, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    found: Tensor = block.attn.proj(weights @ value)
    return found

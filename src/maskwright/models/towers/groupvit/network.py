"""GroupViT's two towers, GroupViT (Xu et al., CVPR 2022, https://arxiv.org/abs/2202.11094), sections 3.1 and 3.2.

Tensors of the image tower are named as in the authors' checkpoints.

Legend: B batch, N tokens, D width, S groups before and G groups after a grouping block, L tokens of a text, E channels
of the joint space, (h, w) grid of patches.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maskwright.models.towers.groupvit.shape import GroupShape

LENGTH = 77
"""Tokens that the text tower reads at most."""
WORDS = 49408
"""Tokens of CLIP's byte-pair encoding."""


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), which CLIP's text towers were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        return x * torch.sigmoid(1.702 * x)


# --------------------------------------------------------------------- grouping


def assignments(logits: Tensor, *, noise: Tensor | None = None, hard: bool = True) -> Tensor:
    """Which group each token goes to.

    Args:
        logits: (B, G, N); the softmax is over groups.
        noise: Gumbel noise of the same shape, which training adds.
        hard: one-hot, with the gradient of the soft assignment (straight through); False: the softmax.

    Returns:
        (B, G, N), of sum 1 over G.
    """
    soft = (logits if noise is None else logits + noise).softmax(1)
    if not hard:
        return soft
    one = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    return one - soft.detach() + soft


def gumbel_like(x: Tensor) -> Tensor:
    """Gumbel noise of the shape of x, from torch's global generator."""
    return -torch.empty_like(x).exponential_().log()


class CrossAttention(nn.Module):
    """Groups ask the image's tokens.

    Args:
        width: D.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, groups: Tensor, tokens: Tensor) -> Tensor:
        """(B, G, D) and (B, N, D) to (B, G, D)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, groups), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        found = F.scaled_dot_product_attention(q, k, v)  # (B, heads, G, d)
        return self.proj(found.transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """Cross-attention and an MLP, normalised at the end."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.norm_post = nn.LayerNorm(width)

    def forward(self, groups: Tensor, tokens: Tensor) -> Tensor:
        """(B, G, D) and (B, N, D) to (B, G, D)."""
        groups = groups + self.attn(groups, tokens)
        groups = groups + self.mlp(self.norm2(groups))
        return self.norm_post(groups)


class Assignment(nn.Module):
    """Tokens are given to groups, and each group gets what its tokens say, over their number + 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, groups: Tensor, tokens: Tensor, hard: bool, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, G, D), (B, N, D) to (B, G, D), and the soft assignment without noise (B, G, N)."""
        logits = self.q_proj(groups) @ self.k_proj(tokens).transpose(1, 2) / math.sqrt(groups.shape[-1])
        if self.training and hard and noise is None:
            noise = gumbel_like(logits)
        a = assignments(logits, noise=noise, hard=hard)
        gathered = a @ self.v_proj(tokens) / (a.sum(-1, keepdim=True) + 1)
        return self.proj(gathered), logits.softmax(1)


class GroupingBlock(nn.Module):
    """S groups take in what they ask of the tokens, become G, and each token goes to one of these.

    Args:
        width: D.
        heads: of the cross-attention.
        before: S.
        after: G.
        hard: one-hot assignments, as in the paper; False: soft ones.
    """

    def __init__(self, width: int, heads: int, before: int, after: int, hard: bool = True) -> None:
        super().__init__()
        self.hard = hard
        self.norm_tokens, self.norm_x = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp_inter = Mlp(before, width // 2, after)
        self.norm_post_tokens = nn.LayerNorm(width)
        self.pre_assign_attn = CrossBlock(width, heads)
        self.assign = Assignment(width)
        self.norm_new_x = nn.LayerNorm(width)
        self.mlp_channels = Mlp(width, 4 * width, width)

    def forward(self, tokens: Tensor, groups: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Joins tokens.

        Args:
            tokens: (B, N, D).
            groups: (B, S, D).
            noise: Gumbel noise (B, G, N) in place of what training draws.

        Returns:
            The groups as the tokens of the next stage (B, G, D), and the soft assignment without noise (B, G, N).
        """
        groups, tokens = self.norm_tokens(groups), self.norm_x(tokens)
        mixed = self.mlp_inter(groups.transpose(1, 2)).transpose(1, 2)  # (B, G, D)
        mixed = self.pre_assign_attn(self.norm_post_tokens(mixed), tokens)
        joined, soft = self.assign(mixed, tokens, self.hard, noise)
        joined = joined + mixed
        return joined + self.mlp_channels(self.norm_new_x(joined)), soft


class MixTokens(nn.Sequential):
    """S groups of one stage as the G of the next: an MLP over them, behind a layer norm; `0` and `1` in checkpoints."""

    def __init__(self, width: int, before: int, after: int) -> None:
        super().__init__(nn.LayerNorm(width), Mlp(before, width // 2, after))

    def forward(self, groups: Tensor) -> Tensor:
        """(B, S, D) to (B, G, D)."""
        norm, mlp = self
        found: Tensor = mlp(norm(groups).transpose(1, 2)).transpose(1, 2)
        return found


class Stage(nn.Module):
    """Blocks on tokens and groups together, then a grouping block where there are groups.

    Args:
        shape: the build.
        k: number of the stage, from 0.
    """

    def __init__(self, shape: GroupShape, k: int) -> None:
        super().__init__()
        counts, width = shape.groups, shape.width
        own = counts[k] if k < len(counts) else 0
        self.blocks = nn.ModuleList(_block(width, shape.heads) for _ in range(shape.depths[k]))
        self.group_projector: nn.Module | None = None
        self.downsample: nn.Module | None = None
        if own:
            self.group_token = nn.Parameter(torch.zeros(1, own, width))
            if k == 0:
                trunc_normal_(self.group_token, std=0.02)
            else:
                self.group_projector = MixTokens(width, counts[k - 1], own)
            self.downsample = GroupingBlock(width, shape.heads, own, own)
        self.own = own

    def forward(self, tokens: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens (B, N, D) and the groups of the stage before (B, S, D) to tokens (B, G, D), this stage's groups, and
        the soft assignment (B, G, N)."""
        n = tokens.shape[1]
        if self.own:
            groups = self.group_token.expand(len(tokens), -1, -1)
            if self.group_projector is not None:
                groups = groups + self.group_projector(before)
            tokens = torch.cat((tokens, groups), 1)
        for block in self.blocks:
            tokens = block(tokens)
        if self.downsample is None:
            return tokens, None, None
        tokens, groups = tokens[:, :n], tokens[:, n:]
        tokens, soft = self.downsample(tokens, groups)
        return tokens, groups, soft


def _block(width: int, heads: int, act: type[nn.Module] = nn.GELU) -> nn.Module:
    return Block(width, heads, qkv_bias=True, norm_layer=nn.LayerNorm, act_layer=act)


class Patches(nn.Module):
    """Patches as tokens."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) to (B, N, D), and (h, w)."""
        maps = self.proj(x)
        return self.norm(maps.flatten(2).transpose(1, 2)), (maps.shape[2], maps.shape[3])


class Grouped(NamedTuple):
    """What the image tower makes of photographs.

    Attributes:
        tokens: (B, G, D), the last stage's, normalised.
        average: (B, D), their mean.
        maps: (B, G, h, w), which group a patch belongs to, softly; of sum 1 over G.
    """

    tokens: Tensor
    average: Tensor
    maps: Tensor


class GroupViT(nn.Module):
    """The image tower.

    Args:
        shape: the build.
    """

    def __init__(self, shape: GroupShape) -> None:
        super().__init__()
        side = shape.image // shape.patch
        self.patch_embed = Patches(shape.patch, shape.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, shape.width))
        self.layers = nn.ModuleList(Stage(shape, k) for k in range(len(shape.depths)))
        self.norm = nn.LayerNorm(shape.width)
        trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_initialise)

    def start(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) to tokens with positions (B, N, D), resized bicubically to the grid, and (h, w)."""
        tokens, grid = self.patch_embed(x)
        place: Tensor = self.pos_embed
        side = round(place.shape[1] ** 0.5)
        if grid != (side, side):
            place = place.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            place = F.interpolate(place, grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        return tokens + place, grid

    def forward(self, x: Tensor) -> Grouped:
        """(B, 3, H, W), normalised, sides multiples of the patch."""
        tokens, grid = self.start(x)
        groups: Tensor | None = None
        product: Tensor | None = None  # (B, groups so far, N)
        for stage in self.layers:
            tokens, groups, soft = stage(tokens, groups)
            if soft is not None:
                product = soft if product is None else soft @ product
        assert product is not None
        tokens = self.norm(tokens)
        return Grouped(tokens, tokens.mean(1), product.unflatten(-1, grid))


class Projector(nn.Sequential):
    """An MLP with batch norm from a tower's width to the joint space; it takes (..., D)."""

    def __init__(self, width: int, hidden: int, embed: int) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, embed)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E)."""
        found: Tensor = super().forward(x.flatten(0, -2))
        return found.unflatten(0, x.shape[:-1])


class ImageTower(nn.Module):
    """Image tower and projector.

    Args:
        shape: the build.
    """

    def __init__(self, shape: GroupShape) -> None:
        super().__init__()
        self.encoder = GroupViT(shape)
        self.projector = Projector(shape.width, shape.hidden, shape.embed)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


class TextEncoder(nn.Module):
    """A causal transformer; a text's vector is that of its end.

    Args:
        shape: the build.
    """

    def __init__(self, shape: GroupShape) -> None:
        super().__init__()
        width = shape.words
        self.token_embedding = nn.Embedding(WORDS, width)
        self.positional_embedding = nn.Parameter(torch.empty(LENGTH, width))
        self.blocks = nn.ModuleList(_block(width, shape.text_heads, QuickGELU) for _ in range(shape.layers))
        self.ln_final = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        block: Any
        for block in self.blocks:
            # CLIP's: deviations that keep the residual's size over the layers.
            deep = (width * 2 * shape.layers) ** -0.5
            for weight, std in (
                (block.attn.qkv.weight, width**-0.5), (block.attn.proj.weight, deep),
                (block.mlp.fc1.weight, (2 * width) ** -0.5), (block.mlp.fc2.weight, deep),
            ):  # fmt: skip
                nn.init.normal_(weight, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids int64 (N, L), zeros behind the end, to (N, D)."""
        ends = tokens.argmax(1)  # the end has the greatest id
        tokens = tokens[:, : int(ends.max()) + 1]  # no token sees those behind it
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, is_causal=True)
        return self.ln_final(x[torch.arange(len(x), device=x.device), ends])


class TextTower(nn.Module):
    """Text encoder and projector.

    Args:
        shape: the build.
    """

    def __init__(self, shape: GroupShape) -> None:
        super().__init__()
        self.encoder = TextEncoder(shape)
        self.projector = Projector(shape.words, shape.hidden, shape.embed)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids int64 (N, L) to (N, E), of any length."""
        return self.projector(self.encoder(tokens))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)

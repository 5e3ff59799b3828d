"""Vision transformers of timm as dense backbones: any block, queries, keys, values, class-token attention.

Works on timm's `VisionTransformer` (ViT, DINO, DINOv2 with and without registers, MoCo v3, CLIP, DeiT) and
`Eva` (EVA-02, DINOv3 and other rotary ones). Blocks after the asked one are not run. Queries, keys and
values come straight from the projection inside the block, so fused attention does not matter.

Legend: B batch, T all tokens, P prefix tokens (class, registers), D width, (h, w) patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from timm.models.eva import Eva, EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

from maskwright.models.backbones.dense import Backbone, autocast
from maskwright.models.provenance import Provenance

VIT_CLASSES = (VisionTransformer, Eva)


class ViTBackbone(Backbone):
    """A vision transformer; the layers are its blocks."""

    is_vit = True

    def __init__(self, model: nn.Module, name: str, architecture: str, provenance: Provenance) -> None:
        super().__init__(model, name, architecture, provenance)
        made: Any = model  # timm's, whose attributes its modules do not declare
        self.patch = tuple(int(p) for p in made.patch_embed.patch_size)
        depth = len(made.blocks)
        self.widths = (int(made.embed_dim),) * depth
        self.strides = (self.patch[0],) * depth
        self.default_layer = depth - 1
        self.multiple_of = self.patch[0]
        self.prefix_tokens = int(made.num_prefix_tokens)
        self.has_cls = getattr(model, "cls_token", None) is not None

    @property
    def stage_layers(self) -> list[int]:
        """Four evenly spaced blocks, the last among them (fewer for a shallower network)."""
        count = min(4, self.layers)
        return [(i + 1) * self.layers // count - 1 for i in range(count)]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The patch grid (h, w) of an input of size (H, W).

        Raises:
            ValueError: a side is not a multiple of the patch; names the nearest sizes.
        """
        sides = []
        for side, patch in zip(size, self.patch, strict=True):
            if side % patch or side < patch:
                nearest = [max(1, round(s / p)) * p for s, p in zip(size, self.patch, strict=True)]
                raise ValueError(
                    f"input is {size[0]} x {size[1]}, expected multiples of the patch "
                    f"{self.patch[0]} x {self.patch[1]} of {self.name}; "
                    f"the nearest is {nearest[0]} x {nearest[1]}"
                )
            sides.append(side // patch)
        return sides[0], sides[1]

    def _start(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Tokens (B, T, D) that enter the first block, and the rotary embedding or None."""
        model: Any = self.model
        tokens = model._pos_embed(model.patch_embed(x))
        rope = None
        if isinstance(tokens, tuple):
            tokens, rope = tokens
        else:
            tokens = model.patch_drop(tokens)
        return model.norm_pre(tokens), rope

    def _block_rope(self, rope: Any, block: int) -> Any:
        # Mixed rotary embeddings are learned for each block, axial ones are shared.
        return rope[block] if rope is not None and getattr(self.model, "rope_mixed", False) else rope

    def _block(self, block: int) -> Any:
        model: Any = self.model
        return model.blocks[block]

    def _run_block(self, tokens: torch.Tensor, rope: Any, block: int) -> torch.Tensor:
        module = self._block(block)
        return module(tokens) if rope is None else module(tokens, rope=self._block_rope(rope, block))

    def _qkv(self, tokens: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values (B, T, D) of a block, as its projection gives them."""
        module = self._block(block)
        if not hasattr(module, "attn"):
            raise ValueError(f"{self.name}: block {block} has no attention of its own; take kind='tokens'")
        post_norm = isinstance(module, ResPostBlock | EvaBlockPostNorm)
        tokens = tokens if post_norm else module.norm1(tokens)
        attn = module.attn
        if getattr(attn, "qkv", None) is None:
            return attn.q_proj(tokens), attn.k_proj(tokens), attn.v_proj(tokens)
        qkv = attn.qkv(tokens)
        if getattr(attn, "q_bias", None) is not None:
            qkv = qkv + torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)).to(qkv.dtype)
        q, k, v = qkv.chunk(3, dim=-1)
        return q, k, v

    def _last_norm(self, tokens: torch.Tensor) -> torch.Tensor:
        # Networks pooled by the mean keep their last normalisation behind the pooling, as fc_norm.
        model: Any = self.model
        norm = model.norm
        if isinstance(norm, nn.Identity):
            norm = getattr(model, "fc_norm", norm)
        return norm(tokens)

    def _dense(self, x: torch.Tensor, layers: list[int], kind: str, norm: bool) -> list[torch.Tensor]:
        h, w = self.grid((x.shape[-2], x.shape[-1]))
        if kind == "tokens":
            found = self._tokens(x, layers, norm)
        else:
            tokens, rope = self._start(x)
            found, last = {}, max(layers)
            for block in range(last + 1):
                if block in layers:
                    found[block] = self._qkv(tokens, block)["qkv".index(kind)]
                if block < last:
                    tokens = self._run_block(tokens, rope, block)
        return [self._to_map(found[layer], h, w) for layer in layers]

    def _tokens(self, x: torch.Tensor, layers: list[int], norm: bool) -> dict[int, torch.Tensor]:
        """All tokens (B, T, D) of some blocks; later ones are not run."""
        tokens, rope = self._start(x)
        found = {}
        for block in range(max(layers) + 1):
            tokens = self._run_block(tokens, rope, block)
            if block in layers:
                found[block] = self._last_norm(tokens) if norm else tokens
        return found

    def _to_map(self, tokens: torch.Tensor, h: int, w: int) -> torch.Tensor:
        patches = tokens[:, self.prefix_tokens :]  # (B, h*w, D)
        return patches.transpose(1, 2).reshape(tokens.shape[0], -1, h, w)

    def tokens_many(
        self, x: torch.Tensor, layers: Sequence[int | None], *, norm: bool = True, precision: str | None = None
    ) -> list[torch.Tensor]:
        """All tokens of several blocks in one pass, class token and registers before the patches.

        Args:
            x: normalised images (B, 3, H, W).
            layers: blocks, negative from the end; later ones are not run.
            norm: the transformer's last normalisation is applied.
            precision: as for `dense`.

        Returns:
            (B, P + h*w, D) each, as asked; `split_tokens` takes them apart.

        Raises:
            ValueError: no such block, or an input size that is no multiple of the patch.
        """
        self.grid((x.shape[-2], x.shape[-1]))
        indices = [self.resolve_layer(layer) for layer in layers]
        with autocast(x.device, precision):
            found = self._tokens(x, indices, norm)
        return [found[i].to(x.dtype) for i in indices]

    def split_tokens(self, tokens: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, P + h*w, D) of an input of size (H, W) as one vector an image (B, D) and a map (B, D, h, w).

        The vector is the class token, or the mean of the patches where there is none.
        """
        vector = tokens[:, 0] if self.has_cls else tokens[:, self.prefix_tokens :].mean(1)
        return vector, self._to_map(tokens, *self.grid(size))

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        self.grid((x.shape[-2], x.shape[-1]))
        tokens, rope = self._start(x)
        for block in range(self.layers):
            tokens = self._run_block(tokens, rope, block)
        tokens = self._last_norm(tokens)
        return tokens[:, 0] if self.has_cls else tokens[:, self.prefix_tokens :].mean(1)

    def cls_attention(self, x: torch.Tensor, block: int = -1) -> torch.Tensor:
        """Attention of the class token to the patches.

        Args:
            x: normalised images (B, 3, H, W).
            block: block, negative from the end.

        Returns:
            (B, heads, h, w), non-negative; sums to at most 1, the rest goes to class token and registers.

        Raises:
            ValueError: no class token, no such block, or an input size that is no multiple of the patch.
        """
        if not self.has_cls:
            return super().cls_attention(x, block)
        block = self.resolve_layer(block)
        h, w = self.grid((x.shape[-2], x.shape[-1]))
        tokens, rope = self._start(x)
        for i in range(block):
            tokens = self._run_block(tokens, rope, i)
        attn = self._block(block).attn
        q, k, _ = self._qkv(tokens, block)
        q = attn.q_norm(q.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2))  # (B, heads, T, D/heads)
        k = attn.k_norm(k.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2))
        if rope is not None:
            # The class token is a prefix token: it is never rotated, only the patches' keys are.
            half = getattr(attn, "rotate_half", False)
            patches = apply_rot_embed_cat(k[:, :, self.prefix_tokens :], self._block_rope(rope, block), half=half)
            k = torch.cat([k[:, :, : self.prefix_tokens], patches.type_as(k)], dim=2)
        scores = (q[:, :, :1] * attn.scale) @ k.transpose(-2, -1)  # (B, heads, 1, T)
        weights = scores.float().softmax(-1)[:, :, 0, self.prefix_tokens :]
        return weights.reshape(x.shape[0], -1, h, w)

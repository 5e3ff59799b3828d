"""Convolutional and other pyramid-shaped networks of timm: any stage, chosen output stride."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from maskwright.accel.quicken import quicken
from maskwright.models.backbones.dense import Backbone
from maskwright.models.provenance import Provenance

FINEST_DEFAULT_STRIDE = 16
"""Without a layer named, features come from the deepest stage of at most this stride: deeper ones lose
small things."""


class CNNBackbone(Backbone):
    """A pyramid of stages; the layers are the stages, fine to coarse.

    Args:
        model: a timm network with `forward_intermediates`, or one built with `features_only=True`.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        architecture: str,
        provenance: Provenance,
        output_stride: int | None = None,
    ) -> None:
        super().__init__(quicken(model), name, architecture, provenance)
        info: Any = model.feature_info
        stages = info if isinstance(info, list) else info.get_dicts()
        self.widths = tuple(int(s["num_chs"]) for s in stages)
        self.strides = tuple(int(s["reduction"]) for s in stages)
        self.output_stride = output_stride
        coarse = [i for i, stride in enumerate(self.strides) if stride <= FINEST_DEFAULT_STRIDE]
        self.default_layer = coarse[-1] if coarse and output_stride is None else self.layers - 1
        self.multiple_of = self.strides[self.default_layer]
        # Convolutions of a CPU and of tensor cores both want channels last.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _dense(self, x: torch.Tensor, layers: list[int], kind: str, norm: bool) -> list[torch.Tensor]:
        if kind != "tokens":
            raise ValueError(f"{self.name} is convolutional and has no {kind!r}; take kind='tokens'")
        model: Any = self.model
        x = x.contiguous(memory_format=torch.channels_last)
        if hasattr(model, "forward_intermediates"):
            wanted = sorted(set(layers))
            try:
                maps = model.forward_intermediates(x, indices=wanted, stop_early=True, intermediates_only=True)
            except AssertionError as error:  # networks with windows take one size only
                raise ValueError(f"{self.name} cannot take {x.shape[-2]} x {x.shape[-1]}: {error}") from error
            found = dict(zip(wanted, maps, strict=True))
        else:
            found = dict(enumerate(model(x)))
        return [found[layer] for layer in layers]

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        model: Any = self.model
        x = x.contiguous(memory_format=torch.channels_last)
        if hasattr(model, "forward_head"):
            return model.forward_head(model.forward_features(x), pre_logits=True)
        return model(x)[-1].mean((-2, -1))

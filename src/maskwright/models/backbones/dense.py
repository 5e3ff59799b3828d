"""What every backbone offers, whatever it is made of: dense features of any layer, image vectors, a key.

Legend: B batch, D width, (H, W) input size, (h, w) feature-map size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from maskwright.models.provenance import Provenance

KINDS = ("tokens", "q", "k", "v")
"""What dense features can be: a layer's output, or the queries, keys or values inside a transformer block."""


class Backbone(nn.Module):
    """A network with dense features.

    Attributes:
        name: the name it was built by.
        architecture: timm name without a tag; `build_backbone(architecture, "random")` builds the same
            network.
        widths: D of each layer (transformer block or convolutional stage), in order.
        strides: input pixels a feature cell of each layer.
        default_layer: the layer that `dense` gives if none is named.
        multiple_of: both input sides should be multiples of this (must, for a transformer).
        is_vit: it is a vision transformer.
        provenance: where the weights come from and what they saw.
        output_stride: the stride that dilation was asked to stop at, or None.
        img_size: (height, width) of the position embedding where it is not the architecture's own, or None.
        joint_width: channels of the space that it shares with a text tower, 0 where there is none.
        key_width: channels of the keys that it gives beside these.
        groups: segments that it sorts patches into, 0 where it does not.
    """

    is_vit = False

    def __init__(self, model: nn.Module, name: str, architecture: str, provenance: Provenance) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.architecture = architecture
        self.provenance = provenance
        self.widths: tuple[int, ...] = ()
        self.strides: tuple[int, ...] = ()
        self.default_layer = 0
        self.multiple_of = 1
        self.output_stride: int | None = None
        self.img_size: list[int] | None = None
        self.joint_width = 0
        self.key_width = 0
        self.groups = 0
        self._key: tuple[object, str] | None = None

    @property
    def stride(self) -> int:
        """Input pixels a feature cell of the default layer."""
        return self.strides[self.default_layer]

    @property
    def layers(self) -> int:
        """Number of layers: transformer blocks or convolutional stages."""
        return len(self.widths)

    @property
    def width(self) -> int:
        """D of the default layer."""
        return self.widths[self.default_layer]

    def resolve_layer(self, layer: int | None) -> int:
        """The index, from 0, of a layer given by any index, negative from the end, or None.

        Raises:
            ValueError: there is no such layer.
        """
        if layer is None:
            return self.default_layer
        if not -self.layers <= layer < self.layers:
            raise ValueError(
                f"layer {layer} of {self.name}: there are {self.layers}, expected {-self.layers} to {self.layers - 1}"
            )
        return layer % self.layers

    def dense(
        self,
        x: torch.Tensor,
        layer: int | None = None,
        kind: str = "tokens",
        *,
        norm: bool = True,
        precision: str | None = None,
    ) -> torch.Tensor:
        """Dense features of one layer; layers after it are not run.

        Args:
            x: normalised images (B, 3, H, W).
            layer: transformer block or convolutional stage, negative from the end; the default layer if None.
            kind: "tokens", or "q", "k", "v" of a transformer block (all heads concatenated, before any rotary
                embedding).
            norm: the transformer's last normalisation is applied to tokens.
            precision: "bf16" computes under autocast (1.7 to 3 times as fast on a CPU with bf16 units),
                None or "fp32" as given.

        Returns:
            (B, D, h, w), of the type of x.

        Raises:
            ValueError: no such layer or kind, or an input size that the network cannot take.
        """
        return self.dense_many(x, [layer], kind, norm=norm, precision=precision)[0]

    def dense_many(
        self,
        x: torch.Tensor,
        layers: Sequence[int | None],
        kind: str = "tokens",
        *,
        norm: bool = True,
        precision: str | None = None,
    ) -> list[torch.Tensor]:
        """Dense features of several layers in one pass; arguments as for `dense`, one map a layer as
        asked."""
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"input has shape {tuple(x.shape)}, expected (B, 3, H, W)")
        indices = [self.resolve_layer(layer) for layer in layers]
        with autocast(x.device, precision):
            maps = self._dense(x, indices, kind, norm)
        return [m.to(x.dtype) for m in maps]

    def _dense(self, x: torch.Tensor, layers: list[int], kind: str, norm: bool) -> list[torch.Tensor]:
        raise NotImplementedError

    def stages(self, x: torch.Tensor, *, precision: str | None = None) -> list[torch.Tensor]:
        """Feature maps from fine to coarse: all stages of a convolutional network; four evenly spaced
        blocks of a transformer, which all have one size (Ranftl et al., DPT, 2021).

        Args:
            x: normalised images (B, 3, H, W).
            precision: as for `dense`.
        """
        return self.dense_many(x, self.stage_layers, precision=precision)

    @property
    def stage_layers(self) -> list[int]:
        """The layers that `stages` gives."""
        return list(range(self.layers))

    def embed(self, x: torch.Tensor, *, precision: str | None = None) -> torch.Tensor:
        """One vector an image, (B, D): the class token, or the pooled features the network's own head would
        get."""
        with autocast(x.device, precision):
            return self._embed(x).to(x.dtype)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def cls_attention(self, x: torch.Tensor, block: int = -1) -> torch.Tensor:
        """Attention of the class token to the patches, (B, heads, h, w).

        Raises:
            ValueError: the network has no class token.
        """
        raise ValueError(f"{self.name} has no class token; take a vision transformer with one")

    @property
    def key(self) -> str:
        """sha256 over names and values of the weights: the same for the same weights, wherever they came
        from."""
        tensors = dict(self.model.state_dict())
        state = tuple((t.data_ptr(), t._version, t.dtype) for t in tensors.values() if not t.is_inference())
        if self._key is None or self._key[0] != state:
            self._key = (state, weights_key(tensors))
        return self._key[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The default layer's dense features, (B, D, h, w)."""
        return self.dense(x)


def weights_key(tensors: dict[str, torch.Tensor]) -> str:
    """sha256, hexadecimal, over names, types, shapes and values in order of the names.

    Counters of batch normalisation are left out: they do not change any output.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def autocast(device: torch.device, precision: str | None) -> Iterator[None]:
    """Computes in bf16 where it is safe for "bf16", in fp32 for "fp32" also inside another such context, and leaves
    things as they are for None.

    Raises:
        ValueError: another precision. (fp16 is hundreds of times slower than bf16 on a CPU.)
    """
    if precision is None:
        yield
    elif precision == "fp32":
        with torch.autocast(device.type, enabled=False):
            yield
    elif precision == "bf16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    else:
        raise ValueError(f"precision is {precision!r}, expected fp32 or bf16")

"""A network and how it is asked: precision, dropout, frozen batch norm.

Legend: B batch, C classes, E width of the embedding, S crop side, (h, w) feature-map size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.engine.devices import cpu_has_bf16
from maskwright.models.backbones.dense import autocast
from maskwright.models.networks.build import Network
from maskwright.recipes.training.norm_statistics import train_norms


class Output(NamedTuple):
    """What a network makes of crops.

    Attributes:
        features: the encoder's maps.
        embedding: (B, E, h, w).
        logits: (B, C, S, S), at the crop's size.
    """

    features: list[Tensor]
    embedding: Tensor
    logits: Tensor

    def first(self, n: int) -> Output:
        """Of the first n crops."""
        return Output([f[:n] for f in self.features], self.embedding[:n], self.logits[:n])


def upsample(logits: Tensor, size: Any) -> Tensor:
    """Logits (B, C, h, w) in fp32 at another size, bilinear with align_corners=False."""
    logits = logits.float()
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def precision_of(asked: str, device: torch.device) -> str:
    """`bf16` or `fp32` as asked; what is fastest for `auto`."""
    if asked != "auto":
        return asked
    return "bf16" if device.type == "cuda" or cpu_has_bf16() else "fp32"


class Forward:
    """A network that learns, and the modes in which it is asked.

    Args:
        network: moved to the device, and set to learn.
        device: where it runs.
        precision: `bf16` or `fp32`, of its passes.
        freeze_norm: whether the encoder's batch norm stays in evaluation mode.
        dropout: whether dropout and stochastic depth are on while the network learns; off for methods whose learning
            pass also labels.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        precision: str = "fp32",
        *,
        freeze_norm: bool = False,
        dropout: bool = True,
    ) -> None:
        self.network, self.device, self.precision = network, device, precision
        self.freeze_norm, self.dropout = freeze_norm, dropout
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.learn()

    def learn(self) -> None:
        """Training mode, as the policies say."""
        self.network.train()
        if not self.dropout:
            train_norms(self.network)
        if self.freeze_norm:
            for m in self.network.encoder.modules():
                if isinstance(m, nn.modules.batchnorm._BatchNorm):
                    m.eval()

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return autocast(self.device, self.precision)

    def __call__(self, x: Tensor) -> Output:
        """Crops (B, 3, S, S), normalised; logits in fp32 at their size."""
        return self.through(self.network, x)

    def through(self, network: Any, x: Tensor) -> Output:
        """The pass of another network of the same kind, a teacher's."""
        with self.autocast():
            features = network.features(x)
            embedding = network.decode(features)
            logits = network.classify(embedding)
        return Output(features, embedding, upsample(logits, x.shape[-2:]))

    @contextmanager
    def plain(self) -> Iterator[Forward]:
        """For passes that label, whether or not they learn too: batch norm in training mode, no dropout."""
        train_norms(self.network, self.network.encoder if self.freeze_norm else None)
        try:
            yield self
        finally:
            self.learn()

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """softmax of the logits at the crop's size, (B, C, S, S), without gradient, in the network's present mode."""
        return self(x).logits.softmax(1)

    def ask(self, x: Tensor, mode: str) -> Tensor:
        """Probabilities (B, C, S, S) of this network, which learns too, without gradient.

        Args:
            x: crops (B, 3, S, S), normalised.
            mode: `eval`, or `train` for batch norm alone in training mode: dropout would fall on labels.
        """
        with self.plain():
            if mode == "eval":
                self.network.eval()
            return self.probabilities(x)

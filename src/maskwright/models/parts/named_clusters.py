"""Clusters with names: a classifier whose outputs are joined to classes, and some of them to none (void).

Legend: B batch, E width, K clusters, C classes, (h, w) feature-map size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from maskwright.errors import MaskwrightError
from maskwright.models.parts.part import Part, check_argument
from maskwright.models.parts.table import build_part

VOID = -1
"""The class of clusters that mean none."""
_FAINT = 1e-30
"""Share of a class that no cluster has, so that its logit is finite and can be enlarged."""


class NamedClusters(Part):
    """A classifier of K clusters as one of C classes.

    Predictions are exact: `predict.inference` enlarges the logits of clusters, turns them into probabilities, and sums
    these by class (`join`). `forward` is for what knows nothing of clusters: at feature resolution its softmax is the
    share of each class among the clusters that have one.

    Args:
        clusters: the classifier, embedding (B, E, h, w) to logits (B, K, h, w).
        class_of: the class of each cluster, K whole numbers from 0 to C - 1, or `VOID`.
        classes: C.

    Raises:
        ValueError: a number that is no class.
    """

    fields = ("clusters", "count", "classes")
    class_of: Tensor

    def __init__(self, clusters: Part, class_of: Sequence[int] | Tensor, classes: int) -> None:
        super().__init__()
        found = torch.as_tensor(class_of, dtype=torch.int64).detach().clone()
        self.count, self.classes = int(found.numel()), int(classes)
        own = getattr(clusters, "classes", None)
        if isinstance(own, int) and own != self.count:
            raise ValueError(f"the classifier has {own} clusters, and a class is given for {self.count}")
        if self.classes < 1:
            raise ValueError(f"{self.classes} classes, expected at least 1")
        self.clusters = clusters
        self.register_buffer("class_of", found)
        if not found.is_meta:
            self.check_tensors()

    def check_tensors(self) -> None:
        """Raises `ValueError` where a cluster's class is none of the C."""
        odd = (self.class_of < VOID) | (self.class_of >= self.classes)
        if bool(odd.any()):
            raise ValueError(f"a cluster of class {int(self.class_of[odd][0])}, expected -1 to {self.classes - 1}")

    def spec(self) -> dict[str, Any]:
        """The classifier's spec, K and C; which class each cluster has is a tensor."""
        kind = type(self).__name__
        return {"kind": kind, "clusters": self.clusters.spec(), "count": self.count, "classes": self.classes}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds the part, every cluster void; raises `MaskwrightError` as `Part.from_spec`."""
        count, classes = spec.get("count"), spec.get("classes")
        numbers = [n for n in (count, classes) if isinstance(n, int) and not isinstance(n, bool) and n > 0]
        if len(numbers) < 2 or set(spec) != {"kind", *cls.fields}:
            raise MaskwrightError("part NamedClusters has other arguments", ", ".join(cls.fields))
        for name in ("count", "classes"):
            check_argument(cls.__name__, name, spec[name])
        try:
            return cls(build_part(spec["clusters"]), torch.full((numbers[0],), VOID), numbers[1])
        except ValueError as error:
            raise MaskwrightError(f"part NamedClusters cannot be built: {error}", "its own arguments") from error

    @property
    def slots(self) -> Tensor:
        """Where each cluster's probability goes, int64 (K,): its class, or C where it has none."""
        return torch.where(self.class_of < 0, self.classes, self.class_of)

    def join(self, probs: Tensor) -> Tensor:
        """Probabilities of clusters (K, ...), summed by class: (C + 1, ...), the last that of void."""
        out = probs.new_zeros((self.classes + 1, *probs.shape[1:]))
        return out.index_add_(0, self.slots.to(probs.device), probs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) to logits (B, C, h, w): the logarithm of the summed exponentials of each class's clusters."""
        logits = self.clusters(x).float()
        void = (self.class_of < 0)[:, None, None]
        logits = logits.masked_fill(void, torch.finfo(logits.dtype).min / 2)
        highest = logits.amax(1, keepdim=True)
        shape = (logits.shape[0], self.classes + 1, *logits.shape[2:])
        sums = logits.new_zeros(shape).index_add(1, self.slots, (logits - highest).exp())
        return sums[:, : self.classes].clamp(min=_FAINT).log() + highest

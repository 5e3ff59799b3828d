"""The two trainings of UDA-SOD: on composites alone, and on composites and believed photographs of the target.

Legend: B crops, S crop side, m label in [0, 1], v variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.augment import photometric
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals
from maskwright.data.training.streams import Stream, Views
from maskwright.engine import seeding
from maskwright.engine.distributed import sampler, world_size
from maskwright.engine.loop import Training
from maskwright.methods.adapt.uda_sod.losses import SoftMasks, joined, mask_loss, object_logit
from maskwright.recipes.consistency.parts import SECOND
from maskwright.recipes.training.setup import NetworkSetup


def triangular(steps: int) -> Callable[[int], float]:
    """A cycle of S steps: 1 - |2 (s + 1) / (S + 1) - 1|, greatest in the middle."""
    return lambda step: 1 - abs(2 * (step + 1) / (steps + 1) - 1)


def shares_of(batch: int, composites: int, photographs: int, world: int = 1) -> tuple[int, int]:
    """How a batch is divided between composites and photographs: as their lists are long, at least one crop of a list
    that is not empty for each of the processes."""
    total = composites + photographs
    if not composites or not photographs:
        return (batch, 0) if composites else (0, batch)
    of_target = min(max(world, round(batch * photographs / total)), max(world, batch - world))
    return max(world, batch - of_target), of_target


def of_composites(y: LabelMap) -> SoftMasks:
    """Labels of composites (B, S, S), which are certain."""
    return SoftMasks(y.ids.float(), torch.zeros_like(y.confidence), y.valid)


class SoftViews(NamedTuple):
    """Crops and their soft masks."""

    views: Views
    y: SoftMasks

    def as_input(self, normalise: Callable[[Tensor], Tensor], device: torch.device) -> SoftViews:
        """As a network takes them."""
        return SoftViews(self.views.as_input(normalise, device), self.y.to(device))


class Pseudo:
    """What a round says of the photographs that it believes.

    Args:
        masks: store of m.
        variance: store of v.
        indices: of the photographs.
        soft: whether m stays as it is; otherwise it is 0 or 1.
    """

    def __init__(self, masks: Proposals, variance: Proposals, indices: Sequence[int], soft: bool) -> None:
        self.masks, self.variance, self.indices, self.soft = masks, variance, list(indices), soft

    def through(self, name: str, view: Any) -> SoftMasks:
        """Labels (S, S) of a photograph as a view of it sees them."""
        m, v = (store.soft(name, view.source_size).through(view) for store in (self.masks, self.variance))
        return SoftMasks(m.values if self.soft else (m.values > 0.5).float(), v.values, m.valid)


class PseudoStream:
    """Crops of believed photographs.

    Args:
        photographs: the stream of their crops.
        pseudo: their labels.
    """

    def __init__(self, photographs: Stream, pseudo: Pseudo) -> None:
        self.photographs, self.pseudo, self.order = photographs, pseudo, photographs.order

    def next(self) -> np.ndarray:
        """Indices of this process's share of the next batch."""
        return self.photographs.next()

    def draw(self, images: Sequence[int], random: torch.Generator) -> SoftViews:
        """Crops and what the round says of them, by the recorded geometry."""
        views, items = self.photographs.draw(images, random), self.photographs.data.items
        found = [self.pseudo.through(items[i].name, view) for i, view in zip(views.images, views.geometry)]
        return SoftViews(views, SoftMasks(*(torch.stack(part) for part in zip(*found))))


class SaliencyTraining(Training):
    """The network on composites, and on photographs of the target where a round believes some.

    Args:
        pseudo: their labels; None: composites alone.
        portion: of the composites that are in the list.
        rate: factor on the shared rates.
        args: as for `NetworkSetup`.
        kwargs: likewise.
    """

    def __init__(self, pseudo: Pseudo | None, portion: float, rate: float, *args: Any, **kwargs: Any) -> None:
        setup = NetworkSetup(*args, name="s", **kwargs)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.supervised = setup.student, setup.supervised
        c, own, context = self.config, setup.labels, setup.context
        draw = seeding.generator(context.seed, "composites", kwargs["stage"])
        chosen = torch.randperm(len(own.indices), generator=draw)
        count = int(len(own.indices) * portion + 1e-9)
        if pseudo is None or not pseudo.indices:
            count, pseudo = max(1, count), None
        indices = sorted(own.indices[k] for k in chosen[:count].tolist())
        n_s, n_t = shares_of(c.crops.batch, count, 0 if pseudo is None else len(pseudo.indices), world_size())
        del setup.streams["s"]
        if n_s:
            order = sampler(context.seed, count, n_s)
            setup.streams["s"] = self._jittered(setup.stream(indices, order, own, data=own.data))
        if pseudo is not None and n_t:
            order = sampler(context.seed, len(pseudo.indices), n_t, SECOND)
            setup.streams["t"] = PseudoStream(self._jittered(setup.stream(pseudo.indices, order)), pseudo)
        cycle = triangular(setup.steps)
        self.schedule = lambda step: rate * cycle(step)
        setup.supervised.criterion = self.criterion  # type: ignore[assignment]

    def criterion(self, logits: Tensor, y: SoftMasks) -> Tensor:
        """l_m of the logits (B, 2, S, S) of the network, or of its auxiliary heads."""
        return mask_loss(object_logit(logits), y, self.config.pseudo.k)

    def _jittered(self, stream: Stream) -> Stream:
        stream.jitter = photometric(self.config.jitter)
        return stream

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = l_m of composites, where v = 0, and of believed photographs."""
        crops, labels = [], []
        if "s" in batch:
            crops.append(batch["s"].weak)
            labels.append(of_composites(batch["s"].y))
        if "t" in batch:
            crops.append(batch["t"].views.weak)
            labels.append(batch["t"].y)
        x = torch.cat(crops).contiguous(memory_format=torch.channels_last)
        return {"loss": self.supervised(self.student(x), joined(labels))}  # type: ignore[arg-type]

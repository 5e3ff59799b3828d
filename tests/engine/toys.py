"""A toy stage with everything that a resumed run must bring back, and a program that trains it until it is killed."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.sampler import Sampler
from maskwright.engine.loop import Training, fit
from maskwright.engine.progress import Progress
from maskwright.engine.records import RunFolder
from maskwright.engine.schedules import cosine
from maskwright.recipes.banks import FeatureBank
from maskwright.recipes.ema import EMATeacher


class PlainFabric:
    """What the loop uses of lightning-fabric, which takes seconds to import."""

    device = torch.device("cpu")

    def autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


class Tally:
    """An extra whose state is plain numbers and a list."""

    def __init__(self) -> None:
        self.sum, self.seen = 0.0, []

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum, "seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum, self.seen = state["sum"], list(state["seen"])


class Numbered(Sampler):
    """Says with each batch how many came before it, which a thread that draws ahead could not know otherwise."""

    def next(self) -> tuple[int, np.ndarray]:  # type: ignore[override]
        return self.position, super().next()


class Toy(Training):
    """Classifies noisy points: dropout, batch norm, two optimisers, a teacher, a bank, draws from every generator.

    Args:
        steps: of the schedule.
        world: processes.
        rank: this one.
        hook: called with (place, step) at the places where a kill would hurt.
    """

    def __init__(
        self, steps: int = 7, world: int = 1, rank: int = 0, hook: Callable[[str, int], None] = lambda place, step: None
    ) -> None:
        draw = torch.Generator().manual_seed(5)
        self.y = torch.arange(20) % 4
        self.x = torch.randn(4, 6, generator=draw)[self.y] * 2 + 0.3 * torch.randn(20, 6, generator=draw)
        torch.manual_seed(11)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 4)
        self.teacher = EMATeacher(self.body, 0.9, mode="train")
        self.bank = FeatureBank(11, 8, labels=True)
        self.tally = Tally()
        self.modules = {"body": self.body, "head": self.head, "teacher": self.teacher, "bank": self.bank}
        self.optimizers = {
            "body": torch.optim.AdamW(self.body.parameters(), lr=2e-2),
            "head": torch.optim.SGD(self.head.parameters(), lr=5e-2, momentum=0.9),
        }
        self.sampler = Numbered(20, 6, 3, world, rank)
        self.extra = {"tally": self.tally}
        self.schedule = cosine(steps, warmup=2)
        self.hook = hook

    def batch(self, indices: tuple[int, np.ndarray], random: torch.Generator) -> tuple[Tensor, Tensor]:
        number, drawn = indices
        self.hook("batch", number)
        chosen = torch.as_tensor(drawn)
        return self.x[chosen] + 0.1 * torch.randn(len(chosen), 6, generator=random), self.y[chosen]

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        x, y = batch
        x = x * (1 + 0.05 * random.random()) + 0.05 * float(np.random.rand())  # noqa: NPY002 - the state under test
        self.features = self.body(x)
        target = self.teacher(x)
        supervised = F.cross_entropy(self.head(self.features), y)
        consistency = F.mse_loss(self.features, target)
        anchor = self.bank.get().mean() if len(self.bank) else x.new_zeros(())
        self.hook("losses", step)
        return {
            "loss": supervised + 0.1 * consistency + 0.01 * (self.features.mean() - anchor) ** 2,
            "consistency": consistency,
        }

    def after_step(self, step: int) -> None:
        self.hook("updated", step)
        self.teacher.update(self.body)
        self.hook("teacher", step)
        self.bank.add(self.features, torch.full((len(self.features),), step))
        self.tally.sum += float(self.features.detach().sum())
        self.tally.seen.append(step)
        self.hook("stepped", step)


def train(training: Training, folder: Path, steps: int = 7, **options: Any) -> RunFolder:
    """Trains in `folder`, from where it stands."""
    run = RunFolder(folder)
    stage = run.stage_folder("toy")
    own = {"seed": 1, "fabric": PlainFabric(), "progress": Progress(quiet=True), "workers": None}
    context: Any = SimpleNamespace(run=run, **{name: options.pop(name, value) for name, value in own.items()})
    fit(training, context, "toy", stage, steps, **({"checkpoint_every": 2, "log_every": 1} | options))
    return run


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return type(a) is type(b) and a == b


def main(folder: str, steps: str, pause: str) -> None:
    """Trains slowly enough to be killed on the way."""
    torch.set_num_threads(1)

    def sleep(place: str, step: int) -> None:
        if place == "losses":
            time.sleep(float(pause))

    train(Toy(int(steps), hook=sleep), Path(folder), int(steps), checkpoint_every=10)


if __name__ == "__main__":
    main(*sys.argv[1:])

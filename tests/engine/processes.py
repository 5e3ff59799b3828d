"""What each of two processes does in `test_distributed`: everything at once, because starting them takes seconds.

Run by `torch.multiprocessing.spawn`; results are left as files, which the tests compare with one process's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.sampler import Sampler
from maskwright.engine.distributed import (
    all_reduce_sum,
    average_gradients,
    barrier,
    broadcast_object,
    gather_objects,
    gather_rows,
    reducer,
    share,
)
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.ops.losses.captions import caption_contrast

RECORD = {"seed": 0}


class Branches(nn.Module):
    """Uses one branch for the first half of the examples, another for the rest, and a third never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.first, self.second, self.unused = (nn.Linear(5, 5) for _ in range(4))
        self.frozen = nn.Linear(5, 5).requires_grad_(False)

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        x = torch.tanh(self.frozen(self.trunk(x)))
        out = torch.zeros(len(x), 5)
        for branch, chosen in ((self.first, number < 4), (self.second, number >= 4)):
            if chosen.any():
                out[chosen] = branch(x[chosen])
        return out.square().sum(1)


def gradients(numbers: Sequence[int]) -> dict[str, Tensor | None]:
    """Gradients of the mean loss over examples, averaged over processes."""
    model, x = Branches(), torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    chosen = torch.tensor(list(numbers))
    model(x[chosen], chosen).mean().backward()
    average_gradients(model.parameters())
    return {k: p.grad for k, p in model.named_parameters()}


def contrast(numbers: Sequence[int], offset: int) -> dict[str, Tensor | None]:
    """Gradients of a contrast of each example with all, those of other processes gathered with their gradients."""
    torch.manual_seed(5)
    model, data = nn.ModuleDict({"image": nn.Linear(5, 4), "text": nn.Linear(5, 4)}), torch.randn(2, 8, 5)
    image, text = (model[k](x[list(numbers)]) for k, x in zip(("image", "text"), data))
    scale = torch.tensor(1.0)
    caption_contrast(image, text, scale, gather_rows(image), gather_rows(text), offset).backward()
    average_gradients(model.parameters())
    return {k: p.grad for k, p in model.named_parameters()}


def rows() -> Tensor:
    """Five clusters, of unequal sizes, that overlap a little."""
    g = torch.Generator().manual_seed(2)
    centers = torch.randn(5, 8, generator=g) * 2
    return centers[torch.randint(5, (603,), generator=g).clamp(max=4)] + torch.randn(603, 8, generator=g)


class Regression(Training):
    """Without dropout and batch norm, two processes should do what one does."""

    def __init__(self, world: int, rank: int) -> None:
        g = torch.Generator().manual_seed(3)
        self.x, self.y = torch.randn(32, 5, generator=g), torch.randn(32, 2, generator=g)
        torch.manual_seed(4)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
        self.modules = {"net": self.net}
        self.optimizers = {"sgd": torch.optim.SGD(self.net.parameters(), 0.2, momentum=0.9, weight_decay=1e-3)}
        self.sampler = Sampler(32, 8, 0, world, rank)

    def batch(self, indices: Sequence[int], random: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.x[indices], self.y[indices]

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        return {"loss": (self.net(batch[0]) - batch[1]).square().mean()}


def own_state(toy: Training) -> dict[str, Any]:
    return {k: v.state_dict() for k, v in (toy.modules | toy.optimizers | dict(toy.extra)).items()}


def work(rank: int, world: int, port: int, data: str, out: str) -> None:
    """All of it; `out/RANK.pt` holds the results."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    from maskwright.engine.devices import make_fabric

    fabric = make_fabric("cpu")
    assert (fabric.world_size, fabric.global_rank, fabric.is_global_zero) == (world, rank, rank == 0)

    x = rows()
    torch.save(
        {
            "gradients": gradients(share(range(8))),
            "contrast": contrast(share(range(8)), 4 * rank),
            "share": [list(share(range(n))) for n in (0, 1, 2, 7, 8)],
            "sum": all_reduce_sum(torch.tensor([1.0, 10.0 * rank])),
            "broadcast": broadcast_object({"from": rank}),
            "gather": gather_objects(("rank", rank)),
            "sampler": draws(world, rank),
            "kmeans": clusters(x[share(range(len(x)))], reducer()),
            "start": start_runs(Path(out), rank),
            "regression": regress(Path(out), fabric, world, rank),
            "toy": resumed(Path(out), fabric, world, rank),
            "ledger": ledger(Path(data), Path(out), fabric, rank),
            "cache": cached(Path(data), Path(out)),
        },
        Path(out) / f"{rank}.pt",
    )
    barrier()
    torch.distributed.destroy_process_group()


def draws(world: int, rank: int) -> list[list[int]]:
    """Seven batches of 6 out of 20."""
    sampler = Sampler(20, 6, 9, world, rank)
    return [[int(i) for i in sampler.next()] for _ in range(7)]


def clusters(x: Tensor, reduce: Any) -> dict[str, Any]:
    """k-means of a share of the rows, both metrics."""
    from maskwright.ops.clustering.kmeans import kmeans

    found = {}
    for metric in ("cosine", "euclidean"):
        r = kmeans(x, 5, metric=metric, restarts=2, seed=0, all_reduce=reduce)
        found[metric] = {"centers": r.centers, "labels": r.labels, "inertia": r.inertia}
    return found


def start_runs(out: Path, rank: int) -> list[str]:
    """The second process comes late, when the first has long written its record."""
    from maskwright.engine.records import RunFolder

    said = []
    for resume in (False, False, True):
        time.sleep(0.3 * rank)
        try:
            run = RunFolder.start(out / "started", RECORD, resume=resume, writes=rank == 0)
            said.append(f"seed {run.record['seed']}")
        except MaskwrightError as error:
            said.append(error.found.rpartition("started")[2])
        barrier()
    return said


def regress(out: Path, fabric: Any, world: int, rank: int) -> dict[str, Tensor]:
    from tests.engine.toys import train

    training = Regression(world, rank)
    train_rank(train, training, out / "regression", fabric, rank)
    return training.net.state_dict()


def train_rank(train: Any, training: Training, folder: Path, fabric: Any, rank: int) -> None:
    from maskwright.engine import loop
    from maskwright.engine.progress import Progress
    from maskwright.engine.records import RunFolder

    run = RunFolder(folder, writes=rank == 0)
    stage = run.stage_folder("toy")
    barrier()
    context: Any = SimpleNamespace(run=run, seed=1, fabric=fabric, progress=Progress(quiet=True), workers=None)
    loop.fit(training, context, "toy", stage, 9, checkpoint_every=4, log_every=1)
    barrier()


def resumed(out: Path, fabric: Any, world: int, rank: int) -> dict[str, Any]:
    """A stage with batch norm and banks, which differ between processes: whole, and stopped at step 6 and resumed."""
    from tests.engine.toys import Toy, train

    class Stop(Exception):
        pass

    def stop(place: str, step: int) -> None:
        if (place, step) == ("teacher", 6):
            raise Stop

    whole = Toy(9, world, rank)
    train_rank(train, whole, out / "whole", fabric, rank)
    try:
        train_rank(train, Toy(9, world, rank, stop), out / "broken", fabric, rank)
        raise AssertionError("was to stop")
    except Stop:
        barrier()
    again = Toy(9, world, rank)
    train_rank(train, again, out / "broken", fabric, rank)
    return {"whole": own_state(whole), "resumed": own_state(again)}


def ledger(data: Path, out: Path, fabric: Any, rank: int) -> dict[str, Any]:
    """Each process reads other masks in a stage."""
    from maskwright.data.masking.classes import ClassTable
    from maskwright.engine.context import Context
    from maskwright.engine.contract import Method, Stage
    from maskwright.engine.progress import Progress
    from maskwright.engine.records import RunFolder
    from maskwright.engine.stages import run_stages

    class Reads(Method):
        def stages(self) -> list[Stage]:
            def run(folder: Path) -> None:
                for i in share(range(5)):
                    self.context.data.mask(i)

            return [Stage("read", "label", run, "reads")]

        def segmenter(self):
            raise NotImplementedError

    context = Context(
        data=open_folder(data), table=ClassTable.numbered(2), seed=0, steps=None, fabric=fabric,
        run=RunFolder.start(out / "ledger", RECORD, resume=False, writes=rank == 0), cache=None, backbone=None,
        progress=Progress(quiet=True),
    )  # fmt: skip
    run_stages(Reads(None, context), context)
    return context.data.ledger.counts()


def cached(data: Path, out: Path) -> tuple[int, list[Tensor]]:
    """How many images this process computed, and the features it then sees."""
    from tests.engine.encoders import CountingEncoder, preprocess

    from maskwright.engine.cache import FeatureCache
    from maskwright.engine.progress import Progress

    encoder, images = CountingEncoder(), open_folder(data)
    store = FeatureCache(out / "cache").features(encoder, preprocess(), images, progress=Progress(quiet=True))
    return encoder.images, [store[i].clone() for i in range(len(store))]

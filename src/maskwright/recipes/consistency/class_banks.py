"""Memory banks by class, and of the last iterations.

Legend: C classes, D width, n rows added, count rows drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskwright.engine.distributed import gather_objects, world_size
from maskwright.recipes.banks import FeatureBank


class ClassBanks(nn.Module):
    """One FIFO queue of feature rows for each class, all in one buffer, saved and restored with the run.

    The rows are a (sum of sizes, D) buffer that the operating system fills only as rows come. With `index` and
    `ops.contrast.contrastive_loss(..., negatives=banks.rows, negative_index=...)` nothing is copied to draw negatives.

    Source: the negative queues of U2PL, Wang et al., CVPR 2022, https://arxiv.org/abs/2203.03884, with 50,000 rows for
    class 0 and 30,000 for the others.

    Args:
        sizes: rows of each class's queue, (C,).
        width: D.
        dtype: of the rows; float16 halves the memory.

    Raises:
        ValueError: no class, or a size below 1.
    """

    rows: Tensor
    heads: Tensor
    counts: Tensor
    sizes: Tensor
    offsets: Tensor

    def __init__(self, sizes: Sequence[int], width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1 or width < 1:
            raise ValueError(f"queues of {list(sizes)} rows of width {width}, expected one class and row or more")
        if not dtype.is_floating_point:
            raise ValueError(f"rows of {dtype}, expected a floating type")
        each = torch.tensor(list(sizes), dtype=torch.long)
        self.register_buffer("rows", torch.zeros(int(each.sum()), width, dtype=dtype))
        self.register_buffer("heads", torch.zeros(len(each), dtype=torch.long))
        self.register_buffer("counts", torch.zeros(len(each), dtype=torch.long))
        self.register_buffer("sizes", each, persistent=False)
        self.register_buffer("offsets", each.cumsum(0) - each, persistent=False)

    @classmethod
    def within(
        cls, total: int, classes: int, width: int, first: float = 5 / 3, dtype: torch.dtype = torch.float32
    ) -> ClassBanks:
        """Queues that share `total` rows: class 0 gets `first` times as many as each of the others (5 / 3 in U2PL).

        Raises:
            ValueError: fewer rows than classes, or `first` not above 0.
        """
        if total < classes or classes < 1 or not first > 0:
            raise ValueError(f"{total} rows for {classes} classes, the first {first} times as large as the others")
        if classes == 1:
            return cls([total], width, dtype)
        other = min(max(1, int(total / (first + classes - 1))), (total - 1) // (classes - 1))
        return cls([total - other * (classes - 1), *[other] * (classes - 1)], width, dtype)

    @property
    def classes(self) -> int:
        """C."""
        return len(self.sizes)

    def __len__(self) -> int:
        return int(self.counts.sum())

    @torch.no_grad()
    def enqueue(self, rows: Tensor, ids: Tensor, gather: bool = True) -> None:
        """Stores rows in the queues of their classes; where a queue is full its oldest rows make room.

        Args:
            rows: (n, D), in order of time.
            ids: (n,) integers in [0, C).
            gather: also store the rows of the other processes, in the order of their numbers, so that all processes
                hold the same queues. All must call it.

        Raises:
            ValueError: shapes that do not fit, or ids that are no class.
        """
        if rows.ndim != 2 or rows.shape[1] != self.rows.shape[1] or ids.shape != rows.shape[:1]:
            raise ValueError(
                f"rows are {tuple(rows.shape)} and ids {tuple(ids.shape)}, expected (n, {self.rows.shape[1]}) and (n,)"
            )
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.classes:
            raise ValueError(f"ids from {int(ids.min())} to {int(ids.max())}, expected 0 to {self.classes - 1}")
        rows, ids = rows.detach().to(self.rows), ids.detach().to(self.heads)
        if gather:
            rows, ids = gather_rows(rows, ids)
        ids, order = ids.sort(stable=True)
        added = torch.bincount(ids, minlength=self.classes)
        turn = torch.arange(len(ids), device=ids.device) - (added.cumsum(0) - added)[ids]  # place among its class
        stays = turn >= (added - self.sizes)[ids]
        where = self.offsets[ids] + (self.heads[ids] + turn) % self.sizes[ids]
        self.rows[where[stays]] = rows[order[stays]]
        self.heads.copy_((self.heads + added) % self.sizes)
        self.counts.copy_(torch.minimum(self.sizes, self.counts + added))

    def count(self, c: int) -> int:
        """Rows stored of a class."""
        return int(self.counts[c])

    def get(self, c: int) -> Tensor:
        """The rows of a class (count, D), oldest first."""
        n, size, head = self.count(c), int(self.sizes[c]), int(self.heads[c])
        places = (head - n + torch.arange(n, device=self.rows.device)) % size
        return self.rows[int(self.offsets[c]) + places]

    def sample(self, c: int, count: int, generator: torch.Generator | None = None, replacement: bool = True) -> Tensor:
        """Random rows of a class.

        Args:
            c: the class.
            count: how many.
            generator: of the draw; the global one by default.
            replacement: may draw a row several times; else each at most once.

        Returns:
            (count, D); fewer without replacement where the queue holds fewer, none of an empty queue.
        """
        stored = self.count(c)
        device = torch.device("cpu") if generator is None else generator.device
        if replacement and stored:
            drawn = torch.randint(stored, (count,), generator=generator, device=device)
        else:
            drawn = torch.randperm(stored, generator=generator, device=device)[:count]
        return self.rows[int(self.offsets[c]) + drawn.to(self.rows.device)]

    def index(self, ids: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Random places of each row's class in `rows`, with replacement.

        Args:
            ids: (n,) classes whose queues are not empty.
            count: draws for each.
            generator: of the draw; the global one by default.

        Returns:
            int64 (n, count) rows of `self.rows`.

        Raises:
            ValueError: a class with an empty queue.
        """
        ids = ids.to(self.counts.device)
        stored = self.counts[ids]
        if len(ids) and int(stored.min()) == 0:
            raise ValueError(f"the queues of classes {ids[stored == 0].unique().tolist()} are empty")
        device = torch.device("cpu") if generator is None else generator.device
        u = torch.rand(len(ids), count, generator=generator, device=device, dtype=torch.float64).to(ids.device)
        return self.offsets[ids][:, None] + (u * stored[:, None]).long().clamp(max=(stored - 1)[:, None])


class RecentBank(FeatureBank):
    """Features and labels of the last iterations, of all processes (CAC's bank).

    A `FeatureBank` of iterations rather than rows: iterations may add fewer rows than the most, and what is older than
    `iterations` goes even so.

    Args:
        iterations: how many are kept, the present one among them (step_save + 1).
        most: rows that one process adds in an iteration at most.
        width: D.

    Raises:
        ValueError: an argument below 1.
    """

    added: Tensor

    def __init__(self, iterations: int, most: int, width: int) -> None:
        if iterations < 1 or most < 1:
            raise ValueError(f"a bank of {iterations} iterations of {most} rows, expected 1 or more of both")
        super().__init__(iterations * most * world_size(), width, labels=True)
        self.most = most
        self.register_buffer("added", torch.zeros(iterations, dtype=torch.long))

    @torch.no_grad()
    def add(self, rows: Tensor, ids: Tensor | None = None) -> None:
        """Stores one iteration's rows (n, D) and labels (n,), those of all processes in the order of their numbers.

        Raises:
            ValueError: more rows than `most`, no labels, or shapes that do not fit the bank.
        """
        if len(rows) > self.most:
            raise ValueError(f"{len(rows)} rows in an iteration, expected at most {self.most}")
        if ids is None:
            raise ValueError("this bank stores labels")
        rows, ids = gather_rows(rows.detach(), ids.detach())
        super().add(rows, ids)
        self.added.copy_(torch.cat([self.added[1:], self.added.new_tensor([len(rows)])]))
        self.count.clamp_(max=int(self.added.sum()))


def gather_rows(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (n, D) and labels (n,) of all processes, joined in the order of their numbers; n may differ."""
    if world_size() == 1:
        return rows, ids
    parts = gather_objects((rows.cpu(), ids.cpu()))
    return torch.cat([p[0] for p in parts]).to(rows), torch.cat([p[1] for p in parts]).to(ids)

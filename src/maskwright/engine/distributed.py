"""What processes say to each other: sums, shares of work, and gradients.

Everything degrades to the identity in a single process, so callers never ask how many there are. Gradients are averaged
explicitly after the backward pass, not by a wrapper around the module: methods call their modules in ways (several
forwards, heads alone, teachers) that a wrapper would have to be told about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from maskwright.data.training.sampler import Sampler
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.engine.progress import Progress

T = TypeVar("T")


def world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Waits for all processes."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, in place where there is more than one.

    NCCL takes tensors on a GPU alone; what lies on the CPU goes there and back.
    """
    if world_size() == 1:
        return x
    if dist.get_backend() == "nccl" and not x.is_cuda:
        there = x.to(torch.device("cuda", torch.cuda.current_device()))
        dist.all_reduce(there)
        return x.copy_(there)
    dist.all_reduce(x)
    return x


def reducer() -> Callable[[Tensor], Tensor] | None:
    """`all_reduce_sum` for functions of `ops` that take it, or None in a single process."""
    return all_reduce_sum if world_size() > 1 else None


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's contiguous share of a sequence; the shares of all processes make up the whole, in order."""
    n, w, r = len(items), world_size(), rank()
    return items[r * n // w : (r + 1) * n // w]


def sampler(seed: int, images: int, batch: int, more: int = 0, chances: np.ndarray | None = None) -> Sampler:
    """Which of so many images come next, this process's share of each batch.

    Args:
        seed: of the run.
        images: how many there are.
        batch: of them in a step, over all processes.
        more: added to the seed, so that two streams have orders of their own.
        chances: how often each comes (images,); None: all alike.
    """
    seed = (seed + more) & 0xFFFFFFFFFFFFFFFF
    return Sampler(images, batch, seed=seed, world=world_size(), rank=rank(), weights=chances)


def each(
    progress: Progress, indices: Sequence[int], says: str, done: Callable[[int], bool] = lambda i: False
) -> Iterator[int]:
    """This process's share of images, one by one, shown as progress; then waits for the other processes.

    Args:
        progress: how work shows itself.
        indices: of all images.
        says: a word for the progress line.
        done: whether a killed run left what the caller makes of an image; such an image is passed over.
    """
    mine = share(indices)
    for i in progress.track(mine, says, len(mine)):
        if not done(i):
            yield i
    barrier()


def broadcast_object(value: T) -> T:
    """The first process's value, on all of them."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """The values of all processes, in order, on all of them."""
    if world_size() == 1:
        return [value]
    out: list[T] = [value] * world_size()
    dist.all_gather_object(out, value)
    return out


class _Gathered(torch.autograd.Function):
    """Rows of all processes; the gradient of a row is the sum of what all processes have for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(found, x.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes in order, with gradients: (B, ...) to (A, ...).

    With losses that are means over a process's own rows, and gradients that are then averaged (`average_gradients`), a
    step is that of the whole batch.

    Args:
        x: as many rows on each process.
    """
    if world_size() == 1:
        return x
    found: Tensor = _Gathered.apply(x)
    return found


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces each gradient by its mean over all processes.

    With equal shares of the batch and losses that are means over it, the result is the gradient of the whole batch.
    Where only some processes have a gradient of a parameter, it counts as zero in the others, so that they may use
    different branches of a network. Where none has, there is none, and optimisers skip the parameter as they do in
    a single process.

    Args:
        parameters: the parameters of all the optimisers, in the same order on all processes.
    """
    if world_size() == 1:
        return
    params = [p for p in parameters if p.requires_grad]
    if not params:
        return
    used = torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=params[0].device)
    dist.all_reduce(used)
    by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for p, processes in zip(params, used.tolist()):
        if not processes:
            continue
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        by_type.setdefault((p.grad.dtype, p.grad.device), []).append(p.grad)
    for grads in by_type.values():
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        flat /= world_size()
        for g, part in zip(grads, flat.split([g.numel() for g in grads])):
            g.copy_(part.view_as(g))


def check_partners(option: str, batch: int, partners: str, because: str = "", instead: str = "") -> None:
    """Refuses a batch of which a process may have one photograph, where a loss pairs it with others of its process.

    Args:
        option: that says how many photographs a step has, over all processes.
        batch: its value.
        partners: what the others are, `positives` or `negatives`.
        because: a setting without which none would be needed, `NAME=VALUE`.
        instead: what would do as well, before "at least".

    Raises:
        MaskwrightError: there are fewer than two photographs for each process.
    """
    if batch < (least := 2 * world_size()):
        found, repair = f"{option}={batch} in {world_size()} processes", f"add --set {option}={least}"
        if because:
            found, repair = f"{because} and {found}", f"{repair}, or leave {because.partition('=')[0]} out"
        expected = f"{instead}at least {least}: {partners} are other photographs of the same process"
        raise MaskwrightError(found, expected, repair)

"""Rounds: every so many steps something is labelled or clustered anew from the network as it stands then.

    self.rounds = Rounds(config.every, self.cluster, self.device)
    self.extra = {**self.extra, "rounds": self.rounds}

    def before_step(self, step):
        self.rounds.before_step(step)

A round runs before its step, behind the last checkpoint that could be saved: its work is a function of the weights, of
the step's random state and of the round's number. So a run that is killed anywhere, in the middle of a round too,
repeats what came after its checkpoint and ends in the same weights.

Batches are drawn ahead, in other threads, before a round that lies between has run. A training has two ways:

- its batches do not depend on rounds: `batch` leaves images and recorded geometry, and `losses` or `on_device` looks
  up what the round says of them (`LabelMap.through(view)`). It goes on reading ahead;
- its batches or its sampler do depend on them. Then it says `reads_ahead = False`.

Who asks for the result in a thread that reads ahead gets an error, no stale labels.

Legend: N rows, D width, (h, w) feature-map size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from maskwright.engine import seeding
from maskwright.engine.distributed import rank, share

if TYPE_CHECKING:
    from maskwright.engine.cache import Images
    from maskwright.engine.context import Context
    from maskwright.models.preprocess import Preprocess


class Rounds:
    """Work that is done anew at some steps, and what it gave last.

    Args:
        when: a round every so many steps, the first before step 0; or the steps before which there is one.
        work: called with the round's number, from 0; gives tensors, numbers, texts and containers of these, the same in
            all processes. What it writes on disk it writes into a folder for each round: a resumed run reads
            that of the round before again.
        device: where the tensors of a restored result go.

    Attributes:
        number: rounds so far.
        step: the step before which the last one ran; -1 where none did.

    Raises:
        ValueError: fewer than one step between rounds, or a step below 0.
    """

    def __init__(
        self, when: int | Sequence[int], work: Callable[[int], Any], device: torch.device | str = "cpu"
    ) -> None:
        least = when if isinstance(when, int) else min(when, default=0) + 1
        if least < 1:
            raise ValueError(f"rounds at {when}, expected at least 1 step between them, or steps from 0 on")
        self.when = when if isinstance(when, int) else frozenset(when)
        self.work, self.device = work, device
        self.number, self.step = 0, -1
        self._result: Any = None
        self._thread = threading.get_ident()

    def due(self, step: int) -> bool:
        """Whether a round runs before this step."""
        return step % self.when == 0 if isinstance(self.when, int) else step in self.when

    def before_step(self, step: int) -> bool:
        """Runs the round that is due before this step, if one is; gives whether one was."""
        if not self.due(step):
            return False
        self._result = self.work(self.number)
        self.number, self.step = self.number + 1, step
        return True

    @property
    def result(self) -> Any:
        """What the last round gave; None before the first.

        Raises:
            RuntimeError: a thread that reads ahead asks, which cannot know which round its batch will meet.
        """
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "a batch that is drawn ahead depends on a round: look it up in losses, or say reads_ahead = False"
            )
        return self._result

    def state_dict(self) -> dict[str, Any]:
        """How many rounds there were, the step of the last, and what it gave."""
        return {"number": self.number, "step": self.step, "result": self._result}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken.

        Raises:
            ValueError: it had its rounds at other steps.
        """
        number, step = int(state["number"]), int(state["step"])
        if sum(map(self.due, range(step + 1))) != number or (number and not self.due(step)):
            raise ValueError(f"{number} rounds, the last before step {step}, are not those of {self.when}")
        self.number, self.step = number, step
        self._result = tree_map_only(Tensor, lambda x: x.to(self.device), state["result"])


def round_steps(total: int, rounds: int, source_share: float) -> list[int]:
    """Steps of the source and of each round: whole numbers that add up to the total, each at least 1 even where the
    total is below their number."""
    first = max(1, min(round(source_share * total), total - rounds))
    left = max(rounds, total - first)
    return [first, *(left * (k + 1) // rounds - left * k // rounds for k in range(rounds))]


@contextmanager
def as_it_stands(*modules: nn.Module) -> Iterator[None]:
    """Inside the block the modules are in evaluation mode and nothing has gradients; then each layer's mode is back."""
    modes = [(layer, layer.training) for module in modules for layer in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def live_rows(
    context: Context,
    features: Callable[[Tensor], Tensor],
    preprocess: Preprocess,
    number: int,
    per_image: int,
    data: Images | None = None,
    chosen: Sequence[int] | None = None,
) -> Tensor:
    """Rows of whole photographs from a network as it stands, for clustering: of this process's share of them.

    Args:
        context: of the run.
        features: (1, 3, H, W) on the device, normalised, to (1, D, h, w); called inside `as_it_stands`.
        preprocess: from photograph to input.
        number: of the round; which places are taken is a function of the seed, of it and of the image.
        per_image: rows of a photograph; all of one that has fewer.
        data: the photographs; those of the run if None.
        chosen: which of them, of all processes; all if None.

    Returns:
        float32 (N, D), in the order of the images, on the device.
    """
    images = context.data if data is None else data
    chosen = range(len(images)) if chosen is None else chosen
    rows = []
    for i in share(chosen):
        found = features(preprocess.apply(images.image(i))[None].to(context.device))[0].flatten(1).T  # (h*w, D)
        order = torch.randperm(len(found), generator=seeding.generator(context.seed, "rows", number, i))[:per_image]
        rows.append(found[order.to(found.device)].float())
    if not rows:
        raise ValueError(f"{len(chosen)} images leave none for process {rank()}")
    return torch.cat(rows)

"""Choosing an iterate by a held-out part of the labelled images, never by the images that are reported.

Off by default: with a dozen masks each held-out one is missed in training. The last iterate is then the result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskwright.data.folders.folder import Dataset
from maskwright.data.training.sources import Labels
from maskwright.engine import seeding
from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.evaluate.metrics import miou
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.training.criteria import IGNORE

if TYPE_CHECKING:
    from maskwright.recipes.training.setup import NetworkSetup

LOOKS = 10
"""How often the held-out images are looked at in a run."""


class Subset:
    """Some of the images with labels.

    Args:
        labels: of all.
        indices: of the images that are kept.
    """

    def __init__(self, labels: Labels, indices: list[int]) -> None:
        self.labels, self.indices, self.data = labels, indices, labels.data

    def read(self, i: int) -> Any:
        """Labels (H, W) of image `i`."""
        return self.labels.read(i)


def hold_out(labels: Labels, share: float, seed: int) -> tuple[Labels, list[int]]:
    """Splits the labelled images.

    Args:
        labels: of the images.
        share: of them that is held out; at least one image is held out and one kept.
        seed: of the run, which draws them.

    Returns:
        The labels to train on, and the images held out.
    """
    n = len(labels.indices)
    if share <= 0 or n < 2:
        return labels, []
    count = min(n - 1, max(1, round(share * n)))
    order = torch.randperm(n, generator=seeding.generator(seed, "holdout")).tolist()
    held = sorted(labels.indices[k] for k in order[:count])
    return Subset(labels, sorted(labels.indices[k] for k in order[count:])), held


class Selection:
    """Keeps the weights with the highest mIoU on the held-out images; part of the checkpoint.

    Args:
        data: the images.
        labels: their labels; read under the ledger's purpose `select`.
        held: the images held out.
        classes: C.
        preprocess: from photograph to input.
    """

    def __init__(self, data: Dataset, labels: Labels, held: list[int], classes: int, preprocess: Preprocess) -> None:
        self.data, self.labels, self.held, self.classes, self.preprocess = data, labels, held, classes, preprocess
        self.scores: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}

    @property
    def best_score(self) -> tuple[int, float]:
        """Step and mIoU of the kept weights; NaN, where no pixel has a label, is below all numbers."""
        return max(self.scores, key=lambda s: (not math.isnan(s[1]), s[1], -s[0]))

    def look(self, network: nn.Module, step: int, device: torch.device, judged: nn.Module | None = None) -> float:
        """Scores a network on the held-out images, whole, and keeps its weights if it is the best.

        Args:
            network: with `logits(x)`.
            step: the step it stands at.
            device: where it is.
            judged: what is scored in its place: the network as it would be kept, with the batch-norm statistics of
                photographs.
        """
        judged = network if judged is None else judged
        training = {m: m.training for m in judged.modules()}
        judged.eval()
        matrix = ConfusionMatrix(self.classes, self.classes, ignore=IGNORE)
        with torch.inference_mode(), self.data.ledger.purpose("select"):
            for i in self.held:
                x = self.preprocess.apply(self.data.image(i))[None].to(device)
                y = self.labels.read(i)
                logits = nn.functional.interpolate(judged.logits(x).float(), y.size, mode="bilinear")  # type: ignore[operator]
                matrix.update(logits.argmax(1)[0].cpu().numpy(), y.target(IGNORE).numpy())
        for m, mode in training.items():
            m.training = mode
        score = miou(matrix.counts)
        self.scores.append((step, score))
        if self.best_score[0] == step:
            self.best = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
        return score

    def after_step(self, setup: NetworkSetup, step: int) -> None:
        """Looks at the held-out images after one of `LOOKS` evenly spaced steps, and says at the last what was kept.

        Args:
            setup: whose kept network is judged, with the batch-norm statistics that it will have.
            step: that was made.
        """
        if not every(setup.steps, LOOKS)(step):
            return
        judged = copy.deepcopy(setup.kept)
        setup.with_statistics(judged)
        self.look(setup.kept, step, setup.device, judged)
        if step + 1 == setup.steps:
            (best, score), last = self.best_score, self.scores[-1][1]
            setup.context.note(
                f"Held-out images ({len(self.held)}): mIoU {100 * score:.1f} at step {best + 1}, which is kept; "
                f"{100 * last:.1f} at the last step."
            )

    def state_dict(self) -> dict[str, Any]:
        """Scores and the best weights."""
        return {"scores": [list(s) for s in self.scores], "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with what was seen."""
        self.scores = [(int(s), float(v)) for s, v in state["scores"]]
        self.best = state["best"]


def every(steps: int, looks: int) -> Callable[[int], bool]:
    """Whether a step is one of `looks` evenly spaced ones, the last among them."""
    return lambda step: (step + 1) * looks // steps > step * looks // steps

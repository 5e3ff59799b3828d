"""What two crops of one photograph have in common: SwAV, SimSiam and MoCo v2 as interchangeable losses.

Each is a module that is given the embeddings z of all crops and returns its loss L_e, and remembers what the crops
assigned, so that another branch (a shallow stage) can be supervised with the same targets (`supervise`). State that
outlives a step (prototypes, queues, momentum encoder) is in parameters and buffers and so in the checkpoint; queues
are filled in `after_step`, after the weights have moved, with the embeddings the step has used.

Legend: B photographs in this process, V crops, d embedding width, K prototypes; crops 0 and 1 are the global ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from maskwright.engine.distributed import reducer, world_size
from maskwright.ops.clustering.sinkhorn import sinkhorn
from maskwright.ops.losses.swapped import supervise, swapped_loss
from maskwright.recipes.banks import FeatureBank
from maskwright.recipes.ema import EMATeacher


class InstanceLoss(nn.Module):
    """L_e of any kind.

    Attributes:
        local_crops: whether crops beyond the two global ones enter the loss.
    """

    local_crops = False

    def before_step(self, step: int) -> None:
        """Called before the forward passes of each step."""

    def forward(self, z: Sequence[Tensor], images: Sequence[Tensor], step: int) -> Tensor:
        """L_e.

        Args:
            z: embeddings (B, d) of each of V crops, of any length.
            images: the two global crops' pixels, for encoders of their own.
            step: of the stage.
        """
        raise NotImplementedError

    def supervise(self, z: Sequence[Tensor]) -> Tensor:
        """The targets of the last `forward`, without gradient, as supervision of another branch's global crops.

        Args:
            z: the branch's embeddings (B, d) of the two global crops.
        """
        raise NotImplementedError

    def after_step(self, step: int, network: nn.Module) -> None:
        """Called after the optimisers' step: queues and moving averages."""


class SwAV(InstanceLoss):
    """Swapped prediction of balanced assignments to prototypes (Caron et al., NeurIPS 2020, arXiv 2006.09882).

    Args:
        width: d.
        prototypes: K.
        temperature: tau of the predictions.
        eps: of the assignments' Sinkhorn.
        iterations: of it.
        frozen: steps during which the prototypes do not move: they get no gradient at all, so neither weight decay
            nor momentum touches them.
        queue: rows of earlier embeddings, over all processes, that each crop's assignment is balanced with; 0 for
            none.
        queue_from: step from which the queue is filled; it is used once full.
    """

    local_crops = True

    def __init__(
        self,
        width: int,
        prototypes: int,
        *,
        temperature: float = 0.1,
        eps: float = 0.05,
        iterations: int = 3,
        frozen: int = 0,
        queue: int = 0,
        queue_from: int = 0,
    ) -> None:
        super().__init__()
        self.temperature, self.eps, self.iterations = temperature, eps, iterations
        self.frozen, self.queue_from = frozen, queue_from
        self.prototypes = nn.Linear(width, prototypes, bias=False)
        rows = -(-queue // world_size())
        self.queues = nn.ModuleList(FeatureBank(rows, width) for _ in range(2 if queue else 0))
        self._q: list[Tensor] = []
        self._z: list[Tensor] = []
        self.before_step(0)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Brings the prototypes to unit length."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def forward(self, z: Sequence[Tensor], images: Sequence[Tensor], step: int) -> Tensor:
        """L_swav over all crops; the first two assign."""
        c = self.prototypes.weight.detach() if step < self.frozen else self.prototypes.weight
        z = [F.normalize(x.float(), dim=1) for x in z]
        scores = [x @ c.T for x in z]
        self._z = [x.detach() for x in z[:2]]
        self._q = [self.assign(i, s.detach()) for i, s in enumerate(scores[:2])]
        return swapped_loss(scores, self._q, self.temperature)

    def queue(self, view: int) -> FeatureBank:
        """The embeddings of earlier steps, of one of the two global crops."""
        queue = self.queues[view]
        assert isinstance(queue, FeatureBank)
        return queue

    @torch.no_grad()
    def assign(self, view: int, scores: Tensor) -> Tensor:
        """q (B, K) of a global crop, balanced over this batch, the queue where it is full, and all processes."""
        rows = scores
        if len(self.queues):
            queue = self.queue(view)
            if len(queue) == queue.size:
                rows = torch.cat([queue.get() @ self.prototypes.weight.T, scores])
        return sinkhorn(rows, self.eps, self.iterations, all_reduce=reducer())[-len(scores) :]

    def supervise(self, z: Sequence[Tensor]) -> Tensor:
        """L_d2s with detached prototypes: a shallow branch must not move them."""
        c = self.prototypes.weight.detach()
        return supervise([F.normalize(x.float(), dim=1) @ c.T for x in z], self._q, self.temperature)

    def after_step(self, step: int, network: nn.Module) -> None:
        """Puts the step's embeddings into the queues."""
        if step >= self.queue_from:
            for view, z in zip(range(len(self.queues)), self._z):
                self.queue(view).add(z)


class SimSiam(InstanceLoss):
    """Negative cosine to the other crop's embedding behind a predictor (Chen & He, CVPR 2021, arXiv 2011.10566).

    Args:
        width: d.
        hidden: width of the predictor's bottleneck; d / 4 if None.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or max(1, width // 4)
        self.predictor = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, width),
        )
        self._z: list[Tensor] = []

    def forward(self, z: Sequence[Tensor], images: Sequence[Tensor], step: int) -> Tensor:
        """-1/2 [cos(h(z_1), sg z_2) + cos(h(z_2), sg z_1)]."""
        self._z = [x.detach() for x in z[:2]]
        return self.supervise([self.predictor(x) for x in z[:2]])

    def supervise(self, z: Sequence[Tensor]) -> Tensor:
        """-1/2 sum_i cos(z_{3-i}, sg of the deep z_i): the branch's own MLP is its predictor."""
        return -torch.stack([F.cosine_similarity(p, t, dim=1).mean() for p, t in zip(z, self._z[::-1])]).mean()


class MoCo(InstanceLoss):
    """Momentum contrast with a queue of negatives (He et al., CVPR 2020; v2: Chen et al., arXiv 2003.04297).

    Both crops are queries and both are keys, averaged, where MoCo v2 takes one of each: the crops are there anyway and
    shallow branches need both. The momentum encoder runs with running averages of batch-norm statistics, so that no
    statistic of a key's batch can tell which query it belongs to; the original shuffles batches between GPUs for it.

    Args:
        network: embeds images; followed by the momentum encoder.
        embed: of that network, images to (B, d).
        width: d.
        queue: negatives, over all processes.
        momentum: of the encoder.
        temperature: of the logits.
    """

    def __init__(
        self,
        network: nn.Module,
        embed: Callable[[Any, Tensor], Tensor],
        width: int,
        *,
        queue: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        self.temperature, self._embed = temperature, embed
        self.teacher = EMATeacher(network, momentum=momentum, buffers="ema", mode="eval")
        self.queue = FeatureBank(max(1, -(-queue // world_size())), width)
        # Random directions first, as in the original: the loss then has as many negatives at the start as at the end.
        self.queue.add(F.normalize(torch.randn(self.queue.size, width), dim=1))
        self._keys: list[Tensor] = []

    def forward(self, z: Sequence[Tensor], images: Sequence[Tensor], step: int) -> Tensor:
        """InfoNCE of each global crop against the other's key, averaged."""
        with torch.no_grad():
            self._keys = [F.normalize(self._embed(self.teacher.module, x).float(), dim=1) for x in images[:2]]
        return self.supervise(z[:2])

    def supervise(self, z: Sequence[Tensor]) -> Tensor:
        """1/2 sum_i InfoNCE(z_{3-i}, k_i) with the queue's negatives."""
        return torch.stack([self._contrast(q, k) for q, k in zip(z, self._keys[::-1])]).mean()

    def _contrast(self, query: Tensor, key: Tensor) -> Tensor:
        query = F.normalize(query.float(), dim=1)
        own = (query * key).sum(1, keepdim=True)  # (B, 1)
        logits = torch.cat([own, query @ self.queue.get().T], 1) / self.temperature
        return F.cross_entropy(logits, logits.new_zeros(len(query), dtype=torch.long))

    def after_step(self, step: int, network: nn.Module) -> None:
        """Moves the encoder and stores the keys."""
        self.teacher.update(network)
        for key in self._keys:
            self.queue.add(key)


M = TypeVar("M", bound=nn.Module)


def synchronised(module: M) -> M:
    """The module with batch statistics over all processes where there are several GPUs; as it is otherwise."""
    several = world_size() > 1 and dist.get_backend() == "nccl"
    # timm's, because torch's would drop the activations inside timm's norms
    return convert_sync_batchnorm(module) if several else module

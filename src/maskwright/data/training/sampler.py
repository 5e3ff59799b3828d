"""Which images come next: an order that is a function of (seed, epoch), and a position that is saved.

One global batch is drawn for all processes together; each takes its contiguous share, so that the shares in
order of rank are exactly the batch that one process alone would see. Restoring the position costs one
permutation, whatever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskwright.errors import MaskwrightError


class Sampler:
    """An endless stream of batches of indices.

    Args:
        n: images in the dataset.
        batch: images in a global batch, over all processes; may exceed n, then an image comes several times.
        seed: seed of the order.
        world: number of processes.
        rank: this process, from 0.
        shuffle: whether every epoch has its own random order; otherwise 0, 1, 2, ...
        drop_last: whether the rest of an epoch that does not fill a batch is left out. Otherwise the batch is
            filled from the next epoch, so that every batch is full and every image comes once an epoch.
        weights: chance of each image, (n,), not negative; an epoch is then n draws with replacement
            (rare-class sampling).

    Raises:
        MaskwrightError: an empty dataset, or a batch smaller than the number of processes.
    """

    def __init__(
        self,
        n: int,
        batch: int,
        seed: int = 0,
        world: int = 1,
        rank: int = 0,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        if n < 1:
            raise MaskwrightError("no images to draw from", "at least one", "check the folder and --split")
        if batch < 1 or batch < world:
            raise MaskwrightError(
                f"a batch of {batch} images for {world} process(es)",
                f"at least {max(1, world)}",
                "raise the batch",
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes")
        self.n, self.batch, self.seed, self.world, self.rank = n, batch, seed, world, rank
        self.shuffle, self.drop_last = shuffle, drop_last
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        if self.weights is not None and (
            self.weights.shape != (n,) or (self.weights < 0).any() or not self.weights.sum() > 0
        ):
            raise ValueError(f"weights of shape {self.weights.shape} for {n} images, not negative and not all 0")
        self.position = 0
        self._cached: tuple[int, np.ndarray] | None = None

    def _whole(self) -> int:
        return self.n // self.batch

    @property
    def epoch(self) -> int:
        """The epoch that the next batch begins in."""
        if self.drop_last and self.batch <= self.n:
            return self.position // self._whole()
        return self.position * self.batch // self.n

    def order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch in order, int64 (n,): a function of (seed, epoch) alone."""
        if self._cached is None or self._cached[0] != epoch:
            rng = np.random.default_rng([self.seed & 0xFFFFFFFFFFFFFFFF, epoch])
            if self.weights is not None:
                drawn = rng.choice(self.n, self.n, p=self.weights / self.weights.sum())
            elif self.shuffle:
                drawn = rng.permutation(self.n)
            else:
                drawn = np.arange(self.n)
            self._cached = (epoch, drawn.astype(np.int64))
        return self._cached[1]

    def global_batch(self, position: int) -> np.ndarray:
        """The indices of a batch over all processes, int64 (batch,).

        Args:
            position: how many batches were drawn before.
        """
        if self.drop_last and self.batch <= self.n:
            epoch, k = divmod(position, self._whole())
            return self.order(epoch)[k * self.batch : (k + 1) * self.batch].copy()
        parts, missing = [], self.batch
        epoch, start = divmod(position * self.batch, self.n)
        while missing:
            part = self.order(epoch)[start : start + missing]
            parts.append(part)
            missing -= len(part)
            epoch, start = epoch + 1, 0
        return np.concatenate(parts)

    def next(self) -> np.ndarray:
        """This process's share of the next batch, int64; shares differ by at most one image."""
        drawn = self.global_batch(self.position)
        self.position += 1
        return np.array_split(drawn, self.world)[self.rank]

    def state_dict(self) -> dict[str, Any]:
        """The position, and what the order depends on; the same on every process."""
        return {
            "position": self.position,
            "n": self.n,
            "batch": self.batch,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken, on any number of processes.

        Raises:
            MaskwrightError: when the state is of another dataset size, batch, seed or order.
        """
        for key, mine in self.state_dict().items():
            if key != "position" and state.get(key) != mine:
                raise MaskwrightError(
                    f"the saved run has {key} {state.get(key)!r}",
                    f"{key} {mine!r} as now",
                    "resume with the options and images of the saved run",
                )
        self.position = int(state["position"])


class PairSampler:
    """Labelled and unlabelled images side by side, each list cycled on its own.

    Args:
        labeled: indices of the labelled images.
        unlabeled: indices of the unlabelled images.
        batch: labelled images in a global batch.
        batch_unlabeled: unlabelled images in it; `batch` when None.
        seed: seed of both orders, which are independent.
        world: number of processes.
        rank: this process.
        drop_last: as in `Sampler`.
        weights: chance of each labelled image, or None.
    """

    def __init__(
        self,
        labeled: Sequence[int],
        unlabeled: Sequence[int],
        batch: int,
        batch_unlabeled: int | None = None,
        seed: int = 0,
        world: int = 1,
        rank: int = 0,
        *,
        drop_last: bool = False,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        self.labeled, self.unlabeled = np.asarray(labeled, np.int64), np.asarray(unlabeled, np.int64)
        # The seed of the second list is far from any that a user would give to the first.
        second = (seed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        self.of_labeled = Sampler(len(self.labeled), batch, seed, world, rank, drop_last=drop_last, weights=weights)
        self.of_unlabeled = Sampler(
            len(self.unlabeled),
            batch if batch_unlabeled is None else batch_unlabeled,
            second,
            world,
            rank,
            drop_last=drop_last,
        )

    @property
    def position(self) -> int:
        """Batches drawn."""
        return self.of_labeled.position

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """This process's share of the next labelled and unlabelled batch, as the indices that were given."""
        return self.labeled[self.of_labeled.next()], self.unlabeled[self.of_unlabeled.next()]

    def state_dict(self) -> dict[str, Any]:
        """The position in both lists."""
        return {"labeled": self.of_labeled.state_dict(), "unlabeled": self.of_unlabeled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken.

        Raises:
            MaskwrightError: when the state is of other lists, batches or seeds.
        """
        self.of_labeled.load_state_dict(state["labeled"])
        self.of_unlabeled.load_state_dict(state["unlabeled"])

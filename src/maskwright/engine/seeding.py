"""Random state as a function of what it is for.

No generator runs through a whole run: the loop seeds all of them anew at each step from (seed, step, rank), and every
stage draws its own from (seed, words). A resumed run therefore needs nothing but the step's number, and a stage's
draws do not depend on what ran before it.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive(seed: int, *salt: int | str) -> int:
    """A 63-bit seed from a seed and the words or numbers that say what it is for."""
    text = "\x1f".join(str(s) for s in (seed, *salt))
    return (
        int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little") >> 1
    )


def generator(seed: int, *salt: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for one purpose."""
    return torch.Generator(device=device).manual_seed(derive(seed, *salt))


def seed_step(seed: int, step: int, rank: int = 0, stage: str = "") -> None:
    """Seeds python, numpy and torch for one step of one stage in one process."""
    value = derive(seed, "step", stage, step, rank)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - libraries that draw from numpy's global state
    torch.manual_seed(value)


def initialise(seed: int, stage: str) -> None:
    """Seeds the global generators for what a stage draws before its first step: its initial weights."""
    seed_step(seed, -1, stage=stage)

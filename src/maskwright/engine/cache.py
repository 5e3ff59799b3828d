"""Dense features of a frozen encoder, computed once and kept on disk.

One file an image, in bfloat16, read through memory maps. The key is the encoder's weights, what is read from it,
the preprocessing and the image's content, so a changed image or network never finds an old entry. Files are written
beside and renamed, so two processes may fill the same cache: both write the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from maskwright.data.files import atomic_write
from maskwright.engine.distributed import barrier, share

if TYPE_CHECKING:
    from maskwright.data.folder import Dataset
    from maskwright.engine.progress import Progress
    from maskwright.models.preprocess import Preprocess
    from maskwright.models.segmenter import BackboneEncoder

FORMAT = "1"


def default_cache_root() -> Path:
    """Where features are kept: MASKWRIGHT_CACHE, else the user's cache folder."""
    named = os.environ.get("MASKWRIGHT_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "maskwright"


def write_features(path: Path, features: Tensor) -> None:
    """Writes features (D, h, w) as bfloat16 to an .npy file of their raw bits."""
    bits = features.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()
    with atomic_write(path, durable=False) as beside:
        np.save(beside, bits)


def read_features(path: Path) -> Tensor:
    """Features (D, h, w) in bfloat16, memory-mapped read-only where the platform can.

    Raises:
        ValueError: when the file is damaged.
    """
    try:
        bits = np.load(path, mmap_mode="c", allow_pickle=False)
    except (EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return torch.from_numpy(bits).view(torch.bfloat16)


class FeatureStore:
    """The features of a dataset's images, in its order.

    Args:
        paths: one file an image.
        memory: bytes below which everything is held in memory after the first read.
    """

    def __init__(self, paths: Sequence[Path], memory: int = 1 << 30) -> None:
        self.paths = list(paths)
        total = sum(p.stat().st_size for p in self.paths)
        self._held: list[Tensor | None] | None = [None] * len(self.paths) if total <= memory else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        """Features (D, h, w) of image i, bfloat16."""
        if self._held is None:
            return read_features(self.paths[i])
        held = self._held[i]
        if held is None:
            held = self._held[i] = read_features(self.paths[i]).clone()
        return held

    @property
    def width(self) -> int:
        """Number of channels D."""
        return self[0].shape[0]


class FeatureCache:
    """Keeps dense features by encoder, preprocessing and image content.

    Args:
        root: folder of the cache.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root is not None else default_cache_root() / "features"

    def folder(self, encoder: BackboneEncoder, preprocess: Preprocess) -> Path:
        """The folder of one encoder under one preprocessing."""
        what = {
            "format": FORMAT,
            "weights": encoder.key,
            "encoder": encoder.spec(),
            "preprocess": preprocess.to_json(),
        }
        text = json.dumps(what, sort_keys=True, default=str)
        return self.root / hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def features(
        self,
        encoder: BackboneEncoder,
        preprocess: Preprocess,
        data: Dataset,
        *,
        progress: Progress,
        device: torch.device | str = "cpu",
        batch: int = 8,
    ) -> FeatureStore:
        """The store of a dataset's features; what is missing is computed, by all processes together.

        Args:
            encoder: frozen; gives (B, D, h, w).
            preprocess: image to network input.
            data: the images.
            progress: shows the work.
            device: where the encoder runs.
            batch: images a forward pass, where neighbours have the same size.
        """
        folder = self.folder(encoder, preprocess)
        paths = [folder / (h := data.content_hash(i))[:2] / f"{h}.npy" for i in range(len(data))]
        missing = [i for i in share(range(len(data))) if not _sound(paths[i])]
        if missing:
            encoder = encoder.to(device).eval()
            with progress.task("features", len(missing)) as task:
                for done, (some, x) in enumerate(_batches(data, preprocess, missing, batch)):
                    with torch.inference_mode():
                        f = encoder(x.to(device))
                    for i, one in zip(some, f):
                        write_features(paths[i], one)
                    task.advance_to(min(len(missing), (done + 1) * batch))
        barrier()
        return FeatureStore(paths)


def _sound(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        read_features(path)
    except ValueError:
        return False
    return True


def _batches(data: Dataset, preprocess: Preprocess, indices: Sequence[int], batch: int):
    """Groups of neighbouring images whose inputs have the same size."""
    some: list[int] = []
    inputs: list[Tensor] = []
    for i in indices:
        x = preprocess.apply(data.image(i))
        if inputs and (x.shape != inputs[0].shape or len(inputs) == batch):
            yield some, torch.stack(inputs)
            some, inputs = [], []
        some.append(i)
        inputs.append(x)
    if inputs:
        yield some, torch.stack(inputs)

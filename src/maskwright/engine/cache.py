"""Dense features of a frozen encoder, computed once and kept on disk.

One file an image, in bfloat16, read through memory maps. The key is the encoder's weights, what is read from it,
the preprocessing and the image's content, so a changed image or network never finds an old entry. Files are written
beside and renamed, so two processes may fill the same cache.

The last bits of a network's output depend on the shape of the batch. Every forward pass therefore has the same number
of images, so that features are a function of the image, not of what lay in the cache before.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
HEADER_BYTES = 128
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '<u2', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), \} *\n"
)


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
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {bits.shape}, }}".ljust(HEADER_BYTES - 11) + "\n"
    with atomic_write(path, durable=False) as beside, beside.open("wb") as out:
        out.write(b"\x93NUMPY\x01\x00v\x00" + header.encode())
        out.write(bits.data)


def read_features(path: Path) -> Tensor:
    """Features (D, h, w) in bfloat16, memory-mapped; writing to them does not reach the file.

    Raises:
        ValueError: when the file is damaged.
    """
    # np.load does the same in three times the time, most of which goes into its header.
    try:
        with path.open("rb", buffering=0) as file:
            header = HEADER.match(file.read(HEADER_BYTES))
            size = os.fstat(file.fileno()).st_size
        if header is None:
            raise ValueError(f"{path} is damaged: no features (D, h, w)")
        shape = tuple(int(n) for n in header.groups())
        if size != HEADER_BYTES + 2 * math.prod(shape):
            raise ValueError(f"{path} is damaged: {size} bytes, too few or too many for {shape}")
        words = torch.from_file(str(path), shared=False, size=size // 2, dtype=torch.bfloat16)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return words[HEADER_BYTES // 2 :].view(shape)


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
        batch: int | None = None,
    ) -> FeatureStore:
        """The store of a dataset's features; what is missing is computed, by all processes together.

        Args:
            encoder: frozen; gives (B, D, h, w).
            preprocess: image to network input.
            data: the images.
            progress: shows the work.
            device: where the encoder runs.
            batch: images a forward pass, all of one size; by default 1 on a CPU, where more are no faster, and 8
                elsewhere.
        """
        folder = self.folder(encoder, preprocess)
        paths = [folder / (h := data.content_hash(i))[:2] / f"{h}.npy" for i in range(len(data))]
        missing = [i for i in share(range(len(data))) if not _sound(paths[i])]
        if missing:
            encoder = encoder.to(device).eval()
            size = batch or (1 if torch.device(device).type == "cpu" else 8)
            done = 0
            with progress.task("features", len(missing)) as task:
                for some, x in _batches(data, preprocess, missing, size):
                    with torch.inference_mode():
                        f = encoder(x.to(device))
                    for i, one in zip(some, f):
                        write_features(paths[i], one)
                    done += len(some)
                    task.advance_to(done)
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


def _batches(
    data: Dataset, preprocess: Preprocess, indices: Sequence[int], batch: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Groups of images whose inputs have the same size, with inputs (batch, 3, h, w); a group that is smaller than
    `batch` is filled up with its last image."""
    if batch > 1:
        indices = sorted(indices, key=lambda i: preprocess.target_size(data.size(i)))
    some: list[int] = []
    inputs: list[Tensor] = []
    for i in indices:
        x = preprocess.apply(data.image(i))
        if inputs and (x.shape != inputs[0].shape or len(inputs) == batch):
            yield some, _filled(inputs, batch)
            some, inputs = [], []
        some.append(i)
        inputs.append(x)
    if inputs:
        yield some, _filled(inputs, batch)


def _filled(inputs: list[Tensor], batch: int) -> Tensor:
    return torch.stack(inputs + inputs[-1:] * (batch - len(inputs)))

"""Dense features of a frozen encoder, computed once and kept on disk.

One file an image, in bfloat16, read through memory maps. The key is the encoder's weights, what is read from it,
the preprocessing, the kind of device and the image's content, so a changed image or network never finds an old entry,
and a run on one kind of device does not hang on what another left. Files are written
beside and renamed, so two processes may fill the same cache. Each holds a checksum, which is compared when the file is
first read: a damaged file is computed anew. A cache that cannot be written stops nothing: features then lie in the run.

The last bits of a network's output depend on the shape of the batch. Every forward pass therefore has the same number
of images, so that features are a function of the image, not of what lay in the cache before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from maskwright.data.trust.files import atomic_write, sweep
from maskwright.data.trust.remembered import cache_root
from maskwright.engine.distributed import barrier, share
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.engine.progress import Progress
    from maskwright.models.parts.encoder import BackboneEncoder
    from maskwright.models.preprocess import Preprocess

FEATURES = ".features"
"""Folder of a run for features that the cache could not take; gone when the run is finished."""
FORMAT = "2"
HEADER_BYTES = 128
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '<u2', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9}), (\d{1,9})\), \}"
    rb" # crc32 ([0-9a-f]{8}) *\n"
)
"""An .npy header whose comment, which numpy passes over, is the checksum of shape and values."""


def write_features(path: Path, features: Tensor) -> None:
    """Writes features (D, h, w) as bfloat16 to an .npy file of their raw bits, with a checksum in its header."""
    bits = features.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()
    said = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {bits.shape}, }} # crc32 {_checksum(bits):08x}"
    with atomic_write(path, durable=False) as beside, beside.open("wb") as out:
        out.write(b"\x93NUMPY\x01\x00v\x00" + said.ljust(HEADER_BYTES - 11).encode() + b"\n")
        out.write(bits.data)


def _checksum(bits: np.ndarray) -> int:
    """CRC-32 of the shape and of raw bits, uint16 (D, h, w)."""
    return zlib.crc32(bits.data, zlib.crc32(repr(bits.shape).encode()))


def read_features(path: Path, *, check: bool = True) -> Tensor:
    """Features (D, h, w) in bfloat16, memory-mapped; writing to them does not reach the file.

    Args:
        path: the file.
        check: compare the checksum, which reads all of it.

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
        shape = tuple(int(n) for n in header.groups()[:3])
        if size != HEADER_BYTES + 2 * math.prod(shape) or not math.prod(shape):
            raise ValueError(f"{path} is damaged: {size} bytes, too few or too many for {shape}")
        words = torch.from_file(str(path), shared=False, size=size // 2, dtype=torch.bfloat16)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    found = words[HEADER_BYTES // 2 :].view(shape)
    if check and _checksum(found.view(torch.uint16).numpy()) != int(header[4], 16):
        raise ValueError(f"{path} is damaged: its checksum does not fit")
    return found


class FeatureStore:
    """The features of a dataset's images, in its order.

    Args:
        paths: one file an image.
        memory: bytes below which everything is held in memory after the first read.
        make: computes the features of an image anew, where its file turns out to be damaged.
    """

    def __init__(
        self, paths: Sequence[Path], memory: int = 1 << 30, make: Callable[[int], Tensor] | None = None
    ) -> None:
        self.paths = list(paths)
        total = sum(p.stat().st_size for p in self.paths)
        self._held: list[Tensor | None] | None = [None] * len(self.paths) if total <= memory else None
        self._make, self._checked, self._made = make, [False] * len(self.paths), dict[int, Tensor]()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        """Features (D, h, w) of image i, bfloat16.

        Raises:
            ValueError: the file is damaged, and there is no way to make it anew.
        """
        if self._held is None:
            return self._read(i)
        held = self._held[i]
        if held is None:
            held = self._held[i] = self._read(i).clone()
        return held

    def _read(self, i: int) -> Tensor:
        if i in self._made:
            return self._made[i]
        try:
            found = read_features(self.paths[i], check=not self._checked[i])
        except ValueError:
            if self._make is None:
                raise
            found = self._made[i] = self._make(i)
        self._checked[i] = True
        return found

    @property
    def width(self) -> int:
        """Number of channels D."""
        return self[0].shape[0]


class Images(Protocol):
    """What features are of: a data set, or parts of its photographs."""

    def __len__(self) -> int: ...

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of image i, pixels."""

    def image(self, i: int) -> np.ndarray:
        """uint8 (H, W, 3)."""

    def content_hash(self, i: int) -> str:
        """A hash of what image i shows, hexadecimal."""


class FeatureCache:
    """Keeps dense features by encoder, preprocessing and image content.

    Args:
        root: folder of the cache.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root is not None else cache_root() / "features"

    def folder(self, encoder: BackboneEncoder, preprocess: Preprocess, device: torch.device | str = "cpu") -> Path:
        """The folder of one encoder under one preprocessing, computed on one kind of device."""
        what = {
            "format": FORMAT,
            "weights": encoder.key,
            "encoder": encoder.spec(),
            "preprocess": preprocess.to_json(),
        }
        kind = torch.device(device).type
        if kind != "cpu":  # sums have another order there, and products may have fewer bits
            what |= {"device": kind, "products": torch.get_float32_matmul_precision()}
        text = json.dumps(what, sort_keys=True, default=str)
        return self.root / hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def features(
        self,
        encoder: BackboneEncoder,
        preprocess: Preprocess,
        data: Images,
        *,
        progress: Progress,
        device: torch.device | str = "cpu",
        batch: int | None = None,
        instead: Path | None = None,
    ) -> FeatureStore:
        """The store of the features of images; what is missing is computed, by all processes together.

        Args:
            encoder: frozen; gives (B, D, h, w).
            preprocess: image to network input.
            data: the images.
            progress: shows the work.
            device: where the encoder runs.
            batch: images a forward pass, all of one size; by default 1 on a CPU, where more are no faster, and 8
                elsewhere.
            instead: a folder for what the cache cannot take (no right to write, no room).

        Raises:
            MaskwrightError: the cache cannot be written, and `instead` is None or cannot either.
        """
        folder = self.folder(encoder, preprocess, device)
        sweep([folder], deep=True)
        names = [f"{(h := data.content_hash(i))[:2]}/{h}.npy" for i in range(len(data))]
        spare = None if instead is None else instead / folder.name
        places = [folder] if spare is None else [folder, spare]

        def found(i: int) -> Path | None:
            return next((p / names[i] for p in places if _sound(p / names[i])), None)

        size = batch or (1 if torch.device(device).type == "cpu" else 8)

        def made(some: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
            network = encoder.to(device).eval()
            for chunk, x in _batches(data, preprocess, some, size):
                with torch.inference_mode():
                    f = network(x.to(device))
                yield from zip(chunk, f)

        alone = sorted({name: i for i, name in reversed(list(enumerate(names)))}.values())  # copies have one file
        missing = [i for i in share(alone) if found(i) is None]
        if missing:
            target = folder
            with progress.task("features", len(missing)) as task:
                for done, (i, one) in enumerate(made(missing), 1):
                    try:
                        write_features(target / names[i], one)
                    except MaskwrightError as error:
                        if spare is None or target == spare:
                            raise
                        progress.say(f"{error.found}: features are kept in {instead} for this run")
                        target = spare
                        write_features(target / names[i], one)
                    task.advance_to(done)
        barrier()

        key = encoder.key

        def again(i: int) -> Tensor:
            if encoder.key != key:  # trained since
                raise ValueError(f"{paths[i]} is damaged, and its network is no longer what it was")
            one = next(f for _, f in made([i])).to("cpu", torch.bfloat16)
            with contextlib.suppress(MaskwrightError):
                write_features(paths[i], one)
            return one

        paths = [next((p / n for p in places if (p / n).exists()), folder / n) for n in names]
        return FeatureStore(paths, make=again)


def _sound(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        read_features(path, check=False)
    except ValueError:
        return False
    return True


def _batches(
    data: Images, preprocess: Preprocess, indices: Sequence[int], batch: int
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

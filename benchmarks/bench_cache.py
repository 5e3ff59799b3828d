"""Features of a frozen network: read from the cache, beside computing them again and beside `torch.load`.

Maps are those of EfficientNet-Lite0 at stride 16 for a photograph of 320 x 432: 112 x 20 x 27 in bfloat16. All ways end
with the 200 maps in memory; files are in the page cache, as they are from the second pass of a training on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Row, side_by_side
from maskwright.engine.cache import FeatureStore, write_features
from maskwright.models.backbones.build import build_backbone

MAPS, COMPUTED = 200, 10
"""Maps read, and those computed again: the time of these is scaled to as many."""
STRIDE = 16
MEMORY_RATE = 32e9
"""Bytes a second of a memory copy on one thread."""


def gather(maps: FeatureStore, out: Tensor) -> Tensor:
    """All maps of a store, in memory."""
    for i in range(len(maps)):
        out[i] = maps[i]
    return out


def load(paths: list[Path], out: Tensor) -> Tensor:
    """The same from files that `torch.save` wrote."""
    for i, path in enumerate(paths):
        out[i] = torch.load(path, weights_only=True)
    return out


def load_arrays(paths: list[Path], out: Tensor) -> Tensor:
    """The same from float32 .npy files, read whole."""
    for i, path in enumerate(paths):
        out[i] = torch.from_numpy(np.load(path))
    return out


def rows() -> list[Row]:
    """One thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _rows(Path(folder))
    finally:
        torch.set_num_threads(threads)


def _rows(folder: Path) -> list[Row]:
    backbone = build_backbone("tf_efficientnet_lite0", "random").eval()
    layer = backbone.strides.index(STRIDE)
    images = torch.randn(COMPUTED, 3, 320, 432, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def compute() -> Tensor:
        return torch.cat([backbone.dense(x[None], layer=layer) for x in images]).to(torch.bfloat16)

    maps = compute()
    shape = tuple(maps.shape[1:])
    ours = [folder / f"{i}.npy" for i in range(MAPS)]
    torchs = [folder / f"{i}.pt" for i in range(MAPS)]
    arrays = [folder / f"{i}.32.npy" for i in range(MAPS)]
    for i in range(MAPS):
        one = maps[i % COMPUTED].clone()
        write_features(ours[i], one)
        torch.save(one, torchs[i])
        np.save(arrays[i], one.float().numpy())

    store = FeatureStore(ours, memory=0)
    out = torch.empty(MAPS, *shape, dtype=torch.bfloat16)
    expected = maps[torch.arange(MAPS) % COMPUTED]
    same = [torch.equal(way(source, out.zero_()), expected)
            for way, source in ((gather, store), (load, torchs), (load_arrays, arrays))]  # fmt: skip
    agrees = "maps equal" if all(same) else "MAPS DIFFER"

    mine, torch_s, numpy_s = side_by_side(
        lambda: gather(store, out), lambda: load(torchs, out), lambda: load_arrays(arrays, out), repeats=9
    )
    again, computed = side_by_side(lambda: gather(store, out), compute, repeats=3)
    path = f"feature cache, {MAPS} maps of {'x'.join(map(str, shape))}"
    limit = 2 * out.numel() / MEMORY_RATE
    return [
        Row(path, again, "EfficientNet-Lite0 again", computed * MAPS / COMPUTED, 20.0, limit, agrees),
        Row(path, mine, "torch.load of .pt", torch_s, 2.0, limit, agrees),
        Row(path, mine, "np.load of float32", numpy_s, 1.0, limit, agrees),
    ]


if __name__ == "__main__":
    for r in rows():
        print(f"{r.path:50s} {r.ours_s * 1e3:8.2f} ms, {r.other} {r.ratio:6.1f}x (asked {r.asked}), {r.agrees}")

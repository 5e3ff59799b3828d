"""Class maps of a data set, at several sizes and of the mirrored photographs, stored by image.

    infer_cams      network -> CamStore: the tagged classes' maps of each image, fp16, at a quarter of its size

Legend: B batch, T tags, K tags of one image, (H, W) image size, (h, w) size of the stored maps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.training.tag_targets import TagTargets
from maskwright.data.trust.artefacts import Damage, read_arrays, unreadable, write_arrays
from maskwright.data.trust.files import file_for
from maskwright.engine.distributed import barrier, share
from maskwright.models.backbones.dense import autocast
from maskwright.models.preprocess import Preprocess
from maskwright.ops.cam import fuse_flips, fuse_scales, normalize_cam, resize_maps
from maskwright.ops.memory import PixelBudget
from maskwright.recipes.tags.network import tag_preprocess
from maskwright.recipes.training.forward import precision_of

if TYPE_CHECKING:
    from maskwright.engine.context import Context

MAPS = "maps"
"""Folder of the maps in a stage's."""
GRAIN = 4
"""Pixels of the network's input a cell of the stored maps."""
BATCH_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 23}
"""Input pixels of a batch: on a CPU activations of more leave the cache and cost more than a second call."""
MAX_CHUNK = 16
"""Photographs decoded at a time."""

Maps = Callable[[Tensor, Tensor], Tensor]
"""(images (B, 3, H, W), tags (B, T)) -> maps (B, T, h, w), not negative."""


@dataclass(frozen=True)
class ImageCams:
    """The maps of one image.

    Attributes:
        keys: (K,) class ids of its tags, ascending.
        maps: (K, h, w) float32 in [0, 1].
        size: (H, W) of the image.
    """

    keys: Tensor
    maps: Tensor
    size: tuple[int, int]

    def full(self) -> Tensor:
        """Maps at the image's size, (K, H, W)."""
        return resize_maps(self.maps, self.size)

    def top(self, background: int | None = None, full: bool = True) -> tuple[Tensor, Tensor]:
        """The largest value (H, W) and its class id; without tags 0 and the background (or class 0)."""
        maps = self.full() if full else self.maps
        if not len(self.keys):
            size = maps.shape[-2:]
            return torch.zeros(size), torch.full(size, background or 0, dtype=torch.int64)
        value, channel = maps.max(0)
        return value, self.keys[channel]


class CamStore:
    """Maps on disk: one compressed file an image, with the tagged classes only.

    Args:
        folder: where; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The file of an image."""
        return file_for(self.folder, name, ".npz")

    def __contains__(self, name: str) -> bool:
        return self.path(name).exists()

    def write(self, name: str, cams: ImageCams) -> None:
        """Stores the maps of an image, fp16, renamed into place."""
        arrays = {
            "keys": cams.keys.numpy().astype(np.int32),
            "maps": cams.maps.numpy().astype(np.float16),
            "size": np.array(cams.size, np.int32),
        }
        write_arrays(self.path(name), arrays, compressed=True, durable=False)

    def read(self, name: str) -> ImageCams:
        """The maps of an image.

        Raises:
            MaskwrightError: there are none, or they are damaged.
        """
        path = self.path(name)
        try:
            found = read_arrays(path, {"keys": ("iu", "K"), "maps": ("f", "Khw"), "size": ("iu", "2")})
            keys, (height, width) = found["keys"].astype(np.int64), found["size"].tolist()
            if (np.diff(keys) <= 0).any() or (keys < 0).any() or min(height, width) < 1:
                raise Damage("ids or sizes that no image has")
        except Damage as error:
            mark = self.folder.parent / "stage.json"
            repair = f"delete {path} and {mark}, and repeat the command with --resume"
            raise unreadable(path, error, f"the maps of {name}", repair) from error
        return ImageCams(torch.from_numpy(keys), torch.from_numpy(found["maps"].astype(np.float32)), (height, width))


@dataclass(frozen=True)
class MultiScale:
    """Class maps of images at several sizes, with their mirror images.

    Attributes:
        maps: the network; put it into evaluation mode before.
        preprocess: size at scale 1 and normalisation.
        scales: factors on that size.
        flips: the mirrored image too.
        fuse: how scales and flips are joined.
        norm: how each map gets its range.
        device: where the network runs.
        precision: makes the context of forward passes.
    """

    maps: Maps
    preprocess: Preprocess
    scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0)
    flips: bool = True
    fuse: str = "sum"
    norm: str = "max"
    device: torch.device | str = "cpu"
    precision: Callable[[], Any] = nullcontext

    @property
    def budget(self) -> int:
        """Input pixels of a batch."""
        return BATCH_PIXELS.get(torch.device(self.device).type, BATCH_PIXELS["cpu"])

    def at_scale(self, images: Sequence[np.ndarray], tags: Tensor, base: tuple[int, int], scale: float) -> list[Tensor]:
        """Maps at one scale, joined with those of the mirror images.

        Args:
            images: uint8 (H, W, 3) each.
            tags: (B, T).
            base: (h, w) of the input at scale 1.
            scale: factor on it.

        Returns:
            (K, h', w') of each image's tags, fp32 on the CPU, at the network's resolution.
        """
        m = self.preprocess.multiple_of
        height, width = (max(1, int(side * scale / m + 0.5)) * m for side in base)
        x, y = self.preprocess.apply_many(images, (height, width)), tags.bool()
        if self.flips:
            x, y = torch.cat([x, x.flip(-1)]), torch.cat([y, y])

        def seen(chosen: Sequence[int]) -> list[Tensor]:
            rows = slice(chosen[0], chosen[-1] + 1)
            part, tagged = x[rows].to(self.device).contiguous(memory_format=torch.channels_last), y[rows]
            with self.precision():
                out = self.maps(part, tagged.to(self.device))
            return [out[b][tagged[b].to(out.device)].float().cpu() for b in range(len(part))]

        batches = PixelBudget(self.budget).batches(range(len(x)), (height, width), seen)
        found = [one for _, maps in batches for one in maps]
        n = len(images)
        return [fuse_flips(a, b, self.fuse) for a, b in zip(found[:n], found[n:])] if self.flips else found

    def joined(self, images: Sequence[np.ndarray], tags: Tensor, base: tuple[int, int]) -> list[Tensor]:
        """Normalised maps (K, h, w) of each image at a quarter of its input size; arguments as for `at_scale`."""
        grid = (-(-base[0] // GRAIN), -(-base[1] // GRAIN))
        by_scale = [self.at_scale(images, tags, base, s) for s in self.scales]
        return [normalize_cam(fuse_scales(sized, grid, self.fuse), self.norm) for sized in zip(*by_scale)]


def infer_cams(
    data: Dataset,
    indices: Sequence[int],
    targets: TagTargets,
    inference: MultiScale,
    store: CamStore,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Class maps of images, stored one by one; what the store has already is skipped.

    Images of one size share batches, an image is decoded once, and only the maps of its own tags leave the network's
    resolution: they are joined at a quarter of its input, never at full size.

    Args:
        data: the images.
        indices: which; their names are among the targets.
        targets: what they are tagged with.
        inference: the network and its scales.
        store: where maps go.
        advance: called with the number of images done.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    done, ids = 0, torch.tensor(targets.ids)
    for i in indices:
        if data.items[i].name in store:
            done += 1
        else:
            groups[inference.preprocess.target_size(data.size(i))].append(i)
    if advance is not None:
        advance(done)
    for base, members in sorted(groups.items()):
        count = max(1, min(MAX_CHUNK, inference.budget // (base[0] * base[1])))
        for start in range(0, len(members), count):
            chunk = members[start : start + count]
            names = [data.items[i].name for i in chunk]
            tags = torch.stack([targets.multi_hot(name) for name in names])
            found = inference.joined([data.image(i) for i in chunk], tags, base)
            for i, name, row, maps in zip(chunk, names, tags, found):
                store.write(name, ImageCams(ids[row.bool()], maps, data.size(i)))
            done += len(chunk)
            if advance is not None:
                advance(done)


def multi_scale(context: Context, config: Any, maps: Maps, multiple_of: int) -> MultiScale:
    """A network's maps at the configured scales.

    Args:
        context: of the run.
        config: options, a `TagsConfig`.
        maps: of the network.
        multiple_of: what sides of its input are multiples of.
    """
    m, device = config.maps, context.device
    precision = partial(autocast, device, precision_of(config.precision, device))
    return MultiScale(
        maps, tag_preprocess(context, config, multiple_of), m.scales, m.flips, m.fuse, m.norm, device, precision
    )


def plain_maps(network: Any) -> Maps:
    """The class maps of a `CamNetwork`, positive evidence only."""

    @torch.no_grad()
    def class_maps(x: Tensor, tags: Tensor) -> Tensor:
        return network(x).cams.float().relu()

    return class_maps


def write_cams(context: Context, targets: TagTargets, inference: MultiScale, store: CamStore) -> None:
    """Class maps of all tagged images of a run, by all of its processes, shown as progress; as `infer_cams`."""
    mine = share(targets.indices(context.data))
    with context.progress.task("cams", len(mine)) as task:
        infer_cams(context.data, mine, targets, inference, store, task.advance_to)
    barrier()

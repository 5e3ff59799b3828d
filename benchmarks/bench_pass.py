"""PASS's pretraining step beside a plain loop of the same network on the same crops, and what memory it takes.

The plain loop is what one would write in an afternoon: torchvision's crops, flips, jitter, grey and blur from the
decoded photograph, one forward pass a resolution, SwAV's loss with its Sinkhorn, pixel alignment, SGD. Both sides
run ResNet-18 with the same heads on the same number of crops of the same sizes, in fp32, one thread. Run as a module it
also prints the rows of memory: bytes of parameters, optimiser, queue and of what backward keeps, by prototypes, queue
and crops; and what a run of ImageNet-S 919 would take, from a rate that is given or from what one thread here does
(`forecast`).
"""

from __future__ import annotations

import sys
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.data.folders.folder import Dataset, Item, Readers
from maskwright.data.training.augment import photometric
from maskwright.engine.config import configure
from maskwright.methods.unsupervised.pass_.network import PassNetwork
from maskwright.methods.unsupervised.pass_.options import PassConfig
from maskwright.methods.unsupervised.pass_.training import Pretraining
from maskwright.models.backbones.build import build_backbone
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.pretraining.instance import SwAV
from maskwright.recipes.pretraining.multicrop import MultiCrops

BATCH, SIDE, LOCAL, LOCALS, SHARE = 8, 128, 64, 2, 0.14
PROTOTYPES, HIDDEN, DIM = 500, 512, 128
IMAGENET_S919, EPOCHS919 = 1_183_322, 100


def photographs(count: int = BATCH) -> list[np.ndarray]:
    """Smooth random pictures, uint8 (213, 320, 3)."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 12, 18, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(x).resize((320, 213), Image.Resampling.BICUBIC)) for x in small]


def dataset(pictures: list[np.ndarray]) -> Dataset:
    """The pictures as a dataset that reads from memory, so that both sides begin at decoded pixels."""
    items = [Item(str(i), __file__) for i in range(len(pictures))]  # type: ignore[arg-type]
    held = _Held(".", items, readers=Readers())
    held.pictures = pictures
    return held


class _Held(Dataset):
    pictures: list[np.ndarray]

    def image(self, i: int) -> np.ndarray:
        return self.pictures[i]


def ours(
    pictures: list[np.ndarray], prototypes: int = PROTOTYPES, queue: int = 0, locals_: int = LOCALS
) -> Pretraining:
    """The training of `--method pass`."""
    torch.manual_seed(0)
    network = PassNetwork(build_backbone("resnet18", "random").requires_grad_(True), (3,), HIDDEN, DIM, True)
    groups = [(2, (SIDE, SIDE), (SHARE, 1.0)), (locals_, (LOCAL, LOCAL), (0.05, SHARE))]
    crops = MultiCrops(dataset(pictures), groups, photometric("simclr"), Preprocess(), threads=1)
    config = configure(PassConfig, {"hidden": HIDDEN, "prototypes": prototypes})
    return Pretraining(network, SwAV(DIM, prototypes, queue=queue), crops, config)


def our_step(training: Pretraining, step: list[int]) -> None:
    """One batch and one update, as the loop does them without its records."""
    batch = training.on_device(training.batch(list(range(BATCH)), torch.Generator().manual_seed(step[0])))
    terms = training.losses(batch, step[0])
    optimizer = training.optimizers["larc"]
    optimizer.zero_grad(set_to_none=True)
    terms["loss"].backward()
    optimizer.step()
    training.after_step(step[0])
    step[0] += 1


class Plain:
    """The plain loop."""

    def __init__(self, pictures: list[np.ndarray]) -> None:
        torch.manual_seed(0)
        self.net = PassNetwork(
            build_backbone("resnet18", "random").requires_grad_(True), (3,), HIDDEN, DIM, True
        ).train()
        self.prototypes = nn.Linear(DIM, PROTOTYPES, bias=False)
        self.pictures = [torch.from_numpy(p.copy()).permute(2, 0, 1) for p in pictures]
        jitter = v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8)
        blur = v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], 0.5)
        colour = [
            v2.RandomHorizontalFlip(),
            jitter,
            v2.RandomGrayscale(0.2),
            blur,
            v2.ToDtype(torch.float32, scale=True),
        ]
        normal = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.large = v2.Compose([v2.RandomResizedCrop(SIDE, (SHARE, 1.0), antialias=True), *colour, normal])
        self.small = v2.Compose([v2.RandomResizedCrop(LOCAL, (0.05, SHARE), antialias=True), *colour, normal])
        parameters = [*self.net.parameters(), *self.prototypes.parameters()]
        self.optimizer = torch.optim.SGD(parameters, 0.1, 0.9, weight_decay=1e-6)

    @torch.no_grad()
    def assign(self, scores: Tensor) -> Tensor:
        q = torch.exp(scores / 0.05).T
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / q.shape[0]
            q = q / q.sum(0, keepdim=True) / q.shape[1]
        return (q * q.shape[1]).T

    def step(self) -> None:
        """One batch and one update; the pixel grid is the whole crop's, which costs what the overlap's does."""
        x = torch.stack([self.large(p) for _ in range(2) for p in self.pictures])
        y = torch.stack([self.small(p) for _ in range(LOCALS) for p in self.pictures])
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        out = self.net(x, y)
        scores = [self.prototypes(F.normalize(z, dim=1)) for z in out.z]
        shallow = F.linear(F.normalize(out.shallow[0], dim=1), self.prototypes.weight.detach()).chunk(2)
        q = [self.assign(s.detach()) for s in scores[:2]]
        loss = torch.zeros(())
        for i in range(2):
            terms = [-(q[i] * (s / 0.1).log_softmax(1)).sum(1).mean() for v, s in enumerate(scores) if v != i]
            d2s = -(q[i] * (shallow[1 - i] / 0.1).log_softmax(1)).sum(1).mean()
            loss = loss + (sum(terms) / len(terms) + d2s) / 4
        axis = torch.linspace(-1, 1, 7)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None].expand(BATCH, -1, -1, -1)
        u = [F.grid_sample(m, grid, align_corners=False) for m in self.net.pixel_head(out.deep).chunk(2)]
        p = [self.net.predictor(m) for m in u]
        loss = loss - sum(F.cosine_similarity(p[i], u[1 - i].detach(), dim=1).mean() for i in range(2)) / 2
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def rows(repeats: int = 3) -> list[Row]:
    """The step beside the plain loop; asked is 0.95 of its rate."""
    pictures = photographs()
    with one_thread():
        training, step, plain = ours(pictures), [0], Plain(pictures)
        a, b = side_by_side(partial(our_step, training, step), plain.step, repeats=repeats)
    path = f"PASS pretraining, ResNet-18, {BATCH} photographs x (2 x {SIDE} + {LOCALS} x {LOCAL})"
    says = f"{BATCH / a:.1f} against {BATCH / b:.1f} photographs a second"
    return [Row(path, a, "plain torchvision loop", b, 0.95, None, says)]


def kept_bytes(training: Pretraining) -> int:
    """Bytes that backward keeps, each storage once, without parameters and buffers."""
    seen: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for m in training.modules.values() for t in [*m.parameters(), *m.buffers()]}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    batch = training.batch(list(range(BATCH)), torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        terms = training.losses(batch, 0)
    del terms
    return sum(seen.values())


def memory() -> list[dict[str, float | int]]:
    """MiB by prototypes, queue and local crops: state (weights, gradients, momentum, queue) and what backward keeps."""
    found = []
    for prototypes, queue, locals_ in (
        (500, 0, 0),
        (3000, 0, 0),
        (500, 3840, 0),
        (500, 0, 2),
        (500, 0, 6),
        (3000, 3840, 6),
    ):
        training = ours(photographs(), prototypes, queue, locals_)
        weights = sum(p.numel() * 4 for m in training.modules.values() for p in m.parameters())
        buffers = sum(b.numel() * b.element_size() for m in training.modules.values() for b in m.buffers())
        found.append({
            "prototypes": prototypes, "queue": queue, "local crops": locals_,
            "state MiB": (3 * weights + buffers) / 2**20, "kept MiB": kept_bytes(training) / 2**20,
        })  # fmt: skip
    return found


def cost(rate: float, gpus: int = 1, epochs: int = EPOCHS919, efficiency: float = 0.9) -> float:
    """Hours of pretraining ImageNet-S 919: photographs times epochs over the measured rate of one GPU.

    Args:
        rate: photographs a second of one GPU at the preset's crops.
        gpus: how many.
        epochs: passes.
        efficiency: of several GPUs beside one, an assumption unless measured.
    """
    return IMAGENET_S919 * epochs / (rate * gpus * (efficiency if gpus > 1 else 1.0)) / 3600


class Forecast(NamedTuple):
    """What ImageNet-S 919's pretraining costs, by what was measured here.

    Attributes:
        flops: of a photograph: forward and backward of its two crops through ResNet-50 and the heads.
        photographs: a second, one thread, compute alone.
        gemm: FLOP a second of a bf16 matrix product on the same thread.
        loading: photographs a second and thread: decoding, cropping, photometric changes.
    """

    flops: float
    photographs: float
    gemm: float
    loading: float

    @property
    def share(self) -> float:
        """Of the matrix product's rate that the training step reaches."""
        return self.flops * self.photographs / self.gemm

    def rate(self, gemm: float, threads: int) -> tuple[float, float]:
        """Photographs a second of a GPU with that rate of matrix products, and of so many loading threads."""
        return self.share * gemm / self.flops, self.loading * threads


def forecast(batch: int = 4, side: int = 224) -> Forecast:
    """Measures a step of the released setting (ResNet-50, two crops of 224, P2P and D2S, 3000 prototypes), bf16.

    The step's share of the rate of matrix products is taken along to the GPU. That is an assumption: a GPU's memory is
    slower beside its arithmetic than a processor's, so its share is rather lower.
    """
    with one_thread():
        torch.manual_seed(0)
        network = PassNetwork(build_backbone("resnet50", "random").requires_grad_(True), (3,), 2048, DIM, True, "bf16")
        crops = MultiCrops(
            dataset(photographs(batch)), [(2, (side, side), (0.08, 1.0))], photometric("simclr"), Preprocess(),
            threads=1,
        )  # fmt: skip
        training = Pretraining(network, SwAV(DIM, 3000), crops, PassConfig(preset="imagenet_s919"))
        drawn = training.on_device(crops.draw(list(range(batch)), torch.Generator().manual_seed(0)))

        def step() -> None:
            training.optimizers["larc"].zero_grad(set_to_none=True)
            training.losses(drawn, 0)["loss"].backward()
            training.optimizers["larc"].step()

        with FlopCounterMode(display=False) as counter:
            step()
        a = torch.randn(2048, 2048, dtype=torch.bfloat16)
        draw = partial(crops.draw, list(range(batch)), torch.Generator().manual_seed(0))
        compute, product, load = side_by_side(step, lambda: a @ a, draw, repeats=3)
    return Forecast(counter.get_total_flops() / batch, batch / compute, 2 * 2048**3 / product, batch / load)


GPUS = {"A100": 312e12, "H100": 989e12}
"""Dense bf16 matrix products, FLOP a second, by their makers' data sheets."""


def forecast_table(found: Forecast, threads: int = 16) -> list[str]:
    """Hours on one and on eight GPUs, by arithmetic and by loading with so many threads a GPU."""
    lines = ["| GPU | photographs a second: compute, loading | one GPU | eight |", "|---|---|---|---|"]
    for name, gemm in GPUS.items():
        compute, loading = found.rate(gemm, threads)
        rate = min(compute, loading)
        lines.append(f"| {name} | {compute:.0f}, {loading:.0f} | {cost(rate):.0f} h | {cost(rate, 8):.0f} h |")
    return lines


if __name__ == "__main__":
    for row in rows():
        print(f"{row.path}: {row.ours_s:.2f} s, {row.other} {row.other_s:.2f} s, {row.ratio:.2f}x, {row.agrees}")
    for line in memory():
        print(", ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()))
    if len(sys.argv) > 1:
        rate = float(sys.argv[1])
        print(f"ImageNet-S 919 at {rate:g} a second: {cost(rate):.0f} h on one GPU, {cost(rate, 8):.0f} h on eight")
    else:
        found = forecast()
        print(
            f"{found.flops / 1e9:.1f} GFLOP a photograph, {found.photographs:.2f} photographs a second, "
            f"{100 * found.share:.0f} % of {found.gemm / 1e9:.0f} GFLOP/s, loading {found.loading:.0f} a second"
        )
        print("\n".join(forecast_table(found)))

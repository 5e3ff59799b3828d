"""Training steps: ours beside a plain loop over segmentation-models-pytorch, and a Mean Teacher step beside a
supervised one on the same number of images.

The photographs are written to a temporary folder, so that both sides start from the same files in memory; crops are
loaded before the clock starts, except in the last row."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.data.folders.folder import open_folder
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure
from maskwright.engine.opening import open_run
from maskwright.engine.progress import Progress
from maskwright.engine.request import RunRequest
from maskwright.methods.semi.mean_teacher import MeanTeacherConfig, MeanTeacherTraining
from maskwright.methods.supervised import Supervised, SupervisedConfig
from maskwright.recipes.training.training import NetworkTraining

CLASSES, PICTURES = 21, 12


def write_folder(root: Path, size: tuple[int, int] = (360, 480)) -> Path:
    """Photograph-like noise with masks of large squares."""
    rng = np.random.default_rng(0)
    for sub in ("images", "masks"):
        (root / sub).mkdir(parents=True)
    for k in range(PICTURES):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(root / "images" / f"{k:02d}.jpg", quality=92)
        ids = rng.integers(0, CLASSES, (6, 8), dtype=np.uint8).repeat(60, 0).repeat(60, 1)
        Image.fromarray(ids).save(root / "masks" / f"{k:02d}.png")
    (root / "classes.txt").write_text("\n".join(f"class {c}" for c in range(CLASSES)) + "\n")
    return root


def context_of(root: Path, backbone: str, labeled: int) -> Any:
    """A run's context on the folder."""
    data = open_folder(root / "data")
    request = RunRequest(
        data=data.labeled(data.names[:labeled]), method=Supervised, out=root / f"run-{backbone}-{labeled}",
        backbone=backbone, weights="random", steps=100, device="cpu", progress=Progress(quiet=True),
    )  # fmt: skip
    return open_run(request)


def stepper(training: Any, fixed: bool = True) -> Any:
    """One optimiser step, on one batch or on a new one each time."""

    def draw() -> Any:
        return training.on_device(training.batch(training.sampler.next(), torch.Generator().manual_seed(0)))

    held = draw()

    def step() -> None:
        training.update(training.setup.context.fabric, held if fixed else draw(), 50)
        training.after_step(50)

    return step


def plain_step(encoder: str, crop: int, batch: int) -> Any:
    """What a script does: the library's network as it comes, fp32, loss on its full-size logits."""
    network = smp.create_model("deeplabv3plus", encoder, encoder_weights=None, classes=CLASSES).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    x, y = torch.randn(batch, 3, crop, crop), torch.randint(0, CLASSES, (batch, crop, crop))

    def step() -> None:
        loss = F.cross_entropy(network(x), y, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def rows() -> list[Row]:
    """Supervised against plain on two encoders; Mean Teacher against supervised."""
    found = []
    with tempfile.TemporaryDirectory() as folder, one_thread():
        root = Path(folder)
        write_folder(root / "data")
        for encoder, crop in (("resnet18", 256), ("mobilenetv2_100", 192)):
            context = context_of(root, encoder, PICTURES)
            config = configure(SupervisedConfig, {"crop": crop, "batch": 4})
            ours = NetworkTraining(context, config, MaskLabels(context.data, CLASSES), 100)
            plain = plain_step(encoder if encoder == "resnet18" else f"tu-{encoder}", crop, 4)
            a, b = side_by_side(stepper(ours), plain, repeats=5)
            found.append(Row(f"train step, DeepLabV3+ {encoder}, 4 x {crop}", a, "plain smp loop, fp32", b, 1.4))
        context = context_of(root, "mobilenetv2_100", PICTURES // 2)
        labels = MaskLabels(context.data, CLASSES)
        config = configure(MeanTeacherConfig, {"crop": 192, "batch": 4})
        teacher = MeanTeacherTraining(context, config, labels, 100)
        config = configure(SupervisedConfig, {"crop": 192, "batch": 8})
        supervised = NetworkTraining(context, config, labels, 100)
        for fixed, what in ((True, "Mean Teacher step, 4 + 4 crops"), (False, "the same, loading and views included")):
            a, b = side_by_side(stepper(teacher, fixed), stepper(supervised, fixed), repeats=5)
            found.append(Row(what, a, "supervised step, 8 crops", b, 1 / 1.6))
    return found

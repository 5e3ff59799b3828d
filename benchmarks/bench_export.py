"""Networks as ONNX files: how far from torch, how large, how fast beside it.

`python -m benchmarks export` prints the ratios, `python -m benchmarks.bench_export [NAME ...]` the table of
`docs/export.md`. Both sides go from a uint8 picture to ids and confidence at its size, on one thread. Weights are
random, on the encoders of `bench_networks`, which costs the same. Those of `SETTLED` get the batch-norm statistics of
four pictures first, as a training gives them at its end: without, their logits grow past what float32 holds.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from benchmarks.bench_networks import CLASSES, encoder_for, make
from benchmarks.common import Row, one_thread, side_by_side
from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.networks.build import NETWORKS
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.predict.export.checking import picture
from maskwright.predict.export.writing import Exported, export
from maskwright.predict.model import Model
from maskwright.recipes.training.norm_statistics import retake_statistics

SIZE = (360, 480)
"""The picture, pixels."""
SHORT_SIDE = 320
"""Of the network's input."""
SETTLED = ("hrnet",)
"""Networks whose random layers multiply: logits of 2e8, which float32 rounds by hundreds."""


def model(name: str) -> Model:
    """A network of the table with random weights, as a trained one would be loaded."""
    torch.manual_seed(0)
    network = make(name, encoder_for(name))
    preprocess = Preprocess(short_side=SHORT_SIDE, multiple_of=network.multiple_of)
    parts = network.encoder, network.decoder, network.classifier
    table = ClassTable.numbered(CLASSES)
    segmenter = Segmenter(*parts, table, preprocess, network.provenance).eval()  # type: ignore[arg-type]
    if name in SETTLED:
        settle(segmenter)
    return Model(segmenter)


def settle(segmenter: Segmenter) -> None:
    """Batch-norm statistics of the four quarters of a picture, as `train` retakes them after its last step."""
    height, width = SIZE
    large = picture((2 * height, 2 * width))
    with tempfile.TemporaryDirectory() as folder:
        for k, (top, left) in enumerate([(0, 0), (0, width), (height, 0), (height, width)]):
            Image.fromarray(large[top : top + height, left : left + width]).save(Path(folder) / f"{k}.png")
        data = open_folder(folder)
        retake_statistics(segmenter, data, range(len(data)), segmenter.preprocess, torch.device("cpu"))


def measure(name: str, folder: Path, repeats: int = 5) -> tuple[Exported, float, float]:
    """The file that was written, and seconds of onnxruntime and of torch on one picture."""
    import onnxruntime

    trained = model(name)
    done = export(trained, folder / f"{name}.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(done.path, options, providers=["CPUExecutionProvider"])
    image = picture(SIZE)
    with one_thread():
        ours, other = side_by_side(
            lambda: session.run(None, {"image": image}),
            lambda: trained.predict(image, refine="none", tile=0),
            repeats=repeats,
        )
    done.path.unlink()
    return done, ours, other


def rows(names: list[str] | None = None) -> Iterator[Row]:
    """Each network, onnxruntime beside torch."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names or list(NETWORKS):
            done, ours, other = measure(name, Path(folder))
            agrees = f"to {done.largest:.1g}, {done.bytes / 1e6:.1f} MB"
            yield Row(f"{name}, ONNX file, {SIZE[0]}x{SIZE[1]}", ours, "torch", other, 0.0, agrees=agrees)


def main(names: list[str]) -> int:
    """Prints the table as Markdown; returns 1 if a network failed."""
    print("| network | encoder | differs from torch by | size, MB | speed beside torch |\n|---|---|---|---|---|")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names or list(NETWORKS):
            try:
                done, ours, other = measure(name, Path(folder))
            except MaskwrightError as error:
                failed = 1
                print(f"| {name} | {encoder_for(name) or 'its own'} | {error} | - | - |", flush=True)
                continue
            cells = f"{done.largest:.1e} | {done.bytes / 1e6:.1f} | {other / ours:.2f}"
            print(f"| {name} | {encoder_for(name) or 'its own'} | {cells} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

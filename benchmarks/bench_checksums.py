"""What checksums cost: checkpoints, cached features, artefacts and models read and written with them and without.

The other way is the same work without the comparison; a ratio of 0.9 means that it takes 0.9 times as long. Files are
in the page cache: from a disk the share of the checksum is smaller.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

from benchmarks.common import Row, side_by_side
from maskwright.data.masking.classes import ClassTable
from maskwright.engine.cache import FeatureStore, write_features
from maskwright.engine.checkpoint import load_checkpoint, save_checkpoint
from maskwright.models import bundle
from maskwright.models.backbones.build import build_backbone
from maskwright.models.bundle import load_bundle, save_bundle
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import load_tensors, save_tensors

MAPS = 100
"""Feature maps of 112 x 20 x 27."""
FLOATS = 20_000_000
"""Values of a checkpoint and of an artefact: 80 MB."""


def rows() -> list[Row]:
    """One thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return [
                *_checkpoint(Path(folder)),
                *_features(Path(folder)),
                *_artefact(Path(folder)),
                *_bundle(Path(folder)),
            ]
    finally:
        torch.set_num_threads(threads)


def _checkpoint(folder: Path) -> list[Row]:
    state = {"step": 1, "parts": {"w": torch.randn(FLOATS // 4, 4)}, "own": []}
    path, plain = folder / "checkpoint.pt", folder / "plain.pt"

    def save_plain() -> None:
        with plain.open("wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())

    written = side_by_side(lambda: save_checkpoint(path, state), save_plain)
    read = side_by_side(lambda: load_checkpoint(path), lambda: torch.load(plain, weights_only=True))
    return [
        Row("checkpoint of 80 MB, written", written[0], "torch.save, fsync", written[1], 0.8),
        Row("checkpoint of 80 MB, read", read[0], "torch.load", read[1], 0.3),
    ]


def _features(folder: Path) -> list[Row]:
    paths = [folder / f"{i}.npy" for i in range(MAPS)]
    for path in paths:
        write_features(path, torch.randn(112, 20, 27))

    def read(checked: bool) -> list[float]:
        store = FeatureStore(paths)
        store._checked = [not checked] * MAPS
        return [float(store[i].float().sum()) for i in range(MAPS)]

    first = side_by_side(lambda: read(True), lambda: read(False))
    return [Row(f"{MAPS} feature maps, first pass of a process", first[0], "without comparing", first[1], 0.5)]


def _artefact(folder: Path) -> list[Row]:
    path = folder / "a.safetensors"
    save_tensors(path, {"centers": torch.randn(FLOATS // 100, 100)})
    read = side_by_side(
        lambda: load_tensors(path, {"centers": "KD"}, "")["centers"].sum(),
        lambda: load_file(path)["centers"].sum(),  # which maps the file: only the sum reads it
    )
    return [Row("artefact of 80 MB, read and summed", read[0], "safetensors' load_file", read[1], 0.05)]


def _bundle(folder: Path) -> list[Row]:
    backbone = build_backbone("dinov2_small", "random")
    encoder = BackboneEncoder(backbone, -1)
    model = Segmenter(
        encoder, None, LinearClassifier(encoder.width, 3), ClassTable.numbered(3),
        Preprocess(short_side=322, multiple_of=14), backbone.provenance,
    )  # fmt: skip
    path = folder / "model.safetensors"
    save_bundle(path, model)
    expected = bundle.checksum

    def unchecked() -> None:
        found = bundle.safe_open(path, "pt").metadata()[bundle.CHECKSUM]
        with mock.patch.object(bundle, "checksum", lambda *_: found), mock.patch.object(bundle, "_must_fit_together"):
            load_bundle(path)

    read = side_by_side(lambda: load_bundle(path), unchecked)
    assert bundle.checksum is expected
    return [Row("model of 86 MB, loaded", read[0], "without checksum and trial of widths", read[1], 0.6)]

"""One flipped bit in anything that a run trusts: found when it is read, or without effect. Never a silent change."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.conftest import write_tiny_folder
from tests.engine.encoders import CountingEncoder, preprocess
from tests.engine.toys import Toy, equal, train

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.engine.cache import FeatureCache, read_features, write_features
from maskwright.engine.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.models.bundle import load_bundle
from maskwright.models.tensors import load_tensors, save_tensors
from maskwright.recipes.tags.maps import CamStore, ImageCams

QUIET = Progress(quiet=True)


def flipped(path: Path, count: int, seed: int = 0) -> Iterator[None]:
    """The file with another bit flipped at each turn; whole again at the end."""
    whole, draw = path.read_bytes(), random.Random(seed)
    for _ in range(count):
        at, bit = draw.randrange(len(whole)), draw.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        yield
    path.write_bytes(whole)


def count_told(path: Path, read, same, count: int) -> int:
    told = 0
    for _ in flipped(path, count):
        try:
            assert same(read()), "a flipped bit went through"
        except MaskwrightError as error:
            told += 1
            assert "\n" not in str(error)
    assert same(read())
    return told


@pytest.mark.parametrize("trailer", [True, False])
def test_checkpoints(tmp_path, trailer):
    path = tmp_path / "stage" / "checkpoint.pt"
    path.parent.mkdir()
    state = {"step": 3, "parts": {"w": torch.randn(40, 30), "n": [1, "x", None, 2.5]}, "own": []}
    if trailer:
        save_checkpoint(path, state)
    else:
        torch.save(state, path)  # of an earlier version
    told = count_told(path, lambda: load_checkpoint(path), lambda found: equal(found, state), 300)
    assert told > 290 if trailer else told > 200


def test_artefacts(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"centers": torch.randn(8, 16), "nearest": torch.arange(12).view(4, 3)}
    save_tensors(path, tensors)
    told = count_told(
        path,
        lambda: load_tensors(path, {"centers": "KD", "nearest": ("i", "IN")}, "r"),
        lambda t: equal(t, tensors),
        300,
    )
    assert told > 250


def test_class_maps(tmp_path):
    store = CamStore(tmp_path / "cams" / "maps")
    cams = ImageCams(torch.tensor([1, 4]), torch.rand(2, 6, 7).half().float(), (24, 28))
    store.write("a", cams)

    def same(found: ImageCams) -> bool:
        return torch.equal(found.keys, cams.keys) and torch.equal(found.maps, cams.maps) and found.size == cams.size

    assert count_told(store.path("a"), lambda: store.read("a"), same, 200) > 50


def test_features_are_made_again(tmp_path):
    data = open_folder(write_tiny_folder(tmp_path / "data", count=2))
    cache, encoder = FeatureCache(tmp_path / "cache"), CountingEncoder()
    store = cache.features(encoder, preprocess(), data, progress=QUIET)
    good = [store[i].clone() for i in range(2)]
    path, remade = store.paths[0], 0
    for k, _ in enumerate(flipped(path, 60)):
        before = encoder.images
        again = cache.features(encoder, preprocess(), data, progress=QUIET)
        if k % 2:  # larger than memory: mapped, checked once, made again once
            again._held = None
        assert all(torch.equal(again[i], good[i]) for _ in range(2) for i in range(2))
        remade += encoder.images - before
        assert encoder.images - before <= 1
        read_features(path), "the file is whole again"
    assert remade > 50


def test_features_of_another_version_or_network_are_not_trusted(tmp_path):
    path = tmp_path / "a.npy"
    write_features(path, torch.randn(3, 4, 5))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(3, 4, 5)", b"(3, 5, 4)"))
    with pytest.raises(ValueError, match="checksum"):
        read_features(path)
    path.write_bytes(content[:58] + b"#" + b" " * 68 + b"\n" + content[128:])
    with pytest.raises(ValueError, match="damaged"):
        read_features(path)


def test_a_damaged_checkpoint_in_the_middle_starts_its_stage_over(tmp_path, capsys):
    train(Toy(7), tmp_path / "whole")
    expected = load_checkpoint(tmp_path / "whole" / "toy" / CHECKPOINT)
    train(Toy(7), tmp_path / "run", steps=4)
    path = tmp_path / "run" / "toy" / CHECKPOINT
    for _ in flipped(path, 1):
        run = train(Toy(7), tmp_path / "run", progress=Progress())
        said = capsys.readouterr().err
        assert f"{path} cannot be read (its checksum does not fit); the stage starts over" in said
        assert [m["step"] for m in run.metrics()] == list(range(7))
        assert equal(load_checkpoint(path), expected)
    train(Toy(7), tmp_path / "other", steps=4)
    train(Toy(7), tmp_path / "other", progress=Progress())
    assert "toy: going on from step 4 of 7" in capsys.readouterr().err


SMALL = {"dim": 8, "restarts": 1, "iterations": 5, "short_side": 32, "max_rows": 500}


def kmeans(data: Path, out: Path, **options):
    return mw.train(
        data, "kmeans", out=out, classes=3, backbone="test_vit", weights="random", device="cpu", report=False,
        settings=SMALL, progress=QUIET, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of `kmeans` and its data."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("kmeans")
    patch.setenv("MASKWRIGHT_CACHE", str(root / "cache"))
    data = write_tiny_folder(root / "data", count=3, size=(32, 40))
    kmeans(data, root / "run")
    yield data, root / "run"
    patch.undo()


def test_bundles(finished, tmp_path):
    path = tmp_path / "model.safetensors"
    shutil.copy(finished[1] / "model.safetensors", path)
    x = torch.randn(1, 3, 32, 32)
    original = load_bundle(path)

    def same(found) -> bool:
        return (
            torch.equal(found(x), original(x)) and found.classes == original.classes and found.extra == original.extra
        )

    assert count_told(path, lambda: load_bundle(path), same, 12) > 8


@pytest.mark.parametrize("file", ["run.json", "labels.json", "ledger.json", "cluster/clusters.safetensors"])
def test_a_damaged_file_of_a_run_is_told_when_it_is_resumed(finished, tmp_path, file):
    data, done = finished
    run = tmp_path / "run"
    shutil.copytree(done, run)
    path = run / file
    content = path.read_bytes()
    at = content.index(b'"') + 1 if path.suffix == ".json" else len(content) - 9
    path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    with pytest.raises(MaskwrightError) as error:
        kmeans(data, run, resume=True)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_mark_of_a_stage_runs_it_again(finished, tmp_path):
    data, done = finished
    run = tmp_path / "run"
    shutil.copytree(done, run)
    (run / "cluster" / "stage.json").write_bytes(b'{"name": "cluster"')
    kmeans(data, run, resume=True)
    a, b = (load_bundle(p / "model.safetensors").state_dict() for p in (done, run))
    assert equal(a, b)

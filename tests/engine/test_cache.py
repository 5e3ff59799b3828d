from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import write_tiny_folder
from tests.engine.encoders import CountingEncoder, fill, preprocess

from maskwright.data.folders.folder import open_folder
from maskwright.data.trust.remembered import cache_root
from maskwright.engine.cache import FeatureCache, FeatureStore, read_features, write_features
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError

QUIET = Progress(quiet=True)


@pytest.fixture
def cache(tmp_path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def data(tiny_folder):
    return open_folder(tiny_folder)


def files(cache: FeatureCache) -> list[Path]:
    return sorted(p for p in cache.root.rglob("*") if p.is_file())


def test_features_are_those_computed_directly(cache, data):
    encoder = CountingEncoder().train()
    store = cache.features(encoder, preprocess(), data, progress=QUIET)
    assert len(store) == len(data) and store.width == 5
    for i in range(len(data)):
        with torch.no_grad():
            direct = encoder.eval()(preprocess().apply(data.image(i))[None])[0]
        assert store[i].dtype == torch.bfloat16 and store[i].shape == (5, 8, 11)
        assert torch.equal(store[i], direct.to(torch.bfloat16))
        assert torch.allclose(store[i].float(), direct, rtol=2**-8)


def test_the_second_call_computes_nothing(cache, data):
    first, second = CountingEncoder(), CountingEncoder()
    a = cache.features(first, preprocess(), data, progress=QUIET)
    b = cache.features(second, preprocess(), data, progress=QUIET)
    assert first.images == len(data) and second.images == 0
    assert all(torch.equal(a[i], b[i]) for i in range(len(data)))
    assert len(files(cache)) == len(data)


def test_copies_of_a_photograph_are_computed_once(cache, tmp_path):
    write_tiny_folder(tmp_path / "tiny", 3)
    for i in range(3):
        copy = tmp_path / f"tiny/images/copy_{i}.png"
        copy.write_bytes((tmp_path / f"tiny/images/picture_{i:02d}.png").read_bytes())
    encoder, data = CountingEncoder(), open_folder(tmp_path / "tiny")
    store = cache.features(encoder, preprocess(), data, progress=QUIET)
    assert encoder.images == 3 and len(store) == 6
    assert all(torch.equal(store[i], store[i + 3]) for i in range(3))  # copy_0, ..., picture_00, ...


def test_a_split_uses_what_the_whole_left(cache, data):
    encoder = CountingEncoder()
    store = cache.features(encoder, preprocess(), data.split("test"), progress=QUIET)
    assert encoder.images == len(store) == 4
    cache.features(encoder, preprocess(), data, progress=QUIET)
    assert encoder.images == 8


def test_another_kind_of_device_has_features_of_its_own(cache):
    """A run on a GPU does not hang on what a processor left, and the place of a processor's stays what it was."""
    encoder, prepared = CountingEncoder(), preprocess()
    here = cache.folder(encoder, prepared)
    assert cache.folder(encoder, prepared, torch.device("cpu")) == here
    there = cache.folder(encoder, prepared, "cuda:1")
    assert there != here and there == cache.folder(encoder, prepared, "cuda")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
    try:
        assert cache.folder(encoder, prepared, "cuda") != there and cache.folder(encoder, prepared) == here
    finally:
        torch.set_float32_matmul_precision(before)


def test_weights_size_and_content_are_the_key(cache, data, tiny_folder):
    cache.features(CountingEncoder(), preprocess(), data, progress=QUIET)
    for other, size in ((CountingEncoder(1), 32), (CountingEncoder(), 48)):
        store = cache.features(other, preprocess(size), data, progress=QUIET)
        assert other.images == len(data)
        assert min(store[0].shape[1:]) == size // 4
    before = cache.features(CountingEncoder(), preprocess(), data, progress=QUIET)[0].clone()

    Image.fromarray(255 - data.image(0)).save(data.items[0].image)
    encoder = CountingEncoder()
    again = open_folder(tiny_folder)
    store = cache.features(encoder, preprocess(), again, progress=QUIET)
    assert encoder.images == 1 and not torch.equal(store[0], before)

    moved = tiny_folder.with_name("moved")
    shutil.copytree(tiny_folder, moved)
    encoder = CountingEncoder()
    cache.features(encoder, preprocess(), open_folder(moved), progress=QUIET)
    assert encoder.images == 0, "the folder's place does not matter"


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"garbage" * 100, None, "float", "flat", "pickle"])
def test_a_damaged_file_is_made_again(cache, data, content):
    store = cache.features(CountingEncoder(), preprocess(), data, progress=QUIET)
    good = [store[i].clone() for i in range(len(data))]
    path = store.paths[3]
    if content is None:
        path.write_bytes(path.read_bytes()[:-10])
    elif content == "float":
        np.save(path, np.zeros((5, 8, 11), np.float32))
    elif content == "flat":
        np.save(path, np.zeros(440, np.uint16))
    elif content == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError):
        read_features(path)
    encoder = CountingEncoder()
    store = cache.features(encoder, preprocess(), data, progress=QUIET)
    assert encoder.images == 1
    assert all(torch.equal(store[i], good[i]) for i in range(len(data)))


def test_memory_maps(tmp_path):
    values = torch.randn(7, 3, 5)
    path = tmp_path / "a.npy"
    write_features(path, values)
    before = path.read_bytes()
    mapped = read_features(path)
    assert torch.equal(mapped, values.bfloat16())
    assert isinstance(np.load(path, mmap_mode="c"), np.memmap)
    mapped.zero_()
    assert path.read_bytes() == before, "a mistake of a caller does not reach the file"
    assert path.stat().st_size < 128 + values.numel() * 2 + 1
    if Path("/proc/self/maps").exists():
        assert str(path) in Path("/proc/self/maps").read_text(), "the file is mapped, not read"


def test_a_store_holds_what_fits_and_maps_the_rest(tmp_path):
    paths = [tmp_path / f"{i}.npy" for i in range(3)]
    for i, path in enumerate(paths):
        write_features(path, torch.full((2, 3, 4), float(i)))
    held, mapped = FeatureStore(paths), FeatureStore(paths, memory=100)
    assert held[1] is held[1] and mapped[1] is not mapped[1]
    assert torch.equal(held[2], mapped[2]) and held.width == mapped.width == 2
    held[1]
    paths[1].unlink()
    assert float(held[1].max()) == 1


@pytest.mark.parametrize("batch, sizes", [(None, [1] * 8), (1, [1] * 8), (3, [3] * 3), (8, [8]), (20, [20])])
def test_batches_are_of_one_shape(cache, data, batch, sizes):
    encoder = CountingEncoder()
    store = cache.features(encoder, preprocess(), data, progress=QUIET, batch=batch)
    assert [s[0] for s in encoder.shapes] == sizes
    for i in range(len(data)):
        with torch.no_grad():
            direct = encoder.eval()(preprocess().apply(data.image(i))[None])[0]
        assert torch.allclose(store[i].float(), direct, rtol=2**-7, atol=1e-6)


def test_images_of_other_sizes_get_batches_of_their_own(cache, tmp_path):
    root = tmp_path / "mixed"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(7):
        shape = (40, 60, 3) if i % 2 else (60, 40, 3)
        Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).save(root / "images" / f"{i}.png")
    encoder, data = CountingEncoder(), open_folder(root)
    store = cache.features(encoder, preprocess(), data, progress=QUIET, batch=4)
    assert sorted(encoder.shapes) == [(4, 3, 32, 48), (4, 3, 48, 32)]
    for i in range(7):
        with torch.no_grad():
            direct = encoder.eval()(preprocess().apply(data.image(i))[None])[0]
        assert torch.allclose(store[i].float(), direct, rtol=2**-7, atol=1e-6)


def test_what_lay_there_before_changes_no_bit(cache, data, tmp_path):
    """A run killed among its features continues to the same ones, whatever batches are left."""
    whole = cache.features(CountingEncoder(), preprocess(), data, progress=QUIET, batch=4)
    other = FeatureCache(tmp_path / "other")
    store = other.features(CountingEncoder(), preprocess(), data, progress=QUIET, batch=4)
    for i in (0, 2, 3, 7):
        store.paths[i].unlink()
    store = other.features(CountingEncoder(), preprocess(), data, progress=QUIET, batch=4)
    assert all(torch.equal(store[i], whole[i]) for i in range(len(data)))


def test_two_processes_fill_one_cache(cache, tmp_path):
    write_tiny_folder(tmp_path / "data", count=24)
    spawn = multiprocessing.get_context("spawn")
    flags = [str(tmp_path / f"ready{k}") for k in range(2)]
    started = [spawn.Process(target=fill, args=(str(tmp_path / "data"), str(cache.root), f)) for f in flags]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    data, encoder = open_folder(tmp_path / "data"), CountingEncoder()
    store = cache.features(encoder, preprocess(), data, progress=QUIET)
    assert encoder.images == 0 and len(files(cache)) == 24
    for flag in flags:
        found = torch.load(flag + ".pt", weights_only=True)
        assert all(torch.equal(store[i], f) for i, f in enumerate(found))


def test_a_full_disk_leaves_no_half_file(cache, data, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("maskwright.data.trust.files.os.replace", full)
        with pytest.raises(MaskwrightError, match="no space left"):
            cache.features(CountingEncoder(), preprocess(), data, progress=QUIET)
    assert files(cache) == []


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "a"))
    assert cache_root() == tmp_path / "a" and FeatureCache().root == tmp_path / "a" / "features"
    monkeypatch.delenv("MASKWRIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_root() == tmp_path / "b" / "maskwright"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "maskwright"

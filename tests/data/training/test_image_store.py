"""Photographs that a network made: exact, a data set, whole or not there."""

from __future__ import annotations

import numpy as np
import pytest

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.image_store import ImageStore
from maskwright.errors import MaskwrightError


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)


def test_what_is_written_is_read_and_is_a_data_set(tmp_path):
    store = ImageStore(tmp_path / "s")
    for k, name in enumerate(("b", "day/a")):
        store.write(name, picture(k))
    assert store.names == ["b", "day/a"] and len(store) == 2 and "day/a" in store and "a" not in store
    assert np.array_equal(store.read("day/a"), picture(1))
    data = open_folder(tmp_path / "s")
    assert data.names == ["b", "day/a"] and np.array_equal(data.image(0), picture(0))


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    store = ImageStore(tmp_path / "s")
    store.write("a", picture())

    def broken(self, file, **options):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.Image.save", broken)
    for name in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            store.write(name, picture(1))
    monkeypatch.undo()
    assert ImageStore(tmp_path / "s").names == ["a"] and np.array_equal(store.read("a"), picture())


def test_errors(tmp_path):
    store = ImageStore(tmp_path)
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
        store.write("a", picture().astype(np.float32))
    with pytest.raises(ValueError, match="shape"):
        store.write("a", picture()[..., 0])
    with pytest.raises(MaskwrightError, match=r"a\.png"):
        store.read("a")

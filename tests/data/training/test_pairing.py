"""Pairs of images across two data sets: from a file, by name, and by features against a brute-force search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskwright.data.folders.folder import Dataset, open_folder
from maskwright.data.training.pairing import paired, pairs_by_features, pairs_by_name, pairs_from_file
from maskwright.errors import MaskwrightError


def folder(root: Path, *names: str) -> Dataset:
    for name in names:
        path = root / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)
    return open_folder(root)


@pytest.fixture
def night(tmp_path) -> Dataset:
    return folder(tmp_path / "night", "n0", "n1", "n2")


@pytest.fixture
def day(tmp_path) -> Dataset:
    return folder(tmp_path / "day", "d0", "d1", "d2", "d3")


def table(tmp_path: Path, text: str) -> Path:
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    return tmp_path / "pairs.csv"


@pytest.mark.parametrize("head", ["night,day\n", "\n name , partner, why\n"])
def test_a_file_of_pairs(tmp_path, night, day, head):
    pairs = pairs_from_file(table(tmp_path, head + "n2,d0\nn0.png, images/d3.png\n\n"), night, day)
    assert pairs.dtype == np.int64 and pairs.tolist() == [3, -1, 0]
    assert paired(pairs).tolist() == [0, 2]


def test_a_file_may_name_images_that_a_split_left_out(tmp_path, night, day):
    path = table(tmp_path, "a,b\nn0,d0\nn1,d1\nn2,d2\n")
    assert pairs_from_file(path, night.subset([2, 0]), day.subset([2, 3])).tolist() == [0, -1]
    unreadable = day.with_items(day.items[1:], [("d0", "no image")])
    assert pairs_from_file(path, night, unreadable).tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\nn1\n", "line 2 of .* is 'n1'"),
        ("a,b\nn1,\n", "line 2 of .* is 'n1,'"),
        ("a,b\nn1,dd1\n", "line 2 of .* names 'dd1', which is no image of .*day"),
        ("a,b\n\nx9,d1\n", "line 3 of .* names 'x9', which is no image of .*night"),
        ("a,b\nn0,d0\nn0,d1\n", "line 3 of .* gives 'n0' a second partner, 'd1' beside 'd0'"),
        ("n0,d0\nn1,d1\n", "begins with an image, 'n0,d0'"),
        ("n0\n", "begins with an image, 'n0'"),
        ("night,day\n", r"no line of .*pairs\.csv pairs an image"),
        ("", r"no line of .*pairs\.csv pairs an image"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, night, day, text, words):
    with pytest.raises(MaskwrightError, match=words) as raised:
        pairs_from_file(table(tmp_path, text), night, day)
    assert raised.value.expected and "\n" not in str(raised.value)


def test_the_nearest_name_is_offered(tmp_path, night, day):
    with pytest.raises(MaskwrightError) as raised:
        pairs_from_file(table(tmp_path, "a,b\nn0,dd1\nn1,d1\n"), night, day)
    assert raised.value.repair == "the nearest is 'd1'"


def test_equal_names(tmp_path, night):
    other = folder(tmp_path / "other", "n2", "x", "n0")
    assert other.names == ["n0", "n2", "x"]
    assert pairs_by_name(night, other).tolist() == [0, -1, 1]
    assert pairs_by_name(night, other.subset([2, 1, 0])).tolist() == [2, -1, 1]
    composed, decomposed = folder(tmp_path / "c", "caf\u00e9"), folder(tmp_path / "d", "cafe\u0301")
    assert pairs_by_name(composed, decomposed).tolist() == [0], "one name in two forms of Unicode"


def test_names_by_a_key(tmp_path):
    night = folder(tmp_path / "night", "place1_night", "place2_night")
    day = folder(tmp_path / "day", "place1_day", "place2_day").subset([1, 0])
    assert pairs_by_name(night, day, key=lambda n: n.rpartition("_")[0]).tolist() == [1, 0]
    with pytest.raises(MaskwrightError, match="no equal names pair an image"):
        pairs_by_name(night, day)
    with pytest.raises(MaskwrightError, match=r"'place2_day' and 'place1_day' .* count as one name"):
        pairs_by_name(night, day, key=lambda n: n.rpartition("_")[2])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6))
def test_nearest_features_against_a_loop(n, m, d, seed):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, d, generator=g) * 3, torch.randn(m, d, generator=g)
    index, cosine = pairs_by_features(x, y)
    assert index.shape == cosine.shape == (n,) and index.dtype == np.int64 and cosine.dtype == np.float32
    for i in range(n):
        scores = [float(torch.cosine_similarity(x[i], y[j], dim=0)) for j in range(m)]
        assert cosine[i] == pytest.approx(max(scores), abs=1e-5)
        assert scores[index[i]] == pytest.approx(max(scores), abs=1e-5)


def test_features_that_tie_or_do_not_fit():
    y = torch.tensor([[0.0, 1.0], [2.0, 0.0], [4.0, 0.0]])
    index, cosine = pairs_by_features(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), y)
    assert index.tolist()[0] == 1 and cosine.tolist()[0] == 1, "ties to the lower place"
    for bad in (torch.zeros(0, 2), torch.zeros(2, 3), torch.full((1, 2), torch.nan)):
        with pytest.raises(ValueError, match="centers"):
            pairs_by_features(torch.ones(1, 2), bad)

"""Folders, files, patterns, lists and pictures in memory: the masks are those of each image by its path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import ColorSegmenter, scene
from PIL import Image

from maskwright.data.masking.masks import read_mask
from maskwright.errors import MaskwrightError
from maskwright.predict.given import gather, join
from maskwright.predict.model import Model


@pytest.fixture
def model() -> Model:
    return Model(ColorSegmenter())


def write(path: Path, seed: int, size: tuple[int, int] = (16, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.roll(scene(*size, seed=seed)[0], 3 * seed, 1)).save(path)
    return path


@pytest.fixture
def days(tmp_path) -> Path:
    """Two folders whose images have names in common, a file of another kind, and one image beside them."""
    for day in (1, 2):
        for k in range(2):
            write(tmp_path / "set" / f"day{day}" / f"{k}.png", 2 * day + k)
    write(tmp_path / "set" / "alone.png", 9)
    (tmp_path / "set" / "day1" / "notes.txt").write_text("x")
    return tmp_path / "set"


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {p.relative_to(folder).with_suffix("").as_posix(): read_mask(p) for p in folder.rglob("*.png")}


def names(given: object) -> list[str]:
    return sorted(join(gather(given)).names)


def test_patterns_name_images_by_their_folders(model, days, tmp_path):
    nested = ["day1/0", "day1/1", "day2/0", "day2/1"]
    assert names(f"{days}/*/*.png") == nested
    assert names(f"{days}/day*") == nested, "folders that a pattern finds"
    assert names(f"{days}/**") == sorted(["alone", *nested])
    assert names(f"{days}/day1/*") == ["0", "1"], "notes.txt is no image"
    assert names([f"{days}/day1/*", str(days / "alone.png")]) == ["0", "1", "alone"]
    for pattern, words in ((f"{days}/*.tif", "finds no image"), (f"{days}/day1/*.txt", "other kinds .notes.txt")):
        with pytest.raises(MaskwrightError, match=words):
            gather(pattern)
    done = model.predict_folder(f"{days}/*/*.png", tmp_path / "out")
    made = masks(tmp_path / "out")
    assert done.written == 4 and sorted(made) == nested
    for name, mask in made.items():
        np.testing.assert_array_equal(mask, model.predict(days / f"{name}.png").mask)


def test_a_name_with_a_wildcard_in_it_is_a_name(tmp_path):
    odd = write(tmp_path / "a[1].png", 1)
    write(tmp_path / "a1.png", 2)
    assert [item.image for item in gather(str(odd))[0].items] == [odd]


def test_two_of_one_name_are_refused_before_anything_is_written(model, days, tmp_path):
    out = tmp_path / "out"
    for given in ([days / "day1", days / "day2"], [days / "day1" / "0.png", days / "day2" / "0.png"]):
        with pytest.raises(MaskwrightError, match=r"would both have the mask 0\.png") as caught:
            model.predict_folder(given, out)
        assert not out.exists()
        pattern = caught.value.repair.split("'")[1]
        assert {"day1/0", "day2/0"} <= set(names(pattern)), "the repair"
    write(days / "day1" / "0.jpg", 7)
    with pytest.raises(MaskwrightError, match=r"mask 0\.png"):
        model.predict_folder([days / "day1" / "0.png", days / "day1" / "0.jpg"], out)
    with pytest.raises(MaskwrightError, match="two pictures of the list are called 0"):
        model.predict_folder([Image.open(days / "day1" / "0.png"), Image.open(days / "day2" / "0.png")], out)
    assert not out.exists()
    assert names([days / "day2", days / "day2" / "0.png", f"{days}/day2/*.png"]) == ["0", "1"], "the same file twice"


def test_a_file_given_under_two_names_is_predicted_once_and_that_is_said(model, days, tmp_path):
    """A folder calls its image 0, the pattern beside it day1/0."""
    for given, kept, twice in (
        ([days / "day1", f"{days}/*/*.png"], ["0", "1", "day2/0", "day2/1"], 2),
        ([f"{days}/day1/*.png", f"{days}/*/*.png"], ["0", "1", "day2/0", "day2/1"], 2),
        ([days / "day1" / "0.png", f"{days}/day*"], ["day1/0", "day1/1", "day2/0", "day2/1"], 1),
    ):
        done = model.predict_folder(given, tmp_path / str(len(list(tmp_path.iterdir()))))
        assert sorted(masks(done.out)) == sorted(kept) and done.written == 4
        (said,) = (n for n in done.notices if "given twice" in n)
        assert said.startswith(f"{twice} images were given twice") and "day1/0" in said
    link = days / "link.png"
    link.symlink_to(days / "alone.png")
    assert names(days) == sorted(["day1/0", "day1/1", "day2/0", "day2/1", "alone", "link"]), "of one folder both stay"


def test_several_folders_are_guarded_as_one_is(model, days):
    before = {p: p.read_bytes() for p in days.rglob("*") if p.is_file()}
    for given in ([days / "day1", days / "alone.png"], [days / "alone.png", days / "day1" / "0.png"]):
        with pytest.raises(MaskwrightError, match="the folder of the images"):
            model.predict_folder(given, days / "day1")
    assert {p: p.read_bytes() for p in days.rglob("*") if p.is_file()} == before


def test_pictures_in_memory_give_what_their_files_give(model, days, tmp_path):
    paths = sorted(days.rglob("*.png"))
    by_path = [model.predict(p) for p in paths]
    arrays = [np.asarray(Image.open(p)) for p in paths]
    for given in (paths, arrays, [Image.open(p) for p in paths], [paths[0], *arrays[1:]], tuple(map(str, paths))):
        found = model.predict(given, batch=3)
        assert len(found) == len(paths)
        for one, expected in zip(found, by_path):
            np.testing.assert_array_equal(one.mask, expected.mask)
            np.testing.assert_array_equal(one.confidence, expected.confidence)
    assert model.predict([]) == []
    model.predict_folder(arrays, tmp_path / "list")
    model.predict_folder(dict(zip("abcde", [*arrays[:4], paths[4]])), tmp_path / "named")
    model.predict_folder([Image.open(paths[0]), arrays[1], str(paths[3])], tmp_path / "mixed")
    listed, named, mixed = (masks(tmp_path / n) for n in ("list", "named", "mixed"))
    assert sorted(listed) == [f"picture_{k}" for k in range(5)] and sorted(named) == list("abcde")
    assert sorted(mixed) == sorted([paths[0].stem, paths[3].stem, "picture_1"])
    for k, expected in enumerate(by_path):
        np.testing.assert_array_equal(listed[f"picture_{k}"], expected.mask)
        np.testing.assert_array_equal(named["abcde"[k]], expected.mask)


def test_what_is_no_image_is_told(model, tmp_path):
    for given, words in (([], "no images"), ([3], "int among the images"), ([{}], "dict among")):
        with pytest.raises(MaskwrightError, match=words):
            model.predict_folder(given, tmp_path / "out")
    done = model.predict_folder([np.zeros((4, 4)), scene(8, 8)[0]], tmp_path / "out")
    assert done.written == 1 and "float64" in done.skipped[0][1]


@pytest.mark.parametrize("options", [{}, {"flips": True, "scales": (1.0, 0.5)}, {"tile": 16}])
def test_batches_give_the_masks_of_one_by_one(model, tmp_path, options):
    """Sizes in turn: those of one size are seen together, and each mask belongs to its image."""
    for k in range(7):
        write(tmp_path / "in" / f"{k}.png", k, [(32, 48), (24, 24)][k % 3 // 2])
    (tmp_path / "in" / "odd.png").write_bytes(b"x")
    model.predict_folder(tmp_path / "in", tmp_path / "one", confidence=True, **options)
    sizes: list[int] = []
    real = model.segmenter.forward
    model.segmenter.forward = lambda x: sizes.append(len(x)) or real(x)
    done = model.predict_folder(tmp_path / "in", tmp_path / "many", confidence=True, batch=3, **options)
    assert done.written == 7 and [n for n, _ in done.skipped] == ["odd"]
    if "tile" not in options:
        assert max(sizes) == 3 and sum(sizes) == 7 * (4 if options else 1)
    one, many = masks(tmp_path / "one"), masks(tmp_path / "many")
    assert one.keys() == many.keys()
    for name in one:
        np.testing.assert_array_equal(many[name], one[name])
    with pytest.raises(MaskwrightError, match="batch is 0"):
        model.predict_folder(tmp_path / "in", tmp_path / "many", batch=0)

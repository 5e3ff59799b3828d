"""The range of images of more than 8 bits is one for a data set."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskwright.data.examining.doctor import examine
from maskwright.data.examining.reading import Reading
from maskwright.data.examining.understanding import understand
from maskwright.data.folders.folder import open_folder
from maskwright.data.pictures.images import read_header
from maskwright.data.pictures.scale import choose_scale, survey_scale
from maskwright.data.training.sources import read_view
from maskwright.data.training.views import View
from maskwright.errors import MaskwrightError


def series(folder: Path, top: float, count: int = 4, dtype: str = "uint16", suffix: str = "png") -> list[np.ndarray]:
    """Frames of one scene, each 1 % brighter than the one before, of about `top` at the brightest."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    scene = np.random.default_rng(0).uniform(0.2, 0.9, (40, 50))
    frames = [(scene * top * 1.01**k).astype(dtype) for k in range(count)]
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "images" / f"{k}.{suffix}")
    return frames


def test_frames_keep_their_difference(tmp_path) -> None:
    frames = series(tmp_path, 4500, 6)
    assert max(f.max() for f in frames) > 4095 > frames[0].max()  # the old limit between two stretches
    data = open_folder(tmp_path)
    means = [data.image(i).mean() for i in range(6)]
    ratios = np.array(means[1:]) / means[:-1]
    assert np.abs(ratios - 1.01).max() < 0.01


@pytest.mark.parametrize(
    ("top", "span"), [(200, (0, 255)), (800, (0, 1023)), (3000, (0, 4095)), (12000, (0, 16383)), (60000, (0, 65535))]
)
def test_whole_numbers(tmp_path, top: int, span: tuple[int, int]) -> None:
    series(tmp_path, top, 1)
    scale = survey_scale([tmp_path / "images" / "0.png"])
    assert scale is not None and scale.span == span


def test_narrow_values_are_measured() -> None:
    head = _head(bits=16)
    values = np.linspace(30000, 34000, 100001)
    assert np.allclose(choose_scale(values, [head]).span, (30004, 33996), atol=1)
    signed = choose_scale(np.linspace(-1000, 3000, 100001), [_head(bits=16, sample="int")])
    assert np.allclose(signed.span, (-996, 2996), atol=1)
    same = choose_scale(np.full(10, 7.0), [_head(bits=16)])
    assert same.low < same.high


@pytest.mark.parametrize("stray", [1.02, -0.001, np.inf, -np.inf, np.nan, 1e30])
def test_a_stray_float_changes_nothing(stray: float) -> None:
    values = np.linspace(0, 1, 10001)
    values[17] = stray
    assert choose_scale(values, [_head(bits=32, sample="float")]).span == (0, 1)
    assert choose_scale(values * 255, [_head(bits=32, sample="float")]).span == (0, 255)
    far = choose_scale(values * 3000 + 100, [_head(bits=32, sample="float")])
    assert np.allclose(far.span, (103, 3097), atol=2)


def test_what_files_state_goes_first() -> None:
    heads = [_head(bits=16, stated=(0.0, 4095.0))] * 3
    assert choose_scale(np.linspace(0, 500, 1000), heads).span == (0, 4095)
    assert choose_scale(np.linspace(0, 5000, 1000), heads).span == (0, 16383)  # they do not keep to it
    differing = [*heads, _head(bits=16, stated=(0.0, 900.0))]
    assert choose_scale(np.linspace(0, 800, 1000), differing).span == (0, 1023)


def _head(**values):  # type: ignore[no-untyped-def]
    from maskwright.data.pictures.headers import Header

    return Header("tiff", (1, 1), **values)


def test_all_ways_to_read_use_it(tmp_path) -> None:
    frames = series(tmp_path, 3000)
    data = open_folder(tmp_path)
    expected = np.floor(frames[2] * (255 / 4095) + 0.5)
    assert np.array_equal(data.image(2)[..., 0], expected)
    assert np.array_equal(data.resized(2, (40, 50))[..., 1], expected)
    assert np.array_equal(read_view(data, 2, View.identity((40, 50)))[..., 2], expected)
    rotated = read_view(data, 2, View.identity((40, 50)).rotate(180))
    assert np.array_equal(rotated[::-1, ::-1, 0], expected)
    part = data.subset([2])
    assert np.array_equal(part.image(0)[..., 0], expected), "a part is read as the whole"
    copied = pickle.loads(pickle.dumps(understand(data, masks=False)))
    assert np.array_equal(copied.image(2)[..., 0], expected)


def test_it_is_said_and_kept(tmp_path) -> None:
    series(tmp_path, 3000)
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "images" / "plain.jpg")
    data = understand(open_folder(tmp_path), masks=False)
    said = [n for n in data.notices if "more than 8 bits" in n]
    assert len(said) == 1 and "4 images" in said[0] and "4095 white" in said[0] and "--range LOW,HIGH" in said[0]
    assert data.reading.range is None and data.settled_reading.range == (0, 4095)
    diagnosis = examine(tmp_path)
    assert any(f.kind == "deep-images" and "4095" in f.message for f in diagnosis.findings)


def test_what_is_said_goes_before(tmp_path) -> None:
    frames = series(tmp_path, 3000)
    data = understand(open_folder(tmp_path).with_reading(Reading.parse(range="100,2000")), masks=False)
    assert data.settled_reading.range == (100, 2000)
    expected = np.floor(np.clip((frames[0] - 100.0) / 1900 * 255, 0, 255) + 0.5)
    assert np.array_equal(data.image(0)[..., 0], expected)
    assert any("100 is black and 2000 white" in n for n in data.notices)


def test_8_bits_cost_nothing_and_say_nothing(tiny_folder, monkeypatch) -> None:
    data = understand(open_folder(tiny_folder), masks=False)
    assert data.notices == () and data.scale is None and data.settled_reading.range is None
    monkeypatch.setattr(
        "maskwright.data.folders.readers.survey_scale", lambda *a, **k: pytest.fail("no survey is needed")
    )
    again = open_folder(tiny_folder)
    again.image(0), again.resized(1, (8, 8)), again.readable()
    unused = understand(open_folder(tiny_folder).with_reading(Reading.parse(range="0,9")), masks=False)
    assert any("--range is not used" in n for n in unused.notices)


def test_floats_among_whole_numbers_are_asked_about(tmp_path) -> None:
    series(tmp_path, 3000, 2)
    series(tmp_path, 1, 3, "float32", "tif")
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / "7.png")
    (tmp_path / "images" / "1.png").rename(tmp_path / "images" / "8.png")
    with pytest.raises(MaskwrightError, match="3 images hold floats and 2 whole numbers") as caught:
        understand(open_folder(tmp_path), masks=False)
    assert "--range 0,65535" in caught.value.repair
    found = examine(tmp_path).findings
    assert [f.severity for f in found if f.kind == "mixed-depth"] == ["error"]
    data = open_folder(tmp_path).with_reading(Reading.parse(range="0,65535"))
    assert understand(data, masks=False).image(0).shape == (40, 50, 3)


def test_damaged_deep_files_do_not_stop_the_survey(tmp_path) -> None:
    series(tmp_path, 3000, 3)
    data = (tmp_path / "images" / "1.png").read_bytes()
    (tmp_path / "images" / "1.png").write_bytes(data[: len(data) // 2])
    assert read_header(tmp_path / "images" / "1.png").deep
    assert open_folder(tmp_path).readable().image(1).mean() > 50
    assert understand(open_folder(tmp_path), masks=False).settled_reading.range == (0, 4095)

"""Every repair that predictions print, carried out: what was refused then works."""

from __future__ import annotations

import shutil

import pytest
from fakes import ColorSegmenter
from test_outputs import below, write_images

from maskwright.errors import MaskwrightError
from maskwright.predict.model import Model


@pytest.fixture
def model() -> Model:
    return Model(ColorSegmenter())


def refused(model: Model, data, out, **options) -> MaskwrightError:
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    with pytest.raises(MaskwrightError) as caught:
        model.predict_folder(data, out, **options)
    assert before == {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    assert "\n" not in str(caught.value)
    return caught.value


def test_rename_the_folder_that_is_called_as_a_mask(model, tmp_path):
    data = write_images(tmp_path / "d", "sub/photo", "sub/a.png/deep/b")
    (data / "images" / "sub" / "photo.png").rename(data / "images" / "sub" / "a.bmp")
    error = refused(model, data, tmp_path / "out")
    assert error.repair == "rename the folder sub/a.png of the images" and not (tmp_path / "out").exists()
    (data / "images" / "sub" / "a.png").rename(data / "images" / "sub" / "a2")
    model.predict_folder(data, tmp_path / "out")
    assert below(tmp_path / "out") == ["sub/a.png", "sub/a2/deep/b.png"]


def test_choose_a_folder_with_a_shorter_path(model, tmp_path):
    data = write_images(tmp_path / "d", "/".join(["n" * 200] * 3))
    for out in (tmp_path / ("x" * 256), tmp_path.joinpath(*["x" * 200] * 20)):
        error = refused(model, data, out)
        assert "longer than this system takes" in error.found and "shorter path" in error.repair
    deep = tmp_path.joinpath(*["x" * 200] * 18)  # itself possible, but not with the names of the images
    assert "shorter path" in refused(model, data, deep).repair
    assert model.predict_folder(data, tmp_path / "x").written == 1


def test_choose_another_out(model, tmp_path):
    data = write_images(tmp_path / "d", "a")
    (tmp_path / "file").write_bytes(b"")
    shutil.copytree(data / "images", data / "masks")
    for out in (tmp_path / "file", data / "masks", data / "images"):
        error = refused(model, data, out)
        assert "--out" in error.repair
    assert model.predict_folder(data, tmp_path / "other").written == 1
    named = refused(model, data, data / "images").repair.rpartition("--out ")[2]
    assert model.predict_folder(data, named).written == 1


def test_other_names_where_the_disk_ignores_case(model, tmp_path, monkeypatch):
    from maskwright.data.trust.files import file_for

    data = write_images(tmp_path / "d", "a", "A")
    monkeypatch.setattr("maskwright.predict.outputs.file_for", lambda f, name, s: file_for(f, name.casefold(), s))
    error = refused(model, data, tmp_path / "out")
    assert error.repair.startswith("rename one of the images")
    (data / "images" / "A.png").rename(data / "images" / "B.png")
    assert model.predict_folder(data, tmp_path / "out").written == 2

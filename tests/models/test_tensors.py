"""Tensors with a checksum: what was written comes back, and is what its reader expects."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from maskwright.errors import MaskwrightError
from maskwright.models.tensors import checksum, load_tensors, save_tensors

TENSORS = {
    "centers": torch.randn(4, 6), "nearest": torch.arange(8).view(2, 4), "flag": torch.tensor(True),
    "half": torch.ones(6, dtype=torch.bfloat16), "none": torch.zeros(0, 3),
}  # fmt: skip
EXPECTED = {"centers": "KD", "nearest": ("i", "IN"), "half": "D"}


def test_round_trip(tmp_path):
    save_tensors(tmp_path / "a.safetensors", TENSORS, {"kind": "test"})
    found = load_tensors(tmp_path / "a.safetensors", EXPECTED, "again")
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in TENSORS.items())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["kind"] == "test" and len(file.metadata()["checksum"]) == 8


def test_the_checksum_is_of_names_types_shapes_values_and_text():
    x = torch.arange(6.0)
    base = checksum({"x": x})
    others = [
        checksum({"y": x}), checksum({"x": x.view(2, 3)}), checksum({"x": x.view(torch.int32)}), checksum({"x": x + 1}),
        checksum({"x": x, "y": x}), checksum({"x": x}, {"a": "b"}),
    ]  # fmt: skip
    assert len({base, *others}) == 7
    assert checksum({"x": x.flip(0).flip(0).contiguous()}) == base == checksum({"x": x}, {"checksum": "other"})
    assert checksum({"a": x, "b": x}) == checksum({"b": x, "a": x})
    wide = torch.arange(12.0).view(3, 4)
    assert checksum({"x": wide.T}) == checksum({"x": wide.T.contiguous()}), "however it lies in memory"


@pytest.mark.parametrize(
    "expected, told",
    [
        ({"missing": "D"}, "missing is missing"), ({"centers": "D"}, "shape"), ({"centers": "KK"}, "shape"),
        ({"centers": ("i", "KD")}, "another type"), ({"nearest": "IN"}, "another type"), ({"centers": "K7"}, "shape"),
        ({"centers": "DK", "half": "D"}, "shape"),
    ],
)  # fmt: skip
def test_what_does_not_fit(tmp_path, expected, told):
    save_tensors(tmp_path / "a.safetensors", TENSORS)
    with pytest.raises(MaskwrightError, match=told) as error:
        load_tensors(tmp_path / "a.safetensors", expected, "do this")
    assert error.value.repair == "do this" and "\n" not in str(error.value)


def test_values_that_are_not_finite_and_sums_that_overflow(tmp_path):
    for value, good in ((torch.nan, False), (torch.inf, False), (torch.finfo(torch.float32).max, True)):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.full((3,), value)})
        if good:
            load_tensors(tmp_path / "a.safetensors", {"x": "N"}, "")
        else:
            with pytest.raises(MaskwrightError, match="finite"):
                load_tensors(tmp_path / "a.safetensors", {"x": "N"}, "")


def test_other_files(tmp_path):
    path = tmp_path / "a.safetensors"
    for content in (b"", b"text" * 30, b"\xff" * 8 + b"{}"):
        path.write_bytes(content)
        with pytest.raises(MaskwrightError, match=r"a\.safetensors cannot be read"):
            load_tensors(path, {}, "do this")
    with pytest.raises(MaskwrightError, match="cannot be read"):
        load_tensors(tmp_path / "none", {}, "do this")
    save_file({"x": torch.ones(2)}, path)  # of an earlier version
    assert torch.equal(load_tensors(path, {"x": "N"}, "")["x"], load_file(path)["x"])

"""The linear probe beside a label-free run: it reads masks for evaluation only and leaves the run's own model alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError


@pytest.mark.parametrize("method", ["kmeans", "stego"])
def test_probe_has_a_model_of_its_own_and_the_ledger_says_so(method, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    data = write_tiny_folder(tmp_path / "tiny")

    def train(out, **settings):
        return mw.train(
            data, method, out=tmp_path / out, classes=3, steps=2, backbone="tf_efficientnet_lite0", weights="random",
            settings={"short_side": 64, **settings}, labeled="train", report=False, progress=Progress(quiet=True),
        )  # fmt: skip

    train("plain")
    train("probed", linear_probe=True)
    plain, probed = (load_file(tmp_path / d / "model.safetensors") for d in ("plain", "probed"))
    assert all(torch.equal(plain[k], probed[k]) for k in plain)
    read = json.loads((tmp_path / "probed" / "run.json").read_text())["labels_read"]
    assert read["evaluate"]["masks"] == 4 and read["train"]["masks"] == 0 and read["select"]["masks"] == 0
    model = mw.load(tmp_path / "probed" / "linear_probe" / "model.safetensors")
    assert list(model.classes.names) == ["ground", "disc", "square"]
    (data / "classes.txt").unlink()
    with pytest.raises(MaskwrightError, match=r"classes\.txt"):
        train("nameless", linear_probe=True)

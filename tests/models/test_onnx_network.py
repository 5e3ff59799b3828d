"""Saliency networks in ONNX files: those of others, and our own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from maskwright.data.folders.folder import open_folder
from maskwright.errors import MaskwrightError
from maskwright.models.onnx_network import OnnxNetwork
from maskwright.models.preprocess import Preprocess


def write(path: Path, nodes, inputs, outputs, told: dict[str, str] | None = None) -> Path:
    graph = helper.make_graph(nodes, "net", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, told or {})
    onnx.save(model, path)
    return path


def brightness(path: Path, size=("h", "w"), logits: bool = False) -> Path:
    """What a saliency network does at its simplest: the mean of the channels, through a sigmoid or not."""
    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1)
    last = helper.make_node("Identity" if logits else "Sigmoid", ["m"], ["y"])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, *size])
    return write(path, [mean, last], [given], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])


def picture() -> np.ndarray:
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:40, 20:50] = 255
    return image


@pytest.mark.parametrize(("size", "logits"), [(("h", "w"), False), ((64, 64), False), ((64, 64), True)])
def test_networks_of_others(tmp_path, size, logits):
    network = OnnxNetwork(brightness(tmp_path / "net.onnx", size, logits))
    assert network.labels_seen == "unknown" and len(network.hash) == 64 and not network.own
    assert f"{320 if size[0] == 'h' else 64} x" in network.notes
    found = network.saliency(picture())
    assert found.shape == (60, 80) and found.dtype == np.float32 and 0 <= found.min() <= found.max() <= 1
    assert (
        np.array_equal(found > 0.5, picture()[..., 0] > 0) or ((found > 0.5) != (picture()[..., 0] > 0)).mean() < 0.03
    )
    white = float(Preprocess().apply(np.full((4, 4, 3), 255, np.uint8)).mean())
    assert found.max() == pytest.approx(1 / (1 + np.exp(-white)), abs=0.01), "normalised as ImageNet's networks want it"


@pytest.mark.data
def test_a_saliency_network_on_a_photograph(data_root, weights_root):
    """U2-Net-p and ECSSD, which it did not learn from."""
    data = open_folder(data_root / "ecssd_part")
    found = OnnxNetwork(weights_root / "u2netp.onnx").saliency(data.image(5)) > 0.5
    truth = data.mask(5) > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_own_files_tell_classes_and_labels(tmp_path):
    """Of classes the background is what is so called; without one, 0 is."""
    cast = helper.make_node("Cast", ["g"], ["ids"], to=TensorProto.UINT8)
    pick = helper.make_node("Gather", ["f", "two"], ["g"], axis=2)
    first = helper.make_node("Cast", ["image"], ["f"], to=TensorProto.INT32)
    two = helper.make_node("Constant", [], ["two"], value=helper.make_tensor("v", TensorProto.INT64, [], [0]))
    given = helper.make_tensor_value_info("image", TensorProto.UINT8, ["h", "w", 3])
    out = helper.make_tensor_value_info("ids", TensorProto.UINT8, None)
    told = {
        "maskwright": "1", "classes": json.dumps(["cow", "background"]),
        "provenance": json.dumps({"labels_seen": "none"}), "labels_read": json.dumps({"train": {"masks": 3}}),
    }  # fmt: skip
    network = OnnxNetwork(write(tmp_path / "own.onnx", [first, two, pick, cast], [given], [out], told))
    assert network.own and network.labels_seen == "none" and network.labels_read == {"train": {"masks": 3}}
    image = np.zeros((5, 6, 3), np.uint8)
    image[2:, :, 0] = 1
    assert np.array_equal(network.saliency(image), image[..., 0] == 0)


def test_what_is_no_saliency_network(tmp_path, monkeypatch):
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(MaskwrightError, match=r"cannot read .*text.onnx"):
        OnnxNetwork(tmp_path / "text.onnx")
    flat = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 7])
    same = helper.make_node("Identity", ["x"], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    with pytest.raises(MaskwrightError, match=r"takes x tensor\(float\) \[1, 7\]; expected one RGB image"):
        OnnxNetwork(write(tmp_path / "flat.onnx", [same], [flat], [out]))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])
    with pytest.raises(MaskwrightError, match=r"gives \(1, 3, 32, 32\); expected a map"):
        OnnxNetwork(write(tmp_path / "wide.onnx", [same], [image], [out])).saliency(picture())
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MaskwrightError, match="onnxruntime is not installed") as raised:
        OnnxNetwork(tmp_path / "wide.onnx")
    assert "maskwright[export]" in raised.value.repair

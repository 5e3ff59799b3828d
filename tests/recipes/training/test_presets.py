"""What a preset leaves to the run: whether batch norms learn along."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import write_tiny_folder
from torch import nn

import maskwright as mw
from maskwright.engine.config import configure
from maskwright.engine.progress import Progress
from maskwright.methods import METHODS
from maskwright.models.backbones.build import build_backbone
from maskwright.recipes.training.network import make_network, make_preprocess, retake
from maskwright.recipes.training.norm_statistics import batch_norms, retake_as_recorded
from maskwright.recipes.training.options import NetworkConfig
from maskwright.recipes.training.rates import resolved

BACKBONE = "mobilenetv3_small_050"


def trained(context) -> None:
    context.backbone.provenance = context.backbone.provenance.replace(source="file: backbone.safetensors")


def statistics(module: nn.Module) -> list[torch.Tensor]:
    return [m.running_mean.clone() for m in batch_norms(module)]


@pytest.mark.parametrize("name", ["slotcon", "maskcontrast"])
def test_small_keeps_the_statistics_of_trained_weights_and_of_no_others(name, semi_context):
    def freezes(**options):
        return resolved(configure(METHODS[name].Config, options), semi_context).norms.freeze

    assert not freezes() and not freezes(preset="paper"), "random weights have none to keep"
    trained(semi_context)
    assert freezes() and not freezes(preset="paper"), "the authors train batch norm on large batches"
    assert not freezes(**{"norms.freeze": "false"}) and freezes(preset="paper", **{"norms.freeze": "true"})
    assert not resolved(configure(NetworkConfig, {}), semi_context).norms.freeze, "of other methods nothing changes"


@pytest.mark.parametrize("freeze", [None, False])
def test_statistics_of_photographs_leave_those_that_training_kept(freeze, semi_context):
    trained(semi_context)
    config = configure(METHODS["slotcon"].Config, {} if freeze is None else {"norms.freeze": freeze})
    network = make_network(semi_context, config).eval()
    encoder, decoder = statistics(network.encoder), statistics(network.decoder)
    retake(semi_context, config, network, make_preprocess(config, network), range(8))
    kept = all(torch.equal(a, b) for a, b in zip(encoder, statistics(network.encoder)))
    assert kept == (freeze is None)
    assert not any(torch.equal(a, b) for a, b in zip(decoder, statistics(network.decoder)))


@pytest.mark.parametrize("source", ["random", "file: backbone.safetensors"])
def test_the_other_network_of_a_run_is_given_statistics_as_the_kept_one_was(source, semi_context, tmp_path):
    config = configure(METHODS["slotcon"].Config, {})
    segmenter = make_network(semi_context, config).eval()
    segmenter.provenance = segmenter.provenance.replace(source=source)
    segmenter.preprocess = make_preprocess(config, segmenter)
    (tmp_path / "run.json").write_text(json.dumps({"config": {"norm_images": 8, "freeze_norm": None}}))
    encoder = statistics(segmenter.encoder)
    retake_as_recorded(segmenter, tmp_path, semi_context.data, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(encoder, statistics(segmenter.encoder))) == (source != "random")


def test_a_trained_encoder_ends_with_the_statistics_that_it_began_with(tmp_path):
    """Of the network and of its average, which slotcon keeps."""
    torch.manual_seed(0)
    backbone = build_backbone(BACKBONE, "random")
    for m in batch_norms(backbone):
        m.running_mean.normal_()
    tensors = {n.removeprefix("model."): t for n, t in backbone.state_dict().items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "weights.safetensors")
    model = mw.train(
        write_tiny_folder(tmp_path / "tiny"), "slotcon", out=tmp_path / "run", classes=3, backbone=BACKBONE, steps=2,
        weights=str(tmp_path / "weights.safetensors"), device="cpu", progress=Progress(quiet=True), report=False,
        settings={"crop": 32, "batch": 4, "hidden": 8, "groups.width": 8, "long_side": 64},
    )  # fmt: skip
    begun, ended = statistics(backbone), statistics(model.segmenter.encoder)
    assert len(ended) > 10 and all(any(torch.equal(b, e) for b in begun) for e in ended)

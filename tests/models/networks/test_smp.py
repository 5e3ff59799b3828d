"""The library's networks on timm's encoders: sizes, refusals, files of pretrained encoders, layers by depth."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks import smp
from maskwright.models.networks.build import Network, build_network

SWIN, DENSENET = "swin_tiny_patch4_window7_224", "densenet121"


def on_meta(name: str, encoder: str | None, **options) -> Network:
    """A network without storage: names and shapes need no values."""
    with torch.device("meta"):
        backbone = None if encoder is None else build_backbone(encoder, "random")
        return build_network(name, backbone, 3, options=options)


@pytest.mark.parametrize(("name", "encoder"), [("upernet", SWIN), ("fpn", "swinv2_cr_tiny_224")])
def test_windows_take_any_size(name, encoder):
    network = build_network(name, build_backbone(encoder, "random"), 3).eval()
    with torch.inference_mode():
        assert network.logits(torch.randn(1, 3, 97, 130)).shape == (1, 3, 97, 130)
        again = smp.SmpEncoder.from_spec(network.encoder.spec())  # as a bundle builds it
        again.load_state_dict(network.encoder.state_dict())
        x = torch.randn(1, 3, 64, 96)
        assert all(torch.equal(a, b) for a, b in zip(again.eval()(x)[2:], network.features(x)[2:], strict=True))


@pytest.mark.parametrize(
    ("name", "encoder", "told"),
    [
        ("upernet", "test_maxvit", "divisible by window"),
        ("unet", "coatnet_0_224", "cannot take images of"),
        ("fpn", "inception_v3", "halves its maps"),
    ],
)
def test_encoders_of_one_size_are_refused_when_built(name, encoder, told):
    with pytest.raises(MaskwrightError, match=told) as error:
        on_meta(name, encoder)
    assert "\n" not in str(error.value) and "expected" in str(error.value) and "--backbone" in str(error.value)


def test_the_trial_is_made_once_and_changes_nothing(monkeypatch):
    backbone = build_backbone("test_resnet", "random")
    monkeypatch.setattr(smp, "_TRIED", set())
    state = torch.random.get_rng_state()
    tried = build_network("upernet", backbone, 3)
    assert len(smp._TRIED) == 1
    torch.random.set_rng_state(state)
    untried = build_network("upernet", backbone, 3)
    assert len(smp._TRIED) == 1
    assert all(m.training for m in tried.modules())
    assert all(torch.equal(v, tried.state_dict()[k]) for k, v in untried.state_dict().items())


def weights_file(encoder: str, path) -> dict[str, torch.Tensor]:
    """A classification checkpoint of timm, every tensor of it random."""
    torch.manual_seed(0)
    state = timm.create_model(encoder).state_dict()
    state = {k: torch.rand_like(v) + 0.1 if v.is_floating_point() else v for k, v in state.items()}
    torch.save({"state_dict": state}, path)
    return state


@pytest.mark.parametrize(
    ("encoder", "named"),
    [
        (DENSENET, {"features_conv0.weight": "features.conv0.weight", "features_norm5.bias": "features.norm5.bias"}),
        (SWIN, {"layers_1.downsample.reduction.weight": "layers.1.downsample.reduction.weight"}),
        ("resnetv2_18", {"stem_conv.weight": "stem.conv.weight"}),
        ("cspnext_tiny", {"model.stem.0.conv.weight": "stem.0.conv.weight"}),
    ],
)
def test_pretrained_encoders_are_read(encoder, named, tmp_path):
    state = weights_file(encoder, tmp_path / "w.pth")
    network = build_network("unet", build_backbone(encoder, str(tmp_path / "w.pth")), 3)
    ours = network.encoder.module.model.state_dict()
    assert all(torch.equal(ours[k], state[v]) for k, v in named.items())
    theirs = {v.flatten()[0].item() for v in state.values() if v.numel() and v.is_floating_point()}
    assert not [k for k, v in ours.items() if v.is_floating_point() and v.flatten()[0].item() not in theirs]


def test_a_wrapped_encoder_is_copied_with_its_hooks():
    network = build_network("upernet", build_backbone("legacy_xception", "random"), 3).eval()
    other = copy.deepcopy(network)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        want = network.logits(x)
        for p in other.parameters():
            p.zero_()
        assert not other.logits(x).any() and torch.equal(network.logits(x), want)


def by_layer(network: Network) -> list[list[str]]:
    """Names of the encoder's parameters, without what wraps it, a list a layer."""
    names = {id(p): n.removeprefix("module.").removeprefix("model.") for n, p in network.encoder.named_parameters()}
    return [[names[id(p)] for p in layer] for layer in network.encoder_layers()]


@pytest.mark.parametrize(("name", "start"), [("unet", "features_"), ("deeplabv1", "features.")])
@pytest.mark.parametrize("encoder", ["vgg11", "vgg11_bn"])
def test_a_vgg_has_a_layer_for_each_convolution_and_its_norm(name, start, encoder):
    layers = by_layer(on_meta(name, encoder))
    assert len(layers) == 8 and {len(layer) for layer in layers} == ({4} if encoder.endswith("bn") else {2})
    convolutions = [0, 4, 8, 11, 15, 18, 22, 25] if encoder.endswith("bn") else [0, 3, 6, 8, 11, 13, 16, 18]
    assert [layer[0] for layer in layers] == [f"{start}{i}.weight" for i in convolutions]


@pytest.mark.parametrize(
    ("encoder", "count", "first"),
    [
        ("regnety_002", 14, ["stem.", "s1.b1.", "s2.b1.", "s3.b1."]),
        ("rexnet_100", 17, ["stem.", "features_0.", "features_1.", "features_2."]),
        (DENSENET, 62, ["features_conv0.", "features_denseblock1.denselayer1.", "features_denseblock1.denselayer2."]),
    ],
)
def test_other_flattened_encoders_have_their_blocks(encoder, count, first):
    layers = by_layer(on_meta("unet", encoder))
    assert len(layers) == count
    assert all(layer[0].startswith(start) for layer, start in zip(layers, first, strict=False))


@pytest.mark.parametrize(
    ("name", "encoder", "stem", "sizes", "second"),
    [
        ("unet", "mobilenetv2_100", 3, [6] + [9] * 16, "blocks.0.0."),
        ("deeplabv3plus", "mobilenetv2_100", 3, [6] + [9] * 16, "blocks.0.0."),
        ("unet", "resnet18", 3, [6, 6, 9, 6, 9, 6, 9, 6], "layer1.0."),
        ("unet", "resnet50", 3, [12, 9, 9, 12, 9, 9, 9, 12, 9, 9, 9, 9, 9, 12, 9, 9], "layer1.0."),
        ("unet", "efficientnet_b0", 3, [10] + [13] * 15, "blocks.0.0."),
        ("unet", "test_convnext", 4, [9, 4, 9, 9, 4, 9, 9, 9, 9, 4, 9, 9], "stages_0.blocks.0."),
        ("dpt", "test_vit", 4, [12] * 6 + [2], "backbone.model.blocks.0."),
    ],
)
def test_layers_that_training_stands_on(name, encoder, stem, sizes, second):
    layers = by_layer(on_meta(name, encoder))
    assert [len(layer) for layer in layers] == [stem, *sizes]
    assert layers[1][0].startswith(second)

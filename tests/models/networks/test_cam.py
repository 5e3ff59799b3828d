from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from maskwright.data.masking.classes import ClassTable
from maskwright.models.backbones.build import build_backbone
from maskwright.models.bundle import load_bundle, save_bundle
from maskwright.models.networks.cam import CamNetwork, activation_maps, copy_backbone, freeze_stages
from maskwright.models.parts.pretrained_head import PretrainedHead
from maskwright.models.preprocess import Preprocess

CNN = "mobilenetv2_050"
VIT = "vit_tiny_patch16_224"


def backbone(name: str):
    torch.manual_seed(0)
    return build_backbone(name, "random")


@pytest.fixture(scope="module", params=[CNN, "resnet18", VIT])
def network(request):
    torch.manual_seed(1)
    return CamNetwork(backbone(request.param), tags=3).eval()


def images(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def test_scores_are_means_of_maps_of_the_asked_resolution(network):
    out = network(images())
    assert out.cams.shape == (2, 3, 4, 4) and network.stride == 16
    assert torch.allclose(out.scores, out.cams.mean((-2, -1)))
    by_hand = out.features.mean((-2, -1)) @ network.weight.T
    assert torch.allclose(out.scores, by_hand, atol=1e-4)
    assert not network.classifier.linear.bias.any() and not network.classifier.linear.bias.requires_grad


def test_gradients_flow_from_the_maps_to_classifier_and_encoder(network):
    net = copy.deepcopy(network)
    net(images()).cams.abs().mean().backward()
    assert net.classifier.linear.weight.grad.abs().sum() > 0
    grads = [p.grad for p in net.encoder.parameters() if p.grad is not None]
    assert grads and any(g.abs().sum() > 0 for g in grads)


def test_optimiser_groups_hold_every_parameter_with_gradient_once(network):
    groups = network.groups(0.1, 0.1, 1e-4)
    held = [id(p) for g in groups for p in g["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in network.parameters() if p.requires_grad}
    assert {round(g["lr"], 6) for g in groups} == {0.1, 0.01}
    assert all((g["weight_decay"] > 0) == (p.ndim > 1) for g in groups for p in g["params"])


def test_the_given_backbone_stays_as_it_is():
    b = backbone(CNN)
    key, strides = b.key, b.strides
    net = CamNetwork(b, 2, output_stride=8)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    assert b.key == key and b.strides == strides
    assert net.stride == 8 and net.backbone.provenance == b.provenance


def test_dilated_copy_computes_the_same_at_its_shared_layers():
    b = backbone(CNN)
    dilated = copy_backbone(b, 16)
    x = images()
    assert torch.equal(b.dense(x, 2), dilated.dense(x, 2))
    assert dilated.dense(x, -1).shape[-1] == 4 and b.dense(x, -1).shape[-1] == 2


def test_network_that_cannot_be_dilated_keeps_its_stride():
    net = CamNetwork(backbone("mobilenetv3_small_050"), 2, output_stride=16)
    assert net.stride == 32 and net(images()).cams.shape == (2, 2, 2, 2)


def test_pretrained_head_is_what_follows_the_last_stage():
    b = backbone(CNN)
    head = PretrainedHead.of(b)
    assert head is not None and head.out == b.model.num_features
    x = images()
    with torch.no_grad():
        assert torch.allclose(head(b.dense(x, -1)), b.model.forward_features(x), atol=1e-5)
    assert PretrainedHead.of(backbone("resnet18")) is None


@pytest.mark.parametrize("name", [CNN, "resnet18", VIT])
def test_frozen_stages_get_no_gradient_and_the_later_ones_do(name):
    b = backbone(name)
    freeze_stages(b, 2)
    frozen = [n for n, p in b.model.named_parameters() if not p.requires_grad]
    trained = [n for n, p in b.model.named_parameters() if p.requires_grad]
    expected = {
        CNN: ("conv_stem", "blocks.0", "blocks.1"),
        "resnet18": ("conv1", "bn1", "layer1", "layer2"),
        VIT: ("patch_embed", "blocks.1."),
    }
    assert all(any(n.startswith(e) for n in frozen) for e in expected[name])
    later = {CNN: "blocks.2", "resnet18": "layer3", VIT: "blocks.2."}[name]
    assert any(n.startswith(later) for n in trained) and not any(n.startswith(later) for n in frozen)
    untouched = backbone(name)
    freeze_stages(untouched, 0)
    assert all(p.requires_grad for p in untouched.model.parameters())


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("resnet18", {"conv1", "bn1", "layer1", "layer2"}),  # IRN detaches what the second stage gives
        ("resnet38d", {"conv1a", "b2", "b2_1", "b2_2"}),  # PSA's and SEAM's `not_training`
        (CNN, {"conv_stem", "bn1", "blocks.0", "blocks.1"}),
    ],
)
def test_by_default_each_network_freezes_what_its_paper_does(name, frozen):
    b = backbone(name)
    freeze_stages(b, -1)
    depth = 2 if name == CNN else 1
    found = {".".join(n.split(".")[: depth if n.startswith("blocks") else 1]) for n, p in b.model.named_parameters()
             if not p.requires_grad}  # fmt: skip
    assert found == frozen
    whole = {n for n, p in b.model.named_parameters() if any(n.startswith(f"{f}.") for f in frozen) and p.requires_grad}
    assert not whole, "norms in what is frozen are frozen too"


def test_levels_are_the_stages(network):
    x = images()
    with torch.no_grad():
        maps, features = network.levels(x, [0, -2])
        assert torch.allclose(maps[0], network.backbone.dense(x, 0), atol=1e-5)
        assert torch.allclose(features, network.features(x), atol=1e-5)


# --------------------------------------------------------------------------------------------------- variants

TAGS = torch.tensor([[True, False, True], [False, True, False]])


@pytest.mark.parametrize("variant", ["cam", "grad_cam", "grad_cam_pp"])
def test_only_tagged_classes_have_maps(network, variant):
    maps = activation_maps(network, images(), TAGS, variant)
    assert maps.shape == (2, 3, 4, 4) and (maps >= 0).all() and not maps.requires_grad
    assert not maps[~TAGS].any() and maps[TAGS].any()


@pytest.mark.parametrize("size", [64, 96])
def test_grad_cam_at_the_last_layer_is_cam(network, size):
    x = images(size=size)
    a, b = (activation_maps(network, x, TAGS, v) for v in ("cam", "grad_cam"))
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("variant", ["grad_cam", "grad_cam_pp"])
@pytest.mark.parametrize("layer", [-2, 1])
def test_inner_layers_against_one_backward_pass_for_each_image_and_class(network, variant, layer):
    """The oracle changes the activation by hooks on the module and takes one class of one image at a time."""
    from maskwright.ops.cam import grad_cam, grad_cam_pp

    x = images()
    maps = activation_maps(network, x, TAGS, variant, layer)
    b = network.backbone
    for i, t in TAGS.nonzero().tolist():
        kept: dict[str, torch.Tensor] = {}

        def hold(module, args, out, kept=kept):
            out.retain_grad()
            kept["a"] = out

        index = b.resolve_layer(layer)
        if b.is_vit:
            module = b.model.blocks[index]
        else:
            name = b.model.feature_info[index]["module"]
            module = b.model.get_submodule(name)
        handle = module.register_forward_hook(hold)
        network(x[i : i + 1].clone().requires_grad_()).scores[0, t].backward()
        handle.remove()
        a, g = kept["a"].detach(), kept["a"].grad
        if b.is_vit:
            a, g = (v[:, 1:].transpose(1, 2).reshape(1, -1, 4, 4) for v in (a, g))
        expected = (grad_cam(a, g) * a[0, 0].numel() if variant == "grad_cam" else grad_cam_pp(a, g))[0]
        assert torch.allclose(maps[i, t], expected, atol=1e-5 * float(expected.max().clamp(min=1)), rtol=1e-3)
    network.zero_grad()


def test_gradients_reach_inner_layers_of_a_frozen_network_under_autocast():
    net = CamNetwork(backbone("resnet18"), 2).eval().requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        maps = activation_maps(net, images(), torch.ones(2, 2, dtype=torch.bool), "grad_cam", -2)
    assert maps.any() and maps.dtype == torch.float32


def test_no_tags_no_maps(network):
    none = torch.zeros(2, 3, dtype=torch.bool)
    for variant, layer in (("cam", -1), ("grad_cam", -1), ("grad_cam_pp", -2)):
        assert not activation_maps(network, images(), none, variant, layer).any()
    with pytest.raises(ValueError, match="variant"):
        activation_maps(network, images(), none, "score_cam")


# ---------------------------------------------------------------------------------------------------- saving


def test_saved_as_a_segmenter_and_loaded_again(network, tmp_path):
    table = ClassTable(("background", "cat", "dog", "cow"))
    preprocess = Preprocess.for_backbone(network.backbone.provenance, multiple_of=network.multiple_of)
    segmenter = network.segmenter(table, [1, 2, 3], preprocess)
    save_bundle(tmp_path / "model.safetensors", segmenter, {})
    loaded = load_bundle(tmp_path / "model.safetensors")
    x = images()
    with torch.no_grad():
        logits = loaded(x)
        assert torch.equal(logits, segmenter(x))
        assert torch.allclose(logits[:, 1:], network(x).cams, atol=1e-5)
    assert not logits[:, 0].any(), "background is where no class has evidence"


def test_norms_stay_as_they_came():
    net = CamNetwork(backbone(CNN), 2).train()
    net.freeze_norm()
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    net(images())
    after = net.state_dict()
    assert before and all(torch.equal(v, after[k]) for k, v in before.items())


def test_refuses_no_tags():
    with pytest.raises(ValueError, match="no tags"):
        CamNetwork(backbone(CNN), 0)
    assert np.isfinite(CamNetwork(backbone(CNN), 1)(images()).scores.detach().numpy()).all()

"""ToCo's network: what each head sees, what is trained, and the branch as a segmenter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.methods.weak.toco.network import Projector, TocoNetwork
from maskwright.models.backbones.build import build_backbone
from maskwright.models.bundle import load_bundle, save_bundle
from maskwright.models.parts.large_fov import TokenLargeFOV
from maskwright.models.preprocess import Preprocess


@pytest.fixture(scope="module")
def network() -> TocoNetwork:
    torch.manual_seed(0)
    return TocoNetwork(build_backbone("test_vit", "random"), 4, 5, hidden=12).eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))


def test_tokens_of_one_pass_are_those_of_several(network, x):
    with torch.no_grad():
        features, aux, vectors = network.tokens(x)
        assert torch.allclose(features, network.backbone.dense(x), atol=1e-6)
        assert torch.allclose(aux, network.backbone.dense(x, -3), atol=1e-6)
        assert torch.allclose(vectors, network.backbone.embed(x), atol=1e-6)
    assert features.shape == (2, 64, 3, 2) and not torch.allclose(features, aux)


def test_a_transformer_without_a_class_token_gives_the_mean_of_its_patches(x):
    backbone = build_backbone("vit_medium_patch16_gap_240", "random")
    (tokens,) = backbone.tokens_many(x, [0], norm=False)
    vector, patches = backbone.split_tokens(tokens, (48, 32))
    assert not backbone.has_cls and torch.allclose(vector, patches.mean((2, 3)), atol=1e-5)


def test_scores_are_of_the_largest_value_of_each_channel(network, x):
    with torch.no_grad():
        out = network(x)
        weight = network.classifier.linear.weight.flatten(1)
        assert torch.allclose(out.scores, F.adaptive_max_pool2d(out.features, 1).flatten(1) @ weight.T, atol=1e-5)
        assert torch.allclose(out.cams, torch.einsum("bdhw,td->bthw", out.features, weight), atol=1e-5)
        main, aux = network.class_maps(x)
    assert torch.equal(main, out.cams.relu()) and torch.equal(aux, out.cams_aux.relu())
    assert out.scores_aux.shape == (2, 4) and network.segmentation(out.features).shape == (2, 5, 3, 2)


def test_every_trainable_weight_is_in_one_group(network):
    groups = network.groups(1.0, 0.1, 0.01)
    ids = [id(p) for g in groups for p in g["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in network.parameters() if p.requires_grad}
    rates = {g["lr"] for g in groups}
    assert rates == {1.0, 0.1}
    assert all(g["weight_decay"] == (0.01 if g["params"][0].ndim > 1 else 0.0) for g in groups)
    encoder = {id(p) for p in network.encoder.parameters()}
    assert all((id(p) in encoder) == (g["lr"] == 0.1) for g in groups for p in g["params"])


def test_largefov_sees_21_patches():
    part = TokenLargeFOV(3, 4, 5)
    x = torch.randn(1, 3, 31, 31, requires_grad=True)
    part(x)[0, :, 15, 15].sum().backward()
    reached = x.grad.abs().sum((0, 1)).nonzero()
    assert reached.min() >= 5 and reached.max() <= 25 and reached.max() - reached.min() == 20
    assert part(x).shape == (1, 4, 31, 31)


def test_projector_gives_cosines():
    torch.manual_seed(0)
    head, x = Projector(6, 8, 4, 10), torch.randn(3, 5, 6)
    z = head(x)
    rows = F.normalize(head.last.weight, dim=1)
    expected = torch.stack([torch.stack([F.normalize(v, dim=0) @ r for r in rows]) for v in head.mlp(x).flatten(0, 1)])
    assert torch.allclose(z.flatten(0, 1), expected, atol=1e-6)
    with torch.no_grad():
        head.last.weight.mul_(3)
    assert torch.allclose(head(x), z, atol=1e-6), "only directions count"


def test_branch_is_saved_and_loaded(network, x, tmp_path):
    segmenter = network.branch(ClassTable.numbered(5), Preprocess(multiple_of=16))
    save_bundle(tmp_path / "m.safetensors", segmenter, {})
    loaded = load_bundle(tmp_path / "m.safetensors")
    with torch.no_grad():
        expected = network.segmentation(network.tokens(x)[0])
        assert torch.allclose(segmenter(x), expected, atol=1e-6)
        assert torch.equal(segmenter(x), loaded(x))
    segmenter.classifier.linear.weight.data.zero_()
    assert network.segment.linear.weight.any(), "a copy"


def test_refuses_what_has_no_tokens():
    with pytest.raises(MaskwrightError, match=r"resnet18.*vision transformer.*--backbone"):
        TocoNetwork(build_backbone("resnet18", "random"), 2, 3)
    for layer in (-1, -7, 5, 9):
        with pytest.raises(MaskwrightError, match="aux_layer"):
            TocoNetwork(build_backbone("test_vit", "random"), 2, 3, aux_layer=layer)


def test_the_branch_has_no_biases_and_bundles_from_before_keep_theirs(network):
    names = [name for name, _ in network.largefov.named_parameters()]
    assert names == ["conv6.weight", "conv7.weight"]
    bias = network.segment.linear.bias
    assert not bias.any() and not bias.requires_grad
    before = TokenLargeFOV.from_spec({"kind": "TokenLargeFOV", "width": 3, "hidden": 4, "dilation": 5})
    assert before.conv6.bias is not None
    assert TokenLargeFOV.from_spec(TokenLargeFOV(3, 4, 5).spec()).conv6.bias is None

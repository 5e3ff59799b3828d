"""Dense features: shapes, layers, queries and keys against timm's own attention, keys of weights, weights
from a package."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.errors import MaskwrightError
from maskwright.models.backbones import build as backbones
from maskwright.models.backbones import weights
from maskwright.models.backbones.build import BACKBONES, Backbone, build_backbone, choose_backbone, default_backbone
from maskwright.models.backbones.catalogue import labels_of_tag
from maskwright.models.backbones.keymaps import translate
from maskwright.models.backbones.weights import read_weights_file

ROTARY = {"img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 2}


def small_vit(name: str = "test_vit", **options) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(name, "random", **options)


VITS = {
    "plain": lambda: small_vit("test_vit"),
    "registers": lambda: small_vit("vit_small_patch14_reg4_dinov2", img_size=28, depth=3, embed_dim=48, num_heads=3),
    "rotary": lambda: small_vit("vit_small_patch16_dinov3", **ROTARY),
    "rotary with bias": lambda: small_vit("vit_small_patch16_dinov3_qkvb", **ROTARY),
    "clip": lambda: small_vit("vit_base_patch16_clip_224", img_size=32, depth=3, embed_dim=48, num_heads=2),
}


@pytest.fixture(scope="module", params=VITS)
def vit(request) -> Backbone:
    backbone = VITS[request.param]()
    with torch.no_grad():  # biases of zero would hide a mistake in their order
        for name, parameter in backbone.named_parameters():
            if "bias" in name:
                parameter.normal_(0, 0.5)
    return backbone


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (1, 7)])
def test_dense_has_one_vector_a_patch(vit: Backbone, grid: tuple[int, int]):
    x = torch.randn(2, 3, grid[0] * vit.stride, grid[1] * vit.stride)
    for layer in (0, -1, None):
        for kind in ("tokens", "q", "k", "v"):
            assert vit.dense(x, layer, kind).shape == (2, vit.width, *grid)
    assert all(m.shape == (2, vit.width, *grid) for m in vit.stages(x))
    assert vit.embed(x).shape == (2, vit.width)


def test_tokens_equal_timm_intermediates(vit: Backbone):
    x = torch.randn(1, 3, 3 * vit.stride, 2 * vit.stride)
    theirs = vit.model.forward_intermediates(x, norm=True, intermediates_only=True)
    for layer, expected in enumerate(theirs):
        torch.testing.assert_close(vit.dense(x, layer), expected)
    several = vit.dense_many(x, [-1, 0, -1])
    torch.testing.assert_close(several[0], theirs[-1])
    torch.testing.assert_close(several[1], theirs[0])
    torch.testing.assert_close(several[2], theirs[-1])


def test_class_attention_and_values_equal_the_unfused_attention(vit: Backbone):
    x = torch.randn(2, 3, 3 * vit.stride, 4 * vit.stride)
    block = 1
    attn = vit.model.blocks[block].attn
    seen = {}
    attn.fused_attn = False
    hook = attn.attn_drop.register_forward_pre_hook(lambda _, args: seen.update(weights=args[0]))
    out = attn.proj.register_forward_pre_hook(lambda _, args: seen.update(mixed=args[0]))
    vit.model.forward_features(x)
    hook.remove()
    out.remove()
    attn.fused_attn = True
    maps = vit.cls_attention(x, block)
    prefix = vit.prefix_tokens
    torch.testing.assert_close(maps.flatten(2), seen["weights"][:, :, 0, prefix:])
    # What the block mixes, minus what prefix tokens add, is the attention over our values.
    v = vit.dense(x, block, "v").flatten(2).unflatten(1, (attn.num_heads, -1))  # (B, heads, d, h*w)
    patches = torch.einsum("bhqp,bhdp->bqhd", seen["weights"][..., prefix:], v).flatten(2)
    rest = (seen["mixed"] - patches).abs().max()
    only_prefix = seen["weights"][..., :prefix].sum(-1).max()
    assert rest <= only_prefix * 20 and (maps.sum((-2, -1)) <= 1 + 1e-5).all()


def test_keys_are_the_qkv_projection_itself():
    vit = small_vit()
    seen = {}
    hook = vit.model.blocks[-1].attn.qkv.register_forward_hook(lambda _m, _a, out: seen.update(qkv=out))
    x = torch.randn(1, 3, 32, 48)
    vit.model.forward_features(x)
    hook.remove()
    parts = seen["qkv"][:, vit.prefix_tokens :].chunk(3, -1)
    for kind, expected in zip("qkv", parts):
        torch.testing.assert_close(vit.dense(x, -1, kind), expected.transpose(1, 2).reshape(1, -1, 2, 3))


@settings(max_examples=10, deadline=None)
@given(h=st.integers(1, 40), w=st.integers(1, 40))
def test_sizes_between_patches_name_the_nearest(h: int, w: int):
    vit = _shared_vit()
    if h % 16 or w % 16:
        with pytest.raises(ValueError, match="nearest is"):
            vit.dense(torch.zeros(1, 3, h, w))
    else:
        assert vit.dense(torch.zeros(1, 3, h, w)).shape[-2:] == (h // 16, w // 16)


_SHARED: list[Backbone] = []


def _shared_vit() -> Backbone:
    if not _SHARED:
        _SHARED.append(small_vit())
    return _SHARED[0]


def test_wrong_layers_kinds_and_shapes():
    vit = _shared_vit()
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="layer 6"):
        vit.dense(x, 6)
    with pytest.raises(ValueError, match="kind"):
        vit.dense(x, kind="values")
    with pytest.raises(ValueError, match="expected"):
        vit.dense(x[0])
    with pytest.raises(ValueError, match="precision"):
        vit.dense(x, precision="fp16")


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224"])
def test_windows_take_any_size_and_their_own_as_timm_has_it(name: str):
    options = {"img_size": 96, "embed_dim": 24, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    swin = build_backbone(name, "random", **options)
    assert [m.shape[-2:] for m in swin.stages(torch.randn(1, 3, 64, 160))] == [(16, 40), (8, 20), (4, 10), (2, 5)]
    fixed = timm.create_model(name, num_classes=0, **options).eval()
    fixed.load_state_dict(swin.model.state_dict())
    x = torch.randn(1, 3, 96, 96)
    for ours, theirs in zip(swin.stages(x), fixed.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "efficientnet_lite0", "hrnet_w18_small"])
def test_stages_of_a_convolutional_network(name: str):
    cnn = build_backbone(name, "random")
    x = torch.randn(1, 3, 64, 96)
    for layer, m in enumerate(cnn.stages(x)):
        stride = cnn.strides[layer]
        assert m.shape == (1, cnn.widths[layer], 64 // stride, 96 // stride)
    assert cnn.dense(x).shape == (1, cnn.width, 64 // cnn.stride, 96 // cnn.stride)
    assert cnn.stride == 16 and cnn.embed(x).shape[0] == 1
    torch.testing.assert_close(cnn.dense(x, 1), cnn.stages(x)[1])
    with pytest.raises(ValueError, match="tokens"):
        cnn.dense(x, kind="k")
    with pytest.raises(ValueError, match="class token"):
        cnn.cls_attention(x)


def test_only_the_stages_needed_are_run():
    cnn = build_backbone("resnet18", "random")
    ran = []
    for name in ("layer2", "layer3", "layer4"):
        getattr(cnn.model, name).register_forward_hook(lambda *_a, name=name: ran.append(name))
    cnn.dense(torch.zeros(1, 3, 64, 64), 2)
    assert ran == ["layer2"]
    vit = small_vit()
    for i, block in enumerate(vit.model.blocks):
        block.register_forward_hook(lambda *_a, i=i: ran.append(i))
    vit.dense(torch.zeros(1, 3, 32, 32), 2, "k")
    assert ran == ["layer2", 0, 1]


@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride_keeps_weights_and_resolution(stride: int):
    torch.manual_seed(0)
    cnn = build_backbone("resnet18", "random")
    dilated = build_backbone("resnet18", "random", output_stride=stride)
    dilated.model.load_state_dict(cnn.model.state_dict())
    assert dilated.stride == stride and dilated.dense(torch.zeros(1, 3, 64, 64)).shape == (
        1,
        512,
        64 // stride,
        64 // stride,
    )
    assert dilated.key == cnn.key
    with pytest.raises(MaskwrightError, match="8, 16 or 32"):
        build_backbone("resnet18", "random", output_stride=4)
    with pytest.raises(MaskwrightError, match="output stride"):
        build_backbone("test_vit", "random", output_stride=8)


@pytest.mark.parametrize("name", ["test_vit", "resnet18"])
def test_bf16_agrees_with_fp32(name: str):
    torch.manual_seed(0)
    backbone = build_backbone(name, "random")
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        a, b = backbone.dense(x), backbone.dense(x, precision="bf16")
    assert b.dtype == torch.float32
    assert F.cosine_similarity(a, b, dim=1).min() > 0.999


def test_key_follows_the_weights():
    a, b = small_vit(), small_vit()
    assert a.key == b.key and len(a.key) == 64
    with torch.no_grad():
        b.model.norm.weight[0] += 1
    assert a.key != b.key
    b.load_state_dict(a.state_dict())
    assert a.key == b.key


def test_gradients_reach_the_weights():
    vit = small_vit()
    vit.dense(torch.randn(1, 3, 32, 32)).square().mean().backward()
    assert vit.model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_package_weights_are_those_of_timm():
    backbone = build_backbone("efficientnet_lite0", "package")
    assert backbone.provenance.labels_seen == "ImageNet-1k classes"
    assert backbone.provenance.mean == (0.5, 0.5, 0.5) and len(backbone.provenance.sha256) == 64
    assert build_backbone("tf_efficientnet_lite0", "package").key == backbone.key
    with pytest.raises(MaskwrightError, match="no package"):
        build_backbone("resnet18", "package")


@pytest.mark.data
def test_package_weights_give_the_features_of_the_published_file(weights_root):
    path = weights_root / "tf_efficientnet_lite0.safetensors"
    ours, theirs = (
        build_backbone("efficientnet_lite0", "package"),
        build_backbone("tf_efficientnet_lite0", str(path)),
    )
    assert theirs.provenance.labels_seen == "ImageNet-1k classes" and theirs.provenance.mean == (0.5,) * 3
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for a, b in zip(ours.stages(x), theirs.stages(x)):
            assert F.cosine_similarity(a.flatten(1), b.flatten(1)).item() > 0.99999  # convolutions there are fp16


def test_without_a_hub_the_repair_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(weights, "hub_cached", lambda *_: None)
    with pytest.raises(MaskwrightError, match=r"HF_HUB_OFFLINE is set.*--weights"):
        build_backbone("dinov2_small")
    monkeypatch.setattr(backbones, "hub_cached", lambda *_: None)
    choice = choose_backbone()
    assert choice.name == "efficientnet_lite0" and choice.weights == "package" and "ImageNet-1k classes" in choice.why
    backbone, why = default_backbone()
    assert backbone.provenance.source.startswith("package") and why == choice.why
    monkeypatch.setattr(backbones, "package_installed", lambda _: False)
    with pytest.raises(MaskwrightError, match=r"maskwright\[offline\]"):
        choose_backbone()


def test_where_only_a_vision_transformer_will_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(backbones, "hub_cached", lambda *_: None)
    with pytest.raises(MaskwrightError, match=r"HF_HUB_OFFLINE is set.*vision transformer.*--weights FILE"):
        default_backbone(kind="vit")
    monkeypatch.setattr(backbones, "hub_cached", lambda repo, *_: repo if repo.endswith(".dino") else None)
    choice = choose_backbone("vit")
    assert choice.name == "dino_small16" and choice.weights is None and "no labels" in choice.why
    assert choose_backbone().name == "efficientnet_lite0"
    monkeypatch.setattr(backbones, "hub_cached", lambda repo, *_: repo)
    assert choose_backbone("vit").name == choose_backbone().name == "dinov2_small"
    monkeypatch.setattr(backbones, "hub_cached", lambda *_: None)
    monkeypatch.setattr(backbones, "hub_reachable", lambda: True)
    assert choose_backbone("vit").name == "dinov2_small"


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    for name in weights.OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not weights.hub_reachable()
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda *_a, **_k: pytest.fail("asked again"))
    assert not weights.hub_reachable()


def test_weights_in_the_hub_cache_are_used(monkeypatch, tmp_path):
    from safetensors.torch import save_file

    source = small_vit()
    save_file(source.model.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(weights, "hub_cached", lambda *_: tmp_path / "model.safetensors")
    loaded = build_backbone("test_vit.r160_in1k")
    assert loaded.key == source.key and loaded.provenance.source == "hub: timm/test_vit.r160_in1k"
    assert loaded.provenance.labels_seen == "ImageNet-1k classes"


@pytest.mark.parametrize("name", ["dinov2_smal", "hf-hub:someone/something", "local-dir:/tmp", "test_vit.nothing", ""])
def test_unknown_names(name: str):
    with pytest.raises(MaskwrightError, match="unknown backbone"):
        build_backbone(name, "random")


def test_table_of_short_names():
    import timm

    for name, entry in BACKBONES.items():
        assert timm.is_model(entry.timm.split(".")[0]), name
        assert entry.timm in timm.list_pretrained(entry.timm.split(".")[0] + ".*"), name
    assert labels_of_tag("augreg_in21k_ft_in1k") == "ImageNet-1k classes"
    assert labels_of_tag("lvd142m") == "none" and labels_of_tag("something") == "unknown"


def test_random_weights_saw_nothing():
    provenance = build_backbone("test_vit", pretrained=False).provenance
    assert provenance.source == "random" and provenance.labels_seen == "none"


def test_translating_own_weights_changes_nothing(tmp_path):
    model = small_vit().model
    fitted = translate(model.state_dict(), model)
    assert all(torch.equal(fitted[k], v) for k, v in model.state_dict().items())
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert build_backbone("test_vit", str(tmp_path / "w.pth")).key == small_vit().key
    assert read_weights_file(tmp_path / "w.pth").source == "file: w.pth"

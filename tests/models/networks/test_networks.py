"""Every network of the table: its parts, sizes, layers, copies, and the bundle it is saved in."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks.bench_networks import PUBLISHED, parameters
from benchmarks.bench_networks import make as make_published
from torch import Tensor, nn

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import Backbone, build_backbone
from maskwright.models.bundle import load_bundle, save_bundle
from maskwright.models.networks.blocks import BatchNorm2d, FCNHead, tolerate_single_values
from maskwright.models.networks.build import NETWORKS, Network, build_network
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.ema import EMATeacher

PAGE = Path(__file__).resolve().parents[2] / "docs" / "networks.md"
CLASSES = 5
CNN, VIT = "resnet18", "test_vit"
WITH_AUX = {"pspnet", "ocr", "ddrnet23_slim", "ddrnet23", "ddrnet39", "setr_naive", "setr_pup", "setr_mla"}


@cache
def backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(name, "random")


def encoder_of(name: str) -> str | None:
    special = {"deeplabv1": None, "hrnet": "hrnet_w18_small"}
    kind = NETWORKS[name].encoder
    return None if kind == "own" else special.get(name, VIT if kind == "vit" else CNN)


SMALLER = {"deeplabv1": {"architecture": "vgg11", "hidden": 32}}


def make(name: str, classes: int = CLASSES, **options) -> Network:
    torch.manual_seed(1)
    encoder = encoder_of(name)
    return build_network(
        name, None if encoder is None else backbone(encoder), classes, options=options or SMALLER.get(name)
    )


def row(heading: str, name: str) -> dict[str, str]:
    """A network's row in the page's first table that has this column."""
    columns: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        columns = columns if cells and columns else cells
        if heading in columns and cells[0].strip("`") == name:
            return dict(zip(columns, cells, strict=True))
    raise AssertionError(name)


def segmenter_of(network: Network) -> Segmenter:
    table = ClassTable.numbered(network.classes)
    preprocess = Preprocess(multiple_of=network.multiple_of)
    return Segmenter(network.encoder, network.decoder, network.classifier, table, preprocess, network.provenance)


@pytest.mark.parametrize("name", NETWORKS)
def test_parts_compose_and_survive_a_bundle(name, tmp_path):
    network = make(name).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        features = network.features(x)
        embedding = network.decode(features)
        logits = network.classify(embedding)
        assert torch.equal(network(x), logits) and torch.equal(network(x), network(x))
    assert embedding.shape[:2] == (2, network.width) and logits.shape[:2] == (2, CLASSES)
    assert logits.shape[-2:] == embedding.shape[-2:]
    assert set(network.aux_weights) == set(network.aux)
    assert bool(len(network.aux)) == (name in WITH_AUX)
    loaded = load_bundle(save_bundle(tmp_path / "m.safetensors", segmenter_of(network)))
    with torch.inference_mode():
        assert torch.equal(loaded(x), logits)
    assert loaded.multiple_of == network.multiple_of and not any("aux.aux" in n for n in loaded.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_one_image_trains_every_parameter_once(name):
    # One image of the smallest size: behind a global pooling each channel has a single value.
    network = make(name)
    x = torch.randn(1, 3, 64, 64)
    features = network.features(x)
    loss = network.classify(network.decode(features)).square().mean()
    aux = network.aux_logits(features)
    assert all(logits.shape[:2] == (1, CLASSES) for logits in aux.values())
    (loss + sum(logits.square().mean() for logits in aux.values())).backward()
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    assert not [n for n, p in trained if p.grad is None or not p.grad.isfinite().all()]
    assert len(list(network.parameters())) - len(trained) == (2 if name.startswith("setr_") else 0)
    layers = network.encoder_layers()
    found = [id(p) for layer in [*layers, network.head_parameters()] for p in layer]
    assert len(found) == len(set(found)) and set(found) == {id(p) for p in network.parameters()}
    assert {id(p) for layer in layers for p in layer} == {id(p) for p in network.encoder.parameters()}
    assert len(layers) >= 5 and all(layers)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(65, 33), (32, 97)])
def test_logits_have_the_size_of_any_input(name, size):
    network = make(name).eval()
    with torch.inference_mode():
        assert network.logits(torch.randn(1, 3, *size)).shape == (1, CLASSES, *size)


@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings_have_the_stride_that_the_page_states(name):
    stated = row("stride of the logits", name)["stride of the logits"]
    assert stated == NETWORKS[name].stride
    encoders = {encoder_of(name): stated}
    if name == "ocr":
        encoders = {"hrnet_w18_small": "4", CNN: "8"}
        assert stated == "4 (HRNet), 8"
    for encoder, formula in encoders.items():
        network = make(name) if encoder == encoder_of(name) else build_network(name, backbone(encoder), CLASSES)
        first, *rest = formula.split(" / ")
        patch = network.encoder.stride if first == "patch" else int(first)
        stride = patch / int(rest[0]) if rest else patch
        with torch.inference_mode():
            embedding = network.eval().decode(network.features(torch.randn(1, 3, 64, 96)))
        assert embedding.shape[-2:] == (64 / stride, 96 / stride)


def test_the_auxiliary_head_of_pspnet_reads_stage_3():
    network = make("pspnet").eval()
    trunk = network.encoder.module.model
    seen = {}
    for stage in ("layer3", "layer4"):
        trunk[stage].register_forward_hook(lambda _m, _a, out, stage=stage: seen.update({stage: out}))
    with torch.inference_mode():
        features = network.features(torch.randn(1, 3, 64, 96))
        logits = network.aux_logits(features)["aux"]
        head = network.aux["aux"]
        assert torch.equal(logits, head.last(head.body(seen["layer3"]))) and not head.drop.training
    assert features[-1] is seen["layer4"] and {m.shape[-2:] for m in seen.values()} == {(8, 12)}


@pytest.mark.parametrize(
    ("name", "lacks"),
    # PSPNet lacks eight ninths of its 3x3 convolution, UPerNet's count has an auxiliary head.
    [("pspnet", 8 * 4096 * 512 / 1e6), ("deeplabv3", 0), ("deeplabv3plus", 0), ("upernet", 1)],
)
def test_published_parameters(name, lacks):
    published, encoder, classes, options, size = PUBLISHED[name]
    with torch.device("meta"):
        kept, aux = (n / 1e6 for n in parameters(make_published(name, encoder, classes, size, options)))
    assert kept + lacks == pytest.approx(published, rel=0.012)
    told = row("gap", name)
    assert told["parameters, M"] == f"{kept:.2f} + {aux:.2f}" and told["published, M"] == str(published)
    assert told["gap"] == f"{kept / published - 1:+.1%}"


@pytest.mark.parametrize("size", [(513, 33), (40, 517), (33, 1025)])
def test_logits_at_the_crop_sizes_of_the_papers(size):
    network = make("ddrnet23_slim").eval()
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        y = network.logits(x)
        padded = F.pad(x, (0, -size[1] % 8, 0, -size[0] % 8), mode="replicate")
        whole = F.interpolate(network(padded), scale_factor=8, mode="bilinear", align_corners=False)
    torch.testing.assert_close(y, whole[..., : size[0], : size[1]])


@pytest.mark.parametrize("name", ["unet", "ocr", "pspnet", "ddrnet23_slim", "setr_pup", "setr_mla"])
def test_copies_share_nothing(name):
    network = make(name)
    teacher = EMATeacher(network)
    inside = {t.data_ptr() for t in network.state_dict().values() if t.numel()}
    assert not inside & {t.data_ptr() for t in teacher.module.state_dict().values() if t.numel()}
    other = copy.deepcopy(network).eval()
    network.eval()
    x = torch.randn(1, 3, 64, 64)
    before = network.aux_logits(network.features(x))
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    after = network.aux_logits(network.features(x))
    assert all(torch.equal(before[k], after[k]) for k in before)
    # The copy's auxiliary heads belong to the copy.
    zero = other.aux_logits(other.features(x))
    assert all(not v.any() for v in zero.values())


@pytest.mark.parametrize("name", ["deeplabv3plus", "unet", "hrnet", "dpt", "pspnet"])
def test_encoder_has_the_backbones_weights_and_leaves_it_alone(name):
    given = backbone(encoder_of(name))
    key = given.key
    network = make(name)
    assert network.provenance == given.provenance
    theirs = {tuple(t.shape): t for t in given.model.state_dict().values() if t.ndim == 4}
    ours = [p for p in network.encoder.parameters() if p.ndim == 4]
    assert ours and any(torch.equal(p, theirs[tuple(p.shape)]) for p in ours)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    given._key = None
    assert given.key == key


def test_smp_encoder_gives_what_the_backbone_gives():
    given = backbone(CNN)
    network = make("unet").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for a, b in zip(network.features(x)[1:], given.stages(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["unet", "upernet", "segformer", "fpn", "deeplabv3plus"])
def test_encoders_that_begin_at_a_quarter(name):
    network = build_network(name, backbone("test_convnext"), 3).eval()
    with torch.inference_mode():
        assert network.logits(torch.randn(1, 3, 70, 64)).shape == (1, 3, 70, 64)
    assert len(network.encoder_layers()) > 4


def test_auto():
    assert type(build_network("auto", backbone(VIT), 3).decoder).__name__ == "DPTDecoder"
    plus = build_network("auto", backbone(CNN), 3)
    assert plus.encoder.architecture == "deeplabv3plus" and plus.multiple_of == 16
    # An HRNet cannot be dilated.
    assert build_network("auto", backbone("hrnet_w18_small"), 3).encoder.architecture == "upernet"


def test_dilations_follow_the_output_stride():
    for stride, rates in ((16, [6, 12, 18]), (8, [12, 24, 36])):
        network = make("deeplabv3", output_stride=stride)
        assert network.encoder.options["decoder_atrous_rates"] == rates
        found = {m.dilation[0] for m in network.decoder.modules() if isinstance(m, nn.Conv2d)}
        assert found == {1, *rates}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("deeplabv4", CNN, 3), "did you mean"),
        (("dpt", CNN, 3), "vision transformer"),
        (("dpt", None, 3), "vision transformer"),
        (("unet", VIT, 3), "convolutional backbone"),
        (("unet", None, 3), "--backbone"),
        (("auto", None, 3), "--backbone"),
        (("deeplabv1", CNN, 3), "vgg16"),
        (("hrnet", CNN, 3), "hrnet_w18"),
        (("deeplabv3plus", "hrnet_w18_small", 3), "upernet"),
        (("unet", CNN, 0), "at least 1"),
    ],
)
def test_wrong_combinations_are_told_with_the_repair(arguments, told):
    name, encoder, classes = arguments
    with pytest.raises(MaskwrightError, match=told):
        build_network(name, None if encoder is None else backbone(encoder), classes)


def test_unknown_options_and_weights_are_refused():
    for name, options in (("unet", {"depth": 3}), ("ddrnet23_slim", {"width": 3}), ("deeplabv2", {"rate": 3})):
        with pytest.raises(MaskwrightError, match="unknown option"):
            make(name, **options)
    with pytest.raises(MaskwrightError, match="official"):
        build_network("unet", backbone(CNN), 3, weights="w.pth")
    with pytest.raises(MaskwrightError, match="missing"):
        build_network("ddrnet23_slim", None, 3, weights="nowhere.pth")


def test_one_value_a_channel_is_normalised_as_in_evaluation():
    norm = BatchNorm2d(4)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    before = copy.deepcopy(norm.state_dict())
    x = torch.randn(1, 4, 1, 1)
    y = norm(x)
    assert torch.equal(y, copy.deepcopy(norm).eval()(x))
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm2d(4)(x)


def test_several_values_a_channel_are_normalised_as_by_torch():
    ours, theirs = BatchNorm2d(4), nn.BatchNorm2d(4)
    x = torch.randn(2, 4, 1, 1)
    assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(theirs.state_dict()[k], v) for k, v in ours.state_dict().items())


def test_norms_are_replaced_with_their_tensors():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=0.1, momentum=0.3), nn.ReLU()))
    plain[1][0].running_mean.normal_()
    reference = copy.deepcopy(plain)
    replaced = tolerate_single_values(plain)
    assert type(replaced[1][0]) is BatchNorm2d and replaced[1][0].momentum == 0.3
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(replaced(x), reference(x))
    assert replaced.state_dict().keys() == reference.state_dict().keys()


def test_fcn_head_reads_its_map_and_drops_nothing_in_evaluation():
    head = FCNHead(6, 3, -2, 8).eval()
    maps: list[Tensor] = [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 8, 8), torch.randn(1, 9, 4, 4)]
    y = head(maps)
    slow = F.relu(head.body[1](F.conv2d(maps[1], head.body[0].weight, padding=1)))
    torch.testing.assert_close(y, F.conv2d(slow, head.last.weight, head.last.bias))
    assert np.isfinite(y.detach().numpy()).all()


@pytest.mark.parametrize("name", ["ocr", "setr_mla"])
def test_heads_on_inner_maps_of_the_decoder_take_what_it_made(name):
    """The same logits as made anew, and batch norm sees the batch once."""
    network = make(name).train()
    slow = copy.deepcopy(network)
    x = torch.randn(2, 3, 64, 64)
    features = network.features(x)
    network.decode(features)
    logits = network.aux_logits(features)
    counts = {int(v) for k, v in network.named_buffers() if k.startswith("decoder.") and k.endswith("tracked")}
    assert counts == {1}
    others = slow.aux_logits(slow.features(x))
    assert all(torch.equal(logits[k], others[k]) for k in others)
    sum(v.sum() for v in logits.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.aux.parameters())
    other = [f + 1 for f in features]  # other maps: nothing old is handed out
    assert not any(torch.equal(v, logits[k]) for k, v in network.aux_logits(other).items())
    network.eval().decode(features)
    assert network.decoder.handed.get(features) is None


@pytest.mark.parametrize("name", ["setr_naive", "setr_pup", "setr_mla", "segmenter_mask"])
def test_setr_reads_the_blocks_as_they_are(name):
    network = make(name).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        inner = network.encoder.backbone
        for p in inner.model.norm.parameters():
            p.add_(0.5)
        want = inner.dense_many(x, network.encoder.layers, norm=name == "segmenter_mask")
        assert all(torch.equal(a, b) for a, b in zip(network.features(x), want, strict=True))
        again = BackboneEncoder.from_spec(network.encoder.spec())
        again.load_state_dict(network.encoder.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(again.eval()(x), want, strict=True))


MMSEG_VIT = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.", "layers."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    (".attn.qkv.", ".attn.attn.in_proj_"),
    (".attn.proj.", ".attn.attn.out_proj."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
)


@pytest.mark.parametrize("trunk", ["timm", "mmseg"])
def test_official_setr_fills_encoder_and_head(trunk, tmp_path):
    torch.manual_seed(2)
    options = {"img_size": 32, "depth": 5, "embed_dim": 48, "num_heads": 3}
    original = build_network("setr_naive", build_backbone("vit_tiny_patch16_224", "random", **options), 3)
    state = {}
    for key, value in original.encoder.backbone.model.state_dict().items():
        if key.startswith("norm."):
            continue  # a network without a last normalisation
        for ours, theirs in MMSEG_VIT if trunk == "mmseg" else ():
            key = key.replace(ours, theirs)
        state[f"backbone.{key}"] = value
    for key, value in original.decoder.state_dict().items():
        key = key.replace("blocks.0.0.", "up_convs.0.0.conv.").replace("blocks.0.1.", "up_convs.0.0.bn.")
        state[f"decode_head.{key}"] = value
    state |= {f"decode_head.conv_seg.{k.split('.')[1]}": v for k, v in original.classifier.state_dict().items()}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "w.pth")
    torch.manual_seed(5)
    blank = build_backbone("vit_tiny_patch16_224", "random", **options)
    loaded = build_network("setr_naive", blank, 3, weights=str(tmp_path / "w.pth")).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), original.eval()(x))


@pytest.mark.parametrize("name", ["dpt", "segmenter_linear"])
def test_official_transformers_fill_encoder_and_head(name, tmp_path):
    torch.manual_seed(2)
    vit = build_backbone("vit_tiny_patch16_224", "random", img_size=32, depth=2, embed_dim=48, num_heads=3)
    original = build_network(name, vit, 3)
    trunk, head = ("backbone.", "") if name == "dpt" else ("encoder.", "decoder.")
    state = {f"{trunk}{k}": v for k, v in original.encoder.backbone.model.state_dict().items()}
    for part in (original.decoder, original.classifier):
        for k, v in part.state_dict().items():
            if name == "dpt":
                k = k.replace("linear.", "head.scratch.output_conv.2.") if part is original.classifier else _dpt_name(k)
            state[f"{head}{k}"] = v
    torch.save(state, tmp_path / "w.pth")
    torch.manual_seed(5)
    blank = build_backbone("vit_tiny_patch16_224", "random", img_size=32, depth=2, embed_dim=48, num_heads=3)
    loaded = build_network(name, blank, 3, weights=str(tmp_path / "w.pth"))
    theirs = original.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in loaded.state_dict().items())
    assert loaded.provenance.source == "file: w.pth"


def _dpt_name(name: str) -> str:
    """The name of a tensor of the DPT decoder in UniMatch V2's files."""
    kind, *rest = name.split(".")
    number = int(rest[0]) + 1 if rest[0].isdigit() else 0
    match kind:
        case "layer_rn":
            return ".".join(["head.scratch", f"layer{number}_rn", *rest[1:]])
        case "refine":
            inner = rest[1].replace("unit", "resConfUnit")
            return ".".join(["head.scratch", f"refinenet{number}", inner, *rest[2:]])
        case "output":
            return ".".join(["head.scratch.output_conv.0", *rest])
    return f"head.{name}"

"""HRNet's own head and OCR: published sizes, object context against slow sums, official checkpoints by name."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks.build import build_network
from maskwright.models.networks.hrnet import HRNetDecoder, HRNetEncoder
from maskwright.models.networks.ocr import OCRDecoder, gather_regions, object_attention

SMALL = "hrnet_w18_small"


def test_published_parameters():
    with torch.device("meta"):
        for name, millions in (("hrnet", 65.8), ("ocr", 70.3)):
            network = build_network(name, None, 19)
            assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
            assert network.encoder.widths == [48, 96, 192, 384]


def test_regions_are_weighted_sums_over_the_image():
    torch.manual_seed(0)
    pixels, logits = torch.randn(2, 6, 4, 5).double(), torch.randn(2, 3, 4, 5).double() * 3
    got = gather_regions(pixels, logits)
    for b in range(2):
        for k in range(3):
            m = logits[b, k].exp() / logits[b, k].exp().sum()
            slow = sum(m[i, j] * pixels[b, :, i, j] for i in range(4) for j in range(5))
            torch.testing.assert_close(got[b, :, k, 0], slow)


def test_attention_equals_the_einsum():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 8, 4, 5).double(), torch.randn(2, 8, 3, 1).double(), torch.randn(2, 8, 3, 1).double()
    weight = torch.softmax(torch.einsum("bdhw,bdk->bkhw", q, k[..., 0]) / 8**0.5, dim=1)
    slow = torch.einsum("bkhw,bdk->bdhw", weight, v[..., 0])
    torch.testing.assert_close(object_attention(q, k, v), slow)


def test_pixels_of_one_sure_region_all_get_its_mean():
    pixels = torch.randn(1, 4, 3, 3)
    logits = torch.zeros(1, 2, 3, 3)
    torch.testing.assert_close(gather_regions(pixels, logits)[0, :, 0, 0], pixels.mean((2, 3))[0])
    one = torch.randn(1, 4, 1, 1)
    y = object_attention(torch.randn(1, 4, 3, 3), torch.randn(1, 4, 1, 1), one)
    torch.testing.assert_close(y, one.expand(1, 4, 3, 3))


def test_decoder_joins_regions_of_another_size():
    decoder = OCRDecoder([8, 6], [0], [1], 3, mid=10, key=4, region_kernel=3, region_width=7).eval()
    features = [torch.randn(1, 8, 8, 12), torch.randn(1, 6, 4, 6)]
    guess = F.interpolate(decoder.region_logits(features), (8, 12), mode="bilinear", align_corners=False)
    pixels = decoder.conv3x3_ocr(features[0])
    block = decoder.object_context_block
    vectors = gather_regions(pixels, guess)
    context = block.f_up(object_attention(block.f_pixel(pixels), block.f_object(vectors), block.f_down(vectors)))
    slow = decoder.conv_bn_dropout(torch.cat([context, pixels], 1))
    torch.testing.assert_close(decoder(features), slow)
    with pytest.raises(ValueError, match="region_kernel"):
        OCRDecoder([8, 6], [0], [1], 3, region_kernel=2)


def test_streams_are_joined_at_a_quarter():
    decoder = HRNetDecoder([2, 3]).eval()
    fine, coarse = torch.randn(1, 2, 8, 8), torch.randn(1, 3, 4, 4)
    wide = enlarged(coarse.double(), (8, 8)).float()
    torch.testing.assert_close(decoder([fine, coarse]), decoder.fuse(torch.cat([fine, wide], 1)))
    encoder = HRNetEncoder(SMALL)
    assert [m.shape[-1] for m in encoder(torch.randn(2, 3, 64, 64))] == [16, 8, 4, 2]
    with pytest.raises(ValueError, match="multiples of 32"):
        encoder(torch.randn(1, 3, 48, 64))
    with pytest.raises(MaskwrightError, match="unknown HRNet"):
        HRNetEncoder("resnet18")


def linear(n: int, m: int) -> torch.Tensor:
    """The matrix (m, n) of linear interpolation that maps ends to ends, in float64."""
    out = torch.zeros(m, n, dtype=torch.float64)
    for i in range(m):
        x = i * (n - 1) / (m - 1)
        low = min(int(x), n - 2) if n > 1 else 0
        out[i, low] += 1 - (x - low)
        if n > 1:
            out[i, low + 1] += x - low
    return out


def enlarged(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return linear(x.shape[-2], size[0]) @ x @ linear(x.shape[-1], size[1]).T


def authors_streams(trunk, x: torch.Tensor) -> list[torch.Tensor]:
    """The forward pass of the authors' segmentation network with a trunk's weights, in its own precision."""
    x = trunk.act1(trunk.bn1(trunk.conv1(x)))
    x = trunk.layer1(trunk.act2(trunk.bn2(trunk.conv2(x))))
    streams = [x]
    for transition, stage in zip((trunk.transition1, trunk.transition2, trunk.transition3),
                                 (trunk.stage2, trunk.stage3, trunk.stage4)):  # fmt: skip
        coarsest = streams[-1]
        streams = [
            (streams[i] if i < len(streams) else coarsest) if isinstance(t, torch.nn.Identity) else t(coarsest)
            for i, t in enumerate(transition)
        ]
        for module in stage:
            maps = [branch(m) for branch, m in zip(module.branches, streams)]
            streams = []
            for i, row in enumerate(module.fuse_layers):
                total = maps[i].clone()
                for j, layer in enumerate(row):
                    if j > i:
                        total += enlarged(layer[1](layer[0](maps[j])), tuple(maps[i].shape[-2:]))
                    elif j < i:
                        total += layer(maps[j])
                streams.append(total.clamp(min=0))
    return streams


@pytest.mark.parametrize("name", ["hrnet", "ocr"])
def test_one_state_dict_gives_what_the_authors_network_gives(name):
    """Coarse streams are enlarged bilinearly with aligned corners; timm's trunk, which repeats pixels, differs."""
    torch.manual_seed(0)
    network = build_network(name, build_backbone(SMALL, "random"), 5).double().eval()
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand_like(tensor)
            tensor.copy_(noise + 0.5 if tensor.ndim == 1 and "bias" not in key and "mean" not in key else tensor + 0.1)
    x = torch.randn(2, 3, 64, 96).double()
    with torch.no_grad():
        streams = authors_streams(network.encoder.trunk, x)
        wide = torch.cat([streams[0], *(enlarged(m, (16, 24)) for m in streams[1:])], 1)
        decoder = network.decoder
        if name == "hrnet":
            embedding = decoder.fuse(wide)
        else:
            pixels, block = decoder.conv3x3_ocr(wide), decoder.object_context_block
            vectors = gather_regions(pixels, decoder.aux_head(wide))
            y = object_attention(block.f_pixel(pixels), block.f_object(vectors), block.f_down(vectors))
            embedding = decoder.conv_bn_dropout(torch.cat([block.f_up(y), pixels], 1))
        slow = network.classify(embedding)
        got = network.classify(network.decode(network.features(x)))
        torch.testing.assert_close(got, slow, rtol=1e-9, atol=1e-9)
        for module in network.encoder.trunk.modules():
            if isinstance(module, torch.nn.Upsample):
                module.mode, module.align_corners = "nearest", None
        repeated = network.classify(network.decode(network.features(x)))
    assert (repeated - slow).norm() > 0.01 * (slow - slow.mean((2, 3), keepdim=True)).norm()


def test_bundles_from_before_keep_their_network():
    """A part that does not name its way of enlarging was trained with repeated pixels and half-pixel centres."""
    before = {"kind": "HRNetEncoder", "architecture": SMALL}
    encoder = HRNetEncoder.from_spec(before)
    assert encoder.exchange == "nearest"
    assert {m.mode for m in encoder.trunk.modules() if isinstance(m, torch.nn.Upsample)} == {"nearest"}
    again = HRNetEncoder.from_spec(HRNetEncoder(SMALL).spec())
    assert {m.mode for m in again.trunk.modules() if isinstance(m, torch.nn.Upsample)} == {"bilinear"}
    fine, coarse = torch.randn(1, 2, 8, 8), torch.randn(1, 3, 4, 4)
    decoder = HRNetDecoder.from_spec({"kind": "HRNetDecoder", "widths": [2, 3]}).eval()
    wide = F.interpolate(coarse, (8, 8), mode="bilinear", align_corners=False)
    assert torch.equal(decoder([fine, coarse]), decoder.fuse(torch.cat([fine, wide], 1)))
    spec = OCRDecoder([8, 6], [0], [1], 3, mid=8, key=4, aligned=True).spec()
    assert (
        OCRDecoder.from_spec(spec).aligned
        and not OCRDecoder.from_spec({k: spec[k] for k in spec if k != "aligned"}).aligned
    )
    with pytest.raises(ValueError, match="exchange"):
        HRNetEncoder(SMALL, "bicubic")


def official_name(name: str, ocr: bool) -> str:
    table = [("encoder.trunk.", ""), ("classifier.linear.", "cls_head." if ocr else "last_layer.3.")]
    inner = "ocr_distri_head."
    table += [
        ("decoder.aux_head.", "aux_head."),
        ("decoder.conv3x3_ocr.", "conv3x3_ocr."),
        ("decoder.object_context_block.", f"{inner}object_context_block."),
        ("decoder.conv_bn_dropout.", f"{inner}conv_bn_dropout."),
        ("decoder.fuse.", "last_layer."),
    ]
    for ours, theirs in table:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["hrnet", "ocr"])
def test_official_checkpoint(name, tmp_path):
    torch.manual_seed(3)
    backbone = build_backbone(SMALL, "random")
    original = build_network(name, backbone, 19)
    for tensor in original.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.1 + 0.05)
    state = {f"model.{official_name(k, name == 'ocr')}": v for k, v in original.state_dict().items()}
    known = {
        "hrnet": ["last_layer.0.weight", "last_layer.1.running_mean", "last_layer.3.bias"],
        "ocr": [
            "ocr_distri_head.object_context_block.f_pixel.1.0.weight",
            "ocr_distri_head.object_context_block.f_object.3.0.bias",
            "ocr_distri_head.conv_bn_dropout.1.0.weight",
            "cls_head.bias",
            "aux_head.3.weight",
            "conv3x3_ocr.0.bias",
        ],
    }[name]
    known += ["conv2.weight", "layer1.0.downsample.0.weight", "transition1.1.0.0.weight"]
    known += ["stage2.0.branches.0.0.bn1.bias"]
    assert not [k for k in known if f"model.{k}" not in state]
    torch.save(state | {"loss.criterion.weight": torch.ones(19)}, tmp_path / "w.pth")
    loaded = build_network(name, backbone, 19, weights=str(tmp_path / "w.pth"))
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert loaded.provenance.source == "file: w.pth"
    other = build_network(name, backbone, 4, weights=str(tmp_path / "w.pth"))
    assert other.classifier.linear.weight.shape[0] == 4


@pytest.mark.parametrize("name", ["hrnet", "ocr"])
def test_checkpoint_of_imagenet_fills_the_encoder_alone(name, tmp_path):
    torch.manual_seed(3)
    state = timm.create_model(SMALL).state_dict()
    assert {"classifier.weight", "incre_modules.0.0.conv1.weight", "final_layer.0.bias"} <= set(state)
    torch.save({"state_dict": state}, tmp_path / "imagenet.pth")
    blank = build_backbone(SMALL, "random")
    torch.manual_seed(4)
    untrained = build_network(name, blank, 19)
    torch.manual_seed(4)
    loaded = build_network(name, blank, 19, weights=str(tmp_path / "imagenet.pth"))
    assert all(torch.equal(v, state[k]) for k, v in loaded.encoder.trunk.state_dict().items())
    assert loaded.provenance.source == "file: imagenet.pth"
    for part in ("decoder", "classifier"):
        theirs = getattr(untrained, part).state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in getattr(loaded, part).state_dict().items())
    torch.save({k: v for k, v in state.items() if not k.startswith("stage4.")}, tmp_path / "part.pth")
    with pytest.raises(MaskwrightError, match="are missing"):
        build_network(name, blank, 19, weights=str(tmp_path / "part.pth"))


def test_the_guess_is_part_of_the_decoder_and_counted_once():
    network = build_network("ocr", build_backbone(SMALL, "random"), 3).eval()
    features = network.features(torch.randn(1, 3, 64, 64))
    assert torch.equal(network.aux_logits(features)["aux"], network.decoder.region_logits(features))
    assert not [n for n in network.state_dict() if n.startswith("aux.")]
    assert network.aux_weights == {"aux": 0.4}

"""Heads for vision transformers against slow compositions, closed forms of their sizes, and official tensor names."""

from __future__ import annotations

import copy
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks.vit_decoders import DPTDecoder, MlaClassifier, SetrMla, SetrNaive, SetrPup, dpt_channels
from maskwright.models.networks.vit_head_keys import load_official_head
from maskwright.models.networks.vit_heads import (
    VIT_HEADS,
    LastMap,
    SegmenterDecoder,
    SegmenterLinear,
    SegmenterMask,
    default_blocks,
    setr_blocks,
    vit_head,
)
from maskwright.models.parts.table import TABLE, build_part

WIDTH, DEPTH, CLASSES = 48, 6, 5
SCALE = {"segmenter_linear": 1, "segmenter_mask": 1, "setr_naive": 1, "setr_pup": 8, "setr_mla": 4, "dpt": 8}
OPTIONS = {"setr_naive": {"hidden": 24}, "setr_pup": {"hidden": 24}, "setr_mla": {"hidden": 24, "out": 16}}


def build(name: str, **options):
    torch.manual_seed(0)
    return vit_head(name, [WIDTH] * DEPTH, CLASSES, **OPTIONS.get(name, {}), **options)


def maps(count: int, batch: int = 2, size: tuple[int, int] = (5, 7), width: int = WIDTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, width, *size, generator=generator) for _ in range(count)]


def count(*parts: nn.Module) -> int:
    return sum(p.numel() for part in parts for p in part.parameters())


@pytest.mark.parametrize("name", VIT_HEADS)
@pytest.mark.parametrize("size", [(5, 7), (4, 6), (1, 3), (9, 2)])
def test_any_grid_gives_an_embedding_and_logits(name: str, size: tuple[int, int]):
    head = build(name)
    features = maps(len(head.layers), size=size)
    embedding = head.decoder(features)
    logits = head.classifier(embedding)
    h, w = (side * SCALE[name] for side in size)
    assert embedding.shape == (2, head.decoder.out, h, w)
    assert logits.shape == (2, CLASSES, h, w) and torch.isfinite(logits).all()


@pytest.mark.parametrize("name", VIT_HEADS)
def test_every_tensor_learns(name: str):
    head = build(name)
    logits = head.classifier(head.decoder(maps(len(head.layers))))
    target = torch.randint(CLASSES, (2, *logits.shape[-2:]), generator=torch.Generator().manual_seed(2))
    F.cross_entropy(logits, target).backward()
    for part in (head.decoder, head.classifier):
        for key, value in part.named_parameters():
            assert value.grad is not None and value.grad.abs().sum() > 0, f"{type(part).__name__}.{key}"


@pytest.mark.parametrize("name", VIT_HEADS)
def test_autocast_is_near_full_precision(name: str):
    head = build(name)
    decoder, classifier = head.decoder.eval(), head.classifier.eval()
    features = maps(len(head.layers))
    with torch.no_grad():
        exact = classifier(decoder(features))
        with torch.autocast("cpu", torch.bfloat16):
            rough = classifier(decoder(features))
    error = (rough.float() - exact).norm() / exact.norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize("name", VIT_HEADS)
def test_copies_share_nothing_and_agree(name: str):
    head = build(name)
    features = maps(len(head.layers))
    for part, x in ((head.decoder.eval(), features), (head.classifier.eval(), None)):
        twin = copy.deepcopy(part)
        x = head.decoder(features).detach() if x is None else x
        before = part(x)
        assert torch.equal(before, twin(x))
        with torch.no_grad():
            for value in twin.parameters():
                value.add_(1.0)
        assert torch.equal(part(x), before)


@pytest.mark.parametrize("name", VIT_HEADS)
def test_spec_both_ways(name: str):
    head = build(name)
    features = maps(len(head.layers))
    for part in (head.decoder, head.classifier):
        assert type(part).__name__ in TABLE
        spec = json.loads(json.dumps(part.spec()))
        again = build_part(spec)
        again.load_state_dict(part.state_dict())
        assert again.spec() == part.spec()
        x = features if part is head.decoder else head.decoder.eval()(features).detach()
        assert torch.equal(part.eval()(x), again.eval()(x))
        with pytest.raises(MaskwrightError):
            build_part({**spec, "path": "/etc/passwd"})


def test_all_parts_in_the_table_are_used():
    used = {type(part).__name__ for name in VIT_HEADS for part in build(name)[1:3]}
    files = ("networks.vit_heads:", "networks.vit_decoders:")
    assert {name for name, where in TABLE.items() if any(f in where for f in files)} <= used <= set(TABLE)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "SegmenterMask", "width": 8, "classes": 3, "layers": 2, "heads": 3, "dropout": 0.0},
        {"kind": "SegmenterMask", "width": 8, "classes": 1, "layers": 2, "heads": 1, "dropout": 0.0},
        {"kind": "SegmenterMask", "width": 8, "classes": 3, "layers": 0, "heads": 1, "dropout": 0.0},
        {"kind": "SegmenterMask", "width": 8, "classes": 3, "layers": 2, "heads": 1, "dropout": 2.0},
        {"kind": "DPTDecoder", "widths": [8] * 3, "out_channels": [8] * 4, "features": 8, "align_corners": True},
        {"kind": "SetrPup", "width": 8, "hidden": 8, "convs": 2, "upsample": 3, "index": -1},
        {"kind": "SetrNaive", "width": 8, "hidden": 8, "kernel": 2, "index": -1},
        {"kind": "SetrMla", "widths": [8, 8, 8], "hidden": 8, "out": 8},
        {"kind": "SetrMla", "widths": [], "hidden": 8, "out": 8},
    ],
)
def test_specs_that_are_refused(spec):
    with pytest.raises(MaskwrightError) as error:
        build_part(spec)
    assert "\n" not in str(error.value)


def test_wrong_maps_are_told():
    decoder = DPTDecoder([8] * 4, [4] * 4, 4)
    with pytest.raises(ValueError, match="one size"):
        decoder(maps(3, width=8))
    with pytest.raises(ValueError, match="one size"):
        decoder([*maps(3, width=8), *maps(1, width=8, size=(2, 2))])
    with pytest.raises(ValueError, match=r"\(B, 9, h, w\)"):
        LastMap(9)(maps(2, width=8))
    with pytest.raises(ValueError, match="map 3 of 2"):
        LastMap(8, 3)(maps(2, width=8))
    with pytest.raises(MaskwrightError, match="setr_pup"):
        vit_head("setr_pop", [8], 3)
    with pytest.raises(MaskwrightError, match="depht"):
        vit_head("dpt", [8], 3, depht=2)
    with pytest.raises(MaskwrightError, match="at least 2"):
        vit_head("segmenter_mask", [8], 1)


@given(depth=st.integers(1, 64))
@settings(max_examples=30)
def test_blocks_rise_to_the_last(depth: int):
    for blocks in (default_blocks(depth), setr_blocks(depth)):
        assert len(blocks) == 4 and blocks == sorted(blocks) and blocks[0] >= 0 and blocks[-1] == depth - 1
        assert depth < 5 or len(set(blocks)) == 4


def test_blocks_of_the_published_depths():
    assert default_blocks(12) == [2, 5, 8, 11] and default_blocks(24) == [4, 11, 17, 23]
    assert default_blocks(40) == [9, 19, 29, 39] and setr_blocks(24) == [9, 14, 19, 23]
    assert vit_head("setr_mla", [64] * 24, 3, hidden=8, out=8).layers == [5, 11, 17, 23]


def test_single_map_heads_read_the_map_they_are_told():
    features = maps(3)
    for i in (-1, 0, 1):
        assert torch.equal(LastMap(WIDTH, i)(features), features[i])
        for part in (SegmenterDecoder(WIDTH, 8, i), SetrNaive(WIDTH, 8, 1, i), SetrPup(WIDTH, 8, index=i)):
            part.eval()
            assert torch.equal(part(features), part(features[i]))


def test_linear_head_is_a_dot_product_a_patch():
    head = SegmenterLinear(WIDTH, CLASSES)
    x = maps(1)[0]
    logits = head(x)
    for c in range(CLASSES):
        for i, j in ((0, 0), (3, 6)):
            expected = (head.head.weight[c] * x[1, :, i, j]).sum() + head.head.bias[c]
            torch.testing.assert_close(logits[1, c, i, j], expected)


# -- Segmenter's mask transformer ---------------------------------------------------------------------------


def slow_block(block: nn.Module, tokens: Tensor, heads: int) -> Tensor:
    """A pre-norm block for one image, tokens (T, D), head by head."""
    x = F.layer_norm(tokens, tokens.shape[-1:], block.norm1.weight, block.norm1.bias)
    q, k, v = (x @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, dim=-1)
    width = q.shape[-1] // heads
    joined = []
    for i in range(heads):
        part = slice(i * width, (i + 1) * width)
        joined.append(torch.softmax(q[:, part] @ k[:, part].T / width**0.5, dim=-1) @ v[:, part])
    tokens = tokens + torch.cat(joined, dim=-1) @ block.attn.proj.weight.T + block.attn.proj.bias
    x = F.layer_norm(tokens, tokens.shape[-1:], block.norm2.weight, block.norm2.bias)
    hidden = F.gelu(x @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    return tokens + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def test_masks_are_cosines_to_class_tokens_normalised_over_classes():
    torch.manual_seed(0)
    head = SegmenterMask(24, 4, layers=2, heads=3).eval()
    with torch.no_grad():
        for value in head.parameters():  # the fresh network has zero biases and unit scales, which hide mistakes
            value.add_(0.1 * torch.randn_like(value))
        x = torch.randn(2, 24, 3, 5)
        logits, cosines = head(x), head.cosines(x)
    assert cosines.abs().max() <= 1 + 1e-6
    for b in range(2):
        tokens = torch.cat([x[b].flatten(1).T, head.cls_emb[0]])
        for block in head.blocks:
            tokens = slow_block(block, tokens, 3)
        tokens = F.layer_norm(tokens, (24,), head.decoder_norm.weight, head.decoder_norm.bias)
        for patch in range(15):
            p = head.proj_patch.T @ tokens[patch]
            masks = []
            for c in range(4):
                q = head.proj_classes.T @ tokens[15 + c]
                masks.append((p * q).sum() / (p * p).sum().sqrt() / (q * q).sum().sqrt())
            m = torch.stack(masks)
            torch.testing.assert_close(cosines[b, patch], m, atol=1e-5, rtol=1e-4)
            spread = ((m - m.mean()) ** 2).mean() + head.mask_norm.eps
            expected = (m - m.mean()) / spread.sqrt() * head.mask_norm.weight + head.mask_norm.bias
            torch.testing.assert_close(logits[b, :, patch // 5, patch % 5], expected, atol=1e-4, rtol=1e-3)


def test_mask_transformer_sees_patches_as_a_set():
    head = SegmenterMask(16, 3, heads=2).eval()
    x = maps(1, width=16, size=(4, 6))[0]
    torch.testing.assert_close(head(x.flip(-1)), head(x).flip(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(head(x.transpose(2, 3)), head(x).transpose(2, 3), atol=1e-4, rtol=1e-4)


def test_mask_transformer_drops_only_in_training():
    head = SegmenterMask(16, 3, heads=2, dropout=0.5)
    x = maps(1, width=16)[0]
    assert not torch.equal(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))


def test_mask_transformer_size():
    d, c = 384, 150  # ViT-S on ADE20K
    head = vit_head("segmenter_mask", [d] * 12, c)
    block = 12 * d * d + 13 * d  # qkv 3dd + 3d, projection dd + d, MLP 8dd + 5d, two normalisations 4d
    assert count(head.decoder) == d * d + d
    assert count(head.classifier) == 2 * block + 2 * d + 2 * d * d + c * d + 2 * c
    assert head.classifier.heads == 6


# -- SETR -----------------------------------------------------------------------------------------------------


class AuthorsUp(nn.Module):
    """SETR's naive and PUP head with its authors' tensor names, biases and order of steps."""

    def __init__(self, width: int, hidden: int, classes: int, convs: int, kernel: int) -> None:
        super().__init__()
        self.convs = convs
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for i in range(convs):
            conv = nn.Conv2d(width if i == 0 else hidden, hidden, kernel, padding=kernel // 2)
            self.add_module(f"conv_{i}", conv)
            self.add_module(f"syncbn_fc_{i}", nn.BatchNorm2d(hidden))
        self.add_module(f"conv_{convs}", nn.Conv2d(hidden, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        for i in range(self.convs):
            x = F.relu(self.get_submodule(f"syncbn_fc_{i}")(self.get_submodule(f"conv_{i}")(x)))
            if self.convs > 1:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        return self.get_submodule(f"conv_{self.convs}")(x)


def stir(module: nn.Module) -> nn.Module:
    """Random values in all tensors, so that no mistake hides behind zeros and ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(value + 0.2 * (noise.abs() if name.endswith("running_var") else noise))
    return module.eval()


@pytest.mark.parametrize("name", ["setr_naive", "setr_pup"])
def test_setr_is_the_authors_head(name: str):
    convs, kernel = {"setr_naive": (1, 1), "setr_pup": (4, 3)}[name]
    slow = stir(AuthorsUp(WIDTH, 24, CLASSES, convs, kernel))
    head = build(name)
    state = {f"module.decode_head.{key}": value for key, value in slow.state_dict().items()}
    load_official_head({"state_dict": state, "meta": {}}, head.decoder, head.classifier)
    x = maps(1)[0]
    logits = head.classifier.eval()(head.decoder.eval()([x]))
    if name == "setr_pup":  # the fourth doubling, left to whoever resizes logits
        logits = F.interpolate(logits, scale_factor=2.0, mode="bilinear")
        whole = SetrPup(WIDTH, 24, upsample=4).eval()
        whole.load_state_dict(head.decoder.state_dict())
        torch.testing.assert_close(head.classifier(whole(x)), slow(x), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(logits, slow(x), atol=1e-4, rtol=1e-3)


def test_of_student_and_average_the_head_is_the_encoders_choice():
    """A file with both: `keymaps.unwrap` takes the averaged encoder, so its head belongs to it."""
    head, states = build("segmenter_linear"), {}
    for name, value in (("model", 0.0), ("model_ema", 1.0)):
        parts = {**head.decoder.state_dict(), **head.classifier.state_dict()}
        states[name] = {f"module.decoder.{k}": torch.full_like(v, value) for k, v in parts.items()}
    load_official_head(states, head.decoder, head.classifier)
    assert all(bool((v == 1).all()) for v in head.classifier.state_dict().values())


def test_setr_reads_the_other_projects_names():
    head = build("setr_pup")
    stir(head.decoder), stir(head.classifier)
    state = {}
    for key, value in head.decoder.state_dict().items():
        name = key.replace("blocks.", "up_convs.")
        for i in range(4):
            name = name.replace(f"up_convs.{i}.0.", f"up_convs.{i}.0.conv.")
            name = name.replace(f"up_convs.{i}.1.", f"up_convs.{i}.0.bn.")
        state[f"decode_head.{name}"] = value
    state |= {f"decode_head.conv_seg.{k.split('.')[1]}": v for k, v in head.classifier.state_dict().items()}
    again = build("setr_pup")
    load_official_head(state, again.decoder, again.classifier)
    for ours, theirs in zip(again[1:3], head[1:3], strict=True):
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key


class OtherMla(nn.Module):
    """SETR-MLA with MMSegmentation's tensor names and its order, the deepest map's channels first."""

    def __init__(self, width: int, hidden: int, share: int, classes: int) -> None:
        super().__init__()

        def conv(a: int, b: int, k: int) -> nn.ModuleDict:
            return nn.ModuleDict({"conv": nn.Conv2d(a, b, k, padding=k // 2, bias=False), "bn": nn.BatchNorm2d(b)})

        def stack() -> nn.Sequential:
            first, second = conv(hidden, share, 3), conv(share, share, 3)
            return nn.Sequential(first["conv"], first["bn"], nn.ReLU(), second["conv"], second["bn"], nn.ReLU())

        self.neck = nn.Module()
        self.neck.norm = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(4))
        self.neck.mla = nn.Module()
        self.neck.mla.channel_proj = nn.ModuleList(conv(width, hidden, 1) for _ in range(4))
        self.neck.mla.feat_extract = nn.ModuleList(conv(hidden, hidden, 3) for _ in range(4))
        self.decode_head = nn.Module()
        self.decode_head.mlahead = nn.ModuleDict({f"head{i}": stack() for i in (2, 3, 4, 5)})
        self.decode_head.conv_seg = nn.Conv2d(4 * share, classes, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        mla, projected = self.neck.mla, []
        for x, norm, module in zip(features, self.neck.norm, mla.channel_proj, strict=True):
            x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            projected.append(F.relu(module["bn"](module["conv"](x))))
        p2, p3, p4, p5 = projected
        sums = [p5, p5 + p4, p5 + p4 + p3, p5 + p4 + p3 + p2]
        streams = []
        for x, module, head in zip(sums, mla.feat_extract, self.decode_head.mlahead.values(), strict=True):
            x = head(F.relu(module["bn"](module["conv"](x))))
            size = (4 * x.shape[-2], 4 * x.shape[-1])
            streams.append(F.interpolate(x, size, mode="bilinear", align_corners=True))
        return self.decode_head.conv_seg(torch.cat(streams, dim=1))


def test_mla_is_the_other_projects_head():
    slow = stir(OtherMla(WIDTH, 24, 4, CLASSES))
    head = build("setr_mla")
    load_official_head(slow.state_dict(), head.decoder, head.classifier)
    features = maps(4)
    logits = head.classifier.eval()(head.decoder.eval()(features))
    torch.testing.assert_close(logits, slow(features), atol=1e-4, rtol=1e-3)
    assert count(head.decoder, head.classifier) == count(slow)


def test_setr_sizes():
    d, e, c = 1024, 256, 150
    head = vit_head("setr_pup", [d] * 24, c)
    assert count(head.decoder) == 2 * d + 9 * e * (d + 3 * e) + 4 * 2 * e
    assert count(head.classifier) == e * c + c
    naive = vit_head("setr_naive", [d] * 24, c)
    assert count(naive.decoder) == 2 * d + d * e + 2 * e
    mla = vit_head("setr_mla", [d] * 24, c)
    stream = 2 * d + (d * e + 2 * e) + (9 * e * e + 2 * e) + (9 * e * 128 + 2 * 128) + (9 * 128 * 128 + 2 * 128)
    assert count(mla.decoder) == 4 * stream and count(mla.classifier) == 9 * 512 * c + c


def test_setr_auxiliary_heads_read_the_same_list():
    head = vit_head("setr_pup", [WIDTH] * 24, CLASSES, auxiliary=True, hidden=24)
    assert head.layers == [9, 14, 19, 23] and len(head.auxiliary) == 4
    features = maps(4)
    for i, (decoder, classifier) in enumerate(head.auxiliary):
        decoder.eval()
        assert classifier(decoder(features)).shape == (2, CLASSES, 5, 7)
        assert torch.equal(decoder(features), decoder(features[i]))
    assert head.classifier(head.decoder(features)).shape == (2, CLASSES, 40, 56)
    assert vit_head("setr_pup", [WIDTH] * 24, CLASSES).auxiliary == []


@pytest.mark.parametrize(
    ("name", "encoder", "side", "classes", "millions", "within"),
    [
        ("setr_naive", "vit_base_patch16_384", 768, 19, 87.69, 0.002),
        ("setr_mla", "vit_base_patch16_384", 768, 19, 92.59, 0.002),
        ("segmenter_linear", "deit_base_patch16_384", 512, 150, 87, 0.006),
        ("segmenter_mask", "vit_tiny_patch16_384", 512, 150, 7, 0.05),
        ("segmenter_mask", "vit_small_patch16_384", 512, 150, 27, 0.04),
        ("segmenter_mask", "vit_large_patch16_384", 640, 150, 334, 0.003),
    ],
)
def test_published_parameters(name, encoder, side, classes, millions, within):
    """SETR's Table 2 (Base, Cityscapes) and Segmenter's repository (ADE20K); counted without allocating anything."""
    with torch.device("meta"):
        trunk = timm.create_model(encoder, img_size=side, num_classes=0)
        head = vit_head(name, [trunk.embed_dim] * len(trunk.blocks), classes)
    found = count(trunk, head.decoder, head.classifier) / 1e6
    assert found == pytest.approx(millions, rel=within)


def test_setr_auxiliary_heads_of_each_kind():
    """Naive: 1x1 on three blocks before the last; PUP: 3x3 on these and the last; MLA: 1x1 on its aggregated maps."""
    d, c, e = WIDTH, CLASSES, 24
    naive, pup, mla = (build(name, auxiliary=True) for name in ("setr_naive", "setr_pup", "setr_mla"))
    assert [len(h.auxiliary) for h in (naive, pup, mla)] == [3, 4, 4]
    assert naive.layers == pup.layers == setr_blocks(DEPTH)
    sides = [count(*pair) for head in (naive, pup, mla) for pair in head.auxiliary]
    of_naive, of_pup = (2 * d + kernel * d * 256 + 2 * 256 + 256 * c + c for kernel in (1, 9))
    assert sides == [of_naive] * 3 + [of_pup] * 4 + [e * c + c] * 4
    decoder, features = mla.decoder.eval(), maps(4)
    total = None
    for i in (3, 2, 1, 0):
        x = decoder.projects[i](decoder.norms[i](features[i]))
        total = x if total is None else total + x
        assert torch.equal(mla.auxiliary[i][0](features), decoder.smooths[i](total))


# -- DPT ------------------------------------------------------------------------------------------------------


class SlowDPT(nn.Module):
    """UniMatch V2's head with its tensor names; resizes first and projects afterwards, and holds the unused unit."""

    def __init__(self, width: int, channels: list[int], e: int, classes: int) -> None:
        super().__init__()
        self.projects = nn.ModuleList(nn.Conv2d(width, c, 1) for c in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, 4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, 2, 1),
            ]
        )
        self.scratch = nn.Module()
        for i, c in enumerate(channels, 1):
            self.scratch.add_module(f"layer{i}_rn", nn.Conv2d(c, e, 3, padding=1, bias=False))
            block = nn.Module()
            block.out_conv = nn.Conv2d(e, e, 1)
            for unit in ("resConfUnit1", "resConfUnit2"):
                convs = {"conv1": nn.Conv2d(e, e, 3, padding=1), "conv2": nn.Conv2d(e, e, 3, padding=1)}
                block.add_module(unit, nn.ModuleDict(convs))
            self.scratch.add_module(f"refinenet{i}", block)
        self.scratch.output_conv = nn.Sequential(nn.Conv2d(e, e, 3, padding=1), nn.ReLU(), nn.Conv2d(e, classes, 1))

    def forward(self, features: list[Tensor]) -> Tensor:
        path: Tensor | None = None
        for i in (4, 3, 2, 1):
            level = self._level(features, i)
            block = self.scratch.get_submodule(f"refinenet{i}")
            path = level if path is None else path + self._unit(block.resConfUnit1, level)
            path = self._unit(block.resConfUnit2, path)
            size = self._level(features, i - 1).shape[-2:] if i > 1 else tuple(2 * s for s in path.shape[-2:])
            path = block.out_conv(F.interpolate(path, size, mode="bilinear", align_corners=True))
        return self.scratch.output_conv(path)

    def _level(self, features: list[Tensor], i: int) -> Tensor:
        x = self.resize_layers[i - 1](self.projects[i - 1](features[i - 1]))
        return self.scratch.get_submodule(f"layer{i}_rn")(x)

    @staticmethod
    def _unit(unit: nn.ModuleDict, x: Tensor) -> Tensor:
        return unit["conv2"](F.relu(unit["conv1"](F.relu(x)))) + x


@pytest.mark.parametrize("size", [(5, 7), (4, 4), (1, 1)])
def test_dpt_is_the_slow_composition(size: tuple[int, int]):
    slow = SlowDPT(WIDTH, [6, 12, 24, 48], 8, CLASSES).eval()
    head = build("dpt")
    state = {f"module.head.{key}": value for key, value in slow.state_dict().items()}
    load_official_head({"model": state, "epoch": 3}, head.decoder, head.classifier)
    features = maps(4, size=size)
    torch.testing.assert_close(head.classifier(head.decoder(features)), slow(features), atol=1e-5, rtol=1e-4)
    unused = sum(p.numel() for p in slow.scratch.refinenet4.resConfUnit1.parameters())
    assert count(head.decoder, head.classifier) == count(slow) - unused


def test_dpt_levels_have_their_strides():
    levels = DPTDecoder([8] * 4, [4, 4, 4, 4], 6).reassemble(maps(4, width=8))
    assert [tuple(x.shape) for x in levels] == [(2, 6, 20, 28), (2, 6, 10, 14), (2, 6, 5, 7), (2, 6, 3, 4)]


def test_dpt_takes_maps_of_several_widths_and_an_iterator():
    decoder = DPTDecoder([8, 9, 10, 11], [4] * 4, 6)
    features = [torch.randn(1, d, 3, 3) for d in (8, 9, 10, 11)]
    assert torch.equal(decoder(features), decoder(tuple(features)))
    assert torch.equal(decoder(features), decoder(x for x in features))


def test_dpt_channels_are_unimatchs():
    assert dpt_channels(384) == ([48, 96, 192, 384], 64)
    assert dpt_channels(768) == ([96, 192, 384, 768], 128)
    assert dpt_channels(1024) == ([256, 512, 1024, 1024], 256)
    assert dpt_channels(1536) == ([1536, 1536, 1536, 1536], 384)


@pytest.mark.parametrize(
    ("backbone", "published"),
    [("vit_small_patch14_dinov2", 24.8), ("vit_base_patch14_dinov2", 97.5), ("vit_large_patch14_dinov2", 335.3)],
)
def test_dpt_size_is_the_published_one_of_its_twin(backbone: str, published: float):
    # Depth Anything V2 prints 24.8, 97.5 and 335.3 M for the same transformer and the same DPT but for its output,
    # and builds the fourth fusion's unused unit.
    import timm

    with torch.device("meta"):
        model = timm.create_model(backbone, num_classes=0)
        width, depth = model.embed_dim, len(model.blocks)
        head = vit_head("dpt", [width] * depth, 1)
    e = head.decoder.out
    unused = 2 * (9 * e * e + e)
    depth_output = (9 * e * e // 2 + e // 2) + (9 * e // 2 * 32 + 32) + (32 + 1)
    total = count(model, head.decoder) - count(head.decoder.output) + unused + depth_output
    assert abs(total / 1e6 - published) < 0.1


def test_channel_masks_between_encoder_and_decoder():
    # One mask of channels on all four maps: what is dropped has no influence.
    torch.manual_seed(0)
    head = build("dpt")
    features = maps(4)
    mask = 2.0 * (torch.rand(2, WIDTH, 1, 1) < 0.5)
    other = [x + 5 * torch.randn_like(x) * (mask == 0) for x in features]
    masked, changed = (head.decoder([x * mask for x in f]) for f in (features, other))
    assert torch.equal(masked, changed) and not torch.equal(head.decoder(features), head.decoder(other))


# -- official tensors and whole networks -------------------------------------------------------------------


def test_segmenter_names_are_the_authors():
    for name in ("segmenter_mask", "segmenter_linear"):
        head, again = build(name), build(name)
        stir(head.decoder), stir(head.classifier)
        state = {f"decoder.{k}": v for part in head[1:3] for k, v in part.state_dict().items()}
        load_official_head({"model": state}, again.decoder, again.classifier)
        x = maps(1)
        assert torch.equal(again.classifier.eval()(again.decoder.eval()(x)), head.classifier(head.decoder(x)))
    names = set(build("segmenter_mask").classifier.state_dict())
    assert {"cls_emb", "proj_patch", "proj_classes", "mask_norm.weight", "decoder_norm.bias"} <= names
    assert {f"blocks.1.{n}.weight" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1")} <= names


def test_checkpoints_that_do_not_fit_change_nothing():
    slow = SlowDPT(WIDTH, [6, 12, 24, 48], 8, CLASSES + 1)
    head = build("dpt")
    before = {k: v.clone() for k, v in head.decoder.state_dict().items()}
    state = {f"head.{k}": v for k, v in slow.state_dict().items()}
    with pytest.raises(MaskwrightError, match="classes"):
        load_official_head(state, head.decoder, head.classifier)
    del state["head.projects.0.weight"]
    with pytest.raises(MaskwrightError, match=r"head\.projects\.0\.weight"):
        load_official_head(state, head.decoder, head.classifier)
    assert all(torch.equal(before[k], v) for k, v in head.decoder.state_dict().items())
    with pytest.raises(MaskwrightError, match="MlaClassifier"):
        load_official_head(state, LastMap(WIDTH), MlaClassifier(WIDTH, 2))


@pytest.mark.parametrize("name", VIT_HEADS)
def test_on_a_transformer(name: str):
    backbone = build_backbone("vit_tiny_patch16_224", "random")
    head = vit_head(name, backbone.widths, CLASSES)
    with torch.no_grad():
        features = backbone.dense_many(torch.randn(1, 3, 80, 112), head.layers)
        logits = head.classifier.eval()(head.decoder.eval()(features))
    assert logits.shape == (1, CLASSES, 5 * SCALE[name], 7 * SCALE[name])


def test_mla_takes_what_it_is_built_for():
    part = SetrMla([8, 12], hidden=6, out=10).eval()
    assert part([torch.randn(1, 8, 3, 2), torch.randn(1, 12, 3, 2)]).shape == (1, 10, 12, 8)

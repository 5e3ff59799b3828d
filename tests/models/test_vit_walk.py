"""docs/vit.md: every shape and count that the page states, and one block computed by hand from its weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.dense import Backbone
from maskwright.models.networks.vit_heads import VIT_HEADS, vit_head

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vit.md"
B = 2


def table(heading: str) -> dict[str, dict[str, str]]:
    """The page's table whose first column has this heading, or all of them joined: row name to its cells."""
    rows: dict[str, dict[str, str]] = {}
    columns: list[str] | None = None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            columns = None
        elif columns is None:
            columns = cells
        elif columns[0] == heading and not set(line) <= set("|- "):
            assert cells[0] not in rows
            rows[cells[0].strip("`")] = dict(zip(columns, cells, strict=True))
    return rows


def shape(text: str) -> tuple[int, ...]:
    match = re.fullmatch(r"\((B(?:, \d+)+)\)", text)
    assert match, text
    return tuple(B if side == "B" else int(side) for side in match[1].split(", "))


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(scope="module")
def base() -> Backbone:
    """ViT-B/16 without storage: shapes need no values."""
    with torch.device("meta"):
        return build_backbone("vit_base_patch16_224", "random")


@pytest.fixture
def tiny() -> Backbone:
    """A small one with values that hide nothing: biases and scales are random too."""
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny_patch16_224", "random")
    with torch.no_grad():
        for value in backbone.model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return backbone


def by_hand(block: nn.Module, x: Tensor, heads: int) -> dict[str, Tensor]:
    """Every step of a block, tokens (B, T, D), from its weights alone."""
    found = {"input": x}

    def norm(x: Tensor, module: nn.Module) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.weight + module.bias

    def linear(x: Tensor, module: nn.Module) -> Tensor:
        return x @ module.weight.T + module.bias

    found["norm1"] = norm(x, block.norm1)
    found["qkv"] = linear(found["norm1"], block.attn.qkv)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in found["qkv"].chunk(3, dim=-1))
    found |= {"heads": q, "keys": k}
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    found["scores"] = weights
    found["mixed"] = torch.einsum("bhij,bhjd->bhid", weights, v)
    found["proj"] = linear(found["mixed"].transpose(1, 2).flatten(2), block.attn.proj)
    x = x + found["proj"]
    found["norm2"] = norm(x, block.norm2)
    found["fc1"] = linear(found["norm2"], block.mlp.fc1)
    gelu = found["fc1"] * (1 + torch.erf(found["fc1"] / 2**0.5)) / 2
    found["fc2"] = linear(gelu, block.mlp.fc2)
    found["output"] = x + found["fc2"]
    return found


def test_shapes_and_counts_of_the_steps(base: Backbone):
    model, block = base.model, base.model.blocks[0]
    image = torch.empty(B, 3, 224, 224, device="meta")
    grid = model.patch_embed(image)  # (B, 14, 14, 768), because the network takes any size
    patches, tokens = grid.flatten(1, 2), model._pos_embed(grid)
    steps = by_hand(block, tokens, block.attn.num_heads)
    last = model.norm(steps["output"])
    found = {
        "image": (image, 0),
        "patch_embed": (patches, count(model.patch_embed)),
        "cls_token": (torch.cat([model.cls_token.expand(B, -1, -1), patches], 1), model.cls_token.numel()),
        "pos_embed": (tokens, model.pos_embed.numel()),
        "norm1": (steps["norm1"], count(block.norm1)),
        "qkv": (steps["qkv"], count(block.attn.qkv)),
        "heads": (steps["heads"], 0),
        "scores": (steps["scores"], 0),
        "mixed": (steps["mixed"], 0),
        "proj": (steps["proj"], count(block.attn.proj)),
        "norm2": (steps["norm2"], count(block.norm2)),
        "fc1": (steps["fc1"], count(block.mlp.fc1)),
        "fc2": (steps["fc2"], count(block.mlp.fc2)),
        "norm": (last, count(model.norm)),
        "class token": (last[:, 0], 0),
        "mean": (last[:, 1:].mean(1), 0),
        "head": (nn.Linear(768, 1000, device="meta")(last[:, 0]), count(nn.Linear(768, 1000, device="meta"))),
    }
    stated = table("step")
    assert stated.keys() == found.keys()
    for name, row in stated.items():
        value, parameters = found[name]
        assert tuple(value.shape) == shape(row["shape"]), name
        assert parameters == int(row["parameters"]), name
    page = PAGE.read_text(encoding="utf-8")
    assert count(block) == 12 * 768**2 + 13 * 768 and f"{count(block)} parameters" in page
    assert f"{count(model)} parameters" in page and len(model.blocks) == 12
    assert sum(int(row["parameters"]) for name, row in stated.items() if name != "head") == count(model) - 11 * count(
        block
    )


def test_shapes_of_the_calls(base: Backbone):
    x = torch.empty(B, 3, 224, 224, device="meta")
    calls = {
        "dense(x)": base.dense(x),
        "dense(x, 5, norm=False)": base.dense(x, 5, norm=False),
        'dense(x, kind="k")': base.dense(x, kind="k"),
        "embed(x)": base.embed(x),
        "cls_attention(x)": base.cls_attention(x),
    }
    stated = table("call")
    assert stated.keys() == calls.keys()
    for name, row in stated.items():
        assert tuple(calls[name].shape) == shape(row["shape"]), name


def test_shapes_and_counts_of_the_heads(base: Backbone):
    x = torch.empty(B, 3, 224, 224, device="meta")
    stated = table("head")
    assert stated.keys() == VIT_HEADS.keys()
    for name, row in stated.items():
        with torch.device("meta"):
            head = vit_head(name, base.widths, 21)
        assert head.layers == [int(layer) for layer in row["blocks"].split(", ")]
        embedding = head.decoder(base.dense_many(x, head.layers))
        assert tuple(embedding.shape) == shape(row["embedding"]), name
        assert tuple(head.classifier(embedding).shape) == shape(row["logits"]), name
        assert count(head.decoder, head.classifier) == int(row["parameters"]), name


@pytest.mark.parametrize("index", [0, 11])
def test_a_block_by_hand(tiny: Backbone, index: int):
    blocks = tiny.model.blocks
    with torch.no_grad():
        x = torch.randn(B, 3, 64, 96)
        tokens = tiny.model._pos_embed(tiny.model.patch_embed(x))
        for block in blocks[:index]:
            tokens = block(tokens)
        steps = by_hand(blocks[index], tokens, 3)
        torch.testing.assert_close(steps["output"], blocks[index](tokens), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(steps["scores"].sum(-1), torch.ones(B, 3, 25))
        # what the project's calls give of this block
        attention = tiny.cls_attention(x, index)
        torch.testing.assert_close(attention, steps["scores"][:, :, 0, 1:].unflatten(-1, (4, 6)), atol=1e-5, rtol=1e-4)
        assert (attention.flatten(2).sum(-1) < 1).all()
        keys = tiny.dense(x, index, kind="k")
        for channel in (0, 64, 191):
            expected = steps["keys"][:, channel // 64, 1:, channel % 64].unflatten(-1, (4, 6))
            torch.testing.assert_close(keys[:, channel], expected, atol=1e-4, rtol=1e-4)
        raw = tiny.dense(x, index, norm=False)
        torch.testing.assert_close(raw[:, :, 2, 5], steps["output"][:, 1 + 2 * 6 + 5], atol=1e-4, rtol=1e-4)


def test_patches_are_linear_and_row_by_row(tiny: Backbone):
    embed = tiny.model.patch_embed
    x = torch.randn(B, 3, 224, 224)
    with torch.no_grad():
        tokens = embed(x).flatten(1, 2)
        for row, column in ((0, 0), (3, 11), (13, 13)):
            patch = x[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].flatten(1)
            expected = patch @ embed.proj.weight.flatten(1).T + embed.proj.bias
            torch.testing.assert_close(tokens[:, 14 * row + column], expected, atol=1e-4, rtol=1e-4)


def test_vector_is_the_class_token_or_the_mean(tiny: Backbone):
    x = torch.randn(B, 3, 224, 224)
    with torch.no_grad():
        tokens = tiny.model.forward_features(x)
        torch.testing.assert_close(tiny.embed(x), tokens[:, 0], atol=1e-5, rtol=1e-4)
        grid = tokens[:, 1:].transpose(1, 2).unflatten(-1, (14, 14))
        torch.testing.assert_close(tiny.dense(x), grid, atol=1e-5, rtol=1e-4)
        pooled = build_backbone("vit_tiny_patch16_224", "random", class_token=False, global_pool="avg")
        assert pooled.model.forward_features(x).shape == (B, 196, 192)
        mean = pooled.model.fc_norm(pooled.model.forward_features(x)).mean(1)
        torch.testing.assert_close(pooled.embed(x), mean, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="no class token"):
        pooled.cls_attention(x)


def test_position_embedding_is_resized_and_the_prefix_stays(tiny: Backbone):
    model = tiny.model
    with torch.no_grad():
        blank = torch.zeros(1, 20, 16, 192)  # what the patch embedding gives for 320 x 256, before it is flattened
        tokens = model._pos_embed(blank)
        assert tokens.shape == (1, 1 + 320, 192)
        picture = model.pos_embed[:, 1:].transpose(1, 2).unflatten(-1, (14, 14))
        resized = F.interpolate(picture, (20, 16), mode="bicubic", antialias=True)
        torch.testing.assert_close(tokens[:, 1:], resized.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(tokens[:, 0], model.cls_token[:, 0] + model.pos_embed[:, 0])
        assert tiny.dense(torch.randn(1, 3, 320, 256)).shape == (1, 192, 20, 16)
    with pytest.raises(ValueError, match="320 x 256"):
        tiny.dense(torch.randn(1, 3, 321, 250))


@pytest.mark.parametrize(("name", "prefix"), [("vit_small_patch14_reg4_dinov2", 5), ("vit_small_patch16_dinov3", 5)])
def test_registers_are_prefix_tokens(name: str, prefix: int):
    with torch.device("meta"):
        backbone = build_backbone(name, "random")
    assert backbone.prefix_tokens == prefix
    assert (getattr(backbone.model, "pos_embed", None) is None) == ("dinov3" in name)
    assert hasattr(backbone.model.blocks[0], "ls1") == ("dinov2" in name)

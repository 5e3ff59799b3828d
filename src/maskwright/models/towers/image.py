"""CLIP's image towers as backbones: all that a backbone has, and dense features in the space of words.

They are timm's networks in CLIP's build, so a model that is saved with one is loaded without any other package.
Position embeddings are resized bicubically without antialiasing, as MaskCLIP, SCLIP and ClearCLIP have it.

Legend: B batch, T tokens, D width, E channels of the joint space, (H, W) input size, (h, w) feature-map size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.cnn import CNNBackbone
from maskwright.models.backbones.keymaps import fit
from maskwright.models.backbones.vit import ViTBackbone
from maskwright.models.provenance import Provenance
from maskwright.models.towers.pairs import Pair, find_pair
from maskwright.models.towers.shape import TowerShape
from maskwright.models.towers.surgery import LastBlock, proxy_weights, run_last_block, run_last_block_by_proxy

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""RGB mean of the pictures that OpenAI's CLIP was trained on."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""
CAPTIONS = "image captions"


class ClipViT(ViTBackbone):
    """CLIP's vision transformer."""

    pair: Pair | None = None

    def __init__(self, model: nn.Module, name: str, shape: TowerShape, provenance: Provenance) -> None:
        super().__init__(model, name, shape.text(), provenance)
        self.joint_width = shape.embed
        self.key_width = shape.width

    def _start(self, x: Tensor) -> tuple[Tensor, Any]:
        model: Any = self.model
        patches = model.patch_embed(x)  # (B, h, w, D)
        place = model.pos_embed
        side = round((place.shape[1] - 1) ** 0.5)
        # A graph for all sizes has no "if"; to the size that they have already, bicubic weights are 1 and 0.
        if torch.compiler.is_exporting() or patches.shape[1:3] != (side, side):
            grid = place[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, patches.shape[1:3], mode="bicubic", align_corners=False)
            place = torch.cat([place[:, :1], grid.flatten(2).transpose(1, 2)], 1)
        cls = model.cls_token.expand(len(x), -1, -1)
        return model.norm_pre(torch.cat([cls, patches.flatten(1, 2)], 1) + place), None

    def joint_maps(self, x: Tensor, how: LastBlock) -> tuple[Tensor, Tensor]:
        """Patches in the space of words, and the keys of the last block.

        Args:
            x: normalised images (B, 3, H, W), sides multiples of the patch.
            how: how the last block is run.

        Returns:
            (B, E, h, w), of any length, and (B, D, h, w).
        """
        words, keys = self.joint_tokens(x, how)
        h, w = self.grid((x.shape[-2], x.shape[-1]))
        return self._to_map(words, h, w), self._to_map(keys, h, w)

    def joint_tokens(self, x: Tensor, how: LastBlock) -> tuple[Tensor, Tensor]:
        """As `joint_maps`, all tokens with the class token first: (B, T, E) and (B, T, D)."""
        model: Any = self.model
        tokens, grid = self._before_last(x)
        tokens, keys = run_last_block(model.blocks[-1], tokens, grid, how)
        return model.head(model.norm(tokens)), keys

    def proxy_maps(self, x: Tensor, features: Tensor, beta: float, gamma: float) -> Tensor:
        """Patches in the space of words, gathered by what a second network finds alike (ProxyCLIP).

        Args:
            x: as for `joint_maps`.
            features: of the same pictures (B, D, h', w').
            beta, gamma: as for `proxy_weights`.

        Returns:
            (B, E, h', w'), of any length.
        """
        model: Any = self.model
        tokens, grid = self._before_last(x)
        size = (features.shape[-2], features.shape[-1])
        places = run_last_block_by_proxy(
            model.blocks[-1], tokens, grid, proxy_weights(features, beta, gamma), size
        )  # fmt: skip
        words: Tensor = model.head(model.norm(places))
        return words.transpose(1, 2).unflatten(2, size)

    def _before_last(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The tokens (B, T, D) that enter the last block, and the grid of the patches."""
        tokens, _ = self._start(x)
        for block in range(self.layers - 1):
            tokens = self._run_block(tokens, None, block)
        return tokens, self.grid((x.shape[-2], x.shape[-1]))

    def picture_vectors(self, x: Tensor) -> Tensor:
        """Whole pictures in the space of words (B, E), of any length: the class token."""
        words, _ = self.joint_tokens(x, LastBlock("clip"))
        return words[:, 0]


class ClipResNet(CNNBackbone):
    """CLIP's ResNet with its attention pool."""

    pair: Pair | None = None

    def __init__(self, model: nn.Module, name: str, shape: TowerShape, provenance: Provenance) -> None:
        super().__init__(model, name, shape.text(), provenance)
        self.joint_width = shape.embed
        self.key_width = shape.width * 32
        # The joint space is that of the last stage.
        self.multiple_of = self.strides[-1]

    def joint_maps(self, x: Tensor, how: LastBlock) -> tuple[Tensor, Tensor]:
        """As of `ClipViT`; the attention pool's value and output projection at each place, without its positions.

        Raises:
            ValueError: another attention than `value` is asked for; a ResNet has no last block.
        """
        if how.attention != "value":
            raise ValueError(f"{self.name} is a ResNet: its attention pool has no {how.attention!r}, only 'value'")
        model: Any = self.model
        return pooled_places(model.head, model.forward_features(x))

    def picture_vectors(self, x: Tensor) -> Tensor:
        """Whole pictures in the space of words (B, E), of any length: the attention pool, which takes the pictures of
        its training size alone."""
        found: Tensor = self.model(x)
        return found


def pooled_places(pool: Any, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Value and output projection of an attention pool at each place, and its keys.

    Args:
        pool: with the layers `v`, `proj` and `k`.
        maps: (B, D, h, w).

    Returns:
        (B, E, h, w) and (B, D, h, w).
    """
    places = maps.permute(0, 2, 3, 1)  # (B, h, w, D)
    words, keys = pool.proj(pool.v(places)), pool.k(places)
    return words.permute(0, 3, 1, 2), keys.permute(0, 3, 1, 2)


ClipTower = ClipViT | ClipResNet


def build_clip(name: str, weights: str | None, output_stride: int | None = None, **options: Any) -> ClipTower:
    """Builds a CLIP image tower, in evaluation mode.

    Args:
        name: `clip`, `clip:NAME`, `clip:NAME:TAG` as open_clip names them, or a line of `TowerShape`.
        weights: as for `find_pair`.
        output_stride: refused: CLIP's towers run at their own strides.
        options: refused likewise.

    Raises:
        MaskwrightError: unknown name, or weights that cannot be had, read or fitted.
    """
    if output_stride is not None or options:
        asked = f"output stride {output_stride}" if output_stride is not None else ", ".join(options)
        raise MaskwrightError(
            f"{name} with {asked}", "a CLIP tower as it was trained", "take another backbone, as dinov2_small"
        )
    if (shape := TowerShape.parse(name)) is not None:
        if weights not in (None, "random"):
            raise MaskwrightError(f"weights for {name}", "clip:NAME, which says how the file is to be read")
        return _made(name, shape, random_provenance(shape))
    pair = find_pair(name, weights)
    shape = pair.shape
    tower = _made(name, shape, random_provenance(shape))
    if pair.file is not None:
        tower.model.load_state_dict(fit(timm_names(pair.tensors()), tower.model, pair.file.source))
        tower.provenance = tower.provenance.replace(
            source=pair.file.source, sha256=pair.file.sha256, license=pair.license,
            labels_seen=pair.file.metadata.get("labels_seen", CAPTIONS),
        )  # fmt: skip
    tower.provenance = tower.provenance.replace(mean=pair.mean or MEAN, std=pair.std or STD)
    tower.pair = pair.without_tensors()
    return tower


def build_line(name: str) -> str:
    """The line of a tower's build by its name; no weights are asked for.

    Raises:
        MaskwrightError: unknown name, or open_clip, which knows the names, is not installed.
    """
    shape = TowerShape.parse(name) or find_pair(name, "random").shape
    return shape.text()


def random_provenance(shape: TowerShape) -> Provenance:
    """The record of a tower whose weights are drawn."""
    return Provenance(
        shape.text(), license="none needed", labels_seen="none", mean=MEAN, std=STD,
        input_size=(shape.image, shape.image),
    )  # fmt: skip


def _made(name: str, shape: TowerShape, provenance: Provenance) -> ClipTower:
    tower: ClipTower
    if shape.kind == "vit":
        tower = ClipViT(_vit(shape), name, shape, provenance)
    else:
        tower = ClipResNet(_resnet(shape), name, shape, provenance)
    return tower.eval()


def _vit(shape: TowerShape) -> nn.Module:
    norm: Any = partial(nn.LayerNorm, eps=shape.eps)
    model = VisionTransformer(
        img_size=shape.image, patch_size=shape.patch, embed_dim=shape.width, depth=shape.layers[0],
        num_heads=shape.heads, mlp_ratio=shape.mlp, pre_norm=True, norm_layer=norm, act_layer=shape.act,
        num_classes=shape.embed, dynamic_img_size=True,
    )  # fmt: skip
    model.head = nn.Linear(shape.width, shape.embed, bias=False)
    return model


def _resnet(shape: TowerShape) -> nn.Module:
    w = shape.width
    blocks = tuple(
        ByoBlockCfg(type="bottle", d=depth, c=4 * w * 2**i, s=1 if i == 0 else 2, br=0.25)
        for i, depth in enumerate(shape.layers)
    )
    config = ByoModelCfg(
        blocks=blocks, stem_chs=(w // 2, w // 2, w), stem_type="", stem_pool="avg2", downsample="avg",
        aa_layer="avg", head_type="attn_abs",
    )  # fmt: skip
    return ByobNet(config, num_classes=shape.embed, img_size=shape.image, global_pool="token")


_VIT = (
    (r"^conv1\.", "patch_embed.proj."), (r"^class_embedding$", "cls_token"), (r"^positional_embedding$", "pos_embed"),
    (r"^ln_pre\.", "norm_pre."), (r"^ln_post\.", "norm."), (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."), (r"\.attn\.in_proj_", ".attn.qkv."), (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."), (r"\.mlp\.c_proj\.", ".mlp.fc2."), (r"^proj$", "head.weight"),
)  # fmt: skip
_RESNET = (
    (r"^conv(\d)\.", r"stem.conv\1.conv."), (r"^bn(\d)\.", r"stem.conv\1.bn."),
    (r"^layer(\d)\.(\d+)\.conv1\.", r"stages.\1.\2.conv1_1x1.conv."),
    (r"^layer(\d)\.(\d+)\.bn1\.", r"stages.\1.\2.conv1_1x1.bn."),
    (r"^layer(\d)\.(\d+)\.conv2\.", r"stages.\1.\2.conv2_kxk.conv."),
    (r"^layer(\d)\.(\d+)\.bn2\.", r"stages.\1.\2.conv2_kxk.bn."),
    (r"^layer(\d)\.(\d+)\.conv3\.", r"stages.\1.\2.conv3_1x1.conv."),
    (r"^layer(\d)\.(\d+)\.bn3\.", r"stages.\1.\2.conv3_1x1.bn."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"stages.\1.\2.shortcut.conv.conv."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"stages.\1.\2.shortcut.conv.bn."),
    (r"^attnpool\.positional_embedding$", "head.pos_embed"), (r"^attnpool\.([qkv])_proj\.", r"head.\1."),
    (r"^attnpool\.c_proj\.", "head.proj."),
)  # fmt: skip


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's tensors of a pair, `visual.` before each, as timm names and shapes them."""
    visual = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    resnet = any(k.startswith("attnpool.") for k in visual)
    found = {}
    for key, value in visual.items():
        name = key
        for pattern, new in _RESNET if resnet else _VIT:
            name = re.sub(pattern, new, name)
        name = re.sub(r"^stages\.(\d)", lambda m: f"stages.{int(m[1]) - 1}", name) if resnet else name
        if name == "head.weight":
            value = value.T
        elif name == "cls_token":
            value = value.reshape(1, 1, -1)
        elif name == "pos_embed":
            value = value[None]
        found[name] = value
    return found

"""GroupViT's image tower as a backbone: dense features of its first stage, and groups in the space of words.

Legend: B batch, N patches, D width, (H, W) input size, (h, w) grid of patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import Backbone
from maskwright.models.provenance import Provenance
from maskwright.models.towers.groupvit.files import GroupPair, find_group_pair, image_state
from maskwright.models.towers.groupvit.network import Grouped, GroupViT, ImageTower
from maskwright.models.towers.groupvit.shape import GroupShape

CAPTIONS = "image captions"
LICENSE = "that of the authors' repository, for non-commercial use"


class GroupTower(Backbone):
    """GroupViT's image tower; its layers are the blocks of the first stage, behind which no patch is left.

    Attributes:
        shape: the build.
        pair: both towers; None where the tower came from a bundle.
    """

    pair: GroupPair | None = None

    def __init__(self, model: ImageTower, name: str, shape: GroupShape, provenance: Provenance) -> None:
        super().__init__(model, name, shape.text(), provenance)
        self.shape = shape
        self.widths, self.strides = (shape.width,) * shape.depths[0], (shape.patch,) * shape.depths[0]
        self.default_layer, self.multiple_of = shape.depths[0] - 1, shape.patch
        self.groups = shape.groups[-1]

    @property
    def tower(self) -> ImageTower:
        """The network with its projector and scale."""
        assert isinstance(self.model, ImageTower)
        return self.model

    def grouped(self, x: Tensor) -> Grouped:
        """Normalised images (B, 3, H, W), sides multiples of the patch, as groups."""
        self._check(x)
        found: Grouped = self.tower.encoder(x)
        return found

    def _check(self, x: Tensor) -> None:
        p = self.shape.patch
        if x.shape[-2] % p or x.shape[-1] % p:
            raise ValueError(f"input is {x.shape[-2]} x {x.shape[-1]}, expected multiples of the patch {p}")

    def _dense(self, x: Tensor, layers: list[int], kind: str, norm: bool) -> list[Tensor]:
        """Patch tokens behind blocks of the first stage, without a norm: the last one is of other tokens."""
        self._check(x)
        encoder: GroupViT = self.tower.encoder
        tokens, grid = encoder.start(x)
        n = tokens.shape[1]
        stage: Any = encoder.layers[0]
        tokens = torch.cat((tokens, stage.group_token.expand(len(tokens), -1, -1)), 1)
        found: dict[int, Tensor] = {}
        for k in range(max(layers) + 1):
            block = stage.blocks[k]
            if kind != "tokens" and k in layers:
                found[k] = block.attn.qkv(block.norm1(tokens)).chunk(3, -1)["qkv".index(kind)]
            tokens = block(tokens)
            if kind == "tokens":
                found[k] = tokens
        maps = {k: found[k][:, :n].transpose(1, 2).unflatten(-1, grid) for k in set(layers)}
        return [maps[k] for k in layers]

    def _embed(self, x: Tensor) -> Tensor:
        return self.grouped(x).average


def build_groupvit(name: str, weights: str | None, output_stride: int | None = None, **options: Any) -> GroupTower:
    """Builds GroupViT's image tower, in evaluation mode.

    Args:
        name: `groupvit`, `groupvit:NAME` or a line of `GroupShape`.
        weights: as for `find_group_pair`.
        output_stride: refused: the tower runs at its own stride.
        options: refused likewise.

    Raises:
        MaskwrightError: unknown name, or weights that cannot be had, read or fitted.
    """
    if output_stride is not None or options:
        asked = f"output stride {output_stride}" if output_stride is not None else ", ".join(options)
        raise MaskwrightError(f"{name} with {asked}", "a GroupViT as it was trained", "take another backbone")
    pair = find_group_pair(name, weights)
    tower = GroupTower(ImageTower(pair.shape), name, pair.shape, drawn_provenance(pair.shape))
    if pair.file is not None:
        tower.model.load_state_dict(image_state(pair.tensors()))
        said = pair.file.metadata
        tower.provenance = tower.provenance.replace(
            source=pair.file.source, sha256=pair.file.sha256, labels_seen=said.get("labels_seen", CAPTIONS),
            license=LICENSE if pair.hub else said.get("license", "unknown"),
        )  # fmt: skip
    tower.pair = pair.without_tensors()
    return tower.eval()


def drawn_provenance(shape: GroupShape) -> Provenance:
    """The record of a tower whose weights are drawn; ImageNet's mean and deviation, as the authors have them."""
    return Provenance(shape.text(), license="none needed", labels_seen="none", input_size=(shape.image, shape.image))

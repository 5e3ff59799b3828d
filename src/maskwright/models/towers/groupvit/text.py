"""GroupViT's text tower for class names.

Legend: N texts, E channels of the joint space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskwright.models.towers.groupvit.files import GroupPair, text_state
from maskwright.models.towers.groupvit.network import LENGTH, TextTower
from maskwright.models.towers.text import Texts, clip_tokens


class GroupText(Texts):
    """Texts as vectors in the space of a GroupViT.

    Args:
        tower: the text tower.

    Raises:
        MaskwrightError: open_clip, which has CLIP's tokens, is not installed.
    """

    units = False

    def __init__(self, tower: TextTower) -> None:
        super().__init__(clip_tokens(LENGTH), LENGTH)
        self.tower = tower.cpu().eval().requires_grad_(False)

    @classmethod
    def of(cls, pair: GroupPair) -> GroupText:
        """That of a pair; of one whose weights are drawn, drawn now from torch's global generator."""
        tower = TextTower(pair.shape)
        if pair.file is not None:
            tower.load_state_dict(text_state(pair.tensors()))
        return cls(tower)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts as vectors of any length, (N, E)."""
        found: Tensor = self.tower(self.tokenizer(list(texts)))
        return found

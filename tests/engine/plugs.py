"""A method of the tag pipeline that trains nothing before its maps, as those on a language-image model do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from maskwright.engine.contract import Stage
from maskwright.recipes.tags.method import TagMethod


class Brightness(nn.Module):
    """Stands for a network that came trained."""

    multiple_of = 4


class Untrained(TagMethod):
    """The maps of every tag are where the photograph is bright."""

    name: ClassVar[str] = "untrained"
    title: ClassVar[str] = "A plug"
    venue: ClassVar[str] = "none"
    link: ClassVar[str] = "https://example.org"

    def stages(self) -> list[Stage]:
        """Tags alone, then as ever."""
        return [Stage("classify", "fit", self.tags, "the tags"), *super().stages()[1:]]

    def tags(self, folder: Any) -> None:
        """No training."""
        self.read_targets(folder)

    def trained(self) -> Brightness:
        """Nothing to load."""
        return Brightness()

    def maps(self, network: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """(B, T, h, w), the mean over colours above its mean."""

        def bright(x: Tensor, tags: Tensor) -> Tensor:
            light = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4)
            return (light - light.mean((-2, -1), keepdim=True)).relu().expand(-1, tags.shape[1], -1, -1).clone()

        return torch.no_grad()(bright)

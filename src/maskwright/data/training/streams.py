"""Streams: sets of images and what may be read of them, from which a training step draws its views.

A run that learns from labelled and unlabelled photographs has two streams, `x` and `u`; one that adapts to another
domain has `s` and `t`. A stream knows its data set, which of its images it draws, where their labels come from, how
they are cropped and how their colours are changed. What it draws is on the CPU, and a function of the images' indices
and of the generator alone, so that batches can be drawn ahead.

Legend: B views, S crop side, (H, W) image size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.training.crops import random_scale_crop
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.sources import Labels, fill_outside, read_view
from maskwright.data.training.tag_targets import TagTargets
from maskwright.data.training.views import View
from maskwright.errors import MaskwrightError
from maskwright.ops.transfer import to_device

Change = Callable[[Tensor, torch.Generator], Tensor]
"""A photometric recipe: uint8 (..., 3, S, S) and the source of all draws to new pixels of the same shape."""


@dataclass(frozen=True)
class CropRecipe:
    """A random scale, a crop and a flip.

    Attributes:
        side: S, pixels.
        scale: least and greatest random scale.
        long_side: larger images are first scaled to this longer side, pixels.
    """

    side: int
    scale: tuple[float, float]
    long_side: int

    def view(self, size: tuple[int, int], random: torch.Generator, centre: tuple[int, int] | None = None) -> View:
        """A view of an image of `size` (H, W), around a pixel (row, column) where one is given."""
        return random_scale_crop(
            size, (self.side, self.side), base=min(max(size), self.long_side), scale=self.scale, generator=random,
            centre=centre,
        )  # fmt: skip


class CropChoice(Protocol):
    """How a crop is chosen by what the labels of its photograph show."""

    def __call__(self, i: int, y: LabelMap, crops: CropRecipe, random: torch.Generator) -> View:
        """A view of image `i`, whose labels are y (H, W)."""
        ...


class Views(NamedTuple):
    """What a stream draws for a step.

    Attributes:
        weak: the crops (B, 3, S, S): uint8 as drawn, the network's input once they are on the device.
        labels: of the crops (B, S, S); None where the stream has none.
        valid: bool (B, S, S): what has a label, or, without labels, what lies inside the photograph.
        strong: strong views of the same crops, each of the shape of `weak`.
        geometry: the recorded geometry of each crop.
        images: their indices in the stream's data set.
        tags: (B, T), 1 where the whole photograph is tagged; None where the stream has none.
    """

    weak: Tensor
    labels: LabelMap | None
    valid: Tensor
    strong: tuple[Tensor, ...]
    geometry: tuple[View, ...]
    images: tuple[int, ...]
    tags: Tensor | None = None

    @property
    def y(self) -> LabelMap:
        """The labels of a stream that has them."""
        assert self.labels is not None, "a stream without labels"
        return self.labels

    @property
    def inside(self) -> Tensor:
        """bool (B, S, S), on the device of `weak`: what lies inside the photograph, whether or not it has a label."""
        return torch.stack([view.valid() for view in self.geometry]).to(self.weak.device)

    @property
    def t(self) -> Tensor:
        """The tags of a stream that has them, (B, T)."""
        assert self.tags is not None, "a stream without tags"
        return self.tags

    def as_input(self, normalise: Callable[[Tensor], Tensor], device: torch.device) -> Views:
        """The views on a device, their pixels as a network takes them.

        Args:
            normalise: uint8 (B, 3, S, S) to the network's input on the device.
            device: for all else.
        """
        return self._replace(
            weak=normalise(self.weak),
            labels=None if self.labels is None else self.labels.to(device),
            valid=to_device(self.valid, device),
            strong=tuple(normalise(s) for s in self.strong),
            tags=None if self.tags is None else to_device(self.tags, device),
        )


class Order(Protocol):
    """Which images come next: positions in the stream's list of indices."""

    def next(self) -> np.ndarray: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Stream:
    """A set of images and what may be read of it.

    Args:
        data: the data set.
        indices: the images of it that are drawn.
        order: which of them come next.
        crops: how they are cropped.
        mean: RGB in [0, 1], the colour outside a photograph.
        labels: where their labels come from; None: the stream has none.
        change: photometric recipe of the strong views.
        strong_views: how many strong views each crop gets.
        tags: what the photographs are tagged with; None: the stream has no tags.
        jitter: photometric recipe of the crops themselves, drawn for each on its own; None: they stay as they are.
        choose: how crops are chosen by the labels of their photographs; None: without a look at them.
    """

    def __init__(
        self,
        data: Dataset,
        indices: Sequence[int] | np.ndarray,
        order: Order,
        crops: CropRecipe,
        mean: Sequence[float],
        labels: Labels | None = None,
        change: Change | None = None,
        strong_views: int = 0,
        tags: TagTargets | None = None,
        jitter: Change | None = None,
        choose: CropChoice | None = None,
    ) -> None:
        if choose is not None and labels is None:
            raise ValueError("crops chosen by labels in a stream that has none")
        if strong_views and change is None:
            raise ValueError(f"{strong_views} strong views without a photometric recipe")
        self.data, self.indices, self.order, self.crops = data, np.asarray(indices, np.int64), order, crops
        self.mean, self.labels, self.change, self.strong_views = mean, labels, change, strong_views
        self.tags, self.jitter, self.choose = tags, jitter, choose

    def next(self) -> np.ndarray:
        """Indices in the data set of this process's share of the next batch, int64 (B,)."""
        return self.indices[self.order.next()]

    def view(self, i: int, random: torch.Generator) -> View:
        """A random crop of image `i`."""
        if self.choose is not None and self.labels is not None:
            return self.choose(i, self.labels.read(i), self.crops, random)
        return self.crops.view(self.data.size(i), random)

    def pixels(self, i: int, view: View, random: torch.Generator) -> Tensor:
        """uint8 (3, S, S) of image `i`, its colours jittered where the stream says so; outside it the mean colour."""
        x = torch.from_numpy(read_view(self.data, i, view)).permute(2, 0, 1)
        if self.jitter is not None:
            x = self.jitter(x, random)
        return fill_outside(x, view, self.mean)

    def label(self, i: int, view: View) -> LabelMap | None:
        """Labels (S, S) of image `i` as the view sees them, where the stream has labels."""
        return None if self.labels is None else self.labels.read(i).through(view)

    def tags_of(self, images: Sequence[int]) -> Tensor | None:
        """(B, T), 1 where an image is tagged, where the stream has tags."""
        if self.tags is None:
            return None
        return torch.stack([self.tags.multi_hot(self.data.items[i].name) for i in images])

    def draw(self, images: Sequence[int] | np.ndarray, random: torch.Generator) -> Views:
        """Views of images; all randomness comes from `random`."""
        images = tuple(int(i) for i in images)
        geometry = tuple(self.view(i, random) for i in images)
        weak = torch.stack([self.pixels(i, v, random) for i, v in zip(images, geometry)])
        found = [self.label(i, v) for i, v in zip(images, geometry)]
        labels = None if self.labels is None else LabelMap.stack([one for one in found if one is not None])
        valid = torch.stack([v.valid() for v in geometry]) if labels is None else labels.valid
        strong: tuple[Tensor, ...] = ()
        if self.change is not None:
            strong = tuple(self.change(weak, random) for _ in range(self.strong_views))
        return Views(weak, labels, valid, strong, geometry, images, self.tags_of(images))


class Repeated:
    """A stream of which each photograph is drawn several times, on its own each time: several views of it, one after
    the other.

    Args:
        stream: what is drawn.
        times: how often.
    """

    def __init__(self, stream: Stream, times: int) -> None:
        self.stream, self.times, self.order = stream, times, stream.order

    def next(self) -> np.ndarray:
        """Indices of this process's share of the next batch, each once."""
        return self.stream.next()

    def draw(self, images: Sequence[int] | np.ndarray, random: torch.Generator) -> Views:
        """Views (times B, ...): all of the first image, then all of the second, and so on."""
        return self.stream.draw(np.repeat(np.asarray(images, np.int64), self.times), random)


class Draws(Protocol):
    """What a stream is to a training: a `Stream`, or one that draws something of its own (pairs of crops)."""

    order: Order

    def next(self) -> np.ndarray: ...

    def draw(self, images: Any, random: torch.Generator) -> Any: ...


class Streams(dict[str, Draws]):
    """The named streams of a training, and its sampler: each has an order of its own.

    They are drawn in the order in which they were added: a further stream leaves the views of those before it as they
    were.
    """

    def next(self) -> dict[str, np.ndarray]:
        """Of each stream the indices of this process's share of the next batch."""
        return {name: stream.next() for name, stream in self.items()}

    def draw(self, indices: Mapping[str, Sequence[int] | np.ndarray], random: torch.Generator) -> dict[str, Any]:
        """Of each stream the views of these images."""
        return {name: stream.draw(indices[name], random) for name, stream in self.items()}

    def state_dict(self) -> dict[str, Any]:
        """The position of each stream."""
        return {name: stream.order.state_dict() for name, stream in self.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken.

        Raises:
            MaskwrightError: the state is of other streams, lists, batches or seeds.
        """
        if state.keys() != self.keys():
            raise MaskwrightError(
                f"the saved run drew from the streams {', '.join(state)}", f"{', '.join(self)} as now",
                "resume with the options and images of the saved run",
            )  # fmt: skip
        for name, stream in self.items():
            stream.order.load_state_dict(state[name])


class Joined:
    """Two orders of one list, one after the other in each batch.

    Args:
        first, second: the orders.
    """

    def __init__(self, first: Sampler, second: Sampler) -> None:
        self.first, self.second = first, second

    def next(self) -> np.ndarray:
        """Positions of both, those of the first order first."""
        return np.concatenate([self.first.next(), self.second.next()])

    def state_dict(self) -> dict[str, Any]:
        """Both positions."""
        return {"first": self.first.state_dict(), "second": self.second.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken."""
        self.first.load_state_dict(state["first"])
        self.second.load_state_dict(state["second"])

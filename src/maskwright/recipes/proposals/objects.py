"""One object mask a photograph, whatever says where objects are: proposals of another run or of a folder, a saved
model, an ONNX saliency network, or, where nothing is given, the eigenvectors of frozen features.

    maker = object_maker(context, config.objects, context.inputs.get("objects"))
    store = find_objects(context, folder, maker, config.objects)

The stage leaves a store of `objects`, which another run takes by `--input NAME=RUN`.

Legend: (H, W) size of a photograph.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from maskwright.data.masking.classes import BACKGROUND_NAMES, ClassTable, read_classes
from maskwright.data.masking.masks import read_stored
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals
from maskwright.engine.config import option, part
from maskwright.engine.shown import Shown
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import Backbone
from maskwright.models.onnx_network import OnnxNetwork
from maskwright.models.preprocess import MAX_SIDE
from maskwright.models.segmenter import Segmenter
from maskwright.ops.refinement.components import remove_small
from maskwright.predict.inference import predict_mask
from maskwright.recipes.frozen.features import FrozenFeatures
from maskwright.recipes.proposals.making import PROPOSALS, propose
from maskwright.recipes.proposals.showing import object_strips
from maskwright.recipes.proposals.spectral_objects import (
    OBJECT_VECTORS,
    GraphOptions,
    graph_features,
    object_map,
    object_mask,
    spectrum,
)
from maskwright.recipes.proposals.spectral_objects import ObjectOptions as SpectralOptions

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.context import Context
    from maskwright.engine.inputs import Input

WHAT = (
    "objects of the photographs: a run of deep_spectral or of another method, a folder of masks or saliency maps, a "
    "model or an ONNX saliency network; without it they are found by eigenvectors"
)
"""What `--input objects=PLACE` is to a method that has them made here."""

UNKNOWN = "unknown"
"""Labels that an input saw, where it does not say."""


@dataclass(kw_only=True)
class ObjectMaskOptions:
    """The object mask of each photograph."""

    saw: str = option("", "the labels that whoever made the masks saw, where an input does not say; for the record")
    threshold: float = option(0.5, "a soft map's values above are object", low=0, high=1)
    least: float = option(
        0.01, "parts smaller than this share of their photograph are taken out of its mask", low=0, high=1
    )
    short_side: int = option(
        320,
        "pixels; shorter side of the network's input where objects are found by eigenvectors",
        low=16,
        high=MAX_SIDE,
    )
    graph: GraphOptions = part(GraphOptions, vectors=OBJECT_VECTORS - 1)
    spectral: SpectralOptions = part(SpectralOptions)


class ObjectMaker(Protocol):
    """What says where objects are.

    Attributes:
        says: whose masks they are, in a few words.
        labels_seen: the labels that whoever makes them saw.
        soft: whether it has soft maps, of which `ObjectMaskOptions.threshold` makes masks.
    """

    says: str
    labels_seen: str

    @property
    def soft(self) -> bool:
        """As above."""
        ...

    def __contains__(self, name: str) -> bool:
        """Whether it says anything of a photograph."""
        ...

    def mask(self, i: int) -> np.ndarray:
        """Where the object of the run's photograph `i` is, bool (H, W); what is unknown is none."""
        ...


def objects_of(ids: np.ndarray, table: ClassTable | None) -> np.ndarray:
    """Which pixels of class ids (H, W) are objects: all but those of a class called background, or but 0 where none
    is."""
    names = () if table is None else table.names
    ground = [k for k, name in enumerate(names) if name.lower() in BACKGROUND_NAMES] or [0]
    return ~np.isin(ids, ground)


class StoredObjects:
    """Proposals: objects, classes, soft maps, or files of somebody's folder.

    Of a folder that does not say what it holds, all values are looked at. Where all are 0 and 255, or some lie from 128
    to 254, they are grey maps, in which white is object; else they are ids, 0 is background and 255 unknown.

    Args:
        context: of the run.
        store: the proposals.
        threshold: of soft maps.
        data: the photographs that they are of; the run's own if None.

    Raises:
        MaskwrightError: it holds regions, which are not objects.
    """

    def __init__(self, context: Context, store: Proposals, threshold: float, data: Dataset | None = None) -> None:
        if store.holds == "regions":
            raise MaskwrightError(
                f"{store.folder} holds regions", "objects, classes or soft maps", "give a run that found objects"
            )
        self.data, self.store, self.threshold = context.data if data is None else data, store, threshold
        self.says, self.labels_seen = store.says, store.labels_seen
        self.table = read_classes(store.folder / "classes.txt") if store.holds == "classes" else None
        if store.holds is None:
            how = "grey maps, white is object" if self.grey else "ids, 0 is background and 255 unknown"
            context.note(f"The files of {store.folder} are taken for {how}.")

    @cached_property
    def grey(self) -> bool:
        """Whether files of a folder without a record are grey maps."""
        if self.store.holds is not None:
            return self.store.holds == "soft"
        seen: set[int] = set()
        for name in self.store.names:
            stored = read_stored(self.store.path_of(name))
            if stored.kind == "wide":
                return True
            if stored.kind != "grey":
                return False
            seen.update(np.unique(stored.values).tolist())
        return seen <= {0, 255} or any(128 <= v < 255 for v in seen)

    @property
    def soft(self) -> bool:
        """As the protocol says."""
        return self.grey

    def __contains__(self, name: str) -> bool:
        return name in self.store

    def mask(self, i: int) -> np.ndarray:
        """As the protocol says."""
        return self.read(i)[0]

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the object of photograph `i` is, and where that is known, each bool (H, W)."""
        name, size = self.data.names[i], self.data.size(i)
        if self.grey:
            inside = (self.store.soft(name, size).values > self.threshold).numpy()
            return inside, np.ones_like(inside)
        found = self.store.read(name, size)
        known = found.valid.numpy()
        return objects_of(found.ids.numpy(), self.table) & known, known


class NetworkObjects:
    """What a saved model does not call background, or an ONNX network calls salient.

    Args:
        context: of the run.
        network: on its device.
        given: the input that it is.
        threshold: of soft maps.
    """

    def __init__(self, context: Context, network: Segmenter | OnnxNetwork, given: Input, threshold: float) -> None:
        self.data, self.device, self.network, self.threshold = context.data, context.device, network, threshold
        method = "" if isinstance(network, OnnxNetwork) else network.method
        self.says = f"{method or 'network'} {Path(given.place).name}"
        self.labels_seen = given.labels_seen
        self.soft = isinstance(network, OnnxNetwork)
        if isinstance(network, OnnxNetwork):
            context.note(network.notes)

    def __contains__(self, name: str) -> bool:
        return True

    def mask(self, i: int) -> np.ndarray:
        """As the protocol says."""
        image = self.data.image(i)
        if isinstance(self.network, OnnxNetwork):
            found: np.ndarray = self.network.saliency(image) > self.threshold
            return found
        ids = predict_mask(self.network, image, device=self.device, confidence=None).ids
        return objects_of(ids, self.network.classes)


class SpectralObjects:
    """The object that eigenvectors of the backbone's frozen features show (`spectral_objects.py`).

    Args:
        context: of the run.
        options: of graph and object.
    """

    says = "eigenvectors of frozen features"
    soft = False

    def __init__(self, context: Context, options: ObjectMaskOptions) -> None:
        self.context, self.options = context, options
        self.labels_seen = context.backbone.provenance.labels_seen

    @cached_property
    def features(self) -> FrozenFeatures:
        """Of all photographs."""
        return graph_features(self.context, self.options.graph, self.options.short_side)

    def __contains__(self, name: str) -> bool:
        return True

    def mask(self, i: int) -> np.ndarray:
        """As the protocol says."""
        image, o = self.context.data.image(i), self.options
        x = self.features.store[i].float()
        soft = object_map(*spectrum(image, x, o.graph, self.context.seed), o.spectral.rule)
        return object_mask(image, soft, o.spectral.refine)


def object_maker(context: Context, options: ObjectMaskOptions, given: Input | None) -> ObjectMaker:
    """What makes the object masks of a run.

    Args:
        context: of the run.
        options: of the masks.
        given: `--input objects=PLACE`; None: they are found by eigenvectors.
    """
    if given is None:
        return SpectralObjects(context, options)
    thing = context.input(given.name)
    maker: StoredObjects | NetworkObjects
    if isinstance(thing, Proposals):
        maker = StoredObjects(context, thing, options.threshold)
    else:
        assert not isinstance(thing, Backbone), "an input of proposals is no backbone"
        maker = NetworkObjects(context, thing, given, options.threshold)
    if maker.labels_seen == UNKNOWN and options.saw:
        maker.labels_seen = options.saw
    return maker


def find_objects(context: Context, folder: Path, maker: ObjectMaker, options: ObjectMaskOptions) -> Proposals:
    """A stage: the object mask of each photograph that the maker knows, as a store in its folder.

    Raises:
        MaskwrightError: it knows none of the photographs.
    """
    data = context.data
    known = [i for i, name in enumerate(data.names) if name in maker]
    if not known:
        raise MaskwrightError(
            f"the proposals of {maker.says} are of none of the {len(data)} photographs ({data.root})",
            "files named as the photographs", "give the photographs that they were made for",
        )  # fmt: skip
    left = len(data) - len(known)
    context.note(
        f"Objects are those of {maker.says} (labels seen: {maker.labels_seen})"
        + (f"; {left} of {len(data)} photographs have none" if left else "") + "."
    )  # fmt: skip

    def make(i: int) -> LabelMap:
        found = maker.mask(i)
        if options.least > 0:
            found = remove_small(found, math.ceil(options.least * found.size), connectivity=8)
        return LabelMap.from_mask(found.astype(np.uint8))

    store = propose(context, folder, "objects", maker.says, make, maker.labels_seen, known)
    if context.run.writes:
        show(context, store, known).write(folder)
    return store


def show(context: Context, store: Proposals, known: Collection[int]) -> Shown:
    """Where the objects lie, and those of a few photographs, for the report."""
    found = Shown(title="Objects")
    found.sentences.append(
        f"The object mask of each photograph, from {store.says}, lies in {store.folder.parent.name}/{PROPOSALS}/"
        f"objects/NAME.png of the run. Labels that whoever made them saw: {store.labels_seen}."
    )
    found.strips = object_strips(context.data, sorted(known), lambda name: store.read(name).ids.numpy())
    return found


def stored_objects(folder: Path) -> Proposals:
    """The store that `find_objects` left in a stage's folder."""
    return Proposals(folder / PROPOSALS)

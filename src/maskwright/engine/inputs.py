"""The inputs of a run beside its data sets: second networks, and proposals that another network made.

    --input NAME=PLACE     repeatable

PLACE is of a network a `model.safetensors`, a run's folder, or a backbone's name, perhaps with `@WEIGHTS` (a file,
`package` or `random`); of proposals their folder, or the folder of a run with one stage that made some. Where the
method can have proposals made, a network will do for them too: a model, a run that has one and no proposals, or an ONNX
file. Which names a method takes is what its class says (`Terms.inputs`). Of each input the run's record tells
the hash of its contents, which a resumed run must find again, and which labels it saw.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from maskwright.data.training.proposals import RECORD as STORE
from maskwright.data.training.proposals import Proposals
from maskwright.data.trust.artefacts import Damage, parse_record
from maskwright.engine.config_file import lasting
from maskwright.engine.records import MODEL, RECORD, SHAPE, RunFolder
from maskwright.engine.resuming import DONE
from maskwright.engine.seeding import derive
from maskwright.errors import MaskwrightError
from maskwright.models import bundle
from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.dense import Backbone
from maskwright.models.onnx_network import OnnxNetwork
from maskwright.models.segmenter import Segmenter

if TYPE_CHECKING:
    from maskwright.engine.contract import Method
    from maskwright.engine.needs import InputNeed

Given = Mapping[str, str | Path] | Iterable[str] | None
"""Inputs as they are given: a table of places by name, or one or several texts "NAME=PLACE"."""
WRITTEN = "--input NAME=PLACE"
PLACES = {
    "network": f"a {MODEL}, a finished run, or the name of a backbone",
    "proposals": "a folder of masks or maps named as the images, or a run whose stage made one",
}


@dataclass(frozen=True)
class Input:
    """An input, found and opened.

    Attributes:
        name: by which the method asks for it.
        kind: `network` or `proposals`: what it is, also where a network was given for proposals.
        place: where it was found: a path, or a backbone's name.
        hash: of its contents: of the model's file, of the backbone's weights, of all files of the proposals.
        thing: a segmenter or a backbone, on the CPU, in evaluation mode and without gradients; an ONNX network; or the
            proposals.
        labels_seen: the labels that pretraining saw, or, of proposals, that whoever made them saw.
        labels_read: {purpose: {kind: images}} that the run which made it read; None where no run is known.
        inputs: likewise of what was an input of that run, by name.
    """

    name: str
    kind: Literal["network", "proposals"]
    place: str
    hash: str
    thing: Segmenter | Backbone | OnnxNetwork | Proposals
    labels_seen: str
    labels_read: Mapping[str, Any] | None = None
    inputs: Mapping[str, Any] | None = None

    def saw(self) -> dict[str, Any]:
        """Which labels it saw, as JSON values."""
        told: dict[str, Any] = {"labels_seen": self.labels_seen, "labels_read": self.labels_read}
        return told | ({"inputs": self.inputs} if self.inputs else {})

    def record(self) -> dict[str, Any]:
        """What a run's record tells of it."""
        return {"kind": self.kind, "place": self.place, "hash": self.hash, **self.saw()}

    def says(self) -> str:
        """One sentence for the report."""
        read = [
            f"{n} {kind}"
            for purpose in ("train", "select")
            for kind, n in (self.labels_read or {}).get(purpose, {}).items()
            if n
        ]
        of_run = "" if self.labels_read is None else f"; its own run read {', '.join(read) if read else 'none'}"
        return f"Input {self.name}: {self.place} (labels seen: {self.labels_seen}{of_run})."


# ---------------------------------------------------------------------------------------------------- as it is written


def named_inputs(given: Given) -> dict[str, str]:
    """The places of inputs by name, in the order given.

    Raises:
        MaskwrightError: a text is no "NAME=PLACE", or two have one name.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {name: os.fspath(place) for name, place in given.items()}
    places: dict[str, str] = {}
    for text in [given] if isinstance(given, str) else given:
        name, sign, place = text.partition("=")
        if not (sign and name and place):
            raise MaskwrightError(f"--input {text}", "NAME=PLACE", "write --input NAME=PLACE, as teacher=runs/a")
        if name in places:
            raise MaskwrightError(f"two inputs called {name}", "one of each name", "leave one out")
        places[name] = place
    return places


def inputs_as_written(given: Mapping[str, str]) -> list[str]:
    """The inputs as `--input` names them, their paths found from anywhere."""
    written = []
    for name, place in given.items():
        backbone, at, weights = place.partition("@")
        split = at and not os.path.exists(place)
        written.append(f"{name}={f'{backbone}@{lasting(weights)}' if split else lasting(place)}")
    return written


def check_inputs(method: type[Method], taken: Mapping[str, InputNeed], given: Mapping[str, str]) -> None:
    """Looks whether a method gets the inputs that it takes, by their names alone.

    Raises:
        MaskwrightError: it takes none of such a name, or one that it needs is missing.
    """
    for name, place in given.items():
        if name not in taken:
            close = difflib.get_close_matches(name, taken, n=1, cutoff=0.4)
            raise MaskwrightError(
                f"{method.name} and the input {name} ({place}), which it has no use for",
                f"inputs called {', '.join(taken)}" if taken else "no --input",
                f"did you mean {close[0]!r}?" if close else "leave it out, or name another --method",
            )
    for name, need in taken.items():
        if need.required and name not in given:
            raise MaskwrightError(
                f"{method.name} needs an input called {name}: {need.says}", PLACES[need.kind],
                f"add --input {name}=PLACE",
            )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- opened


def open_inputs(taken: Mapping[str, InputNeed], given: Mapping[str, str], seed: int) -> dict[str, Input]:
    """Finds and opens inputs, in the order in which the method declares them.

    Args:
        taken: what the method takes.
        given: places by name, which `check_inputs` has seen.
        seed: of the run, for a backbone with random weights.

    Raises:
        MaskwrightError: a place holds nothing of the kind, or it is damaged.
    """
    return {name: _opened(name, given[name], need, seed) for name, need in taken.items() if name in given}


def _opened(name: str, place: str, need: InputNeed, seed: int) -> Input:
    if need.kind == "network":
        return _network(name, place, seed)
    if need.networks:
        path = Path(place)
        if path.suffix.lower() == ".onnx" and path.is_file():
            return _onnx(name, path)
        model = path / MODEL if path.is_dir() else path
        if model.is_file() and not (path.is_dir() and _stores_of(path)):
            return saved_network(name, model)
    return _proposals(name, place)


def _network(name: str, place: str, seed: int) -> Input:
    path = Path(place)
    if path.is_dir():
        if not (path / MODEL).exists():
            standing = RunFolder.standing(path)
            what = f"{path} holds a run without a model: it {standing}" if standing else f"{path} holds no {MODEL}"
            raise _no_place(name, what, "network")
        path /= MODEL
    if path.is_file():
        return saved_network(name, path)
    backbone, at, _ = place.partition("@")
    if os.sep in backbone or (path.suffix and not at):
        raise _no_place(name, f"{place} does not exist", "network")
    return _backbone(name, place, seed)


def saved_network(name: str, path: Path) -> Input:
    """A bundle. What its run read stands in the bundle; in those of earlier versions, in the run's record beside it.

    Raises:
        MaskwrightError: it is no bundle, or damaged.
    """
    segmenter = bundle.load_bundle(path)
    segmenter.requires_grad_(False)
    run = record_of(path.parent)
    read, inputs = (segmenter.extra.get(key) or run.get(key) for key in ("labels_read", "inputs"))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    seen = segmenter.provenance.labels_seen
    return Input(name, "network", os.path.abspath(path), digest, segmenter, seen, read, _saw(inputs))


def _backbone(name: str, place: str, seed: int) -> Input:
    architecture, _, weights = place.partition("@")
    torch.manual_seed(derive(seed, "input", name))  # for @random
    try:
        backbone = build_backbone(architecture, weights or None)
    except MaskwrightError as error:
        raise MaskwrightError(f"--input {name}={place}: {error.found}", PLACES["network"], error.repair) from error
    backbone.requires_grad_(False)
    return Input(name, "network", place, backbone.key, backbone.eval(), backbone.provenance.labels_seen)


def _onnx(name: str, path: Path) -> Input:
    found = OnnxNetwork(path)
    return Input(name, "network", os.path.abspath(path), found.hash, found, found.labels_seen, found.labels_read)


def _stores_of(run: Path) -> list[Path]:
    """The proposals that finished stages of a run left."""
    return sorted(store.parent for store in run.rglob(STORE) if _done(store, run))


def _proposals(name: str, place: str) -> Input:
    path = Path(place)
    if not path.is_dir():
        raise _no_place(name, f"{path} is {'a file' if path.exists() else 'not there'}", "proposals")
    run: Mapping[str, Any] = {}
    if (path / RECORD).exists():
        found = _stores_of(path)
        if len(found) != 1:
            what = f"{len(found)} of them: {', '.join(map(str, found))}" if found else "none of a finished stage"
            raise _no_place(name, f"{path} is a run, and of proposals it holds {what}", "proposals")
        run, path = record_of(path), found[0]
    else:
        around = next((folder for folder in path.absolute().parents[:2] if (folder / RECORD).exists()), None)
        if around is not None and not _done(path.absolute(), around):
            raise _no_place(name, f"the stage that makes {path} is not finished", "proposals")
        run = {} if around is None else record_of(around)
    store = Proposals(path)
    if not len(store):
        raise _no_place(name, f"{path} holds no PNG files", "proposals")
    read, inputs = run.get("labels_read"), _saw(run.get("inputs"))
    return Input(
        name, "proposals", os.path.abspath(path), store.fingerprint(), store, store.labels_seen, read, inputs
    )  # fmt: skip


def _done(store: Path, run: Path) -> bool:
    """Whether the stage in whose folder below a run's a store lies is done."""
    return (run / store.relative_to(run).parts[0] / DONE).exists()


def record_of(folder: Path) -> Mapping[str, Any]:
    """The record of a run in a folder; empty where there is none that can be read."""
    try:
        return parse_record((folder / RECORD).read_bytes(), SHAPE)
    except (OSError, Damage):
        return {}


def _saw(inputs: Any) -> dict[str, Any] | None:
    """Of an earlier run's inputs, which labels they saw."""
    kept = ("labels_seen", "labels_read", "inputs")
    found = inputs.items() if isinstance(inputs, Mapping) else ()
    return {n: {k: one[k] for k in kept if one.get(k)} for n, one in found if isinstance(one, Mapping)} or None


def _no_place(name: str, found: str, kind: str) -> MaskwrightError:
    return MaskwrightError(f"--input {name}: {found}", PLACES[kind], f"write --input {name}=PLACE")

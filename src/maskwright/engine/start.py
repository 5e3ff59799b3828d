"""Going on from one's own model: what a run, or its `model.safetensors`, brings to a new run as `--weights`.

    the backbone           to every method: it is what the new run's backbone is
    encoder and decoder    to a network of the same build
    the classifier         row by row to classes of the same name; the others are new

What is matched, joined and new is said in one line. The model is an input of the run, called `weights`: its contents
are compared when the run is resumed, and the labels that it saw stand in the record, the bundle and the provenance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from maskwright.engine.config import options
from maskwright.engine.inputs import Input, record_of, saved_network
from maskwright.engine.records import MODEL, RunFolder
from maskwright.engine.seeding import derive
from maskwright.errors import MaskwrightError
from maskwright.models.bundle import is_bundle
from maskwright.models.joining import backbone_of, rows_by_name, take_part
from maskwright.models.provenance import NO_LABELS, Provenance
from maskwright.models.segmenter import Segmenter
from maskwright.models.towers.pairs import holds_pair

if TYPE_CHECKING:
    from maskwright.data.masking.classes import ClassTable
    from maskwright.models.backbones.dense import Backbone
    from maskwright.models.networks.network import Network

WEIGHTS = "weights"
"""The input that the model is."""
NAMELESS = re.compile(r"cluster \d+|other")
"""Names that methods without labels give."""
SHOWN = 6
"""Class names in the line at most."""


def own_model(weights: str | Path | None) -> Path | None:
    """The model file of a run or bundle that was given as weights; None where they are something else.

    Raises:
        MaskwrightError: a folder without a model.
    """
    if weights is None:
        return None
    path = Path(weights)
    if not path.is_dir():
        return path if is_bundle(path) else None
    if (path / MODEL).exists() and is_bundle(path / MODEL):
        return path / MODEL
    if holds_pair(path):
        return None
    if (path / MODEL).exists():
        return path / MODEL  # damaged, which is told where it is read
    standing = RunFolder.standing(path)
    if standing:
        raise MaskwrightError(
            f"--weights {path} is a run without a model: it {standing}",
            f"a run with a {MODEL}",
            f"maskwright finish {path} makes its model as it stands",
        )
    raise MaskwrightError(f"--weights {path} is a folder without a {MODEL}", "a run, a model, or a file of weights")


def own_settings(weights: str | Path | None, config: type) -> dict[str, Any]:
    """The network that the run trained whose model is given as weights, as settings by their whole names.

    Args:
        weights: as of `train`.
        config: options of the method that goes on from it; those that it has not are left out.

    Returns:
        The settings; none where the weights are something else, or where it is not known.

    Raises:
        MaskwrightError: as `own_model`.
    """
    path = own_model(weights)
    part = None if path is None else (record_of(path.parent).get("options") or {}).get("network")
    if not isinstance(part, Mapping):
        return {}
    found = {f"network.{key}": part.get(key) for key in ("name", "options")}
    known = {o.name for o in options(config) if o.used}
    return {k: v for k, v in found.items() if k in known and isinstance(v, str) and v not in ("", "auto")}


@dataclass
class Start:
    """A model to start from.

    Attributes:
        input: the model as an input of the run: its file, hash, and the labels that it saw.
        method: the name of the method that made it.
        named: whether the classes of the run that starts are those of labels; clusters of a new run are none of before.
        backbone: what it stands on, with its weights; None where its network brings an encoder of its own.
        lacking: tensors of that backbone which the model does not have.
    """

    input: Input
    method: str
    named: bool = True
    backbone: Backbone | None = None
    lacking: list[str] = field(default_factory=list)

    @property
    def segmenter(self) -> Segmenter:
        """The model."""
        assert isinstance(self.input.thing, Segmenter)
        return self.input.thing

    @property
    def place(self) -> str:
        """The run's folder, or the file where it has another name."""
        path = Path(self.input.place)
        return str(path.parent if path.name == MODEL else path)

    @property
    def provenance(self) -> Provenance:
        """Of the weights as they are now: what pretraining saw, and what the model's own run read."""
        path = Path(self.input.place)
        return self.segmenter.provenance.replace(
            source=f"model: {path.parent.name}/{path.name}, {self.method or 'unknown method'}",
            labels_seen=labels_seen(self.input, self.method),
            sha256=self.input.hash,
        )

    @property
    def names(self) -> list[str]:
        """Its classes, "" for a cluster, which means nothing from one run to the next."""
        made_by = self.segmenter.extra.get("method")
        clusters = isinstance(made_by, Mapping) and made_by.get("family") == "unsupervised"
        return ["" if clusters and NAMELESS.fullmatch(name) else name for name in self.segmenter.classes.names]

    def into(self, network: Network, table: ClassTable) -> str:
        """Gives a new network the weights of the model, as far as they are of one build.

        Args:
            network: untrained, on the run's backbone.
            table: its classes.

        Returns:
            One line that says what was taken, joined by name, and is new.
        """
        old = self.segmenter
        rows: list[int | None] = [None] * len(table)
        if self.named:
            rows = rows_by_name(table.names, self.names)
        told = []
        if take_part(network.encoder, old.encoder, rows):
            network.provenance = self.provenance
            told.append("encoder taken")
        elif network.provenance == self.provenance:
            told.append("encoder: the backbone taken")
        else:
            told.append(f"encoder new ({_unlike(network.encoder, old.encoder)})")
        alike = take_part(network.decoder, old.decoder, rows)
        told.append("decoder taken" if alike else f"decoder new ({_unlike(network.decoder, old.decoder)})")
        # Rows of a classifier mean something behind their own decoder alone.
        if alike and any(row is not None for row in rows) and take_part(network.classifier, old.classifier, rows):
            told.append(f"classifier: {_by_name(list(table.names), rows, list(old.classes.names))}")
        else:
            told.append(f"classifier new ({len(table)} classes)")
        heads = f"; auxiliary heads new ({', '.join(network.aux)})" if len(network.aux) else ""
        return f"Weights of {self.place} ({self.method}): {'; '.join(told)}{heads}."


def open_start(weights: str | Path | None, named: bool, seed: int) -> Start | None:
    """The model that is given as `--weights`, opened; None where they are no model of ours.

    Args:
        weights: as they were given.
        named: whether the run's classes are those of labels.
        seed: of the run, for what the backbone has and the model has not.

    Raises:
        MaskwrightError: a run without a model, or a damaged one.
    """
    path = own_model(weights)
    if path is None:
        return None
    given = saved_network(WEIGHTS, path)
    assert isinstance(given.thing, Segmenter)
    start = Start(given, given.thing.method, named)
    torch.manual_seed(derive(seed, "input", WEIGHTS))
    found = backbone_of(given.thing.encoder)
    if found is not None:
        start.backbone, start.lacking = found
        start.backbone.provenance = start.provenance
    return start


def start_backbone(start: Start, asked: str, architecture: str, vit_only: bool, method: str) -> tuple[Backbone, str]:
    """The backbone of a run that starts from a model, and why it is this one.

    Args:
        start: the model.
        asked: what `--backbone` or an option says, `auto` where nothing does.
        architecture: timm's name of what is asked.
        vit_only: whether only a vision transformer will do.
        method: name of the run's method.

    Raises:
        MaskwrightError: the model stands on another network than is asked for, or on none that the method can use.
    """
    backbone = start.backbone
    if backbone is None:
        raise MaskwrightError(
            f"--weights {start.place}, whose network has an encoder of its own, and {method} on a backbone",
            "a model on a backbone, or the same network",
            "leave --weights out, or give --set network= as the model has it, where the method trains a network",
        )
    if asked != "auto" and architecture != backbone.architecture:
        raise MaskwrightError(
            f"--weights {start.place}, a model on {backbone.architecture}, and --backbone {asked}",
            "one network",
            "leave --backbone out to go on from the model, or --weights to begin anew",
        )
    if vit_only and not backbone.is_vit:
        raise MaskwrightError(
            f"--weights {start.place}, a model on the convolutional {backbone.architecture}, and {method}",
            "a model on a vision transformer",
            "leave --weights out",
        )
    told = f"{backbone.architecture} of the {start.method} model {start.place}"
    if start.lacking:
        told += f"; what it has behind the last stage that the model uses is new ({start.lacking[0]}, ...)"
    return backbone, told


def labels_seen(given: Input, method: str) -> str:
    """The labels that weights saw, in words: those of pretraining, then those that the model's own run and its inputs
    read to train or to select."""
    seen = given.labels_seen
    reads = [*_reads(given.labels_read, method or "its run")]
    for name, one in (given.inputs or {}).items():
        if name != WEIGHTS:  # whose labels stand in `given.labels_seen` already
            of_input = str(one.get("labels_seen", NO_LABELS))
            reads += [f"{of_input} ({name})"] if of_input != NO_LABELS else []
            reads += _reads(one.get("labels_read"), name)
    return "; ".join([*([] if seen == NO_LABELS and reads else [seen]), *reads])


def _reads(counts: Mapping[str, Any] | None, who: str) -> list[str]:
    total: dict[str, int] = {}
    for purpose in ("train", "select"):
        for kind, n in ((counts or {}).get(purpose) or {}).items():
            total[kind] = total.get(kind, 0) + int(n)
    told = [f"{n} {kind}" for kind, n in total.items() if n]
    return [f"{', '.join(told)} ({who})"] if told else []


def _by_name(names: list[str], rows: list[int | None], old: list[str]) -> str:
    new = [name for name, row in zip(names, rows) if row is None]
    gone = [name for k, name in enumerate(old) if k not in rows]
    told = f"{len(names) - len(new)} of {len(names)} classes joined by name"
    told += f", new: {_listed(new)}" if new else ""
    return told + (f", left out of the model: {_listed(gone)}" if gone else "")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _unlike(new: nn.Module, old: nn.Module) -> str:
    kinds = [_built(part) for part in (new, old)]
    return f"{kinds[0]}, the model's is {kinds[1]}" if kinds[0] != kinds[1] else "of another build than the model's"


def _built(part: Any) -> str:
    """A part's kind, with the architecture that a package calls it by."""
    spec = part.spec()
    return f"{spec['kind']} {spec['architecture']}" if "architecture" in spec else str(spec["kind"])

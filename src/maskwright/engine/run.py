"""A run from its request to its model: `open_run` gives a method its context, `run_method` runs it to the end.

Which methods there are, and how a run's page is made, is not known here: the class of the method and what makes the
page are given.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from maskwright.data.examining.understanding import understand
from maskwright.data.masking.classes import ClassTable
from maskwright.data.trust.files import file_for
from maskwright.data.trust.identity import LabelIdentity, label_identity
from maskwright.engine.cache import FeatureCache
from maskwright.engine.classes import class_table, known_table
from maskwright.engine.config import configure, flat, nested
from maskwright.engine.context import FEATURES, Context
from maskwright.engine.devices import make_fabric, pick_device
from maskwright.engine.ledgers import TARGET, Ledgers
from maskwright.engine.progress import Progress
from maskwright.engine.records import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    MODEL,
    RUNNING,
    RunFolder,
    command,
    labels_note,
    now,
    versions,
)
from maskwright.engine.seeding import derive
from maskwright.engine.stages import run_stages
from maskwright.engine.streams import Source, apart, check_sources, prepare_source, understood_source
from maskwright.errors import MaskwrightError
from maskwright.evaluate.scores import hash_names
from maskwright.models import bundle
from maskwright.models.backbones.build import build_backbone, default_backbone
from maskwright.predict.model import Model

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.contract import Method, StreamNeed
    from maskwright.models.backbones.dense import Backbone


@dataclass(kw_only=True)
class RunRequest:
    """What a run is asked to be. All but the data, the method and the folder have defaults.

    Attributes:
        data: the images, of which masks that may not be read are hidden already.
        method: the class of the method.
        config: its options; its defaults if None.
        out: the run folder; `runs/METHOD-DATA` if None.
        sources: the data sets beside it, by name, as `open_sources` gives them.
        split: name of the split that `data` was chosen by, for the record.
        labeled: name of the list that hid masks, for the record; None where none did.
        classes: number of classes or clusters; None: that of the class table.
        names: class names, above any class table; None: those of the tables.
        backbone: a timm name or one of the short names; `auto` takes the best that can be had.
        weights: a local checkpoint for it; `package`, or `random` for none.
        steps: optimiser steps of the main training stage; None: the method's own number.
        seed: every random draw is a function of it.
        device: `auto`, `cpu` or `cuda`.
        resume: continue the run that lies in `out`.
        reason: why this method, where it was chosen for the user; empty where it was named.
        progress: how work shows itself.
    """

    data: Dataset
    method: type[Method]
    config: Any = None
    out: str | Path | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    split: str | None = None
    labeled: str | Path | None = None
    classes: int | None = None
    names: Sequence[str] | None = None
    backbone: str = "auto"
    weights: str | Path | None = None
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    reason: str = ""
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        if self.config is None:
            self.config = self.method.Config()

    def check(self) -> None:
        """Looks at what can be known before a file is opened.

        Raises:
            MaskwrightError: a number out of its range, labels that the method needs and that are not there, or two
                words on the encoder.
        """
        if not 0 <= self.seed < 2**63:
            raise MaskwrightError(f"--seed {self.seed}", "a whole number from 0 to 2**63 - 1")
        if self.steps is not None and self.steps < 1:
            raise MaskwrightError(f"--steps {self.steps}", "at least 1")
        self._check_labels()
        wanted = self.method.wanted_backbone(self.config)
        if wanted and self.backbone not in ("auto", wanted):
            raise MaskwrightError(f"--backbone {self.backbone} and --set encoder={wanted}", "one of the two")

    def _check_labels(self) -> None:
        method, present = self.method, self.data.labels_present()
        check_sources(method, self.taken, self.sources)
        for need in sorted(method.labels_needed(self.config)):
            if need in present and not present[need]:
                raise MaskwrightError(
                    f"{method.name} needs {need} and {self.data.root} has none",
                    f"at least one image with {need}",
                    f"`maskwright doctor {self.data.root}` says what it found, `maskwright methods` lists what needs "
                    "less",
                )
        if self.names is not None and method.classes_from == "clusters":
            raise MaskwrightError(
                f"--names and {method.name}, whose clusters have no names",
                "a method whose classes are those of labels",
                f"leave --names out; --classes {len(self.names)} makes as many clusters",
            )
        tables = (self.data.classes, *(self.sources[name].data.classes for name in self.labelled))
        if "names" in method.labels_needed(self.config) and self.names is None and not any(tables):
            raise MaskwrightError(
                f"{method.name} needs names of the classes and {self.data.root} has none",
                f"{self.data.root / 'classes.txt'}, or --names",
                "--names LIST_OR_FILE: names with commas between, or a file with one a line",
            )

    @property
    def taken(self) -> dict[str, StreamNeed]:
        """What the method takes beside the run's own data, by name."""
        return self.method.streams_taken(self.config)

    @property
    def labelled(self) -> list[str]:
        """Names of the given data sets beside the run's own whose masks are learned from."""
        return [name for name in self.sources if "masks" in self.taken[name].labels]

    @property
    def folder(self) -> Path:
        """The run folder."""
        if self.out is not None:
            return Path(self.out)
        return file_for(Path("runs"), f"{self.method.name}-{Path(self.data.root).resolve().name}", "")

    @property
    def backbone_name(self) -> str:
        """The backbone's name: what the method's options want, or what was asked for."""
        return self.method.wanted_backbone(self.config) or self.backbone


class Pages(NamedTuple):
    """What makes the pictures and the page of a finished run.

    Attributes:
        previews: called with (run folder, model, images, progress); gives each class's share of the pixels.
        page: called with (run folder, record); writes the page and gives its path.
    """

    previews: Callable[..., Any]
    page: Callable[..., Path]


def open_run(request: RunRequest) -> Context:
    """Begins a run, or opens an earlier one to resume it: checks the request, looks at the files, starts the folder.

    Whoever opens a run releases it: `context.run.release()`.

    Raises:
        MaskwrightError: as `RunRequest.check`, `understand`, `class_table`, `find_backbone` and `RunFolder.start`.
    """
    request.check()
    cls, config, bar = request.method, request.config, request.progress
    RunFolder.check(request.folder, resume=request.resume)
    images, sources, table, why_classes = _data_and_classes(request)
    fabric = make_fabric(request.device, precision="bf16-mixed" if pick_device(request.device) == "cuda" else "32-true")
    bar.quiet = bar.quiet or fabric.global_rank > 0
    unused = cls.backbone_unused(config)
    backbone, why_backbone = find_backbone(
        request.backbone_name, request.weights, bar, request.seed, cls.backbones, unused
    )
    cls.check_backbone(backbone)
    reads = cls.reads_masks(config)
    digest = hash_names(i.name for i in images.items if i.mask) if request.labeled or reads else ""
    needs = cls.labels_needed(config)
    beside = {name: _identity(data, request.taken[name].labels) for name, data in sources.items()}
    own = {*needs, *(("masks",) if reads or cls.judges(config) else ())}
    labels = _identity(images, own, beside)
    record = {
        "status": RUNNING,
        "command": command(),
        "method": {"name": cls.name, "title": cls.title, "paper": cls.venue, "link": cls.link, "family": cls.family},
        "config": flat(config),
        "options": nested(config),
        "seed": request.seed,
        "steps": request.steps,
        "classes_asked": len(table.names),
        "names": None if request.names is None else list(request.names),
        "split": request.split,
        "labeled": str(request.labeled) if request.labeled is not None else None,
        "labeled_hash": digest or None,
        "reading": images.settled_reading.to_json(),
        "versions": versions(),
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "backbone": backbone.provenance.to_json(),
        "backbone_unused": unused,
        "weights_key": backbone.key,
        "data": _data_record(images, labels),
        "sources": {
            name: {
                "split": request.sources[name].split,
                "reading": data.settled_reading.to_json(),
                **_data_record(data, beside[name]),
            }
            for name, data in sources.items()
        },
        **Ledgers.of({TARGET: images, **sources}).record(),
        "started": now(),
    }
    run = RunFolder.start(
        request.folder, record, resume=request.resume, writes=fabric.is_global_zero, labels=labels,
        defaults=flat(configure(cls.Config, {})),
    )  # fmt: skip
    if run.earlier:
        bar.say(run.earlier)
    context = Context(
        data=images,
        table=table,
        seed=request.seed,
        steps=request.steps,
        fabric=fabric,
        run=run,
        cache=FeatureCache(),
        backbone=backbone,
        sources=sources,
        progress=bar,
        notes=list(run.record.get("notes", [])),
    )
    told = [digest and labels_note(images, request.labeled, digest), request.reason and f"Method: {request.reason}."]
    of_sources = [sentence for name, data in sources.items() for sentence in _told(name, data, request)]
    chosen = (f"Backbone: {why_backbone}.", f"Classes: {why_classes}.")
    with recorded(run):
        for sentence in (*images.notices, *of_sources, *told, *chosen):
            if sentence:
                context.note(sentence)
    return context


def run_method(method: type[Method], config: Any, context: Context, pages: Pages | None = None) -> Model:
    """Runs the stages that are not done yet, saves the model, and makes the run's page.

    Args:
        method: the class of the method.
        config: its options.
        context: as `open_run` gave it.
        pages: what makes pictures and page; None: neither is made.

    Returns:
        The trained model. However the run ends, its record says so.

    Raises:
        MaskwrightError: whatever the stages raise.
    """
    with recorded(context.run):
        return _run_to_the_end(method(config, context), context, pages)


@contextlib.contextmanager
def recorded(run: RunFolder) -> Iterator[None]:
    """However the block ends before its end, the run's record says so, and the run is released."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(MaskwrightError):  # on a full disk the first error is the one to tell
            run.save(status=INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)
        run.release()
        raise


def _run_to_the_end(method: Method, context: Context, pages: Pages | None) -> Model:
    run = context.run
    run_stages(method, context)
    segmenter = method.segmenter()
    run.save(provenance=segmenter.provenance.to_json())
    if run.record["provenance"] != run.record["backbone"]:
        context.progress.say(f"weights: {segmenter.provenance.summary()}")
    extra = {
        **segmenter.extra,
        "method": run.record["method"],
        "seed": context.seed,
        "data": run.record["data"]["fingerprint"],
        **trained_sizes(context.data),
        "refine": method.refinement,
        "reading": context.data.settled_reading.to_json(),
    }
    if run.writes:
        bundle.save_bundle(run.path / MODEL, segmenter, extra)
    model = Model(segmenter, extra, device=str(context.device))
    if pages is not None and run.writes:
        shares = pages.previews(run.path, model, context.data, progress=context.progress)
        run.record["classes"] = [
            {"name": n, "color": [int(v) for v in c], "share": float(s)}
            for n, c, s in zip(context.table.names, context.table.colors, shares)
        ]
    done = {"status": FINISHED, "finished": now(), **context.ledgers.record()}
    if pages is not None and run.writes:
        # The report comes first: a run is finished when all that it leaves is there.
        context.progress.say(f"report: {pages.page(run.path, run.record | done)}")
    run.save(**done)
    if run.writes:
        shutil.rmtree(run.path / FEATURES, ignore_errors=True)
    context.progress.say(f"model: {run.path / MODEL}")
    return model


def _data_and_classes(request: RunRequest) -> tuple[Dataset, dict[str, Dataset], ClassTable, str]:
    """The images that can be read, their values understood, those of the sources likewise, and the class table."""
    cls, bar = request.method, request.progress
    named = cls.classes_from == "labels"
    images = _readable(request)
    prepared = {n: prepare_source(n, source, request.taken[n], bar) for n, source in request.sources.items()}
    sources = apart(images, prepared)
    labelled = {name: sources[name] for name in request.labelled}
    known, whose = images.classes, "of the class table"
    if named:
        known, whose = known_table(images, labelled, request.names)
        images = _with_table(images, known)
        sources |= {name: _with_table(data, known) for name, data in labelled.items()}
    reads = cls.reads_masks(request.config)
    with bar.counter("checking") as count:
        images = understand(images, masks=reads, progress=count)
    sources = {name: understood_source(name, data, request.taken[name]) for name, data in sources.items()}
    counted = {name: sources[name] for name in labelled}
    if reads or not labelled:
        counted[TARGET] = images
    table, why = class_table(known, whose, named=named, classes=request.classes, counted=counted)
    return images, sources, table, why


def _with_table(data: Dataset, table: ClassTable | None) -> Dataset:
    """The data set with the run's class names, which its masks are then checked against."""
    if table is None or (data.classes is not None and data.classes.names == table.names):
        return data
    return data.with_classes(table)


def _identity(
    data: Dataset, kinds: Collection[str], sources: Mapping[str, LabelIdentity] | None = None
) -> LabelIdentity:
    return label_identity(
        data, masks="masks" in kinds, tags="tags" in kinds, captions="captions" in kinds, sources=sources
    )


def _data_record(data: Dataset, labels: LabelIdentity) -> dict[str, Any]:
    """What a run's record tells of a data set."""
    return {
        "root": str(data.root),
        "images": len(data),
        "fingerprint": data.fingerprint(),
        "labels_present": data.labels_present(),
        "labels": labels.summary(),
        "skipped": [list(s) for s in data.skipped],
    }


def _told(name: str, data: Dataset, request: RunRequest) -> list[str]:
    """What is said of a data set beside the run's own."""
    split, kinds = request.sources[name].split, sorted(request.taken[name].labels)
    where = f"{data.root}, split {split}" if split else str(data.root)
    read = f"their {' and '.join(kinds)} may be read" if kinds else "no label of theirs may be read"
    head = name.capitalize()
    return [f"{head}: {len(data)} images of {where}; {read}.", *(f"{head}: {sentence}" for sentence in data.notices)]


def _readable(request: RunRequest) -> Dataset:
    """The images that can be read."""
    images, bar = request.data, request.progress
    with bar.counter("reading") as count:
        images = images.readable(progress=count)
    for name, why in images.skipped:
        bar.say(f"skipped {name}: {why}")
    if not len(images):
        raise MaskwrightError(
            f"none of the images in {images.root} can be read", "at least one", "run maskwright doctor"
        )
    return images


def find_backbone(
    name: str, weights: str | Path | None, bar: Progress, seed: int, kind: str = "any", unused: str = ""
) -> tuple[Backbone, str]:
    """The network that sees, and why it is this one.

    Args:
        name: a timm name, a short name, or `auto`.
        weights: a local checkpoint; `package`, or `random`; None takes what can be had.
        bar: where it is said.
        seed: of random weights.
        kind: `any`, or `vit` where only a vision transformer will do.
        unused: why its weights are left aside, which is said instead; empty where they are not.

    Raises:
        MaskwrightError: no such network, or no weights for it.
    """
    torch.manual_seed(derive(seed, "backbone"))  # for weights="random"
    if name == "auto" and weights is None:
        backbone, why = default_backbone(kind=kind)
    elif name == "auto":
        usual = "dinov2_small" if kind == "vit" else "tf_efficientnet_lite0"
        backbone = build_backbone(usual, weights=str(weights))
        why = f"{backbone.name} with the weights given"
    else:
        backbone = build_backbone(name, weights=None if weights is None else str(weights))
        why = f"{backbone.name}, as asked"
    if unused:
        return backbone, unused
    bar.say(f"backbone: {why}; labels its weights saw: {backbone.provenance.labels_seen}")
    return backbone, why


def trained_sizes(images: Dataset, most: int = 500) -> dict[str, list[int]]:
    """Sizes of the images trained on, which say at what scale larger ones are to be seen (`predict.tiles`): the median
    height and width, and the (H, W) that no more than one in twenty exceeds in area.

    Args:
        images: of the run.
        most: about so many of them are looked at.
    """
    sizes = [images.size(i) for i in range(0, len(images), max(1, len(images) // most))]
    by_area = sorted(sizes, key=lambda s: s[0] * s[1])
    return {
        "image_size": [sorted(s[k] for s in sizes)[len(sizes) // 2] for k in (0, 1)],
        "largest_size": list(by_area[-(-len(sizes) * 19 // 20) - 1]),
    }

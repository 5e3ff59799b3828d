"""`open_run`: from a request to the context that a method is given, and the run's record."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskwright.data.examining.understanding import understand
from maskwright.data.masking.classes import ClassTable
from maskwright.data.trust.identity import LabelIdentity, label_identity
from maskwright.data.trust.photographs import IMAGES, write_photographs
from maskwright.engine.cache import FeatureCache
from maskwright.engine.classes import (
    by_number,
    class_table,
    crossed,
    in_run_classes,
    known_table,
    object_table,
    told_by_number,
)
from maskwright.engine.config import configure, flat, nested
from maskwright.engine.context import Context
from maskwright.engine.devices import make_fabric
from maskwright.engine.ending import recorded
from maskwright.engine.inputs import open_inputs
from maskwright.engine.ledgers import TARGET, Ledgers
from maskwright.engine.length import AS_IT_STANDS, Length
from maskwright.engine.needs import check_backbone
from maskwright.engine.progress import Progress
from maskwright.engine.records import (
    RUNNING,
    RunFolder,
    command,
    labels_note,
    now,
    versions,
)
from maskwright.engine.seeding import derive
from maskwright.engine.start import WEIGHTS, Start, open_start, start_backbone
from maskwright.engine.streams import apart, prepare_source, understood_source
from maskwright.engine.timing import Timing
from maskwright.errors import MaskwrightError
from maskwright.evaluate.scores import hash_names
from maskwright.models.backbones.build import architecture_of, build_backbone, default_backbone

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.models.backbones.dense import Backbone

from maskwright.engine.request import RunRequest


def open_run(request: RunRequest) -> Context:
    """Begins a run, or opens an earlier one to resume it: checks the request, looks at the files, starts the folder.

    Whoever opens a run releases it: `context.run.release()`.

    Raises:
        MaskwrightError: more processes than photographs, and as `RunRequest.check`, `understand`, `class_table`,
            `open_inputs`, `find_backbone` and `RunFolder.start`.
    """
    began = time.monotonic()
    request.check()
    cls, config, bar = request.method, request.config, request.progress
    RunFolder.check(request.folder, resume=request.resume)
    images, sources, table, why_classes = _data_and_classes(request)
    cls.check_classes(config, table.names)
    fabric = make_fabric(request.device)
    check_processes(fabric.world_size, len(images))
    bar.quiet, bar.heard = bar.quiet or fabric.global_rank > 0, bar.heard and fabric.global_rank == 0
    terms = cls.terms(config, len(images))
    inputs = open_inputs(terms.inputs, request.inputs, request.seed)
    start = open_start(request.weights, terms.classes_from != "clusters", request.seed)
    if start is not None:
        inputs = {**inputs, WEIGHTS: start.input}
    backbone, why_backbone = find_backbone(
        request.backbone_name, request.weights, bar, request.seed, cls.backbones, terms.backbone_unused, start, cls.name
    )
    check_backbone(cls, backbone)
    digest = hash_names(i.name for i in images.items if i.mask) if request.labeled or terms.reads_masks else ""
    beside = {name: _identity(data, terms.taken[name].labels) for name, data in sources.items()}
    own = {*terms.needs, *(("masks",) if terms.reads_masks or terms.judges else ())}
    labels = _identity(images, own, beside)
    record = {
        "status": RUNNING,
        "command": command(),
        "method": {"name": cls.name, "title": cls.title, "paper": cls.venue, "link": cls.link, "family": cls.family},
        "config": flat(config),
        "options": nested(config),
        "seed": request.seed,
        "steps": request.steps,
        "minutes": None if request.minutes is None else {"asked": request.minutes},
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
        "backbone_unused": terms.backbone_unused,
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
        "inputs": {name: one.record() for name, one in inputs.items()},
        **Ledgers.of({TARGET: images, **sources}).record(),
        "started": now(),
    }
    run = RunFolder.start(
        request.folder, record, resume=request.resume, writes=fabric.is_global_zero, labels=labels,
        defaults=flat(configure(cls.Config, {})),
        length=Length(terms.steps, terms.fixed_length),
    )  # fmt: skip
    if run.earlier:
        bar.say(run.earlier)
    context = Context(
        data=images,
        table=table,
        seed=request.seed,
        steps=run.record["steps"],
        fabric=fabric,
        run=run,
        cache=FeatureCache(),
        backbone=backbone,
        sources=sources,
        inputs=inputs,
        start=start,
        progress=bar,
        notes=[note for note in run.record.get("notes", []) if not note.startswith(AS_IT_STANDS)],
        timing=Timing(
            minutes=request.minutes if run.record["steps"] is None else None,
            most_steps=request.most_steps,
            as_it_stands=request.as_it_stands,
            began=began,
            config=config,
        ),
    )
    if request.minutes is not None and run.record["steps"] is not None:
        bar.say(f"--minutes: this run has {run.record['steps']} steps since its start; --steps lengthens it")
    steps_told = ""
    if request.steps is not None and not terms.steps:
        steps_told = f"--steps {request.steps}: not used, {cls.name} trains nothing step by step with these options."
    digest_told = digest and labels_note(images, request.labeled, digest)
    of_sources = [sentence for name, data in sources.items() for sentence in _told(name, data, request)]
    with recorded(run):
        if run.writes and not (run.path / IMAGES).exists():
            write_photographs(run.path, {TARGET: images, **sources})
        for sentence in (*images.notices, *of_sources, digest_told, steps_told):
            if sentence:
                context.note(sentence)
        if request.reason:
            context.note(f"Method: {request.reason}.", said=True)  # before the images were read
        context.note(f"Backbone: {why_backbone}.", said=not terms.backbone_unused)  # by find_backbone, with the labels
        for sentence in (f"Classes: {why_classes}.", *(one.says() for one in inputs.values())):
            context.note(sentence)
    return context


def check_processes(processes: int, images: int) -> None:
    """Raises `MaskwrightError` where some process would have no photograph of its own: stages share these out."""
    if processes > images:
        raise MaskwrightError(
            f"{processes} processes for {images} photograph(s)", "at least one photograph for each process",
            f"start {images} or fewer (torchrun --nproc-per-node {images}), or give more photographs",
        )  # fmt: skip


def _data_and_classes(request: RunRequest) -> tuple[Dataset, dict[str, Dataset], ClassTable, str]:
    """The images that can be read, their values understood, those of the sources likewise, and the class table."""
    terms, bar = request.terms, request.progress
    kind = terms.classes_from
    named = kind == "labels"
    images = _readable(request)
    prepared = {n: prepare_source(n, source, terms.taken[n], bar) for n, source in request.sources.items()}
    sources = apart(images, prepared)
    labelled = {name: sources[name] for name in request.labelled}
    known, whose = images.classes, "of the class table"
    own: set[str] = set()  # sources that keep their class table until their values are understood by it
    if named:
        known, whose = known_table(images, labelled, request.names)
        tables = [table for table in (images.classes, *(data.classes for data in labelled.values())) if table]
        if known is not None and (request.names is None or crossed(tables)):
            own = {n for n, data in labelled.items() if data.classes and data.classes.names != known.names}
        if known is not None:
            if images.classes is not None and crossed((images.classes, known)):
                images = images.with_notices(told_by_number(images.classes, known))
            images = by_number(images, known)
            for name in labelled.keys() - own:
                data, told = labelled[name], told_by_number(labelled[name].classes, known)
                sources[name] = by_number(data.with_notices(told) if told else data, known)
    with bar.counter("checking") as count:
        images = understand(images, masks=terms.reads_masks, progress=count)
    sources = {name: understood_source(name, data, terms.taken[name]) for name, data in sources.items()}
    if known is not None:
        sources |= {name: in_run_classes(sources[name], known) for name in own}
    if kind == "objects":
        table, why = object_table(images.classes, names=request.names, classes=request.classes)
        return images, sources, table, why
    counted = {name: sources[name] for name in labelled}
    if terms.reads_masks or not labelled:
        counted[TARGET] = images
    table, why = class_table(known, whose, named=named, classes=request.classes, counted=counted, root=images.root)
    return images, sources, table, why


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
    split, kinds = request.sources[name].split, sorted(request.terms.taken[name].labels)
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
    name: str,
    weights: str | Path | None,
    bar: Progress,
    seed: int,
    kind: str = "any",
    unused: str = "",
    start: Start | None = None,
    method: str = "",
) -> tuple[Backbone, str]:
    """The network that sees, and why it is this one.

    Args:
        name: a timm name, a short name, `clip:NAME`, `groupvit:NAME`, or `auto`.
        weights: a local checkpoint; `package`, or `random`; None takes what can be had.
        bar: where it is said.
        seed: of random weights.
        kind: `any`, `vit` where only a vision transformer will do, `joint` where only a CLIP will, or `groups` where
            only a GroupViT will.
        unused: why its weights are left aside, which is said instead; empty where they are not.
        start: the model that `weights` name, where they name one.
        method: name of the run's method.

    Raises:
        MaskwrightError: no such network, or no weights for it; another one than the model stands on.
    """
    torch.manual_seed(derive(seed, "backbone"))  # for weights="random"
    if start is not None and not (unused and start.backbone is None):
        architecture = name if name == "auto" else architecture_of(name)
        backbone, why = start_backbone(start, name, architecture, kind == "vit", method)
    elif name == "auto" and (weights is None or start is not None):
        backbone, why = default_backbone(kind=kind)
    elif name == "auto":
        usual = {"vit": "dinov2_small", "joint": "clip", "groups": "groupvit"}.get(kind, "tf_efficientnet_lite0")
        backbone = build_backbone(usual, weights=str(weights))
        why = f"{backbone.name} with the weights given"
    else:
        backbone = build_backbone(name, weights=None if weights is None else str(weights))
        why = f"{backbone.name}, as asked"
    if unused:
        return backbone, unused
    seen = backbone.provenance.labels_seen
    bar.say(f"Backbone: {why}." if why.endswith(seen) else f"Backbone: {why}; labels its weights saw: {seen}.")
    return backbone, why

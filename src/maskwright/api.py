"""The Python surface: `open_folder`, `train`, `load`, `suggest`, `evaluate`; the command line adds nothing to it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.data.masking.classes import ClassTable
    from maskwright.engine.context import Context
    from maskwright.engine.progress import Progress
    from maskwright.engine.records import RunFolder
    from maskwright.evaluate.scores import Scores
    from maskwright.models.backbones.build import Backbone
    from maskwright.models.segmenter import Segmenter
    from maskwright.predict.model import Model
    from maskwright.predict.suggest import Suggestions

DEFAULT_CLUSTERS = 12
"""Clusters where neither `--classes` nor a class table says how many: a few more than most scenes have things."""


def open_folder(
    path: str | Path,
    *,
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
) -> Dataset:
    """Opens a dataset folder, or an official benchmark layout written as `layout:path` (`voc:VOCdevkit/VOC2012`).

    Args:
        path: the folder.
        labels: what the values of its masks mean, a name of `maskwright.data.examining.reading.LABELS`; None: auto.
        void: the value, or values, of masks that mean no class, or "none"; None: 255 (16 bits: 65535).
        range: (low, high), the stored values of images that become black and white; None: by type, or measured.

    Raises:
        MaskwrightError: when there is no such folder, no image in it, no such layout, or an option is out of range.
    """
    from maskwright.data.examining.reading import Reading
    from maskwright.data.layouts import open_data

    return open_data(str(path), Reading.parse(labels, void, range))


def load(path: str | Path, device: str = "cpu") -> Model:
    """Loads a saved model.

    Args:
        path: `model.safetensors` of a run, or the run's folder.
        device: where it will run.

    Raises:
        MaskwrightError: when the file is missing, damaged or not a bundle of ours.
    """
    from maskwright.engine.records import MODEL, RunFolder
    from maskwright.predict.model import load as load_model

    path = Path(path)
    if path.is_dir() and not (path / MODEL).exists() and (standing := RunFolder.standing(path)):
        raise MaskwrightError(
            f"{path} holds a run without a model: it {standing}",
            "a run that is finished",
            "repeat its command, which stands in its run.json, with --resume",
        )
    return load_model(path / MODEL if path.is_dir() else path, device=device)


def evaluate(
    predictions: str | Path,
    truth: str | Path | Dataset,
    protocol: str = "direct",
    split: str | None = None,
    *,
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
    predicted_labels: str | None = None,
    **options: Any,
) -> Scores:
    """Judges a folder of index masks.

    Args:
        predictions: folder of index PNG named as the images.
        truth: dataset folder, or an opened dataset, or a folder of masks.
        protocol: a name of `maskwright.evaluate.protocols.PROTOCOLS`.
        split: only the images of this split.
        labels, void, range: what the values of the truth mean, as for `open_folder`.
        predicted_labels: what the values of the predictions mean.
        options: further options of the protocol.

    Raises:
        MaskwrightError: when predictions are missing or do not fit the truth.
    """
    from maskwright.data.examining.reading import Reading
    from maskwright.evaluate.protocols import evaluate_folder

    return evaluate_folder(
        predictions, truth, protocol=protocol, split=split, reading=Reading.parse(labels, void, range),
        predicted=Reading.parse(predicted_labels), **options,
    )  # fmt: skip


def suggest(
    model: str | Path | Model,
    data: str | Path | Dataset,
    count: int,
    *,
    by: str = "mixed",
    split: str | None = None,
    labeled: str | Path | None = None,
    regions: int = 0,
    region_size: int = 0,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Suggestions:
    """Says which of the images without a mask to label next, and which regions of them.

    Args:
        model: a run folder, `model.safetensors`, or a loaded model. A run folder may hold a second network (a teacher),
            which `disagreement` needs and `mixed` uses.
        data: dataset folder, `layout:path`, or an opened dataset.
        count: images to suggest.
        by: mixed, entropy, margin, confidence, disagreement, coreset or random.
        split: only these images.
        labeled: name of a split, or a file: these images have masks already, also those outside `split`; the others
            have none.
        regions: regions to suggest in each image.
        region_size: their side, pixels; a sixth of the image's shorter side if 0.
        out: folder for suggestions.csv, names.txt, regions.csv and sheet.png.
        seed: of `random`.
        device: `auto`, `cpu` or `cuda`; a loaded model stays where it is.
        labels, void, range: what the values of the files mean, as for `open_folder`.
        progress: how work shows itself.
        options: further options of `predict.suggest.suggest`.

    Raises:
        MaskwrightError: on bad input, or where a strategy needs two networks and there is one.
    """
    from maskwright.data.examining.understanding import understand
    from maskwright.engine.devices import pick_device
    from maskwright.predict.model import Model
    from maskwright.predict.suggest import suggest as find

    loaded = model if isinstance(model, Model) else load(model, device=pick_device(device))
    other = None
    if not isinstance(model, Model) and by in ("disagreement", "mixed"):
        other = other_network(loaded, Path(model))
        if other is None and by == "disagreement":
            raise MaskwrightError(
                f"{model} holds one network, which agrees with itself", "a run that trained a student and its teacher",
                "give a run folder of mean_teacher, or of another method with a teacher, or choose --by entropy",
            )  # fmt: skip
    images = loaded.read_as_trained(_opened(data, labels, void, range))
    everything = images if labeled is None else images.labeled(labeled)
    images = everything if split is None else everything.split(split)
    if labeled is not None:  # those labelled outside the split are known all the same
        rest = (i for i, name in enumerate(everything.names) if everything.has_mask(i) and name not in images)
        images = images.with_items([*images.items, *everything.subset(rest).items])
    images = understand(images, masks=False)
    if other is not None:
        from maskwright.recipes.training.norm_statistics import retake_as_recorded

        retake_as_recorded(other.to(loaded.device), Path(model), images, loaded.device)  # type: ignore[arg-type]
    return find(
        loaded, images, count, by=by, regions=regions, region_size=region_size, out=out, other=other, seed=seed,
        progress=progress, **options,
    )  # fmt: skip


def other_network(model: Model, run: Path) -> Segmenter | None:
    """The network beside the kept one that the newest training stage with one left in its checkpoint, if any."""
    from maskwright.engine.checkpoint import load_checkpoint
    from maskwright.engine.loop import CHECKPOINT
    from maskwright.predict.suggest import second_network

    found = list(run.glob(f"*/{CHECKPOINT}")) if run.is_dir() else []
    for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True):
        other = second_network(model.segmenter, (load_checkpoint(path) or {}).get("parts", {}))
        if other is not None:
            return other
    return None


def probe(
    encoder: str | Path,
    data: str | Path | Dataset,
    protocol: str = "distance",
    *,
    bank: str = "train",
    split: str = "test",
    weights: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    seed: int = 0,
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
) -> Scores:
    """Judges an encoder by the two protocols of the LUSS benchmark that use labels.

    Args:
        encoder: a run's folder, a `model.safetensors`, or the name of a backbone; of a model the encoder is taken.
        data: dataset folder or `layout:path`, with classes and masks.
        protocol: `distance` (matching to a labelled bank) or `semi` (fine-tuning on the labelled share).
        bank: split, or list file, of the labelled images that it learns from (ImageNet-S: train-semi).
        split: of the images to judge.
        weights: of a backbone that is named, as in `train`.
        out: for `semi`, the folder of the fine-tuning's run.
        device: `auto`, `cpu` or `cuda`.
        settings: for `semi`, options of the method `supervised`.
        steps: for `semi`, optimiser steps.
        seed: for `semi`.
        labels, void, range: what the values of the files mean, as for `open_folder`.

    Raises:
        MaskwrightError: on bad input.
    """
    from maskwright.data.examining.understanding import understand
    from maskwright.recipes.probing.luss_probe import probe_encoder

    images = _opened(data, labels, void, range)
    used = dict.fromkeys([*images.split(bank).names, *images.split(split).names])
    # Only masks that are learned from or judged are looked at.
    images = understand(images.subset(images.index(name) for name in used), masks=True)
    scores = probe_encoder(
        encoder, images, protocol, bank=bank, split=split, weights=weights, out=out,
        device=device, settings=settings, steps=steps, seed=seed, train=train,
    )  # fmt: skip
    return replace(scores, notes=[*dict.fromkeys((*images.notices, *scores.notes))])


def train(
    data: str | Path | Dataset,
    method: str = "auto",
    *,
    out: str | Path | None = None,
    source: str | Path | Dataset | None = None,
    split: str | None = None,
    labeled: str | Path | None = None,
    classes: int | None = None,
    backbone: str = "auto",
    weights: str | Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    report: bool = True,
    progress: Progress | None = None,
    **more: Any,
) -> Model:
    """Trains a method on a folder and leaves a run folder with the model, its masks' previews and a report.

    Args:
        data: dataset folder, `layout:path`, or an opened dataset.
        method: a name of `METHODS`, or `auto`.
        out: the run folder; by default `runs/METHOD-DATA`.
        source: a fully labelled folder of another domain.
        split: only these images.
        labeled: name of a split, or a file: only these images' masks may be read.
        classes: number of classes or clusters; by default that of the class table.
        backbone: a timm name or one of the short names; `auto` takes the best that can be had.
        weights: a local checkpoint for it; `package` for those of the `offline` extra, `random` for none.
        steps: optimiser steps of the main training stage.
        seed: every random draw is a function of it.
        device: `auto`, `cpu` or `cuda`.
        labels, void, range: what the values of the files mean, as for `open_folder`.
        settings: options of the method, as `--set key=value`.
        resume: continue the run that lies in `out`.
        report: write previews and `report.html`.
        progress: how work shows itself.
        more: further settings, as keywords.

    Returns:
        The trained model.

    Raises:
        MaskwrightError: on bad input.
    """
    from maskwright.engine.config import configure, flat
    from maskwright.engine.progress import Progress
    from maskwright.methods import choose_method, find_method

    bar = progress or Progress(quiet=int(os.environ.get("RANK", "0")) > 0)
    if not 0 <= seed < 2**63:
        raise MaskwrightError(f"--seed {seed}", "a whole number from 0 to 2**63 - 1")
    images = _opened(data, labels, void, range)
    if split is not None:
        images = images.split(split)
    if labeled is not None:
        images = images.labeled(labeled)
    reason = ""
    if method == "auto":
        method, reason = choose_method(images.labels_present(), len(images), source is not None)
        bar.say(f"method: {reason}")
    cls = find_method(method)
    config = configure(cls.Config, {**(settings or {}), **more})
    _needs(cls, config, images, source)
    if encoder := flat(config).get("encoder"):
        if backbone not in ("auto", encoder):
            raise MaskwrightError(f"--backbone {backbone} and --set encoder={encoder}", "one of the two")
        backbone = encoder

    context = _context(
        images, cls.name, config, bar, out=out, source=source, split=split, labeled=labeled, classes=classes,
        backbone=backbone, weights=weights, steps=steps, seed=seed, device=device, resume=resume, reason=reason,
    )  # fmt: skip
    try:
        return _run(cls, config, context, report)
    finally:
        context.run.release()


def _opened(data: str | Path | Dataset, labels: Any = None, void: Any = None, range: Any = None) -> Dataset:
    """The data set of a path, or one that was opened before, with what is now said of its values, if anything is."""
    from maskwright.data.examining.reading import Reading

    if isinstance(data, str | Path):
        return open_folder(data, labels=labels, void=void, range=range)
    said = Reading.parse(labels, void, range)
    return data if said == Reading() else data.with_reading(said)


def _understood_source(source: str | Path | Dataset) -> Dataset:
    """The source folder, its values understood; its own options are those of the doctor, which mends a copy."""
    from maskwright.data.examining.understanding import understand

    domain = _opened(source)
    try:
        return understand(domain, masks=True)
    except MaskwrightError as error:
        where = shlex.quote(str(domain.root))
        repair = f"{error.repair}: as options of maskwright doctor {where} --fix OUT, and give --source OUT"
        raise MaskwrightError(f"source: {error.found}", error.expected, repair) from error


def _labels_needed(cls: Any, config: Any) -> frozenset[str]:
    """The kinds of labels that a method needs under its options."""
    return frozenset(getattr(config, "labels_needed", cls.needs))


def _needs(cls: Any, config: Any, images: Dataset, source: Any) -> None:
    present = images.labels_present()
    for need in sorted(_labels_needed(cls, config)):
        if need == "source" and source is None:
            raise MaskwrightError(f"{cls.name} needs a labelled source folder", "--source DATA")
        if need in present and not present[need]:
            raise MaskwrightError(
                f"{cls.name} needs {need} and {images.root} has none", f"at least one image with {need}",
                f"`maskwright doctor {images.root}` says what it found, `maskwright methods` lists what needs less",
            )  # fmt: skip


def _reads_masks(cls: Any, config: Any) -> bool:
    """Whether a run learns from masks or, as options that begin with `oracle_` do, peeks at them."""
    from maskwright.engine.config import options

    oracles = (o for o in options(type(config)) if o.path[-1].startswith("oracle_") or o.flat.startswith("oracle_"))
    peeks = any(o.of(config) for o in oracles)
    return peeks or "masks" in _labels_needed(cls, config)


def _looks_at_masks(cls: Any, config: Any) -> bool:
    """Whether anything in a run's folder depends on masks: what it learns from, or figures that it writes beside."""
    from maskwright.engine.config import flat

    judges = any(flat(config).get(name) for name in ("linear_probe", "threshold_curve"))
    return judges or _reads_masks(cls, config)


def _backbone_unused(cls: Any, config: Any) -> str:
    """Why a run leaves its backbone's weights aside, as far as its options say; empty where it does not."""
    from maskwright.models.networks.build import brings_encoder
    from maskwright.recipes.training.method import NetworkMethod

    if not issubclass(cls, NetworkMethod):
        return ""
    if brings_encoder(config.network.name):
        return f"not used, because network {config.network.name} has an encoder of its own"
    weights = config.network.weights
    return f"its weights are not used, because network_weights={weights} replaces them" if weights else ""


def _class_table(images: Dataset, classes: int | None, named: bool) -> tuple[ClassTable, str]:
    from maskwright.data.examining.understanding import highest_id
    from maskwright.data.masking.classes import ClassTable

    if classes is not None and classes < 1:
        raise MaskwrightError(f"--classes {classes}", "at least 1")
    known = images.classes
    if known is not None and classes in (None, len(known.names)):
        if named:
            return known, f"the {len(known.names)} of the class table"
        count = len(known.names)
        return ClassTable.numbered(count), f"{count} clusters without names, as many as the class table has classes"
    if classes is not None and named and known is not None:
        raise MaskwrightError(
            f"--classes {classes} and a class table of {len(known.names)}", "the same number", "leave --classes out"
        )
    if classes is not None:
        if named and images.checked and (top := highest_id(images, note=False)) >= classes:
            raise MaskwrightError(
                f"--classes {classes} and masks with ids up to {top}", "a class for each id",
                f"add --classes {top + 1}, or --void if ids from {classes} on mean no class",
            )  # fmt: skip
        return ClassTable.numbered(classes), f"{classes} {'classes' if named else 'clusters'}, as asked"
    if named and images.labels_present()["masks"]:
        count = highest_id(images) + 1
        return ClassTable.numbered(count), f"{count}, up to the highest id in the masks that may be read"
    return (
        ClassTable.numbered(DEFAULT_CLUSTERS),
        f"{DEFAULT_CLUSTERS} clusters, the default where neither --classes nor a class table says how many",
    )


def _backbone(
    name: str, weights: str | Path | None, bar: Progress, seed: int, kind: str = "any", unused: str = ""
) -> tuple[Backbone, str]:
    import torch

    from maskwright.engine.seeding import derive
    from maskwright.models.backbones.build import build_backbone, default_backbone

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


def _context(
    images: Dataset, method: str, config: Any, bar: Progress, *, out: Any, source: Any, split: Any, labeled: Any,
    classes: Any, backbone: str, weights: Any, steps: int | None, seed: int, device: str, resume: bool, reason: str,
) -> Context:  # fmt: skip
    from maskwright.data.examining.understanding import understand
    from maskwright.data.trust.files import file_for
    from maskwright.data.trust.identity import label_identity
    from maskwright.engine.cache import FeatureCache
    from maskwright.engine.config import configure, flat, nested
    from maskwright.engine.context import Context
    from maskwright.engine.devices import make_fabric, pick_device
    from maskwright.engine.records import RUNNING, RunFolder, command, labels_note, now, versions
    from maskwright.evaluate.scores import hash_names
    from maskwright.methods import METHODS

    if steps is not None and steps < 1:
        raise MaskwrightError(f"--steps {steps}", "at least 1")
    where = Path(images.root).resolve().name
    folder = Path(out) if out is not None else file_for(Path("runs"), f"{method}-{where}", "")
    RunFolder.check(folder, resume=resume)
    with bar.counter("reading") as count:
        images = images.readable(progress=count)
    for name, why in images.skipped:
        bar.say(f"skipped {name}: {why}")
    if not len(images):
        raise MaskwrightError(
            f"none of the images in {images.root} can be read", "at least one", "run maskwright doctor"
        )
    cls = METHODS[method]
    with bar.counter("checking") as count:
        images = understand(images, masks=_reads_masks(cls, config), progress=count)
    table, why_classes = _class_table(images, classes, named=cls.family != "unsupervised")
    fabric = make_fabric(device, precision="bf16-mixed" if pick_device(device) == "cuda" else "32-true")
    bar.quiet = bar.quiet or fabric.global_rank > 0
    domain = None if source is None else _understood_source(source)
    unused = _backbone_unused(cls, config)
    network, why_backbone = _backbone(backbone, weights, bar, seed, cls.backbones, unused)
    cls.check_backbone(network)
    digest = hash_names(i.name for i in images.items if i.mask) if labeled or _reads_masks(cls, config) else ""
    needs = _labels_needed(cls, config)
    labels = label_identity(
        images, masks=_looks_at_masks(cls, config), tags="tags" in needs, captions="captions" in needs, source=domain
    )
    record = {
        "status": RUNNING,
        "command": command(),
        "method": {"name": cls.name, "title": cls.title, "paper": cls.venue, "link": cls.link, "family": cls.family},
        "config": flat(config),
        "options": nested(config),
        "seed": seed,
        "steps": steps,
        "classes_asked": len(table.names),
        "split": split,
        "labeled": str(labeled) if labeled is not None else None,
        "labeled_hash": digest or None,
        "source": None if domain is None else domain.fingerprint(),
        "reading": images.settled_reading.to_json(),
        "versions": versions(),
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "backbone": network.provenance.to_json(),
        "backbone_unused": unused,
        "weights_key": network.key,
        "data": {
            "root": str(images.root),
            "images": len(images),
            "fingerprint": images.fingerprint(),
            "labels_present": images.labels_present(),
            "labels": labels.summary(),
            "skipped": [list(s) for s in images.skipped],
        },
        "labels_read": images.ledger.counts(),
        "started": now(),
    }
    run = RunFolder.start(
        folder, record, resume=resume, writes=fabric.is_global_zero, labels=labels,
        defaults=flat(configure(cls.Config, {})),
    )  # fmt: skip
    if run.earlier:
        bar.say(run.earlier)
    context = Context(
        data=images, table=table, seed=seed, steps=steps, fabric=fabric, run=run, cache=FeatureCache(),
        backbone=network, source=domain, progress=bar, notes=list(run.record.get("notes", [])),
    )  # fmt: skip
    told = [digest and labels_note(images, labeled, digest), reason and f"Method: {reason}."]
    of_source = [f"Source: {sentence}" for sentence in (domain.notices if domain is not None else ())]
    with _recorded(run):
        for sentence in (*images.notices, *of_source, *told, f"Backbone: {why_backbone}.", f"Classes: {why_classes}."):
            if sentence:
                context.note(sentence)
    return context


def _trained_sizes(images: Dataset, most: int = 500) -> dict[str, list[int]]:
    """Sizes of the images trained on, which say at what scale larger ones are to be seen (`predict.tiles`): the median
    height and width, and the (H, W) that no more than one in twenty exceeds in area."""
    sizes = [images.size(i) for i in range(0, len(images), max(1, len(images) // most))]
    by_area = sorted(sizes, key=lambda s: s[0] * s[1])
    return {
        "image_size": [sorted(s[k] for s in sizes)[len(sizes) // 2] for k in (0, 1)],
        "largest_size": list(by_area[-(-len(sizes) * 19 // 20) - 1]),
    }


@contextlib.contextmanager
def _recorded(run: RunFolder) -> Iterator[None]:
    """However the block ends before its end, the run's record says so."""
    from maskwright.engine.records import FAILED, INTERRUPTED

    try:
        yield
    except BaseException as error:
        with contextlib.suppress(MaskwrightError):  # on a full disk the first error is the one to tell
            run.save(status=INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)
        run.release()
        raise


def _run(cls: Any, config: Any, context: Context, report: bool) -> Model:
    """Stages, model and report."""
    with _recorded(context.run):
        return _run_to_the_end(cls(config, context), context, report)


def _run_to_the_end(method: Any, context: Context, report: bool) -> Model:
    from maskwright.engine.context import FEATURES
    from maskwright.engine.records import FINISHED, MODEL, now
    from maskwright.engine.stages import run_stages
    from maskwright.models.bundle import save_bundle
    from maskwright.predict.model import Model

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
        **_trained_sizes(context.data),
        "refine": method.refinement,
        "reading": context.data.settled_reading.to_json(),
    }
    if run.writes:
        save_bundle(run.path / MODEL, segmenter, extra)
    model = Model(segmenter, extra, device=str(context.device))
    if report and run.writes:
        from maskwright.app.pictures import write_previews
        from maskwright.app.report import write_report

        shares = write_previews(run.path, model, context.data, progress=context.progress)
        run.record["classes"] = [
            {"name": n, "color": [int(v) for v in c], "share": float(s)}
            for n, c, s in zip(segmenter.classes.names, segmenter.classes.colors, shares)
        ]
    done = {"status": FINISHED, "finished": now(), "labels_read": context.data.ledger.counts()}
    if report and run.writes:
        # The report comes first: a run is finished when all that it leaves is there.
        context.progress.say(f"report: {write_report(run.path, run.record | done)}")
    run.save(**done)
    if run.writes:
        shutil.rmtree(run.path / FEATURES, ignore_errors=True)
    context.progress.say(f"model: {run.path / MODEL}")
    return model

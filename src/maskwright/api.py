"""The Python surface: `open_folder`, `train`, `load`, `suggest`, `evaluate`; the command line adds nothing to it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.progress import Progress
    from maskwright.engine.records import RunFolder
    from maskwright.engine.run import Pages
    from maskwright.engine.streams import Place
    from maskwright.evaluate.scores import Scores
    from maskwright.models.segmenter import Segmenter
    from maskwright.predict.model import Model
    from maskwright.predict.suggest import Suggestions


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
    source: Place | Mapping[str, Place] | Iterable[str] | None = None,
    split: str | None = None,
    labeled: str | Path | None = None,
    classes: int | None = None,
    names: str | Path | Iterable[str] | None = None,
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
        source: data beside it: `"[NAME=]DATA[@SPLIT]"`, a list of such texts, an opened dataset, a pair (data, split),
            or a table of these by name. The one without a name is called `source` and is fully labelled; which others
            a method takes, and whether they need labels, is what the method says.
        split: only these images.
        labeled: name of a split, or a file: only these images' masks may be read.
        classes: number of classes or clusters; by default that of the class table.
        names: class names, above those of `classes.txt`: with commas between, a file with one a line, or a sequence.
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
    from maskwright.data.masking.classes import given_names
    from maskwright.engine.config import configure
    from maskwright.engine.progress import Progress
    from maskwright.engine.run import RunRequest, open_run, run_method
    from maskwright.engine.streams import SOURCE, open_sources, sources_as_written
    from maskwright.methods import choose_method, find_method

    bar = progress or Progress(quiet=int(os.environ.get("RANK", "0")) > 0)
    images = _opened(data, labels, void, range)
    if split is not None:
        images = images.split(split)
    if labeled is not None:
        images = images.labeled(labeled)
    sources = open_sources(source, beside=images)
    reason = ""
    if method == "auto":
        method, reason = choose_method(images.labels_present(), len(images), SOURCE in sources)
        bar.say(f"method: {reason}")
    cls = find_method(method)
    config = configure(cls.Config, {**(settings or {}), **more})
    if reason and SOURCE not in cls.streams_taken(config):
        sources.pop(SOURCE, None)  # the reason says so
    request = RunRequest(
        data=images, method=cls, config=config, out=out, sources=sources, split=split, labeled=labeled, classes=classes,
        names=None if names is None else given_names(names), backbone=backbone, weights=weights, steps=steps, seed=seed,
        device=device, resume=resume, reason=reason, progress=bar,
    )  # fmt: skip
    context = open_run(request)
    try:
        call = {
            "method": cls.name, "data": data, "source": sources_as_written(source, sources), "split": split,
            "labeled": labeled, "classes": classes, "names": None if request.names is None else list(request.names),
            "backbone": backbone, "weights": weights, "steps": steps, "seed": seed, "device": device,
        }  # fmt: skip
        _write_call(context.run, call, images, config)
        return run_method(cls, config, context, _pages() if report else None)
    finally:
        context.run.release()


def _write_call(run: RunFolder, call: dict[str, Any], images: Dataset, config: Any) -> None:
    """Leaves what was asked for in the run's folder, in the form that repeats it; its paths hold from anywhere."""
    from maskwright.engine.config import nested
    from maskwright.engine.config_file import CONFIG, lasting, write_config
    from maskwright.engine.run import recorded

    names = {"split": images.split_names, "labeled": images.split_names, "weights": ("package", "random")}
    for key in ("data", "split", "labeled", "weights"):
        given = call[key]
        place = given if isinstance(given, str | Path | None) else given.root
        call[key] = place if str(place) in names.get(key, ()) else lasting(place)
    if run.writes:
        with recorded(run):
            write_config(run.path / CONFIG, call | images.reading.arguments(), nested(config))


def _pages() -> Pages:
    """What makes a run's pictures and its page."""
    from maskwright.app.pictures import write_previews
    from maskwright.app.report import write_report
    from maskwright.engine.run import Pages

    return Pages(write_previews, write_report)


def _opened(data: str | Path | Dataset, labels: Any = None, void: Any = None, range: Any = None) -> Dataset:
    """The data set of a path, or one that was opened before, with what is now said of its values, if anything is."""
    from maskwright.data.examining.reading import Reading

    if isinstance(data, str | Path):
        return open_folder(data, labels=labels, void=void, range=range)
    said = Reading.parse(labels, void, range)
    return data if said == Reading() else data.with_reading(said)

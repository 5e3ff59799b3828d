"""Masks and encoders, judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.data.trust.photographs import Photographs
    from maskwright.evaluate.scores import Scores
    from maskwright.predict.kept import Record

from maskwright.api.opening import opened
from maskwright.api.training import train
from maskwright.errors import MaskwrightError


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
    exclude_run: str | Path | Iterable[str | Path] = (),
    by_name: bool = False,
    without: str | Iterable[str] = (),
    **options: Any,
) -> Scores:
    """Judges a folder of index masks.

    Where the masks come from a run, or from `predict` with a run's model, the scores' notes say how many of the
    photographs judged it was trained on.

    Args:
        predictions: folder of index PNG named as the images.
        truth: dataset folder, or an opened dataset, or a folder of masks.
        protocol: a name of `maskwright.evaluate.protocols.PROTOCOLS`.
        split: only the images of this split.
        labels, void, range: what the values of the truth mean, as for `open_folder`.
        predicted_labels: what the values of the predictions mean.
        exclude_run: photographs that this run, or these runs, were trained on are left out.
        by_name: a predicted id is the truth's class of the same name; names are those of the run that predicted.
        without: names of the truth's classes that are left out of all figures, as those that nothing taught.
        options: further options of the protocol.

    Raises:
        MaskwrightError: when predictions are missing or do not fit the truth.
    """
    from maskwright.data.examining.reading import Reading
    from maskwright.data.trust.photographs import Photographs
    from maskwright.evaluate.protocols import evaluate_folder
    from maskwright.predict.kept import Record

    given = [exclude_run] if isinstance(exclude_run, str | Path) else list(exclude_run)
    excluded = [Photographs.of(Path(run)) for run in given]
    record = Record.read(Path(predictions))
    trained, notes, models = _runs_behind(Path(predictions), record)
    scores = evaluate_folder(
        predictions, truth, protocol=protocol, split=split, reading=Reading.parse(labels, void, range),
        predicted=Reading.parse(predicted_labels), exclude=excluded, trained=trained,
        predicted_names=_names_behind(Path(predictions), record), by_name=by_name, without=without, **options,
    )  # fmt: skip
    return replace(scores, notes=[*scores.notes, *notes], models=models)


def _names_behind(predictions: Path, record: Record) -> list[str] | None:
    """The class names of the runs that masks come from, in the order of their ids; None where they are not known, or
    where the runs differ in them."""
    from maskwright.engine.records import RECORD

    files = {record.heads[made.head]["model"].get("file") for made in record.made.values()}
    around = [str(above / RECORD) for above in predictions.resolve().parents if (above / RECORD).is_file()][:1]
    found = {_names_of(_record_of(Path(file).parent)) if file else () for file in files or around}
    (names,) = found if len(found) == 1 else ((),)
    return list(names) or None


def _names_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names that a run's record holds; none where it is of another kind."""
    from maskwright.data.trust.artefacts import misfit

    classes: Any = record.get("classes")
    return () if misfit({"classes": classes}, {"classes": [{"name": str}]}) else tuple(c["name"] for c in classes)


def _runs_behind(predictions: Path, record: Record) -> tuple[list[Photographs], list[str], list[str]]:
    """The runs that masks come from: those whose models `predict` recorded, and one whose folder they lie in; what is
    to be said where one cannot be had, or has another model by now; and the keys of the models."""
    from maskwright.data.trust.photographs import Photographs
    from maskwright.engine.records import RECORD, went_on_from

    used = sorted({made.head for made in record.made.values()})
    models = {record.heads[k]["model"]["key"]: record.heads[k]["model"].get("file") for k in used}
    notes = [f"the predictions were made by {len(models)} models (predicted.jsonl)"] if len(models) > 1 else []
    folders = [Path(file).parent for file in models.values() if file]
    for key, file in models.items():
        run = Path(file).parent if file else None
        if run is not None and went_on_from(_record_of(run), [key]):
            notes.append(f"the predictions are of an earlier model of {run}, which went on since: predict them anew")
    lost = [str(folder) for folder in folders if not (folder / RECORD).is_file()]
    if lost or len(folders) < len(models):
        where = f"no run in {lost[0]}" if lost else "the model came from no file"
        notes.append(f"whether photographs were trained on is not known of the predictions: {where}")
    folders += [above for above in predictions.resolve().parents if (above / RECORD).is_file()][:1]
    found = []
    for folder in dict.fromkeys(folder for folder in folders if (folder / RECORD).is_file()):
        try:
            found.append(Photographs.of(folder))
        except MaskwrightError as error:
            notes.append(f"whether photographs were trained on is not known of the predictions: {error.found}")
    return found, notes, sorted(models)


def _record_of(run: Path) -> Mapping[str, Any]:
    """What a run's record says; nothing where it cannot be read."""
    from maskwright.data.trust.artefacts import Damage, parse_record
    from maskwright.engine.records import RECORD

    try:
        found = parse_record((run / RECORD).read_bytes())
    except (OSError, Damage):
        return {}
    return found if isinstance(found, Mapping) else {}


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

    images = opened(data, labels, void, range)
    used = dict.fromkeys([*images.split(bank).names, *images.split(split).names])
    # Only masks that are learned from or judged are looked at.
    images = understand(images.subset(images.index(name) for name in used), masks=True)
    scores = probe_encoder(
        encoder, images, protocol, bank=bank, split=split, weights=weights, out=out,
        device=device, settings=settings, steps=steps, seed=seed, train=train,
    )  # fmt: skip
    return replace(scores, notes=[*dict.fromkeys((*images.notices, *scores.notes))])

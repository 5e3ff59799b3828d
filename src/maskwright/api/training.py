"""`train`: from a folder and what is asked of it to a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.inputs import Given
    from maskwright.engine.progress import Progress
    from maskwright.engine.streams import Place
    from maskwright.predict.model import Model

from maskwright.api.call import write_call


def train(
    data: str | Path | Dataset,
    method: str = "auto",
    *,
    out: str | Path | None = None,
    source: Place | Mapping[str, Place] | Iterable[str] | None = None,
    inputs: Given = None,
    split: str | None = None,
    labeled: str | Path | None = None,
    classes: int | None = None,
    names: str | Path | Iterable[str] | None = None,
    backbone: str = "auto",
    weights: str | Path | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "auto",
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    as_it_stands: bool = False,
    report: bool = True,
    log: str | None = None,
    workers: int | None = None,
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
        inputs: second networks and proposals by the names that the method gives them: `{"teacher": "runs/a"}`, or
            texts "NAME=PLACE".
        split: only these images.
        labeled: name of a split, or a file: only these images' masks may be read.
        classes: number of classes or clusters; by default that of the class table.
        names: class names, above those of `classes.txt`: with commas between, a file with one a line, or a sequence.
        backbone: a timm name or one of the short names; `auto` takes the best that can be had.
        weights: a local checkpoint for it; `package` for those of the `offline` extra, `random` for none; or a run or
            its `model.safetensors` to go on from: its backbone, and what the network has alike, classes joined by name.
        steps: optimiser steps of the main training stage; with `resume` also more than before, which lengthens the run.
        minutes: instead of `steps`: as many as fit into so long, by the pace of the first ones.
        seed: every random draw is a function of it.
        device: `auto`, `cpu` or `cuda`.
        labels, void, range: what the values of the files mean, as for `open_folder`.
        settings: options of the method, as `--set key=value`.
        resume: continue the run that lies in `out`.
        as_it_stands: with `resume`: train no more, and make the model of what the run last saved; see `finish`.
        report: write previews and `report.html`; where classes are clusters also `map.csv` and its montage.
        log: "tensorboard": what `metrics.jsonl` gets goes to RUN/logs as events too.
        workers: threads that draw the next batches while a step runs, whatever else is equal to the bit; by default
            what the environment's MASKWRIGHT_READ_AHEAD says, else one. 0: none.
        progress: how work shows itself.
        more: further settings, as keywords.

    Returns:
        The trained model.

    Raises:
        MaskwrightError: on bad input.
    """
    from maskwright.api.asking import requested
    from maskwright.engine.ahead import read_ahead
    from maskwright.engine.event_log import check_log, log_events
    from maskwright.engine.opening import open_run
    from maskwright.engine.run import run_method

    check_log(log)
    request = requested(
        data, method, out=out, source=source, inputs=inputs, split=split, labeled=labeled, classes=classes, names=names,
        backbone=backbone, weights=weights, steps=steps, minutes=minutes, seed=seed, device=device, labels=labels,
        void=void, range=range, settings={**(settings or {}), **more}, resume=resume, as_it_stands=as_it_stands,
        progress=progress,
    )  # fmt: skip
    threads = read_ahead(workers)
    context = open_run(request)
    context.workers = threads
    try:
        if report:
            from maskwright.app.run_pages import PAGES
        write_call(context, request, data=data, source=source, log=log)
        log_events(context.run, log)
        return run_method(request.method, request.config, context, PAGES if report else None)
    finally:
        context.run.release()

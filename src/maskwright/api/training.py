"""`train`: from a folder and what is asked of it to a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.contract import Method
    from maskwright.engine.inputs import Given
    from maskwright.engine.progress import Progress
    from maskwright.engine.records import RunFolder
    from maskwright.engine.run import Pages
    from maskwright.engine.streams import Place
    from maskwright.predict.model import Model

from maskwright.api.opening import opened


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
    from maskwright.data.masking.classes import given_names
    from maskwright.engine.ahead import read_ahead
    from maskwright.engine.config import configure, options
    from maskwright.engine.devices import on_cpu
    from maskwright.engine.event_log import EventLog, check_log
    from maskwright.engine.inputs import inputs_as_written, named_inputs, record_of
    from maskwright.engine.opening import open_run
    from maskwright.engine.progress import Progress
    from maskwright.engine.request import RunRequest
    from maskwright.engine.run import run_method
    from maskwright.engine.start import own_model, own_network
    from maskwright.engine.streams import SOURCE, open_sources, sources_as_written
    from maskwright.errors import MaskwrightError
    from maskwright.methods import TABLE, find_method
    from maskwright.methods.choosing import choose, settings_of
    from maskwright.recipes.language.at_hand import Words, words_at_hand

    check_log(log)
    bar = progress or Progress.of_this_process()
    images = opened(data, labels, void, range)
    if split is not None:
        images = images.split(split)
    if labeled is not None:
        images = images.labeled(labeled)
    sources, places = open_sources(source, beside=images), named_inputs(inputs)
    reason, chosen, choice = "", {}, None
    begun = record_of(Path(out)).get("method", {}).get("name") if resume and out is not None else None
    if method == "auto" and begun in TABLE:
        method, reason = begun, f"{begun}, with which the run was begun"
        chosen = settings_of(begun, images.labels_present(), len(images))
    elif method == "auto":
        own_names = images.classes.names if images.classes else ()

        def words() -> Words:
            """What the class names are good for; names that were asked for and that no method can take are an error."""
            captions = images.labels_present()["captions"] > 0
            found = words_at_hand(own_names if names is None else given_names(names), captions, backbone, weights)
            if names is not None and found.lacking:
                raise MaskwrightError(
                    f"--names, of which no method can make masks here, because {found.lacking}",
                    "a network that knows words", "or leave --names out, and clusters are named later",
                )  # fmt: skip
            return found

        choice = choose(
            images.labels_present(), len(images), SOURCE in sources, cpu=on_cpu(device), steps=steps, minutes=minutes,
            words=words,
        )  # fmt: skip
        method, reason = choice.method, choice.reason
        chosen = dict(choice.settings)
    if reason:
        bar.say(f"Method: {reason}.")
    cls = find_method(method)
    own = own_model(weights)
    network = own_network(own) if own is not None else {}
    known = {o.name for o in options(cls.Config) if o.used}
    taken = {name: value for name, value in network.items() if name in known}
    config = configure(cls.Config, {**chosen, **taken, **(settings or {}), **more})
    if reason and SOURCE not in cls.streams_taken(config):
        sources.pop(SOURCE, None)  # the reason says so
    request = RunRequest(
        data=images, method=cls, config=config, out=out, sources=sources, inputs=places, split=split,
        labeled=labeled, classes=classes,
        names=None if names is None else given_names(names), backbone=backbone, weights=weights, steps=steps,
        minutes=minutes, seed=seed, device=device, resume=resume, as_it_stands=as_it_stands, reason=reason,
        progress=bar,
    )  # fmt: skip
    if choice is not None and choice.steps is not None and not sets_steps(cls, config):
        request.steps = choice.steps
    request.most_steps = None if choice is None else choice.most_steps
    workers = read_ahead(workers)
    context = open_run(request)
    context.workers = workers
    try:
        call = {
            "method": cls.name, "data": data, "source": sources_as_written(source, sources) or None,
            "input": inputs_as_written(places) or None, "split": split,
            "labeled": labeled, "classes": classes, "names": None if request.names is None else list(request.names),
            "backbone": backbone, "weights": weights, "steps": context.steps, "minutes": context.minutes, "seed": seed,
            "device": device, "log": log,
        }  # fmt: skip
        _write_call(context.run, call, images, config)
        if log is not None and context.run.writes:
            context.run.log_events(EventLog(context.run.path))
        model = run_method(cls, config, context, _pages() if report else None)
        if report and cls.classes_found(config) == "clusters":
            bar.say(_what_clusters_want(context.run.path))
        return model
    finally:
        if context.run.events is not None:
            context.run.events.close()
        context.run.release()


def sets_steps(method: type[Method], config: Any) -> bool:
    """Whether options of the method say how many steps it has, so that nothing else decides."""
    return method.own_steps(config, 1) != method.own_steps(method.Config(), 1)


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


def _what_clusters_want(run: Path) -> str:
    """The one line on how clusters become classes."""
    from maskwright.app.montage import MONTAGE, naming_command
    from maskwright.data.masking.cluster_map import MAP

    return f"clusters: see {run / MONTAGE}, fill in the column name of {run / MAP}, then {naming_command(run)}"


def _pages() -> Pages:
    """What makes a run's pictures and its page."""
    from maskwright.app.montage import write_clusters
    from maskwright.app.pictures import write_previews
    from maskwright.app.report import write_report
    from maskwright.engine.run import Pages

    return Pages(write_previews, write_report, write_clusters)

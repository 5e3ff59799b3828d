"""The verbs of the command line. Nothing slow is imported before a verb needs it."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from maskwright.errors import MaskwrightError, ask_to_stop, forget_stop, shown

app = typer.Typer(
    name="maskwright",
    help="Segmentation masks, and a model that makes more of them, from photographs and whatever labels there are.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


Labels = Annotated[
    str | None, typer.Option(help="What mask values mean: auto, ids, binary255, from1, grey, levels or colours.")
]
Void = Annotated[str | None, typer.Option(help="The value (or values) of masks that means no class, or none.")]
Range = Annotated[str | None, typer.Option(help="LOW,HIGH: the stored values of images that become black and white.")]


@app.command()
def doctor(
    data: Annotated[str, typer.Argument(help="Dataset folder, or layout:path.")],
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    fix: Annotated[
        Path | None, typer.Option(help="Write a mended copy of the folder here, and say what was changed.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what labels a folder holds and what is wrong with it, each finding with its repair.

    The exit code is 2 where an error was found.
    """
    from maskwright.data.examining.doctor import examine
    from maskwright.data.examining.reading import Reading
    from maskwright.engine.progress import Progress

    said = Reading.parse(labels, void, range)
    bar = Progress(quiet=json)
    changes: list[str] = []
    if fix is not None:
        from maskwright.data.examining.mending import mend
        from maskwright.data.layouts import open_data

        with bar.counter("mending") as count:
            changes = mend(open_data(data, said), fix, progress=count)
        changes.append(
            f"{len(changes)} changes, listed in {fix / 'changes.txt'}; where a verb asks what the copy's values mean, "
            "they are ids: --labels ids; the copy:"
        )
        data, said = str(fix), Reading(labels="ids", range=said.range)
    with bar.counter("examining") as count:
        diagnosis = examine(data, progress=count, reading=said)
    if json:
        _print_json({**diagnosis.to_json(), "changes": changes} if fix is not None else diagnosis.to_json())
    else:
        for line in changes:
            _echo(line)
        _echo(diagnosis.text())
    if not diagnosis.healthy:
        raise typer.Exit(2)


@app.command()
def methods(json: Json = False) -> None:
    """List the methods: paper, labels needed, options."""
    from maskwright.engine.config import describe
    from maskwright.methods import METHODS

    rows: list[dict[str, Any]] = [
        {
            "name": m.name,
            "title": m.title,
            "paper": m.venue,
            "link": m.link,
            "family": m.family,
            "needs": sorted(m.needs),
            "options": describe(m.Config),
        }
        for m in METHODS.values()
    ]
    if json:
        _print_json(rows)
        return
    for row in rows:
        needs = ", ".join(row["needs"]) or "no labels"
        typer.echo(
            f"{row['name']}  ({row['family']}; needs {needs})\n    {row['title']}, {row['paper']}, {row['link']}"
        )
        for o in row["options"]:
            typer.echo(f"    --set {o['name']}={o['default']}  {o['says']}")


@app.command()
def train(
    data: Annotated[str, typer.Argument(help="Dataset folder, or layout:path.")],
    method: Annotated[str, typer.Option(help="A name that `maskwright methods` lists, or auto.")] = "auto",
    source: Annotated[
        list[str] | None, typer.Option(help="[NAME=]DATA[@SPLIT], repeatable: other data, labelled if it has no name.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    labeled: Annotated[str | None, typer.Option(help="Split or file: the images whose masks may be read.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes or clusters.")] = None,
    names: Annotated[
        str | None, typer.Option(help="Class names: with commas between, or a file with one a line.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="A timm name or a short name, or auto.")] = "auto",
    weights: Annotated[str | None, typer.Option(help="A local checkpoint, or package, or random.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of the main training stage.")] = None,
    seed: Annotated[int, typer.Option(help="Every random draw is a function of it.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", help="An option of the method, key=value.")] = None,
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that lies in --out.")] = False,
) -> None:
    """Train a method on a folder: masks, a model and a report."""
    settings = dict(_key_value(s) for s in set_ or [])
    from maskwright import api

    api.train(
        data, method, out=out, source=source, split=split, labeled=labeled, classes=classes, names=names,
        backbone=backbone, weights=weights, steps=steps, seed=seed, device=device, settings=settings, resume=resume,
        labels=labels, void=void, range=range,
    )  # fmt: skip


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="model.safetensors, or a run folder.")],
    images: Annotated[str, typer.Argument(help="Dataset folder, folder of images, or one image.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    tile: Annotated[
        str, typer.Option(help="Pixels of the tiles; none: each image whole; auto: tiles where it is much larger.")
    ] = "auto",
    refine: Annotated[str, typer.Option(help="none, crf, guided, or auto: what the model's method does.")] = "auto",
    flips: Annotated[bool, typer.Option("--flips", help="Average with the mirrored image.")] = False,
    scales: Annotated[str, typer.Option(help="Average over the input sizes of these factors: 0.75,1,1.25.")] = "1",
    confidence: Annotated[bool, typer.Option("--confidence", help="Write confidence maps too.")] = False,
    overlays: Annotated[bool, typer.Option("--overlays", help="Write overlays too.")] = False,
    tags: Annotated[bool, typer.Option("--tags", help="Find nothing in an image but what it is tagged with.")] = False,
    range: Range = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Write OUT/NAME.png for each image."""
    from maskwright import api
    from maskwright.engine.devices import pick_device
    from maskwright.engine.progress import Progress

    loaded = api.load(model, device=pick_device(device))
    data = _images(images)
    if split is not None:
        data = data.split(split)
    bar = Progress()
    done = loaded.predict_folder(
        data,
        out,
        tile=_tile(tile),
        refine=refine,
        flips=flips,
        scales=_numbers("--scales", scales),
        confidence=confidence,
        overlays=overlays,
        tags=tags,
        range=range,
        progress=bar,
    )
    if tags:
        bar.say(f"tags: {done.tagged} of {len(data)} images have them")
    for name, why in done.skipped:
        bar.say(f"skipped {name}: {why}")
    bar.say(f"{done.written} masks in {out}" + (f", {len(done.skipped)} images skipped" if done.skipped else ""))
    if not done.written:
        raise MaskwrightError(f"none of the {len(data)} images could be read", "at least one", "run maskwright doctor")


@app.command()
def suggest(
    model: Annotated[Path, typer.Argument(help="A run folder, or model.safetensors.")],
    data: Annotated[str, typer.Argument(help="Dataset folder, or layout:path.")],
    count: Annotated[int, typer.Option(help="Images to suggest.")],
    out: Annotated[Path, typer.Option(help="Folder for suggestions.csv, names.txt, regions.csv and sheet.png.")],
    by: Annotated[
        str, typer.Option(help="mixed, entropy, margin, confidence, disagreement, coreset or random.")
    ] = "mixed",
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    labeled: Annotated[str | None, typer.Option(help="Split or file: the images that have masks already.")] = None,
    regions: Annotated[int, typer.Option(help="Regions to suggest in each image.")] = 0,
    region_size: Annotated[int, typer.Option(help="Their side, pixels; 0: a sixth of the shorter side.")] = 0,
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    seed: Annotated[int, typer.Option(help="The draw of random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Say which images without a mask, and which regions of them, to label next."""
    from maskwright import api
    from maskwright.engine.progress import Progress

    bar = Progress()
    found = api.suggest(
        model, data, count, by=by, split=split, labeled=labeled, regions=regions, region_size=region_size, out=out,
        seed=seed, device=device, labels=labels, void=void, range=range, progress=bar,
    )  # fmt: skip
    for name, why in found.skipped:
        bar.say(f"skipped {name}: {why}")
    for row in found:
        _echo(f"{row.rank:4d}  {row.score:8.4f}  {row.name}")
    bar.say(f"{len(found)} of {found.pool} images without a mask, by {found.by}: {out / 'sheet.png'}")


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of index PNG named as the images.")],
    truth: Annotated[str, typer.Argument(help="Dataset folder, or layout:path.")],
    protocol: Annotated[str, typer.Option(help="How clusters are matched to classes and what is measured.")] = "direct",
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    predicted_labels: Annotated[
        str | None, typer.Option(help="What the values of the predictions mean, as --labels does of the truth.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out images without a prediction, and say how many.")
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file.")] = None,
) -> None:
    """Judge masks; the protocol is printed with each number."""
    from maskwright import api
    from maskwright.data.trust.files import write_json

    scores = api.evaluate(
        predictions, truth, protocol=protocol, split=split, labels=labels, void=void, range=range,
        predicted_labels=predicted_labels, allow_missing=allow_missing,
    )  # fmt: skip
    _echo(scores.table())
    if json is not None:
        write_json(json, scores.to_json())


@app.command()
def probe(
    encoder: Annotated[str, typer.Argument(help="Run folder, model.safetensors, or the name of a backbone.")],
    data: Annotated[str, typer.Argument(help="Dataset folder, or layout:path.")],
    protocol: Annotated[str, typer.Option(help="distance, or semi (fine-tuning on the labelled share).")] = "distance",
    bank: Annotated[str, typer.Option(help="Split or file of the labelled images that it learns from.")] = "train",
    split: Annotated[str, typer.Option(help="Split of the images to judge.")] = "test",
    weights: Annotated[str | None, typer.Option(help="Of a named backbone: a checkpoint, package, or random.")] = None,
    out: Annotated[Path | None, typer.Option(help="For semi: the run folder of the fine-tuning.")] = None,
    steps: Annotated[int | None, typer.Option(help="For semi: optimiser steps.")] = None,
    seed: Annotated[int, typer.Option(help="For semi.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", help="For semi: an option of supervised.")] = None,
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file.")] = None,
) -> None:
    """Judge an encoder by the protocols of the LUSS benchmark that use labels."""
    from maskwright import api
    from maskwright.data.trust.files import write_json

    scores = api.probe(
        encoder, data, protocol, bank=bank, split=split, weights=weights, out=out, steps=steps, seed=seed,
        device=device, settings=dict(_key_value(s) for s in set_ or []), labels=labels, void=void, range=range,
    )  # fmt: skip
    _echo(scores.table())
    if json is not None:
        write_json(json, scores.to_json())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("demo-run"),
) -> None:
    """Segment the photographs that come inside installed packages, with no label."""
    from maskwright.demo import run_demo

    run_demo(out)


def _images(path: str):
    """A dataset from a folder, or from one image."""
    from maskwright import api
    from maskwright.data.folders.scan import is_regular, is_utf8

    if is_regular(path):
        from maskwright.data.folders.folder import Dataset, Item

        image = Path(path)
        if not is_utf8(image.name):
            raise MaskwrightError(f"the name of {path} is not UTF-8 text", "a name that can be written", "rename it")
        return Dataset(image.parent, [Item(image.stem, image)])
    return api.open_folder(path)


def _key_value(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise MaskwrightError(f"--set {text}", "--set key=value")
    return key.strip(), value.strip()


def _tile(text: str) -> int | None:
    """None for auto, 0 for none: as `predict_folder` takes it."""
    said = text.strip().lower()
    if said in ("auto", "none"):
        return None if said == "auto" else 0
    try:
        return max(-1, int(said))
    except ValueError:
        raise MaskwrightError(f"--tile {text}", "pixels, none or auto", "--tile none sees each image whole") from None


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in text.split(",") if v.strip())
    except ValueError:
        values = ()
    if not values or not all(0.05 <= v <= 10 for v in values):
        raise MaskwrightError(f"{name} {text}", "numbers from 0.05 to 10 joined by commas", f"{name} 0.75,1,1.25")
    return values


def _echo(text: str) -> None:
    """Prints text whose file names the terminal does not obey."""
    typer.echo(shown(text, lines=True))


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))


def main() -> None:
    """Runs a verb; bad input, an interrupt and a full disk become one line and exit code 2."""
    forget_stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        _end_like_an_interrupt(number)
    try:
        code = app(standalone_mode=False)
    except MaskwrightError as error:
        _stop(str(error))
    except KeyboardInterrupt:
        _stop(INTERRUPTED)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            from maskwright.data.trust.files import too_long

            _stop(str(too_long(Path(os.fsdecode(error.filename or "")))))
        if error.errno not in _DISK_ERRORS:
            raise
        _stop(f"{error.strerror}: {error.filename or 'output'}; make room and repeat, with --resume for a training")
    except Exception as error:
        if type(error).__name__ == "Abort":  # what the option parser makes of Ctrl-C
            _stop(INTERRUPTED)
        if not hasattr(error, "format_message"):  # its own errors: an unknown verb or option, a wrong type
            raise
        _stop(f"{' '.join(error.format_message().split())}; see maskwright --help")
    if code == 130:  # what newer option parsers make of an interrupt
        _stop(INTERRUPTED)
    sys.exit(code or 0)


def _end_like_an_interrupt(number: signal.Signals) -> None:
    """What ends a process by request ends it as Ctrl-C does: the run's record says so, and what is done is kept."""

    def interrupt(*_: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # who asks twice is not kept waiting
        ask_to_stop(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(number, interrupt)


def _stop(line: str) -> NoReturn:
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"maskwright: {shown(line)}", file=sys.stderr)
    sys.exit(2)


INTERRUPTED = "interrupted; what is done is kept, continue a training with --resume"
_DISK_ERRORS = (28, 122, 30, 13)
"""No space, quota, read-only file system, permission."""

if __name__ == "__main__":
    main()

"""`maskwright predict` and `suggest`: what a trained model says of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskwright.cli.options import Labels, Range, Void, echo
from maskwright.errors import MaskwrightError


def predict(
    model: Annotated[Path, typer.Argument(help="model.safetensors, or a run folder.")],
    images: Annotated[
        list[str], typer.Argument(help="Folders, images, layout:path, or patterns in quotes ('photos/**/*.jpg').")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    names: Annotated[
        str | None, typer.Option(help="Other classes, of a model whose classes are words: a list or a file.")
    ] = None,
    level: Annotated[
        str | None, typer.Option(help="Of a model of hsg, parts of each image: segments, fine or coarse.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="With --names: the towers, where the run does not say.")] = None,
    tile: Annotated[
        str, typer.Option(help="Pixels of the tiles; none: each image whole; auto: tiles where it is much larger.")
    ] = "auto",
    refine: Annotated[str, typer.Option(help="none, crf, guided, or auto: what the model's method does.")] = "auto",
    flips: Annotated[bool, typer.Option("--flips", help="Average with the mirrored image.")] = False,
    scales: Annotated[str, typer.Option(help="Average over the input sizes of these factors: 0.75,1,1.25.")] = "1",
    confidence: Annotated[bool, typer.Option("--confidence", help="Write confidence maps too.")] = False,
    overlays: Annotated[bool, typer.Option("--overlays", help="Write overlays too.")] = False,
    tags: Annotated[bool, typer.Option("--tags", help="Find nothing in an image but what it is tagged with.")] = False,
    batch: Annotated[int, typer.Option(help="Images of one size that the network sees together.")] = 1,
    anew: Annotated[
        bool, typer.Option("--anew", help="Keep no finished mask, and write over masks that were changed since.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 2 where an image could not be read.")] = False,
    range: Range = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Write OUT/NAME.png for each image; what the same model and settings have finished there is kept."""
    from maskwright import api
    from maskwright.api.opening import weights_of
    from maskwright.engine.devices import pick_device
    from maskwright.engine.progress import Progress

    loaded = api.load(model, device=pick_device(device))
    bar = Progress()
    if names is not None:
        loaded = loaded.with_names(names, weights or weights_of(model), progress=bar)
    elif weights is not None:
        raise MaskwrightError("--weights without --names", "both", "--names road,sky")
    if level is not None:
        if flips or scales != "1" or tags or _tile(tile):
            raise MaskwrightError(
                f"--level {level} with tiles, flips, scales or tags", "images that are seen once, and whole",
                "leave these out",
            )  # fmt: skip
        loaded, tile = loaded.at_level(level), "none"
    done = loaded.predict_folder(
        images,
        out,
        split=split,
        tile=_tile(tile),
        refine=refine,
        flips=flips,
        scales=_numbers("--scales", scales),
        confidence=confidence,
        overlays=overlays,
        tags=tags,
        range=range,
        batch=batch,
        anew=anew,
        progress=bar,
    )
    total = done.written + done.kept + len(done.skipped)
    if tags:
        bar.say(f"tags: {done.tagged} of {total} images have them")
    for name, why in done.skipped:
        bar.say(f"skipped {name}: {why}")
    kept = f" ({done.kept} of them kept)" if done.kept else ""
    skipped = f", {len(done.skipped)} images skipped" if done.skipped else ""
    bar.say(f"{done.written + done.kept} masks in {out}{kept}{skipped}")
    if not done.written + done.kept:
        raise MaskwrightError(f"none of the {total} images could be read", "at least one", "run maskwright doctor")
    if strict and done.skipped:
        raise MaskwrightError(
            f"{len(done.skipped)} of {total} images could not be read (the first: {done.skipped[0][0]})",
            "all of them, because of --strict", "mend or remove them (maskwright doctor), or leave --strict out",
        )  # fmt: skip


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
    to: Annotated[
        str | None,
        typer.Option(help="labelme, cvat, coco or yolo: write OUT/TO for that tool, the model's masks as a start."),
    ] = None,
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
        to=to, seed=seed, device=device, labels=labels, void=void, range=range, progress=bar,
    )  # fmt: skip
    for name, why in found.skipped:
        bar.say(f"skipped {name}: {why}")
    for row in found:
        echo(f"{row.rank:4d}  {row.score:8.4f}  {row.name}")
    bar.say(f"{len(found)} of {found.pool} images without a mask, by {found.by}: {out / 'sheet.png'}")
    if found.start is not None:
        from maskwright.predict.starting import way_back

        bar.say(way_back(found.start, data, found.names))


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

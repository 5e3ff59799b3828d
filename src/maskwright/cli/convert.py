"""`maskwright convert`: label formats in, label formats out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskwright.cli.options import Labels, Void, echo


def convert(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="Folder, annotation file, ZIP archive, or layout:path.")
    ],
    out: Annotated[Path, typer.Argument(metavar="TO", help="The new folder; with --add, one that is there.")],
    to: Annotated[
        str,
        typer.Option(help="masks, beside, npy, binary, colours, voc, cvat-masks, coco, labelme, cvat or yolo."),
    ],
    kind: Annotated[
        str | None,
        typer.Option("--from", help="masks, colours, coco, labelme, cvat, yolo, or a layout; else recognised."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the photographs, where annotations lie elsewhere.")
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="Class names in the order of the ids: with commas, or a file with one a line.")
    ] = None,
    colors: Annotated[
        Path | None, typer.Option(help="Table name,r,g,b of the colours that masks are drawn in (csv or txt).")
    ] = None,
    outside: Annotated[str | None, typer.Option(help="What no shape covers: background or void.")] = None,
    empty: Annotated[
        str | None, typer.Option(help="background: listed photographs without a shape hold nothing.")
    ] = None,
    labels: Labels = None,
    void: Void = None,
    tolerance: Annotated[
        float, typer.Option(help="Pixels by which outlines may leave the edges of pixels; 0: exact.")
    ] = 1.0,
    without_images: Annotated[bool, typer.Option("--without-images", help="Do not copy the photographs.")] = False,
    add: Annotated[bool, typer.Option("--add", help="Put the masks into TO, which holds the photographs.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="With --add: replace masks that are there.")] = False,
) -> None:
    """Convert labels: COCO, LabelMe, CVAT, YOLO, colours, palettes, arrays and masks, each into each.

    Holes, parts and names are kept; what is guessed or left out is said.
    """
    from maskwright import api
    from maskwright.engine.progress import Progress

    done = api.convert(
        source, out, to, kind=kind, split=split, images=images, names=names, colors=colors, outside=outside,
        empty=empty, labels=labels, void=void, tolerance=tolerance, photographs=not without_images, add=add,
        replace_masks=replace, progress=Progress(),
    )  # fmt: skip
    for sentence in done.said:
        echo(sentence)

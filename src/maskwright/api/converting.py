"""Label formats in, label formats out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskwright.data.annotations.converting import Converted
    from maskwright.engine.progress import Progress


def convert(
    source: str | Path,
    out: str | Path,
    to: str,
    *,
    kind: str | None = None,
    split: str | None = None,
    images: str | Path | None = None,
    names: str | Path | Iterable[str] | None = None,
    colors: str | Path | None = None,
    outside: str | None = None,
    empty: str | None = None,
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    tolerance: float = 1.0,
    photographs: bool = True,
    add: bool = False,
    replace_masks: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Converts the labels of a folder, an annotation file or a ZIP archive into another format.

    Args:
        source: where they lie, or `layout:path`.
        out: the new folder; with `add` one that is there.
        to: a name of `maskwright.data.annotations.writing.TARGETS`.
        kind: the format that is read: masks, colours, coco, labelme, cvat, yolo, or a benchmark's layout; None: what
            lies there is recognised.
        split: only these images.
        images: the folder of the photographs, where annotations lie elsewhere.
        names: class names in the order of the ids: with commas between, a file with one a line, or a sequence.
        colors: a table name,r,g,b of the colours that masks are drawn in.
        outside: "background" or "void", what no shape covers; None: background, unless classes.txt names none.
        empty: "background": photographs that a list names without a shape hold nothing; None: they have no mask.
        labels, void: what the values of masks mean, as for `open_folder`.
        tolerance: pixels by which outlines may leave the edges of pixels; 0 keeps every pixel.
        photographs: copy the photographs too.
        add: put the masks into the folder `out`, which holds the same photographs.
        replace_masks: with `add`, masks that are there already are replaced.
        progress: how work shows itself.

    Raises:
        MaskwrightError: on bad input; nothing is written then.
    """
    from maskwright.data.annotations.converting import convert as run
    from maskwright.data.examining.reading import Reading
    from maskwright.data.masking.classes import given_names
    from maskwright.engine.progress import Progress

    bar = progress or Progress(quiet=True)
    said = Reading.parse(labels, void)
    with bar.counter("converting") as count:
        return run(
            str(source), Path(out), to, kind=kind, split=split, images=None if images is None else Path(images),
            names=None if names is None else given_names(names), colors=None if colors is None else Path(colors),
            outside=outside, empty=empty, reading=said, tolerance=tolerance,
            photographs=photographs, add=add, replace_masks=replace_masks, progress=count,
        )  # fmt: skip

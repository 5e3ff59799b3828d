"""The pictures of a run's report: a sample of the photographs with what the model makes of them, and their HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.masking.masks import read_mask, write_mask
from maskwright.data.pictures.images import read_image
from maskwright.data.pictures.inline import data_uri, jpeg, swatch
from maskwright.data.trust.artefacts import Damage, parse_record, write_record
from maskwright.data.trust.files import file_for, write_bytes
from maskwright.errors import MaskwrightError
from maskwright.predict.model import Model, area_counts, read_ahead
from maskwright.predict.writers import overlay, shrink

PREVIEWS = "previews"
SIDE = 480
"""Pixels of a preview's longer side."""
SHARES = "shares.json"
"""The largest classes of each preview, as the whole mask has them: what is thin is drawn wider in a small one."""
COUNT = 48
"""Previews of a run: enough to judge it by, seconds to make."""


def sample(total: int, count: int) -> list[int]:
    """`count` places spread evenly over `total`, the first and last among them; all if there are no more."""
    if total <= count:
        return list(range(total))
    return sorted({int(i) for i in np.linspace(0, total - 1, count).round()})


def write_previews(
    run_folder: str | Path,
    model: Model,
    dataset: Dataset,
    count: int = COUNT,
    *,
    refine: str = "none",
    side: int = SIDE,
    progress: Any = None,
) -> np.ndarray:
    """Writes previews/NAME.jpg (photograph) and previews/NAME.png (its mask, of the same size) into a run folder.

    Earlier previews of other images are removed, so that the report shows one model.

    Args:
        run_folder: the run.
        model: what to predict with.
        dataset: the images; a sample spread evenly over it is taken.
        count: pictures at most.
        refine: refinement of the masks.
        side: pixels of the longer side at most.
        progress: an `engine.progress.Progress`, or None.

    Returns:
        Share of the sampled area that each class has, float64 (C,); sums to 1, less what has no class.

    Raises:
        MaskwrightError: the folder cannot be written.
    """
    folder = Path(run_folder) / PREVIEWS
    chosen = dataset.subset(sample(len(dataset), count))
    classes = len(model.classes)
    shares, seen, written = np.zeros(classes), 0, set()
    areas: dict[str, dict[str, float]] = {}
    pictures = read_ahead(chosen)
    if hasattr(progress, "track"):
        pictures = progress.track(pictures, "previews", len(chosen))
    for name, pixels in pictures:
        if isinstance(pixels, str):
            continue  # it was readable when the run began; the report shows the others
        mask = model.predict(pixels, refine=refine).mask
        own = area_counts(mask, classes) / mask.size
        shares += own
        seen += 1
        small, ids = shrink(pixels, mask, side)
        # The mask first: a photograph without one would show up as an unfinished pair.
        drawn, photo = file_for(folder, name, ".png"), file_for(folder, name, ".jpg")
        write_mask(drawn, ids, model.classes)
        write_bytes(photo, jpeg(small, 85), durable=False)
        written |= {drawn, photo}
        areas[name] = {str(c): float(own[c]) for c in np.argsort(-own, kind="stable")[:3] if own[c] > 0}
    write_record(folder / SHARES, {"shares": areas}, durable=False)
    _remove_others(folder, written)
    return shares / max(1, seen)


def _remove_others(folder: Path, kept: set[Path]) -> None:
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.suffix in (".png", ".jpg") and path.is_file() and path not in kept:
            try:
                path.unlink()
            except OSError as error:
                raise MaskwrightError(f"cannot remove the old preview {path} ({error.strerror})") from error


def preview_shares(folder: Path) -> dict[str, dict[str, float]]:
    """{name of a preview: {id: share of its area}} of the largest classes; empty where it is not known."""
    try:
        return parse_record((folder / SHARES).read_bytes(), {"shares": {str: {str: float}}})["shares"]
    except (OSError, Damage):
        return {}


def figure(
    number: int,
    name: str,
    photo: Path,
    mask: Path,
    table: ClassTable | None,
    known: Mapping[str, float] | None = None,
) -> str:
    """One picture of the report as HTML: photograph, overlay, mask, and the largest classes in words.

    Args:
        number: its place, for its anchor.
        name: name of the image.
        photo: file of the photograph.
        mask: file of the ids, of the same size.
        table: the classes; made up from the ids if None.
        known: {id: share of the area} of the largest classes; those of the small mask if None.

    Returns:
        A `<figure>` element, or an empty string if a file is missing or damaged.
    """
    try:
        image, ids = read_image(photo), read_mask(mask)
    except MaskwrightError:
        return ""
    if ids.shape != image.shape[:2]:
        return ""
    table = table or ClassTable.numbered(int(ids[ids < ignore_of(ids)].max(initial=0)) + 1)
    shares = np.bincount(ids.ravel(), minlength=len(table))[: len(table)] / ids.size
    if known:
        shares = np.array([known.get(str(c), 0.0) for c in range(len(table))])
    largest = [int(c) for c in np.argsort(-shares, kind="stable")[:3] if shares[c] >= 0.005]
    parts = "".join(
        f'<span class="part">{swatch(table.colors[c])}{escape(table.names[c])} {100 * shares[c]:.0f} %</span>'
        for c in largest
    )
    told = ", ".join(f"{table.names[c]} {100 * shares[c]:.0f} %" for c in largest) or "no class"
    shown, size = escape(name), f'loading="lazy" decoding="async" width="{image.shape[1]}" height="{image.shape[0]}"'
    photo_uri = data_uri(photo.read_bytes(), "jpeg")
    over_uri = data_uri(jpeg(overlay(image, ids, table), 85, tinted=True), "jpeg")
    mask_uri = data_uri(mask_png(ids, table), "png")
    return (
        f'<figure id="picture-{number}"><a href="#picture-{number}" aria-label="Enlarge {shown}"><div class="trio">'
        f'<img {size} alt="Photograph {shown}" src="{photo_uri}">'
        f'<img {size} alt="Photograph {shown} tinted with its mask" src="{over_uri}">'
        f'<img {size} class="mask" alt="Mask of {shown}: {escape(told)}" src="{mask_uri}">'
        f'</div></a><figcaption><b>{shown}</b>{parts}<a class="back" href="#_">smaller</a>'
        "</figcaption></figure>"
    )


def mask_png(ids: np.ndarray, table: ClassTable) -> bytes:
    """Ids (H, W) as a PNG in the classes' colours, as small as it gets."""
    out = BytesIO()
    if len(table) <= 255 and ids.dtype == np.uint8:
        image = Image.fromarray(ids)
        palette = np.full((256, 3), 255, np.uint8)
        palette[: len(table)] = table.colors
        image.putpalette(palette.tobytes())
    else:
        image = Image.fromarray(table.colorize(ids))
    image.save(out, "PNG", optimize=True)
    return out.getvalue()

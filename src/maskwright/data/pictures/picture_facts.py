"""What headers say of a folder's photographs that is not seen in its pixels: depth, bands, pages, transparency.

Each verb says it before it begins, and the doctor among its findings.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageSequence

from maskwright.data.examining.findings import Finding, finding, some
from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.scan import threaded
from maskwright.data.pictures.deep import AlphaKind
from maskwright.data.pictures.headers import Header, open_pillow, open_regular
from maskwright.data.pictures.images import DECODER_ERRORS, glance, image_error, read_header
from maskwright.data.pictures.scale import FILES, Scale, describe
from maskwright.data.trust.files import atomic_write
from maskwright.errors import MaskwrightError


def scaled(data: Dataset) -> Dataset:
    """The data set with the range of its deep images found, and what its headers tell in `.notices`.

    Raises:
        MaskwrightError: no range holds for all of its images (`scale.survey_scale`).
    """
    if data.readers.image is not None:
        return data
    heads = _headers(data)
    notices = [f.message for f in header_findings(data, heads)]
    clear = [i for i, head in enumerate(heads) if head is not None and head.alpha]
    clear = clear[:: max(1, -(-len(clear) // FILES))]
    kinds = list(threaded(partial(_alpha, data), clear))
    notices += [f.message for f in alpha_findings([(data.items[i].name, kind) for i, kind in zip(clear, kinds)])]
    deep = [head for head in heads if head is not None and head.deep]
    if not deep:
        unused = "--range is not used: no image has more than 8 bits"
        return data.with_notices(*notices, *([unused] if data.reading.range is not None else []))
    scale = _scale(data)
    return data.with_scale(scale).with_notices(*notices, f"{describe(scale, deep)}; --range LOW,HIGH says it otherwise")


def examine_pictures(data: Dataset) -> tuple[Dataset, list[Finding]]:
    """As `scaled`, for the doctor: what was found as findings, among them that no range holds for all images."""
    if data.readers.image is not None:
        return data, []
    heads = _headers(data)
    found = header_findings(data, heads)
    deep = [i for i, head in enumerate(heads) if head is not None and head.deep]
    if not deep:
        return data, found
    names = [data.items[i].name for i in deep]
    kinds = [head for head in heads if head is not None and head.deep]
    try:
        scale = _scale(data)
    except MaskwrightError as error:
        found.append(finding("mixed-depth", "error", names, error.found, error.repair))
        return data.with_scale(Scale(*kinds[0].type_range, "nothing better is known")), found
    repair = "--range LOW,HIGH says it otherwise, for each verb; a model keeps the range that it was trained with"
    found.append(finding("deep-images", "note", names, describe(scale, kinds), repair))
    return data.with_scale(scale), found


def header_findings(data: Dataset, heads: Sequence[Header | None]) -> list[Finding]:
    """Pages and bands that are not used."""
    found = []
    paged = [i for i, head in enumerate(heads) if head is not None and head.pages > 1]
    if paged:
        counts = {i: head.pages for i in paged if (head := heads[i]) is not None}
        message = (
            f"{_images(len(paged), 'has', 'have')} several pages or frames, of which only the first is read: "
            f"{some([f'{data.items[i].name} ({counts[i]})' for i in paged])}"
        )
        repair = (
            f"maskwright doctor {data.root} --fix OUT writes a copy with each page as an image, where it has no mask"
        )
        found.append(finding("pages", "warning", [data.items[i].name for i in paged], message, repair))
    wide = [i for i, head in enumerate(heads) if head is not None and head.extra_bands]
    if wide:
        head = heads[wide[0]]
        assert head is not None and head.tiff is not None
        colours = "the first three bands as red, green and blue" if head.tiff.colours == 3 else "the first band as grey"
        named = some([data.items[i].name for i in wide])
        message = (
            f"{_images(len(wide), 'has', 'have')} more bands than colours ({named}; {head.tiff.bands} in the first): "
            f"{colours}, the others are not used and are no transparency"
        )
        repair = "write the three bands that should count as an RGB image, if it should be others"
        found.append(finding("extra-bands", "warning", [data.items[i].name for i in wide], message, repair))
    return found


def alpha_findings(kinds: Sequence[tuple[str, AlphaKind]]) -> list[Finding]:
    """What became of transparency: (name, kind) of each image that was looked at."""
    found = []
    empty = [name for name, kind in kinds if kind == "empty"]
    if empty:
        message = (
            f"{_images(len(empty), 'is', 'are')} transparent everywhere ({some(empty)}): the transparency is ignored"
        )
        found.append(finding("empty-alpha", "warning", empty, message, "save them without transparency"))
    used = [name for name, kind in kinds if kind == "used"]
    if used:
        message = f"{_images(len(used), 'has', 'have')} transparent parts, which are white ({some(used)})"
        found.append(finding("transparency", "note", used, message, "lay them on another ground, if white is wrong"))
    return found


def write_pages(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Path]:
    """Writes each page or frame of a file as an image of its own: OUT/NAME_1.png, OUT/NAME_2.png, ...

    Values stay what they are: 8 and 16 bits become PNG, other pages TIFF. Pages that are smaller versions of another
    are left out. Nothing that exists is replaced.

    Args:
        path: a TIFF, GIF, PNG, WebP or MPO.
        out: the folder, made if missing.

    Returns:
        The files written, in the order of the pages; none where there is one page only.

    Raises:
        MaskwrightError: the file is damaged, a page is of a kind that is not read here, or the place cannot be written.
    """
    source, folder = Path(path), Path(out)
    header = read_header(source)
    if header.pages < 2:
        return []
    written: list[Path] = []
    try:
        pages = _tiff_pages(source, header.pages) if header.tiff is not None else _frames(source, header)
        for number, page in enumerate(pages, 1):
            target = folder / f"{source.stem}_{number:0{len(str(header.pages))}d}{page.suffix}"
            if target.exists():
                raise MaskwrightError(f"{target} exists already", "a folder without it", "choose another folder")
            with atomic_write(target, durable=False) as beside:
                page.save(beside)
            written.append(target)
    except DECODER_ERRORS as error:
        raise image_error(source, error) from error
    return written


class _Page(Protocol):
    suffix: str

    def save(self, path: Path) -> None: ...


class _Frame:
    """A frame of an animation."""

    suffix = ".png"

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def save(self, path: Path) -> None:
        self.image.save(path, format="PNG")


class _TiffPage:
    """A page of a TIFF."""

    def __init__(self, values: np.ndarray, colours: bool, white_is_zero: bool) -> None:
        self.values, self.colours, self.white_is_zero = values, colours, white_is_zero
        simple = values.dtype in (np.uint8, np.bool_) and (values.ndim == 2 or values.shape[2] in (3, 4))
        self.suffix = ".png" if (simple or (values.dtype == np.uint16 and values.ndim == 2)) else ".tif"

    def save(self, path: Path) -> None:
        from tifffile import imwrite

        if self.suffix == ".png":
            values = ~self.values if self.white_is_zero else self.values
            Image.fromarray(values[..., :3] if values.ndim == 3 else values).save(path, format="PNG")
        else:
            kind = "rgb" if self.colours else "miniswhite" if self.white_is_zero else "minisblack"
            imwrite(path, self.values, photometric=kind, compression="zlib", planarconfig=None)


def _frames(path: Path, header: Header) -> list[_Page]:
    with open_regular(path) as file, open_pillow(file) as image:
        frames = []
        for frame in ImageSequence.Iterator(image):
            if header.kind == "jpeg" and frame.size != (header.stored[1], header.stored[0]):
                continue  # a preview
            frames.append(_Frame(frame.convert("RGBA" if frame.mode in ("P", "PA", "RGBA", "LA") else "RGB")))
        return list(frames)


def _tiff_pages(path: Path, count: int) -> list[_Page]:
    from tifffile import TiffFile

    pages: list[_Page] = []
    with TiffFile(path) as file:
        for page in file.pages:
            full = page.aspage()
            if full.subfiletype & 5:
                continue
            try:
                values = full.asarray()
            except (ValueError, NotImplementedError) as error:
                if "imagecodecs" not in str(error):
                    raise
                return _pillow_pages(path)
            values = np.moveaxis(values, 0, -1) if full.axes.startswith("S") else values
            pages.append(_TiffPage(values, full.photometric == 2, full.photometric == 0))
    return pages


def _pillow_pages(path: Path) -> list[_Page]:
    with open_regular(path) as file, open_pillow(file) as image:
        frames = [frame.copy() for frame in ImageSequence.Iterator(image)]
        return [_Frame(f if f.mode in ("1", "L", "P", "I;16", "RGB", "RGBA") else f.convert("RGB")) for f in frames]


def _headers(data: Dataset) -> list[Header | None]:
    return list(threaded(partial(_header, data), range(len(data))))


def _header(data: Dataset, i: int) -> Header | None:
    try:
        return data.header(i)
    except MaskwrightError:
        return None


def _alpha(data: Dataset, i: int) -> AlphaKind:
    try:
        return glance(data.items[i].image, at_least=1, range=(0.0, 1.0)).alpha
    except MaskwrightError:
        return "none"


def _scale(data: Dataset) -> Scale:
    if data.reading.range is not None:
        return Scale(*data.reading.range, "--range says it")
    if data.scale is not None:
        return data.scale
    found = data.survey()
    assert found is not None, "a data set with deep images has a scale"
    return found


def _images(count: int, one: str, many: str) -> str:
    return f"{count} image {one}" if count == 1 else f"{count} images {many}"

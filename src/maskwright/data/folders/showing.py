"""A data set in a notebook: what there is, and a few of its photographs. No label is read for it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from maskwright.data.pictures.images import read_resized
from maskwright.data.pictures.inline import data_uri, jpeg
from maskwright.data.pictures.scale import survey_scale
from maskwright.errors import MaskwrightError, shown

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset

COUNT = 6
"""Photographs that are shown, spread evenly over the data set."""
SIDE = 160
"""Pixels of their longer side."""


def dataset_html(data: Dataset) -> str:
    """Its summary and thumbnails as HTML, at most about 60 KB whatever the size of the data set."""
    lines = "<br>".join(escape(shown(line)) for line in data.summary().split("\n"))
    places = sorted({round(k * (len(data) - 1) / max(1, COUNT - 1)) for k in range(COUNT)}) if len(data) else []
    tiles = "".join(_tile(data, i) for i in places)
    return f'<div><p>{lines}</p><div style="display:flex;flex-wrap:wrap;gap:8px">{tiles}</div></div>'


def _tile(data: Dataset, i: int) -> str:
    item = data.items[i]
    name = escape(shown(item.name))
    labels = [
        word for word, there in (("mask", data.has_mask(i)), ("tags", item.tags), ("captions", item.captions)) if there
    ]
    told = f"{name}<br>{', '.join(labels) or 'no label'}"
    try:
        height, width = data.size(i)
        scale = min(1.0, SIDE / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        # Of deep images the range of this one will do: the whole folder's is a survey of every file.
        if data.readers.image is None:
            span = data.reading.range or (data.scale.span if data.scale else None)
            picture = read_resized(item.image, size, range=span or (lambda: _span(data, i)))
        else:
            picture = data.resized(i, size)
    except MaskwrightError as error:
        return f"<div>{told}<br>{escape(error.found)}</div>"
    return f'<div><img alt="{name}" src="{data_uri(jpeg(picture, 80), "jpeg")}"><br><small>{told}</small></div>'


def _span(data: Dataset, i: int) -> tuple[float, float] | None:
    scale = survey_scale([data.items[i].image])
    return None if scale is None else scale.span

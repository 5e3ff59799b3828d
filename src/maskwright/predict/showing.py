"""A result and a model in a notebook: the tinted photograph with its classes, the model's card."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from maskwright.data.masking.classes import ClassTable
from maskwright.data.pictures.inline import data_uri, jpeg, small_swatch
from maskwright.errors import shown
from maskwright.predict.writers import overlay, shrink

if TYPE_CHECKING:
    from maskwright.predict.model import Model, Result

SIDE = 480
"""Pixels of the longer side of what is shown."""
CLASSES = 24
"""Classes that are named; of more, the largest."""


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """A photograph uint8 (H, W, 3) with a longer side of at most `SIDE` pixels."""
    return shrink(picture, np.broadcast_to(np.uint8(0), picture.shape[:2]), SIDE)[0]


def result_picture(result: Result) -> np.ndarray:
    """The photograph tinted with the mask, uint8 (h, w, 3); the mask alone where there is no photograph."""
    height, width = result.mask.shape
    blank = np.broadcast_to(np.uint8(0), (height, width, 3))
    photo, ids = shrink(blank, result.mask, SIDE)
    if result.photo is None or result.photo.shape != photo.shape:
        return result.classes.colorize(ids)
    return overlay(result.photo, ids, result.classes)


def result_png(result: Result) -> bytes:
    """`result_picture` as a PNG."""
    out = BytesIO()
    Image.fromarray(result_picture(result)).save(out, "PNG")
    return out.getvalue()


def result_html(result: Result) -> str:
    """`result_picture` with the classes that occur and their shares of the area, at most about 200 KB."""
    shares = result.shares()
    largest = [int(c) for c in np.argsort(-shares, kind="stable") if shares[c] > 0]
    height, width = result.mask.shape
    sure = f"mean confidence {float(np.mean(result.confidence, dtype=np.float64)):.2f}"
    told = f"{width} x {height} pixels, {sure}"
    if result.tile is not None:
        told += f", seen in windows of {result.tile}"
    return (
        f'<div><img alt="mask" src="{data_uri(jpeg(result_picture(result), 85, tinted=True), "jpeg")}">'
        f"<div>{_key(result.classes, largest, shares)}</div><small>{told}</small></div>"
    )


def _key(classes: ClassTable, ids: list[int], shares: np.ndarray | None = None) -> str:
    """Names and colours of classes, and their shares; of very many, how many are left out."""

    def said(c: int) -> str:
        share = "" if shares is None else f" {100 * shares[c]:.1f} %"
        name = escape(shown(classes.names[c]))
        return f'<span style="margin-right:1em">{small_swatch(classes.colors[c])}{name}{share}</span>'

    more = f"and {len(ids) - CLASSES} more" if len(ids) > CLASSES else ""
    return " ".join([*(said(c) for c in ids[:CLASSES]), more])


def model_html(model: Model) -> str:
    """A model's card: what it is, what its weights and its training saw, its classes."""
    origin, extra = model.segmenter.provenance, model.extra
    method = extra.get("method")
    parameters = sum(p.numel() for p in model.segmenter.parameters())
    rows = {
        "method": " · ".join(str(method[k]) for k in ("title", "paper") if method.get(k))
        if isinstance(method, Mapping)
        else str(model.segmenter.method or ""),
        "network": f"{origin.architecture}, {parameters / 1e6:.1f} million parameters, on {model.device}",
        "weights from": origin.source,
        "licence of the weights": origin.license,
        "labels the weights saw": origin.labels_seen,
        "labels its run read": _read(extra.get("labels_read")),
        "trained on images of": " x ".join(str(n) for n in reversed(extra.get("image_size") or [])),
        "refinement": str(extra.get("refine") or ""),
        "seed": str(extra.get("seed", "")),
    }
    cells = "".join(
        f'<tr><th style="text-align:left">{name}</th><td style="text-align:left">{escape(shown(value))}</td></tr>'
        for name, value in rows.items()
        if value
    )
    title = f"{len(model.classes)} {'class' if len(model.classes) == 1 else 'classes'}"
    return f"<div><table>{cells}</table><p>{title}: {_key(model.classes, list(range(len(model.classes))))}</p></div>"


def _read(counts: Any) -> str:
    if not isinstance(counts, Mapping):
        return ""
    words = {"train": "for training", "select": "for selection", "evaluate": "for evaluation"}
    told = [
        f"{n} {kind} {words.get(purpose, purpose)}"
        for purpose, kinds in counts.items()
        if isinstance(kinds, Mapping)
        for kind, n in kinds.items()
        if n
    ]
    return ", ".join(told) or "none"

"""What stages show of themselves (`engine/shown.py`), as HTML of the run report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from maskwright.app.plots import curve
from maskwright.data.pictures.images import read_image
from maskwright.data.pictures.inline import data_uri, swatch
from maskwright.data.trust.artefacts import Damage, parse_record
from maskwright.engine.shown import PICTURES, SHAPE, SHOWN
from maskwright.errors import MaskwrightError

MANY = 12
"""Rows of a table that are seen at once."""


def stage_views(run_folder: Path, stages: Sequence[str]) -> list[tuple[str, str]]:
    """(heading, HTML) of each stage that shows something; what is missing or damaged is left out.

    Args:
        run_folder: of the run.
        stages: names of its stages, in order.
    """
    found = []
    for stage in stages:
        folder = run_folder / Path(stage).name
        try:
            record = parse_record((folder / SHOWN).read_bytes(), SHAPE)
        except (OSError, Damage):
            continue
        if body := _body(record, folder / PICTURES):
            found.append((record["title"], body))
    return found


def _body(record: Mapping[str, Any], pictures: Path) -> str:
    facts = "".join(
        f"<div><dt>{escape(fact[0])}</dt><dd>{escape(fact[1])}</dd></div>" for fact in record["facts"] if len(fact) == 2
    )
    strips = "".join(_strip(row, pictures) for row in record["rows"])
    curves = "".join(_curve(c) for c in record["curves"])
    return (
        (f'<dl class="facts">{facts}</dl>' if facts else "")
        + "".join(f"<p>{escape(sentence)}</p>" for sentence in record["sentences"])
        + (f'<div class="strips">{strips}</div>' if strips else "")
        + (f'<div class="curves">{curves}</div>' if curves else "")
        + _table(record["head"], record["table"])
    )


def _strip(row: Mapping[str, Any], pictures: Path) -> str:
    """Pictures of one image side by side, each with its caption; those that cannot be read are left out."""
    name, tiles = escape(row["name"]), []
    for picture in row["pictures"]:
        if len(picture) != 2:
            continue
        caption, path = picture[0], pictures / Path(picture[1]).name
        try:
            height, width = read_image(path).shape[:2]
            data = path.read_bytes()
        except (MaskwrightError, OSError):
            continue
        tiles.append(
            f'<div><img loading="lazy" decoding="async" width="{width}" height="{height}" '
            f'alt="{escape(caption)} of {name}" src="{data_uri(data, "jpeg")}"><span>{escape(caption)}</span></div>'
        )
    if not tiles:
        return ""
    says = "".join(f'<span class="part">{_swatch(word[1])}{escape(word[0])}</span>' for word in row["says"] if word[1:])
    return f'<figure class="strip"><div>{"".join(tiles)}</div><figcaption><b>{name}</b>{says}</figcaption></figure>'


def _swatch(color: str) -> str:
    """A square of a colour that is written as RRGGBB; nothing for another text."""
    return swatch(bytes.fromhex(color)) if re.fullmatch("[0-9a-f]{6}", color) else ""


def _curve(found: Mapping[str, Any]) -> str:
    picture = curve(found["x"], found["y"], found["label"], found["over"], smoothed=False, mark=found["mark"])
    over = f' <span class="soft">over {escape(found["over"])}</span>'
    return f"<div><h3>{escape(found['label'])}{over}</h3>{picture}</div>" if picture else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and the others figures, its tail folded."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col"{"" if k == 0 else _FIGURE}>{escape(name)}</th>' for k, name in enumerate(head))
    kinds = ["name", *["n"] * max(map(len, rows))]
    lines = [
        "<tr>" + "".join(f'<td class="{kind}">{escape(cell)}</td>' for kind, cell in zip(kinds, row)) + "</tr>"
        for row in rows
    ]

    def table(part: Sequence[str]) -> str:
        body = "".join(part)
        return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'

    more = lines[MANY:]
    folded = f"<details><summary>{len(more)} more</summary>{table(more)}</details>" if more else ""
    return table(lines[:MANY]) + folded


_FIGURE = ' class="n"'

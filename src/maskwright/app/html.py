"""Pieces of pages that the run report and the comparison share: values of records as text, tables, curves' values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from maskwright.app.plots import format_number
from maskwright.data.masking.classes import ClassTable, default_palette
from maskwright.data.trust.artefacts import Damage, parse_json

MANY = 40
"""Rows of a table that are seen at once."""


def inner(value: Any, *keys: str) -> Any:
    """A nested value, or None where something on the way is missing or of another kind."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def rows(value: Any) -> list[Mapping[str, Any]]:
    """The tables in a list; empty where it is none."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def text(value: Any) -> str:
    """Any value as escaped text."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_number(value)
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def number(value: Any) -> float | None:
    """A finite number, or None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def percent(value: Any, digits: int = 1) -> str:
    """A fraction in percent, a dash for what is no finite number."""
    known = number(value)
    return "–" if known is None else f"{100 * known:.{digits}f} %"


def count(n: int, noun: str) -> str:
    """A number of things, as "1 photograph" and "2 photographs"."""
    plural = {"class": "classes"}.get(noun, noun + "s")
    return f"{n:,} {noun if n == 1 else plural}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def section(title: str, body: str) -> str:
    """A part of a page under its heading; empty where its body (HTML) is."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def long_table(head: str, lines: list[str], kind: str = "") -> str:
    """A table of HTML rows, those behind the first `MANY` folded."""

    def table(part: list[str]) -> str:
        return f'<div class="scroll"><table class="{kind}">{head}<tbody>{"".join(part)}</tbody></table></div>'

    out = table(lines[:MANY])
    if more := lines[MANY:]:
        out += f"<details><summary>{count(len(more), 'more row')}</summary>{table(more)}</details>"
    return out


def term_list(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms; both sides are HTML already."""
    terms = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in pairs if v)
    return f'<dl class="record">{terms}</dl>' if terms else ""


def series(path: Path) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """{(stage, metric): (steps, values)}, in order of appearance; of a step written twice the later value counts."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for written in lines:
        try:
            line = parse_json(written, lenient=True)
        except Damage:
            continue  # cut off by a kill
        if not isinstance(line, dict):
            continue
        step = number(line.get("step")) or 0.0
        for metric, value in line.items():
            if metric in ("stage", "step") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            found.setdefault((str(line.get("stage", "")), metric), {})[step] = float(value)
    return {key: (sorted(by), [by[s] for s in sorted(by)]) for key, by in found.items()}


def class_table(run: Mapping[str, Any]) -> ClassTable | None:
    """The classes or clusters that a run's record tells; None where it tells none."""
    found = rows(run.get("classes"))
    if not found:
        return None
    colors = default_palette(len(found))
    for i, row in enumerate(found):
        color = row.get("color")
        if isinstance(color, list) and len(color) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in color):
            colors[i] = color
    return ClassTable(tuple(str(row.get("name", i)) for i, row in enumerate(found)), colors)


def dotted(options: object, before: str = "") -> list[tuple[str, object]]:
    """Options by their whole names; runs of before options had parts recorded a flat table."""
    found: list[tuple[str, object]] = []
    for name, value in options.items() if isinstance(options, Mapping) else ():
        below = dotted(value, f"{before}{name}.")
        found += below or [(f"{before}{name}", value)]
    return found

"""A comparison as one HTML page: figures, classes, curves, the same photographs under each run; nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from maskwright.app.comparing.pictures import strips
from maskwright.app.comparing.runs import OPTION
from maskwright.app.comparing.tables import (
    MAIN,
    cells_of,
    columns_of,
    figure_names,
    heading,
    labels_of,
    percent,
    time_of,
)
from maskwright.app.html import count, duration, long_table, section, series, term_list
from maskwright.app.page import frame
from maskwright.app.plots import curves, line_class, spread_bar
from maskwright.data.trust.files import write_text
from maskwright.engine.records import METRICS, versions
from maskwright.errors import shown

if TYPE_CHECKING:
    from maskwright.app.comparing.joining import Comparison, Figure, Group, Row, Table

CHARTS = 6
"""Curves that are seen at once; the others are folded."""


def write_page(comparison: Comparison, path: str | Path) -> Path:
    """Writes the page of a comparison.

    Args:
        comparison: of at least one run.
        path: the file.

    Returns:
        The file written.

    Raises:
        MaskwrightError: it cannot be written.
    """
    path = Path(path)
    runs, made = len(comparison.runs), versions().get("maskwright", "")
    title = f"{count(runs, 'run')} compared"
    body = "\n".join(
        part
        for part in (
            _header(comparison, title),
            _notices(comparison),
            _scores(comparison),
            _unjudged(comparison),
            _pictures(comparison),
            _curves(comparison),
            _settings(comparison),
            _runs(comparison),
            f"<footer>Made by maskwright {escape(made)}. This file needs nothing beside it.</footer>",
        )
        if part
    )
    write_text(path, shown(frame(title, body), lines=True))
    return path


def tables_html(comparison: Comparison) -> str:
    """Tables and notices alone, for a notebook."""
    return _scores(comparison, bars=False) + _unjudged(comparison) + _notices(comparison)


def _header(comparison: Comparison, title: str) -> str:
    seeds = sorted({run.seed for run in comparison.runs if run.seed is not None})
    facts = [
        ("Runs", str(len(comparison.runs))),
        ("Settings", str(len(comparison.groups))),
        (
            "Seed" if len(seeds) == 1 else "Seeds",
            ", ".join(map(str, seeds[:8])) + (" …" if len(seeds) > 8 else "") or "–",
        ),
        ("Ways of judging", str(len(comparison.tables))),
    ]
    shown_facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    keys = "".join(f"<li>{_key(group)}{escape(_long(group))}</li>" for group in comparison.groups)
    named = [name.removeprefix(OPTION) for name in comparison.columns]
    differs = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    says = f"They differ in {differs or 'nothing but their seeds'}"
    says += ", and in their seeds." if differs and len(seeds) > 1 else "."
    return (
        f'<header>\n<p class="kicker">Maskwright comparison</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="soft">{escape(says)}</p>\n<dl class="facts">{shown_facts}</dl>\n'
        f'<ul class="keys">{keys}</ul>\n</header>'
    )


def _long(group: Group) -> str:
    """Letter and name, where there are names."""
    return f"{group.letter}: {group.name}" if group.cells else group.name


def _key(group: Group) -> str:
    return f'<span class="key {line_class(group.number)}"></span>'


def _notices(comparison: Comparison) -> str:
    lines = "".join(f"<li>{escape(notice)}</li>" for notice in comparison.notices)
    return section("What to know before reading the figures", f'<ul class="notes">{lines}</ul>' if lines else "")


def _scores(comparison: Comparison, bars: bool = True) -> str:
    parts = []
    for number, table in enumerate(comparison.tables, 1):
        body = f'<p class="soft">{escape(heading(table))}.</p>{_table(comparison, table, bars)}'
        body += _per_class(table)
        parts.append(section("Figures" if len(comparison.tables) == 1 else f"Figures, judgement {number}", body))
    return "".join(parts)


def _table(comparison: Comparison, table: Table, bars: bool) -> str:
    names = figure_names(table)
    full = max((v for row in table.rows for v in _main(row).known), default=1.0) or 1.0
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (*columns_of(comparison), "seeds"))
    head += "".join(f'<th scope="col" class="n">{escape(name)}, %</th>' for name in names)
    head += '<th scope="col">labels read</th><th scope="col" class="n">time</th>' + ("<td></td>" if bars else "")
    lines = []
    for row in table.rows:
        cells = [f'<td class="name">{escape(cell)}</td>' for cell in cells_of(comparison, row)]
        cells[0] = cells[0].replace(">", f">{_key(row.group)}", 1)
        figures = "".join(f'<td class="n nowrap">{_percent(row.figures.get(name))}</td>' for name in names)
        told = f"mIoU of {row.group.name}: {percent(_main(row))}"
        graph = spread_bar(_main(row).known, line_class(row.group.number), told, full) if _main(row).n else ""
        lines.append(
            f'<tr>{"".join(cells)}<td class="nowrap">{escape(row.seeds)}</td>{figures}'
            f'<td class="nowrap">{escape(labels_of(row))}</td><td class="n nowrap">{escape(time_of(row))}</td>'
            + (f'<td class="graph">{graph}</td>' if bars else "")
            + "</tr>"
        )
    note = '<p class="soft">Bars: mean mIoU. Ticks on them: each seed.</p>' if bars else ""
    return long_table(f"<thead><tr>{head}</tr></thead>", lines, "wide") + note


def _main(row: Row) -> Figure:
    return row.figures[MAIN[0]]


def _percent(figure: Figure | None) -> str:
    """Mean and spread as HTML, the spread softer."""
    if figure is None or not figure.n:
        return "–"
    spread = "" if math.isnan(figure.spread) else f' <span class="soft">± {100 * figure.spread:.2f}</span>'
    return f"{100 * figure.mean:.2f}{spread}"


def _per_class(table: Table) -> str:
    names = list(dict.fromkeys(name for row in table.rows for name in row.per_class))
    if not names:
        return ""
    head = '<th scope="col">IoU of, %</th>'
    head += "".join(f'<th scope="col" class="n">{_key(row.group)}{escape(row.group.short)}</th>' for row in table.rows)
    lines = [
        f'<tr><td class="name">{escape(name)}</td>'
        + "".join(f'<td class="n nowrap">{_percent(row.per_class.get(name))}</td>' for row in table.rows)
        + "</tr>"
        for name in names
    ]
    return "<h3>Class by class</h3>" + long_table(f"<thead><tr>{head}</tr></thead>", lines)


def _unjudged(comparison: Comparison) -> str:
    if not comparison.unjudged:
        return ""
    lines = []
    for run, commands in comparison.unjudged:
        told = "<br>".join(f"<code>{escape(command)}</code>" for command in commands)
        state = run.standing.removeprefix("is ") or "unknown"
        lines.append(
            f'<tr><td class="name"><code>{escape(str(run.path))}</code></td><td>{escape(state)}</td>'
            f'<td class="n">–</td><td class="long">{told}</td></tr>'
        )
    head = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in _UNJUDGED)
    return section("Runs without a judgement", long_table(f"<thead><tr>{head}</tr></thead>", lines, "wide"))


_UNJUDGED = (("run", ""), ("status", ""), ("mIoU", ' class="n"'), ("what gives it one", ""))


def _pictures(comparison: Comparison) -> str:
    return section("The same photographs under each run", strips(comparison))


def _curves(comparison: Comparison) -> str:
    found: dict[tuple[str, str], dict[int, list[Sequence[float]]]] = {}
    single: dict[tuple[str, str], set[int]] = {}
    for group in comparison.groups:
        for run in group.runs:
            for key, (steps, values) in series(run.path / METRICS).items():
                single.setdefault(key, set()).add(len(values))
                found.setdefault(key, {}).setdefault(group.number, []).extend((steps, values))
    drawn = []
    # The loss first, then what most settings have.
    order = sorted(found, key=lambda key: (key[1] != "loss", -len(found[key])))
    for key in order:
        if single[key] == {1}:
            continue  # a figure, no curve
        stage, metric = key
        label = f"{stage}: {metric}" if stage else metric
        if picture := curves(list(found[key].items()), label):
            where = f' <span class="soft">in {escape(stage)}</span>' if stage else ""
            drawn.append(f"<div><h3>{escape(metric)}{where}</h3>{picture}</div>")
    if not drawn:
        return ""
    keys = "".join(f"<li>{_key(group)}{escape(_long(group))}</li>" for group in comparison.groups)
    body = (
        '<p class="soft">Thin: each seed. Thick: the moving average of their mean. Across: the step. Losses of two '
        f'methods, or of two weightings, are different quantities.</p><ul class="keys">{keys}</ul>'
        f'<div class="curves">{"".join(drawn[:CHARTS])}</div>'
    )
    if more := drawn[CHARTS:]:
        body += f"<details><summary>{count(len(more), 'more curve')}</summary>"
        body += f'<div class="curves">{"".join(more)}</div></details>'
    return section("Training", body)


OWN_STEPS = f"{OPTION}steps"
"""The number of steps where neither `--steps` nor `--minutes` says; a run's own stand as `steps`."""


def _settings(comparison: Comparison) -> str:
    """All settings: those in which two groups differ as a table, the others folded."""
    groups = comparison.groups
    names = list(dict.fromkeys(name for group in groups for name in group.settings))
    if all(g.settings["steps"].value for g in groups) and OWN_STEPS in names:
        names.remove(OWN_STEPS)

    def words(name: str) -> list[str]:
        return [
            g.cells.get(name, g.settings[name].shown) if name in g.settings else "–" for g in groups
        ]  # fmt: skip

    def differs(name: str) -> bool:
        return len({repr(g.settings[name].value) if name in g.settings else "" for g in groups}) > 1

    unequal = [name for name in names if differs(name)]
    # What differs in a hash alone is told by the settings that it follows from.
    differing = [name for name in unequal if len(set(words(name))) > 1]
    head = '<th scope="col">setting</th>'
    head += "".join(f'<th scope="col">{_key(group)}{escape(group.short)}</th>' for group in groups)
    lines = [
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td class="name">{escape(word)}</td>' for word in words(name))
        + "</tr>"
        for name in differing
    ]
    body = long_table(f"<thead><tr>{head}</tr></thead>", lines) if lines else "<p>No setting differs but the seed.</p>"
    common = [(escape(name), escape(words(name)[0])) for name in names if name not in unequal]
    body += f"<details><summary>{count(len(common), 'setting')} that all have</summary>{term_list(common)}</details>"
    return section("Settings", body)


def _runs(comparison: Comparison) -> str:
    lines = []
    for group in comparison.groups:
        for run in group.runs:
            versions = run.record.get("versions")
            told = ", ".join(f"{k} {versions[k]}" for k in ("maskwright", "torch") if k in versions) if isinstance(
                versions, Mapping
            ) else ""  # fmt: skip
            cells = (
                f'<td class="name">{_key(group)}<code>{escape(str(run.path))}</code></td>'
                f'<td class="n">{"–" if run.seed is None else run.seed}</td>'
                f"<td>{escape(run.standing.removeprefix('is ') or 'unknown')}</td>"
                f'<td class="nowrap">{escape(run.labels)}</td>'
                f'<td class="n nowrap">{escape(duration(run.seconds))}</td>'
                f"<td>{escape(str(run.record.get('device') or ''))}</td><td>{escape(told)}</td>"
            )
            lines.append(f"<tr>{cells}</tr>")
    head = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in _RUNS)
    return section("Runs", long_table(f"<thead><tr>{head}</tr></thead>", lines, "wide"))


_RUNS = (
    ("run", ""), ("seed", ' class="n"'), ("status", ""), ("labels read", ""), ("time", ' class="n"'), ("device", ""),
    ("versions", ""),
)  # fmt: skip

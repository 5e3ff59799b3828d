"""A comparison in a terminal."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from maskwright.app.comparing.runs import OPTION
from maskwright.app.html import count, duration
from maskwright.errors import shown

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from maskwright.app.comparing.joining import Comparison, Figure, Group, Row, Table

USUAL = ("miou_all", "frequency_weighted_iou", "mean_dice")
"""Figures that every judgement has beside the three main ones; tables show what is special to a protocol instead."""
MAIN = ("mIoU", "pixel accuracy", "mean accuracy")
PIPED = 160
"""Columns of the text where no terminal says how many it has."""
INLINE = 2
"""Settings that stand beside the figures; more have a table of their own."""
COMMANDS = 6
"""Runs whose commands are printed; `--json` has those of all."""


def percent(figure: Figure | None) -> str:
    """Mean and spread in percent; a dash where there is none."""
    if figure is None or not figure.n:
        return "–"
    spread = "" if math.isnan(figure.spread) else f" ± {100 * figure.spread:.2f}"
    return f"{100 * figure.mean:.2f}{spread}"


def figure_names(table: Table) -> list[str]:
    """The three main figures, and what the protocol has beside those of every judgement."""
    extra = dict.fromkeys(name for row in table.rows for name in row.figures if name not in (*MAIN, *USUAL))
    return [*MAIN, *extra]


def heading(table: Table) -> str:
    """How the figures of a table were made."""
    one = table.judgement
    which = next((f" of split {s.split}" for row in table.rows for s in row.scores if s.split), "")
    which += f" (sha256 of their names {one.names_hash[:12]})" if one.names_hash else ""
    order = "highest mIoU first" if table.ranked else "not ranked"
    return f"{one.protocol}: {one.matching}; {one.images} images{which}; mean ± sample standard deviation; {order}"


def columns_of(comparison: Comparison) -> list[str]:
    """Headings of the columns that name a group."""
    named = [name.removeprefix(OPTION) for name in comparison.columns]
    return ["", *named] if named else ["method"]


def cells_of(comparison: Comparison, row: Row) -> list[str]:
    """What names a row's group, a cell each."""
    return cells_of_group(comparison, row.group)


def cells_of_group(comparison: Comparison, group: Group) -> list[str]:
    """What names a group, a cell each: its letter and the settings that differ."""
    named = [group.cells[name] for name in comparison.columns]
    return [group.letter, *named] if named else [group.name]


def time_of(row: Row) -> str:
    """Mean time of a row's runs."""
    return duration(sum(run.seconds for run in row.runs) / max(1, len(row.runs)))


def labels_of(row: Row) -> str:
    """Labels that a row's runs read; where they differ, of each."""
    return " / ".join(dict.fromkeys(run.labels for run in row.runs))


def print_comparison(comparison: Comparison, stream: TextIO | None = None) -> None:
    """Prints a comparison: a table a judgement, their classes, the runs without a judgement, what must be known."""
    from rich.console import Console

    stream = stream or sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED
    console = Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
    for piece in _pieces(comparison):
        console.print(shown(piece, lines=True) if isinstance(piece, str) else piece, soft_wrap=isinstance(piece, str))


def _pieces(comparison: Comparison) -> Iterator[str | RichTable]:
    apart = len(comparison.columns) > INLINE
    if apart:
        yield f"{count(len(comparison.groups), 'setting')}, told apart by"
        grid = _grid(columns_of(comparison), [])
        for group in comparison.groups:
            grid.add_row(*_safe(cells_of_group(comparison, group)))
        yield grid
    named = ["method"] if apart else columns_of(comparison)

    def cells(group: Group) -> list[str]:
        return [group.short] if apart else cells_of_group(comparison, group)

    for table in comparison.tables:
        names = figure_names(table)
        yield heading(table)
        grid = _grid([*named, "seeds"], [*map(_broken, names), "labels read", "time"])
        for row in table.rows:
            figures = [percent(row.figures.get(name)) for name in names]
            grid.add_row(*_safe([*cells(row.group), row.seeds, *figures, labels_of(row), time_of(row)]))
        yield grid
        if any(row.per_class for row in table.rows):
            grid = _grid(["IoU of"], [row.group.short for row in table.rows])
            for name in dict.fromkeys(name for row in table.rows for name in row.per_class):
                grid.add_row(*_safe([name, *(percent(row.per_class.get(name)) for row in table.rows)]))
            yield grid
    if comparison.unjudged:
        yield f"Without a judgement: {count(len(comparison.unjudged), 'run')}"
        grid = _grid([*named, "seed", "run"], ["mIoU", "status"])
        groups = {id(run): group for group in comparison.groups for run in group.runs}
        for run, _ in comparison.unjudged:
            state = run.standing.removeprefix("is ").split(":")[0] or "unknown"
            grid.add_row(*_safe([*cells(groups[id(run)]), str(run.seed), str(run.path), "–", state]))
        yield grid
        for run, commands in comparison.unjudged[:COMMANDS]:
            yield f"{run.path} is judged by" if len(commands) > 1 else f"{run.path}:"
            yield "\n".join(f"  {command}" for command in commands)
        if more := comparison.unjudged[COMMANDS:]:
            yield f"... and {count(len(more), 'other')}; --json FILE has the commands of all"
    for notice in comparison.notices:
        yield f"note: {notice}"


def _broken(name: str) -> str:
    """A heading over two lines: figures are narrower than their names."""
    return name.replace(" ", "\n", 1)


def _safe(cells: list[str]) -> list[Any]:
    from rich.text import Text

    return [Text(shown(cell, lines=True)) for cell in cells]


def _grid(left: list[str], right: list[str]) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in _safe(left):
        grid.add_column(name, overflow="fold")
    for name in _safe(right):
        grid.add_column(name, justify="right", no_wrap=True)
    return grid

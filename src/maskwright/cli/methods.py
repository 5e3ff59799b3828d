"""`maskwright methods`: a table of them, or one method with its options."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskwright.cli.options import Json, echo, print_json

if TYPE_CHECKING:
    from maskwright.engine.contract import Method

UNCUT = 400
"""Columns where the output goes to no terminal: no sentence is that long."""


def method_names() -> list[str]:
    """What a shell offers where a method is named."""
    from maskwright.methods import TABLE

    return list(TABLE)


def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, with its options to know.", autocompletion=method_names)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All options, by the part that they belong to.")] = False,
    json: Json = False,
) -> None:
    """List the methods, or one of them with its options."""
    from maskwright.methods import METHODS, find_method

    chosen = list(METHODS.values()) if name is None else [find_method(name)]
    if json:
        print_json([record(m) for m in chosen])
    elif name is None and not every:
        for line in table(chosen, shutil.get_terminal_size((UNCUT, 50)).columns):
            echo(line)
    else:
        width = min(120, shutil.get_terminal_size((100, 50)).columns)
        for m in chosen:
            for line in page(m, width, every):
                echo(line)


def record(method: type[Method]) -> dict[str, Any]:
    """All that is known of a method, as JSON values."""
    from maskwright.engine.config import describe

    return {
        "name": method.name,
        "title": method.title,
        "paper": method.venue,
        "link": method.link,
        "family": method.family,
        "needs": sorted(method.needs),
        "inputs": {name: {"kind": i.kind, "says": i.says, "required": i.required} for name, i in method.inputs.items()},
        "summary": method.summary,
        "options": describe(method.Config),
    }


def labels_needed(method: type[Method]) -> str:
    """The labels that a method needs, in words."""
    return ", ".join(sorted(method.needs)) or "none"


def paper(method: type[Method]) -> str:
    """Where and when a method appeared, without its authors: `ICLR 2022`."""
    found = re.search(r"(?:^|, )([^,]+ \d{4})$", method.venue)
    return found[1] if found else method.venue.partition(",")[0]


def table(chosen: list[type[Method]], width: int) -> Iterator[str]:
    """One line a method, the sentence cut at a word where the terminal is narrow. Beside other labels names go
    without saying."""
    rows = [("method", "labels", "paper", "what it does")]
    rows += [(m.name, "captions" if "captions" in m.needs else labels_needed(m), paper(m), m.summary) for m in chosen]
    columns = [max(len(row[k]) for row in rows) for k in range(3)]
    gap = " " * (2 if width > 80 else 1)
    room = width - sum(columns) - 3 * len(gap)
    for *cells, says in rows:
        yield gap.join([*(c.ljust(n) for c, n in zip(cells, columns)), shortened(says, room)])
    yield ""
    yield "maskwright methods NAME: its options to know; --all: all of them; --json"


def shortened(text: str, room: int) -> str:
    """A sentence in at most `room` characters, cut behind a word."""
    return text if len(text) <= room else textwrap.shorten(text, max(room, 10), placeholder=" ...")


def page(method: type[Method], width: int, every: bool) -> Iterator[str]:
    """A method with its options to know, or with all of them by part."""
    from maskwright.engine.config import describe

    rows = describe(method.Config)
    yield f"{method.name}: {method.summary}"
    yield from textwrap.wrap(f"{method.title}, {method.venue}, {method.link}", width, break_long_words=False)
    yield f"labels needed: {labels_needed(method)}"
    for option, taken in (("--source {}=DATA", method.streams), ("--input {}=PLACE", method.inputs)):
        for name, need in taken.items():
            told = f"{option.format(name)}: {need.says}{'' if need.required else ' (may be left out)'}"
            yield from textwrap.wrap(told, width, break_long_words=False)
    shown = [o for o in rows if every or o["main"]]
    groups: dict[str, list[dict[str, Any]]] = {}
    for o in shown:
        groups.setdefault(o["group"] if every else "", []).append(o)
    for group, options in groups.items():
        yield ""
        yield f"options of {group}" if group else "options, as --set NAME=VALUE"
        for o in options:
            yield from lines_of(o, width)
    yield ""
    rest = len(rows) - len(shown)
    if rest:
        yield f"{rest} more options: maskwright methods {method.name} --all"


def lines_of(o: Mapping[str, Any], width: int) -> list[str]:
    """An option with its default, its range and what it does."""
    told = "; ".join(t for t in (allowed(o), o["says"], formerly(o)) if t)
    first = f"  {o['name']}={written(o['default'])}".ljust(26) + "  "
    lines = textwrap.wrap(told, width - 28, break_long_words=False) or [""]
    if len(first) > 28:
        return [first.rstrip(), *(" " * 28 + line for line in lines)]
    return [first + lines[0], *(" " * 28 + line for line in lines[1:])]


def written(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def allowed(o: Mapping[str, Any]) -> str:
    """The range of an option, or its choices, in words."""
    if o["choices"]:
        return " | ".join(map(written, o["choices"]))
    low, high = (None if o[k] is None else f"{o[k]:g}" for k in ("low", "high"))
    if low is not None and high is not None:
        return f"{low} to {high}"
    if low is not None:
        return f"at least {low}"
    if high is not None:
        return f"at most {high}"
    return {"bool": "true | false", "bool | None": "true | false | none"}.get(o["type"], "")


def formerly(o: Mapping[str, Any]) -> str:
    """The flat name of before, where it says something new."""
    return f"also {o['old']}" if o["old"] not in (o["name"], o["name"].rpartition(".")[2]) else ""

"""The classes or clusters that a run produces: whose names they have, and how many there are."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskwright.data.examining.understanding import highest_id
from maskwright.data.masking.classes import BACKGROUND_NAMES, ClassTable
from maskwright.data.masking.label_rules import VOID
from maskwright.data.masking.survey import survey_masks
from maskwright.engine.streams import mended_source, same_place
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset

DEFAULT_CLUSTERS = 12
"""Clusters where neither `--classes` nor a class table says how many: a few more than most scenes have things."""
OBJECT_NAMES = ("background", "object")
"""The two classes of a method that tells objects from background."""


def known_table(
    target: Dataset, labelled: Mapping[str, Dataset], names: Sequence[str] | None
) -> tuple[ClassTable | None, str]:
    """The class table of a run whose classes are those of labels: names and colours.

    Args:
        target: the run's own data, whose table it is where there is one, so that ids are those of its own masks.
        labelled: the data sets beside it whose masks are learned from. They may have other classes, in another order:
            a class is known by its name.
        names: class names that were given, which go above all tables.

    Returns:
        The table, and whose it is in a few words; None and "" where there is none.

    Raises:
        MaskwrightError: two tables have no class in common, or they number a class differently and names are given
            that are not those of the run's own data, or of which a table has none.
    """
    tables = {"": target.classes, **{name: data.classes for name, data in labelled.items()}}
    found = [(of, table) for of, table in tables.items() if table is not None]
    if names is not None:
        if crossed(table for _, table in found):
            _check_crossed(found, names)
        # Colours stay, where there are as many: masks may be drawn in them.
        colors = next((table.colors for _, table in found if len(table) == len(names)), None)
        table = ClassTable(tuple(names)) if colors is None else ClassTable(tuple(names), colors)
        return table, "that --names gives"
    if not found:
        return None, ""
    (first, table), *others = found
    for of, other in others:
        if not set(other.names) & set(table.names):
            raise _strangers(first, table, of, other)
    return table, f"of the class table of {first}" if first else "of the class table"


def crossed(tables: Iterable[ClassTable]) -> bool:
    """Whether a class has another number in one table than in another: other names for the numbers of all of them
    would then say of one what holds for another."""
    numbers: dict[str, int] = {}
    return any(numbers.setdefault(name, k) != k for table in tables for k, name in enumerate(table.names))


def _check_crossed(found: Sequence[tuple[str, ClassTable]], names: Sequence[str]) -> None:
    """Raises `MaskwrightError` where names, above tables that number a class differently, do not say which is which."""
    own = next((table for of, table in found if not of), None)
    others = [table for of, table in found if of]
    if (own is None or own.names == tuple(names)) and all(set(table.names) & set(names) for table in others):
        return
    tables = "; ".join(f"{of or 'own data'}: {_some(table.names)}" for of, table in found)
    shown = f"--names {','.join((found[0][1] if own is None else own).names)}"
    raise MaskwrightError(
        f"--names {','.join(names)} above class tables that number a class differently ({tables})",
        "names that the tables have, in the order of the run's own data, so that each class is known by its name",
        f"leave --names out, or write {shown}",
    )


def by_number(data: Dataset, table: ClassTable) -> Dataset:
    """A data set whose classes get the names that the run's table has for their numbers; its masks are then checked
    against that."""
    return data if data.classes is not None and data.classes.names == table.names else data.with_classes(table)


def told_by_number(own: ClassTable | None, table: ClassTable) -> str:
    """What `by_number` calls otherwise than a data set's own table, or without one, as a sentence; empty where that is
    nothing."""
    if own is None:
        return f"It names no classes: its ids are taken as {_some([f'{k} = {n}' for k, n in enumerate(table.names)])}."
    changed = [f"{a} is {b}" for a, b in zip(own.names, table.names) if a != b]
    where = "as --names goes above the class table"
    return f"Classes are taken by their numbers, {where}: {_some(changed)}." if changed else ""


def _strangers(a: str, one: ClassTable, b: str, other: ClassTable) -> MaskwrightError:
    whose = [name or "the run's own data" for name in (a, b)]
    return MaskwrightError(
        f"no class of {whose[0]} ({_some(one.names)}) is a class of {whose[1]} ({_some(other.names)})",
        "classes of the same names in both", "mend one of the two classes.txt; --names gives names for both",
    )  # fmt: skip


def in_run_classes(data: Dataset, table: ClassTable) -> Dataset:
    """A labelled data set in the classes of the run, and what its table has, or lacks, as sentences for the run to say.

    Args:
        data: its values understood by a table of its own, which has other classes or another order.
        table: the run's classes.

    Raises:
        MaskwrightError: no pixel of its masks is of a class of the run.
    """
    own = () if data.classes is None else data.classes.names
    more, less = [n for n in own if n not in table.names], [n for n in table.names if n not in own]
    _check_taught(data, own, table)
    told = [f"its classes are taken by their names, {len(own) - len(more)} of {len(own)} of which the run has"]
    if more:
        told.append(f"pixels of {_some(more)} mean no class")
    sentences = [f"{'; '.join(told)}."]
    if less:
        it = "them" if len(less) > 1 else "it"
        sentences.append(
            f"no mask here teaches {_some(less)}; evaluate {without(less)} leaves {it} out of all figures."
        )
    return data.in_classes(table).with_notices(*sentences)


def without(names: Sequence[str]) -> str:
    """The options of `evaluate` that leave classes out: one for all, or one each where a name holds a comma."""
    each = names if any("," in name for name in names) else [",".join(names)]
    return " ".join(f"--without {shlex.quote(name)}" for name in each)


def _check_taught(data: Dataset, own: Sequence[str], table: ClassTable) -> None:
    """Raises `MaskwrightError` where masks show no class that the run has: nothing could be learned from them."""
    shown = {own[k] for seen in survey_masks(data).values() for k in seen.counts(data.rule) if 0 <= k < len(own)}
    if shown & set(table.names):
        return
    there, common = [name for name in own if name in shown], [name for name in own if name in table.names]
    raise MaskwrightError(
        f"masks in {data.root} that show {_some(there)} alone: no pixel is of a class that the run has too "
        f"({_some(common)})",
        f"pixels of a class that both tables have (the run's: {_some(table.names)})",
        "call what is one class by one name in both classes.txt, or take a source that shows one of the run's classes",
    )


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def class_table(
    known: ClassTable | None,
    whose: str = "of the class table",
    *,
    named: bool,
    classes: int | None = None,
    counted: Mapping[str, Dataset] | None = None,
    root: Path | None = None,
) -> tuple[ClassTable, str]:
    """The classes or clusters to produce.

    Args:
        known: the class table, if there is one.
        whose: whose it is, in a few words.
        named: whether the method's classes are those of labels, which have names; else they are clusters.
        classes: how many were asked for, if that was said.
        counted: data sets whose masks say how many there are, where nothing else does.
        root: folder of the run's own data, whose values `--void` says.

    Returns:
        The table, and where it comes from in a few words.

    Raises:
        MaskwrightError: fewer than one, another number than the class table has, or fewer than the masks have ids.
    """
    if classes is not None and classes < 1:
        raise MaskwrightError(f"--classes {classes}", "at least 1")
    if known is not None and classes in (None, len(known)):
        if named:
            return known, f"the {len(known)} {whose}"
        return (
            ClassTable.numbered(len(known)),
            f"{len(known)} clusters without names, as many as the class table has classes",
        )
    if classes is not None and named and known is not None:
        raise MaskwrightError(
            f"--classes {classes} and a class table of {len(known)}", "the same number", "leave --classes out"
        )
    masks = {n: data for n, data in (counted or {}).items() if data.labels_present()["masks"]} if named else {}
    if classes is not None:
        # The number was said: masks are compared with it where they were looked at anyway, and taught nothing.
        tops = {name: highest_id(data, note=False) for name, data in masks.items() if data.checked}
        if (top := max(tops.values(), default=-1)) >= classes:
            name = max(tops, key=tops.__getitem__)
            left = f", or if ids from {classes} on mean no class: {_without_ids(name, masks[name], classes, root)}"
            raise MaskwrightError(
                f"--classes {classes} and masks with ids up to {top}", "a class for each id",
                f"add --classes {top + 1}{left}",
            )  # fmt: skip
        return ClassTable.numbered(classes), f"{classes} {'classes' if named else 'clusters'}, as asked"
    if masks:
        count = max(highest_id(data) for data in masks.values()) + 1
        return ClassTable.numbered(count), f"{count}, up to the highest id in the masks that may be read"
    return (
        ClassTable.numbered(DEFAULT_CLUSTERS),
        f"{DEFAULT_CLUSTERS} clusters, the default where neither --classes nor a class table says how many",
    )


def _without_ids(name: str, data: Dataset, first: int, root: Path | None) -> str:
    """The options by which ids from `first` on mean no class in the masks of a data set, wherever it lies."""
    meant = [pair for seen in survey_masks(data).values() for pair in seen.meaning(data.rule).items()]
    void = sorted({value for value, k in meant if k >= first or k == VOID})
    option = f"--void {','.join(map(str, void))}"
    if root is None or same_place(data.root, root):
        return option
    return mended_source(name, data.root, f" {option}")


def object_table(
    target: ClassTable | None, names: Sequence[str] | None = None, classes: int | None = None
) -> tuple[ClassTable, str]:
    """The two classes of a method that tells objects from background.

    Args:
        target: classes of the run's own data, whose names are taken where they are two, the first of them background.
        names: that were given, which go above all.
        classes: how many were asked for, if that was said.

    Returns:
        The table, and where it comes from in a few words.

    Raises:
        MaskwrightError: another number of names or classes.
    """
    if names is not None and len(names) != len(OBJECT_NAMES):
        raise MaskwrightError(
            f"{len(names)} names ({', '.join(names)})", "two, of the background and of an object", "leave --names out"
        )
    if classes not in (None, len(OBJECT_NAMES)):
        raise MaskwrightError(
            f"--classes {classes} and a method that tells objects from background", "2", "leave --classes out"
        )
    if names is not None:
        return ClassTable(tuple(names)), "the 2 that --names gives"
    if target is not None and len(target) == len(OBJECT_NAMES) and target.names[0].lower() in BACKGROUND_NAMES:
        return target, "the 2 of the class table"
    return ClassTable(OBJECT_NAMES), f"{' and '.join(OBJECT_NAMES)}, whatever classes the labels have"

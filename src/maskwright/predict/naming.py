"""Clusters become classes: names as people give them, checked, and the segmenter that has them.

Legend: K clusters (or classes) of the model as it is, C classes of the model that is made.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maskwright.data.masking.classes import IGNORE_NAMES, ClassTable
from maskwright.data.trust.ledger import NAMES
from maskwright.errors import MaskwrightError
from maskwright.models.parts.named_clusters import VOID, NamedClusters
from maskwright.models.segmenter import Segmenter

VOID_NAME = "void"
"""How a table says that a cluster has no class; the other words of `IGNORE_NAMES` say so too."""


class Naming(NamedTuple):
    """Which class each cluster is.

    Attributes:
        class_of: the class of each of the K, or -1 (void).
        table: the C classes.
        notices: what was decided, in sentences.
    """

    class_of: tuple[int, ...]
    table: ClassTable
    notices: tuple[str, ...] = ()


def renamed(segmenter: Segmenter, names: Mapping[int | str, str | None], table: ClassTable | None = None) -> Segmenter:
    """A segmenter whose clusters have names; it shares its parts with the one given.

    Args:
        segmenter: of K classes or clusters.
        names: by id or present name; see `Model.rename`.
        table: names and colours of the classes.

    Raises:
        MaskwrightError: as `settle_names`.
    """
    listed = by_cluster(names, segmenter.classes)
    return with_naming(segmenter, settle_names(listed, segmenter.classes, table))


def with_naming(segmenter: Segmenter, naming: Naming) -> Segmenter:
    """The segmenter with what `settle_names` found, its names counted as labels it was given."""
    before, class_of = segmenter.naming, naming.class_of
    clusters = segmenter.classifier
    if before is not None:  # its classes are made of clusters already: these go on to the new ones
        clusters = before.clusters
        class_of = tuple(class_of[c] if c >= 0 else VOID for c in before.class_of.tolist())
    classifier = NamedClusters(clusters, class_of, len(naming.table))
    made = Segmenter(
        segmenter.encoder, segmenter.decoder, classifier.to(next(iter(segmenter.parameters())).device), naming.table,
        segmenter.preprocess, segmenter.provenance, segmenter.method, segmenter.notes,
    )  # fmt: skip
    read = segmenter.extra.get("labels_read")
    read = dict(read) if isinstance(read, Mapping) else {}
    train = read.get("train")
    read["train"] = {**(train if isinstance(train, Mapping) else {}), NAMES: len(class_of)}
    made.extra = {**segmenter.extra, "labels_read": read}
    if "background" in made.extra and made.extra["background"] not in naming.table.names:
        made.extra.pop("background")  # it named a class of before
    return made.train(segmenter.training)


def by_cluster(names: Mapping[int | str, str | None], table: ClassTable) -> list[str | None]:
    """What was said of each of the K, in their order.

    Raises:
        MaskwrightError: an unknown id or name, one given twice, or some that nothing is said of.
    """
    said: dict[int, str | None] = {}
    for key, name in names.items():
        k = _place(key, table)
        if k in said:
            raise MaskwrightError(f"two names for {table.names[k]}", "one each", "leave one out")
        said[k] = VOID_NAME if name is None else name
    return [said.get(k) for k in range(len(table))]


def _place(key: int | str, table: ClassTable) -> int:
    if isinstance(key, str) and key in table.names:
        return table.names.index(key)
    if isinstance(key, int | np.integer) and not isinstance(key, bool) and 0 <= key < len(table):
        return int(key)
    raise MaskwrightError(
        f"a name for {key!r}, which this model does not have",
        f"a number from 0 to {len(table) - 1} or one of {', '.join(table.names[:12])}", "leave it out",
    )  # fmt: skip


def settle_names(
    names: Sequence[str | None], clusters: ClassTable, table: ClassTable | None = None, where: str = "the names"
) -> Naming:
    """Classes from the name of each cluster.

    Args:
        names: K names; None or "" where none was given.
        clusters: the K as they are, for their colours.
        table: names and colours of classes, in the order of their ids, which go before; names that it does not hold
            come behind. One that shares no name with `names` is left aside.
        where: where the names stand, for messages.

    Raises:
        MaskwrightError: some have no name, a name is a number or differs from another in its case alone, or all are
            void.
    """
    found = [(name or "").strip() for name in names]
    if empty := [k for k, name in enumerate(found) if not name]:
        raise MaskwrightError(
            f"{where}: {_listed(empty)} without a name", "a name for each, or void",
            f"write {VOID_NAME} for those that mean no class",
        )  # fmt: skip
    for k, name in enumerate(found):
        if _is_number(name):
            raise MaskwrightError(
                f"{where}: cluster {k} has the name {name}, a number", "a word",
                f"write the same word for clusters that are one class, as for cluster {name}"
                if name.isdigit() and int(name) < len(found) and int(name) != k
                else "write a word, as class-" + name.strip("+-"),
            )  # fmt: skip
    void = [name.casefold() in IGNORE_NAMES for name in found]
    used = list(dict.fromkeys(name for name, none in zip(found, void) if not none))
    if not used:
        raise MaskwrightError(f"{where}: every cluster is void", "at least one class", "name one of them")
    notices: list[str] = []
    known = table if table is not None and set(used) & set(table.names) else None
    _no_twins(used, known, where)
    if table is not None and known is None:
        notices.append("None of the names is in the class table of the data: ids follow the order of the clusters.")
    first = {name: found.index(name) for name in used}
    own = list(known.names) if known is not None else []
    new = [name for name in used if name not in own]
    if known is not None and new:
        notices.append(f"Not in the class table of the data, so behind it: {', '.join(map(_nearest(own), new))}.")
    colors = [*(known.colors if known is not None else ()), *(clusters.colors[first[name]] for name in new)]
    made = ClassTable((*own, *new), np.array(colors, np.uint8).reshape(-1, 3))
    ids = {name: n for n, name in enumerate(made.names)}
    class_of = tuple(VOID if none else ids[name] for name, none in zip(found, void))
    return Naming(class_of, made, tuple(notices))


def _nearest(known: Sequence[str]):
    """Tells a new name, with the class that it may have been meant for."""

    def told(name: str) -> str:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        return f"{name} (did you mean {close[0]}?)" if close else name

    return told


def _no_twins(used: Sequence[str], table: ClassTable | None, where: str) -> None:
    seen = {name.casefold(): name for name in (table.names if table is not None else ())}
    for name in used:
        other = seen.setdefault(name.casefold(), name)
        if other != name and name not in (table.names if table is not None else ()):
            raise MaskwrightError(
                f"{where}: {name!r} and {other!r} differ in their case alone", "one way to write a class",
                f"write {other} for both",
            )  # fmt: skip


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return name.casefold().strip("+-") not in ("nan", "inf", "infinity")


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"cluster{'s' if len(numbers) > 1 else ''} {shown}"

"""A stage that makes proposals: its store tells whose they are and which labels those saw.

Another run takes them by `--input NAME=RUN`, or by the store's own folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Holds, Proposals, SoftMap
from maskwright.engine.distributed import barrier, each

if TYPE_CHECKING:
    from maskwright.engine.context import Context

PROPOSALS = "proposals"
"""The store's folder in that of the stage."""


def propose(
    context: Context,
    folder: Path,
    holds: Holds,
    says: str,
    make: Callable[[int], LabelMap | SoftMap],
    labels_seen: str | None = None,
    chosen: Sequence[int] | None = None,
) -> Proposals:
    """Makes proposals for each photograph of the run; those that are there already stay, so that a killed run goes on.

    Args:
        context: of the run.
        folder: of the stage.
        holds: what is proposed.
        says: by whom, in a few words.
        make: the proposals for the photograph of this index, at its size.
        labels_seen: the labels that whoever makes them saw; None: those of the run's backbone.
        chosen: indices of the photographs; None: all.
    """
    seen = context.backbone.provenance.labels_seen if labels_seen is None else labels_seen
    classes = context.table if holds == "classes" else None
    if context.run.writes:
        Proposals.begin(folder / PROPOSALS, holds, says, seen, classes)
    barrier()
    store = Proposals.begin(folder / PROPOSALS, holds, says, seen, classes)
    items = context.data.items
    for i in each(
        context.progress,
        range(len(items)) if chosen is None else chosen,
        "proposals",
        done=lambda i: items[i].name in store,
    ):
        store.write(items[i].name, make(i), items[i].image)
    return store

"""The stage that makes pseudo masks of class maps: a threshold, label maps, and what the report shows of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskwright.data.trust.artefacts import read_record, write_record
from maskwright.data.trust.files import write_json
from maskwright.engine.distributed import barrier, share
from maskwright.recipes.tags.options import SeedOptions
from maskwright.recipes.tags.seeds import Label, write_seeds
from maskwright.recipes.tags.showing import Way, what_is_shown
from maskwright.recipes.tags.telling import note_threshold
from maskwright.recipes.tags.thresholds import Threshold, choose_threshold, sweep_thresholds

if TYPE_CHECKING:
    from maskwright.engine.context import Context

THRESHOLD = "threshold.json"
CURVE = "curve.json"


def make_seeds(
    context: Context,
    options: SeedOptions,
    way: Way,
    folder: Path,
    known: Threshold | None = None,
    label: Label | None = None,
) -> None:
    """Chooses the threshold, writes the label maps of all tagged images, and what the report shows.

    Args:
        context: of the run.
        options: what was asked for.
        way: the maps, and the store that label maps go to.
        folder: of the stage.
        known: the threshold of maps that say themselves where background begins.
        label: another way to labels than a threshold, which is then `known` and only told.
    """
    data, targets, store = context.data, way.targets, way.last
    threshold = choose_threshold(options, store, data, targets, context.classes, known)
    note_threshold(context, threshold, targets)
    mine = share(targets.indices(data))
    work = write_seeds(
        store, data, mine, way.labels, targets.background, threshold.value, band=options.band, crf=options.crf,
        label=label,
    )  # fmt: skip
    for _ in context.progress.track(work, "seeds", len(mine)):
        pass
    barrier()
    if context.run.writes:
        write_record(folder / THRESHOLD, {"threshold": threshold.value, "why": threshold.why})
        sweep = None
        if options.threshold_curve:  # of the maps, before any CRF; the masks are noted as read to judge
            sweep = sweep_thresholds(store, data, targets, context.classes, "evaluate")
            write_json(folder / CURVE, sweep.records())
        what_is_shown(way, threshold=threshold, sweep=sweep, judge=options.judge).write(folder)
    barrier()


def read_threshold(folder: Path) -> float:
    """The threshold that a seeds stage chose."""
    repair = f"delete {folder} and repeat the command with --resume"
    record = read_record(folder / THRESHOLD, {"threshold": float}, what="the threshold of its stage", repair=repair)
    return float(record["threshold"])

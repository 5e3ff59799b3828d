"""The stage that reads tags: what each image is tagged with, for all stages behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskwright.data.training.tag_targets import TagTargets, find_targets
from maskwright.engine.distributed import barrier
from maskwright.recipes.tags.telling import note_targets

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.recipes.tags.options import TagOptions


def read_targets(context: Context, options: TagOptions, folder: Path) -> TagTargets:
    """Reads the tags of the run's images, leaves them in a folder, and tells the report of them.

    Raises:
        MaskwrightError: as `find_targets`.
    """
    targets = find_targets(context.data, context.table, from_masks=options.from_masks, background=options.background)
    note_targets(context, targets)
    if context.run.writes:
        targets.save(folder)
    barrier()
    return targets

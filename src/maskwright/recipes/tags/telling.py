"""What a run on tags says of them and of its threshold, as it goes and in its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskwright.data.training.tag_targets import TagTargets
from maskwright.recipes.tags.thresholds import Threshold

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.models.segmenter import Segmenter


def note_targets(context: Context, targets: TagTargets) -> None:
    """Tells the report what is tagged, what is not, and what stands for the background."""
    silent = len(context.data) - len(targets.tagged)
    empty = sum(not c for c in targets.tagged.values())
    context.note(
        f"Tags: {len(targets.tagged)} of {len(context.data)} images have {targets.source} to take them from"
        + (f"; {silent} have none and train only what needs no tags" if silent else "")
        + (f"; {empty} say that no class is there" if empty else "")
        + "."
    )
    if targets.background is None:
        context.note("Tags: no class stands for the background, so pixels without evidence stay without a label.")
    else:
        context.note(f"Tags: {context.table.names[targets.background]!r} is the class that no tag names.")
    never = [name for name, n in zip(targets.names, targets.counts().tolist()) if n == 0]
    if never:
        context.note(
            f"Tags: never tagged, so never found: {', '.join(never[:12])}{', ...' if len(never) > 12 else ''}."
        )


def note_stride(context: Context, stride: int, wanted: int) -> None:
    """Tells the report of maps that are coarser than was asked for (0: as the network is)."""
    if wanted and stride > wanted:
        context.note(f"Maps: one cell is {stride} pixels; the backbone cannot be dilated to {wanted}.")


def note_threshold(context: Context, threshold: Threshold, targets: TagTargets) -> None:
    """Tells the report where background ends, or labels end, and why."""
    value, why = threshold
    if value == 0:
        context.note(f"Seeds: a pixel takes its largest map's class whatever its value (threshold 0), {why}.")
        return
    what = "has no label" if targets.background is None else "is background"
    context.note(f"Seeds: a pixel {what} below {value:.3f} of a map's maximum, {why}.")


def named_background(segmenter: Segmenter, targets: TagTargets) -> Segmenter:
    """The model remembers what no tag names, for predictions on photographs with tags."""
    ground = targets.background
    segmenter.extra["background"] = "none" if ground is None else segmenter.classes.names[ground]
    return segmenter

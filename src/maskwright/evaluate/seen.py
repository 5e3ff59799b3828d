"""Photographs that a run was trained on, among those that its masks are judged on."""

from __future__ import annotations

from collections.abc import Sequence

from maskwright.data.examining.findings import some
from maskwright.data.folders.folder import Dataset
from maskwright.data.trust.photographs import Photographs
from maskwright.errors import MaskwrightError


def without_seen(
    data: Dataset, present: Sequence[tuple[str, int]], runs: Sequence[Photographs]
) -> tuple[list[tuple[str, int]], list[str]]:
    """The images that none of these runs saw, and what is to be said of the others.

    Args:
        data: the truth.
        present: (name, place in `data`) of the images to judge.
        runs: whose photographs are left out.

    Raises:
        MaskwrightError: none are left.
    """
    notes, left = [], list(present)
    for run in runs:
        seen = [name for name, i in left if run.seen(data, i)]
        left = [(name, i) for name, i in left if name not in set(seen)]
        notes.append(f"{len(seen)} of {len(present)} images left out: {run.run} was trained on them ({some(seen)})")
        if not seen:
            notes[-1] = f"0 of {len(present)} images left out: {run.run} was trained on none of them"
    if present and not left:
        raise MaskwrightError(
            f"{some([str(run.run) for run in runs])} saw all of the {len(present)} photographs to judge",
            "photographs that it was not trained on",
            "give another folder or --split, or leave --exclude-run out",
        )
    return left, notes


def seen_notes(data: Dataset, judged: Sequence[tuple[str, int]], runs: Sequence[Photographs]) -> list[str]:
    """What is to be said where images judged were trained on by the runs that the predictions come from."""
    notes = []
    for run in runs:
        how = [found for _, i in judged if (found := run.seen(data, i))]
        if how:
            masks = how.count("mask")
            labels = f" and on the masks of {masks}" if masks else ", on no mask of theirs"
            notes.append(
                f"{len(how)} of the {len(judged)} photographs judged are among those that {run.run} was trained on"
                f"{labels}; --exclude-run {run.run} leaves them out"
            )
    return notes

"""What must be certain of a data set's values before anything learns from them or is judged by them.

Every verb asks here, once, and says what comes back. What is uncertain is an error that names the option which
settles it; nothing is guessed that would change a number without a word.
"""

from __future__ import annotations

from collections.abc import Callable

from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.label_check import FILE_KINDS, check_labels
from maskwright.data.masking.label_rules import VOID
from maskwright.data.masking.survey import survey_masks
from maskwright.data.pictures.picture_facts import scaled


def understand(
    data: Dataset, *, masks: bool, images: bool = True, progress: Callable[[int, int], object] | None = None
) -> Dataset:
    """The data set with its values understood.

    Args:
        data: the images; only masks that may be read are looked at.
        masks: whether masks will be read. Without, none is opened.
        images: whether pixels of images will be read. Without, only their sizes are of interest.
        progress: called with (done, total) after each file that is looked at.

    Returns:
        The same images whose readers give what the stored values mean; what was found is in `.notices`.

    Raises:
        MaskwrightError: what the values mean is not certain; names the option that says it.
    """
    data = scaled(data) if images else data
    if masks and not data.checked:
        data = understand_masks(data, progress)
    return data


def understand_masks(
    data: Dataset, progress: Callable[[int, int], object] | None = None, *, files: bool = True
) -> Dataset:
    """The data set with the rule that turns the stored values of its masks into ids.

    Args:
        data: the images; only masks that may be read are looked at, and nothing is noted in the ledger.
        progress: called with (done, total) after each mask.
        files: whether a mask that cannot be read or does not fit its image is an error here; without, it is one
            when that mask is read.

    Raises:
        MaskwrightError: as `understand`.
    """
    checked = check_labels(data, survey_masks(data, progress))
    for found in checked.findings:
        if found.severity == "error" and (files or found.kind not in FILE_KINDS):
            raise found.error()
    return data.with_rule(checked.rule, checked=files).with_notices(*checked.notices())


def highest_id(data: Dataset, *, note: bool = True) -> int:
    """The highest class id of the masks that may be read, at least 0.

    Args:
        data: the images.
        note: note each mask in the ledger, because the number of classes is learned from them.

    Raises:
        MaskwrightError: as `understand`.
    """
    data = understand(data, masks=True)
    highest = 0
    for i, seen in survey_masks(data).items():
        if note:
            data.ledger.note("masks", data.items[i].name)
        highest = max(highest, *(v for v in seen.meaning(data.rule).values() if v != VOID), 0)
    return highest

"""What must be certain of a data set's values before anything learns from them or is judged by them.

Every verb asks here, once, and says what comes back. What is uncertain is an error that names the option which
settles it; nothing is guessed that would change a number without a word.
"""

from __future__ import annotations

from collections.abc import Callable

from maskwright.data.folder import Dataset
from maskwright.data.picture_facts import scaled


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
    return scaled(data) if images else data

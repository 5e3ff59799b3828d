"""Which stored values are black and white in a data set whose images have more than 8 bits a channel.

The range is found once for all images of a folder, so that two frames of a series keep their difference in brightness,
a stray pixel changes nothing, and colour and grey are treated alike. In this order:

1. what was said (`--range LOW,HIGH`), of which `Dataset.value_range` knows;
2. what the files state, if all that state a range agree and their values keep to it: 10, 12 or 14 bits, the tags
   SMaxSampleValue and MaxSampleValue of TIFF, sBIT of PNG, the largest value of PNM;
3. the pixels of up to 64 files, spread over the folder. Whole numbers: the smallest of 8, 10, 12, 14 and 16 bits that
   holds 99.99 % of them. Floats: 0 to 1, or 0 to 255, where 99.8 % lie there. Values that use less than a quarter of
   such a range, or fit none, are measured: from below 0.1 % of them to above 99.9 %.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from maskwright.data.folders.scan import threaded
from maskwright.data.pictures.deep import FILLED, Span, kind_of, quantiles
from maskwright.data.pictures.headers import Header
from maskwright.data.pictures.images import read_header, stored_values
from maskwright.errors import MaskwrightError

FILES = 64
"""Files whose pixels are looked at, at most."""
PIXELS = 1 << 16
"""Pixels of each that are taken, at most."""
_BITS = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class Scale:
    """The range of a data set.

    Attributes:
        low: the stored value that becomes 0.
        high: the one that becomes 255.
        why: where that is from, to follow "because" ("99.99 % of the pixels lie below 4096").
    """

    low: float
    high: float
    why: str

    @property
    def span(self) -> Span:
        """(low, high)."""
        return self.low, self.high


def survey_scale(
    paths: Sequence[str | os.PathLike[str]],
    header: Callable[[str | os.PathLike[str]], Header] = read_header,
) -> Scale | None:
    """The range of some images.

    Args:
        paths: the files; those that cannot be read are left out.
        header: gives the header of a file.

    Returns:
        The scale, or None where no file has more than 8 bits a channel.

    Raises:
        MaskwrightError: whole numbers and floats are mixed, so that no range holds for both.
    """
    heads = threaded(partial(_header, header), paths)
    deep = [(path, head) for path, head in zip(paths, heads) if head is not None and head.deep]
    if not deep:
        return None
    floats = [path for path, head in deep if head.sample == "float"]
    if 0 < len(floats) < len(deep):
        raise MaskwrightError(
            f"{len(floats)} images hold floats and {len(deep) - len(floats)} whole numbers of more than 8 bits "
            f"({os.path.basename(floats[0])} is the first of floats)",
            "one kind of number in a folder, or the values that are black and white in both",
            "--range 0,65535 (range=(0, 65535) in Python), or put them into two folders",
        )
    chosen = deep[:: max(1, math.ceil(len(deep) / FILES))]
    parts = [part for part in threaded(_sample, chosen) if part is not None]
    if not parts:
        return Scale(*deep[0][1].type_range, "its type holds that, and none of the images can be read")
    values = np.concatenate([p.astype(np.float64) for p in parts])
    return choose_scale(values, [head for _, head in chosen])


def choose_scale(values: np.ndarray, headers: Sequence[Header]) -> Scale:
    """The range of pooled values, as this module's page says from 2. on.

    Args:
        values: float64 (N,), finite or not.
        headers: of the files that they are from; all of whole numbers, or all of floats.
    """
    least, most, highest = quantiles(values, (0.001, 0.999, 0.9999))
    states = {head.stated for head in headers if head.stated is not None}
    if len(states) == 1:
        low, high = states.pop()
        if low <= least and highest <= high:
            return Scale(low, high, "the files state it")
    if any(head.sample == "float" for head in headers):
        if least >= -0.05 and most <= 1.05:
            found = Scale(0.0, 1.0, "99.8 % of the pixels lie there")
        elif least >= -0.05 * 255 and 1.5 < most <= 255 * 1.05:
            found = Scale(0.0, 255.0, "99.8 % of the pixels lie there")
        else:
            return _measured(least, most)
    else:
        bits = next((b for b in _BITS if highest <= 2**b - 1), None)
        if bits is None or least < 0:
            return _measured(least, most)
        found = Scale(0.0, float(2**bits - 1), f"99.99 % of the pixels fit into {bits} bits")
    if most - least < FILLED * (found.high - found.low) and most > least:
        return _measured(least, most)
    return found


def _measured(least: float, most: float) -> Scale:
    if most <= least:
        return Scale(least, least + 1, "all pixels have the same value")
    return Scale(least, most, "99.8 % of the pixels lie there, and they fill no usual range")


def _header(header: Callable[[str | os.PathLike[str]], Header], path: str | os.PathLike[str]) -> Header | None:
    try:
        return header(path)
    except MaskwrightError:
        return None


def _sample(deep: tuple[str | os.PathLike[str], Header]) -> np.ndarray | None:
    """Some pixels of a file, evenly spread, without those of no data; None if it cannot be read."""
    path, head = deep
    try:
        values = stored_values(path)
    except MaskwrightError:
        return None
    rows = values.reshape(-1, values.shape[-1])
    pixels = rows[:: max(1, math.ceil(len(rows) / PIXELS))].ravel()
    if head.tiff is not None and head.tiff.nodata is not None:
        pixels = pixels[pixels != head.tiff.nodata]
    return pixels


def describe(scale: Scale, headers: Iterable[Header]) -> str:
    """The sentence that says a scale: which files, which range, from what."""
    kinds: dict[str, int] = {}
    for head in headers:
        kinds[kind_of(head)] = kinds.get(kind_of(head), 0) + 1
    count = sum(kinds.values())
    what = " and ".join(sorted(kinds, key=lambda k: -kinds[k])[:3])
    return (
        f"{count} image{'s have' if count != 1 else ' has'} more than 8 bits ({what}): {scale.low:.6g} is black and "
        f"{scale.high:.6g} white in all of them, because {scale.why}"
    )

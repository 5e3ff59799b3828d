"""Whether the towers can be had that masks from class names need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maskwright.errors import MaskwrightError
from maskwright.models.towers.groupvit.files import find_group_pair
from maskwright.models.towers.names import class_words
from maskwright.models.towers.other_text import check_texts
from maskwright.models.towers.pairs import find_pair, open_clip_module

GIVEN_ALONE = ("random", "package")
"""Weights that are those of no pair of towers."""


class Words(NamedTuple):
    """What class names are good for in a run.

    Attributes:
        method: that takes them; empty where none can.
        lacking: why none can, and what to do, as the end of a sentence; empty where there is no name.
    """

    method: str = ""
    lacking: str = ""


def words_at_hand(
    names: Sequence[str], captions: bool, backbone: str = "auto", weights: str | Path | None = None
) -> Words:
    """Which method class names are for: `groupvit` where captions are there too, else `maskclip`.

    Its towers are looked for as the run itself will do, so that they are at hand afterwards.

    Args:
        names: the class names; empty where there are none.
        captions: whether photographs have captions.
        backbone, weights: as the run is given them.
    """
    if not names:
        return Words("", "captions alone name no classes: give --names" if captions else "")
    try:
        class_words(names)
    except MaskwrightError as error:
        return Words("", f"{error.found}: {error.repair}")
    finders: dict[str, tuple[str, Callable[[str, str | None], Any]]] = {
        **({"groupvit": ("groupvit", find_group_pair)} if captions else {}),
        "maskclip": ("clip", find_pair),
    }
    lacking = ""
    for method, (tower, find) in finders.items():
        name = tower if backbone == "auto" else backbone
        if not name.startswith(tower) or str(weights) in GIVEN_ALONE:
            lacking = lacking or f"the {'weights' if name.startswith(tower) else 'backbone'} asked for know no words"
            continue
        try:
            pair = find(name, None if weights is None else str(weights))
            pair.tensors()  # a file of another kind is no such pair
        except MaskwrightError as error:
            lacking = f"{error.found}: {error.repair}"
            continue
        try:
            if method == "groupvit":
                open_clip_module()  # its tokens
            else:
                check_texts(pair)
        except MaskwrightError as error:  # the towers are there: what reads names is all that is lacking
            return Words("", f"{error.found}: {error.repair}")
        return Words(method)
    return Words("", lacking)

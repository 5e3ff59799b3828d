"""What the names of files and folders say: photographs, masks, splits, results."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from maskwright.data.folders.scan import same_form


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IMAGE_FOLDERS = _words(
    "images image imgs img imgdir photos photo photographs pictures picture pics jpegimages jpegs leftimg8bit rgb "
    "frames tiles input inputs original originals raw"
)
"""What folders of photographs are called, without case and signs between words."""
MASK_FOLDERS = _words(
    "masks mask maskdir labels label labelmaps labelimages annotations annotation annots annot anndir gt gts "
    "groundtruth groundtruths truth segmentation segmentations seg segs segmentationclass segmentationclasspng "
    "segmentationclassaug segmaps targets target maskspng pngmasks trimaps"
)
"""What folders of masks are called, without case and signs between words."""
SPLIT_WORDS = ("training", "train", "validation", "valid", "val", "testing", "test", "dev")
"""What folders of a split are called, longer words first."""
MASK_ENDINGS = (
    "_segmentation", "_labelids", "_labels", "_label", "_masks", "_mask", "_gt", "_seg", "_segm", "_l", "_annotation",
    "_groundtruth", "_truth",
)  # fmt: skip
"""What the name of a mask adds to that of its image, lower case; "-", "." and a blank do as well as "_"."""
IMAGE_ENDINGS = ("_image", "_img", "_rgb", "_sat", "_photo", "_leftimg8bit")
"""What the name of an image may have where the mask's has one of `MASK_ENDINGS`."""
RESULTS = _words(
    "results result predictions prediction predicted preds pred outputs output runs run overlays confidence checkpoints"
)
"""What folders of results are called; they hold no photographs to learn from."""
RESULT_FILES = frozenset({"run.json", "model.safetensors"})
"""A folder with one of these is a run."""


def plain_stem(file: str) -> str:
    """A mask's file name in lower case, without folder, suffix and ending (`_mask`, `_gt`, ...)."""
    return without_ending(os.path.splitext(os.path.basename(file))[0].lower(), MASK_ENDINGS)[0]


def without_ending(stem: str, endings: Sequence[str]) -> tuple[str, str]:
    """(stem without its ending, the ending as it is written); the ending is "" where there is none."""
    found = _pattern(tuple(endings)).search(stem)
    return (stem[: found.start()], found[0]) if found else (stem, "")


@cache
def _pattern(endings: tuple[str, ...]) -> re.Pattern[str]:
    words = "|".join(re.escape(ending[1:]) for ending in endings)
    return re.compile(rf"(?<=.)[_\-. ](?:{words})\Z", re.IGNORECASE | re.DOTALL)


def plain(name: str) -> str:
    return re.sub(r"[\s_.\-]+", "", name.casefold())


def role_of(name: str) -> tuple[str, str]:
    """(split word or "", "image", "mask" or "split") that a folder's name says; ("", "") where it says nothing."""
    text = plain(name)
    for word in ("", *SPLIT_WORDS):
        rests = [text.removeprefix(word)] if text.startswith(word) else []
        rests += [text.removesuffix(word)] if text.endswith(word) else []
        for rest in rests:
            if rest in IMAGE_FOLDERS:
                return word, "image"
            if rest in MASK_FOLDERS:
                return word, "mask"
            if word and not rest:
                return word, "split"
    return "", ""


def meet(images: Mapping[str, Path], masks: Mapping[str, Path]) -> tuple[dict[str, str], str, tuple[str, str] | None]:
    """Which mask belongs to which image.

    Names meet whatever their Unicode form. Only where not one is the same, the endings of `MASK_ENDINGS` and
    `IMAGE_ENDINGS` are left out, and the case.

    Returns:
        ({name of the image: name of the mask}, the masks' ending where one was left out, two masks of one image).
    """
    forms = {same_form(name): name for name in images}
    pairs = {forms[form]: mask for mask in masks if (form := same_form(mask)) in forms}
    if pairs or not masks:
        return pairs, "", None
    bases: dict[str, str | None] = {}
    for name in images:
        base = without_ending(same_form(name), IMAGE_ENDINGS)[0].casefold()
        bases[base] = None if base in bases else name
    endings: Counter[str] = Counter()
    for mask in masks:
        stem, ending = without_ending(same_form(mask), MASK_ENDINGS)
        image = bases.get(stem.casefold())
        if image is None:
            continue
        if image in pairs:
            return pairs, "", (pairs[image], mask)
        pairs[image] = mask
        endings[ending or "another case"] += 1
    return pairs, " or ".join(e for e, _ in endings.most_common()), None


def base_of(name: str, images: Mapping[str, Path]) -> str | None:
    """The image whose mask a file is by its name's ending, in the same folder; None where there is none."""
    base, ending = without_ending(name, MASK_ENDINGS)
    if not ending or base.endswith("/"):
        return None
    if base in images:
        return base
    return next((base + e for e in IMAGE_ENDINGS if base + e in images), None)


def suffix_of(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")

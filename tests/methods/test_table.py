"""Which method `auto` takes, by the labels that are there."""

from __future__ import annotations

import pytest

from maskwright.errors import MaskwrightError
from maskwright.methods import METHODS, TABLE
from maskwright.methods.choosing import PREFERENCES, choose, choose_method


def chosen(images: int, source: bool = False, **labels: int) -> tuple[str, str]:
    return choose_method({"masks": 0, "tags": 0, "captions": 0, **labels}, images, source)


def test_a_few_masks_among_many_images_are_for_unimatch():
    assert chosen(367, masks=12) == ("unimatch", "unimatch, because some images have masks (12 of 367)")
    assert chosen(8, masks=1)[0] == "unimatch"
    assert chosen(8, masks=7, tags=8)[0] == "unimatch"


def test_masks_on_every_image_are_for_supervised_training():
    name, why = chosen(367, masks=367)
    assert name == "supervised"
    assert "every image has a mask (367 of 367)" in why


def test_no_labels_and_no_images():
    assert chosen(100)[0] == "stego"
    assert chosen(3)[0] == "kmeans"
    with pytest.raises(MaskwrightError, match="no image"):
        chosen(0)


def test_preferences_name_methods_that_can_use_the_label():
    known = [(kind, n) for kind, _, names in PREFERENCES for n in names if n in TABLE]
    assert known
    assert all(kind in METHODS[n].needs for kind, n in known)


def test_what_is_left_aside_is_told():
    name, why = chosen(20, source=True, masks=20)
    if name == "supervised":  # no method of the table takes a source
        assert why.endswith("; no method here uses the source")
    else:
        assert "source" in METHODS[name].needs

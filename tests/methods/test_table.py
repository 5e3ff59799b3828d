"""Which method `auto` takes, by the labels that are there."""

from __future__ import annotations

import pytest

from maskwright.cli.methods import page
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods import METHODS, TABLE
from maskwright.methods.choosing import PREFERENCES, choose, choose_method, settings_of
from maskwright.recipes.language.at_hand import Words


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


@pytest.mark.parametrize(
    ("name", "settings"), [("clip_seg", {"variant": "proxyclip"}), ("uda_sod", {"objects.of": "alpha"})]
)
def test_what_options_make_a_method_take_its_class_names_for_who_asks(name, settings):
    """`maskwright methods NAME` shows what the class names."""
    method = METHODS[name]
    config = configure(method.Config, settings)
    terms = method.terms(config)
    inputs, streams = terms.inputs, terms.taken
    assert set(inputs) <= set(method.inputs) and set(streams) - {"source"} <= set(method.streams)
    shown = "\n".join(page(method, 400, False))
    assert all(f"--input {k}=PLACE: {n.says} (may be left out)" in shown for k, n in inputs.items())
    assert all(f"--source {k}=DATA: {n.says} (may be left out)" in shown for k, n in streams.items() if k != "source")


def test_class_names_are_for_towers_where_nothing_else_is_there():
    none = {"masks": 0, "tags": 0, "captions": 0}
    assert choose_method(none, 20, words=lambda: Words("maskclip")) == (
        "maskclip", "maskclip, because class names are all there is",
    )  # fmt: skip
    captions = none | {"captions": 20}
    assert choose_method(captions, 20, words=lambda: Words("maskclip"))[1].endswith(
        "; it does not use the captions that are there"
    )
    name, why = choose_method(captions, 20, words=lambda: Words("groupvit"))
    assert name == "groupvit" and why.endswith("because class names and captions are all there is")
    name, why = choose_method(none, 20, words=lambda: Words("", "no tower: install it"))
    assert name == "stego" and why.endswith("; it does not use the class names, because no tower: install it")
    never = pytest.fail
    assert choose_method(none | {"tags": 20}, 20, words=lambda: never("names beside tags"))[0] == "seam"


def test_what_is_left_aside_is_told():
    name, why = chosen(20, source=True, masks=20)
    if name == "supervised":  # no method of the table takes a source
        assert why.endswith("; no method here uses the source")
    else:
        assert "source" in METHODS[name].needs


def auto(images: int, cpu: bool = True, steps: int | None = None, minutes: float | None = None, **labels: int):
    return choose({"masks": 0, "tags": 0, "captions": 0, **labels}, images, cpu=cpu, steps=steps, minutes=minutes)


def test_few_masks_and_little_time_are_for_supervised_with_the_statistics_of_all():
    """docs/semi.md: in the time of 800 steps of unimatch, 2,400 of supervised are ahead of every row."""
    found = auto(367, masks=12)
    assert (found.method, found.settings) == ("supervised", {"norms.photographs": "all"})
    assert "without a GPU" in found.reason
    assert auto(367, masks=12, minutes=20).method == auto(367, masks=12, steps=800).method == "supervised"
    assert auto(367, masks=12, minutes=300).method == auto(367, masks=12, steps=6000).method == "unimatch"
    assert auto(367, cpu=False, masks=12).method == "unimatch"
    assert auto(12, masks=12).settings == {} == settings_of("supervised", {"masks": 12}, 12)


@pytest.mark.parametrize(
    ("images", "labels", "steps"),
    [
        (10, {}, None),
        (5, {"masks": 5}, 837),
        (99, {"masks": 12}, None),
    ],
)
def test_steps_are_scaled_to_the_number_of_photographs(images, labels, steps):
    """supervised: 670 passes over the masks in batches of 4; stego says itself how many it has."""
    found = auto(images, **labels)
    assert found.steps == steps
    assert steps is None or f"; {steps} steps of its 2000" in found.reason


def test_numbers_that_are_given_are_not_scaled():
    assert auto(10, steps=2000).steps is None and auto(10, minutes=20).steps is None
    assert auto(10, minutes=20).most_steps == 100, "more do harm, whatever the time"
    assert auto(5, masks=5, minutes=20).most_steps is None

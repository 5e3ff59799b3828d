"""Names and values of options that were listed before options had parts: scripts hold them, so each is still taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from maskwright.engine.config import configure, describe, flat, nested, options
from maskwright.errors import MaskwrightError
from maskwright.methods import METHODS

BEFORE: dict[str, dict[str, list[Any]]] = json.loads(Path(__file__).with_name("options_before.json").read_text())
"""Method -> option -> [default], or [default, choices]."""
WITH = {("ema_buffers", "own"): {"teacher_mode": "train"}}
"""What a value needs beside it: it was refused alone."""


def spelled(value: Any) -> str:
    """A value as it is written on a command line."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def test_no_method_is_gone():
    assert set(BEFORE) <= set(METHODS)
    assert sum(map(len, BEFORE.values())) == 838


@pytest.mark.parametrize("name", BEFORE)
def test_each_option_of_before_is_taken_and_has_the_default_of_before(name):
    config = METHODS[name].Config
    plain, known = configure(config, {}), {o.flat: o for o in options(config) if o.used}
    assert BEFORE[name].keys() <= known.keys()
    taken = {}
    for option, (default, *_) in BEFORE[name].items():
        if default is None and known[option].default is None and type(None) not in get_args(known[option].hint):
            continue  # none means here that another option, as a preset, decides; it cannot be asked for
        taken[option] = spelled(default)
        assert configure(config, {option: taken[option]}) == plain, option
        assert configure(config, {option: default}) == plain, option
    assert configure(config, taken) == plain


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_that_is_written_down_is_read_back(name):
    plain = configure(METHODS[name].Config, {})
    assert configure(METHODS[name].Config, nested(plain)) == plain
    assert configure(METHODS[name].Config, flat(plain)) == plain


@pytest.mark.parametrize("name", BEFORE)
def test_each_choice_of_before_is_taken_and_sets_one_option(name):
    config = METHODS[name].Config
    for option, (default, *choices) in BEFORE[name].items():
        for choice in choices[0] if choices else ():
            beside = WITH.get((option, choice), {})
            with_it = configure(config, {option: choice, **beside})
            without = configure(config, beside)
            differ = [o.flat for o in options(config) if o.of(with_it) != o.of(without)]
            if choice == default:
                assert differ == [], option
            else:
                assert option in differ, (option, choice)


@pytest.mark.parametrize("name", METHODS)
def test_options_are_described(name):
    rows = describe(METHODS[name].Config)
    assert all(o["says"] for o in rows), "every option says its unit and reason"
    assert len({o["name"] for o in rows}) == len({o["old"] for o in rows}) == len(rows)


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("advent", {"variant": "minent", "d_lr": 0.1}, "d_lr=0.1 with variant=minent"),
        ("cbst", {"lam_reg": 0.1}, "lam_reg=0.1 with regulariser=none"),
        ("cbst", {"labels.alpha": 0.5}, "labels.alpha=0.5 with labels.soft=false"),
        ("cbst", {"mining.chance": 0, "mining.below": 0.1}, "mining.below=0.1 with mining.chance=0"),
        ("cycada", {"beta": 0.05}, "beta=0.05 with translation=cyclegan"),
        ("cycada", {"translation": "fda", "generators.tile": 64}, "generators.tile=64 with translation=fda"),
        ("cycada", {"semantic.weight": 0, "semantic.limit": 2}, "semantic.limit=2.0 with semantic.weight=0"),
        ("cycada", {"align.weight": 0, "align.gate": 0.5}, "align.gate=0.5 with align.weight=0"),
        ("dacs", {"rare.pixels": 0.1}, "rare.pixels=0.1 with rare.temperature=0"),
        ("dacs", {"things.classes": "car"}, "things.classes=.*car.* with things.distance=0"),
        ("dacs", {"masked.ratio": 0.5}, "masked.ratio=0.5 with masked.consistency=0"),
        ("uda_sod", {"objects.of": "found", "objects.classes": "cow"}, "objects.classes=.*cow.* with objects.of=found"),
        ("uda_sod", {"objects.of": "alpha", "objects.soften": 2}, "objects.soften=2.0 with objects.of=alpha"),
        ("uda_sod", {"pseudo.variance": 0.1}, "pseudo.variance=0.1 with pseudo.by=portion"),
        ("uda_sod", {"pseudo.by": "variance", "pseudo.portion": 0.3}, "pseudo.portion=0.3 with pseudo.by=variance"),
    ],
)
def test_options_of_what_is_not_done_are_refused(name, settings, why):
    with pytest.raises(MaskwrightError, match=f"{why}.*leave it out"):
        configure(METHODS[name].Config, settings)


@pytest.mark.parametrize(
    ("name", "option", "beside"),
    [("cbst", "round_lr", {}), ("cycada", "align.slower", {}), ("maskclip", "plus.round_lr", {"plus.train": True}),
     ("reco", "plus.round_lr", {"plus.train": True, "plus.rounds": 1})],
)  # fmt: skip
def test_a_share_of_the_rates_is_above_0(name, option, beside):
    """A rate of 0 is one that is yet to be decided: a training with a share of 0 would have the whole rate."""
    with pytest.raises(MaskwrightError, match=option.rpartition(".")[2]):
        configure(METHODS[name].Config, {**beside, option: 0})
    configure(METHODS[name].Config, {**beside, option: 0.01})

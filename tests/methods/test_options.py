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
TOCO = ("fuse", "norm", "threshold_rule", "optimizer", "sample", "norm_from")
WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("mean_teacher", "ema_buffers"): {"teacher_mode": "train"},
    ("reco_semi", "ema_buffers"): {"teacher_mode": "train"},
    ("unimatch", "ema_buffers"): {"teacher_mode": "train"},
    ("mean_teacher", "cells"): {"perturb": "complexmix"},
    **{("toco", option): {"retrain": "cams"} for option in TOCO},
}
"""What an option needs beside it: values that were refused alone, or on which nothing depends alone."""


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
            beside = WITH.get((name, option), {})
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
        ("uda_sod", {"rounds": 1, "pseudo.growth": 3}, "pseudo.growth=3.0 with rounds=1"),
        ("supervised", {"ohem_kept": 0.5}, "loss.ohem_kept=0.5 with loss.terms=ce"),
        ("supervised", {"loss": "dice + lovasz", "balance": True}, "loss.balance=True with loss.terms=dice . lovasz"),
        ("supervised", {"norms.images": 0, "norm_from": "all"}, "norms.photographs=all with norms.images=0"),
        ("supervised", {"encoder_lr": 0, "layer_decay": 0.5}, "optimizer.layer_decay=0.5 with optimizer.encoder_lr=0"),
        ("maskclip", {"plus.train": True, "student.loss.ohem_kept": 0.5}, "student: loss.ohem_kept=0.5 with"),
        ("source_only", {"loss": "dice", "ohem_threshold": 0.5}, "loss.ohem_threshold=0.5 with loss.terms=dice"),
        ("mean_teacher", {"grid": 8}, "grid=8 with perturb=cutmix"),
        ("mean_teacher", {"confidence": "none", "threshold": 0.5}, "threshold=0.5 with confidence=none"),
        ("mean_teacher", {"threshold": 0, "confidence": "pixel"}, "confidence=pixel with threshold=0"),
        ("mean_teacher", {"ramp.weight": 0, "ramp_up": 0.5}, "ramp.up=0.5 with ramp.weight=0"),
        ("mean_teacher", {"ramp.weight": 0, "unlabeled": "all"}, "unlabeled.images=all with ramp.weight=0"),
        ("mean_teacher", {"ramp.weight": 0, "final": "student", "ema": 0.5}, "teacher.ema=0.5 with ramp.weight=0"),
        ("cct", {"counts": "noise:2", "vat_eps": 1}, "vat_eps=1.0 with counts=noise:2"),
        ("cct", {"counts": "noise:2", "background": "sky"}, "background=sky with counts=noise:2"),
        ("cct", {"background": "none", "erase": 0.5}, "erase=0.5 with background=none"),
        ("cps", {"cutmix": False, "teacher_mode": "eval"}, "teacher.mode=eval with cutmix=false"),
        ("reco_semi", {"contrast": 0, "queries": 8}, "queries=8 with contrast=0"),
        ("u2pl", {"contrast": 0, "alpha": 5}, "alpha=5.0 with contrast=0"),
        ("cac", {"ramp.weight": 0, "negatives": 9}, "negatives=9 with ramp.weight=0"),
        ("unimatch", {"whole": 0.1, "version": "v1"}, "whole=0.1 with version=v1"),
        ("unimatch", {"feature_weight": 0.1}, "feature_weight=0.1 with version=v2"),
        ("unimatch", {"version": "fixmatch", "ema": 0.5}, "teacher.ema=0.5 with version=fixmatch"),
        ("adv_semi", {"lam_fm": 1}, "lam_fm=1.0 with variant=pixel"),
        ("adv_semi", {"variant": "s4gan", "lam_adv": 1}, "lam_adv=1.0 with variant=s4gan"),
        ("adv_semi", {"ramp.weight": 0, "threshold": 0.5}, "threshold=0.5 with ramp.weight=0"),
        ("adv_semi", {"ramp.weight": 0, "lam_adv": 0, "lam_adv_u": 0, "d_lr": 1}, "d_lr=1.0 with lam_adv, lam_adv_u"),
        ("st_plus_plus", {"plus": False, "reliable": 0.3}, "reliable=0.3 with plus=false"),
        ("st_plus_plus", {"portion": 0.3}, "portion=0.3 with class_balanced=false"),
        ("advent", {"ramp.weight": 0, "aux_share": 0.5}, "aux_share=0.5 with ramp.weight=0"),
        ("dacs", {"ramp.weight": 0, "masked.consistency": 1}, "masked.consistency=1.0 with ramp.weight=0"),
        ("cbst", {"mining.below": 0, "mining.chance": 0.5}, "mining.chance=0.5 with mining.below=0"),
        ("cbst", {"regulariser": "mrent", "lam_reg": 0}, "regulariser=mrent with lam_reg=0"),
        ("cbst", {"rounds": 1, "labels.portion_step": 0.1}, "labels.portion_step=0.1 with rounds=1"),
        ("cbst", {"labels.portion_step": 0, "labels.portion_max": 0.9}, "portion_max=0.9 with labels.portion_step=0"),
        ("cycada", {"generators.cycle": 0, "generators.identity": 1}, "identity=1.0 with generators.cycle=0"),
        ("dannet", {"ramp.weight": 0, "lam_adv": 1}, "lam_adv=1.0 with ramp.weight=0"),
        ("dannet", {"lam_adv": 0, "d_width": 8}, "d_width=8 with lam_adv=0"),
        ("dannet", {"static.weight": 0, "static.classes": "sky,road"}, "static.classes=sky,road with static.weight=0"),
        ("dannet", {"light.exposure": 0, "light.window": 8}, "light.window=8 with light.exposure=0"),
        ("dannet", {"light.lr": 0, "light.width": 8}, "light.width=8 with light.lr=0"),
        ("maskclip", {"background.threshold": 0.5, "background.words": "sky"}, "words.background.words=.*sky"),
        ("clip_seg", {"background.threshold": 0.5, "background.words": "sky"}, "words.background.words=.*sky"),
        ("groupvit", {"words.background.words": "sky"}, "words.background.words=.*sky.* with .*threshold=0.95"),
        ("groupvit", {"contrast.weight": 0, "contrast.words": 1}, "contrast.words=1 with contrast.weight=0"),
        ("cam", {"classifier.optimizer": "adamw", "tag_momentum": 0.5}, "classifier.momentum=0.5 with classifier.opt"),
        ("cam", {"maps.scales": "1", "maps.flips": False, "fuse": "max"}, "maps.fuse=max with one of maps.scales"),
        ("cam", {"threshold": 0.3, "threshold_rule": "otsu"}, "seeds.threshold_rule=otsu with seeds.threshold=0.3"),
        ("grad_cam", {"oracle_threshold": True, "threshold_rule": "otsu"}, "threshold_rule=otsu with seeds.oracle"),
        ("seam", {"walk_beta": 5}, "walk.beta=5.0 with walk.kind=none"),
        ("seam", {"affinity_steps": 5}, "affinity.steps=5 with walk.kind=none"),
        ("seam", {"er": 0, "er_ramp": 0.1}, "er_ramp=0.1 with er=0"),
        ("seam", {"ecr": 0, "hard_share": 0.1}, "hard_share=0.1 with ecr=0"),
        ("affinity", {"walk_alpha": 4}, "walk.alpha=4.0 with walk.kind=irn"),
        ("affinity", {"variant": "psa", "pair_alphas": "4,24", "pair_thresholds": "0.1,0.3"}, "thresholds=.* with"),
        ("toco", {"crop": 64}, "crops.size=64 with retrain=none"),
        ("toco", {"seeds.judge": True}, "seeds.judge=True with retrain=none"),
        ("toco", {"retrain": "masks", "threshold": 0.3}, "seeds.threshold=0.3 with retrain=masks"),
        ("toco", {"retrain": "cams", "mask_scales": "1"}, "branch.mask_scales=.* with retrain=cams"),
        ("toco", {"w_ctc": 0, "local_side": 32}, "local.side=32 with w_ctc=0"),
        ("toco", {"w_reg": 0, "reg_cells": 9}, "branch.reg_cells=9 with w_reg=0"),
        ("clip_es", {"maps.blocks": 0, "maps.box": 0.5}, "maps.box=0.5 with maps.blocks=0"),
    ],
)
def test_options_of_what_is_not_done_are_refused(name, settings, why):
    with pytest.raises(MaskwrightError, match=f"{why}.*leave it out"):
        configure(METHODS[name].Config, settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("supervised", {"loss": "ce+ohem", "ohem_kept": 0.5}),
        ("supervised", {"loss": "ohem+dice", "balance": True}),
        ("mean_teacher", {"ramp.weight": 0, "ema": 0.5}),
        ("mean_teacher", {"perturb": "complexmix", "cells": "box", "grid": 2}),
        ("unimatch", {"version": "v1", "teacher_mode": "train", "feature_weight": 0.1}),
        ("adv_semi", {"ramp.weight": 0, "unlabeled": "all", "one_hot": 0.9}),
        ("groupvit", {"words.background.threshold": 0, "words.background.words": "sky"}),
        ("seam", {"walk": "irn", "threshold": 0.3, "threshold_rule": "otsu"}),
        ("affinity", {"variant": "psa", "threshold": 0.3, "pair_alphas": "4,24", "threshold_rule": "otsu"}),
        ("toco", {"w_ctc": 0, "tag_crop": 48}),
        ("toco", {"retrain": "masks", "crop": 64, "seeds.crf": False, "maps.flips": False}),
        ("clip_es", {"maps.flips": True, "fuse": "max"}),
        ("dannet", {"static.weight": 0, "ramp.start": 0.5}),
    ],
)
def test_options_on_which_something_depends_are_taken(name, settings):
    """The rule also finds the pairs' bounds, or the power of the background that walks."""
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

"""Defaults of the semi-supervised methods: the papers' figures, and where a method's header says otherwise, its own."""

from __future__ import annotations

import pytest

from maskwright.engine.config import configure, flat
from maskwright.methods.semi import adv_semi, cac, cct, cps, mean_teacher, reco_semi, st_plus_plus, u2pl, unimatch


def decided(variant):
    """The options of AdvSemiSeg or s4GAN, with the variant's values where none are given."""
    c = configure(adv_semi.AdvSemiConfig, {"variant": variant})
    ramp = c.self_training
    return flat(c) | {"weight": ramp.weight, "start": ramp.start, "threshold": c.least_verdict}


TABLE = {
    "U2PL, Wang et al., CVPR 2022": (
        flat(u2pl.U2PLConfig()),
        {
            "drop": 20.0, "alpha": 20.0, "anchor": 0.3, "rank_low": 3, "rank_high": 20, "temperature": 0.5,
            "anchors": 256, "negatives": 50, "representation": 256, "weight": 1.0, "contrast": 1.0, "cutmix": 0.5,
            "ema": 0.99, "strong": "none",
            "start": 0.1,  # the paper: 1 of 80 epochs, 0.0125
            "teacher_mode": "train",  # eval for pseudo-labels
            "ema_buffers": "ema",  # own
            "bank": 100_000,  # 50,000 of class 0 and 30,000 of each other
        },
    ),
    "ReCo, Liu et al., ICLR 2022": (
        flat(reco_semi.ReCoConfig()),
        {
            "strong_threshold": 0.97, "weak_threshold": 0.7, "temperature": 0.5, "queries": 256, "negatives": 512,
            "representation": 256, "weight": 1.0, "contrast": 1.0, "ema": 0.99, "mix": "classmix",
            "strong": "dacs",  # the paper: jitter of 0.25
            "teacher_mode": "eval",  # train
            "ema_buffers": "ema",  # own
        },
    ),
    "UniMatch, Yang et al., CVPR 2023": (
        flat(configure(unimatch.UniMatchConfig, {"version": "v1"})),
        {
            "dropout": 0.5, "feature_weight": 0.5, "weight": 1.0, "strong": "unimatch", "scale_min": 0.5,
            "scale_max": 2.0,
            "threshold": 0.95,  # the paper: so on VOC and COCO, 0 on Cityscapes
        },
    ),
    "UniMatch V2, Yang et al., TPAMI 2025": (
        flat(unimatch.UniMatchConfig()),
        {
            "version": "v2", "threshold": 0.95, "whole": 0.5, "weight": 1.0, "ema": 0.996, "ema_buffers": "ema",
            "teacher_mode": "eval", "final": "teacher",
        },
    ),
    "CAC, Lai et al., CVPR 2021": (
        flat(cac.CACConfig()),
        {
            "weight": 0.1, "start": 5 / 80, "ramp_up": 0.0, "temperature": 0.1, "threshold": 0.75, "negatives": 6400,
            "step_save": 1, "projection": 128, "scale_min": 0.5, "scale_max": 2.0, "pair_scale_min": 0.8,
            "pair_iou": 0.1, "strong": "cac",
        },
    ),
    "CCT, Ouali et al., CVPR 2020": (
        flat(cct.CCTConfig()),
        {
            "weight": 30.0, "ramp_up": 0.1, "noise": 0.3, "dropout": 0.5, "erase": 0.4, "vat_eps": 2.0,
            "counts": "one",  # the paper: 30 decoders
        },
    ),
    "CPS, Chen et al., CVPR 2021": (
        flat(cps.CPSConfig()),
        {
            "cutmix": True, "teacher_mode": "train",
            "weight": 1.5,  # its scripts: 1 on VOC with CutMix, 6 and 5 on Cityscapes
        },
    ),
    "Mean Teacher with CutMix, French et al., BMVC 2020": (
        flat(mean_teacher.MeanTeacherConfig()),
        {
            "perturb": "cutmix", "distance": "auto", "weight": 1.0, "ema": 0.99, "ema_buffers": "ema",
            "threshold": 0.968,  # the paper: 0.97; this is that of ClassMix, Olsson et al., WACV 2021
            "confidence": "image",  # batch
            "teacher_mode": "eval",  # train
        },
    ),
    "AdvSemiSeg, Hung et al., BMVC 2018": (
        decided("pixel"),
        {
            "variant": "pixel", "lam_adv": 0.01, "lam_adv_u": 0.001, "weight": 0.1, "start": 5_000 / 20_000,
            "threshold": 0.2, "d_lr": 1e-4, "one_hot": 1.0,
        },
    ),
    "s4GAN, Mittal et al., TPAMI 2021": (
        decided("s4gan"),
        {"lam_fm": 0.1, "weight": 1.0, "threshold": 0.6, "d_lr": 1e-4, "one_hot": 1.0},
    ),
    "ST++, Yang et al., CVPR 2022": (
        flat(st_plus_plus.STPlusPlusConfig()),
        {
            "plus": True, "reliable": 0.5, "cutout": 0.5, "flips": True, "strong": "st_plus_plus", "scale_min": 0.5,
            "scale_max": 2.0, "class_balanced": False,
            "scales": (1.0,),  # the paper: several
            "teacher_share": 0.25,  # as many epochs as each other training
            "first_share": 0.25,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("paper", TABLE)
def test_defaults_are_the_papers(paper):
    options, figures = TABLE[paper]
    assert {k: options[k] for k in figures} == figures


def test_figures_that_are_no_options():
    assert (u2pl.FIRST, u2pl.OTHER) == (50_000, 30_000)
    assert (cac.CELL, st_plus_plus.SNAPSHOTS, adv_semi.WIDTHS) == (8, 3, (64, 128, 256, 512))
    decoders = {"dropout": 6, "drop": 6, "noise": 6, "cutout": 6, "context": 2, "object": 2, "vat": 2}
    assert cct.parse_counts("paper") == decoders and sum(decoders.values()) == 30
    assert (cct.PAPER_CLASSES, cct.PAPER_CROP) == (21, 320)  # of VOC

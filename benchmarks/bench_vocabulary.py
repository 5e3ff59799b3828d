"""What a vocabulary costs: 1,000 class names beside 20, on CLIP's ViT-B/16 with random weights.

Embedding of the names, once per vocabulary (timed with five sentences each and, of the many, a tenth of the names;
given for 85 sentences and all of them), and prediction of a 500 x 375 photograph at a short side of 512, from pixels
to ids. One thread. A ratio is time of 20 names over that of 1,000: below 1 the larger vocabulary costs more.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.data.masking.classes import ClassTable
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.models.towers.image import build_clip
from maskwright.models.towers.names import class_words
from maskwright.models.towers.parts import JointEncoder, VocabularyClassifier
from maskwright.models.towers.prompts import TEMPLATES
from maskwright.models.towers.text import TextTower
from maskwright.models.towers.vocabulary import Vocabulary, embed_words
from maskwright.predict.model import Model

NAME, FEW, MANY, SHORT_SIDE = "clip:ViT-B-16", 20, 1000, 512
PHOTOGRAPH = (375, 500, 3)


def made_up(count: int) -> list[str]:
    """So many different names of three syllables."""
    draw, found = random.Random(0), dict[str, None]()
    while len(found) < count:
        found["".join(draw.choice("bdfgklmnprtv") + draw.choice("aeiou") for _ in range(3))] = None
    return list(found)


def model(tower: JointEncoder, found: Vocabulary, names: tuple[str, ...]) -> Model:
    """Tower and words, as `maskclip` leaves them."""
    preprocess = Preprocess.for_backbone(tower.backbone.provenance, short_side=SHORT_SIDE, multiple_of=16)
    words = VocabularyClassifier(found.vectors, found.owner, len(names))
    made = Segmenter(tower, None, words, ClassTable(names), preprocess, tower.backbone.provenance, "maskclip", "")
    return Model(made.eval(), device="cpu")


def rows() -> list[Row]:
    """Embedding and prediction, 20 names and 1,000."""
    torch.manual_seed(0)
    tower = build_clip(NAME, "random")
    assert tower.pair is not None
    text, encoder = TextTower(tower.pair), JointEncoder(tower)
    picture = np.random.default_rng(0).integers(0, 256, PHOTOGRAPH, np.uint8)
    few, many = (class_words(made_up(n), singular=False) for n in (FEW, MANY))
    with one_thread():
        part, some = class_words(made_up(MANY // 10), singular=False), TEMPLATES["scene"]
        embed_few, embed_part = side_by_side(
            lambda: embed_words(text, few, some), lambda: embed_words(text, part, some), repeats=2
        )
        times = len(TEMPLATES["all"]) / len(some)
        models = [model(encoder, embed_words(text, w, TEMPLATES["name"]), w.names) for w in (few, many)]
        predict_few, predict_many = side_by_side(*(lambda m=m: m.predict(picture) for m in models), repeats=3)
    size = f"{PHOTOGRAPH[1]} x {PHOTOGRAPH[0]}"
    return [
        Row(f"embedding of {MANY} names", 10 * times * embed_part, f"{FEW} names", times * embed_few, FEW / MANY, None,
            "of 85 sentences, by the time of five"),
        Row(f"prediction of {size}, {MANY} names", predict_many, f"{FEW} names", predict_few, 0.5),
    ]  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(f"{row.path}: {row.ours_s:.2f} s, {row.other} {row.other_s:.2f} s, {row.ratio:.2f}x ({row.asked}x)")

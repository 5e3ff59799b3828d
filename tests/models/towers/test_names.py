"""Class names as words, and words as vectors."""

from __future__ import annotations

import open_clip
import pytest
import torch
from tests.models.towers.tiny import config, write_folder

from maskwright.errors import MaskwrightError
from maskwright.models.towers.names import BACKGROUND_WORDS, class_words, plain_word
from maskwright.models.towers.pairs import find_pair
from maskwright.models.towers.prompts import IMAGENET, SCENE, TEMPLATES
from maskwright.models.towers.text import TextTower
from maskwright.models.towers.vocabulary import Vocabulary, embed_words, most_alike


def test_templates_are_those_of_the_papers():
    assert tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES) == IMAGENET
    assert len(TEMPLATES["all"]) == 85 and len(set(TEMPLATES["all"])) == 85
    assert all(t.count("{}") == 1 for t in TEMPLATES["all"]) and all("scene" in t for t in SCENE)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("Traffic_Lights", "traffic light"), ("buildings", "building"), ("berries", "berry"), ("benches", "bench"),
        ("boxes", "box"), ("potatoes", "potato"), ("shoes", "shoe"), ("people", "person"), ("horses", "horse"),
        ("glass", "glass"), ("grass", "grass"), ("bus", "bus"), ("buses", "bus"), ("stairs", "stairs"),
        ("tennis", "tennis"), ("gas", "gas"), ("a red  car", "a red car"), ("leaves", "leaf"), ("Straße", "strasse"),
        ("lenses", "lens"), ("canvases", "canvas"),
    ],
)  # fmt: skip
def test_words(name, word):
    assert plain_word(name) == word
    assert plain_word(name, singular=False) == " ".join(name.replace("_", " ").split()).casefold()


def test_synonyms_and_what_is_said():
    found = class_words(["road | Streets", "sky"])
    assert found.names == ("road", "sky") and found.words == (("road", "street"), ("sky",))
    assert found.said == ("Names as the text tower gets them: Streets as street.",) and found.background is None


def test_the_background_is_a_list_of_words_or_a_threshold():
    words = class_words(["background", "sky", "cat"])
    assert words.background == 0 and words.words[0] == tuple(w for w in BACKGROUND_WORDS if w != "sky")
    assert words.said == (f"Background (class 0): any of {', '.join(words.words[0])}.",)
    threshold = class_words(["_background_", "cat"], threshold=0.5)
    assert threshold.words == ((), ("cat",)) and "probability of 0.5" in threshold.said[0]
    with pytest.raises(MaskwrightError, match="--set background"):
        class_words(["background", "cat"], background=["cat"])
    with pytest.raises(MaskwrightError, match="no class but background"):
        class_words(["background"], threshold=0.5)
    with pytest.raises(MaskwrightError, match="no class but background"):
        class_words(["background"])


@pytest.mark.parametrize("name", ["class 3", "1", "cluster_0", "Class-12", "label 7", "#4", "region5", "__", "?"])
def test_names_that_say_nothing_are_refused(name):
    with pytest.raises(MaskwrightError, match=r"says nothing.*--names"):
        class_words(["road", name])


def test_empty_and_equal_words_are_refused():
    with pytest.raises(MaskwrightError, match="empty word"):
        class_words(["road|", "sky"])
    with pytest.raises(MaskwrightError, match="same word"):
        class_words(["Car", "road", "cars"])
    with pytest.raises(MaskwrightError, match="twice"):
        class_words(["car|cars", "road"])
    with pytest.raises(MaskwrightError, match="same word"):
        class_words(["background", "Background", "car"])


def test_words_of_the_background_are_written_as_those_of_classes():
    words = class_words(["trees", "background"], background=["Trees", "Tall_Hedges"]).words
    assert words == (("tree",), ("tall hedge",))


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> TextTower:
    folder = tmp_path_factory.mktemp("towers") / "text"
    write_folder(folder, config())
    return TextTower(find_pair("clip", str(folder)))


def test_a_word_is_the_mean_of_its_sentences(tower):
    found = embed_words(tower, class_words(["road|street", "sky"]), TEMPLATES["scene"])
    assert found.owner.tolist() == [0, 0, 1]
    for vector, word in zip(found.vectors, ("road", "street", "sky")):
        each = tower.encode([t.replace("{}", word) for t in SCENE]).double()
        mean = each.mean(0)
        torch.testing.assert_close(vector.double(), mean / mean.norm(), rtol=1e-5, atol=1e-6)
    one = embed_words(tower, class_words(["sky"]), TEMPLATES["name"])
    torch.testing.assert_close(one.vectors, tower.encode(["sky"]))


def test_the_two_most_alike_words_are_of_different_classes():
    v = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    owner = torch.tensor([0, 0, 1, 2, 2, 3, 3])
    wanted = max(float(v[i] @ v[j]) for i in range(7) for j in range(7) if owner[i] != owner[j])
    for chunk in (1, 3, 100):
        assert most_alike(Vocabulary(v, owner), chunk) == pytest.approx(wanted)
    assert most_alike(Vocabulary(v, torch.zeros_like(owner))) is None


def test_chunks_change_nothing_but_rounding(tower):
    classes = class_words([f"thing {chr(97 + i)}" for i in range(7)])
    whole = embed_words(tower, classes, TEMPLATES["scene"], chunk=1000)
    for chunk in (1, 3, 10):
        torch.testing.assert_close(embed_words(tower, classes, TEMPLATES["scene"], chunk=chunk).vectors, whole.vectors)


def test_a_name_that_does_not_fit_is_refused_before_any_is_embedded(tower, monkeypatch):
    monkeypatch.setattr(tower, "encode", None)
    with pytest.raises(MaskwrightError, match=r"tokens long.*at most 77"):
        embed_words(tower, class_words(["sky", "word " * 400]), TEMPLATES["all"])

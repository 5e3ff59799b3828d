"""Class names as words for a text tower: synonyms, the background, and names that are none.

`road|street` is one class with two words; the first is its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from maskwright.errors import MaskwrightError, shown

BACKGROUND = "background"
BACKGROUND_WORDS = (
    "sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sand", "desk", "bed", "building",
    "cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "floor", "hill", "rail",
    "fence",
)  # fmt: skip
"""What stands behind things in photographs; a class called background is any of these that is no class itself."""
_NO_NAME = re.compile(
    r"(class|cluster|label|category|cat|id|object|obj|segment|region|part|group|type|mask|unnamed)?[\s_#:.-]*\d+", re.I
)
_ONE = frozenset((
    "species", "series", "news", "stairs", "clothes", "trousers", "pants", "jeans", "shorts", "tights", "leggings",
    "pyjamas", "pajamas", "scissors", "sunglasses", "glasses", "goggles", "binoculars", "tweezers", "pliers", "tongs",
    "shears", "headquarters", "barracks", "chaos", "cosmos", "atlas", "canvas", "lens", "gas", "christmas", "texas",
    "pancreas", "mathematics", "athletics", "gymnastics", "bias", "alias", "rhinoceros", "thermos", "kudos",
))  # fmt: skip
"""Words that end as a plural and are none, or have no singular in use."""
_LEAVES = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "leaves": "leaf", "shelves": "shelf",
    "knives": "knife", "wolves": "wolf", "halves": "half", "loaves": "loaf", "calves": "calf", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "oxen": "ox", "cookies": "cookie",
    "pies": "pie", "ties": "tie", "shoes": "shoe", "canoes": "canoe", "toes": "toe", "axes": "axe", "buses": "bus",
    "lenses": "lens", "gases": "gas", "canvases": "canvas", "movies": "movie",
}  # fmt: skip


@dataclass(frozen=True)
class ClassWords:
    """The words of each class.

    Attributes:
        names: (C,) what the classes are called.
        words: (C,) the words of each, as the text tower gets them; none of a background that is a threshold.
        background: id of the class of that name; None where there is none.
        said: sentences on what was changed or taken for what.
    """

    names: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    background: int | None
    said: tuple[str, ...]


def class_words(
    names: Sequence[str],
    *,
    singular: bool = True,
    background: Iterable[str] = BACKGROUND_WORDS,
    threshold: float = 0.0,
) -> ClassWords:
    """Reads class names.

    Args:
        names: of the classes; `|` between synonyms.
        singular: plurals become singular, as the sentences around them want.
        background: words of a class that is called background; those that another class has are left out.
        threshold: above 0: that class is where no other is as probable as this; `background` is not looked at.

    Raises:
        MaskwrightError: a name that says nothing (`class 3`, `1`), an empty one, or two classes with one word.
    """
    shorter: list[str] = []
    words: list[tuple[str, ...]] = []
    called: list[str] = []
    place: int | None = None
    owner: dict[str, tuple[int, str]] = {}
    for number, name in enumerate(names):
        parts = [part.strip() for part in name.split("|")]
        called.append(parts[0])
        if not all(parts):
            raise MaskwrightError(
                f"class {number} has the name {shown(name)!r}, with an empty word", "words, with | between synonyms",
                "--names 'road|street,sky'",
            )  # fmt: skip
        if len(parts) == 1 and plain_word(parts[0]) == BACKGROUND:
            if place is not None:
                raise _same(place, called[place], number, parts[0], BACKGROUND)
            place = number
            words.append(())
            continue
        own = []
        for part in parts:
            if _NO_NAME.fullmatch(part) or not any(c.isalnum() for c in part):
                raise MaskwrightError(
                    f"class {number} is called {shown(part)!r}, which says nothing of how it looks",
                    "a name in words, as 'road'",
                    "give names: --names road,sky, or --names FILE with one a line",
                )
            word = plain_word(part, singular)
            if word != part:
                shorter.append(f"{shown(part)} as {shown(word)}")
            if word in owner:
                first, before = owner[word]
                raise _same(first, before, number, part, word)
            owner[word] = (number, part)
            own.append(word)
        words.append(tuple(own))
    said = []
    if shorter:
        more = f", and {len(shorter) - 6} more" if len(shorter) > 6 else ""
        said.append(f"Names as the text tower gets them: {'; '.join(shorter[:6])}{more}.")
    if not any(words):
        raise MaskwrightError("no class but background", "at least one class with a name", "--names road,sky")
    if place is not None:
        others = tuple(plain_word(b, singular) for b in background)
        said.append(_background(words, place, owner, others, threshold))
    elif threshold > 0:
        said.append(f"No class is called background, so no pixel is, whatever the threshold of {threshold:g}.")
    return ClassWords(tuple(called), tuple(words), place, tuple(said))


def one_for_all(found: ClassWords) -> str:
    """A sentence where each pixel gets the same class, because no other has a word; empty elsewhere.

    A background that is a threshold does not help: the probability of a single word is 1.
    """
    spoken = [number for number, own in enumerate(found.words) if own]
    if len(spoken) != 1:
        return ""
    name = shown(found.names[spoken[0]])
    first = f"Each pixel of each photograph will be {name}, because no other class has a word"
    if found.background is None:
        return f"{first}: name what else there is, as --names '{name},background'."
    return (
        f"{first} and one word alone has probability 1: --set words.background.threshold=0 takes background by words."
    )


def _same(first: int, before: str, number: int, part: str, word: str) -> MaskwrightError:
    return MaskwrightError(
        f"classes {first} ({shown(before)}) and {number} ({shown(part)}) are the same word, {shown(word)!r}"
        if first != number else f"class {number} has the word {shown(word)!r} twice",
        "words of its own for each class",
        "rename one of them",
    )  # fmt: skip


def _background(
    words: list[tuple[str, ...]],
    place: int,
    owner: dict[str, tuple[int, str]],
    background: tuple[str, ...],
    threshold: float,
) -> str:
    """Gives the background its words, if it has any, and says what it is."""
    if threshold > 0:
        return f"Background (class {place}): where no class has a probability of {threshold:g}."
    left = tuple(dict.fromkeys(word for word in background if word and word not in owner))
    if not left:
        raise MaskwrightError(
            "a class called background, and no word for it that is no other class", "words, or a threshold",
            "--set background.words=sky,wall or --set background.threshold=0.5",
        )  # fmt: skip
    words[place] = left
    return f"Background (class {place}): any of {', '.join(left)}."


def plain_word(name: str, singular: bool = True) -> str:
    """A class name as a text tower knows words: lower case, spaces for underscores, and one of a thing."""
    text = " ".join(re.sub(r"[_\s]+", " ", name).split()).casefold()
    if not singular or not text:
        return text
    *before, last = text.split(" ")
    return " ".join([*before, _singular(last)])


def _singular(word: str) -> str:
    if word in _LEAVES:
        return _LEAVES[word]
    if word in _ONE or len(word) < 4 or not word.isascii() or not word.endswith("s"):
        return word
    if word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "xes", "sses", "zzes", "oes")):
        return word[:-2]
    return word[:-1]

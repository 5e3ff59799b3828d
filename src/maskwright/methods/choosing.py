"""What `auto` takes: a method by the labels that are there, and its length by the photographs and the machine.

Each number here stands on a table of docs/semi.md or docs/adaptation.md, or a measurement named beside it. An option or
`--steps` that is given goes above all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.engine.devices import on_cpu
from maskwright.engine.inputs import record_of
from maskwright.errors import MaskwrightError
from maskwright.methods import METHODS, TABLE
from maskwright.recipes.language.at_hand import Words, words_at_hand

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset

PREFERENCES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "source",
        "there is a labelled source folder, and of what was measured it lifts the target most",
        ("dacs", "source_only"),
    ),
    ("masks", "some images have masks", ("unimatch", "mean_teacher", "supervised")),
    ("tags", "images have tags", ("seam", "cam")),
    ("captions", "images have captions", ()),
)
"""Label kind, reason, methods in order of preference; the first whose method exists is chosen."""


SHORT_MINUTES = 120
"""A CPU's budget below which a few masks are learned alone. Unlabelled crops cost as much as labelled ones: in the
time of 800 steps of `unimatch` (46.8 mIoU with 12 masks) `supervised` makes 2,400 (49.9): docs/semi.md."""
LONG_STEPS = 2400
"""With more steps than that asked for by number, time is no matter; no table of docs/semi.md reaches so far."""
PASSES = 670
"""Times that a labelled photograph is seen: those of 12 masks in 2,000 steps, where more steps still helped."""
FEWEST = 400
"""Steps below which `supervised` has learned nothing yet."""
OBJECTS = "where each photograph shows one object, --method deep_spectral finds it"
"""Said beside `stego`: photographs alone do not tell scenes from objects. IoU 48.1 on ecssd_part (docs/results.md)."""


@dataclass(frozen=True)
class Choice:
    """What `auto` takes.

    Attributes:
        method: its name.
        reason: why, in one sentence.
        settings: options that differ from the method's own.
        steps: where they are fewer than the method's own; None: those.
        most_steps: more are of no use in `--minutes` either; None: the more the better.
    """

    method: str
    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    most_steps: int | None = None

    def steps_of(self, config: Any, asked: int | None) -> int | None:
        """The steps of a run with these options: those asked for, or fewer than the method's own, unless an option of
        the method says how many it has; None: the method's own."""
        cls = METHODS[self.method]
        says = cls.terms(config).steps != cls.terms(cls.Config()).steps
        return asked if self.steps is None or says else self.steps


def settle(
    method: str,
    images: Dataset,
    *,
    resumed: str | Path | None,
    source: bool,
    names: Sequence[str] | None,
    backbone: str,
    weights: str | Path | None,
    device: str,
    steps: int | None,
    minutes: float | None,
) -> Choice:
    """The method that was asked for; of `auto`, the one that a resumed run was begun with, or what `choose` picks.

    Args:
        method: a name, or `auto`.
        images: of the run.
        resumed: the folder of the run that is resumed; None: a new one.
        source: whether a labelled source folder is given.
        names: class names that are given.
        backbone, weights, device, steps, minutes: as of `train`.

    Raises:
        MaskwrightError: there is no image; names are given that no method can take.
    """
    if method != "auto":
        return Choice(method, "")
    labels, count = images.labels_present(), len(images)
    begun = None if resumed is None else record_of(Path(resumed)).get("method", {}).get("name")
    if begun in TABLE:
        return Choice(begun, f"{begun}, with which the run was begun", settings_of(begun, labels, count))
    own = images.classes.names if images.classes else ()

    def words() -> Words:
        """What the class names are good for; names that were asked for and that no method can take are an error."""
        found = words_at_hand(own if names is None else names, labels["captions"] > 0, backbone, weights)
        if names is not None and found.lacking:
            raise MaskwrightError(
                f"--names, of which no method can make masks here, because {found.lacking}",
                "a network that knows words", "or leave --names out, and clusters are named later",
            )  # fmt: skip
        return found

    return choose(labels, count, source, cpu=on_cpu(device), steps=steps, minutes=minutes, words=words)


def choose(
    labels: Mapping[str, int],
    images: int,
    source: bool = False,
    *,
    cpu: bool,
    steps: int | None = None,
    minutes: float | None = None,
    words: Callable[[], Words] = Words,
) -> Choice:
    """Picks a method and its length.

    Args:
        labels: number of images with `masks`, `tags`, `captions`.
        images: number of images.
        source: whether a labelled source folder is given.
        cpu: whether the run has no GPU.
        steps: `--steps`, if that is given.
        minutes: `--minutes`, if that is given.
        words: says what class names are good for; asked where no label is there that a method learns from.

    Raises:
        MaskwrightError: when there is no image.
    """
    short = cpu and (steps or 0) <= LONG_STEPS and (minutes is None or minutes < SHORT_MINUTES)
    name, reason = choose_method(labels, images, source, short, words)
    settings = settings_of(name, labels, images)
    scaled = _scaled(name, labels, cpu)
    own = METHODS[name].terms(METHODS[name].Config(), images).steps
    fewer = scaled if scaled is not None and scaled < own else None
    most = own if name == "stego" else None
    if steps is None and minutes is None and fewer is not None:
        told = f"{reason}; {fewer} steps of its {own}, enough for {labels['masks']} masks"
        return Choice(name, told, settings, fewer, most)
    return Choice(name, reason, settings, None, most)


def settings_of(name: str, labels: Mapping[str, int], images: int) -> dict[str, Any]:
    """Options that `auto` sets: photographs without a mask are of use to `supervised` too, whose batch-norm statistics
    of all of them are worth two points with 12 masks (docs/semi.md)."""
    return {"norms.photographs": "all"} if name == "supervised" and labels["masks"] < images else {}


def _scaled(name: str, labels: Mapping[str, int], cpu: bool) -> int | None:
    """Steps by the number of masks; None where the method says itself how many it has."""
    if name == "supervised" and cpu:
        return max(FEWEST, PASSES * labels["masks"] // METHODS[name].Config().crops.batch)
    return None


def choose_method(
    labels: Mapping[str, int],
    images: int,
    source: bool = False,
    short: bool = False,
    words: Callable[[], Words] = Words,
) -> tuple[str, str]:
    """Picks a method by the labels that are present.

    Args:
        labels: number of images with `masks`, `tags`, `captions`.
        images: number of images.
        source: whether a labelled source folder is given.
        short: whether there is little time, in which the masks alone teach most.
        words: says what class names are good for; asked where no label is there that a method learns from.

    Returns:
        The method's name and the reason in one sentence.

    Raises:
        MaskwrightError: when there is no image.
    """
    if images == 0:
        raise MaskwrightError("no image to learn from", "at least one")
    unused: list[str] = []
    for kind, reason, names in PREFERENCES:
        present = source if kind == "source" else labels.get(kind, 0) > 0
        if not present:
            continue
        if kind == "masks" and labels[kind] >= images:
            reason, names = "every image has a mask", ("supervised",)
        elif kind == "masks" and short:
            reason = "some images have masks and without a GPU it learns most from them in a short time"
            names = ("supervised",)
        for name in names:
            if name in TABLE:
                count = "" if kind == "source" else f" ({labels[kind]} of {images})"
                return name, f"{name}, because {reason}{count}{_left(unused)}"
        unused.append(kind)
    found = words()
    if found.method:
        used = METHODS[found.method].needs
        there = "class names and captions are" if "captions" in used else "class names are"
        return (
            found.method,
            f"{found.method}, because {there} all there is{_left([k for k in unused if k not in used])}",
        )
    left = _left(unused) + (f"; it does not use the class names, because {found.lacking}" if found.lacking else "")
    if images < 8:
        few = "kmeans, because no method here learns from so few images"
        return "kmeans", f"{few} ({images}){left}"
    why = "no labels are needed for it, and it keeps what it learned only where that agrees more with the features"
    return "stego", f"stego, because {why} than their own clusters do; {OBJECTS}{left}"


def _left(unused: list[str]) -> str:
    """What the chosen method leaves aside, as the end of a sentence."""
    labels = [kind for kind in unused if kind != "source"]
    told = "; no method here uses the source" if "source" in unused else ""
    return told + (f"; it does not use the {' and '.join(labels)} that are there" if labels else "")

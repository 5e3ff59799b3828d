"""Scenes of shapes on textured grounds, as a folder: `python -m benchmarks.toy_world.scenes --out FOLDER`.

A picture shows one to four shapes of 24 kinds (eight fillings, three shapes) on one of three grounds. Its captions name
all of them, "a red circle left of a striped square on sand"; now and then a shape is only called by its filling ("a red
shape") or by its shape ("a circle"). The masks are exact; the classes are the kinds and the grounds.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from maskwright.data.masking.classes import ClassTable, default_palette
from maskwright.data.masking.masks import write_mask

COLOURS = {
    "red": (210, 40, 40), "green": (40, 170, 60), "blue": (45, 70, 215), "yellow": (235, 215, 50),
    "purple": (150, 50, 175), "white": (240, 240, 240),
}  # fmt: skip
FILLINGS = (*COLOURS, "striped", "spotted")
SHAPES = ("circle", "square", "triangle")
GROUNDS = {"sand": (205, 180, 140), "wood": (120, 80, 50), "stone": (125, 128, 130)}
KINDS = tuple(f"{filling} {shape}" for filling in FILLINGS for shape in SHAPES)
CLASSES = (*KINDS, *GROUNDS)
SIDE = 64
"""Pixels; of a picture."""


class Thing(NamedTuple):
    """One shape: its kind as an index of `FILLINGS` and of `SHAPES`, its centre and its radius in pixels."""

    filling: int
    shape: int
    y: float
    x: float
    radius: float

    @property
    def kind(self) -> int:
        """Its class."""
        return self.filling * len(SHAPES) + self.shape


class Scene(NamedTuple):
    """A picture uint8 (S, S, 3), its mask uint8 (S, S), and what it shows."""

    image: np.ndarray
    mask: np.ndarray
    things: tuple[Thing, ...]
    ground: str


def _places(count: int, random: np.random.Generator) -> list[tuple[float, float, float]]:
    """(y, x, radius) of things that do not touch; fewer than asked where there is no room."""
    found: list[tuple[float, float, float]] = []
    low, high = ((14, 26), (11, 19), (9, 15), (8, 14))[count - 1]
    for _ in range(60):
        radius = random.uniform(low, high)
        y, x = random.uniform(radius - 1, SIDE - radius + 1, 2)
        if all((y - a) ** 2 + (x - b) ** 2 > (radius + r + 1) ** 2 for a, b, r in found):
            found.append((y, x, radius))
        if len(found) == count:
            break
    return found


def _inside(thing: Thing, angle: float, yy: np.ndarray, xx: np.ndarray) -> np.ndarray:
    """Pixels of a shape, bool (S, S)."""
    y, x = yy - thing.y, xx - thing.x
    u, v = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    r = thing.radius
    if SHAPES[thing.shape] == "circle":
        return np.asarray(u**2 + v**2 <= (0.9 * r) ** 2)
    if SHAPES[thing.shape] == "square":
        return np.asarray(np.maximum(np.abs(u), np.abs(v)) <= 0.78 * r)
    return np.asarray((v <= 0.62 * r) & (v >= 1.73 * np.abs(u) - 0.98 * r))


def _filled(thing: Thing, random: np.random.Generator, yy: np.ndarray, xx: np.ndarray) -> np.ndarray:
    """Colours of a filling everywhere, float (S, S, 3)."""
    name = FILLINGS[thing.filling]
    if name in COLOURS:
        colour = np.array(COLOURS[name]) + random.uniform(-18, 18, 3)
        return np.broadcast_to(colour, (SIDE, SIDE, 3))
    if name == "striped":
        angle, period = random.uniform(0, np.pi), random.uniform(4.5, 6.5)
        on = (np.cos(angle) * xx + np.sin(angle) * yy + random.uniform(0, 9)) % period < period / 2
    else:
        period = random.uniform(5, 7)
        a, b = ((z + random.uniform(0, 9)) % period - period / 2 for z in (yy, xx))
        on = a**2 + b**2 < (0.3 * period) ** 2
    return np.where(on[..., None], 25.0, 235.0) * np.ones(3)


def _ground(name: str, random: np.random.Generator, yy: np.ndarray, xx: np.ndarray) -> np.ndarray:
    """Colours of a ground, float (S, S, 3)."""
    base = np.array(GROUNDS[name]) + random.uniform(-15, 15, 3)
    if name == "sand":
        grain = random.normal(0, 14, (SIDE, SIDE))
    elif name == "wood":
        grain = 16 * np.sin(xx / random.uniform(1.5, 2.5) + 1.5 * np.sin(yy / random.uniform(6, 12)))
    else:
        coarse = random.normal(0, 22, (SIDE // 4, SIDE // 4))
        grain = np.repeat(np.repeat(coarse, 4, 0), 4, 1)
    return base + grain[..., None]


def draw_scene(random: np.random.Generator, most: int = 4) -> Scene:
    """One scene.

    Args:
        random: what it is drawn from.
        most: things in a picture; one is as frequent as each other number.
    """
    yy, xx = np.mgrid[:SIDE, :SIDE] + 0.5
    ground = list(GROUNDS)[random.integers(len(GROUNDS))]
    image = _ground(ground, random, yy, xx)
    mask = np.full((SIDE, SIDE), CLASSES.index(ground), np.uint8)
    places = _places(int(random.integers(1, most + 1)), random)
    kinds = random.choice(len(KINDS), len(places), replace=False)
    things = tuple(Thing(*divmod(int(k), len(SHAPES)), *place) for k, place in zip(kinds, places))
    for thing in things:
        inside = _inside(thing, random.uniform(-0.3, 0.3), yy, xx)
        image = np.where(inside[..., None], _filled(thing, random, yy, xx), image)
        mask[inside] = thing.kind
    image = image + random.normal(0, 5, image.shape)
    return Scene(image.clip(0, 255).astype(np.uint8), mask, things, ground)


def describe(scene: Scene, random: np.random.Generator) -> str:
    """A caption of all things, in an order of its own."""
    order = [scene.things[i] for i in random.permutation(len(scene.things))]
    words = []
    for thing in order:
        filling, shape, less = FILLINGS[thing.filling], SHAPES[thing.shape], random.random()
        words.append(f"a {shape}" if less < 0.1 else f"a {filling} {'shape' if less < 0.2 else shape}")
    caption = words[0]
    for before, thing, word in zip(order, order[1:], words[1:]):
        y, x = thing.y - before.y, thing.x - before.x
        across, down = ("left of", "right of")[int(x < 0)], ("above", "below")[int(y < 0)]
        caption += f" {across if abs(x) > abs(y) else down} {word}"
    if random.random() < 0.5:
        caption += f" on {scene.ground}"
    return caption if random.random() < 0.7 else f"a photo of {caption}"


def write_folder(out: Path, train: int, test: int, seed: int = 0, validation: int = 0) -> None:
    """Writes scenes as a folder: images, masks, `classes.txt`, `captions.csv` (two an image), splits `train`, `few`
    (the first thousand of it), `test` and `validation`, which settings may be chosen on.

    Args:
        out: the folder.
        train, test, validation: scenes of each split.
        seed: of the drawing; scene i of a seed is always the same.
    """
    table = ClassTable(CLASSES, default_palette(len(CLASSES) + 1)[1:])
    for name in ("images", "masks", "splits"):
        (out / name).mkdir(parents=True, exist_ok=True)
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    rows, names = [], [f"{i:06d}" for i in range(train + test + validation)]
    for i, name in enumerate(names):
        random = np.random.default_rng((seed, i))
        scene = draw_scene(random)
        Image.fromarray(scene.image).save(out / "images" / f"{name}.png")
        write_mask(out / "masks" / f"{name}.png", scene.mask, table)
        rows += [(name, describe(scene, random)) for _ in range(2)]
    with (out / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "caption"), *rows])
    splits = {
        "train": names[:train], "few": names[: min(train, 1000)], "test": names[train : train + test],
        "validation": names[train + test :],
    }  # fmt: skip
    for split, part in splits.items():
        if part:
            (out / "splits" / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))


def main() -> None:
    """Writes the folder that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=16000)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--validation", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_folder(options.out, options.train, options.test, options.seed, options.validation)


if __name__ == "__main__":
    main()

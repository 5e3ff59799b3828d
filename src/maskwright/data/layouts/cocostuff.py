"""COCO-Stuff with 27 superclasses (Ji et al., ICCV 2019; Cho et al., PiCIE, CVPR 2021).

    ROOT/images/{train2017,val2017}/NAME.jpg            or ROOT/{train2017,val2017}
    ROOT/annotations/{train2017,val2017}/NAME.png       or ROOT/stuffthingmaps/..., the pixel maps of 182 ids
    ROOT/curated/{train2017,val2017}/Coco164kFull_Stuff_Coarse_7.txt      IIC's lists, 49,629 and 2,175 images

In the pixel maps the id is COCO's category id less one: 0 to 90 things, 91 to 181 stuff, 255 void.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from maskwright.data.folders.folder import Dataset, Item, Readers
from maskwright.data.folders.tables import read_names
from maskwright.data.layouts.base import files_below, first_folder, lookup, read_translated
from maskwright.data.masking.classes import ClassTable, default_palette
from maskwright.errors import MaskwrightError

# Superclasses of things in the order of their training ids, with the last of COCO's consecutive category ids.
THINGS = (
    ("electronic", range(72, 78)),
    ("appliance", range(78, 84)),
    ("food", range(52, 62)),
    ("furniture", range(62, 72)),
    ("indoor", range(84, 92)),
    ("kitchen", range(44, 52)),
    ("accessory", range(26, 34)),
    ("animal", range(16, 26)),
    ("outdoor", range(10, 16)),
    ("person", range(1, 2)),
    ("sports", range(34, 44)),
    ("vehicle", range(2, 10)),
)

# COCO-Stuff's categories 92 to 182, alphabetical as their ids are.
STUFF_NAMES = (
    "banner",
    "blanket",
    "branch",
    "bridge",
    "building-other",
    "bush",
    "cabinet",
    "cage",
    "cardboard",
    "carpet",
    "ceiling-other",
    "ceiling-tile",
    "cloth",
    "clothes",
    "clouds",
    "counter",
    "cupboard",
    "curtain",
    "desk-stuff",
    "dirt",
    "door-stuff",
    "fence",
    "floor-marble",
    "floor-other",
    "floor-stone",
    "floor-tile",
    "floor-wood",
    "flower",
    "fog",
    "food-other",
    "fruit",
    "furniture-other",
    "grass",
    "gravel",
    "ground-other",
    "hill",
    "house",
    "leaves",
    "light",
    "mat",
    "metal",
    "mirror-stuff",
    "moss",
    "mountain",
    "mud",
    "napkin",
    "net",
    "paper",
    "pavement",
    "pillow",
    "plant-other",
    "plastic",
    "platform",
    "playingfield",
    "railing",
    "railroad",
    "river",
    "road",
    "rock",
    "roof",
    "rug",
    "salad",
    "sand",
    "sea",
    "shelf",
    "sky-other",
    "skyscraper",
    "snow",
    "solid-other",
    "stairs",
    "stone",
    "straw",
    "structural-other",
    "table",
    "tent",
    "textile-other",
    "towel",
    "tree",
    "vegetable",
    "wall-brick",
    "wall-concrete",
    "wall-other",
    "wall-panel",
    "wall-stone",
    "wall-tile",
    "wall-wood",
    "water-other",
    "waterdrops",
    "window-blind",
    "window-other",
    "wood",
)

# Superclasses of stuff in the order of their training ids, 12 to 26.
STUFF = (
    ("ceiling", "ceiling-other ceiling-tile"),
    ("floor", "carpet floor-marble floor-other floor-stone floor-tile floor-wood"),
    ("food-stuff", "food-other fruit salad vegetable"),
    (
        "furniture-stuff",
        "cabinet counter cupboard desk-stuff door-stuff furniture-other light mirror-stuff shelf stairs table",
    ),
    ("raw material", "cardboard metal paper plastic"),
    ("textile", "banner blanket cloth clothes curtain mat napkin pillow rug textile-other towel"),
    ("wall", "wall-brick wall-concrete wall-other wall-panel wall-stone wall-tile wall-wood"),
    ("window", "window-blind window-other"),
    ("building", "bridge building-other house roof skyscraper tent"),
    ("ground", "dirt gravel ground-other mud pavement platform playingfield railroad road sand snow"),
    ("plant", "branch bush flower grass leaves moss plant-other straw tree"),
    ("sky", "clouds sky-other"),
    ("solid", "hill mountain rock solid-other stone wood"),
    ("structural", "cage fence net railing structural-other"),
    ("water", "fog river sea water-other waterdrops"),
)

COCOSTUFF27 = ClassTable((*(name for name, _ in THINGS), *(name for name, _ in STUFF)), default_palette(27))


def superclass_of() -> dict[int, int]:
    """{id in the pixel maps, 0 to 181: superclass, 0 to 26}."""
    table = {category - 1: k for k, (_, categories) in enumerate(THINGS) for category in categories}
    for k, (_, names) in enumerate(STUFF, len(THINGS)):
        table.update({91 + STUFF_NAMES.index(name): k for name in names.split()})
    return table


def open_cocostuff27(root: Path) -> Dataset:
    """COCO-Stuff's 27 superclasses: 12 of things, 15 of stuff.

    Splits train and val; with IIC's lists also train_curated and val_curated, which the literature evaluates
    on.

    Raises:
        MaskwrightError: no images of train2017 or val2017.
    """
    items: list[Item] = []
    splits: dict[str, list[str]] = {}
    for split in ("train", "val"):
        folder = f"{split}2017"
        places = [root / "images" / folder, root / folder]
        images = next((p for p in places if p.is_dir()), None)
        if images is None:
            continue
        masks: dict[str, Path] = {}
        for kind in ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017"):
            masks = masks or {p.stem: p for p in files_below(root / kind / folder, (".png",))}
        found = [Item(p.stem, p, masks.get(p.stem)) for p in files_below(images, (".jpg", ".jpeg", ".png"))]
        items += found
        splits[split] = [item.name for item in found]
        for name in ("Coco164kFull_Stuff_Coarse_7.txt", "Coco164kFull_Stuff_Coarse.txt"):
            path = root / "curated" / folder / name
            if path.is_file():
                splits[f"{split}_curated"] = [Path(line).stem for line in read_names(path)]
                break
    if not items:
        first_folder(root, ("images/train2017", "images/val2017", "train2017", "val2017"), "COCO-Stuff")
        raise MaskwrightError(f"{root} has no images of COCO", "images/train2017/NAME.jpg", "unpack it again")
    reader = partial(read_translated, table=lookup(superclass_of()))
    return Dataset(root, items, classes=COCOSTUFF27, splits=splits, readers=Readers(mask=reader))

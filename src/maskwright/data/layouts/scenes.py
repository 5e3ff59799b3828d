"""Street and indoor scenes: Cityscapes, CamVid and ADE20K.

Cityscapes  ROOT/leftImg8bit/{train,val,test,train_extra}/CITY/NAME_leftImg8bit.png
            ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png      (gtCoarse for train_extra)
CamVid      ROOT/701_StillsRaw_full/NAME.png, ROOT/LabeledApproved_full/NAME_L.png, label_colors.txt, or
            SegNet's ROOT/{train,val,test}/NAME.png, ROOT/{train,val,test}annot/NAME.png with ids 0 to 11
ADE20K      ROOT/images/{training,validation}/NAME.jpg, ROOT/annotations/{training,validation}/NAME.png, 0 =
void
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from maskwright.data.folders.folder import Dataset, Item, Readers
from maskwright.data.folders.tables import read_lines
from maskwright.data.layouts.ade import ADE20K
from maskwright.data.layouts.base import (
    files_below,
    first_folder,
    lookup,
    read_colours,
    read_lists,
    read_translated,
)
from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError

# (label id, name, colour, whether among the 19 training classes)
CITYSCAPES_LABELS = (
    (7, "road", (128, 64, 128), True),
    (8, "sidewalk", (244, 35, 232), True),
    (9, "parking", (250, 170, 160), False),
    (10, "rail track", (230, 150, 140), False),
    (11, "building", (70, 70, 70), True),
    (12, "wall", (102, 102, 156), True),
    (13, "fence", (190, 153, 153), True),
    (14, "guard rail", (180, 165, 180), False),
    (15, "bridge", (150, 100, 100), False),
    (16, "tunnel", (150, 120, 90), False),
    (17, "pole", (153, 153, 153), True),
    (18, "polegroup", (153, 153, 153), False),
    (19, "traffic light", (250, 170, 30), True),
    (20, "traffic sign", (220, 220, 0), True),
    (21, "vegetation", (107, 142, 35), True),
    (22, "terrain", (152, 251, 152), True),
    (23, "sky", (70, 130, 180), True),
    (24, "person", (220, 20, 60), True),
    (25, "rider", (255, 0, 0), True),
    (26, "car", (0, 0, 142), True),
    (27, "truck", (0, 0, 70), True),
    (28, "bus", (0, 60, 100), True),
    (29, "caravan", (0, 0, 90), False),
    (30, "trailer", (0, 0, 110), False),
    (31, "train", (0, 80, 100), True),
    (32, "motorcycle", (0, 0, 230), True),
    (33, "bicycle", (119, 11, 32), True),
)


def cityscapes_table(classes: int) -> tuple[ClassTable, dict[int, int]]:
    """The class table and {label id: training id} of the 19 training classes or of all 27 that are not
    void."""
    chosen = [label for label in CITYSCAPES_LABELS if classes == 27 or label[3]]
    names, colours = tuple(x[1] for x in chosen), np.array([x[2] for x in chosen], np.uint8)
    return ClassTable(names, colours), {x[0]: k for k, x in enumerate(chosen)}


def open_cityscapes(root: Path, classes: int) -> Dataset:
    """Cityscapes with 19 or 27 classes. The test split's masks are empty in the release, so it is unlabelled
    here.

    Raises:
        MaskwrightError: no leftImg8bit below the folder.
    """
    images = first_folder(root, ("leftImg8bit",), "Cityscapes")
    table, ids = cityscapes_table(classes)
    items: list[Item] = []
    splits: dict[str, list[str]] = {}
    for split in ("train", "val", "test", "train_extra"):
        names = []
        for path in files_below(images / split, (".png", ".jpg")):
            name = path.stem.removesuffix("_leftImg8bit")
            mask: Path | None = None
            for kind in ("gtFine", "gtCoarse") if split != "test" else ():
                candidate = root / kind / split / path.parent.name / f"{name}_{kind}_labelIds.png"
                mask = mask or (candidate if candidate.is_file() else None)
            items.append(Item(name, path, mask))
            names.append(name)
        if names:
            splits[split] = names
    if not items:
        raise MaskwrightError(f"{images} holds no images", "train/CITY/NAME_leftImg8bit.png", "unpack it again")
    reader = partial(read_translated, table=lookup(ids))
    return Dataset(root, items, classes=table, splits=splits, readers=Readers(mask=reader))


# The 11 classes of Brostow et al. and Sturgess et al. as SegNet numbers them, with the members of the
# official 32.
CAMVID_GROUPS = (
    ("sky", (128, 128, 128), ("Sky",)),
    ("building", (128, 0, 0), ("Building", "Archway", "Bridge", "Tunnel", "Wall")),
    ("pole", (192, 192, 128), ("Column_Pole", "TrafficCone")),
    ("road", (128, 64, 128), ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv")),
    ("pavement", (0, 0, 192), ("Sidewalk", "ParkingBlock", "RoadShoulder")),
    ("tree", (128, 128, 0), ("Tree", "VegetationMisc")),
    ("sign", (192, 128, 128), ("SignSymbol", "Misc_Text", "TrafficLight")),
    ("fence", (64, 64, 128), ("Fence",)),
    ("car", (64, 0, 128), ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving")),
    ("pedestrian", (64, 64, 0), ("Pedestrian", "Child", "CartLuggagePram", "Animal")),
    ("bicyclist", (0, 128, 192), ("Bicyclist", "MotorcycleScooter")),
)

# The official label_colors.txt, for folders where it is missing.
CAMVID_COLOURS = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Void": (0, 0, 0),
    "Wall": (64, 192, 0),
}


def _label_colours(path: Path) -> dict[str, tuple[int, int, int]]:
    colours: dict[str, tuple[int, int, int]] = {}
    for line in read_lines(path):
        parts = line.split()
        if not parts:
            continue
        try:
            r, g, b = (int(p) for p in parts[:3])
        except ValueError as error:
            raise MaskwrightError(f"{path} has a line {line!r}", "R G B Name", "use CamVid's own file") from error
        colours["_".join(parts[3:])] = (r, g, b)
    return colours


def open_camvid(root: Path, void_class: bool) -> Dataset:
    """CamVid with 11 classes, from the official colour masks or SegNet's index masks.

    Args:
        root: either release.
        void_class: whether void is a twelfth class, id 11, as in SegNet's files; otherwise it is ignored.

    Raises:
        MaskwrightError: neither release is there.
    """
    names = tuple(name for name, _, _ in CAMVID_GROUPS) + (("void",) if void_class else ())
    colours = [colour for _, colour, _ in CAMVID_GROUPS] + ([(0, 0, 0)] if void_class else [])
    table = ClassTable(names, np.array(colours, np.uint8))
    if (root / "trainannot").is_dir() or (root / "testannot").is_dir():
        return _open_segnet_camvid(root, table, void_class)
    images = first_folder(root, ("701_StillsRaw_full", "images"), "CamVid")
    labels = first_folder(root, ("LabeledApproved_full", "LabeledApproved_full_701", "labels"), "CamVid")
    known = CAMVID_COLOURS
    for path in (root / "label_colors.txt", labels / "label_colors.txt"):
        known = _label_colours(path) if path.is_file() else known
    if not known:
        raise MaskwrightError(
            f"{root / 'label_colors.txt'} names no colour",
            "a line 'R G B NAME' for each class, as CamVid has it",
            "unpack it again, or delete it: CamVid's own colours are known",
        )
    group = {member: k for k, (_, _, members) in enumerate(CAMVID_GROUPS) for member in members}
    ids = bytes(group.get(name, 11 if void_class else 255) for name in known)
    codes = tuple(r * 65536 + g * 256 + b for r, g, b in known.values())
    masks = {p.stem.removesuffix("_L"): p for p in files_below(labels, (".png",))}
    items = [Item(p.stem, p, masks.get(p.stem)) for p in files_below(images)]
    reader = partial(read_colours, colours=codes, ids=ids)
    splits = read_lists(root, ("train", "val", "test", "trainval"))
    return Dataset(root, items, classes=table, splits=splits, readers=Readers(mask=reader))


def _open_segnet_camvid(root: Path, table: ClassTable, void_class: bool) -> Dataset:
    items: list[Item] = []
    splits: dict[str, list[str]] = {}
    for split in ("train", "val", "test"):
        masks = {p.stem: p for p in files_below(root / f"{split}annot", (".png",))}
        found = [Item(p.stem, p, masks.get(p.stem)) for p in files_below(root / split)]
        items += found
        splits[split] = [item.name for item in found]
    reader = partial(read_translated, table=lookup({i: i for i in range(12 if void_class else 11)}))
    return Dataset(root, items, classes=table, splits=splits, readers=Readers(mask=reader))


def open_ade20k(root: Path) -> Dataset:
    """ADE20K's 150 classes; file id 0 (void) is ignored and the others move down by one. Splits train and
    val.

    Raises:
        MaskwrightError: the folder is not ADEChallengeData2016.
    """
    images = first_folder(root, ("images", "ADEChallengeData2016/images"), "ADEChallengeData2016")
    base = images.parent
    items: list[Item] = []
    splits: dict[str, list[str]] = {}
    for split, folder in (("train", "training"), ("val", "validation")):
        masks = {p.stem: p for p in files_below(base / "annotations" / folder, (".png",))}
        found = [Item(p.stem, p, masks.get(p.stem)) for p in files_below(images / folder)]
        items += found
        splits[split] = [item.name for item in found]
    if not items:
        raise MaskwrightError(f"{images} has no training or validation images", "ADE20K's benchmark", "unpack it again")
    reader = partial(read_translated, table=lookup({i + 1: i for i in range(150)}))
    return Dataset(root, items, classes=ADE20K, splits=splits, readers=Readers(mask=reader))

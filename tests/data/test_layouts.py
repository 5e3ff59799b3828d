"""Benchmark layouts on tiny replicas in the official folder structure."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from maskwright.data.layouts import LAYOUTS, open_data
from maskwright.data.layouts.ade import ADE20K
from maskwright.data.layouts.cocostuff import COCOSTUFF27, superclass_of
from maskwright.data.layouts.scenes import CAMVID_COLOURS, cityscapes_table
from maskwright.data.layouts.voc import VOC
from maskwright.data.masking.masks import write_mask_rg
from maskwright.errors import MaskwrightError


def photo(path: Path, size: tuple[int, int] = (6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def index(path: Path, ids: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8))
    if palette:
        image.putpalette(bytes(range(256)) * 3)
    image.save(path)


def lines(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names))


def filled(*values: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.resize(np.array(values), size)


def test_voc_with_sbd(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("a", "b", "c", "d", "e"):
        photo(root / "JPEGImages" / f"{name}.jpg")
    index(root / "SegmentationClass" / "a.png", filled(0, 15, 255), palette=True)
    index(root / "SegmentationClass" / "b.png", filled(0, 20), palette=True)
    index(root / "SegmentationClassAug" / "a.png", filled(1))
    index(root / "SegmentationClassAug" / "c.png", filled(3))
    sbd = tmp_path / "VOCdevkit" / "benchmark_RELEASE" / "dataset" / "cls"
    sbd.mkdir(parents=True)
    savemat(sbd / "d.mat", {"GTcls": {"Segmentation": filled(0, 7).astype(np.uint8), "Boundaries": 0}})
    lists = root / "ImageSets" / "Segmentation"
    lines(lists / "train.txt", "a")
    lines(lists / "val.txt", "b")
    lines(lists / "trainval.txt", "a", "b")
    notes = root / "Annotations" / "a.xml"
    notes.parent.mkdir()
    notes.write_text(
        "<annotation><object><name>person</name><difficult>1</difficult><part><name>head</name></part></object>"
        "<object><name>cat</name></object></annotation>"
    )
    ds = open_data(f"voc:{tmp_path}")
    assert ds.classes is VOC and len(ds.classes) == 21 and len(ds) == 5
    assert [ds.has_mask(i) for i in range(5)] == [True, True, True, True, False]
    assert np.array_equal(ds.mask(ds.index("a")), filled(0, 15, 255))
    assert np.array_equal(ds.mask(ds.index("d")), filled(0, 7))
    assert ds.tags(ds.index("a")) == ("cat", "person") and ds.tags(ds.index("b")) is None
    assert ds.split("train").names == ["a"] and ds.split("val").names == ["b"]
    assert sorted(ds.split("trainaug").names) == ["a", "c", "d"]
    assert ds.ledger.counts()["train"] == {"masks": 2, "tags": 1, "captions": 0}
    assert ds.labeled("train").labels_present()["masks"] == 1
    assert VOC.colors[15].tolist() == [192, 128, 128] and VOC.colors[1].tolist() == [128, 0, 0]


def test_cityscapes(tmp_path):
    ids = np.arange(48).reshape(6, 8) % 34
    for split, name in (
        ("train", "aachen_000000_000019"),
        ("val", "ulm_000001_000019"),
        ("test", "bonn_000002_000019"),
    ):
        city = name.split("_")[0]
        photo(tmp_path / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        index(tmp_path / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", ids)
    ds = open_data(f"cityscapes:{tmp_path}")
    assert ds.split("train").names == ["aachen_000000_000019"] and not ds.split("test").has_mask(0)
    mask = ds.split("val").mask(0)
    official = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert np.array_equal(mask, np.vectorize(lambda i: official.index(i) if i in official else 255)(ids))
    assert ds.classes.names[13] == "car" and ds.classes.colors[0].tolist() == [128, 64, 128]
    lists = (
        "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png gtFine/train/aachen/x_gtFine_labelTrainIds.png",
        "aachen/aachen_000000_000019_leftImg8bit.png\tgtFine/train/aachen/x.png", "aachen_000000_000019_leftImg8bit",
        "aachen_000000_000019",
    )  # fmt: skip
    for line in lists:  # as the lists of semi-supervised benchmarks have them
        (tmp_path / "list.txt").write_text(line + "\n")
        assert ds.labeled(tmp_path / "list.txt").labels_present()["masks"] == 1, line
    wide = open_data(f"cityscapes27:{tmp_path}").split("val").mask(0)
    assert np.array_equal(wide, np.where(ids >= 7, ids - 7, 255))
    assert len(cityscapes_table(19)[0]) == 19 and len(cityscapes_table(27)[0]) == 27


def test_cocostuff27(tmp_path):
    table = superclass_of()
    assert sorted(table) == list(range(182)) and set(table.values()) == set(range(27))
    # The published table of 27 (STEGO's and PiCIE's data files), stuff ids 91 to 181, one letter an id from
    # "a".
    published = "rrwuuwpzqnmmrrxpprpvpznnnnnwAoopwvvyuwprqpwyvrzqvrwqvvzvAvyurovApxuvypywzpurrwosssssssAAtty"
    assert "".join(chr(97 + table[i]) if table[i] < 26 else "A" for i in range(91, 182)) == published
    things = {
        0: 9,
        8: 11,
        9: 8,
        15: 7,
        24: 7,
        25: 6,
        33: 10,
        42: 10,
        43: 5,
        51: 2,
        61: 3,
        71: 0,
        77: 1,
        83: 4,
        90: 4,
    }
    assert all(table[k] == v for k, v in things.items())
    assert COCOSTUFF27.names[9] == "person" and COCOSTUFF27.names[23] == "sky" and COCOSTUFF27.names[26] == "water"
    ids = filled(0, 105, 181, 255)
    for split, name in (("train", "000000000009"), ("train", "000000000025"), ("val", "000000000139")):
        photo(tmp_path / "images" / f"{split}2017" / f"{name}.jpg")
        index(tmp_path / "annotations" / f"{split}2017" / f"{name}.png", ids)
    lines(tmp_path / "curated" / "train2017" / "Coco164kFull_Stuff_Coarse_7.txt", "000000000025")
    ds = open_data(f"cocostuff27:{tmp_path}")
    assert len(ds.split("train")) == 2 and ds.split("train_curated").names == ["000000000025"]
    assert np.array_equal(ds.split("val").mask(0), filled(9, 23, 24, 255))
    with pytest.raises(MaskwrightError):
        ds.split("val_curated")


def test_camvid_official_colours(tmp_path):
    names = list(CAMVID_COLOURS)
    assert len(names) == 32
    lines(tmp_path / "label_colors.txt", *("{} {} {}\t{}".format(*CAMVID_COLOURS[n], n) for n in names))
    chosen = [
        "Sky",
        "Wall",
        "TrafficCone",
        "LaneMkgsDriv",
        "ParkingBlock",
        "VegetationMisc",
        "Misc_Text",
        "Fence",
    ]
    chosen += ["SUVPickupTruck", "Animal", "MotorcycleScooter", "Void"]
    colours = np.array([CAMVID_COLOURS[n] for n in chosen], np.uint8)
    folder = tmp_path / "LabeledApproved_full"
    folder.mkdir()
    photo(tmp_path / "701_StillsRaw_full" / "0001TP_006690.png", (3, 4))
    Image.fromarray(colours.reshape(3, 4, 3)).save(folder / "0001TP_006690_L.png")
    ds = open_data(f"camvid:{tmp_path}")
    assert len(ds.classes) == 11 and ds.mask(0).ravel().tolist() == [*range(11), 255]
    with_void = open_data(f"camvid12:{tmp_path}")
    assert len(with_void.classes) == 12 and with_void.mask(0).ravel().tolist() == list(range(12))


def test_a_list_of_colours_that_names_none_is_told(tmp_path):
    photo(tmp_path / "images" / "a.png", (3, 4))
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (4, 3), CAMVID_COLOURS["Sky"]).save(tmp_path / "labels" / "a_L.png")
    (tmp_path / "label_colors.txt").write_text("")
    with pytest.raises(MaskwrightError, match="names no colour"):
        open_data(f"camvid:{tmp_path}")
    (tmp_path / "label_colors.txt").unlink()  # the repair
    assert open_data(f"camvid:{tmp_path}").mask(0).shape == (3, 4)


def test_camvid_of_segnet(tmp_path):
    ids = np.arange(12).reshape(3, 4)
    for split in ("train", "val", "test"):
        photo(tmp_path / split / f"{split}_1.png", (3, 4))
        index(tmp_path / f"{split}annot" / f"{split}_1.png", ids)
    ds = open_data(f"camvid:{tmp_path}")
    assert ds.split("test").names == ["test_1"] and ds.mask(0).ravel().tolist() == [*range(11), 255]


def test_potsdam(tmp_path):
    rng = np.random.default_rng(0)
    tiles = {}
    for sub in ("imgs", "gt"):
        (tmp_path / sub).mkdir()
    for name in ("1_0", "1_1", "2_0"):
        tiles[name] = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
        savemat(tmp_path / "imgs" / f"{name}.mat", {"img": tiles[name]})
        if name != "2_0":
            savemat(tmp_path / "gt" / f"{name}.mat", {"gt": np.resize(np.arange(-1, 6), (8, 8)).astype(np.int32)})
    lines(tmp_path / "labelled_train.txt", "1_0")
    lines(tmp_path / "labelled_test.txt", "1_1")
    lines(tmp_path / "unlabelled_train.txt", "2_0")
    ds = open_data(f"potsdam3:{tmp_path}")
    assert ds.size(0) == (8, 8) and np.array_equal(ds.image(0), tiles["1_0"][..., :3])
    assert ds.mask(0).ravel()[:7].tolist() == [255, 0, 1, 2, 2, 0, 1] and not ds.has_mask(2)
    assert ds.split("train_all").names == ["1_0", "2_0"] and ds.split("test").names == ["1_1"]
    assert open_data(f"potsdam6:{tmp_path}").mask(0).ravel()[:7].tolist() == [255, 0, 1, 2, 3, 4, 5]
    (tmp_path / "imgs" / "2_0.mat").write_bytes(b"not a matrix")
    readable = open_data(f"potsdam3:{tmp_path}").readable()
    assert len(readable) == 2 and len(readable.skipped) == 1


def test_ade20k(tmp_path):
    for split, folder in (("train", "training"), ("val", "validation")):
        photo(tmp_path / "ADEChallengeData2016" / "images" / folder / f"ADE_{split}_00000001.jpg")
        index(
            tmp_path / "ADEChallengeData2016" / "annotations" / folder / f"ADE_{split}_00000001.png",
            filled(0, 1, 150),
        )
    ds = open_data(f"ade20k:{tmp_path}")
    assert np.array_equal(ds.split("val").mask(0), filled(255, 0, 149))
    assert len(ADE20K) == len(set(ADE20K.names)) == 150
    assert [ADE20K.names[i] for i in (0, 12, 20, 83, 126, 149)] == [
        "wall",
        "person",
        "car",
        "truck",
        "animal",
        "flag",
    ]
    assert ADE20K.colors[0].tolist() == [120, 120, 120] and ADE20K.colors[149].tolist() == [92, 0, 255]


def imagenet_s(root: Path, categories: int) -> list[str]:
    wnids = [f"n{1440764 + 37 * k:08d}" for k in range(categories)]
    for k, wnid in enumerate(wnids):
        (root / "train" / wnid).mkdir(parents=True)
        if k in (0, categories - 1):
            photo(root / "train" / wnid / f"{wnid}_1.JPEG")
            photo(root / "train-semi" / wnid / f"{wnid}_1.JPEG")
            photo(root / "validation" / wnid / f"ILSVRC2012_val_0000000{k % 10}.JPEG")
            for split, name in (
                ("train-semi", f"{wnid}_1"),
                ("validation", f"ILSVRC2012_val_0000000{k % 10}"),
            ):
                path = root / f"{split}-segmentation" / wnid / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_mask_rg(path, filled(0, k + 1, 1000).astype(np.uint16))
    return wnids


@pytest.mark.parametrize("categories", [50, 300])
def test_imagenet_s(tmp_path, categories):
    wnids = imagenet_s(tmp_path, categories)
    ds = open_data(f"imagenet_s{categories}:{tmp_path}")
    assert ds.classes.names == ("other", *wnids)
    val = ds.split("val")
    assert val.names[0] == f"validation/{wnids[0]}/ILSVRC2012_val_00000000"
    ignore = 255 if categories == 50 else 65535
    assert val.mask(0).dtype == (np.uint8 if categories == 50 else np.uint16)
    assert np.array_equal(val.mask(0), filled(0, 1, ignore))
    assert np.array_equal(val.mask(1), filled(0, categories, ignore))
    assert ds.split("train").labels_present()["masks"] == 0 and ds.split("train-semi").has_mask(0)
    with pytest.raises(MaskwrightError, match="the 919"):
        open_data(f"imagenet_s919:{tmp_path}")


def test_names_and_mistakes(tmp_path, tiny_folder):
    assert len(open_data(str(tiny_folder))) == 8
    with pytest.raises(MaskwrightError, match=r"cityscapes.*did you mean 'voc'"):
        open_data(f"vok:{tmp_path}")
    for name in LAYOUTS:
        with pytest.raises(MaskwrightError, match="expected"):
            open_data(f"{name}:{tmp_path}/nothing")


def test_readers_travel_to_worker_processes(tmp_path):
    photo(tmp_path / "images" / "training" / "a.jpg")
    index(tmp_path / "annotations" / "training" / "a.png", filled(1))
    ds = open_data(f"ade20k:{tmp_path}")
    again = pickle.loads(pickle.dumps(ds.readers))
    assert np.array_equal(again.mask(ds.items[0].mask), ds.mask(0))

"""Every protocol on folders and arrays: brute force, closed forms, errors, ledger, JSON and tables."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.data.examining.reading import Reading
from maskwright.data.folders.folder import open_folder
from maskwright.data.layouts import open_data
from maskwright.data.masking.masks import write_mask, write_mask_rg
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.errors import MaskwrightError
from maskwright.evaluate.luss import LussEvaluator, LussMatcher
from maskwright.evaluate.protocols import PROTOCOLS, evaluate_arrays, evaluate_folder
from maskwright.evaluate.scores import Scores, seeds_summary, seeds_table


def scenes(ids: int, classes: int, count: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        true = np.kron(rng.integers(0, classes, (4, 5)), np.ones((6, 6), int)).astype(np.uint8)
        pred = (true * (ids // classes) + rng.integers(0, max(1, ids // classes), true.shape)) % ids
        noisy = rng.random(true.shape) < 0.3
        pred = np.where(noisy, rng.integers(0, ids, true.shape), pred).astype(np.uint16)
        true[rng.random(true.shape) < 0.05] = 255
        pairs.append((pred, true))
    return pairs


def counted(pairs: list[tuple[np.ndarray, np.ndarray]], ids: int, classes: int) -> np.ndarray:
    counts = np.zeros((ids, classes), int)
    for pred, true in pairs:
        keep = true != 255
        np.add.at(counts, (pred[keep], true[keep]), 1)
    return counts


def test_hungarian_is_the_best_permutation() -> None:
    pairs = scenes(5, 5)
    shuffled = [(np.array([3, 0, 4, 1, 2])[p], t) for p, t in pairs]
    counts = counted(shuffled, 5, 5)
    scores = evaluate_arrays(shuffled, 5, "hungarian")
    best = max(sum(counts[k, p[k]] for k in range(5)) for p in itertools.permutations(range(5)))
    assert scores.pixel_accuracy == pytest.approx(best / counts.sum())
    assert scores.miou == pytest.approx(evaluate_arrays(pairs, 5, "hungarian").miou)
    iou = counts / (counts.sum(1, keepdims=True) + counts.sum(0) - counts)
    best_iou = max(sum(iou[k, p[k]] for k in range(5)) for p in itertools.permutations(range(5)))
    assert evaluate_arrays(shuffled, 5, "hungarian_iou").miou == pytest.approx(best_iou / 5)
    assert scores.mapping == {3: 0, 0: 1, 4: 2, 1: 3, 2: 4} or scores.predicted == 5


@pytest.mark.parametrize("protocol", ["majority", "majority_iou", "precision"])
def test_many_to_one(protocol: str) -> None:
    pairs = scenes(12, 4)
    counts = counted(pairs, 12, 4)
    scores = evaluate_arrays(pairs, 4, protocol)
    assert scores.predicted == 12 and scores.mapping is not None
    table = counts / (counts.sum(1, keepdims=True) + counts.sum(0) - counts) if protocol == "majority_iou" else counts
    chosen = np.array([scores.mapping[k] for k in range(12)])
    assert np.allclose(table[np.arange(12), chosen], table.max(1))
    if protocol != "majority_iou":
        assert scores.pixel_accuracy == pytest.approx(counts.max(1).sum() / counts.sum())


def test_more_or_fewer_clusters_than_classes() -> None:
    pairs = scenes(12, 4)
    scores = evaluate_arrays(pairs, 4, "hungarian")
    assert scores.mapping is not None and sorted(scores.mapping.values()) == [-1] * 8 + [0, 1, 2, 3]
    assert any("8 of 12" in note for note in scores.notes)
    counts = counted(pairs, 12, 4)
    kept = sum(counts[k, c] for k, c in scores.mapping.items() if c >= 0)
    assert scores.pixel_accuracy == pytest.approx(kept / counts.sum())  # unmatched clusters stay in the denominator
    few = evaluate_arrays([(p % 2, t) for p, t in pairs], 4, "hungarian")
    assert few.predicted == 2 and sum(row["iou"] == 0 for row in few.per_class) == 2
    sparse = evaluate_arrays([(p * 1000, t) for p, t in scenes(4, 4)], 4, "hungarian")
    assert sparse.miou == pytest.approx(evaluate_arrays(scenes(4, 4), 4, "hungarian").miou)


def test_pixels_without_a_class_are_wrong() -> None:
    true = np.zeros((4, 4), np.uint8)
    pred = true.copy()
    pred[0] = 255
    for protocol in ("direct", "hungarian", "majority"):
        scores = evaluate_arrays([(pred, true)], 1, protocol)
        assert scores.pixel_accuracy == 0.75 and scores.miou == 0.75, protocol


def test_absent_classes_are_left_out_and_said() -> None:
    true = np.array([[0, 0, 1, 1]], np.uint8)
    scores = evaluate_arrays([(true, true)], ["a", "b", "c", "d"])
    assert scores.miou == 1 and scores.extra["miou_all"] == 0.5 and "2 of 4 left out" in scores.averaging
    state = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert state["per_class"][3] == {"name": "d", "iou": None}
    assert state["protocol"] == "direct" and state["miou"] == 1
    assert math.isnan(Scores.from_json(scores.to_json()).per_class[3]["iou"])


def test_matching_found_elsewhere() -> None:
    pairs = scenes(6, 6, count=8)
    first = evaluate_arrays(pairs[:4], 6, "hungarian")
    second = evaluate_arrays(pairs[4:], 6, "hungarian", matching=first.mapping)
    assert second.matching.startswith("given") and second.mapping == first.mapping
    with pytest.raises(MaskwrightError, match="matching to class 9"):
        evaluate_arrays(pairs, 6, "hungarian", matching={0: 9})


def write_predictions(folder: Path, root: Path, change: dict[int, int] | None = None) -> Path:
    folder.mkdir()
    ds = open_folder(root)
    for i, name in enumerate(ds.names):
        ids = ds.mask(i)
        lut = np.arange(256)
        for a, b in (change or {}).items():
            lut[a] = b
        write_mask(folder / f"{name}.png", lut[ids])
    return folder


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_folder_perfect_by_every_protocol(tiny_folder: Path, tmp_path: Path, protocol: str) -> None:
    ds = open_folder(tiny_folder)
    if protocol in ("saliency", "either_polarity"):
        for i, path in enumerate(sorted((tiny_folder / "masks").iterdir())):
            write_mask(path, (ds.mask(i) > 0).astype(np.uint8))
    predictions = write_predictions(tmp_path / "out", tiny_folder)
    ds = open_folder(tiny_folder)
    seen: list[tuple[int, int]] = []
    scores = evaluate_folder(predictions, ds, protocol, split="test", progress=lambda a, b: seen.append((a, b)))
    assert scores.images == 4 and scores.miou == pytest.approx(1) and scores.pixel_accuracy == 1
    assert seen[-1][0] == seen[-1][1]
    counts = ds.ledger.counts()
    assert counts["evaluate"]["masks"] == 4 and counts["train"]["masks"] == 0
    assert ds.ledger.current == "train"
    table = scores.table()
    assert "miou_all" not in scores.extra or re.search(
        r"^miou_all .*  mean IoU over all classes; one that neither", table, re.MULTILINE
    )
    assert f"[{protocol}]" in table and scores.matching in table
    assert Scores.from_json(scores.to_json()).table() == table


def test_the_list_that_was_judged_is_told(tiny_folder: Path, tmp_path: Path) -> None:
    predictions = write_predictions(tmp_path / "out", tiny_folder)
    names = open_folder(tiny_folder).split("test").names
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    scores = evaluate_folder(predictions, tiny_folder, split="test")
    told = f"images     4 of split test (sha256 of their names {digest[:12]}), compared at"
    assert told in scores.table()
    state = scores.to_json()
    assert (state["images"], state["split"], state["names_hash"]) == (4, "test", digest)
    split = tiny_folder / "splits" / "test.txt"
    split.write_text("\n".join(reversed(names)))
    assert evaluate_folder(predictions, tiny_folder, split="test").names_hash == digest, "whatever their order"
    whole = evaluate_folder(predictions, tiny_folder)
    assert whole.split is None and f"images     8 (sha256 of their names {whole.names_hash[:12]})" in whole.table()
    (predictions / f"{names[0]}.png").unlink()
    assert evaluate_folder(predictions, tiny_folder, split="test", allow_missing=True).names_hash == (
        hashlib.sha256("\n".join(sorted(names[1:])).encode()).hexdigest()
    ), "only those that were judged"


def test_the_masks_that_were_judged_are_known_by_their_contents(tiny_folder: Path, tmp_path: Path) -> None:
    predictions = write_predictions(tmp_path / "out", tiny_folder)
    before = evaluate_folder(predictions, tiny_folder, split="test")
    copied = tmp_path / "elsewhere"
    shutil.copytree(tiny_folder, copied)
    assert evaluate_folder(predictions, copied, split="test").labels_hash == before.labels_hash and before.labels_hash
    assert evaluate_folder(predictions, copied, split="train").labels_hash != before.labels_hash
    file = copied / "masks" / f"{open_folder(copied).split('test').names[0]}.png"
    mask = np.array(Image.open(file))
    mask[0, 0] = 255
    Image.fromarray(mask).save(file)
    assert evaluate_folder(predictions, copied, split="test").labels_hash != before.labels_hash, "one pixel"
    other = evaluate_folder(predictions, tiny_folder, split="test", reading=Reading(void=(0,)))
    assert other.labels_hash != before.labels_hash, "the same files, read otherwise"


def test_scores_that_tell_no_list(tiny_folder: Path) -> None:
    scores = evaluate_arrays(scenes(4, 4), 4)
    assert "images     5, compared at" in scores.table() and scores.names_hash == ""
    before = {k: v for k, v in scores.to_json().items() if k not in ("split", "names_hash")}
    assert Scores.from_json(before) == scores


def test_folder_kinds_of_truth(tiny_folder: Path, tmp_path: Path) -> None:
    predictions = write_predictions(tmp_path / "out", tiny_folder, {0: 2, 1: 0, 2: 1})
    by_dataset = evaluate_folder(predictions, open_folder(tiny_folder), "hungarian")
    by_path = evaluate_folder(str(predictions), str(tiny_folder), "hungarian")
    by_masks = evaluate_folder(predictions, tiny_folder / "masks", "hungarian")
    plain = tmp_path / "plain"
    (tiny_folder / "masks").rename(plain)
    alone = evaluate_folder(predictions, plain, "hungarian")
    assert by_dataset == by_path == by_masks
    assert alone.miou == by_path.miou == 1 and alone.per_class[0]["name"] == "class 0"
    assert by_path.mapping == {2: 0, 0: 1, 1: 2} and by_path.per_class[0]["name"] == "ground"


def test_folder_errors(tiny_folder: Path, tmp_path: Path) -> None:
    predictions = write_predictions(tmp_path / "out", tiny_folder)
    with pytest.raises(MaskwrightError, match="did you mean 'hungarian'"):
        evaluate_folder(predictions, tiny_folder, "hungarain")
    with pytest.raises(MaskwrightError, match="no folder"):
        evaluate_folder(tmp_path / "nothing", tiny_folder)
    names = open_folder(tiny_folder).names
    for name in names[1:3]:
        (predictions / f"{name}.png").unlink()
    with pytest.raises(MaskwrightError, match=f"2 of 8 predictions are missing.*{names[1]}"):
        evaluate_folder(predictions, tiny_folder)
    scores = evaluate_folder(predictions, tiny_folder, allow_missing=True)
    assert scores.images == 6 and any("2 of 8" in note for note in scores.notes)
    (tiny_folder / "masks" / f"{names[4]}.png").unlink()  # an image without a mask is no error
    assert evaluate_folder(predictions, tiny_folder, allow_missing=True).images == 5
    ds = open_folder(tiny_folder)
    write_mask(predictions / f"{names[0]}.png", np.zeros((7, 9), np.uint8))
    with pytest.raises(MaskwrightError, match=rf"{names[0]}.*\(7, 9\)"):
        evaluate_folder(predictions, ds, allow_missing=True)
    assert ds.ledger.current == "train"
    write_mask(predictions / f"{names[0]}.png", np.full((48, 64), 17, np.uint8))
    with pytest.raises(MaskwrightError, match=r"id 17.*hungarian"):
        evaluate_folder(predictions, tiny_folder, allow_missing=True)
    with pytest.raises(MaskwrightError, match="id 17"):
        evaluate_folder(predictions, tiny_folder, "saliency", allow_missing=True)
    with pytest.raises(MaskwrightError, match="missing"):
        evaluate_folder(tiny_folder, tiny_folder, allow_missing=True)
    Image.new("RGB", (64, 48), (9, 8, 7)).save(predictions / f"{names[0]}.png")
    with pytest.raises(MaskwrightError, match="colour"):
        evaluate_folder(predictions, tiny_folder, allow_missing=True)


def test_a_store_of_pseudo_masks_is_judged_on_the_images_that_it_holds(tiny_folder: Path, tmp_path: Path) -> None:
    data, store = open_folder(tiny_folder), LabelStore(tmp_path / "seeds", open_folder(tiny_folder).classes)
    for i in range(3):
        mask = data.mask(i)
        valid = torch.ones(mask.shape, dtype=torch.bool)
        valid[:6] = i > 0
        ids = torch.from_numpy(mask.astype(np.int64))
        store.write(data.names[i], LabelMap(torch.where(valid, ids, 0), valid.float(), valid), data.items[i].image)
    scores = evaluate_folder(store.folder, tiny_folder)
    assert scores == evaluate_folder(store.folder / "masks", tiny_folder, allow_missing=True)
    assert scores.images == 3 and scores.pixel_accuracy == pytest.approx(1 - 6 / (3 * 48))
    assert any("5 of 8 images left out: no prediction" in note for note in scores.notes)
    assert any(f"{6 * 64} pixels have no predicted class" in note for note in scores.notes)
    with pytest.raises(MaskwrightError, match="5 of 8 predictions are missing"):
        evaluate_folder(store.folder / "masks", tiny_folder)
    for name in store.names:
        (store.folder / "masks" / f"{name}.png").unlink()
    with pytest.raises(MaskwrightError, match="8 of 8 predictions are missing"):
        evaluate_folder(store.folder, tiny_folder)


def test_luss_on_folders_equals_the_evaluator(tiny_folder: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "out"
    predictions.mkdir()
    ds = open_folder(tiny_folder)
    matcher, pairs = LussMatcher(2), []
    for i, name in enumerate(ds.names):
        true = ds.mask(i)
        pred = np.array([0, 2, 1])[np.roll(true, 3, 1)]
        pairs.append((pred, true))
        matcher.update(pred, true)
        write_mask_rg(predictions / f"{name}.png", pred)  # as a submission to the benchmark
    evaluator = LussEvaluator(2, matcher.matching())
    for pred, true in pairs:
        evaluator.update(pred, true)
    expected = evaluator.compute()
    scores = evaluate_folder(predictions, tiny_folder, "luss")
    assert scores.miou == expected.miou and scores.extra["mBIoU"] == expected.boundary_miou
    assert scores.mapping == {0: 0, 1: 2, 2: 1} and scores.classes == 3
    assert set(scores.extra) == {
        "Acc",
        "mBIoU",
        "FMeasure",
        *(b + s for b in ("", "B") for s in ("S", "MS", "ML", "L")),
    }
    fixed = evaluate_folder(predictions, tiny_folder, "luss", matching=scores.mapping)
    assert fixed.miou == scores.miou and fixed.matching.startswith("given")


def test_luss_says_how_many_ids_are_tied() -> None:
    """Two ids that always come together with two classes may be either; a third is sure."""
    true = np.array([[1, 1, 2, 2], [1, 1, 2, 2]], np.uint8)
    other = np.full((2, 4), 3, np.uint8)
    names = ["other", "cat", "dog", "cow"]
    scores = evaluate_arrays([(true, true), (other, other)], names, "luss")
    assert any(n.startswith("2 of 3 predicted ids are tied") and "hang on that rule" in n for n in scores.notes)
    assert "2 of 3 predicted ids are tied" in scores.table()
    alone = [(np.where(true == k, true, 0), np.where(true == k, true, 0)) for k in (1, 2)]
    sure = evaluate_arrays([(true, true), (other, other), *alone], names, "luss")
    assert any(n == "0 of 3 predicted ids are tied in the matching" for n in sure.notes)
    assert not any("tied" in n for n in evaluate_arrays([(true, true)], names, "luss", matching=sure.mapping).notes)


def test_luss_without_an_other_class_moves_ids_up() -> None:
    true = np.array([[0, 0, 1, 1, 255]], np.uint8)
    pred = np.array([[2, 2, 1, 1, 0]], np.uint8)
    alone = np.zeros((1, 5), np.uint8)  # the sky alone, which decides between two matchings that are else equal
    scores = evaluate_arrays([(pred, true), (alone + 2, alone)], ["sky", "road"], "luss")
    assert [row["iou"] for row in scores.per_class] == pytest.approx([0, 1, 1])
    assert scores.per_class[0]["name"] == "other" and scores.pixel_accuracy == 1
    assert any("moved up" in note for note in scores.notes)
    kept = evaluate_arrays([(pred % 2, true)], ["sky", "road"], "luss", other=True)
    assert kept.miou == pytest.approx(1)


def test_saliency_figures() -> None:
    true = np.array([[0, 1, 1, 255]], np.uint8)
    pred = np.array([[1, 1, 0, 1]], np.uint8)
    scores = evaluate_arrays([(pred, true)], 2, "saliency")
    assert scores.extra["iou"] == pytest.approx(1 / 3) and scores.extra["mae"] == pytest.approx(2 / 3)
    assert scores.extra["f_measure"] == pytest.approx(0.5) and scores.per_class[1]["iou"] == pytest.approx(1 / 3)


def test_arrays_of_0_and_255_are_asked_about() -> None:
    true = np.array([[0, 255, 255]], np.uint8)
    for protocol in ("direct", "saliency", "hungarian"):
        with pytest.raises(MaskwrightError, match="whether 255 is the object"):
            evaluate_arrays([(true, true)], 2, protocol)
    assert evaluate_arrays([(true * 0, true)], 2, ignore=255).pixel_accuracy == 1
    assert evaluate_arrays([(true // 255, true // 255)], 2).miou == 1


def test_seeds() -> None:
    pairs = scenes(5, 5)
    runs = [evaluate_arrays(scenes(5, 5, seed=s), 5, "hungarian") for s in range(3)]
    mean, spread = seeds_summary(runs)["mIoU"]
    values = [r.miou for r in runs]
    assert mean == pytest.approx(np.mean(values)) and spread == pytest.approx(np.std(values, ddof=1))
    assert math.isnan(seeds_summary(runs[:1])["mIoU"][1])
    table = seeds_table(runs)
    assert "3 seeds" in table and "hungarian" in table and f"{100 * values[1]:.2f}" in table
    with pytest.raises(MaskwrightError, match="kinds"):
        seeds_summary([runs[0], evaluate_arrays(pairs, 5, "direct")])
    with pytest.raises(MaskwrightError, match="2 kinds"):
        seeds_summary([replace(r, names_hash=h) for r, h in zip(runs, ("a", "a", "b"))])
    assert seeds_summary([replace(r, names_hash=h) for r, h in zip(runs, ("a", "", "a"))])["mIoU"][0] == mean
    with pytest.raises(MaskwrightError):
        seeds_summary([])
    with pytest.raises(MaskwrightError, match="no images"):
        evaluate_arrays([], 3)


@pytest.mark.parametrize("prefix", ["validation/", ""])
def test_predictions_of_imagenet_s_with_or_without_the_folder_of_their_split(tmp_path: Path, prefix: str) -> None:
    """The benchmark's tools write WNID/NAME.png; ours name the split before that."""
    rng = np.random.default_rng(0)
    wnids = [f"n{k:08d}" for k in range(3)]
    for k, wnid in enumerate(wnids):
        true = np.where(rng.random((6, 8)) < 0.5, k + 1, 0).astype(np.uint16)
        for split, name in (("validation", "v"), ("train", "t")):
            image = tmp_path / "data" / split / wnid / f"{name}.JPEG"
            image.parent.mkdir(parents=True)
            Image.new("RGB", (8, 6)).save(image)
        for root in (tmp_path / "data" / "validation-segmentation", tmp_path / "masks" / f"{prefix}"):
            (root / wnid).mkdir(parents=True, exist_ok=True)
            write_mask_rg(root / wnid / "v.png", true)
    truth = open_data(f"imagenet_s:{tmp_path / 'data'}")
    for split in ("validation", None):
        scores = evaluate_folder(tmp_path / "masks", truth, "luss", split=split)
        assert scores.images == 3 and scores.miou == pytest.approx(1)
    (tmp_path / "masks" / prefix / wnids[0] / "v.png").unlink()
    with pytest.raises(MaskwrightError, match=rf"1 of 3 predictions.*validation/{wnids[0]}/v\.png"):
        evaluate_folder(tmp_path / "masks", truth, "luss", split="validation")


@pytest.fixture
def discs(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """A data set of three discs on a ground, and its masks; ids 0 and 1."""
    yy, xx = np.mgrid[:40, :50]
    true = [((yy - 20) ** 2 + (xx - 15 - 8 * i) ** 2 < 100).astype(np.uint8) for i in range(3)]
    for sub in ("images", "masks"):
        (tmp_path / "set" / sub).mkdir(parents=True)
    for i, ids in enumerate(true):
        Image.fromarray(np.full((40, 50, 3), 90 + 30 * i, np.uint8)).save(tmp_path / "set" / "images" / f"p{i}.png")
        write_mask(tmp_path / "set" / "masks" / f"p{i}.png", ids)
    (tmp_path / "set" / "classes.txt").write_text("ground\ndisc\n")
    return tmp_path / "set", true


@pytest.mark.parametrize("protocol", ["direct", "hungarian", "majority", "saliency"])
def test_drawn_predictions_with_other_values_are_asked(tmp_path, discs, protocol: str) -> None:
    """A few pixels of 254 are no cluster, and 255 beside them no "no class"."""
    root, true = discs
    (tmp_path / "predicted").mkdir()
    for i, ids in enumerate(true):
        drawn = 255 * ids
        drawn[20, 20:23] = np.where(drawn[20, 20:23] == 255, 254, 0)
        Image.fromarray(drawn).save(tmp_path / "predicted" / f"p{i}.png")
    with pytest.raises(MaskwrightError) as error:
        evaluate_folder(tmp_path / "predicted", root, protocol)
    assert "add --predicted-labels binary255" in str(error.value)
    assert " --labels" not in str(error.value)
    reading = Reading.parse("binary255")
    assert evaluate_folder(tmp_path / "predicted", root, protocol, predicted=reading).miou == pytest.approx(1)


def test_smooth_predictions_are_asked_of_clusters_too(tmp_path, discs) -> None:
    root, true = discs
    (tmp_path / "predicted").mkdir()
    for i, ids in enumerate(true):
        drawn = (255 * ids).astype(float)
        for _ in range(3):
            for axis in (0, 1):
                drawn = (np.roll(drawn, 1, axis) + 2 * drawn + np.roll(drawn, -1, axis)) / 4
        Image.fromarray(drawn.round().astype(np.uint8)).save(tmp_path / "predicted" / f"p{i}.png")
    with pytest.raises(MaskwrightError, match="--predicted-labels binary255"):
        evaluate_folder(tmp_path / "predicted", root, "hungarian")
    scores = evaluate_folder(tmp_path / "predicted", root, "hungarian", predicted=Reading.parse("binary255"))
    assert scores.miou > 0.8


def test_many_clusters_with_255_are_judged(tmp_path, discs) -> None:
    root, true = discs
    (tmp_path / "predicted").mkdir()
    for i in range(len(true)):
        clusters = (np.arange(40 * 50).reshape(40, 50) // 10 % 200).astype(np.uint8)
        clusters[0] = 255
        Image.fromarray(clusters).save(tmp_path / "predicted" / f"p{i}.png")
    assert evaluate_folder(tmp_path / "predicted", root, "majority").predicted > 100


def test_what_is_said_of_predictions_names_their_files_and_option(tmp_path, discs) -> None:
    root, true = discs
    (tmp_path / "predicted").mkdir()
    for i, ids in enumerate(true):
        Image.fromarray(np.array([[0, 0, 0], [250, 50, 83]], np.uint8)[ids]).save(tmp_path / "predicted" / f"p{i}.png")
    with pytest.raises(MaskwrightError, match=r"colors\.txt among the predictions.*--predicted-labels colours"):
        evaluate_folder(tmp_path / "predicted", root)
    with pytest.raises(MaskwrightError, match=r"\(p0") as error:
        evaluate_folder(tmp_path / "predicted", root, predicted=Reading.parse("colours"))
    assert "000000" not in str(error.value)
    (tmp_path / "predicted" / "colors.txt").write_text("0 0 0\n250 50 83\n")
    assert evaluate_folder(tmp_path / "predicted", root, predicted=Reading.parse("colours")).miou == pytest.approx(1)

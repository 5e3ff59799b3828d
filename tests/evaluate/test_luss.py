"""The ImageNet-S benchmark against a slow computation from its definition, and hand-made cases."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from maskwright.errors import MaskwrightError
from maskwright.evaluate.luss import LussEvaluator, LussMatcher, LussMatching

Images = list[tuple[np.ndarray, np.ndarray]]


def random_images(classes: int, count: int, seed: int = 0) -> Images:
    """Truth with ignored parts, large and small regions and background; similar predictions, permuted."""
    rng = np.random.default_rng(seed)
    renamed = np.concatenate([[0], 1 + rng.permutation(classes)])
    images = []
    for _ in range(count):
        h, w = rng.integers(25, 60, 2)
        true = np.zeros((h, w), np.uint16)
        for _ in range(rng.integers(1, 5)):
            y, x = rng.integers(0, h), rng.integers(0, w)
            true[y : y + rng.integers(2, h), x : x + rng.integers(2, w)] = rng.integers(1, classes + 1)
        pred = np.roll(true, rng.integers(-3, 4, 2), (0, 1))
        y, x = rng.integers(0, h), rng.integers(0, w)
        pred[y : y + 9, x : x + 9] = rng.integers(0, classes + 1)
        noisy = rng.random((h, w)) < 0.02
        pred = np.where(noisy, rng.integers(0, classes + 1, (h, w)), pred)
        true[rng.integers(0, h) :, : rng.integers(0, 6)] = 1000
        images.append((renamed[pred].astype(np.uint16), true))
    return images


def slow_boundary(labels: np.ndarray) -> np.ndarray:
    """label + 1 on boundary pixels, 0 elsewhere."""
    h, w = labels.shape
    d = max(1, round(0.03 * math.sqrt(h * h + w * w)))
    out = np.zeros((h, w), np.int64)
    for v in np.unique(labels):
        mask = np.zeros((h + 2, w + 2), bool)
        mask[1:-1, 1:-1] = labels == v
        inner = mask.copy()
        for _ in range(d):
            inner = ndimage.binary_erosion(inner, np.ones((3, 3)), border_value=1)
        out[(mask & ~inner)[1:-1, 1:-1]] = int(v) + 1
    return out


def slow_scores(images: Images, mapping: dict[int, int], classes: int) -> dict[str, object]:
    """The benchmark in plain Python sets and numpy masks; pixels lists, no counting tables."""
    k = classes + 1
    sums = {key: np.zeros((3, k)) for key in itertools.product(("all", "S", "MS", "ML", "L"), ("region", "edge"))}
    f_total, right = 0.0, 0

    def add(key: tuple[str, str], p: np.ndarray, t: np.ndarray, first: int) -> None:
        for c in range(k):
            in_p, in_t = p == c + first, t == c + first
            if in_p.any() or in_t.any():
                sums[key] += np.eye(k)[c] * np.array([[(in_p & in_t).sum()], [in_p.sum()], [in_t.sum()]])

    for pred, true in images:
        pred = np.vectorize(lambda x: mapping[int(x)])(pred)
        edge_p, edge_t = slow_boundary(pred), slow_boundary(true.astype(np.int64))
        keep = true != 1000
        p, t, ep, et = pred[keep], true[keep].astype(np.int64), edge_p[keep], edge_t[keep]
        add(("all", "region"), p, t, 0)
        add(("all", "edge"), ep, et, 1)
        groups: dict[str, list[int]] = {}
        for c in set(t.tolist()) - {0}:
            s = -((-100 * int((t == c).sum())) // len(t))
            groups.setdefault("S" if s <= 5 else "MS" if s <= 25 else "ML" if s <= 50 else "L", []).append(c)
        for name, members in groups.items():
            chosen = np.isin(t, [0, *members])
            add((name, "region"), p[chosen], t[chosen], 0)
            add((name, "edge"), ep[chosen], et[chosen], 1)
        tp, np_, nt = ((p > 0) & (t > 0)).sum(), (p > 0).sum(), (t > 0).sum()
        precision, recall = tp / (np_ + 1e-20), tp / (nt + 1e-20)
        f_total += 1.3 * precision * recall / (0.3 * precision + recall + 1e-20)
        if (p > 0).any():
            found = min(set(p.tolist()) - {0}, key=lambda c: (-(p == c).sum(), c))
            right += found in set(t.tolist())

    def iou(key: tuple[str, str]) -> np.ndarray:
        tp, a, b = sums[key]
        return tp / (a + b - tp + 1e-10)

    out: dict[str, object] = {
        "mIoU": iou(("all", "region")).mean(),
        "mBIoU": iou(("all", "edge")).mean(),
        "FMeasure": f_total / len(images),
        "Acc": right / len(images),
        "iou": iou(("all", "region")),
        "boundary_iou": iou(("all", "edge")),
    }
    for name in ("S", "MS", "ML", "L"):
        for kind, prefix in (("region", ""), ("edge", "B")):
            there = sums[(name, kind)][2] > 0
            out[prefix + name] = iou((name, kind))[there].mean() if there.any() else math.nan
    return out


@pytest.mark.parametrize(("classes", "count"), [(50, 30), (300, 20), (919, 16)])
def test_agrees_with_the_slow_computation(classes: int, count: int) -> None:
    images = random_images(classes, count, classes)
    matcher = LussMatcher(classes)
    for pred, true in images:
        matcher.update(pred, true)
    # The table of images together, from sets.
    together = np.zeros((classes, classes), int)
    for pred, true in images:
        here = set(pred[true != 1000].tolist()) - {0}
        there = set(true[true != 1000].tolist()) - {0}
        for i, j in itertools.product(here, there):
            together[i - 1, j - 1] += 1
    assert np.array_equal(matcher.together, together)
    matching = matcher.matching()
    evaluator = LussEvaluator(classes, matching)
    for pred, true in images:
        evaluator.update(pred, true)
    table = evaluator.compute()
    expected = slow_scores(images, dict(enumerate(matching.mapping.tolist())), classes)
    for name, value in table.summary().items():
        assert value == pytest.approx(expected[name], rel=1e-12, nan_ok=True), name
    assert np.allclose(table.iou, expected["iou"]) and np.allclose(table.boundary_iou, expected["boundary_iou"])
    assert 0 < table.miou < 1 and 0 < table.boundary_miou < 1 and 0 < table.image_accuracy <= 1


def test_matching_is_optimal() -> None:
    images = random_images(5, 12, 3)
    matcher = LussMatcher(5)
    for pred, true in images:
        matcher.update(pred, true)
    best = max(sum(matcher.together[i, p[i]] for i in range(5)) for p in itertools.permutations(range(5)))
    for cost in ("imagenet_s", "pass"):
        mapping = matcher.matching(cost).mapping
        assert sorted(mapping[1:]) == [1, 2, 3, 4, 5] and mapping[0] == 0
        assert sum(matcher.together[i, mapping[i + 1] - 1] for i in range(5)) == best
    with pytest.raises(MaskwrightError, match="imagenet_s"):
        matcher.matching("imagenets")


def test_permuted_perfect_prediction_is_restored(tmp_path: Path) -> None:
    classes = 30
    rng = np.random.default_rng(5)
    renamed = np.concatenate([[0], 1 + rng.permutation(classes)]).astype(np.uint16)
    truths = []
    for c in range(1, classes + 1):  # each class alone in an image, so that the optimum is unique
        true = np.zeros((20, 20), np.uint16)
        true[3:12, 4:15] = c
        truths.append(true)
    matcher = LussMatcher(classes)
    for true in truths:
        matcher.update(renamed[true], true)
    matching = matcher.matching()
    assert np.array_equal(matching.mapping[renamed], np.arange(classes + 1))
    matching.save(tmp_path / "deep" / "matching.json")
    again = LussMatching.load(tmp_path / "deep" / "matching.json")
    assert np.array_equal(again.mapping, matching.mapping) and again.images == classes
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["matching.json"]
    evaluator = LussEvaluator(classes, again)
    for true in truths:
        evaluator.update(renamed[true], true)
    table = evaluator.compute()
    assert table.miou == pytest.approx(1) and table.boundary_miou == pytest.approx(1)
    assert table.image_accuracy == 1 and table.f_measure == pytest.approx(1) and table.pixel_accuracy == 1


def test_perfect_is_100_only_with_every_class() -> None:
    true = np.zeros((10, 10), np.uint16)
    true[:3] = 1
    evaluator = LussEvaluator(3)
    evaluator.update(true, true)
    table = evaluator.compute()
    assert table.miou == pytest.approx(0.5)  # 0 and 1 of four ids
    assert table.iou.tolist() == pytest.approx([1, 1, 0, 0])
    assert table.mean_accuracy == 1


@pytest.mark.parametrize(("area", "group"), [(5, "S"), (6, "MS"), (25, "MS"), (26, "ML"), (50, "ML"), (51, "L")])
def test_sizes(area: int, group: str) -> None:
    true = np.zeros(100, np.uint16)
    true[:area] = 1
    true = true.reshape(10, 10)
    evaluator = LussEvaluator(1)
    evaluator.update(true, true)
    sizes = evaluator.compute().sizes
    assert [name for name, x in sizes.items() if not math.isnan(x)] == [group]
    assert sizes[group] == pytest.approx(1)


def test_background_counts_only_for_sizes_an_image_has() -> None:
    small, large = np.zeros((10, 10), np.uint16), np.zeros((10, 10), np.uint16)
    small[0, :4], large[:7] = 1, 1
    wrong = np.where(small == 0, 2, small).astype(np.uint16)  # all background of the first image wrong
    evaluator = LussEvaluator(2)
    evaluator.update(wrong, small)
    evaluator.update(large, large)
    sizes = evaluator.compute().sizes
    assert sizes["S"] == pytest.approx(0.5) and sizes["L"] == pytest.approx(1)


def test_empty_prediction() -> None:
    true = np.ones((9, 9), np.uint16)
    evaluator = LussEvaluator(4)
    evaluator.update(np.zeros_like(true), true)
    table = evaluator.compute()
    assert table.f_measure == 0 and table.image_accuracy == 0 and table.miou == 0


def test_ignore_and_range() -> None:
    true = np.full((6, 6), 1000, np.uint16)
    true[0, 0] = 255  # a class, not an ignored id, in a 16-bit mask
    evaluator = LussEvaluator(300)
    evaluator.update(true.clip(0, 255), true)
    assert evaluator.compute().pixel_accuracy == 1
    with pytest.raises(MaskwrightError, match="301"):
        evaluator.update(true, np.full_like(true, 301))
    with pytest.raises(MaskwrightError, match="predicted id"):
        evaluator.update(np.full_like(true, 999), true)
    with pytest.raises(MaskwrightError, match="shape"):
        evaluator.update(true[:2], true)
    eight = np.array([[0, 1], [2, 255]], np.uint8)
    evaluator = LussEvaluator(2)
    evaluator.update(np.where(eight == 255, 0, eight), eight)
    assert evaluator.compute().miou == pytest.approx(1)


def test_more_clusters_than_classes_and_bad_files(tmp_path: Path) -> None:
    true = np.array([[1, 1, 2, 2]], np.uint16)
    matcher = LussMatcher(2)
    matcher.update(np.array([[7, 7, 3, 3]], np.uint16), true)
    matcher.update(np.array([[7, 7, 7, 7]], np.uint16), np.ones((1, 4), np.uint16))
    mapping = matcher.matching().mapping
    assert len(mapping) == 8 and mapping[7] == 1 and mapping[3] == 2 and sorted(mapping)[-2:] == [1, 2]
    with pytest.raises(MaskwrightError, match="0 to 2"):
        LussMatcher(2, predicted=2).update(np.array([[7, 7, 3, 3]], np.uint16), true)
    (tmp_path / "bad.json").write_text('{"mapping": {"0": 0, "2": 1}}')
    with pytest.raises(MaskwrightError):
        LussMatching.load(tmp_path / "bad.json")
    with pytest.raises(MaskwrightError, match="no file"):
        LussMatching.load(tmp_path / "none.json")


def test_parts_add_up() -> None:
    images = random_images(6, 10, 9)
    whole, parts = LussEvaluator(6), [LussEvaluator(6), LussEvaluator(6)]
    for i, (pred, true) in enumerate(images):
        whole.update(pred, true)
        parts[i % 2].update(pred, true)
    parts[0] += parts[1]
    assert parts[0].compute().summary() == pytest.approx(whole.compute().summary(), nan_ok=True)

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.data.training.labels import LabelStore
from maskwright.data.training.tag_targets import find_targets
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.tags.maps import CamStore, ImageCams, MultiScale, infer_cams
from maskwright.recipes.tags.options import MapOptions, SeedOptions
from maskwright.recipes.tags.seeds import seed_labels, write_seeds
from maskwright.recipes.tags.thresholds import choose_threshold, find_threshold, labelled_share, sweep_thresholds


@pytest.fixture
def data(tmp_path):
    root = write_tiny_folder(tmp_path / "tiny")
    (root / "tags.csv").write_text(
        "name,tags\npicture_00,disc\npicture_01,square;disc\npicture_03,\npicture_05,square\n"
    )
    return open_folder(root)


def redness(x, tags):
    """Maps of a "network" that sees red (disc) and blue (square) at an eighth of the resolution."""
    small = F.avg_pool2d(x, 8)
    maps = torch.stack([small[:, 0] - small[:, 2], small[:, 2] - small[:, 0]], 1).relu()
    return maps * tags[..., None, None]


PREPROCESS = Preprocess(multiple_of=8)


def plain(data, i, tags, scales, flips=True):
    """One forward pass a scale and flip, all classes, joined at the stored grid."""
    image = data.image(i)
    h, w = PREPROCESS.target_size(image.shape[:2])
    total = 0
    for s in scales:
        size = tuple(max(1, int(v * s / 8 + 0.5)) * 8 for v in (h, w))
        x = PREPROCESS.apply(image, size)[None]
        for flip in (False, True) if flips else (False,):
            m = redness(x.flip(-1) if flip else x, torch.ones(1, 2))
            m = m.flip(-1) if flip else m
            total = total + F.interpolate(m, (-(-h // 4), -(-w // 4)), mode="bilinear", align_corners=False)[0]
    total = total / (total.amax((1, 2), keepdim=True) + 1e-5)
    return total[tags.bool()]


def run(data, folder, maps=redness, **options):
    targets, store = find_targets(data, data.classes), CamStore(folder)
    infer_cams(data, targets.indices(data), targets, MultiScale(maps, PREPROCESS, **options), store)
    return targets, store


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5, 2.0)])
def test_batched_maps_are_those_of_a_plain_loop(data, tmp_path, scales, flips):
    targets, store = run(data, tmp_path / "maps", scales=scales, flips=flips)
    for i in targets.indices(data):
        name = data.items[i].name
        tags = targets.multi_hot(name)
        cams = store.read(name)
        assert cams.keys.tolist() == [c for c, t in zip((1, 2), tags.tolist()) if t]
        assert cams.size == (48, 64) and cams.maps.shape[1:] == (12, 16)
        assert torch.allclose(cams.maps, plain(data, i, tags, scales, flips), atol=2e-3)
        assert cams.full().shape == (len(cams.keys), 48, 64)
    assert "picture_02" not in store, "no tags, no maps"


def test_mirrored_photographs_have_mirrored_maps(data):
    scale = MultiScale(redness, PREPROCESS)
    image, tags = data.image(0), torch.tensor([[1, 0]])
    (a,) = scale.joined([image], tags, (48, 64))
    (b,) = scale.joined([image[:, ::-1].copy()], tags, (48, 64))
    assert torch.allclose(a, b.flip(-1), atol=1e-5)


def test_done_images_are_skipped(data, tmp_path):
    calls = []

    def counting(x, tags):
        calls.append(len(x))
        return redness(x, tags)

    run(data, tmp_path / "maps", counting, scales=(1.0,))
    assert sum(calls) == 8
    (tmp_path / "maps" / "picture_01.npz").unlink()
    calls.clear()
    run(data, tmp_path / "maps", counting, scales=(1.0,))
    assert sum(calls) == 2, "one image and its mirror image"


def test_progress_and_damage(data, tmp_path):
    targets, store = find_targets(data, data.classes), CamStore(tmp_path / "maps")
    seen: list[int] = []
    infer_cams(data, targets.indices(data), targets, MultiScale(redness, PREPROCESS, (1.0,)), store, seen.append)
    assert seen[0] == 0 and seen[-1] == 4
    store.path("picture_00").write_bytes(b"PK\x03\x04 damaged")
    for name in ("picture_00", "missing"):
        with pytest.raises(
            MaskwrightError, match=r"expected the maps of \w+; delete .*npz and .*stage\.json, and repeat the command"
        ):
            store.read(name)


def test_store_keeps_half_precision_and_folders(tmp_path):
    store = CamStore(tmp_path)
    cams = ImageCams(torch.tensor([2, 5]), torch.rand(2, 6, 7), (24, 28))
    store.write("deep/in.side", cams)
    back = store.read("deep/in.side")
    assert torch.equal(back.keys, cams.keys) and back.size == (24, 28)
    assert torch.equal(back.maps, cams.maps.half().float())


# ------------------------------------------------------------------------------------------------------ threshold


def two_levels(low: float, high: float, share: float = 0.3, noise: float = 0.03, seed: int = 0):
    """Maps whose evidence is around `high` on a share of the cells and around `low` elsewhere."""
    g = torch.Generator().manual_seed(seed)
    inside = torch.rand(1, 20, 20, generator=g) < share
    maps = torch.where(inside, high, low) + noise * torch.randn(1, 20, 20, generator=g)
    return ImageCams(torch.tensor([1]), maps.clamp(0, 1), (80, 80)), inside


@pytest.mark.parametrize("rule", ["entropy", "otsu"])
def test_threshold_lies_between_evidence_and_none(tmp_path, rule):
    store = CamStore(tmp_path)
    for k in range(5):
        store.write(f"{k}", two_levels(0.15, 0.7, seed=k)[0])
    store.write("none", ImageCams(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 20, 20), (80, 80)))
    assert 0.2 < find_threshold(store, [*"01234", "none"], rule) < 0.65
    assert find_threshold(store, ["none"], rule) == 0.3, "nothing to tell from"
    with pytest.raises(ValueError, match="rule"):
        find_threshold(store, ["0"], "luck")


def test_a_heavier_tail_of_weak_evidence_does_not_drag_the_threshold_up(tmp_path):
    store = CamStore(tmp_path)
    g = torch.Generator().manual_seed(0)
    weak = -0.1 * torch.rand(1, 40, 40, generator=g).log()
    strong = 0.45 + 0.5 * torch.rand(1, 40, 40, generator=g)
    inside = torch.rand(1, 40, 40, generator=g) < 0.3
    store.write("0", ImageCams(torch.tensor([1]), torch.where(inside, strong, weak).clamp(0, 1), (160, 160)))
    assert find_threshold(store, ["0"]) < find_threshold(store, ["0"], "otsu") + 1e-6
    assert 0.2 < find_threshold(store, ["0"]) < 0.5


def test_oracle_and_judging_are_noted(data, tmp_path):
    targets, store = run(data, tmp_path / "maps")
    sweep = sweep_thresholds(store, data, targets, 3, "select")
    assert data.ledger.counts()["select"]["masks"] == 4 and data.ledger.counts()["train"]["masks"] == 0
    assert sweep.best().miou > 0.5, "red discs and blue squares are found"
    sweep_thresholds(store, data, targets, 3, "evaluate")
    assert data.ledger.counts()["evaluate"]["masks"] == 4
    with pytest.raises(MaskwrightError, match="no image with maps"):
        sweep_thresholds(CamStore(tmp_path / "empty"), data, targets, 3, "select")


# --------------------------------------------------------------------------------------------------------- labels


CAMS = ImageCams(torch.tensor([1, 3]), torch.tensor([[[0.9, 0.2], [0.0, 0.5]], [[0.1, 0.25], [0.0, 0.6]]]), (2, 2))


def test_labels_of_the_largest_map_above_the_threshold():
    labels = seed_labels(CAMS, 0, 0.3)
    assert labels.ids.tolist() == [[1, 0], [0, 3]] and labels.valid.all()
    assert torch.allclose(labels.confidence, torch.tensor([[0.9, 0.75], [1.0, 0.6]]))
    assert seed_labels(CAMS, 0, 0.0).ids.tolist() == [[1, 3], [0, 3]], "no evidence is background at any threshold"


def test_without_a_background_class_the_rest_has_no_label():
    labels = seed_labels(CAMS, None, 0.3)
    assert labels.valid.tolist() == [[True, False], [False, True]] and labels.ids.tolist() == [[1, 0], [0, 3]]


def test_band_leaves_out_what_is_close():
    labels = seed_labels(CAMS, 0, 0.3, band=0.1)
    assert labels.valid.tolist() == [[True, False], [True, True]]


def test_no_tags_are_all_background_or_nothing():
    none = ImageCams(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 3), (8, 12))
    assert seed_labels(none, 2, 0.3).ids.eq(2).all() and seed_labels(none, 2, 0.3).valid.all()
    assert not seed_labels(none, None, 0.3).valid.any()
    image = np.zeros((8, 12, 3), np.uint8)
    assert seed_labels(none, 2, 0.3, image=image).ids.eq(2).all()


def test_crf_moves_the_seed_to_the_edge():
    image = np.full((40, 60, 3), 40, np.uint8)
    image[10:30, 15:45] = (220, 60, 40)
    truth = np.zeros((40, 60), bool)
    truth[10:30, 15:45] = True
    blob = np.exp(-(((np.mgrid[:40, :60][0] - 20) / 14) ** 2) - ((np.mgrid[:40, :60][1] - 28) / 14) ** 2)
    cams = ImageCams(torch.tensor([1]), torch.from_numpy(blob).float()[None], (40, 60))
    ious = []
    for refined in (None, image):
        ids = seed_labels(cams, 0, 0.35, image=refined).ids.numpy() == 1
        ious.append((ids & truth).sum() / (ids | truth).sum())
    assert ious[1] > ious[0] and ious[1] > 0.9


def test_written_seeds_are_a_dataset(data, tmp_path):
    targets, store = run(data, tmp_path / "maps")
    labels = LabelStore(tmp_path / "seeds", ClassTable(data.classes.names))
    indices = targets.indices(data)
    assert list(write_seeds(store, data, indices, labels, 0, 0.4)) == [1, 2, 3, 4]
    again = open_folder(tmp_path / "seeds")
    assert len(again) == 4 and again.labels_present()["masks"] == 4
    assert labels.read("picture_03").ids.eq(0).all()
    before = (tmp_path / "seeds" / "masks" / "picture_00.png").stat().st_mtime_ns
    list(write_seeds(store, data, indices, labels, 0, 0.4))
    assert (tmp_path / "seeds" / "masks" / "picture_00.png").stat().st_mtime_ns == before


@pytest.fixture
def stored(data, tmp_path):
    """Maps of all tagged images: half of the cells at 0.1, a third at 0.8, the rest without evidence."""
    store = CamStore(tmp_path / "stored")
    values = torch.tensor([0.1] * 24 + [0.8] * 16 + [0.0] * 8).view(1, 6, 8)
    for name, channels in find_targets(data, data.classes).tagged.items():
        keys = torch.arange(1, 1 + len(channels))
        store.write(name, ImageCams(keys, values.expand(len(channels), 6, 8), (48, 64)))
    return store


def chosen(store, data, background, **options):
    targets = find_targets(data, data.classes, background=background)
    return choose_threshold(configure(SeedOptions, options), store, data, targets, 3)


@pytest.mark.parametrize("rule", ["entropy", "otsu"])
def test_the_threshold_is_found_where_a_class_stands_for_the_background(data, stored, rule):
    found = chosen(stored, data, "ground", threshold_rule=rule)
    assert found.value == find_threshold(stored, data.names[:2], rule) and 0.1 < found.value < 0.8
    assert found.why.endswith("without masks")


def test_where_no_class_stands_for_the_background_nothing_is_left_out_and_the_price_is_said(data, stored):
    found = chosen(stored, data, "none")
    split = find_threshold(stored, data.names[:2])
    assert found.value == 0 and "no class stands for the background" in found.why
    assert "83 % of the maps' cells" in found.why and "33 % would" in found.why
    assert f"--set threshold={split:.2f}" in found.why
    assert labelled_share(np.array([0.0, 0.1, 0.1, 0.8]), 0.0) == 0.75
    assert labelled_share(np.array([0.0, 0.1, 0.1, 0.8]), 0.1) == 0.75
    assert labelled_share(np.array([0.0, 0.1, 0.1, 0.8]), 0.2) == 0.25 and np.isnan(labelled_share(np.zeros(0), 0))
    cams = stored.read("picture_00")
    labels = seed_labels(cams, None, found.value)
    assert torch.equal(labels.valid, cams.full()[0] > 0) and not labels.valid.all()


def test_a_threshold_that_is_asked_for_or_the_oracles_counts_whatever_stands_for_the_background(data, stored):
    for background in ("ground", "none"):
        assert chosen(stored, data, background, threshold=0.35) == (0.35, "as asked")
        best = chosen(stored, data, background, oracle_threshold=True)
        targets = find_targets(data, data.classes, background=background)
        assert best.value == sweep_thresholds(stored, data, targets, 3, "evaluate").best().threshold
    assert data.ledger.counts()["select"]["masks"] == 4


def test_contradictions_are_refused():
    with pytest.raises(MaskwrightError, match="oracle_threshold"):
        configure(SeedOptions, {"threshold": 0.3, "oracle_threshold": True})
    with pytest.raises(MaskwrightError, match="no scales"):
        configure(MapOptions, {"scales": ""})
    assert configure(SeedOptions, {"threshold": "none"}).threshold is None

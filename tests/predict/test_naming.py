"""A model whose clusters have names says what its clusters say, each id replaced, and its probabilities are sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.masks import read_mask
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import CosineClassifier
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.predict.model import Model, load
from maskwright.predict.naming import settle_names
from maskwright.predict.suggest import suggest

NAMES = {0: "road", 1: "sky", 2: None, 3: "road", 4: "void", 5: "car", 6: "sky"}
ROAD, SKY, CAR, VOID = 0, 1, 2, 255
LOOKUP = np.array([ROAD, SKY, VOID, ROAD, VOID, CAR, SKY])
WAYS = [
    {}, {"refine": "crf"}, {"tile": 48}, {"flips": True, "scales": (1.0, 1.5)},
]  # fmt: skip


@pytest.fixture(scope="module")
def clusters() -> Model:
    """Seven clusters, as unsure as can be: their ids change within a few pixels."""
    torch.manual_seed(0)
    vit = build_backbone("test_vit", "random")
    encoder = BackboneEncoder(vit, [-1], "tokens", normalize=True)
    centers = torch.randn(7, 64)
    return Model(
        Segmenter(
            encoder, None, CosineClassifier(centers, 0.5), ClassTable.numbered(7),
            Preprocess(short_side=64, multiple_of=16), vit.provenance, "kmeans",
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("way", WAYS)
def test_the_mask_is_that_of_the_clusters_with_each_id_replaced(clusters, picture, way):
    before, named = clusters.predict(picture, **way), clusters.rename(NAMES).predict(picture, **way)
    assert len(np.unique(before.mask)) >= 4 and np.array_equal(named.mask, LOOKUP[before.mask])
    assert named.classes.names == ("road", "sky", "car") and named.mask.dtype == np.uint16


@pytest.mark.parametrize("way", [w for w in WAYS if "refine" not in w])
def test_probabilities_are_sums_and_the_confidence_is_that_of_the_class(clusters, picture, way):
    model = clusters.rename(NAMES)
    p, q = clusters.probabilities(picture, **way), model.probabilities(picture, **way)
    sums = {ROAD: p[0] + p[3], SKY: p[1] + p[6], CAR: p[5], VOID: p[2] + p[4]}
    np.testing.assert_array_equal(q, np.stack([sums[ROAD], sums[SKY], sums[CAR]]))
    found = model.predict(picture, refine="none", **way)
    expected = np.select([found.mask == c for c in sums], list(sums.values()))
    np.testing.assert_allclose(found.confidence, expected, rtol=1e-6)


def test_where_mask_and_largest_sum_differ_the_mask_follows_the_cluster(clusters, picture):
    model = clusters.rename(NAMES)
    mask, q = model.predict(picture).mask, model.probabilities(picture)
    assert (mask != q.argmax(0)).any(), "a picture that shows it"


def test_saved_loaded_and_named_again(clusters, picture, tmp_path):
    model = clusters.rename(NAMES)
    again = load(model.save(tmp_path / "model.safetensors"))
    assert np.array_equal(again.predict(picture).mask, model.predict(picture).mask)
    assert again.extra["labels_read"]["train"]["names"] == 7
    thing = again.rename({"road": "ground", "sky": None, "car": "thing"})
    lookup = np.array([0, VOID, VOID, 0, VOID, 1, VOID])
    assert np.array_equal(thing.predict(picture).mask, lookup[clusters.predict(picture).mask])
    p = clusters.probabilities(picture)
    np.testing.assert_array_equal(thing.probabilities(picture), np.stack([p[0] + p[3], p[5]]))


def test_only_means_the_clusters_of_the_classes_that_may_occur(clusters, picture):
    named = clusters.rename(NAMES).predict(picture, only=["road", "car"]).mask
    assert np.array_equal(named, LOOKUP[clusters.predict(picture, only=[0, 3, 5]).mask])
    table = ClassTable(("road", "sky", "car", "boat"))
    with pytest.raises(MaskwrightError, match="none is made of any cluster"):
        clusters.rename(NAMES, table).predict(picture, only=["boat"])


def test_above_255_classes_void_is_65535(clusters, picture):
    table = ClassTable(tuple(f"class {i}" for i in range(300)))
    model = clusters.rename({k: "class 299" if k != 2 else None for k in range(7)}, table)
    before, mask = clusters.predict(picture).mask, model.predict(picture).mask
    assert np.array_equal(mask, np.where(before == 2, 65535, 299))


def test_a_folder_counts_void_as_area_and_suggestions_work(clusters, tiny_folder, tmp_path):
    model = clusters.rename(NAMES)
    done = model.predict_folder(tiny_folder, tmp_path / "out")
    masks = np.concatenate([read_mask(p).ravel() for p in sorted((tmp_path / "out").glob("*.png"))])
    np.testing.assert_allclose(done.shares, [(masks == c).mean() for c in range(3)])
    (tiny_folder / "masks" / "picture_00.png").unlink()
    from maskwright.data.folders.folder import open_folder

    rows = suggest(model, open_folder(tiny_folder), 1, regions=1, out=tmp_path / "next").rows
    assert [r.name for r in rows] == ["picture_00"] and (tmp_path / "next" / "sheet.png").exists()


# ------------------------------------------------------------------ ids and names


def test_ids_and_colours_follow_the_table_or_the_first_cluster():
    seven = ClassTable.numbered(7)
    listed = ["road", "sky", "void", "road", "IGNORE", "car", "sky"]
    plain = settle_names(listed, seven)
    assert plain.class_of == (0, 1, -1, 0, -1, 2, 1) and plain.table.names == ("road", "sky", "car")
    assert np.array_equal(plain.table.colors, seven.colors[[0, 1, 5]])
    table = ClassTable(("sky", "tree", "road", "cart"))
    known = settle_names(listed, seven, table)
    assert known.table.names == ("sky", "tree", "road", "cart", "car") and known.class_of == (2, 0, -1, 2, -1, 4, 0)
    assert np.array_equal(known.table.colors, [*table.colors, seven.colors[5]])
    assert "car (did you mean cart?)" in known.notices[0]
    strange = settle_names(listed, seven, ClassTable(("cat", "dog")))
    assert strange.table.names == plain.table.names and "None of the names" in strange.notices[0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", "", "b"], ("cluster 1 without a name", "void")),
        (["a", None, " "], ("clusters 1, 2 without a name",)),
        (["a", "0", "b"], ("cluster 1 has the name 0, a number", "as for cluster 0")),
        (["a", "-1.5", "b"], ("a number", "a word")),
        (["void"] * 3, ("every cluster is void", "name one")),
        (["Road", "road", "b"], ("case alone", "write Road for both")),
    ],
)
def test_names_that_cannot_be_are_told_with_what_mends_them(names, words):
    with pytest.raises(MaskwrightError) as error:
        settle_names(names, ClassTable.numbered(3))
    assert all(word in str(error.value) for word in words) and error.value.repair and "\n" not in str(error.value)


def test_unknown_and_repeated_clusters(clusters):
    with pytest.raises(MaskwrightError, match="a name for 9"):
        clusters.rename(NAMES | {9: "x"})
    with pytest.raises(MaskwrightError, match="two names for cluster 0"):
        clusters.rename(NAMES | {"cluster 0": "x"})
    with pytest.raises(MaskwrightError, match="cluster 6 without a name"):
        clusters.rename({k: v for k, v in NAMES.items() if k != 6})

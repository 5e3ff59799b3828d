"""Object masks from any source: stores, folders of files, models, ONNX networks, eigenvectors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.test_onnx_network import brightness

from maskwright.app.stage_view import stage_views
from maskwright.data.masking.classes import ClassTable
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals, SoftMap
from maskwright.engine.inputs import Input, open_inputs
from maskwright.engine.needs import InputNeed
from maskwright.errors import MaskwrightError
from maskwright.recipes.proposals import objects as O

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "predict"))
from fakes import ColorSegmenter

NEED = {"objects": InputNeed(says=O.WHAT, kind="proposals", required=False, networks=True)}


def given(context, place, **options):
    """A maker of what `--input objects=PLACE` opens."""
    context.inputs = open_inputs(NEED, {"objects": str(place)}, 0)
    return O.object_maker(context, O.ObjectMaskOptions(**options), context.inputs["objects"])


def truth(context, i: int) -> np.ndarray:
    """Where the tiny pictures show something."""
    return np.asarray(Image.open(context.data.root / "masks" / f"{context.data.names[i]}.png")) > 0


def as_labels(mask: np.ndarray) -> LabelMap:
    return LabelMap.from_mask(mask.astype(np.uint8))


def fill(folder: Path, holds, context, make, classes=None) -> Path:
    store = Proposals.begin(folder, holds, "a test", "masks of 3 images", classes)
    for i, name in enumerate(context.data.names):
        store.write(name, make(i), context.data.items[i].image)
    return folder


def test_stores_of_objects_soft_maps_and_classes(semi_context, tmp_path):
    mask = lambda i: truth(semi_context, i)  # noqa: E731
    soft = lambda i: SoftMap(torch.from_numpy(mask(i) * 0.6 + 0.2).float(), torch.ones(48, 64, dtype=torch.bool))  # noqa: E731
    named = lambda i: as_labels(np.where(mask(i), 0, 1))  # noqa: E731
    places = {
        "objects": fill(tmp_path / "o", "objects", semi_context, lambda i: as_labels(mask(i))),
        "soft": fill(tmp_path / "s", "soft", semi_context, soft),
        "classes": fill(tmp_path / "c", "classes", semi_context, named, ClassTable(("thing", "background"))),
    }  # fmt: skip
    for place in places.values():
        maker = given(semi_context, place)
        assert np.array_equal(maker.mask(2), mask(2)) and maker.labels_seen == "masks of 3 images"
        assert semi_context.data.names[0] in maker and "nothing" not in maker
    assert not given(semi_context, places["soft"], threshold=0.9).mask(2).any()
    regions = fill(tmp_path / "r", "regions", semi_context, named)
    with pytest.raises(MaskwrightError, match="holds regions"):
        given(semi_context, regions)


@pytest.mark.parametrize(
    ("values", "how"),
    [((0, 255), "grey"), ((10, 200), "grey"), ((0, 1), "ids"), ((0, 7), "ids")],
)
def test_files_of_a_folder_are_maps_or_ids(semi_context, tmp_path, values, how):
    (tmp_path / "files").mkdir()
    for i, name in enumerate(semi_context.data.names):
        ids = np.where(truth(semi_context, i), values[1], values[0]).astype(np.uint8)
        if how == "ids":
            ids[0] = 255  # unknown, and so no object
        Image.fromarray(ids).save(tmp_path / "files" / f"{name}.png")
    maker = given(semi_context, tmp_path / "files")
    wanted = truth(semi_context, 1)
    wanted[0] &= how == "grey"
    assert np.array_equal(maker.mask(1), wanted) and maker.labels_seen == "unknown"
    assert any("grey maps" in n if how == "grey" else "0 is background" in n for n in semi_context.notes)


def test_networks(semi_context, tmp_path):
    """An ONNX file, and a saved model: all but its background, which its first class is where none is so called."""
    maker = given(semi_context, brightness(tmp_path / "net.onnx"))
    assert given(semi_context, tmp_path / "net.onnx", saw="saliency masks").labels_seen == "saliency masks"
    assert maker.labels_seen == "unknown" and maker.mask(0).shape == (48, 64)
    assert any("net.onnx is given photographs of 320 x 320" in n for n in semi_context.notes)
    one = semi_context.inputs["objects"]
    assert one.kind == "network" and one.record()["labels_seen"] == "unknown"
    segmenter = ColorSegmenter()
    model = Input("objects", "network", "runs/a/model.safetensors", "0", segmenter, "none")
    semi_context.inputs = {"objects": model}
    found = O.object_maker(semi_context, O.ObjectMaskOptions(), model).mask(3)
    assert (found == truth(semi_context, 3)).mean() > 0.97
    with pytest.raises(MaskwrightError, match=r"--input objects: .*nowhere.onnx is not there"):
        open_inputs(NEED, {"objects": "nowhere.onnx"}, 0)


def test_the_stage_leaves_a_store_without_specks_and_shows_some(semi_context, tmp_path):
    def speck(i):
        ids = truth(semi_context, i)
        ids[0, 0] = True
        return as_labels(ids)

    place = fill(tmp_path / "o", "objects", semi_context, speck)
    (place / "objects" / f"{semi_context.data.names[4]}.png").unlink()
    maker, folder = given(semi_context, place), semi_context.run.stage_folder("objects")
    store = O.find_objects(semi_context, folder, maker, O.ObjectMaskOptions())
    assert len(store) == 7 and (store.holds, store.labels_seen) == ("objects", "masks of 3 images")
    assert np.array_equal(store.read(semi_context.data.names[2]).ids.numpy() > 0, truth(semi_context, 2))
    assert any("1 of 8 photographs have none" in n for n in semi_context.notes)
    ((title, body),) = stage_views(semi_context.run.path, ["objects"])
    assert title == "Objects" and "masks of 3 images" in body and body.count("<img") == 8
    semi_context.data = semi_context.data.subset([4])
    with pytest.raises(MaskwrightError, match="of none of the 1 photographs"):
        O.find_objects(semi_context, folder, maker, O.ObjectMaskOptions())


def test_eigenvectors_find_what_deep_spectral_finds(semi_context):
    """They need no input; on untrained features colour alone tells."""
    maker = O.object_maker(semi_context, O.ObjectMaskOptions(short_side=64), None)
    assert maker.labels_seen == semi_context.backbone.provenance.labels_seen
    found = maker.mask(0)
    assert found.shape == (48, 64) and found.dtype == bool and 0 < found.mean() < 1
    assert np.array_equal(found, maker.mask(0))

"""UDA-SOD: losses and choices against slow formulas, its composites, where objects come from, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.methods.adapt import two_folders

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals, SoftMap
from maskwright.data.training.views import View
from maskwright.engine.config import configure
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.methods.adapt.uda_sod.composing import COMPOSITES, GEOMETRY, Composer, object_boxes, object_ids
from maskwright.methods.adapt.uda_sod.losses import SoftMasks, iou_loss, mask_loss, object_logit, pixel_weight
from maskwright.methods.adapt.uda_sod.method import UDASOD, UDASODConfig
from maskwright.methods.adapt.uda_sod.training import SaliencyTraining, shares_of, triangular
from maskwright.methods.adapt.uda_sod.uncertainty import (
    believed,
    disagreement,
    portions,
    predictions,
    relative_variance,
    salient_share,
)

SMALL = {"crops.size": 32, "crops.batch": 4, "precision": "fp32", "composites.count": 6, "rounds": 1}


def context_of(domains: tuple[Path, Path], out: Path, inputs=None, sources=None, **options):
    return two_folders.context_of(domains, out, UDASOD, sources=sources, inputs=inputs, **{**SMALL, **options})


def method_of(context) -> UDASOD:
    return UDASOD(context.timing.config, context)


# ---------------------------------------------------------------------- losses


def labels(seed: int, b: int = 2, size: int = 5) -> SoftMasks:
    g = torch.Generator().manual_seed(seed)
    m, v, keep = (torch.rand(b, size, size, generator=g, dtype=torch.float64) for _ in range(3))
    return SoftMasks(m, v / 4, keep < 0.8)


def test_the_loss_is_the_slow_formula():
    y, k = labels(0), 20.0
    o = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    iou = 0.0
    for b in range(2):
        both = total = 0.0
        for i, j in np.ndindex(5, 5):
            if y.valid[b, i, j]:
                p, m = 1 / (1 + math.exp(-o[b, i, j])), float(y.m[b, i, j])
                both, total = both + p * m, total + p + m
        iou += (1 - (both + 1) / (total - both + 1)) / 2
    loss, count = 0.0, 0
    for place in np.ndindex(2, 5, 5):
        if y.valid[place]:
            p, m = 1 / (1 + math.exp(-o[place])), float(y.m[place])
            bce = -m * math.log(p) - (1 - m) * math.log(1 - p)
            loss, count = loss + math.exp(-k * y.v[place]) * (bce + iou), count + 1
    assert float(mask_loss(o, y, k)) == pytest.approx(loss / count, rel=1e-9)


def test_invariants_of_the_loss():
    y = labels(2)
    e = pixel_weight(y.v, 20)
    assert float(e.min()) > 0 and float(e.max()) <= 1 and torch.equal(pixel_weight(0 * y.v, 20), torch.ones_like(e))
    hard = (y.m > 0.5).double()
    assert float(iou_loss(200 * (2 * hard - 1), hard, y.valid)) == pytest.approx(0, abs=1e-12), "perfect logits"
    assert float(iou_loss(-200 * (2 * hard - 1), hard, y.valid)) > 0.5
    o = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    nothing = SoftMasks(y.m, y.v, torch.zeros_like(y.valid))
    loss = mask_loss(o, nothing, 20)
    loss.backward()
    assert loss.item() == 0 and not o.grad.any()


def test_two_classes_are_one_logit():
    logits = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(object_logit(logits).sigmoid(), logits.softmax(1)[:, 1])


# ---------------------------------------------------------------------- uncertainty


def test_views_that_agree_have_no_variance_and_each_is_brought_back():
    """A network that says how red a pixel is agrees with itself under flips; with another style it does not."""
    image = np.random.default_rng(0).integers(60, 190, (12, 16, 3), dtype=np.uint8)
    seen: list[tuple[int, ...]] = []

    def red(x: np.ndarray) -> torch.Tensor:
        seen.append(x.shape)
        return torch.from_numpy(x[..., 0].astype(np.float32) / 255)

    p = predictions(red, image, image, 0.01, 1.0)
    assert p.shape == (4, 12, 16) and torch.allclose(disagreement(p), torch.zeros(12, 16), atol=1e-7)
    p = predictions(red, image, np.full_like(image, 60), 0.01, 0.5)
    assert seen[-1] == (6, 8, 3) and torch.equal(p[0], p[1])
    assert float((p[0] - p[2]).mean()) == pytest.approx((image[..., 0].mean() - 60) / 255, abs=2e-3)
    small = View.identity((12, 16)).resize(6, 8).render(image)[..., 0]
    assert torch.allclose(p[3][1::4, 1::4], p[3][1::4, 1::4].clamp(small.min() / 255, small.max() / 255))
    slow = np.array([[np.var(p[:, i, j].numpy()) for j in range(16)] for i in range(12)])
    np.testing.assert_allclose(disagreement(p).numpy(), slow, atol=1e-6)


def test_a_side_that_only_mirrored_sees_is_brought_back_to_its_place():
    image = np.zeros((4, 6, 3), np.uint8)

    def left(x: np.ndarray) -> torch.Tensor:
        out = torch.zeros(x.shape[:2])
        out[:, : x.shape[1] // 2] = 1
        return out

    p = predictions(left, image, image, 0.0, 1.0)
    assert p[0][:, :3].all() and p[1][:, 3:].all() and not p[1][:, :3].any()


def test_salient_share_counts_above_the_middle():
    p = torch.tensor([[0.0, 128.4, 128.6, 255.0]]) / 255
    assert salient_share(p) == 0.5


def test_who_is_believed():
    scores = {"a": 0.03, "b": 0.01, "c": 0.01, "d": 0.02, "e": 0.0}
    shares = {"a": 0.5, "b": 0.5, "c": 0.3, "d": 0.01, "e": 0.995}
    found = believed(scores, shares, portion=0.5)
    assert found == (["b", "c"], ["e"], ["b", "c", "d", "a"])
    assert believed(scores, shares, portion=0.1).names == ["b"], "at least one"
    assert believed(scores, shares, portion=0).names == []
    assert believed(scores, shares, portion=0.5, skip=0.5).names == ["c", "d"]
    assert believed(scores, shares, portion=0.1, threshold=0.02).names == ["b", "c", "d"]
    assert believed(scores, dict.fromkeys(scores, 0.0), portion=1).names == []


def test_relative_variance_does_not_prefer_small_objects():
    """Of two photographs of one mean variance that is surer whose object is larger, up to half of the frame."""
    assert relative_variance(0.01, 0.5) == pytest.approx(0.04) and relative_variance(0.01, 0.0) == math.inf
    assert relative_variance(0.01, 0.2) == pytest.approx(relative_variance(0.01, 0.8))
    scores, shares = {"a": 0.004, "b": 0.01, "c": 0.03}, {"a": 0.02, "b": 0.4, "c": 0.5}
    assert believed(scores, shares, portion=1).ranking == ["a", "b", "c"]
    assert believed(scores, shares, portion=1, relative=True).ranking == ["b", "c", "a"]
    assert believed({"a": 0.0, "b": 0.1}, {"a": 0.0, "b": 0.5}, portion=1, black=0, relative=True).ranking == ["b", "a"]


def test_lists_of_rounds():
    assert portions(5, 0.1, 2, 0.6) == pytest.approx([0.1, 0.2, 0.4, 0.6, 0.6])
    with pytest.raises(MaskwrightError, match=r"pseudo\.portion=0\.7 above pseudo\.portion_max=0\.6"):
        configure(UDASODConfig, {"pseudo.portion": 0.7})
    assert configure(UDASODConfig, {"pseudo.portion": 0.7, "pseudo.portion_max": 0.7}).pseudo.portion == 0.7
    assert configure(UDASODConfig, {"pseudo.portion": 0.7, "rounds": 1}).pseudo.portion == 0.7
    assert portions(4, 0.5, 0.5) == pytest.approx([0.5, 0.25, 0.125, 0.0625])
    assert [triangular(3)(s) for s in range(3)] == [0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ("given", "expected"),
    [((8, 100, 0), (8, 0)), ((8, 0, 5), (0, 8)), ((8, 60, 20), (6, 2)), ((8, 1000, 1), (7, 1)), ((1, 9, 9), (1, 1)),
     ((8, 1000, 1, 2), (6, 2))],
)  # fmt: skip
def test_a_batch_is_divided_as_the_lists_are_long(given, expected):
    assert shares_of(*given) == expected


# ---------------------------------------------------------------------- objects and composites


def test_which_classes_are_objects():
    table = ClassTable(("ground", "disc", "square"))
    assert object_ids(table, ())[0] == [1, 2] and object_ids(table, ("square",))[0] == [2]
    assert object_ids(None, ())[0] is None
    assert object_ids(table, ("square",))[1] == "objects are square; background are ground, disc"
    for bad, asked, says in [
        (ClassTable(("sky", "cow")), (), "not said"), (table, ("squares",), "did you mean"),
        (ClassTable(("background",)), (), "all background"), (None, ("cow",), "without class names"),
    ]:  # fmt: skip
        with pytest.raises(MaskwrightError, match=says):
            object_ids(bad, asked)


def test_parts_that_the_border_cuts_are_told():
    inside = np.zeros((20, 20), bool)
    inside[0:6, 3:9] = inside[10:15, 10:16] = inside[18, 18] = True
    assert object_boxes(inside, 0.01) == [((0, 3, 6, 9), True), ((10, 10, 15, 16), False)]
    assert object_boxes(inside, 0.01, whole=True) == [((0, 3, 19, 19), False)]


def test_composites_are_a_data_set_whose_geometry_is_recorded(domains, tmp_path):
    """Made again, also by a run that was killed in between, they are the same files."""
    context = context_of(domains, tmp_path / "run")
    folder = context.run.stage_folder("compose")
    method_of(context).compose(folder)
    made = open_folder(folder / COMPOSITES)
    assert len(made) == 6 and made.classes.names == ("background", "object")
    assert context.ledgers.by_stream()["source"]["train"]["masks"] == 8
    assert not any(context.ledgers.by_stream()["target"]["train"].values())
    source = open_folder(domains[0])
    for i, name in enumerate(made.names):
        g = json.loads((folder / GEOMETRY / f"{name}.json").read_text())
        labels, image, k = LabelMap.load(folder / COMPOSITES, name), made.image(i), source.index(g["object"])
        assert tuple(g["size"]) == image.shape[:2] == labels.size
        view = View(torch.tensor(g["matrix"], dtype=torch.float64), tuple(g["size"]), (48, 64))
        cover = view.render(torch.from_numpy((source.mask(k) > 0).astype(np.float32))[None], fill=0.0)[0]
        assert not (labels.ids.bool() & (cover < 0.2)).any(), "what the matrix brings there, but for the border"
        assert (labels.ids.bool() | (cover < 0.999)).float().mean() > 0.98
        top, left, bottom, right = g["window"]
        ground = source.image(source.index(g["ground"]))[top:bottom, left:right]
        outside = labels.ids.numpy() == 0
        assert np.array_equal(image[outside], ground[outside])
        assert not (source.mask(source.index(g["ground"]))[top:bottom, left:right] > 0).any()
    before = {p: p.read_bytes() for p in sorted(folder.rglob("*.png"))}
    for p in list(before)[::3]:
        if p.parent.name == "masks":
            p.unlink()
    (folder / COMPOSITES / "masks" / f"{made.names[2]}.png").unlink(missing_ok=True)
    method_of(context).compose(folder)
    assert {p: p.read_bytes() for p in sorted(folder.rglob("*.png"))} == before
    context.run.release()


def cutouts(folder: Path) -> Path:
    """Two cut-outs with soft borders."""
    (folder / "images").mkdir(parents=True)
    yy, xx = np.mgrid[:20, :24]
    alpha = (255 * (2 - np.hypot(yy - 10, xx - 12) / 5).clip(0, 1)).astype(np.uint8)
    for k in range(2):
        values = np.dstack([np.full((20, 24, 3), 40 + 150 * k, np.uint8), alpha])
        Image.fromarray(values).save(folder / "images" / f"cut_{k}.png")
    return folder


def test_objects_of_cutouts(domains, tmp_path):
    """Their transparency counts as masks; half transparent pixels are of both, and of the object's mask."""
    sources = [f"source={cutouts(tmp_path / 'cut')}", f"grounds={domains[0]}"]
    context = context_of(domains, tmp_path / "run", sources=sources, **{"objects.of": "alpha"})
    folder = context.run.stage_folder("compose")
    method_of(context).compose(folder)
    store, _ = method_of(context).stores(context.run.stage_folder("label_1"), 1)
    assert store.labels_seen.startswith("2 cut-outs of the source; weights: ")
    read = context.ledgers.by_stream()
    assert read["source"]["train"]["masks"] == 2 and read["grounds"]["train"]["masks"] == 0
    made, ground = open_folder(folder / COMPOSITES), open_folder(domains[0])
    g = json.loads((folder / GEOMETRY / f"{made.names[0]}.json").read_text())
    image, below = made.image(0).astype(int), ground.image(ground.index(g["ground"])).astype(int)
    inside = LabelMap.load(folder / COMPOSITES, made.names[0]).ids.bool().numpy()
    assert inside.any() and np.array_equal(image[~inside], below[~inside])
    colour = 40 if g["object"] == "cut_0" else 190
    assert (np.abs(image - colour).max(2) <= 1)[inside].mean() > 0.2
    between = inside & (np.abs(image - colour).max(2) > 3) & (np.abs(image - below).max(2) > 3)
    assert between.any(), "an antialiased border"
    context.run.release()


def test_objects_that_another_run_found(domains, tmp_path):
    """No label of the source is opened; the record tells which labels the other run saw."""
    source = open_folder(domains[0])
    store = Proposals.begin(tmp_path / "found", "objects", "deep_spectral", "none")
    for i, name in enumerate(source.names[:3]):
        store.write(name, LabelMap.from_mask((source.mask(i) > 0).astype(np.uint8)))
    inputs = {"objects": str(tmp_path / "found")}
    context = context_of(domains, tmp_path / "run", inputs, **{"objects.of": "found"})
    folder = context.run.stage_folder("compose")
    method_of(context).compose(folder)
    assert not any(context.ledgers.counts()["train"].values())
    assert any("deep_spectral in 3 photographs" in n and "5 photographs are left out" in n for n in context.notes)
    assert context.run.record["inputs"]["objects"]["labels_seen"] == "none"
    store, _ = method_of(context).stores(context.run.stage_folder("label_1"), 1)
    assert store.labels_seen.startswith("objects: none; weights: ")
    assert len(open_folder(folder / COMPOSITES)) == 6
    context.run.release()


def found_in(domains, out: Path, place: Path, **options) -> Composer:
    """A run's list of objects that an input shows in the source's photographs."""
    context = context_of(domains, out, {"objects": str(place)}, **{"objects.of": "found", **options})
    method = method_of(context)
    context.run.release()
    c = method.config
    composer = Composer(context, method.source(), None, c.objects, c.composites)
    composer.look()
    return composer


@pytest.mark.parametrize("holds", ["classes", "objects", "soft", None])
def test_found_objects_are_read_as_every_store_of_objects(holds, domains, tmp_path):
    """Ids of classes whose ground is not 0, objects, soft maps, and a folder of masks drawn in 0 and 255."""
    source, place = open_folder(domains[0]), tmp_path / "found"
    table = ClassTable(("disc", "ground", "square")) if holds == "classes" else None
    store = None if holds is None else Proposals.begin(place, holds, "another", "none", table)
    place.mkdir(exist_ok=True)
    for i, name in enumerate(source.names):
        ids = source.mask(i)
        if store is None:
            Image.fromarray(np.where(ids > 0, 255, 0).astype(np.uint8)).save(place / f"{name}.png")
        elif holds == "soft":
            store.write(
                name, SoftMap(torch.where(torch.from_numpy(ids > 0), 0.9, 0.1), torch.ones(ids.shape, dtype=torch.bool))
            )
        else:
            ids = np.uint8([1, 0, 2])[ids] if holds == "classes" else ids > 0
            store.write(name, LabelMap.from_mask(ids.astype(np.uint8)))
    composer = found_in(domains, tmp_path / "run", place)
    assert len(composer.cuts) == 8, "a disc or a square in each"
    for i in range(8):
        _, alpha, known = composer.source.read(i)
        assert np.array_equal(alpha > 0, source.mask(i) > 0) and known.all()


def test_what_shows_no_object_is_refused_with_a_repair(domains, tmp_path):
    source = open_folder(domains[0])
    regions = Proposals.begin(tmp_path / "regions", "regions", "superpixels", "none")
    small = Proposals.begin(tmp_path / "small", "objects", "another", "none")
    speck = np.zeros((48, 64), np.uint8)
    speck[20:24, 20:24] = 1
    for i, name in enumerate(source.names):
        regions.write(name, LabelMap.from_mask(source.mask(i)))
        small.write(name, LabelMap.from_mask(speck))
    with pytest.raises(MaskwrightError, match="holds regions") as raised:
        found_in(domains, tmp_path / "of_regions", tmp_path / "regions")
    assert raised.value.repair == "give a run that found objects"
    with pytest.raises(MaskwrightError, match="no object of at least 1 %") as raised:
        found_in(domains, tmp_path / "of_specks", tmp_path / "small")
    assert raised.value.repair == "give what shows objects there as --input objects=RUN, or lower objects.least"
    assert found_in(domains, tmp_path / "lower", tmp_path / "small", **{"objects.least": 0.001}).cuts


def test_a_round_draws_soft_labels_by_the_recorded_geometry(domains, tmp_path):
    context = context_of(domains, tmp_path / "run")
    method, run = method_of(context), context.run
    method.compose(run.stage_folder("compose"))
    made = run.stage_folder("label_1")
    stores, names = method.stores(made, 1), context.data.names
    ramp = torch.linspace(0, 1, 64).expand(48, 64).contiguous()
    for i, name in enumerate(names):
        for store, values in zip(stores, (ramp, ramp * (i + 1) / 16)):
            store.write(name, SoftMap(values, values >= 0))
    method.choose(made, 1, stores)
    pseudo = method.pseudo(1)
    assert [names[i] for i in pseudo.indices] == names[:1], "a portion of 0.1, the surest"
    training = SaliencyTraining(pseudo, 0.5, 0.9, context, context.timing.config, method.labels(), 10, stage="round_1")
    batch = training.batch(training.setup.streams.next(), torch.Generator().manual_seed(0))
    assert (len(batch["s"].weak), len(batch["t"].views.weak)) == (3, 1), "3 composites and 1 photograph are in the list"
    m, v, valid = (part[0] for part in batch["t"].y)
    view = batch["t"].views.geometry[0]
    assert torch.equal(valid, view.valid())
    assert torch.allclose(m[valid], view.render(ramp[None], fill=0.0)[0][valid], atol=2e-5)
    assert torch.allclose(v[valid], m[valid] / 16, atol=2e-5)
    terms = training.losses(training.on_device(batch), 0)
    assert torch.isfinite(terms["loss"]) and training.schedule(4) == pytest.approx(0.9 * triangular(10)(4))
    run.release()


# ---------------------------------------------------------------------- refusals


def refused(domains, tmp_path, match, **options):
    source, target = domains
    call = {"source": str(source), "out": tmp_path / "run", "device": "cpu", "weights": "random", "steps": 2,
            "backbone": "mobilenetv3_small_050", "progress": Progress(quiet=True), "report": False,
            "settings": SMALL}  # fmt: skip
    with pytest.raises(MaskwrightError, match=match) as error:
        mw.train(target, "uda_sod", **(call | options))
    assert "\n" not in str(error.value)


def test_refusals_of_one_line(domains, tmp_path):
    source, target = domains
    refused(domains, tmp_path, "needs a labelled source", source=None)
    refused(domains, tmp_path, "both in the run's own data and in source", source=str(target), settings={
        **SMALL, "objects.of": "found"}, inputs={"objects": str(source / "masks")})  # fmt: skip
    refused(domains, tmp_path, "needs an input called objects", settings={**SMALL, "objects.of": "found"})
    refused(domains, tmp_path, "needs a data set called grounds", settings={**SMALL, "objects.of": "alpha"})
    refused(domains, tmp_path, "--classes 3", classes=3)
    refused(domains, tmp_path, "3 names", names=["a", "b", "c"])
    assert not (tmp_path / "run").exists()
    refused(domains, tmp_path, "objects.of=masks", inputs={"objects": str(source / "masks")})
    shutil.rmtree(tmp_path / "run")
    refused(domains, tmp_path, "ground_least", settings={**SMALL, "composites.ground_least": 1.0})
    shutil.rmtree(tmp_path / "run")
    for file in (source / "masks").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(file)
    refused(domains, tmp_path, "no object of at least 1 %")

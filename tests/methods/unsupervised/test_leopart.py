"""Leopart: what overlapping crops share, bounds of the loss, CBFE's cut, communities, who says what is foreground."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.conftest import write_tiny_folder
from tests.methods.unsupervised.small import parts_of, trainer

import maskwright as mw
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.masks import write_mask
from maskwright.data.training.crops import multi_crop
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals
from maskwright.data.training.views import View
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.leopart import communities as C
from maskwright.methods.unsupervised.leopart import foreground as Fg
from maskwright.methods.unsupervised.leopart import losses as L
from maskwright.methods.unsupervised.leopart.method import Leopart, enlarged
from maskwright.methods.unsupervised.leopart.options import PRESETS, CbfeOptions, ForegroundOptions, LeopartConfig
from maskwright.methods.unsupervised.leopart.training import drop_paths
from maskwright.models.backbones.build import build_backbone
from maskwright.ops.clustering.sinkhorn import sinkhorn
from maskwright.recipes.ema import EMATeacher

SMALL = {
    "crops.size": 32, "crops.local_size": 32, "crops.batch": 4, "head.hidden": 16, "head.width": 16,
    "head.prototypes": 4, "head.queue": 16, "features.short_side": 64, "clusters.restarts": 1, "cbfe.count": 8,
    "communities.count": 8, "communities.grid": 0, "precision": "fp32", "optimizer.freeze_norm": True,
}  # fmt: skip
train = trainer("leopart", SMALL, backbone="test_vit")


def record_of(out) -> dict:
    return json.loads((out / "run.json").read_text())


@pytest.fixture(scope="module")
def attended(data, tmp_path_factory):
    """A run of a vision transformer with everything on."""
    out = tmp_path_factory.mktemp("runs") / "attended"
    train(data, out, 4, **{"optimizer.drop_path": 0.1})
    return out


# --------------------------------------------------------------------- geometry and loss


def crops_of(seed: int) -> list[View]:
    groups = [(2, (224, 224), (0.25, 1.0)), (4, (96, 96), (0.05, 0.25))]
    draw = torch.Generator().manual_seed(seed)
    return multi_crop((300, 400), groups, min_overlap=0.02, min_overlap_others=0.01, tries=100, flip=0, generator=draw)


def test_a_map_of_places_is_the_same_inside_both_boxes_of_an_overlap():
    y, x = torch.meshgrid(torch.arange(300.0) + 0.5, torch.arange(400.0) + 0.5, indexing="ij")
    photograph = torch.stack((x, y))
    crops = crops_of(1)
    boxes = L.overlap_boxes([crops])
    maps = [F.avg_pool2d(torch.as_tensor(v.render(photograph))[None], 16) for v in crops]
    for g in range(2):
        for v in range(6):
            if v == g:
                continue
            box_g, box_v = boxes.of_global[:, g, v], boxes.of_other[:, v, g]
            assert bool((box_g[:, 2:] > box_g[:, :2]).all()), "every crop overlaps every global one"
            a, b = L.aligned(maps[g], box_g), L.aligned(maps[v], box_v)
            token = max(16 * float(crops[k].source_size[1]) / 224 for k in (g, v))
            assert float((a - b).abs().max()) < token, "less than a token apart"


def test_bounds_of_the_loss():
    boxes = L.overlap_boxes([crops_of(2), crops_of(3)])
    draw = torch.Generator().manual_seed(4)
    scores = [torch.randn(2, 5, s, s, generator=draw, requires_grad=True) for s in (14, 14, 6, 6, 6, 6)]
    q = [L.assign(s.detach(), None, 0.05, 3) for s in scores[:2]]
    everywhere, nowhere = torch.ones(2, 1, 14, 14), torch.zeros(2, 1, 14, 14)
    m = L.foreground_bins([everywhere, everywhere], boxes)
    assert bool(m.all()), "also where RoIAlign of ones is a little less in float32"
    loss = L.spatial_loss(q, scores, boxes, m, 0.1)
    assert loss.item() == pytest.approx(L.spatial_loss(q, scores, boxes, None, 0.1).item())
    floor = 0.0
    for g in range(2):
        for v in (v for v in range(6) if v != g):
            a = L.aligned(q[g], boxes.of_global[:, g, v])
            floor += float(-torch.special.xlogy(a, a).sum(1).mean()) / 10
    assert loss.item() >= floor > 0, "a cross entropy is at least the entropy"
    empty = L.spatial_loss(q, scores, boxes, L.foreground_bins([nowhere, nowhere], boxes), 0.1)
    assert empty.item() == 0
    empty.backward()
    assert not any(s.grad.any() for s in scores), "and its gradient is 0, not NaN"
    apart = [
        View.identity((300, 400)).crop(0, 0, 90, 90).resize(32, 32),
        View.identity((300, 400)).crop(200, 300, 90, 90).resize(32, 32),
    ]
    assert (
        L.spatial_loss([s[:1] for s in q], [s[:1] for s in scores[:2]], L.overlap_boxes([apart]), None, 0.1).item() == 0
    )


def test_assignments_are_balanced_and_a_queue_counts_as_rows():
    scores = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    q = sinkhorn(scores, 0.05, 100)
    torch.testing.assert_close(q.sum(1), torch.ones(40))
    torch.testing.assert_close(q.sum(0), torch.full((4,), 10.0), rtol=0, atol=0.5)
    maps, queued = scores[:18].view(2, 3, 3, 4).permute(0, 3, 1, 2), scores[18:]
    ours = L.assign(maps, queued, 0.05, 3).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(ours, sinkhorn(torch.cat((queued, scores[:18])), 0.05, 3)[22:])


def test_a_teacher_of_momentum_one_stays():
    student = torch.nn.Linear(3, 3)
    teacher = EMATeacher(student, warm=False)
    before = teacher.module.weight.clone()
    student.weight.data += 1
    teacher.update(student, 1.0)
    assert torch.equal(teacher.module.weight, before)


# --------------------------------------------------------------------- foreground and communities


def test_the_largest_gap_of_precisions_and_what_is_given():
    """Ten clusters, of which the options let five or six be background; one more that no photograph shows."""
    precisions = np.array([0.9, 0.1, 0.2, 0.15, 0.8, 0.12, 0.95, 0.85, 0.05, 0.07, np.nan])
    cut = Fg.gap_cut(precisions, CbfeOptions())
    assert cut.how == "gap" and cut.threshold == pytest.approx(0.5)
    assert Fg.gap_cut(np.array([0.2, 0.9]), CbfeOptions()).threshold == pytest.approx(0.55)
    assert list(Fg.cuts(20, CbfeOptions())) == [11, 12, 13, 14]
    with pytest.raises(MaskwrightError, match="cut_max"):
        configure(LeopartConfig, {"cut_min": 0.8})
    with pytest.raises(MaskwrightError, match="one of the two"):
        configure(LeopartConfig, {"oracle_threshold": True, "cbfe.threshold": 0.3})


def test_void_pixels_are_neither_foreground_nor_background_to_the_oracle():
    """Of four columns of cells the third is void; of the last cell one pixel in four is, and most of the rest is 0."""
    mask = np.repeat(np.repeat([[0, 1, 255, 0]], 2, 0), 2, 1).astype(np.uint8)
    mask[0, 6], mask[0, 7] = 255, 2
    truth, known = Fg.truth_on_grid(mask, (1, 4))
    assert (truth & known).tolist() == [[False, True, False, False]] and known.tolist() == [[True, True, False, True]]
    ids, options = [np.array([[0, 1, 2, 0]])], CbfeOptions(cut_min=0.4, cut_max=1.0)
    precisions = np.array([0.1, 0.8, 0.9])
    assert [iou for _, _, iou in Fg.cut_ious(precisions, ids, [truth], options, [known])] == [1, 0]
    other = [np.array([[0, 1, 0, 0]])]
    assert Fg.cut_ious(precisions, other, [truth], options, [known])[0][2] == 1, "whatever lies there"


def test_the_oracle_has_a_cut_of_few_clusters():
    maps, truth = [np.array([[0, 0, 1, 1]])], [np.array([[False, False, True, True]])]
    for options in (CbfeOptions(), CbfeOptions(cut_min=0.6, cut_max=0.6), CbfeOptions(cut_min=1.0, cut_max=1.0)):
        cut = Fg.oracle_cut(np.array([0.1, 0.9]), maps, truth, options)
        assert cut.how == "oracle" and cut.iou == 1 and cut.threshold == pytest.approx(0.9)


def test_precision_is_a_mean_over_photographs_not_cells():
    ids = [np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])]
    masks = [np.array([[True, False, False, False]]), np.array([[True, True, False, False]])]
    found = Fg.cluster_precisions(ids, masks, 3)
    assert found[:2].tolist() == [pytest.approx((0.5 + 1) / 2), pytest.approx((0 + 1 / 3) / 2)] and np.isnan(found[2])


def test_who_says_what_is_foreground():
    def who(by: str, cls: bool, given: bool) -> str:
        backbone = SimpleNamespace(name="b", has_cls=cls)
        context = SimpleNamespace(backbone=backbone, inputs={"saliency": 0} if given else {})
        return Fg.source_of(context, ForegroundOptions(by=by))

    assert [who("auto", c, g) for c, g in ((1, 0), (0, 0), (0, 1), (1, 1))] == [
        "attention",
        "spectral",
        "saliency",
        "saliency",
    ]
    for by, cls, given, says in (
        ("attention", 0, 0, "class token"),
        ("saliency", 1, 0, "--input"),
        ("spectral", 0, 1, "one of"),
    ):
        with pytest.raises(MaskwrightError, match=says):
            who(by, cls, given)


def test_what_a_store_says_is_foreground(tmp_path):
    """Of classes all but those called background, of somebody's ids all but 0; regions say nothing."""
    folder = mw.open_folder(write_tiny_folder(tmp_path / "tiny", count=1))
    name, (h, w) = folder.names[0], folder.size(0)
    notes: list[str] = []
    context = SimpleNamespace(data=folder, note=notes.append)
    ids = np.zeros((h, w), np.uint8)
    ids[: h // 2] = 1
    ids[: h // 4] = 20

    def share(store: Proposals) -> float:
        return float(Fg.stored_maps(context, store)(0).mean())

    table = ClassTable.numbered(21)
    table = ClassTable(("thing", "background", *table.names[2:]), table.colors)
    classes = Proposals.begin(tmp_path / "classes", "classes", "a run", "masks", table)
    classes.write(name, LabelMap.from_mask(ids), folder.items[0].image)
    assert share(classes) == pytest.approx(0.75)
    write_mask(tmp_path / "ids" / f"{name}.png", ids)
    assert share(Proposals(tmp_path / "ids")) == pytest.approx(0.5) and "taken for ids" in notes[-1]
    (tmp_path / "grey").mkdir()
    Image.fromarray(ids * 10).save(tmp_path / "grey" / f"{name}.png")
    assert share(Proposals(tmp_path / "grey")) == pytest.approx((200 / 4 + 10 / 4) / 255) and "grey" in notes[-1]
    with pytest.raises(MaskwrightError, match="regions"):
        Fg.stored_maps(context, Proposals.begin(tmp_path / "regions", "regions", "slic", "none"))


def chain() -> np.ndarray:
    """P(j|i) of three pairs that touch, linked weakly, and a cluster alone."""
    p = np.full((7, 7), np.nan)
    p[:6, :6] = 0.01
    for a in (0, 2, 4):
        p[a, a + 1] = p[a + 1, a] = 0.9
    p[:6, 6] = 0
    return p


def test_communities_and_links_that_are_too_few():
    found = C.find_communities(chain(), 0.09, 1.0, 3, "own", 0, 3)
    assert found.modules.tolist() == [0, 0, 1, 1, 2, 2, -1] and found.weight == 0.09 and found.by == "own"
    two = C.find_communities(chain(), 0.09, 1.0, 2, "own", 0, 3)
    assert two.modules.max() == 1 and two.modules[6] == -1
    more = C.find_communities(chain(), 0.95, 1.0, 3, "own", 0, 3)
    assert more.weight == pytest.approx(0.475) and more.modules.tolist() == found.modules.tolist()


def test_infomap_is_asked_where_it_is_installed(monkeypatch):
    """A stand-in for the package: each node is a module of its own, and too many are joined."""
    asked = {}

    class Infomap:
        def __init__(self, **options):
            asked.update(options)
            self.nodes = set()

        def add_link(self, i, j, weight):
            self.nodes |= {i, j}

        def run(self):
            pass

        def get_modules(self):
            return {n: 10 + n for n in self.nodes}

    monkeypatch.setitem(sys.modules, "infomap", SimpleNamespace(Infomap=Infomap))
    monkeypatch.setattr(C.importlib.util, "find_spec", lambda name: object())
    assert C.searcher("auto") == "infomap" and C.searcher("own") == "own"
    found = C.find_communities(chain(), 0.09, 2.0, 3, "infomap", 5, 3)
    assert found.by == "infomap" and found.modules.tolist() == [0, 0, 1, 1, 2, 2, -1]
    assert asked["preferred_number_of_modules"] == 3 and asked["markov_time"] == 2 and asked["seed"] == 6
    monkeypatch.setattr(C.importlib.util, "find_spec", lambda name: None)
    assert C.searcher("auto") == "own"
    with pytest.raises(MaskwrightError, match="pip install infomap"):
        C.searcher("infomap")


def test_maps_are_enlarged_to_the_grid():
    ids = np.arange(6).reshape(2, 3)
    assert enlarged(ids, 0) is ids
    assert enlarged(ids, 6).tolist() == np.repeat(np.repeat(ids, 3, 0), 2, 1).tolist()


# --------------------------------------------------------------------- runs


def test_a_run_by_attention(attended):
    record = record_of(attended)
    assert [s["name"] for s in record["stages"]] == ["foreground", "train", "reduce", "cbfe", "cluster"]
    notes = " ".join(record["notes"])
    assert "Foreground by attention" in notes and "found by own" in notes and "CBFE:" in notes
    assert not record["labels_read"]["select"].get("masks")
    store = Proposals(attended / "foreground" / "proposals")
    assert store.holds == "objects" and store.says == "leopart, by attention" and len(store) == 8
    parts = parts_of(attended)
    network, teacher = parts["module.network"], parts["module.teacher"]
    norms = teacher["module.prototypes.weight"].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(4), rtol=0, atol=1e-2)
    assert not torch.equal(network["prototypes.weight"], teacher["module.prototypes.weight"])
    assert int(parts["module.queues"]["0.count"]) == 16, "four photographs, ten tokens of each, at most sixteen rows"
    decays = {round(g["weight_decay"], 4) for g in parts["optimizer.adamw"]["param_groups"]}
    assert len(decays) == 2 and 0 in decays and 0.04 < max(decays) < 0.5


@pytest.mark.slow
def test_a_run_by_an_input_without_cbfe_and_one_without_communities(data, tmp_path):
    folder = mw.open_folder(data)
    store = Proposals.begin(tmp_path / "objects", "objects", "squares", "none")
    for i, name in enumerate(folder.names):
        h, w = folder.size(i)
        ids = torch.zeros(h, w, dtype=torch.int64)
        ids[: h // 2] = 1
        store.write(name, LabelMap(ids, torch.ones(h, w), torch.ones(h, w, dtype=torch.bool)))
    inputs, lite = {"saliency": tmp_path / "objects"}, "tf_efficientnet_lite0"
    train(data, tmp_path / "input", inputs=inputs, backbone=lite, **{"cbfe.use": False})
    record = record_of(tmp_path / "input")
    assert [s["name"] for s in record["stages"]] == ["train", "reduce", "cluster"]
    first = json.loads((tmp_path / "input" / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < first["foreground"] < 1
    oracle = {"cbfe.oracle_threshold": True, "communities.use": False, "foreground.use": False}
    model = train(data, tmp_path / "oracle", inputs=inputs, **oracle)
    assert record_of(tmp_path / "oracle")["labels_read"]["select"]["masks"] == 8
    assert Leopart.terms(configure(LeopartConfig, oracle)).reads_masks and len(model.classes) == 3


def test_one_class_is_refused_and_does_not_run_for_ever(data, tmp_path):
    with pytest.raises(MaskwrightError, match="class 0 among them"):
        train(data, tmp_path / "one", 1, classes=1, **{"cbfe.use": False})


def test_presets_and_official_checkpoints(tmp_path):
    for name in PRESETS:
        config = configure(LeopartConfig, {"preset": name})
        assert config.head.width == PRESETS[name]["width"] and config.cbfe.count == PRESETS[name]["cbfe.count"]
    tensors = build_backbone("test_vit", "random").model.state_dict()
    saved = {f"model.{k}": v for k, v in tensors.items()} | {f"teacher.{k}": v + 1 for k, v in tensors.items()}
    torch.save({"state_dict": saved | {"model.prototypes.weight": torch.ones(3, 3)}}, tmp_path / "leopart.ckpt")
    found = build_backbone("test_vit", tmp_path / "leopart.ckpt").model
    assert all(torch.equal(v, tensors[k]) for k, v in found.state_dict().items()), "the student"
    drop_paths(found, 0.1)
    rates = [getattr(b.drop_path2, "drop_prob", None) for b in found.blocks]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.1) and rates == sorted(rates)

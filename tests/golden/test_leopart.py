"""Leopart (Ziegler & Asano, CVPR 2022): boxes, masks, assignments, loss, CBFE, communities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import Case, read_cases
from tests.golden.formulas import as64, draw

from maskwright.data.training.views import View
from maskwright.engine.schedules import cosine_value
from maskwright.methods.unsupervised.leopart import foreground as Fg
from maskwright.methods.unsupervised.leopart import losses as L
from maskwright.methods.unsupervised.leopart.options import CbfeOptions
from maskwright.methods.unsupervised.leopart.training import projection_head
from maskwright.ops import matching
from maskwright.ops.clustering.sinkhorn import sinkhorn
from maskwright.ops.graphs.communities import co_occurrence, codelength, map_equation_modules, mutual_graph
from maskwright.recipes.banks import FeatureBank
from maskwright.recipes.ema import EMATeacher

# --------------------------------------------------------------------- by slow formulas


def align_by_loops(x: np.ndarray, box: np.ndarray, n: int = L.BINS) -> np.ndarray:
    """RoIAlign of a map (C, h, w) in a box of cells, sample by sample."""
    c, h, w = x.shape
    x1, y1, x2, y2 = box
    bw, bh = (x2 - x1) / n, (y2 - y1) / n
    nx, ny = math.ceil(bw), math.ceil(bh)
    out = np.zeros((c, n, n))
    for i, j, a, b in np.ndindex(n, n, ny, nx):
        y = y1 - 0.5 + (i + (a + 0.5) / ny) * bh
        z = x1 - 0.5 + (j + (b + 0.5) / nx) * bw
        y, z = min(max(y, 0), h - 1), min(max(z, 0), w - 1)
        for p in (math.floor(y), math.floor(y) + 1):
            for q in (math.floor(z), math.floor(z) + 1):
                weight = max(0, 1 - abs(y - p)) * max(0, 1 - abs(z - q))
                if weight:
                    out[:, i, j] += weight * x[:, p, q] / (nx * ny)
    return out


def loss_by_loops(q, scores, boxes, m, temperature) -> float:
    """The sum over pairs of crops, photograph by photograph and bin by bin."""
    total = 0.0
    for g, of_g in enumerate(q):
        for v, s in enumerate(scores):
            if v == g:
                continue
            entropy = weight = 0.0
            for b in range(len(s)):
                maps = []
                for x, box in ((of_g[b], boxes.of_global[b, g, v]), (s[b], boxes.of_other[b, v, g])):
                    h, w = x.shape[-2:]
                    maps.append(align_by_loops(as64(x), as64(box) * np.array([w, h, w, h])))
                z = maps[1] / temperature
                log_p = z - np.log(np.exp(z).sum(0))
                counted = as64(m[g, v, b])
                entropy += -(maps[0] * log_p * counted).sum()
                weight += counted.sum()
            total += entropy / weight if weight else 0.0
    return total / len(q) / (len(scores) - 1)


def test_loss():
    q = [draw(2, 3, 5, 4, seed=s).softmax(1) for s in (1, 2)]
    scores = [*(draw(2, 3, 5, 4, seed=s) for s in (3, 4)), draw(2, 3, 3, 3, seed=5)]
    low, side = draw(2, 2, 3, 4, seed=6).sigmoid() * 0.4, 0.3
    of_global = torch.cat((low[..., :2], low[..., :2] + side + 0.2 * low[..., 2:]), 3)
    boxes = L.Boxes(of_global, of_global.flip(0).transpose(1, 2) * 0.9)
    m = draw(2, 3, 2, 7, 7, seed=7) > 0
    m[1, 2] = False
    ours = L.spatial_loss(q, scores, boxes, m, 0.2)
    assert float(ours) == pytest.approx(loss_by_loops(q, scores, boxes, m, 0.2), rel=1e-5)
    whole = L.spatial_loss(q, scores, boxes, None, 0.2)
    assert float(whole) == pytest.approx(loss_by_loops(q, scores, boxes, torch.ones_like(m), 0.2), rel=1e-5)


# --------------------------------------------------------------------- the authors' own code


@pytest.fixture(scope="module")
def cases(golden_root) -> dict[str, Case]:
    return read_cases(golden_root, "leopart")


def of(cases: dict[str, Case], start: str, count: int) -> list[Case]:
    found = [case for name, case in cases.items() if name.startswith(start)]
    assert len(found) == count
    return found


def maps_of(tokens: torch.Tensor, batch: int, side: int) -> list[torch.Tensor]:
    """Tokens, crop-major, then image, as maps (B, K, side, side) of each crop."""
    return [t.view(batch, side, side, -1).permute(0, 3, 1, 2) for t in tokens.split(batch * side * side)]


def boxes_of(case: Case) -> L.Boxes:
    sides = torch.tensor([224.0] * 2 + [96.0] * (case.input["other_box"].shape[1] - 2))
    return L.Boxes(case.input["global_box"] / 224, case.input["other_box"] / sides[None, :, None, None])


@pytest.mark.data
def test_assignments_of_the_authors(cases):
    for case in of(cases, "sinkhorn", 4):
        ours = sinkhorn(case.input["score"], case.settings["epsilon"], case.settings["iterations"])
        torch.testing.assert_close(ours, case.output["assignment"], rtol=1e-5, atol=1e-6)


@pytest.mark.data
def test_boxes_of_the_authors(cases):
    for case in of(cases, "boxes", 2):
        s = case.settings
        sides = [side for side, n in zip(s["size_crops"], s["nmb_crops"]) for _ in range(n)]
        views = [
            [
                View.identity((400, 400)).crop(y1, x1, y2 - y1, x2 - x1).resize(o, o)
                for (x1, y1, x2, y2), o in zip(c, sides)
            ]
            for c in case.input["crop"].tolist()
        ]
        ours = L.overlap_boxes(views)
        torch.testing.assert_close(ours.of_global * 224, case.output["global_box"])
        torch.testing.assert_close(ours.of_other * torch.tensor(sides)[None, :, None, None], case.output["other_box"])


@pytest.mark.data
def test_attention_masks_of_the_authors(cases):
    for case in of(cases, "attention", 3):
        attention = case.input["attention"].unflatten(-1, (10, 10))
        ours = L.attention_masks(attention, case.settings["threshold"], case.settings["min_size"])
        assert torch.equal(ours, case.output["mask"].float())


@pytest.mark.data
def test_loss_of_the_authors(cases):
    """Where a bin is a little less than 1 by rounding theirs drops it and ours does not: their decision is then
    taken."""
    for case in of(cases, "loss", 9):
        s, i, boxes = case.settings, case.input, boxes_of(case)
        leaves = {n: i[n].clone().requires_grad_() for n in ("student_score_global", "student_score_local") if n in i}
        scores = [m for x, side in zip(leaves.values(), (14, 6)) for m in maps_of(x, s["batch"], side)]
        q = []
        for g, x in enumerate(maps_of(i["teacher_score"], s["batch"], 14)):
            queued = i["queue"][g] @ i["prototype_student"].T if s["queue_used"] else None
            q.append(L.assign(x, queued, s["epsilon"], s["iterations"]))
            rows = q[-1].permute(0, 2, 3, 1).flatten(0, 2)
            torch.testing.assert_close(rows, case.output[f"assignment_global{g}"], rtol=1e-5, atol=1e-6)
        m = None
        if "mask" in i:
            ours, m = L.foreground_bins(i["mask"].split(s["batch"]), boxes), case.output["aligned_mask"].bool()
            pairs = ~torch.eye(6, dtype=torch.bool)[:2]
            assert bool((ours >= m)[pairs].all()) and int((ours > m)[pairs].sum()) <= 6
        loss = L.spatial_loss(q, scores, boxes, m, s["temperature"])
        assert loss.item() == pytest.approx(case.output["loss"].item(), rel=1e-5, abs=1e-9), case.name
        loss.backward()
        for n, x in leaves.items():
            theirs = case.grad.get(n, torch.zeros_like(x))
            torch.testing.assert_close(x.grad, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()), msg=case.name)
        for g in range(2 if "queue_after" in case.output else 0):
            bank = FeatureBank(48, 4)
            bank.add(i["queue"][g].flip(0))
            rows = i["teacher_embedding"].view(2, -1, 4)[g][i["mask"].view(2, -1)[g] > 0]
            bank.add(rows[: 10 * s["batch"]].flip(0))
            torch.testing.assert_close(bank.get().flip(0), case.output["queue_after"][g], msg=case.name)


@pytest.mark.data
def test_step_of_the_authors(cases):
    case = cases["step_ordinary"]
    s, i, boxes = case.settings, case.input, boxes_of(case)
    student = torch.nn.Linear(4, 5, bias=False)
    student.weight.data = F.normalize(i["prototype_student"], dim=1)
    teacher = EMATeacher(student, warm=False)
    teacher.module.weight.data = F.normalize(i["prototype_teacher"], dim=1)
    feature = i["student_feature"].clone().requires_grad_()
    seen, taught = student(F.normalize(feature, dim=1)), teacher(F.normalize(i["teacher_feature"], dim=1))
    scores = [*maps_of(seen[:392], 1, 14), *maps_of(seen[392:], 1, 6)]
    q = [L.assign(x, None, s["epsilon"], 3) for x in maps_of(taught, 1, 14)]
    masks = L.attention_masks(i["attention"].unflatten(-1, (14, 14)), s["threshold"], 3)
    assert torch.equal(masks, case.output["mask"].float())
    bins = L.foreground_bins(masks.split(1), boxes)
    pairs = ~torch.eye(6, dtype=torch.bool)[:2]
    theirs = case.output["aligned_mask"].bool()
    assert bool((bins >= theirs)[pairs].all())
    loss = L.spatial_loss(q, scores, boxes, theirs, s["temperature"])
    assert loss.item() == pytest.approx(case.output["loss"].item(), rel=1e-5)
    loss.backward()
    for x, name in ((feature, "student_feature"), (student.weight, "prototype_student")):
        wanted = case.grad[name]
        torch.testing.assert_close(x.grad, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    steps = s["epochs"] * s["iters_per_epoch"]
    momentum = cosine_value(s["momentum_base"], 1.0, s["global_step"], steps)
    assert momentum == pytest.approx(s["momentum"], abs=1e-12)
    teacher.update(student, momentum)
    torch.testing.assert_close(student.weight, case.output["prototype_student_after"])
    torch.testing.assert_close(teacher.module.weight, case.output["prototype_teacher_after"])


@pytest.mark.data
def test_schedule_of_the_authors(cases):
    case = cases["cosine_schedule"]
    s, values = case.settings, case.output["value"]
    ours = [cosine_value(s["base"], s["final"], t, len(values)) for t in range(len(values))]
    np.testing.assert_allclose(ours, values.numpy(), rtol=1e-12)


def test_projection_has_the_authors_size():
    assert sum(p.numel() for p in projection_head(384, 2048, 256).parameters()) == 5_509_376
    assert sum(p.numel() for p in projection_head(768, 2048, 256).parameters()) == 6_295_808


@pytest.mark.data
def test_cbfe_of_the_authors(cases):
    options = CbfeOptions()
    for case in of(cases, "cbfe", 2):
        i, count = {n: x[:, 0].numpy() for n, x in case.input.items()}, case.settings["k"]
        cut = None
        for split in ("train", "val"):
            ids, masks = list(i[f"cluster_{split}"]), list(i[f"attention_{split}"] > 0)
            precisions = Fg.cluster_precisions(ids, masks, count)
            np.testing.assert_allclose(precisions, case.output[f"precision_{split}"].numpy(), rtol=1e-12)
            if cut is None:
                truth = list(i["gt_train"] > 0)
                rows = sorted(Fg.cut_ious(precisions, ids, truth, options), key=lambda row: row[2])
                np.testing.assert_allclose(rows, case.output["cut_precision_index_iou"].numpy(), rtol=1e-6)
                cut = Fg.oracle_cut(precisions, ids, truth, options)
                assert cut.threshold == pytest.approx(case.settings["threshold"])
            kept = precisions >= cut.threshold
            assert np.array_equal(kept[np.stack(ids)], case.output[f"foreground_{split}"][:, 0].numpy() > 0)


@pytest.mark.data
def test_co_occurrence_of_the_authors(cases):
    for case in of(cases, "cooccurrence", 4):
        ours = co_occurrence(case.input["cluster"][:, 0].numpy(), case.settings["levels"])
        np.testing.assert_allclose(ours, case.output["probability"].numpy(), rtol=1e-12, equal_nan=True)


@pytest.mark.data
def test_communities_of_the_authors(cases):
    """Links and bits are theirs; our search needs no more bits for as many modules, and where they have the least
    also the same modules."""
    for case in of(cases, "community", 5):
        s, theirs = case.settings, case.output["module_of_cluster"].numpy()
        p = co_occurrence(case.input["cluster"][:, 0].numpy(), len(theirs))
        graph = mutual_graph(p, s["weight_threshold"])
        edges = case.output["edge"].numpy()
        assert np.array_equal(np.argwhere(np.triu(graph) > 0), edges)
        np.testing.assert_allclose(graph[tuple(edges.T)], case.output["edge_weight"].numpy(), rtol=1e-12)
        linked = theirs > 0
        assert np.array_equal(linked, graph.sum(1) > 0)
        within, bits = graph[np.ix_(linked, linked)], float(case.output["codelength"])
        assert codelength(within, theirs[linked], s["markov_time"]) == pytest.approx(bits, abs=1e-12)
        ours = map_equation_modules(graph, s["markov_time"], wanted=int(theirs.max()))
        assert np.array_equal(ours >= 0, linked) and ours.max() + 1 == theirs.max()
        assert codelength(within, ours[linked], s["markov_time"]) <= bits + 1e-12
        free = map_equation_modules(graph, s["markov_time"])
        if free.max() + 1 == theirs.max():
            pairs = set(zip(ours[linked].tolist(), theirs[linked].tolist()))
            assert len(pairs) == theirs.max(), "one to one"


MATCHINGS = {"hungarian": matching.hungarian_iou, "iou": matching.majority_iou, "precision": matching.precision}


@pytest.mark.data
def test_matchings_of_the_authors(cases):
    for case in of(cases, "match", 5):
        predicted, target = case.input["prediction"].numpy(), case.input["target"].numpy()
        k, c = case.settings["num_pred"], case.settings["num_gt"]
        counts = np.bincount(predicted * c + target, minlength=k * c).reshape(k, c)
        found = MATCHINGS[case.settings["mode"]](counts, background=0)[predicted]
        ious = [((found == n) & (target == n)).sum() / ((found == n) | (target == n)).sum() for n in range(c)]
        assert np.mean(ious) == pytest.approx(float(case.output["miou"]), abs=1e-9), case.name

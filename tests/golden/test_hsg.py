"""HSG (Ke et al., CVPR 2022): segments, the loss of pixels, modularity, transformers, the whole objective, votes."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import Case, read_cases
from tests.golden.cases import close as near
from tests.golden.formulas import as64, draw, unit

from maskwright.data.training.labels import LabelMap
from maskwright.methods.unsupervised.hsg import losses as L
from maskwright.methods.unsupervised.hsg.training import stepped
from maskwright.models.parts.hierarchy import ClusteringTransformer, Hierarchy
from maskwright.models.parts.segments import NeighbourClassifier
from maskwright.ops.clustering.segments import majority
from maskwright.ops.graphs.modularity import collapse_loss, modularity_loss, neighbour_graph
from maskwright.ops.losses.segment_contrast import segment_contrast
from maskwright.recipes.segments.training import Segments, find_segments

# --------------------------------------------------------------------- by slow formulas


def some_segments(seed: int = 0) -> Segments:
    """Two photographs in two views each, two regions, no k-means."""
    v = F.normalize(draw(4, 5, 4, 4, seed=seed).double(), dim=1)
    ids = torch.zeros(4, 4, 4, dtype=torch.int64)
    ids[:, :, 2:] = 1
    return find_segments(v, LabelMap(ids, torch.ones(4, 4, 4), torch.ones(4, 4, 4, dtype=torch.bool)), 1, 1, "centred")


def nca(found: Segments, labels: list[int], kappa: float) -> float:
    """Pixel by pixel: its label's other segments, or its own where there is none, against those of other labels."""
    total = 0.0
    for x, s in zip(as64(found.v), found.own.tolist()):
        e = [math.exp(kappa * float(x @ m)) for m in as64(found.mu)]
        a = sum(e[j] for j in range(len(e)) if labels[j] == labels[s] and j != s) or e[s]
        total -= math.log(a / (a + sum(e[j] for j in range(len(e)) if labels[j] != labels[s])))
    return total / len(found.v)


def test_regions_of_two_views_are_positives_of_each_other():
    found = some_segments()
    labels = [2 * (c // 2) + r for c, r in zip(found.crop.tolist(), found.region.tolist())]
    assert labels == [0, 1, 0, 1, 2, 3, 2, 3]
    assert float(L.region_loss(found, 16.0)) == pytest.approx(nca(found, labels, 16.0), rel=1e-9)


def test_graphs_hold_the_segments_of_a_photograph():
    """A photograph without segments has no graph; positions are means over pixels."""
    found = some_segments()
    position = torch.arange(4 * 2 * 16.0).view(4, 2, 4, 4).double()
    graphs = L.make_graphs(found, L.mean_positions(position, found), 6)
    assert graphs.nodes.shape == (2, 6, 5) and graphs.padding.sum(1).tolist() == [2, 2]
    assert graphs.view.tolist() == [[0, 0, 1, 1, -1, -1], [2, 2, 3, 3, -1, -1]]
    torch.testing.assert_close(graphs.nodes[1, 2], found.mu[6])
    torch.testing.assert_close(graphs.position[0, 1], position[0, :, :, 2:].mean((1, 2)))
    later = found._replace(crop=found.crop + 4)
    assert torch.equal(L.make_graphs(later, found.mu).nodes, L.make_graphs(found, found.mu).nodes)
    assignment = torch.zeros(2, 3, 6)
    assignment[0, 2], assignment[1, 1] = 1, 1
    assert L.group_labels(graphs, assignment).tolist() == [2] * 4 + [4] * 4


def test_centroids_repel_each_other():
    c = draw(2, 3, 4).double()
    rows = unit(as64(c).reshape(6, 4))
    expected = np.mean([np.log(np.exp(16 * rows @ x).sum()) - 16 for x in rows])
    assert float(L.repulsion(c, 16.0)) == pytest.approx(expected, rel=1e-9)


def test_order_and_levels():
    """Permuting segments permutes their shares; coarse shares are sums over fine ones."""
    torch.manual_seed(0)
    levels = Hierarchy(8, 4, 2, 2, 16, 1, 0.0, 5).double().eval()
    nodes, position, order = draw(1, 7, 8).double(), draw(1, 7, 8, seed=1).double(), torch.randperm(7)
    groups = levels.groups(nodes, position)
    again = levels.groups(nodes[:, order], position[:, order])
    for name in ("fine", "coarse"):
        torch.testing.assert_close(again[name].assignment, groups[name].assignment[:, :, order])
        torch.testing.assert_close(groups[name].assignment.sum(1), torch.ones(1, 7).double())
    shares = groups["coarse"].logits.softmax(1) @ groups["fine"].assignment
    torch.testing.assert_close(groups["coarse"].assignment, shares)
    assert levels.positions((5, 5)).shape == (1, 8, 5, 5) and levels.positions((9, 3)).shape == (1, 8, 9, 3)
    place = levels.positions((5, 5))[0, :, 1, 3]
    torch.testing.assert_close(place, torch.cat((levels.columns[3], levels.rows[1])))


# --------------------------------------------------------------------- the authors' own code


close = partial(near, rel=1e-7)


@pytest.fixture(scope="module")
def cases(golden_root) -> dict[str, Case]:
    return read_cases(golden_root, "hsg")


RENAMED = (
    ("_transformer.", ""), ("coder.layers.", "coder."), ("multihead_attn", "cross_attn"), ("tgt_fc", "start"),
    ("decoder.norm.norm", "last.norm"), ("norm1.norm", "norms.0.norm"), ("norm2.norm", "norms.1.norm"),
    ("norm3.norm", "norms.2.norm"), ("centroid_feat_fc.2", "feature.2.norm"), ("centroid_feat_fc", "feature"),
    ("centroid_fc.2", "centroid.2.norm"), ("centroid_fc", "centroid"),
)  # fmt: skip


def load(part: ClusteringTransformer, case: Case, query: str, prefix: str = "param.") -> None:
    """The authors' weights under our names."""
    weights = {"query": case.input[query].double()}
    for name, value in case.input.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            for theirs, ours in RENAMED:
                name = name.replace(theirs, ours)
            weights[name] = value.double()
    missing, unexpected = part.load_state_dict(weights, strict=False)
    assert not unexpected and all("num_batches" in name for name in missing)


@pytest.mark.data
def test_segments(cases):
    names = [n for n in cases if n.startswith("kmeans_")]
    assert len(names) == 4
    for name in names:
        case = cases[name]
        v, ids = F.normalize(case.input["embedding"].double(), dim=1), case.input["region"].long()
        ignored = case.settings["ignore"]
        valid = torch.ones_like(ids, dtype=torch.bool) if ignored is None else ids != ignored
        regions = LabelMap(ids, torch.ones(ids.shape), valid)
        found = find_segments(v, regions, case.settings["grid"][0], case.settings["iterations"], "centred")
        assert torch.equal(found.own, case.output["pixel_segment"]), name
        assert torch.equal(found.region[found.own], case.output["pixel_region"])
        assert torch.equal(found.crop[found.own], case.output["pixel_view"])
        close(found.v, case.output["pixel_embedding"])


@pytest.mark.data
def test_pixels_against_segments(cases):
    """In float64 exactly; in float32, where the authors' code loses positives, still to 1e-5."""
    names = [n for n in cases if n.startswith("segsort_")]
    assert len(names) == 5
    for name in names:
        case, i = cases[name], cases[name].input
        kappa = case.settings["concentration"]
        v, mu = (i[k].double().requires_grad_() for k in ("embedding", "prototype"))
        loss = segment_contrast(v, i["own_segment"], mu, i["prototype_label"], concentration=kappa)
        close(loss, case.output["loss"])
        loss.backward()
        close(v.grad, case.grad["embedding"])
        close(mu.grad, case.grad["prototype"])
        single = segment_contrast(
            i["embedding"], i["own_segment"], i["prototype"], i["prototype_label"], concentration=kappa
        )
        close(single, case.output["loss"], rel=1e-5)


@pytest.mark.data
def test_modularity_and_balance(cases):
    names = [n for n in cases if n.startswith("dmon_")]
    assert len(names) == 8
    for name in names:
        case, i = cases[name], cases[name].input
        c = i["assignment"].double().requires_grad_()
        if "adjacency" in i:
            a, shares = i["adjacency"].double(), c
        else:
            nodes, k = i["node"].double().transpose(1, 2), case.settings["knn"]
            a = neighbour_graph(nodes, i["padding"], k, i.get("view"))
            assert torch.equal(a, case.output["adjacency"]), name
            shares = c.masked_fill(i["padding"][:, None], 0.0)
        goodness, balance = modularity_loss(a, shares), collapse_loss(shares)
        close(goodness, case.output["loss_modularity"])
        close(balance, case.output["loss_collapse"])
        if case.grad:
            (goodness + balance).backward()
            close(c.grad, case.grad["assignment"])


@pytest.mark.data
def test_clustering_transformers(cases):
    """Up to the order of the queries, which the authors sort by their largest logit."""
    for name in ("transformer_train_masked", "transformer_eval_masked", "transformer_train_no_mask"):
        case, i, s = cases[name], cases[name].input, cases[name].settings
        part = ClusteringTransformer(s["d_model"], s["K"], s["heads"], s["ff"], s["encoder_layers"], 0.0).double()
        load(part, case, "query")
        part.train(s["training"])
        nodes = i["source"].double().transpose(1, 2).requires_grad_()
        padding = i.get("padding")
        found = part(nodes, i["position"].double().transpose(1, 2), padding)
        order = found.logits.amax(2).argsort(1, descending=True)[:, :, None]

        def sort(x: torch.Tensor) -> torch.Tensor:
            return x.gather(1, order.expand_as(x))  # noqa: B023

        logits, centroids, features = (sort(x) for x in (found.logits, found.centroids, found.features))
        close(logits, case.output["logit"])
        close(centroids.transpose(1, 2), case.output["centroid"])
        close(features.transpose(1, 2), case.output["centroid_feature"])
        expected = case.output["assignment"]
        close(sort(found.assignment), expected if padding is None else expected.masked_fill(padding[:, None], 0.0))
        total = (logits.softmax(1) * i["upstream_assignment"]).sum()
        total = total + (centroids.transpose(1, 2) * i["upstream_centroid"]).sum()
        (total + (features.transpose(1, 2) * i["upstream_centroid_feature"]).sum()).backward()
        close(nodes.grad.transpose(1, 2), case.grad["source"])
        close(part.query.grad, case.grad["query"])


@pytest.mark.data
def test_the_whole_objective(cases):
    """From embedding maps of three pairs of views to the loss and its gradients; also where positives are far."""
    for name in ("objective_ordinary", "objective_more_groups", "objective_far_positives"):
        case, i, s = cases[name], cases[name].input, cases[name].settings
        levels = Hierarchy(8, s["fine_groups"], s["coarse_groups"], s["heads"], s["ff"], 2, 0.0, 50).double()
        assert levels.to_coarse is not None
        load(levels.to_fine, case, "fine_query", "param.fine.")
        load(levels.to_coarse, case, "coarse_query", "param.coarse.")
        x = i["embedding"].double().requires_grad_()
        regions = LabelMap(i["region"].long(), torch.ones(i["region"].shape), ~i["padding"].bool())
        found = find_segments(F.normalize(x, dim=1), regions, s["grid"][0], s["iterations"], "centred")
        assert torch.equal(found.own, case.output["segment"])
        close(found.mu, case.output["prototype"])
        graphs = L.make_graphs(found, L.mean_positions(i["position"].double(), found), s["max_segments"])
        groups = levels.groups(graphs.nodes, graphs.position, graphs.padding)
        terms = L.level_losses(found, graphs, groups, s["concentration"], s["knn"], by_view=True)
        region, w = L.region_loss(found, s["concentration"]), s["weights"]
        close(region, case.output["loss_region"])
        for level in ("fine", "coarse"):
            for ours, theirs in (("", ""), ("_modularity", "mod_"), ("_balance", "col_"), ("_centroids", "cen_")):
                close(terms[level + ours], case.output[f"formula_{theirs}{level}"])
        hierarchy = w["fine"] * terms["fine"] + w["coarse"] * terms["coarse"]
        close(hierarchy, case.output["loss_hierarchy"])
        total = region + hierarchy + sum(value for key, value in terms.items() if "_" in key)
        close(total, case.output["loss"])
        total.backward()
        close(x.grad, case.grad["embedding"])
        close(levels.to_fine.query.grad, case.grad["fine_query"])
        close(levels.to_coarse.query.grad, case.grad["coarse_query"])


@pytest.mark.data
def test_votes_majorities_and_rates(cases):
    for name in ("retrieval_ordinary", "retrieval_two_segments"):
        case, i = cases[name], cases[name].input
        own = i["pixel_segment"]
        mu = torch.stack([F.normalize(i["pixel_embedding"][own == s].sum(0), dim=0) for s in own.unique()])
        ids = i["memory_label"]
        vote = NeighbourClassifier(i["memory"], ids, int(ids.max()) + 1, case.settings["k"], 2, 1)
        place = torch.searchsorted(own.unique(), own)
        assert torch.equal(vote.votes(mu).argmax(1)[place], case.output["prediction"]), name
    case = cases["prototype_majority_label"]
    segments = case.input["segment"].flatten()
    found = majority(case.input["semantic"].flatten(), segments, 256, int(segments.max()) + 1)
    assert torch.equal(found, case.output["label"])
    case = cases["lr_step"]
    factor = stepped(case.settings["max_iter"], case.settings["warmup"])
    ours = torch.tensor([case.settings["base"] * factor(t) for t in case.input["iteration"].tolist()])
    close(ours, case.output["lr"], rel=1e-6)

"""SegSort (Hwang et al., ICCV 2019): the softmax over segments, its supervised form, k-means within an image, votes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import Case, close, read_cases
from tests.golden.formulas import as64, draw, generator, unit

from maskwright.models.parts.segments import NeighbourClassifier
from maskwright.ops.clustering.segments import (
    cluster_within,
    grid_labels,
    located,
    majority,
    numbered,
    prototypes,
    segments_within,
)
from maskwright.ops.losses.segment_contrast import segment_contrast
from maskwright.recipes.segments.method import labelled_prototypes

# --------------------------------------------------------------------- by slow formulas


def means(v: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Unit sums of the rows of each segment."""
    return np.stack([unit(v[own == s].sum(0)) for s in range(own.max() + 1)])


def by_loops(v, own, mu, labels, kappa, memory=(), memory_labels=()) -> float:
    """Pixel by pixel: log of the others of the label (or of the own segment) over these and all other labels."""
    keys, of = [*mu, *(unit(m) for m in memory)], [*labels, *memory_labels]
    total = 0.0
    for x, s in zip(v, own):
        e = [math.exp(kappa * float(x @ k)) for k in keys]
        a = sum(e[j] for j in range(len(keys)) if of[j] == labels[s] and j != s) or e[s]
        total -= math.log(a / (a + sum(e[j] for j in range(len(keys)) if of[j] != labels[s])))
    return total / len(v)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit pixels of seven segments in float64, and a label for each segment."""
    v = F.normalize(draw(30, 5, seed=seed).double(), dim=1)
    own = torch.arange(30) % 7
    return v, own, torch.tensor([0, 1, 0, 2, 1, 0, 5])


@pytest.mark.parametrize("kappa", [1.0, 16.0])
@pytest.mark.parametrize("rows", [0, 6])
def test_loss_and_its_gradient(kappa, rows):
    """In float32 and float64; also where a label's only other segments are in the memory."""
    v, own, labels = batch()
    memory, others = (3 * draw(rows, 5, seed=4).double(), torch.tensor([5, 2, 9, 9, 0, 2])) if rows else (None, None)
    extra = (as64(memory), others.tolist()) if rows else ((), ())
    expected = by_loops(as64(v), own.tolist(), means(as64(v), own.numpy()), labels.tolist(), kappa, *extra)
    kwargs = {"concentration": kappa, "memory": memory, "memory_labels": others}
    ours = segment_contrast(v, own, prototypes(v, own, 7), labels, **kwargs)
    assert float(ours) == pytest.approx(expected, rel=1e-9)
    single = segment_contrast(v.float(), own, prototypes(v.float(), own, 7), labels, **kwargs)
    assert float(single) == pytest.approx(expected, rel=1e-5)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return segment_contrast(x, own, prototypes(x, own, 7), labels, **kwargs)

    assert torch.autograd.gradcheck(loss, v.clone().requires_grad_(), atol=1e-6)


def test_closed_forms():
    """One segment: 0. Two orthogonal ones: log(1 + e^-kappa). Neither scale nor numbers matter."""
    v = F.normalize(draw(12, 4).double(), dim=1)
    one = torch.zeros(12, dtype=torch.int64)
    assert float(segment_contrast(v, one, prototypes(v, one, 1), torch.tensor([3]), concentration=10)) == 0
    e, own = torch.eye(4).double()[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
    two = segment_contrast(e, own, prototypes(e, own, 2), torch.arange(2), concentration=10)
    assert float(two) == pytest.approx(math.log1p(math.exp(-10)), rel=1e-9)
    v, own, labels = batch()
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    a = segment_contrast(v, own, prototypes(v, own, 7), labels, concentration=10)
    renumbered = torch.empty(7, dtype=torch.int64)
    renumbered[order] = torch.arange(7)
    mu = prototypes(v, own, 7)[order]
    b = segment_contrast(v, renumbered[own], mu, 100 - labels[order], concentration=10)
    assert float(a) == pytest.approx(float(b), rel=1e-12)


def test_positives_far_from_the_pixel_are_kept_in_float32():
    """Two opposite segments of one label: 2 kappa at the least, which the authors' subtraction makes 0."""
    v = torch.tensor([[1.0, 0], [-1, 0], [0, 1]])
    own = torch.arange(3)
    loss = segment_contrast(v, own, v, torch.tensor([0, 0, 1]), concentration=16)
    expected = by_loops(as64(v), [0, 1, 2], as64(v), [0, 0, 1], 16.0)
    assert expected > 5 and float(loss) == pytest.approx(expected, rel=1e-6)


def test_k_means_by_loops():
    v = F.normalize(draw(2, 5, 6, 7).double(), dim=1)
    for layout in ("corner", "centred"):
        ours = segments_within(v, 3, 4, layout)
        for b in range(2):
            z, labels = [], {}
            for y in range(6):
                for x in range(7):
                    place = [y / 6, x / 7] if layout == "corner" else [y / 5 - 0.5, x / 6 - 0.5]
                    z.append(unit(np.array([*as64(v)[b, :, y, x], *place])))
            start = grid_labels((6, 7), 3, layout).flatten().tolist()
            labels = dict(enumerate(start))
            for _ in range(4):
                centres = {}
                for k in set(labels.values()):
                    centres[k] = unit(sum(z[i] for i in range(42) if labels[i] == k))
                labels = {i: max(sorted(centres), key=lambda k: float(z[i] @ centres[k])) for i in range(42)}
            assert ours[b].flatten().tolist() == [labels[i] for i in range(42)]


def test_two_flat_regions_are_never_joined():
    v = torch.zeros(1, 3, 8, 8)
    v[:, 0, :, :5], v[:, 1, :, 5:] = 1, 1
    found = segments_within(v, 2, 10)[0]
    assert not set(found[:, :5].flatten().tolist()) & set(found[:, 5:].flatten().tolist())
    assert torch.equal(segments_within(v, 1, 10)[0], torch.zeros(8, 8, dtype=torch.int64))


def test_numbers_are_of_distinct_tuples_in_sorted_order():
    a, b, c = (torch.randint(0, n, (50,), generator=generator(n)) for n in (3, 1000, 4))
    own, place = numbered(a, b, c)
    tuples = list(zip(a.tolist(), b.tolist(), c.tolist()))
    order = sorted(set(tuples))
    assert own.tolist() == [order.index(t) for t in tuples]
    assert [tuples[i] for i in place.tolist()] == order
    assert [x.tolist() for x in numbered(a[:0])] == [[], []]


# --------------------------------------------------------------------- the authors' own code


@pytest.fixture(scope="module")
def cases(golden_root) -> dict[str, Case]:
    return read_cases(golden_root, "segsort")


@pytest.mark.data
def test_unsupervised_loss(cases):
    """All cases but the one whose region 256 is the authors' slip."""
    names = [n for n in cases if n.startswith("unsup_") and "collides" not in n]
    assert len(names) == 7
    for name in names:
        case = cases[name]
        x = case.input["embedding"].requires_grad_()
        v = F.normalize(x, dim=3).flatten(0, 2)
        ids = case.input["segments"][..., 0].long()
        images = torch.arange(len(ids))[:, None, None].expand_as(ids)
        own, place = numbered(images.flatten(), ids.flatten())
        mu, kappa = prototypes(v, own, len(place)), case.settings["concentration"]
        loss = segment_contrast(v, own, mu, torch.arange(len(mu)), concentration=kappa)
        close(loss[None], case.output["loss"])
        loss.backward()
        if float(case.grad["embedding"].abs().max()) > 1e-6:
            close(x.grad, case.grad["embedding"], rel=2e-5)
        else:
            assert float(x.grad.abs().max()) < 1e-6, name


@pytest.mark.data
def test_regions_from_256_on_stay_those_of_their_photograph(cases):
    """The authors' loss joins region 256 of the first photograph with region 0 of the second."""
    case = cases["unsup_edge_id_256_collides"]
    v = F.normalize(case.input["embedding"], dim=3).flatten(0, 2)
    ids = case.input["segments"][..., 0].long()
    images = torch.arange(2)[:, None, None].expand_as(ids)
    kappa = case.settings["concentration"]
    for own, same in ((ids + 256 * images, True), (ids + 1000 * images, False)):
        own, place = numbered(own.flatten())
        loss = segment_contrast(v, own, prototypes(v, own, len(place)), torch.arange(len(place)), concentration=kappa)
        assert (float(loss) == pytest.approx(float(case.output["loss"]), rel=1e-5)) == same


@pytest.mark.data
def test_supervised_loss(cases):
    """Against the authors' code in float64; at opposite segments their float32 is lost in cancellation."""
    names = [n for n in cases if n.startswith("nca_")]
    assert len(names) == 8
    for name in names:
        case = cases[name]
        wanted = "loss_port64" if "loss_port64" in case.output else "loss_float64"
        grad = case.grad.get("embedding_unit_port64", case.grad.get("embedding_unit_float64"))
        v = case.input["embedding_unit"].double().requires_grad_()
        semantic, cluster = (case.input[k].long() for k in ("semantic", "cluster"))
        own, place = numbered(semantic, cluster)
        memory, of = case.input.get("memory"), case.input.get("memory_labels")
        of = None if of is None else of.long()
        kwargs = {"concentration": case.settings["concentration"], "memory": memory, "memory_labels": of}
        loss = segment_contrast(v, own, prototypes(v, own, len(place)), semantic[place], **kwargs)
        close(loss[None], case.output[wanted], rel=1e-6)
        loss.backward()
        close(v.grad, grad, rel=2e-6)
        x = v.detach().float()
        single = segment_contrast(x, own, prototypes(x, own, len(place)), semantic[place], **kwargs)
        close(single[None], case.output[wanted])


@pytest.mark.data
def test_grids_and_k_means(cases):
    for name, case in cases.items():
        if "grid_" in name:
            s, layout = case.settings, "centred" if name.startswith("port_") else "corner"
            found = grid_labels((s["height"], s["width"]), tuple(s["num_clusters"]), layout)
            assert torch.equal(found, case.output["labels"].long()), name
    for name in ("kmeans_plain", "kmeans_two_colours", "kmeans_edge_empty_clusters"):
        case = cases[name]
        v = F.normalize(case.input["embedding"].permute(0, 3, 1, 2), dim=1)
        n, iterations = case.settings["num_clusters"][0], case.settings["iterations"]
        close(located(v).permute(0, 2, 3, 1), case.output["embedding_with_location"])
        found = segments_within(v, n, iterations)
        assert torch.equal(found, case.output["labels"]), name
        first = list(dict.fromkeys(found.flatten().tolist()))
        rows = v[0].flatten(1).T
        ours = torch.stack([F.normalize(rows[found.flatten() == k].sum(0), dim=0) for k in first])
        close(ours, case.output["prototypes_first_appearance_order"])


@pytest.mark.data
def test_segments_of_a_batch_as_in_the_port(cases):
    """Clusters cut by labels. The port's clusters that empty are zero vectors: in its case they draw no pixel."""
    names = [n for n in cases if n.startswith("port_segment_")]
    assert len(names) == 4
    for name in names:
        case = cases[name]
        v = F.normalize(case.input["embedding"], dim=1)
        b, _, h, w = v.shape
        labels, ignore = case.input.get("labels", torch.zeros(b, h, w)).long(), case.settings["ignore_index"]
        counted = labels != ignore if ignore is not None else torch.ones_like(labels, dtype=torch.bool)
        if "initial" in case.input:
            z, start = located(v, "centred").flatten(2).transpose(1, 2), case.input["initial"].flatten(1)
            found = cluster_within(z, start, int(start.max()) + 1, case.settings["iterations"]).view(b, h, w)
        else:
            grid, iterations = case.settings["num_clusters"][0], case.settings["iterations"]
            found = segments_within(v, grid, iterations, "centred", counted)
        images = torch.arange(b)[:, None, None].expand_as(labels)
        own, _ = numbered(images[counted], found[counted], labels[counted])
        assert torch.equal(own, case.output["segment_index"]), name
        close(v.permute(0, 2, 3, 1)[counted], case.output["pixel_embedding"])
        close(located(v, "centred").permute(0, 2, 3, 1)[counted], case.output["pixel_embedding_with_location"])


@pytest.mark.data
def test_the_whole_supervised_loss(cases):
    """k-means of each image from given labels and places, cut by classes; gradients do not pass through it."""
    case = cases["segsort_full"]
    x = case.input["embedding"].requires_grad_()
    v = F.normalize(x, dim=3)
    labels, start = case.input["labels"][..., 0].long(), case.input["initial"][..., 0].long()
    z = F.normalize(torch.cat((v, case.input["location"]), 3), dim=3).detach()
    counted = labels != case.settings["ignore_label"]
    found = cluster_within(z.flatten(1, 2), start.flatten(1), 4, 10, counted.flatten(1)).view_as(labels)
    images = torch.arange(2)[:, None, None].expand_as(labels)
    own, place = numbered(images[counted], labels[counted], found[counted])
    rows = v[counted]
    mu = prototypes(rows, own, len(place))
    loss = segment_contrast(rows, own, mu, labels[counted][place], concentration=case.settings["concentration"])
    close(loss[None], case.output["loss"])
    loss.backward()
    close(x.grad, case.grad["embedding"], rel=2e-5)


@pytest.mark.data
def test_prototypes_of_photographs_with_masks_and_votes(cases):
    case = cases["trained_prototypes"]
    v, labels = case.input["embedding_unit"], case.input["labels"].long()
    inside = labels != case.settings["ignore_label"]
    z = F.normalize(torch.cat((v, case.input["location"]), 1), dim=1)[inside][None]
    start = case.input["initial"].long()[inside][None]
    found = cluster_within(z, start, int(start.max()) + 1, case.settings["iterations"])[0]
    mu, classes = labelled_prototypes(v[inside], found, labels[inside], 255)
    order = sorted(range(len(mu)), key=lambda s: mu[s].tolist())
    expected = sorted(range(len(mu)), key=lambda s: case.output["prototypes"][s].tolist())
    close(mu[order], case.output["prototypes"][expected])
    assert torch.equal(classes[order], case.output["prototype_labels"].long()[expected])
    case = cases["port_majority"]
    assert torch.equal(majority(case.input["semantic"], case.input["cluster"], 9, 3), case.output["majority"])
    for name in ("knn_k1", "knn_k3", "knn_k6", "knn_k15"):
        case = cases[name]
        bank, ids = case.input["bank"], case.input["bank_labels"].long()
        vote = NeighbourClassifier(bank, ids, int(ids.max()) + 1, case.settings["k"], 2, 1)
        won = vote.votes(case.input["test_prototypes"]).argmax(1)
        assert torch.equal(won[case.input["cluster_labels"].long()], case.output["prediction"].long()), name
    for name in ("port_retrieval_k1", "port_retrieval_k5", "port_retrieval_k20"):
        case = cases[name]
        ids = case.input["bank_labels"]
        vote = NeighbourClassifier(case.input["bank"], ids, int(ids.max()) + 1, case.settings["k"], 2, 1)
        assert torch.equal(vote.votes(case.input["query"]).argmax(1), case.output["majority"]), name

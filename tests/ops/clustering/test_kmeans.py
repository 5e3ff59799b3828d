"""k-means against scikit-learn, plain formulas, and itself cut into processes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from maskwright.ops.clustering.kmeans import KMeansResult, MiniBatchKMeans, assign, kmeans
from maskwright.ops.clustering.kmeans_init import initial_centers, repair_empty
from maskwright.ops.clustering.kmeans_lloyd import Lloyd, means
from maskwright.ops.clustering.kmeans_rows import Rows, Share


def draw(n: int, d: int, groups: int = 9, spread: float = 0.7, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    which = torch.randint(groups, (n,), generator=g)
    return torch.randn(groups, d, generator=g)[which] + spread * torch.randn(n, d, generator=g)


def together(shares: list[Tensor], work: Callable) -> list:
    """Runs `work(share, offset, all_reduce)` as so many processes, in threads that meet at each sum."""
    count = len(shares)
    barrier, box = threading.Barrier(count, timeout=60), [None] * count

    def run(rank: int):
        def all_reduce(t: Tensor) -> Tensor:
            box[rank] = t.clone()
            barrier.wait()
            total = torch.stack(box).sum(0)
            barrier.wait()
            return total

        try:
            return work(shares[rank], sum(len(s) for s in shares[:rank]), all_reduce)
        except threading.BrokenBarrierError:
            raise
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def plain_lloyd(x: Tensor, c: Tensor, steps: int, cosine: bool) -> tuple[Tensor, Tensor]:
    """All at once, in float64."""
    x, c = x.double(), c.double()
    if cosine:
        x, c = F.normalize(x, dim=1), F.normalize(c, dim=1)
    for _ in range(steps):
        labels = (x @ c.T).argmax(1) if cosine else torch.cdist(x, c).argmin(1)
        hot = F.one_hot(labels, len(c)).double()
        c = hot.T @ x
        c = F.normalize(c, dim=1) if cosine else c / hot.sum(0)[:, None]
    return c, (x @ c.T).argmax(1) if cosine else torch.cdist(x, c).argmin(1)


def test_equals_scikit_learn_from_the_same_start():
    x = draw(20_000, 16)
    start = x[:12].clone()
    ours = kmeans(x, 12, metric="euclidean", init=start, iterations=200, tol=0)
    theirs = KMeans(12, init=start.double().numpy(), n_init=1, max_iter=200, tol=0, algorithm="lloyd").fit(x.double())
    assert (ours.labels.numpy() != theirs.labels_).mean() < 1e-4
    np.testing.assert_allclose(ours.centers, theirs.cluster_centers_, atol=2e-3)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("steps", [0, 1, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pruned_steps_equal_plain_ones(metric: str, steps: int, dtype: torch.dtype):
    x = draw(9_000, 24, groups=40, spread=1.0) * (torch.rand(9_000, 1) + 0.1 if metric == "cosine" else 1)
    centers, labels = plain_lloyd(x, x[:27], steps, metric == "cosine")
    found = kmeans(x, 27, metric=metric, init=x[:27], iterations=steps, tol=0, chunk=512, dtype=dtype)
    assert torch.equal(found.labels, labels)
    torch.testing.assert_close(found.centers.double(), centers, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_labels_equal_one_shot_float32(metric: str):
    x = draw(30_000, 64, groups=30, spread=1.2)
    found = kmeans(x, 27, metric=metric, seed=3, iterations=15)
    c = found.centers
    shot = (x @ c.T).argmax(1) if metric == "cosine" else (x @ c.T - c.square().sum(1) / 2).argmax(1)
    assert (found.labels != shot).sum() <= 1
    labels, scores = assign(x, c, metric)
    assert torch.equal(labels, found.labels)
    total = (1 - scores if metric == "cosine" else -scores).double().sum()
    assert found.inertia == pytest.approx(total.item(), rel=1e-5)


def test_pruning_skips_rows_near_the_end(monkeypatch: pytest.MonkeyPatch):
    x = draw(20_000, 8, spread=0.3)
    rows = Rows(x, "euclidean", None, 2048, 9, Share(len(x), x.device, None, 0, None))
    lloyd = Lloyd(rows, 9, None)
    centers = rows.to_centers(x[:9])
    for _ in range(30):
        sums, counts, _ = lloyd.step(centers)
        centers = means(rows, sums, counts, centers)[0]
    looked_at = []
    take = Rows.take
    monkeypatch.setattr(Rows, "take", lambda self, index: looked_at.append(len(index)) or take(self, index))
    lloyd.step(centers)
    assert sum(looked_at) < len(x) / 4
    fresh = Lloyd(rows, 9, None)
    sums, counts, _ = fresh.step(centers)
    assert torch.equal(fresh.labels, lloyd.labels)
    torch.testing.assert_close(lloyd.sums, sums, atol=1e-8, rtol=1e-9)
    torch.testing.assert_close(lloyd.counts, counts)


def test_whole_steps_equal_pruned_ones():
    """The way of a GPU, on the CPU's rows."""
    x = draw(5_000, 12)
    for metric in ("cosine", "euclidean"):
        rows = Rows(x, metric, None, 700, 7, Share(len(x), x.device, None, 0, None))
        pruned, whole = Lloyd(rows, 7, None), Lloyd(rows, 7, None)
        a = b = rows.to_centers(x[:7])
        for _ in range(6):
            sums, counts, changed = pruned.step(a)
            a = means(rows, sums, counts, a)[0]
            c = b.to(rows.dtype)
            whole.changed = 0
            whole._step_whole(c, c.square().sum(1) / 2 if metric == "euclidean" else torch.zeros(7))
            b = means(rows, whole.sums, whole.counts, b)[0]
            assert whole.changed == changed
        torch.testing.assert_close(a, b)
        assert torch.equal(pruned.labels, whole.labels)


def test_inertia_never_rises_with_more_steps():
    x = draw(4_000, 6, spread=1.0)
    for metric in ("cosine", "euclidean"):
        inertia = [kmeans(x, 8, metric=metric, init=x[:8], iterations=i, tol=0).inertia for i in range(12)]
        assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(inertia))


@pytest.mark.parametrize("init", ["kmeans++", "large_batch"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_separated_groups_are_found(init: str, metric: str):
    g = torch.Generator().manual_seed(1)
    true = torch.arange(12).repeat_interleave(250)
    x = (torch.eye(12, 20) * 10)[true] + 0.3 * torch.randn(3000, 20, generator=g)
    found = kmeans(x, 12, metric=metric, init=init, seed=5, restarts=4)
    table = torch.zeros(12, 12).index_put_((found.labels, true), torch.ones(3000), accumulate=True)
    assert (table > 0).sum() == 12
    if metric == "cosine":
        torch.testing.assert_close(found.centers.norm(dim=1), torch.ones(12))


def test_same_seed_same_result_and_restarts_do_not_worsen():
    x = draw(3_000, 10, groups=30)
    a, b = (kmeans(x, 25, seed=7, restarts=3) for _ in range(2))
    assert torch.equal(a.centers, b.centers) and torch.equal(a.labels, b.labels) and a.inertia == b.inertia
    assert a.inertia <= kmeans(x, 25, seed=7, restarts=1).inertia


def test_large_offset_does_not_spoil_distances():
    x = draw(4_000, 8, groups=5, spread=0.2)
    far = x + 3000
    a, b = (kmeans(v, 5, metric="euclidean", init=v[:5], tol=0) for v in (x, far))
    assert (a.labels != b.labels).float().mean() < 0.01
    assert b.inertia == pytest.approx(a.inertia, rel=0.01)
    assert (assign(far, b.centers, "euclidean")[0] != b.labels).float().mean() < 0.01


def test_bfloat16_scores_end_in_exact_labels():
    x = draw(6_000, 32)
    found = kmeans(x, 9, seed=0, dtype=torch.bfloat16)
    assert torch.equal(found.labels, assign(x, found.centers)[0])
    assert found.inertia == pytest.approx(kmeans(x, 9, seed=0).inertia, rel=0.02)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(kind: torch.dtype):
    x = draw(1_000, 8)
    found = kmeans(x.to(kind), 9, init=x[:9], tol=0)
    assert found.centers.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    assert (found.labels != kmeans(x.to(kind).float(), 9, init=x[:9], tol=0).labels).float().mean() < 0.01


def test_weights_count_as_repeated_rows():
    x = draw(300, 5)
    times = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(2))
    for metric in ("cosine", "euclidean"):
        a = kmeans(x, 6, metric=metric, init=x[:6], weights=times.float(), tol=0)
        b = kmeans(x.repeat_interleave(times, 0), 6, metric=metric, init=x[:6], tol=0)
        torch.testing.assert_close(a.centers, b.centers)
        assert torch.equal(a.labels.repeat_interleave(times), b.labels)
        assert a.inertia == pytest.approx(b.inertia, rel=1e-5)


def test_empty_clusters_take_distinct_worst_served_rows():
    x = torch.tensor([[0.0, 0], [0.1, 0], [9, 0], [9, 0], [0, 7], [0, 0.1]])
    rows = Rows(x, "euclidean", None, 2048, 4, Share(6, x.device, None, 0, None))
    used = torch.zeros(4, 2, dtype=torch.float64)
    new = repair_empty(rows, used, used, torch.tensor([1, 3]), torch.zeros(6, dtype=torch.int32))
    # Two rows lie at (9, 0): the second empty cluster goes to the next different one.
    assert new.tolist() == [[0, 0], [9, 0], [0, 0], [0, 7]]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_no_cluster_ends_empty(metric: str):
    x = draw(500, 4) + 2
    start = torch.ones(20, 4) * torch.linspace(1, 1.0001, 20)[:, None]
    for steps in (0, 1, 30):
        found = kmeans(x, 20, metric=metric, init=start, iterations=steps)
        assert found.labels.bincount(minlength=20).min() > 0


@settings(max_examples=25, deadline=None)
@given(
    k=st.integers(1, 9), extra=st.integers(0, 6), seed=st.integers(0, 99),
    metric=st.sampled_from(["cosine", "euclidean"]), init=st.sampled_from(["kmeans++", "large_batch", "random"]),
)  # fmt: skip
def test_few_distinct_rows(k: int, extra: int, seed: int, metric: str, init: str):
    """As many clusters as distinct rows finds each of them; one more is refused."""
    g = torch.Generator().manual_seed(seed)
    if metric == "cosine":
        angle = torch.randperm(50, generator=g)[:k] * 0.1
        distinct = torch.stack([angle.cos(), angle.sin(), torch.zeros(k)], 1)
    else:
        distinct = torch.randperm(50, generator=g)[:k, None].float() * torch.tensor([[1.0, -2, 0]])
    x = distinct[torch.cat([torch.arange(k), torch.randint(k, (k * 3 + extra,), generator=g)])]
    if metric == "cosine":
        x = x * torch.tensor([1.0, 2.0, 4.0])[torch.randint(3, (len(x), 1), generator=g)]
    found = kmeans(x, k, metric=metric, init=init, seed=seed)
    assert found.inertia < 1e-5
    assert len(found.labels.unique()) == k
    with pytest.raises(ValueError, match=f"at most {k}"):
        kmeans(x, k + 1, metric=metric, init=init, seed=seed)


def test_zero_rows_take_no_part_under_cosine():
    x = draw(200, 4)
    padded = torch.cat([torch.zeros(50, 4), x])
    a, b = kmeans(x, 5, init=x[:5]), kmeans(padded, 5, init=x[:5])
    torch.testing.assert_close(a.centers, b.centers)
    assert b.inertia == pytest.approx(a.inertia)
    assert (b.labels[:50] == 0).all() and torch.equal(b.labels[50:], a.labels)
    assert (assign(padded, a.centers)[1][:50] == 0).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"k": 0}, "at least 1"),
        ({"k": 31}, "31 clusters asked of 30 rows"),
        ({"metric": "manhattan"}, "metric"),
        ({"init": "best"}, "init"),
        ({"init": torch.zeros(2, 4)}, "expected \\(3, 4\\)"),
        ({"init": torch.full((3, 4), torch.nan)}, "NaN"),
        ({"weights": torch.ones(4)}, "weights"),
        ({"weights": -torch.ones(30)}, "negative"),
        ({"restarts": 0}, "restarts"),
        ({"iterations": -1}, "iterations"),
        ({"batch_size": 0}, "batch_size"),
        ({"dtype": torch.float16}, "dtype"),
        ({"total": 31}, "total"),
        ({"offset": 1}, "offset"),
    ],
)
def test_bad_arguments(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        kmeans(draw(30, 4), **({"k": 3} | arguments))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite(value: float):
    x = draw(30, 4)
    x[7, 2] = value
    for metric in ("cosine", "euclidean"):
        with pytest.raises(ValueError, match="NaN, infinite"):
            kmeans(x, 3, metric=metric)
        with pytest.raises(ValueError, match="NaN, infinite"):
            assign(x, torch.ones(3, 4), metric)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("init", ["kmeans++", "large_batch", "random", "given"])
@pytest.mark.parametrize("cuts", [(800,), (1, 500), (0, 0, 1999)])
def test_shares_equal_one_process(metric: str, init: str, cuts: tuple[int, ...]):
    x = draw(2_000, 6, groups=20)
    shares = list(x.tensor_split(list(cuts)))
    start = x[:11].clone() if init == "given" else init
    options = {"metric": metric, "init": start, "seed": 4, "tol": 0, "iterations": 8}

    def work(part: Tensor, offset: int, all_reduce: Callable) -> KMeansResult:
        return kmeans(part, 11, all_reduce=all_reduce, offset=offset, total=2_000, **options)

    whole, parts = kmeans(x, 11, **options), together(shares, work)
    for part in parts:
        assert isinstance(part, KMeansResult), part
        assert torch.equal(part.centers, parts[0].centers)
    torch.testing.assert_close(parts[0].centers, whole.centers, atol=1e-5, rtol=1e-4)
    assert torch.equal(torch.cat([p.labels for p in parts]), whole.labels)
    assert parts[0].inertia == pytest.approx(whole.inertia, rel=1e-6)


def test_repair_over_shares_equals_one_process():
    x = draw(400, 3)
    start = x[:9].clone()
    start[3:7] += torch.arange(1, 5)[:, None] * 1000.0  # no row is near these
    whole = kmeans(x, 9, metric="euclidean", init=start, tol=0)
    parts = together(
        list(x.split(150)),
        lambda p, at, reduce: kmeans(p, 9, metric="euclidean", init=start, tol=0, all_reduce=reduce, offset=at),
    )
    for part in parts:
        torch.testing.assert_close(part.centers, whole.centers, atol=1e-5, rtol=1e-4)


def test_all_processes_fail_together():
    x = draw(60, 3)
    x[50] = torch.nan
    found = together(list(x.split(20)), lambda p, at, reduce: kmeans(p, 4, all_reduce=reduce, offset=at))
    assert all(isinstance(f, ValueError) and "NaN" in str(f) for f in found)
    found = together(list(x[:40].split(20)), lambda p, at, reduce: kmeans(p, 4, all_reduce=reduce))
    assert all(isinstance(f, ValueError) and "pass offset" in str(f) for f in found)


def test_all_reduce_may_work_in_place():
    x = draw(100, 3)
    assert torch.equal(kmeans(x, 4, all_reduce=lambda t: None).centers, kmeans(x, 4).centers)  # type: ignore[arg-type,return-value]


def test_start_is_a_function_of_the_order_of_all_rows():
    x = draw(500, 3)
    rows = Rows(x, "euclidean", None, 64, 5, Share(500, x.device, None, 0, None))
    for init in ("kmeans++", "random"):
        start = initial_centers(rows, 5, init, torch.Generator().manual_seed(1), lambda z, w, s: z[:5])
        assert all((rows.to_centers(x) - c).abs().sum(1).min() == 0 for c in start)  # each is a row


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_mini_batches_come_near_lloyd(metric: str):
    x = draw(20_000, 8, spread=0.5)
    full = kmeans(x, 9, metric=metric, seed=1)
    small = kmeans(x, 9, metric=metric, seed=1, batch_size=1000, iterations=20)
    assert small.inertia < 1.05 * full.inertia
    again = kmeans(x, 9, metric=metric, seed=1, batch_size=1000, iterations=20)
    assert torch.equal(small.centers, again.centers)
    parts = together(
        list(x.split(7_000)),
        lambda p, at, reduce: kmeans(
            p, 9, metric=metric, seed=1, batch_size=1000, iterations=5, all_reduce=reduce, offset=at
        ),
    )
    assert all(torch.equal(p.centers, parts[0].centers) for p in parts)
    assert parts[0].inertia < 1.05 * full.inertia


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_partial_fit_keeps_the_mean_of_all_that_was_assigned(metric: str):
    """PiCIE's identity."""
    x = draw(3_000, 5) + 0.5
    model = MiniBatchKMeans(6, metric=metric, centers=x[:6])  # type: ignore[arg-type]
    labels = torch.cat([model.partial_fit(part) for part in x.split(170)])
    z = F.normalize(x.double(), dim=1) if metric == "cosine" else x.double()
    for k in range(6):
        assert model.counts[k] == (labels == k).sum() > 0
        torch.testing.assert_close(model.centers[k], z[labels == k].mean(0), atol=1e-6, rtol=1e-5)


def test_partial_fit_continues_from_its_state():
    parts = draw(1_000, 5).split(200)
    a = MiniBatchKMeans(4, seed=3)
    for part in parts[:2]:
        a.partial_fit(part)
    b = MiniBatchKMeans(4)
    b.load_state_dict(a.state_dict())
    for part in parts[2:]:
        assert torch.equal(a.partial_fit(part), b.partial_fit(part))
    assert torch.equal(a.centers, b.centers) and torch.equal(a.predict(parts[0]), b.predict(parts[0]))
    with pytest.raises(ValueError, match="4 cosine"):
        MiniBatchKMeans(5).load_state_dict(a.state_dict())
    with pytest.raises(ValueError, match="partial_fit first"):
        MiniBatchKMeans(5).predict(parts[0])


def test_partial_fit_over_shares():
    x = draw(900, 5)

    def work(part: Tensor, offset: int, all_reduce: Callable) -> MiniBatchKMeans:
        model = MiniBatchKMeans(4, metric="euclidean", all_reduce=all_reduce)
        for i in range(3):
            model.partial_fit(part[i * 100 : i * 100 + 100], offset=offset // 3)
        return model

    parts = together(list(x.split(300)), work)
    whole = MiniBatchKMeans(4, metric="euclidean")
    for i in range(3):
        whole.partial_fit(torch.cat([p[i * 100 : i * 100 + 100] for p in x.split(300)]))
    for part in parts:
        torch.testing.assert_close(part.centers, whole.centers)


def test_rows_are_left_as_they_were():
    x = draw(200, 4).requires_grad_()
    before = x.detach().clone()
    found = kmeans(x, 3)
    assert torch.equal(x.detach(), before) and not found.centers.requires_grad
    assert torch.equal(kmeans(before.T.contiguous().T, 3).labels, found.labels)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    x = draw(50_000, 32)
    for metric in ("cosine", "euclidean"):
        cpu = kmeans(x, 9, metric=metric, init=x[:9], iterations=10, tol=0)
        gpu = kmeans(x.cuda(), 9, metric=metric, init=x[:9].cuda(), iterations=10, tol=0)
        assert (gpu.labels.cpu() != cpu.labels).float().mean() < 1e-4
        assert gpu.inertia == pytest.approx(cpu.inertia, rel=1e-5)
        for init in ("kmeans++", "large_batch", "random"):
            a, b = (kmeans(x.cuda(), 9, metric=metric, init=init, seed=2) for _ in range(2))
            assert torch.equal(a.centers, b.centers) and len(a.labels.unique()) == 9

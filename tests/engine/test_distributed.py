"""Two processes on the CPU (gloo), as `torchrun` would start them, give what one gives."""

from __future__ import annotations

import json
import socket

import pytest
import torch
import torch.multiprocessing as mp
from tests.conftest import write_tiny_folder
from tests.engine import processes
from tests.engine.encoders import CountingEncoder, preprocess
from tests.engine.toys import PlainFabric, equal

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.sampler import Sampler
from maskwright.engine import distributed
from maskwright.engine.cache import FeatureCache
from maskwright.engine.progress import Progress

WORLD = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    return write_tiny_folder(root / "data"), root / "out"


@pytest.fixture(scope="module")
def ranks(folders):
    data, out = folders
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(processes.work, args=(WORLD, port, str(data), str(out)), nprocs=WORLD)
    return [torch.load(out / f"{r}.pt", weights_only=True) for r in range(WORLD)]


def test_gradients_are_those_of_the_whole_batch(ranks):
    """With a branch that only one process uses, a branch that none uses, and a frozen layer."""
    alone = processes.gradients(range(8))
    assert {k.partition(".")[0] for k, g in alone.items() if g is None} == {"unused", "frozen"}
    for rank in ranks:
        for name, gradient in alone.items():
            found = rank["gradients"][name]
            if gradient is None:
                assert found is None, name
            else:
                assert torch.allclose(found, gradient, rtol=1e-6, atol=1e-6), name
    assert equal(ranks[0]["gradients"], ranks[1]["gradients"])


def test_a_contrast_over_all_processes_has_the_gradient_of_the_whole_batch(ranks):
    alone = processes.contrast(range(8), 0)
    for rank in ranks:
        for name, gradient in alone.items():
            assert torch.allclose(rank["contrast"][name], gradient, rtol=1e-5, atol=1e-6), name


def test_shares_make_up_the_whole(ranks):
    for k, n in enumerate((0, 1, 2, 7, 8)):
        parts = [r["share"][k] for r in ranks]
        assert [i for part in parts for i in part] == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_sums_and_objects(ranks):
    for rank in ranks:
        assert rank["sum"].tolist() == [2.0, 10.0]
        assert rank["broadcast"] == {"from": 0}
        assert rank["gather"] == [("rank", 0), ("rank", 1)]


def test_batches_together_are_those_of_one_process(ranks):
    alone = processes.draws(1, 0)
    assert [a + b for a, b in zip(ranks[0]["sampler"], ranks[1]["sampler"])] == alone


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_kmeans_is_that_of_one_process(ranks, metric):
    alone = processes.clusters(processes.rows(), None)[metric]
    first, second = (r["kmeans"][metric] for r in ranks)
    assert torch.equal(torch.cat([first["labels"], second["labels"]]), alone["labels"])
    assert torch.equal(first["centers"], second["centers"])
    assert torch.allclose(first["centers"], alone["centers"], atol=1e-5)
    assert first["inertia"] == pytest.approx(alone["inertia"], rel=1e-5)


def test_the_first_process_decides_about_the_run_folder(ranks):
    """New, refused, resumed: the same on all, whichever comes first."""
    assert ranks[0]["start"] == ranks[1]["start"] == ["seed 0", " already holds a run", "seed 0"]


def test_training_is_that_of_one_process(ranks, tmp_path):
    alone = processes.regress(tmp_path, PlainFabric(), 1, 0)
    assert equal(ranks[0]["regression"], ranks[1]["regression"])
    for name, tensor in alone.items():
        assert torch.allclose(ranks[0]["regression"][name], tensor, atol=1e-5), name


def test_each_process_resumes_its_own_state(ranks):
    for rank in ranks:
        for name, state in rank["toy"]["whole"].items():
            assert equal(state, rank["toy"]["resumed"][name]), name
    a, b = (r["toy"]["whole"] for r in ranks)
    assert not equal(a["bank"], b["bank"]) and not equal(a["tally"], b["tally"]), "else the test shows nothing"
    assert equal(a["head"], b["head"])


def test_the_ledger_counts_what_all_processes_read(ranks, folders):
    for rank in ranks:
        assert rank["ledger"]["train"]["masks"] == 5
    record = json.loads((folders[1] / "ledger" / "run.json").read_text())
    assert record["labels_read"]["train"]["masks"] == 5


def test_features_are_computed_once_by_all_together(ranks, folders, tmp_path):
    assert [r["cache"][0] for r in ranks] == [4, 4]
    store = FeatureCache(tmp_path).features(
        CountingEncoder(), preprocess(), open_folder(folders[0]), progress=Progress(quiet=True)
    )
    for rank in ranks:
        assert all(torch.equal(store[i], f) for i, f in enumerate(rank["cache"][1]))


def test_one_process_needs_no_group():
    assert distributed.world_size() == 1 and distributed.rank() == 0 and distributed.reducer() is None
    assert distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.broadcast_object("x") == "x" and distributed.gather_objects("x") == ["x"]
    x = torch.ones(2)
    assert distributed.all_reduce_sum(x) is x
    distributed.barrier()
    parameter = torch.nn.Parameter(torch.ones(2))
    distributed.average_gradients([parameter])
    assert parameter.grad is None


def test_a_sampler_has_the_runs_seed_and_another_stream_another_order():
    one, same, other = distributed.sampler(3, 50, 8), Sampler(50, 8, seed=3), distributed.sampler(3, 50, 8, more=9)
    first = one.next()
    assert (first == same.next()).all() and (first != other.next()).any()
    assert len(distributed.sampler(2**63, 5, 2, more=2**64 - 1).next()) == 2, "sums beyond 64 bits wrap around"


def test_the_pass_over_images_leaves_out_what_a_killed_run_made():
    made, quiet = {1, 4}, Progress(quiet=True)
    assert list(distributed.each(quiet, range(6), "pass", done=made.__contains__)) == [0, 2, 3, 5]
    assert list(distributed.each(quiet, [7, 5], "pass")) == [7, 5]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_images_and_wait_for_each_other(world, monkeypatch):
    seen, waits = [], []
    monkeypatch.setattr(distributed, "barrier", lambda: waits.append(len(seen)))
    for rank in range(world):
        part = slice(rank * 7 // world, (rank + 1) * 7 // world)
        monkeypatch.setattr(distributed, "share", lambda items, part=part: items[part])
        seen += distributed.each(Progress(quiet=True), range(7), "pass")
    assert seen == list(range(7)) and len(waits) == world

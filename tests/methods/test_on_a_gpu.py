"""Every method on a pretended GPU: devices are not mixed, runs go on across devices, precision is what was asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.conftest import write_tiny_folder
from tests.methods.test_contract import NAMES, run, settings_for
from tests.pretend_gpu import PretendGPU

import maskwright as mw
from maskwright import api
from maskwright.engine import distributed, loop, resuming
from maskwright.errors import MaskwrightError

USUAL = ("supervised", "stego")
"""A training on masks, one on features; the others are slow."""


def cases(names=NAMES, usual=USUAL):
    return [n if n in usual else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MASKWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny")


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("name", cases())
def test_trains_goes_on_elsewhere_predicts_and_suggests(name, workers, data, tmp_path, monkeypatch):
    """Begun on the GPU, stopped at the first checkpoint, finished on the CPU; the other way round for the other number
    of threads that read ahead."""
    real_fit, real_save = loop.fit, resuming.save_checkpoint
    stopped: list[int] = []

    def stop(path, state):
        real_save(path, state)
        if not stopped:
            stopped.append(state["step"])
            raise KeyboardInterrupt

    monkeypatch.setattr(
        "maskwright.engine.context.fit",
        lambda *given, **options: real_fit(*given, **(options | {"checkpoint_every": 2})),
    )
    monkeypatch.setattr(resuming, "save_checkpoint", stop)
    first, second = ("cuda", "cpu") if workers else ("cpu", "cuda")
    folder = tmp_path / "run"
    with PretendGPU() as gpu:
        try:
            run(name, data, folder, device=first, workers=workers, steps=4)
        except KeyboardInterrupt:
            run(name, data, folder, device=second, workers=workers, steps=4, resume=True)
        assert json.loads((folder / "run.json").read_text())["status"] == "finished"
        model = mw.load(folder, device="cuda")
        result = model.predict(next((data / "images").iterdir()))
        assert result.mask.shape == (48, 64)
        found = mw.suggest(folder, data, 2, labeled="train", device="cuda")
        assert len(found.names) == 2
        assert sum(gpu.products.values()) > 0, "something ran on the GPU"


@pytest.mark.parametrize("protocol", ["distance", pytest.param("semi", marks=pytest.mark.slow)])
def test_probe(protocol, data, tmp_path):
    with PretendGPU():
        scores = api.probe(
            "mobilenetv3_small_050", data, protocol, weights="random", device="cuda", out=tmp_path / "probe",
            steps=2, settings={"crop": 32, "batch": 2} if protocol == "semi" else None,
        )  # fmt: skip
    assert 0 <= scores.miou <= 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", cases(["supervised", "stego", "deep_spectral", "toco", "cac", "pass"], ["stego"]))
def test_backward_products_have_the_precision_asked_for(name, precision, data, tmp_path):
    with PretendGPU() as gpu:
        settings = settings_for(name) | {"precision": precision}
        run(name, data, tmp_path / "run", device="cuda", settings=settings, steps=2)
    types = {dtype for way, dtype in gpu.products if way == "backward"}
    assert types == {"float32"} if precision == "fp32" else "bfloat16" in types


def test_a_gpu_that_is_too_small_is_told_in_one_line(data, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("maskwright.recipes.training.training.NetworkTraining.losses", full)
    with pytest.raises(
        MaskwrightError, match=r"stage train does not fit into the GPU's memory \(now crops\.size=32.*batch=4"
    ):
        run("supervised", data, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


class Nccl:
    """Two processes of which this is the first. It takes what lies on a GPU alone.

    Attributes:
        factor: what a sum is of this process's numbers: 2 where the other has the same, 1 where it has none.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, answer in {"is_initialized": True, "get_world_size": 2, "get_rank": 0, "get_backend": "nccl"}.items():
            monkeypatch.setattr(dist, name, lambda *a, answer=answer, **k: answer)
        monkeypatch.setattr(dist, "all_reduce", self.all_reduce)
        self.sums, self.factor = 0, 2

    def all_reduce(self, x: torch.Tensor) -> None:
        if not x.is_cuda:
            raise RuntimeError("No backend type associated with device type cpu")
        self.sums += 1
        x.mul_(self.factor)


def test_sums_over_gpus_take_what_lies_on_the_cpu(monkeypatch):
    from maskwright.ops.clustering.kmeans import kmeans
    from maskwright.ops.clustering.pca import fit_pca

    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    alone = fit_pca(rows, 3, whiten=False)
    with PretendGPU():
        nccl = Nccl(monkeypatch)
        x = torch.arange(3.0)
        assert distributed.all_reduce_sum(x) is x and x.tolist() == [0, 2, 4] and not x.is_cuda
        there = torch.ones(2, device="cuda")
        assert distributed.all_reduce_sum(there) is there and there.tolist() == [2, 2]
        weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
        weight.grad = torch.ones(3, device="cuda")
        distributed.average_gradients([weight])
        assert weight.grad.tolist() == [1, 1, 1]
        nccl.factor = 1
        pca = fit_pca(rows, 3, whiten=False, all_reduce=distributed.reducer())
        assert torch.allclose(pca.mean, alone.mean, atol=1e-5)
        before = nccl.sums
        found = kmeans(rows, 3, restarts=1, seed=0, all_reduce=distributed.reducer(), offset=0, total=200)
        assert found.centers.shape == (3, 6) and nccl.sums > before


def test_keys_of_a_convolutional_network_are_told(data, tmp_path):
    with pytest.raises(MaskwrightError, match=r"kind=k, and tf_efficientnet_lite0 is convolutional.*kind=tokens"):
        run("stego", data, tmp_path / "run", settings=settings_for("stego") | {"kind": "k"})

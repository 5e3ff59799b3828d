"""The pretended GPU raises where CUDA would, and lets pass what CUDA takes."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.pretend_gpu import PretendGPU
from torch import nn

from maskwright.ops.transfer import to_device


@pytest.fixture
def gpu():
    with PretendGPU() as one:
        yield one
    assert not torch.cuda.is_available() and torch.ones(3).device.type == "cpu"


def test_places(gpu):
    x = torch.ones(3, device="cuda")
    assert x.device == torch.device("cuda", 0) and x.is_cuda and x[1:].is_cuda and x.detach().is_cuda
    assert torch.zeros_like(x).is_cuda and x.new_zeros(4).is_cuda and torch.cat([x, x]).is_cuda
    assert not torch.zeros_like(x, device="cpu").is_cuda and not x.cpu().is_cuda and not torch.ones(3).is_cuda
    assert F.one_hot(torch.tensor([1, 2]).cuda(), 4).is_cuda and copy.deepcopy(x).is_cuda
    beside = torch.zeros(3)
    beside.copy_(x)
    assert not beside.is_cuda
    assert to_device(torch.ones(2), "cuda").is_cuda and to_device(x, torch.device("cuda")) is x


def test_mixing_is_told_as_on_cuda(gpu):
    x = torch.ones(3, device="cuda")
    for mixed in (
        lambda: x + torch.ones(3),
        lambda: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda: torch.ones(3)[torch.tensor([0]).cuda()],
        lambda: F.cross_entropy(torch.rand(2, 3).cuda(), torch.tensor([0, 1])),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    for asked in (x.numpy, lambda: np.asarray(x)):
        with pytest.raises(TypeError, match="cpu"):
            asked()
    assert (x + torch.tensor(1.0)).is_cuda and x[torch.tensor([0, 1])].is_cuda and x.cpu().numpy().sum() == 3


def test_generators_have_a_side(gpu):
    near, far = torch.Generator(), torch.Generator(device="cuda")
    assert torch.rand(3, device="cuda", generator=far).is_cuda and not torch.rand(3, generator=near).is_cuda
    for generator, device in ((near, "cuda"), (far, "cpu")):
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=device, generator=generator)


def test_a_step_of_training_and_its_types(gpu):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1)).to("cuda")
    optimizer = torch.optim.AdamW(net.parameters())
    x, y = torch.rand(2, 3, 8, 8).cuda(), torch.randint(0, 5, (2, 8, 8)).cuda()
    with pytest.raises(RuntimeError, match="same device"):
        net(x.cpu())
    gpu.products.clear()
    for casts in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=casts):
            logits = net(x)
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()
    assert all(p.grad.is_cuda for p in net.parameters())
    assert gpu.products == {(w, t): 2 for w in ("forward", "backward") for t in ("float32", "bfloat16")}


def test_copies_and_waits_are_counted_with_their_gradients(gpu):
    a = torch.rand(3, requires_grad=True)
    (a.to("cuda") * 2).sum().backward()
    assert not a.grad.is_cuda
    x = torch.rand(3, device="cuda")
    x[x > 2], x.sum().item()
    kinds = {(kind, what) for kind, what, _ in gpu.events}
    assert ("copy", "cpu to cuda") in kinds and {w for k, w in kinds if k == "wait"} >= {"_local_scalar_dense"}


def test_operations_of_other_threads_are_seen(gpu):
    x = torch.ones(3, device="cuda")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: (x * 2).is_cuda).result()
        with pytest.raises(RuntimeError, match="same device"):
            pool.submit(lambda: x + torch.ones(3)).result()
    assert not any(t.name.startswith("ThreadPool") for t in threading.enumerate())

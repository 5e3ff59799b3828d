"""Batch-norm statistics taken anew from whole photographs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import maskwright as mw
from maskwright import api
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.training.norm_statistics import BATCH, batch_norms, evenly, retake_statistics, train_norms

CPU = torch.device("cpu")


class Memory:
    """Photographs in memory, with what is asked of a `Dataset` here."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def size(self, i):
        return self.images[i].shape[:2]

    def image(self, i):
        return self.images[i]


def photographs(n=11, size=(24, 32), seed=0):
    random = np.random.default_rng(seed)
    return Memory([(random.random((*size, 3)) * random.integers(50, 256)).astype(np.uint8) for _ in range(n)])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU())


def test_first_layer_has_the_moments_of_all_pixels():
    data, net, preprocess = photographs(), network(), Preprocess()
    net[0].running_mean.fill_(9)  # whatever training left
    assert retake_statistics(net, data, range(len(data)), preprocess, CPU) == 2
    pixels = torch.stack([preprocess.apply(i) for i in data.images]).movedim(1, 0).flatten(1)
    torch.testing.assert_close(net[0].running_mean, pixels.mean(1))
    torch.testing.assert_close(net[0].running_var, pixels.var(1), rtol=1e-3, atol=0)


def test_spread_between_batches_counts():
    dark, bright = np.full((8, 8, 3), 10, np.uint8), np.full((8, 8, 3), 200, np.uint8)
    data, net = Memory([dark, bright] * BATCH), nn.Sequential(nn.BatchNorm2d(3))  # one batch dark, one bright
    retake_statistics(net, data, range(len(data)), Preprocess(mean=(0, 0, 0), std=(1, 1, 1)), CPU)
    torch.testing.assert_close(net[0].running_var, torch.full((3,), (95 / 255) ** 2), rtol=1e-3, atol=0)


def test_leaves_everything_else():
    data, net = photographs(), network()
    before = copy.deepcopy(net.state_dict())
    retake_statistics(net, data, range(len(data)), Preprocess(), CPU, but=net[2])
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed <= {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    assert {"0.running_mean", "0.running_var"} <= changed
    assert not any(m.training for m in net.modules())
    assert [m.momentum for m in batch_norms(net)] == [0.1, 0.3]


@pytest.mark.parametrize("indices", [[], [3]])
def test_too_few_photographs_change_nothing(indices):
    net = network()
    before = copy.deepcopy(net.state_dict())
    assert retake_statistics(net, photographs(), indices, Preprocess(), CPU) == 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_photographs_of_several_sizes_share_batches():
    data = photographs(5)
    data.images += photographs(3, (40, 16), seed=1).images
    seen = []
    net = network()
    net.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape)))
    retake_statistics(net, data, range(len(data)), Preprocess(multiple_of=8), CPU)
    assert seen == [(8, 3, 24, 32)]


def test_same_twice():
    data, net = photographs(), network()
    retake_statistics(net, data, range(11), Preprocess(), CPU)
    first = copy.deepcopy(net.state_dict())
    retake_statistics(net, data, range(11), Preprocess(), CPU)
    for k, v in net.state_dict().items():
        if "running" in k:
            torch.testing.assert_close(v, first[k])


def test_evenly():
    assert evenly([4, 5, 6], 8) == [4, 5, 6]
    assert evenly(range(100), 4) == [0, 25, 50, 75]
    assert evenly(range(7), 0) == []


@pytest.mark.slow
def test_run_takes_them_unless_told_not_to(tiny_folder, tmp_path):
    """Norms of the saved model: with the option those of photographs, without those that training left."""
    states = {}
    for images in (0, 4):
        out = tmp_path / str(images)
        mw.train(
            tiny_folder, "supervised", out=out, backbone="mobilenetv3_small_050", weights="random", steps=2,
            report=False, settings={"crop": "32", "batch": "2", "norm_images": str(images)},
        )  # fmt: skip
        segmenter = mw.load(out / "model.safetensors").segmenter
        states[images] = {k: v for k, v in segmenter.state_dict().items() if torch.is_tensor(v)}
    changed = {k for k, v in states[4].items() if not torch.equal(v, states[0][k])}
    assert changed and all("running" in k or "num_batches" in k for k in changed)
    model = mw.load(tmp_path / "4" / "model.safetensors")
    assert api.other_network(model, tmp_path / "4") is None  # other statistics are not another network


def test_train_norms_leaves_dropout_off():
    """Batch norms alone learn statistics, but for those of a part; a second pass says the same."""
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Dropout(0.5), nn.BatchNorm2d(4))
    x = torch.randn(4, 3, 5, 5)
    train_norms(net, net[0])
    before = [m.running_mean.clone() for m in (net[0][1], net[2])]
    a, b = net(x), net(x)
    assert torch.equal(a, b) and net.training and not net[1].training
    assert torch.equal(net[0][1].running_mean, before[0]) and not torch.equal(net[2].running_mean, before[1])

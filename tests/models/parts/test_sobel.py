"""Edges beside colours, and class vectors: values by hand, and parts that survive their spec."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from maskwright.errors import MaskwrightError
from maskwright.models.networks.plain import BLOCKS, PlainEncoder
from maskwright.models.networks.vit_heads import LastMap
from maskwright.models.parts.class_vectors import ClassVectors, Scores
from maskwright.models.parts.sobel import SobelEncoder, sobel
from maskwright.models.parts.table import build_part

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SMALL = ((4, 1, 1, 0), (6, 1, 1, 1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def again(part):
    built = build_part(json.loads(json.dumps(part.spec())))
    built.load_state_dict(part.state_dict())
    return built.eval()


def test_sobel_pixel_by_pixel():
    x = torch.rand(2, 1, 4, 5, generator=generator(), dtype=torch.float64)
    padded = np.pad(x[:, 0].numpy(), ((0, 0), (1, 1), (1, 1)))
    for b in range(2):
        for i in range(4):
            for j in range(5):
                w = padded[b, i : i + 3, j : j + 3]
                dx = w[0, 0] + 2 * w[1, 0] + w[2, 0] - w[0, 2] - 2 * w[1, 2] - w[2, 2]
                dy = w[0, 0] + 2 * w[0, 1] + w[0, 2] - w[2, 0] - 2 * w[2, 1] - w[2, 2]
                assert sobel(x)[b, :, i, j].tolist() == pytest.approx([dx, dy])


@pytest.mark.parametrize("mix", [True, False])
def test_encoder_sees_edges_of_the_photograph_itself(mix):
    inner = PlainEncoder(SMALL, channels=3 if mix else 5)
    encoder = SobelEncoder(inner, MEAN, STD, mix=mix).eval()
    photograph = torch.rand(1, 3, 8, 8, generator=generator())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    x = (photograph - mean) / std
    grey = (photograph * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    seen = []
    inner.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    maps = encoder(x)
    if mix:
        assert torch.equal(seen[0], x), "begins as the encoder does without edges"
    else:
        torch.testing.assert_close(seen[0], torch.cat((x, sobel(grey)), 1))
    twin = again(encoder)
    assert all(torch.equal(a, b) for a, b in zip(maps, twin(x)))
    assert twin.multiple_of == 2


def test_the_papers_trunk_has_its_parameters():
    """4,503,744 with edges, 4,503,168 with infrared, and 4,502,592 with colours alone."""
    for channels, expected in ((5, 4_503_744), (4, 4_503_168), (3, 4_502_592)):
        encoder = PlainEncoder(BLOCKS["iic10a"], channels)
        assert sum(p.numel() for p in encoder.parameters()) == expected
    assert encoder(torch.zeros(1, 3, 16, 16))[-1].shape == (1, 512, 8, 8)


@pytest.mark.parametrize("unit", [False, True])
def test_class_vectors(unit):
    torch.manual_seed(0)
    head = ClassVectors(LastMap(4, -2), 4, 6, 3, 5, unit).eval()
    features = [torch.rand(2, 4, 4, 4, generator=generator(1)), torch.rand(2, 6, 2, 2, generator=generator(2))]
    local, vectors = head.both(features)
    assert local.shape == (2, 5, 4, 4) and vectors.shape == (2, 3, 5)
    if unit:
        assert local.norm(dim=1).allclose(torch.ones(2, 4, 4)) and vectors.norm(dim=2).allclose(torch.ones(2, 3))
    v = head(features)
    assert v[1, 2, 3, 0].item() == pytest.approx((local[1, :, 3, 0] @ vectors[1, 2]).item(), abs=1e-6)
    assert torch.equal(again(head)(features), v)
    scores = Scores(3, 0.5)
    assert torch.equal(again(scores)(v), 2 * v)


def test_specs_that_say_too_little_are_refused():
    whole = ClassVectors(LastMap(4), 4, 6, 3, 5).spec()
    for spec in ({**whole, "dim": "5"}, {k: v for k, v in whole.items() if k != "deep"}, {**whole, "classes": -1}):
        with pytest.raises(MaskwrightError, match="incomplete"):
            build_part(spec)
    edges = SobelEncoder(PlainEncoder(SMALL), MEAN, STD).spec()
    for spec in ({**edges, "mean": [0.5]}, {**edges, "mix": 1}, {**edges, "std": None}):
        with pytest.raises(MaskwrightError, match="incomplete"):
            build_part(spec)
    with pytest.raises(MaskwrightError):
        build_part({"kind": "Scores", "classes": 3, "temperature": 0.0})

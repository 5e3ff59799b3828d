"""The parts of a segmenter against closed forms and scikit-learn, and their specs both ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn

from maskwright.errors import MaskwrightError
from maskwright.models.parts.heads import (
    ConvDecoder,
    CosineClassifier,
    Identity,
    L2Norm,
    LinearClassifier,
    Projection,
    Sequential,
    Standardize,
    StegoHead,
)
from maskwright.models.parts.table import build_part

PARTS = {
    "Identity": lambda: Identity(),
    "L2Norm": lambda: L2Norm(),
    "Standardize": lambda: Standardize(torch.randn(12), torch.rand(12) + 0.1),
    "Projection": lambda: Projection(torch.randn(12), torch.randn(5, 12), torch.rand(5), normalize=True),
    "CosineClassifier": lambda: CosineClassifier(torch.randn(7, 12), 0.5),
    "LinearClassifier": lambda: LinearClassifier(12, 4),
    "StegoHead": lambda: StegoHead(12, 6),
    "ConvDecoder": lambda: ConvDecoder(12, 16, 8, depth=2, upsample=1),
    "Sequential": lambda: Sequential(L2Norm(), Projection(torch.zeros(12), torch.randn(3, 12)), LinearClassifier(3, 2)),
}


def rows(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).detach().numpy()


@pytest.mark.parametrize("name", PARTS)
def test_spec_both_ways(name: str):
    torch.manual_seed(0)
    part = PARTS[name]().eval()
    again = build_part(part.spec()).eval()
    again.load_state_dict(part.state_dict())
    x = torch.randn(2, 12, 4, 5)
    assert torch.equal(part(x), again(x)) and again.spec() == part.spec()
    with pytest.raises(MaskwrightError):
        build_part({**part.spec(), "path": "/etc/passwd"})


def test_standardize_is_scikit_learns():
    x = torch.randn(2, 6, 4, 5) * 3 + 1
    x[:, 2] = 4.0
    scaler = StandardScaler().fit(rows(x))
    part = Standardize(torch.from_numpy(scaler.mean_), torch.from_numpy(np.sqrt(scaler.var_)))
    np.testing.assert_allclose(rows(part(x)), scaler.transform(rows(x)), atol=1e-5)


def test_projection_is_scikit_learns_whitened_pca():
    x = torch.randn(2, 6, 4, 5) @ torch.diag(torch.arange(1.0, 6)) + 1
    pca = PCA(3, whiten=True).fit(rows(x))
    scale = torch.from_numpy(1 / np.sqrt(pca.explained_variance_))
    part = Projection(torch.from_numpy(pca.mean_), torch.from_numpy(pca.components_), scale)
    np.testing.assert_allclose(rows(part(x)), pca.transform(rows(x)), atol=1e-4)


def test_cosine_classifier_is_cosines_over_temperature():
    centers = torch.randn(4, 6) * 5
    x = torch.randn(1, 6, 2, 3)
    logits = CosineClassifier(centers, 0.5)(x)
    expected = 2 * nn.functional.cosine_similarity(x[:, None], centers[None, :, :, None, None], dim=2)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(CosineClassifier(centers * 7, 0.5)(x * 3), logits)
    with pytest.raises(ValueError, match="temperature"):
        CosineClassifier(centers, 0)


def test_stego_head_adds_two_branches_and_drops_only_in_training():
    head = StegoHead(8)
    x = torch.randn(2, 8, 3, 3)
    assert head.eval()(x).shape == (2, 70, 3, 3)
    torch.testing.assert_close(head(x), head.linear(x) + head.nonlinear(x))
    assert torch.equal(head(x), head(x))
    assert not torch.equal(head.train()(x), head(x))


def test_conv_decoder_upsamples():
    assert ConvDecoder(4, 6, 3, depth=3, upsample=2)(torch.randn(1, 4, 5, 7)).shape == (1, 3, 20, 28)
    assert ConvDecoder(4, 6, 3, depth=0)(torch.randn(1, 4, 5, 7)).shape == (1, 3, 5, 7)
    with pytest.raises(ValueError):
        ConvDecoder(4, depth=1, upsample=2)


def test_sizes_that_do_not_agree():
    with pytest.raises(ValueError):
        Standardize(torch.zeros(3), torch.ones(4))
    with pytest.raises(ValueError):
        Projection(torch.zeros(3), torch.zeros(2, 4))
    with pytest.raises(ValueError):
        Projection(torch.zeros(3), torch.zeros(2, 3), torch.ones(3))


@pytest.mark.parametrize(
    "spec",
    [
        None,
        "LinearClassifier",
        {},
        {"kind": 3},
        {"kind": "os.system"},
        {"kind": "LinearClassifier", "width": 3},
        {"kind": "LinearClassifier", "width": 10**9, "classes": 10**9},
        {"kind": "LinearClassifier", "width": -1, "classes": 2},
        {"kind": "LinearClassifier", "width": "a", "classes": 2},
        {"kind": "LinearClassifier", "width": float("nan"), "classes": 2},
        {"kind": "ConvDecoder", "width": 1, "hidden": 1, "out": 1, "depth": 60000, "upsample": 0},
        {"kind": "Sequential", "parts": [{"kind": "Identity"}] * 100},
        {"kind": "Sequential", "parts": 3},
        {"kind": "CosineClassifier", "width": 2, "classes": 2, "temperature": 0},
    ],
)
def test_specs_that_are_refused(spec):
    with pytest.raises(MaskwrightError) as error:
        build_part(spec)
    assert "\n" not in str(error.value)


def test_unknown_part_offers_the_nearest():
    with pytest.raises(MaskwrightError, match="LinearClassifier"):
        build_part({"kind": "LinearClasifier"})

"""Clusters joined to classes: sums of probabilities, finite logits, and what a file may not hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskwright.errors import MaskwrightError
from maskwright.models.bundle import load_bundle, save_bundle
from maskwright.models.parts.heads import CosineClassifier
from maskwright.models.parts.named_clusters import NamedClusters
from maskwright.models.parts.table import build_part, check_loadable

CLASS_OF = [1, -1, 0, 1, 3]


def part() -> NamedClusters:
    torch.manual_seed(0)
    return NamedClusters(CosineClassifier(torch.randn(5, 4), 0.1), CLASS_OF, 4)


def test_joined_probabilities_are_sums_by_class():
    probs = torch.rand(5, 3, 4).softmax(0)
    joined, p = part().join(probs).numpy(), probs.numpy()
    expected = np.stack([p[2], p[0] + p[3], 0 * p[0], p[4], p[1]])  # class 2 has no cluster, the last is void
    np.testing.assert_array_equal(joined, expected)


def test_the_softmax_of_its_logits_is_the_share_among_clusters_that_have_a_class():
    named, x = part(), torch.randn(2, 4, 3, 5)
    p = named.clusters(x).softmax(1)
    sums = torch.stack([p[:, 2], p[:, 0] + p[:, 3], 0 * p[:, 0], p[:, 4]], 1)
    logits = named(x)
    assert logits.shape == (2, 4, 3, 5) and torch.isfinite(logits).all()
    torch.testing.assert_close(logits.softmax(1), sums / sums.sum(1, keepdim=True))


def test_a_void_cluster_that_wins_by_far_leaves_finite_logits():
    named = NamedClusters(CosineClassifier(torch.eye(3), 1e-3), [-1, 0, 1], 2)
    logits = named(torch.tensor([1.0, 0.3, 0.1])[None, :, None, None])
    assert torch.isfinite(logits).all() and int(logits.argmax(1)) == 0


def test_it_is_built_again_from_its_spec_and_tensors():
    named, x = part(), torch.randn(1, 4, 2, 2)
    check_loadable(named)
    twin = build_part(named.spec())
    twin.load_state_dict(named.state_dict())
    twin.check_tensors()
    assert torch.equal(twin(x), named(x)) and twin.class_of.tolist() == CLASS_OF


@pytest.mark.parametrize("class_of", [[0, 1, 2, 3, 4], [0, -2, 1, 1, 1], [0, 1]])
def test_classes_that_do_not_exist_are_refused(class_of):
    with pytest.raises(ValueError):
        NamedClusters(CosineClassifier(torch.randn(5, 4)), class_of, 4)


@pytest.mark.parametrize(
    "change", [{"count": 0}, {"count": True}, {"classes": 10**9}, {"extra": 1}, {"count": 6}, {"clusters": "Identity"}]
)
def test_specs_that_no_file_of_ours_holds_are_refused(change):
    with pytest.raises(MaskwrightError):
        build_part(part().spec() | change)


def test_a_file_whose_clusters_are_of_no_class_is_refused(tmp_path):
    from tests.models.test_bundle import segmenter

    from maskwright.predict.naming import renamed

    made = renamed(segmenter(), {0: "a", 1: None, 2: "a"})
    made.classifier.class_of[0] = 7
    save_bundle(tmp_path / "model.safetensors", made)
    with pytest.raises(MaskwrightError, match="a cluster of class 7"):
        load_bundle(tmp_path / "model.safetensors")

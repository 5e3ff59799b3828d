"""Looking Beyond Single Images (Zhang et al., NeurIPS 2021): assignments, votes, contrast, quality of labels, as the
formulas of its reconstruction give them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import Case, read_cases
from tests.golden.formulas import as64, draw, generator

from maskwright.methods.unsupervised.looking_beyond.losses import assign_margin, cross_image_contrast
from maskwright.ops.label_quality import label_counts, label_quality
from maskwright.ops.refinement.superpixels import superpixel_vote

# --------------------------------------------------------------------- by slow formulas


def contrast_by_loops(z: np.ndarray, labels, images, tau: float, across: bool) -> float:
    """Anchor by anchor, positive by positive."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    each = []
    for p in range(len(z)):
        negatives = sum(math.exp(z[p] @ z[n] / tau) for n in range(len(z)) if labels[n] != labels[p])
        losses = []
        for q in range(len(z)):
            if q != p and labels[q] == labels[p] and not (across and images[q] == images[p]):
                e = math.exp(z[p] @ z[q] / tau)
                losses.append(-math.log(e / (e + negatives)))
        if losses:
            each.append(np.mean(losses))
    return float(np.mean(each)) if each else 0.0


@pytest.mark.parametrize("across", [False, True])
def test_contrast(across):
    z, labels = draw(30, 6, seed=1), torch.randint(0, 6, (30,), generator=generator(2))
    images = torch.randint(0, 3, (30,), generator=generator(3))
    ours = cross_image_contrast(z, labels, images, 0.2, across)
    wanted = contrast_by_loops(as64(z), labels.tolist(), images.tolist(), 0.2, across)
    assert float(ours) == pytest.approx(wanted, rel=1e-5)


def test_quality_by_loops():
    a, b = (torch.randint(0, n, (60,), generator=generator(n)).numpy() for n in (4, 3))
    found = label_quality(label_counts(a, b))
    pairs = [(a[i] == a[j], b[i] == b[j]) for i in range(60) for j in range(i)]
    both, of_label, of_class = (sum(p) for p in zip(*[(x and y, x, y) for x, y in pairs]))
    assert found["pair_precision"] == pytest.approx(both / of_label)
    assert found["pair_recall"] == pytest.approx(both / of_class)
    assert found["purity"] == pytest.approx(sum(np.bincount(b[a == k]).max() for k in range(4)) / 60)


# --------------------------------------------------------------------- the stored cases


@pytest.fixture(scope="module")
def cases(golden_root) -> dict[str, Case]:
    return read_cases(golden_root, "lookingbeyond")


def of(cases: dict[str, Case], start: str, count: int) -> list[Case]:
    found = [case for name, case in cases.items() if name.startswith(start)]
    assert len(found) == count
    return found


@pytest.mark.data
def test_assignments_of_the_cases(cases):
    case = cases["assign_margin"]
    labels, margin = assign_margin(case.input["features"], case.input["centroids"])
    assert torch.equal(labels, case.output["labels"])
    torch.testing.assert_close(margin, case.output["margin"], rtol=1e-5, atol=1e-9)


@pytest.mark.data
def test_votes_of_the_cases(cases):
    for case in of(cases, "vote", 5):
        ids, superpixels = case.input["labels"].numpy(), case.input["superpixels"].numpy()
        weight = case.input["weight"].numpy() if "weight" in case.input else None
        voted, _ = superpixel_vote(ids, superpixels, weight, ignore=case.settings["ignore"])
        assert np.array_equal(voted, case.output["voted"].numpy()), case.name
        again, _ = superpixel_vote(voted, superpixels, ignore=case.settings["ignore"])
        assert np.array_equal(again, voted), "a vote on what was voted for changes nothing"


@pytest.mark.data
def test_contrast_of_the_cases(cases):
    for case in of(cases, "contrast", 7):
        z, i, s = case.input["z"].clone().requires_grad_(), case.input, case.settings
        loss = cross_image_contrast(z, i["labels"], i["image"], s["tau"], s["cross_image_only"])
        assert loss.item() == pytest.approx(case.output["loss"].item(), rel=1e-5, abs=1e-12), case.name
        (loss + 0 * z.sum()).backward()
        torch.testing.assert_close(z.grad, case.grad["z"], rtol=1e-5, atol=1e-8, msg=case.name)


@pytest.mark.data
def test_quality_of_the_cases(cases):
    for case in of(cases, "quality", 4):
        found = label_quality(label_counts(case.input["auxiliary"].numpy(), case.input["truth"].numpy()))
        for name, value in found.items():
            assert value == pytest.approx(case.output[name].item(), abs=1e-9), (case.name, name)


def test_pairs_alone_are_infonce():
    """Label = instance, one positive each: cross entropy over the positive and all pixels of other instances."""
    one, two = (F.normalize(draw(5, 4, seed=s), dim=1) for s in (1, 2))
    z, labels = torch.cat((one, two)), torch.arange(5).repeat(2)
    s = z @ z.T / 0.1
    total = 0.0
    for p in range(10):
        q = (p + 5) % 10
        others = [n for n in range(10) if n not in (p, q)]
        total += float(F.cross_entropy(s[p, [q, *others]][None], torch.tensor([0])))
    assert float(cross_image_contrast(z, labels, torch.arange(10), 0.1)) == pytest.approx(total / 10, rel=1e-5)

"""PriMaPs-EM: what must hold of masks, of the momentum prototypes, and of the start."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.engine.config import configure
from maskwright.engine.context import Context
from maskwright.engine.progress import Progress
from maskwright.methods.unsupervised import primaps as P

SMALL = {"short_side": 64, "restarts": 2, "batch": 3, "dim": 8}


def grid(seed: int, d: int = 6, h: int = 7, w: int = 9) -> torch.Tensor:
    return torch.randn(d, h, w, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 0.99), cover=st.floats(0, 1))
def test_masks_are_numbered_without_gaps_and_cover_what_is_asked(seed, threshold, cover):
    masks = P.principal_masks(grid(seed), threshold, cover)
    ids = masks.unique()
    assert torch.equal(ids[ids > 0], torch.arange(1, int(masks.max()) + 1))
    assert float((masks > 0).float().mean()) >= cover - 1e-6
    before_last = float(((masks > 0) & (masks < masks.max())).float().mean())
    assert masks.max() == 0 or before_last <= cover + 1e-6, "one mask more than needed"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
def test_masks_do_not_depend_on_the_features_axes_length_or_direction(seed, scale):
    f = grid(seed).double()
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).double())[0]
    expected = P.principal_masks(f, 0.5, 0.95)
    assert torch.equal(P.principal_masks(scale * torch.einsum("ed,dhw->ehw", turn, f), 0.5, 0.95), expected)
    assert torch.equal(P.principal_masks(-f, 0.5, 0.95), expected), "a component has no sign"
    assert torch.equal(P.principal_masks(f.flip(-1), 0.5, 0.95), expected.flip(-1))


def test_cells_alike_are_one_mask_and_none_is_left_waiting():
    assert bool((P.principal_masks(torch.ones(4, 3, 5), 0.6, 0.95) == 1).all())
    assert int(P.principal_masks(torch.zeros(4, 3, 5), 0.6, 1.0).max()) == 15, "no direction: each cell for itself"
    many = P.principal_masks(grid(0, 40, 30, 30), 1.0, 1.0)
    assert int(many.max()) == P.MOST, "as many as a file holds"


def test_cells_without_a_mask_ask_for_nothing_and_a_common_class_weighs_less():
    logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]], requires_grad=True)
    loss = P.focal_loss(logits, torch.tensor([0, -1, -1, 1]), 2.0)
    loss.backward()
    assert bool((logits.grad[1:3] == 0).all())
    assert logits.grad[3].norm() > logits.grad[0].norm()
    plain = P.focal_loss(logits, torch.tensor([0, 0, 0, 1]), 0.0)
    torch.testing.assert_close(plain, F.cross_entropy(logits, torch.tensor([0, 0, 0, 1])))


def training(sizes: list[tuple[int, int]], **options) -> P.Em:
    """The stage on features (5, h, w) of photographs of these sizes, three prototypes."""
    config = configure(P.PrimapsConfig, {"batch": 2, **options})
    store = [grid(k, 5, h, w) for k, (h, w) in enumerate(sizes)]
    masks = [P.principal_masks(f, 0.3, 0.8).to(torch.uint8) for f in store]
    context = Context(
        data=None, table=None, seed=0, steps=None, run=None, cache=None, backbone=None,
        fabric=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    centers = F.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(9)), dim=1)
    return P.Em(context, config, store, centers, masks)


def test_photographs_of_several_sizes_share_a_batch_and_masks_stay_apart():
    t = training([(2, 3), (4, 5), (3, 3)])
    f, masks = t.batch([2, 0], torch.Generator())
    again = t.batch(np.array([2, 0]), torch.Generator().manual_seed(5))
    assert torch.equal(f, again[0]) and torch.equal(masks, again[1]), "a function of the indices"
    assert f.shape == (15, 5) and torch.equal(f[:9], t.maps[2].flatten(1).T)
    first, second = (t.masks[k].flatten().long() for k in (2, 0))
    assert torch.equal(masks[:9], first)
    assert torch.equal(masks[9:], torch.where(second > 0, second + first.max(), 0))


def test_scores_are_those_of_the_saved_classifier():
    theta, f = P.CosineClassifier(torch.randn(3, 5), 0.1), F.normalize(torch.randn(7, 5), dim=1)
    torch.testing.assert_close(P.scores(theta, f), theta(f.T[None, :, :, None])[0, :, :, 0].T)


def test_theta_m_follows_every_so_many_steps_and_gets_no_gradient():
    t = training([(3, 4), (3, 4)], every=3, momentum=0.9, lr=0.1)
    start = t.theta_m.module.centers.clone()
    optimizer = t.optimizers["theta_r"]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(t.theta_r.centers)}
    for step in range(6):
        terms = t.losses(t.on_device(t.batch([0, 1], torch.Generator())), step)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        before = t.theta_m.module.centers.clone()
        t.after_step(step)
        moved = before.lerp(t.theta_r.centers.detach(), 0.1) if step in (2, 5) else before
        torch.testing.assert_close(t.theta_m.module.centers, moved)
    assert t.theta_m.module.centers.grad is None and not torch.equal(t.theta_m.module.centers, start)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MASKWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
    data = write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny")

    def train(method: str, **options) -> tuple[Path, mw.Model]:
        out = tmp_path_factory.mktemp("runs") / method
        given = {"classes": 3, "backbone": "tf_efficientnet_lite0", "weights": "random", "steps": 20, "report": False}
        options["settings"] = {k: v for k, v in SMALL.items() if k != "batch" or method == "primaps"} | options.pop(
            "settings", {}
        )
        return out, mw.train(data, method, out=out, progress=Progress(quiet=True), **(given | options))

    yield train
    patch.undo()


@pytest.mark.parametrize("crop", [0.5, 1])
def test_it_starts_where_kmeans_ends(run, crop):
    same = {"whiten": False, "crop": crop}
    start = load_file(run("primaps", settings=same)[0] / "start" / P.START)
    clusters = load_file(run("kmeans", settings=same)[0] / "cluster" / "clusters.safetensors")
    assert start.keys() == clusters.keys() and all(torch.equal(start[k], clusters[k]) for k in start)


def test_prototypes_that_do_not_move_are_kmeans(run):
    still, model = run("primaps", settings={"lr": 0.0, "whiten": False})
    _, plain = run("kmeans", settings={"whiten": False})
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.segmenter.state_dict().values(), plain.segmenter.state_dict().values(), strict=True)
    )
    record = json.loads((still / "run.json").read_text())
    assert [s["name"] for s in record["stages"]] == ["start", "masks", "em"]
    assert not any(any(kinds.values()) for kinds in record["labels_read"].values()), "no label was read"

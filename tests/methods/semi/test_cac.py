"""CAC: geometry of overlaps, directional contrast, the bank."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods.semi.checks import batch_of, check_is_supervised, drop_in_training, sharpen

from maskwright.data.training.crops import overlapping_crops
from maskwright.data.training.overlap import inside_cells, overlap_cells
from maskwright.data.training.sources import MaskLabels
from maskwright.data.training.views import View
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.semi import cac


def training(context, **options):
    start = {} if options.get("weight") == 0 else {"start": 0.0}
    config = configure(cac.CACConfig, {"crop": 32, "batch": 2, "precision": "fp32", **start, **options})
    return cac.CACTraining(context, config, MaskLabels(context.data, context.classes), 4)


def pairs_of(t, seed: int = 0):
    """The pairs of the next batch."""
    return batch_of(t, seed)["u"]


# ---------------------------------------------------------------------- geometry


def coordinates(h: int, w: int) -> torch.Tensor:
    """(2, H, W): x and y of each pixel's centre."""
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    return torch.stack((x, y)).double()


@settings(max_examples=40)
@given(h=st.integers(20, 120), w=st.integers(20, 120), seed=st.integers(0, 10**6))
def test_coordinate_images_agree_on_the_overlap(h, w, seed):
    """The picture's own coordinates, seen through crop and flip, averaged over cells, are equal cell by cell."""
    g = torch.Generator().manual_seed(seed)
    a, b = overlapping_crops((h, w), (32, 32), scale=(1.0, 1.0), generator=g)
    i, j = overlap_cells(a, b, 8)
    seen = [F.avg_pool2d(v.render(coordinates(h, w), mode="nearest")[None], 8)[0].flatten(1) for v in (a, b)]
    torch.testing.assert_close(seen[0][:, i], seen[1][:, j], rtol=0, atol=1e-9)
    # all that are shared, and each once
    flip = [F.avg_pool2d(v.valid()[None, None].double(), 8).flatten() for v in (a, b)]
    points = [{tuple(p) for p in s[:, f == 1].T.tolist()} for s, f in zip(seen, flip)]
    assert len(i) == len(set(i.tolist())) == len(set(j.tolist())) == len(points[0] & points[1])


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_scaled_pairs_meet_at_the_same_points(seed):
    g = torch.Generator().manual_seed(seed)
    a, b = overlapping_crops((90, 133), (48, 48), base=100, generator=g)
    i, j = overlap_cells(a, b, 8)
    for k, m in zip(i.tolist(), j.tolist()):
        in_a, in_b = (torch.tensor([n % 6 * 8 + 4.0, n // 6 * 8 + 4.0, 1.0]).double() for n in (k, m))
        assert float((a.inverse @ in_a - b.inverse @ in_b).abs().max()) < 1e-9


def test_padding_is_no_part_of_an_overlap():
    view = View.identity((20, 40)).crop(0, 0, 32, 32)  # 12 rows reach beyond the picture
    i, j = overlap_cells(view, view.hflip(), 8)
    assert sorted(i.tolist()) == list(range(8)) == sorted(j.tolist())
    assert j.tolist() == [3, 2, 1, 0, 7, 6, 5, 4]


def test_cells_off_the_lattice_are_refused():
    base = View.identity((64, 64))
    with pytest.raises(ValueError, match="multiple of 8"):
        overlap_cells(base.crop(0, 0, 32, 32), base.crop(4, 0, 32, 32), 8)
    with pytest.raises(ValueError, match="multiples of 8"):
        inside_cells(base.crop(0, 0, 30, 32), 8)


def test_batches_number_the_cells_of_all_pairs(semi_context):
    t = training(semi_context, strong="none", scale_min=1.0, scale_max=1.0, pair_scale_min=1.0, long_side=64)
    batch = pairs_of(t)
    assert batch.u1.shape == batch.u2.shape == (2, 3, 32, 32) and len(batch.views) == 2
    seen = [F.avg_pool2d(u.double(), 8).permute(1, 0, 2, 3).flatten(1) for u in (batch.u1, batch.u2)]
    torch.testing.assert_close(seen[0][:, batch.cells1], seen[1][:, batch.cells2], rtol=1e-5, atol=1e-5)
    assert len(batch.cells1) > 0


def test_photometric_changes_of_a_pair_are_independent(semi_context):
    t = training(semi_context, pair_iou=1.0)
    views = (View.identity((48, 64)).crop(0, 0, 32, 32),) * 2
    t.setup.streams["u"].pair = lambda i, random: views
    batch = pairs_of(t)
    assert float((batch.u1 - batch.u2).abs().max()) > 0.05


# ---------------------------------------------------------------------- the loss


def cells(n: int, seed: int, classes: int = 3) -> cac.Cells:
    g = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(n, 8, generator=g), dim=1)
    return cac.Cells(z, torch.rand(n, generator=g), torch.randint(classes, (n,), generator=g))


def test_directional_contrast_against_a_loop():
    one, two, tau = cells(30, 0), cells(30, 1), 0.1
    bank, ids = cells(17, 2).z, cells(17, 2).k
    total, count = 0.0, 0
    for i in range(30):
        if not (two.p[i] > 0.4 and one.p[i] < two.p[i]):
            continue
        count += 1
        positive = math.exp(float(one.z[i] @ two.z[i]) / tau)
        others = sum(math.exp(float(one.z[i] @ bank[j]) / tau) for j in range(17) if ids[j] != one.k[i])
        total -= math.log(positive / (positive + others))
    loss, mask = cac.directional_contrast(one, two, bank, ids, tau, 0.4)
    assert int(mask.sum()) == count > 3
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_gradient_reaches_the_moving_side_alone():
    one, two, bank = cells(20, 0), cells(20, 1), cells(9, 2)
    tensors = [c.z.clone().requires_grad_() for c in (one, two, bank)]
    loss, mask = cac.directional_contrast(
        one._replace(z=tensors[0]), two._replace(z=tensors[1]), tensors[2], bank.k, 0.1, 0.2
    )
    loss.backward()
    assert tensors[1].grad is None and tensors[2].grad is None
    moved = tensors[0].grad.abs().sum(1)
    assert bool((moved[~mask] == 0).all()) and float(moved[mask].min()) > 0


def test_negatives_of_the_own_class_alone_give_nothing():
    one, two = cells(20, 0), cells(20, 1)
    one = one._replace(k=torch.full((20,), 2))
    loss, mask = cac.directional_contrast(one, two, cells(9, 2).z, torch.full((9,), 2), 0.1, 0.0)
    assert bool(mask.any()) and float(loss) == 0


def test_a_confidence_of_the_threshold_is_not_followed():
    one, two = cells(4, 0), cells(4, 1)
    one = one._replace(p=torch.full((4,), 0.5))
    two = two._replace(p=torch.tensor([0.75, 0.75, 0.5, 0.7501]))
    _, mask = cac.directional_contrast(one, two, one.z, one.k, 0.1, 0.75)
    assert mask.tolist() == [False, False, False, True]


# ---------------------------------------------------------------------- the step


def test_cells_are_means_of_the_embedding_through_projector_and_classifier(semi_context):
    t = training(semi_context, projection=16)
    u = pairs_of(t).u1
    sharpen(t.setup.network, u)
    found = t.embed(u)
    for m in t.setup.network.modules():
        if isinstance(m, torch.nn.modules.dropout._DropoutNd):
            m.eval()
    embedding = t.setup.network.decode(t.setup.network.features(u))
    assert embedding.shape[-2:] == (8, 8)
    f = F.avg_pool2d(embedding, 2)
    z, q = t.projector(f), t.setup.network.classifier.conv(f).softmax(1).detach()
    assert found.z.shape == (32, 16) and found.z.requires_grad and not found.p.requires_grad
    for b in range(2):
        for y in range(4):
            for x in range(4):
                row = 16 * b + 4 * y + x
                torch.testing.assert_close(found.z[row], z[b, :, y, x] / z[b, :, y, x].norm())
                assert float(found.p[row]) == pytest.approx(float(q[b, :, y, x].max()), rel=1e-5)
                assert int(found.k[row]) == int(q[b, :, y, x].argmax())
    assert len(found.k.unique()) > 1


def test_both_directions_against_a_loop(semi_context):
    """The second step of two, so that the bank holds earlier cells too."""
    tau, threshold = 0.3, 0.5
    t = training(semi_context, batch_unlabeled=4, temperature=tau, threshold=threshold, negatives=20, pair_iou=0.3)
    step = batch_of(t)
    sharpen(t.setup.network, step["u"].u1)
    t.losses(step, 0)
    step = batch_of(t, 1)
    terms, batch = t.losses(step, 1), step["u"]
    bank, ids = t.bank.get(), t.bank.get_ids()
    embedded = [t.embed(u) for u in (batch.u1, batch.u2)]
    first, second = (cells._replace(z=cells.z.detach()) for cells in embedded)
    sides = [(first, batch.cells1), (second, batch.cells2)]
    total, moving = 0.0, 0
    for (moves, i), (stays, j) in (sides, sides[::-1]):
        losses = []
        for m, s in zip(i.tolist(), j.tolist()):
            if not (stays.p[s] > threshold and moves.p[m] < stays.p[s]):
                continue
            positive = math.exp(float(moves.z[m] @ stays.z[s]) / tau)
            others = (bank[ids != moves.k[m]] @ moves.z[m] / tau).exp().sum()
            losses.append(-math.log(positive / (positive + float(others))))
        assert len(losses) > 3
        total, moving = total + sum(losses) / len(losses), moving + len(losses)
    assert len(bank) == 80 and 0 < moving < len(batch.cells1)
    assert float(terms["u"].detach()) == pytest.approx(total, rel=1e-4)
    assert float(terms["moving"]) == pytest.approx(moving / len(batch.cells1))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_two_identical_crops_give_exactly_zero(semi_context, mode):
    t = training(semi_context, threshold=0.0)
    step = batch_of(t)
    batch = step["u"]
    same = torch.arange(2 * t.cells**2)
    inside = torch.ones_like(batch.inside1)
    twins = batch._replace(u2=batch.u1, cells1=same, cells2=same, inside1=inside, inside2=inside)
    t.setup.network.train(mode == "train")
    for m in t.setup.network.modules():
        if isinstance(m, torch.nn.modules.dropout._DropoutNd):
            m.eval()
    terms = t.losses(step | {"u": twins}, 0)
    assert float(terms["u"].detach()) == 0 and float(terms["moving"]) == 0
    assert float(t.losses(step, 0)["u"].detach()) > 0


def test_no_dropout_falls_on_embeddings_and_confidences(semi_context):
    t = training(semi_context)
    x = pairs_of(t).u1
    for part in (t.setup.network.decoder, t.setup.network.classifier):
        drop_in_training(part)
    t.setup.network.train()
    torch.manual_seed(0)
    one = t.embed(x)
    torch.manual_seed(1)
    two = t.embed(x)
    assert all(torch.equal(p, q) for p, q in zip(one, two))
    assert all(m.training for m in t.setup.network.modules())
    out = [t.setup.student(x).logits for _ in range(2)]
    assert not torch.equal(*out)  # on labelled crops it does


def test_the_bank_holds_random_cells_of_the_last_iterations(semi_context):
    t = training(semi_context, negatives=5, step_save=1)
    batches = [batch_of(t, seed) for seed in range(3)]
    t.setup.network.eval()
    kept = []
    for batch in batches:
        t.losses(batch, 0)
        kept.append(torch.cat([t.embed(batch["u"].u1).z, t.embed(batch["u"].u2).z]))
        assert len(t.bank) == 10 * min(2, len(kept))
    rows = t.bank.get()
    for part, source in zip(rows.split(10), kept[1:]):
        assert float((part @ source.detach().T).max(1).values.min()) == pytest.approx(1, abs=1e-5)
    assert not t.bank.rows.requires_grad


def test_negatives_are_capped_by_the_cells_there_are_and_lie_in_the_photographs(semi_context):
    t = training(semi_context)
    assert t.negatives == 2 * 4 * 4 and t.bank.most == 64
    batch = batch_of(t)
    t.losses(batch, 0)
    assert len(t.bank) == int(batch["u"].inside1.sum() + batch["u"].inside2.sum())


def test_the_term_sets_in_after_its_share_of_the_steps(semi_context):
    t = training(semi_context, start=0.5, threshold=0.0)
    batch = batch_of(t)
    assert "u" not in t.losses(batch, 1) and len(t.bank) == 0
    terms = t.losses(batch, 2)
    torch.testing.assert_close(terms["loss"], terms["x"] + 0.1 * terms["u"])
    terms["loss"].backward()
    assert all(p.grad is not None for p in t.projector.parameters())


def test_without_weight_it_is_supervised_training(semi_context):
    check_is_supervised(semi_context, training(semi_context, weight=0.0))


def test_the_projector_is_trained_and_not_kept(semi_context):
    t = training(semi_context)
    groups = t.optimizers["network"].param_groups
    trained = {id(p): g for g in groups for p in g["params"]}
    for p in t.projector.parameters():
        assert trained[id(p)]["lr"] == t.config.optimizer.lr
        assert trained[id(p)]["weight_decay"] == (t.config.optimizer.weight_decay if p.ndim > 1 else 0)
    assert not any("projector" in k for k in t.setup.network.state_dict())
    width = t.setup.network.width
    assert sum(p.numel() for p in t.projector.parameters()) == (width + 1) * (width + 128)


def test_contradicting_scales_are_refused():
    with pytest.raises(MaskwrightError, match="pair_scale_min"):
        configure(cac.CACConfig, {"pair_scale_min": 1.5, "scale_max": 1.0})


def test_pairs_are_read_as_the_views_say(semi_context):
    t = training(semi_context)
    g = torch.Generator().manual_seed(3)
    views = t.setup.streams["u"].pair(4, g)
    image = semi_context.data.image(4)
    for pixels, view in zip(t.setup.streams["u"].pixels(4, views), views):
        expected = torch.from_numpy(np.asarray(view.render(image))).permute(2, 0, 1)
        inside = view.valid()
        assert pixels.dtype == torch.uint8
        assert int((pixels.int() - expected.int()).abs()[:, inside].max()) <= 1

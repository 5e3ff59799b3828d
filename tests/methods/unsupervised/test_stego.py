"""STEGO against slow versions and the invariants of its paper."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.stego import method as S
from maskwright.recipes.frozen import method as frozen_method


def slow_loss(f_a, f_b, c_a, c_b, b):
    """The loss by loops over photographs and positions."""
    B, _, P = f_a.shape
    corr = torch.zeros(B, P, P)
    code = torch.zeros(B, P, P)
    for n in range(B):
        for i in range(P):
            for j in range(P):
                corr[n, i, j] = f_a[n, :, i] @ f_b[n, :, j] / (f_a[n, :, i].norm() * f_b[n, :, j].norm())
                code[n, i, j] = c_a[n, :, i] @ c_b[n, :, j] / (c_a[n, :, i].norm() * c_b[n, :, j].norm())
    m = corr.mean()
    for n in range(B):
        for i in range(P):
            corr[n, i] -= corr[n, i].mean()
    corr = corr - corr.mean() + m
    total = sum(-max(float(s), 0.0) * (float(f) - b) for s, f in zip(code.flatten(), corr.flatten()))
    return total / code.numel()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.floats(-0.5, 0.9))
def test_loss_equals_loops(seed, b):
    g = torch.Generator().manual_seed(seed)
    f_a, f_b = (S.normalize(x) for x in torch.randn(2, 2, 5, 6, generator=g))
    c_a, c_b = (S.normalize(x) for x in torch.randn(2, 2, 3, 6, generator=g))
    assert float(S.correspondence_loss(f_a, f_b, c_a, c_b, b)) == pytest.approx(
        slow_loss(f_a, f_b, c_a, c_b, b), abs=1e-5
    )


def test_correlation_of_a_map_with_itself_is_symmetric_with_unit_diagonal():
    f = S.normalize(torch.randn(2, 7, 9))
    c = S.correlation(f, f)
    assert torch.allclose(c, c.transpose(1, 2), atol=1e-6)
    assert torch.allclose(c.diagonal(dim1=1, dim2=2), torch.ones(2, 9), atol=1e-6)


def test_centred_correlations_have_the_global_mean_at_each_anchor():
    f = torch.rand(3, 8, 8)
    assert torch.allclose(S.center(f).mean(2), f.mean().expand(3, 8), atol=1e-6)


def test_no_loss_and_no_gradient_where_codes_are_opposed():
    f = torch.randn(1, 4, 5)
    c_a = torch.ones(1, 2, 5, requires_grad=True)
    loss = S.correspondence_loss(f, f, c_a, -torch.ones(1, 2, 5), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(c_a.grad, torch.zeros_like(c_a))


def test_gradient_on_code_correlations_is_the_shifted_feature_correlation():
    f = S.normalize(torch.randn(2, 4, 5))
    s = torch.rand(2, 5, 5, requires_grad=True)
    target = S.center(S.correlation(f, f))
    (-(s.clamp(min=0) * (target - 0.2))).mean().backward()
    assert torch.allclose(s.grad, -(target - 0.2) / s.numel(), atol=1e-7)


def test_doubling_codes_changes_nothing_and_features_get_no_gradient():
    f = torch.randn(2, 4, 3, 5, requires_grad=True)
    c = torch.randn(2, 3, 3, 5, requires_grad=True)
    p = torch.rand(2, 6, 2) * 2 - 1
    f_p, c_p, c_2 = S.sample(f, p), S.sample(c, p), S.sample(2 * c, p)
    once = S.correspondence_loss(f_p, f_p, c_p, c_p, 0.1)
    assert torch.allclose(once, S.correspondence_loss(f_p, f_p, c_2, c_2, 0.1), atol=1e-6)
    once.backward()
    assert f.grad is None and c.grad is not None


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10_000))
def test_super_permutation_never_pairs_a_photograph_with_itself(size, seed):
    p = S.super_permutation(size, torch.Generator().manual_seed(seed))
    assert (p != torch.arange(size)).all() and int(p.min()) >= 0 and int(p.max()) < size


def test_two_regions_separate():
    """One-hot features of two regions: free codes learn a positive correlation within and none between."""
    f = F.one_hot(torch.arange(8) % 2).T.float()[None]  # (1, 2, 8)
    c = torch.nn.Parameter(torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(1)))
    optimizer = torch.optim.Adam([c], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        unit = S.normalize(c)
        S.correspondence_loss(f, f, unit, unit, 0.5).backward()
        optimizer.step()
    s = S.correlation(unit.detach(), unit.detach())[0]
    same = (torch.arange(8) % 2)[:, None] == (torch.arange(8) % 2)[None]
    assert s[same].min() > 0.95 and s[~same].max() < 0.05


def test_probe_sends_no_gradient_to_the_codes():
    c = torch.randn(2, 4, 3, 3, requires_grad=True)
    probe = S.ClusterProbe(5, 4)
    loss = probe(c)
    loss.backward()
    assert c.grad is None and probe.mu.grad.abs().sum() > 0
    unit_c, unit_mu = F.normalize(c, dim=1), F.normalize(probe.mu, dim=1)
    best = [(unit_mu @ unit_c[n, :, i, j]).max() for n in range(2) for i in range(3) for j in range(3)]
    assert float(loss.detach()) == pytest.approx(-float(torch.stack(best).mean().detach()), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.02, 0.9))
def test_shift_is_exceeded_by_the_share_asked_for(share):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    b = S.quantile_shift(x, share)
    assert float((x > b).float().mean()) == pytest.approx(share, abs=2e-3)


def test_weights_balance_the_pull_of_the_pairings():
    spreads, wanted = [0.1, 0.2, 0.05], [0.67, 0.25, 0.63]
    w = S.balanced_weights(spreads, wanted)
    pull = [a * b for a, b in zip(w, spreads)]
    assert sum(w) == pytest.approx(sum(wanted))
    assert [p / pull[0] for p in pull] == pytest.approx([v / wanted[0] for v in wanted])


@pytest.mark.parametrize("sampling", ["corners", "cells"])
def test_samples_lie_on_the_map(sampling):
    """Centre j of w lies at -1 + 2 j / (w - 1) where the outer centres are the ends, else at -1 + 2 (j + 1/2) / w."""
    angle = torch.arange(8.0).expand(1, 1, 4, 8) / 8
    at = [-1 + 2 * j / 7 if sampling == "corners" else -1 + 2 * (j + 0.5) / 8 for j in range(8)]
    points = torch.tensor([[[x, 0.0] for x in at]])
    found = S.sample(torch.cat([angle.cos(), angle.sin()], 1), points, sampling)[0]
    assert torch.allclose(torch.atan2(found[1], found[0]), torch.arange(8.0) / 8, atol=1e-6)


def test_by_default_no_point_is_clamped_to_the_rim():
    """On 14 x 14 cells half-pixel centres clamp 1 - (13 / 14)^2 = 14 % of the points, the authors' sampling none."""
    row, column = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    place = torch.stack([row.cos(), row.sin(), column.cos(), column.sin()])[None] + 10  # unlike at every place
    points = torch.rand(1, 20_000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for sampling, share in (("corners", 0.0), ("cells", 1 - (13 / 14) ** 2)):
        found = S.sample(place, points, sampling)
        again = S.sample(place, points.clamp(-13 / 14, 13 / 14), sampling)
        clamped = torch.isclose(found, again, atol=1e-7).all(1)[0] & (points.abs() > 13 / 14).any(2)[0]
        assert float(clamped.float().mean()) == pytest.approx(share, abs=0.01)
    assert S.StegoConfig().pairs.sampling == "corners"


def test_the_step_samples_as_configured(monkeypatch):
    seen = []
    monkeypatch.setattr(
        S, "sample", lambda x, points, sampling: seen.append(sampling) or S.normalize(x.flatten(2)[..., :9])
    )
    for sampling in ("corners", "cells"):
        seen.clear()
        t = object.__new__(S.Distillation)
        t.sampling, t.dropout, t.negatives = sampling, 0.1, 5
        t.device, t.precision = torch.device("cpu"), "fp32"
        t.b, t.w = dict.fromkeys(S.PAIRS, 0.1), dict.fromkeys(S.PAIRS, 1.0)
        t.head, t.probe = S.StegoHead(4, 3, 0.0), S.ClusterProbe(2, 3)
        points = torch.rand(2, 9, 2)
        t.losses({"x": torch.randn(2, 4, 5, 5), "y": torch.randn(2, 4, 5, 5), "p": points, "q": points}, 0)
        assert len(seen) == 6 and set(seen) == {sampling}


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))

    def train(folder, out, **options):
        defaults = {"classes": 2, "backbone": "tf_efficientnet_lite0", "weights": "random", "steps": 3, "report": False}
        settings_ = {"short_side": 64, "batch": 3, **options.pop("settings", {})}
        return mw.train(
            folder,
            "stego",
            out=tmp_path / out,
            settings=settings_,
            progress=Progress(quiet=True),
            **(defaults | options),
        )

    return train


def test_fixed_shifts_and_the_probe_as_readout(small, tmp_path):
    folder = write_tiny_folder(tmp_path / "tiny")
    small(folder, "run", settings={"auto_shift": "false", "b_self": "0.3", "readout": "probe"})
    notes = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    assert any("0.300" in n and "from the data" not in n for n in notes)


def test_photographs_of_different_shapes(small, tmp_path):
    folder = write_tiny_folder(tmp_path / "tiny", count=4)
    write_tiny_folder(tmp_path / "wide", count=4, size=(40, 90))
    for path in (tmp_path / "wide" / "images").iterdir():
        path.rename(folder / "images" / f"wide_{path.name}")
    small(folder, "run")


def test_minutes_leave_room_for_clusters_and_pictures_and_the_run_is_that_of_as_many_steps(
    small, tmp_path, monkeypatch
):
    """0.2 minutes hold no step more than the fewest: what follows is told and the trial changes nothing of the run."""
    told = []
    real = S.Stego.seconds_behind

    def behind(self):
        told.append(real(self))
        return 100.0

    monkeypatch.setattr(S.Stego, "seconds_behind", behind)
    folder = write_tiny_folder(tmp_path / "tiny", count=4)
    small(folder, "run", steps=None, minutes=0.2)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(told) == 1 and 0 < told[0] < 60 and record["steps"] == 10
    assert any("100 s are needed for what follows" in note for note in record["notes"])
    small(folder, "plain", steps=10)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "plain"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_what_follows_counts_the_clusterings_that_choose_the_iterate(small, tmp_path, monkeypatch):
    """With 10 steps the features alone and the last head are tried, with 50 also those of 25 and 50 steps."""
    told = []
    real = S.Stego.seconds_behind
    monkeypatch.setattr(S.Stego, "seconds_behind", lambda self: told.append(real(self)) or 0.0)

    def a_second(work):
        work()
        return 1.0

    for module in (S, frozen_method):
        monkeypatch.setattr(module, "seconds_of", a_second)
    folder = write_tiny_folder(tmp_path / "tiny", count=4)
    for name, most, keep in (("last", 10, "last"), ("few", 10, "agreeing"), ("more", 50, "agreeing")):
        monkeypatch.setattr(S.Stego, "steps", most)
        settings = {"iterate.keep": keep, "reduction.max_rows": "16"}
        settings |= {} if keep == "last" else {"iterate.rows": "8"}
        small(folder, name, steps=None, minutes=0.2, settings=settings)
    last, few, more = told
    each = S.RESTARTS * 8 / 16
    assert few - last == pytest.approx(2 * each) and more - last == pytest.approx(4 * each)


def test_one_photograph_is_refused_with_a_way_out(small, tmp_path):
    folder = write_tiny_folder(tmp_path / "one", count=1)
    with pytest.raises(MaskwrightError, match="kmeans"):
        small(folder, "run")


def test_negatives_need_two_photographs_in_each_process(small, tmp_path, monkeypatch):
    folder = write_tiny_folder(tmp_path / "tiny")
    real = S.check_partners

    def among_two(*of):
        with monkeypatch.context() as patch:
            patch.setattr("maskwright.engine.distributed.world_size", lambda: 2)
            real(*of)

    monkeypatch.setattr(S, "check_partners", among_two)
    with pytest.raises(MaskwrightError, match=r"at least 4: negatives are .* same process; add --set pairs\.batch=4"):
        small(folder, "three", settings={"batch": 3})
    small(folder, "four", settings={"batch": 4})


@pytest.mark.parametrize(("crop", "shape"), [(1, (6, 5)), (0.5, (24, 7))])
def test_nearest_images_never_name_themselves(small, tmp_path, crop, shape):
    folder = write_tiny_folder(tmp_path / "tiny", count=6)
    small(folder, "run", settings={"crop": crop})
    nearest = load_file(tmp_path / "run" / "prepare" / S.PREPARED)["nearest"]
    assert nearest.shape == shape
    assert all(i not in row for i, row in enumerate(nearest.tolist()))

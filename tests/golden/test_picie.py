"""PiCIE and MDC (Cho et al., CVPR 2021): cross entropies, labels, mini-batch k-means, windows, the decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import Case, read_cases
from tests.golden.formulas import as64, draw, generator

from maskwright.data.training.views import View
from maskwright.evaluate.protocols import evaluate_arrays
from maskwright.methods.unsupervised import picie as P
from maskwright.models.networks.lateral_fpn import LateralFPN
from maskwright.recipes.self_training.running_clusters import RunningClusters

# --------------------------------------------------------------------- by slow formulas


def entropy_by_loops(z: np.ndarray, y: np.ndarray, mu: np.ndarray, w: np.ndarray) -> float:
    """sum_i w_yi (log sum_k e^{z_i mu_k} - z_i mu_yi) / sum_i w_yi, cell by cell."""
    total = weights = 0.0
    for b, i, j in np.ndindex(*y.shape):
        if y[b, i, j] >= 0:
            s = np.array([sum(z[b, :, i, j] * m) for m in mu])
            total += w[y[b, i, j]] * (np.log(np.exp(s).sum()) - s[y[b, i, j]])
            weights += w[y[b, i, j]]
    return total / weights


def test_losses():
    z = tuple(F.normalize(draw(2, 4, 3, 2, seed=s), dim=1) for s in (1, 2))
    mu = tuple(0.7 * F.normalize(draw(3, 4, seed=s), dim=1) for s in (3, 4))
    y = tuple(torch.randint(-1, 3, (2, 3, 2), generator=generator(s)) for s in (5, 6))
    counts = tuple(torch.tensor(c) for c in ([6.0, 3.0, 1.0], [0.0, 2.0, 8.0]))
    share = [c / c.sum() for c in counts]
    w = [torch.where(s > 0, 1 / (3 * s), 0) for s in share]
    for balance, weights in (("frequency", share), ("inverse", w), ("none", [torch.ones(3)] * 2)):
        ours = tuple(P.class_weights(c, balance) for c in counts)
        within, cross = P.within_and_cross(z, y, mu, ours)
        by = lambda a, b: entropy_by_loops(as64(z[a]), y[b].numpy(), as64(mu[b]), as64(weights[b]))  # noqa: B023, E731
        assert float(within) == pytest.approx((by(0, 0) + by(1, 1)) / 2, rel=1e-5)
        assert float(cross) == pytest.approx((by(0, 1) + by(1, 0)) / 2, rel=1e-5)
    valid = torch.rand(2, 3, 2, generator=generator(7)) < 0.7
    squares = [(as64(z[0]) - as64(z[1]))[b, :, i, j] ** 2 for b, i, j in np.argwhere(valid.numpy())]
    assert float(P.view_distance(*z, valid)) == pytest.approx(np.mean(squares), rel=1e-5)


def test_running_clusters_are_means_of_what_they_were_given():
    rows = [draw(20, 3, seed=s) for s in range(4)]
    centers = draw(4, 3, seed=9)
    ours = RunningClusters(4, lambda _: centers)
    ours.begin(torch.cat(rows[:2]))
    mu, counts, distances = as64(centers).copy(), np.zeros(4), []
    for n, x in enumerate((as64(torch.cat(rows[:2])), as64(rows[2]), as64(rows[3]))):
        d = ((x[:, None] - mu[None]) ** 2).sum(2)
        nearest = d.argmin(1)
        distances.append(d.min(1).mean())
        for k in range(4):
            m = (nearest == k).sum()
            counts[k] += m
            if n and m:
                mu[k] += m / counts[k] * (x[nearest == k].mean(0) - mu[k])
        if n:
            ours.add(rows[n + 1])
        np.testing.assert_allclose(ours.centers.numpy(), mu, atol=1e-6)
    assert ours.counts.tolist() == counts.tolist()
    assert ours.inertia == pytest.approx(np.mean(distances), rel=1e-5)


# --------------------------------------------------------------------- the authors' own code


@pytest.fixture(scope="module")
def cases(golden_root) -> dict[str, Case]:
    return read_cases(golden_root, "picie_mdc")


@pytest.mark.data
def test_losses_of_the_authors(cases):
    compared = 0
    for case in cases.values():
        if case.settings["function"] != "train_picie.train":
            continue
        i = case.input
        leaves = [i[n].clone().requires_grad_() for n in ("feat1", "feat2")]
        z = leaves if case.settings["metric"] == "l2" else [F.normalize(f, dim=1) for f in leaves]
        sides = [tuple(i.get(f"{n}{v}") for v in (1, 2)) for n in ("label", "centroids", "weight")]
        within, cross = P.within_and_cross((z[0], z[1]), *sides)
        loss = (within + cross) / 2
        mse = P.view_distance(*z, torch.ones_like(i["label1"], dtype=torch.bool))
        found = {"within": within, "cross": cross, "ce": loss, "loss": loss}
        if case.settings["mse"]:
            found |= {"mse": mse, "loss": (loss + mse) / 2}
        for name, value in found.items():
            assert value.item() == pytest.approx(case.output[name].item(), abs=1e-9), (case.name, name)
        found["loss"].backward()
        for n, x in zip(("feat1", "feat2"), leaves):
            torch.testing.assert_close(x.grad, case.grad[n], rtol=1e-5, atol=1e-9, msg=f"{case.name}: {n}")
        compared += 1
    assert compared == 7


@pytest.mark.data
@pytest.mark.parametrize("name", ["mdc_learned_classifier", "mdc_nonparametric"])
def test_mdc_of_the_authors(cases, name):
    case = cases[name]
    i = case.input
    f, weight, bias = (i[n].clone().requires_grad_() for n in ("feat", "classifier_weight", "classifier_bias"))
    logits = F.conv2d(F.normalize(f, dim=1), weight[..., None, None], bias)
    loss = P.weighted_cross_entropy(logits, i["label"], i["weight"])
    assert loss.item() == pytest.approx(case.output["loss"].item(), abs=1e-9)
    loss.backward()
    for n, x in {"feat": f, "classifier_weight": weight, "classifier_bias": bias}.items():
        if n in case.grad:
            torch.testing.assert_close(x.grad, case.grad[n].view_as(x), rtol=1e-5, atol=1e-9)


@pytest.mark.data
@pytest.mark.parametrize("name", ["labels_plain", "labels_edge_empty_cluster"])
def test_labels_of_the_authors(cases, name):
    case = cases[name]
    found = P.distance_scores(F.normalize(case.input["feats"], dim=1), case.input["centroids"])
    torch.testing.assert_close(found.view_as(case.output["scores"]), case.output["scores"], rtol=1e-5, atol=1e-5)
    labels = found.argmax(1)
    assert torch.equal(labels.flatten(), case.output["labels"].flatten().long())
    weight = P.class_weights(torch.bincount(labels.flatten(), minlength=4).float(), "frequency")
    torch.testing.assert_close(weight, case.output["class_weight"].float().flatten())


@pytest.mark.data
def test_mini_batch_k_means_of_the_authors(cases):
    """Their last chunk is dropped where it is not full; ours is given what they use."""
    compared = 0
    for case in cases.values():
        if case.settings["function"] != "run_mini_batch_kmeans":
            continue
        s, feats = case.settings, case.input["feats"]
        if s["metric"] == "cosine":
            feats = F.normalize(feats, dim=2)
        batches = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in feats]
        ours = RunningClusters(len(case.input["init_centroids"]), lambda _, c=case: c.input["init_centroids"])
        first, every = s["num_init_batches"], s["num_batches"]
        ours.begin(torch.cat(batches[:first]))
        for at in range(first, len(batches) - every + 1, every):
            ours.add(torch.cat(batches[at : at + every]))
        torch.testing.assert_close(ours.centers.float(), case.output["centroids"], rtol=1e-5, atol=1e-5, msg=case.name)
        assert ours.inertia == pytest.approx(case.output["kmeans_loss"].item(), rel=1e-5), case.name
        compared += 1
    assert compared == 5


@pytest.mark.data
@pytest.mark.parametrize("name", ["equiv_image", "equiv_features"])
def test_windows_of_the_authors(cases, name):
    """Whole-pixel windows, as theirs are; ours are of any size."""
    case = cases[name]
    s = case.settings
    x = case.input["x"] if name == "equiv_features" else F.interpolate(case.input["x16_nearest_x4"], scale_factor=4)
    x = x.clone().requires_grad_()
    side = x.shape[-1]
    out = s["res"] // 4 if name == "equiv_features" else s["res"]
    made = []
    for n, of in enumerate(s["indices"]):
        inner = int(s["rscale"][of] * side)
        top, left = (round((side - inner) * r) for r in s["rcrop"][of])
        view = View.identity((side, side)).crop(top, left, inner, inner).resize(out, out)
        view = view.hflip() if s["hflip_p"][of] < 0.5 else view
        view = view.vflip() if s["vflip_p"][of] < 0.5 else view
        made.append(view.render(x[n : n + 1], antialias=False))
    y = torch.cat(made)
    if name == "equiv_image":
        torch.testing.assert_close(y[..., ::2, ::2], case.output["y_stride2"], rtol=1e-5, atol=1e-5)
        return
    torch.testing.assert_close(y, case.output["y"], rtol=1e-5, atol=1e-5)
    (y * case.input["cotangent"]).sum().backward()
    torch.testing.assert_close(x.grad, case.grad["x"], rtol=1e-5, atol=1e-5)


@pytest.mark.data
def test_decoder_of_the_authors(cases):
    i = cases["fpn_decoder"].input
    maps = [i[f"res{n}"] for n in (2, 3, 4, 5)]
    decoder = LateralFPN([m.shape[1] for m in maps], 6).to(maps[0].dtype)
    with torch.no_grad():
        for n, lateral in enumerate(decoder.lateral):
            lateral.weight.copy_(i[f"layer{4 - n}_weight"])
            lateral.bias.copy_(i[f"layer{4 - n}_bias"])
        y = decoder(maps)
    torch.testing.assert_close(y, cases["fpn_decoder"].output["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.data
@pytest.mark.parametrize("name", ["eval_k5", "eval_edge_absent_class"])
def test_evaluation_of_the_authors(cases, name):
    """Pixel accuracy; their matching is by counts, as the protocol's is."""
    case = cases[name]
    labels = case.input["labels"]
    ids = F.interpolate(case.input["logits"], labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)
    pairs = [(p.numpy(), t) for p, t in zip(ids, labels.numpy())]
    found = evaluate_arrays(pairs, case.settings["K"], "hungarian", ignore=-1)
    assert 100 * found.pixel_accuracy == pytest.approx(case.output["acc"].item(), abs=1e-3)

"""ReDO (Chen et al., NeurIPS 2019): its networks, self-attention, spectral norm, a step of both players, evaluation."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tests.golden.cases import Case, read_cases
from tests.golden.cases import close as near
from tests.golden.formulas import as64, draw

from maskwright.evaluate.protocols import evaluate_arrays
from maskwright.methods.unsupervised.redo import losses as L
from maskwright.methods.unsupervised.redo import networks as N
from maskwright.models.parts.regions import RegionClassifier, RegionEncoder
from maskwright.recipes.adversarial.adversary import hinge

# --------------------------------------------------------------------- by slow formulas


def test_composites_and_both_losses_by_loops():
    x, z, real = draw(2, 3, 4, 5), draw(2, 3, 6, seed=1), draw(2, seed=2)
    m = draw(2, 3, 4, 5, seed=3).softmax(1)
    drawn = draw(2, 3, 3, 4, 5, seed=4) * m[:, :, None]
    found = L.composites(x, m, drawn)
    for b, k, c, i, j in np.ndindex(2, 3, 3, 4, 5):
        wanted = drawn[b, k, c, i, j] + (1 - m[b, k, i, j]) * x[b, c, i, j]
        assert float(found[b * 3 + k, c, i, j]) == pytest.approx(float(wanted), abs=1e-6)
    verdicts, recovered = draw(6, seed=5), draw(2, 3, 6, seed=6)
    v, r = as64(verdicts), as64(z - recovered)
    assert float(L.recovery_loss(z, recovered)) == pytest.approx((r**2).mean(), rel=1e-6)
    d = np.maximum(0, 1 - as64(real)).mean() + np.maximum(0, 1 + v).mean()
    assert float(hinge(real, True) + hinge(verdicts, False)) == pytest.approx(d, rel=1e-6)
    assert float(hinge(torch.tensor([1.0, 3.0]), True) + hinge(torch.tensor([-1.0, -2.0]), False)) == 0


# --------------------------------------------------------------------- the authors' own code


close = partial(near, least=1.0)


@pytest.fixture(scope="module")
def cases(golden_root) -> dict[str, Case]:
    return read_cases(golden_root, "redo")


def given(case: Case) -> dict[str, torch.Tensor]:
    return {k.removeprefix("param."): v for k, v in case.input.items() if k.startswith("param.")}


@torch.no_grad()
def put(layer: torch.nn.Module, params: dict[str, torch.Tensor], name: str) -> None:
    """The authors' tensors of one layer, whose spectral norm has an old hook's names."""
    tensors = {k.removeprefix(f"{name}."): v for k, v in params.items() if k.startswith(f"{name}.")}
    names = {"weight_orig": "weight", "weight_u": "u", "weight_v": "v"}
    state = {names.get(k, k): v for k, v in tensors.items()}
    layer.load_state_dict({k: v.view_as(layer.state_dict()[k]) for k, v in state.items()})


def after(case: Case, layers: dict[str, torch.nn.Module]) -> None:
    """The vectors that the pass left behind."""
    for name, layer in layers.items():
        close(layer.u, case.output[f"after.{name}.weight_u"], f"{name} u")
        close(layer.v, case.output[f"after.{name}.weight_v"], f"{name} v")


def enlarged(x: torch.Tensor, by: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=by, mode="nearest")


def judge_of(params: dict[str, torch.Tensor], outputs: int, recovery: bool) -> tuple[N.Judge, dict]:
    net, layers = N.Judge(outputs, 1, 128), {}
    for i, block in enumerate(net.blocks):
        if recovery:
            conv, shortcut = f"net.blocs.{i}", f"net.sc.{i}"
        else:
            conv, shortcut = ("bloc0", "sc0") if i == 0 else (f"blocs.{i - 1}", f"sc.{i - 1}")
        at = (0, 2) if i == 0 else (1, 3)
        layers |= {f"{conv}.{at[0]}": block.conv1, f"{conv}.{at[1]}": block.conv2}
        if block.halves:
            layers[f"{shortcut}.1"] = block.shortcut
    for name, layer in layers.items():
        put(layer, params, name)
    put(net.dense, params, "net.dense" if recovery else "dense")
    return net, layers


@pytest.mark.data
@pytest.mark.parametrize("which", ["discriminator", "recovery"])
def test_judges_of_the_authors(cases, which):
    """In training mode, with the power iteration; then in evaluation mode, with the vectors that it left."""
    train = cases[f"net_{which}_nf1_train"]
    net, layers = judge_of(given(train), 1 if which == "discriminator" else 8, which == "recovery")
    for case in (train, cases[f"net_{which}_nf1_eval"]):
        y = net.train(case is train)(enlarged(case.input["x16_nearest_x8"], 8))
        close(y, case.output["y"].view_as(y), case.name)
        if case is train:
            after(case, layers)


@pytest.mark.data
def test_generator_of_the_authors(cases):
    train = cases["net_generator_nf1_train"]
    params, net = given(train), N.RegionGenerator(4, 1, 128, attention=False)
    spectral = {}
    for i, block in enumerate(net.blocks):
        spectral |= {f"convA.{i}.1": block.conv1, f"convB.{i}": block.conv2, f"sc.{i}.1": block.shortcut}
        for norm, side in ((block.norm1, "A"), (block.norm2, "B")):
            put(norm.gamma, params, f"gamma{side}.{i}")
            put(norm.beta, params, f"beta{side}.{i}")
    spectral["convOut"] = net.last
    for name, layer in spectral.items():
        put(layer, params, name)
    put(net.dense, params, "dense")
    put(net.norm.gamma, params, "gammaOut")
    put(net.norm.beta, params, "betaOut")
    for case in (train, cases["net_generator_nf1_eval"]):
        mask = enlarged(case.input["mask8_nearest_x16"], 16)
        y = net.train(case is train)(mask, case.input["z"].flatten(1))
        close(y[..., 3::8, 5::8], case.output["y"], case.name)
        close(y.mean().view(1), case.output["mean"], case.name)
        if case is train:
            after(case, spectral)


@pytest.mark.data
@pytest.mark.parametrize("regions", [2, 3])
def test_mask_network_of_the_authors(cases, regions):
    case = cases[f"net_mask_nf4_n{regions}"]
    params, s = given(case), case.settings
    encoder = RegionEncoder(s["nf"], s["nRes"])
    head = RegionClassifier(encoder.out, regions, s["temperature"])
    for name, layer in {
        "cnn.0.mods.1": encoder.first, "cnn.0.mods.4": encoder.down[0], "cnn.0.mods.7": encoder.down[1],
        "out.mods.1": encoder.up[0], "out.mods.5": encoder.up[1], "out.mods.9": head.conv,
        **{f"cnn.0.mods.{2 + 3 * k}": norm for k, norm in enumerate(encoder.down_norms)},
        **{f"out.mods.{2 + 4 * k}": norm for k, norm in enumerate(encoder.up_norms)},
        **{f"psp.{k}.1": conv for k, conv in enumerate(encoder.pyramid)},
    }.items():  # fmt: skip
        put(layer, params, name)
    for k, block in enumerate(encoder.residual, 1):
        for name, layer in (
            ("blocs.0", block.conv1), ("blocs.1", block.norm1), ("blocs.3", block.conv2), ("activationF.0", block.norm2)
        ):  # fmt: skip
            put(layer, params, f"cnn.{k}.{name}")
    y = head(encoder(enlarged(case.input["x16_nearest_x8"], 8))).softmax(1)
    close(y[..., 3::8, 5::8], case.output["y"], case.name)
    close(y.mean((0, 2, 3)), case.output["mean"], case.name)


@pytest.mark.data
def test_attention_of_the_authors(cases):
    case = cases["attention_SelfAttention"]
    net = N.SelfAttention(16).double().eval()
    for name, layer in (("f", net.query), ("g", net.key), ("h", net.value), ("o", net.out)):
        put(layer, given(case), name)
    with torch.no_grad():
        net.gamma.copy_(case.input["param.gamma"])
    x = case.input["x"].clone().requires_grad_()
    y = net(x)
    close(y, case.output["y"], "attention")
    (y * case.input["cotangent"]).sum().backward()
    close(x.grad, case.grad["x"], "x")


@pytest.mark.data
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_spectral_norm_of_the_authors(cases, mode):
    case = cases[f"spectral_norm_conv_{mode}"]
    conv = N.SNConv2d(3, 4).double()
    put(conv, {f"c.{k}": v for k, v in given(case).items()}, "c")
    y = conv.train(mode == "train")(case.input["x"])
    close(y, case.output["y"], "y")
    (y * case.input["cotangent"]).sum().backward()
    close(conv.weight.grad, case.grad["weight_orig"], "weight")
    close(conv.bias.grad, case.grad["bias"], "bias")
    close(conv.u, case.output["weight_u_after"], "u")
    close(conv.v, case.output["weight_v_after"], "v")


STEPS = (
    "step_two_regions", "step_three_regions", "step_no_recovery", "step_edge_all_region_one",
    "step_edge_discriminator_satisfied",
)  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_the_authors(cases, name):
    """Their toy players: G_k = tanh(c_k + z_k1) m_k, D = <x, w> + 0.1 |x|^2, Z linear."""
    case, s = cases[name], cases[name].settings
    i, k = case.input, s["nMasks"]
    names = ["generator_constant", "mask_logit", *(["recovery_weight"] if s["wrecZ"] else [])]
    leaf = {n: i[n].clone().requires_grad_() for n in names}
    logits = leaf["mask_logit"]
    m = logits.softmax(1) if k > 2 else torch.cat((logits.sigmoid(), 1 - logits.sigmoid()), 1)
    z = i["z"].flatten(2)
    w = i["disc_weight"].clone().requires_grad_()

    def verdicts(x):
        return ((x * w).sum((1, 2, 3)) + 0.1 * x.square().sum((1, 2, 3)))[:, None]

    drawn = torch.tanh(leaf["generator_constant"] + z[:, :, :1, None, None]) * m[:, :, None]
    fakes = L.composites(i["x"], m, drawn)
    close(fakes, case.output["composites"], "composites")
    loss_g = -verdicts(fakes).mean()
    if s["wrecZ"]:
        recovered = (drawn.sum(1).flatten(1) @ leaf["recovery_weight"]).view_as(z)
        rec = L.recovery_loss(z, recovered)
        close(rec.view(1), case.output["rec_mse"].view(1), "recovery")
        loss_g = loss_g + s["wrecZ"] * rec
    close(loss_g.view(1), case.output["lossG"].view(1), "G")
    for n, grad in zip(leaf, torch.autograd.grad(loss_g, list(leaf.values()))):
        close(grad, case.grad[n], n)
    real, fake = verdicts(i["x_real"]), verdicts(fakes.detach())
    close(real, case.output["d_real"], "real")
    close(fake, case.output["d_fake"], "fake")
    loss_d = hinge(real, True) + hinge(fake, False)
    close(loss_d.view(1), case.output["lossD"].view(1), "D")
    close(torch.autograd.grad(loss_d, w)[0], case.grad["disc_weight"], "w")


@pytest.mark.data
@pytest.mark.parametrize("name", ["evaluate_plain", "evaluate_edge_constant_half"])
def test_evaluation_of_the_authors(cases, name):
    case = cases[name]
    ids = (case.input["mask0"][:, 0] >= 0.5).to(torch.uint8).numpy()
    truth = case.input["truth"][:, 0].to(torch.uint8).numpy()
    for pred in (ids, 1 - ids):
        found = evaluate_arrays(zip(pred, truth), 2, "either_polarity").extra
        assert found["accuracy_either"] == pytest.approx(case.output["accuracy"].item(), rel=1e-5)
        assert found["iou_either"] == pytest.approx(case.output["iou"].item(), rel=1e-5)


def test_networks_have_the_authors_numbers_of_parameters():
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        assert 2 * count(N.RegionGenerator(32, 64, attention=False)) == 61_826_620
        assert 2 * count(N.RegionGenerator(32, 64)) == 61_867_582
        assert count(N.Judge(1, 64)) == 38_419_137
        assert count(N.Judge(1, 64, attention=True)) == 38_424_258
        assert count(N.Judge(64, 64)) == 38_483_712
        assert 2 * count(N.RegionGenerator(32, 32, attention=False)) == 15_903_548
        encoder = RegionEncoder(64, 3)
        assert count(encoder) + count(RegionClassifier(encoder.out, 2)) == 274_966

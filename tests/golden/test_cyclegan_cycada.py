"""CycleGAN (Zhu et al., ICCV 2017), CyCADA (Hoffman et al., ICML 2018) and FDA (Yang and Soatto, CVPR 2020): tensors of
the authors' code."""

from __future__ import annotations

import re

import pytest
import torch
from tests.golden.cases import Case, read_cases
from torch import Tensor, nn

from maskwright.methods.adapt.cycada.losses import (
    Played,
    Weights,
    discriminator_loss,
    domain_loss,
    fooling,
    generator_terms,
    is_heard,
    semantic_consistency,
    told_apart,
)
from maskwright.methods.adapt.cycada.networks import DomainDiscriminator, Generator, PatchDiscriminator
from maskwright.ops.style import fourier_adaptation, swap_amplitude
from maskwright.recipes.adversarial.replay import AccuracyGate, ReplayPool, accuracy

pytestmark = pytest.mark.data
GENERATOR = {
    "1": "first", "4": "down.0", "7": "down.1", "19": "up.0", "22": "up.1", "26": "last",
    **{f"{10 + k}.conv_block.{n}": f"blocks.{k}.conv{c}" for k in range(9) for n, c in ((1, 1), (5, 2))},
}  # fmt: skip
"""The authors' names of convolutions, below `model`, to those here."""
PATCH = {"0": "convs.0", "2": "convs.1", "5": "convs.2", "8": "convs.3", "11": "convs.4"}


@pytest.fixture(scope="module")
def cases(golden_root) -> dict[str, Case]:
    return read_cases(golden_root, "cyclegan_cycada")


def leaves(case: Case) -> dict[str, Tensor]:
    """The inputs, those that the authors' gradients are of with gradient."""
    return {k: v.clone().requires_grad_(k in case.grad) for k, v in case.input.items()}


def equal_gradients(case: Case, x: dict[str, Tensor], loss: Tensor) -> None:
    loss.backward()
    for name, grad in case.grad.items():
        found = torch.zeros_like(grad) if x[name].grad is None else x[name].grad
        torch.testing.assert_close(found, grad, atol=1e-5, rtol=1e-5)


OBJECTIVES = ["cyclegan_objective", "cyclegan_objective_no_identity", "cycada_objective_gate_open",
              "cycada_objective_gate_closed", "cycada_objective_boundary"]  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_generator_objective(name, cases):
    """A is the source; the code of CyCADA doubles the adversarial term towards the target."""
    case = cases[name]
    x, c = leaves(case), case.settings
    assert c["lambda_A"] == c["lambda_B"]
    w = Weights(2.0 if c["semantic"] else 1.0, c["lambda_A"], c["lambda_identity"], float(c["semantic"]))
    played = Played(x["fake_B"], x["fake_A"], x["rec_A"], x["rec_B"], x.get("idt_A"), x.get("idt_B"))
    terms = generator_terms(x["real_A"], x["real_B"], played, x["D_A_fake"], x["D_B_fake"], w)
    loss = terms["loss"]
    cycle = case.output["cycle_A"] + case.output["cycle_B"]
    assert float(w.cycle * terms["cycle"].detach()) == pytest.approx(float(cycle), rel=1e-5)
    if w.semantic:
        logits = (x["pred_fake_B"], x["pred_fake_A"], x["pred_real_B"])
        on_t, on_s, of_t = (p[..., None, None] for p in logits)
        y, k = x["label_A"].long()[:, None, None], of_t.argmax(1)
        semantic = semantic_consistency(on_t, y, on_s, k) * is_heard(x["loss_cls"], 1.0)
        assert float(semantic.detach()) == pytest.approx(float(case.output["sem_AB"] + case.output["sem_BA"]), abs=1e-5)
        loss = loss + w.semantic * semantic
    assert float(loss.detach()) == pytest.approx(float(case.output["loss"]), rel=1e-5)
    equal_gradients(case, x, loss)


def test_discriminator(cases):
    case = cases["discriminator_lsgan"]
    x = leaves(case)
    loss = discriminator_loss(x["score_real"], x["score_fake"])
    assert float(loss.detach()) == pytest.approx(float(case.output["loss"]), rel=1e-5)
    equal_gradients(case, x, loss)


def test_adda(cases):
    case = cases["adda_discriminator_ce"]
    x = leaves(case)
    loss = domain_loss(x["score_source"], x["score_target"])
    assert float(loss.detach()) == pytest.approx(float(case.output["loss"]), rel=1e-5)
    right = accuracy(told_apart(x["score_source"], x["score_target"]))
    assert 100 * right == pytest.approx(float(case.output["domain_accuracy"]), rel=1e-5)
    equal_gradients(case, x, loss)
    case = cases["adda_fool_target"]
    x = leaves(case)
    loss = fooling(x["score_target"])
    assert float(loss.detach()) == pytest.approx(float(case.output["loss"]), rel=1e-5)
    equal_gradients(case, x, loss)


def test_gate(cases):
    case = cases["adda_gate"]
    gate = AccuracyGate(case.settings["threshold"], case.settings["window"])
    found = [gate.push(float(a)) for a in case.input["accuracy"]]
    assert found == [bool(u) for u in case.output["update"]]
    assert gate.opened == sum(found)


@pytest.mark.parametrize("name", ["replay_pool", "replay_pool_batch", "replay_pool_zero"])
def test_pool(name, cases):
    case = cases[name]
    draws = iter(case.input["draws"].tolist())
    pool = ReplayPool(int(case.settings["pool_size"]))

    def drawn(kind: int) -> float:
        which, value = next(draws)
        assert which == kind
        return value

    pool.uniform, pool.place = lambda: drawn(0), lambda: int(drawn(1))
    each = int(case.settings["batch"])
    images = torch.arange(case.settings["calls"] * each, dtype=torch.float32).reshape(-1, each, 1, 1, 1)
    found = torch.cat([pool(batch) for batch in images]).flatten()
    assert found.tolist() == case.output["returned"].tolist() and next(draws, None) is None


@pytest.mark.parametrize("name", ["fda_beta01", "fda_beta005_odd", "fda_beta05_small", "fda_beta0"])
def test_fda(name, cases):
    """The numpy code takes the target's mean with beta 0 too; where beta is above 0 it is what runs here."""
    case = cases[name]
    s, t, half = case.input["source"], case.input["target"], int(case.settings["half_size"])
    numpy, other = case.output["numpy_variant"], case.output["torch_variant"]
    torch.testing.assert_close(swap_amplitude(s, t, half), numpy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(swap_amplitude(s, t, half, centred=False), other, atol=1e-5, rtol=1e-5)
    beta = float(case.settings["beta"])
    torch.testing.assert_close(fourier_adaptation(s, t, beta), numpy if beta else s, atol=1e-5, rtol=1e-5)


def fill(module: nn.Module, names: dict[str, str], seed: int) -> nn.Module:
    """Weights by the rule that the cases state, in the order of the authors' names."""
    state = module.state_dict()
    own = {f"model.{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in names.items() for kind in ("weight", "bias")}
    assert sorted(own.values()) == sorted(state)
    g = torch.Generator().manual_seed(seed)
    for theirs in sorted(own):
        tensor = state[own[theirs]]
        z = torch.randn(tensor.shape, generator=g)
        tensor.copy_(0.1 * z if theirs.endswith("bias") else z / tensor[0].numel() ** 0.5)
    return module


@pytest.mark.parametrize(
    ("name", "module", "names", "output"),
    [("network_generator", Generator, GENERATOR, "image"), ("network_patchgan", PatchDiscriminator, PATCH, "score")],
)
def test_networks(name, module, names, output, cases):
    case = cases[name]
    network = fill(module(), names, int(re.findall(r"\d+", case.settings["weights"])[0]))
    assert sum(p.numel() for p in network.parameters()) == case.settings["parameters"]
    with torch.no_grad():
        torch.testing.assert_close(network(case.input["image"]), case.output[output], atol=1e-5, rtol=1e-4)


def test_parameters_of_addas_discriminator(cases):
    for channels, count in cases["adda_discriminator_ce"].settings["discriminator_parameters"].items():
        assert sum(p.numel() for p in DomainDiscriminator(int(channels)).parameters()) == count

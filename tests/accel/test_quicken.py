"""Networks with quick training passes compute what they computed before."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from maskwright.accel import switch
from maskwright.accel.quicken import QuickBatchNorm, QuickDepthwise, QuickDepthwiseSame, QuickNormAct, quicken
from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks.blocks import BatchNorm2d, QuickBatchNorm2d
from maskwright.models.networks.smp import smp_parts

NETWORKS = ("mobilenetv2_100", "tf_efficientnet_lite0", "resnet18", "convnext_atto", "hrnet_w18_small")


def network(name):
    """A network of timm with features, in training mode, and a batch."""
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True).train()
    return model.to(memory_format=torch.channels_last), torch.randn(4, 3, 128, 160)


def step(model, x, precision=None):
    """Loss, gradients and buffers after a training step."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = sum(f.to(x).square().mean() for f in model(x))
    loss.backward()
    return loss.detach(), {k: p.grad for k, p in model.named_parameters()}, dict(model.named_buffers())


def off(grads, exact):
    """Distance of all gradients from exact ones over the length of these: 1 and more where one is wrong."""
    square = sum((grads[k].double() - g).square().sum() for k, g in exact.items())
    return float((square / sum(g.square().sum() for g in exact.values())).sqrt())


@pytest.mark.parametrize("name", NETWORKS)
def test_same_loss_gradients_and_running_statistics(name):
    """In float32, as near to float64 as a network is whose rectifiers let a rounding error choose."""
    plain, x = network(name)
    quick = quicken(copy.deepcopy(plain))
    loss, exact, buffers = step(plain.double(), x.double())
    quick_loss, grads, quick_buffers = step(quick, x)
    torch.testing.assert_close(quick_loss.double(), loss, rtol=1e-4, atol=1e-6)
    assert grads.keys() == exact.keys() and buffers.keys() == quick_buffers.keys()
    assert off(grads, exact) < 0.03
    for k, v in buffers.items():
        torch.testing.assert_close(quick_buffers[k], v.to(quick_buffers[k]), rtol=1e-3, atol=1e-4)


def test_in_bf16_no_further_from_exact_than_torch():
    """Both round; the quick passes round less often."""
    plain, x = network("mobilenetv2_100")
    models = copy.deepcopy(plain), quicken(copy.deepcopy(plain))
    exact = step(plain.double(), x.double())[1]
    of_torch, of_ours = (off(step(m, x, "bf16")[1], exact) for m in models)
    assert of_ours <= 1.1 * of_torch


def test_a_rectifier_in_place_may_follow():
    """As in the decoders of the library: what a quick batch norm gives is no view."""
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)), torch.randn(2, 3, 5, 5)
    quick, grads = quicken(copy.deepcopy(plain)), []
    for m in (plain, quick):
        m(x).square().sum().backward()
        grads.append(m[0].weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_what_becomes_quick():
    """Strided, large and dilated depthwise convolutions and batch norms, of timm, of the library and of ours."""
    model = quicken(timm.create_model("tf_efficientnet_lite0"))
    kinds = {type(m) for m in model.modules()}
    assert {QuickDepthwiseSame, QuickDepthwise, QuickNormAct} <= kinds
    for m in model.modules():
        if isinstance(m, nn.Conv2d) and m.groups > 1:
            plain = m.kernel_size == (3, 3) and m.stride == (1, 1)
            assert (type(m) is nn.Conv2d) == plain
    assert type(quicken(BatchNorm2d(8), {BatchNorm2d: QuickBatchNorm2d})) is QuickBatchNorm2d
    assert type(quicken(BatchNorm2d(8))) is BatchNorm2d, "a kind that nobody named"
    assert type(quicken(nn.BatchNorm2d(12))) is nn.BatchNorm2d  # torch's, where channels are not in eights


def test_ours_are_quick():
    """Backbones, and encoders and decoders of the library."""
    assert any(isinstance(m, QuickNormAct) for m in build_backbone("mobilenetv2_100", "random").modules())
    parts = smp_parts("deeplabv3plus", "tu-mobilenetv2_100", 4)
    assert any(isinstance(m, QuickNormAct) for m in parts.encoder.modules())
    assert sum(isinstance(m, QuickDepthwise) for m in parts.decoder.modules()) == 3  # the dilated ones


def test_copies_and_names_stay():
    """A copy computes with its own weights, and a state dict fits either way."""
    plain, x = network("mobilenetv2_100")
    quick = quicken(copy.deepcopy(plain))
    assert list(quick.state_dict()) == list(plain.state_dict())
    teacher = copy.deepcopy(quick)
    with torch.no_grad():
        for p in teacher.parameters():
            p.zero_()
    assert not any(f.any() for f in teacher(x)) and any(f.any() for f in quick(x))


def test_evaluation_is_untouched():
    """To the bit without gradients, and up to rounding with them."""
    plain, x = network("mobilenetv2_100")
    plain.eval()
    quick = quicken(copy.deepcopy(plain))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(plain(x), quick(x), strict=True))
    for a, b in zip(plain(x), quick(x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4 * float(a.detach().abs().max()))


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18", "tf_efficientnet_lite0"])
def test_frozen_norms_give_torchs_gradients(name):
    """Of input and all weights, scale and shift of the norms among them."""
    plain, x = network(name)
    for m in plain.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
            m.running_mean.normal_(0, 0.2), m.running_var.uniform_(0.5, 2)
    quick = quicken(copy.deepcopy(plain))
    grads = []
    for m in (plain, quick):
        y = x.clone().requires_grad_()
        sum((f.double() * torch.linspace(-1, 1, f.shape[1])[:, None, None]).sum() for f in m(y)).backward()
        grads.append({"x": y.grad} | {n: p.grad for n, p in m.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for key, want in grads[0].items():
        # As a whole: a value within rounding of a clip may fall on its other side.
        assert float((grads[1][key] - want).norm()) <= 2e-3 * float(want.norm()) + 1e-6, key


def test_a_frozen_norm_learns_nothing():
    """Evaluation mode inside a network in training, as `freeze_norm` has it."""
    plain, x = network("mobilenetv2_100")
    quick = quicken(plain)
    for m in quick.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    before = {k: v.clone() for k, v in quick.named_buffers()}
    step(quick, x)
    assert all(torch.equal(v, before[k]) for k, v in quick.named_buffers())


def test_single_values_are_borne_or_refused_as_before():
    """One value a channel: torch's batch norm refuses it, ours takes the running statistics."""
    x = torch.randn(1, 8, 1, 1, requires_grad=True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        quicken(nn.BatchNorm2d(8))(x)
    quick = quicken(BatchNorm2d(8), {BatchNorm2d: QuickBatchNorm2d})
    assert torch.allclose(quick(x), x, atol=1e-4)


def test_a_bias_gets_its_gradient():
    """ConvNeXt's depthwise convolutions have one."""
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 7, padding=3, groups=8)
    quick, x = quicken(copy.deepcopy(plain)), torch.randn(2, 8, 9, 9)
    assert list(quick.state_dict()) == list(plain.state_dict())
    for m in (plain, quick):
        m(x).square().sum().backward()
    assert type(quick) is QuickDepthwise
    torch.testing.assert_close(quick.bias.grad, plain.bias.grad)


def test_library_network_still_trains_in_all():
    """The whole DeepLabV3+ of the library, encoder and decoder."""
    torch.manual_seed(0)
    plain, x = (
        smp.DeepLabV3Plus("tu-mobilenetv2_100", encoder_weights=None, classes=3).train(),
        torch.randn(4, 3, 128, 128),
    )
    for m in plain.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    quick, found = quicken(copy.deepcopy(plain)), []
    for m, y in ((plain.double(), x.double()), (quick, x)):
        m(y).square().mean().backward()
        found.append({k: p.grad for k, p in m.named_parameters()})
    assert off(found[1], found[0]) < 0.03


def test_tensors_modes_and_order_are_taken_over():
    """The very parameters and buffers, so that an optimiser made before still trains them."""
    plain, _ = network("mobilenetv2_100")
    plain.bn1.eval()
    plain.conv_stem.requires_grad_(False)
    before, names = dict(plain.named_parameters()), [n for n, _ in plain.named_modules()]
    buffers, modes = dict(plain.named_buffers()), {n: m.training for n, m in plain.named_modules()}
    state = torch.random.get_rng_state()
    quick = quicken(plain)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert quick is plain and [n for n, _ in quick.named_modules()] == names
    assert all(p is before[n] for n, p in quick.named_parameters())
    assert all(b is buffers[n] for n, b in quick.named_buffers())
    assert {n: m.training for n, m in quick.named_modules()} == modes
    assert type(quick.bn1) is QuickNormAct and not quick.bn1.training


def test_a_module_with_two_names_stays_one():
    norm = nn.BatchNorm2d(8)
    quick = quicken(nn.ModuleDict({"a": nn.Sequential(norm), "b": nn.Sequential(norm)}))
    assert type(quick["a"][0]) is QuickBatchNorm and quick["a"][0] is quick["b"][0]


def test_a_module_with_hooks_stays():
    """Whoever hooked it would listen to a module that nobody calls."""
    norm, seen = nn.BatchNorm2d(8), []
    norm.register_forward_hook(lambda m, x, y: seen.append(y.shape))
    quick = quicken(nn.Sequential(norm))
    quick(torch.randn(2, 8, 3, 3))
    assert quick[0] is norm and seen == [(2, 8, 3, 3)]


def test_switched_off_it_is_torchs_to_the_bit():
    plain, x = network("tf_efficientnet_lite0")
    loss, grads, _ = step(copy.deepcopy(plain), x)
    quick = quicken(plain)
    with switch.using(False):
        assert not switch.enabled()
        off_loss, off_grads, _ = step(copy.deepcopy(quick), x)
    assert switch.enabled()
    assert torch.equal(off_loss, loss) and all(torch.equal(off_grads[k], g) for k, g in grads.items())
    on_grads = step(quick, x)[1]
    assert any(not torch.equal(on_grads[k], g) for k, g in grads.items()), "on, others compute"


@pytest.mark.parametrize("value, expected", [("0", "False"), ("1", "True"), (None, "True")])
def test_the_environment_says_it(value, expected):
    environment = {k: v for k, v in os.environ.items() if k != switch.VARIABLE}
    environment |= {} if value is None else {switch.VARIABLE: value}
    code = "from maskwright.accel.switch import enabled; print(enabled())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [expected], done.stderr


def test_torch_compile_traces_it_whole():
    """What is traced has no kernel of ours in it, and computes torch's numbers."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8)
    plain, x = nn.Sequential(nn.Conv2d(3, 8, 1), conv, nn.BatchNorm2d(8)), torch.randn(2, 3, 12, 12)
    quick = quicken(copy.deepcopy(plain))
    assert [type(m) for m in quick] == [nn.Conv2d, QuickDepthwise, QuickBatchNorm]
    found = []
    for m in (plain, torch.compile(quick, backend="eager", fullgraph=True)):
        y = m(x)
        y.square().sum().backward()
        found.append((y.detach(), *(p.grad for p in m.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a)

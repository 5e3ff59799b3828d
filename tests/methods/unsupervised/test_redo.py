"""ReDO: invariants of masks, generators and judges, the restart, polarity, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.conftest import write_tiny_folder
from tests.methods.unsupervised.small import parts_of, steps_of, trainer

from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.evaluate.protocols import evaluate_arrays
from maskwright.methods.unsupervised.redo import networks as N
from maskwright.methods.unsupervised.redo.losses import composites, recovery_loss
from maskwright.methods.unsupervised.redo.method import RedoConfig
from maskwright.methods.unsupervised.redo.training import CentralSquare, RedoTraining, Shares
from maskwright.models.parts.regions import RegionClassifier, RegionEncoder
from maskwright.models.parts.table import build_part

TINY = {
    "crops.size": 16, "crops.batch": 4, "networks.width": 2, "networks.judge_width": 8, "networks.mask_width": 8,
    "networks.mask_blocks": 1, "networks.noise": 4, "restart.below": 0.0,
}  # fmt: skip
train = trainer("redo", TINY, classes=2)


@pytest.fixture(autouse=True)
def seeded():
    """Networks that tests make have the same weights each time."""
    torch.manual_seed(0)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def again(part):
    built = build_part(json.loads(json.dumps(part.spec())))
    built.load_state_dict(part.state_dict())
    return built.eval()


def test_masks_add_up_and_what_is_drawn_stays_in_its_region():
    x, z = draw(2, 3, 16, 16), draw(2, 4)
    encoder = RegionEncoder(8, 1)
    for regions in (2, 3):
        m = RegionClassifier(encoder.out, regions)(encoder(x)).softmax(1)
        torch.testing.assert_close(m.sum(1), torch.ones(2, 16, 16))
    generator = N.RegionGenerator(4, 2, 16, attention=True)
    half = torch.zeros(2, 1, 16, 16)
    half[..., :8] = 1
    drawn = generator(half, z)
    assert not drawn[..., 8:].any() and drawn[..., :8].any() and drawn.abs().max().item() <= 1
    whole = torch.cat((torch.ones(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)), 1)
    both = torch.stack([generator(whole[:, k : k + 1], z) for k in range(2)], 1)
    first, second = composites(x, whole, both).unflatten(0, (2, 2)).unbind(1)
    assert torch.equal(first, both[:, 0]) and torch.equal(second, x), "all is drawn, and nothing is"


def test_recovery_of_nothing_costs_one():
    assert float(recovery_loss(draw(4000, 2, 8), torch.zeros(4000, 2, 8))) == pytest.approx(1, abs=0.02)


def test_spectral_norm_brings_the_largest_singular_value_to_one():
    conv = N.SNConv2d(5, 7)
    N.initialise(conv)
    assert torch.allclose(conv.weight.flatten(1) @ conv.weight.flatten(1).T, 0.64 * torch.eye(7), atol=1e-5)
    torch.nn.init.normal_(conv.weight)
    x = draw(1, 5, 3, 3)
    with torch.no_grad():
        for _ in range(300):
            conv.train()(x)
        before = conv.u.clone()
        y = conv.eval()(x)
        sigma = torch.linalg.svdvals(conv.weight.flatten(1))[0]
        plain = torch.nn.functional.conv2d(x, conv.weight / sigma, conv.bias, padding=1)
    torch.testing.assert_close(y, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(conv.u, before), "only training passes iterate"


def test_attention_begins_as_the_identity_and_reads_all_places():
    net, x = N.SelfAttention(8), draw(1, 8, 4, 6)
    for _ in range(30):
        net.train()(x)  # power iterations: else logits are so large that one place has it all
    net.eval()
    assert torch.equal(net(x), x)
    torch.nn.init.ones_(net.gamma)
    far = x.clone()
    far[..., -2:, -2:] += draw(1, 8, 1, 1, seed=1)
    assert not torch.allclose(net(x)[..., 0, 0], net(far)[..., 0, 0])


def test_the_mask_network_takes_any_size_and_survives_its_spec():
    encoder, head = RegionEncoder(8, 1), RegionClassifier(3, 2, 0.5)
    assert encoder.out == 3
    for size in ((4, 4), (8, 4), (20, 36)):
        x = draw(1, 3, *size)
        y = head(encoder(x))
        assert y.shape == (1, 2, *size) and bool(y.isfinite().all())
        assert torch.equal(again(head)(again(encoder)(x)), y)
    swapped = RegionClassifier(3, 2, 0.5, swap=True)
    swapped.load_state_dict(head.state_dict())
    assert torch.equal(swapped(encoder(x)), y.flip(1))
    with pytest.raises(ValueError, match="multiples of 4"):
        encoder(draw(1, 3, 8, 9))


def test_evaluation_does_not_depend_on_which_region_is_which():
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 2, (6, 5)), rng.integers(0, 2, (6, 5))) for _ in range(5)]
    plain = evaluate_arrays(pairs, 2, "either_polarity")
    turned = evaluate_arrays([(1 - p, t) for p, t in pairs], 2, "either_polarity")
    assert plain.extra == pytest.approx(turned.extra) and plain.miou == pytest.approx(turned.miou)
    assert plain.extra["iou_either"] >= plain.extra["iou_one"]
    one = max(np.mean([(q == 1)[t == 1].sum() / ((q == 1) | (t == 1)).sum() for q, t in side])
              for side in (pairs, [(1 - p, t) for p, t in pairs]))  # fmt: skip
    assert plain.extra["iou_one"] == pytest.approx(one)
    empty = evaluate_arrays([(np.ones((4, 4), int), np.zeros((4, 4), int))], 2, "either_polarity")
    assert empty.extra["iou_either"] == 1 and empty.extra["accuracy_either"] == 1


def test_squares_are_central():
    view = CentralSquare(16, (1.0, 1.0), 16).view((40, 64), torch.Generator())
    assert view.size == (16, 16)
    np.testing.assert_allclose(view.corners().numpy(), [[12, 0], [52, 0], [52, 40], [12, 40]], atol=1e-9)


def test_a_region_that_vanishes_begins_everything_anew(data, tmp_path):
    """Every look restarts: no region of two has more than half. Then the foreground is what touches the border less."""
    restarted = {"restart.below": 0.5, "restart.every": 2, "restart.until": 1.0}
    model = train(data, tmp_path / "run", steps=5, **restarted)
    lines = steps_of(tmp_path / "run")
    assert [m["restarts"] for m in lines] == [0, 0, 1, 1, 2]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert sum("begin anew" in n for n in record["notes"]) == 2
    assert any("touches the border less" in n for n in record["notes"])
    left = parts_of(tmp_path / "run")
    assert all(int(s["step"]) == 1 for s in left["optimizer.discriminator"]["state"].values()), "it remembers one step"
    assert record["provenance"]["labels_seen"] == "none" and len(model.classes) == 2


def test_many_regions_are_small_and_have_not_vanished():
    """Of twelve equal regions each has a twelfth of the pixels, less than a tenth."""
    began = []
    for share, regions in ((1 / 12, 12), (0.01, 12), (0.099, 2), (0.101, 2)):
        shares = Shares(regions)
        shares.add(torch.full((1, regions, 2, 2), share))
        training = SimpleNamespace(
            config=configure(RedoConfig, {"restart.every": 1}), context=SimpleNamespace(classes=regions), steps=100,
            shares=shares, restart=lambda step, least: began.append(round(least, 3)),
        )  # fmt: skip
        RedoTraining.before_step(training, 1)
    assert began == [0.01, 0.099]


def test_what_cannot_be(data, tmp_path):
    paper = configure(RedoConfig, {"preset": "paper"})
    assert (paper.crops.size, paper.networks.width, paper.rates.masks) == (128, 64, 1e-5)
    assert configure(RedoConfig, {"preset": "paper_flowers"}).networks.width == 32
    for wrong, told in (({"crops.size": 48}, "16, 32"), ({"mask_width": 6}, "multiple of 4")):
        with pytest.raises(MaskwrightError, match=told):
            configure(RedoConfig, wrong)
    with pytest.raises(MaskwrightError, match="1 region"):
        train(data, tmp_path / "single", classes=1)
    with pytest.raises(MaskwrightError, match="at least 2 for redo"):
        train(write_tiny_folder(tmp_path / "one", count=1), tmp_path / "a")

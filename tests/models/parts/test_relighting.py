"""DANNet's parts of a saved model: the relighting network, the encoder behind it, and weighted logits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch
from tests.golden.cases import read_cases
from torch import Tensor

from maskwright.errors import MaskwrightError
from maskwright.models.parts.heads import Identity, LinearClassifier
from maskwright.models.parts.relighting import Relighting, RelitEncoder, WeightedClassifier
from maskwright.models.parts.table import build_part, check_loadable


def stirred(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module in evaluation mode with random weights everywhere."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g) / math.sqrt(p[0].numel()))
    return module.eval()


def test_it_begins_as_the_identity():
    x = torch.randn(2, 3, 16, 24)
    assert not Relighting(4)(x).any()
    assert torch.equal(RelitEncoder(Relighting(4), Identity())(x), x)


@pytest.mark.parametrize("size", [(16, 24), (33, 91), (8, 8), (1, 1), (5, 40)])
def test_any_size_is_taken_and_given_back(size):
    x = torch.randn(1, 3, *size)
    r = stirred(Relighting(4))(x)
    assert r.shape == x.shape and r.abs().max() < 1 and r.any()


def test_what_is_added_to_a_part_of_a_photograph_depends_on_its_surroundings_alone():
    """A crop from far inside is relit as in the whole, so that windows of a large photograph agree."""
    net, x = stirred(Relighting(2)), torch.randn(1, 3, 128, 128)
    whole, window = net(x), net(x[..., 32:128, 32:128])
    torch.testing.assert_close(whole[..., 80:100, 80:100], window[..., 48:68, 48:68], rtol=1e-4, atol=1e-5)


def test_parameters_are_those_of_the_paper():
    assert sum(p.numel() for p in Relighting(64).parameters()) == 4_299_395


def test_weights_multiply_logits():
    inner, weight = LinearClassifier(4, 3), torch.tensor([0.5, 1.0, 2.0])
    x = torch.randn(2, 4, 5, 6)
    found = WeightedClassifier(inner, weight)(x)
    for c in range(3):
        torch.testing.assert_close(found[:, c], inner(x)[:, c] * float(weight[c]))
    with pytest.raises(ValueError, match="2 weights for 3 classes"):
        WeightedClassifier(inner, torch.ones(2))
    for wrong in (0.0, -1.0, math.nan, math.inf):
        part = WeightedClassifier(inner, torch.tensor([1.0, wrong, 1.0]))
        with pytest.raises(ValueError, match="above 0"):
            part.check_tensors()


def test_they_come_back_from_what_they_say_of_themselves():
    parts = RelitEncoder(Relighting(3), Identity()), WeightedClassifier(LinearClassifier(4, 3), torch.ones(3))
    for part in parts:
        check_loadable(part)
        twin = build_part(json.loads(json.dumps(part.spec())))
        twin.load_state_dict(part.state_dict())
        assert twin.spec() == part.spec()
    for wrong in (
        {"kind": "RelitEncoder"},
        {"kind": "RelitEncoder", "relighting": {"kind": "Relighting", "width": 0}, "encoder": {"kind": "Identity"}},
        {"kind": "WeightedClassifier", "classes": 3},
        {"kind": "WeightedClassifier", "classes": 10**9, "classifier": LinearClassifier(4, 3).spec()},
        {"kind": "WeightedClassifier", "classes": 2, "classifier": LinearClassifier(4, 3).spec()},
    ):
        with pytest.raises(MaskwrightError):
            build_part(wrong)


# ---------------------------------------------------------------------- the authors' network


def filled(keys: list[tuple[str, tuple[int, ...]]], seed: int) -> dict[str, Tensor]:
    """The tensors that the authors' networks were run with, by the rule of the cases' page."""
    g, found = torch.Generator().manual_seed(seed), {}
    for key, shape in sorted(keys):
        if key.endswith("num_batches_tracked"):
            continue
        z = torch.randn(shape, generator=g)
        if key.endswith("running_var"):
            z = z.abs() + 0.5
        elif len(shape) > 1:
            z = z / math.sqrt(math.prod(shape[1:]))
        elif key.endswith(("running_mean", "bias")):
            z = 0.1 * z
        else:
            z = 1 + 0.1 * z
        found[key] = z
    return found


def keys_of(text: str) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Keys and shapes of the authors' networks, in the order in which they were built."""
    for part in text.split("--D"):
        lines = [line.split(" ", 1) for line in part.strip().splitlines()]
        yield [(key, tuple(int(n) for n in shape.strip("()").split(",") if n.strip())) for key, shape in lines]


@pytest.mark.data
def test_equal_to_the_authors(data_root):
    from maskwright.methods.adapt.dannet.discriminator import OutputDiscriminator

    root = data_root.parent / "golden"
    if not (root / "dannet").is_dir():
        pytest.skip("no tensors of the authors' code beside the photographs")
    cases = read_cases(root, "dannet")
    relight, judge = keys_of((root / "dannet" / "keys.txt").read_text())
    for keys, seed, network, case, given, made in (
        (relight, 1, Relighting(), "network_relight", "image", "residual"),
        (judge, 2, OutputDiscriminator(19), "network_discriminator", "probability", "score"),
    ):
        order = [key for key, _ in keys if not key.endswith("num_batches_tracked")]
        values = filled(keys, seed)
        mine = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
        state = {own: values[key] for own, key in zip(mine, order, strict=True)}
        network.load_state_dict(state, strict=False)
        found = network.eval()(cases[case].input[given].float())
        torch.testing.assert_close(found, cases[case].output[made].float(), rtol=1e-5, atol=1e-5)

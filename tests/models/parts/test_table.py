"""The table of parts: complete, imported part by part, and asked before anything is trained or saved."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import maskwright
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.parts import table
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import CosineClassifier, Identity, L2Norm, LinearClassifier, Sequential
from maskwright.models.parts.part import Part
from maskwright.models.parts.table import (
    TABLE,
    build_part,
    check_known,
    check_loadable,
    check_modules,
    check_parts_of,
    find_part,
)


class Own(Part):
    """A part that no table names."""


def every_part() -> list[type[Part]]:
    """All parts of the package that can be used as they are."""
    for module in pkgutil.walk_packages(maskwright.__path__, "maskwright."):
        if module.name.endswith("__main__"):
            continue
        importlib.import_module(module.name)
    found, left = [], [Part]
    while left:
        below = left.pop().__subclasses__()
        left += below
        found += [p for p in below if p.__module__.startswith("maskwright.") and not p.__name__.startswith("_")]
    return [p for p in found if not inspect.isabstract(p)]


def test_the_table_names_every_part_and_nothing_else():
    parts = every_part()
    for part in parts:
        check_known(part)
    assert sorted(TABLE) == sorted(part.__name__ for part in parts)
    for name, where in TABLE.items():
        assert find_part(name).__name__ == name and where.startswith("maskwright.models."), where


def test_a_part_brings_its_own_module_alone():
    """Whoever loads clusters does not load the networks."""
    code = (
        "import sys; from maskwright.models.parts.table import find_part; find_part('CosineClassifier');"
        "print(*sorted(m for m in sys.modules if m.startswith('maskwright.models.networks')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "part", [Own(), Sequential(L2Norm(), Own()), nn.Conv2d(3, 4, 1)], ids=["own", "inside", "none"]
)
def test_a_part_that_the_table_does_not_know_is_refused(part):
    with pytest.raises(MaskwrightError, match="not in the table") as error:
        check_loadable(part)
    assert "table.py" in error.value.repair and "\n" not in str(error.value)


def test_a_part_of_a_known_name_from_elsewhere_is_refused():
    with pytest.raises(MaskwrightError, match="not in the table"):
        check_known(type("Identity", (Part,), {"__module__": __name__}))


def test_a_part_that_its_spec_does_not_describe_is_refused():
    part = LinearClassifier(8, 3)
    part.linear = nn.Conv2d(8, 4, 1)
    with pytest.raises(MaskwrightError, match=r"linear.bias has shape \(4,\), and \(3,\)"):
        check_loadable(part)
    part = LinearClassifier(8, 3)
    part.more = nn.Linear(2, 2)
    with pytest.raises(MaskwrightError, match="None when it is built"):
        check_loadable(part)
    part = LinearClassifier(8, 3)
    part.width = torch.tensor(8)
    with pytest.raises(MaskwrightError, match="has no spec"):
        check_loadable(part)


def test_checking_changes_nothing_and_draws_nothing():
    encoder = BackboneEncoder(build_backbone("resnet18", "random"), layers=[1, 3])
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.random.get_rng_state()
    check_loadable(encoder)
    check_loadable(CosineClassifier(torch.ones(3, 4)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_what_a_spec_gives_is_built_once_and_stays_without_random_numbers(monkeypatch):
    built, real = [], table.build_part
    monkeypatch.setattr(table, "build_part", lambda spec: built.append(spec["kind"]) or real(spec))
    table._shapes_from.cache_clear()
    for _ in range(2):
        check_loadable(LinearClassifier(8, 3))
    check_loadable(LinearClassifier(8, 4))
    assert built == ["LinearClassifier"] * 2, "one for each spec"
    draws = nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.trunc_normal_, nn.init.xavier_normal_
    with table._Unfilled():
        assert not any(draw(torch.zeros(3, 3)).any() for draw in draws)
    assert all(draw(torch.zeros(3, 3)).any() for draw in draws)


def test_parts_are_found_wherever_they_are_in_a_training():
    check_modules([nn.ModuleDict({"a": nn.Sequential(Identity(), nn.Linear(2, 2))}), nn.Linear(2, 2)])
    with pytest.raises(MaskwrightError, match="part Own"):
        check_modules([nn.Linear(2, 2), nn.ModuleDict({"a": nn.Sequential(Identity(), Own())})])


def test_parts_of_a_file_are_checked_with_its_method():
    class Here:
        """Stands for a method in this file."""

    with pytest.raises(MaskwrightError, match="part Own"):
        check_parts_of(Here)
    check_parts_of(type("Elsewhere", (), {"__module__": "maskwright.methods.unsupervised.kmeans"}))


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(MaskwrightError, match="CosineClassifier"):
        build_part({"kind": "CosineClasifier"})

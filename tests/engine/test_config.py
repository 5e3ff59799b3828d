from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from maskwright.engine.config import configure, describe, option
from maskwright.errors import MaskwrightError


@dataclass(frozen=True, kw_only=True)
class Config:
    clusters: int = option(27, "how many", low=1, high=1000)
    rate: float = option(1e-3, "learning rate", low=0.0)
    crf: bool = option(False, "refine with a CRF")
    kind: str = option("tokens", "what of a block", choices=("tokens", "q", "k", "v"))
    layers: tuple[int, ...] | None = option(None, "layers to read")
    scales: tuple[float, ...] = option((0.5, 1.0), "scales", low=0.1)
    limit: int | None = option(None, "rows, or none", low=10)
    weights: str | None = option(None, "a file")


@dataclass(frozen=True, kw_only=True)
class Checked(Config):
    def check(self) -> None:
        if self.crf and self.kind != "tokens":
            raise MaskwrightError("crf with another kind than tokens")


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("clusters", "5", 5),
        ("rate", "1e-4", 1e-4),
        ("rate", "3", 3.0),
        ("crf", "true", True),
        ("crf", "No", False),
        ("crf", "1", True),
        ("crf", "0", False),
        ("kind", "k", "k"),
        ("layers", "3", (3,)),
        ("layers", "3,4", (3, 4)),
        ("layers", "3; 4;", (3, 4)),
        ("layers", "none", None),
        ("layers", "", None),
        ("scales", "0.5,1,2", (0.5, 1.0, 2.0)),
        ("limit", "None", None),
        ("limit", "20", 20),
        ("weights", "a.pt", "a.pt"),
        ("weights", "none", None),
        ("clusters", 1000, 1000),
        ("rate", 0, 0.0),
        ("layers", [1, 2], (1, 2)),
        ("layers", None, None),
        ("crf", True, True),
    ],
)  # fmt: skip
def test_values_become_the_fields_type(key, text, value):
    found = getattr(configure(Config, {key: text}), key)
    assert found == value and type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(v) for v in found] == [type(v) for v in value]


def test_defaults():
    assert configure(Config, {}) == Config()


@pytest.mark.parametrize(
    "key, value",
    [
        ("clusters", "five"), ("clusters", "5.5"), ("clusters", ""), ("clusters", "none"), ("clusters", 5.5),
        ("clusters", True), ("clusters", None), ("rate", "fast"), ("rate", [1]), ("crf", "maybe"), ("crf", 1),
        ("layers", "a,b"), ("layers", 3), ("layers", [1, 2.5]), ("scales", "none"), ("limit", "many"), ("kind", 3),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(key, value):
    with pytest.raises(MaskwrightError, match=f"{key}=.*expected a value of type"):
        configure(Config, {key: value})


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("clusters", "0", "at least 1"),
        ("clusters", "1001", "at most 1000"),
        ("rate", "-0.1", "at least 0"),
        ("rate", "nan", "expected a number"),
        ("scales", "1,0", "at least 0.1"),
        ("limit", "9", "at least 10"),
        ("kind", "token", "did you mean 'tokens'"),
    ],
)
def test_ranges_and_choices(key, value, words):
    with pytest.raises(MaskwrightError, match=words):
        configure(Config, {key: value})


def test_edges_of_a_range_are_inside():
    assert configure(Config, {"clusters": "1", "rate": "0", "limit": "10", "scales": "0.1"}).clusters == 1


def test_unknown_key_offers_the_nearest():
    with pytest.raises(MaskwrightError) as caught:
        configure(Config, {"cluster": "3"})
    line = str(caught.value)
    assert "unknown setting 'cluster'" in line and "did you mean 'clusters'?" in line and "\n" not in line
    assert all(f in line for f in ("rate", "crf", "layers"))
    with pytest.raises(MaskwrightError, match="choose one of those"):
        configure(Config, {"zzzzzz": "3"})


def test_a_configuration_checks_itself():
    configure(Checked, {"crf": "true"})
    with pytest.raises(MaskwrightError, match="crf with another kind"):
        configure(Checked, {"crf": "true", "kind": "q"})


def test_describe():
    rows = {r["name"]: r for r in describe(Config)}
    assert list(rows) == ["clusters", "rate", "crf", "kind", "layers", "scales", "limit", "weights"]
    known = {"name": "clusters", "type": "int", "default": 27, "says": "how many", "choices": None}
    assert {k: rows["clusters"][k] for k in known} == known
    assert set(rows["clusters"]) == {*known, "low", "high"}
    assert rows["kind"]["choices"] == ["tokens", "q", "k", "v"]
    assert rows["scales"]["type"] == "tuple[float, ...]"
    assert rows["layers"]["type"] == "tuple[int, ...] | None"
    assert json.loads(json.dumps(list(rows.values())))[0]["default"] == 27


def test_options_that_a_method_has_no_use_for_are_neither_listed_nor_taken():
    @dataclass(frozen=True, kw_only=True)
    class Narrow(Config):
        unused = frozenset({"clusters"})

    assert "clusters" not in {o["name"] for o in describe(Narrow)}
    with pytest.raises(MaskwrightError, match="clusters=3: nothing here depends on it"):
        configure(Narrow, {"clusters": "3"})
    assert configure(Narrow, {}).clusters == 27

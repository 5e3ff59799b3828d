from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import ClassVar

import pytest

from maskwright.engine.config import configure, describe, fill_from_preset, flat, nested, option, options, part
from maskwright.engine.records import RunFolder
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
        ("layers", "a,b"), ("layers", 3), ("scales", "none"), ("limit", "many"), ("kind", 3),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(key, value):
    words = {
        "clusters": "a whole number", "rate": "a number", "crf": "true or false", "kind": "a word",
        "layers": "whole numbers joined by commas", "scales": "numbers joined by commas",
        "limit": "a whole number",
    }  # fmt: skip
    with pytest.raises(MaskwrightError, match=f"{key}=.*expected {words[key]}"):
        configure(Config, {key: value})


def test_an_element_of_another_type_is_refused():
    with pytest.raises(MaskwrightError, match=r"layers=2\.5; expected a whole number"):
        configure(Config, {"layers": [1, 2.5]})


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
    assert set(rows["clusters"]) == {*known, "low", "high", "old", "main", "group"}
    assert (rows["clusters"]["old"], rows["clusters"]["main"], rows["clusters"]["group"]) == ("clusters", False, "")
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


# ---------------------------------------------------------------------------------------------------------- parts


@dataclass(kw_only=True)
class Rates:
    lr: float = option(1e-3, "step size", low=0, old="rate")
    decay: float = option(0.01, "weight decay", low=0)


@dataclass(kw_only=True)
class Teacher:
    ema: float = option(0.99, "momentum", low=0, high=1, main=True)
    buffers: str = option("ema", "statistics", choices=("ema", "copy", "own"), old="ema_buffers")
    mode: str = option("eval", "batch norm of it", choices=("eval", "train"))

    def check(self) -> None:
        if self.buffers == "own" and self.mode == "eval":
            raise MaskwrightError("buffers=own with mode=eval", "mode=train")


@dataclass(kw_only=True)
class Critic:
    weight: float = option(0.1, "of its loss", low=0)
    width: int = option(64, "channels", low=1)
    rates: Rates = part(Rates, lr=1e-4)


@dataclass(kw_only=True)
class Nested:
    steps: int = option(100, "of training", low=1, main=True)
    weight: float = option(1.0, "of the unlabelled loss", low=0, old="u_weight")
    rates: Rates = part(Rates)
    teacher: Teacher = part(Teacher, ema=0.999, main=("buffers",), says={"mode": "train or eval"})
    critic: Critic = part(
        Critic, without=("width",), old={"rates.lr": "critic_lr"}, rates={"decay": 0.0}, weight=0.5, main=("rates.lr",)
    )


@dataclass(kw_only=True)
class OldNested:
    """What `Nested` was before it had parts; it had two options without a use besides."""

    unused: ClassVar[frozenset[str]] = frozenset({"gone", "width"})
    steps: int = option(100, "of training", low=1)
    u_weight: float = option(1.0, "of the unlabelled loss", low=0)
    rate: float = option(1e-3, "step size", low=0)
    ema: float = option(0.999, "momentum", low=0, high=1)
    ema_buffers: str = option("ema", "statistics", choices=("ema", "copy", "own"))
    critic_lr: float = option(1e-4, "step size", low=0)
    width: int = option(32, "channels", low=1)
    gone: int = option(3, "of what is no more", low=0)


def test_defaults_of_parts():
    config = configure(Nested, {})
    assert config == Nested()
    assert config.teacher == Teacher(ema=0.999) and config.critic.rates == Rates(lr=1e-4, decay=0.0)
    assert Nested().teacher is not Nested().teacher


@pytest.mark.parametrize(
    "key, dotted",
    [
        ("teacher.ema", "teacher.ema"), ("ema", "teacher.ema"), ("ema_buffers", "teacher.buffers"),
        ("buffers", "teacher.buffers"), ("mode", "teacher.mode"), ("rate", "rates.lr"), ("rates.lr", "rates.lr"),
        ("critic_lr", "critic.rates.lr"), ("critic.rates.lr", "critic.rates.lr"), ("steps", "steps"),
        ("weight", "weight"), ("u_weight", "weight"), ("critic.weight", "critic.weight"),
        ("critic.rates.decay", "critic.rates.decay"), ("rates.decay", "rates.decay"),
    ],
)  # fmt: skip
def test_an_option_goes_by_its_whole_name_its_last_where_it_is_the_only_one_and_that_of_before(key, dotted):
    value = {"buffers": "copy", "mode": "train", "steps": 7}.get(dotted.rpartition(".")[2], 0.25)
    changed = {o.name: o.of(configure(Nested, {key: str(value)})) for o in options(Nested) if o.used}
    assert changed.pop(dotted) == value
    assert changed == {o.name: o.default for o in options(Nested) if o.used and o.name != dotted}


def test_a_name_of_several_options_is_refused_with_all_of_them():
    for key in ("lr", "decay"):
        with pytest.raises(MaskwrightError) as caught:
            configure(Nested, {key: "0.1"})
        assert f"{key}=0.1 may mean rates.{key} or critic.rates.{key}; expected one of them in full" in str(
            caught.value
        )


def test_the_last_name_of_one_option_may_be_the_old_name_of_another():
    @dataclass(kw_only=True)
    class Two:
        main_rates: Rates = part(Rates, old={"lr": "lr"})
        other: Rates = part(Rates, old={"lr": "other_lr", "decay": "other_decay"})

    config = configure(Two, {"lr": "1", "other_lr": "2", "decay": "3"})
    assert (config.main_rates, config.other) == (Rates(lr=1, decay=3), Rates(lr=2))


def test_two_options_that_claim_one_old_name_are_a_mistake_in_the_program():
    @dataclass(kw_only=True)
    class Twice:
        a: Rates = part(Rates)
        b: Rates = part(Rates)

    with pytest.raises(ValueError, match=r"a\.lr and b\.lr both say that they were rate"):
        configure(Twice, {})


@pytest.mark.parametrize("wrong", [{"without": ("emma",)}, {"old": {"emma": "x"}}, {"main": ("emma",)}])
def test_a_part_knows_its_options(wrong):
    with pytest.raises(ValueError, match="Teacher has no option emma"):
        part(Teacher, **wrong)
    with pytest.raises(TypeError, match="emma"):
        part(Teacher, emma=1)


def test_unknown_names_offer_the_nearest_by_its_whole_name():
    for key in ("emma", "teacher.emma", "techer.ema"):
        with pytest.raises(MaskwrightError, match=rf"unknown setting '{key}'.*did you mean 'teacher\.ema'\?"):
            configure(Nested, {key: "1"})
    with pytest.raises(MaskwrightError, match=r"did you mean 'critic\.rates\.lr'\?"):
        configure(Nested, {"criticlr": "1"})


def test_a_part_is_no_value():
    with pytest.raises(MaskwrightError, match=r"teacher holds several options; expected one of teacher\.ema, teacher"):
        configure(Nested, {"teacher": "0.9"})


def test_ranges_choices_types_and_checks_name_the_part():
    for settings, words in (
        ({"ema": "2"}, r"teacher\.ema=2\.0; expected at most 1"),
        ({"ema_buffers": "owns"}, r"unknown value of teacher\.buffers 'owns'.*'own'"),
        ({"critic_lr": "fast"}, r"critic\.rates\.lr=fast; expected a number"),
        ({"buffers": "own"}, r"teacher: buffers=own with mode=eval; expected mode=train"),
    ):
        with pytest.raises(MaskwrightError, match=words):
            configure(Nested, settings)
    assert configure(Nested, {"buffers": "own", "teacher.mode": "train"}).teacher.buffers == "own"


def test_what_a_part_has_no_use_for_is_neither_listed_nor_taken():
    assert "critic.width" not in {r["name"] for r in describe(Nested)}
    for key in ("critic.width", "width"):
        with pytest.raises(MaskwrightError, match=f"{key}=3: nothing here depends on it"):
            configure(Nested, {key: "3"})
    assert configure(Nested, {}).critic.width == 64

    @dataclass(kw_only=True)
    class Narrow(Nested):
        unused: ClassVar[frozenset[str]] = frozenset({"critic", "teacher.mode"})

    names = [r["name"] for r in describe(Narrow)]
    assert names == ["steps", "weight", "rates.lr", "rates.decay", "teacher.ema", "teacher.buffers"]
    assert configure(Narrow, {"decay": "0.5"}).rates.decay == 0.5, "of one alone"


@dataclass(kw_only=True)
class Queue:
    """A part whose length leaves its age without a use."""

    length: int = option(8, "of the queue", low=0)
    age: int = option(1, "of what enters", low=0)

    def idle(self):
        if self.length == 0:
            yield ("age",), "length=0"


@dataclass(kw_only=True)
class Queued:
    """A whole that begins with another age than the part does."""

    queue: Queue = part(Queue, age=5)


def test_idle_options_of_a_part_are_left_at_what_the_whole_begins_with():
    assert configure(Queued, {"length": 0}).queue == Queue(length=0, age=5)
    with pytest.raises(MaskwrightError, match="queue: age=1 with length=0: nothing depends on it"):
        configure(Queued, {"length": 0, "age": 1})


def test_a_part_takes_the_place_of_a_flat_option_that_is_unused():
    @dataclass(kw_only=True)
    class Mixed(OldNested):
        unused: ClassVar[frozenset[str]] = frozenset({"ema", "ema_buffers"})
        teacher: Teacher = part(Teacher)

    config = configure(Mixed, {"ema": "0.5", "rate": "1"})
    assert (config.teacher.ema, config.ema, config.rate) == (0.5, 0.999, 1.0)
    assert flat(config)["ema"] == 0.5


def test_the_later_of_two_names_counts_and_mappings_set_parts():
    assert configure(Nested, {"teacher.ema": 0.1, "ema": 0.2}).teacher.ema == 0.2
    assert configure(Nested, {"ema": 0.2, "teacher.ema": 0.1}).teacher.ema == 0.1
    config = configure(Nested, {"teacher": {"ema": "0.5"}, "critic": {"weight": 2, "rates": {"lr": 1}}})
    assert (config.teacher.ema, config.critic.weight, config.critic.rates.lr) == (0.5, 2.0, 1.0)
    assert config.critic.rates.decay == 0.0 and config.teacher.mode == "eval"
    with pytest.raises(MaskwrightError, match=r"unknown setting 'teacher\.emma'"):
        configure(Nested, {"teacher": {"emma": 1}})


def test_records_of_nested_options():
    rows = {r["name"]: r for r in describe(Nested)}
    assert list(rows)[:4] == ["steps", "weight", "rates.lr", "rates.decay"]
    known = {"default": 0.999, "says": "momentum", "low": 0, "high": 1, "old": "ema", "main": True, "group": "teacher"}
    assert rows["teacher.ema"] == {"name": "teacher.ema", "type": "float", "choices": None} | known
    assert rows["teacher.mode"]["says"] == "train or eval"
    assert rows["critic.rates.lr"]["group"] == "critic.rates" and rows["steps"]["group"] == ""
    assert {n for n, r in rows.items() if r["main"]} == {"steps", "teacher.ema", "teacher.buffers", "critic.rates.lr"}
    assert json.loads(json.dumps(list(rows.values())))


def test_flat_names_are_those_of_before_and_nested_ones_are_read_back():
    config = configure(Nested, {"ema": 0.5, "critic_lr": 3, "weight": 2})
    known = {"steps": 100, "u_weight": 2.0, "rate": 1e-3, "ema": 0.5, "ema_buffers": "ema", "critic_lr": 3.0}
    assert known.items() <= flat(config).items()
    assert flat(config)["rates.decay"] == 0.01 and flat(config)["critic.rates.decay"] == 0.0, "two have that name"
    assert "width" not in flat(config) and "width" not in nested(config)["critic"]
    assert nested(config)["critic"] == {"weight": 0.5, "rates": {"lr": 3.0, "decay": 0.0}}
    assert configure(Nested, nested(config)) == config
    assert configure(Nested, flat(config)) == config
    assert flat(configure(Config, {"layers": "1,2"})) == asdict(configure(Config, {"layers": "1,2"}))


# ------------------------------------------------------------------------------------- records of before it had parts


def begun(tmp_path, config, options=None):
    record = {"status": "running", "config": config} | ({} if options is None else {"options": options})
    RunFolder.start(tmp_path, record, resume=False).release()


def resumed(tmp_path, **settings):
    config = configure(Nested, settings)
    record = {"status": "running", "config": flat(config), "options": nested(config)}
    run = RunFolder.start(tmp_path, record, resume=True, defaults=flat(configure(Nested, {})))
    run.release()
    return run


def test_a_run_of_before_is_resumed_by_a_configuration_with_parts(tmp_path):
    begun(tmp_path, asdict(configure(OldNested, {"ema": "0.5", "rate": "3"})))
    run = resumed(tmp_path, **{"teacher.ema": 0.5, "rates.lr": 3})
    assert run.record["config"]["ema"] == 0.5 and run.record["options"]["teacher"]["ema"] == 0.5
    resumed(tmp_path, ema=0.5, rate=3)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"ema": 0.5}, r"config: rate = 3\.0, not 0\.001"),
        ({"rate": 3}, r"config: ema = 0\.5, not 0\.999"),
        ({"ema": 0.5, "rate": 3, "critic.weight": 9}, r"config: critic\.weight = 0\.5, not 9\.0"),
    ],
)
def test_other_settings_than_those_of_before_are_another_run(tmp_path, settings, told):
    begun(tmp_path, asdict(configure(OldNested, {"ema": "0.5", "rate": "3"})))
    with pytest.raises(MaskwrightError, match=f"made with {told}; expected the same settings"):
        resumed(tmp_path, **settings)


def test_of_a_run_with_parts_every_option_is_compared(tmp_path):
    config = configure(Nested, {})
    begun(tmp_path, flat(config) | {"newer": 1}, nested(config))
    with pytest.raises(MaskwrightError, match="config: newer = 1, not unknown"):
        resumed(tmp_path)


@dataclass(kw_only=True)
class Inner:
    side: int = option(None, "side (preset)", low=1)
    shape: str = option("square", "of it")


@dataclass(kw_only=True)
class Outer:
    inner: Inner = part(Inner)


@dataclass(kw_only=True)
class WithPreset:
    preset: str = option("small", "sets the others")
    outer: Outer = part(Outer)
    rate: float = option(None, "learning rate (preset)", low=0)

    def __post_init__(self) -> None:
        presets = {"small": {"side": 3, "rate": 0.1, "shape": "round"}, "large": {"side": 9, "rate": 0.2}}
        fill_from_preset(self, presets[self.preset])


def test_a_preset_fills_what_has_no_value_however_deep_and_what_is_given_wins():
    small = configure(WithPreset, {})
    assert (small.outer.inner.side, small.rate, small.outer.inner.shape) == (3, 0.1, "square")
    mixed = configure(WithPreset, {"preset": "large", "side": 5})
    assert (mixed.outer.inner.side, mixed.rate) == (5, 0.2)
    assert configure(WithPreset, nested(mixed)) == mixed
    assert Inner().side is None and WithPreset().outer.inner.side == 3
    with pytest.raises(MaskwrightError, match="at least 1"):
        configure(WithPreset, {"side": 0})

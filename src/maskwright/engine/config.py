"""Options of methods: keyword-only dataclasses whose fields carry their unit, their reason and their range.

A configuration holds options of its own, made by `option`, and parts with options of theirs, made by `part`:

    @dataclass(kw_only=True)
    class Teacher:
        ema: float = option(0.99, "greatest momentum of the averaged weights", low=0, high=1)

    @dataclass(kw_only=True)
    class MineConfig:
        margin: float = option(0.2, "least distance of two classes", low=0, main=True)
        teacher: Teacher = part(Teacher, ema=0.999)

Settings may be written in full (`teacher.ema=0.9`), by their last name (`ema=0.9`) where one option of the method has
it, or by the flat name under which an option was listed before it had a part. A class attribute `unused` names fields
that play no role in a method: they are neither listed nor taken, there and in the classes below. Options that others
leave without a use are named by a method `idle` of the configuration, which gives pairs of names, of options or of
parts, and of what leaves them so: `(("proxy",), "variant=sclip")`. Those that were set nevertheless are refused; where
inputs or the network leave options without a use, the method's `__init__` refuses them by `refuse_idle`."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskwright.errors import MaskwrightError, unknown


def option(
    default: Any,
    says: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
    old: str = "",
    main: bool = False,
) -> Any:
    """A dataclass field with its unit, reason and range.

    Args:
        default: the default value.
        says: unit and reason in one line.
        low: least allowed value, inclusive.
        high: greatest allowed value, inclusive.
        choices: the allowed values.
        old: the flat name under which it was listed before, where that is not its last name; it stays accepted.
        main: it is one of the handful that a user should know.
    """
    metadata = {"says": says, "low": low, "high": high, "choices": choices, "old": old, "main": main}
    return dataclasses.field(default=default, metadata=metadata)


def part(
    cls: type,
    *,
    without: Collection[str] = (),
    old: Mapping[str, str] | None = None,
    main: Collection[str] = (),
    says: Mapping[str, str] | None = None,
    **defaults: Any,
) -> Any:
    """A dataclass field whose value holds the options of one part of a method.

    Args:
        cls: a keyword-only dataclass made of `option` fields, and of parts where it has some; it may have a `check`.
        without: options of the part that have no use in this method; they are neither listed nor taken.
        old: flat names of before, by option, in place of those that `cls` says.
        main: further options that a user should know.
        says: other sentences, by option.
        defaults: other default values; those of a part within the part as a mapping.

    Raises:
        ValueError: `cls` has no option of a name that is given.
    """
    given = _Part(cls, tuple(without), dict(old or {}), tuple(main), dict(says or {}))
    known = {o.name for o in _leaves(cls)}
    wrong = {*given.without, *given.old, *given.main, *given.says} - known
    if wrong:
        raise ValueError(f"{cls.__name__} has no option {', '.join(sorted(wrong))}")
    _made(cls, defaults)  # a wrong default shows where it is written
    return dataclasses.field(default_factory=lambda: _made(cls, defaults), metadata={"part": given})


Idle = Iterator[tuple[Sequence[str], str]]
"""Names of options or parts without a use, and what leaves them so: what a configuration's `idle` gives."""


@dataclass(frozen=True)
class _Part:
    """What a method says of one of its parts, beside the defaults."""

    cls: type
    without: tuple[str, ...]
    old: dict[str, str]
    main: tuple[str, ...]
    says: dict[str, str]


def _made(cls: type, defaults: Mapping[str, Any]) -> Any:
    """A part with other defaults, some of which may be mappings for parts of it."""
    values = {}
    for f in dataclasses.fields(cls):
        if f.name in defaults and "part" in f.metadata and isinstance(defaults[f.name], Mapping):
            values[f.name] = dataclasses.replace(_default(f), **defaults[f.name])
    return cls(**{**defaults, **values})


@dataclass(frozen=True)
class Option:
    """One option of a configuration class.

    Attributes:
        path: the fields that lead to it; their names joined by dots are its name.
        hint: its type.
        default: its default value in this configuration.
        says: unit and reason.
        low, high, choices: what is allowed, None where nothing is said.
        old: the flat name that was declared, "" where none was.
        main: whether a user should know it.
        used: whether it has a use in this configuration.
        flat: the flat name under which records hold it and by which it is taken: `old`, or its last name where no other
            option claims that, or its whole name.
    """

    path: tuple[str, ...]
    hint: Any
    default: Any
    says: str
    low: float | None
    high: float | None
    choices: tuple[Any, ...] | None
    old: str
    main: bool
    used: bool
    flat: str = ""

    @property
    def name(self) -> str:
        """The names of its fields, joined by dots."""
        return ".".join(self.path)

    @property
    def group(self) -> str:
        """The part that it belongs to, "" for the configuration itself."""
        return ".".join(self.path[:-1])

    def of(self, config: Any) -> Any:
        """Its value in a configuration."""
        return functools.reduce(getattr, self.path, config)


def options(config_class: type) -> tuple[Option, ...]:
    """The options of a configuration class in their order, those without a use included.

    Raises:
        ValueError: two options claim the same flat name of before.
    """
    return _named(config_class)


@functools.cache
def _named(config_class: type) -> tuple[Option, ...]:
    """The options with their flat names."""
    leaves = list(_leaves(config_class))
    whole = {o.name for o in leaves if o.used}
    taken: dict[str, str] = {}  # flat name -> whole name
    for used in (True, False):
        own = [o for o in leaves if o.used is used]
        for o in own:
            claim = o.old or (o.name if len(o.path) == 1 else "")
            if not claim:
                continue
            rival = taken.setdefault(claim, o.name)
            if used and (rival != o.name or (claim in whole and claim != o.name)):
                raise ValueError(f"{config_class.__name__}: {rival} and {o.name} both say that they were {claim}")
        last = Counter(o.path[-1] for o in own if not o.old)
        for o in own:
            name = o.path[-1]
            if not o.old and name not in whole and name not in taken:
                # One name that several claim is nobody's.
                taken[name] = o.name if last[name] == 1 else ""
    flats = {name: flat for flat, name in taken.items()}
    return tuple(dataclasses.replace(o, flat=flats.get(o.name, o.name)) for o in leaves)


def _leaves(config_class: type) -> Iterator[Option]:
    hints, unused = typing.get_type_hints(config_class), _unused(config_class)
    for f in dataclasses.fields(config_class):
        said = f.metadata
        if "part" not in said:
            choices = tuple(said["choices"]) if said.get("choices") else None
            yield Option(
                (f.name,), hints[f.name], f.default, said.get("says", ""), said.get("low"), said.get("high"), choices,
                said.get("old", ""), said.get("main", False), f.name not in unused,
            )  # fmt: skip
            continue
        given, standing = said["part"], _default(f)
        for o in _leaves(given.cls):
            path = (f.name, *o.path)
            yield dataclasses.replace(
                o,
                path=path,
                default=o.of(standing),
                says=given.says.get(o.name, o.says),
                old=given.old.get(o.name, o.old),
                main=o.main or o.name in given.main,
                used=o.used and o.name not in given.without and unused.isdisjoint((f.name, ".".join(path))),
            )


def _default(f: dataclasses.Field[Any]) -> Any:
    """The part that a field holds where nothing is set."""
    assert f.default_factory is not dataclasses.MISSING
    return f.default_factory()


def configure(config_class: type, overrides: Mapping[str, Any]) -> Any:
    """Builds a configuration from `key=value` settings.

    Args:
        config_class: a dataclass made with `option` and `part` fields.
        overrides: values by whole name (`teacher.ema`), by last name where one option has it, or by the flat name of
            before; a mapping sets options of a part (`{"teacher": {"ema": 0.9}}`). Strings are converted to the type of
            the option. Where one is named twice, the later counts.

    Raises:
        MaskwrightError: on an unknown key (the nearest is offered), one that several options have, one that has no use
            in the method, a value that does not convert, or one out of range.
    """
    values: dict[str, Any] = {}
    for key, value in _flattened(overrides):
        o = _find(config_class, key, value)
        values[o.name] = _convert(o.name, value, o.hint)
    config = config_class(**_changed(config_class, values, ""))
    for o in options(config_class):
        if o.used:
            _check(o.name, o.of(config), o)
    _check_parts(config, _begins_with(config), "")
    return config


def _flattened(overrides: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _find(config_class: type, key: str, value: Any) -> Option:
    every = options(config_class)
    used = [o for o in every if o.used]
    for found in ([o for o in used if o.name == key], [o for o in used if o.flat == key]):
        if found:
            return found[0]
    if any(key in (o.name, o.flat) for o in every):
        raise MaskwrightError(f"{key}={value}: nothing here depends on it", "an option of the method", "leave it out")
    ending = [o for o in used if o.name.endswith(f".{key}")]
    if len(ending) == 1:
        return ending[0]
    names = [o.name for o in ending]
    if ending:
        raise MaskwrightError(f"{key}={value} may mean {' or '.join(names)}", "one of them in full",
                              f"write --set {names[0]}={value}")  # fmt: skip
    inside = [o.name for o in used if o.name.startswith(f"{key}.")]
    if inside:
        raise MaskwrightError(f"{key}={value}, and {key} holds several options", f"one of {', '.join(inside)}",
                              f"write --set {inside[0]}=VALUE")  # fmt: skip
    raise _unknown(key, used)


def _unknown(key: str, used: Sequence[Option]) -> MaskwrightError:
    """The error for a name that no option has; the nearest of all names, old ones too, says which option is offered."""
    spelled = {spelling: o.name for o in used for spelling in (o.path[-1], o.flat, o.name)}
    close = difflib.get_close_matches(key, spelled, n=1, cutoff=0.4)
    if not close:
        every = f"one of {', '.join(sorted(o.name for o in used))}"
        return MaskwrightError(f"unknown setting {key!r}", every, "choose one of those")
    nearest = spelled[close[0]]
    beside = sorted(o.name for o in used if o.name.rpartition(".")[0] == nearest.rpartition(".")[0])
    others = len(used) - len(beside)
    expected = f"one of {', '.join(beside)}" + (f", or of {others} others of the method" if others else "")
    return MaskwrightError(f"unknown setting {key!r}", expected, f"did you mean {nearest!r}?")


def _changed(standing: Any, values: Mapping[str, Any], before: str) -> dict[str, Any]:
    """What replaces fields of a part that stands there, or what a configuration class, which gives the parts that its
    fields begin with, is called with."""
    out = {}
    for f in dataclasses.fields(standing):
        name = before + f.name
        if "part" in f.metadata:
            value = _default(f) if isinstance(standing, type) else getattr(standing, f.name)
            out[f.name] = dataclasses.replace(value, **_changed(value, values, f"{name}."))
        elif name in values:
            out[f.name] = values[name]
    return out


def _begins_with(config: Any) -> Any:
    """The configuration without settings, of the same preset; its parts have the values that the whole gives them."""
    return type(config)(preset=config.preset) if hasattr(config, "preset") else type(config)()


def _check_parts(config: Any, standing: Any, before: str) -> None:
    """What parts, and then the whole, say of options that contradict each other; `standing` is what they begin with."""
    for f in dataclasses.fields(config):
        if "part" in f.metadata:
            _check_parts(getattr(config, f.name), getattr(standing, f.name), f"{before}{f.name}.")
    check = getattr(config, "check", None)
    try:
        if check is not None:
            check()
        _refuse(config, standing, idle_options(config))
    except MaskwrightError as error:
        if not before:
            raise
        raise MaskwrightError(f"{before[:-1]}: {error.found}", error.expected, error.repair) from error


def fill_from_preset(config: Any, preset: Mapping[str, Any]) -> None:
    """Gives options that have no value (None) those of a preset; for a configuration's `__post_init__`.

    Args:
        config: a configuration, or a part's; changed in place, its parts replaced.
        preset: values by flat or whole names.
    """
    for o in options(type(config)):
        name = o.flat if o.flat in preset else o.name
        if name not in preset or o.of(config) is not None:
            continue
        *inside, _ = o.path
        value = preset[name]
        for depth in range(len(inside), 0, -1):
            holder = functools.reduce(getattr, o.path[:depth], config)
            value = dataclasses.replace(holder, **{o.path[depth]: value})
        setattr(config, o.path[0], value)


def idle_options(config: Any) -> dict[str, str]:
    """The options that others leave without a use in a configuration, by whole name, and what leaves each so."""
    return _by_name(config, config.idle() if hasattr(config, "idle") else ())


def refuse_idle(config: Any, told: Iterable[tuple[Sequence[str], str]]) -> None:
    """For a method's `__init__`: refuses options that the run's inputs or its network leave without a use, which a
    configuration's `idle` does not know of.

    Args:
        config: the method's.
        told: what `idle` would give: names of options or parts, and what leaves them so.

    Raises:
        MaskwrightError: one of them has another value than what the configuration begins with.
    """
    _refuse(config, _begins_with(config), _by_name(config, told))


def _by_name(config: Any, told: Iterable[tuple[Sequence[str], str]]) -> dict[str, str]:
    return {
        o.name: why
        for names, why in told
        for o in options(type(config))
        if o.used and any(o.name == name or o.name.startswith(f"{name}.") for name in names)
    }


def _refuse(config: Any, standing: Any, idle: Mapping[str, str]) -> None:
    """Raises `MaskwrightError` where an idle option has another value than what the configuration begins with."""
    for o in options(type(config)):
        if o.name in idle and o.of(config) != o.of(standing):
            raise MaskwrightError(
                f"{o.name}={o.of(config)} with {idle[o.name]}: nothing depends on it", f"{o.name} left as it is",
                "leave it out",
            )  # fmt: skip


def describe(config_class: type) -> list[dict[str, Any]]:
    """The options of a configuration class as plain records.

    Returns:
        One record an option: name (with its parts), type, default, says, choices, low, high, old (its flat name), main,
        group (the part's name, "" for the configuration's own).
    """
    return [
        {
            "name": o.name,
            "type": _type_name(o.hint),
            "default": o.default,
            "says": o.says,
            "choices": list(o.choices) if o.choices else None,
            "low": o.low,
            "high": o.high,
            "old": o.flat,
            "main": o.main,
            "group": o.group,
        }
        for o in options(config_class)
        if o.used
    ]


def flat(config: Any) -> dict[str, Any]:
    """The values of a configuration by flat names, options without a use left out, as `run.json` holds them."""
    return {o.flat: o.of(config) for o in options(type(config)) if o.used}


def nested(config: Any) -> dict[str, Any]:
    """The values of a configuration as mappings within a mapping, options without a use left out; `configure` reads
    them back."""
    out: dict[str, Any] = {}
    for o in options(type(config)):
        if o.used:
            place = functools.reduce(lambda d, name: d.setdefault(name, {}), o.path[:-1], out)
            place[o.path[-1]] = o.of(config)
    return out


def _unused(config_class: type) -> set[str]:
    return {name for c in config_class.__mro__ for name in vars(c).get("unused", ())}


def _check(name: str, value: Any, o: Option) -> None:
    if value is None:
        return
    if isinstance(value, tuple):
        for one in value:
            _check(name, one, o)
        return
    if isinstance(value, float) and math.isnan(value):
        raise MaskwrightError(f"{name}={value}", "a number", o.says)
    if o.choices and value not in o.choices:
        raise unknown(f"value of {name}", str(value), [str(c) for c in o.choices])
    if o.low is not None and value < o.low:
        raise MaskwrightError(f"{name}={value}", f"at least {o.low}", o.says)
    if o.high is not None and value > o.high:
        raise MaskwrightError(f"{name}={value}", f"at most {o.high}", o.says)


def _convert(key: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None or (isinstance(value, str) and value.lower() in ("none", "")):
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if not isinstance(value, str):
        return _typed(key, value, hint)
    try:
        if hint is bool:
            lowered = value.lower()
            if lowered not in ("true", "false", "1", "0", "yes", "no"):
                raise ValueError(value)
            return lowered in ("true", "1", "yes")
        if hint in (int, float):
            return hint(value)
        if typing.get_origin(hint) is tuple:
            kind = typing.get_args(hint)[0]
            return tuple(kind(v) for v in value.replace(";", ",").split(",") if v.strip())
        return value
    except ValueError:
        raise _wrong_type(key, value, hint) from None


def _typed(key: str, value: Any, hint: Any) -> Any:
    """A value given from Python, which may be of any type."""
    if value is None:
        raise _wrong_type(key, value, hint)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, Sequence):
            raise _wrong_type(key, value, hint)
        kind = typing.get_args(hint)[0]
        return tuple(_typed(key, v, kind) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, bool, str) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise _wrong_type(key, value, hint)
    return value


def _wrong_type(key: str, value: Any, hint: Any) -> MaskwrightError:
    return MaskwrightError(f"{key}={value}", _in_words(hint), f"write --set {key}=VALUE")


def _in_words(hint: Any) -> str:
    """What a value of a type is, for people."""
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        return {int: "whole numbers", float: "numbers"}.get(kind, "words") + " joined by commas"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[hint]


def _type_name(hint: Any) -> str:
    return str(hint) if typing.get_origin(hint) else getattr(hint, "__name__", str(hint))

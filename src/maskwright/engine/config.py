"""Options of methods: keyword-only dataclasses whose fields carry their unit, their reason and their range.

A class attribute `unused` names inherited fields that have no part in a method: they are neither listed nor taken,
there and in the classes below."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from maskwright.errors import MaskwrightError, unknown


def option(
    default: Any,
    says: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A dataclass field with its unit, reason and range.

    Args:
        default: the default value.
        says: unit and reason in one line.
        low: least allowed value, inclusive.
        high: greatest allowed value, inclusive.
        choices: the allowed values.
    """
    metadata = {"says": says, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def configure(config_class: type, overrides: Mapping[str, Any]) -> Any:
    """Builds a configuration from `key=value` settings.

    Args:
        config_class: a dataclass made with `option` fields.
        overrides: values by field name; strings are converted to the field's type.

    Raises:
        MaskwrightError: on an unknown key (the nearest is offered), one that has no part in the method, a value that
            does not convert, or one out of range.
    """
    fields = {f.name: f for f in used_fields(config_class)}
    hints = typing.get_type_hints(config_class)
    values = {}
    for key, value in overrides.items():
        if key in _unused(config_class):
            raise MaskwrightError(f"{key}={overrides[key]}: nothing here depends on it", "an option of the method",
                                  "leave it out")  # fmt: skip
        if key not in fields:
            raise unknown("setting", key, sorted(fields))
        values[key] = _convert(key, value, hints[key])
    config = config_class(**values)
    for name, f in fields.items():
        _check(name, getattr(config, name), f.metadata)
    check = getattr(config, "check", None)
    if check is not None:
        check()
    return config


def describe(config_class: type) -> list[dict[str, Any]]:
    """The options of a configuration class as plain records: name, type, default, says, choices."""
    hints = typing.get_type_hints(config_class)
    return [
        {
            "name": f.name,
            "type": _type_name(hints[f.name]),
            "default": f.default,
            "says": f.metadata.get("says", ""),
            "choices": list(f.metadata["choices"]) if f.metadata.get("choices") else None,
            "low": f.metadata.get("low"),
            "high": f.metadata.get("high"),
        }
        for f in used_fields(config_class)
    ]


def used_fields(config_class: type) -> list[Any]:
    """The fields of a configuration class that have a part in its method."""
    unused = _unused(config_class)
    return [f for f in dataclasses.fields(config_class) if f.name not in unused]


def _unused(config_class: type) -> set[str]:
    return {name for c in config_class.__mro__ for name in vars(c).get("unused", ())}


def _check(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if value is None:
        return
    choices, low, high = metadata.get("choices"), metadata.get("low"), metadata.get("high")
    if isinstance(value, tuple):
        for one in value:
            _check(name, one, metadata)
        return
    if isinstance(value, float) and math.isnan(value):
        raise MaskwrightError(f"{name}={value}", "a number", metadata.get("says", ""))
    if choices and value not in choices:
        raise unknown(f"value of {name}", str(value), [str(c) for c in choices])
    if low is not None and value < low:
        raise MaskwrightError(f"{name}={value}", f"at least {low}", metadata.get("says", ""))
    if high is not None and value > high:
        raise MaskwrightError(f"{name}={value}", f"at most {high}", metadata.get("says", ""))


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
    return MaskwrightError(f"{key}={value}", f"a value of type {_type_name(hint)}", f"write --set {key}=VALUE")


def _type_name(hint: Any) -> str:
    return str(hint) if typing.get_origin(hint) else getattr(hint, "__name__", str(hint))

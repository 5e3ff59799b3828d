"""The file that says what to train: read for `maskwright train --config FILE`, written as `config.yaml` into each run.

method: mean_teacher         the verb's own options, by their names
data: photos
steps: 800
teacher:                     a part of the method
  ema: 0.99
settings:                    options of the method, by any name that --set takes
  crop: 256
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from maskwright.data.trust.files import write_text
from maskwright.errors import MaskwrightError

CONFIG = "config.yaml"
SETTINGS = "settings"


def read_config(path: str | os.PathLike[str], options: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a YAML, JSON or TOML file says.

    Args:
        path: the file; `.toml` is TOML, everything else YAML, of which JSON is a part.
        options: names of the verb's own options.

    Returns:
        The verb's options by name, and the settings of the method, which may be nested by part. Values are as the file
        has them.

    Raises:
        MaskwrightError: there is no such file, it cannot be read, or it has a key that is neither an option, nor
            `settings`, nor a part with options in it; the nearest is offered.
    """
    path = Path(path)
    chosen: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in _parsed(path).items():
        name = str(key).replace("-", "_")
        if key == SETTINGS:
            if not isinstance(value, Mapping | None):
                raise MaskwrightError(f"{path}: settings is {value!r}", "options of the method with their values")
            settings |= value or {}
        elif name in options:
            chosen[name] = value
        elif isinstance(value, Mapping) or "." in str(key):
            settings[str(key)] = value
        else:
            raise _unknown(path, str(key), options)
    return chosen, settings


def _unknown(path: Path, key: str, options: Collection[str]) -> MaskwrightError:
    known = sorted({*options, SETTINGS})
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    nearest = f"did you mean {close[0]!r}? " if close else ""
    repair = f"{nearest}options of the method stand below settings: or below their part"
    return MaskwrightError(f"{path}: unknown key {key!r}", f"one of {', '.join(known)}", repair)


def _parsed(path: Path) -> dict[Any, Any]:
    import yaml

    expected = "a YAML file, or TOML where its name ends in .toml"
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise MaskwrightError(f"cannot read {path}: {error.strerror}", expected) from error
    except UnicodeDecodeError as error:
        raise MaskwrightError(f"{path} is not UTF-8 text", expected) from error
    try:
        if path.suffix.lower() == ".toml":
            import tomllib

            found = tomllib.loads(text)
        else:
            found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MaskwrightError(f"cannot read {path}: {error}", expected) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise MaskwrightError(f"{path} holds {type(found).__name__}", "names with values, as `steps: 800`")
    return found


def data_of(path: Path) -> str | None:
    """The data set that the file of a run names, as `layout:path` where it has a layout; None where it names none."""
    try:
        found = _parsed(path).get("data")
    except MaskwrightError:
        return None
    return found if isinstance(found, str) else None


def write_config(path: Path, options: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Writes a file that `read_config` reads back.

    Args:
        path: the file.
        options: of the verb; those that are None are left out.
        settings: of the method, nested by part.
    """
    import yaml

    said = {name: _plain(value) for name, value in options.items() if value is not None}
    text = yaml.safe_dump(said | {SETTINGS: _plain(settings)}, sort_keys=False, width=120)
    write_text(path, f"# maskwright train --config {CONFIG} --out NEW repeats this run.\n{text}")


def amend_config(path: Path, **options: Any) -> None:
    """Changes options in a file that `write_config` wrote; where there is none, nothing."""
    if path.exists():
        said = {key: value for key, value in _parsed(path).items() if key != SETTINGS}
        write_config(path, said | options, _parsed(path).get(SETTINGS) or {})


def _plain(value: Any) -> Any:
    """A value in the types that YAML has."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def lasting(place: object) -> object:
    """A path, or `layout:path`, as it is found from any folder; what is no path stays as it is."""
    if not isinstance(place, str | os.PathLike):
        return place
    text = os.fspath(place)
    layout, colon, rest = text.partition(":")
    if colon and not os.path.exists(text) and os.path.exists(rest):
        return f"{layout}:{os.path.abspath(rest)}"
    return os.path.abspath(text) if os.path.exists(text) else text


def said_in(path: Path, name: str) -> Any:
    """What a run's own file says of one option; None where it says nothing or cannot be read."""
    try:
        return _parsed(path).get(name)
    except MaskwrightError:
        return None

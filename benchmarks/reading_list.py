"""What has to be read to know a method: `python -m benchmarks.reading_list stego cac seam unimatch pass dacs`.

The way from the verb to the loss (verb, Python surface, table of methods, run, stages, context, loop, contract), the
method's own file or package, and every file of ours that a class of it inherits from or that holds a group of its
options: what inheritance and options do cannot be guessed from where they are used. Functions and parts that a step
calls by name do what their docstrings say, and are not counted. Prints files and lines a method; `--files` lists them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import pkgutil
import sys
import typing
from pathlib import Path
from types import ModuleType

import maskwright
from maskwright.engine.contract import Method
from maskwright.engine.loop import Training
from maskwright.methods import METHODS

ROOT = Path(maskwright.__file__).parent
WAY = (
    "cli", "cli.train", "api", "api.training", "methods", "engine.run", "engine.stages", "engine.context",
    "engine.loop", "engine.contract",
)  # fmt: skip
"""From the verb to the loop; what a version of the program does not have is passed over."""


def file_of(thing: type | ModuleType) -> Path | None:
    """The file of ours that a class or module lies in, if any."""
    try:
        path = Path(inspect.getsourcefile(thing) or "")
    except TypeError:  # built in
        return None
    return path if path.is_relative_to(ROOT) else None


def module(name: str) -> ModuleType | None:
    """A module of ours, if there is one of that name."""
    try:
        return importlib.import_module(f"maskwright.{name}")
    except ModuleNotFoundError:
        return None


def own_modules(method: type[Method]) -> list[ModuleType]:
    """The method's file; of a package all of its files."""
    parts = method.__module__.split(".")  # maskwright.methods.FAMILY.NAME[.FILE], or maskwright.methods.NAME
    package = importlib.import_module(".".join(parts[: min(4, len(parts))]))
    if not hasattr(package, "__path__"):
        return [package]
    return [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]


def option_groups(config: type) -> set[type]:
    """A configuration and the dataclasses of its parts."""
    found = {config}
    for hint in typing.get_type_hints(config).values():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= option_groups(hint)
    return found


def reading_list(method: type[Method]) -> set[Path]:
    """The files."""
    own = own_modules(method)
    names = {m.__name__ for m in own}
    classes = option_groups(method.Config) | {method}
    for m in own:
        classes |= {
            c for c in vars(m).values()
            if isinstance(c, type) and c.__module__ in names and issubclass(c, Training | Method)
        }  # fmt: skip
    trainer = getattr(method, "trainer", None)  # of a method whose training is a recipe's
    if isinstance(trainer, type):
        classes.add(trainer)
    bases = {base for c in classes for base in inspect.getmro(c)}
    things = [*filter(None, map(module, WAY)), *own, *bases]
    return {f for f in map(file_of, things) if f is not None}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--files", action="store_true", help="list the files of each")
    options = parser.parse_args()
    print("| method | files | lines |\n|---|---|---|")
    for name in options.methods:
        if name not in METHODS:
            print(f"| {name} | - | - |")
            continue
        files = sorted(reading_list(METHODS[name]))
        lines = [len(f.read_text().splitlines()) for f in files]
        print(f"| {name} | {len(files)} | {sum(lines)} |")
        if options.files:
            for f, n in zip(files, lines):
                print(f"    {n:5d} {f.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Each extra of the project has code behind it, and the page of dependencies names it."""

from __future__ import annotations

import ast
import tomllib
from importlib.metadata import packages_distributions

import pytest
from tests.conftest import REPOSITORY

EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TOOLS = {"test", "lint"}
"""What the project is worked on with; they run from the command line."""


def named_in_source() -> set[str]:
    """Modules that are imported, and names in texts, which imports by name and look-ups use."""
    found: set[str] = set()
    for path in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
    return found


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - TOOLS))
def test_an_extra_has_code_behind_it(extra):
    used = named_in_source()
    modules: dict[str, set[str]] = {}
    for module, packages in packages_distributions().items():
        for package in packages:
            modules.setdefault(package.lower().replace("_", "-"), set()).add(module)
    for requirement in EXTRAS[extra]:
        package = requirement.split(">")[0].split("=")[0].strip().lower()
        own = modules.get(package, {package.replace("-", "_")})
        assert own & used, f"{package} of the extra {extra} is imported nowhere"


def test_the_page_of_dependencies_names_each_extra():
    text = (REPOSITORY / "docs" / "dependencies.md").read_text()
    assert all(f"`{extra}`" in text for extra in EXTRAS)

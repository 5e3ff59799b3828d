"""Each extra of the project has code behind it, and the page of dependencies names it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from tests.conftest import REPOSITORY

EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TOOLS = {"test", "lint"}
"""What the project is worked on with; they run from the command line."""


@pytest.fixture(scope="module")
def source() -> str:
    return "\n".join(path.read_text() for path in (REPOSITORY / "src").rglob("*.py"))


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - TOOLS))
def test_an_extra_has_code_behind_it(extra, source):
    for requirement in EXTRAS[extra]:
        package = re.split("[<>=!~; \\[]", requirement)[0]
        try:
            files = distribution(package).files or ()
            modules = {f.parts[0].removesuffix(".py") for f in files if f.suffix == ".py" and "-" not in f.parts[0]}
        except PackageNotFoundError:  # tests that ask it are skipped
            modules = {package}
        names = "|".join(map(re.escape, modules))
        # Imported, or named for an import by name.
        found = re.search(rf"^ *(import|from) ({names})\b|\"({names})\"", source, re.MULTILINE)
        assert modules and found, f"{package} of the extra {extra} is imported nowhere"


def test_the_page_of_dependencies_names_each_extra():
    text = (REPOSITORY / "docs" / "dependencies.md").read_text()
    assert all(f"`{extra}`" in text for extra in EXTRAS)

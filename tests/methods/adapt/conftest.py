"""Two domains for the tests of methods that adapt."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import write_tiny_folder


@pytest.fixture
def domains(tmp_path: Path) -> tuple[Path, Path]:
    """A labelled source with three named classes, and a target without a mask, tag or class name."""
    source = write_tiny_folder(tmp_path / "source")
    target = write_tiny_folder(tmp_path / "target", masks=False)
    for file in ("classes.txt", "tags.csv", "captions.csv"):
        (target / file).unlink()
    (target / "masks").rmdir()
    return source, target

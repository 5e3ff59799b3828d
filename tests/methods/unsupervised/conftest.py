"""The pictures that small trainings of methods without labels share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import write_tiny_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures."""
    return write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny")

"""The Python surface by the names that the documentation uses."""

from __future__ import annotations

import importlib

from tests.conftest import write_tiny_folder

import maskwright as mw


def test_evaluate_can_be_called_before_and_after_its_package_is_imported(tmp_path):
    folder = write_tiny_folder(tmp_path / "tiny")
    importlib.import_module("maskwright.evaluate.confusion")
    assert mw.evaluate(folder / "masks", folder).to_json()["miou"] == 1
    from maskwright.api import evaluate

    assert evaluate(folder / "masks", folder).to_json()["miou"] == 1

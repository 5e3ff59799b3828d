"""The rooms' rules: who imports whom, and what stays unimported until a verb needs it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import maskwright

PACKAGE = Path(maskwright.__file__).parent
SLOW = ("torch", "torchvision", "timm", "numba", "lightning_fabric", "lightning", "scipy", "faiss", "PIL", "numpy",
        "segmentation_models_pytorch", "safetensors", "huggingface_hub", "torchmetrics")  # fmt: skip

LAYERS = {
    "ops": 0, "errors": 0, "accel": 1, "data": 1, "models": 2, "predict": 3, "evaluate": 3, "engine": 4, "recipes": 5,
    "methods": 6, "app": 7, "api": 8, "demo": 9, "cli": 10,
}  # fmt: skip
"""Each room imports from lower ones alone; rooms of one height do not know each other."""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


@pytest.mark.parametrize("what", ["maskwright", "maskwright.cli", "maskwright.api", "maskwright.methods"])
def test_importing_is_light(what):
    code = f"import sys, {what}; print(*sorted(set(sys.modules) & {set(SLOW)!r}))"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_help():
    done = python("-m", "maskwright.cli", "--help")
    assert done.returncode == 0, done.stderr
    for verb in ("doctor", "methods", "train", "predict", "evaluate", "demo"):
        assert verb in done.stdout


def test_help_imports_nothing_slow():
    done = python("-X", "importtime", "-m", "maskwright.cli", "--help")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "maskwright" in imported and imported.isdisjoint(SLOW)


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found.append((".".join(p for p in parts if p != "__init__"), path))
    return found


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it but under TYPE_CHECKING, without the package's name."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "maskwright":
                found.update(a.name for a in node.names)
            elif (node.module or "").startswith("maskwright."):
                found.add(node.module.removeprefix("maskwright."))
        if isinstance(node, ast.Import):
            found.update(a.name.removeprefix("maskwright.") for a in node.names if a.name.startswith("maskwright."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("name, path", [m for m in modules() if m[0]], ids=lambda v: v if isinstance(v, str) else "")
def test_rooms_import_from_lower_ones(name, path):
    room = name.partition(".")[0]
    for other in imports(path):
        theirs = other.partition(".")[0]
        if theirs == room:
            continue
        assert theirs in LAYERS, f"{name} imports {other}, which is no room"
        assert LAYERS[theirs] < LAYERS[room], f"{name} imports {other}"
        assert room != "ops", f"ops imports nothing of ours, but {name} imports {other}"


def paper(name: str) -> str:
    """The file or package of a method: methods.weak.seam of methods.weak.seam.network."""
    return ".".join(name.split(".")[:3])


def test_methods_never_import_each_other():
    for name, path in modules():
        if name.startswith("methods.") and name.count(".") >= 2:
            others = {o for o in imports(path) if o.startswith("methods.") and paper(o) != paper(name)}
            assert not others, f"{name} imports {others}"


def test_every_module_says_what_it_is():
    for name, path in modules():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{name} has no docstring"
        assert "utils" not in path.name

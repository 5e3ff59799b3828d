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
    "__main__": 11,
}  # fmt: skip
"""Each room imports from lower ones alone; rooms of one height do not know each other."""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


@pytest.mark.parametrize(
    "what", ["maskwright", "maskwright.cli", "maskwright.api", "maskwright.methods", "maskwright.engine.config"]
)
def test_importing_is_light(what):
    code = f"import sys, {what}; print(*sorted(set(sys.modules) & {set(SLOW)!r}))"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["maskwright", "maskwright.cli"])
@pytest.mark.parametrize("words", [["--help"], []])
def test_help(module, words):
    done = python("-m", module, *words)
    assert done.returncode == 0, done.stderr
    verbs = (
        "doctor", "methods", "train", "name", "predict", "suggest", "evaluate", "compare", "probe", "export", "demo",
    )  # fmt: skip
    for verb in verbs:
        assert verb in done.stdout
    assert ("Commands:" in done.stdout) == bool(words), "without a verb the short help"


@pytest.mark.parametrize("words", [["--help"], [], ["--version"], ["train", "--help"], ["methods", "--help"]])
def test_help_imports_nothing_slow(words):
    done = python("-X", "importtime", "-m", "maskwright", *words)
    assert done.returncode == 0, done.stderr
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
        assert room != "accel" or theirs == "ops", f"accel imports ops alone, but {name} imports {other}"


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


# ----------------------------------------------------------------------------------------------------------- circles

LATE = {("data.folders.folder", "data.folders.opening"), ("data.folders.folder", "data.examining.understanding")}
"""Imports inside a function that close a circle. `open_folder` makes the dataset that its caller asked this file for;
a mask that is read before anybody asked what masks mean is understood first."""


def graph(late: bool) -> dict[str, set[str]]:
    """File to the files that it imports when it is imported, or (late) in any of its functions, too."""
    files = {name: path for name, path in modules() if name}
    found: dict[str, set[str]] = {name: set() for name in files}

    def visit(name: str, node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not late:
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "maskwright":
            base = (node.module or "").removeprefix("maskwright").removeprefix(".")
            for alias in node.names:  # a module of a package, or a name of a module
                whole = f"{base}.{alias.name}".removeprefix(".")
                found[name].add(whole if whole in files else base)
        if isinstance(node, ast.Import):
            found[name].update(a.name.removeprefix("maskwright.") for a in node.names)
        for child in ast.iter_child_nodes(node):
            visit(name, child)

    for name, path in files.items():
        visit(name, ast.parse(path.read_text()))
    return {name: (others & files.keys()) - {name} for name, others in found.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Files that import one another in a ring, or none: what is left when files without imports are taken away, and
    then those that only imported such, and so on, until nothing changes; of the rest one ring is walked."""
    left = {name: set(others) for name, others in edges.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    walked: list[str] = [next(iter(left))] if left else []
    while walked and walked[-1] not in walked[:-1]:
        walked.append(sorted(left[walked[-1]] & left.keys())[0])
    return walked[walked.index(walked[-1]) :] if walked else []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"x": {"a"}, "a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()}) == ["a", "b", "c", "a"]


@pytest.mark.parametrize("late", [False, True], ids=["at import", "in functions too"])
def test_no_files_import_one_another_in_a_circle(late):
    edges = graph(late)
    assert {"models.parts.table", "errors"} <= edges["models.bundle"]
    if late:
        assert all(b in edges[a] for a, b in LATE), "an exception that is none any more"
        edges = {a: {b for b in others if (a, b) not in LATE} for a, others in edges.items()}
    assert circle(edges) == []


def test_clusters_are_reached_without_networks():
    """Loading a method loads what it stands on; parts of networks come when a bundle names them."""
    edges, seen = graph(late=False), set()
    left = ["methods.unsupervised.kmeans"]
    while left:
        seen.add(name := left.pop())
        left += edges[name] - seen
    assert not {name for name in seen if name.startswith(("methods.weak", "methods.semi"))}
    assert "models.segmenter" in seen and "models.networks.ocr" not in seen and "models.networks.cam" not in seen

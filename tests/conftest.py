"""Fixtures for all tests: where real photographs lie, and tiny folders that the tests write themselves."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# Several workers with as many threads as cores each wait for one another; small networks gain nothing from threads.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Programs that tests start would compile every module anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if TYPE_CHECKING:
    from maskwright.engine.context import Context

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
# Random draws in the default run would make it fail for reasons that its change did not bring; search with
# HYPOTHESIS_PROFILE=search.
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers share the tests by file, and those of the contract suite, the longest file, by method: what a module's
    fixtures train is then trained once. Marks of groups would say the same, but pytest 9 hides them from xdist."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            return f"{file}[{test.partition('[')[2]}" if file.endswith("test_contract.py") else file

    config.option.loadscopereorder = False  # as `pytest_collection_modifyitems` has them
    return ByFile(config, log)


LONG = ("test_contract.py", "test_networks.py", "test_matrix.py", "test_kill.py", "test_suggest.py", "test_cli.py")
"""Files that take longest. Files with many tests usually do; these have few for their time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, then those with the most tests, so that no worker begins a long one at the end."""
    counts = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int, str]:
        name = item.path.name
        return (LONG.index(name) if name in LONG else len(LONG), -counts[item.path], str(item.path))

    items.sort(key=place)


CommandResult = tuple[int, str, str]
REPOSITORY = Path(__file__).resolve().parents[1]


def _data_root() -> Path | None:
    named = os.environ.get("MASKWRIGHT_DATA")
    root = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    return root if root.is_dir() else None


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real photographs; tests that use it are marked `data` and skipped where there is none."""
    root = _data_root()
    if root is None:
        pytest.skip("no real photographs: set MASKWRIGHT_DATA to a folder of datasets")
    return root


@pytest.fixture(scope="session")
def weights_root(data_root: Path) -> Path:
    """The folder of small pretrained networks beside the photographs."""
    root = data_root.parent / "weights"
    if not root.is_dir():
        pytest.skip("no pretrained networks beside the photographs")
    return root


@pytest.fixture(scope="session")
def golden_root(data_root: Path) -> Path:
    """The folder of tensors that authors' own code gave, beside the photographs."""
    root = data_root.parent / "golden"
    if not root.is_dir():
        pytest.skip("no golden tensors beside the photographs")
    return root


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests remember of their files goes into a folder of theirs."""
    os.environ.setdefault("MASKWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def maskwright(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """Runs the command line in this process; gives exit code, standard output and error."""
    from maskwright import cli

    def run(*arguments: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["maskwright", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A dataset folder of eight 48x64 pictures of two-coloured scenes with masks, tags, captions and splits."""
    return write_tiny_folder(tmp_path / "tiny")


def write_tiny_folder(root: Path, count: int = 8, size: tuple[int, int] = (48, 64), masks: bool = True) -> Path:
    """Writes a dataset folder: a textured disc (class 1) or square (class 2) on a plain ground (class 0)."""
    rng = np.random.default_rng(0)
    for sub in ("images", "masks", "splits"):
        (root / sub).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("ground\ndisc\nsquare\n")
    h, w = size
    yy, xx = np.mgrid[:h, :w]
    names, tags, captions = [], ["name,tags"], ["name,caption"]
    for i in range(count):
        name = f"picture_{i:02d}"
        kind = 1 + i % 2
        cy, cx, r = rng.integers(h // 3, 2 * h // 3), rng.integers(w // 3, 2 * w // 3), h // 4
        inside = (yy - cy) ** 2 + (xx - cx) ** 2 < r * r if kind == 1 else np.maximum(abs(yy - cy), abs(xx - cx)) < r
        image = np.full((h, w, 3), (90, 140, 90), float) + rng.normal(0, 6, (h, w, 3))
        image[inside] = np.array([(220, 60, 40), (40, 70, 220)][kind - 1]) + rng.normal(0, 12, (int(inside.sum()), 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{name}.png")
        if masks:
            Image.fromarray(np.where(inside, kind, 0).astype(np.uint8)).save(root / "masks" / f"{name}.png")
        names.append(name)
        tags.append(f"{name},{('disc', 'square')[kind - 1]}")
        captions.append(f"{name},a {('red disc', 'blue square')[kind - 1]} on green ground")
    (root / "tags.csv").write_text("\n".join(tags) + "\n")
    (root / "captions.csv").write_text("\n".join(captions) + "\n")
    half = count // 2
    (root / "splits" / "train.txt").write_text("\n".join(names[:half]) + "\n")
    (root / "splits" / "test.txt").write_text("\n".join(names[half:]))
    return root


@pytest.fixture
def semi_context(tmp_path: Path) -> Context:
    """A run's context on a tiny folder, three of eight images labelled, with a small backbone of random weights."""
    from maskwright.data.folders.folder import open_folder
    from maskwright.engine.config import configure
    from maskwright.engine.opening import open_run
    from maskwright.engine.progress import Progress
    from maskwright.engine.request import RunRequest
    from maskwright.methods.supervised import Supervised, SupervisedConfig

    data = open_folder(write_tiny_folder(tmp_path / "tiny"))
    request = RunRequest(
        data=data.labeled(data.names[:3]), method=Supervised, config=configure(SupervisedConfig, {"crop": 32}),
        out=tmp_path / "run", backbone="mobilenetv3_small_050", weights="random", steps=4, device="cpu",
        progress=Progress(quiet=True),
    )  # fmt: skip
    return open_run(request)

"""How runs end and what they leave: statuses, requests to stop, scratch files of the dead, caches that take nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.engine.encoders import CountingEncoder, preprocess
from tests.engine.test_records import RECORD_OF

import maskwright as mw
from maskwright.app import run_pages
from maskwright.app.run_pages import PAGES
from maskwright.data.folders.folder import open_folder
from maskwright.data.trust.files import sweep, temporary_beside
from maskwright.data.trust.remembered import cache_root
from maskwright.engine.cache import FeatureCache
from maskwright.engine.progress import Progress
from maskwright.engine.records import RunFolder
from maskwright.errors import MaskwrightError
from maskwright.predict.kept import model_key

DEAD = subprocess.Popen([sys.executable, "-c", ""])
DEAD.wait()
SMALL = {"dim": 8, "restarts": 1, "iterations": 5, "short_side": 32, "max_rows": 500}


def kmeans(data: Path, out: Path, **options):
    defaults = {"report": False, "progress": Progress(quiet=True)}
    return mw.train(
        data, "kmeans", out=out, classes=3, backbone="test_vit", weights="random", device="cpu", settings=SMALL,
        **(defaults | options),
    )  # fmt: skip


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    return write_tiny_folder(tmp_path / "data", count=3, size=(32, 40))


def status(run: Path) -> str:
    return json.loads((run / "run.json").read_text())["status"]


@pytest.mark.parametrize(
    "where", ["maskwright.models.bundle.save_bundle", "page", "previews", "clusters",
              "maskwright.methods.unsupervised.kmeans.KMeans.cluster"],
)  # fmt: skip
@pytest.mark.parametrize("error, word", [(MaskwrightError("no room"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_an_end_at_any_step_is_recorded(data, tmp_path, monkeypatch, where, error, word):
    def fail(*_args, **_options):
        raise error

    with monkeypatch.context() as patch:
        if where in PAGES._fields:
            patch.setattr(run_pages, "PAGES", PAGES._replace(**{where: fail}))
        else:
            patch.setattr(where, fail)
        with pytest.raises(type(error)):
            kmeans(data, tmp_path / "run", report=True)
    assert status(tmp_path / "run") == word
    with pytest.raises(MaskwrightError, match=f"holds a run that (was )?{word}.*--resume"):
        kmeans(data, tmp_path / "run")
    kmeans(data, tmp_path / "run", resume=True)
    assert status(tmp_path / "run") == "finished"


def test_the_record_knows_the_model_and_the_time_behind_the_stages(data, tmp_path):
    kmeans(data, tmp_path / "run", report=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["model_key"] == model_key(mw.load(tmp_path / "run").segmenter), "as predict writes it of the file"
    assert 0 < record["seconds_after_stages"] < 60


def test_a_killed_run_is_recognised(data, tmp_path, capsys):
    RunFolder.start(tmp_path / "run", RECORD_OF, resume=False).release()
    again = RunFolder.start(tmp_path / "run", RECORD_OF, resume=True)
    assert again.earlier == "the earlier process of this run ended without a word; going on from what it saved"
    assert RunFolder.standing(tmp_path / "run") == "is under way in another process"
    again.release()
    assert RunFolder.standing(tmp_path / "run") == "was killed: its process ended without a word"
    with pytest.raises(MaskwrightError, match="already holds a run that was killed"):
        RunFolder.check(tmp_path / "run", resume=False)
    with pytest.raises(MaskwrightError, match=r"a run without a model: it was killed.*with --resume"):
        mw.load(tmp_path / "run")
    again.save(status="finished")
    assert RunFolder.start(tmp_path / "run", RECORD_OF, resume=True).earlier == ""


def test_a_request_to_stop_is_an_interrupt(data, tmp_path):
    program = (
        "import sys; from maskwright import cli; from maskwright.engine import loop\n"
        "real = loop.seed_step\n"
        "def slow(*args):\n"
        "    import time; print('step', flush=True); time.sleep(0.05); return real(*args)\n"
        "loop.seed_step = slow\n"
        "try:\n"
        "    cli.main()\n"
        "finally:\n"
        "    import signal; print('alarm in', signal.getitimer(signal.ITIMER_REAL)[0])"
    )
    command = [
        "train", data, "--method", "supervised", "--weights", "random", "--backbone", "mobilenetv3_small_050",
        "--set", "crop=32", "--set", "batch=2", "--steps", 10_000, "--device", "cpu", "--out", tmp_path / "run",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "step\n", process.stderr.read()
    process.send_signal(signal.SIGTERM)
    told, said = process.communicate(timeout=60)
    assert process.returncode == 2 and status(tmp_path / "run") == "interrupted"
    assert told.splitlines()[-1] == "alarm in 0.0", "a process that is slow to go would die of it"
    assert said.splitlines()[-1] == "maskwright: interrupted; repeat the command, a training with --resume"
    assert "Traceback" not in said


def test_scratch_of_the_dead_is_collected(tmp_path, monkeypatch):
    below = tmp_path / "below"
    below.mkdir()
    own = temporary_beside(below / "a.png")
    with monkeypatch.context() as as_dead:
        as_dead.setattr(os, "getpid", lambda: DEAD.pid)
        dead = [temporary_beside(below / name) for name in ("a.png", "checkpoint.pt")]
    others = [below / name for name in (".b.tmp", "a.tmp", f".a.{DEAD.pid}-0123abcd.tmp", dead[0].name[1:])]
    for path in (own, *dead, *others):
        path.touch()
    assert sweep([tmp_path]) == 0
    assert sweep([tmp_path, tmp_path / "missing"], deep=True) == 2
    assert sorted(below.iterdir()) == sorted([own, *others])


def test_a_resumed_run_and_its_cache_are_tidied(data, tmp_path, monkeypatch):
    kmeans(data, tmp_path / "run")
    features = next((tmp_path / "cache" / "features").iterdir())
    with monkeypatch.context() as as_dead:
        as_dead.setattr(os, "getpid", lambda: DEAD.pid)
        left = [temporary_beside(tmp_path / "run" / "cluster" / "x.safetensors"), temporary_beside(features / "y.npy")]
    for path in left:
        path.touch()
    kmeans(data, tmp_path / "run", resume=True)
    assert not any(path.exists() for path in left)


def test_a_cache_that_takes_nothing_stops_nothing(data, tmp_path, monkeypatch, capsys):
    kmeans(data, tmp_path / "whole")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "file" / "cache"))
    kmeans(data, tmp_path / "run", progress=Progress())
    said = capsys.readouterr().err
    assert said.count("features are kept in") == 1 and f"cannot write {tmp_path / 'file'}" in said
    a, b = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not (tmp_path / "run" / ".features").exists(), "gone when the run is finished"


def test_features_in_the_run_are_found_again(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    images, cache = open_folder(data), FeatureCache(tmp_path / "file" / "cache")
    options = {"progress": Progress(quiet=True), "instead": tmp_path / "instead"}
    first, second = CountingEncoder(), CountingEncoder()
    a = cache.features(first, preprocess(), images, **options)
    b = cache.features(second, preprocess(), images, **options)
    assert first.images == 3 and second.images == 0 and all(torch.equal(a[i], b[i]) for i in range(3))
    with pytest.raises(MaskwrightError, match="cannot write"):
        cache.features(CountingEncoder(), preprocess(), images, progress=Progress(quiet=True))


def test_no_home_and_no_entry_for_the_user(tmp_path, monkeypatch):
    def unknown(_cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MASKWRIGHT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(unknown))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert FeatureCache().root == cache_root() / "features" and tmp_path in cache_root().parents


@pytest.mark.parametrize("writable, home", [(True, "/nowhere"), (False, "/nowhere"), (False, "~")])
def test_compiled_code_has_a_place(tmp_path, monkeypatch, writable, home):
    """numba raises RuntimeError at import where it finds none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(mw.os, "access", lambda *_: writable)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    mw._place_for_compiled_code()
    if writable:
        assert "NUMBA_CACHE_DIR" not in os.environ and not list(tmp_path.iterdir())
    else:
        (folder,) = tmp_path.iterdir()
        assert os.environ["NUMBA_CACHE_DIR"] == str(folder) and folder.stat().st_mode & 0o77 == 0
    monkeypatch.setenv("NUMBA_CACHE_DIR", "chosen")
    mw._place_for_compiled_code()
    assert os.environ["NUMBA_CACHE_DIR"] == "chosen"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_that_a_library_swallows_ends_the_run_at_the_next_step(data, tmp_path, monkeypatch, number):
    """Where a library catches everything, as an import or a compiler may, the loop asks again."""
    from maskwright import cli
    from maskwright.engine import loop

    real, before = loop.seed_step, {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

    def swallowing(seed, step, *rest):
        if step == 3:
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                time.sleep(0.2)
        return real(seed, step, *rest)

    monkeypatch.setattr(loop, "seed_step", swallowing)
    command = [
        "maskwright", "train", data, "--method", "supervised", "--weights", "random", "--backbone",
        "mobilenetv3_small_050", "--set", "crop=32", "--set", "batch=2", "--steps", 8, "--device", "cpu",
        "--out", tmp_path / "run",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    try:
        with pytest.raises(SystemExit) as left:
            cli.main()
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert left.value.code == 2 and status(tmp_path / "run") == "interrupted"

"""Runs that are ended at random moments: SIGKILL, SIGTERM and Ctrl-C, and what a resumed run ends in.

Each run is a process of the command line, forked from one that has made the imports, so that the moments fall into the
work. The private cache of each run is killed with it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz import inputs, verbs
from benchmarks.fuzz.kinds import CLUSTERS, CNN, CROPS, FEW, TAGS, TINY

STEPS = ["--steps", "12"]
METHODS: dict[str, list[str]] = {
    "kmeans": [*CNN, *CLUSTERS, "--set", "short_side=32", "--set", "dim=4"],
    "supervised": [*CNN, *STEPS, *CROPS],
    "mean_teacher": [*CNN, *STEPS, *FEW, *CROPS],
    "cam": [*CNN, *STEPS, *TAGS, *CROPS],
    "stego": ["--backbone", "test_vit", *STEPS, *CLUSTERS],
    "deep_spectral": ["--backbone", "test_vit", *STEPS, *CLUSTERS],
}
"""Runs of a few seconds each, as words of the command line."""
IN_A_ROW = 3
"""Kills of one run, at most, before it may end."""
PREDICTIONS = 20
"""Kills of `predict`."""
SIGNALS = 3
"""Times that each of SIGTERM and Ctrl-C is sent."""


class Process:
    """A verb of the command line in a process of its own.

    Args:
        words: of the command line.
        log: file for what it says.
        cache: its cache folder.
    """

    def __init__(self, words: list[str], log: Path, cache: Path) -> None:
        self.log = log
        self.process = multiprocessing.get_context("fork").Process(target=_run, args=(words, log, cache))
        self.process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, negative for a signal, or None where it runs on after so many seconds."""
        self.process.join(seconds)
        return self.process.exitcode

    def send(self, number: int) -> None:
        """Sends a signal, unless it has ended: its number may be another process's by then."""
        if self.process.exitcode is None:
            assert self.process.pid is not None
            os.kill(self.process.pid, number)

    def said(self) -> str:
        """What it wrote."""
        return self.log.read_text(errors="replace")


def _run(words: list[str], log: Path, cache: Path) -> None:
    from maskwright import cli
    from maskwright.engine import loop

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (os.fdopen(k, "w", buffering=1, closefd=False) for k in (1, 2))
    os.environ["MASKWRIGHT_CACHE"] = str(cache)
    # By default a checkpoint is written each minute; these runs take seconds.
    loop.CHECKPOINT_SECONDS = 0.05
    sys.argv = ["maskwright", *words]
    cli.main()


class Trials:
    """What all trials share: the data, the folder for runs, the draw of moments.

    Args:
        scratch: a folder.
        seed: of the moments.
    """

    def __init__(self, scratch: Path, seed: int) -> None:
        self.data = inputs.write_folder(scratch / "data", count=6)
        self.scratch, self.rng, self.made = scratch, np.random.default_rng(seed), 0
        self.problems: list[str] = []

    def words(self, method: str, run: Path) -> list[str]:
        """The command line of a run."""
        return ["train", str(self.data), "--method", method, *METHODS[method], *TINY, "--out", str(run)]

    def start(self, words: list[str], run: Path) -> Process:
        """Starts a process whose cache lies beside its run."""
        self.made += 1
        return Process(words, self.scratch / f"said-{self.made}.log", run.with_name(f"{run.name}-cache"))

    def finish(self, words: list[str], run: Path) -> float:
        """Runs to the end; seconds that it took. Raises `SystemExit` where it fails."""
        began = time.monotonic()
        process = self.start(words, run)
        if code := process.wait():
            raise SystemExit(f"{' '.join(words)} ends with {code}: {process.said()[-400:]}")
        return time.monotonic() - began

    def again(self, words: list[str], run: Path, what: str) -> bool:
        """Resumes to the end; False where that fails, which is then among the problems."""
        process = self.start([*words, "--resume"], run)
        if code := process.wait():
            self.problems.append(f"{what}: resuming ends with {code}: {process.said().strip()[-300:]}")
            return False
        return True


def tensors(run: Path) -> str:
    """A hash of a run's model, to the bit."""
    from safetensors.numpy import load_file

    held = load_file(run / "model.safetensors")
    return verbs.digest(*(v for k in sorted(held) for v in (k, held[k])))


def status(run: Path) -> str:
    """What `run.json` says of the run, "none" where there is none."""
    path = run / "run.json"
    return str(json.loads(path.read_text())["status"]) if path.exists() else "none"


def leftovers(folder: Path) -> list[str]:
    """Temporary files below a folder."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and ".tmp" in p.name)


def kill_method(trials: Trials, method: str, kills: int) -> str:
    """Kills runs of a method at random moments and resumes them; a line of the table."""
    usual = trials.scratch / f"{method}-usual"
    trials.finish(trials.words(method, usual), usual)
    second = trials.scratch / f"{method}-second"  # with warm compilers: what a killed run will take
    seconds = trials.finish(trials.words(method, second), second)
    wanted, done, tried, runs, equal, left = tensors(usual), 0, 0, 0, 0, 0
    if tensors(second) != wanted:
        trials.problems.append(f"{method}: two undisturbed runs differ")
    places: list[str] = []
    while done < kills:
        tried += 1
        run = trials.scratch / f"{method}-{tried}"
        words, killed = trials.words(method, run), 0
        while killed < IN_A_ROW and done < kills:
            began = time.monotonic()
            process = trials.start([*words, "--resume"] if run.exists() else words, run)
            code = _moment(trials, process, run, seconds)
            if code is not None:
                seconds = min(seconds, time.monotonic() - began)  # the machine has more time for it than before
                if code:
                    trials.problems.append(f"{method}: ends with {code}: {process.said().strip()[-300:]}")
                break
            process.send(signal.SIGKILL)
            process.wait()
            killed += 1
            done += 1
            places.append(_stage(run))
        if killed and trials.again(words, run, f"{method} after {killed} kills"):
            same = tensors(run) == wanted and status(run) == "finished"
            equal += same
            if not same:
                trials.problems.append(f"{method}: another model after kills in {places[-killed:]}")
            left += len(leftovers(run)) + len(leftovers(run.with_name(f"{run.name}-cache")))
        runs += killed > 0
        shutil.rmtree(run, ignore_errors=True)
    if left:
        trials.problems.append(f"{method}: {left} temporary files are left behind")
    where = ", ".join(f"{p} {places.count(p)}" for p in sorted(set(places)))
    return f"| {method} | {done} | {where} | {equal} of {runs} | {left} |"


def _moment(trials: Trials, process: Process, run: Path, seconds: float) -> int | None:
    """Waits for a random moment, in four of five times one after the run's record was written; the exit code if any."""
    until = time.monotonic() + seconds
    late = trials.rng.random() < 0.8
    while late and status_or_none(run) != "running" and process.wait(0.005) is None:
        pass
    return process.wait(float(trials.rng.uniform(0, max(0.1, until - time.monotonic()))))


def _stage(run: Path) -> str:
    """Where a run was when it was killed: the last stage that has a folder."""
    if not (run / "run.json").exists():
        return "before it began"
    begun = [p.parent.name for p in run.glob("*/stage.json")]
    open_ = [p.name for p in run.iterdir() if p.is_dir() and p.name not in (*begun, "previews")]
    return f"in {open_[0]}" if open_ else "between or behind stages"


def kill_predict(trials: Trials, kills: int) -> str:
    """Kills `predict` at random moments; a line of the table."""
    photos = inputs.write_folder(trials.scratch / "many", count=48, masked=0)
    model, usual = trials.scratch / "kmeans-usual", trials.scratch / "predicted"

    def words(out: Path) -> list[str]:
        return ["predict", str(model), str(photos), "--out", str(out), "--confidence", "--overlays", "--device", "cpu"]

    trials.finish(words(usual), usual)
    shutil.rmtree(usual)
    seconds = trials.finish(words(usual), usual)
    wanted = {p.relative_to(usual): p.read_bytes() for p in usual.rglob("*.png") if ".tmp" not in p.name}
    torn = seen = done = left = 0
    while done < kills:
        out = trials.scratch / f"predicted-{done}"
        process = trials.start(words(out), out)
        if process.wait(float(trials.rng.uniform(0, seconds))) is not None:
            continue
        process.send(signal.SIGKILL)
        process.wait()
        done += 1
        for path in out.rglob("*.png"):
            if ".tmp" in path.name:
                continue
            seen += 1
            torn += path.read_bytes() != wanted.get(path.relative_to(out))
        if done % 5 == 0:  # the same command once more completes it, and clears away what the kill left
            trials.finish(words(out), out)
            got = {p.relative_to(out): p.read_bytes() for p in out.rglob("*.png") if ".tmp" not in p.name}
            torn += got != wanted
            left += len(leftovers(out))
    if torn:
        trials.problems.append(f"predict: {torn} torn files")
    if left:
        trials.problems.append(f"predict: {left} temporary files are left behind by the command after a kill")
    return f"| predict | {done} | at random moments | {seen - torn} of {seen} files whole | {left} |"


def signals(trials: Trials, number: signal.Signals, times: int) -> str:
    """Sends a signal in the middle of runs: they must say that they were interrupted, and resume; a line."""
    wanted = tensors(trials.scratch / "supervised-usual")
    right = equal = 0
    for k in range(times):
        run = trials.scratch / f"{number.name}-{k}"
        words = trials.words("supervised", run)
        process = trials.start(words, run)
        while status_or_none(run) != "running" and process.wait(0.01) is None:
            pass
        time.sleep(float(trials.rng.uniform(0, 0.5)))
        process.send(number)
        code, found = process.wait(60), status(run)
        good = found == "interrupted" and code not in (None, 0) and "Traceback" not in process.said()
        right += good
        if not good:
            trials.problems.append(f"{number.name}: status {found}, exit code {code}: {process.said().strip()[-200:]}")
        if trials.again(words, run, number.name):
            equal += tensors(run) == wanted
    if equal != times:
        trials.problems.append(f"{number.name}: {equal} of {times} resumed runs are equal")
    return f"| {number.name} | {times} | status interrupted {right} of {times} | {equal} of {times} | |"


def status_or_none(run: Path) -> str:
    """As `status`; "none" also while the record is being read and written."""
    try:
        return status(run)
    except (OSError, ValueError, KeyError):
        return "none"


def kill_runs(kills: int, seed: int, scratch: Path) -> int:
    """Kills so many runs of all methods, then `predict`, then sends signals; prints a table.

    Args:
        kills: of trainings, in all.
        seed: of the moments.
        scratch: a folder.

    Returns:
        1 where something was not as it must be.
    """
    import torch

    import maskwright.api
    import maskwright.app.report
    import maskwright.methods
    import maskwright.predict.model  # noqa: F401

    torch.set_num_threads(1)
    began = time.monotonic()
    trials = Trials(scratch, seed)
    print("| what | kills | where | equal to the bit | temporary files left |\n|---|---|---|---|---|", flush=True)
    names = list(METHODS)
    parts: list[tuple[Callable[..., str], tuple[Any, ...]]] = [
        (kill_method, (name, kills // len(names) + (k < kills % len(names)))) for k, name in enumerate(names)
    ]
    parts += [(kill_predict, (PREDICTIONS,)), (signals, (signal.SIGTERM, SIGNALS)), (signals, (signal.SIGINT, SIGNALS))]
    for part, values in parts:
        print(part(trials, *values), flush=True)
    print(f"{time.monotonic() - began:.0f} s")
    for problem in trials.problems:
        print(f"problem: {' '.join(problem.split())}")
    return 1 if trials.problems else 0

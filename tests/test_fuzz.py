"""The fuzzer finds what it is to find: a fault of each class, put there on purpose, and none in files as they are."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benchmarks.fuzz import inputs, kinds, mutations, verbs
from benchmarks.fuzz.kinds import Case, Kind
from benchmarks.fuzz.pool import run_all
from benchmarks.fuzz.trial import OUTCOMES, Bench, Report
from benchmarks.fuzz.verbs import Answer, Untidy, Verb

from maskwright.errors import MaskwrightError

USUAL = b"usual"


def faulty(what: str) -> Callable[[Path], Answer]:
    """A verb that does right by the usual file, and something else by any other."""

    def run(place: Path) -> Answer:
        if (place / "file.bin").read_bytes() == USUAL:
            return Answer("right")
        if what == "told":
            raise MaskwrightError("file.bin is damaged", "a whole one", "copy it again")
        if what == "said":
            return Answer("other", ("file.bin was left out",))
        if what == "untidy":
            raise Untidy("two lines")
        if what == "traceback":
            raise IndexError("list index out of range")
        if what == "memory":
            held = np.ones(1 << 30, np.uint8)  # more than a large parent's libraries, which a fork does not count
            time.sleep(30)
            return Answer(int(held.sum()))
        if what == "hang":
            time.sleep(30)
        if what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        return Answer("right" if what == "equal" else "other")

    return run


def bench(tmp_path: Path, what: str, checked: bool) -> Bench:
    """A bench whose only verb has a fault."""
    case = Case("case", "file.bin", USUAL, "bytes", checked, lambda place: None, (Verb("verb", faulty(what)),))
    return Bench({"kind": Kind("kind", 1, lambda bases: [case])}, tmp_path, tmp_path / "scratch", seed=0)


def resident() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("what", "checked", "outcome"),
    [
        ("equal", True, "equal"), ("told", True, "told"), ("said", True, "told"), ("silent", False, "undetectable"),
        ("silent", True, "silent"), ("untidy", True, "untidy"), ("traceback", True, "traceback"),
        ("memory", True, "memory"), ("hang", True, "hang"), ("crash", True, "crash"),
    ],
)  # fmt: skip
def test_a_fault_of_each_class_is_found(what: str, checked: bool, outcome: str, tmp_path: Path) -> None:
    tries = bench(tmp_path, what, checked)
    limits = {"seconds": 0.5 if what == "hang" else 20.0, "memory": resident() + (150 << 20)}
    found = [r.outcome for r, *_ in run_all(lambda k: tries, [("kind", 0), ("kind", 1)], tmp_path, **limits)]
    assert found == [outcome, outcome]  # the second by another worker, where the first did not survive


def test_a_crash_is_told_with_its_place(tmp_path: Path) -> None:
    tries = bench(tmp_path, "crash", True)
    [(report, *_)] = run_all(lambda k: tries, [("kind", 0)], tmp_path)
    assert report.place.startswith("SIGSEGV") and "test_fuzz.py" in report.detail


@pytest.mark.slow
def test_tables_and_masks_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    chosen = {name: kinds.KINDS[name] for name in ("masks", "tables", "predictions")}
    tries = Bench(chosen, tmp_path, tmp_path / "scratch", seed=0)
    tasks = [(name, k) for name in chosen for k in range(15)]
    reports: list[Report] = [r for r, *_ in run_all(lambda k: tries, tasks, tmp_path)]
    assert [(r.kind, r.number) for r in reports] == tasks
    assert {r.outcome for r in reports} >= {"equal", "told"}
    assert not [r for r in reports if r.place.startswith("bench:") or r.outcome in ("crash", "hang", "memory")]
    assert {r.outcome for r in reports} <= set(OUTCOMES)


def test_a_number_gives_its_mutation_again(tmp_path: Path) -> None:
    tries = [Bench({"tables": kinds.KINDS["tables"]}, tmp_path, tmp_path, seed=3) for _ in range(2)]
    for number in (0, 17, 4000):
        (a, x), (b, y) = (t.mutant("tables", number) for t in tries)
        assert (a.name, x) == (b.name, y)


@pytest.mark.parametrize("form", ["bytes", *mutations.STRUCTURE])
def test_every_form_is_changed(form: str) -> None:
    data = {
        "png": inputs.pictures()["rgb.png"], "image": inputs.pictures()["rgb.bmp"], "json": b'{"a": [1, {"b": "x"}]}',
        "lines": b'{"a": 1}\n{"a": 2}\n',
    }.get(form, b"name,tags\none,2\n")  # fmt: skip
    changed = sum(mutations.mutate(data, form, np.random.default_rng(k)).data != data for k in range(200))
    assert changed > 180


def test_a_command_writes_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskwright import cli

    monkeypatch.setattr(cli, "main", lambda: print("\x1b[2J"))
    with pytest.raises(Untidy, match="control"):
        verbs.command("doctor", "folder")


@pytest.mark.parametrize("code", [1, 3])
def test_a_command_ends_with_one_line_and_two(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskwright import cli

    def stop() -> None:
        raise SystemExit(code)

    monkeypatch.setattr(cli, "main", stop)
    with pytest.raises(Untidy, match=f"exit code {code}"):
        verbs.command("train", "folder")

from __future__ import annotations

import io
import logging
import sys
import types

import pytest

from maskwright.engine.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("maskwright.engine.progress.time.perf_counter", clock)
    return clock


def test_plain_lines_without_a_terminal(capsys, clock):
    progress = Progress(every=10)
    assert not progress.terminal
    with progress.task("train", 100) as task:
        for done in range(1, 101):
            clock.now += 0.5
            task.advance_to(done, loss=1 / done)
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err and "\x1b" not in err
    lines = err.splitlines()
    assert lines[0] == "train: 20/100, 2.0/s, 40 s left, loss 0.0500"
    assert lines[-1] == "train: 100 in 50.0 s (2.0/s), loss 0.0100"
    assert len(lines) == 5


def test_what_was_done_before_does_not_count_for_the_rate(capsys, clock):
    with Progress(every=1).task("train", 100, done=80) as task:
        clock.now = 5.0
        task.advance_to(90)
        task.advance_to(100)
    assert capsys.readouterr().err.splitlines() == ["train: 90/100, 2.0/s, 5 s left", "train: 100 in 5.0 s (4.0/s)"]


def test_time_left_is_told_by_the_last_steps(capsys, clock):
    """Twenty minutes into steps that take four times as long as those before, the time left is theirs."""
    with Progress(every=10).task("train", 4000) as task:
        for done in range(1, 2301):
            clock.now += 1 if done <= 2000 else 4
            task.advance_to(done)
        assert clock.now == 2000 + 4 * 300
        last = capsys.readouterr().err.splitlines()[-1]
    done, left = int(last.split()[1].split("/")[0]), float(last.split(",")[2].split()[0])
    assert left == pytest.approx(4 * (4000 - done), rel=0.02)
    capsys.readouterr()


def test_counter(capsys, clock):
    with Progress().counter("reading") as count:
        for done in range(1, 4):
            clock.now += 1
            count(done, 3)
    assert capsys.readouterr().err == "reading: 3 in 2.0 s (1.5/s)\n"
    with Progress().counter("nothing"):
        pass
    assert capsys.readouterr().err == ""


def test_counter_lets_errors_through():
    with pytest.raises(ZeroDivisionError), Progress(quiet=True).counter("x") as count:
        count(1, 2)
        raise ZeroDivisionError


def test_track(capsys):
    assert list(Progress().track(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("letters: 3 in ")


def test_quiet_and_empty(capsys):
    quiet = Progress(quiet=True)
    quiet.say("hello")
    with quiet.task("x", 3) as task:
        task.advance_to(3, loss=1.0)
    with Progress().task("nothing", 0) as task:
        task.advance_to(0)
    assert capsys.readouterr().err == ""


def test_a_failed_task_does_not_say_that_it_is_done(capsys):
    with pytest.raises(ZeroDivisionError), Progress().task("x", 3):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_a_bar_in_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    progress = Progress()
    assert progress.terminal
    with progress.task("train", 40, done=10) as task:
        task.advance_to(25, loss=0.5)
        progress.say("a line between")
        task.advance_to(40, loss=0.25)
    text = screen.getvalue()
    assert "train" in text and "40/40" in text and "loss 0.2500" in text and "/s" in text and "left" in text
    assert "a line between" in text


def test_a_day_is_told_in_few_lines(capsys, clock):
    day = 24 * 3600
    with Progress().task("train", day) as task:
        for done in range(1, day + 1):
            clock.now += 1
            task.advance_to(done, loss=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert 60 < len(lines) < 200
    assert lines[0].startswith("train: about 24 h") and lines[1].startswith("train: 10/86400"), "a forecast first"
    assert lines[-1].startswith("train: 86400 in 86400.0 s")


def test_a_notebook_has_one_line_that_changes(monkeypatch, capsys, clock):
    shown: list[list[str]] = []

    class Handle:
        def __init__(self, first) -> None:
            shown.append([first._repr_html_()])

        def update(self, state) -> None:
            shown[-1].append(state._repr_html_())
            assert repr(state) in state._repr_html_()

    def display(state, display_id: bool) -> Handle:
        assert display_id
        return Handle(state)

    def module(kernel: object) -> None:
        ipython = types.ModuleType("IPython")
        ipython.get_ipython = lambda: types.SimpleNamespace(kernel=kernel)
        ipython.display = types.ModuleType("IPython.display")
        ipython.display.display = display
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)

    module(kernel=object())
    with Progress().task("train", 1000) as task:
        for done in range(1, 1001):
            clock.now += 0.1
            task.advance_to(done, loss=0.25)
    (states,) = shown
    assert len(states) <= 100 / 0.5 + 2 and '<progress value="1000" max="1000"' in states[-1]
    assert "train: 1000 in 100.0 s (10.0/s), loss 0.2500" in states[-1]
    (foretold,) = capsys.readouterr().err.splitlines()
    assert foretold.startswith("train: about 9"), "the forecast alone is a sentence"
    module(kernel=None)  # IPython in a terminal
    with Progress().task("train", 2) as task:
        task.advance_to(2)
    assert len(shown) == 1 and capsys.readouterr().err.startswith("train: 2 in ")


def test_sentences_go_to_logging_and_no_handler_is_ours(capsys, caplog, monkeypatch):
    with caplog.at_level(logging.INFO, logger="maskwright"):
        Progress().say("a \x1bsentence")
        Progress(quiet=True).say("unseen")
        monkeypatch.setenv("RANK", "1")
        Progress.of_this_process().say("of another process")
    assert [r.getMessage() for r in caplog.records] == ["a \\x1bsentence", "unseen"]
    assert capsys.readouterr().err == "a \\x1bsentence\n"

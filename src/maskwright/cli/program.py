"""The command line as a whole: its verbs, what it says without one, and how it ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import maskwright
from maskwright.cli import compare, convert, demo, doctor, evaluate, export, finish, methods, name, predict, train
from maskwright.errors import MaskwrightError, ask_to_stop, forget_stop, may_wait, shown, stop_if_asked

app = typer.Typer(
    name="maskwright",
    help="Segmentation masks, and a model that makes more of them, from photographs and whatever labels there are.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (
    doctor.doctor, methods.methods, train.train, finish.finish, name.name, predict.predict, predict.suggest,
    convert.convert, evaluate.evaluate, compare.compare, evaluate.probe, export.export, demo.demo,
):  # fmt: skip
    app.command()(verb)

SHORT_HELP = """\
Segmentation masks, and a model that makes more of them, from photographs and
whatever labels there are.

  maskwright doctor photos                            labels, and what is wrong
  maskwright methods                                  what can be trained
  maskwright train photos --out RUN                   masks, a model and a report
  maskwright finish RUN                               the model of a stopped run
  maskwright name RUN --map map.csv --out NAMED       names for clusters
  maskwright predict RUN more --out masks             masks of other photographs
  maskwright evaluate masks truth                     how good masks are
  maskwright compare RUN RUN                          runs side by side
  maskwright suggest RUN photos --count 9 --out next  what to label next
  maskwright convert coco:photos new --to masks       label formats in and out
  maskwright probe RUN photos                         how good an encoder is
  maskwright export RUN --out model.onnx              the model for other programs
  maskwright demo                                     a first run without data

maskwright --help lists the verbs, maskwright VERB --help the options of one.
"""


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Segmentation masks, and a model that makes more of them, from photographs and whatever labels there are."""
    if version:
        typer.echo(f"maskwright {maskwright.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(SHORT_HELP, nl=False)


def main() -> None:
    """Runs a verb; bad input, an interrupt and a full disk become one line and exit code 2."""
    forget_stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        _end_like_an_interrupt(number)
    try:
        try:
            code = app(prog_name="maskwright", standalone_mode=False)
        finally:
            _wait_no_more()
    except MaskwrightError as error:
        _stop(str(error))
    except KeyboardInterrupt:
        _stop(INTERRUPTED)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            from maskwright.data.trust.files import too_long

            _stop(str(too_long(Path(os.fsdecode(error.filename or "")))))
        if error.errno not in _DISK_ERRORS:
            raise
        _stop(f"{error.strerror}: {error.filename or 'output'}; make room and repeat, with --resume for a training")
    except Exception as error:
        if type(error).__name__ == "Abort":  # what the option parser makes of Ctrl-C
            _stop(INTERRUPTED)
        if not hasattr(error, "format_message"):  # its own errors: an unknown verb or option, a wrong type
            raise
        verb = vars(error).get("ctx")
        help_of = verb.command_path if verb is not None else "maskwright"
        _stop(f"{' '.join(error.format_message().split())}; see {help_of} --help")
    if code == 130:  # what newer option parsers make of an interrupt
        _stop(INTERRUPTED)
    sys.exit(code or 0)


def _end_like_an_interrupt(number: signal.Signals) -> None:
    """What ends a process by request ends it as Ctrl-C does: the run's record says so, and what is done is kept."""

    def interrupt(*_: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # who asks twice is not kept waiting
        ask_to_stop(number)
        if may_wait() and hasattr(signal, "setitimer"):  # a training saves behind its step, if that ends soon
            signal.signal(signal.SIGALRM, lambda *_: stop_if_asked())
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            return
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(number, interrupt)


def _wait_no_more() -> None:
    """Takes back the alarm of a request to end: it would kill a process that takes longer to go."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stop(line: str) -> NoReturn:
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"maskwright: {shown(line)}", file=sys.stderr)
    sys.exit(2)


PATIENCE = 5.0
"""Seconds that a request to end waits for the end of a training's step."""
INTERRUPTED = "interrupted; repeat the command, a training with --resume"
_DISK_ERRORS = (28, 122, 30, 13)
"""No space, quota, read-only file system, permission."""

"""Runs a method's stages in order; what is done stays done."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from maskwright.data.files import write_json
from maskwright.engine.distributed import barrier, gather_objects
from maskwright.engine.records import LEDGER, Stopwatch
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.engine.contract import Method, Stage

DONE = "stage.json"


def run_stages(method: Method, context: Context) -> None:
    """Runs the stages that are not done yet.

    A stage is done when its folder holds `stage.json`, which is written last. The ledger is saved with it, and when it
    fails, so that a resumed run still knows what was read before.
    """
    run = context.run
    _restore_ledger(context)
    stages = method.stages()
    run.record["stages"] = _done_records(context, stages)
    run.save(labels_read=context.data.ledger.counts())
    for number, stage in enumerate(stages, 1):
        folder = run.stage_folder(stage.name)
        barrier()
        if (folder / DONE).exists():
            context.progress.say(f"[{number}/{len(stages)}] {stage.name}: already done")
            continue
        context.progress.say(f"[{number}/{len(stages)}] {stage.name}: {stage.says}")
        watch = Stopwatch()
        if stage.kind != "train":  # the loop knows from which step on to forget
            run.forget_metrics(stage.name, 0)
        try:
            stage.run(folder)
        except BaseException:
            with contextlib.suppress(MaskwrightError):  # on a full disk the first error is the one to tell
                _save_ledger(context)
            raise
        _join_ledgers(context)
        record = {
            "name": stage.name,
            "kind": stage.kind,
            "says": stage.says,
            "seconds": round(watch.seconds, 3),
        }
        _save_ledger(context)
        if run.writes:
            write_json(folder / DONE, record)
        run.record["stages"].append(record)
        run.save(labels_read=context.data.ledger.counts())
    barrier()


def _join_ledgers(context: Context) -> None:
    """Puts what all processes read, and what was read of the source folder, into the run's one ledger."""
    ledger = context.data.ledger
    if context.source is not None and context.source.ledger is not ledger:
        ledger.merge(context.source.ledger, prefix="source/")
    for other in gather_objects(ledger.state_dict()):
        ledger.merge(other)


def _save_ledger(context: Context) -> None:
    if context.run.writes:
        write_json(context.run.path / LEDGER, context.data.ledger.state_dict())


def _done_records(context: Context, stages: list[Stage]) -> list[dict]:
    files = [context.run.path / s.name / DONE for s in stages]
    return [json.loads(f.read_text()) for f in files if f.exists()]


def _restore_ledger(context: Context) -> None:
    saved = context.run.path / LEDGER
    if saved.exists():
        context.data.ledger.merge(json.loads(saved.read_text()))

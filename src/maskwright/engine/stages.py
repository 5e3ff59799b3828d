"""Runs a method's stages in order; what is done stays done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from maskwright.data.files import write_json
from maskwright.engine.distributed import barrier
from maskwright.engine.records import LEDGER, Stopwatch

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.engine.contract import Method, Stage

DONE = "stage.json"


def run_stages(method: Method, context: Context) -> None:
    """Runs the stages that are not done yet.

    A stage is done when its folder holds `stage.json`, which is written last. The ledger is saved with it, so that a
    resumed run still knows what earlier stages read.
    """
    run = context.run
    _restore_ledger(context)
    stages = method.stages()
    run.record["stages"] = _done_records(context, stages)
    for number, stage in enumerate(stages, 1):
        folder = run.stage_folder(stage.name)
        barrier()
        if (folder / DONE).exists():
            context.progress.say(f"[{number}/{len(stages)}] {stage.name}: already done")
            continue
        context.progress.say(f"[{number}/{len(stages)}] {stage.name}: {stage.says}")
        watch = Stopwatch()
        stage.run(folder)
        barrier()
        record = {
            "name": stage.name,
            "kind": stage.kind,
            "says": stage.says,
            "seconds": round(watch.seconds, 3),
        }
        if run.writes:
            write_json(run.path / LEDGER, context.data.ledger.state_dict())
            write_json(folder / DONE, record)
        run.record["stages"].append(record)
        run.save(labels_read=context.data.ledger.counts())
    barrier()


def _done_records(context: Context, stages: list[Stage]) -> list[dict]:
    files = [context.run.path / s.name / DONE for s in stages]
    return [json.loads(f.read_text()) for f in files if f.exists()]


def _restore_ledger(context: Context) -> None:
    saved = context.run.path / LEDGER
    if saved.exists():
        context.data.ledger.merge(json.loads(saved.read_text()))

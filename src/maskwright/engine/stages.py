"""Runs a method's stages in order; what is done stays done."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from maskwright.engine.distributed import barrier
from maskwright.engine.length import fit_steps, must_be_there, must_have_begun, reopen
from maskwright.engine.records import LEDGER, Stopwatch
from maskwright.engine.resuming import read_done, write_done
from maskwright.engine.sizes import explained, shorter
from maskwright.errors import MaskwrightError, stop_if_asked

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.engine.contract import Method, Stage


def run_stages(method: Method, context: Context) -> None:
    """Runs the stages that are not done yet.

    A stage is done when its folder holds `stage.json`, which is written last. The ledger is saved with it, and when it
    fails, so that a resumed run still knows what was read before.
    """
    run, say = context.run, context.progress.say
    context.ledgers.restore(run.path / LEDGER)
    stages = method.stages()
    done = {stage.name: read_done(run.path / stage.name, say) for stage in stages}
    reopen(context, stages, done)
    must_be_there(context, stages, done)
    _record(context, done)
    for number in range(1, len(stages) + 1):
        stage = stages[number - 1]
        run.stage_folder(stage.name)
        stop_if_asked()
        barrier()
        if done[stage.name] is not None:
            say(f"[{number}/{len(stages)}] {stage.name}: already done")
            continue
        say(f"[{number}/{len(stages)}] {stage.name}: {stage.says}")
        watch = Stopwatch()
        context.timing.enter(stages[number:], method)
        context.progress.shorter = shorter(method.config)
        if context.timing.chooses_steps(stage, context.steps):
            fit_steps(method, stage, [s.name for s in stages if done[s.name] is None])
            stages = method.stages()
            stage = stages[number - 1]
        done[stage.name] = _run(stage, method, context, watch)
        _record(context, done)
    barrier()


def _run(stage: Stage, method: Method, context: Context, watch: Stopwatch) -> dict[str, Any]:
    """Runs one stage and leaves its record, which is given."""
    run, folder = context.run, context.run.path / stage.name
    if stage.kind != "train":  # the loop knows from which step on to forget
        run.forget_metrics(stage.name, 0)
    try:
        with explained(stage.name, method.config):
            stage.run(folder)
    except BaseException:
        with contextlib.suppress(MaskwrightError):  # on a full disk the first error is the one to tell
            context.ledgers.save(run.path / LEDGER, run.writes)
        raise
    context.ledgers.join()
    seconds = round(watch.seconds, 3)
    record: dict[str, Any] = {"name": stage.name, "kind": stage.kind, "says": stage.says, "seconds": seconds}
    if stage.name in context.timing.reached:
        record["steps"], record["of"] = context.timing.reached[stage.name]
        must_have_begun(context, stage.name, record["steps"], record["of"])
    context.ledgers.save(run.path / LEDGER, run.writes)
    if run.writes:
        write_done(folder, record)
    return record


def _record(context: Context, done: dict[str, dict[str, Any] | None]) -> None:
    """The run's record tells which stages are done and what was read."""
    context.run.record["stages"] = [record for record in done.values() if record is not None]
    context.run.save(**context.ledgers.record())

"""Runs a method's stages in order; what is done stays done."""

from __future__ import annotations

import contextlib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskwright.data.trust.artefacts import Damage, parse_record, unreadable, write_record
from maskwright.engine.distributed import barrier, gather_objects
from maskwright.engine.forecast import sizes
from maskwright.engine.length import fit_steps, must_be_there, must_have_begun, reopen
from maskwright.engine.records import LEDGER, Stopwatch
from maskwright.errors import MaskwrightError, stop_if_asked

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.engine.contract import Method

DONE = "stage.json"
ONE_VALUE = "more than 1 value per channel"
"""What torch's batch norm says of a single value a channel."""
SHAPE = {"name": str, "kind": str, "says": str, "seconds": float, "steps?": int, "of?": int}


def run_stages(method: Method, context: Context) -> None:
    """Runs the stages that are not done yet.

    A stage is done when its folder holds `stage.json`, which is written last. The ledger is saved with it, and when it
    fails, so that a resumed run still knows what was read before.
    """
    run = context.run
    _restore_ledger(context)
    stages = method.stages()
    done = {stage.name: _done(context, run.path / stage.name / DONE) for stage in stages}
    reopen(context, stages, done)
    if context.as_it_stands:
        must_be_there(context, stages, done)
    run.record["stages"] = [record for record in done.values() if record is not None]
    run.save(**context.ledgers.record())
    for number in range(1, len(stages) + 1):
        stage = stages[number - 1]
        folder = run.stage_folder(stage.name)
        stop_if_asked()
        barrier()
        if done[stage.name] is not None:
            context.progress.say(f"[{number}/{len(stages)}] {stage.name}: already done")
            continue
        context.progress.say(f"[{number}/{len(stages)}] {stage.name}: {stage.says}")
        watch = Stopwatch()
        context.later, context.tail = stages[number:], method.tail()
        context.progress.shorter = _shorter(method.config)
        if stage.kind == "train" and context.minutes is not None and context.steps is None and stage.steps:
            fit_steps(method, stage, [s.name for s in stages if done[s.name] is None])
            stages = method.stages()
            stage = stages[number - 1]
        if stage.kind != "train":  # the loop knows from which step on to forget
            run.forget_metrics(stage.name, 0)
        try:
            stage.run(folder)
        except BaseException as error:
            with contextlib.suppress(MaskwrightError):  # on a full disk the first error is the one to tell
                _save_ledger(context)
            if isinstance(error, torch.OutOfMemoryError):
                raise _too_large(stage.name, method.config) from error
            if isinstance(error, ValueError) and ONE_VALUE in str(error):
                raise _too_small(stage.name, method.config) from error
            raise
        _join_ledgers(context)
        record: dict[str, Any] = {
            "name": stage.name,
            "kind": stage.kind,
            "says": stage.says,
            "seconds": round(watch.seconds, 3),
        }
        if stage.name in context.reached:
            record["steps"], record["of"] = context.reached[stage.name]
            must_have_begun(context, stage.name, record["steps"], record["of"])
        _save_ledger(context)
        if run.writes:
            write_record(folder / DONE, record)
        done[stage.name] = record
        run.record["stages"] = [r for r in done.values() if r is not None]
        run.save(**context.ledgers.record())
    barrier()


def _shorter(config: Any) -> str:
    less = sizes(config)
    return f"Shorter: smaller values by --set (now {less}), or fewer photographs." if less else ""


def _too_large(stage: str, config: Any) -> MaskwrightError:
    """The error of a stage that does not fit into a GPU: which options make it smaller, and where they stand."""
    return MaskwrightError(
        f"stage {stage} does not fit into the GPU's memory{_sizes_now(config, 2)}", "a smaller batch or crop",
        "lower one of them by --set under another --out, or add --device cpu",
    )  # fmt: skip


def _too_small(stage: str, config: Any) -> MaskwrightError:
    """The error of a stage whose batches are one place of one crop to some batch norm: no variance can be had of it."""
    return MaskwrightError(
        f"stage {stage} leaves a batch norm one value a channel, which has no variance{_sizes_now(config, 1)}",
        "a larger batch or crop", "raise one of them by --set under another --out",
    )  # fmt: skip


def _sizes_now(config: Any, least: int) -> str:
    """The options that decide how large a batch is, with their values, where these are no smaller."""
    numbers = [(k, v) for k, v in _leaves(config) if type(v) is int and v >= least]
    sizes = [f"{k}={v}" for k, v in numbers if re.search("batch|crop|side", k)]
    return f" (now {', '.join(sizes)})" if sizes else ""


def _leaves(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Options and their values, those of parts by their dotted names."""
    if not is_dataclass(config):
        return []
    found: list[tuple[str, Any]] = []
    for one in fields(config):
        value, name = getattr(config, one.name), prefix + one.name
        found += _leaves(value, f"{name}.") if is_dataclass(value) else [(name, value)]
    return found


def _join_ledgers(context: Context) -> None:
    """Puts what all processes read into the run's ledgers."""
    ledgers = context.ledgers
    for other in gather_objects(ledgers.state_dict()):
        ledgers.load_state_dict(other)


def _save_ledger(context: Context) -> None:
    if context.run.writes:
        write_record(context.run.path / LEDGER, context.ledgers.state_dict())


def _done(context: Context, path: Path) -> dict[str, Any] | None:
    """What a stage recorded when it was done; None where it is not. A damaged record counts as none: the stage's
    artefacts are found again, or made again, which gives the same."""
    try:
        return parse_record(path.read_bytes(), SHAPE)
    except FileNotFoundError:
        return None
    except (OSError, Damage) as error:
        context.progress.say(f"{path} cannot be read ({error}); its stage runs again")
        return None


def _restore_ledger(context: Context) -> None:
    saved = context.run.path / LEDGER
    if not saved.exists():
        return
    try:
        context.ledgers.load_state_dict(parse_record(saved.read_bytes()))
    except (OSError, ValueError) as error:
        raise unreadable(
            saved, error, "the record of which labels the run read", "choose another --out: what was read is not known"
        ) from error

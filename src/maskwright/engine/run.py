"""`run_method`: a method's stages, its model and its page, to the end."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from maskwright.engine.cache import FEATURES
from maskwright.engine.context import Context
from maskwright.engine.ending import told
from maskwright.engine.records import FINISHED, MODEL, Stopwatch, now
from maskwright.engine.result import Pages, save_model
from maskwright.engine.stages import run_stages
from maskwright.predict.model import Model

if TYPE_CHECKING:
    from maskwright.engine.contract import Method


def run_method(method: type[Method], config: Any, context: Context, pages: Pages | None = None) -> Model:
    """Runs the stages that are not done yet, saves the model, and makes the run's page.

    Args:
        method: the class of the method.
        config: its options.
        context: as `open_run` gave it.
        pages: what makes pictures and page; None: neither is made.

    Returns:
        The trained model. However the run ends, its record says so.

    Raises:
        MaskwrightError: whatever the stages raise.
    """
    run, say = context.run, context.progress.say
    with told(context):
        one = method(config, context)
        if not context.timing.as_it_stands:
            run.record.pop("as_it_stands", None)
            run.record["notes"] = context.notes
        run_stages(one, context)
        watch = Stopwatch()
        model = save_model(one)
        if pages is not None and run.writes:
            pages.draw(one, model)
        done = {"status": FINISHED, "finished": now(), "seconds_after_stages": round(watch.seconds, 3)}
        done |= context.ledgers.record()
        if pages is not None and run.writes:
            # The report comes first: a run is finished when all that it leaves is there.
            say(f"report: {pages.page(run.path, run.record | done)}")
        run.save(**done)
        if run.writes:
            shutil.rmtree(run.path / FEATURES, ignore_errors=True)
        say(f"model: {run.path / MODEL}")
        if pages is not None:
            pages.ends(one)
        return model

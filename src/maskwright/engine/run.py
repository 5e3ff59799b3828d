"""`run_method`: a method's stages, its model and its page, to the end.

How a run's page is made is not known here: what makes it is given.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from maskwright.engine.config_file import CONFIG
from maskwright.engine.context import FEATURES, Context
from maskwright.engine.length import going_on
from maskwright.engine.records import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    MODEL,
    RunFolder,
    Stopwatch,
    now,
)
from maskwright.engine.stages import run_stages
from maskwright.errors import MaskwrightError
from maskwright.models import bundle
from maskwright.predict.kept import model_key
from maskwright.predict.model import Model

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.contract import Method, Stage


class Pages(NamedTuple):
    """What makes the pictures and the page of a finished run.

    Attributes:
        previews: called with (run folder, model, images, progress); gives each class's share of the pixels.
        page: called with (run folder, record); writes the page and gives its path.
        clusters: called as `previews` in runs whose classes are clusters: shows what each is, and gives their `share`
            and what place in the frame predicts of them (`places`, `evaluate.places.Places` or None).
    """

    previews: Callable[..., Any]
    page: Callable[..., Path]
    clusters: Callable[..., Any] | None = None


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
    with recorded(context.run):
        try:
            return _run_to_the_end(method(config, context), context, pages)
        except KeyboardInterrupt:
            for line in stopped(context.run, context.later, "features" in context.progress.begun):
                context.progress.say(line)
            raise


def stopped(run: RunFolder, later: Sequence[Stage] = (), features: bool = False) -> list[str]:
    """What a run that is interrupted keeps, and the commands that go on with it or finish it, as lines.

    Args:
        run: its folder.
        later: the stages behind the one that was interrupted.
        features: whether the run computed some, which stay in the cache.
    """
    at, kept = run.at, run.kept
    where = f" in stage {at[0]} at step {at[1]} of {at[2]}" if at else ""
    done = [str(stage.get("name")) for stage in run.record.get("stages", [])]
    parts = [f"step {kept[1]} of {kept[2]} in stage {kept[0]}"] if kept and kept[1] and kept[0] not in done else []
    parts += [f"stage{'s' * (len(done) > 1)} {', '.join(done)}"] if done else []
    parts += ["the features computed so far"] if features and not parts else []
    lines = [f"interrupted{where}; kept: {' and '.join(parts) or 'nothing yet, the run starts over'}"]
    if (run.path / CONFIG).exists():
        lines.append(f"go on: {going_on(run.path)}")
        if kept and kept[1] and not any(stage.kind == "train" for stage in later):
            lines.append(f"its model as it stands: {shlex.join(['maskwright', 'finish', str(run.path)])}")
    return lines


@contextlib.contextmanager
def recorded(run: RunFolder) -> Iterator[None]:
    """However the block ends before its end, the run's record says so, and the run is released."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(MaskwrightError):  # on a full disk the first error is the one to tell
            run.save(status=INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)
        run.release()
        raise


def _run_to_the_end(method: Method, context: Context, pages: Pages | None) -> Model:
    run = context.run
    if not context.as_it_stands:
        run.record.pop("as_it_stands", None)
        run.record["notes"] = context.notes
    run_stages(method, context)
    watch = Stopwatch()
    segmenter = method.segmenter()
    run.save(provenance=segmenter.provenance.to_json())
    if run.record["provenance"] != run.record["backbone"]:
        context.progress.say(f"weights: {segmenter.provenance.summary()}")
    extra = {
        **segmenter.extra,
        "method": run.record["method"],
        "seed": context.seed,
        "data": run.record["data"]["fingerprint"],
        **trained_sizes(context.data),
        "refine": method.refinement,
        "labels_read": context.ledgers.counts(),
        "inputs": {name: one.saw() for name, one in context.inputs.items()},
        "reading": context.data.settled_reading.to_json(),
    }
    if run.writes:
        bundle.save_bundle(run.path / MODEL, segmenter, extra)
    model = Model(segmenter, extra, device=str(context.device))
    model.origin = run.path / MODEL if run.writes else None
    run.save(model_key=model_key(segmenter))
    if pages is not None and run.writes:
        shares = pages.previews(run.path, model, context.data, progress=context.progress)
        if method.classes_found(method.config) == "clusters" and pages.clusters is not None:
            clusters = pages.clusters(run.path, model, context.data, progress=context.progress)
            shares = clusters.share
            run.record.pop("places", None)
            if clusters.places is not None:
                run.record["places"] = clusters.places.to_json()
                context.progress.say(clusters.places.says())
        run.record["classes"] = [
            {"name": n, "color": [int(v) for v in c], "share": float(s)}
            for n, c, s in zip(segmenter.classes.names, segmenter.classes.colors, shares)
        ]
    done = {
        "status": FINISHED, "finished": now(), "seconds_after_stages": round(watch.seconds, 3),
        **context.ledgers.record(),
    }  # fmt: skip
    if pages is not None and run.writes:
        # The report comes first: a run is finished when all that it leaves is there.
        context.progress.say(f"report: {pages.page(run.path, run.record | done)}")
    run.save(**done)
    if run.writes:
        shutil.rmtree(run.path / FEATURES, ignore_errors=True)
    context.progress.say(f"model: {run.path / MODEL}")
    return model


def trained_sizes(images: Dataset, most: int = 500) -> dict[str, list[int]]:
    """Sizes of the images trained on, which say at what scale larger ones are to be seen (`predict.tiles`): the median
    height and width, and the (H, W) that no more than one in twenty exceeds in area.

    Args:
        images: of the run.
        most: about so many of them are looked at.
    """
    sizes = [images.size(i) for i in range(0, len(images), max(1, len(images) // most))]
    by_area = sorted(sizes, key=lambda s: s[0] * s[1])
    return {
        "image_size": [sorted(s[k] for s in sizes)[len(sizes) // 2] for k in (0, 1)],
        "largest_size": list(by_area[-(-len(sizes) * 19 // 20) - 1]),
    }

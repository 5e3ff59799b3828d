"""What `train` is asked, as a request: data opened, the method settled, its options read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.api.opening import opened

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.progress import Progress
    from maskwright.engine.request import RunRequest


def requested(
    data: str | Path | Dataset,
    method: str,
    *,
    source: Any,
    inputs: Any,
    split: str | None,
    labeled: str | Path | None,
    names: Any,
    weights: str | Path | None,
    steps: int | None,
    labels: str | None,
    void: Any,
    range: Any,
    settings: Mapping[str, Any],
    progress: Progress | None,
    **asked: Any,
) -> RunRequest:
    """Opens the data, settles method and steps, and reads the options.

    Args:
        data, method, source, inputs, split, labeled, names, weights, steps, labels, void, range, settings, progress:
            as of `train`.
        asked: what else of it a `RunRequest` takes as it is.

    Raises:
        MaskwrightError: on bad input.
    """
    from maskwright.data.masking.classes import given_names
    from maskwright.engine.config import configure
    from maskwright.engine.inputs import named_inputs
    from maskwright.engine.progress import Progress
    from maskwright.engine.request import RunRequest
    from maskwright.engine.start import own_settings
    from maskwright.engine.streams import SOURCE, check_said, open_sources
    from maskwright.methods import find_method
    from maskwright.methods.choosing import settle

    bar = progress or Progress.of_this_process()
    images = opened(data, labels, void, range)
    images = images if split is None else images.split(split)
    images = images if labeled is None else images.labeled(labeled)
    sources, places = open_sources(source, beside=images), named_inputs(inputs)
    known = None if names is None else given_names(names)
    choice = settle(
        method, images, resumed=asked["out"] if asked["resume"] else None, source=SOURCE in sources, names=known,
        backbone=asked["backbone"], weights=weights, device=asked["device"], steps=steps, minutes=asked["minutes"],
    )  # fmt: skip
    if choice.reason:
        bar.say(f"Method: {choice.reason}.")
    cls = find_method(choice.method)
    config = configure(cls.Config, {**choice.settings, **own_settings(weights, cls.Config), **settings})
    terms = cls.terms(config)
    if choice.reason and SOURCE not in terms.taken:
        sources.pop(SOURCE, None)  # the reason says so
    if not asked["resume"]:
        check_said(images, labels, void, terms, {name: of for name, of in sources.items() if name in terms.taken})
    return RunRequest(
        data=images, method=cls, config=config, sources=sources, inputs=places, split=split, labeled=labeled,
        names=known, weights=weights, steps=choice.steps_of(config, steps), most_steps=choice.most_steps,
        reason=choice.reason, progress=bar, **asked,
    )  # fmt: skip

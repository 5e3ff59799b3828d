"""The data sets of a run by name: how `--source` names them, and what must hold of them before anything is read.

    --source [NAME=]DATA[@SPLIT]     repeatable; the one without a name is called `source`

Which names a method takes, which it cannot do without, and which labels it reads of each, is what its class says
(`Terms.streams`). Whatever else lies in a data set is hidden from the method.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from maskwright.data.examining.mending import is_mended
from maskwright.data.examining.reading import Reading
from maskwright.data.examining.understanding import understand
from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.readers import Item
from maskwright.data.layouts import layout_of, open_data
from maskwright.data.trust.ledger import Ledger
from maskwright.engine.config_file import lasting
from maskwright.engine.contract import Method
from maskwright.engine.ledgers import TARGET
from maskwright.engine.needs import StreamNeed, Terms
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError

SOURCE = "source"
"""The name of the data set that is given without one."""

Place = str | Path | Dataset | tuple[str | Path | Dataset, str]
"""A data set: folder or `layout:path`, both perhaps with `@SPLIT`, an opened one, or one of these with a split."""


class Source(NamedTuple):
    """A data set beside the run's own.

    Attributes:
        data: its images.
        split: the split that chose them, for the record; None: all.
    """

    data: Dataset
    split: str | None = None


# ---------------------------------------------------------------------------------------------------- as it is written


def split_name(text: str) -> tuple[str, str]:
    """(NAME, DATA[@SPLIT]) of "[NAME=]DATA[@SPLIT]"; the name is `source` where there is none.

    What exists as it stands is a path, also with "=" in it.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9_-]*)=(.+)", text, re.DOTALL)
    return (SOURCE, text) if found is None or os.path.exists(text) else (found[1], found[2])


def split_place(text: str) -> tuple[str, str | None]:
    """(DATA, SPLIT) of "DATA[@SPLIT]". What exists as it stands is a path, also with "@" in it.

    Raises:
        MaskwrightError: nothing stands before or behind the "@".
    """
    data, sign, split = text.rpartition("@")
    if not sign or os.path.exists(_path_of(text)):
        return text, None
    if not data or not split:
        raise MaskwrightError(f"--source {text}", "[NAME=]DATA[@SPLIT]", f"write --source {data or 'DATA'}@train")
    return data, split


def _path_of(spec: str) -> str | Path:
    layout = layout_of(spec)
    return spec if layout is None else layout[1]


def open_sources(
    given: Place | Mapping[str, Place] | Iterable[str] | None, beside: Dataset | None = None
) -> dict[str, Source]:
    """Opens the data sets beside a run's own.

    Args:
        given: "[NAME=]DATA[@SPLIT]" or several of these; a path or an opened data set, which is then called `source`; a
            pair (data, split); or a table of such things by name.
        beside: the run's own data. What was said of the values of its files holds for others in the same folder.

    Returns:
        The data sets by name, in the order given.

    Raises:
        MaskwrightError: one cannot be opened, has no such split, or two have one name.
    """
    named: list[tuple[str, Place]]
    if given is None:
        named = []
    elif isinstance(given, Mapping):
        named = list(given.items())
    elif isinstance(given, str):
        named = [split_name(given)]
    elif isinstance(given, Path | Dataset | tuple):
        named = [(SOURCE, given)]
    else:
        named = [split_name(text) for text in given]
    opened: dict[str, Source] = {}
    for name, place in named:
        if name == TARGET:
            raise MaskwrightError(
                f"--source {name}=...", "another name", f"{name!r} is what the run's own data is called"
            )
        if name in opened:
            raise MaskwrightError(f"two data sets called {name}", "a name for each", "write --source NAME=DATA[@SPLIT]")
        opened[name] = _opened(place, beside)
    return opened


def _opened(place: Place, beside: Dataset | None) -> Source:
    data, split = place if isinstance(place, tuple) else (place, None)
    if isinstance(data, Dataset):
        return Source(data if split is None else data.split(split), split)
    if isinstance(data, str) and split is None:
        data, split = split_place(data)
    found = open_data(str(data))
    if beside is not None and found.reading == Reading() and same_place(found.root, beside.root):
        found = found.with_reading(beside.reading)
    return Source(found if split is None else found.split(split), split)


def same_place(a: Path, b: Path) -> bool:
    """Whether two paths lead to one folder."""
    return os.path.realpath(a) == os.path.realpath(b)


def mended_source(name: str, root: Path, options: str) -> str:
    """The repair of a source whose values must be said: options of the run hold for its own data alone."""
    option = "--source OUT" if name == SOURCE else f"--source {name}=OUT"
    return f"maskwright doctor {shlex.quote(str(root))}{options} --fix OUT, and give {option}"


# -------------------------------------------------------------------------------------------------- what a method takes


def sources_as_written(
    given: Place | Mapping[str, Place] | Iterable[str] | None, used: Mapping[str, Source]
) -> list[str]:
    """The data sets beside a run's own as `--source` names them, their paths found from anywhere.

    Args:
        given: as for `open_sources`.
        used: those of them that the run has.
    """
    texts: dict[str, str] = {}
    if isinstance(given, str):
        texts = dict([split_name(given)])
    elif isinstance(given, Mapping):
        texts = {name: place for name, place in given.items() if isinstance(place, str)}
    elif given is not None and not isinstance(given, Path | Dataset | tuple):
        texts = dict(split_name(text) for text in given)
    written = []
    for name, source in used.items():
        place = split_place(texts[name])[0] if name in texts else str(source.data.root)
        split = "" if source.split is None else f"@{source.split}"
        written.append(f"{name}={lasting(place)}{split}")
    return written


def check_sources(method: type[Method], taken: Mapping[str, StreamNeed], sources: Mapping[str, Source]) -> None:
    """Looks whether a method gets the data sets that it takes, by their names alone.

    Raises:
        MaskwrightError: one that it needs is missing, or it takes none of such a name.
    """
    for name, need in taken.items():
        if not need.required or name in sources:
            continue
        if name == SOURCE:
            raise MaskwrightError(f"{method.name} needs a labelled source folder", "--source DATA")
        raise MaskwrightError(
            f"{method.name} needs a data set called {name}: {need.says}", f"--source {name}=DATA", need.says
        )
    for name, source in sources.items():
        if name not in taken:
            known = ", ".join(taken)
            raise MaskwrightError(
                f"{method.name} and the data set {name} ({source.data.root}), which it has no use for",
                f"data sets called {known}" if known else "no --source",
                "leave it out, or name another --method",
            )


def check_said(data: Dataset, labels: object, void: object, terms: Terms, sources: Mapping[str, Source]) -> None:
    """Refuses a word on mask values that reaches no mask which is read.

    Args:
        data: the run's own, of which the word is.
        labels, void: what was said; None: nothing.
        terms: of the method under its options.
        sources: the data sets beside it.

    Raises:
        MaskwrightError: the run reads masks of sources alone, and these lie in other folders.
    """
    learned = {name: source.data for name, source in sources.items() if "masks" in terms.taken[name].labels}
    if (labels is None and void is None) or terms.reads_masks or terms.judges or not learned:
        return
    if any(same_place(of.root, data.root) for of in learned.values()):
        return
    reading = Reading.parse(labels, void)  # type: ignore[arg-type]
    (name, of), *_ = learned.items()
    raise MaskwrightError(
        f"{reading.options()}, which says what masks in {data.root} mean: none of these is read, and those of {name} "
        f"lie in {of.root}",
        "a word on masks that are read",
        f"leave it out; or if it is meant for {name}: {mended_source(name, of.root, f' {reading.options()}')}",
    )


def prepare_source(name: str, source: Source, need: StreamNeed, bar: Progress) -> Dataset:
    """The images of a source that can be read, with nothing visible of its labels but what the method takes.

    Args:
        name: of the data set.
        source: as it was opened.
        need: what the method takes of it.
        bar: where the work is shown, and what is left out is said.

    Raises:
        MaskwrightError: no image can be read, or one lacks a label that each must have.
    """
    data = source.data.only_labels(need.labels)
    with bar.counter(f"reading {name}") as count:
        data = data.readable(progress=count)
    for image, why in data.skipped:
        bar.say(f"skipped {image} of {name}: {why}")
    if not len(data):
        raise MaskwrightError(f"no image in {name} ({data.root})", "at least one", "choose another split")
    for kind, count_of in data.labels_present().items():
        if kind in need.labels and count_of < len(data):
            bare = next(item.name for item in data.items if not _has(item, kind))
            raise MaskwrightError(
                f"{len(data) - count_of} of {len(data)} images in {name} ({data.root}) have no {kind} (first: {bare})",
                f"{kind} for each of them",
                f"name the labelled ones: --source {'' if name == SOURCE else name + '='}{data.root}@SPLIT",
            )
    return data


def _has(item: Item, kind: str) -> bool:
    value = {"masks": item.mask, "tags": item.tags, "captions": item.captions or None}[kind]
    return value is not None


def understood_source(name: str, source: Dataset, need: StreamNeed) -> Dataset:
    """The source data, its values understood; its own options are those of the doctor, which mends a copy.

    Args:
        name: of the data set.
        source: its images.
        need: what the method takes of it.

    Raises:
        MaskwrightError: what its values mean is not certain.
    """
    if source.reading == Reading() and is_mended(source.root):
        source = source.with_reading(Reading(labels="ids"))
    try:
        return understand(source, masks="masks" in need.labels)
    except MaskwrightError as error:
        repair = f"{error.repair}: as options of {mended_source(name, source.root, '')}"
        raise MaskwrightError(f"{name}: {error.found}", error.expected, repair) from error


# -------------------------------------------------------------------------------------------------------- all together


def apart(target: Dataset, sources: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The sources, each with a ledger of its own: what is read of an image counts in the stream that it is read in.

    Raises:
        MaskwrightError: an image is in the run's own data and in a source.
    """
    own = _files(target) if sources else {}
    ledgers = [target.ledger]
    found: dict[str, Dataset] = {}
    for name, data in sources.items():
        if shared := [key for key in _files(data) if key in own]:
            raise MaskwrightError(
                f"{len(shared)} images are both in the run's own data and in {name} (first: {Path(*shared[0])})",
                "two data sets, or disjoint splits of one",
                f"choose them with --split NAME and --source {'' if name == SOURCE else name + '='}DATA@OTHER",
            )
        if any(data.ledger is ledger for ledger in ledgers):
            data = data.with_ledger(Ledger())
        ledgers.append(data.ledger)
        found[name] = data
    return found


def _files(data: Dataset) -> dict[tuple[str, str], None]:
    """The image files, wherever links lead to their folders."""
    folders: dict[str, str] = {}
    found: dict[tuple[str, str], None] = {}
    for item in data.items:
        folder = os.path.dirname(item.image)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        found[folders[folder], os.path.basename(item.image)] = None
    return found

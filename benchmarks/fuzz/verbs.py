"""The verbs that mutated files are put through, and what is compared of what they give."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.errors import MaskwrightError


@dataclass(frozen=True)
class Answer:
    """What a verb gave.

    Attributes:
        value: compared with what it gives for the file as it was.
        words: sentences that came with it: findings, notices, lines of progress.
    """

    value: Any
    words: tuple[str, ...] = ()


class Untidy(Exception):
    """A refusal that is not one clear line, or output that a terminal or a table would carry out."""


@dataclass(frozen=True)
class Verb:
    """One way in.

    Attributes:
        name: of it.
        run: (place) -> answer; place is the folder that everything lies in.
        every: it is run for each so many-th mutation.
    """

    name: str
    run: Callable[[Path], Answer]
    every: int = 1


def digest(*values: Any) -> str:
    """A short hash of arrays, tensors and anything that JSON can hold."""
    total = hashlib.blake2b(digest_size=12)
    for value in values:
        if isinstance(value, np.ndarray):
            total.update(f"{value.shape}{value.dtype}".encode())
            total.update(np.ascontiguousarray(value).tobytes())
        else:
            total.update(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    return total.hexdigest()


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Said:
    """What a verb wrote while it was listened to."""

    out: str = ""
    err: str = ""
    lines: tuple[str, ...] = field(default=())


@contextmanager
def listening() -> Iterator[Said]:
    """Catches what is written to standard output and error, with the encodings that these have."""
    said = Said()
    before = sys.stdout, sys.stderr
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)
    sys.stdout, sys.stderr = out, err
    try:
        yield said
    finally:
        sys.stdout, sys.stderr = before
        texts = [stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err)]  # type: ignore[attr-defined]
        said.out, said.err = texts
        said.lines = tuple(line for text in texts for line in text.splitlines())


def command(*arguments: object) -> Said:
    """A verb of the command line, in this process.

    Raises:
        MaskwrightError: it ended with exit code 2 and one line.
        Untidy: it ended otherwise than a user should see it end, or wrote control characters.
    """
    from maskwright import cli

    code: Any = 0
    argv, sys.argv = sys.argv, ["maskwright", *map(os.fsdecode, map(str, arguments))]
    try:
        with listening() as said:
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code or 0
    finally:
        sys.argv = argv
    if found := _CONTROL.search(said.out.replace("\n", "") + said.err.replace("\n", "")):
        raise Untidy(f"{arguments[0]} writes the control character {found[0]!r}")
    told = [line for line in said.err.splitlines() if line.startswith("maskwright: ")]
    if code == 2 and len(told) == 1:
        raise MaskwrightError(told[0].removeprefix("maskwright: "))
    if code == 2 and not told and arguments[0] == "doctor" and said.out:
        return said  # it found an error and said so
    if code != 0:
        raise Untidy(f"{arguments[0]} ends with exit code {code} and {len(told)} lines")
    return said


# ---------------------------------------------------------------------- folders

PROBE = "probe"
"""Name of the image whose files are mutated."""


def read(place: Path) -> Answer:
    """The photograph through Python: `image`, `size` and `resized`."""
    from maskwright import api

    data = api.open_folder(place)
    words = (*data.notices, *(f"{name}: {why}" for name, why in data.skipped))
    if PROBE not in data:
        return Answer("absent", words)
    i = data.index(PROBE)
    image, size, small = data.image(i), data.size(i), data.resized(i, (9, 11))
    if tuple(size) != image.shape[:2]:
        raise AssertionError(f"size() says {size}, image() is {image.shape}")
    return Answer(digest(image, small), words)


def mask(place: Path) -> Answer:
    """The mask through Python, its values understood first, as every verb does."""
    from maskwright import api
    from maskwright.data.examining.understanding import understand

    data = understand(api.open_folder(place), masks=True)
    words = (*data.notices, *(f"{name}: {why}" for name, why in data.skipped))
    if PROBE not in data or not data.has_mask(data.index(PROBE)):
        return Answer("absent", words)
    return Answer(digest(data.mask(data.index(PROBE))), words)


def doctor(place: Path | str) -> Answer:
    """The doctor's findings and figures."""
    said = command("doctor", place, "--json")
    report = json.loads(said.out)
    words = [f"{f['message']} {' '.join(f['examples'])}" for f in report["findings"] if f["severity"] != "note"]
    return Answer(report, (*words, *said.err.splitlines()))


def doctor_text(place: Path | str) -> Answer:
    """The doctor's report as people see it."""
    said = command("doctor", place)
    return Answer(said.out, said.lines)


def evaluate(protocol: str, predictions: str = "predictions") -> Callable[[Path], Answer]:
    """Scores of a folder of predictions."""

    def run(place: Path) -> Answer:
        scores = place.with_name(f"{place.name}-scores.json")  # inside it would be a file that lies aside
        said = command("evaluate", place / predictions, place, "--protocol", protocol, "--json", scores)
        found = json.loads(scores.read_text())
        return Answer(found, (*said.lines, *map(str, found.get("notes", ()))))

    return run


def tables(place: Path) -> Answer:
    """What the tables of a folder say: classes, tags, captions, splits."""
    from maskwright import api
    from maskwright.data.training.tag_targets import find_targets

    data = api.open_folder(place)
    value: list[Any] = [data.names, data.classes.names if data.classes else None]
    value += [[data.tags(i), data.captions(i)] for i in range(len(data))]
    value += [data.split("train").names, data.labeled("train").labels_present(), data.summary()]
    if data.classes is not None:
        value.append(find_targets(data, data.classes).tagged)
    return Answer(digest(value), data.notices)


def colours(place: Path) -> Answer:
    """Masks whose colours are the classes."""
    from maskwright import api
    from maskwright.data.examining.understanding import understand

    data = understand(api.open_folder(place, labels="colours"), masks=True)
    return Answer(digest(*(data.mask(i) for i in range(len(data)))), data.notices)


def layout(name: str) -> Callable[[Path], Answer]:
    """A benchmark's folder through its reader: names, tags, splits, all masks."""

    def run(place: Path) -> Answer:
        from maskwright import api

        data = api.open_folder(f"{name}:{place}")
        value: list[Any] = [data.names, data.split_names, [data.tags(i) for i in range(len(data))]]
        value += [data.mask(i) for i in range(len(data)) if data.has_mask(i)]
        return Answer(digest(*value), data.notices)

    return run


# ---------------------------------------------------------------------- models


@cache
def model(path: Path) -> Any:
    """A loaded model, kept."""
    from maskwright import api

    return api.load(path)


def predict_with(path: Path) -> Callable[[Path], Answer]:
    """The mask of the photograph at the probe's place, by a model that is loaded once."""

    def run(place: Path) -> Answer:
        file = next(place.glob(f"images/{PROBE}.*"))
        with listening() as said:
            result = model(path).predict(file)
        return Answer(digest(result.mask, result.confidence), said.lines)

    return run


def load(photo: Path, bundle: str = "model.safetensors") -> Callable[[Path], Answer]:
    """A bundle, loaded anew, and its mask of a photograph."""

    def run(place: Path) -> Answer:
        from maskwright import api

        loaded = api.load(place / bundle)
        result = loaded.predict(photo)
        return Answer(digest(result.mask, result.confidence, loaded.classes.names, loaded.extra))

    return run


def predict_folder(photos: Path, bundle: str = "model.safetensors") -> Callable[[Path], Answer]:
    """A bundle through the command line, on a folder."""

    def run(place: Path) -> Answer:
        out = place / "out"
        shutil.rmtree(out, ignore_errors=True)
        said = command("predict", place / bundle, photos, "--out", out, "--device", "cpu")
        files = sorted(p for p in out.rglob("*") if p.is_file())
        return Answer([(p.name, digest(p.read_bytes().hex())) for p in files], said.lines)

    return run


def suggest(run_folder: Path | None, data: Path | None) -> Callable[[Path], Answer]:
    """What to label next; the run or the data, whichever is not named, lies at the place."""

    def run(place: Path) -> Answer:
        out = place / "suggested"
        shutil.rmtree(out, ignore_errors=True)
        words: list[object] = ["--count", 1, "--regions", 1, "--out", out, "--device", "cpu"]
        said = command("suggest", run_folder or place / "run", data or place, *words)
        for line in (out / "suggestions.csv").read_text().splitlines()[1:]:
            if any(cell[:1] in tuple("=+@") for cell in line.split(",")):
                raise Untidy(f"suggestions.csv holds a formula: {line[:60]}")
        return Answer((out / "suggestions.csv").read_text(), said.lines)

    return run


def resume(arguments: list[str], report: bool = False) -> Callable[[Path], Answer]:
    """Continues the run that lies at the place; gives its model's tensors."""

    def run(place: Path) -> Answer:
        from safetensors.numpy import load_file

        folder = place / "run"
        if report:
            said = command("train", *arguments, "--out", folder, "--resume")
        else:
            said = _train_without_report(arguments, folder)
        tensors = load_file(folder / "model.safetensors")
        status = json.loads((folder / "run.json").read_text())["status"]
        return Answer([status, digest(*(v for k in sorted(tensors) for v in (k, tensors[k])))], said.lines)

    return run


def _train_without_report(arguments: list[str], folder: Path) -> Said:
    """As the command line does it, without previews and report."""
    from maskwright import api

    options = {"settings": {}}  # type: dict[str, Any]
    words = iter(arguments[1:])
    for word in words:
        if word == "--set":
            key, _, value = next(words).partition("=")
            options["settings"][key] = value
        else:
            value = next(words)
            options[word[2:]] = int(value) if word in ("--steps", "--classes", "--seed") else value
    with listening() as said:
        api.train(arguments[0], out=folder, resume=True, report=False, **options)
    return said


def fresh(arguments: list[str]) -> Callable[[Path], Answer]:
    """Trains from the start with the cache that lies at the place; gives the model's tensors."""
    again = resume(arguments)

    def run(place: Path) -> Answer:
        shutil.rmtree(place / "run", ignore_errors=True)
        before = os.environ.get("MASKWRIGHT_CACHE")
        os.environ["MASKWRIGHT_CACHE"] = str(place / "cache")
        try:
            return again(place)
        finally:
            if before is None:
                del os.environ["MASKWRIGHT_CACHE"]
            else:
                os.environ["MASKWRIGHT_CACHE"] = before

    return run


def checkpoint(name: str) -> Callable[[Path], Answer]:
    """A checkpoint as `suggest` and the loop read it."""

    def run(place: Path) -> Answer:
        import torch

        from maskwright.engine.checkpoint import load_checkpoint

        def plain(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return [str(value.dtype), digest(value.contiguous().flatten().view(torch.uint8).numpy()), value.shape]
            if isinstance(value, dict):
                return {str(k): plain(v) for k, v in value.items()}
            return [plain(v) for v in value] if isinstance(value, list | tuple) else value

        return Answer(digest(plain(load_checkpoint(place / name))))

    return run


def predict_place(bundle: Path) -> Callable[[Path], Answer]:
    """The masks of the folder at the place."""

    def run(place: Path) -> Answer:
        out = place / "out"
        said = command("predict", bundle, place, "--out", out, "--confidence", "--overlays", "--device", "cpu")
        files = sorted(os.fsencode(p.relative_to(out)).hex() for p in out.rglob("*") if p.is_file())
        return Answer(files, said.lines)

    return run


def train_place(words: list[str]) -> Callable[[Path], Answer]:
    """A run on the folder at the place."""

    def run(place: Path) -> Answer:
        said = command("train", place, *words, "--out", place / "run")
        return Answer("trained", said.lines)

    return run

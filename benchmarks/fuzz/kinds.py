"""The kinds of files that are mutated: where a valid one lies, what form it has, and which verbs read it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.random import Generator

from benchmarks.fuzz import inputs, mutations, verbs
from benchmarks.fuzz.mutations import Mutant
from benchmarks.fuzz.verbs import PROBE, Verb


@dataclass(frozen=True)
class Case:
    """One valid file, and how it is read.

    Attributes:
        name: for people.
        target: path of the file below the place.
        data: its bytes, or the file that holds them.
        form: as `mutations.mutate` takes it.
        checked: whether its format, or this project, keeps a checksum of it: a change must then be told.
        lay: (place) -> None, writes what lies around it.
        verbs: what reads it.
        others: valid files that may take its place.
        fresh: the verbs change what lies around it, so that it is laid out for each anew.
        write: (place, data) -> None, puts the file there; by default under its path.
    """

    name: str
    target: str
    data: bytes | Path
    form: str
    checked: bool
    lay: Callable[[Path], object]
    verbs: tuple[Verb, ...]
    others: tuple[bytes, ...] = ()
    fresh: bool = False
    write: Callable[[Path, bytes], object] | None = None

    def content(self) -> bytes:
        """The valid file."""
        return self.data.read_bytes() if isinstance(self.data, Path) else self.data


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        name: of the kind.
        share: of all mutations, relative.
        cases: (bases) -> cases; `bases` is the folder that `prepare` filled.
        weights: chance of each case, relative; all alike if empty.
    """

    name: str
    share: float
    cases: Callable[[Path], Sequence[Case]]
    weights: Callable[[Sequence[Case]], list[float]] = field(default=lambda cases: [1.0] * len(cases))


# ---------------------------------------------------------------------- what must be made first

TINY = ["--weights", "random", "--device", "cpu", "--seed", "0"]
CROPS = ["--set", "crop=32", "--set", "batch=2"]
TAGS = ["--set", "seed_crf=false", "--set", "tag_crop=32", "--set", "tag_long_side=32", "--set", "tag_batch=2"]
CNN = ["--backbone", "test_resnet"]
CLUSTERS = ["--classes", "3", "--set", "restarts=2"]
FEW = ["--labeled", "train"]
RUNS: dict[str, list[str]] = {
    "kmeans": ["--method", "kmeans", *CNN, *CLUSTERS, "--set", "short_side=32", "--set", "dim=4"],
    "supervised": ["--method", "supervised", *CNN, "--steps", "3", *CROPS],
    "mean_teacher": ["--method", "mean_teacher", *CNN, "--steps", "3", *FEW, *CROPS],
    "cam": ["--method", "cam", *CNN, "--steps", "2", *TAGS, *CROPS],
    "stego": ["--method", "stego", "--backbone", "test_vit", "--steps", "2", *CLUSTERS],
    "deep_spectral": ["--method", "deep_spectral", "--backbone", "test_vit", "--steps", "2", *CLUSTERS],
    "st_plus_plus": ["--method", "st_plus_plus", *CNN, "--steps", "2", *FEW, *CROPS],
}
"""Runs that are small enough to be resumed a thousand times, as words of the command line."""


def arguments(bases: Path, method: str) -> list[str]:
    """Words of `train` for a run of the table, on the folder that `prepare` wrote."""
    return [str(bases / "data"), *RUNS[method], *TINY]


def prepare(bases: Path, methods: Sequence[str]) -> None:
    """Fills a folder with a data set and finished and half-finished runs.

    MASKWRIGHT_CACHE must name an empty folder. Each run METHOD lies there finished, and as METHOD-at-STAGE, as if the
    process had been killed before that stage; and as METHOD-inside, in the middle of its last training if it has one.
    """
    from maskwright.engine import loop, records

    inputs.write_folder(bases / "data")
    inputs.write_folder(bases / "few", masked=2)
    clock = records.Stopwatch.seconds, records.now, loop.CHECKPOINT_SECONDS
    # Times would make the files, and with them the mutations, others each time.
    records.Stopwatch.seconds = property(lambda self: 1.0)  # type: ignore[method-assign,assignment]
    records.now = lambda: "2026-01-01T00:00:00+00:00"
    loop.CHECKPOINT_SECONDS = 0.0
    try:
        for method in methods:
            _prepare(bases, method)
            if method == "kmeans":  # only what these runs will look for
                shutil.copytree(os.environ["MASKWRIGHT_CACHE"], bases / "cache-of-kmeans")
    finally:
        records.Stopwatch.seconds, records.now, loop.CHECKPOINT_SECONDS = clock  # type: ignore[method-assign]


def _prepare(bases: Path, method: str) -> None:
    import json

    from maskwright.engine import loop
    from maskwright.engine.progress import Progress

    words = arguments(bases, method)
    verbs.command("train", *words, "--out", bases / method)
    stages = [s["name"] for s in json.loads((bases / method / "run.json").read_text())["stages"]]
    for k, stage in enumerate(stages[1:], 1):
        folder = bases / f"{method}-at-{stage}"
        shutil.copytree(bases / method, folder)
        for later in stages[k:]:
            shutil.rmtree(folder / later)
        _unfinished(folder)
    trained = [s for s in stages if (bases / method / s / loop.CHECKPOINT).exists()]
    if not trained:
        folder = bases / f"{method}-inside"
        shutil.copytree(bases / method, folder)
        return _unfinished(folder)

    class Stop(Exception):
        """Ends a training in the middle of its last stage."""

    task = Progress.task

    def stopping(self: Progress, name: str, total: int, done: int = 0):
        held = task(self, name, total, done)
        if name != trained[-1]:
            return held

        class Held:
            def __enter__(self):
                return self

            def __exit__(self, *error: object):
                return None

            def advance_to(self, done: int, loss: float | None = None) -> None:
                if done >= 2:  # the checkpoint of step 1 is on the disk
                    raise Stop

        return Held()

    Progress.task = stopping  # type: ignore[method-assign,assignment]
    try:
        verbs.command("train", *words, "--out", bases / f"{method}-inside")
    except Stop:
        pass
    finally:
        Progress.task = task  # type: ignore[method-assign]
    return None


def _unfinished(folder: Path) -> None:
    """As a kill leaves it: no model, no report."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("run.json", "ledger.json", "metrics.jsonl", ".lock"):
            path.unlink()
    shutil.rmtree(folder / "previews", ignore_errors=True)


# ---------------------------------------------------------------------- folders


def _folder(
    place: Path, *, leave: str = "", tables: bool = True, predictions: bool = False, masked: bool = True
) -> None:
    """The probe and three scenes; what is called `leave` is left to the case."""
    for k, name in enumerate((PROBE, "scene_a", "scene_b")):
        photo, mask = inputs.truth_files(k + 1)
        files = {f"images/{name}.png": photo}
        if masked:
            files[f"masks/{name}.png"] = mask
        if predictions:
            files[f"predictions/{name}.png"] = mask
        for path, data in files.items():
            if path.rpartition(".")[0] != leave:
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(data)
    if tables:
        (place / "classes.txt").write_text("\n".join(inputs.CLASSES) + "\n")


def image_cases(bases: Path) -> list[Case]:
    """Photographs of all forms."""
    files = inputs.pictures()
    small = [inputs.encoded(inputs.Image.fromarray(inputs.scene(3, s)[0]), "PNG") for s in ((1, 1), (9, 9))]
    line = inputs.encoded(inputs.Image.new("RGB", (100_000, 1), (90, 140, 90)), "PNG")
    bomb = (
        files["still.gif"][:6] + b"\x00\x7d\x00\x7d" + files["still.gif"][10:]
    )  # 32,000 x 32,000, nearly all of it empty
    others = (
        *small,
        line,
        bomb,
        files["palette.png"],
        files["animated.gif"],
        files["rgb.jpg"],
        files["float.tif"],
        b"",
    )
    reading = (
        Verb("read", verbs.read),
        Verb("doctor", verbs.doctor, 2),
        Verb("predict", verbs.predict_with(bases / "kmeans"), 2),
    )
    return [
        Case(name, f"images/{PROBE}{Path(name).suffix}", data, "png" if name.endswith("png") else "image",
             name.endswith("png"), lambda place: _folder(place, leave=f"images/{PROBE}", masked=False, tables=False),
             reading, others)
        for name, data in files.items()
    ]  # fmt: skip


def mask_cases(bases: Path) -> list[Case]:
    """Masks of all forms, as labels."""
    files = inputs.masks()
    small = inputs.encoded(inputs.Image.fromarray(np.zeros((5, 5), np.uint8)), "PNG")
    others = (*files.values(), small, inputs.pictures()["rgb.png"], inputs.pictures()["rgb.jpg"])
    reading = (
        Verb("mask", verbs.mask), Verb("doctor", verbs.doctor, 2), Verb("evaluate", verbs.evaluate("direct"), 2),
        Verb("evaluate", verbs.evaluate("hungarian"), 5),
    )  # fmt: skip
    return [
        Case(name + ("" if tables else " without classes.txt"), f"masks/{PROBE}{Path(name).suffix}", data,
             "png" if name.endswith("png") else "image", name.endswith("png"),
             lambda place, tables=tables: _folder(place, leave=f"masks/{PROBE}", tables=tables, predictions=True),
             reading, others)
        for name, data in files.items() for tables in (True, False)
    ]  # fmt: skip


def prediction_cases(bases: Path) -> list[Case]:
    """Masks as predictions that are judged."""
    files = {k: v for k, v in inputs.masks().items() if k.endswith("png")}
    others = (*files.values(), inputs.pictures()["rgb.png"])
    judging = tuple(Verb(f"evaluate {p}", verbs.evaluate(p)) for p in ("direct", "hungarian", "luss"))
    return [
        Case(name, f"predictions/{PROBE}.png", data, "png", True,
             lambda place: _folder(place, leave=f"predictions/{PROBE}", predictions=True), judging, others)
        for name, data in files.items()
    ]  # fmt: skip


def table_cases(bases: Path) -> list[Case]:
    """The tables of a folder."""
    names = [PROBE, "scene_a", "scene_b"]

    def lay(place: Path) -> None:
        _folder(place, predictions=True)
        for path, text in inputs.tables(names).items():
            (place / path).parent.mkdir(exist_ok=True)
            (place / path).write_text(text)

    def lay_colours(place: Path) -> None:
        lay(place)
        for k, name in enumerate(names):
            (place / "masks" / f"{name}.png").write_bytes(inputs.colour_mask(k + 1))

    reading = (
        Verb("tables", verbs.tables), Verb("doctor", verbs.doctor_text, 2),
        Verb("evaluate", verbs.evaluate("direct"), 3),
    )  # fmt: skip
    cases = [
        Case(path, path, text.encode(), "text", False, lay, reading) for path, text in inputs.tables(names).items()
    ]
    coloured = (Verb("colours", verbs.colours), Verb("doctor", verbs.doctor_text))
    return [*cases, Case("colors.txt", "colors.txt", inputs.COLOURS.encode(), "text", False, lay_colours, coloured)]


def annotation_cases(bases: Path) -> list[Case]:
    """Annotations of benchmark layouts: VOC's XML, SBD's .mat, CamVid's colours."""

    def lay_voc(place: Path) -> None:
        for folder in ("JPEGImages", "Annotations", "SBD/cls", "ImageSets/Segmentation"):
            (place / folder).mkdir(parents=True)
        for k, name in enumerate((PROBE, "other")):
            photo = inputs.encoded(inputs.Image.fromarray(inputs.scene(k + 1)[0]), "JPEG")
            (place / "JPEGImages" / f"{name}.jpg").write_bytes(photo)
            (place / "Annotations" / f"{name}.xml").write_text(inputs.voc_annotation(name))
            (place / "SBD" / "cls" / f"{name}.mat").write_bytes(inputs.sbd_mask(k + 1, True))
        (place / "ImageSets" / "Segmentation" / "train.txt").write_text(f"{PROBE}\nother\n")

    def lay_camvid(place: Path) -> None:
        for folder in ("701_StillsRaw_full", "LabeledApproved_full"):
            (place / folder).mkdir(parents=True)
        photo, _ = inputs.truth_files(1)
        (place / "701_StillsRaw_full" / f"{PROBE}.png").write_bytes(photo)
        colours = np.array([(0, 0, 0), (128, 128, 128), (64, 0, 128)], np.uint8)[inputs.scene(1)[1]]
        label = inputs.encoded(inputs.Image.fromarray(colours), "PNG")
        (place / "LabeledApproved_full" / f"{PROBE}_L.png").write_bytes(label)

    voc, camvid = (Verb("open voc", verbs.layout("voc")),), (Verb("open camvid", verbs.layout("camvid")),)
    xml, colours = inputs.voc_annotation(PROBE).encode(), b"128 128 128 Sky\n64 0 128 Car\n0 0 0 Void\n"
    doubt = (b'<?xml version="1.0" encoding="utf-7"?><a/>', b'<?xml version="1.0" encoding="no-such"?><a/>')
    bomb = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + k, b"&%c;" % (97 + k) * 10) for k in range(8)
    ) + b"]><annotation><object><name>&i;</name></object></annotation>"  # fmt: skip
    return [
        Case("VOC XML", f"Annotations/{PROBE}.xml", xml, "text", False, lay_voc, voc, (*doubt, bomb)),
        Case("SBD packed", f"SBD/cls/{PROBE}.mat", inputs.sbd_mask(1, True), "bytes", False, lay_voc, voc),
        Case("SBD", f"SBD/cls/{PROBE}.mat", inputs.sbd_mask(1, False), "bytes", False, lay_voc, voc),
        Case("CamVid colours", "label_colors.txt", colours, "text", False, lay_camvid, camvid),
    ]


# ---------------------------------------------------------------------- models and runs

FORMS = {
    ".json": "json", ".jsonl": "lines", ".safetensors": "safetensors", ".npz": "zip", ".pt": "zip", ".png": "png",
    ".txt": "text",
}  # fmt: skip
CHECKED = {".safetensors", ".npz", ".pt", ".png", ".npy"}
"""Suffixes of what a run keeps with a checksum; JSON is read by people and may be edited."""


def bundle_cases(bases: Path) -> list[Case]:
    """Saved models."""
    photo = bases / "data" / "images" / "scene_1.png"
    files = [bases / m / "model.safetensors" for m in RUNS if (bases / m / "model.safetensors").exists()]
    reading = (Verb("load", verbs.load(photo)), Verb("predict", verbs.predict_folder(bases / "few"), 6))
    return [
        Case(file.parent.name, "model.safetensors", file, "safetensors", True, lambda place: None, reading)
        for file in files
    ]


def checkpoint_cases(bases: Path) -> list[Case]:
    """Checkpoints, read alone."""
    files = sorted(bases.glob("*-inside/*/checkpoint.pt"))
    return [
        Case(f"{f.parts[-3]}/{f.parts[-2]}", f.name, f, "zip", True, lambda place: None,
             (Verb("read", verbs.checkpoint(f.name)),))
        for f in files
    ]  # fmt: skip


def run_cases(bases: Path) -> list[Case]:
    """Files of finished and half-finished runs that are resumed."""
    cases: list[Case] = []
    folders = sorted(f for f in bases.iterdir() if (f / "run.json").exists())
    for folder in folders:
        words = arguments(bases, folder.name.partition("-")[0])
        again = (
            Verb("resume", verbs.resume(words)),
            Verb("train --resume", verbs.resume(words, report=True), 6),
        )
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in FORMS):
            path = file.relative_to(folder)
            if path.parts[0] == "previews":
                continue
            cases.append(
                Case(f"{folder.name}/{path}", f"run/{path}", file, FORMS[file.suffix], file.suffix in CHECKED,
                     lambda place, folder=folder: shutil.copytree(folder, place / "run"), again, fresh=True)
            )  # fmt: skip
    return cases


def run_weights(cases: Sequence[Case]) -> list[float]:
    """The quickest runs more often, and each of a run's files with a chance that does not depend on their number."""
    cost = {"kmeans": 12.0, "supervised": 4.0, "mean_teacher": 2.0, "stego": 3.0}
    weights = []
    for case in cases:
        folder = case.name.partition("/")[0]
        of_run = sum(c.name.startswith(f"{folder}/") for c in cases)
        of_method = len({c.name.partition("/")[0] for c in cases if c.name.startswith(folder.partition("-")[0])})
        weights.append(cost.get(folder.partition("-")[0], 1.0) / of_run / of_method)
    return weights


def suggest_cases(bases: Path) -> list[Case]:
    """Runs and folders as `suggest` reads them."""
    few = bases / "few"
    run = bases / "mean_teacher"
    cases = []
    reading = (Verb("suggest", verbs.suggest(None, few)),)
    for name in ("run.json", "model.safetensors", "train/checkpoint.pt"):
        file = run / name
        if file.exists():
            cases.append(
                Case(name, f"run/{name}", file, FORMS[file.suffix], file.suffix in CHECKED,
                     lambda place: shutil.copytree(run, place / "run", ignore=shutil.ignore_patterns("previews")),
                     reading)
            )  # fmt: skip
    reading = (Verb("suggest", verbs.suggest(bases / "kmeans", None)),)
    for name in ("images/scene_3.png", "masks/scene_0.png", "tags.csv", "classes.txt"):
        file = few / name
        cases.append(
            Case(f"data/{name}", name, file, FORMS.get(file.suffix, "text"), file.suffix in CHECKED,
                 lambda place: shutil.copytree(few, place, dirs_exist_ok=True), reading)
        )  # fmt: skip
    return cases


def cache_cases(bases: Path) -> list[Case]:
    """Cached features, and remembered facts about files."""
    words = arguments(bases, "kmeans")
    kept = bases / "cache-of-kmeans"
    cases = []
    for file in sorted(kept.rglob("features/*/*/*.npy"))[:4]:
        path = file.relative_to(kept)
        cases.append(
            Case("features", f"cache/{path}", file, "bytes", True,
                 lambda place: shutil.copytree(kept, place / "cache"), (Verb("train", verbs.fresh(words)),), fresh=True)
        )  # fmt: skip
    for file in sorted(kept.glob("files/*.json")):
        path = file.relative_to(kept)
        doctor = Verb("train and doctor", verbs.fresh(words))
        cases.append(
            Case(f"remembered {file.name.rpartition('-')[0]}", f"cache/{path}", file, "json", True,
                 lambda place: shutil.copytree(kept, place / "cache"), (doctor,), fresh=True)
        )  # fmt: skip
    return cases


# ---------------------------------------------------------------------- names

NAMES: tuple[bytes, ...] = (
    b"\xff\xfe\x80", b"caf\xe9", b"\x1b[31mred\x1b[0m", b"new\nline", b"tab\there", b"=cmd|' /C calc'!A0", b"+1",
    b"@SUM(1)",
    b"-rf", b" ", b"a b", b"%s%n", b"{0}", b"a" * 251, "航空写真".encode() * 20, "é".encode(), "e\u0301".encode(),
    "\u202egnp".encode(), b"'; drop", b'quo"te', b"a,b", b"a;b", b"back\\slash", b"colon:name", b"con", b"\xc2\x9b31m",
    "\U0001f600".encode(), b"#", b"~", b"*", b"?", b"|", b"<b>", b"&amp;", b".hidden", b"._mac", b"name.png",
    b"trailing.",
    b"\x7f", b"..a",
)  # fmt: skip
"""Names of files that are special somewhere."""


def name_mutant(data: bytes, rng: Generator) -> Mutant:
    """Another file name: one of those above, or one that was changed; never one that no file can have."""
    name = NAMES[rng.integers(len(NAMES))]
    if rng.random() < 0.3:
        name = mutations.flip_bits(name * 2, rng).data
    name = name.replace(b"/", b"_").replace(b"\0", b"_")[:251].rstrip(b".") or b"x"
    return Mutant(name, f"named {name[:40]!r}", sealed=True)


def name_cases(bases: Path) -> list[Case]:
    """Photographs, masks and predictions under odd names; the mutated file is the name itself."""

    def write(place: Path, name: bytes) -> None:
        photo, mask = inputs.truth_files(1)
        for folder, data in (("images", photo), ("predictions", mask), *((("masks", mask),) if len(name) % 2 else ())):
            (place / folder / os.fsdecode(name + b".png")).write_bytes(data)

    reading = (
        Verb("doctor", verbs.doctor_text), Verb("doctor --json", verbs.doctor),
        Verb("evaluate", verbs.evaluate("direct")),
        Verb("suggest", verbs.suggest(bases / "kmeans", None)), Verb("predict", verbs.predict_place(bases / "kmeans")),
        Verb("train", verbs.train_place(RUNS["kmeans"] + TINY), 3),
    )  # fmt: skip
    return [
        Case("name", "images", PROBE.encode(), "name", False,
             lambda place: _folder(place, leave=f"images/{PROBE}", predictions=True), reading, fresh=True, write=write)
    ]  # fmt: skip


mutations.STRUCTURE["name"] = (name_mutant,)

KINDS: dict[str, Kind] = {
    k.name: k
    for k in (
        Kind("images", 26, image_cases),
        Kind("masks", 18, mask_cases),
        Kind("predictions", 7, prediction_cases),
        Kind("tables", 11, table_cases),
        Kind("annotations", 8, annotation_cases),
        Kind("names", 2, name_cases),
        Kind("bundles", 9, bundle_cases),
        Kind("checkpoints", 5, checkpoint_cases),
        Kind("caches", 4, cache_cases),
        Kind("runs", 8, run_cases, run_weights),
        Kind("suggest", 2, suggest_cases),
    )
}
"""All kinds, with their share of the mutations."""

"""`name`: from a run of clusters to a run of named classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.data.masking.classes import ClassTable
    from maskwright.data.masking.cluster_map import ClusterRow, FilledMap
    from maskwright.engine.progress import Progress
    from maskwright.predict.model import Model
    from maskwright.predict.naming import Naming

from maskwright.api.opening import load, opened

ALL = "all"
"""What `from_masks` says for every mask of the data."""
MASKS = "masks"
"""Folder of the new run for the masks of its photographs."""


@dataclass
class Named:
    """What `name` did.

    Attributes:
        map: the table that holds the names, or wants them.
        model: with named classes; None where none was asked for.
        notices: what was decided, in sentences; `progress` said them as well.
    """

    map: Path
    model: Model | None = None
    notices: list[str] = field(default_factory=list)


def name(
    run: str | Path,
    data: str | Path | Dataset | None = None,
    *,
    map: str | Path | None = None,
    from_masks: str | Path | None = None,
    out: str | Path | None = None,
    names: str | Path | Iterable[str] | None = None,
    masks: bool = True,
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Named:
    """Gives the clusters of a run names; several may become one class, some none (void).

    With `out` it makes a run folder with the model, its masks and a report. Without, it writes the table that a person
    fills in, with `from_masks` the table as masks propose it.

    Args:
        run: the run folder; it gets at most map.csv and the montage, and stays otherwise as it is.
        data: dataset folder, `layout:path`, or an opened dataset, in the place of the run's own.
        map: the table; by default map.csv of the run.
        from_masks: name of a split, a list file, or "all": the name of each cluster is the class that most of its
            pixels have in these masks, which the ledger notes as read for training.
        out: the folder of the new run.
        names: the classes in the order of their ids; by default those of the data's class table, where it has one that
            shares a name with the map, else the map's in the order of the clusters.
        masks: write OUT/masks/NAME.png for every photograph of the run.
        labels, void, range: what the values of the files mean, as for `open_folder`; by default as in the run.
        device: `auto`, `cpu` or `cuda`.
        progress: how work shows itself.

    Raises:
        MaskwrightError: there is no such run, its photographs are gone, the map is not filled in or of another run, or
            `out` holds something else.
    """
    from maskwright.app.montage import MONTAGE, montage_files, naming_command, write_clusters
    from maskwright.data.masking.cluster_map import MAP
    from maskwright.engine.devices import pick_device
    from maskwright.engine.progress import Progress

    folder, bar = Path(run), progress or Progress()
    record = _record(folder)
    model = load(folder, device=pick_device(device))
    table = folder / MAP if map is None else Path(map)
    if out is not None:
        _check_out(Path(out), folder)
        if from_masks is None:  # what is wrong with the table is said before any work
            _filled(table, model, folder)
    images = _photographs(folder, record, data, labels, void, range)
    of_run = _of_run(images, record, data)
    if from_masks is not None:
        _propose(model, folder, images, of_run, from_masks, table, bar)
    elif out is None and (not table.exists() or not montage_files(folder)):
        write_clusters(folder, model, of_run, progress=bar, table=table)
    done = Named(table)
    if out is None:
        told = naming_command(folder, table)
        looks = f"see {folder / MONTAGE}, " if montage_files(folder) else ""
        bar.say(f"{looks}{'look over' if from_masks else 'fill in'} the column name of {table}, then {told}")
        return done
    filled = _filled(table, model, folder)
    naming = _settled(filled, model, images, names, table)
    done.notices += naming.notices
    for sentence in naming.notices:
        bar.say(sentence)
    done.model = _make_run(Path(out), folder, record, model, naming, filled, table, of_run, masks, bar)
    return done


def _record(folder: Path) -> dict[str, Any]:
    from maskwright.data.trust.artefacts import read_record
    from maskwright.engine.records import RECORD, SHAPE

    if not (folder / RECORD).exists():
        raise MaskwrightError(
            f"{folder} holds no run", f"a run folder with its {RECORD}",
            "give the --out of a training; a model alone is named in Python by model.rename",
        )  # fmt: skip
    repair = 'choose another run; where it was changed by hand on purpose, delete its line "checksum"'
    return read_record(folder / RECORD, SHAPE, what="the record of a run", repair=repair)


def _check_out(out: Path, folder: Path) -> None:
    """Refuses a folder that holds anything but an unfinished run of this kind."""
    from maskwright.data.trust.artefacts import Damage, parse_record
    from maskwright.engine.records import RECORD, WORDS, RunFolder

    if out.resolve() == folder.resolve():
        raise MaskwrightError(f"--out {out} is the run itself", "a new folder", "choose another --out")
    if not _is_naming(out):
        if out.is_dir() and (out / RECORD).exists():
            standing = RunFolder.standing(out)
            raise MaskwrightError(
                f"{out} already holds a run{' that ' + standing if standing else ''}", "a new folder",
                "choose another --out",
            )  # fmt: skip
        RunFolder.check(out, resume=False)
        return
    try:
        status = parse_record((out / RECORD).read_bytes()).get("status")
    except (OSError, Damage):
        status = None
    if status == "finished":
        raise MaskwrightError(
            f"{out} already holds a run that {WORDS['finished']}", "a new folder", "choose another --out"
        )


def _is_naming(out: Path) -> bool:
    from maskwright.data.trust.artefacts import Damage, parse_record
    from maskwright.engine.records import RECORD

    try:
        return bool(parse_record((out / RECORD).read_bytes()).get("named"))
    except (OSError, Damage):
        return False


def _photographs(
    folder: Path, record: Mapping[str, Any], data: str | Path | Dataset | None, labels: Any, void: Any, range: Any
) -> Dataset:
    """The data set that was given, or the run's own, its values read as the run read them where nothing is said."""
    from maskwright.data.examining.reading import Reading
    from maskwright.engine.config_file import CONFIG, data_of

    said = (labels, void, range)
    if data is not None:
        return opened(data, *said)
    # The file knows of layouts, and older runs have none.
    place = data_of(folder / CONFIG) or str((record.get("data") or {}).get("root", ""))
    if not place or not (os.path.exists(place) or os.path.exists(place.partition(":")[2])):
        raise MaskwrightError(
            f"the photographs of {folder} are not at {place or 'a place that its record tells'}", "the run's data set",
            f"say where they are: maskwright name {folder} DATA",
        )  # fmt: skip
    images = opened(place, *said)
    if all(value is None for value in said):
        images = images.with_reading(Reading.from_json(record.get("reading")))
    return images


def _of_run(images: Dataset, record: Mapping[str, Any], given: object) -> Dataset:
    """The photographs of the run's split; all where a data set was given that has no such split."""
    split = record.get("split")
    if not isinstance(split, str) or (given is not None and split not in images.split_names):
        return images
    return images.split(split)


def _propose(
    model: Model, folder: Path, images: Dataset, of_run: Dataset, which: str | Path, table: Path, bar: Progress
) -> None:
    """Writes a map in which each cluster has the class of most of its pixels in masks."""
    import numpy as np

    from maskwright.app.montage import model_id
    from maskwright.data.examining.understanding import highest_id
    from maskwright.data.masking.classes import ClassTable
    from maskwright.data.masking.cluster_map import check_replaceable, masks_beside, write_map
    from maskwright.evaluate.confusion import ConfusionMatrix
    from maskwright.ops.matching import majority
    from maskwright.predict.naming import VOID_NAME

    if not masks_beside(table).exists():  # else it is compared with what is found
        check_replaceable(table)
    labelled = model.read_as_trained(_with_masks(images, which))
    for sentence in labelled.notices:
        bar.say(sentence)
    classes = labelled.classes or ClassTable.numbered(highest_id(labelled) + 1, "class")
    clusters = len(model.classes)
    matrix = ConfusionMatrix(clusters, len(classes), extra=True)
    with labelled.ledger.purpose("train"):
        for i in bar.track(range(len(labelled)), "masks", len(labelled)):
            matrix.update(model.predict(labelled.image(i)).mask, labelled.mask(i))
    counts = matrix.counts[:clusters]
    found, total = majority(counts), counts.sum(1)
    names = [classes.names[c] if c >= 0 else VOID_NAME for c in found]
    agree = counts.max(1)
    rows = [
        replace(row, name=names[row.cluster], agreement=float(agree[row.cluster] / max(1, total[row.cluster])))
        for row in _rows_of(model, folder, of_run, bar)
    ]
    bar.say(
        f"names from {len(labelled)} masks: {len({int(c) for c in found if c >= 0})} of {len(classes)} classes have a "
        f"cluster; {100 * agree.sum() / max(1, total.sum()):.1f} % of the labelled pixels agree"
    )
    if unseen := [str(k) for k in np.flatnonzero(found < 0)]:
        bar.say(f"in no mask, so void: cluster{'s' * (len(unseen) > 1)} {', '.join(unseen)}")
    write_map(table, rows, model_id(model), masks=labelled.names)


def _with_masks(images: Dataset, which: str | Path) -> Dataset:
    """The photographs of a split or list that have a mask, their values understood."""
    from maskwright.data.examining.understanding import understand

    labelled = images if str(which) == ALL and ALL not in images.split_names else images.labeled(which)
    labelled = labelled.subset(i for i in range(len(labelled)) if labelled.has_mask(i))
    if not len(labelled):
        raise MaskwrightError(
            f"--from-masks {which}: none of its photographs has a mask in {images.root}", "at least one mask",
            "name another split or list, or say --from-masks all",
        )  # fmt: skip
    return understand(labelled, masks=True)


def _rows_of(model: Model, folder: Path, of_run: Dataset, bar: Progress) -> list[ClusterRow]:
    """Shares and places of the clusters: those of the run's own map, or measured now, with the montage."""
    from maskwright.app.montage import cluster_rows, look, model_id, montage_files, write_montage
    from maskwright.data.masking.cluster_map import MAP, read_rows

    rows = read_rows(folder / MAP, model.classes, model_id(model))
    if rows is not None and montage_files(folder):
        return rows
    seen = look(model, of_run, progress=bar)
    write_montage(folder, seen, model.classes, of_run)
    return cluster_rows(seen, model.classes)


def _filled(table: Path, model: Model, folder: Path) -> FilledMap:
    """The map, every cluster with a name that can be one."""
    from maskwright.app.montage import model_id
    from maskwright.data.masking.cluster_map import MAP, read_map
    from maskwright.predict.naming import settle_names

    if not table.exists() and (folder / MAP).exists():
        raise MaskwrightError(f"there is no {table}", f"the run has {folder / MAP}", f"add --map {folder / MAP}")
    filled = read_map(table, len(model.classes), model_id(model))
    settle_names(filled.names, model.classes, None, str(table))
    return filled


def _settled(filled: FilledMap, model: Model, images: Dataset, names: Any, table: Path) -> Naming:
    """Ids and names of the classes."""
    from maskwright.data.masking.classes import ClassTable, given_names
    from maskwright.predict.naming import settle_names

    known: ClassTable | None = images.classes
    if names is not None:
        given = given_names(names)
        same = known is not None and len(known) == len(given)
        known = ClassTable(given, known.colors) if same and known is not None else ClassTable(given)
    naming = settle_names(filled.names, model.classes, known, str(table))
    if not filled.model:
        told = f"{table} does not say of which run it is; it is taken for one of these clusters."
        naming = naming._replace(notices=(told, *naming.notices))
    return naming


def _make_run(
    out: Path, folder: Path, record: dict[str, Any], model: Model, naming: Naming, filled: FilledMap, table: Path,
    images: Dataset, masks: bool, bar: Progress,
) -> Model:  # fmt: skip
    """The run folder of the named model: bundle, masks, pictures, report, and what it was made of."""
    import time

    from maskwright.app.pictures import write_previews
    from maskwright.app.report import write_report
    from maskwright.data.masking.cluster_map import MAP, masks_beside
    from maskwright.data.trust.artefacts import write_record
    from maskwright.data.trust.files import write_bytes
    from maskwright.engine.ending import recorded
    from maskwright.engine.records import FINISHED, LEDGER, MODEL, RunFolder, now
    from maskwright.predict.model import Model
    from maskwright.predict.naming import with_naming

    start = time.perf_counter()
    made, ledger = _new_record(folder, record, model, naming, filled, table)
    run = RunFolder.start(out, made, resume=_is_naming(out))
    try:
        with recorded(run):
            segmenter = with_naming(model.segmenter, naming)
            extra = {**segmenter.extra, "labels_read": made["labels_read"], "named": made["named"]}
            named = Model(segmenter, extra, device=model.device)
            write_bytes(out / MAP, table.read_bytes())
            if filled.masks:
                write_bytes(masks_beside(out / MAP), masks_beside(table).read_bytes())
            write_record(out / LEDGER, ledger)
            named.save(out / MODEL)
            images = named.read_as_trained(images)
            shares = write_previews(out, named, images, progress=bar)
            if masks:
                done = named.predict_folder(images, out / MASKS, progress=bar)
                shares = done.shares
                bar.say(f"masks: {done.written} in {out / MASKS}")
            run.record["classes"] = [
                {"name": n, "color": [int(v) for v in c], "share": float(s)}
                for n, c, s in zip(named.classes.names, named.classes.colors, shares)
            ]
            stage = {
                "name": "name", "kind": "fit", "says": "clusters get names",
                "seconds": round(time.perf_counter() - start, 3),
            }  # fmt: skip
            end = {"status": FINISHED, "finished": now(), "stages": [stage]}
            bar.say(f"report: {write_report(out, run.record | end)}")
            run.save(**end)
            bar.say(f"model: {out / MODEL}")
    finally:
        run.release()
    return named


def _new_record(
    folder: Path, record: dict[str, Any], model: Model, naming: Naming, filled: FilledMap, table: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the new run's record says from the start, and the state of its ledger."""
    from maskwright.app.montage import model_id
    from maskwright.data.trust.ledger import NAMES, Ledger
    from maskwright.engine.records import RUNNING, command, now, versions
    from maskwright.evaluate.scores import hash_names
    from maskwright.predict.naming import VOID_NAME

    said = [
        {"cluster": k, "name": naming.table.names[c] if c >= 0 else VOID_NAME} for k, c in enumerate(naming.class_of)
    ]
    state, ledger = _ledger_of(folder), Ledger()
    ledger.merge({key: value for key, value in state.items() if key != "streams"})
    before = ledger.counts()["train"]
    for k in range(len(said)):
        ledger.note(NAMES, f"cluster {k}", "train")
    for image in filled.masks:
        ledger.note("masks", image, "train")
    new = {kind: n - before.get(kind, 0) for kind, n in ledger.counts()["train"].items()}
    other = ("checksum", "resumed", "finished", "classes", "stages", "report", "model_key", "seconds_after_stages")
    kept = {k: v for k, v in record.items() if k not in other}
    void = sum(c < 0 for c in naming.class_of)
    used = len({c for c in naming.class_of if c >= 0})
    note = f"Named: {len(said)} clusters of {folder} became {used} class{'es' * (used != 1)}"
    note += f"; {void} of them {'are' if void > 1 else 'is'} void." if void else "."
    if filled.masks:
        note += f" Their names were proposed by {len(filled.masks)} masks (sha256 of their names "
        note += f"{hash_names(filled.masks)[:12]}), which count as read for training."
    made = kept | {
        "status": RUNNING,
        "command": command("maskwright.name"),
        "versions": versions(),
        "device": str(model.device),
        # Another training's options: `train --resume` must not take this run for one of its own.
        "config": {**(record.get("config") or {}), "names": [one["name"] for one in said]},
        "labels_read": _added(record.get("labels_read"), new),
        "named": {
            "run": os.path.abspath(folder), "model": model_id(model), "map": said, "table": os.path.abspath(table),
            "masks": len(filled.masks), "masks_hash": hash_names(filled.masks) if filled.masks else None,
        },
        "notes": [note, *naming.notices, *(record.get("notes") or [])],
        "started": now(),
    }  # fmt: skip
    if isinstance(streams := record.get("labels_read_by_stream"), Mapping):
        made["labels_read_by_stream"] = {**streams, "target": _added(streams.get("target"), new)}
    return made, {**state, **ledger.state_dict()}


def _ledger_of(folder: Path) -> dict[str, Any]:
    from maskwright.data.trust.artefacts import Damage, parse_record
    from maskwright.engine.records import LEDGER

    try:
        found = parse_record((folder / LEDGER).read_bytes())
    except (OSError, Damage):
        return {}  # its run.json has the counts
    return {k: v for k, v in found.items() if k != "checksum"}


def _added(counts: Any, new: Mapping[str, int]) -> dict[str, Any]:
    """Counts of labels with those that naming read."""
    found = {p: dict(kinds) for p, kinds in (counts or {}).items()}
    train = found.setdefault("train", {})
    for kind, n in new.items():
        train[kind] = train.get(kind, 0) + n
    return found

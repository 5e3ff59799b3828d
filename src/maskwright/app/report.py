"""The run report: one HTML file that says what a run did, shows its pictures and needs nothing beside it.

It reads `run.json`, `metrics.jsonl`, `previews/`, `scores.json` and the `shown.json` of stages of a run folder. What is
missing is left out; what is damaged does not keep the rest from being shown. What comes from files is escaped.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from maskwright.app.html import class_table as _table_of
from maskwright.app.html import count as _count
from maskwright.app.html import dotted as _dotted
from maskwright.app.html import duration as _duration
from maskwright.app.html import inner as _get
from maskwright.app.html import long_table as _long_table
from maskwright.app.html import number as _number
from maskwright.app.html import percent as _percent
from maskwright.app.html import rows as _rows
from maskwright.app.html import section as _section
from maskwright.app.html import series as _series
from maskwright.app.html import term_list as _dl
from maskwright.app.html import text as _text
from maskwright.app.montage import HOW_TO_READ, montage_files, naming_command
from maskwright.app.page import frame
from maskwright.app.pictures import PREVIEWS, figure, preview_shares
from maskwright.app.plots import bar, curve, format_number
from maskwright.app.stage_view import stage_views
from maskwright.data.masking.cluster_map import MAP
from maskwright.data.pictures.images import read_image
from maskwright.data.pictures.inline import data_uri, swatch
from maskwright.data.trust.artefacts import Damage, parse_json, read_record
from maskwright.data.trust.files import write_text
from maskwright.engine.records import went_on_from
from maskwright.errors import MaskwrightError, shown
from maskwright.models.provenance import NO_LABELS

REPORT = "report.html"
SHOWN = 24
"""Pictures that are seen at once; the others are folded."""
MOST = 96
"""Pictures in a report at most: each adds about 100 KB."""
KINDS = ("masks", "tags", "captions")
PURPOSES = {"train": "training", "select": "selection", "evaluate": "evaluation"}


def write_report(run_folder: str | Path, record: Mapping[str, Any] | None = None) -> Path:
    """Writes `report.html` into a run folder.

    Args:
        run_folder: a folder with `run.json`.
        record: what `run.json` is about to say, in its place.

    Returns:
        The file written.

    Raises:
        MaskwrightError: there is no readable `run.json`, or the folder cannot be written.
    """
    folder = Path(run_folder)
    if record is None:
        repair = 'check the path; where run.json was changed by hand on purpose, delete its line "checksum"'
        run = read_record(folder / "run.json", dict, what="the record of a run", repair=repair)
    else:
        run = json.loads(json.dumps(record))
    sections = [
        _header(run),
        _done(run),
        _labels(run),
        _pictures(folder, run),
        _montage(folder, run),
        *_shown(folder, run),
        _classes(run),
        _scores(folder, run),
        _curves(folder),
        _stages(run),
        _weights(run),
        _skipped(run),
        _record(run, folder),
    ]
    made = _text(_get(run, "versions", "maskwright"))
    sections.append(
        f"<footer>Made by maskwright{' ' + made if made else ''}. This file needs nothing beside it.</footer>"
    )
    page = frame(_title(run), "\n".join(s for s in sections if s))
    write_text(folder / REPORT, shown(page, lines=True))
    return folder / REPORT


# ---------------------------------------------------------------------- reading what there is


def _method_title(run: Mapping[str, Any]) -> str:
    return str(_get(run, "method", "title") or _get(run, "method", "name") or "A run")


def _title(run: Mapping[str, Any]) -> str:
    """The data and the method: "camvid, train: ST++"."""
    root = str(_get(run, "data", "root") or "").rstrip("/")
    split = run.get("split")
    data = ", ".join(part for part in (root.rpartition("/")[2], split if isinstance(split, str) else "") if part)
    return f"{data}: {_method_title(run)}" if data else _method_title(run)


def _counts(run: Mapping[str, Any], purpose: str) -> dict[str, int]:
    found = _get(run, "labels_read", purpose)
    counts = {k: int(_number(v) or 0) for k, v in found.items()} if isinstance(found, Mapping) else {}
    return {kind: counts.get(kind, 0) for kind in dict.fromkeys([*KINDS, *map(str, counts)])}


def _seconds(run: Mapping[str, Any]) -> float:
    return sum(_number(s.get("seconds")) or 0.0 for s in _rows(run.get("stages")))


# ---------------------------------------------------------------------- sections


def _header(run: Mapping[str, Any]) -> str:
    paper, link = _text(_get(run, "method", "paper")), str(_get(run, "method", "link") or "")
    if re.match(r"https?://", link):  # no other scheme may become a link
        paper = f'{paper} <a href="{escape(link)}" rel="noreferrer">{escape(link)}</a>'
    facts = []
    images = _get(run, "data", "images")
    if isinstance(images, int):
        facts.append(("Photographs", f"{images:,}".replace(",", "\u202f")))
    if classes := _rows(run.get("classes")):
        facts.append(("Classes" if _named(classes) else "Clusters", str(len(classes))))
    if isinstance(run.get("labels_read"), Mapping):
        facts.append(("Labels read for training and selection", str(_labels_used(run))))
    if seconds := _seconds(run) + (_number(run.get("seconds_after_stages")) or 0.0):
        facts.append(("Time", _duration(seconds)))
    if run.get("device"):
        facts.append(("Device", _text(run["device"])))
    shown = "".join(f"<div><dt>{escape(k)}</dt><dd>{v}</dd></div>" for k, v in facts)
    return (
        f'<header>\n<p class="kicker">Maskwright report</p>\n<h1>{escape(_title(run))}</h1>\n'
        + (f'<p class="soft">{paper}</p>\n' if paper else "")
        + (f'<dl class="facts">{shown}</dl>\n' if shown else "")
        + "</header>"
    )


def _named(classes: list[Mapping[str, Any]]) -> bool:
    return not all(re.fullmatch(r"cluster \d+", str(c.get("name"))) for c in classes)


def _done(run: Mapping[str, Any]) -> str:
    sentences = []
    images, root = _get(run, "data", "images"), _get(run, "data", "root")
    if isinstance(images, int):
        where = f" of <code>{_text(root)}</code>" if root else ""
        sentences.append(f"The method was run on {_count(images, 'photograph')}{where}.")
    if skipped := _skipped_rows(run):
        one = len(skipped) == 1
        sentences.append(
            f"{_count(len(skipped), 'image')} could not be read and {'was' if one else 'were'} left out; "
            f"{'it is' if one else 'they are'} named below."
        )
    for says, weights in zip(("Its features come from", "Earlier stages used the backbone"), _weights_of(run)):
        if weights.get("architecture"):
            seen = str(weights.get("labels_seen") or "unknown")
            told = "no labels" if seen == NO_LABELS else escape(seen)
            sentences.append(f"{says} {_text(weights['architecture'])}, whose weights saw: {told}.")
    if run.get("seed") is not None:
        sentences.append(f"Every random draw follows from seed {_text(run['seed'])}.")
    if run.get("status") not in (None, "finished"):
        sentences.append(f"<strong>The run is not finished (status: {_text(run['status'])}).</strong>")
    notes = [n for n in run.get("notes") or [] if isinstance(n, str)] if isinstance(run.get("notes"), list) else []
    body = f"<p>{' '.join(sentences)}</p>" if sentences else ""
    # What the sentences above say already, and what a resumed run noted once more.
    said = {f"Backbone: {weights.get('architecture')}, as asked." for weights in _weights_of(run)}
    body += "".join(f"<p>{escape(note)}</p>" for note in dict.fromkeys(notes) if note not in said)
    if run.get("command"):
        body += f"<p>The command that made it:</p><pre><code>{_text(run['command'])}</code></pre>"
    return _section("What was done", body)


def _weights_of(run: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What the model's weights started from, and a backbone that only stages before it used; empty where unknown."""
    backbone, model = (v if isinstance(v, Mapping) else {} for v in (run.get("backbone"), run.get("provenance")))
    if run.get("backbone_unused"):
        backbone = {}
    return model or backbone, backbone if model and model != backbone else {}


def _labels_used(run: Mapping[str, Any]) -> int:
    return sum(sum(_counts(run, purpose).values()) for purpose in ("train", "select"))


def _by_source(run: Mapping[str, Any]) -> list[str]:
    """What of the labels read for training and selection lies in the data sets beside the run's own."""
    streams = run.get("labels_read_by_stream")
    sentences = []
    for name, read in streams.items() if isinstance(streams, Mapping) else ():
        of_one = {"labels_read": read}
        counts = Counter[str]()
        for purpose in ("train", "select"):
            counts.update(_counts(of_one, purpose))
        if name != "target" and (told := [f"{n} {kind}" for kind, n in counts.items() if n]):
            sentences.append(f"Of these, from {name}: {', '.join(told)}.")
    return sentences


def _labels(run: Mapping[str, Any]) -> str:
    if not isinstance(run.get("labels_read"), Mapping):
        return ""
    purposes = dict.fromkeys([*PURPOSES, *map(str, run["labels_read"])])
    counts = {p: _counts(run, p) for p in purposes}
    kinds = list(dict.fromkeys(k for c in counts.values() for k in c))
    used = _labels_used(run)
    if used == 0:
        claim = '<p class="claim none"><strong>0 labels read for training and selection.</strong></p>'
        if not any(n for c in counts.values() for n in c.values()):
            return _section("Labels", claim)
    else:
        parts = [
            f"{n:,} {kind} for {PURPOSES[p]}".replace(",", "\u202f")
            for p in ("train", "select") for kind, n in counts[p].items() if n
        ]  # fmt: skip
        claim = f'<p class="claim"><strong>Labels read:</strong> {escape(", ".join(parts))}.</p>'
        claim += "".join(f"<p>{escape(sentence)}</p>" for sentence in _by_source(run))
    head = "".join(f'<th scope="col" class="n">{escape(k)}</th>' for k in kinds)
    rows = "".join(
        f'<tr><th scope="row">{escape(PURPOSES.get(p, p))}</th>'
        + "".join(f'<td class="n">{c.get(k, 0)}</td>' for k in kinds)
        + "</tr>"
        for p, c in counts.items()
    )
    caption = "Images whose labels were read" + (", and clusters that were given names" if "names" in kinds else "")
    table = (
        f'<div class="scroll"><table><caption>{caption}, by what for</caption>'
        f'<thead><tr><th scope="col">read for</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return _section("Labels", claim + table)


def _pictures(folder: Path, run: Mapping[str, Any]) -> str:
    previews = folder / PREVIEWS
    if not previews.is_dir():
        return ""
    table = _table_of(run)
    paths = sorted(previews.rglob("*.jpg"), key=lambda p: _natural(p.relative_to(previews).as_posix()))
    figures: list[str] = []
    shares = preview_shares(previews)
    for path in paths[:MOST]:
        name = path.relative_to(previews).as_posix()[: -len(".jpg")]
        mask = path.with_name(path.name[: -len(".jpg")] + ".png")
        if shown := figure(len(figures), name, path, mask, table, shares.get(name)):
            figures.append(shown)
    if not figures:
        return ""
    body = '<p class="soft">Photograph, overlay and mask. A click enlarges.</p>'
    body += f'<div class="pictures">{"".join(figures[:SHOWN])}</div>'
    if more := figures[SHOWN:]:
        body += f"<details><summary>{_count(len(more), 'more picture')}</summary>"
        body += f'<div class="pictures">{"".join(more)}</div></details>'
    return _section("Pictures", body)


def _montage(folder: Path, run: Mapping[str, Any]) -> str:
    """What each cluster is, in pictures, and how clusters become classes; of a run with names, where they came from."""
    if named := _rows(_get(run, "named", "map")):
        source = _text(_get(run, "named", "run"))
        lines = [
            f'<tr><td class="n">{_text(row.get("cluster"))}</td><td class="name">{_text(row.get("name"))}</td></tr>'
            for row in named
        ]
        head = '<thead><tr><th scope="col" class="n">cluster</th><th scope="col">name</th></tr></thead>'
        body = f"<p>The classes are named clusters of <code>{source}</code>.</p>"
        body += f"<details><summary>{_count(len(named), 'cluster')}</summary>{_long_table(head, lines)}</details>"
        return _section("Names of the clusters", body)
    sheets = montage_files(folder)
    images = []
    for number, path in enumerate(sheets, 1):
        try:
            height, width = read_image(path).shape[:2]
            data = path.read_bytes()
        except (MaskwrightError, OSError):
            continue
        told = "Clusters, a row each" + (f", part {number} of {len(sheets)}" if len(sheets) > 1 else "")
        images.append(
            f'<img class="sheet" loading="lazy" decoding="async" width="{width}" height="{height}" alt="{told}" '
            f'src="{data_uri(data, "jpeg")}">'
        )
    if not images:
        return ""
    places = _get(run, "places", "says")
    body = f"<p>{escape(places)}</p>" if isinstance(places, str) else ""
    body += (
        f"<p>{HOW_TO_READ} Write what each cluster is into the column <code>name</code> of <code>{MAP}</code>: "
        "the same word twice makes one class, <code>void</code> none. Then</p>"
        f"<pre><code>{escape(naming_command(folder))}</code></pre>"
        "<p>makes a model with these classes. "
        "With a few masks, <code>--from-masks SPLIT</code> proposes the names.</p>"
    )
    return _section("What the clusters are", body + "".join(images))


def _shown(folder: Path, run: Mapping[str, Any]) -> list[str]:
    """What stages show of themselves, a section each."""
    names = [str(stage.get("name")) for stage in _rows(run.get("stages"))]
    return [_section(title, body) for title, body in stage_views(folder, names)]


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"([0-9]+)", name)]


def _classes(run: Mapping[str, Any]) -> str:
    table, rows = _table_of(run), _rows(run.get("classes"))
    if table is None:
        return ""
    shares = [_number(row.get("share")) for row in rows]
    known = [-1.0 if share is None else share for share in shares]
    full = max(0.0, *known)
    order = sorted(range(len(rows)), key=lambda i: -known[i])
    lines = []
    for i in order:
        share, name = shares[i], escape(table.names[i])
        r, g, b = (int(v) for v in table.colors[i])
        told = f"{table.names[i]}: {_percent(share)}"
        graph = bar(share, f"rgb({r},{g},{b})", told, full) if share is not None else ""
        lines.append(
            f'<tr><td class="n">{i}</td><td class="name">{swatch((r, g, b))}{name}</td>'
            f'<td class="n">{_percent(share)}</td><td class="graph">{graph}</td></tr>'
        )
    head = (
        '<thead><tr><th scope="col" class="n">id</th><th scope="col">name</th><th scope="col" class="n">area</th>'
        "<td></td></tr></thead>"
    )
    body = _long_table(head, lines, "wide")
    return _section("Classes" if _named(rows) else "Clusters", body)


def _scores(folder: Path, run: Mapping[str, Any]) -> str:
    try:
        scores = parse_json((folder / "scores.json").read_bytes())
        if isinstance(scores, str):
            scores = parse_json(scores)
    except (OSError, Damage):
        return ""
    if not isinstance(scores, Mapping):
        return ""
    facts = {
        "mean IoU": _percent(scores.get("miou"), 2),
        "pixel accuracy": _percent(scores.get("pixel_accuracy"), 2),
        "mean accuracy": _percent(scores.get("mean_accuracy"), 2),
    }
    shown = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts.items() if v != "–")
    keys = ("protocol", "matching", "averaging", "resolution", "images", "split", "names_hash", "predicted", "classes")
    record = [(key, _text(scores.get(key))) for key in keys if scores.get(key) is not None]
    notes = scores.get("notes")
    notes = notes if isinstance(notes, list) else []
    models = scores.get("models")
    if isinstance(models, list) and went_on_from(run, models):
        notes = ["These figures are of an earlier model of the run, which went on since: judge it again.", *notes]
    body = f'<dl class="facts">{shown}</dl>' + _dl(record)
    body += "".join(f'<p class="note">{escape(n)}</p>' for n in notes if isinstance(n, str))
    lines = []
    for row in _rows(scores.get("per_class")):
        value, name = _number(row.get("iou")), str(row.get("name", ""))
        graph = bar(value, "currentColor", f"{name}: {_percent(value)}") if value is not None else ""
        lines.append(
            f'<tr><td class="name">{escape(name)}</td><td class="n">{_percent(value, 2)}</td>'
            f'<td class="graph">{graph}</td></tr>'
        )
    if lines:
        head = (
            f'<thead><tr><th scope="col">class</th><th scope="col" class="n">IoU, {_text(scores.get("protocol"))}</th>'
        )
        body += _long_table(head + "<td></td></tr></thead>", lines, "wide")
    return _section("Scores", body)


def _curves(folder: Path) -> str:
    series = _series(folder / "metrics.jsonl")
    drawn, single = [], []
    for (stage, metric), (steps, values) in series.items():
        label = f"{stage}: {metric}" if stage else metric
        if len(values) == 1:
            single.append((escape(label), format_number(values[0])))
        elif picture := curve(steps, values, label):
            where = f' <span class="soft">in {escape(stage)}</span>' if stage else ""
            drawn.append(f"<div><h3>{escape(metric)}{where}</h3>{picture}</div>")
    body = f'<div class="curves">{"".join(drawn)}</div>' if drawn else ""
    if drawn:
        body = '<p class="soft">Thin: each value. Thick: moving average. Across: the step.</p>' + body
    return _section("Training", body + _dl(single))


_STAGE_COLUMNS = (("stage", ""), ("kind", ""), ("time", ' class="n"'))


def _stages(run: Mapping[str, Any]) -> str:
    stages, total = _rows(run.get("stages")), _seconds(run)
    lines = []
    for stage in stages:
        seconds = _number(stage.get("seconds")) or 0.0
        told = f"{stage.get('name')}: {_duration(seconds)}"
        lines.append(
            f'<tr><td class="name">{_text(stage.get("name"))}<br>'
            f'<span class="soft">{_text(stage.get("says"))}</span></td>'
            f'<td>{_text(stage.get("kind"))}</td><td class="n">{_duration(seconds)}</td>'
            f'<td class="graph">{bar(seconds, "currentColor", told, total or 1.0)}</td></tr>'
        )
    head = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in _STAGE_COLUMNS)
    head = f"<thead><tr>{head}<td></td></tr></thead>"
    return _section("Stages", _long_table(head, lines, "wide") if lines else "")


def _weights(run: Mapping[str, Any]) -> str:
    names = {
        "architecture": "network", "source": "weights from", "license": "licence",
        "labels_seen": "labels its weights saw", "sha256": "sha256", "input_size": "pretrained at",
    }  # fmt: skip
    out = ""
    for title, record in zip(("Weights", "Backbone of earlier stages"), _weights_of(run)):
        size = record.get("input_size")
        if isinstance(size, list | tuple):
            record = {**record, "input_size": " × ".join(str(s) for s in size) + " pixels"}
        out += _section(title, _dl((names[k], _text(record.get(k))) for k in names))
    return out


def _skipped_rows(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = _get(run, "data", "skipped")
    pairs = [s for s in found if isinstance(s, list | tuple) and s] if isinstance(found, list) else []
    return [(str(s[0]), str(s[1]) if len(s) > 1 else "") for s in pairs]


def _skipped(run: Mapping[str, Any]) -> str:
    lines = [
        f'<tr><td class="name">{escape(n)}</td><td class="long">{escape(why)}</td></tr>'
        for n, why in _skipped_rows(run)
    ]
    head = '<thead><tr><th scope="col">image</th><th scope="col">why it was left out</th></tr></thead>'
    return _section(f"Skipped images ({len(lines)})", _long_table(head, lines)) if lines else ""


def _record(run: Mapping[str, Any], folder: Path) -> str:
    versions = run.get("versions")
    told = ", ".join(f"{_text(k)} {_text(v)}" for k, v in versions.items()) if isinstance(versions, Mapping) else ""
    fingerprint, masks = _text(_get(run, "data", "fingerprint")), _text(run.get("labeled_hash"))
    pairs = [
        ("folder", escape(folder.resolve().name)),
        ("method", _text(_get(run, "method", "name"))),
        ("seed", _text(run.get("seed"))),
        ("steps", _text(run.get("steps"))),
        ("split", _text(run.get("split"))),
        ("labelled images", _text(run.get("labeled"))),
        ("hash of their names", f"<code>{masks}</code>" if masks else ""),
        ("device", _text(run.get("device"))),
        ("data hash", f"<code>{fingerprint}</code>" if fingerprint else ""),
        ("versions", told),
        ("started", _text(run.get("started"))),
        ("finished", _text(run.get("finished"))),
    ]
    body = _dl(pairs)
    options, config = run.get("options"), run.get("config")
    settings = _dotted(options if isinstance(options, Mapping) and options else config)
    if run.get("steps"):  # they stand above; the option is the number without --steps or --minutes
        settings = [(name, value) for name, value in settings if name != "steps"]
    if settings:
        body += f"<details><summary>{_count(len(settings), 'setting')}</summary>"
        body += _dl((f"<code>{_text(k)}</code>", _text(v) or "none") for k, v in settings) + "</details>"
    return _section("Record", body)

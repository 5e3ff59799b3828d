"""The page of a model that is handed on: what it is, what it saw, how to load it; with front matter for model hubs."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import yaml

from maskwright.errors import shown
from maskwright.models.provenance import NO_LABELS

if TYPE_CHECKING:
    from maskwright.predict.model import Model

LIBRARY = "maskwright"
KNOWN = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0")
"""Licences that hubs know by the same name as SPDX, in lower case; another is `other` and its name beside it."""
MOST = 200
"""Classes that the page lists."""


def card(model: Model, place: str, license: str | None = None) -> str:
    """README.md of a model.

    Args:
        model: whose page it is.
        place: what `mw.load` takes to load it.
        license: SPDX name of the model's licence; that of the weights it began from if None.
    """
    segmenter = model.segmenter
    method = segmenter.method or str(model.extra.get("method", ""))
    front = _front_matter(license or segmenter.provenance.license, method)
    parts = [f"---\n{front}---", f"# {_text(_title(method))}"]
    if segmenter.notes:
        parts.append(_text(segmenter.notes))
    parts += [
        f"## How to load it\n\n```python\nimport maskwright as mw\n\nmodel = mw.load({place!r})\n"
        'result = model.predict("photograph.jpg")   # .mask (H, W), .confidence (H, W), .classes\n```',
        f"## Classes\n\n{_classes(model)}",
        f"## What it saw\n\n{_seen(model)}",
        f"## Input\n\n{_input(model)}",
    ]
    return "\n\n".join(parts) + "\n"


def is_card(text: str) -> bool:
    """Whether a README.md is such a page, so that another may take its place."""
    head = text.partition("\n---\n")[0]
    return text.startswith("---\n") and f"library_name: {LIBRARY}" in head.splitlines()


def _title(method: str) -> str:
    return f"Segmentation model by {method}" if method else "Segmentation model"


def _front_matter(license: str, method: str) -> str:
    known = license.lower() in KNOWN
    facts: dict[str, Any] = {"license": license.lower() if known else "other"}
    if not known:
        facts["license_name"] = shown(license) if license not in ("", "unknown", "none needed") else "unknown"
    facts |= {
        "library_name": LIBRARY,
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", "semantic-segmentation", LIBRARY, *([shown(method)] if method else [])],
    }
    return str(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))


def _classes(model: Model) -> str:
    rows = [
        f"| {i} | {_text(name)} | #{r:02x}{g:02x}{b:02x} |"
        for i, (name, (r, g, b)) in enumerate(zip(model.classes.names, model.classes.colors.tolist()))
    ]
    more = [f"\n{len(rows) - MOST} more stand in the model."] if len(rows) > MOST else []
    return "\n".join(["| id | class | colour |", "|---|---|---|", *rows[:MOST], *more])


def _seen(model: Model) -> str:
    source = model.segmenter.provenance
    seen = "no labels" if source.labels_seen == NO_LABELS else source.labels_seen
    lines = [
        f"- Network: {source.architecture}, its weights from {source.source}.",
        f"- Labels that training those weights read: {seen}.",
        f"- Licence of those weights: {source.license}.",
    ]
    lines += [f"- sha256 of those weights: {source.sha256}"] if source.sha256 else []
    read = model.extra.get("labels_read")
    if isinstance(read, dict):
        lines += [_read(purpose, kinds) for purpose, kinds in read.items() if isinstance(kinds, dict)]
    else:
        lines.append("- Labels that its own training read: not recorded in the file.")
    inputs = model.extra.get("inputs")
    for name, saw in inputs.items() if isinstance(inputs, dict) else ():
        lines.append(f"- Input `{name}` of its training: {saw}")
    return "\n".join(_text(line) for line in lines)


def _read(purpose: str, kinds: dict[str, Any]) -> str:
    words = {"train": "training", "select": "selection", "evaluate": "evaluation"}
    counts = ", ".join(f"{n} {kind}" for kind, n in kinds.items() if n) or "none"
    return f"- Labels read for {words.get(purpose, purpose)}: {counts}."


def _input(model: Model) -> str:
    pre = model.segmenter.preprocess
    rules = [
        f"every image {pre.size[0]} x {pre.size[1]}" if pre.size else "",
        f"shorter side {pre.short_side} pixels" if pre.short_side else "",
        f"longer side at most {pre.long_side} pixels" if pre.long_side else "",
        f"sides rounded to multiples of {pre.multiple_of}" if pre.multiple_of > 1 else "",
    ]
    sizes = ", ".join(rule for rule in rules if rule) or "the image's own size"
    return f"RGB photographs of any size, brought to: {sizes}. The mask has the photograph's size."


def _text(line: str) -> str:
    """Text from outside as Markdown shows it, never as markup."""
    escaped = html.escape(shown(line), quote=False).replace("|", "\\|")
    return escaped.replace("[", "\\[").replace("]", "\\]")

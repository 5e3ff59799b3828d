"""The record beside predicted masks, `OUT/predicted.jsonl`: which model and settings made each, from which photograph.

It is what an interrupted prediction goes on by. The file is only ever added to: a line that names a model and its
settings, then one line for each mask that it made, written once the mask lies in its place. A mask is kept where its
last line is below the same model and settings, names the same content of the photograph, and the mask file is what it
was then. A line that a kill cut is no line. The existence of a file says nothing.

`maskwright evaluate` reads here whose masks it judges.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from maskwright.data.examining.findings import some
from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.scan import threaded
from maskwright.data.trust.artefacts import Damage, misfit, parse_json
from maskwright.data.trust.files import disk_error
from maskwright.errors import MaskwrightError
from maskwright.models.segmenter import Segmenter
from maskwright.predict.outputs import Outputs

RECORD = "predicted.jsonl"
HEAD = {"model": {"key": str, "method?": str, "data?": (str, None), "file?": (str, None)}, "settings": dict}
LINE = {"name": str, "source": str, "files": {str: str}, "only": ([int], None), "pixels": {str: int}}


@dataclass
class Made:
    """What the record says of one mask: the place of its model's line, and its own line."""

    head: int
    line: Mapping[str, Any]


@dataclass
class Record:
    """What lies in a folder of predictions.

    Attributes:
        out: the folder.
        heads: models with their settings, in the order of the file.
        made: the last line of each mask, by the image's name.
        whole: whether the file ends with its last line.
    """

    out: Path
    heads: list[Mapping[str, Any]] = field(default_factory=list)
    made: dict[str, Made] = field(default_factory=dict)
    whole: bool = True

    @classmethod
    def read(cls, out: Path) -> Record:
        """That of a folder; empty where there is none. What is damaged counts as not written."""
        found = cls(out)
        try:
            text = (out / RECORD).read_bytes()
        except OSError:
            return found
        found.whole = not text or text.endswith(b"\n")
        known = False
        for piece in text.split(b"\n"):
            try:
                line = parse_json(piece)
            except Damage:
                continue
            if not misfit(line, HEAD):
                known = True
                found.heads.append(line)
            elif known and not misfit(line, LINE):
                found.made[line["name"]] = Made(len(found.heads) - 1, line)
            elif isinstance(line, dict) and "model" in line:
                known = False  # of another version: whose masks follow is not known
        return found

    def changed(self, data: Dataset, outputs: Outputs) -> list[str]:
        """Names of the images whose mask is there and is not the one that was written: corrected by hand, perhaps."""
        names = [name for name in data.names if name in self.made]

        def is_changed(name: str) -> bool:
            mask = outputs.files(name)[0]
            then = self.made[name].line["files"].get(_relative(mask, self.out))
            return then is not None and mask.is_file() and file_hash(mask) != then

        return [name for name, odd in zip(names, threaded(is_changed, names)) if odd]

    def finished(
        self, head: Mapping[str, Any], data: Dataset, outputs: Outputs, only: Mapping[str, Sequence[int]]
    ) -> dict[str, Mapping[str, int]]:
        """{name: pixels of each class} of the images whose files are what this model with these settings makes."""
        same = {k for k, h in enumerate(self.heads) if _same(h, head)}
        names = data.names
        places = [i for i, name in enumerate(names) if name in self.made and self.made[name].head in same]

        def is_finished(i: int) -> bool:
            name = names[i]
            line = self.made[name].line
            wanted = {_relative(f, self.out): f for f in outputs.files(name) if f is not None}
            if line["only"] != _ids(only.get(name)) or not set(wanted) <= set(line["files"]):
                return False
            try:
                if data.content_hash(i) != line["source"]:
                    return False
            except MaskwrightError:
                return False
            return all(f.is_file() and file_hash(f) == line["files"][key] for key, f in wanted.items())

        good = threaded(is_finished, places)
        return {names[i]: self.made[names[i]].line["pixels"] for i in places if next(good)}

    def other(self, head: Mapping[str, Any], names: Sequence[str]) -> str:
        """What to say of masks of these images that something else made; empty where there are none."""
        odd = [self.made[n] for n in names if n in self.made and not _same(self.heads[self.made[n].head], head)]
        if not odd:
            return ""
        model = head["model"]["key"] != self.heads[odd[-1].head]["model"]["key"]
        made = "another model" if model else "other settings (" + _differences(self.heads[odd[-1].head], head) + ")"
        return f"{len(odd)} masks in {self.out} were made by {made}; they are made anew"

    def begin(self, head: Mapping[str, Any]) -> None:
        """Adds the line of a model with its settings, unless the last one is the same. Raises `MaskwrightError`."""
        if not self.heads or not _same(self.heads[-1], head):
            self._add(head)
            self.heads.append(head)

    def forget(self, name: str) -> None:
        """Says that the mask of an image is about to be replaced: a kill behind the new mask and before its line would
        else leave a mask that looks changed by hand. Raises `MaskwrightError`."""
        if name in self.made:
            self._add({"name": name, "source": "", "files": {}, "only": None, "pixels": {}})
            del self.made[name]

    def note(
        self, name: str, source: str, files: Sequence[Path | None], only: Sequence[int] | None, pixels: Sequence[int]
    ) -> None:
        """Adds the line of a mask that lies in its place. Raises `MaskwrightError`."""
        self._add(
            {
                "name": name,
                "source": source,
                "files": {_relative(f, self.out): file_hash(f) for f in files if f is not None},
                "only": _ids(only),
                "pixels": {str(c): int(n) for c, n in enumerate(pixels) if n},
            }
        )

    def _add(self, line: Mapping[str, Any]) -> None:
        path = self.out / RECORD
        text = ("" if self.whole else "\n") + json.dumps(line) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise disk_error(error, path) from error
        self.whole = True


def changed_error(out: Path, names: Sequence[str]) -> MaskwrightError:
    """That masks would be written over which somebody changed."""
    return MaskwrightError(
        f"{len(names)} masks in {out} were changed since they were predicted ({some(names)})",
        "the masks as they were written, or a folder without them",
        "choose another --out, or add --anew to write over them",
    )


def head_of(segmenter: Any, settings: Mapping[str, Any], origin: Path | None) -> dict[str, Any]:
    """The line of a model and its settings.

    Args:
        segmenter: the network with its `classes`, `preprocess` and `extra`.
        settings: JSON values that the masks depend on.
        origin: the model's file, if it has one.
    """
    told = {"key": model_key(segmenter), "method": segmenter.method, "data": segmenter.extra.get("data")}
    told["file"] = None if origin is None else os.path.abspath(origin)
    return {"model": told, "settings": {"maskwright": metadata.version("maskwright"), **settings}}


def model_key(segmenter: Any) -> str:
    """Hash (BLAKE2b, 128 bits, hexadecimal) over all of a segmenter that its masks depend on."""
    total = hashlib.blake2b(digest_size=16)
    kept = ("refine", "background", "image_size", "largest_size", "reading")
    told = {
        "network": segmenter.to_spec() if isinstance(segmenter, Segmenter) else type(segmenter).__name__,
        "names": list(segmenter.classes.names),
        "colors": segmenter.classes.colors.tolist(),
        "preprocess": segmenter.preprocess.to_json(),
        "extra": {key: segmenter.extra.get(key) for key in kept},
    }
    total.update(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(segmenter.state_dict().items()):
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            total.update(flat.view(torch.uint8).numpy())
    return total.hexdigest()


def file_hash(path: Path) -> str:
    """Hash (BLAKE2b, 128 bits, hexadecimal) of a file; empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""


def _same(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    return one["model"]["key"] == two["model"]["key"] and one["settings"] == json.loads(json.dumps(two["settings"]))


def _differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    a, b = one["settings"], json.loads(json.dumps(two["settings"]))
    return ", ".join(key for key in sorted({*a, *b}) if a.get(key) != b.get(key))


def _ids(only: Sequence[int] | None) -> list[int] | None:
    return None if only is None else sorted(int(c) for c in set(only))


def _relative(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix()

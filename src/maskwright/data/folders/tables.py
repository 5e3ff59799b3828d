"""The text files of a dataset folder: tags, captions, and lists of names."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from maskwright.data.folders.names import meant, written
from maskwright.data.folders.scan import same_form
from maskwright.errors import MaskwrightError


def read_text(path: str | os.PathLike[str]) -> str:
    """Text of a UTF-8 file, byte order mark removed (UTF-16 with a mark is read too, as some spreadsheets
    write it).

    Raises:
        MaskwrightError: the file is missing, unreadable, or not text.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MaskwrightError(f"cannot read {path}: {reason}", "a text file", "check the name") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise MaskwrightError(
            f"{path} is not UTF-8 text (byte {error.start})", "text", "save it again as UTF-8"
        ) from error
    if "\0" in text:
        raise MaskwrightError(f"{path} is not text: it has zero bytes", "text", "save it again as UTF-8")
    return text


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Lines of a text file, with any kind of line end, the last with or without one. Raises as
    `read_text`."""
    return read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of a list file (a split): one a line, surrounding blanks removed, blank lines skipped.

    A line in double quotes is a JSON string, which holds names that no line could (`data.folders.names`).

    Raises:
        MaskwrightError: as `read_text`.
    """
    return [meant(line.strip()) for line in read_lines(path) if line.strip()]


def _rows(path: Path, column: str) -> list[tuple[str, list[str]]]:
    """Rows after the header as (name, other cells)."""
    expected = f"a header line name,{column}"
    lines = [f"{line}\n" for line in read_lines(path)]
    _check_quotes(path, lines)
    try:
        rows = [row for row in csv.reader(lines, skipinitialspace=True) if any(c.strip() for c in row)]
    except csv.Error as error:
        raise MaskwrightError(f"{path} is not a table: {error}", expected, "save it again as CSV") from error
    if not rows:
        raise MaskwrightError(f"{path} is empty", expected, "fill it in or delete it")
    head = [cell.strip().lower() for cell in rows[0]]
    if head[0] != "name" or len(head) < 2 or head[1] not in (column, column.rstrip("s")):
        shown = ",".join(rows[0])[:60]
        first = rows[0][0]
        mark = next((m for m in (";", "\t") if m in first and first.partition(m)[0].strip().lower() == "name"), "")
        if mark:  # as spreadsheets of some countries write it
            between = "semicolons" if mark == ";" else "tabulators"
            raise MaskwrightError(
                f"{path} begins with {shown!r}: its columns are separated by {between}",
                f"commas: {expected}, and several tags of an image joined by semicolons"
                if column == "tags"
                else f"commas: {expected}",
                "save it again as CSV with commas",
            )
        raise MaskwrightError(f"{path} begins with {shown!r}", expected, "add the header as its first line")
    return [(row[0].strip(), [" ".join(c.split("\n")) for c in row[1:]]) for row in rows[1:] if row[0].strip()]


def _check_quotes(path: Path, lines: Sequence[str]) -> None:
    """Refuses a table in which a quote without an end takes the lines behind it for its cell."""
    reader = csv.reader(lines, skipinitialspace=True, strict=True)
    begins = 1
    try:
        for _ in reader:
            begins = reader.line_num + 1
    except csv.Error as error:
        behind = sum(bool(line.strip()) for line in lines[begins:])
        if "unexpected end" in str(error) and behind:
            raise MaskwrightError(
                f"{path} has a quote on line {begins} that does not end, so the {behind} lines behind it are one cell",
                "quotes around a whole cell, and two for one inside it", "close it or take it out",
            ) from error  # fmt: skip


def read_tags(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Reads `tags.csv` (header `name,tags`; tags separated by `;`).

    Several rows of one image are joined; repeated tags of an image are kept once, in order.

    Returns:
        {name as written: tags}; an image whose row has no tag has an empty tuple ("none of the classes").

    Raises:
        MaskwrightError: the file is unreadable or has no header.
    """
    found: dict[str, dict[str, None]] = {}
    for name, cells in _rows(Path(path), "tags"):
        tags = found.setdefault(name, {})
        for tag in ";".join(cells).split(";"):
            if tag.strip():
                tags[tag.strip()] = None
    return {name: tuple(tags) for name, tags in found.items()}


def read_captions(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Reads `captions.csv` (header `name,caption`; several rows an image allowed).

    A caption with commas that is not quoted is put together again.

    Returns:
        {name as written: captions in the order of the rows}.

    Raises:
        MaskwrightError: the file is unreadable or has no header.
    """
    found: dict[str, list[str]] = {}
    for name, cells in _rows(Path(path), "caption"):
        caption = ", ".join(cell.strip() for cell in cells).strip().rstrip(",").rstrip()
        if caption:
            found.setdefault(name, []).append(caption)
    return {name: tuple(captions) for name, captions in found.items()}


CITYSCAPES = "_leftImg8bit"
"""What the names of Cityscapes' files end in, which its images' names here do without."""


class NameIndex:
    """Finds the image that a line of a list or table means.

    A line may carry the image's suffix, a leading `images/`, or several columns of which the first is the
    image (as the list files of semi-supervised benchmarks do); where folders are nested, the last part alone
    is enough if only one image has it.

    Args:
        names: names of the images, relative without suffix, with "/" between folders.
        suffixes: suffixes that a line may carry, lower case with the dot.
    """

    def __init__(self, names: Iterable[str], suffixes: Iterable[str]) -> None:
        # By the one form in which names are compared; what is found keeps the form of the image's file.
        self._names: dict[str, str] = {}
        self._suffixes = frozenset(suffixes)
        self._last: dict[str, str | None] = {}
        for name in names:
            form = same_form(name)
            if self._names.setdefault(form, name) != name:
                continue
            last = form.rpartition("/")[2]
            self._last[last] = None if self._last.get(last, form) != form else form

    def find(self, line: str) -> str | None:
        """Name of the image that `line` means, or None."""
        for exact in map(same_form, (line, line.strip(), meant(line.strip()))):
            if exact in self._names:
                return self._names[exact]
        line = same_form(line.strip())
        for text in (line, line.split()[0] if line.split() else ""):
            bare = self._bare(text)
            for name in dict.fromkeys((bare, bare.removesuffix(CITYSCAPES))):
                if (found := self._named(name)) is not None:
                    return self._names[found]
        return None

    def _named(self, name: str) -> str | None:
        """The image of a name without suffix, which folders may stand before."""
        for candidate in (name, name.removeprefix("images/"), name.rpartition("/")[2]):
            if candidate in self._names:
                return candidate
        folder, _, last = name.rpartition("/")
        unique = self._last.get(last)
        # Of a longer path all but the first part (JPEGImages/) must agree.
        rest = folder.partition("/")[2]
        fits = unique is not None and (not folder or (rest and f"/{unique}".endswith(f"/{rest}/{last}")))
        return unique if fits else None

    def _bare(self, text: str) -> str:
        name = text.replace("\\", "/").removeprefix("./").lstrip("/")
        stem, dot, suffix = name.rpartition(".")
        return stem if dot and f".{suffix.lower()}" in self._suffixes else name


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV table whose text no spreadsheet takes for a formula; `read_csv` gives the same texts back.

    Args:
        header: names of the columns.
        rows: a cell for each; text is written by `written`, anything else as `str` gives it.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([written(cell, spreadsheet=True) if isinstance(cell, str) else str(cell) for cell in row])
    return out.getvalue()


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Rows of a table that `csv_text` made, each {column: text}, names as they are.

    Raises:
        MaskwrightError: the file is missing or not text.
    """
    return [{key: meant(cell) for key, cell in row.items()} for row in csv.DictReader(io.StringIO(read_text(path)))]

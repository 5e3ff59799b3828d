"""Finding the files of a dataset folder: which lie where, what they are called, and which are no data at all.

Only regular files, and links to them, with names in UTF-8 count; whatever else lies there is named, never opened.
"""

from __future__ import annotations

import difflib
import errno
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from maskwright.data.trust.files import too_long
from maskwright.errors import MaskwrightError, shown

T = TypeVar("T")
R = TypeVar("R")

NOT_UTF8 = "its name is not UTF-8 text"
"""Why a file is left aside whose name cannot go into lists, tables and JSON."""
NOT_REGULAR = "not a regular file"
"""Why a FIFO, a socket or a device is left aside."""
NO_TARGET = "a link to nothing"
"""Why a broken link is left aside."""


def check_folder(root: Path) -> None:
    """Raises `MaskwrightError` if a folder is missing, a file, unreadable, empty, or has a name that is not UTF-8."""
    if not is_utf8(os.path.abspath(root)):
        raise MaskwrightError(f"the name of {root} is not UTF-8 text", "a folder of images", "rename the folder")
    try:
        with os.scandir(root) as entries:
            empty = next(entries, None) is None
    except FileNotFoundError:
        near = nearest(root.name, [p.name for p in root.parent.glob("*")] if root.parent.is_dir() else [])
        raise MaskwrightError(
            f"{root} does not exist",
            "a folder of images",
            f"did you mean {root.parent / near}?" if near else "",
        ) from None
    except NotADirectoryError:
        raise MaskwrightError(f"{root} is a file", "a folder of images", f"name its folder, {root.parent}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise too_long(root) from error
        reason = error.strerror or type(error).__name__
        raise MaskwrightError(f"cannot read {root}: {reason}", "a folder of images", "check its rights") from error
    if empty:
        raise MaskwrightError(f"{root} is empty", "a folder of images", "put some there or name another folder")


def is_utf8(name: str) -> bool:
    """Whether a file name can be written as UTF-8; names that the system gave in other bytes cannot."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def same_form(name: str) -> str:
    """A name in the one form (NFC) in which names are compared; some systems write accents as marks of their own."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class Folder:
    """A folder whose entries are read once, when first asked for; hidden ones are left out.

    Args:
        path: where it lies.
        known: folders that were met before by their real path, so that each is read once whatever links lead to it.

    Attributes:
        files: names of the regular files, sorted.
        folders: the folders in it by name, sorted.
        odd: (name, reason) of what is neither.
    """

    def __init__(self, path: str | os.PathLike[str], known: dict[str, Folder] | None = None) -> None:
        self.path = os.fspath(path)
        self._known = {} if known is None else known
        self._known.setdefault(os.path.realpath(self.path), self)

    @property
    def files(self) -> list[str]:
        return self._entries[0]

    @property
    def folders(self) -> dict[str, Folder]:
        return self._entries[1]

    @property
    def odd(self) -> list[tuple[str, str]]:
        return self._entries[2]

    @cached_property
    def _entries(self) -> tuple[list[str], dict[str, Folder], list[tuple[str, str]]]:
        files: list[str] = []
        folders: list[str] = []
        odd: list[tuple[str, str]] = []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    kind = _kind(entry)
                    if not is_utf8(entry.name):
                        odd.append((shown(entry.name), NOT_UTF8))
                    elif kind == "file":
                        files.append(entry.name)
                    elif kind == "folder":
                        folders.append(entry.name)
                    else:
                        odd.append((entry.name, kind))
        except OSError as error:
            raise MaskwrightError(
                f"cannot read {self.path}: {error.strerror}", "a folder", "check its rights"
            ) from error
        return sorted(files), {name: self._below(name) for name in sorted(folders)}, sorted(odd)

    def _below(self, name: str) -> Folder:
        path = os.path.join(self.path, name)
        return self._known.get(os.path.realpath(path)) or Folder(path, self._known)

    @property
    def readable(self) -> bool:
        """Whether its entries can be listed."""
        try:
            return self._entries is not None
        except MaskwrightError:
            return False

    def walk(self, without: frozenset[str] = frozenset(), *, strict: bool = True) -> Iterator[tuple[str, Folder]]:
        """(path below this folder, folder), itself as "" first; a folder that several links lead to comes once.

        Args:
            without: paths below this folder that are left out with all in them.
            strict: raise `MaskwrightError` at a folder that cannot be listed; otherwise it is passed by.
        """
        seen: set[int] = set()
        waiting: list[tuple[str, Folder]] = [("", self)]
        while waiting:
            below, folder = waiting.pop()
            # A link may lead back up, or to where we were.
            if id(folder) in seen or not (strict or folder.readable):
                continue
            seen.add(id(folder))
            yield below, folder
            prefix = f"{below}/" if below else ""
            inner = ((prefix + name, f) for name, f in folder.folders.items() if prefix + name not in without)
            waiting += reversed(list(inner))

    def find(self, below: str) -> Folder | None:
        """The folder at a path below this one, or None."""
        folder: Folder | None = self
        for part in filter(None, below.split("/")):
            folder = folder.folders.get(part) if folder is not None else None
        return folder


def _kind(entry: os.DirEntry[str]) -> str:
    """ "file", "folder", or why it is neither."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
    except OSError as error:
        return error.strerror or "cannot be read"
    return NO_TARGET if entry.is_symlink() and not os.path.exists(entry.path) else NOT_REGULAR


@dataclass
class Names:
    """The files of some suffixes below a folder.

    Attributes:
        found: {name: file} sorted by name, which is the path below the folder without suffix.
        taken: (path below, reason) of files whose name another one has.
        other: paths below of files of other suffixes.
        odd: (path below, reason) of what is no regular file, or has a name that is not UTF-8.
    """

    found: dict[str, Path] = field(default_factory=dict)
    taken: list[tuple[str, str]] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)


def names_below(
    folder: Folder, suffixes: frozenset[str], order: Sequence[str] = (), without: frozenset[str] = frozenset()
) -> Names:
    """The files of these suffixes below a folder.

    Names that differ in their Unicode form only are the same name.

    Args:
        folder: where to look.
        suffixes: lower case, with the dot.
        order: suffixes by falling precedence where files share a name; otherwise the first by file name counts.
        without: as for `Folder.walk`.
    """
    names = Names()
    forms: dict[str, str] = {}
    for below, place in folder.walk(without):
        prefix = f"{below}/" if below else ""
        base = Path(folder.path, below)
        names.odd += [(prefix + name, reason) for name, reason in place.odd]
        for file in sorted(place.files, key=lambda f: (_rank(f, order), f)) if order else place.files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() not in suffixes:
                names.other.append(prefix + file)
                continue
            name = prefix + stem
            first = name if name in names.found else forms.get(same_form(name)) if not name.isascii() else None
            if first is not None:
                same = "the same name" if first == name else "the same name in another Unicode form"
                names.taken.append((prefix + file, f"{names.found[first].name} has {same}"))
                continue
            names.found[name] = base / file
            if not name.isascii():
                forms[same_form(name)] = name
    names.found = dict(sorted(names.found.items()))
    return names


def _rank(file: str, order: Sequence[str]) -> int:
    suffix = os.path.splitext(file)[1].lower()
    return order.index(suffix) if suffix in order else len(order)


def odd_below(root: Path) -> list[tuple[str, str]]:
    """(path below, reason) of what lies below a folder and is no regular file with a name in UTF-8."""
    found: list[tuple[str, str]] = []
    for below, folder in Folder(root).walk(strict=False):
        found += [(f"{below}/{name}" if below else name, reason) for name, reason in folder.odd]
    return found


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a regular file."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def nearest(name: str, options: Sequence[str]) -> str | None:
    """The option most like `name`, or None."""
    # Comparing a name with a million others takes minutes; the first ten thousand are enough for advice.
    close = difflib.get_close_matches(name, options[:10_000], n=1, cutoff=0.4)
    return close[0] if close else None


def threaded(function: Callable[[T], R], values: Sequence[T], block: int = 256) -> Iterator[R]:
    """Maps over values in a few threads, results in order; decoders release the interpreter lock.

    Args:
        function: what to do with each value.
        values: the values.
        block: how many are under way at most, so that a million images take no memory and an interrupt stops
            soon.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(values), block):
            yield from pool.map(function, values[start : start + block])

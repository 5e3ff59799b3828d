"""Writing files so that a crash, a full disk or an interrupt never costs what was there before.

Everything is written beside its target under a temporary name and renamed into place once it is complete and
on the disk. A reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from maskwright.errors import MaskwrightError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
NAME_BYTES = 255
"""Bytes of one name in a folder at most: the limit of the file systems in use. It is no property of this machine's
disk, so that every reader finds what a writer wrote elsewhere."""
PATH_BYTES = 4095
"""Bytes of a whole path at most, as the system takes it."""
_MARK = 16
"""Hexadecimal digits that tell shortened names apart."""
_HOST = hashlib.blake2b(platform.node().encode("utf-8", "replace"), digest_size=4).hexdigest()
_TEMPORARY = re.compile(rf"\..*\.(\d+)-{_HOST}[0-9a-f]{{8}}\.tmp[^/]*", re.DOTALL)


def file_for(folder: str | os.PathLike[str], name: str, suffix: str) -> Path:
    """The file of an image in a folder of such files: `FOLDER/NAME` + suffix wherever the system takes that.

    A part of the name that would have more than `NAME_BYTES` bytes is cut between two characters, and a hash of the
    whole part follows: the same name gives the same file each time. Writers and readers both ask here.

    Args:
        folder: where the files lie.
        name: of the image, with "/" between folders.
        suffix: of the file, with its dot.

    Raises:
        MaskwrightError: the name leads out of the folder.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or (os.sep != "/" and os.sep in name):
        raise MaskwrightError(
            f"an image called {name!r}", "a name below the folder of the images", "give the image another name"
        )
    return Path(folder, *(_fitting(part) for part in parts[:-1]), _fitting(parts[-1], suffix))


def _fitting(part: str, suffix: str = "") -> str:
    """One name that the system takes: the part itself with the suffix, else cut and marked with its hash."""
    encoded, end = os.fsencode(part), os.fsencode(suffix)
    if len(encoded) + len(end) <= NAME_BYTES:
        return part + suffix
    mark = hashlib.blake2b(encoded, digest_size=_MARK // 2).hexdigest()
    return f"{_cut(part, NAME_BYTES - len(end) - _MARK - 1)}~{mark}{suffix}"


def _cut(text: str, room: int) -> str:
    """The longest beginning of a text that has no more than `room` bytes and splits no character."""
    while len(os.fsencode(text)) > room:
        # A character has four bytes at most, so that a few rounds are enough however long the text is.
        text = text[: max(0, len(text) - max(1, (len(os.fsencode(text)) - room) // 4))]
    return text


def disk_error(error: OSError, path: Path) -> MaskwrightError:
    """The one-line error for a write that the system refused.

    Args:
        error: what the system said.
        path: the file that was to be written.
    """
    if error.errno in _FULL:
        return MaskwrightError(f"no space left to write {path}", "", "free some space and run the command again")
    if error.errno in _FORBIDDEN:
        return MaskwrightError(
            f"not allowed to write {path}", "a folder that this user may write", "choose another folder"
        )
    if error.errno == errno.ENAMETOOLONG:
        return too_long(path)
    reason = error.strerror or type(error).__name__
    return MaskwrightError(f"cannot write {path}: {reason}", "a writable place", "choose another folder")


def too_long(path: Path) -> MaskwrightError:
    """The one-line error for a file whose path, or a name in it, has more bytes than the system takes."""
    whole = os.fspath(path)
    shown = whole if len(whole) <= 120 else f"{whole[:60]}...{whole[-40:]}"
    return MaskwrightError(
        f"the path {shown} of {len(os.fsencode(whole))} bytes is longer than this system takes",
        f"{PATH_BYTES} bytes in all and {NAME_BYTES} in each name, with room for a temporary name",
        "choose a folder with a shorter path",
    )


def temporary_beside(target: Path) -> Path:
    """A name that no other file has, in the same folder and with the same suffix, which tells who writes it.

    It has no more bytes than the system takes, however long the target's own name is.
    """
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= 32 else ""
    end = f".{os.getpid()}-{_HOST}{secrets.token_hex(4)}.tmp{suffix}"
    room = min(NAME_BYTES, max(0, PATH_BYTES - len(os.fsencode(target.parent)) - 1)) - len(os.fsencode(end)) - 1
    return target.with_name(f".{_cut(target.stem, min(80, max(0, room)))}{end}")


def sweep(folders: Iterable[Path], *, deep: bool = False) -> int:
    """Removes temporary files that processes of this machine left when they were killed; others are left alone.

    Args:
        folders: missing ones are left out.
        deep: look in the folders below them too.

    Returns:
        How many were removed.
    """
    removed = 0
    places = [place for folder in folders for place in ((Path(p) for p, _, _ in os.walk(folder)) if deep else [folder])]
    for folder in dict.fromkeys(places):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                writer = _TEMPORARY.fullmatch(entry.name)
                if writer is not None and not is_running(int(writer[1])):
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
                        removed += 1
    return removed


def is_running(pid: int) -> bool:
    """Whether there is a process of this number on this machine; True where the system cannot be asked."""
    if os.name != "posix":  # elsewhere the question itself would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Gives a temporary path beside `path`; when the block ends well, what was written there becomes `path`.

    If the block raises, the temporary file is removed and `path` stays as it was. Parent folders are made.

    Args:
        path: the file to write.
        durable: wait until the bytes are on the disk before the rename. False suits thousands of small files
            that can be made again (masks): they may be lost in a power cut, but are never half written after
            a crash.

    Yields:
        The temporary path, in the same folder, with the same suffix (writers that go by the suffix work).

    Raises:
        MaskwrightError: the disk is full, or the place cannot be written.
    """
    target = Path(path)
    beside = temporary_beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        if durable:
            _sync(beside)
        os.replace(beside, target)
        if durable:
            _sync_folder(target.parent)
    except OSError as error:
        # An OSError of the block that is not about our file (a missing input) must keep its own meaning.
        named = getattr(error, "filename", None)
        if named is not None and Path(os.fsdecode(named)) not in (beside, target, *target.parents):
            raise
        raise disk_error(error, target) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Writes `data` to `path` atomically. Raises `MaskwrightError` as `atomic_write` does."""
    with atomic_write(path, durable=durable) as beside, open(beside, "wb") as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str, *, durable: bool = True) -> None:
    """Writes `text` as UTF-8 with plain newlines to `path` atomically. Raises as `atomic_write` does.

    File names that are not UTF-8, as the system gave them, keep their bytes.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"), durable=durable)


def write_json(path: str | os.PathLike[str], value: Any, *, durable: bool = True) -> None:
    """Writes `value` as indented JSON to `path` atomically. Raises as `atomic_write` does.

    NaN and infinities are refused with `ValueError`, because they are not JSON and other readers stop at
    them.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        text = json.dumps(value, indent=2, allow_nan=False)  # file names that are not UTF-8 have no other form
    write_text(path, text + "\n", durable=durable)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    # Makes the rename itself survive a power cut; some systems (Windows) cannot open a folder.
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def folder_beside(target: Path, prefix: str) -> Iterator[Path]:
    """A folder beside `target` to write into; it becomes `target` at the end, and is gone where that is not reached.

    Args:
        target: the new folder, absent or empty.
        prefix: of the name that it has meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        if target.is_dir():
            target.rmdir()
        work.replace(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise

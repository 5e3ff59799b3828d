"""Writing files so that a crash, a full disk or an interrupt never costs what was there before.

Everything is written beside its target under a temporary name and renamed into place once it is complete and
on the disk. A reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskwright.errors import MaskwrightError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


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
    reason = error.strerror or type(error).__name__
    return MaskwrightError(f"cannot write {path}: {reason}", "a writable place", "choose another folder")


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
    beside = target.with_name(f".{target.stem[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp{target.suffix}")
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
        if named is not None and Path(os.fsdecode(named)) not in (beside, target, target.parent):
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
    """Writes `text` as UTF-8 with plain newlines to `path` atomically. Raises as `atomic_write` does."""
    write_bytes(path, text.encode("utf-8"), durable=durable)


def write_json(path: str | os.PathLike[str], value: Any, *, durable: bool = True) -> None:
    """Writes `value` as indented JSON to `path` atomically. Raises as `atomic_write` does.

    NaN and infinities are refused with `ValueError`, because they are not JSON and other readers stop at
    them.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", durable=durable)


SCRATCH = re.compile(r"\..*\.(\d+)-[0-9a-f]{8}\.tmp(\.[^.]*)?", re.DOTALL)
"""Names of temporary files of `atomic_write`, and of those who write beside like it; the number is the process."""


def collect_scratch(folder: str | os.PathLike[str], *, least_age: float = 60.0, deep: bool = True) -> int:
    """Removes the temporary files that killed processes left: never one of a process that lives.

    Args:
        folder: where to look; a missing one is empty.
        least_age: seconds since its last change; younger ones may be another machine's, whose processes are not seen.
        deep: in the folders below it too.

    Returns:
        How many were removed.
    """
    removed = 0
    for place, folders, names in os.walk(folder):
        if not deep:
            folders.clear()
        for name in names:
            found = SCRATCH.fullmatch(name) if name.startswith(".") else None
            if found is None or _lives(int(found[1])):
                continue
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):
                if time.time() - os.lstat(path).st_mtime >= least_age:
                    os.unlink(path)
                    removed += 1
    return removed


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True


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

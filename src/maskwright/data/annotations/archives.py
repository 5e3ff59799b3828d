"""Archives of annotations: unpacked where facts about files are kept, once, and never anywhere else."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path

from maskwright.data.trust.files import disk_error
from maskwright.data.trust.remembered import cache_root
from maskwright.errors import MaskwrightError

MOST_FILES = 1_000_000
"""Files of an archive at most."""
MOST_GROWTH = 200
"""How many times larger than the archive its files may be, all together; photographs hardly grow, texts tenfold."""
FREE_BYTES = 1 << 26
"""Up to so many bytes growth is no matter."""


def is_archive(path: Path) -> bool:
    """Whether a path is a ZIP file, by its name and its beginning."""
    try:
        return path.suffix.lower() == ".zip" and path.is_file()
    except OSError:
        return False


def unpacked(path: Path) -> Path:
    """The folder that an archive was unpacked into; it is kept and used again while the archive is unchanged.

    Raises:
        MaskwrightError: no ZIP file, damaged, encrypted, a path that leads out of it, a link, or a bomb.
    """
    expected, repair = "a ZIP file of annotations", "export it again"
    try:
        state = path.stat()
        key = f"{os.path.realpath(path)}\0{state.st_size}\0{state.st_mtime_ns}"
        folder = cache_root() / "unpacked" / hashlib.blake2b(os.fsencode(key), digest_size=12).hexdigest()
        if folder.is_dir():
            return folder
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check(path, members, state.st_size)
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=".zip-", dir=folder.parent))
            try:
                for member in members:
                    target = work.joinpath(*member.filename.split("/"))
                    if member.is_dir():
                        target.mkdir(parents=True, exist_ok=True)
                        continue
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as file, open(target, "xb") as out:
                        shutil.copyfileobj(file, out, 1 << 20)
                work.rename(folder)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                if folder.is_dir():  # another process was faster
                    return folder
                raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise MaskwrightError(f"{path} cannot be unpacked ({str(error)[:100]})", expected, repair) from None
    except FileExistsError as error:
        raise MaskwrightError(f"{path} holds a file twice ({error.filename})", expected, repair) from None
    except OSError as error:
        if error.filename is not None and os.fsdecode(error.filename) == os.fspath(path):
            raise MaskwrightError(f"cannot read {path}: {error.strerror}", expected, "check the name") from None
        raise disk_error(error, cache_root()) from error
    return folder


def _check(path: Path, members: list[zipfile.ZipInfo], size: int) -> None:
    total = 0
    for member in members:
        parts = member.filename.rstrip("/").split("/")
        bad = not member.filename or "\0" in member.filename or "\\" in member.filename or ":" in parts[0]
        if bad or any(part in ("", ".", "..") for part in parts):
            raise MaskwrightError(
                f"{path} holds {member.filename!r}, which leads out of it", "paths below the archive", "do not trust it"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise MaskwrightError(f"{path} holds the link {member.filename!r}", "files", "do not trust it")
        total += member.file_size
    if len(members) > MOST_FILES:
        raise MaskwrightError(f"{path} holds {len(members)} files", f"at most {MOST_FILES}", "unpack it yourself")
    if total > max(FREE_BYTES, MOST_GROWTH * size):
        raise MaskwrightError(
            f"{path} of {size} bytes says that it unpacks to {total}",
            f"at most {MOST_GROWTH} times as many",
            "unpack it yourself and name the folder, if you trust it",
        )

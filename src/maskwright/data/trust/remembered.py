"""What was found out about files, kept on disk by their name, size and time, so that it is found out once.

Nothing here is needed: where the cache cannot be read or written, everything is found out anew, without a word.
A damaged file of it is dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import zlib
from pathlib import Path
from typing import Any

from maskwright.data.trust.files import write_bytes
from maskwright.errors import MaskwrightError


def cache_root() -> Path:
    """Where things that can be made again are kept: MASKWRIGHT_CACHE, else the user's cache folder.

    Where the system knows no home folder it is a folder of this user below the one for temporary files.
    """
    named = os.environ.get("MASKWRIGHT_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "maskwright"
    try:
        return Path.home() / ".cache" / "maskwright"
    except RuntimeError:  # no HOME, and no entry for this user
        return Path(tempfile.gettempdir()) / f"maskwright-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


class Remembered:
    """JSON values by file, valid while the file's size and time are what they were.

    Safe for several threads. `save` writes what is new; two processes that save at once cost a repeat, no error.

    Args:
        kind: what is remembered, with the version of its format ("masks-1").
        root: the folder whose files it is about; one file of the cache a folder and kind.
    """

    def __init__(self, kind: str, root: str | os.PathLike[str]) -> None:
        name = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=12).hexdigest()
        self.path = cache_root() / "files" / f"{kind}-{name}.json"
        self._lock = threading.Lock()
        self._changed = False
        self._values: dict[str, list[Any]] = self._load()

    def get(self, path: str | os.PathLike[str], state: os.stat_result) -> Any:
        """What is known of a file in this state, or None."""
        found = self._values.get(os.fspath(path))
        if found is None or found[:2] != [state.st_size, state.st_mtime_ns]:
            return None
        return found[2]

    def put(self, path: str | os.PathLike[str], state: os.stat_result, value: Any) -> None:
        """Remembers a JSON value of a file in this state."""
        with self._lock:
            self._values[os.fspath(path)] = [state.st_size, state.st_mtime_ns, value]
            self._changed = True

    def save(self) -> None:
        """Writes what is new; a cache that cannot be written is left as it is."""
        if not self._changed:
            return
        with self._lock:
            text = json.dumps(self._values, ensure_ascii=True, separators=(",", ":")).encode()
            self._changed = False
        with contextlib.suppress(MaskwrightError, OSError):
            write_bytes(self.path, b"%08x\n" % zlib.crc32(text) + text, durable=False)

    def _load(self) -> dict[str, list[Any]]:
        try:
            data = self.path.read_bytes()
            if data[:9] != b"%08x\n" % zlib.crc32(data[9:]):
                return {}
            values = json.loads(data[9:])
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

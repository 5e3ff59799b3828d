"""The label ledger: which labels were read, and what for, so that "unsupervised" is a measured statement.

Every way to a label (mask, tag, caption) goes through a `Dataset`, which notes it here. A run writes the
counts into its record.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from maskwright.data.trust.artefacts import misfit

PURPOSES = ("train", "select", "evaluate")
"""What labels are read for: to fit, to choose among fits, to judge."""
KINDS = ("masks", "tags", "captions")
"""What labels photographs have."""
NAMES = "names"
"""Names that clusters were given, a label a cluster; counted where there are any."""

T = TypeVar("T")
Notes = list[tuple["Ledger", str, str, str | None]]
"""Labels that were read and are not yet noted: ledger, kind, image, and purpose where the reader set one."""
_thread = threading.local()


@contextlib.contextmanager
def set_aside() -> Iterator[Notes]:
    """Labels that this thread reads inside the block are listed, and in no ledger until `note_all` puts them there.

    For what is read ahead and perhaps never used. Threads that the block starts note as ever.
    """
    outer = getattr(_thread, "notes", None)
    _thread.notes = found = Notes()
    try:
        yield found
    finally:
        _thread.notes = outer


def note_all(notes: Notes) -> None:
    """Notes labels that were set aside; those whose reader set no purpose for that of this thread, now."""
    for ledger, kind, name, purpose in notes:
        ledger.note(kind, name, purpose)


class Ledger:
    """Notes which images' labels were read, and what for.

    A purpose set with `purpose` holds in the thread that set it, and in other threads (loaders) as long as
    they set none of their own. A loader that reads on for training while another thread evaluates sets its
    own.
    """

    def __init__(self) -> None:
        self._read: dict[str, dict[str, set[str]]] = _nothing()
        self._lock = threading.Lock()
        self._common: list[str] = []
        self._own = threading.local()

    @property
    def current(self) -> str:
        """What labels read now would be noted for."""
        own = getattr(self._own, "stack", None)
        if own:
            return own[-1]
        common = self._common
        return common[-1] if common else "train"

    @contextlib.contextmanager
    def purpose(self, name: str) -> Iterator[Ledger]:
        """Labels read inside the block are noted for `name`: "train", "select" or "evaluate".

        Raises:
            ValueError: another name.
        """
        if name not in PURPOSES:
            raise ValueError(f"purpose {name!r}, expected one of {', '.join(PURPOSES)}")
        stack = self._own.__dict__.setdefault("stack", [])
        stack.append(name)
        shared = threading.current_thread() is threading.main_thread()
        if shared:
            self._common.append(name)
        try:
            yield self
        finally:
            stack.pop()
            if shared:
                self._common.pop()

    def note(self, kind: str, name: str, purpose: str | None = None) -> None:
        """Notes that a label of image `name` was read.

        Args:
            kind: "masks", "tags", "captions" or "names".
            name: the image; of names, the cluster.
            purpose: what for; the current purpose if None.

        Raises:
            ValueError: another kind or purpose.
        """
        what_for = purpose or self.current
        if kind not in (*KINDS, NAMES) or what_for not in PURPOSES:
            raise ValueError(f"label {kind!r} for {what_for!r}, expected one of {KINDS} for one of {PURPOSES}")
        if (aside := getattr(_thread, "notes", None)) is not None:
            own = getattr(self._own, "stack", None)
            aside.append((self, kind, name, purpose or (own[-1] if own else None)))
            return
        with self._lock:
            self._read[what_for][kind].add(name)

    def counts(self) -> dict[str, dict[str, int]]:
        """Distinct images whose labels were read, {purpose: {kind: n}}, every purpose and kind of `KINDS` present; with
        names, of clusters, where any were read."""
        with self._lock:
            return {p: _told(kinds, len) for p, kinds in self._read.items()}

    def names(self, purpose: str, kind: str) -> list[str]:
        """Names of the images whose labels of `kind` were read for `purpose`, sorted."""
        with self._lock:
            return sorted(self._read[purpose][kind])

    def merge(self, other: Ledger | dict[str, Any], prefix: str = "") -> None:
        """Adds what another ledger (or its state) noted: of a worker, a process, or a second dataset.

        Args:
            other: the ledger or `state_dict` of it.
            prefix: put before its names, where two datasets may share names ("source/").

        Raises:
            ValueError: it is the state of no ledger; nothing is added.
        """
        state = other.state_dict() if isinstance(other, Ledger) else _checked(other)
        with self._lock:
            for purpose, kinds in state.items():
                for kind, names in kinds.items():
                    self._read[purpose][kind].update(prefix + name for name in names)

    def state_dict(self) -> dict[str, dict[str, list[str]]]:
        """All that was noted, as JSON values, sorted."""
        with self._lock:
            return {p: _told(kinds, sorted) for p, kinds in self._read.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces all that was noted by what `state_dict` gave. Raises `ValueError` as `merge` does."""
        fresh = _nothing()
        for purpose, kinds in _checked(state).items():
            for kind, names in kinds.items():
                fresh[purpose][kind].update(names)
        with self._lock:
            self._read = fresh

    def __getstate__(self) -> dict[str, Any]:
        return {"read": self.state_dict(), "purpose": self.current}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.load_state_dict(state["read"])
        # A worker process reads for the purpose it was started for.
        if state["purpose"] != "train":
            self._common.append(state["purpose"])

    def __repr__(self) -> str:
        said = [f"{p}: " + ", ".join(f"{n} {k}" for k, n in c.items() if n) for p, c in self.counts().items()]
        return f"Ledger({'; '.join(s for s in said if not s.endswith(': ')) or 'no labels read'})"


def _nothing() -> dict[str, dict[str, set[str]]]:
    return {p: {k: set() for k in (*KINDS, NAMES)} for p in PURPOSES}


def _told(kinds: Mapping[str, set[str]], what: Callable[[set[str]], T]) -> dict[str, T]:
    """Something of each kind's labels; of names only where there are any."""
    return {k: what(names) for k, names in kinds.items() if k != NAMES or names}


def _checked(state: Any) -> dict[str, dict[str, list[str]]]:
    """The state of a ledger, which may come from a file."""
    if told := misfit(state, {str: {str: [str]}}):
        raise ValueError(f"no state of a ledger: {told}")
    if odd := [k for p, kinds in state.items() for k in (p, *kinds) if k not in (*PURPOSES, *KINDS, NAMES)]:
        raise ValueError(f"no state of a ledger: {odd[0][:40]!r} is neither a purpose nor a kind of label")
    if any(p not in PURPOSES or not set(kinds) <= {*KINDS, NAMES} for p, kinds in state.items()):
        raise ValueError("no state of a ledger: purposes and kinds of labels are mixed up")
    return state

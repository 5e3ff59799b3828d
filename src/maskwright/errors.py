"""The one kind of error that a user sees: what was found, what was expected, how to mend it.

The command line prints it as one line and exits with code 2. Everything below the command line raises it where the
cause is the user's input; programming mistakes stay ordinary exceptions. `ops` does not import this: it raises
`ValueError`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# What a terminal would obey instead of showing it: control characters, marks that turn the direction of text, line
# separators, and the halves of a pair by which the system gives bytes that are not UTF-8.
UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def shown(text: str, *, lines: bool = False) -> str:
    r"""A name or sentence as a terminal may show it: what it would obey is spelled out (\x1b, \u202e, \xff).

    Args:
        text: it may hold file names as they came from the system.
        lines: keep line ends and tabulators, which are the text's own.
    """

    def spelled(match: re.Match[str]) -> str:
        character = match[0]
        if lines and character in "\n\t":
            return character
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
            return f"\\x{code - 0xDC00:02x}"
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")

    return UNSHOWN.sub(spelled, text)


_asked_to_stop: list[int] = []
_holding: list[bool] = []


def ask_to_stop(number: int) -> None:
    """Remembers that the process was asked to end, by a signal's number: libraries swallow interrupts at times."""
    _asked_to_stop.append(number)


def forget_stop() -> None:
    """What was asked was done, or belongs to an earlier command of the same process."""
    _asked_to_stop.clear()


def asked_to_stop() -> bool:
    """Whether the process was asked to end and still runs."""
    return bool(_asked_to_stop)


@contextmanager
def between_steps(saves: bool = True) -> Iterator[None]:
    """Inside, a request to end need not interrupt at once: the work soon asks `stop_if_asked`, where its state is
    whole.

    Args:
        saves: whether it is then saved, so that waiting is of use.
    """
    _holding.append(saves)
    try:
        yield
    finally:
        _holding.pop()


def may_wait() -> bool:
    """Whether a request to end may wait for `stop_if_asked`."""
    return bool(_holding and _holding[-1])


def stop_if_asked() -> None:
    """Raises `KeyboardInterrupt` where the process was asked to end and still runs; long work asks at each step."""
    if _asked_to_stop:
        forget_stop()
        raise KeyboardInterrupt


PART = 1500
"""Characters of each part of a message at most: longer than any path that people type, short enough for one look."""


class MaskwrightError(Exception):
    """Bad input, told in one line.

    Args:
        found: what there is, with its value ("photos/a.jpg has 0 bytes").
        expected: what there should be ("a JPEG or PNG image").
        repair: the command or change that mends it ("delete it or export it again").
    """

    def __init__(self, found: str, expected: str = "", repair: str = "") -> None:
        self.found, self.expected, self.repair = found, expected, repair
        parts = [found, f"expected {expected}" if expected else "", repair]
        super().__init__(shown("; ".join(_shortened(" ".join(p.split())) for p in parts if p)))


def _shortened(text: str) -> str:
    """A text whose middle is left out where it is longer than `PART`: values of a hostile file may be megabytes."""
    return text if len(text) <= PART else f"{text[: PART - 200]} ... {text[-195:]}"


def unknown(kind: str, name: str, options: Iterable[str]) -> MaskwrightError:
    """The error for a name that is not in a table: lists the table and offers the nearest match.

    Args:
        kind: what the name should name ("method", "backbone", "option").
        name: the name as the user gave it.
        options: the names that exist.
    """
    known = list(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    repair = f"did you mean {close[0]!r}?" if close else "choose one of those"
    return MaskwrightError(f"unknown {kind} {name!r}", f"one of {', '.join(known)}", repair)

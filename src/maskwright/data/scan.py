"""Finding the files of a dataset folder: which images and masks lie where, and what they are called."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from maskwright.data.masks import MASK_SUFFIXES
from maskwright.errors import MaskwrightError

T = TypeVar("T")
R = TypeVar("R")

RESERVED = frozenset({"masks", "splits"})
"""Folders in DATA that never hold photographs."""


def masks_below(root: Path) -> dict[str, Path]:
    """Mask files of a dataset folder by the name of their image; where several share it, PNG comes first."""
    folder = root / "masks"
    if not folder.is_dir():
        return {}
    names, _ = names_below(folder, frozenset(MASK_SUFFIXES), None, MASK_SUFFIXES)
    return names


def check_folder(root: Path) -> None:
    """Raises `MaskwrightError` if a folder is missing, a file, unreadable or empty."""
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
        reason = error.strerror or type(error).__name__
        raise MaskwrightError(f"cannot read {root}: {reason}", "a folder of images", "check its rights") from error
    if empty:
        raise MaskwrightError(f"{root} is empty", "a folder of images", "put some there or name another folder")


def images_folder(root: Path) -> tuple[Path, frozenset[str] | None]:
    """Where the images lie, and which folders to leave out below (None: look everywhere below)."""
    if (root / "images").is_dir():
        return root / "images", None
    return root, RESERVED


def names_below(
    folder: Path, suffixes: frozenset[str], leave_out: frozenset[str] | None, order: Sequence[str] = ()
) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """{name: file} below a folder, sorted by name, and (file name, reason) of files whose name is taken."""
    found: dict[str, Path] = {}
    taken: list[tuple[str, str]] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise MaskwrightError(f"cannot read {error.filename}: {error.strerror}", "a folder", "check its rights")

    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        top = leave_out is not None and place == str(folder)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (top and f in (leave_out or ())))
        below = os.path.relpath(place, folder).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        for file in sorted(files, key=lambda f: (_rank(f, order), f)):
            stem, suffix = os.path.splitext(file)
            if suffix.lower() not in suffixes or file.startswith("."):
                continue
            name = prefix + stem
            if name in found:
                taken.append((prefix + file, f"{found[name].name} has the same name"))
            else:
                found[name] = Path(place, file)
        if leave_out is not None and top and found:
            break  # images lie directly in DATA: what is in folders beside them (results, say) is not data
    return dict(sorted(found.items())), taken


def _rank(file: str, order: Sequence[str]) -> int:
    suffix = os.path.splitext(file)[1].lower()
    return order.index(suffix) if suffix in order else len(order)


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

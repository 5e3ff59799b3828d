"""Which photograph an annotation means: by its path below the photographs, never outside of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from maskwright.data.annotations.checks import Source
from maskwright.data.folders.scan import same_form
from maskwright.data.folders.tables import NameIndex
from maskwright.data.pictures.images import IMAGE_SUFFIXES


class Images:
    """The photographs of a folder, found by what annotations call them.

    Args:
        found: {name: file}.

    Attributes:
        found: the same.
        missing: what annotations called and is not there, in the order in which it was asked for.
    """

    def __init__(self, found: Mapping[str, Path]) -> None:
        self.found = dict(found)
        self.missing: list[str] = []
        self._index = NameIndex(self.found, IMAGE_SUFFIXES)
        self._files: dict[str, str] = {}
        for name, path in self.found.items():
            self._files[same_form(os.path.abspath(path))] = name

    def find(self, file: str, source: Source, *, strict: bool = True) -> str | None:
        """The name of the photograph that `file` means, None where it is not there (and noted in `missing`).

        Args:
            file: a path as the annotation has it: below the annotation's folder, or below the photographs', or the
                bare name where only one photograph has it.
            source: the annotation.
            strict: a path that is absolute or leads upwards is an error; otherwise its last part alone counts.

        Raises:
            MaskwrightError: a path that leads out of the folder.
        """
        plain = file.replace("\\\\", "/") if "/" not in file else file
        plain = plain.replace("\\", "/")
        leaves = plain.startswith("/") or ".." in plain.split("/") or plain[1:2] == ":" or "\0" in plain
        if leaves and strict:
            raise source.error(
                f"the image {file!r}, whose path leads out of the folder", "a path below the photographs"
            )
        if not leaves or "\0" not in plain:
            beside = same_form(os.path.normpath(os.path.join(os.path.abspath(source.path.parent), plain)))
            if beside in self._files:
                return self._files[beside]
        name = self._index.find(plain.rpartition("/")[2] if leaves else plain)
        if name is None:
            self.missing.append(file)
        return name

    def add(self, name: str, path: Path) -> None:
        """A photograph that lay inside an annotation file."""
        self.found[name] = path
        self._files[same_form(os.path.abspath(path))] = name

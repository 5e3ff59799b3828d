"""Which photographs a run saw, `RUN/images.json`: by name with a hash of their contents, a table for each stream.

A judge asks here whether a photograph was trained on. Contents decide where both sides know them, because folders of
different photographs share names such as 0001; elsewhere the name does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.scan import same_form
from maskwright.data.trust.artefacts import Damage, misfit, parse_json, read_record, write_record
from maskwright.errors import MaskwrightError

IMAGES = "images.json"
SHAPE = {"streams": {str: {str: str}}}
TARGET = "target"
"""The stream of a run's own data."""


def write_photographs(run: Path, streams: Mapping[str, Dataset]) -> None:
    """Writes the table of a run's photographs. Raises `MaskwrightError` where the folder cannot be written."""
    tables = {
        stream: {item.name: data.content_hash(i) for i, item in enumerate(data.items)}
        for stream, data in streams.items()
    }
    write_record(run / IMAGES, {"streams": tables})


@dataclass
class Photographs:
    """Those that a run saw.

    Attributes:
        run: its folder.
        digests: {hash of the contents: names}; empty of a run of earlier versions, which did not keep them.
        names: of all of them that are known.
        labelled: names of those whose masks were read for training or selection.
    """

    run: Path
    digests: dict[str, set[str]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    labelled: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, run: Path) -> Photographs:
        """Those of a run.

        Raises:
            MaskwrightError: the folder holds no run, or its records are damaged.
        """
        found = cls(run)
        if not (run / "run.json").is_file():
            raise MaskwrightError(f"{run} holds no run", "a folder with a run.json", "check the path")
        if (run / IMAGES).is_file():
            tables = read_record(run / IMAGES, SHAPE, what="the photographs of a run", repair="repeat the run")
            for stream, table in tables["streams"].items():
                prefix = "" if stream == TARGET else f"{stream}/"
                for name, digest in table.items():
                    found.digests.setdefault(digest, set()).add(prefix + name)
                    found.names.add(same_form(name))
        try:
            ledger = parse_json((run / "ledger.json").read_bytes())
        except (OSError, Damage):
            return found
        others = ledger.get("streams") if isinstance(ledger, dict) else None
        for stream, state in {"": ledger, **(others if isinstance(others, dict) else {})}.items():
            for purpose in ("train", "select"):
                read = state.get(purpose) if isinstance(state, dict) else None
                names = read.get("masks", []) if isinstance(read, dict) else []
                if misfit(names, [str]):
                    continue
                found.labelled |= {f"{stream}/{name}" if stream else name for name in names}
                found.names |= {same_form(name) for name in names}
        return found

    def seen(self, data: Dataset, i: int) -> str:
        """ "" where photograph `i` of a data set was not trained on, else "mask" if its mask was, else "photograph"."""
        item = data.items[i]
        if self.digests and item.image != item.mask:
            try:
                names = self.digests.get(data.content_hash(i), set())
            except MaskwrightError:
                return ""
        else:  # a bare folder of masks, or a run that kept no contents
            names = {item.name} if same_form(item.name) in self.names else set()
        if not names:
            return ""
        return "mask" if names & self.labelled else "photograph"

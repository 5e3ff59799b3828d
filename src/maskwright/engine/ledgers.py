"""The ledgers of a run, one a stream: saved and restored together, counted together and apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.data.trust.artefacts import parse_record, unreadable, write_record
from maskwright.data.trust.ledger import KINDS, PURPOSES, Ledger
from maskwright.engine.distributed import gather_objects

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset

TARGET = "target"
"""The stream that a run's own data is."""
STREAMS = "streams"
"""Where the state of the other streams' ledgers stands in that of all."""

Counts = dict[str, dict[str, int]]


class Ledgers:
    """What was read of each stream's labels.

    Args:
        ledgers: by the stream's name; `target` is among them, and no ledger stands for two streams.
    """

    def __init__(self, ledgers: Mapping[str, Ledger]) -> None:
        self.ledgers = dict(ledgers)

    @classmethod
    def of(cls, streams: Mapping[str, Dataset]) -> Ledgers:
        """Those of a run's data sets."""
        return cls({name: data.ledger for name, data in streams.items()})

    def by_stream(self) -> dict[str, Counts]:
        """{stream: {purpose: {kind: distinct images}}}."""
        return {name: ledger.counts() for name, ledger in self.ledgers.items()}

    def counts(self) -> Counts:
        """{purpose: {kind: distinct images}}, summed over the streams."""
        found = self.by_stream().values()
        kinds = {p: dict.fromkeys((*KINDS, *(k for counts in found for k in counts[p]))) for p in PURPOSES}
        return {p: {k: sum(counts[p].get(k, 0) for counts in found) for k in kinds[p]} for p in PURPOSES}

    def record(self) -> dict[str, Any]:
        """What a run's record tells: the sum, and each stream's share where there is more than one."""
        told: dict[str, Any] = {"labels_read": self.counts()}
        if len(self.ledgers) > 1:
            told["labels_read_by_stream"] = self.by_stream()
        return told

    def state_dict(self) -> dict[str, Any]:
        """The state of the target's ledger, with those of the other streams below `streams` where there are any."""
        others = {name: ledger.state_dict() for name, ledger in self.ledgers.items() if name != TARGET}
        return {**self.ledgers[TARGET].state_dict(), **({STREAMS: others} if others else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Adds what `state_dict` gave to what is noted: what a killed run had read, or what another process did.

        Raises:
            ValueError: it is no state of such ledgers, or that of a stream that is not there; nothing is added.
        """
        target = {key: value for key, value in state.items() if key != STREAMS}
        others = state.get(STREAMS, {})
        if not isinstance(others, Mapping):
            raise ValueError(f"no state of a run's ledgers: {STREAMS} is no table")
        if odd := set(others) - (set(self.ledgers) - {TARGET}):
            raise ValueError(f"no state of this run's ledgers: it has no {', '.join(sorted(map(str, odd)))}")
        found = {TARGET: target, **others}
        for part in found.values():
            Ledger().merge(part)  # all of them are looked at before the first is added
        for name, part in found.items():
            self.ledgers[name].merge(part)

    def join(self) -> None:
        """Adds what all processes read."""
        for other in gather_objects(self.state_dict()):
            self.load_state_dict(other)

    def save(self, path: Path, writes: bool) -> None:
        """Writes the state into a file, where this process writes."""
        if writes:
            write_record(path, self.state_dict())

    def restore(self, path: Path) -> None:
        """Adds what an earlier process of the run saved; nothing where it saved nothing.

        Raises:
            MaskwrightError: the file is damaged, or of other streams.
        """
        if not path.exists():
            return
        try:
            self.load_state_dict(parse_record(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise unreadable(
                path, error, "the record of which labels the run read",
                "choose another --out: what was read is not known",
            ) from error  # fmt: skip

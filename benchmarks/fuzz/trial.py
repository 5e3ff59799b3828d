"""One mutation: made, put through the verbs, and classed by what comes of it."""

from __future__ import annotations

import json
import shutil
import traceback
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.fuzz.kinds import Case, Kind
from benchmarks.fuzz.mutations import Mutant, mutate
from benchmarks.fuzz.verbs import Answer, Untidy, Verb
from maskwright.errors import MaskwrightError

OUTCOMES = (
    "equal", "told", "undetectable", "silent", "untidy", "traceback", "memory", "hang", "crash",
)  # fmt: skip
"""What can come of a mutation, from best to worst.

equal: the same result as of the file as it was. told: one line and exit code 2, or a sentence that names the file.
undetectable: another result without a word, of a file that keeps no checksum. silent: the same of one that does.
untidy: a refusal that is no clear line, or control characters. traceback: any other exception. memory: more than the
limit. hang: longer than the limit. crash: the process died.
"""
FAILURES = ("silent", "untidy", "traceback", "memory", "hang", "crash")
"""What must not be."""
LONGEST_LINE = 4000
"""Characters of one clear line, at most."""


@dataclass(frozen=True)
class Report:
    """What came of one mutation.

    Attributes:
        kind: of the file.
        number: of the mutation within its kind.
        outcome: the worst over all verbs.
        case: the file.
        change: what was changed.
        verb: which verb gave the outcome.
        place: where it arose: an exception's type and the last place in the project's code, else the case.
        detail: what was said.
    """

    kind: str
    number: int
    outcome: str
    case: str = ""
    change: str = ""
    verb: str = ""
    place: str = ""
    detail: str = ""


@dataclass
class Bench:
    """A worker's bench: a folder for each case, laid out once, and what the verbs give for the files as they are.

    Args:
        kinds: those that it knows.
        bases: the folder that `kinds.prepare` filled.
        scratch: a folder of its own.
        seed: of all mutations.
    """

    kinds: dict[str, Kind]
    bases: Path
    scratch: Path
    seed: int
    _cases: dict[str, Sequence[Case]] = field(default_factory=dict)
    _usual: dict[tuple[str, str, Verb], Answer | str] = field(default_factory=dict)
    _stamp: int = 1_700_000_000_000_000_000

    def mutant(self, kind: str, number: int) -> tuple[Case, Mutant]:
        """The case and the mutation of a number."""
        rng = np.random.default_rng([self.seed, zlib.crc32(kind.encode()), number])
        if kind not in self._cases:
            self._cases[kind] = self.kinds[kind].cases(self.bases)
        cases = self._cases[kind]
        weights = self.kinds[kind].weights(cases)
        case = cases[rng.choice(len(cases), p=[w / sum(weights) for w in weights])]
        return case, mutate(case.content(), case.form, rng, case.others)

    def run(self, kind: str, number: int) -> Report:
        """Makes the mutation of a number, puts it through the verbs, and gives the worst that came of it."""
        case, mutant = self.mutant(kind, number)
        due = [v for v in case.verbs if number % v.every == 0] or [case.verbs[number % len(case.verbs)]]
        worst = Report(kind, number, "equal", case.name, mutant.says)
        for verb in due:
            usual = self._as_usual(kind, case, verb)
            outcome, place, detail = self._judge(kind, case, mutant, verb, usual)
            if OUTCOMES.index(outcome) > OUTCOMES.index(worst.outcome):
                worst = Report(kind, number, outcome, case.name, mutant.says, verb.name, place, detail)
        return worst

    def _judge(self, kind: str, case: Case, mutant: Mutant, verb: Verb, usual: Answer | str) -> tuple[str, str, str]:
        try:
            found = self._ask(kind, case, mutant.data, verb)
        except Untidy as error:
            return "untidy", f"{verb.name}: {_shorten(str(error))}", str(error)
        except MemoryError as error:
            return "memory", _where(error), str(error)
        except Exception as error:
            return "traceback", _where(error), f"{type(error).__name__}: {error}"
        if isinstance(found, str):
            if len(found) > LONGEST_LINE or "\n" in found:
                return "untidy", f"{verb.name}: a line of {len(found)} characters", found
            return ("equal" if found == usual else "told"), "", found
        if isinstance(usual, Answer) and _same(found.value, usual.value):
            return "equal", "", ""
        known = set(usual.words) if isinstance(usual, Answer) else set()
        about = Path(case.target).stem
        if any(about in word for word in found.words if word not in known):
            return "told", "", ""
        silent = case.checked and not mutant.sealed and mutant.data != case.content()
        what = case.name if kind in ("images", "masks", "predictions") else f"{kind}, {_of_file(case.target)}"
        return ("silent" if silent else "undetectable"), f"{what} through {verb.name}", ""

    def _as_usual(self, kind: str, case: Case, verb: Verb) -> Answer | str:
        key = (kind, case.name, verb)
        if key not in self._usual:
            self._usual[key] = self._ask(kind, case, case.content(), verb)
        return self._usual[key]

    def _ask(self, kind: str, case: Case, data: bytes, verb: Verb) -> Answer | str:
        """What a verb gives for a file, or the line that it refuses it with."""
        place = self.scratch / kind / f"{zlib.crc32(case.name.encode()):08x}"
        if case.fresh or not place.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            case.lay(place)
        if case.write is not None:
            case.write(place, data)
        else:
            target = place / case.target
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            # Two files of one size that are written within a tick of the clock would pass for the same.
            self._stamp += 1_000_000_000
            import os

            os.utime(target, ns=(self._stamp, self._stamp))
        try:
            return verb.run(place)
        except MaskwrightError as error:
            return str(error).replace(str(place), "PLACE")


def _same(a: object, b: object) -> bool:
    """Equal as JSON, so that NaN equals NaN."""
    return a == b or json.dumps(a, default=str) == json.dumps(b, default=str)


def _where(error: BaseException) -> str:
    """The type of an exception and the last place in the project's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/maskwright/" in f.filename.replace("\\", "/")]
    last = (ours or list(frames))[-1]
    file = last.filename.replace("\\", "/").rpartition("/maskwright/")[2]
    return f"{type(error).__name__} at {file}:{last.lineno} {last.name}"


def _shorten(text: str) -> str:
    return text if len(text) < 90 else text[:87] + "..."


def _of_file(target: str) -> str:
    """What kind of file it is: its name, but for files that are named after their content."""
    path = Path(target)
    return path.name if len(path.stem) < 24 and path.suffix not in (".npy", ".npz") else f"*{path.suffix}"

"""What a data set's mask values mean: settled where that is certain, asked where it is not.

The masks are judged together and each against the others, with the class table and what was said of the values. What
is found has the same words in the doctor's report and in the error of a verb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskwright.data.examining.findings import Finding, finding
from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.label_rules import VOID, LabelRule
from maskwright.data.masking.label_values import Seen, ValueCheck, listed, masks_counted, told
from maskwright.data.masking.masks import read_mask
from maskwright.data.masking.survey import Survey
from maskwright.data.masking.turned import unturned
from maskwright.errors import MaskwrightError

FILE_KINDS = frozenset(
    {
        "unreadable-mask",
        "lossy-mask",
        "float-mask",
        "mask-pages",
        "size-mismatch",
        "mask-not-turned",
    }
)
"""Errors of single files, which reading that file tells too; the others are about what all the values mean."""
_DOCTOR_ONLY = frozenset({"no-classes", "absent-class"})


@dataclass(frozen=True)
class Checked:
    """What was settled and what was found.

    Attributes:
        rule: how stored values become ids; None where the data set's own reader gives ids.
        findings: errors first as they are to be asked, warnings, notes.
    """

    rule: LabelRule | None
    findings: tuple[Finding, ...]

    def notices(self) -> list[str]:
        """What a verb says before it begins."""
        return [f.said() for f in self.findings if f.severity != "error" and f.kind not in _DOCTOR_ONLY]


def check_labels(data: Dataset, surveys: Mapping[int, Survey]) -> Checked:
    """Settles what the values of a data set's masks mean.

    Args:
        data: the images, with the class table and what was said (`data.reading`).
        surveys: what `survey_masks` saw.

    Raises:
        MaskwrightError: an option that does not go with the data set, or a damaged `colors.txt`.
    """
    seen = [Seen(data.items[i].name, s) for i, s in sorted(surveys.items())]
    found = _file_findings(data, seen)
    whole = [s for s in seen if s.survey.problem is None]
    own = data.readers.mask is not read_mask
    if own and (data.reading.how not in ("auto", "ids") or data.reading.void is not None):
        raise MaskwrightError(
            f"{data.reading.options()} for {data.root}, whose masks have an encoding of their own",
            "no word on it",
            "leave it out",
        )
    if not whole:
        return Checked(None if own else LabelRule(), tuple(found))
    if own:
        return Checked(None, (*found, *void_findings(whole, None), *table_findings(data, whole, None)))
    check = ValueCheck(data, whole)
    check.run()
    found += check.found
    if all(f.severity != "error" for f in check.found):  # else what the ids are is not known
        found += void_findings(whole, check.rule)
        found += table_findings(data, whole, check.rule)
    return Checked(check.rule, tuple(found))


# ---------------------------------------------------------------------- files and sizes


_FILE_WORDS = {
    "lossy-mask": (
        "are compressed with losses (as JPEG is), which blurs class ids at every edge",
        "export them as PNG",
    ),
    "float-mask": (
        "hold floating-point numbers, which are no class ids",
        "round them and write them as 8- or 16-bit index PNG",
    ),
    "mask-pages": ("hold several pictures in one file", "export the right one of each as PNG"),
    "unreadable-mask": ("cannot be read", "delete them or write them again"),
}


def _file_findings(data: Dataset, seen: Sequence[Seen]) -> list[Finding]:
    found = []
    for kind, (words, repair) in _FILE_WORDS.items():
        bad = [s for s in seen if s.survey.problem is not None and s.survey.problem.kind == kind]
        if bad:
            problem = bad[0].survey.problem
            assert problem is not None
            message = f"{masks_counted(len(bad))} {words}; the first: {problem.found}"
            found.append(finding(kind, "error", [s.name for s in bad], message, repair))
    channels = [s for s in seen if s.survey.problem is not None and s.survey.problem.kind == "colour-mask"]
    if channels:
        problem = channels[0].survey.problem
        assert problem is not None
        message = f"{masks_counted(len(channels))} are colour images; the first: {problem.found}"
        found.append(finding("colour-mask", "error", [s.name for s in channels], message, problem.repair))
    return found + _size_findings(data, seen)


def _size_findings(data: Dataset, seen: Sequence[Seen]) -> list[Finding]:
    found = []
    paired = [s for s in seen if s.survey.size is not None and s.survey.image_size is not None]
    wrong = [s for s in paired if s.survey.size != s.survey.image_size]
    stored = [s for s in wrong if is_unturned(s.survey)]
    other = [s for s in wrong if not is_unturned(s.survey)]
    fix = f"{told(' --fix OUT', data)} turns them in a copy"
    if stored:
        message = (
            f"{masks_counted(len(stored))} fit their image as it is stored, not as its EXIF tag turns it: "
            "they were drawn on the unturned picture"
        )
        found.append(finding("mask-not-turned", "error", [s.name for s in stored], message, fix))
    if other:
        first = other[0].survey
        assert first.size is not None and first.image_size is not None
        message = (
            f"{masks_counted(len(other))} of another size than their image; "
            f"the first is {first.size[0]}x{first.size[1]} for an image of {first.image_size[0]}x{first.image_size[1]}"
        )
        if all(s.survey.size == (s.survey.image_size or (0, 0))[::-1] for s in other):
            message += " (height and width swapped)"
        repair = "write them again at the size of their images, or delete them"
        found.append(finding("size-mismatch", "error", [s.name for s in other], message, repair))
    worse = _worse_turned(seen)
    if worse:
        message = (
            f"{masks_counted(len(worse))} seem to be drawn on their image as it is stored, "
            "not as its EXIF tag turns it: their outlines follow its edges better so"
        )
        found.append(finding("mask-not-turned", "warning", worse, message, fix))
    return found


def _worse_turned(seen: Sequence[Seen]) -> list[str]:
    fits = [(s.name, s.survey.turn) for s in seen if s.survey.turn is not None]
    return [name for (name, _), worse in zip(fits, unturned([turn for _, turn in fits])) if worse]


def unturned_by_edges(data: Dataset, surveys: Mapping[int, Survey]) -> set[str]:
    """Names of the masks whose outlines follow the edges of their image as it is stored clearly better."""
    return set(_worse_turned([Seen(data.items[i].name, s) for i, s in sorted(surveys.items())]))


def is_unturned(survey: Survey) -> bool:
    """Whether a mask has the shape of its image as stored, not as the image's tag turns it."""
    size, image = survey.size, survey.image_size
    return size is not None and image is not None and size != image and survey.orientation >= 5 and size == image[::-1]


# ---------------------------------------------------------------------- ids


def void_findings(seen: Sequence[Seen], rule: LabelRule | None) -> list[Finding]:
    void = [s.name for s in seen if set(s.survey.meaning(rule).values()) <= {VOID}]
    if not void:
        return []
    if len(void) == len(seen):
        message = (
            f"all {len(seen)} masks hold nothing but values that mean no class"
            if len(seen) > 1
            else ("the only mask holds nothing but values that mean no class")
        )
        repair = "say what the values mean with --labels or --void none, or draw the masks"
        return [finding("void-mask", "error", void, message, repair)]
    message = f"{masks_counted(len(void))} hold nothing but values that mean no class"
    return [finding("void-mask", "warning", void, message, "delete them or draw them")]


def table_findings(data: Dataset, seen: Sequence[Seen], rule: LabelRule | None) -> list[Finding]:
    meant = [(s.name, s.survey.meaning(rule)) for s in seen]
    ids = {i for _, m in meant for i in m.values() if i >= 0}
    plain = rule is not None and rule.labels in ("ids", "grey")
    if data.classes is None:
        return _no_table(data, ids, plain)
    found: list[Finding] = []
    names = data.classes.names
    count = len(names)
    outside = sorted(i for i in ids if i >= count)
    holders = [name for name, m in meant if any(i >= count for i in m.values())]
    if outside == [count] and plain:
        if 0 in ids:
            message = (
                f"id {count} occurs, one beyond the {count} classes of classes.txt: a class name is missing, or ids "
                "are counted from 1"
            )
            repair = (
                "add the missing name to classes.txt (often background, as its first line), or add --labels from1 if "
                "ids are counted from 1 and 0 means no class"
            )
        else:
            message = f"ids run from {min(ids)} to {count} and 0 never occurs: they are counted from 1, not from 0"
            repair = "add --labels from1, or put a name for id 0 first in classes.txt"
        found.append(finding("off-by-one", "error", holders, message, repair))
    elif outside:
        message = f"{masks_counted(len(holders))} have ids outside the class table of {count}: {listed(outside)}"
        repair = "add their names to classes.txt"
        if plain and len(outside) <= 16:
            void = sorted({*(rule.voids(any(s.survey.wide for s in seen)) if rule else ()), *outside})
            repair += f", or add --void {','.join(map(str, void))} if they mean no class"
            levels = sorted(ids)
            if len(levels) == count:
                repair += f", or --labels levels:{','.join(map(str, levels))} if they are the classes in this order"
        found.append(finding("id-outside-table", "error", holders, message, repair))
    absent = [name for i, name in enumerate(names) if i not in ids]
    if absent and ids:
        message = f"{len(absent)} of {count} classes occur in no mask"
        found.append(finding("absent-class", "note", absent, message))
    return found


def _no_table(data: Dataset, ids: set[int], plain: bool) -> list[Finding]:
    message = f"there are masks but no classes.txt, so their ids up to {max(ids, default=0)} have no names"
    if plain and ids and 0 not in ids:
        message += "; id 0 never occurs: if they are counted from 1, give id 0 a name too or add --labels from1"
    return [finding("no-classes", "warning", [], message, f"write {data.root / 'classes.txt'}, one name a line")]

"""What stored values mean, judged over all masks of a data set: colours, palettes, grey levels, 255.

Each question has one answer that is certain, or becomes an error that names the options which answer it.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from maskwright.data.examining.findings import Finding, Severity, finding, some
from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.classes import IGNORE8, IGNORE16, default_palette
from maskwright.data.masking.label_rules import VOC_VOID, VOID, LabelRule, colour_pairs, read_colours, rgb, voc_codes
from maskwright.data.masking.masks import COLOURS_FILE, codes_of
from maskwright.data.masking.survey import Survey
from maskwright.errors import MaskwrightError

THIN = 2.0
"""A grey level whose runs are no longer than this, in pixels, is no area but an edge."""
EDGE_LEVELS = 6
"""So many thin levels are no accident."""


@dataclass(frozen=True)
class Seen:
    name: str
    survey: Survey


def told(command: str, data: Dataset) -> str:
    """A command of the doctor on this folder, as it is typed."""
    return f"maskwright doctor {shlex.quote(os.fspath(data.root))}{command}"


def masks_counted(n: int) -> str:
    return f"{n} masks" if n != 1 else "1 mask"


def listed(values: Sequence[int]) -> str:
    return some(values, 8)


def binary_finding(values: Mapping[str, Iterable[int]], top: int, option: str) -> Finding | None:
    """The question that 0 and 255 (65535 in 16 bits) raise: is 255 the object, or no class?

    Args:
        values: stored values of each mask or prediction, by its name.
        top: 255, or 65535.
        option: `--labels` or `--predicted-labels`.

    Returns:
        An error, or None: `top` does not occur, or stands beside another id in some file and so is no object.
    """
    held = {name: frozenset(v) for name, v in values.items()}
    have = [name for name, v in held.items() if top in v]
    if not have or any(top in v and any(0 < x < top for x in v) for v in held.values()):
        return None
    what = "predictions" if "predicted" in option else "masks"
    ask = f"add {option} binary255 if {top} is the object, or {option} ids if it means no class"
    if all(v <= {0, top} for v in held.values()):
        if all(v == {top} for v in held.values()) and what == "masks":
            return None  # told as void
        message = (
            f"all {len(held)} {what} hold only 0 and {top}: whether {top} is the object or no class is not certain"
        )
        return finding("binary-mask", "error", have, message, ask)
    only = [name for name in have if 0 in held[name]]
    if not only:
        return None
    message = (
        f"{len(only)} of {len(held)} {what} hold only 0 and {top}, and no other {what[:-1]} holds {top} beside an id: "
        f"whether {top} is an object or no class there is not certain"
    )
    if max(x for v in held.values() for x in v if x != top) > 1:
        ask = f"add {option} ids if {top} means no class, else write them again with their ids"
    return finding("binary-mask", "error", only, message, ask)


class ValueCheck:
    """The values of readable masks; `run` settles `rule` and fills `found`."""

    def __init__(self, data: Dataset, seen: Sequence[Seen]) -> None:
        self.data, self.seen, self.said = data, seen, data.reading
        self.count = len(data.classes) if data.classes is not None else 0
        self.found: list[Finding] = []
        self.rule = LabelRule("ids" if self.said.how == "auto" else self.said.how, self.said.void)
        self.flat = [s for s in seen if not s.survey.coloured]
        self.auto = self.said.how == "auto"

    def run(self) -> None:
        if self.rule.labels == "colours":
            self._colours()
        else:
            self._no_colours()
            if self.rule.labels == "levels":
                self._levels()
            elif self.auto:
                asked = (self._palette(), self._smooth(), self._binary(), self._wide_void(), self._sparse())
                self.found += [f for f in asked if f is not None][:1]
            elif self.rule.labels == "binary255":
                self._not_binary()
            elif self.rule.labels == "from1" and (wide := self._wide_void()) is not None:
                self.found.append(wide)
        highest = max((i for s in self.flat for i in s.survey.meaning(self.rule).values()), default=0)
        self._void_or_class(highest)
        self.rule = replace(self.rule, wide=self.count > IGNORE8 or highest >= IGNORE8)

    def _ask(self, kind: str, names: Sequence[str], message: str, repair: str) -> Finding:
        return finding(kind, "error", names, message, repair)

    # ------------------------------------------------------------------ colours

    def _no_colours(self) -> None:
        """Colour images: refused where the channels differ, read and said where they are equal."""
        coloured = [s for s in self.seen if s.survey.coloured]
        equal = [s for s in self.seen if s.survey.equal]
        if not coloured:
            if equal:
                message = f"{masks_counted(len(equal))} hold the ids in three equal channels and are read so"
                repair = f"--labels grey says it; {told(' --fix OUT', self.data)} writes index masks"
                names = [s.name for s in equal]
                severity: Severity = "warning" if self.auto else "note"
                self.found.append(finding("grey-mask", severity, names, message, repair))
            return
        used = Counter[int]()
        for s in coloured:
            used.update(s.survey.values)
        message = f"{masks_counted(len(coloured))} are colour images, not index images, so their class ids are unknown"
        pairs, source = self._known_colours()
        unknown = [code for code, _ in used.most_common() if code not in pairs]
        names = [s.name for s in coloured]
        if not unknown:
            message += f"; all their colours are of {source}"
            self.found.append(self._ask("colour-mask", names, message, "add --labels colours"))
            return
        if any(s.survey.cut for s in coloured):
            repair = "export them as index PNG: so many colours are no drawing of classes"
            message += f"; they hold more than {max(len(s.survey.values) for s in coloured)} colours"
        else:
            message += (
                f"; {len(used)} colours occur, most often {'; '.join(f'({rgb(c)})' for c, _ in used.most_common(3))}"
            )
            repair = self._write_colours()
        self.found.append(self._ask("colour-mask", names, message, repair))

    def _write_colours(self) -> str:
        path = self.data.root / COLOURS_FILE
        return (
            f"write {path}, a line 'R G B' for each class in the order of the ids ('R G B void' for none), and add "
            "--labels colours"
        )

    def _known_colours(self) -> tuple[dict[int, int], str]:
        """{colour code: id} that are known, and where from."""
        path = self.data.root / COLOURS_FILE
        if path.is_file():
            colors, void = read_colours(path)
            if self.count and len(colors) != self.count:
                raise MaskwrightError(
                    f"{path} has {len(colors)} colours", f"{self.count}, one for each class", "correct one of the two"
                )
            return dict(colour_pairs(colors, void)), COLOURS_FILE
        if self.data.classes is not None:
            pairs = dict(colour_pairs(self.data.classes.colors))
            own = set(codes_of(self.data.classes.colors).tolist()) <= voc_codes()
            return pairs, "the PASCAL VOC palette" if own else "the class table"
        return dict(colour_pairs(default_palette(256))), "the PASCAL VOC palette"

    def _colours(self) -> None:
        pairs, source = self._known_colours()
        drawn: dict[int, str] = {}  # colour: the first mask that holds it
        for s in self.seen:
            for code in _drawn(s.survey, self.rule):
                drawn.setdefault(code, s.name)
        unknown = [code for code in drawn if code not in pairs]
        palettes = [s for s in self.seen if s.survey.kind == "palette"]
        if unknown and palettes and source != COLOURS_FILE:
            pairs, source = _order_of_files(palettes, self.rule), f"the palette of {palettes[0].name}"
            unknown = [code for code in drawn if code not in pairs]
        self.rule = replace(self.rule, colours=tuple(pairs.items()))
        if unknown:
            names = sorted({drawn[code] for code in unknown})
            message = (
                f"{len(unknown)} colours of the masks are of no class in {source}: "
                + "; ".join(f"({rgb(c)})" for c in unknown[:6])
                + ("; ..." if len(unknown) > 6 else "")
            )
            self.found.append(self._ask("unknown-colour", names, message, self._write_colours()))
            return
        told_ = [f"({rgb(c)}) = {self._class(pairs[c])}" for c in drawn]
        message = f"colours are classes by {source}: {', '.join(told_[:12])}{', ...' if len(told_) > 12 else ''}"
        self.found.append(finding("colours-read", "note", [], message))

    def _class(self, i: int) -> str:
        if i == VOID:
            return "no class"
        names = self.data.classes.names if self.data.classes is not None else ()
        return f"{i} {names[i]}" if i < len(names) else str(i)

    def _palette(self) -> Finding | None:
        """Files that draw one colour under different values, or one value in different colours."""
        values_of: dict[int, dict[int, str]] = {}
        colours_of: dict[int, dict[int, str]] = {}
        for s in self.seen:
            drawn = {v: c for v, c in s.survey.drawn.items() if v not in self.rule.voids(False)}
            if s.survey.kind != "palette" or len(set(drawn.values())) < len(drawn):
                continue
            ramp = all(c == v * 0x010101 for v, c in drawn.items())
            for v, c in drawn.items():
                values_of.setdefault(c, {}).setdefault(v, s.name)
                if not ramp:  # the palette that programs give to grey images says nothing
                    colours_of.setdefault(v, {}).setdefault(c, s.name)
        clash = next(((c, v) for c, v in values_of.items() if len(v) > 1), None)
        ask = "add --labels colours if the colours are the classes, or --labels ids if the stored values are"
        if clash is not None:
            code, places = clash
            one, two = list(places.items())[:2]
            message = (
                f"the palettes of the masks differ in order: colour ({rgb(code)}) is value {one[0]} in {one[1]} and "
                f"value {two[0]} in {two[1]}"
            )
            return self._ask("palette", [one[1], two[1]], message, ask)
        if self.count and (self.data.root / COLOURS_FILE).is_file():
            pairs, _ = self._known_colours()
            wrong = next(((c, v) for c, vs in values_of.items() for v in vs if pairs.get(c, v) not in (v, VOID)), None)
            if wrong is not None:
                code, value = wrong
                message = (
                    f"{values_of[code][value]} draws value {value} in ({rgb(code)}), which is class {pairs[code]} in "
                    f"{COLOURS_FILE}"
                )
                return self._ask("palette", [values_of[code][value]], message, ask)
        double = next(((v, c) for v, c in colours_of.items() if len(c) > 1), None)
        if double is None:
            return None
        value, drawn_in = double
        first, second = list(drawn_in.items())[:2]
        message = (
            f"the palettes of the masks differ: value {value} is drawn in ({rgb(first[0])}) in {first[1]} and in "
            f"({rgb(second[0])}) in {second[1]}"
        )
        return self._ask("palette", [first[1], second[1]], message, ask)

    # ------------------------------------------------------------------ grey levels

    def _levels(self) -> None:
        values = sorted({v for s in self.flat for v in s.survey.values})
        if self.said.levels:
            void = tuple(
                v
                for v in (self.said.void if self.said.void is not None else (IGNORE8, IGNORE16))
                if v not in self.said.levels
            )
            self.rule = replace(self.rule, levels=self.said.levels, void=void)
            strange = [v for v in values if v not in (*self.said.levels, *void)]
            if strange:
                holders = [s.name for s in self.flat if any(v in s.survey.values for v in strange)]
                message = f"{masks_counted(len(holders))} hold grey levels that are not named: {listed(strange)}"
                all_levels = ",".join(map(str, (*self.said.levels, *strange)))
                void_too = ",".join(map(str, sorted({*void, *strange})))
                repair = (
                    f"name them too, --labels levels:{all_levels}, or say that they mean no class, --void {void_too}"
                )
                self.found.append(self._ask("unknown-level", holders, message, repair))
            return
        tops = [t for t in (IGNORE8, IGNORE16) if any(t in s.survey.values for s in self.flat)]
        if self.said.void is None and tops:
            names = [s.name for s in self.flat if any(t in s.survey.values for t in tops)]
            message = (
                f"the grey levels are {listed(values)}, and whether {tops[-1]} is a class or means none is not certain"
            )
            ask = f"add --void none if it is a class, or --void {','.join(map(str, tops))} if it means none"
            self.found.append(self._ask("void-or-class", names, message, ask))
            self.rule = replace(self.rule, levels=tuple(v for v in values if v not in tops))
            return
        void = self.said.void or ()
        levels = tuple(v for v in values if v not in void)
        self.rule = replace(self.rule, levels=levels, void=void)
        named = f"--labels levels:{','.join(map(str, levels))}"
        if self.count and len(levels) != self.count:
            message = (
                f"the masks hold {len(levels)} grey levels ({listed(levels)}), the class table {self.count} classes"
            )
            repair = f"name the levels in the order of the classes, as in {named}, or mend classes.txt"
            self.found.append(self._ask("levels", [], message, repair))
            return
        pairs = ", ".join(f"{v} = {self._class(i)}" for i, v in enumerate(levels[:12]))
        message = f"grey levels are classes: {pairs}{', ...' if len(levels) > 12 else ''} (fixed by {named})"
        self.found.append(finding("levels-read", "note", [], message))

    def _not_binary(self) -> None:
        low = [s for s in self.flat if 1 < max(s.survey.values, default=0) < 128]
        if low:
            highest = max(max(s.survey.values) for s in low)
            message = f"{masks_counted(len(low))} hold values up to {highest} alone, so they are not drawn in 0 and 255"
            repair = "use --labels ids, or write these masks again with 0 and 255"
            self.found.append(self._ask("not-binary", [s.name for s in low], message, repair))
        pixels, runs = Counter[int](), Counter[int]()
        for s in self.flat:
            if max(s.survey.values, default=0) in range(128, 256):
                pixels.update(s.survey.values)
                runs.update(s.survey.runs)
        voids = self.rule.voids(wide=False)
        areas = sorted(v for v in pixels if 0 < v < 192 and v not in voids and pixels[v] > THIN * runs[v])
        if areas:
            message = (
                f"between 0 and 255 the masks hold areas of {listed(areas)}: those below 128 become background, the "
                "others object"
            )
            names = [s.name for s in self.flat if any(v in s.survey.values for v in areas)]
            repair = "use --labels levels if they are classes of their own"
            self.found.append(finding("between-levels", "warning", names, message, repair))

    def _smooth(self) -> Finding | None:
        """Many grey levels that form no areas: edges that were smoothed, or an image that is no mask."""
        flat = [s for s in self.flat if s.survey.kind != "palette"]
        pixels, runs = Counter[int](), Counter[int]()
        for s in flat:
            pixels.update(s.survey.values)
            runs.update(s.survey.runs)
        thin = [v for v in pixels if pixels[v] <= THIN * runs[v]]
        areas = sorted(v for v in pixels if pixels[v] > THIN * runs[v])
        if len(thin) < EDGE_LEVELS or len(thin) <= len(areas):
            return None
        names = [s.name for s in flat if sum(v in s.survey.values for v in thin) > 1]
        message = (
            f"{masks_counted(len(names))} have smooth edges: {len(thin)} grey levels between {listed(areas)} "
            "form no areas (they were antialiased, resized, or once saved as JPEG)"
        )
        void = self.rule.voids(wide=False)
        if self.count and all(v < self.count or v in void for v in pixels):
            repair = "write them again without smoothing; resize masks with nearest neighbour"
            self.found.append(finding("smooth-edges", "warning", names, message, repair))
            return None
        ask = "write them again without smoothing, or add --labels ids if each level is a class"
        if len(areas) >= 2 and areas[0] < 128 <= areas[-1]:
            ask = "add --labels binary255 to cut them in the middle, or --labels ids if each level is a class"
        return self._ask("smooth-edges", names, message, ask)

    def _binary(self) -> Finding | None:
        if self.said.void is not None:
            return None
        for top in (IGNORE8, IGNORE16):
            held = {s.name: s.survey.values for s in self.flat if s.survey.wide == (top == IGNORE16)}
            if held and (found := binary_finding(held, top, "--labels")) is not None:
                return found
        return None

    def _wide_void(self) -> Finding | None:
        """255 in 16-bit masks that stands apart from the ids."""
        wide = [s for s in self.flat if s.survey.wide]
        values = {v for s in wide for v in s.survey.values} - {IGNORE16}
        rest = values - {IGNORE8}
        if self.said.void is not None or IGNORE8 not in values or max(rest, default=0) >= IGNORE8 - 15:
            return None
        if self.count > IGNORE8:
            return None
        names = [s.name for s in wide if IGNORE8 in s.survey.values]
        message = (
            f"{masks_counted(len(names))} of 16 bits hold 255 apart from their ids up to {max(rest, default=0)}: "
            "in 16 bits it is a class unless it is said to mean none"
        )
        ask = "add --void 255 if it means no class, or --labels ids if it is one"
        if rest <= {0}:
            ask = "add --void 255 if it means no class, or --labels binary255 if it is the object"
        if not self.auto:  # ids were said to be counted from 1
            ask = "add --void 255 if it means no class, or --void 65535 if it is a class"
        elif any(IGNORE16 in s.survey.values for s in wide):
            ask = ask.replace("--void 255", "--void 255,65535")
        return self._ask("void-or-class", names, message, ask)

    def _sparse(self) -> Finding | None:
        """Few values far apart without names: they look like drawn grey levels."""
        flat = [s for s in self.flat if s.survey.kind != "palette"]
        every = {v for s in flat for v in s.survey.values}
        values = sorted({v for s in flat for v in s.survey.values if v not in self.rule.voids(s.survey.wide)})
        drawn = len(values) >= 2 and values[-1] >= 32 and values[-1] + 1 >= 4 * len(values)
        if not drawn or (self.count and values[-1] < self.count):
            return None
        if self.count and len(values) not in (self.count, self.count - 1):
            return None  # told as ids outside the table
        names = [s.name for s in flat if values[-1] in s.survey.values]
        message = f"the masks hold the values {listed(sorted(every))}, which look like drawn grey levels, not like ids"
        top = max(every)
        if top in values:
            ask = "add --labels levels if they are the classes in this order, or --labels ids if they are ids"
        else:
            ask = (
                f"add --labels levels --void none if they are the classes in this order, --labels levels --void {top} "
                f"if {top} means no class, or --labels ids if they are ids"
            )
        if top <= IGNORE8 and all(v < 16 or v >= 240 for v in every):
            ask = ask.replace("add ", "add --labels binary255 if they are drawn in 0 and 255, ", 1)
        return self._ask("drawn-levels", names, message, ask)

    def _void_or_class(self, highest: int) -> None:
        """255 in 8-bit masks of a data set that has, or may have, a class 255."""
        if self.said.void is not None or self.rule.labels not in ("ids", "grey"):
            return
        narrow = [s for s in self.flat if not s.survey.wide and IGNORE8 in s.survey.values]
        if not narrow or (self.count <= IGNORE8 and highest < IGNORE8):
            return
        beyond = any(IGNORE16 in s.survey.values for s in self.flat if s.survey.wide)
        message = (
            f"{masks_counted(len(narrow))} of 8 bits hold 255, and "
            + (f"there are {self.count} classes" if self.count else f"other masks have ids up to {highest}")
            + ": whether 255 is class 255 or no class is not certain"
        )
        is_class, is_void = (str(IGNORE16), "255,65535") if beyond else ("none", "255")
        ask = f"add --void {is_class} if it is class 255, or --void {is_void} if it means no class"
        self.found.append(self._ask("void-or-class", [s.name for s in narrow], message, ask))


def _drawn(survey: Survey, rule: LabelRule) -> Iterable[int]:
    """Colour codes that a mask is drawn in, entries that mean no class left out."""
    if survey.coloured:
        return survey.values
    if survey.kind == "palette":
        return [c for v, c in survey.drawn.items() if v not in rule.voids(False)]
    return [(v >> 8 if survey.wide else v) * 0x010101 for v in survey.values]


def _order_of_files(palettes: Sequence[Seen], rule: LabelRule) -> dict[int, int]:
    """{colour: id} in the order of the first file by name, further colours where their files have them if free."""
    pairs: dict[int, int] = {}
    for s in sorted(palettes, key=lambda s: s.name):
        for value, code in sorted(s.survey.drawn.items()):
            if value in rule.voids(False) or code in pairs:
                continue
            taken = set(pairs.values())
            pairs[code] = value if value not in taken else next(i for i in range(len(taken) + 1) if i not in taken)
    pairs.setdefault(VOC_VOID, VOID)
    return pairs

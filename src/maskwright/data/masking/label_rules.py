"""How the stored values of masks become class ids: one rule for all masks of a data set.

The file says what is stored; the rule says what it means. A rule is settled by `label_check`, which asks where the
meaning is not certain, and is the same for training, judging and the doctor.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskwright.data.folders.tables import read_lines
from maskwright.data.masking.classes import IGNORE8, IGNORE16, ClassTable, default_palette
from maskwright.data.masking.masks import COLOURS_FILE, StoredMask, codes_of, colour_mask_error, colour_of, read_stored
from maskwright.errors import MaskwrightError

VOID = -1
"""What a value that means no class becomes before it is written as 255 or 65535."""
UNKNOWN = -2
"""What a value becomes that the rule does not know."""
VOC_VOID = 224 << 16 | 224 << 8 | 192
"""The colour in which PASCAL VOC draws pixels without a class."""


@dataclass(frozen=True)
class LabelRule:
    """How stored values become ids.

    Attributes:
        labels: a name of `reading.LABELS`, settled (not "auto").
        void: stored values that mean no class; None: 255 in 8 bits and 65535 in 16 (for binary255: none does).
        levels: for "levels", the stored values in the order of the classes.
        colours: for "colours", pairs (colour code, id), VOID for colours that mean no class.
        wide: give uint16 whatever the file, because 255 is a class.
    """

    labels: str = "ids"
    void: tuple[int, ...] | None = None
    levels: tuple[int, ...] = ()
    colours: tuple[tuple[int, int], ...] = ()
    wide: bool = False

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """The ids of a mask file.

        Returns:
            uint8 (H, W) with 255 for no class, or uint16 with 65535 for no class where the file has more than 8 bits
            or 255 is a class.

        Raises:
            MaskwrightError: as `masks.read_stored`, or a value or colour that the rule does not know.
        """
        return self.ids(read_stored(path), path)

    def ids(self, stored: StoredMask, path: str | os.PathLike[str]) -> np.ndarray:
        """As `read`, of a mask that was read; `path` names it in errors."""
        if self.labels == "colours":
            return self._drawn(stored, path)
        values = stored.values
        if stored.kind == "colour":
            if not stored.equal:
                raise colour_mask_error(path, stored)
            values = np.ascontiguousarray(values[..., 0])
        if self.labels in ("ids", "grey") and self.void is None and not (self.wide and stored.kind != "wide"):
            return values
        wide = stored.kind == "wide"
        every = np.arange(65536 if wide else 256)
        meant = self.meaning(every, wide=wide, peak=int(values.max()) if values.size else 0)
        if (meant == UNKNOWN).any():
            strange = np.unique(values[(meant == UNKNOWN)[values]])
            if strange.size:
                raise MaskwrightError(
                    f"mask {path} holds the grey level {int(strange[0])}",
                    f"one of {', '.join(map(str, self.levels))}",
                    f"name all levels in order: --labels levels:{','.join(map(str, sorted({*self.levels, *strange})))}",
                )
        return self._written(meant, values, wide)

    def meaning(self, values: np.ndarray, *, wide: bool, peak: int) -> np.ndarray:
        """The ids of stored values.

        Args:
            values: int (n,), values that a mask holds.
            wide: whether its file has more than 8 bits.
            peak: the highest value in it.

        Returns:
            int64 (n,), VOID where a value means no class, UNKNOWN where the rule does not know it.
        """
        values = np.asarray(values, np.int64)
        if self.labels == "colours":
            return self._of_colours(values)
        if self.labels == "binary255":
            meant = values if peak <= 1 else (values >= (128 if peak <= 255 else 32768)).astype(np.int64)
        elif self.labels == "from1":
            meant = values - 1  # 0, which is no class, becomes VOID
        elif self.labels == "levels":
            known = np.asarray(self.levels, np.int64)
            order = np.argsort(known)
            place = np.searchsorted(known[order], values).clip(0, max(0, len(known) - 1))
            hit = known[order][place] == values if len(known) else np.zeros(len(values), bool)
            meant = np.where(hit, order[place] if len(known) else 0, UNKNOWN)
        else:
            meant = values.copy()
        return np.where(np.isin(values, self.voids(wide)), VOID, meant)

    def voids(self, wide: bool) -> tuple[int, ...]:
        """The stored values that mean no class, in a file of 8 bits or of more (`wide`)."""
        if self.void is not None:
            return self.void
        if self.labels == "binary255":
            return ()
        return (IGNORE16 if wide else IGNORE8,)

    def entries(self, palette: np.ndarray) -> np.ndarray:
        """The ids of a palette's entries, uint8 (256, 3), by the colours that they are drawn in; int64 (256,)."""
        meant = self._of_colours(codes_of(palette))
        meant[[v for v in self.voids(wide=False) if v < len(meant)]] = VOID  # whatever it is drawn in
        return meant

    def _drawn(self, stored: StoredMask, path: str | os.PathLike[str]) -> np.ndarray:
        if stored.palette is not None:
            codes, values = codes_of(stored.palette), stored.values
            meant = self.entries(stored.palette)
        else:
            codes, values = np.unique(stored.codes(), return_inverse=True)
            values = values.reshape(stored.values.shape[:2])
            meant = self._of_colours(codes)
        used = np.zeros(len(meant), bool)
        used[values] = True
        strange = codes[used & (meant == UNKNOWN)]
        if strange.size:
            first = int(strange[0])
            raise MaskwrightError(
                f"mask {path} holds the colour {rgb(first)}, which is of no class",
                "colours of the classes",
                f"add '{rgb(first, ' ')}' to {COLOURS_FILE} at its class's place, or '{rgb(first, ' ')} void'",
            )
        return self._written(meant, values, wide=False)

    def _of_colours(self, codes: np.ndarray) -> np.ndarray:
        known = np.array([code for code, _ in self.colours], np.int64)
        ids = np.array([i for _, i in self.colours], np.int64)
        if not known.size:
            return np.full(len(codes), UNKNOWN)
        order = np.argsort(known, kind="stable")
        known, ids = known[order], ids[order]
        place = np.searchsorted(known, codes).clip(0, len(known) - 1)
        return np.where(known[place] == codes, ids[place], UNKNOWN)

    def _written(self, meant: np.ndarray, values: np.ndarray, wide: bool) -> np.ndarray:
        """Looks stored values up in their meaning; 8 bits where 255 can stand for no class."""
        wide = wide or self.wide
        if not wide and int(meant.max(initial=0)) >= IGNORE8:
            used = np.zeros(len(meant), bool)
            used[values] = True
            wide = int(meant[used].max(initial=0)) >= IGNORE8
        table = np.where(meant < 0, IGNORE16 if wide else IGNORE8, meant)
        return table.astype(np.uint16 if wide else np.uint8)[values]


def rgb(code: int, between: str = ", ") -> str:
    """A colour code as "R, G, B"."""
    return between.join(map(str, colour_of(code)))


def read_colours(path: str | os.PathLike[str]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Reads `colors.txt`: a line "R G B" for each class in the order of the ids; a line "R G B void" is of no class.

    Args:
        path: the text file; commas between the numbers and words after a third are allowed, blank lines are skipped.

    Returns:
        uint8 (C, 3), and the codes of the colours that mean no class.

    Raises:
        MaskwrightError: missing, no text, a line that is no colour, or a colour twice.
    """
    path = Path(path)
    colors: list[tuple[int, int, int]] = []
    void: list[int] = []
    seen: dict[int, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        if len(words) < 3 or not all(w.isascii() and w.isdigit() and int(w) <= 255 for w in words[:3]):
            raise MaskwrightError(
                f"line {number} of {path} is {line.strip()[:40]!r}", "a line 'R G B', 0 to 255 each", "correct the line"
            )
        red, green, blue = (int(w) for w in words[:3])
        code = red << 16 | green << 8 | blue
        if code in seen:
            raise MaskwrightError(
                f"lines {seen[code]} and {number} of {path} are the same colour",
                "a different colour for each class",
                "correct one of them",
            )
        seen[code] = number
        if words[3:4] == ["void"]:
            void.append(code)
        else:
            colors.append((red, green, blue))
    return np.array(colors, np.uint8).reshape(-1, 3), tuple(void)


def colour_pairs(colors: np.ndarray, void: tuple[int, ...] = ()) -> tuple[tuple[int, int], ...]:
    """What `LabelRule.colours` holds for class colours, uint8 (C, 3), and colours of no class."""
    pairs = {code: i for i, code in enumerate(codes_of(colors).tolist())}
    pairs.update(dict.fromkeys(void, VOID))
    pairs.setdefault(VOC_VOID, VOID)
    return tuple(pairs.items())


def voc_codes() -> frozenset[int]:
    """The colour codes of the PASCAL VOC palette and of its void."""
    return frozenset({*codes_of(default_palette(256)).tolist(), VOC_VOID})


def drawn_in(classes: ClassTable | None, path: Path) -> ClassTable | None:
    """The class table in the colours of `colors.txt`, where there are both and they agree in number."""
    if classes is None or not path.is_file():
        return classes
    try:
        colors, _ = read_colours(path)
    except MaskwrightError:
        return classes  # told where its colours are needed
    return ClassTable(classes.names, colors) if len(colors) == len(classes) else classes


def ignore_of(ids: np.ndarray) -> int:
    """The ignore id of a mask by its type: 255 for uint8, else 65535."""
    return IGNORE8 if ids.dtype == np.uint8 else IGNORE16


def check_ids(ids: np.ndarray, path: Path, size: tuple[int, int], classes: ClassTable | None, root: Path) -> None:
    """Raises `MaskwrightError` where ids do not fit their image, (H, W), or the class table."""
    doctor = f"maskwright doctor {shlex.quote(os.fspath(root))} says more"
    if ids.shape != size:
        raise MaskwrightError(
            f"mask {path} is {ids.shape[0]}x{ids.shape[1]}", f"{size[0]}x{size[1]} as its image", doctor
        )
    if classes is not None and ids.size:
        outside = ids[(ids >= len(classes)) & (ids != ignore_of(ids))]
        if outside.size:
            raise MaskwrightError(
                f"mask {path} has id {int(outside.max())}",
                f"0 to {len(classes) - 1}, the classes, or {ignore_of(ids)} for ignore",
                doctor,
            )


def renamed(ids: np.ndarray, of: ClassTable, to: ClassTable) -> np.ndarray:
    """Ids of one class table as those of another, by name; what the other does not name becomes its ignore id.

    Args:
        ids: uint8 or uint16 (H, W) of the first table, 255 (65535 in 16 bits) where there is no class.
        of: the first table.
        to: the other.

    Returns:
        uint8, or uint16 where the other table has more than 255 classes.
    """
    place = {name: k for k, name in enumerate(to.names)}
    kind = np.uint8 if to.ignore == IGNORE8 else np.uint16
    known = np.array([place.get(name, to.ignore) for name in of.names] + [to.ignore], kind)
    return known[np.minimum(ids.astype(np.int64), len(of))]

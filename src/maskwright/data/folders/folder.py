"""A dataset is a folder: photographs, and whatever labels there are beside them.

    DATA/images/NAME.jpg|png|...      the only thing that must exist (images may also lie directly in DATA)
    DATA/masks/NAME.png               for some images or all; an image without a mask is unlabelled, never an error
    DATA/tags.csv                     name,tags (separated by ;)
    DATA/captions.csv                 name,caption (several rows an image allowed)
    DATA/classes.txt                  one class name a line, line number = id
    DATA/splits/NAME.txt              one image name a line

Folders may be nested; the name of an image is then its path below images/ without suffix, with "/" between
folders. Other usual arrangements are recognised and said, see `recognise`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from maskwright.data.examining.findings import Finding
from maskwright.data.examining.reading import Reading
from maskwright.data.folders.readers import Item, KnownFiles, Readers
from maskwright.data.folders.scan import is_regular, is_utf8, nearest, threaded
from maskwright.data.folders.tables import NameIndex, read_names
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.label_rules import LabelRule, check_ids, renamed
from maskwright.data.pictures.headers import Header, check_regular
from maskwright.data.pictures.images import (
    IMAGE_SUFFIXES,
    read_image,
    read_resized,
    resize_window,
    verify_image,
)
from maskwright.data.pictures.scale import Scale
from maskwright.data.trust.ledger import Ledger
from maskwright.errors import MaskwrightError, unknown


class Dataset:
    """Images with whatever labels there are. Immutable: `split`, `labeled` and the like give new ones that
    share the ledger. Labels are read through `mask`, `tags` and `captions` only, which note it in the ledger.

    Args:
        root: the folder.
        items: the images, names distinct.
        classes: the class table, or None.
        splits: {split: names}; names of images that are not among the items are left out by `split`.
        readers: how files are read.
        ledger: the ledger to share; a new one if None.
        skipped: (name, reason) of images that were left out.
        known: names of all images of the folder, among which lists may choose; those of `items` if None.
        reading: what was said of the files' values; nothing if None.
        notices: sentences that every verb says before it begins: what was guessed, and what was left aside.
        aside: (file or folder/, reason) of what lies in the folder and is not read, below the root.
        lone: mask files, below the root, of no image.
        findings: what opening the folder found; the doctor tells it, and `notices` hold its sentences.

    Attributes:
        scale: the range of images of more than 8 bits, once it is settled (`picture_facts.scaled`); until then it is
            found when the first of them is read.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        items: Iterable[Item],
        *,
        classes: ClassTable | None = None,
        splits: Mapping[str, Sequence[str]] | None = None,
        readers: Readers | None = None,
        ledger: Ledger | None = None,
        skipped: Iterable[tuple[str, str]] = (),
        known: Iterable[str] | None = None,
        reading: Reading | None = None,
        notices: Iterable[str] = (),
        aside: Iterable[tuple[str, str]] = (),
        lone: Iterable[str] = (),
        findings: Iterable[Finding] = (),
    ) -> None:
        self.root = Path(root)
        self.items: tuple[Item, ...] = tuple(items)
        self.classes = classes
        self.readers = readers or Readers()
        self.ledger = ledger if ledger is not None else Ledger()
        self.skipped: list[tuple[str, str]] = list(skipped)
        self.reading = reading or Reading()
        self.notices: tuple[str, ...] = tuple(notices)
        self.aside: tuple[tuple[str, str], ...] = tuple(aside)
        self.lone: tuple[str, ...] = tuple(lone)
        self.findings: tuple[Finding, ...] = tuple(findings)
        self.rule: LabelRule | None = None  # None: not settled, or the reader of masks gives ids itself
        self.understood = False
        self.checked = False
        self._stored: ClassTable | None = None  # whose ids the masks hold, where it is not `classes`
        self._splits = dict(splits) if splits is not None else None
        self._known = tuple(known) if known is not None else None
        self._places: dict[str, int] | None = None
        self._finder: NameIndex | None = None
        self._hashes: dict[tuple[str, int, int], str] = {}
        self.scale: Scale | None = None
        # Of the folder as it was opened: a split is read as the whole is.
        self._known_files = KnownFiles([item.image for item in self.items])

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        present = ", ".join(f"{n} {kind}" for kind, n in self.labels_present().items())
        return f"Dataset({str(self.root)!r}, {len(self)} images, {present})"

    def _repr_html_(self) -> str:
        from maskwright.data.folders.showing import dataset_html

        return dataset_html(self)

    # ------------------------------------------------------------------ names and choices

    @property
    def names(self) -> list[str]:
        """Names of the images, in order."""
        return [item.name for item in self.items]

    @property
    def known_names(self) -> list[str]:
        """Names of all images of the folder, also of those that a split left out."""
        return list(self._known) if self._known is not None else self.names

    @property
    def split_names(self) -> list[str]:
        """Names of the splits there are."""
        folder = self.root / "splits"
        files = [p.stem for p in folder.glob("[!.]*.txt") if p.is_file() and is_utf8(p.name)] if folder.is_dir() else []
        return sorted({*(self._splits or {}), *files})

    def index(self, name: str) -> int:
        """Place of the image called `name`. Raises `KeyError` if it is not here."""
        if self._places is None:
            self._places = {item.name: i for i, item in enumerate(self.items)}
        return self._places[name]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self.index(name)
        except KeyError:
            return False
        return True

    def with_items(self, items: Iterable[Item], skipped: Iterable[tuple[str, str]] | None = None) -> Dataset:
        """The same dataset, ledger and readers with other items."""
        derived = Dataset(
            self.root,
            items,
            classes=self.classes,
            splits=self._splits,
            readers=self.readers,
            ledger=self.ledger,
            skipped=self.skipped if skipped is None else skipped,
            known=self.known_names,
            reading=self.reading,
            notices=self.notices,
            aside=self.aside,
            lone=self.lone,
            findings=self.findings,
        )
        derived._finder, derived._hashes = self._finder, self._hashes
        derived.rule, derived.understood, derived.checked = self.rule, self.understood, self.checked
        derived.scale, derived._known_files, derived._stored = self.scale, self._known_files, self._stored
        return derived

    def with_reading(self, reading: Reading) -> Dataset:
        """The same dataset with other words on what its files' values mean."""
        derived = self.with_items(self.items)
        derived.reading = reading
        derived.rule, derived.understood, derived.checked = None, False, False
        return derived

    def with_rule(self, rule: LabelRule | None, *, checked: bool) -> Dataset:
        """The same dataset whose mask values were understood: the rule makes ids of them, or the reader where it is
        None; `checked` says that each mask that may be read was seen to be whole and to fit its image."""
        derived = self.with_items(self.items)
        derived.rule, derived.understood, derived.checked = rule, True, checked
        return derived

    def with_scale(self, scale: Scale | None) -> Dataset:
        """The same dataset with the range of its images of more than 8 bits; what was said goes before it."""
        derived = self.with_items(self.items)
        derived.scale = scale
        return derived

    def with_notices(self, *sentences: str) -> Dataset:
        """The same dataset with further sentences for every verb to say, each once."""
        derived = self.with_items(self.items)
        derived.notices = tuple(dict.fromkeys((*self.notices, *sentences)))
        return derived

    def with_classes(self, classes: ClassTable | None) -> Dataset:
        """The same dataset with another class table. What mask values mean is asked anew."""
        derived = self.with_reading(self.reading)
        derived.classes, derived._stored = classes, None
        return derived

    def in_classes(self, table: ClassTable) -> Dataset:
        """The same dataset, its values understood, with masks in the ids of another table: a class has the id of its
        name there, and what the table does not name is of no class."""
        derived = self.with_items(self.items)
        derived.classes, derived._stored = table, self.stored_classes
        return derived

    @property
    def stored_classes(self) -> ClassTable | None:
        """The table whose ids the mask files hold: `classes`, but of `in_classes`."""
        return self.classes if self._stored is None else self._stored

    @property
    def taught(self) -> tuple[int, ...] | None:
        """Of `in_classes` the ids of the classes that its masks can show; None: all."""
        if self._stored is None or self.classes is None:
            return None
        return tuple(k for k, name in enumerate(self.classes.names) if name in self._stored.names)

    def with_ledger(self, ledger: Ledger) -> Dataset:
        """The same dataset, which notes what is read of its labels elsewhere."""
        derived = self.with_items(self.items)
        derived.ledger = ledger
        return derived

    def only_labels(self, kinds: Collection[str]) -> Dataset:
        """Hides the labels of all kinds but these ("masks", "tags", "captions"), whatever lies in the folder."""
        return self.with_items(
            replace(
                item,
                mask=item.mask if "masks" in kinds else None,
                tags=item.tags if "tags" in kinds else None,
                captions=item.captions if "captions" in kinds else (),
            )
            for item in self.items
        )

    def subset(self, indices: Iterable[int]) -> Dataset:
        """The images at these places, in this order."""
        return self.with_items(self.items[int(i)] for i in indices)

    def split(self, name: str | os.PathLike[str]) -> Dataset:
        """Only the images that `splits/NAME.txt` (or a list file given by its path) names, in its order.

        Raises:
            MaskwrightError: no such split, or it names images that do not exist (tells how many and the
            nearest).
        """
        chosen = dict.fromkeys(self._resolve(name))
        here = {item.name: item for item in self.items}
        return self.with_items(here[n] for n in chosen if n in here)

    def labeled(self, names: str | os.PathLike[str] | Iterable[str]) -> Dataset:
        """Hides the masks of all images but the named ones, whatever lies in masks/.

        Args:
            names: a split, a list file, or the names themselves.

        Raises:
            MaskwrightError: as `split`.
        """
        allowed = set(self._resolve(names))
        return self.with_items(i if i.name in allowed or i.mask is None else replace(i, mask=None) for i in self.items)

    def list_names(self, name: str | os.PathLike[str]) -> tuple[list[str], str]:
        """Lines of a split or list file as they are written, and where they come from. Raises as `split`."""
        text = os.fspath(name)
        if self._splits is not None and text in self._splits:
            return list(self._splits[text]), f"split {text!r}"
        for path in (self._split_file(text), Path(text)):
            if is_regular(path):
                return read_names(path), str(path)
        known = self.split_names
        if not known:
            raise MaskwrightError(
                f"no split {text!r}: {self.root} has no splits",
                f"{self.root / 'splits' / (text + '.txt')}",
                "write it, one image name a line, or leave the option out",
            )
        raise unknown("split", text, known)

    def _split_file(self, name: str) -> Path:
        return self.root / "splits" / f"{name.removesuffix('.txt')}.txt"

    def _resolve(self, names: str | os.PathLike[str] | Iterable[str]) -> list[str]:
        if isinstance(names, str | os.PathLike):
            lines, source = self.list_names(names)
        else:
            lines, source = [str(n) for n in names], "the list"
        if self._finder is None:
            # Images left out as unreadable are still known: a split that names them is not wrong.
            self._finder = NameIndex([*self.known_names, *(n for n, _ in self.skipped)], IMAGE_SUFFIXES)
        found: list[str] = []
        missing: list[str] = []
        for line in lines:
            name = self._finder.find(line)
            (missing if name is None else found).append(line if name is None else name)
        if missing:
            close = nearest(missing[0], self.known_names)
            more = f" (first {missing[0]!r})" if len(missing) > 1 else f" ({missing[0]!r})"
            raise MaskwrightError(
                f"{len(missing)} of {len(lines)} names in {source} are of no image{more}",
                f"names of images in {self.root}",
                f"the nearest is {close!r}; see maskwright doctor {self.root}" if close else "",
            )
        return found

    # ------------------------------------------------------------------ images

    def image(self, i: int) -> np.ndarray:
        """Image `i`, uint8 (H, W, 3), EXIF orientation applied. Raises `MaskwrightError` if unreadable."""
        path = self.items[i].image
        return read_image(path, range=self.value_range) if self.readers.image is None else self.readers.image(path)

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of image `i`, without decoding it."""
        return self.header(i).size if self.readers.size is None else self.readers.size(self.items[i].image)

    def header(self, i: int) -> Header:
        """What the header of image file `i` says; kept while the file is unchanged. Raises `MaskwrightError`."""
        return self._known_files.header(self.items[i].image)

    def value_range(self) -> tuple[float, float] | None:
        """(low, high), the stored values that become 0 and 255 in images of more than 8 bits; None: there are none.

        What was said, else `.scale`, else what a survey of the folder gives. Raises as `scale.survey_scale`.
        """
        if self.reading.range is not None:
            return self.reading.range
        scale = self.scale or self.survey()
        return None if scale is None else scale.span

    def survey(self) -> Scale | None:
        """The scale of the folder's images of more than 8 bits, None if it has none; found once."""
        return self._known_files.scale()

    @property
    def settled_reading(self) -> Reading:
        """What was said of the files' values, with the range that holds for them where `.scale` is settled."""
        if self.scale is None or self.reading.range is not None:
            return self.reading
        return replace(self.reading, range=self.scale.span)

    def resized(self, i: int, size: tuple[int, int], window: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """Image `i`, or a window (top, left, height, width) of it, resized to (h, w) as `images.read_resized`
        does."""
        path = self.items[i].image
        if self.readers.image is None:
            return read_resized(path, size, window, range=self.value_range)
        image = self.readers.image(path)
        return resize_window(image, window or (0, 0, *image.shape[:2]), size)

    def content_hash(self, i: int) -> str:
        """Hash (BLAKE2b, 128 bit, hexadecimal) of the bytes of image file `i`; kept while the file is
        unchanged."""
        path = self.items[i].image
        if self.readers.digest is not None:
            return self.readers.digest(path)
        try:
            state = path.stat()
            check_regular(path, state)
            key = (str(path), state.st_size, state.st_mtime_ns)
            if key not in self._hashes:
                with open(path, "rb") as file:
                    self._hashes[key] = hashlib.file_digest(file, _blake).hexdigest()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise MaskwrightError(f"cannot read {path}: {reason}", "an image", "check the name") from error
        return self._hashes[key]

    def fingerprint(self) -> str:
        """Hash over names and contents of the images, independent of their order."""
        total = _blake()
        for name, digest in sorted((item.name, self.content_hash(i)) for i, item in enumerate(self.items)):
            total.update(f"{name}\0{digest}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def readable(self, progress: Callable[[int, int], object] | None = None) -> Dataset:
        """The dataset without the images that do not decode, which are then in `.skipped` with the reason.

        Args:
            progress: called with (done, total) after each image.

        Raises:
            MaskwrightError: no image decodes.
        """
        kept: list[Item] = []
        skipped = list(self.skipped)
        for done, (item, reason) in enumerate(zip(self.items, threaded(self._problem, self.items)), 1):
            if reason is None:
                kept.append(item)
            else:
                skipped.append((item.name, reason))
            if progress is not None:
                progress(done, len(self.items))
        if self.items and not kept:
            raise MaskwrightError(
                f"none of the {len(self)} images in {self.root} can be read (the first: {skipped[-len(self)][1]})",
                "at least one image that decodes",
                f"see maskwright doctor {self.root}",
            )
        return self.with_items(kept, skipped)

    def _problem(self, item: Item) -> str | None:
        try:
            (self.readers.verify or verify_image)(item.image)
        except MaskwrightError as error:
            return error.found
        return None

    # ------------------------------------------------------------------ labels

    def has_mask(self, i: int) -> bool:
        """Whether image `i` has a mask that may be read."""
        return self.items[i].mask is not None

    def mask(self, i: int) -> np.ndarray:
        """Ids of image `i`, uint8 or uint16 (H, W); 255 (65535 in 16 bits) = ignore. Noted in the ledger.

        Raises:
            MaskwrightError: no mask, unreadable, of another size than the image, or with ids outside the
            class table.
        """
        item = self.items[i]
        if item.mask is None:
            raise MaskwrightError(f"image {item.name!r} has no mask that may be read", "one of those with a mask")
        if not self.understood:
            # Who opens a dataset and reads a mask is asked as the verbs ask, and once.
            from maskwright.data.examining.understanding import understand_masks

            settled = understand_masks(self, files=False)
            for sentence in settled.notices[len(self.notices) :]:
                warnings.warn(sentence, stacklevel=2)
            self.rule, self.understood, self.notices = settled.rule, True, settled.notices
        ids = self.rule.read(item.mask) if self.rule is not None else self.readers.mask(item.mask)
        self.ledger.note("masks", item.name)
        check_ids(ids, item.mask, self.size(i), self.stored_classes, self.root)
        if self._stored is None or self.classes is None:
            return ids
        return renamed(ids, self._stored, self.classes)

    def tags(self, i: int) -> tuple[str, ...] | None:
        """Tags of image `i`; None: no statement, (): a row without tags. Noted in the ledger where there are
        any."""
        item = self.items[i]
        if item.tags is not None:
            self.ledger.note("tags", item.name)
        return item.tags

    def captions(self, i: int) -> tuple[str, ...]:
        """Captions of image `i`, () if none. Noted in the ledger where there are any."""
        item = self.items[i]
        if item.captions:
            self.ledger.note("captions", item.name)
        return item.captions

    def labels_present(self) -> dict[str, int]:
        """Images with each kind of label, from file names and table rows alone; nothing is noted."""
        return {
            "masks": sum(item.mask is not None for item in self.items),
            "tags": sum(item.tags is not None for item in self.items),
            "captions": sum(bool(item.captions) for item in self.items),
        }

    def summary(self) -> str:
        """What there is, in a few lines."""
        present = self.labels_present()
        lines = [
            f"{self.root}: {len(self)} images",
            "labels: " + ", ".join(f"{n} images with {kind}" if n else f"no {kind}" for kind, n in present.items()),
        ]
        if self.classes is not None:
            shown = ", ".join(self.classes.names[:12]) + (", ..." if len(self.classes) > 12 else "")
            lines.append(f"classes: {len(self.classes)} ({shown})")
        else:
            lines.append("classes: no classes.txt")
        splits = self.split_names
        if splits:
            lines.append(f"splits: {', '.join(f'{s} ({len(self.list_names(s)[0])})' for s in splits)}")
        if self.skipped:
            first = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
            lines.append(f"skipped: {len(self.skipped)} ({first}{'; ...' if len(self.skipped) > 3 else ''})")
        return "\n".join(lines)


def open_folder(path: str | os.PathLike[str]) -> Dataset:
    """Opens a dataset folder. Only names and tables are read; images and masks wait until they are asked for.

    Where the folder's names leave in doubt what is image and what is mask, a few files are looked at.

    Raises:
        MaskwrightError: the folder is missing, unreadable or without images, can be read in two ways, or one of its
            tables is damaged.
    """
    from maskwright.data.folders.opening import scan_folder

    return scan_folder(path, problems=None)


def _blake() -> hashlib._Hash:
    return hashlib.blake2b(digest_size=16)  # type: ignore[return-value]

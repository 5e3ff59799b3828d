"""What lies where in a dataset folder: images, masks, tables, and what is left aside.

The documented folder (images/, masks/) is taken as it is. Other usual ones are recognised and said: folders of other
names, in any case and one for each split; masks beside their images, with an ending or as PNG beside JPEG. Where two
readings are possible it asks. Whatever is neither image nor mask nor table is named.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maskwright.data.examining.findings import Finding, finding
from maskwright.data.folders.aside import LOOKS, TABLES, aside_findings, reason_of, reason_of_folder
from maskwright.data.folders.folder_names import (
    MASK_ENDINGS,
    RESULT_FILES,
    RESULTS,
    base_of,
    is_jpeg,
    meet,
    plain,
    role_of,
    suffix_of,
    without_ending,
)
from maskwright.data.folders.scan import Folder, Names, names_below, same_form
from maskwright.data.masking.label_maps import SAMPLE, label_map_findings, paired_folders, share_of_label_maps
from maskwright.data.masking.masks import MASK_SUFFIXES
from maskwright.data.pictures.images import IMAGE_SUFFIXES
from maskwright.errors import MaskwrightError, shown

_DEPTH = 3
"""Folders in one another that are searched for images and masks, at most."""
_SUFFIXES = IMAGE_SUFFIXES
_MASKS = frozenset(MASK_SUFFIXES)


@dataclass
class Found:
    """What lies where.

    Attributes:
        images: {name: file}, sorted by name.
        masks: {name of the image: mask file}.
        lone: mask files, below the root, of no image.
        skipped: (file, reason) of images whose name another one has.
        aside: (file or folder/, reason) of what is neither image nor mask nor table; below the root.
        splits: names of images by split, where folders say it.
        findings: what to say: how the folder was read, and what is left aside.
    """

    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    lone: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    aside: list[tuple[str, str]] = field(default_factory=list)
    splits: dict[str, list[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Area:
    """Images of one folder, with the folder of their masks if there is one.

    Attributes:
        images: path of the folder below the root.
        masks: path of the folder of masks below the root, or None: none, or beside the images.
        prefix: what stands before the images' names.
        split: the split that the folder's name says, or "".
        without: paths below `images` that hold no images.
    """

    images: str
    masks: str | None = None
    prefix: str = ""
    split: str = ""
    without: frozenset[str] = frozenset()


def recognise(root: Path) -> Found:
    """Says what lies where in a dataset folder. A few files at most are decoded, and only where names are in doubt.

    Raises:
        MaskwrightError: two readings are possible, or a folder cannot be read.
    """
    return _Recogniser(root).recognise()


def _join(*parts: str) -> str:
    return "/".join(p for p in parts if p)


class _Recogniser:
    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Folder(root)
        self.found = Found()
        self._names: dict[tuple[str, bool], Names] = {}
        self._how: list[str] = []
        self._visited: set[int] = set()
        self._results = self._result_folders()

    def recognise(self) -> Found:
        found = self.found
        areas = self._areas("", 0) or [self._flat()]
        leftover: dict[Area, Names] = {}
        for area in areas:
            whole = self._names.get((area.images, False)) if not area.without else None
            names = whole or names_below(self._at(area.images), _SUFFIXES, without=area.without)
            leftover[area] = names
            masks = self._mask_names(area.masks) if area.masks is not None else None
            if masks is not None and masks.found:
                self._join_masks(area, names, masks)
            else:
                self._masks_beside(area, names)
            for name, path in names.found.items():
                if found.images.setdefault(area.prefix + name, path) != path:
                    found.skipped.append((area.prefix + path.name, "another image has the same name"))
            found.skipped += [(area.prefix + file, reason) for file, reason in names.taken]
            if area.split:
                found.splits.setdefault(area.split, []).extend(area.prefix + name for name in names.found)
        if len(areas) == 1 and not areas[0].images:
            for name in found.images:  # as Roboflow writes it: train/NAME.jpg, valid/NAME.jpg
                word, role = role_of(name.partition("/")[0]) if "/" in name else ("", "")
                if role == "split":
                    found.splits.setdefault(word, []).append(name)
        found.images = dict(sorted(found.images.items()))
        self._doubts(areas)
        self._left_aside(areas, leftover)
        self._say()
        return found

    # ------------------------------------------------------------------ which folders

    def _at(self, below: str) -> Folder:
        folder = self.top.find(below)
        assert folder is not None
        return folder

    def _mask_names(self, below: str) -> Names:
        return self._cached(below, True)

    def _cached(self, below: str, masks: bool) -> Names:
        key = below, masks
        if key not in self._names:
            folder = self._at(below)
            self._names[key] = names_below(folder, _MASKS, MASK_SUFFIXES) if masks else names_below(folder, _SUFFIXES)
        return self._names[key]

    def _areas(self, below: str, depth: int) -> list[Area]:
        """The areas of a folder whose parts have names that say what they hold; none where names say nothing."""
        folder = self._at(below)
        if id(folder) in self._visited or not folder.readable:  # a link may lead back up
            return []
        self._visited.add(id(folder))
        by_split: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name in folder.folders:
            word, role = role_of(name)
            if role and _join(below, name) not in self._results:
                by_split[word][role].append(_join(below, name))
        if not below and "leftImg8bit" in folder.folders and {"gtFine", "gtCoarse"} & set(folder.folders):
            raise MaskwrightError(
                f"{self.root} is laid out as Cityscapes, whose masks have names and ids of their own",
                "the layout's name before the path",
                f"name it cityscapes:{self.root}",
            )
        if not below and "images" in folder.folders:
            return [self._documented(by_split[""]["mask"])]
        if not below and (flat := self._documented_flat(by_split[""]["mask"])) is not None:
            return [flat]
        pairs = {word: self._pair(below, word, roles) for word, roles in by_split.items()}
        areas = [area for area in pairs.values() if area is not None]
        if areas:
            if pairs.get("") is None:  # one folder for each split: those without masks belong to it too
                for word, roles in by_split.items():
                    places = roles["image"] or roles["split"]
                    if word and pairs[word] is None and len(places) == 1:
                        areas.append(Area(places[0], None, _join(below, word) + "/", word))
            return sorted(areas, key=lambda a: a.images)
        if depth >= _DEPTH or any(suffix_of(f) in _SUFFIXES for f in folder.files):
            return []
        places = [_join(below, name) for name in folder.folders if below or name not in ("masks", "splits")]
        areas = self._areas_in(places, depth)
        if areas:
            for place in places:
                taken = any(a.images == place or a.images.startswith(f"{place}/") for a in areas)
                if not taken and place not in self._results:
                    areas.append(self._unlabelled_sibling(place))
        return areas

    def _areas_in(self, places: Sequence[str], depth: int) -> list[Area]:
        return [area for place in places if place not in self._results for area in self._areas(place, depth + 1)]

    def _unlabelled_sibling(self, below: str) -> Area:
        """The images of a folder beside folders that hold images and masks."""
        word, role = role_of(below.rpartition("/")[2])
        split = word if role == "split" else ""
        inner = [n for n in self._at(below).folders if role_of(n) == ("", "image")]
        return Area(_join(below, *inner) if len(inner) == 1 else below, None, f"{below}/", split, self._within(below))

    def _documented(self, candidates: list[str]) -> Area:
        if "masks" in self.top.folders and self._mask_names("masks").found:
            return Area("images", "masks")
        others = [c for c in candidates if c != "masks"]
        fitting = self._fitting("images", others) if others else []
        if len(fitting) > 1:
            raise self._ask(["images"], fitting)
        if not fitting and "masks" not in self.top.folders:
            elsewhere = self._areas_in([n for n in self.top.folders if n not in ("images", "splits")], 0)
            if elsewhere:
                raise MaskwrightError(
                    f"{self.root} has images without masks in images, and images with masks in {elsewhere[0].images}",
                    "one of them",
                    f"move images out of {self.root}, or name {self.root / elsewhere[0].images.rpartition('/')[0]}",
                )
        if not fitting:
            return Area("images", "masks" if "masks" in self.top.folders else None)
        self._how.append(f"images from images, masks from {fitting[0]}")
        return Area("images", fitting[0])

    def _documented_flat(self, candidates: list[str]) -> Area | None:
        """Images directly in the folder, or in folders of classes, with masks/ beside them; None where names differ."""
        if "masks" not in self.top.folders:
            return None
        left = self._results | {"masks", "splits"}
        others = [c for c in candidates if c != "masks"]
        images = names_below(self.top, _SUFFIXES, without=left).found
        masks = self._mask_names("masks").found
        forms = {same_form(name) for name in images}
        if not any(same_form(mask) in forms for mask in masks):
            return None
        inside = {o: [p for n, p in images.items() if n.startswith(f"{o}/")] for o in others}
        for other, paths in inside.items():
            if paths and self._places_that_fit(images, other):
                alike, looked = share_of_label_maps(paths, colours=True)
                left |= {other} if 2 * alike > looked else set()
        return Area("", "masks", without=left)

    def _pair(self, below: str, word: str, roles: Mapping[str, list[str]]) -> Area | None:
        """The images and masks of a folder (or of one split in it), if there is one pair whose names meet."""
        images, masks = roles["image"], roles["mask"]
        if not masks:
            return None
        exact = [p for p in images if p.rpartition("/")[2] == "images"]
        images = exact or images or (roles["split"] if word else [])
        fitting = {image: self._fitting(image, masks) for image in images}
        fitting = {image: found for image, found in fitting.items() if found}
        if not fitting:
            return self._loose_with_masks(below, masks) if not word and not images else None
        every = list(dict.fromkeys(m for found in fitting.values() for m in found))
        if len(fitting) > 1 or len(every) > 1:
            raise self._ask(list(fitting), every)
        image, mask = next(iter(fitting)), every[0]
        self._how.append(f"images from {image}, masks from {mask}")
        own = below.rpartition("/")[2]
        split = word or (role_of(own)[0] if role_of(own)[1] == "split" else "")
        prefix = _join(below, word)
        return Area(image, mask, f"{prefix}/" if prefix else "", split)

    def _loose_with_masks(self, below: str, masks: list[str]) -> Area | None:
        """Images that lie in the folder itself, or in folders of classes, beside a folder of masks."""
        folder = self._at(below)
        if below and not any(suffix_of(f) in _SUFFIXES for f in folder.files):
            return None
        left = self._within(below) | (frozenset() if below else {"splits"})
        own = frozenset(m.rpartition("/")[2] for m in masks)
        images = names_below(folder, _SUFFIXES, without=left | own).found
        fitting = [m for mask in masks for m in self._places_that_fit(images, mask)]
        without = left | {m[len(below) + 1 if below else 0 :].partition("/")[0] for m in fitting}
        if len(fitting) > 1:
            raise self._ask([below or "."], fitting)
        if not fitting:
            return None
        self._how.append(f"images from {below or 'the folder itself'}, masks from {fitting[0]}")
        word, role = role_of(below.rpartition("/")[2])
        return Area(below, fitting[0], f"{below}/" if below else "", word if role == "split" else "", without)

    def _fitting(self, image: str, masks: list[str]) -> list[str]:
        """Those folders (or the only folders in them) whose masks are named as images of a folder."""
        exact = [m for m in masks if m.rpartition("/")[2] == "masks" and self._mask_names(m).found]
        images = self._cached(image, False).found
        return [fit for mask in exact or masks for fit in self._places_that_fit(images, mask)]

    def _places_that_fit(self, images: Mapping[str, Path], mask: str) -> list[str]:
        places = [mask, *(_join(mask, name) for name in self._at(mask).folders)]
        for k, place in enumerate(places):
            found = self._mask_names(place).found
            if found and meet(images, found)[0]:
                if not k:
                    return [place]
                return [p for p in places[k:] if meet(images, self._mask_names(p).found)[0]]
        return []

    def _flat(self) -> Area:
        """Images directly in the folder, or in folders of classes."""
        without = self._results | {"masks", "splits"}
        return Area("", "masks" if "masks" in self.top.folders else None, without=without)

    def _result_folders(self) -> frozenset[str]:
        """Folders below the root that hold results: runs, and by their name predictions beside photographs."""
        folder = self.top
        runs = {below for below, place in folder.walk(strict=False) if below and RESULT_FILES & set(place.files)}
        named = {name for name in folder.folders if plain(name) in RESULTS}
        others = any(suffix_of(f) in _SUFFIXES for f in folder.files) or any(
            n not in named and n not in ("masks", "splits") for n in folder.folders
        )
        return frozenset(runs | (named if others else set()))

    def _within(self, below: str) -> frozenset[str]:
        """The folders of results below a folder, as paths below it."""
        start = f"{below}/" if below else ""
        return frozenset(r.removeprefix(start) for r in self._results if r.startswith(start))

    def _ask(self, images: Sequence[str], masks: Sequence[str]) -> MaskwrightError:
        parts = []
        advice = []
        for what, places in (("images", images), ("masks", masks)):
            if len(places) > 1:
                parts.append(f"{what} in {' and in '.join(sorted(places))}")
                advice.append(f"rename the one to use to {what}")
        return MaskwrightError(f"{self.root} has {', '.join(parts)}", "one folder of each", "; ".join(advice))

    # ------------------------------------------------------------------ which mask belongs to which image

    def _join_masks(self, area: Area, names: Names, masks: Names) -> None:
        found = self.found
        pairs, ending, doubled = meet(names.found, masks.found)
        assert area.masks is not None
        if doubled:
            first, second = doubled
            raise MaskwrightError(
                f"{masks.found[first].name} and {masks.found[second].name} are masks of one image",
                "one mask an image",
                f"move one kind out of {self.root / area.masks}",
            )
        found.masks.update({area.prefix + image: masks.found[mask] for image, mask in pairs.items()})
        used = set(pairs.values())
        found.lone += [_join(area.masks, self._below(p, area.masks)) for n, p in masks.found.items() if n not in used]
        if ending:
            self._how.append(f"masks in {area.masks} are named as their images with {ending}")
        unpaired = [n for n in names.found if n not in pairs]
        odd = [n for n in unpaired if base_of(n, names.found) is not None]
        if odd:
            likely, looked = share_of_label_maps([names.found[n] for n in odd], colours=True)
            if 2 * likely > looked:
                for name in odd:
                    path = names.found.pop(name)
                    self._aside(area, path, f"looks like a mask beside its image, but masks are read from {area.masks}")

    def _below(self, path: Path, below: str) -> str:
        return path.relative_to(self.root / below).as_posix()

    def _aside(self, area: Area, path: Path, reason: str) -> None:
        self.found.aside.append((_join(area.images, self._below(path, area.images)), reason))

    def _masks_beside(self, area: Area, names: Names) -> None:
        """Masks that lie beside their images: NAME_mask.png, or NAME.png beside NAME.jpg."""
        self._with_ending(area, names)
        self._of_anothersuffix_of(area, names)

    def _with_ending(self, area: Area, names: Names) -> None:
        found = self.found
        bases = {n: b for n in names.found if (b := base_of(n, names.found)) is not None}
        if not bases:
            return
        endings = Counter(without_ending(n, MASK_ENDINGS)[1] for n in bases)
        likely = set()
        for ending in endings:
            paths = [names.found[n] for n in bases if without_ending(n, MASK_ENDINGS)[1] == ending]
            alike, looked = share_of_label_maps(paths, colours=True, most=max(2, SAMPLE // len(endings)))
            if 2 * alike > looked:
                likely.add(ending)
        bases = {n: b for n, b in bases.items() if without_ending(n, MASK_ENDINGS)[1] in likely}
        doubled = [b for b, n in Counter(bases.values()).items() if n > 1]
        if doubled:
            both = [names.found[n].name for n, b in bases.items() if b == doubled[0]]
            raise MaskwrightError(
                f"{' and '.join(both)} in {self.root / area.images} are masks of one image", "one mask an image",
                "move one kind into a folder of its own, with a name such as other_masks",
            )  # fmt: skip
        if not bases:
            return
        # With the ending but without an image: a mask all the same.
        alone = [n for n in names.found if n not in bases and without_ending(n, MASK_ENDINGS)[1] in likely]
        for name in alone:
            found.lone.append(_join(area.images, self._below(names.found.pop(name), area.images)))
        for name, base in bases.items():
            found.masks[area.prefix + base] = names.found.pop(name)
        said = " and ".join(sorted(likely))
        self._how.append(f"{len(bases)} masks beside their images, named with {said}")

    def _of_anothersuffix_of(self, area: Area, names: Names) -> None:
        """Of two files of one name in a folder, the one that is a label map is the mask of the other."""
        beside: dict[tuple[str, str], list[tuple[str, Path, Path]]] = defaultdict(list)
        folder = self.root / area.images
        for file, _ in names.taken:
            stem, suffix = os.path.splitext(file)
            first = names.found.get(stem)
            if first is not None and stem not in self.found.masks:
                beside[first.suffix.lower(), suffix.lower()].append((stem, first, folder / file))
        for (first_suffix, second_suffix), pairs in beside.items():
            firsts, seconds = [p for _, p, _ in pairs], [p for _, _, p in pairs]
            maps = [
                2 * alike > looked
                for paths in (firsts, seconds)
                for alike, looked in [share_of_label_maps(paths, colours=True, most=SAMPLE // 2)]
            ]
            lossy = [is_jpeg(paths[0]) for paths in (firsts, seconds)]
            maps = [found and not blurred for found, blurred in zip(maps, lossy)]
            if maps[0] == maps[1]:
                continue
            suffix = first_suffix if maps[0] else second_suffix
            for stem, first, second in pairs:
                image, mask = (second, first) if maps[0] else (first, second)
                names.found[stem] = image
                self.found.masks[area.prefix + stem] = mask
            done = {self._below(second, area.images) for _, _, second in pairs}
            names.taken = [t for t in names.taken if t[0] not in done]
            alone = [n for n, p in names.found.items() if p.suffix.lower() == suffix]
            alike, looked = share_of_label_maps([names.found[n] for n in alone], colours=True) if alone else (0, 1)
            if 2 * alike > looked:
                for name in alone:
                    self.found.lone.append(_join(area.images, self._below(names.found.pop(name), area.images)))
            self._how.append(f"{len(pairs)} masks beside their images, as {suffix[1:].upper()} of the same name")

    # ------------------------------------------------------------------ photographs that look like label maps

    def _doubts(self, areas: Sequence[Area]) -> None:
        """Label maps among images without masks: never counted as photographs without a word."""
        suspects = {n: p for n, p in self.found.images.items() if n not in self.found.masks and not is_jpeg(p)}
        if not suspects:
            return
        if areas[0].images == "" and not self.found.masks:
            for folder, other, names in paired_folders(self.found.images, suspects):
                for name in names:
                    del self.found.images[name]
                    suspects.pop(name, None)
                self.found.aside.append((f"{folder}/", f"{LOOKS} of {other or 'the images beside it'}"))
                message = f"{folder}/ holds {len(names)} files that look like label maps, named as images elsewhere"
                repair = (
                    f"rename {folder} to masks (and {other} to images) if they are masks"
                    if other
                    else f"rename {folder} to masks if they are masks"
                )
                repair += "; if they are photographs, put both folders into images/"
                self.found.findings.append(finding("looks-like-labels", "warning", names, message, repair))
        self.found.findings += label_map_findings(suspects)

    # ------------------------------------------------------------------ what is left aside

    def _left_aside(self, areas: Sequence[Area], leftover: Mapping[Area, Names]) -> None:
        aside = self.found.aside
        for area in areas:
            names = leftover[area]
            tables = TABLES if not area.images else frozenset()
            aside += [(_join(area.images, f), reason_of(f)) for f in names.other if f not in tables]
            aside += [(_join(area.images, f), reason) for f, reason in names.odd]
        for below in dict.fromkeys(a.masks for a in areas if a.masks is not None):
            names = self._mask_names(below)
            aside += [(_join(below, f), reason_of(f)) for f in names.other]
            aside += [(_join(below, f), reason) for f, reason in (*names.odd, *names.taken)]
        used = {a.images for a in areas} | {a.masks for a in areas if a.masks is not None}
        without = {_join(a.images, w) for a in areas for w in a.without} - used
        self._rest("", used, without, inside=False)
        self.found.findings += aside_findings(aside)

    def _rest(self, below: str, used: set[str], without: set[str], *, inside: bool) -> None:
        """Names what lies outside of the folders that were read."""
        folder = self._at(below)
        inside = inside or below in used
        if not inside:
            for file in folder.files:
                if (below == "splits" and suffix_of(file) == ".txt") or (not below and file in TABLES):
                    continue
                self.found.aside.append((_join(below, file), reason_of(file)))
            self.found.aside += [(_join(below, name), reason) for name, reason in folder.odd]
        for name in folder.folders:
            place = _join(below, name)
            if place == "splits" or any(u == place or u.startswith(f"{place}/") for u in used):
                self._rest(place, used, without, inside=inside and place not in without)
            elif any(w == place for w in without) or not inside:
                reason = reason_of_folder(name, folder.folders[name])
                self.found.aside += [(f"{place}/", reason)] if reason else []
            elif any(w.startswith(f"{place}/") for w in without):
                self._rest(place, used, without, inside=True)

    def _say(self) -> None:
        found = self.found
        if self._how:
            message = "; ".join(dict.fromkeys(self._how))
            found.findings.insert(0, Finding("layout", "note", 0, (), message))
        if found.lone:
            some = shown(found.lone[0]) + (", ..." if len(found.lone) > 1 else "")
            message = f"{len(found.lone)} masks have no image of the same name and are not used ({some})"
            found.findings.append(
                finding("mask-without-image", "warning", found.lone, message, "rename them as their images")
            )

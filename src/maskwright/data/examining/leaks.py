"""Splits, and pictures that are in more than one of them: lists, copies, near duplicates, leaks."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence

from maskwright.data.examining.findings import EXAMPLES, Finding, Severity, finding
from maskwright.data.examining.looks import Look
from maskwright.data.examining.phash import Likeness
from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.tables import NameIndex
from maskwright.data.pictures.images import IMAGE_SUFFIXES
from maskwright.errors import MaskwrightError


def read_splits(dataset: Dataset) -> tuple[dict[str, list[str]], list[Finding]]:
    """{split: existing image names}, and what is wrong with the lists."""
    finder = NameIndex(dataset.known_names, IMAGE_SUFFIXES)
    splits: dict[str, list[str]] = {}
    found: list[Finding] = []
    for split in dataset.split_names:
        try:
            lines, source = dataset.list_names(split)
        except MaskwrightError as error:
            found.append(finding("bad-table", "error", [split], error.found, error.repair))
            continue
        names = [finder.find(line) for line in lines]
        lost = [line for line, name in zip(lines, names) if name is None]
        if lost:
            message = f"{len(lost)} of {len(lines)} names in {source} are of no image"
            found.append(finding("split-missing-image", "error", lost, message, "correct or delete those lines"))
        twice = [name for name, n in Counter(n for n in names if n is not None).items() if n > 1]
        if twice:
            message = f"{len(twice)} images are named more than once in {source}"
            found.append(finding("split-repeats", "note", twice, message, "delete the repeated lines"))
        if not lines:
            found.append(
                finding("split-empty", "warning", [split], f"{source} names no image", "fill it in or delete it")
            )
        splits[split] = list(dict.fromkeys(n for n in names if n is not None))
    return splits, found


def duplicate_findings(looks: Sequence[Look], likeness: Likeness) -> list[Finding]:
    found = []
    same: dict[str, list[str]] = defaultdict(list)
    for look in looks:
        if look.digest is not None and look.image_problem is None:
            same[look.digest].append(look.name)
    copies = [names for names in same.values() if len(names) > 1]
    if copies:
        extra = sum(len(names) - 1 for names in copies)
        message = f"{extra} images are exact copies of others, in {len(copies)} groups"
        examples = [" = ".join(names[:4]) for names in copies]
        found.append(
            Finding(
                "duplicate-image",
                "warning",
                extra,
                tuple(examples[:EXAMPLES]),
                message,
                "keep one of each group",
            )
        )
    digest = [look.digest for look in looks]
    near = [group for group in likeness.groups() if len({digest[i] for i in group}) > 1]
    if near:
        total = sum(map(len, near))
        message = f"{total} images look nearly the same as another (video, bursts, edits), in {len(near)} groups"
        examples = [" ~ ".join(looks[i].name for i in group[:4]) for group in near]
        repair = "keep the images of a group in the same split"
        found.append(Finding("near-duplicate", "note", total, tuple(examples[:EXAMPLES]), message, repair))
    return found


_ROLES = ("train", "val", "test")
_WORDS = {"test": "test", "train": "train", "label": "train", "val": "val", "dev": "val"}


def _role(split: str) -> str:
    """What a split is for, by its name: only splits of different roles can leak into each other."""
    lower = split.lower()
    return next((role for word, role in _WORDS.items() if word in lower), lower)


def _meant_to_share(one: str, two: str, members: dict[str, set[str]]) -> bool:
    """Whether one split holds the other on purpose: trainval and val, or all images and a part."""
    for outer, inner in ((one, two), (two, one)):
        named_so = _role(inner) in outer.lower() or (_role(outer) == outer.lower() and _role(outer) not in _ROLES)
        if members[outer] >= members[inner] and named_so:
            return True
    return False


def leak_findings(looks: Sequence[Look], likeness: Likeness, splits: dict[str, list[str]]) -> list[Finding]:
    """Images that are in splits of different roles, by name or by looks."""
    place = {look.name: i for i, look in enumerate(looks)}
    members = {split: {name for name in names if name in place} for split, names in splits.items()}
    digests = [look.digest for look in looks]
    shared: dict[tuple[str, str], set[str]] = defaultdict(set)
    alike: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
    order = sorted(members, key=lambda s: (_ROLES.index(_role(s)) if _role(s) in _ROLES else 0, s))
    for one, two in itertools.combinations(order, 2):
        roles = (_role(one), _role(two))
        if roles[0] == roles[1] or _meant_to_share(one, two, members):
            continue
        shared[roles] |= members[one] & members[two]
        a = [place[n] for n in members[one] - members[two]]
        b = [place[n] for n in members[two] - members[one]]
        alike[roles].update(_alike_across(a, b, likeness, digests))
    found: list[Finding] = []
    for roles, names in shared.items():
        if names:
            message = f"{len(names)} images are named both in splits for {roles[0]} and for {roles[1]}"
            repair = "take them out of one of them"
            found.append(finding("split-overlap", "error", sorted(names), message, repair))
    for roles, pairs in alike.items():
        if pairs:
            found.append(_leak(sorted(pairs), roles, looks))
    return found


def _leak(pairs: Sequence[tuple[int, int]], roles: tuple[str, str], looks: Sequence[Look]) -> Finding:
    exact = sum(looks[i].digest == looks[j].digest for i, j in pairs)
    pictures = {j for _, j in pairs}
    severity: Severity = "error" if exact else "warning"
    message = (
        f"leak: {len(pictures)} images in splits for {roles[1]} are the same or nearly the same as images in "
        f"splits for {roles[0]} (pairs that are exact copies: {exact})"
    )
    examples = tuple(f"{looks[i].name} ~ {looks[j].name}" for i, j in pairs[:EXAMPLES])
    repair = "move them into one split, or use splits that keep scenes apart"
    return Finding("leak", severity, len(pictures), examples, message, repair)


def _alike_across(
    a: Sequence[int], b: Sequence[int], likeness: Likeness, digests: Sequence[str | None]
) -> list[tuple[int, int]]:
    """Pairs (i in a, j in b) that are the same or nearly so: for each cell one picture of `a`, all of `b`."""
    cells = likeness.cells
    in_a: dict[int, int] = {}
    same_a: dict[str, int] = {}
    for i in sorted(a, reverse=True):
        in_a[int(cells[i])] = i
        digest = digests[i]
        if digest is not None:
            same_a[digest] = i
    in_b: dict[int, list[int]] = defaultdict(list)
    pairs: set[tuple[int, int]] = set()
    for j in sorted(b):
        in_b[int(cells[j])].append(j)
        digest = digests[j]
        if digest is not None and digest in same_a:
            pairs.add((same_a[digest], j))
    joined = [(c, c) for c in in_a if c >= 0] + [p for x, y in likeness.links.tolist() for p in ((x, y), (y, x))]
    for x, y in joined:
        if x in in_a:
            pairs.update((in_a[x], j) for j in in_b.get(y, ()))
    return sorted(pairs)

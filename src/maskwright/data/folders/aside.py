"""Why files and folders are left aside, and what is said of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from maskwright.data.examining.findings import Finding, Severity, finding
from maskwright.data.folders.folder_names import RESULT_FILES, RESULTS, plain, suffix_of
from maskwright.data.folders.scan import NO_TARGET, NOT_REGULAR, NOT_UTF8, Folder
from maskwright.data.pictures.images import IMAGE_SUFFIXES
from maskwright.errors import MaskwrightError, shown

LOOKS = "looks like label maps"
"""How the reason begins why a folder of label maps is left aside; a finding of its own says it."""
TABLES = frozenset({"classes.txt", "tags.csv", "captions.csv", "colors.txt"})
"""The tables of a dataset folder."""
_CLASS_LISTS = frozenset({"labels.txt", "label.txt", "class_names.txt", "classnames.txt", "names.txt", "obj.names"})
_PAPERS = re.compile(
    r"(?i)(readme|licen[cs]e|notice|citation|changelog|copying)([^/]*)|changes\.txt|"
    r".*\.(md|rst|pdf|html?|docx?|sh|py|ipynb|log|url|sha\d*|md5)|thumbs\.db|desktop\.ini|icon\r"
)
_PHOTOGRAPHS = re.compile(
    "heic|heif|avif|jxl|cr2|cr3|crw|nef|arw|dng|orf|rw2|raf|pef|srw|psd|xcf|svg|exr|hdr|j2k|jpf|jpx|dcm|tga|pcx|dds|"
    "ico|xbm|pbm|pnm|pam|ppt|mp4|avi|mov|mkv"
)
_LABELS = re.compile("npy|npz|mat|json|xml|txt|ya?ml|csv")
_NO_DATA = "no data"
_MOST_GROUPS = 10


def reason_of(file: str) -> str:
    """Why a regular file that is no table is left aside."""
    suffix = suffix_of(file)
    if suffix in IMAGE_SUFFIXES:
        return "outside of the folders that are read"
    if file.rpartition("/")[2].lower() in _CLASS_LISTS:
        return "class names are read from classes.txt"
    return f"{suffix[1:].upper()} is not read" if suffix else "files without suffix are not read"


def _repair(groups: Iterable[str]) -> str:
    """What mends it, for the kinds of files that are left aside."""
    repairs: dict[str, None] = {}
    for reason in groups:
        kind = reason.removesuffix(" is not read").lower()
        if reason == NOT_UTF8:
            repairs["rename those whose names are not UTF-8"] = None
        elif reason in (NOT_REGULAR, NO_TARGET):
            repairs["put the files themselves there"] = None
        elif "same name" in reason:
            repairs["give each a name of its own"] = None
        elif reason.startswith("class names"):
            repairs["rename it to classes.txt"] = None
        elif reason.startswith("outside"):
            repairs["move photographs into the folder that is read"] = None
        elif _PHOTOGRAPHS.fullmatch(kind):
            repairs["convert them to JPEG or PNG"] = None
        elif _LABELS.fullmatch(kind):
            repairs["export labels as index PNG into masks/"] = None
    return "; ".join(repairs)


def reason_of_folder(name: str, folder: Folder) -> str:
    """Why a folder is left aside as a whole, with what it holds; "" where it holds nothing."""
    kinds: Counter[str] = Counter()
    result = plain(name) in RESULTS
    papers = True
    try:
        for _, place in folder.walk():
            result = result or bool(RESULT_FILES & set(place.files))
            papers = papers and not place.odd and all(map(_PAPERS.fullmatch, place.files))
            kinds.update(suffix_of(f)[1:].upper() or "without suffix" for f in place.files)
            kinds.update(reason for _, reason in place.odd)
    except MaskwrightError:
        return "cannot be read"
    if not kinds:
        return ""
    counts = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(3)) + (", ..." if len(kinds) > 3 else "")
    return "results" if result else _NO_DATA if papers else f"{counts}; not read"


def aside_findings(aside: Sequence[tuple[str, str]]) -> list[Finding]:
    """One finding on all that is left aside, but papers; none where nothing is.

    Args:
        aside: (file or folder/, reason).
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for file, reason in aside:
        quiet = reason == _NO_DATA or reason.startswith(LOOKS) or _PAPERS.fullmatch(file.rpartition("/")[2])
        if not quiet:
            groups[reason].append(shown(file))
    if not groups:
        return []
    files = [file for members in groups.values() for file in members]
    parts = []
    for reason, members in list(groups.items())[:_MOST_GROUPS]:
        first = ", ".join(members[:3]) + (f", ... {len(members)} in all" if len(members) > 3 else "")
        parts.append(f"{first} ({reason})")
    if len(groups) > _MOST_GROUPS:
        parts.append(f"and {sum(map(len, list(groups.values())[_MOST_GROUPS:]))} more")
    folders = sum(file.endswith("/") for file in files)
    what = [f"{n} {kind}{'s' if n > 1 else ''}" for n, kind in ((len(files) - folders, "file"), (folders, "folder"))]
    said = " and ".join(w for w in what if not w.startswith("0"))
    message = f"{said} {'is' if len(files) == 1 else 'are'} left aside: {'; '.join(parts)}"
    severity: Severity = "note" if set(groups) <= {"results"} else "warning"
    return [finding("left-aside", severity, files, message, _repair(groups))]

"""What learns: one file per paper, and the table that names them all."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from maskwright.errors import MaskwrightError, unknown

if TYPE_CHECKING:
    from maskwright.engine.contract import Method

TABLE = {
    "kmeans": "maskwright.methods.unsupervised.kmeans:KMeans",
    "deep_spectral": "maskwright.methods.unsupervised.deep_spectral:DeepSpectral",
    "stego": "maskwright.methods.unsupervised.stego:Stego",
    "primaps": "maskwright.methods.unsupervised.primaps:Primaps",
    "pass": "maskwright.methods.unsupervised.pass_.method:Pass",
    "cam": "maskwright.methods.weak.cam:Cam",
    "grad_cam": "maskwright.methods.weak.cam:GradCam",
    "grad_cam_pp": "maskwright.methods.weak.cam:GradCamPP",
    "seam": "maskwright.methods.weak.seam.method:Seam",
    "affinity": "maskwright.methods.weak.affinity:Affinity",
    "toco": "maskwright.methods.weak.toco.method:Toco",
    "supervised": "maskwright.methods.supervised:Supervised",
    "mean_teacher": "maskwright.methods.semi.mean_teacher:MeanTeacher",
    "cct": "maskwright.methods.semi.cct:CCT",
    "cac": "maskwright.methods.semi.cac:CAC",
    "cps": "maskwright.methods.semi.cps:CPS",
    "st_plus_plus": "maskwright.methods.semi.st_plus_plus:STPlusPlus",
    "adv_semi": "maskwright.methods.semi.adv_semi:AdvSemi",
    "u2pl": "maskwright.methods.semi.u2pl:U2PL",
    "reco_semi": "maskwright.methods.semi.reco_semi:ReCo",
    "unimatch": "maskwright.methods.semi.unimatch:UniMatch",
    "source_only": "maskwright.methods.adapt.source_only:SourceOnly",
    "dacs": "maskwright.methods.adapt.dacs:DACS",
    "advent": "maskwright.methods.adapt.advent:Advent",
    "cbst": "maskwright.methods.adapt.cbst:CBST",
}
"""Every method: name -> module:class. A new paper is one file and one line here."""


class MethodTable(Mapping[str, "type[Method]"]):
    """The methods by name; a method's module is imported when it is first asked for."""

    def __getitem__(self, name: str) -> type[Method]:
        if name not in TABLE:
            raise KeyError(name)
        module, _, cls = TABLE[name].partition(":")
        return getattr(importlib.import_module(module), cls)

    def __iter__(self) -> Iterator[str]:
        return iter(TABLE)

    def __len__(self) -> int:
        return len(TABLE)


METHODS = MethodTable()


def find_method(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        MaskwrightError: on an unknown name, with the list and the nearest match.
    """
    if name not in TABLE:
        raise unknown("method", name, TABLE)
    return METHODS[name]


PREFERENCES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("source", "there is a labelled source folder", ("dacs", "source_only")),
    ("masks", "some images have masks", ("unimatch", "mean_teacher", "supervised")),
    ("tags", "images have tags", ("seam", "cam")),
    ("captions", "images have captions", ()),
)
"""Label kind, reason, methods in order of preference; the first whose method exists is chosen."""


def choose_method(labels: Mapping[str, int], images: int, source: bool = False) -> tuple[str, str]:
    """Picks a method by the labels that are present.

    Args:
        labels: number of images with `masks`, `tags`, `captions`.
        images: number of images.
        source: whether a labelled source folder is given.

    Returns:
        The method's name and the reason in one sentence.

    Raises:
        MaskwrightError: when there is no image.
    """
    if images == 0:
        raise MaskwrightError("no image to learn from", "at least one")
    unused: list[str] = []
    for kind, reason, names in PREFERENCES:
        present = source if kind == "source" else labels.get(kind, 0) > 0
        if not present:
            continue
        if kind == "masks" and labels[kind] >= images:
            reason, names = "every image has a mask", ("supervised",)
        for name in names:
            if name in TABLE:
                count = "" if kind == "source" else f" ({labels[kind]} of {images})"
                return name, f"{name}, because {reason}{count}{_left(unused)}"
        unused.append(kind)
    left = _left(unused)
    if images < 8:
        few = "kmeans, because no method here learns from so few images"
        return "kmeans", f"{few} ({images}){left}"
    why = "no labels are needed for it and it is the strongest of the methods that read none"
    return "stego", f"stego, because {why}{left}"


def _left(unused: list[str]) -> str:
    """What the chosen method leaves aside, as the end of a sentence."""
    labels = [kind for kind in unused if kind != "source"]
    told = "; no method here uses the source" if "source" in unused else ""
    return told + (f"; it does not use the {' and '.join(labels)} that are there" if labels else "")

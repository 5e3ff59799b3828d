"""What learns: one file per paper, and the table that names them all."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from maskwright.errors import unknown

if TYPE_CHECKING:
    from maskwright.engine.contract import Method

TABLE = {
    "kmeans": "maskwright.methods.unsupervised.kmeans:KMeans",
    "deep_spectral": "maskwright.methods.unsupervised.deep_spectral:DeepSpectral",
    "stego": "maskwright.methods.unsupervised.stego.method:Stego",
    "primaps": "maskwright.methods.unsupervised.primaps:Primaps",
    "iic": "maskwright.methods.unsupervised.iic:IIC",
    "infoseg": "maskwright.methods.unsupervised.infoseg:InfoSeg",
    "picie": "maskwright.methods.unsupervised.picie:Picie",
    "redo": "maskwright.methods.unsupervised.redo.method:Redo",
    "slotcon": "maskwright.methods.unsupervised.slotcon.method:SlotCon",
    "maskcontrast": "maskwright.methods.unsupervised.maskcontrast.method:MaskContrast",
    "looking_beyond": "maskwright.methods.unsupervised.looking_beyond.method:LookingBeyond",
    "leopart": "maskwright.methods.unsupervised.leopart.method:Leopart",
    "segsort": "maskwright.methods.unsupervised.segsort:SegSort",
    "hsg": "maskwright.methods.unsupervised.hsg.method:HSG",
    "pass": "maskwright.methods.unsupervised.pass_.method:Pass",
    "cam": "maskwright.methods.weak.cam:Cam",
    "grad_cam": "maskwright.methods.weak.cam:GradCam",
    "grad_cam_pp": "maskwright.methods.weak.cam:GradCamPP",
    "seam": "maskwright.methods.weak.seam.method:Seam",
    "affinity": "maskwright.methods.weak.affinity:Affinity",
    "toco": "maskwright.methods.weak.toco.method:Toco",
    "clip_es": "maskwright.methods.weak.clip_es:ClipEs",
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
    "maskclip": "maskwright.methods.language.maskclip:MaskClip",
    "reco": "maskwright.methods.language.reco:Reco",
    "clip_seg": "maskwright.methods.language.clip_seg:ClipSeg",
    "groupvit": "maskwright.methods.language.groupvit.method:GroupVit",
    "source_only": "maskwright.methods.adapt.source_only:SourceOnly",
    "dacs": "maskwright.methods.adapt.dacs:DACS",
    "advent": "maskwright.methods.adapt.advent:Advent",
    "cbst": "maskwright.methods.adapt.cbst:CBST",
    "dannet": "maskwright.methods.adapt.dannet.method:DANNet",
    "cyclegan": "maskwright.methods.adapt.cycada.method:CycleGAN",
    "cycada": "maskwright.methods.adapt.cycada.method:Cycada",
    "uda_sod": "maskwright.methods.adapt.uda_sod.method:UDASOD",
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

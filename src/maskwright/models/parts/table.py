"""The table of what a bundle may name, and the two ends that ask it: building a part, and refusing one that could not
be built again.

A part's module is imported when the part is first asked for: whoever loads k-means does not load the networks.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from maskwright.errors import MaskwrightError, unknown
from maskwright.models.parts.part import MAX_DEPTH, Part

TABLE = {
    "BackboneEncoder": "maskwright.models.parts.encoder:BackboneEncoder",
    "Identity": "maskwright.models.parts.heads:Identity",
    "L2Norm": "maskwright.models.parts.heads:L2Norm",
    "Standardize": "maskwright.models.parts.heads:Standardize",
    "Projection": "maskwright.models.parts.heads:Projection",
    "CosineClassifier": "maskwright.models.parts.heads:CosineClassifier",
    "LinearClassifier": "maskwright.models.parts.heads:LinearClassifier",
    "StegoHead": "maskwright.models.parts.heads:StegoHead",
    "ConvDecoder": "maskwright.models.parts.heads:ConvDecoder",
    "Sequential": "maskwright.models.parts.heads:Sequential",
    "PretrainedHead": "maskwright.models.parts.pretrained_head:PretrainedHead",
    "NamedClusters": "maskwright.models.parts.named_clusters:NamedClusters",
    "PixelAttention": "maskwright.models.parts.attended_clusters:PixelAttention",
    "AttendedClusters": "maskwright.models.parts.attended_clusters:AttendedClusters",
    "ForegroundClusters": "maskwright.models.parts.foreground_clusters:ForegroundClusters",
    "Relighting": "maskwright.models.parts.relighting:Relighting",
    "RelitEncoder": "maskwright.models.parts.relighting:RelitEncoder",
    "WeightedClassifier": "maskwright.models.parts.relighting:WeightedClassifier",
    "TokenLargeFOV": "maskwright.models.parts.large_fov:TokenLargeFOV",
    "SobelEncoder": "maskwright.models.parts.sobel:SobelEncoder",
    "Projector": "maskwright.models.parts.projector:Projector",
    "RegionEncoder": "maskwright.models.parts.regions:RegionEncoder",
    "RegionClassifier": "maskwright.models.parts.regions:RegionClassifier",
    "ClassVectors": "maskwright.models.parts.class_vectors:ClassVectors",
    "Scores": "maskwright.models.parts.class_vectors:Scores",
    "SalientDecoder": "maskwright.models.parts.salient_objects:SalientDecoder",
    "ObjectClusters": "maskwright.models.parts.salient_objects:ObjectClusters",
    "SegmentPrototypes": "maskwright.models.parts.segments:SegmentPrototypes",
    "NeighbourClassifier": "maskwright.models.parts.segments:NeighbourClassifier",
    "EmbeddingHead": "maskwright.models.parts.segments:EmbeddingHead",
    "ClusteringTransformer": "maskwright.models.parts.hierarchy:ClusteringTransformer",
    "Hierarchy": "maskwright.models.parts.hierarchy:Hierarchy",
    "LevelClassifier": "maskwright.models.parts.hierarchy:LevelClassifier",
    "JointEncoder": "maskwright.models.towers.parts:JointEncoder",
    "VocabularyClassifier": "maskwright.models.towers.parts:VocabularyClassifier",
    "TowerBeside": "maskwright.models.towers.beside:TowerBeside",
    "ProxyEncoder": "maskwright.models.towers.beside:ProxyEncoder",
    "RecoScores": "maskwright.models.towers.beside:RecoScores",
    "WordHead": "maskwright.models.towers.parts:WordHead",
    "GroupEncoder": "maskwright.models.towers.groupvit.parts:GroupEncoder",
    "GroupClassifier": "maskwright.models.towers.groupvit.parts:GroupClassifier",
    "FCNHead": "maskwright.models.networks.blocks:FCNHead",
    "DDRNetEncoder": "maskwright.models.networks.ddrnet:DDRNetEncoder",
    "DDRNetDecoder": "maskwright.models.networks.ddrnet:DDRNetDecoder",
    "DDRNetAux": "maskwright.models.networks.ddrnet:DDRNetAux",
    "PlainEncoder": "maskwright.models.networks.plain:PlainEncoder",
    "VGGEncoder": "maskwright.models.networks.deeplab:VGGEncoder",
    "LargeFOV": "maskwright.models.networks.deeplab:LargeFOV",
    "SummedASPP": "maskwright.models.networks.deeplab:SummedASPP",
    "HRNetEncoder": "maskwright.models.networks.hrnet:HRNetEncoder",
    "HRNetDecoder": "maskwright.models.networks.hrnet:HRNetDecoder",
    "OCRDecoder": "maskwright.models.networks.ocr:OCRDecoder",
    "LateralFPN": "maskwright.models.networks.lateral_fpn:LateralFPN",
    "LastMap": "maskwright.models.networks.vit_heads:LastMap",
    "SegmenterLinear": "maskwright.models.networks.vit_heads:SegmenterLinear",
    "SegmenterDecoder": "maskwright.models.networks.vit_heads:SegmenterDecoder",
    "SegmenterMask": "maskwright.models.networks.vit_heads:SegmenterMask",
    "SetrNaive": "maskwright.models.networks.vit_decoders:SetrNaive",
    "SetrPup": "maskwright.models.networks.vit_decoders:SetrPup",
    "SetrMla": "maskwright.models.networks.vit_decoders:SetrMla",
    "MlaClassifier": "maskwright.models.networks.vit_decoders:MlaClassifier",
    "DPTDecoder": "maskwright.models.networks.vit_decoders:DPTDecoder",
    "SmpEncoder": "maskwright.models.networks.smp:SmpEncoder",
    "SmpDecoder": "maskwright.models.networks.smp:SmpDecoder",
    "SmpClassifier": "maskwright.models.networks.smp:SmpClassifier",
}
"""Every part that a bundle may name: name -> module:class. A part is written in `models` and gets one line here, so
that a model loads without the method that made it. Names stay as they are: files that lie with users hold them."""


def find_part(name: str) -> type[Part]:
    """The part of a name.

    Raises:
        MaskwrightError: on an unknown name, with the list and the nearest match.
    """
    if name not in TABLE:
        raise unknown("part", name[:60], TABLE)
    module, _, cls = TABLE[name].partition(":")
    part: type[Part] = getattr(importlib.import_module(module), cls)
    return part


def build_part(spec: Any) -> Part:
    """Builds a part from its spec.

    Args:
        spec: what `Part.spec` gives.

    Raises:
        MaskwrightError: no spec, an unknown kind, or arguments that do not fit.
    """
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    if not isinstance(kind, str):
        raise MaskwrightError(f"a part is described by {str(spec)[:60]!r}", "an object with its kind")
    try:
        return find_part(kind).from_spec(spec)
    except RecursionError as error:
        raise MaskwrightError("parts are nested too deeply", f"at most {MAX_DEPTH} levels") from error


# --------------------------------------------------------------------- refusing what could not be loaded


def check_known(part: type[nn.Module]) -> None:
    """Refuses a class that the table does not name.

    Raises:
        MaskwrightError: with the line to add.
    """
    where = f"{part.__module__}:{part.__qualname__}"
    if TABLE.get(part.__name__) != where:
        raise MaskwrightError(
            f"part {part.__name__} of {part.__module__} is not in the table of parts, so a model with it could be "
            "saved and not loaded",
            "a part that the table names, or an nn.Module where it is not saved",
            f'write it in maskwright/models/parts and add "{part.__name__}" to TABLE in its table.py',
        )


class _Unfilled(TorchFunctionMode):
    """New tensors stay without random numbers: on the device without memory each draw is a program of its own."""

    draws = frozenset({Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.draws:
            return args[0] if args else kwargs["tensor"]  # torch's own initialisers hand it on by name
        return func(*args, **kwargs)


@lru_cache(maxsize=256)
def _shapes_from(spec: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a part that is built from its spec, JSON, without memory; no random number is drawn."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _Unfilled():
        return {name: tuple(value.shape) for name, value in build_part(json.loads(spec)).state_dict().items()}


def check_loadable(part: nn.Module) -> None:
    """Refuses a part that could not be built again from its spec. What the spec gives is built once in a process,
    without memory; no weight changes and no random number is drawn.

    Args:
        part: as it stands in a network, with the parts inside it.

    Raises:
        MaskwrightError: the table does not name it, its spec is not JSON or out of range, or what is built from the
            spec has other tensors.
    """
    for inner in part.modules():
        if isinstance(inner, Part) or inner is part:
            check_known(type(inner))
    assert isinstance(part, Part)  # the table names nothing else
    kind = type(part).__name__
    try:
        spec = json.dumps(part.spec(), sort_keys=True)
    except (TypeError, ValueError, AttributeError) as error:
        raise MaskwrightError(
            f"part {kind} has no spec ({error})", "JSON values: its `fields` as attributes"
        ) from error
    own, twin = {name: tuple(value.shape) for name, value in part.state_dict().items()}, _shapes_from(spec)
    for name in sorted(own.keys() | twin.keys()):
        shapes = own.get(name), twin.get(name)
        if shapes[0] != shapes[1]:
            raise MaskwrightError(
                f"part {kind}: tensor {name} has shape {shapes[0]}, and {shapes[1]} when it is built from its spec",
                "a spec that says all that its tensors depend on",
                f"add what is missing to `fields` of {kind}",
            )


def check_modules(modules: Iterable[nn.Module]) -> None:
    """Refuses modules in training that hold a part which could not be loaded again, each kind of part once.

    Args:
        modules: all modules of a training; of nested parts the outermost are built.

    Raises:
        MaskwrightError: as `check_loadable`.
    """
    seen: set[str] = set()
    for module in modules:
        for part in _outermost(module):
            text = f"{type(part).__module__}:{part.spec()}"
            if text not in seen:
                check_loadable(part)
            seen.add(text)


def _outermost(module: nn.Module) -> Iterator[Part]:
    if isinstance(module, Part):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)


def check_parts_of(cls: type) -> None:
    """Refuses a class (a method) in whose file or package a part is defined that the table does not name.

    Raises:
        MaskwrightError: as `check_known`.
    """
    home = cls.__module__.rpartition(".")[0] if _is_in_package(cls) else cls.__module__
    for part in _subclasses(Part):
        where = part.__module__
        if (where == home or where.startswith(f"{home}.")) and not part.__name__.startswith("_"):
            check_known(part)


def _is_in_package(cls: type) -> bool:
    """Whether a paper has a package of its own: its file is named `method` there."""
    return cls.__module__.endswith(".method")


def _subclasses(cls: type[Part]) -> Iterator[type[Part]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)

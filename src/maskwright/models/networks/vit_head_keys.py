"""Fills the heads for vision transformers from official checkpoints.

Formats: UniMatch V2 (`head.`), Segmenter (`decoder.`), SETR of its authors (naive, PUP) and of MMSegmentation (naive,
PUP, MLA). The transformer's own tensors in the same file are `keymaps`' matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.keymaps import unwrap_entry
from maskwright.models.networks.vit_decoders import DPTDecoder, SetrMla, SetrNaive, SetrPup
from maskwright.models.networks.vit_heads import SegmenterDecoder, SegmenterLinear, SegmenterMask
from maskwright.models.parts.part import Part

_DPT = (
    (r"^(projects|resize_layers)\.", r"head.\1."),
    (r"^layer_rn\.(\d)\.", lambda m: f"head.scratch.layer{int(m[1]) + 1}_rn."),
    (r"^refine\.(\d)\.unit(\d)\.", lambda m: f"head.scratch.refinenet{int(m[1]) + 1}.resConfUnit{m[2]}."),
    (r"^refine\.(\d)\.out_conv\.", lambda m: f"head.scratch.refinenet{int(m[1]) + 1}.out_conv."),
    (r"^output\.", "head.scratch.output_conv.0."),
)
_SETR_AUTHORS = (
    (r"^norm\.", "decode_head.norm."),
    (r"^blocks\.(\d+)\.0\.", r"decode_head.conv_\1."),
    (r"^blocks\.(\d+)\.1\.", r"decode_head.syncbn_fc_\1."),
)
_SETR_MMSEG = (
    (r"^norm\.", "decode_head.norm."),
    (r"^blocks\.(\d+)\.0\.", r"decode_head.up_convs.\1.0.conv."),
    (r"^blocks\.(\d+)\.1\.", r"decode_head.up_convs.\1.0.bn."),
)


def load_official_head(checkpoint: Mapping[str, Any], decoder: Part, classifier: Part) -> None:
    """Copies the head of an official checkpoint into a decoder and its classifier, in place.

    Args:
        checkpoint: what the file holds, with or without wrappers and `module.`.
        decoder: `DPTDecoder`, `SegmenterDecoder`, `SetrNaive`, `SetrPup` or `SetrMla`; `LastMap` has nothing to load.
        classifier: the classifier that `vit_head` pairs with it, of the checkpoint's number of classes.

    Raises:
        MaskwrightError: a tensor is not in the checkpoint or has another shape; nothing is copied then.
    """
    tensors = _unwrap(checkpoint)
    states = [
        {name: _find(tensors, name, part, decoder) for name in part.state_dict() if _has_value(name)}
        for part in (decoder, classifier)
    ]
    for part, state in zip((decoder, classifier), states, strict=True):
        wanted = part.state_dict()
        for name, value in state.items():
            if value.shape != wanted[name].shape:
                raise MaskwrightError(
                    f"{name} of {type(part).__name__} is {tuple(value.shape)} in the checkpoint",
                    f"{tuple(wanted[name].shape)}",
                    "build the head with the checkpoint's classes and widths",
                )
    for part, state in zip((decoder, classifier), states, strict=True):
        part.load_state_dict(state, strict=False)


def _has_value(name: str) -> bool:
    # The counter of batch normalisation matters to no output and is missing in old checkpoints.
    return not name.endswith("num_batches_tracked")


def _unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    state = unwrap_entry(checkpoint)
    return {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}


def _find(tensors: Mapping[str, Tensor], name: str, part: Part, decoder: Part) -> Tensor:
    """The value of one of our tensors."""
    if isinstance(decoder, SetrMla):
        return _mla_tensor(tensors, name, part, decoder)
    if isinstance(part, SetrNaive | SetrPup):
        value = _get(tensors, _rewrite(_setr_names(tensors), name))
        convolution = re.match(r"blocks\.(\d+)\.1\.running_mean", name)
        # A bias before batch normalisation moves its mean and nothing else.
        bias = tensors.get(f"decode_head.conv_{convolution[1]}.bias") if convolution else None
        return value if bias is None else value - bias
    if isinstance(decoder, SetrNaive | SetrPup):
        authors = _setr_names(tensors) is _SETR_AUTHORS
        last = f"decode_head.conv_{decoder.convs}." if authors else "decode_head.conv_seg."
        return _get(tensors, name.replace("linear.", last))
    if isinstance(part, DPTDecoder):
        return _get(tensors, _rewrite(_DPT, name))
    if isinstance(decoder, DPTDecoder):
        return _get(tensors, name.replace("linear.", "head.scratch.output_conv.2."))
    if isinstance(part, SegmenterDecoder | SegmenterMask | SegmenterLinear):
        return _get(tensors, f"decoder.{name}")
    raise MaskwrightError(f"no official checkpoints of {type(part).__name__} are known", "a head of vit_head")


def _setr_names(tensors: Mapping[str, Tensor]) -> Any:
    return _SETR_AUTHORS if "decode_head.syncbn_fc_0.weight" in tensors else _SETR_MMSEG


def _mla_tensor(tensors: Mapping[str, Tensor], name: str, part: Part, decoder: SetrMla) -> Tensor:
    count = len(decoder.widths)
    if part is not decoder:
        value = _get(tensors, name.replace("conv.", "decode_head.conv_seg."))
        # MMSegmentation puts the deepest map's channels first, the authors and we the shallowest's.
        return value.unflatten(1, (count, -1)).flip(1).flatten(1, 2) if value.ndim == 4 else value
    kind, i, rest = name.split(".", 2)
    below = count - 1 - int(i)
    if kind == "norms":
        return _get(tensors, f"neck.norm.{i}.{rest}")
    if kind == "heads":
        outer, inner, leaf = rest.split(".")
        return _get(tensors, f"decode_head.mlahead.head{below + 2}.{3 * int(outer) + int(inner)}.{leaf}")
    inner, leaf = rest.split(".")
    module = f"channel_proj.{i}" if kind == "projects" else f"feat_extract.{below}"
    return _get(tensors, f"neck.mla.{module}.{('conv', 'bn')[int(inner)]}.{leaf}")


def _rewrite(rules: Any, name: str) -> str:
    for pattern, new in rules:
        changed, count = re.subn(pattern, new, name)
        if count:
            return changed
    return name


def _get(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        some = ", ".join(list(tensors)[:3]) or "nothing"
        raise MaskwrightError(f"the checkpoint has no {name} (but {some}, ...)", "a checkpoint of this head")
    return tensors[name]

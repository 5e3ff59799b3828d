"""The weights of a saved model in a new network: whole parts where they are built alike, rows of classes by name.

Which dimension of a tensor counts classes is not guessed from its size: a part is laid out without memory for one class
more, and what grows is that dimension.

Legend: C classes of the new network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.dense import Backbone
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.part import Part
from maskwright.models.parts.table import build_part
from maskwright.models.towers.groupvit.parts import GroupEncoder
from maskwright.models.towers.parts import JointEncoder

Rows = Sequence[int | None]
"""For each class of the new network the class of the saved one that is the same, or None: (C,)."""


def rows_by_name(new: Sequence[str], old: Sequence[str]) -> list[int | None]:
    """Where each name of `new` stands in `old`; None where it does not, or stands twice."""
    return [old.index(name) if list(old).count(name) == 1 else None for name in new]


def class_dimensions(part: nn.Module) -> dict[str, int]:
    """Which dimension of which tensor of a part counts its classes, by the tensor's name; empty where none does.

    Args:
        part: any module; one that is no `Part` with an argument `classes` has no such tensors.
    """
    if not isinstance(part, Part) or "classes" not in part.fields:
        return {}
    spec = part.spec()
    with torch.device("meta"):
        wider = build_part({**spec, "classes": int(spec["classes"]) + 1}).state_dict()
    found = {}
    for name, tensor in part.state_dict().items():
        grown = [k for k, (a, b) in enumerate(zip(tensor.shape, wider[name].shape)) if a != b]
        if grown:
            found[name] = grown[0]
    return found


@torch.no_grad()
def take_part(new: nn.Module, old: nn.Module, rows: Rows) -> bool:
    """Gives a part the weights of a saved one of the same build; rows of classes that the saved one lacks stay as they
    are.

    Args:
        new: of the network that is to learn.
        old: of the saved one.
        rows: which classes are the same.

    Returns:
        Whether the two are of one build but for their classes; else nothing is changed.
    """
    wanted, given = new.state_dict(), old.state_dict()
    if type(new) is not type(old) or wanted.keys() != given.keys():
        return False
    dimensions = class_dimensions(new)
    for name, tensor in wanted.items():
        shapes = [list(t.shape) for t in (tensor, given[name])]
        if (k := dimensions.get(name)) is not None and len(shapes[0]) == len(shapes[1]):
            for shape in shapes:
                shape[k] = 0
        if shapes[0] != shapes[1]:
            return False
    pairs = [(i, j) for i, j in enumerate(rows) if j is not None]
    for name, tensor in wanted.items():
        k = dimensions.get(name)
        if k is None:
            tensor.copy_(given[name])
        elif pairs:
            to, of = (torch.tensor(side, device=tensor.device) for side in zip(*pairs))
            tensor.index_copy_(k, to, given[name].to(tensor).index_select(k, of))
    return True


def backbone_of(encoder: nn.Module) -> tuple[Backbone, list[str]] | None:
    """The backbone that an encoder stands on, not dilated, with the encoder's weights.

    Args:
        encoder: of a saved model.

    Returns:
        The backbone in evaluation mode, and the names of its tensors that the encoder has not and that are therefore
        random (what classification puts behind the last stage); None where the encoder is a network of its own.

    Raises:
        MaskwrightError: the backbone cannot be built here.
    """
    if isinstance(encoder, BackboneEncoder | JointEncoder | GroupEncoder):
        held = encoder.backbone
        if held.is_vit or held.output_stride is None:
            return held, []
        return _filled(held.architecture, lambda target: dict(held.model.state_dict()))
    if not isinstance(encoder, Part) or not encoder.stands_on:
        return None
    return _filled(encoder.stands_on, encoder.backbone_tensors)


def _filled(
    architecture: str, tensors: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> tuple[Backbone, list[str]]:
    backbone = build_backbone(architecture, "random")
    wanted = backbone.model.state_dict()
    given = tensors(wanted)
    lacking = [n for n in wanted if n not in given and not n.endswith("num_batches_tracked")]
    odd = [n for n, value in given.items() if n not in wanted or value.shape != wanted[n].shape]
    if odd:
        raise MaskwrightError(f"{len(odd)} tensors of the model are not of {architecture} ({odd[0]}, ...)")
    backbone.model.load_state_dict({**wanted, **given})
    return backbone, lacking

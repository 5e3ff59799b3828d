"""The saved bundle: one safetensors file whose metadata is all that is needed to build the network.

A file is not trusted: its description may name only parts of our tables, contains no paths and reaches no
network; the segmenter is first laid out without memory and compared with the shapes in the file's header,
so that a description that asks for gigantic layers, or does not belong to its tensors, is refused before
anything is allocated. Its parts are run once without memory, so that parts whose widths do not fit are refused here
and not in the middle of a prediction. A checksum over description and tensors finds damage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from maskwright.data.masking.classes import ClassTable
from maskwright.data.trust.artefacts import Damage, misfit, parse_json
from maskwright.data.trust.files import atomic_write
from maskwright.errors import MaskwrightError
from maskwright.models.parts.part import Part
from maskwright.models.parts.table import check_loadable
from maskwright.models.preprocess import Preprocess
from maskwright.models.provenance import Provenance, read_record
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import CHECKSUM, checksum

FORMAT = "maskwright-segmenter"
VERSION = 1
FIELDS = {
    "format",
    "version",
    "spec",
    "classes",
    "preprocess",
    "provenance",
    "method",
    "notes",
    "extra",
    "shared",
}
"""What the metadata holds, and in bundles of today a checksum beside; a field unknown to this version is refused,
because it might change the meaning."""
WHOLE = "a whole model file"
MAX_METADATA = 16 * 2**20
"""Bytes of one metadata field at most; as JSON it takes some thirty times as many."""
MAX_NAME = 1000
"""Characters of a class name at most."""
EXTRA = {
    "refine?": (str, None),
    "background?": (str, None),
    "image_size?": ([int], None),
    "reading?": (dict, None),
}
"""What predictions read of `extra`, as `data.trust.artefacts.misfit` has it."""


def save_bundle(path: str | Path, segmenter: Segmenter, extra: Mapping[str, Any] | None = None) -> Path:
    """Writes a segmenter into one file, beside and renamed.

    Args:
        path: the file to write, `.safetensors`.
        segmenter: what to save.
        extra: further JSON values for readers (training figures, the labels read); kept as `segmenter.extra`.

    Returns:
        The path written.

    Raises:
        MaskwrightError: a part that the file could not be loaded with again, the folder cannot be written, or `extra`
            is not JSON.
    """
    path = Path(path)
    for part in (segmenter.encoder, segmenter.decoder, segmenter.classifier):
        check_loadable(part)
    tensors, shared = _unique_tensors(segmenter)
    try:
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "spec": json.dumps(segmenter.to_spec()),
            "classes": json.dumps(
                {"names": list(segmenter.classes.names), "colors": segmenter.classes.colors.tolist()}
            ),
            "preprocess": json.dumps(segmenter.preprocess.to_json()),
            "provenance": json.dumps(segmenter.provenance.to_json()),
            "method": segmenter.method,
            "notes": segmenter.notes,
            "extra": json.dumps(dict(segmenter.extra if extra is None else extra)),
            "shared": json.dumps(shared),
        }
    except (TypeError, ValueError) as error:
        raise MaskwrightError(f"the bundle's description is not JSON ({error})", "numbers, text and lists") from error
    metadata[CHECKSUM] = checksum(tensors, metadata)
    try:
        with atomic_write(path) as beside:
            beside.touch()
            rights = beside.stat().st_mode
            save_file(tensors, beside, metadata)
            beside.chmod(rights)  # its writer makes a file that nobody else may read, as a server would
    except SafetensorError as error:  # what its writer makes of a full disk
        raise MaskwrightError(f"cannot write {path} ({error})", "a writable folder with space") from error
    return path


def _unique_tensors(segmenter: Segmenter) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors to save, and the other names of tensors that parts share: {name: name it is saved under}."""
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in segmenter.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            shared[name] = seen[place]
            continue
        seen[place] = name
        # A clone, because two overlapping views of one storage are refused by the format.
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors, shared


def load_bundle(path: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """Builds the segmenter that a file holds, in evaluation mode; runs no code of it, asks no network.

    Args:
        path: what `save_bundle` wrote.
        device: where its tensors go.

    Raises:
        MaskwrightError: the file is missing, truncated, of another format or version, or its description and
            tensors do not belong together.
    """
    path = Path(path)
    if not path.is_file():
        raise MaskwrightError(
            f"model {path} is {'a folder' if path.is_dir() else 'missing'}",
            "a model.safetensors",
            "check the path",
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            described = _read_metadata(path, metadata)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            with torch.device("meta"):
                plan = _build(described)
                _check_shapes(path, plan, shapes, described["shared"])
            _must_fit_together(path, plan)  # outside, where each operation asks no further for its device
            segmenter = _build(described)
            state = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise MaskwrightError(
            f"{path} cannot be read as a model ({error})",
            "a whole .safetensors file made by maskwright",
            "copy or train it again",
        ) from error
    sum_found = checksum(state, metadata) if CHECKSUM in metadata else ""
    state.update({name: state[target] for name, target in described["shared"].items()})
    wanted = segmenter.state_dict()
    if wrong := [name for name, value in state.items() if value.dtype != wanted[name].dtype]:
        raise MaskwrightError(
            f"{path}: tensor {wrong[0]} is {state[wrong[0]].dtype}",
            f"{wanted[wrong[0]].dtype}",
            "train it again",
        )
    if CHECKSUM in metadata and metadata[CHECKSUM] != sum_found:
        raise MaskwrightError(
            f"{path} was damaged on the way or on the disk: its checksum does not fit",
            "the file as it was saved",
            "copy or train it again",
        )
    segmenter.load_state_dict(state)
    try:
        for part in segmenter.modules():
            if isinstance(part, Part):
                part.check_tensors()
    except ValueError as error:
        raise MaskwrightError(f"{path}: {error}", WHOLE, "copy or train it again") from error
    segmenter.extra = described["extra"]
    return segmenter.to(device).eval()


def is_bundle(path: str | Path) -> bool:
    """Whether a file says that it is a model of ours; it may be damaged all the same."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def _read_metadata(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise MaskwrightError(
            f"{path} is a safetensors file of another format ({metadata.get('format', 'unnamed')[:40]})",
            "a model made by maskwright",
            "give network weights with --weights instead",
        )
    if metadata.get("version") != str(VERSION):
        raise MaskwrightError(
            f"{path} has format version {metadata.get('version', 'none')[:20]}",
            f"version {VERSION}",
            "update maskwright (pip install -U maskwright)",
        )
    if set(metadata) - {CHECKSUM} != FIELDS:
        odd = sorted((set(metadata) - {CHECKSUM}) ^ FIELDS)
        raise MaskwrightError(f"{path} has missing or unknown metadata {', '.join(odd)[:80]}", WHOLE)
    if long := next((k for k, v in metadata.items() if len(v) > MAX_METADATA), None):
        raise MaskwrightError(f"{path}: metadata {long} has {len(metadata[long])} bytes", f"at most {MAX_METADATA}")
    described: dict[str, Any] = {"method": metadata["method"], "notes": metadata["notes"]}
    for name in ("spec", "classes", "extra", "shared"):
        try:
            described[name] = parse_json(metadata[name])
        except Damage as error:
            raise MaskwrightError(f"{path}: metadata {name} is not JSON ({error})", WHOLE) from error
        if not isinstance(described[name], dict):
            raise MaskwrightError(f"{path}: metadata {name} is no JSON object", WHOLE)
    for name, shape in (("shared", {str: str}), ("extra", EXTRA)):
        if told := misfit(described[name], shape, name):
            raise MaskwrightError(f"{path}: in the metadata {told[:200]}", WHOLE)
    described["classes"] = _read_classes(path, described["classes"])
    described["preprocess"] = Preprocess.from_json(metadata["preprocess"])
    described["provenance"] = Provenance.from_json(metadata["provenance"])
    return described


def _read_classes(path: Path, record: dict[str, Any]) -> ClassTable:
    values = read_record(record, f"{path}: class table", {"names", "colors"}, {"names", "colors"})
    names, colors = values["names"], values["colors"]
    good = (
        isinstance(names, list)
        and isinstance(colors, list)
        and len(names) == len(colors)
        and all(isinstance(name, str) and len(name) <= MAX_NAME for name in names)
        and all(
            isinstance(c, list) and len(c) == 3 and all(type(v) is int and 0 <= v <= 255 for v in c) for c in colors
        )
    )
    if not good:
        raise MaskwrightError(f"{path}: the class table is damaged", "as many names as colours of three bytes")
    return ClassTable(tuple(names), np.array(colors, np.uint8).reshape(-1, 3))


def _build(described: dict[str, Any]) -> Segmenter:
    names = ("spec", "classes", "preprocess", "provenance", "method", "notes")
    return Segmenter.from_spec(*(described[name] for name in names))


def _check_shapes(path: Path, plan: Segmenter, shapes: dict[str, tuple[int, ...]], shared: dict[str, str]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in plan.state_dict().items()}
    found = dict(shapes)
    for name, target in shared.items():
        if name in shapes or target not in shapes:
            raise MaskwrightError(f"{path}: tensor {name[:60]} is shared with a missing one", WHOLE)
        found[name] = shapes[target]
    for what, names in (
        ("lacks", sorted(set(wanted) - set(found))),
        ("has unknown", sorted(set(found) - set(wanted))),
        ("has another shape of", sorted(n for n in set(found) & set(wanted) if found[n] != wanted[n])),
    ):
        if names:
            raise MaskwrightError(
                f"{path} {what} {len(names)} tensors ({names[0][:60]})",
                "the tensors that its description names",
                "copy or train it again",
            )


@torch.inference_mode()
def _must_fit_together(path: Path, plan: Segmenter) -> None:
    """Runs the parts on a picture without memory: each must take what the one before gives."""
    m = plan.multiple_of
    try:
        size = plan.preprocess.target_size((64, 64)) if plan.preprocess.size else (-(-64 // m) * m,) * 2
        logits = plan(torch.empty(1, 3, *size, device="meta"))
        shape = tuple(logits.shape)
    except NotImplementedError:
        return  # a part that computes with values; those without memory have none
    except Exception as error:  # whatever a layer says that gets another shape than its own
        raise MaskwrightError(
            f"{path}: its parts do not fit each other ({' '.join(str(error).split())[:160]})",
            "parts of matching widths",
            "copy or train it again",
        ) from error
    if len(shape) != 4 or shape[1] != len(plan.classes):
        raise MaskwrightError(
            f"{path}: its parts give {shape[1:2] or shape} maps for {len(plan.classes)} classes", "one map a class",
            "copy or train it again",
        )  # fmt: skip

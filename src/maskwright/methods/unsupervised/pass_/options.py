"""PASS's options, a group for each part, and the presets that decide most of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maskwright.engine.config import Idle, fill_from_preset, option, part
from maskwright.errors import MaskwrightError
from maskwright.models.preprocess import MAX_SIDE

CUSTOM: dict[str, Any] = {
    "crop": 224, "local_crop": 96, "local_crops": 6, "scale_min": 0.14, "hidden": 512, "prototypes": 500, "batch": 256,
    "epochs": 200, "lr": 0.6, "queue": 2048, "queue_epoch": 15, "frozen": 1001, "attention_epochs": 20,
    "attention_lr": 6.0, "attention_final": 1e-4, "attention_local_crops": 0, "attention_scale_min": 0.08,
    "attention_queue": 3840, "finetune_epochs": 20, "finetune_lr": 0.6, "finetune_scale_min": 0.08, "short_side": 256,
    "finetune_share": 1.0, "restarts": 30, "backbone_share": 1.0, "freeze_norm": False,
}  # fmt: skip
S300 = CUSTOM | {
    "local_crops": 0, "scale_min": 0.08, "hidden": 2048, "prototypes": 3000, "epochs": 100, "queue": 3840,
    "frozen": 5005, "attention_lr": 0.6, "attention_final": 1e-3,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": CUSTOM | {
        "crop": 128, "local_crop": 64, "local_crops": 2, "hidden": 256, "prototypes": 128, "batch": 32, "epochs": 24,
        "lr": 2.0, "queue": 256, "queue_epoch": 4, "frozen": 25, "attention_epochs": 8, "attention_lr": 6.0,
        "attention_final": 1e-3, "attention_local_crops": 2, "attention_scale_min": 0.14, "finetune_scale_min": 0.14,
        "attention_queue": 256, "finetune_epochs": 12, "finetune_lr": 2.0, "finetune_share": 0.05, "short_side": 192,
        "restarts": 10, "backbone_share": 0.05, "freeze_norm": True,
    },
    "imagenet_s50": CUSTOM, "imagenet_s300": S300, "imagenet_s919": S300, "custom": CUSTOM,
}  # fmt: skip
"""By flat names. `small` finishes on two cores; those of ImageNet-S are the released schedules, `custom` begins as that
of 50."""
PAPER_BACKBONES = {"imagenet_s50": "resnet18", "imagenet_s300": "resnet50", "imagenet_s919": "resnet50"}


@dataclass(kw_only=True)
class CropOptions:
    """The crops of pretraining."""

    size: int = option(None, "side of the two global crops, pixels (preset)", low=16, old="crop", main=True)
    local_size: int = option(None, "side of the local crops, pixels (preset)", low=16, old="local_crop")
    local: int = option(
        None, "local crops of a photograph; swav alone uses them (preset)", low=0, high=32, old="local_crops"
    )
    scale_min: float = option(
        None, "least share of the area of a global crop, greatest of a local one (preset)", low=0.051, high=1
    )
    batch: int = option(None, "photographs in a step, over all processes (preset)", low=2, main=True)
    threads: int = option(0, "photographs prepared at a time; 0: as many as torch computes with, at most 16", low=0)


@dataclass(kw_only=True)
class InstanceOptions:
    """L_e, the loss between crops."""

    kind: str = option(
        "swav", "L_e, the loss between crops", choices=("swav", "simsiam", "moco"), old="instance", main=True
    )
    dim: int = option(128, "d, width of embeddings", low=2)
    hidden: int = option(None, "width inside the heads (preset)", low=2)
    prototypes: int = option(None, "prototypes of swav (preset)", low=2)
    temperature: float = option(0.1, "tau of swav's predictions", low=0.01, high=1)
    eps: float = option(0.05, "of swav's balanced assignment", low=0.005, high=1)
    queue: int = option(
        None, "earlier embeddings that assignments are balanced with, or moco's negatives (preset)", low=0
    )
    queue_epoch: int = option(None, "epoch from which swav's queue is filled (preset)", low=0)
    frozen: int = option(None, "first steps in which the prototypes stay (preset)", low=0)


@dataclass(kw_only=True)
class ShapeOptions:
    """What teaches the network where things are."""

    p2p: bool = option(True, "pixel-to-pixel alignment of what two crops share")
    grid: int = option(7, "G, points a side of the shared grid", low=1, high=64)
    d2s: tuple[int, ...] = option(
        (3,), "stages that the deepest (4) supervises, deep to shallow; empty for none", low=1, high=3
    )
    weight: float = option(
        1.0, "w_s of each such stage beside w_0 = 1 of L_e; all are divided by their sum", low=0, old="d2s_weight"
    )

    def check(self) -> None:
        """Raises `MaskwrightError` on stages in another order."""
        if list(self.d2s) != sorted(set(self.d2s), reverse=True):
            raise MaskwrightError(f"d2s={self.d2s}", "stages from deep to shallow, each once, as 3,2")


@dataclass(kw_only=True)
class PretrainOptions:
    """The stage `pretrain`."""

    epochs: int = option(
        None, "passes over the photographs of pretraining, unless --steps says (preset)", low=1, main=True
    )
    lr: float = option(None, "LARC's factor, cosine to a thousandth of it (preset)", low=0, main=True)
    backbone_share: float = option(None, "share of lr for the backbone in pretraining (preset)", low=0)


@dataclass(kw_only=True)
class AttentionOptions:
    """The stage `attention`."""

    learn: bool = option(True, "learn the gate; without it nothing is other", old="attention")
    epochs: int = option(None, "passes of the gate's stage; --steps scales it (preset)", low=1, old="attention_epochs")
    lr: float = option(None, "LARC's factor there (preset)", low=0, old="attention_lr")
    final: float = option(
        None, "what is left of it at the stage's end, as a share (preset)", low=0, high=1, old="attention_final"
    )
    local_crops: int = option(
        None, "local crops of a photograph there (preset)", low=0, high=32, old="attention_local_crops"
    )
    scale_min: float = option(
        None, "least share of the area of a global crop there, greatest of a local one (preset)", low=0.051, high=1,
        old="attention_scale_min",
    )  # fmt: skip
    queue: int = option(None, "queue there, from its first step (preset)", low=0, old="attention_queue")


@dataclass(kw_only=True)
class LabelOptions:
    """Clustering and labelling."""

    short_side: int = option(
        None, "shorter side for clustering, labelling and prediction, pixels (preset)", low=32, high=MAX_SIDE
    )
    restarts: int = option(None, "k-means starts; the best inertia is kept (preset)", low=1)
    threshold: float | None = option(
        None, "least mean gate of what is not other; none: Otsu's, or 0", low=0, high=1, main=True
    )
    oracle_threshold: bool = option(False, "choose it by the mIoU of the run's own masks, as the authors do")


@dataclass(kw_only=True)
class FinetuneOptions:
    """The stage `finetune`."""

    epochs: int = option(
        None, "passes over the pseudo-labels; 0: the clusters are the result (preset)", low=0, old="finetune_epochs"
    )
    lr: float = option(None, "LARC's factor there (preset)", low=0, old="finetune_lr")
    scale_min: float = option(
        None, "least share of a crop's area there (preset)", low=0.01, high=1, old="finetune_scale_min"
    )
    share: float = option(None, "share of it for the backbone (preset)", low=0, old="finetune_share")


@dataclass(kw_only=True)
class PassConfig:
    """Options of `pass`; those without a value of their own take the preset's, those that are given win."""

    preset: str = option("small", "sets the other options' defaults", choices=tuple(PRESETS), main=True)
    other: str = option(
        "auto", "id 0, other: within --classes, beside them, or auto: beside where classes.txt has no class for it",
        choices=("auto", "within", "beside"),
    )  # fmt: skip
    crops: CropOptions = part(CropOptions)
    instance: InstanceOptions = part(InstanceOptions)
    shape: ShapeOptions = part(ShapeOptions)
    pretrain: PretrainOptions = part(PretrainOptions)
    attention: AttentionOptions = part(AttentionOptions)
    labels: LabelOptions = part(LabelOptions)
    finetune: FinetuneOptions = part(FinetuneOptions)
    freeze_norm: bool = option(None, "keep the backbone's batch-norm statistics, in all stages (preset)")
    weight_decay: float = option(1e-6, "on every tensor", low=0)
    precision: str = option("auto", "bf16 where the processor has it, or fp32", choices=("auto", "bf16", "fp32"))

    def __post_init__(self) -> None:
        fill_from_preset(self, PRESETS.get(self.preset, {}))

    def idle(self) -> Idle:
        """Options of swav beside another loss, and of parts and stages that are switched off."""
        i, s, gate, swav = self.instance, self.shape, self.attention, self.instance.kind == "swav"
        if not swav:
            rest = ("crops.local", "crops.local_size", "attention.local_crops")
            yield (*rest, "instance.queue_epoch", "instance.frozen"), f"instance.kind={i.kind}"
            if not gate.learn:
                names = ("instance.prototypes", "instance.temperature", "instance.eps")
                yield names, f"instance.kind={i.kind} and attention.learn=false"
        else:
            if not i.queue:
                yield ("instance.queue_epoch",), "instance.queue=0"
            if not self.crops.local and not (gate.learn and gate.local_crops):
                yield ("crops.local_size",), "no local crops"
        if i.kind == "simsiam":
            yield ("instance.queue",), "instance.kind=simsiam"
        if not s.p2p:
            yield ("shape.grid",), "shape.p2p=false"
        if not s.d2s:
            yield ("shape.weight",), "an empty shape.d2s"
        if not gate.learn:
            stage = ("epochs", "lr", "final", "local_crops", "scale_min", "queue")
            yield (*(f"attention.{name}" for name in stage), "labels.threshold"), "attention.learn=false"
        if not self.finetune.epochs:
            yield ("finetune.lr", "finetune.scale_min", "finetune.share"), "finetune.epochs=0"

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.labels.oracle_threshold and (self.labels.threshold is not None or not self.attention.learn):
            raise MaskwrightError("oracle_threshold without a threshold to choose", "attention, and no threshold given")

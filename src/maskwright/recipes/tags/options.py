"""Options of methods that learn from image tags, a group for each part; those of the network that learns from the
pseudo masks afterwards are the groups of `recipes/training/options.py`."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.engine.config import Idle, option, part
from maskwright.errors import MaskwrightError
from maskwright.models.preprocess import MAX_LONG_SIDE
from maskwright.ops.cam import FUSIONS, NORMS
from maskwright.recipes.training.optimizers import OPTIMIZERS
from maskwright.recipes.training.options import NetworkConfig

RULES = ("entropy", "otsu")
"""Ways to find the background threshold without masks."""


@dataclass(kw_only=True)
class TagOptions:
    """What the photographs are tagged with."""

    from_masks: bool = option(
        False, "take the classes in each mask as its tags; the ledger shows the masks read", old="tags_from_masks"
    )
    background: str = option(
        "auto", "class that no tag names; auto: the one called background, else class 0 where nothing is tagged with it"
    )


@dataclass(kw_only=True)
class ClassifierOptions:
    """The classifier that says where it sees its tags, and how it learns."""

    steps: int = option(
        0, "steps of the classifier; 0: --steps, or 800 where that is not given", low=0, old="tag_steps", main=True
    )
    batch: int = option(8, "crops in a step", low=1, old="tag_batch")
    size: int = option(
        320, "side of the square crops, pixels; rounded up to what the network takes", low=16, old="tag_crop", main=True
    )
    long_side: int = option(
        512, "long side of images before the random scale, and of seeds, pixels", low=16, high=MAX_LONG_SIDE,
        old="tag_long_side",
    )  # fmt: skip
    scale_min: float = option(
        0.65, "least random scale: crops see most of a smaller image", low=0.05, high=10, old="tag_scale_min"
    )
    scale_max: float = option(1.25, "greatest random scale", low=0.05, high=10, old="tag_scale_max")
    jitter: float = option(0.0, "strength of the colour jitter (SEAM: 0.3)", low=0, high=1, old="tag_jitter")
    optimizer: str = option("sgd", "sgd with momentum, or adamw", choices=OPTIMIZERS, old="tag_optimizer")
    momentum: float = option(0.9, "of sgd", low=0, high=1, old="tag_momentum")
    lr: float = option(0.1, "learning rate of the classifier, poly schedule", low=0, old="tag_lr")
    encoder_lr: float = option(
        0.1, "the pretrained layers' rate as a share of lr", low=0, high=10, old="tag_encoder_lr"
    )
    weight_decay: float = option(1e-4, "on all weights but norms and biases", low=0, old="tag_weight_decay")
    dropout: float = option(
        0.0, "chance of a channel to be dropped before the classifier", low=0, high=0.95, old="tag_dropout"
    )
    freeze: int = option(
        -1, "stem and so many first stages without gradient, half the cost of training; 0: none; -1: as the papers, "
        "two of a ResNet (IRN) and of others, one of ResNet-38d (SEAM)", low=-1, old="tag_freeze",
    )  # fmt: skip
    output_stride: int = option(16, "pixels a cell of the maps; 0: as the network is", choices=(0, 8, 16, 32))

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.scale_min > self.scale_max:
            raise MaskwrightError(f"scale_min={self.scale_min}", f"at most scale_max={self.scale_max}")


@dataclass(kw_only=True)
class MapOptions:
    """How class maps of whole photographs are made."""

    scales: tuple[float, ...] = option((0.5, 1.0, 1.5, 2.0), "input sizes the maps are taken at", low=0.05, high=8)
    flips: bool = option(True, "add the maps of the mirrored image")
    fuse: str = option("sum", "how scales and flips are joined: sum (IRN, SEAM) or max", choices=FUSIONS)
    norm: str = option("max", "range of each map: by its maximum (IRN), or minmax (SEAM)", choices=NORMS)

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if not self.scales:
            raise MaskwrightError("no scales", "at least one", "--set scales=0.5,1,1.5,2")


@dataclass(kw_only=True)
class SeedOptions:
    """How class maps become pseudo masks."""

    threshold: float | None = option(
        None,
        "a pixel is background where no map reaches it, in [0, 1]; none: chosen without masks where a class stands for "
        "the background, else 0",
        low=0, high=1, main=True,
    )  # fmt: skip
    threshold_rule: str = option(
        "entropy", "how it is chosen: least cross entropy (Li and Lee), or otsu", choices=RULES
    )
    oracle_threshold: bool = option(False, "the published way: the threshold with the best mIoU on the masks (peeks)")
    band: float = option(0.0, "pixels whose largest map is nearer to the threshold get no label", low=0, high=0.5)
    crf: bool = option(True, "refine the seeds with a dense CRF before they become labels", old="seed_crf")
    threshold_curve: bool = option(False, "write mIoU, mFN and mFP over the threshold; reads masks, to judge only")
    judge: bool = option(False, "report mIoU, mFN and mFP of the seeds; reads masks, to judge only", main=True)

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.oracle_threshold and self.threshold is not None:
            raise MaskwrightError("both threshold and oracle_threshold", "one of them")


@dataclass(kw_only=True)
class TagsConfig(NetworkConfig):
    """Options of the whole way from tags to a segmentation network."""

    tags: TagOptions = part(TagOptions)
    classifier: ClassifierOptions = part(ClassifierOptions)
    maps: MapOptions = part(MapOptions)
    seeds: SeedOptions = part(SeedOptions)

    @property
    def finds_threshold(self) -> bool:
        """Whether a background threshold is found without masks."""
        return self.seeds.threshold is None and not self.seeds.oracle_threshold

    def idle(self) -> Idle:
        """Options of another optimiser, of maps that are not joined, and of a threshold that is not looked for."""
        yield from super().idle()
        if self.classifier.optimizer != "sgd":
            yield ("classifier.momentum",), f"classifier.optimizer={self.classifier.optimizer}"
        if len(self.maps.scales) == 1 and not self.maps.flips:
            yield ("maps.fuse",), "one of maps.scales and maps.flips=false"
        if not self.finds_threshold:
            given = self.seeds.threshold
            how = "seeds.oracle_threshold=true" if given is None else f"seeds.threshold={given:g}"
            yield ("seeds.threshold_rule",), how

"""Options of CycleGAN and CyCADA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskwright.engine.config import Idle, option, part
from maskwright.errors import MaskwrightError
from maskwright.methods.adapt.cycada.losses import Weights
from maskwright.recipes.training.options import NetworkConfig, NormOptions

TRANSLATIONS = ("cyclegan", "fda", "histogram", "none")


@dataclass(kw_only=True)
class GeneratorOptions:
    """How the generators learn, and how they translate."""

    steps: int = option(0, "steps of the generators; 0: as many as of the segmenter", low=0, main=True)
    blocks: int = option(9, "residual blocks of a generator; the authors take 6 below 256 pixels", low=1)
    width: int = option(64, "channels of the first convolution of generators and their discriminators", low=2)
    side: int = option(256, "side of the square crops, pixels; rounded up to a multiple of 4", low=32)
    each: int = option(1, "crops of each domain in a step", low=1)
    scale_min: float = option(1.0, "least random scale of such a crop", low=0.05, high=10)
    scale_max: float = option(1.0, "greatest random scale", low=0.05, high=10)
    g_lr: float = option(
        2e-4, "rate of generators and their discriminators (Adam, betas 0.5 and 0.999), constant, then linear to 0",
        low=0,
    )  # fmt: skip
    constant: float = option(0.5, "share of the steps before the rate falls", low=0, high=1)
    gan: float = option(1.0, "weight of the adversarial term towards the target; the code of CyCADA has 2", low=0)
    cycle: float = option(10.0, "lambda, weight of cycle consistency", low=0)
    identity: float = option(0.5, "weight of identity, as a share of lambda", low=0)
    pool: int = option(50, "images of each generator that its discriminator is shown again; 0: none", low=0)
    tile: int = option(512, "side of the tiles in which photographs are translated, pixels", low=32)

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.scale_min > self.scale_max:
            raise MaskwrightError(
                f"generators.scale_min={self.scale_min}", f"at most generators.scale_max={self.scale_max}"
            )


@dataclass(kw_only=True)
class SemanticOptions:
    """A segmenter of the source as a judge of what the generators keep."""

    weight: float = option(1.0, "of semantic consistency; 0: there is no judge", low=0, main=True)
    limit: float = option(1.0, "the judge's loss on source crops up to which it is listened to, nats", low=0)
    steps: int = option(0, "steps of the judge's training; 0: as many as of the segmenter", low=0)


@dataclass(kw_only=True)
class AlignOptions:
    """The segmenter against a discriminator of domains, after its training."""

    weight: float = option(0.1, "lambda_g, of what fools the discriminator; 0: no such stage", low=0, main=True)
    share: float = option(0.25, "of the steps that are the stage's", low=0.01, high=0.9)
    on: str = option("scores", "what the discriminator sees: scores or the decoder's features",
                     choices=("scores", "features"))  # fmt: skip
    gate: float = option(0.6, "accuracy of the discriminator above which the segmenter learns", low=0, high=1)
    window: int = option(100, "steps whose mean accuracy counts", low=1)
    shared: bool = option(True, "one network for both domains; false: the source's stays as it was")
    slower: float = option(0.1, "the segmenter's rate, as a share of its training's", low=1e-6, high=1)
    d_lr: float = option(1e-4, "the discriminator's rate (Adam, betas 0.9 and 0.99), poly schedule", low=0)


@dataclass(kw_only=True)
class CycadaConfig(NetworkConfig):
    """Options of `cycada`."""

    norms: NormOptions = part(NormOptions, photographs="all")
    translation: str = option(
        "cyclegan", "how the source's photographs are translated: learned, by Fourier transform, by histograms, not",
        choices=TRANSLATIONS, main=True,
    )  # fmt: skip
    beta: float = option(0.01, "fda: half the box of low frequencies, share of the shorter side", low=0, high=0.5,
                         main=True)  # fmt: skip
    generators: GeneratorOptions = part(GeneratorOptions)
    semantic: SemanticOptions = part(SemanticOptions)
    align: AlignOptions = part(AlignOptions)

    def idle(self) -> Idle:
        """Options of another way to translate photographs, and of a judge and an alignment that are none."""
        yield from super().idle()
        how, without = self.translation, ("share", "on", "gate", "window", "shared", "slower", "d_lr")
        if how != "fda":
            yield ("beta",), f"translation={how}"
        if how != "cyclegan":
            yield ("generators", "semantic"), f"translation={how}"
        elif not self.semantic.weight:
            yield ("semantic.limit", "semantic.steps"), "semantic.weight=0"
        if how == "cyclegan" and not self.generators.cycle:
            yield ("generators.identity",), "generators.cycle=0"
        if not self.align.weight:
            yield [f"align.{name}" for name in without], "align.weight=0"

    @property
    def weights(self) -> Weights:
        """Of the generators' terms."""
        g = self.generators
        return Weights(g.gan, g.cycle, g.identity, self.semantic.weight)


@dataclass(kw_only=True)
class CycleGANConfig(CycadaConfig):
    """Options of `cyclegan`: translation alone."""

    unused: ClassVar[tuple[str, ...]] = ("translation", "beta", "semantic", "align")
    semantic: SemanticOptions = part(SemanticOptions, weight=0.0)
    align: AlignOptions = part(AlignOptions, weight=0.0)

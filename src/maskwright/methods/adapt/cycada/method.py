"""CyCADA: Cycle-consistent adversarial domain adaptation, Hoffman et al., ICML 2018, https://arxiv.org/abs/1711.03213,
and CycleGAN: Unpaired image-to-image translation using cycle-consistent adversarial networks, Zhu et al., ICCV 2017,
https://arxiv.org/abs/1703.10593 (`cyclegan`: without judge and align; its end is RUN/translate/photographs)

    judge       f_S learns the source and is frozen
    generators  G: s -> t and F: t -> s against D_T and D_S (`translation=cyclegan`):
                (D_T(G(s)) - 1)^2 + (D_S(F(t)) - 1)^2 + 10 (|F(G(s)) - s| + |G(F(t)) - t|)
                + 5 (|G(t) - t| + |F(s) - s|) + CE(f_S(G(s)), y) + CE(f_S(F(t)), argmax f_S(t))
    translate   all source photographs, in tiles, or by FDA (Yang and Soatto, CVPR 2020,
                https://arxiv.org/abs/2004.05498) or histograms: a data set with the source's masks
    train       the segmenter f on it
    align       D tells f(G(s)) from f(t); while its accuracy is above .6, f learns to fool it

Deviates: f_S is frozen, as in the paper; in the code it learns in each step. As there, y is asked where the paper has
argmax f_S(s), and the term is off while f_S's loss on s is above 1. The code doubles D_T's term (`generators.gan=2`).
2,000 steps stand for 200 epochs. A photograph is translated once, towards one target photograph by lot, where FDA draws
anew in each step, and is stored in 8 bits. f has the optimiser of all methods here, in `align` at a tenth of its rate;
D has Adam and sees scores at the decoder's size. Padding counts nowhere. A gate that never opened is said, where the
code ends the training.
What the originals get wrong: for segmentation the semantic term was never on, for want of memory (crops do); with beta
0 FDA's numpy code still swaps the mean colour. G may paint what a mask calls otherwise: look at the photographs.

Legend: s source, t target crops, y labels of s, D discriminators.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from maskwright.data.training.sources import Labels
from maskwright.engine.checkpoint import CHECKPOINT, load_part, stage_parts
from maskwright.engine.contract import Stage
from maskwright.engine.needs import Terms
from maskwright.methods.adapt.cycada.aligning import AlignTraining
from maskwright.methods.adapt.cycada.generating import TO_TARGET, GeneratorTraining
from maskwright.methods.adapt.cycada.networks import Generator
from maskwright.methods.adapt.cycada.options import CycadaConfig, CycleGANConfig
from maskwright.methods.adapt.cycada.translating import (
    TranslatedLabels,
    Translation,
    by_fourier,
    by_generator,
    by_histogram,
    translate_all,
)
from maskwright.models.networks.build import Network
from maskwright.recipes.adaptation import SourceMethod
from maskwright.recipes.training.forward import precision_of
from maskwright.recipes.training.network import make_preprocess, retake, trained_network
from maskwright.recipes.training.selection import hold_out
from maskwright.recipes.training.training import train_network


class Cycada(SourceMethod):
    """Translation, training on what is translated, alignment."""

    name: ClassVar[str] = "cycada"
    title: ClassVar[str] = "CyCADA: Cycle-consistent adversarial domain adaptation"
    venue: ClassVar[str] = "Hoffman et al., ICML 2018"
    link: ClassVar[str] = "https://arxiv.org/abs/1711.03213"
    summary: ClassVar[str] = "Translates a source, then aligns features."
    Config: ClassVar[type] = CycadaConfig
    says: ClassVar[str] = "a network on the source's translated photographs"

    def stages(self) -> list[Stage]:
        """One to five."""
        c, found = self.config, []
        if self.judges_generators:
            steps = c.semantic.steps or self.steps
            found.append(Stage("judge", "train", self.train_judge, "a segmenter of the source, as a judge", steps))
        if c.translation == "cyclegan":
            steps = c.generators.steps or self.steps
            says = "generators from the source to the target and back"
            found.append(Stage("generators", "train", self.train_generators, says, steps))
        if c.translation != "none":
            says = "the source's photographs in the target's look, with their masks"
            found.append(Stage("translate", "fit", self.translate, says))
        says = self.says if c.translation != "none" else "a network on the source's photographs"
        found.append(Stage("train", "train", self.train, says, self.steps_of("train")))
        if c.align.weight > 0:
            says = "the network against a discriminator of domains"
            found.append(Stage("align", "train", self.align, says, self.steps_of("align")))
        return found

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """Later trainings stand on the earlier ones, where there are several."""
        alone = config.translation != "cyclegan" and config.align.weight == 0
        fixed = "" if alone else "its trainings follow one another, and the later ones stand on the earlier ones"
        return replace(super().terms(config, images), fixed=fixed)

    @property
    def judges_generators(self) -> bool:
        """Whether generators are judged by a segmenter of the source."""
        return self.config.translation == "cyclegan" and self.config.semantic.weight > 0

    def steps_of(self, stage: str) -> int:
        """Steps of the segmenter's training and its alignment, which share those of the run; at least one each."""
        a = self.config.align
        aligning = min(max(1, round(a.share * self.steps)), max(1, self.steps - 1)) if a.weight > 0 else 0
        return aligning if stage == "align" else max(1, self.steps - aligning)

    def folder(self, stage: str) -> Path:
        """Where a stage's artefacts lie."""
        return self.context.run.path / stage

    def masks(self) -> Labels:
        """The source's masks, on its own photographs."""
        return super().labels()

    def labels(self) -> Labels:
        """The source's masks, on its translated photographs where there are some."""
        masks = self.masks()
        return masks if self.config.translation == "none" else TranslatedLabels(masks, self.folder("translate"))

    @property
    def of_source(self) -> CycadaConfig:
        """The judge's options: its iterate is chosen under the statistics that it judges with, the source's."""
        return replace(self.config, norms=replace(self.config.norms, photographs="seen"))

    # ------------------------------------------------------------------ the stages

    def train_judge(self, folder: Path) -> None:
        """f_S."""
        steps = self.config.semantic.steps or self.steps
        train_network(self.context, self.of_source, self.masks(), "judge", folder, steps)

    def train_generators(self, folder: Path) -> None:
        """G and F."""
        steps, labels, judge = self.config.generators.steps or self.steps, None, None
        if self.judges_generators:
            labels, _ = hold_out(self.masks(), self.config.holdout, self.context.seed)
            judge = self.judge()
        training = GeneratorTraining(self.context, self.config, steps, labels, judge)
        self.context.fit(training, "generators", folder, steps)

    def judge(self) -> Network:
        """f_S with batch-norm statistics of the source's whole photographs."""
        config = self.of_source
        network = trained_network(self.context, config, self.folder("judge")).to(self.context.device)
        masks = self.masks()
        retake(self.context, config, network, make_preprocess(config, network), masks.indices, masks.data)
        return network

    def translation(self) -> Translation:
        """How one photograph is translated."""
        c, context = self.config, self.context
        if c.translation == "fda":
            return by_fourier(c.beta, c.crops.long_side)
        if c.translation == "histogram":
            return by_histogram
        path = self.folder("generators") / CHECKPOINT
        generator = Generator(c.generators.blocks, c.generators.width)
        load_part(generator, stage_parts(path), f"module.{TO_TARGET}", path)
        precision = precision_of(c.precision, context.device)
        generator = generator.to(context.device).eval()
        return by_generator(generator, context.device, precision, c.generators.tile, c.crops.long_side)

    def translate(self, folder: Path) -> None:
        """Writes photographs/, a data set."""
        translate_all(self.context, folder, self.translation())

    def train(self, folder: Path) -> None:
        """f, on what is translated."""
        train_network(self.context, self.config, self.labels(), "train", folder, self.steps_of("train"))

    def align(self, folder: Path) -> None:
        """f, against D."""
        steps = self.steps_of("align")
        network = trained_network(self.context, self.config, self.folder("train"))
        training = AlignTraining(self.context, self.config, self.labels(), steps, network)
        self.context.fit(training, "align", folder, steps)
        if training.gate.accuracies and training.gate.opened == 0:
            self.context.note(
                "The gate never opened: the discriminator did not tell the domains apart in more than "
                f"{self.config.align.gate:.0%} of the places, so nothing was aligned. A lower align.gate opens it."
            )

    def network(self) -> Network:
        """f as the last stage left it."""
        stage = "align" if self.config.align.weight > 0 else "train"
        return trained_network(self.context, self.config, self.folder(stage), self.result)


class CycleGAN(Cycada):
    """Translation, and training on what is translated."""

    name: ClassVar[str] = "cyclegan"
    title: ClassVar[str] = "Unpaired image-to-image translation using cycle-consistent adversarial networks"
    venue: ClassVar[str] = "Zhu et al., ICCV 2017"
    link: ClassVar[str] = "https://arxiv.org/abs/1703.10593"
    summary: ClassVar[str] = "Translates a source's photographs."
    Config: ClassVar[type] = CycleGANConfig

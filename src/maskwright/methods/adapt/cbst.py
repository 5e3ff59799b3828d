"""CBST: Unsupervised domain adaptation for semantic segmentation via class-balanced self-training, Zou et al.,
ECCV 2018, https://arxiv.org/abs/1810.07911; with CRST of Confidence regularized self-training, Zou et al., ICCV 2019,
https://arxiv.org/abs/1908.09822 (`soft=true`, `regulariser=mrkld`)

    maskwright train TARGET --source SOURCE --method cbst

A network that learned from the source labels the target and learns from both, in rounds. Every class keeps the same
portion of what is predicted as it, so that easy classes do not crowd out the others:

    source    train on the source's masks
    label_r   lam_c: the confidence that a portion of the pixels predicted as c reach, the portion growing by round;
              k = argmax_c p_c / lam_c, no label where p_c / lam_c < 1; spatial=true: of q_c p_c, q_c how often the
              source shows c at that place
    round_r   go on training on source and target crops, where crops lie around classes that are rare in the target

    L = mean_i CE(f(x)_i, y_i) over labelled pixels of both + lam_reg mean_i R(f(x)_i) over those of the target
    R: mrkld -sum_c log p_c / C,  mrent sum_c p_c log p_c,  mrl2 sum_c p_c^2
    soft (LRENT): y_c ~ (p_c / lam_c)^{1 / alpha}, kept where sum_c (p_c / lam_c)^{1 / alpha} > 1

Deviates: the steps that are given are those of all trainings together, `source_share` of them for the source. A step
has as many crops of the target as of the source, where the authors mix lists of a few hundred source images with all
of the target. A round begins at `round_lr` of the shared rate, as theirs do, and follows the shared schedule;
optimiser and crops are the shared ones. Labels are by default predicted at scale 1, not 0.9. Batch-norm statistics of
the network that labels, and of the one that is kept, are those of the target's photographs. lam_c is read from a
histogram, within 1 / 16,384 of that of sorting.
What the originals get wrong: CRST's released weight of the regulariser enters squared, so that its 0.1 is 0.01, the
default here. CBST's lists begin with a spurious 0. Without any label CRST's loss is NaN; here it is 0. Both report the
round that is best on the images that they are judged on; here it is the last.

Legend: B crops, C classes, S crop side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.sources import StoredLabels
from maskwright.data.trust.artefacts import write_record
from maskwright.engine.config import Idle, option, part
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import all_reduce_sum, barrier, each, sampler, share
from maskwright.engine.loop import Training
from maskwright.engine.needs import Terms
from maskwright.errors import MaskwrightError
from maskwright.models.networks.build import Network
from maskwright.models.tensors import save_tensors
from maskwright.ops.losses.thresholds import mrent, mrkld, mrl2
from maskwright.recipes.adaptation import SourceMethod, TargetConfig
from maskwright.recipes.consistency.parts import SECOND, joined
from maskwright.recipes.self_training.labelling import LABELS, THRESHOLDS, Labelling
from maskwright.recipes.self_training.options import check_portions, rounds_on_target, share_before_rounds, steps_of_all
from maskwright.recipes.self_training.priors import PlaceCounts
from maskwright.recipes.self_training.rounds import round_steps
from maskwright.recipes.self_training.soft_labels import SoftStore, SoftStream, SoftTarget, SoftViews, soft_loss
from maskwright.recipes.training.forward import precision_of
from maskwright.recipes.training.network import make_segmenter, trained_network
from maskwright.recipes.training.rare_classes import Mining, mined_classes
from maskwright.recipes.training.rates import resolved
from maskwright.recipes.training.setup import NetworkSetup
from maskwright.recipes.training.training import train_network

REGULARISERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mrkld": mrkld, "mrent": mrent, "mrl2": mrl2}
"""CRST's R, of logits (B, C, S, S) and the pixels that count, bool (B, S, S)."""
PRIOR = "prior.safetensors"
PROVENANCE = "provenance.json"
"""In a round's store of labels: who made them, how, and which labels that one saw."""


@dataclass(kw_only=True)
class PseudoOptions:
    """How a round labels the target."""

    portion: float = option(0.2, "of each predicted class that is kept in the first round", low=0, high=1, main=True)
    portion_step: float = option(0.05, "by which it grows each round", low=0, high=1)
    portion_max: float = option(0.5, "greatest portion", low=0, high=1)
    spatial: bool = option(False, "weigh classes by where the source shows them (CBST-SP): for cameras that look alike")
    soft: bool = option(False, "soft labels (CRST with LRENT); false: hard ones", main=True)
    alpha: float = option(0.25, "of soft labels: towards 0 they become the hard ones", low=0.01, high=1)
    flips: bool = option(True, "label with the mean over the photograph and its mirror image")
    scales: tuple[float, ...] = option((1.0,), "label with the mean over these input sizes", low=0.1, high=4)


@dataclass(kw_only=True)
class MiningOptions:
    """Crops around rare classes."""

    chance: float = option(0.8, "chance of a crop to lie around a rare class that its photograph shows", low=0, high=1)
    below: float = option(0.001, "a class is rare below this share of the target's predicted pixels", low=0, high=1)


@dataclass(kw_only=True)
class CBSTConfig(TargetConfig):
    """Options of `cbst`."""

    labels: PseudoOptions = part(PseudoOptions)
    mining: MiningOptions = part(MiningOptions)
    steps: int = steps_of_all(4000)
    rounds: int = rounds_on_target(3)
    source_share: float = share_before_rounds(0.5, "the source")
    round_lr: float = option(0.2, "share of the shared rates with which a round begins", low=1e-6, high=1)
    regulariser: str = option(
        "none", "CRST's pull of the model on the target: none, mrkld, mrent, mrl2", choices=("none", *REGULARISERS),
        main=True,
    )  # fmt: skip
    lam_reg: float = option(0.01, "weight of the regulariser", low=0)

    def check(self) -> None:
        """Raises `MaskwrightError` on losses that soft labels have not, on portions in the wrong order, and without a
        scale."""
        if self.labels.soft and (self.loss.terms != "ce" or self.loss.balance):
            raise MaskwrightError(
                f"labels.soft=true with loss.terms={self.loss.terms} and loss.balance={self.loss.balance}",
                "soft labels with the plain cross-entropy", "leave loss.terms and loss.balance out",
            )  # fmt: skip
        if self.rounds > 1 and self.labels.portion_step:
            check_portions("labels", self.labels.portion, self.labels.portion_max)
        if not self.labels.scales:
            raise MaskwrightError("labels.scales is empty", "at least one scale", "leave it out for 1.0")

    def idle(self) -> Idle:
        """Options of soft labels, of a regulariser, of mining and of a portion that grows where there is none."""
        yield from super().idle()
        if not self.labels.soft:
            yield ("labels.alpha",), "labels.soft=false"
        if self.regulariser == "none":
            yield ("lam_reg",), "regulariser=none"
        elif not self.lam_reg:
            yield ("regulariser",), "lam_reg=0"
        if not self.mining.chance:
            yield ("mining.below",), "mining.chance=0"
        elif not self.mining.below:
            yield ("mining.chance",), "mining.below=0"
        if self.rounds == 1:
            yield ("labels.portion_step", "labels.portion_max"), "rounds=1"
        elif not self.labels.portion_step:
            yield ("labels.portion_max",), "labels.portion_step=0"

    def portion(self, number: int) -> float:
        """The portion of round `number`, from 1."""
        c = self.labels
        return min(c.portion + (number - 1) * c.portion_step, max(c.portion, c.portion_max))


def certain(y: LabelMap) -> LabelMap:
    """The same labels, each counting fully: the threshold has judged them."""
    return LabelMap(y.ids, torch.ones_like(y.confidence), y.valid)


def soft_target(y: LabelMap, t: SoftViews, classes: int) -> SoftTarget:
    """Labels of source crops, then of target crops, as probabilities.

    Args:
        y: the source's (B, S, S).
        t: target crops.
        classes: C.
    """
    one_hot = F.one_hot(y.ids, classes).permute(0, 3, 1, 2).to(t.soft)
    return SoftTarget(torch.cat([one_hot, t.soft]), torch.cat([y.valid, t.views.valid]))


class RoundTraining(Training):
    """Source crops and pseudo-labelled target crops in one batch, both chosen around rare classes.

    Args:
        pseudo: labels of the target.
        soft: the soft ones beside them; None: the hard ones are learned from.
        mined: ids of the rare classes.
        args: as for `NetworkSetup`.
        kwargs: likewise.
    """

    def __init__(
        self, pseudo: StoredLabels, soft: SoftStore | None, mined: list[int], *args: Any, **kwargs: Any
    ) -> None:
        setup = NetworkSetup(*args, name="s", **kwargs)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.supervised, self.context = setup.student, setup.supervised, setup.context
        c, own = self.config, setup.labels
        choose = Mining(mined, c.mining.chance) if mined and c.mining.chance else None
        setup.streams["s"] = setup.stream(own.indices, setup.streams["s"].order, own, data=own.data, choose=choose)
        order = sampler(setup.context.seed, len(pseudo.indices), c.target.batch or c.crops.batch, SECOND)
        target = setup.stream(pseudo.indices, order, pseudo, choose=choose)
        setup.streams["t"] = target if soft is None else SoftStream(target, soft)
        self.soft = soft is not None
        if self.soft:
            setup.supervised.criterion = soft_loss  # type: ignore[assignment]

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x over labelled pixels of both domains + lam_reg R over those of the target."""
        s, t, classes = batch["s"], batch["t"], self.context.classes
        views = t.views if self.soft else t
        out = self.student(torch.cat([s.weak, views.weak]).contiguous(memory_format=torch.channels_last))
        y = soft_target(s.y, t, classes) if self.soft else certain(joined([s.y, t.y]))
        loss_x = self.supervised(out, y)  # type: ignore[arg-type]
        terms = {"x": loss_x, "labelled": views.valid.float().mean()}
        if self.config.regulariser == "none":
            return {"loss": loss_x, **terms}
        terms["reg"] = REGULARISERS[self.config.regulariser](out.logits[len(s.weak) :], views.valid)
        return {"loss": loss_x + self.config.lam_reg * terms["reg"], **terms}


class CBST(SourceMethod):
    """Rounds of class-balanced labelling and retraining."""

    name: ClassVar[str] = "cbst"
    title: ClassVar[str] = "Unsupervised domain adaptation for semantic segmentation via class-balanced self-training"
    venue: ClassVar[str] = "Zou et al., ECCV 2018"
    link: ClassVar[str] = "https://arxiv.org/abs/1810.07911"
    summary: ClassVar[str] = "Labels the target in class-balanced rounds."
    Config: ClassVar[type] = CBSTConfig

    def stages(self) -> list[Stage]:
        """The source, then two for each round; a spatial prior before the first."""
        steps = self.all_steps()
        found = [Stage("source", "train", self.train_source, "a network on the source's masks", steps[0])]
        if self.config.labels.spatial:
            found.append(Stage("prior", "fit", self.fit_prior, "where the source shows each class"))
        for r in range(1, self.config.rounds + 1):
            says = f"class-balanced labels of the target, round {r}"
            found.append(Stage(f"label_{r}", "label", self.label, says))
            told = f"on source and labelled target, round {r}"
            found.append(Stage(f"round_{r}", "train", self.train_round, told, steps[r]))
        return found

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """Each round learns what the one before labelled."""
        fixed = "its trainings follow one another, and the later ones learn what the earlier ones labelled"
        return replace(super().terms(config, images), fixed=fixed)

    # ------------------------------------------------------------------ training

    def folder(self, stage: str) -> Path:
        """Where a stage's artefacts lie."""
        return self.context.run.path / stage

    def all_steps(self) -> list[int]:
        """Steps of the source and of each round."""
        c = self.config
        return round_steps(self.context.steps or c.steps, c.rounds, c.source_share)

    def before(self, number: int) -> str:
        """The stage whose network labels round `number`, and which the round goes on from."""
        return "source" if number == 1 else f"round_{number - 1}"

    def train_source(self, folder: Path) -> None:
        """The network of the source."""
        train_network(self.context, self.config, self.labels(), folder.name, folder, self.all_steps()[0])

    def train_round(self, folder: Path) -> None:
        """The network before goes on, on the source and on the labels that it gave the target."""
        number, context = int(folder.name.rpartition("_")[2]), self.context
        steps, made = self.all_steps()[number], self.folder(f"label_{number}")
        c = resolved(self.config, context)
        c = replace(c, optimizer=replace(c.optimizer, lr=c.optimizer.lr * c.round_lr))
        pseudo = StoredLabels(context.data, LabelStore(made / LABELS, context.table))
        counts = context.run.tensors(made.name, THRESHOLDS, {"counts": ("i", "C")})["counts"]
        training = RoundTraining(
            pseudo, SoftStore(made / LABELS) if c.labels.soft else None, mined_classes(counts, c.mining.below),
            context, c, self.labels(), steps, stage=folder.name,
            network=trained_network(context, c, self.folder(self.before(number))),
        )  # fmt: skip
        context.fit(training, folder.name, folder, steps)

    # ------------------------------------------------------------------ pseudo-labels

    def fit_prior(self, folder: Path) -> None:
        """Writes q (C, G, G) of all masks of the source but those held out."""
        labels, counts = self.labels(), PlaceCounts(self.context.classes)
        for i in each(self.context.progress, self.seen(), "prior"):
            counts.add(labels.read(i))
        counts.counts = all_reduce_sum(counts.counts.to(self.context.device)).cpu()
        if self.context.run.writes:
            save_tensors(folder / PRIOR, {"prior": counts.prior()})
        barrier()

    def labelling(self, number: int) -> Labelling:
        """How round `number` labels, in the precision of training."""
        c, context = self.config.labels, self.context
        prior = context.run.tensors("prior", PRIOR, {"prior": "CGG"})["prior"] if c.spatial else None
        return Labelling(
            context, precision_of(self.config.precision, context.device), c.flips, c.scales,
            self.config.portion(number), only=context.data_of("source").taught, prior=prior,
            alpha=c.alpha if c.soft else None,
        )  # fmt: skip

    def label(self, folder: Path) -> None:
        """The network before labels the target's photographs; a note and a record say how much and by what."""
        number, context = int(folder.name.rpartition("_")[2]), self.context
        network = trained_network(context, self.config, self.folder(self.before(number)))
        segmenter = make_segmenter(context, self.config, network, self.name, range(len(context.data)))
        self.labelling(number).label(folder, segmenter, context.data.names)
        lam = context.run.tensors(folder.name, THRESHOLDS, {"lam": "C"})["lam"]
        shares, labelled = self.kept(LabelStore(folder / LABELS, context.table))
        if context.run.writes:
            names = context.table.names
            write_record(
                folder / LABELS / PROVENANCE,
                {
                    "method": self.name, "network": self.before(number), "seed": context.seed,
                    "portion": self.config.portion(number), "thresholds": dict(zip(names, lam.tolist())),
                    "labelled": labelled, "of_class": dict(zip(names, shares)),
                    "labels_seen": f"{len(self.labels().indices)} masks of the source; "
                    f"weights: {context.backbone.provenance.labels_seen}",
                },
            )  # fmt: skip
        barrier()
        none = [name for name, share_of in zip(context.table.names, shares) if not share_of]
        left = f"; no pixel is labelled {', '.join(none)}" if none else ""
        context.note(f"Round {number}: {100 * labelled:.0f} % of the target's pixels have a label{left}.")

    def kept(self, store: LabelStore) -> tuple[list[float], float]:
        """Each class's share of the labels (C,), and the labels' share of all pixels."""
        counts = torch.zeros(self.context.classes + 1, dtype=torch.float64)
        for name in share(self.context.data.names):
            y = store.read(name)
            counts[:-1] += torch.bincount(y.ids[y.valid], minlength=self.context.classes)
            counts[-1] += y.valid.numel()
        counts = all_reduce_sum(counts.to(self.context.device)).cpu()
        given = counts[:-1].sum()
        return (counts[:-1] / given.clamp(min=1)).tolist(), float(given / counts[-1])

    def network(self) -> Network:
        """The network of the last round, from its artefact."""
        return trained_network(self.context, self.config, self.folder(f"round_{self.config.rounds}"))

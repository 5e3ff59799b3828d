"""Unsupervised domain adaptive salient object detection through uncertainty-aware pseudo-label learning, Yan et al.,
AAAI 2022, https://arxiv.org/abs/2202.13170

    maskwright train TARGET --source SOURCE --method uda_sod --set objects.classes=cow,dog

Objects of a source are pasted onto photographs without any: a network learns from these composites, whose masks are
exact. It then labels the target, and each round believes the photographs of which it says the same under several views:

    compose   I = a F + (1 - a) B, m = [a > 0], a the opacity of the object F, placed, turned and scaled at random on B
    warm_up   train on the composites
    label_r   p_k of four views (as it is, mirrored, another photograph's light by FDA, smaller); m = p_0, v = var_k p_k
              photographs in order of mean v, but those with nearly nothing or all salient; a portion that grows
    round_r   go on training on these and on a portion of the composites that shrinks

    L = mean_i e^{-k v_i} (BCE(o, m)_i + 1 - IoU(p, m)),  v = 0 on composites

Objects come from masks (`objects.of=masks`), from cut-outs with transparency (`alpha`, with `--source grounds=DATA`) or
from another run's objects of the source's photographs, without a label (`found`, with `--input objects=RUN`).

Deviates: any network with two classes learns, where the authors have LDF with heads for the body and the detail of a
mask. Sizes of objects are relative to the largest that fits, so that cut-outs and grounds of any resolution go
together; borders of masks fade inwards, so that no old ground comes along. The authors' lists are lengths that one
sampler mixes; here a step has crops of both in that ratio. Masks and variances are kept with 16 bits. Optimiser and
rates are the shared ones, with the authors' cycle a round. Batch-norm statistics are those of the target.
What the original gets wrong: the last pair of portions (none, all) is labelled but never trained on; composites are
drawn with replacement; a variance below 1/510 is lost in 8 bits; a scale above 1 crops objects; colours are truncated,
not rounded; the epoch is chosen on the test photographs that are reported. None of this is kept. Mean v is least where
little is salient, so that photographs whose object is missed come first: `pseudo.relative` divides it by a (1 - a).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.folder import Dataset, open_folder
from maskwright.data.training.augment import PRESETS
from maskwright.data.training.labels import LabelStore
from maskwright.data.training.proposals import Proposals, SoftMap
from maskwright.data.training.sources import Labels, StoredLabels
from maskwright.data.trust.artefacts import write_record
from maskwright.engine import seeding
from maskwright.engine.config import Idle, option, part
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import barrier, each, gather_objects, share
from maskwright.engine.needs import LABELLED_SOURCE, InputNeed, StreamNeed, Terms
from maskwright.errors import MaskwrightError
from maskwright.methods.adapt.uda_sod.composing import (
    COMPOSITES,
    AlphaSource,
    Composer,
    CompositeOptions,
    FoundSource,
    MaskSource,
    ObjectOptions,
    Source,
    object_ids,
)
from maskwright.methods.adapt.uda_sod.training import Pseudo, SaliencyTraining
from maskwright.methods.adapt.uda_sod.uncertainty import (
    Ask,
    Believed,
    believed,
    disagreement,
    portions,
    predictions,
    salient_share,
)
from maskwright.models.networks.build import Network
from maskwright.models.segmenter import Segmenter
from maskwright.predict.inference import predict_probs
from maskwright.recipes.adaptation import SourceMethod
from maskwright.recipes.proposals.objects import ObjectMaskOptions, StoredObjects
from maskwright.recipes.self_training.options import check_portions, rounds_on_target, share_before_rounds, steps_of_all
from maskwright.recipes.self_training.rounds import round_steps
from maskwright.recipes.training.forward import precision_of
from maskwright.recipes.training.network import make_segmenter, trained_network
from maskwright.recipes.training.options import CropOptions, NetworkConfig, NormOptions

SELECTION = "selection.json"
MASKS, VARIANCE = "saliency", "variance"
"""Stores of a round's labels, below its stage's folder."""
SEES_NONE = {
    "alpha": StreamNeed(says="cut-outs: pictures of objects with transparency, which is their mask"),
    "found": StreamNeed(says="photographs in which another run found objects; no label of theirs is read"),
}
GROUNDS = "photographs without objects, onto which objects are pasted"


@dataclass(kw_only=True)
class PseudoOptions:
    """What a round believes of the target, and how much."""

    portion: float = option(0.1, "of the photographs that the first round believes", low=0, high=1, main=True)
    growth: float = option(2.0, "by which it grows each round", low=1, high=10)
    portion_max: float = option(0.6, "greatest portion", low=0, high=1)
    composites: float = option(0.5, "of the composites that the first round goes on with", low=0, high=1)
    decay: float = option(0.5, "by which that shrinks each round", low=0, high=1)
    by: str = option(
        "portion", "whom a round believes: the surest portion, or all below a mean variance",
        choices=("portion", "variance"),
    )  # fmt: skip
    relative: bool = option(
        False, "the surest by mean variance as a part of a (1 - a), a the salient share; false: by mean variance"
    )
    variance: float = option(0.002, "that mean variance", low=0, high=0.25)
    skip: float = option(0.0, "share of the portion that is left out at its sure end", low=0, high=1)
    black: float = option(0.01, "photographs with a smaller share of salient pixels are dropped", low=0, high=1)
    white: float = option(0.99, "and with a greater one", low=0, high=1)
    soft: bool = option(True, "labels are probabilities; false: 0 or 1")
    beta: float = option(0.001, "FDA's window of frequencies; 0: that view is the photograph as it is", low=0, high=0.5)
    small: float = option(224 / 352, "size of the smaller view", low=0.05, high=1)
    k: float = option(20.0, "weight of the variance: a pixel counts e^(-k v)", low=0, main=True)


@dataclass(kw_only=True)
class UDASODConfig(NetworkConfig):
    """Options of `uda_sod`."""

    unused = ("loss", "holdout")

    objects: ObjectOptions = part(ObjectOptions)
    composites: CompositeOptions = part(CompositeOptions)
    pseudo: PseudoOptions = part(PseudoOptions)
    crops: CropOptions = part(
        CropOptions, without=("sample",), size=352, long_side=352, scale_min=224 / 352, scale_max=1.0, batch=8,
        says={"batch": "crops in a step, of composites and of the target together"},
    )  # fmt: skip
    norms: NormOptions = part(NormOptions, without=("photographs",), photographs="all")
    steps: int = steps_of_all(4000)
    rounds: int = rounds_on_target(5)
    source_share: float = share_before_rounds(0.25, "composites")
    rate_decay: float = option(0.9, "factor on the rates each round", low=0, high=1)
    jitter: str = option("uda_sod", "photometric recipe of all crops", choices=tuple(PRESETS))

    def check(self) -> None:
        """Raises `MaskwrightError` on portions in the wrong order."""
        p = self.pseudo
        if self.rounds > 1 and p.by == "portion" and p.growth > 1:
            check_portions("pseudo", p.portion, p.portion_max)

    def idle(self) -> Idle:
        """Options of objects that come from elsewhere, of the other way to choose whom a round believes, and of what
        changes from round to round where there is one."""
        yield from super().idle()
        if self.rounds == 1:
            yield ("pseudo.growth", "pseudo.portion_max", "pseudo.decay"), "rounds=1"
        of, by = self.objects.of, self.pseudo.by
        if of != "masks":
            yield ("objects.classes",), f"objects.of={of}"
        if of == "alpha":
            yield ("objects.cut", "objects.soften", "composites.ground_least"), "objects.of=alpha"
        other = ("variance",) if by == "portion" else ("portion", "growth", "portion_max", "skip", "relative")
        yield [f"pseudo.{name}" for name in other], f"pseudo.by={by}"
        if by == "portion" and self.pseudo.portion == 0:
            yield [f"pseudo.{name}" for name in ("growth", "portion_max", "skip", "relative")], "pseudo.portion=0"


class UDASOD(SourceMethod):
    """Composites, then rounds of uncertainty-aware labels."""

    name: ClassVar[str] = "uda_sod"
    title: ClassVar[str] = (
        "Unsupervised domain adaptive salient object detection through uncertainty-aware pseudo-label learning"
    )
    venue: ClassVar[str] = "Yan et al., AAAI 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2202.13170"
    summary: ClassVar[str] = "Learns objects from pasted ones, in rounds."
    classes_from: ClassVar[Literal["labels", "clusters", "objects"]] = "objects"
    streams: ClassVar[Mapping[str, StreamNeed]] = {"grounds": StreamNeed(says=GROUNDS, required=False)}
    inputs: ClassVar[Mapping[str, InputNeed]] = {
        "objects": InputNeed(
            says="objects of the source's photographs, for objects.of=found", kind="proposals", required=False
        )
    }
    Config: ClassVar[type] = UDASODConfig
    config: UDASODConfig

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """A source with masks, of cut-outs, which take grounds too, or of bare photographs, or another run's objects;
        later trainings learn from what earlier ones labelled."""
        of = config.objects.of
        streams = {
            "source": LABELLED_SOURCE if of == "masks" else SEES_NONE[of],
            "grounds": replace(cls.streams["grounds"], required=of == "alpha"),
        }
        inputs = {"objects": replace(cls.inputs["objects"], required=of == "found")}
        fixed = "its trainings follow one another, and the later ones learn what the earlier ones labelled"
        return replace(super().terms(config, images), streams=streams, inputs=inputs, fixed=fixed)

    def stages(self) -> list[Stage]:
        """Composites and a network on them, then two for each round."""
        self.check_input()
        steps = self.trainings()
        found = [
            Stage("compose", "label", self.compose, "composites: objects pasted onto grounds"),
            Stage("warm_up", "train", self.train_round, "a network on the composites", steps[0]),
        ]
        for r in range(1, self.config.rounds + 1):
            found.append(Stage(f"label_{r}", "label", self.label, f"what is salient in the target, round {r}"))
            says = f"on composites and believed photographs, round {r}"
            found.append(Stage(f"round_{r}", "train", self.train_round, says, steps[r]))
        return found

    def check_input(self) -> None:
        """Refuses found objects that would not be looked at.

        Raises:
            MaskwrightError: they are given beside masks or cut-outs.
        """
        of = self.config.objects.of
        if "objects" in self.context.inputs and of != "found":
            raise MaskwrightError(
                f"--input objects and objects.of={of}", "one of the two",
                "add --set objects.of=found, or leave --input out",
            )  # fmt: skip

    # ------------------------------------------------------------------ composites

    def folder(self, stage: str) -> Path:
        """Where a stage's artefacts lie."""
        return self.context.run.path / stage

    def compose(self, folder: Path) -> None:
        """Writes the composites, a data set of its own."""
        c, context = self.config, self.context
        composer = Composer(context, self.source(), context.sources.get("grounds"), c.objects, c.composites)
        composer.look()
        composer.fill(folder)

    def source(self) -> Source:
        """Where objects come from; a note says which they are."""
        data, of = self.context.data_of("source"), self.config.objects.of
        if of == "alpha":
            self.context.note("Objects are the source's pictures, cut out by their transparency.")
            return AlphaSource(data)
        if of == "found":
            store = self.context.input("objects")
            assert isinstance(store, Proposals)
            threshold = ObjectMaskOptions().threshold
            return FoundSource(StoredObjects(self.context, store, threshold, self.with_objects(data, store)))
        ids, says = object_ids(data.classes, self.config.objects.classes)
        self.context.note(f"{says[0].upper()}{says[1:]}.")
        return MaskSource(data, ids)

    def with_objects(self, data: Dataset, store: Proposals) -> Dataset:
        """The photographs of which the other run says something; a note says how many."""
        chosen = [i for i, name in enumerate(data.names) if name in store]
        if not chosen:
            raise MaskwrightError(
                f"{store.folder} has objects of none of the source's {len(data)} photographs ({data.root})",
                "a run on these photographs", "give as --source the photographs that the run saw",
            )  # fmt: skip
        unseen = len(data) - len(chosen)
        left = f"; {unseen} photographs are left out that it did not see" if unseen else ""
        self.context.note(
            f"Objects are those of {store.says} in {len(chosen)} photographs of the source (labels seen: "
            f"{store.labels_seen}){left}."
        )
        return data.subset(chosen)

    def labels(self) -> Labels:
        """The composites' masks: what their objects' labels were is in the ledger of the source."""
        store = LabelStore(self.folder("compose") / COMPOSITES, self.context.table)
        return StoredLabels(open_folder(store.folder), store)

    # ------------------------------------------------------------------ training

    def trainings(self) -> list[int]:
        """Steps of the warm-up and of each round."""
        c = self.config
        return round_steps(self.steps, c.rounds, c.source_share)

    def before(self, number: int) -> str:
        """The stage whose network labels round `number`, and which the round goes on from."""
        return "warm_up" if number == 1 else f"round_{number - 1}"

    def trained(self, stage: str) -> Network:
        """The network that a stage left."""
        return trained_network(self.context, self.config, self.folder(stage))

    def train_round(self, folder: Path) -> None:
        """On composites alone, or on with the network before on fewer of them and on believed photographs."""
        c, context, name = self.config, self.context, folder.name
        number = 0 if name == "warm_up" else number_of(name)
        steps = self.trainings()[number]
        pseudo, portion = None, 1.0
        if number:
            pseudo = self.pseudo(number)
            portion = portions(number, c.pseudo.composites, c.pseudo.decay)[-1]
        training = SaliencyTraining(
            pseudo, portion, c.rate_decay**number, context, c, self.labels(), steps, stage=name,
            network=self.trained(self.before(number)) if number else None,
        )  # fmt: skip
        context.fit(training, name, folder, steps)

    def pseudo(self, number: int) -> Pseudo:
        """What round `number` says of the photographs that it believes."""
        made, context = self.folder(f"label_{number}"), self.context
        names = context.run.artefact(made.name, SELECTION, {"believed": [str]})["believed"]
        indices = sorted(context.data.index(name) for name in names)
        return Pseudo(Proposals(made / MASKS), Proposals(made / VARIANCE), indices, self.config.pseudo.soft)

    # ------------------------------------------------------------------ labels of the target

    def label(self, folder: Path) -> None:
        """m and v of each photograph of the target, and whom the round believes."""
        number, context, data = number_of(folder.name), self.context, self.context.data
        stores = self.stores(folder, number)
        ask, names = self.asked(self.trained(self.before(number))), data.names
        for i in each(context.progress, range(len(data)), "labelled", done=lambda i: names[i] in stores[1]):
            p = predictions(*self.views(ask, number, i))
            for store, values in zip(stores, (p[0], disagreement(p))):
                store.write(names[i], SoftMap(values, values >= 0))
        self.choose(folder, number, stores)

    def objects_seen(self) -> str:
        """Whose labels the pasted objects are."""
        context, of = self.context, self.config.objects.of
        if of == "found":
            store = context.input("objects")
            assert isinstance(store, Proposals)
            return f"objects: {store.labels_seen}"
        return f"{len(context.data_of('source'))} {'masks' if of == 'masks' else 'cut-outs'} of the source"

    def stores(self, folder: Path, number: int) -> list[Proposals]:
        """Where m and v of a round go, or where a killed run left some."""
        context = self.context
        seen = f"{self.objects_seen()}; weights: {context.backbone.provenance.labels_seen}"
        for writes in (True, False):  # first the process that writes, then the others find it
            if writes == context.run.writes:
                found = [Proposals.begin(folder / kind, "soft", f"{self.name}, round {number}", seen)
                         for kind in (MASKS, VARIANCE)]  # fmt: skip
            barrier()
        return found

    def asked(self, network: Network) -> Ask:
        """A network as a function from photograph to saliency."""
        context = self.context
        segmenter = make_segmenter(context, self.config, network, self.name, range(len(context.data)))
        precision = precision_of(self.config.precision, context.device)

        def ask(image: np.ndarray) -> Tensor:
            return torch.from_numpy(predict_probs(segmenter, image, device=context.device, precision=precision)[1])

        return ask

    def views(self, ask: Ask, number: int, i: int) -> tuple[Ask, np.ndarray, np.ndarray, float, float]:
        """What `predictions` takes of photograph `i`: another by lot lends its light."""
        c, data = self.config, self.context.data
        image = data.image(i)
        draw = seeding.generator(self.context.seed, "style", number, i)
        other = (i + 1 + int(torch.randint(max(1, len(data) - 1), (), generator=draw))) % len(data)
        height, width = image.shape[:2]
        seen = min(1.0, c.crops.long_side / max(height, width))  # as large as the network sees the photograph
        return ask, image, data.resized(other, (height, width)), c.pseudo.beta, c.pseudo.small * seen

    def choose(self, folder: Path, number: int, stores: list[Proposals]) -> None:
        """Writes whom the round believes, from what lies in its stores."""
        context, c = self.context, self.config.pseudo
        mine = {n: self.judged(stores, n) for n in share(context.data.names)}
        judged = {n: pair for part_of in gather_objects(mine) for n, pair in part_of.items()}
        scores, shares = ({n: pair[k] for n, pair in judged.items()} for k in (0, 1))
        portion = portions(number, c.portion, c.growth, max(c.portion, c.portion_max))[-1]
        found = believed(
            scores, shares, portion=portion, skip=c.skip, black=c.black, white=c.white,
            threshold=c.variance if c.by == "variance" else None, relative=c.relative,
        )  # fmt: skip
        if context.run.writes:
            write_record(
                folder / SELECTION,
                {
                    "method": self.name, "network": self.before(number), "seed": context.seed, "portion": portion,
                    "believed": found.names, "dropped": found.dropped, "mean_variance": scores,
                    "salient_share": shares, "labels_seen": stores[0].labels_seen,
                },
            )  # fmt: skip
        barrier()
        context.note(said(number, found, scores, shares))

    @staticmethod
    def judged(stores: list[Proposals], name: str) -> tuple[float, float]:
        """Mean variance and share of salient pixels of a photograph, from its files."""
        m, v = (store.soft(name).values for store in stores)
        return float(v.double().mean()), salient_share(m)

    def network(self) -> Network:
        """The network of the last round, from its artefact."""
        return self.trained(f"round_{self.config.rounds}")

    def segmenter(self) -> Segmenter:
        """The last network, with batch-norm statistics of the target's photographs."""
        return make_segmenter(self.context, self.config, self.network(), self.name, range(len(self.context.data)))


def number_of(stage: str) -> int:
    """The round of a stage, from 1."""
    return int(stage.rpartition("_")[2])


def said(number: int, found: Believed, scores: Mapping[str, float], shares: Mapping[str, float]) -> str:
    """A sentence on whom a round believes: rounds that believe small objects alone teach these."""
    dropped = f"; in {len(found.dropped)} nearly nothing or nearly all is salient" if found.dropped else ""
    if not found.names:
        return (
            f"Round {number}: none of the target's {len(scores)} photographs is believed{dropped}: it learns from "
            "composites alone."
        )
    mean, share = (fmean(figures[name] for name in found.names) for figures in (scores, shares))
    return (
        f"Round {number}: {len(found.names)} of the target's {len(scores)} photographs are believed, of mean variance "
        f"{mean:.4f}; {share:.1%} of their pixels are salient, {fmean(shares.values()):.1%} of all{dropped}."
    )

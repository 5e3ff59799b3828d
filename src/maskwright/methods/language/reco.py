"""ReCo: Retrieve and Co-segment for Zero-shot Transfer (Shin, Xie, Albanie, NeurIPS 2022,
https://arxiv.org/abs/2206.07045). Not the ReCo of Liu et al. (ICLR 2022), regional contrast with few masks, which is
`reco_semi`.

Of each name CLIP finds the nearest photographs of an unlabelled folder, its archive. What all of them have something
like becomes one vector of the name; a place is the class to whose vector it is like where the name's attention is high:

    retrieval    the k photographs whose picture vectors are nearest to the name's
    attention    w = sigmoid(10 cos) of CLIP's places (DenseCLIP, which is MaskCLIP) and the name
    context      of tree, sky, building, road, person first, each without those before it; w prod (1 - sigmoid(cos))
    seeds        A_ab = u_a . u_b w_b over all places of the archive, s_a = mean_j max_{b in j} A_ab, argmax a picture
    reference    r = mean of the seeds' features, of unit length
    prediction   argmax sigmoid(cos(f, r)) sigmoid(10 cos), then a CRF
    ReCo+        a network learns these masks (`plus.train=true`), DeepLab v3+ in the paper

    maskwright train photos --method reco --names names.txt --source archive=FOLDER --input encoder=deit_small

Deviates: the tower is any CLIP, whose own places stand in for the second network where none is given (theirs: ViT-L/14
at 336 for retrieval, RN50x16 for attention, a DeiT-S of stylised ImageNet for features); without `--source archive=`
the run's own photographs are the archive (theirs: ImageNet); maps are multiplied on the finer of both grids and then
enlarged; scores times `words.scale` are logits (theirs are log-probabilities, whose CRF hardly moves); synonyms, of
which the nearest counts; a background, which has one vector of the archive of all its words, damped by none of them.
ReCo+ learns whole photographs' masks with any network and optimiser of ours, and keeps the last iterate (theirs keeps
the best on true masks); with the paper's (`preset=paper`): AdamW for Adam, a longer side of 640 for a shorter one of
320, no change of colours. There are neither `weighted` nor `winner` references.
What the original gets wrong: the maximum over picture j is over pictures j to 2 j + 1 (`archive.as_released=true`).
1 - sigmoid(cos) is never below 0.27, so context is damped, not eliminated.

Legend: n pictures, P words, M context words, C classes, D channels, E channels of the joint space, (h, w) grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.engine.config import option, part
from maskwright.engine.contract import Stage
from maskwright.engine.needs import InputNeed, StreamNeed
from maskwright.engine.result import assembled
from maskwright.models.parts.class_vectors import Scores
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.models.towers.beside import RecoScores, TowerBeside
from maskwright.models.towers.names import class_words
from maskwright.models.towers.shape import TowerShape
from maskwright.ops.cosegmentation import find_seeds, reference_vector, without_context, word_attention
from maskwright.recipes.language.student import SMALL, PlusOptions, StudentConfig, StudentMethod, student_preset
from maskwright.recipes.language.words import (
    EMBEDDED,
    STAGE,
    VOCABULARY,
    LastBlockOptions,
    WordOptions,
    embed_classes,
    joint_encoder,
    second_network,
    tower_of,
)

CONTEXT = ("tree", "sky", "building", "road", "person")
ALSO = {"vegetation": "tree"}
"""Names that take another's vector, as in the paper."""
PRESETS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "paper": {
        "student.network.name": "deeplabv3plus", "student.crops.size": 320, "student.crops.batch": 8,
        "student.crops.long_side": 640, "student.optimizer.name": "adamw", "student.optimizer.lr": 5e-4,
        "student.optimizer.encoder_lr": 0.1, "student.optimizer.weight_decay": 2e-4, "student.norms.images": 0,
        "student.steps": 20_000,
    },
}  # fmt: skip
"""By whole names. `paper`: ReCo+, on ResNet-101; what `reco` itself has in the paper are its defaults."""
CONTEXT_FILE, PICTURES, REFERENCES = "context.safetensors", "pictures.safetensors", "references.safetensors"


@dataclass(kw_only=True)
class ArchiveOptions:
    """From the unlabelled folder to a vector of each name."""

    images: int = option(50, "photographs of each name's archive", low=1, high=1000, main=True)
    side: int = option(224, "pixels; side of the middle of each that is looked at", low=16, high=1024)
    batch: int = option(16, "photographs through the towers at once", low=1)
    as_released: bool = option(False, "take the maxima of the authors' code, over too many pictures")


@dataclass(kw_only=True)
class RecoConfig(StudentConfig):
    """Options of `reco`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    preset: str = student_preset(PRESETS)
    words: WordOptions = part(
        WordOptions, without=("background.threshold",), main=("short_side", "prompts"), short_side=320, scale=40.0,
        says={"scale": "scores times this are logits; for confidence and the CRF"},
    )  # fmt: skip
    last_block: LastBlockOptions = part(LastBlockOptions)
    archive: ArchiveOptions = part(ArchiveOptions)
    context: tuple[str, ...] = option(CONTEXT, "names of what surrounds things, in this order; empty: none is damped")
    plus: PlusOptions = part(PlusOptions, rounds=0, words=False)
    crf: bool = option(True, "the dense CRF after prediction unless --refine says otherwise")


def middle(size: Sequence[int], side: int) -> tuple[slice, slice]:
    """Rows and columns of the square in the middle of `size` (H, W), neither of which is below `side`."""
    top, left = ((n - side) // 2 for n in size)
    return slice(top, top + side), slice(left, left + side)


def nearest_pictures(pictures: Tensor, words: Tensor, count: int) -> Tensor:
    """The archive of a name: the pictures nearest to any of its words, nearest first.

    Args:
        pictures: (N, E), of unit length.
        words: (P, E), of one class, of unit length.
        count: k.

    Returns:
        int64 (min(k, N),).
    """
    best = (pictures @ words.T).amax(1)
    return best.argsort(descending=True, stable=True)[:count]


class Reco(StudentMethod):
    """One vector a name, from the photographs that CLIP finds for it."""

    name: ClassVar[str] = "reco"
    title: ClassVar[str] = "ReCo: Retrieve and Co-segment for Zero-shot Transfer"
    venue: ClassVar[str] = "Shin, Xie, Albanie, NeurIPS 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2206.07045"
    summary: ClassVar[str] = "Names to masks; the ReCo of NeurIPS 2022."
    streams: ClassVar[Mapping[str, StreamNeed]] = {
        "archive": StreamNeed(
            says="unlabelled photographs in which those of each name are looked for; the run's own if none",
            required=False,
        )
    }  # fmt: skip
    inputs: ClassVar[Mapping[str, InputNeed]] = {
        **StudentMethod.inputs,
        "encoder": InputNeed(
            says="the network whose features are compared, as deit_small; the tower's own if none", kind="network",
            required=False,
        ),
    }  # fmt: skip
    Config: ClassVar[type] = RecoConfig
    config: RecoConfig

    def stages(self) -> list[Stage]:
        """The words, the pictures' vectors, the names' vectors; then those of ReCo+, if it is asked for."""
        words, *more = super().stages()
        pictures = Stage("pictures", "fit", self.fit_pictures, "vectors of the archive's photographs")
        references = Stage("references", "fit", self.fit_references, "one vector a name, from its photographs")
        return [words, pictures, references, *more]

    # ------------------------------------------------------------------ the archive

    @property
    def photographs(self) -> Dataset:
        """Where archives come from."""
        context = self.context
        return context.data_of("archive") if "archive" in context.streams else context.data

    def vocabulary(self, folder: Path) -> None:
        """Embeds the class names, and those of the context."""
        super().vocabulary(folder)
        if self.config.context:
            words = class_words(self.config.context, singular=self.config.words.singular)
            found = embed_classes(self.context, words, self.config.words)
            if self.context.run.writes:
                save_tensors(folder / CONTEXT_FILE, {"vectors": found.vectors, "owner": found.owner})

    @torch.no_grad()
    def fit_pictures(self, folder: Path) -> None:
        """Writes the vectors of all photographs (N, E), of unit length."""
        context, tower = self.context, tower_of(self.context)
        shape = TowerShape.parse(tower.architecture)
        assert shape is not None, "the architecture of a tower is the line of its build"
        tower.to(context.device)
        found = [F.normalize(tower.picture_vectors(x), dim=1).cpu() for _, x in self.middles(None, shape.image, 1)]
        if context.run.writes:
            save_tensors(folder / PICTURES, {"pictures": torch.cat(found)})
        if len(self.photographs) <= self.config.archive.images:
            context.note(
                f"The archive of each name is all {len(self.photographs)} photographs: more are needed to choose from "
                f"(archive.images={self.config.archive.images}, --source archive=FOLDER)."
            )

    def middles(self, chosen: list[int] | None, side: int, multiple: int) -> Iterator[tuple[list[int], Tensor]]:
        """Photographs of the archive in batches: shorter side resized, the middle taken, normalised for the tower.

        Args:
            chosen: which; all if None, shown as progress.
            side: pixels.
            multiple: sides become multiples of it.
        """
        data, size = self.photographs, -(-side // multiple) * multiple
        preprocess = Preprocess.for_backbone(tower_of(self.context).provenance, short_side=size, multiple_of=1)
        every = list(range(len(data))) if chosen is None else chosen
        starts: Any = range(0, len(every), self.config.archive.batch)
        if chosen is None:
            starts = self.context.progress.track(starts, "pictures", len(starts))
        for start in starts:
            some, crops = every[start : start + self.config.archive.batch], []
            for i in some:
                image = data.image(i)
                if min(preprocess.target_size(image.shape[:2])) < size:  # of a strip, which is kept smaller
                    image = image[middle(image.shape[:2], min(image.shape[:2]))]
                x = preprocess.apply(image)
                crops.append(x[:, *middle(x.shape[1:], size)])
            yield some, torch.stack(crops).to(self.context.device)

    # ------------------------------------------------------------------ the names' vectors

    @cached_property
    def encoder(self) -> TowerBeside:
        """The second network's map beside that of the tower's places."""
        joint = joint_encoder(self, "value", self.config.last_block.rest)
        beside = second_network(self, "encoder") if "encoder" in self.context.inputs else (None,)
        return TowerBeside(joint, *beside)

    @torch.no_grad()
    def reference(self, archive: list[int], words: Tensor, context: Tensor) -> Tensor:
        """The vector (D,) of one name.

        Args:
            archive: indices of its photographs.
            words: (P, E) its words.
            context: (M, D) references of what surrounds it.
        """
        encoder, device = self.encoder.to(self.context.device), self.context.device
        features, weights = [], []
        for _, x in self.middles(archive, self.config.archive.side, encoder.multiple_of):
            f, places = encoder(x)
            cosines = torch.einsum("bdhw,pd->bphw", F.normalize(places, dim=1), words.to(device)).amax(1, keepdim=True)
            attention = word_attention(cosines, (f.shape[-2], f.shape[-1]))[:, 0]
            weights.append(attention * without_context(f, context.to(f)))
            features.append(f.float())
        f = torch.cat(features)
        return reference_vector(f, find_seeds(f, torch.cat(weights), as_released=self.config.archive.as_released)).cpu()

    def fit_references(self, folder: Path) -> None:
        """Writes r (C, D), those of the context first made, each without those before it."""
        context, c = self.context, self.config
        pictures = context.run.tensors("pictures", PICTURES, {"pictures": "NE"})["pictures"]

        def archive(words: Tensor) -> list[int]:
            return nearest_pictures(pictures, words, c.archive.images).tolist()

        surround: dict[str, Tensor] = {}
        around = pictures.new_zeros(0, 1)
        spoken: tuple[tuple[str, ...], ...] = ()
        if c.context:
            t = context.run.tensors(STAGE, CONTEXT_FILE, EMBEDDED)
            spoken = class_words(c.context, singular=c.words.singular).words
            for m, names in enumerate(spoken):
                words = t["vectors"][t["owner"] == m]
                found = self.reference(archive(words), words, around)
                around = torch.cat([around, found[None]]) if len(around) else found[None]
                surround.update(dict.fromkeys(names, found))
        t = context.run.tensors(STAGE, VOCABULARY, EMBEDDED)
        references = []
        for number, names in enumerate(context.progress.track(self.class_words.words, "names", context.classes)):
            shared, beside = next((surround[w] for n in names if (w := ALSO.get(n, n)) in surround), None), around
            words = t["vectors"][t["owner"] == number]
            if number == self.class_words.background and len(names) > 1:
                # Its words are many things: no single one of them is all of it, and none of them is its context.
                shared, beside = None, around[[m for m, own in enumerate(spoken) if set(own).isdisjoint(names)]]
                context.note(
                    f"{self.table.names[number]} has one vector, of what the photographs nearest to any of its "
                    f"{len(names)} words have something like."
                )
            references.append(self.reference(archive(words), words, beside) if shared is None else shared)
        if context.run.writes:
            save_tensors(folder / REFERENCES, {"references": torch.stack(references)})

    def teacher(self) -> Segmenter:
        """Both maps, and the names' vectors in both."""
        t = self.context.run.tensors(STAGE, VOCABULARY, EMBEDDED)
        r = self.context.run.tensors("references", REFERENCES, {"references": "CD"})["references"]
        options = self.config.words
        preprocess = Preprocess.for_backbone(
            tower_of(self.context).provenance, short_side=options.short_side, multiple_of=self.encoder.multiple_of
        )
        scores = Scores(len(r), 1 / options.scale)
        return assembled(self, self.encoder, RecoScores(r, t["vectors"], t["owner"]), scores, preprocess)

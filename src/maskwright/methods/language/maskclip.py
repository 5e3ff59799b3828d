"""MaskCLIP: Extract Free Dense Labels from CLIP (Zhou, Loy, Dai, ECCV 2022, https://arxiv.org/abs/2112.01071).

CLIP's picture vector is a weighted sum of the places' values, projected: so the values themselves, projected alike, lie
in the space of words. Class names become vectors by the text tower; a place is the class whose vector is nearest.
Nothing is trained and no label is read. Not the MaskCLIP of Ding et al. (2022) or of Dong et al. (2023).

MaskCLIP+, the paper's second stage (`plus.train=true`): a network learns these masks by cross-entropy. Its last layer
is a map into the space of words and the names' vectors, which stay as they are, z = V W f, neither of unit length. In
rounds it labels the photographs itself and goes on. The paper's network and rates are `preset=paper`.

Deviates: CLIP's own mean and standard deviation (the authors' configurations give ImageNet's); QuickGELU where the
weights were trained with it (theirs give GELU); key smoothing normalises each key, as the paper says (their code
normalises each channel over the picture), and divides by the sum of |W| for a confidence, which changes no winner;
synonyms and a background, which the paper has not; plurals are made singular. Refinements see one picture, or one tile.
MaskCLIP+ labels whole photographs once, where the authors label each augmented crop as it is drawn; a label counts as
much as it is sure, where theirs all count alike; no mask marks pixels to leave out, where theirs drops the true 255 and
chooses crops by true masks; self-training has rounds, without seen classes with masks; its network and optimiser are
any of ours. With the paper's: Nesterov momentum, crops at the photographs' own scale (theirs: 512 pixels of short
side), no change of colours.

The original's ViT keeps residual and MLP of the last block (`last_block.rest`); later papers do better without. Its
`conf_thresh` overwrites true labels too, and `assign_label` gives a tuple where nothing is to be filled.

Legend: P words, C classes, E channels of the joint space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from maskwright.engine.config import option, part
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.language.student import SMALL, PlusOptions, StudentConfig, StudentMethod, student_preset
from maskwright.recipes.language.words import LastBlockOptions, joint_encoder, word_segmenter

PAPER: dict[str, Any] = {
    "plus.rounds": 0, "student.network.name": "deeplabv2", "student.crops.size": 512, "student.crops.batch": 16,
    "student.crops.long_side": 2048, "student.optimizer.name": "sgd", "student.optimizer.lr": 0.01,
    "student.optimizer.weight_decay": 5e-4, "student.norms.images": 0, "student.steps": 2000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": SMALL | {"plus.rounds": 1},
    "paper": PAPER,
    "paper_context": PAPER | {"student.crops.size": 480, "student.steps": 4000},
    "paper_stuff": PAPER | {"student.steps": 8000},
}
"""By whole names. `paper`: MaskCLIP+ on VOC without annotations, on ResNet-101; on Pascal Context and COCO-Stuff."""


@dataclass(kw_only=True)
class RefinementOptions:
    """MaskCLIP's refinements, in this order."""

    denoise: float = option(
        0.0, "prompt denoising: classes nowhere as probable as this leave the picture; 0.5 in the paper, 0 for none",
        low=0.0, high=1.0, main=True,
    )  # fmt: skip
    smooth: float = option(
        0.0, "key smoothing: places less sure than this follow those with like keys; 1 in the paper, 0 for none",
        low=0.0, high=1.0, main=True,
    )  # fmt: skip


@dataclass(kw_only=True)
class MaskClipConfig(StudentConfig):
    """Options of `maskclip`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    preset: str = student_preset(PRESETS)
    plus: PlusOptions = part(PlusOptions, rounds=None)
    last_block: LastBlockOptions = part(LastBlockOptions)
    refinement: RefinementOptions = part(RefinementOptions)


class MaskClip(StudentMethod):
    """Places of a frozen CLIP compared with class names."""

    name: ClassVar[str] = "maskclip"
    title: ClassVar[str] = "Extract Free Dense Labels from CLIP"
    venue: ClassVar[str] = "ECCV 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2112.01071"
    summary: ClassVar[str] = "Compares CLIP's places with class names."
    Config: ClassVar[type] = MaskClipConfig
    config: MaskClipConfig

    def teacher(self) -> Segmenter:
        """Tower and words."""
        c = self.config
        encoder = joint_encoder(self, "value", c.last_block.rest, keys=c.refinement.smooth > 0)
        return word_segmenter(
            self, self.class_words, c.words, encoder, denoise=c.refinement.denoise, smooth=c.refinement.smooth
        )

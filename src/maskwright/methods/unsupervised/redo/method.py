"""ReDO: Unsupervised Object Segmentation by Redrawing.

Chen, Artieres, Denoyer, NeurIPS 2019, https://arxiv.org/abs/1905.13539.

A mask network divides a photograph into regions. For each region a generator redraws what is in it from noise, the rest
stays; a discriminator must not tell the result from a photograph. Regions can be redrawn so only where they are whole
things. The noise must be recoverable from what is drawn (information conservation), so that generators use it and no
region vanishes.

Deviates: photographs are scaled by area, the authors' to the nearest pixel. The last iterate is kept, the authors' is
chosen by masks. The restart is on, looks at the mean share of the smallest region over many steps of training, and
empties the optimisers; the authors' is off and looks at one batch. Of two regions the one that touches the border less
becomes id 1, without a label. Prediction is at `crops.size` pixels of the shorter side, whole photographs, not squares.

What the original gets wrong: each image is judged under its better polarity, for accuracy and IoU apart, which is
optimistic (`evaluate --protocol either_polarity` gives both, and one polarity for all); a truth without an object gives
no number; pyramid pooling leaves out the last rows and columns of its 3 x 3 and 6 x 6 grids, which is kept.

Legend: B photographs, K regions, S side; M mask network, G generators, Z recovery, D discriminator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from maskwright.engine.checkpoint import trained
from maskwright.engine.config import Idle, fill_from_preset, option, part
from maskwright.engine.context import Context
from maskwright.engine.contract import Method, Stage
from maskwright.engine.forecast import photographs_shown
from maskwright.engine.needs import Terms
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.redo.networks import doublings
from maskwright.methods.unsupervised.redo.training import RedoTraining
from maskwright.models.parts.regions import RegionClassifier, RegionEncoder
from maskwright.models.preprocess import Preprocess
from maskwright.models.provenance import Provenance
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.recipes.training.norm_statistics import evenly
from maskwright.recipes.training.options import CropOptions

PAPER: dict[str, Any] = {
    "crop": 128, "batch": 20, "width": 64, "judge_width": 64, "mask_width": 64, "generators": 1e-4,
    "discriminator": 1e-4, "recovery_rate": 1e-4, "masks": 1e-5, "every": 1000, "steps": 40_000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "crop": 64, "batch": 8, "width": 8, "judge_width": 8, "mask_width": 16, "generators": 4e-4,
        "discriminator": 4e-4, "recovery_rate": 4e-4, "masks": 1e-4, "every": 60, "steps": 600,
    },
    "paper": PAPER,
    "paper_flowers": PAPER | {"width": 32},
}  # fmt: skip
"""By flat names. `small` finishes on two cores and is far too short to find objects; `paper` is the authors' for birds
and faces, `paper_flowers` that for flowers."""
POLARITY = "polarity.safetensors"
LOOKED = 256
"""Photographs whose borders are looked at, at most."""


@dataclass(kw_only=True)
class PlayerOptions:
    """The networks."""

    width: int = option(None, "base of the generators' channels (preset)", low=1, main=True)
    judge_width: int = option(None, "of the discriminator's and the recovery network's (preset)", low=1)
    mask_width: int = option(None, "of the mask network's, a multiple of 4 (preset)", low=4, main=True)
    mask_blocks: int = option(3, "residual blocks of the mask network", low=0, high=64)
    noise: int = option(32, "nz, numbers that a region is drawn from", low=1)
    attention: bool = option(True, "self-attention in the generators and the discriminator")
    temperature: float = option(1.0, "the mask network's logits are divided by it", low=1e-3)
    gain: float = option(0.8, "of the orthogonal initial weights", low=1e-3)


@dataclass(kw_only=True)
class RateOptions:
    """Adam's learning rates, which stay as they are."""

    generators: float = option(None, "of G (preset)", low=0)
    discriminator: float = option(None, "of D (preset)", low=0)
    recovery: float = option(None, "of Z (preset)", low=0, old="recovery_rate")
    masks: float = option(None, "of M (preset)", low=0, main=True)
    decay: float = option(1e-4, "weight decay of M", low=0)


@dataclass(kw_only=True)
class RestartOptions:
    """When everything begins anew."""

    below: float = option(
        0.1, "share of the pixels below which the smaller of two regions has vanished, of K regions 2 / K of it; 0: "
        "never", low=0, high=0.5, main=True,
    )  # fmt: skip
    every: int = option(None, "steps between two looks (preset)", low=1)
    until: float = option(0.2, "share of the steps after which there is none", low=0, high=1)


@dataclass(kw_only=True)
class RedoConfig:
    """Options of `redo`; those without a value of their own take the preset's, those that are given win."""

    preset: str = option("small", "sets the other options' defaults", choices=tuple(PRESETS), main=True)
    crops: CropOptions = part(
        CropOptions, without=("sample", "long_side", "scale_min", "scale_max"), size=None, batch=None,
        says={"size": "S, side of the central squares, pixels: 16, 32, 64, 128 or 256 (preset)",
              "batch": "photographs in a step, and as many real ones (preset)"},
    )  # fmt: skip
    networks: PlayerOptions = part(PlayerOptions)
    rates: RateOptions = part(RateOptions)
    recovery: float = option(5.0, "weight of the information conservation", low=0, main=True)
    restart: RestartOptions = part(RestartOptions)
    steps: int = option(None, "optimiser steps where --steps does not say (preset)", low=1, main=True)
    precision: str = option(
        "fp32", "of the passes; bf16 where the processor has it for auto", choices=("auto", "bf16", "fp32")
    )

    def __post_init__(self) -> None:
        fill_from_preset(self, PRESETS.get(self.preset, {}))

    def idle(self) -> Idle:
        """Options of a restart and of a recovery that never count."""
        if not self.restart.below:
            yield ("restart.every", "restart.until"), "restart.below=0"
        if not self.recovery:
            yield ("rates.recovery",), "recovery=0"

    def check(self) -> None:
        """Raises `MaskwrightError` on sizes that the networks have not."""
        try:
            doublings(self.crops.size)
        except ValueError as error:
            raise MaskwrightError(f"crops.size={self.crops.size}", "16, 32, 64, 128 or 256") from error
        if self.networks.mask_width % 4:
            raise MaskwrightError(f"networks.mask_width={self.networks.mask_width}", "a multiple of 4")
        if self.networks.attention and self.networks.judge_width < 2:
            raise MaskwrightError("networks.judge_width=1 with attention", "at least 2", "set networks.attention=false")


class Redo(Method):
    """Regions that can be redrawn and still fool a discriminator."""

    name: ClassVar[str] = "redo"
    title: ClassVar[str] = "Unsupervised Object Segmentation by Redrawing"
    venue: ClassVar[str] = "Chen et al., NeurIPS 2019"
    link: ClassVar[str] = "https://arxiv.org/abs/1905.13539"
    summary: ClassVar[str] = "Regions that can be redrawn unnoticed."
    family: ClassVar[str] = "unsupervised"
    classes_from: ClassVar[Literal["labels", "clusters", "objects"]] = "clusters"
    Config: ClassVar[type] = RedoConfig
    config: RedoConfig

    def __init__(self, config: RedoConfig, context: Context) -> None:
        super().__init__(config, context)
        if context.classes < 2:
            raise MaskwrightError(f"{context.classes} region", "at least 2: all else is one", "give --classes 2")

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """The steps of the options, and networks of its own."""
        unused = "not used, because redo has networks of its own, which start from nothing"
        return replace(super().terms(config, images), steps=config.steps, backbone_unused=unused)

    def tail(self) -> float:
        """Photographs whose borders are looked at, and those that the report shows. A step passes the mask network
        forward and back, which costs three times a pass forward, and the other players besides."""
        looked = min(LOOKED, len(self.context.data)) if self.context.classes == 2 else 0
        return (looked + photographs_shown(self)) / (3 * self.config.crops.batch)

    def stages(self) -> list[Stage]:
        """Train; of two regions, find out which is the foreground."""
        steps = int(self.context.steps or self.config.steps)
        says = "regions that can be redrawn and still fool a discriminator"
        train = Stage("train", "train", lambda folder: self.train(folder, steps), says, steps)
        polarity = Stage("polarity", "fit", self.polarity, "which of the two regions touches the border less")
        return [train, *([polarity] if self.context.classes == 2 else [])]

    def train(self, folder: Path, steps: int) -> None:
        """Trains; the artefact is the checkpoint of the last step."""
        self.context.fit(RedoTraining(self.context, self.config, steps), "train", folder, steps)

    def regions(self, swap: bool = False) -> Segmenter:
        """The mask network as the training left it."""
        c, context = self.config, self.context
        encoder = RegionEncoder(c.networks.mask_width, c.networks.mask_blocks)
        classifier = RegionClassifier(encoder.out, context.classes, c.networks.temperature, swap)
        grey = (0.5, 0.5, 0.5)
        preprocess = Preprocess(grey, grey, short_side=c.crops.size, multiple_of=encoder.multiple_of)
        provenance = Provenance("redo", "random", "none needed", "none", mean=grey, std=grey)
        folder = context.run.path / "train"
        encoder, classifier = trained(folder, "encoder", encoder), trained(folder, "classifier", classifier)
        return Segmenter(encoder, None, classifier, self.table, preprocess, provenance, self.name).eval()

    @torch.no_grad()
    def polarity(self, folder: Path) -> None:
        """Whether the regions change places: 1 where region 0 has the smaller part of its pixels at the border."""
        context, network = self.context, self.regions().to(self.context.device)
        border, whole = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for i in evenly(range(len(context.data)), LOOKED):
            x = network.preprocess.apply(context.data.image(i))[None].to(context.device)
            m = network(x)[0].softmax(0).double().cpu()
            ring = max(1, min(m.shape[1:]) // 16)
            inner = m[:, ring : m.shape[1] - ring, ring : m.shape[2] - ring]
            whole += m.sum((1, 2))
            border += m.sum((1, 2)) - inner.sum((1, 2))
        at_border = border / whole.clamp(min=1e-9)
        swap = bool(at_border[0] < at_border[1])
        shares = ", ".join(f"{100 * s:.0f} %" for s in whole / whole.sum())
        context.note(f"Regions have {shares} of the pixels; the one that touches the border less is id 1.")
        if context.run.writes:
            save_tensors(folder / POLARITY, {"swap": torch.tensor([float(swap)])})

    def segmenter(self) -> Segmenter:
        """The mask network; of two regions the foreground is id 1."""
        swap = False
        if self.context.classes == 2:
            swap = bool(self.context.run.tensors("polarity", POLARITY, {"swap": "1"})["swap"][0] > 0.5)
        return self.regions(swap)

"""Semi-supervised semantic segmentation with cross-consistency training (CCT), Ouali et al., CVPR 2020,
https://arxiv.org/abs/2003.09005

Cluster borders lie in low density after the encoder, not in the picture. So it is the encoder's output z that is
perturbed, in seven ways, and each perturbed copy gets an auxiliary decoder of its own. All of them learn to say of an
unlabelled photograph what the main decoder says of the plain z:

    L_u = 1/K sum_k mean_{i,c} (softmax g_k(P_k(z)) - sg softmax g(z))^2,    L = L_x + w(t) L_u

Only what lies before z gains; the auxiliary decoders are thrown away.

Deviates: z is the decoder's embedding, the last map before the classifier. It is what comes closest to the paper's z,
which has seen the pyramid pooling already and is followed by 1x1 convolutions alone; a perturbed deepest map of an
encoder that hands over several would need K whole decoders and would leave the skip connections untouched. The paper's
encoder has no dropout; here it is off in a decoder that has one, as it would fall on z and on what z is said to be. One
decoder of each kind by default, for processors; `counts=paper` has the paper's 30. Guided CutOut and the two masks need
to know the background and are left out where no class has that name. Padding outside the photograph counts for nothing.
A mask's cell takes its central pixel, where the authors take its upper left one (5 % of the cells of stride 8 differ on
the masks of voc_part), and the first 1x1 convolution of an auxiliary decoder has a bias, which theirs lack. Activity of
a place, by which features are dropped, is the mean absolute value of its channels; bootstrapping grows linearly over
the whole run. An auxiliary decoder ends in its last shuffle, without the ReLU behind it that lets a class whose logits
are all negative never learn again. Optimiser, schedule, crops and inference are those that all methods here share; L_u
is taken at the crop's size. An object's contour is all of its border, holes included, where the authors count the
corners of its outer one. The image-level labels of the paper's weakly supervised variant are not used.
What the original gets wrong: it takes class 0 for the background whatever it is (a road, in Cityscapes). The trial step
of its adversarial direction, 1e-6 over a whole map, is lost in float32, and the backward pass inside its forward pass
writes into the decoder's gradients. Dropping the strongest positions of a constant map leaves nothing of it. Its
weight, 30, is that of a mean over 21 classes, and means ten times as much with two; here the sum over classes weighs 30
/ 21 whatever C is.

Legend: B batch, C classes, S crop side, E width of the embedding, (h, w) its size, K auxiliary decoders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import Labels
from maskwright.data.training.streams import Views
from maskwright.engine.config import Idle, option, part
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError, unknown
from maskwright.ops.channel_dropout import channel_dropout
from maskwright.ops.feature_perturb import (
    Box,
    context_mask,
    feature_drop,
    feature_noise,
    guided_cutout,
    object_boxes,
    object_mask,
    vat_direction,
)
from maskwright.ops.losses.seg_losses import mse_probs
from maskwright.recipes.consistency.options import NOTHING_UNLABELED, RampOptions, SemiConfig, UnlabeledOptions
from maskwright.recipes.consistency.parts import Ramp, unlabeled_stream
from maskwright.recipes.training.forward import upsample
from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.setup import NetworkSetup

PAPER = {"dropout": 6, "drop": 6, "noise": 6, "cutout": 6, "context": 2, "object": 2, "vat": 2}
"""The perturbations, and how many decoders each has in the paper."""
NEEDS_BACKGROUND = ("cutout", "context", "object")
STRENGTHS = {"noise": "noise", "dropout": "dropout", "erase": "cutout", "vat_eps": "vat"}
"""Options that say how strong a perturbation is, and which."""
PAPER_CROP = 320
"""The crop that the least contour of an object, 50 pixels, is for."""
PAPER_CLASSES = 21
"""The classes that the weight of L_u, a mean over them, is for."""


@dataclass(kw_only=True)
class CCTConfig(SemiConfig):
    """Options of `cct`."""

    unlabeled: UnlabeledOptions = part(UnlabeledOptions, without=("strong",))
    ramp: RampOptions = part(
        RampOptions, weight=30.0, up=0.1,
        says={"weight": "greatest weight of L_u at 21 classes; in proportion to C at others"},
    )  # fmt: skip
    counts: str = option(
        "one", "auxiliary decoders: one of each kind, the paper's 30 (paper), or a list such as noise:2,vat:1 of "
        "dropout, drop, noise, cutout, context, object, vat", main=True,
    )  # fmt: skip
    background: str = option(
        "auto", "class that cutout, context and object take for background; auto: of that name; none"
    )
    noise: float = option(0.3, "greatest share by which noise changes a feature", low=0, high=1)
    dropout: float = option(0.5, "chance of a channel to be dropped", low=0, high=0.99)
    erase: float = option(0.4, "share of an object's height and width that cutout erases", low=0, high=1)
    vat_eps: float = option(2.0, "L2 norm of the adversarial change of an image's embedding", low=0)
    bootstrap: bool = option(False, "labelled pixels count only while p_y < eta, and eta grows from 1/C to 0.9 (abCE)")

    def check(self) -> None:
        """Raises `MaskwrightError` on counts that cannot be read."""
        parse_counts(self.counts)

    def idle(self) -> Idle:
        """Options of perturbations without a decoder, or without a background, and of a loss that does not weigh."""
        yield from super().idle()
        if self.ramp.weight == 0:
            yield ("counts", "background", *STRENGTHS), NOTHING_UNLABELED
        counts, why = parse_counts(self.counts), f"counts={self.counts}"
        yield [name for name, kind in STRENGTHS.items() if not counts.get(kind)], why
        if not any(counts.get(kind) for kind in NEEDS_BACKGROUND):
            yield ("background",), why
        elif self.background == "none":
            yield ("erase",), "background=none"


def parse_counts(text: str) -> dict[str, int]:
    """Decoders of each kind: `one`, `paper`, or `kind:count` joined by commas.

    Raises:
        MaskwrightError: an unknown kind, no number, or no decoder at all.
    """
    if text == "paper":
        return dict(PAPER)
    if text == "one":
        return dict.fromkeys(PAPER, 1)
    counts: dict[str, int] = {}
    for word in text.split(","):
        kind, _, number = word.strip().partition(":")
        if kind not in PAPER:
            raise unknown("perturbation", kind, [*PAPER, "one", "paper"])
        if not (number or "1").isdigit():
            raise MaskwrightError(f"counts={text}", "whole numbers, such as noise:2,vat:1")
        counts[kind] = int(number or 1)
    if not sum(counts.values()):
        raise MaskwrightError(f"counts={text}", "at least one decoder")
    return counts


class ShuffleDecoder(nn.Module):
    """g_k: 1x1 convolution E -> C, then doublings by 1x1 convolution C -> 4C and pixel shuffle, ReLU between them.

    Args:
        width: E.
        classes: C.
        doublings: how often the map is doubled; what is left to the crop's size is interpolated.
    """

    def __init__(self, width: int, classes: int, doublings: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, classes, 1)
        self.enlarge = nn.ModuleList(nn.Conv2d(classes, 4 * classes, 1) for _ in range(doublings))
        self.shuffle = nn.PixelShuffle(2)
        nn.init.kaiming_normal_(self.project.weight, nonlinearity="relu")
        for conv in self.enlarge:
            icnr(conv.weight)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> Tensor:
        """z (B, E, h, w) to logits (B, C, 2^doublings h, 2^doublings w)."""
        x = self.project(z)
        for k, conv in enumerate(self.enlarge):
            x = self.shuffle(conv(torch.relu(x) if k else x))
        return x


@torch.no_grad()
def icnr(weight: Tensor, factor: int = 2) -> None:
    """Fills (C factor^2, D, 1, 1) so that a pixel shuffle first repeats each pixel: no checkerboard (Aitken et al.)."""
    base = torch.empty_like(weight[:: factor * factor])
    nn.init.kaiming_normal_(base)
    weight.copy_(base.repeat_interleave(factor * factor, 0))


def consistency(auxiliary: list[Tensor], q: Tensor, valid: Tensor) -> Tensor:
    """L_u: the mean of the decoders' mean squared errors over valid pixels and classes.

    Args:
        auxiliary: logits of each decoder (B, C, h_k, w_k), brought to q's size.
        q: the main decoder's probabilities (B, C, S, S), without gradient.
        valid: bool (B, S, S).
    """
    return torch.stack([mse_probs(logits, q, over="mean", valid=valid) for logits in auxiliary]).mean()


def annealed(logits: Tensor, y: LabelMap, eta: float) -> LabelMap:
    """Labels whose probability is still below eta: what the network knows already is left out (abCE).

    Args:
        logits: (B, C, S, S).
        y: labels (B, S, S).
        eta: threshold.
    """
    p = logits.detach().float().softmax(1).gather(1, y.ids[:, None])[:, 0]
    return y.restrict(p < eta)


class CCTTraining(Training):
    """Main decoder on the plain embedding, auxiliary decoders on perturbed ones."""

    def __init__(self, context: Any, config: CCTConfig, labels: Labels, steps: int, **options: Any) -> None:
        setup = NetworkSetup(context, config, labels, steps, **options)
        super().__init__(setup)
        self.config = setup.config
        self.context, self.steps, self.crop, self.device = context, steps, setup.crop, setup.device
        self.student, self.network, self.supervised = setup.student, setup.network, setup.supervised
        setup.streams["u"] = unlabeled_stream(setup, strong_views=0)
        self.ramp = Ramp(self.config.ramp, steps)
        self.background = self._background()
        counts = parse_counts(self.config.counts)
        if self.background is None:
            left_out = [k for k in NEEDS_BACKGROUND if counts.pop(k, 0)]
            if left_out:
                context.note(f"CCT: no class is the background, so that {', '.join(left_out)} are left out.")
        self.kinds = [kind for kind, n in counts.items() for _ in range(n)]
        if not self.kinds:
            raise MaskwrightError(
                f"counts={self.config.counts} without a background class", "a perturbation that needs none",
                "add noise, or name the class with --set background=NAME",
            )  # fmt: skip
        stride = setup.crop / self._embedding_size()
        doublings = max(0, int(math.log2(stride) + 1e-9))
        decoders = [ShuffleDecoder(setup.network.width, context.classes, doublings) for _ in self.kinds]
        self.auxiliary = setup.learn_too("auxiliary", nn.ModuleList(decoders))

    def _background(self) -> int | None:
        """Id of the background class, or None."""
        names, asked = [name.lower() for name in self.context.table.names], self.config.background.lower()
        if asked in names:
            return names.index(asked)
        if asked not in ("auto", "none"):
            raise unknown("class", self.config.background, [*self.context.table.names, "auto", "none"])
        return names.index("background") if asked == "auto" and "background" in names else None

    @torch.no_grad()
    def _embedding_size(self) -> int:
        """Side h of a crop's embedding; found in evaluation mode, which leaves batch-norm statistics alone."""
        self.network.eval()
        blank = torch.zeros(1, 3, self.crop, self.crop, device=self.device)
        h = self.network.decode(self.network.features(blank)).shape[-1]
        self.student.learn()
        return int(h)

    def perturb(
        self, kind: str, z: Tensor, decoder: nn.Module, foreground: Tensor | None, boxes: list[list[Box]]
    ) -> Tensor:
        """P_k(z).

        Args:
            kind: a key of `PAPER`.
            z: (B, E, h, w).
            decoder: g_k, for the adversarial direction.
            foreground: bool (B, S, S), where the main decoder sees objects; None without a background class.
            boxes: the objects' boxes.
        """
        c = self.config
        if kind == "dropout":
            return channel_dropout([z], c.dropout)[0]
        if kind == "drop":
            return feature_drop(z)
        if kind == "noise":
            return feature_noise(z, c.noise)
        if kind == "vat":
            return z + vat_direction(z, decoder, eps=c.vat_eps).to(z.dtype)
        assert foreground is not None, "kinds that need a background are left out where there is none"
        if kind == "cutout":
            return guided_cutout(z, boxes, (self.crop, self.crop), c.erase)
        return context_mask(z, foreground) if kind == "context" else object_mask(z, foreground)

    def consistency(self, u: Views) -> Tensor:
        """L_u of the unlabelled crops; the main decoder's classifier gets no gradient of it."""
        student = self.student
        with student.plain(), student.autocast():
            z = self.network.decode(self.network.features(u.weak))
            with torch.no_grad():
                main = self.network.classify(z)
        q = upsample(main, u.weak.shape[-2:]).softmax(1)
        foreground = None if self.background is None else (q.argmax(1) != self.background) & u.valid
        boxes: list[list[Box]] = []
        if foreground is not None and "cutout" in self.kinds:
            boxes = object_boxes(foreground, round(50 * self.crop / PAPER_CROP))
        auxiliary = []
        for kind, decoder in zip(self.kinds, self.auxiliary):
            perturbed = self.perturb(kind, z, decoder, foreground, boxes)
            with student.autocast():
                auxiliary.append(decoder(perturbed))
        return consistency(auxiliary, q, u.valid) * (self.context.classes / PAPER_CLASSES)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x + w(t) L_u."""
        x, w, y = batch["x"], self.ramp(step), batch["x"].y
        out, classes = self.student(x.weak), self.context.classes
        if self.config.bootstrap:
            y = annealed(out.logits, y, 1 / classes + (0.9 - 1 / classes) * step / max(1, self.steps))
        loss_x = self.supervised(out, y)
        if w == 0:
            return {"loss": loss_x, "x": loss_x}
        loss_u = self.consistency(batch["u"])
        return {"loss": loss_x + w * loss_u, "x": loss_x, "u": loss_u}


class CCT(NetworkMethod):
    """Consistency of auxiliary decoders under perturbed features."""

    name: ClassVar[str] = "cct"
    title: ClassVar[str] = "Semi-supervised semantic segmentation with cross-consistency training"
    venue: ClassVar[str] = "Ouali et al., CVPR 2020"
    link: ClassVar[str] = "https://arxiv.org/abs/2003.09005"
    summary: ClassVar[str] = "Makes decoders of perturbed features agree."
    family: ClassVar[str] = "semi"
    Config: ClassVar[type] = CCTConfig
    trainer: ClassVar[type[Training]] = CCTTraining
    says: ClassVar[str] = "auxiliary decoders that agree with the main one on perturbed features"

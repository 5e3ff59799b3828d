"""From attended features to masks: embeddings, names of pixels, and the threshold of "other" (PASS, TPAMI 2022).

Legend: K clusters, C classes without "other", (H, W) image size, F width of the deepest stage, A the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.masking.classes import IGNORE16
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.engine.context import Context
from maskwright.engine.distributed import broadcast_object, each, gather_objects, rank, share
from maskwright.errors import MaskwrightError
from maskwright.evaluate.luss_sweep import ThresholdSweep
from maskwright.models.parts.attended_clusters import AttendedClusters
from maskwright.models.preprocess import Preprocess
from maskwright.ops.graphs.objectness import otsu_threshold

SAMPLED_IMAGES = 2000
SAMPLED_PLACES = 1024
"""Photographs and places of each whose attention the threshold is chosen on: two million values settle a histogram."""
UNIMODAL = 2 / np.pi
"""Separability of a normal distribution cut at its mean: at or below it values fall into no two groups."""


@dataclass(frozen=True)
class Threshold:
    """A threshold and how it was found.

    Attributes:
        value: pixels below it are "other".
        how: `otsu`, `oracle`, `given`, or `named` where the class table leaves nothing to be other.
        separability: variance between the two groups over the whole variance, in [0, 1]; None where not computed.
        other: share of the sampled places below it, likewise.
        miou: of the oracle's choice, in [0, 1].
    """

    value: float
    how: str
    separability: float | None = None
    other: float | None = None
    miou: float | None = None

    @property
    def doubtful(self) -> bool:
        """The values show no two groups."""
        return self.separability is not None and self.separability <= UNIMODAL


def separability(values: np.ndarray, threshold: float) -> float:
    """Variance between the values below and from the threshold on, over their whole variance, in [0, 1]."""
    low = values < threshold
    share_, spread = float(low.mean()), float(values.var())
    if share_ in (0.0, 1.0) or spread <= 0:
        return 0.0
    return share_ * (1 - share_) * float(values[low].mean() - values[~low].mean()) ** 2 / spread


class PixelNames:
    """What an encoder with PASS's labelling rule makes of whole photographs.

    Args:
        context: of the run, whose photographs they are.
        encoder: images to the deepest stage's map.
        rule: gate and centroids.
        preprocess: from photograph to input.
    """

    def __init__(self, context: Context, encoder: nn.Module, rule: AttendedClusters, preprocess: Preprocess) -> None:
        self.context, self.data, self.device = context, context.data, context.device
        self.encoder, self.rule = encoder.to(self.device).eval(), rule.to(self.device).eval()
        self.preprocess = preprocess

    @torch.inference_mode()
    def embeddings(self, indices: Sequence[int], side: int, batch: int = 16) -> Tensor:
        """Unit embeddings (n, F) of the middles of photographs, `side` pixels square at the network's size."""
        rows = [torch.empty(0, self.rule.width)]
        for k in range(0, len(indices), batch):
            x = torch.stack([centre_crop(self.preprocess, self.data.image(i), side) for i in indices[k : k + batch]])
            rows.append(self.rule.pooled(self.encoder(x.to(self.device))).float().cpu())
        return torch.cat(rows)

    @torch.inference_mode()
    def attend(self, i: int) -> tuple[Tensor, Tensor]:
        """Enlarged features (1, F, h, w) and mean gate (1, h, w) of photograph `i`."""
        return self.rule.attend(self.encoder(self.preprocess.apply(self.data.image(i))[None].to(self.device)))

    @torch.inference_mode()
    def name(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids 1..K int64 (H, W), resized nearest, and mean gate float32 (H, W), resized bilinearly."""
        y, a = self.attend(i)
        size = self.data.size(i)
        ids = F.interpolate(self.rule.cosines(y).argmax(1, keepdim=True).float() + 1, size, mode="nearest")
        a = F.interpolate(a[:, None].float(), size, mode="bilinear", align_corners=False)
        return ids[0, 0].cpu().numpy().astype(np.int64), a[0, 0].cpu().numpy()

    def write(self, store: LabelStore, threshold: float) -> None:
        """Writes this process's share of the masks, 0 where the mean gate is below the threshold.

        Masks that are there stay, so that a killed run goes on where it was.
        """
        items = self.data.items
        for i in each(self.context.progress, range(len(items)), "label", done=lambda i: items[i].name in store):
            ids, a = self.name(i)
            found = torch.from_numpy(np.where(a < threshold, 0, ids))
            everywhere = torch.ones_like(found, dtype=torch.bool)
            store.write(items[i].name, LabelMap(found, everywhere.float(), everywhere), items[i].image)


def centre_crop(preprocess: Preprocess, image: np.ndarray, side: int) -> Tensor:
    """The middle (3, side, side) of a photograph at the network's size, normalised; enlarged where too small."""
    h, w = (max(side, s) for s in preprocess.target_size((image.shape[0], image.shape[1])))
    top, left = (h - side) // 2, (w - side) // 2
    return preprocess.apply(image, (h, w))[:, top : top + side, left : left + side]


def choose_threshold(names: PixelNames, generator: torch.Generator) -> Threshold:
    """Otsu's threshold of the mean gate over the training photographs' pixels.

    It is the cut whose two groups have the least variance within. No label enters; and because the gate's level is an
    accident of training (a learned offset shifts all of it), a rule that only looks at how values group is sound where
    a fixed number is not: shifting or scaling all attention moves the threshold along. It does cut what has no two
    groups, too, which `separability` tells.

    Args:
        names: of the photographs.
        generator: for the sample, the same on all processes.
    """
    chosen = torch.randperm(len(names.data), generator=generator)[:SAMPLED_IMAGES].tolist()
    seeds = torch.randint(2**62, (len(chosen),), generator=generator).tolist()
    mine = []
    for i, seed in share(list(zip(chosen, seeds))):
        flat = names.attend(i)[1].flatten().float().cpu()
        keep = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:SAMPLED_PLACES]
        mine.append(flat[keep].numpy())
    values = np.concatenate([v for part in gather_objects(mine) for v in part]).astype(np.float64)
    t = otsu_threshold(values)
    return Threshold(t, "otsu", separability(values, t), float((values < t).mean()))


def oracle_threshold(names: PixelNames, clusters: int, classes: int, *, other_in_truth: bool) -> Threshold:
    """The threshold with the best mIoU after image-level matching, on the masks of the run's own photographs.

    Masks are noted in the ledger for the purpose `select`.

    Args:
        names: of the photographs; those with masks are used.
        clusters: K.
        classes: C.
        other_in_truth: whether class 0 of the truth is "other"; else its ids move up by one.

    Raises:
        MaskwrightError: no photograph has a mask.
    """
    data, found = names.data, None
    indices = [i for i in range(len(data)) if data.has_mask(i)]
    if not indices:
        raise MaskwrightError(
            f"{data.root} has no mask among the run's images", "masks for oracle_threshold",
            "leave it off: the threshold is then chosen without labels",
        )  # fmt: skip
    if rank() == 0:
        sweep = ThresholdSweep(classes, clusters, ignore=IGNORE16)
        with data.ledger.purpose("select"):
            for i in indices:
                mask = data.mask(i)
                ids = mask.astype(np.int64) + (not other_in_truth)
                sweep.update(*names.name(i), np.where(mask != ignore_of(mask), ids, IGNORE16).astype(np.uint16))
        value, miou = sweep.best()
        found = Threshold(value, "oracle", miou=miou)
    found = broadcast_object(found)
    assert found is not None
    return found

"""The gate's training, and from attended features to masks: embeddings, names of pixels, and the threshold of "other"
(PASS, TPAMI 2022).

Legend: K clusters, C classes without "other", (H, W) image size, F width of the deepest stage, A the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.classes import IGNORE16
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.engine.distributed import broadcast_object, gather_objects, rank, share
from maskwright.engine.loop import Indices, Training
from maskwright.errors import MaskwrightError
from maskwright.evaluate.luss_sweep import ThresholdSweep
from maskwright.methods.unsupervised.pass_.network import PassNetwork
from maskwright.models.parts.attended_clusters import AttendedClusters, PixelAttention, upsampled
from maskwright.models.preprocess import Preprocess
from maskwright.ops.graphs.objectness import otsu_threshold
from maskwright.recipes.pretraining.instance import SwAV, synchronised
from maskwright.recipes.pretraining.larc import LARC
from maskwright.recipes.pretraining.multicrop import Crops, MultiCrops

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
        encoder: images to the deepest stage's map.
        rule: gate and centroids.
        preprocess: from photograph to input.
        data: the photographs.
        device: where both run.
    """

    def __init__(
        self, encoder: nn.Module, rule: AttendedClusters, preprocess: Preprocess, data: Dataset, device: torch.device
    ) -> None:
        self.encoder, self.rule = encoder.to(device).eval(), rule.to(device).eval()
        self.preprocess, self.data, self.device = preprocess, data, device

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
        for i in share(range(len(self.data))):
            item = self.data.items[i]
            if item.name in store:
                continue
            ids, a = self.name(i)
            found = torch.from_numpy(np.where(a < threshold, 0, ids))
            everywhere = torch.ones_like(found, dtype=torch.bool)
            store.write(item.name, LabelMap(found, everywhere.float(), everywhere), item.image)


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


class AttentionTraining(Training):
    """The gate, by the clustering loss of mean(A(n) n) on the frozen network; n has unit length at every pixel.

    Batch norm: all layers in training mode, also those of the frozen network and head, whose running statistics go on
    moving; no parameter of theirs does. With `freeze_norm` the backbone's stay in evaluation mode.
    """

    def __init__(
        self,
        network: PassNetwork,
        attention: PixelAttention,
        swav: SwAV,
        crops: MultiCrops,
        *,
        lr: float,
        weight_decay: float,
        freeze_norm: bool = False,
    ) -> None:
        self.crops = crops
        self.network = synchronised(network.requires_grad_(False)).train()
        if freeze_norm:
            self.network.backbone.eval()  # type: ignore[operator]
        self.attention, self.swav = synchronised(attention).train(), swav
        self.modules = {"network": self.network, "attention": self.attention, "swav": swav}
        trained = [*attention.parameters(), *swav.parameters()]
        self.optimizers = {"larc": LARC(trained, lr, weight_decay=weight_decay)}

    def batch(self, indices: Indices, random: torch.Generator) -> Crops:
        """The crops of pretraining."""
        return self.crops.draw(indices, random)

    def attended(self, x: Tensor) -> Tensor:
        """Crops to mean(A(n) n), (B, F)."""
        with torch.no_grad():
            n = F.normalize(upsampled(self.network.deepest(x)), dim=1)  # type: ignore[operator]
        return (self.attention(n) * n).mean((-2, -1))

    def losses(self, batch: Crops, step: int) -> dict[str, Tensor]:
        """L_swav alone."""
        self.swav.before_step(step)
        pooled = [self.attended(x) for x in (batch.global_, batch.local) if x is not None]
        z = self.network.image_head(torch.cat(pooled)).split(len(batch.global_) // 2)  # type: ignore[operator]
        return {"loss": self.swav(z, batch.global_.chunk(2), step)}

    def after_step(self, step: int) -> None:
        """Queues."""
        self.swav.after_step(step, self.network)

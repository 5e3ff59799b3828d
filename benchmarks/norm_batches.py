"""Whose batch-norm statistics do trained features need? `python -m benchmarks.norm_batches`.

k-means of the deepest map of EfficientNet-Lite0 (stride 16, weights of a package), 23 clusters of 120 test photographs
of msrc_v2 at 320 x 224, two seeds; mIoU after one-to-one matching, in percent. Statistics are those of the weights,
those of each batch of so many photographs, as a step of training has them, and those of all photographs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.matched import matched_counts
from benchmarks.records import data_root
from maskwright import api
from maskwright.evaluate.metrics import miou
from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks.build import build_network
from maskwright.models.preprocess import Preprocess
from maskwright.ops.clustering.kmeans import kmeans
from maskwright.recipes.training.norm_statistics import retake_statistics

CLASSES, PHOTOGRAPHS, SIZE, BATCHES, SEEDS = 23, 120, (224, 320), (8, 40), (0, 1)


@torch.no_grad()
def maps(network: Any, x: Tensor, batch: int) -> Tensor:
    """The deepest map (N, D, h, w) of pictures (N, 3, H, W), in the network's present mode."""
    return torch.cat([network.features(part)[-1] for part in x.split(batch)])


def judged(f: Tensor, masks: Sequence[np.ndarray], seed: int) -> float:
    """mIoU in percent of k-means of the places of maps (N, D, h, w)."""
    centers = kmeans(f.permute(0, 2, 3, 1).flatten(0, 2), CLASSES, restarts=3, seed=seed).centers
    return 100 * miou(matched_counts(f, masks, centers, CLASSES))


def main() -> None:
    """Prints the table."""
    data = api.open_folder(data_root() / "msrc_v2").split("test")
    shown = list(range(0, len(data), len(data) // PHOTOGRAPHS))[:PHOTOGRAPHS]
    network = build_network("auto", build_backbone("efficientnet_lite0", "package"), CLASSES)
    preprocess = Preprocess.for_backbone(network.provenance, multiple_of=network.multiple_of)
    x = torch.cat([preprocess.apply_many([data.image(i)], SIZE) for i in shown])
    masks = [data.mask(i) for i in shown]
    retaken = copy.deepcopy(network)
    retake_statistics(retaken, data, shown, preprocess, torch.device("cpu"))
    rows = {"of the weights": maps(network.eval(), x, 24), "of all photographs": maps(retaken, x, 24)}
    rows |= {f"of {batch} photographs": maps(copy.deepcopy(network).train(), x, batch) for batch in BATCHES}
    print("| statistics | mIoU, seeds |\n|---|---|")
    for name, f in rows.items():
        print(f"| {name} | {', '.join(f'{judged(f, masks, seed):.1f}' for seed in SEEDS)} |", flush=True)


if __name__ == "__main__":
    main()

"""Batch-norm statistics of whole photographs, taken once the weights stand ("precise BN").

Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, https://arxiv.org/abs/2105.07576. The running averages that
training leaves are those of the last dozen batches: a few crops at random scales, some of them mixed or discoloured.
Prediction sees whole photographs. After the last step the statistics are taken anew, over photographs as prediction
sees them: mu = E[mu_B], sigma^2 = E[mu_B^2 + sigma_B^2] - mu^2, expectations over batches. No label is read, and no
photograph from outside the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskwright.data.folders.folder import Dataset
from maskwright.data.trust.artefacts import misfit, read_record
from maskwright.engine.progress import Progress
from maskwright.engine.records import RECORD, SHAPE
from maskwright.errors import MaskwrightError
from maskwright.models.parts.relighting import RelitEncoder
from maskwright.models.preprocess import Preprocess

BATCH = 8
"""Photographs in a batch; fewer where they are large."""
PIXELS = 1 << 21
"""Input pixels of a batch."""


def batch_norms(network: nn.Module, but: nn.Module | None = None) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers with running statistics, without those inside `but`."""
    left = set() if but is None else set(but.modules())
    return [
        m
        for m in network.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats and m not in left
    ]


def kept_by_freeze(encoder: nn.Module) -> nn.Module:
    """What keeps its statistics under `norms.freeze`: the encoder, and of one that relights what it sees the encoder
    behind that, since the relighting learned its own from crops of all domains at once."""
    return encoder.encoder if isinstance(encoder, RelitEncoder) else encoder


def train_norms(network: nn.Module, but: nn.Module | None = None) -> None:
    """Batch norms in training mode, all else in evaluation: no dropout and no stochastic depth falls on what labels.

    Args:
        network: whose modes are set.
        but: a part that stays in evaluation mode altogether.
    """
    network.eval()
    network.training = True  # what the network is asked for; its parts are what drops
    for m in batch_norms(network, but):
        m.train()


def evenly(indices: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly spaced."""
    if len(indices) <= most:
        return list(indices)
    return [indices[(k * len(indices)) // most] for k in range(most)]


@torch.no_grad()
def retake_statistics(
    network: nn.Module,
    data: Dataset,
    indices: Sequence[int],
    preprocess: Preprocess,
    device: torch.device,
    but: nn.Module | None = None,
    progress: Progress | None = None,
) -> int:
    """Gives a trained network the batch-norm statistics of photographs.

    They are brought to the size that most of them have under `preprocess`, so that they fill batches; the network is in
    evaluation mode afterwards.

    Args:
        network: called with (B, 3, h, w).
        data: the photographs.
        indices: which; with fewer than two nothing changes.
        preprocess: as for prediction.
        device: where the network is.
        but: a part that keeps its statistics.
        progress: shows the work, where it is given.

    Returns:
        How many layers were changed.
    """
    network.eval()
    layers = batch_norms(network, but)
    if not layers or len(indices) < 2:
        return 0
    sizes = Counter(preprocess.target_size(data.size(i)) for i in indices)
    size = min(sizes, key=lambda s: (-sizes[s], s))
    batch = max(2, min(BATCH, PIXELS // (size[0] * size[1])))
    count = max(1, len(indices) // batch)
    chunks = [indices[k::count] for k in range(count)]  # each from all over: neighbours in a folder look alike
    total = sum(map(len, chunks))
    momenta = [m.momentum for m in layers]
    sums: list[list[Tensor]] = [[torch.zeros_like(m.running_mean), torch.zeros_like(m.running_var)] for m in layers]  # type: ignore[arg-type]
    for m in layers:
        m.momentum = 1.0  # running statistics are the last batch's
        m.train()
    for chunk in chunks if progress is None else progress.track(chunks, "statistics", len(chunks)):
        x = preprocess.apply_many([data.image(i) for i in chunk], size).to(device)
        network(x.contiguous(memory_format=torch.channels_last))
        for m, (mean, square) in zip(layers, sums):
            assert m.running_mean is not None and m.running_var is not None
            mean += m.running_mean * (len(chunk) / total)
            square += (m.running_var + m.running_mean**2) * (len(chunk) / total)
    for m, momentum, (mean, square) in zip(layers, momenta, sums):
        assert m.running_mean is not None and m.running_var is not None
        m.running_mean.copy_(mean)
        m.running_var.copy_(square - mean**2)
        m.momentum = momentum
    network.eval()
    return len(layers)


def retake_as_recorded(segmenter: Any, run: Path, images: Dataset, device: torch.device) -> None:
    """Statistics of photographs for another network of a run, where the run's record says that the kept one got them.

    Args:
        segmenter: on the device, with its `encoder` and `preprocess`.
        run: its folder.
        images: the photographs.
        device: where the network is.
    """
    path = run / RECORD
    what, repair = "the record of a run", "train the run again"
    config = read_record(path, SHAPE, what=what, repair=repair).get("config", {}) if path.is_file() else {}
    if misfit(config, {"norm_images?": (int, None), "freeze_norm?": (bool, None)}):
        raise MaskwrightError(f"{path} holds options of another kind", "numbers of images", repair)
    if config.get("norm_images"):
        freeze = config.get("freeze_norm", False)
        if freeze is None:  # as the weights are; `rates.resolved` decided so
            freeze = segmenter.provenance.source != "random"
        kept = kept_by_freeze(segmenter.encoder) if freeze else None
        chosen = evenly(range(len(images)), config["norm_images"])
        retake_statistics(segmenter, images, chosen, segmenter.preprocess, device, kept)

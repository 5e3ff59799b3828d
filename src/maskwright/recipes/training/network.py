"""The configured network: untrained, as a stage left it, and as what a method ends in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskwright.data.trust.artefacts import Damage, parse_json
from maskwright.engine.checkpoint import CHECKPOINT, load_part, stage_parts
from maskwright.errors import MaskwrightError
from maskwright.models.networks.build import Network, brings_encoder, build_network
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.frozen.crops import Crops
from maskwright.recipes.self_training.rounds import as_it_stands, live_rows
from maskwright.recipes.training.norm_statistics import (
    batch_norms,
    evenly,
    kept_by_freeze,
    retake_statistics,
)
from maskwright.recipes.training.options import CropConfig, NetworkOptions
from maskwright.recipes.training.rates import resolved

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.context import Context


def make_network(context: Context, config: CropConfig, *, second: bool = False) -> Network:
    """The configured network on the run's backbone, with an untrained head, or that of the model that it starts from.

    Args:
        context: of the run.
        config: options.
        second: it learns beside another and must differ from it, so it takes no head from a model.

    Raises:
        MaskwrightError: as `build_network`, or weights of the network and a model to start from.
    """
    c, start = config.network, context.start
    if c.weights and start is not None:
        raise MaskwrightError(
            f"--weights {start.place} and --set network.weights={c.weights}", "one of the two", "leave one out"
        )
    network = build_network(
        c.name, context.backbone, context.classes, options=network_options(c.options), weights=c.weights or None
    )
    if start is not None and not second:
        context.note(start.into(network, context.table))
    return network


def leaves_backbone(options: NetworkOptions) -> str:
    """Why the run's backbone is left aside: a network may bring an encoder of its own, or weights of the whole network
    may replace the backbone's; empty where neither does."""
    if brings_encoder(options.name):
        return f"not used, because network {options.name} has an encoder of its own"
    weights = options.weights
    return f"its weights are not used, because network_weights={weights} replaces them" if weights else ""


def network_options(text: str) -> dict[str, Any]:
    """Options of a network, `key=value` joined by `;`, values as JSON ("output_stride=8;rates=[6, 12]").

    Raises:
        MaskwrightError: a part is of another form.
    """
    options: dict[str, Any] = {}
    for piece in filter(None, (p.strip() for p in text.split(";"))):
        name, _, value = piece.partition("=")
        try:
            options[name.strip()] = parse_json(value)
        except Damage as error:
            expected = "key=value, the value as JSON, as output_stride=8"
            raise MaskwrightError(f"network_options: {piece!r}", expected) from error
    return options


def make_preprocess(config: CropConfig, network: Network) -> Preprocess:
    """Normalisation of the encoder's weights, native resolution up to `long_side`."""
    long_side, multiple = config.crops.long_side, network.multiple_of
    return Preprocess.for_backbone(network.provenance, long_side=long_side, multiple_of=multiple)


def retake(
    context: Context,
    config: CropConfig,
    network: Network,
    preprocess: Preprocess,
    seen: Sequence[int],
    data: Dataset | None = None,
    shown: bool = False,
) -> None:
    """Batch-norm statistics of the photographs that the configuration says, as `make_segmenter` wants them."""
    norms, images = resolved(config, context).norms, context.data if data is None else data
    if norms.photographs == "all":
        seen, images = range(len(context.data)), context.data
    kept = kept_by_freeze(network.encoder) if norms.freeze else None
    chosen, bar = evenly(seen, norms.images), context.progress if shown else None
    if not retake_statistics(network, images, chosen, preprocess, context.device, kept, bar):
        note_kept_statistics(context, config, bool(batch_norms(network, kept)), len(seen))


def note_kept_statistics(context: Context, config: CropConfig, some: bool, photographs: int) -> None:
    """Says why batch-norm statistics are as training left them, where others were asked for.

    Args:
        context: of the run.
        config: options.
        some: whether the network has layers that could take others.
        photographs: how many there are to take them from.
    """
    norms, usual = config.norms, type(config)().norms
    of_target = bool(context.sources) and norms.photographs == "all"
    changed = [(norms.photographs, usual.photographs), (norms.images, usual.images)]
    if not some and norms.images and (of_target or any(a != b for a, b in changed if b is not None)):
        context.note(
            "The network has no batch norm that could take statistics of photographs: norms.photographs and "
            "norms.images change nothing."
        )
    if some and norms.images and 1 in (norms.images, photographs):
        repair = "give more photographs" if photographs == 1 else "--set norms.images=2 takes two"
        context.note(f"Batch-norm statistics are training's own: one photograph is too few for others ({repair}).")


@torch.no_grad()
def network_rows(context: Context, config: CropConfig, network: Network, per_image: int, crop: float = 1.0) -> Tensor:
    """Rows of the decoder's map of photographs, or of crops of them, for clustering, under the batch-norm statistics
    that the segmenter will have.

    Args:
        context: of the run.
        config: options.
        network: as it was trained; moved to the device.
        per_image: rows of a photograph.
        crop: share of each side that random crops show; 1 for whole photographs.

    Returns:
        float32 (N, E) of this process's share, on the device.
    """
    network = network.to(context.device)
    preprocess = make_preprocess(config, network)
    retake(context, config, network, preprocess, range(len(context.data)))
    with as_it_stands(network):
        data = context.data if crop == 1 else Crops(context.data, crop)
        each = max(1, per_image * len(context.data) // len(data))
        return live_rows(context, lambda x: network.decode(network.features(x)).float(), preprocess, 0, each, data)


def make_segmenter(
    context: Context,
    config: CropConfig,
    network: Network,
    method: str,
    seen: Sequence[int],
    data: Dataset | None = None,
) -> Segmenter:
    """The network as what every method ends in, with the batch-norm statistics of photographs that it learned from.

    Args:
        context: of the run.
        config: options.
        network: trained.
        method: its name.
        seen: indices of these photographs; `norms.photographs=all` takes all of the run's own instead.
        data: the data set that they are of; the run's own if None.
    """
    preprocess = make_preprocess(config, network)
    retake(context, config, network.to(context.device), preprocess, seen, data, shown=True)
    network = network.cpu().eval()
    return Segmenter(
        encoder=network.encoder,
        decoder=network.decoder,
        classifier=network.classifier,
        classes=context.table,
        preprocess=preprocess,
        provenance=network.provenance,
        method=method,
    )


def trained_network(
    context: Context,
    config: CropConfig,
    folder: Path,
    part: str = "network",
    chosen: bool = True,
    network: Network | None = None,
) -> Network:
    """The network that a training stage left.

    Args:
        context: of the run.
        config: options.
        folder: of the stage.
        part: name in the training's `modules`; of an EMA teacher, its module is given.
        chosen: whether the iterate that `holdout` chose is given, where there is one, or that of the last step.
        network: what the weights belong to; the configured network if None.

    Raises:
        MaskwrightError: there is no checkpoint.
    """
    path = folder / CHECKPOINT
    parts = stage_parts(path)
    network = make_network(context, config) if network is None else network
    weights = parts.get(f"module.{part}")
    selection = parts.get("extra.selection")
    if chosen and isinstance(selection, dict):  # there is one where images were held out
        weights = selection.get("best") or weights  # a run that is finished early may not have looked yet
    if isinstance(weights, dict):
        prefix = "module." if "_extra_state" in weights else ""
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k != "_extra_state"}
    load_part(network, {part: weights}, part, path)
    return network.eval()

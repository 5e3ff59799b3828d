"""A linear probe on what a label-free method learned: how much of the classes is in its features.

It reads masks, notes them in the ledger under `evaluate` (the method's model learns nothing from them), and leaves a
model of its own in its stage's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.trust.artefacts import write_record
from maskwright.errors import MaskwrightError
from maskwright.evaluate.probes import Pair, ProbeConfig, fit_linear_probe, labelled_places
from maskwright.models.bundle import save_bundle
from maskwright.models.parts.heads import LinearClassifier, Part
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.self_training.rounds import as_it_stands

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.context import Context
    from maskwright.models.networks.build import Network
    from maskwright.models.preprocess import Preprocess
    from maskwright.models.provenance import Provenance
    from maskwright.recipes.frozen.features import FrozenFeatures

PLACES = 1000
"""Places of an image that a probe on a trained network sees: maps of all images would not fit in memory."""


def probed_images(data: Dataset) -> list[int]:
    """The images that a probe is fitted on: those with a mask.

    Raises:
        MaskwrightError: when there is no class table or no mask.
    """
    if data.classes is None:
        raise MaskwrightError(
            f"{data.root} has no classes.txt", "class names for a linear probe", "leave linear_probe off"
        )
    chosen = [i for i in range(len(data)) if data.has_mask(i)]
    if not chosen:
        raise MaskwrightError(f"{data.root} has no mask", "masks for a linear probe", "leave linear_probe off")
    return chosen


def linear_probe(context: Context, features: FrozenFeatures, decode: Part, folder: Path) -> None:
    """Fits a 1x1 convolution on frozen embeddings with the masks that may be read, and saves it as a model.

    Args:
        context: the run; the images with masks in its data are the probe's training images.
        features: of the run's images.
        decode: (1, D, h, w) -> (1, E, h, w), a part of a segmenter, in evaluation mode.
        folder: of the stage; gets `model.safetensors` and `probe.json`.

    Raises:
        MaskwrightError: when there is no class table or no mask.
    """
    data = context.data
    pairs = []
    chosen = probed_images(data)
    with torch.inference_mode(), data.ledger.purpose("evaluate"):
        for i in chosen:
            pairs.append((decode(features.store[i].float()[None])[0].clone(), data.mask(i)))
    fit_and_save(
        context, pairs, features.encoder, decode, features.preprocess, context.backbone.provenance, folder, len(chosen)
    )


def network_probe(context: Context, network: Network, preprocess: Preprocess, folder: Path) -> None:
    """The same on the embedding of a trained network, at up to `PLACES` places of an image.

    Args:
        context: as for `linear_probe`.
        network: on its device; its classifier is left aside.
        preprocess: from photograph to input.
        folder: of the stage.

    Raises:
        MaskwrightError: as `linear_probe`.
    """
    data, pairs = context.data, []
    chosen = probed_images(data)
    assert data.classes is not None
    with as_it_stands(network), data.ledger.purpose("evaluate"):
        for i in context.progress.track(chosen, "linear probe", len(chosen)):
            mask = data.mask(i)
            if (mask == ignore_of(mask)).all():
                continue
            x = preprocess.apply(data.image(i))[None].to(context.device)
            maps = network.decode(network.features(x))[0].float().cpu()
            try:
                rows, labels = labelled_places([(maps, mask)], len(data.classes), per_image=PLACES, seed=i)
            except MaskwrightError:  # what it shows of classes is smaller than a place of the map
                continue
            pairs.append((rows.T[:, None], labels[None].numpy()))
    network = network.cpu().eval()
    fit_and_save(context, pairs, network.encoder, network.decoder, preprocess, network.provenance, folder, len(chosen))


def fit_and_save(
    context: Context,
    pairs: Sequence[Pair],
    encoder: Part,
    decode: Part,
    preprocess: Preprocess,
    provenance: Provenance,
    folder: Path,
    masks: int,
) -> None:
    """Fits the probe and leaves it in a folder as `model.safetensors`, with `probe.json`.

    Args:
        context: the run.
        pairs: embeddings (E, h, w) and labels of images.
        encoder, decode, preprocess, provenance: what gave them.
        folder: of the stage.
        masks: that were read.
    """
    data = context.data
    assert data.classes is not None
    found = fit_linear_probe(pairs, len(data.classes), ProbeConfig(seed=context.seed % 2**31))
    classifier = LinearClassifier(found.weight.shape[1], len(data.classes))
    with torch.no_grad():  # standardisation goes into the weights
        classifier.linear.weight.copy_((found.weight / found.scale)[:, :, None, None])
        assert classifier.linear.bias is not None
        classifier.linear.bias.copy_(found.bias - (found.weight * found.mean / found.scale).sum(1))
    segmenter = Segmenter(
        encoder=encoder,
        decoder=decode,
        classifier=classifier.eval(),
        classes=data.classes,
        preprocess=preprocess,
        provenance=provenance,
        method=f"{context.run.record['method']['name']}, linear probe",
        notes="A linear probe: its classifier was fitted on masks.",
    )
    if context.run.writes:
        save_bundle(folder / "model.safetensors", segmenter, {"linear_probe": True})
        write_record(folder / "probe.json", {"masks": masks, "width": found.weight.shape[1]})

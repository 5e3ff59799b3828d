"""A linear probe on what a label-free method learned: how much of the classes is in its features.

It reads masks, notes them in the ledger under `evaluate` (the method's model learns nothing from them), and leaves a
model of its own in its stage's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from maskwright.data.trust.artefacts import write_record
from maskwright.errors import MaskwrightError
from maskwright.evaluate.probes import ProbeConfig, fit_linear_probe
from maskwright.models.bundle import save_bundle
from maskwright.models.parts.heads import LinearClassifier, Part
from maskwright.models.segmenter import Segmenter

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.recipes.frozen.features import FrozenFeatures


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
    if data.classes is None:
        raise MaskwrightError(
            f"{data.root} has no classes.txt", "class names for a linear probe", "leave linear_probe off"
        )
    chosen = [i for i in range(len(data)) if data.has_mask(i)]
    if not chosen:
        raise MaskwrightError(f"{data.root} has no mask", "masks for a linear probe", "leave linear_probe off")
    pairs = []
    with torch.inference_mode(), data.ledger.purpose("evaluate"):
        for i in chosen:
            pairs.append((decode(features.store[i].float()[None])[0].clone(), data.mask(i)))
    found = fit_linear_probe(pairs, len(data.classes), ProbeConfig(seed=context.seed % 2**31))
    classifier = LinearClassifier(found.weight.shape[1], len(data.classes))
    with torch.no_grad():  # standardisation goes into the weights
        classifier.linear.weight.copy_((found.weight / found.scale)[:, :, None, None])
        assert classifier.linear.bias is not None
        classifier.linear.bias.copy_(found.bias - (found.weight * found.mean / found.scale).sum(1))
    segmenter = Segmenter(
        encoder=features.encoder,
        decoder=decode,
        classifier=classifier.eval(),
        classes=data.classes,
        preprocess=features.preprocess,
        provenance=context.backbone.provenance,
        method=f"{context.run.record['method']['name']}, linear probe",
        notes="A linear probe: its classifier was fitted on masks.",
    )
    if context.run.writes:
        save_bundle(folder / "model.safetensors", segmenter, {"linear_probe": True})
        write_record(folder / "probe.json", {"masks": len(chosen), "width": found.weight.shape[1]})

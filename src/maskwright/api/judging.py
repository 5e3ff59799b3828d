"""Masks and encoders, judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.evaluate.scores import Scores

from maskwright.api.opening import opened
from maskwright.api.training import train


def evaluate(
    predictions: str | Path,
    truth: str | Path | Dataset,
    protocol: str = "direct",
    split: str | None = None,
    *,
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
    predicted_labels: str | None = None,
    **options: Any,
) -> Scores:
    """Judges a folder of index masks.

    Args:
        predictions: folder of index PNG named as the images.
        truth: dataset folder, or an opened dataset, or a folder of masks.
        protocol: a name of `maskwright.evaluate.protocols.PROTOCOLS`.
        split: only the images of this split.
        labels, void, range: what the values of the truth mean, as for `open_folder`.
        predicted_labels: what the values of the predictions mean.
        options: further options of the protocol.

    Raises:
        MaskwrightError: when predictions are missing or do not fit the truth.
    """
    from maskwright.data.examining.reading import Reading
    from maskwright.evaluate.protocols import evaluate_folder

    return evaluate_folder(
        predictions, truth, protocol=protocol, split=split, reading=Reading.parse(labels, void, range),
        predicted=Reading.parse(predicted_labels), **options,
    )  # fmt: skip


def probe(
    encoder: str | Path,
    data: str | Path | Dataset,
    protocol: str = "distance",
    *,
    bank: str = "train",
    split: str = "test",
    weights: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    seed: int = 0,
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
) -> Scores:
    """Judges an encoder by the two protocols of the LUSS benchmark that use labels.

    Args:
        encoder: a run's folder, a `model.safetensors`, or the name of a backbone; of a model the encoder is taken.
        data: dataset folder or `layout:path`, with classes and masks.
        protocol: `distance` (matching to a labelled bank) or `semi` (fine-tuning on the labelled share).
        bank: split, or list file, of the labelled images that it learns from (ImageNet-S: train-semi).
        split: of the images to judge.
        weights: of a backbone that is named, as in `train`.
        out: for `semi`, the folder of the fine-tuning's run.
        device: `auto`, `cpu` or `cuda`.
        settings: for `semi`, options of the method `supervised`.
        steps: for `semi`, optimiser steps.
        seed: for `semi`.
        labels, void, range: what the values of the files mean, as for `open_folder`.

    Raises:
        MaskwrightError: on bad input.
    """
    from maskwright.data.examining.understanding import understand
    from maskwright.recipes.probing.luss_probe import probe_encoder

    images = opened(data, labels, void, range)
    used = dict.fromkeys([*images.split(bank).names, *images.split(split).names])
    # Only masks that are learned from or judged are looked at.
    images = understand(images.subset(images.index(name) for name in used), masks=True)
    scores = probe_encoder(
        encoder, images, protocol, bank=bank, split=split, weights=weights, out=out,
        device=device, settings=settings, steps=steps, seed=seed, train=train,
    )  # fmt: skip
    return replace(scores, notes=[*dict.fromkeys((*images.notices, *scores.notes))])

"""The two protocols of the LUSS benchmark that use labels: distance matching and semi-supervised (TPAMI 2022).

Both judge with the benchmark's table and without matching, because their predictions are classes. The ledger notes
masks as everywhere: `train` is what a model learned from, `evaluate` is what it was judged with. The bank of distance
matching only judges, as a linear probe does; the semi-supervised protocol trains a model in a run of its own.

Legend: C classes without "other", (H, W) image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maskwright.data.folders.folder import Dataset
from maskwright.data.trust.files import file_for
from maskwright.engine.devices import pick_device
from maskwright.engine.records import MODEL
from maskwright.errors import MaskwrightError, unknown
from maskwright.evaluate.distance import NEIGHBOURS, TEMPERATURE, EmbeddingBank, NeighbourVote, predict_by_distance
from maskwright.evaluate.judging import is_other, judge
from maskwright.evaluate.luss import LussMatching
from maskwright.evaluate.protocols import protocol_named
from maskwright.evaluate.scores import Scores, hash_names
from maskwright.models.backbones.build import build_backbone
from maskwright.models.bundle import load_bundle
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.preprocess import Preprocess
from maskwright.models.tensors import save_tensors

if TYPE_CHECKING:
    from maskwright.predict.model import Model

SHORT_SIDE = 256
"""Pixels of the shorter side in the benchmark's distance matching."""


def class_scores(predict: Callable[[int], np.ndarray], data: Dataset, protocol: str, how: str) -> Scores:
    """The benchmark's table for predictions that are classes.

    Args:
        predict: index of an image to ids (H, W) in the numbering of the dataset's masks.
        data: the images; those with masks are judged.
        protocol: name of the protocol, for the record.
        how: what stands where other protocols say how clusters are matched.

    Raises:
        MaskwrightError: no class table, or no mask.
    """
    if data.classes is None:
        raise MaskwrightError(f"{data.root} has no classes.txt", "class names", "add classes.txt")
    names = list(data.classes.names)
    other = is_other(names[0])
    indices = [i for i in range(len(data)) if data.has_mask(i)]
    if not indices:
        raise MaskwrightError(f"{data.root} has no mask among the images to judge", "at least one")

    def pairs() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for i in indices:
            # Without a class for "other" the judge moves the truth's ids up by one; classes are never "other" then.
            yield data.names[i], (predict(i).astype(np.int64) + (not other)).astype(np.uint16), data.mask(i)

    matching = LussMatching.identity(len(names) - other)
    with data.ledger.purpose("evaluate"):
        scores = judge(pairs, names, protocol_named("luss"), None, matching, other, [])
    judged = hash_names(data.names[i] for i in indices)
    return replace(scores, protocol=protocol, matching=how, names_hash=judged)


@torch.inference_mode()
def distance_scores(
    encoder: Callable[[torch.Tensor], torch.Tensor],
    preprocess: Preprocess,
    bank: Dataset,
    test: Dataset,
    *,
    device: torch.device | str = "cpu",
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Scores:
    """Distance matching: a labelled bank of embeddings names each pixel by its neighbours.

    Args:
        encoder: images (B, 3, H, W) to features (B, D, h, w), on `device`, in evaluation mode.
        preprocess: from photograph to its input.
        bank: the images whose masks name embeddings (ImageNet-S: train-semi).
        test: the images to judge.
        device: where the encoder is.
        k: neighbours.
        temperature: of their votes.

    Raises:
        MaskwrightError: no class table, or no mask in either.
    """

    def features(data: Dataset, i: int) -> torch.Tensor:
        return encoder(preprocess.apply(data.image(i))[None].to(device))[0].float().cpu()

    if bank.classes is None:
        raise MaskwrightError(f"{bank.root} has no classes.txt", "class names", "add classes.txt")
    known = EmbeddingBank()
    with bank.ledger.purpose("evaluate"):
        for i in (i for i in range(len(bank)) if bank.has_mask(i)):
            known.add(features(bank, i), bank.mask(i))
    vote = NeighbourVote(known.features, known.labels, k, temperature, len(bank.classes))
    how = f"none: {vote.k} nearest of {len(known)} labelled embeddings, weighted exp(cosine / {temperature:g})"

    def predict(i: int) -> np.ndarray:
        return predict_by_distance(features(test, i), test.size(i), vote)

    return class_scores(predict, test, "luss_distance", how)


def semi_scores(model: Model, test: Dataset, masks: int) -> Scores:
    """Semi-supervised: a model that was fine-tuned on the labelled share.

    Args:
        model: its classes are those of the dataset.
        test: the images to judge.
        masks: how many masks it was fine-tuned on, for the record.

    Raises:
        MaskwrightError: other classes than the dataset's, or no mask.
    """
    if test.classes is None or len(model.classes) != len(test.classes):
        count = 0 if test.classes is None else len(test.classes)
        raise MaskwrightError(f"a model of {len(model.classes)} classes for data of {count}", "the same classes")
    how = f"none: fine-tuned on {masks} masks"
    return class_scores(lambda i: model.predict(test.image(i)).mask, test, "luss_semi", how)


RECIPE = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "layer_decay": 0.6, "encoder_lr": 1.0}
"""Of the benchmark's semi-supervised entries: AdamW, decay 0.05, layer decay; options of the method `supervised`."""


def probe_encoder(
    encoder: str | Path,
    data: Dataset,
    protocol: str,
    *,
    bank: str,
    split: str,
    weights: str | Path | None,
    out: str | Path | None,
    device: str,
    settings: Mapping[str, Any] | None,
    steps: int | None,
    seed: int,
    train: Callable[..., Model],
) -> Scores:
    """What `maskwright.probe` does; `train` is `maskwright.train`, which lies above this room."""
    if protocol not in ("distance", "semi"):
        raise unknown("protocol", protocol, ("distance", "semi"))
    place, test = pick_device(device), data.split(split)
    path = Path(encoder)
    if path.exists():
        segmenter = load_bundle(path / MODEL if path.is_dir() else path)
        found = segmenter.encoder
        if not isinstance(found, BackboneEncoder) or found.pyramid:
            raise MaskwrightError(f"{encoder} has no backbone with one map of features", "a model of such a method")
        backbone, layers = found.backbone, found.layers
        preprocess = segmenter.preprocess
    else:
        backbone = build_backbone(str(encoder), None if weights is None else str(weights))
        layers = [backbone.stage_layers[-1]]
        preprocess = None
    dense = BackboneEncoder(backbone, layers=layers).to(place).eval()
    if protocol == "distance":
        preprocess = preprocess or Preprocess.for_backbone(
            backbone.provenance, short_side=SHORT_SIDE, multiple_of=dense.multiple_of
        )
        return replace(distance_scores(dense, preprocess, data.split(bank), test, device=place), split=split)
    folder = Path(out) if out is not None else file_for(Path("runs"), f"semi-{Path(data.root).resolve().name}", "")
    folder.parent.mkdir(parents=True, exist_ok=True)
    start = file_for(folder.parent, folder.name, "-start.safetensors")
    save_tensors(start, backbone.model.state_dict())
    labeled = data.split(bank)
    model = train(
        labeled, "supervised", out=folder, backbone=backbone.architecture, weights=start, seed=seed, steps=steps,
        device=device, settings={**RECIPE, **(settings or {})}, report=False, resume=True,
    )  # fmt: skip
    masks = sum(labeled.has_mask(i) for i in range(len(labeled)))
    return replace(semi_scores(model, test, masks), split=split)

"""What tests of several semi-supervised methods ask of a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import MaskLabels
from maskwright.data.training.streams import Views
from maskwright.engine import resuming
from maskwright.engine.config import configure
from maskwright.methods.supervised import SupervisedConfig
from maskwright.recipes.training.training import NetworkTraining


def seeded(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def batch_of(training: Any, seed: int = 0) -> Any:
    """The next batch, as the network's input."""
    return training.on_device(training.batch(training.sampler.next(), seeded(seed)))


def relabelled(views: Views, labels: LabelMap) -> Views:
    """Labelled crops with other labels."""
    return views._replace(labels=labels, valid=labels.valid)


def drop_in_training(part: nn.Module) -> None:
    """Puts a dropout before a part of a network."""

    def drop(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        if isinstance(x, torch.Tensor):
            return (F.dropout(x, 0.5, module.training),)
        return ([*x[:-1], F.dropout(x[-1], 0.5, module.training)],)

    part.register_forward_pre_hook(drop)


def sharpen(network: Any, x: torch.Tensor) -> None:
    """Spreads a random network's logits on x, so that all classes occur, some pixels surely."""
    with torch.no_grad():
        logits, conv = network(x), network.classifier.conv
        scale = 2 / logits.std((0, 2, 3))
        conv.bias.sub_(logits.mean((0, 2, 3))).mul_(scale)
        conv.weight.mul_(scale[:, None, None, None])


def labels_of(b: int, h: int, w: int, classes: int, seed: int = 0) -> LabelMap:
    """Random ids and confidences (B, h, w), a fifth of them not valid."""
    g = seeded(seed)
    ids = torch.randint(classes, (b, h, w), generator=g)
    return LabelMap(ids, torch.rand(b, h, w, generator=g), torch.rand(b, h, w, generator=g) < 0.8)


def check_resumes(context: Any, make: Callable[[], Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that learns is in the checkpoint: stopped after two of five steps it ends in the same weights."""
    save, ends = resuming.save_checkpoint, []
    for stopped in (False, True):
        place = folder / str(stopped)
        place.mkdir()
        if stopped:

            def stop(path: Path, state: dict[str, Any]) -> None:
                save(path, state)
                raise KeyboardInterrupt

            monkeypatch.setattr(resuming, "save_checkpoint", stop)
            with pytest.raises(KeyboardInterrupt):
                context.fit(make(), "train", place, 5, checkpoint_every=2)
            monkeypatch.setattr(resuming, "save_checkpoint", save)
        t = make()
        context.fit(t, "train", place, 5, checkpoint_every=2)
        ends.append({f"{m}.{k}": v for m, part in t.modules.items() for k, v in part.state_dict().items()})
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def check_is_supervised(context: Any, training: Any, dropout: bool = True) -> dict[str, Any]:
    """A training whose unsupervised weight is 0 starts from supervised training's weights and has its loss.

    Args:
        context: of the run.
        training: whose crops have a side of 32 pixels.
        dropout: whether supervised training has dropout.

    Returns:
        The training's terms.
    """
    config = configure(SupervisedConfig, {"crop": 32, "batch": 2, "precision": "fp32"})
    plain = NetworkTraining(context, config, MaskLabels(context.data, context.classes), 4, dropout=dropout)
    pairs = zip(training.setup.network.parameters(), plain.setup.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    batch = batch_of(training)
    torch.manual_seed(0)
    expected = plain.losses(batch, 0)["loss"]
    torch.manual_seed(0)
    terms = training.losses(batch, 0)
    torch.testing.assert_close(terms["loss"], expected)
    return terms

"""How much frozen features know: a linear probe and a nearest-neighbour probe on dense features.

Both learn from labels, so their figures judge features, not an unsupervised segmentation. What changes a
probe's figure by more than a point, and is therefore stated with it: the resolution of the loss,
standardisation, optimiser, rate and steps.

`fit_linear_probe` is what `--set linear_probe=true` reports beside an unsupervised method; `evaluate_probe` and
`KnnProbe` judge an encoder on other images, as Leopart and SlotCon do, which are to come.

Legend: D width, C classes, (h, w) feature-map size, (H, W) label size, n labelled places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from maskwright.data.masking.label_rules import ignore_of
from maskwright.errors import MaskwrightError, unknown
from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.evaluate.distance import NeighbourVote, nearest_resize
from maskwright.evaluate.scores import Scores, class_names, scores_from_counts

Pair = tuple[Any, Any]
_UNLABELLED = -1


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What a linear probe is fitted with."""

    optimizer: str = "adam"
    """"adam" on minibatches, or "lbfgs" on all places at once (feature resolution only)."""
    lr: float = 5e-3
    """Step of Adam, STEGO's; L-BFGS takes 1 with a line search."""
    steps: int = 1000
    """Minibatches of Adam, or iterations of L-BFGS."""
    batch: int = 16
    """Images in a minibatch at label resolution; 256 times as many places at feature resolution."""
    weight_decay: float = 0.0
    """Squared norm of the weights, added to the mean loss with factor one half."""
    standardize: bool = True
    """Channels to zero mean and unit variance of the training features first, as a batch norm in front
    would."""
    resolution: str = "features"
    """Where the loss is taken: "features" reduces labels, "labels" enlarges logits."""
    seed: int = 0
    """Of the initial weights and the order of minibatches."""

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "lbfgs"):
            raise unknown("optimizer", self.optimizer, ("adam", "lbfgs"))
        if self.resolution not in ("features", "labels"):
            raise unknown("resolution", self.resolution, ("features", "labels"))
        if self.optimizer == "lbfgs" and self.resolution == "labels":
            raise MaskwrightError("L-BFGS at label resolution", "Adam there", "set optimizer='adam'")
        if self.steps < 0 or self.batch < 1 or self.lr <= 0 or self.weight_decay < 0:
            raise MaskwrightError(f"{self}", "steps and weight_decay at least 0, batch at least 1, lr above 0")


def _pair(features: Any, labels: Any, ignore: int | None, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    f = torch.as_tensor(features).detach().float()
    ids = np.asarray(labels)
    if f.ndim != 3 or ids.ndim != 2:
        raise MaskwrightError(f"features {tuple(f.shape)} and labels {ids.shape}", "(D, h, w) and (H, W)")
    dropped = ignore if ignore is not None else ignore_of(ids)
    wide = ids.astype(np.int64)
    wide = np.where((wide == dropped) | (wide < 0), _UNLABELLED, wide)
    if wide.size and wide.max() >= classes:
        raise MaskwrightError(
            f"label {int(wide.max())}", f"0 to {classes - 1}, or {dropped} to ignore", "check the classes"
        )
    return f, torch.from_numpy(wide)


def labelled_places(
    pairs: Iterable[Pair],
    classes: int,
    ignore: int | None = None,
    per_image: int | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The labelled places of feature maps as rows.

    Args:
        pairs: (features (D, h, w), labels (H, W)) of images; labels of another size are reduced by nearest
            neighbour.
        classes: C.
        ignore: the label to leave out; None means 255 in 8-bit labels, 65535 in wider ones. Negative ones are
            always left out.
        per_image: at most so many places of an image, drawn at random; None takes all.
        seed: of that draw.

    Returns:
        float32 (n, D) and int64 (n,).
    """
    draw = torch.Generator().manual_seed(seed)
    rows, labels = [], []
    for features, mask in pairs:
        f, y = _pair(features, mask, ignore, classes)
        y = torch.from_numpy(nearest_resize(y.numpy(), (f.shape[1], f.shape[2]))).reshape(-1)
        places = torch.nonzero(y >= 0)[:, 0]
        if per_image is not None and len(places) > per_image:
            places = places[torch.randperm(len(places), generator=draw)[:per_image]]
        rows.append(f.flatten(1).T.cpu()[places])
        labels.append(y[places])
    if not rows or not sum(len(x) for x in labels):
        raise MaskwrightError("no labelled place among the training features", "at least one", "check the labels")
    return torch.cat(rows), torch.cat(labels)


class LinearProbe:
    """A 1x1 convolution on frozen features.

    Attributes:
        weight (C, D), bias (C,): on standardised features; mean (D,), scale (D,): of the standardisation.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> None:
        self.weight, self.bias, self.mean, self.scale = weight, bias, mean, scale

    def logits(self, features: Any, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Logits float32 (C, h, w), or (C, H, W) enlarged bilinearly (half-pixel convention) to `size`.

        Args:
            features: (D, h, w).
            size: (H, W).
        """
        f = torch.as_tensor(features).detach().float().to(self.weight.device)
        x = (f - self.mean[:, None, None]) / self.scale[:, None, None]
        y = F.conv2d(x[None], self.weight[:, :, None, None], self.bias)
        return (y if size is None else F.interpolate(y, size=size, mode="bilinear", align_corners=False))[0]

    def predict(self, features: Any, size: tuple[int, int] | None = None) -> np.ndarray:
        """Ids uint16 of the largest logit, (h, w) or `size`."""
        return self.logits(features, size).argmax(0).cpu().numpy().astype(np.uint16)


def fit_linear_probe(
    pairs: Sequence[Pair],
    classes: int,
    config: ProbeConfig | None = None,
    *,
    ignore: int | None = None,
    device: str | torch.device = "cpu",
) -> LinearProbe:
    """Fits a linear probe; the same seed and data give the same weights.

    Args:
        pairs: (features (D, h, w), labels (H, W)) of the training images.
        classes: C.
        config: how; the defaults if None.
        ignore: as in `labelled_places`.
        device: where the fit runs.

    Returns:
        The probe.

    Raises:
        MaskwrightError: shapes or labels do not fit, or nothing is labelled.
    """
    config = config or ProbeConfig()
    if config.resolution == "labels":
        checked = [_pair(f, y, ignore, classes) for f, y in pairs]
        if not any((y >= 0).any() for _, y in checked):
            raise MaskwrightError("no labelled pixel", "at least one", "check the labels")
        mean, scale = _statistics((f.flatten(1).T for f, _ in checked), config.standardize)
    else:
        x, y = labelled_places(pairs, classes, ignore)
        mean, scale = _statistics([x], config.standardize)
    draw = torch.Generator().manual_seed(config.seed)
    width = len(mean)
    bound = 1 / math.sqrt(width)
    weight = ((torch.rand(classes, width, generator=draw) * 2 - 1) * bound).to(device).requires_grad_()
    bias = torch.zeros(classes, device=device, requires_grad=True)
    mean, scale = mean.to(device), scale.to(device)
    parameters = [weight, bias]

    def penalised(loss: torch.Tensor) -> torch.Tensor:
        return loss + config.weight_decay / 2 * weight.square().sum()

    if config.optimizer == "lbfgs":
        rows, targets = (x.to(device) - mean) / scale, y.to(device)
        solver = torch.optim.LBFGS(
            parameters,
            lr=1,
            max_iter=config.steps,
            max_eval=None,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            solver.zero_grad()
            loss = penalised(F.cross_entropy(rows @ weight.T + bias, targets))
            loss.backward()
            return loss

        if config.steps:
            solver.step(closure)  # type: ignore[arg-type]
    else:
        adam = torch.optim.Adam(parameters, lr=config.lr)
        for _ in range(config.steps):
            if config.resolution == "labels":
                chosen = torch.randint(len(checked), (min(config.batch, len(checked)),), generator=draw)
                total = weight.new_zeros(())
                count = 0
                for i in chosen.tolist():
                    features, target = (t.to(device) for t in checked[i])
                    z = (features - mean[:, None, None]) / scale[:, None, None]
                    z = F.conv2d(z[None], weight[:, :, None, None], bias)
                    z = F.interpolate(z, size=target.shape, mode="bilinear", align_corners=False)
                    total = total + F.cross_entropy(z, target[None], ignore_index=_UNLABELLED, reduction="sum")
                    count += int((target >= 0).sum())
                if not count:
                    continue
                loss = penalised(total / count)
            else:
                chosen = torch.randint(len(y), (min(256 * config.batch, len(y)),), generator=draw)
                rows = (x[chosen].to(device) - mean) / scale
                loss = penalised(F.cross_entropy(rows @ weight.T + bias, y[chosen].to(device)))
            adam.zero_grad()
            loss.backward()
            adam.step()
    return LinearProbe(weight.detach(), bias.detach(), mean, scale)


def _statistics(rows: Iterable[torch.Tensor], standardize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel over tensors (n, D); 0 and 1 without standardisation."""
    count = 0
    total: Any = 0.0
    squares: Any = 0.0
    for r in rows:
        wide = r.double().cpu()
        count, total, squares = count + len(wide), total + wide.sum(0), squares + wide.square().sum(0)
    mean = total / count
    if not standardize:
        return torch.zeros_like(mean).float(), torch.ones_like(mean).float()
    scale = (squares / count - mean.square()).clamp_min(0).sqrt()
    # A constant channel says nothing; dividing by its rounding error would make it loud.
    scale = torch.where(scale > 1e-6 * mean.abs().clamp_min(1e-6), scale, torch.ones_like(scale))
    return mean.float(), scale.float()


class KnnProbe:
    """Names each place by the vote of its nearest labelled places (faiss, exact).

    Args:
        features: (n, D), as `labelled_places` gives them; normalised here.
        labels: (n,).
        classes: C.
        k: neighbours; 20 in HSG and DINO, 15 in SegSort.
        temperature: of the weights exp(cosine / temperature).
    """

    def __init__(self, features: Any, labels: Any, classes: int, k: int = 20, temperature: float = 0.07) -> None:
        self.vote = NeighbourVote(features, labels, k, temperature, classes)

    def logits(self, features: Any, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Shares of the votes, float32 (C, h, w), or (C, H, W) enlarged bilinearly to `size`."""
        f = torch.as_tensor(features).detach().float().cpu()
        shares = self.vote.probabilities(f.flatten(1).T.numpy())  # (h w, C)
        y = torch.from_numpy(shares).float().T.reshape(1, -1, f.shape[1], f.shape[2])
        return (y if size is None else F.interpolate(y, size=size, mode="bilinear", align_corners=False))[0]

    def predict(self, features: Any, size: tuple[int, int] | None = None) -> np.ndarray:
        """Ids uint16, (h, w) or `size`."""
        return self.logits(features, size).argmax(0).cpu().numpy().astype(np.uint16)


def evaluate_probe(
    probe: LinearProbe | KnnProbe,
    pairs: Iterable[Pair],
    classes: int | Sequence[str],
    *,
    ignore: int | None = None,
    resolution: str = "labels",
    notes: Sequence[str] = (),
) -> Scores:
    """Judges a probe.

    Args:
        probe: the fitted probe.
        pairs: (features (D, h, w), labels (H, W)) of the test images.
        classes: C or the class names.
        ignore: the label to leave out, as in `ConfusionMatrix`.
        resolution: "labels" compares pixels of the labels, "features" places of the feature map.
        notes: what else to state with the figures.

    Returns:
        The scores, protocol "linear_probe" or "knn_probe".
    """
    if resolution not in ("features", "labels"):
        raise unknown("resolution", resolution, ("features", "labels"))
    names = class_names(classes)
    matrix = ConfusionMatrix(len(names), len(names), ignore)
    images = 0
    for features, labels in pairs:
        labels = np.asarray(labels)
        if resolution == "features":
            labels = nearest_resize(labels, tuple(features.shape[-2:]))
        matrix.update(probe.predict(features, labels.shape), labels)
        images += 1
    if isinstance(probe, KnnProbe):
        name, how = "knn_probe", f"{probe.vote.k} nearest of {len(probe.vote.labels)} labelled places"
    else:
        name, how = "linear_probe", "none: a linear layer learned the classes from labels"
    return scores_from_counts(
        matrix.counts,
        names,
        protocol=name,
        matching=how,
        images=images,
        resolution="size of each truth mask" if resolution == "labels" else "size of the feature map",
        notes=notes,
    )

"""Distance matching of the ImageNet-S benchmark: a labelled bank of embeddings names each pixel by its
neighbours.

Gao et al., TPAMI 2022, arXiv 2106.03149: a bank has one embedding for every training image with masks and id
in it, "other" included; a pixel of the validation set takes the vote of its 10 nearest ones, weighted
exp(cosine / 0.07). It uses labels (those of the bank), so it is no unsupervised figure of the segmentation,
but one of the features.

Legend: M embeddings in the bank, D width, (h, w) feature-map size, (H, W) image size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwright.data.trust.artefacts import Damage, read_arrays, unreadable, write_arrays
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    import torch

NEIGHBOURS = 10
TEMPERATURE = 0.07
UPSAMPLE = 4
MAX_UPSAMPLE = 64
# Rows of queries searched at once: bounds the (rows, classes) votes to tens of MB.
_CHUNK = 1 << 14


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _features(x: Any) -> torch.Tensor:
    # Importing torch takes seconds, which the protocols that need no features do not pay.
    import torch

    f = torch.as_tensor(x).detach().float().cpu()
    if f.ndim != 3:
        raise ValueError(f"features of shape {tuple(f.shape)}, expected (D, h, w) of one image")
    return f


def _upsampled(features: Any, factor: int) -> torch.Tensor:
    from torch.nn import functional as F

    f = _features(features)
    size = (f.shape[1] * factor, f.shape[2] * factor)
    return F.interpolate(f[None], size=size, mode="bilinear", align_corners=False)[0] if factor != 1 else f


def nearest_resize(ids: Any, size: tuple[int, int]) -> np.ndarray:
    """Ids (h, w) at another size by the nearest index below, floor(i h / H), as torch's "nearest" has it."""
    ids = np.asarray(ids)
    rows = np.arange(size[0]) * ids.shape[0] // size[0]
    columns = np.arange(size[1]) * ids.shape[1] // size[1]
    return ids[rows[:, None], columns[None]]


class EmbeddingBank:
    """One unit embedding for each labelled image and id.

    Args:
        upsample: factor by which features are upsampled (bilinear, half-pixel) before they are averaged.
        ignore: ids that get no embedding; None means 255 for 8-bit masks, 65535 and 1000 for others.
    """

    def __init__(self, upsample: int = UPSAMPLE, ignore: tuple[int, ...] | None = None) -> None:
        self.upsample, self.ignore = upsample, ignore
        self._rows: list[np.ndarray] = []
        self._labels: list[int] = []

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def features(self) -> np.ndarray:
        """Unit embeddings, float32 (M, D)."""
        if not self._rows:
            raise MaskwrightError("an empty embedding bank", "at least one labelled image", "add images with masks")
        return np.stack(self._rows)

    @property
    def labels(self) -> np.ndarray:
        """Id of each embedding, int64 (M,)."""
        return np.asarray(self._labels, dtype=np.int64)

    def add(self, features: Any, mask: Any) -> None:
        """Adds the embeddings of one image.

        Args:
            features: (D, h, w), any float type.
            mask: ids (H, W); reduced to the upsampled feature map by nearest neighbour, so that ids without a
                pixel there get no embedding.
        """
        import torch

        f = _upsampled(features, self.upsample)
        mask = np.asarray(mask)
        ignored = self.ignore
        if ignored is None:
            ignored = (255,) if mask.dtype == np.uint8 else (65535, 1000)
        small = nearest_resize(mask, (f.shape[1], f.shape[2])).reshape(-1)
        ids, places = np.unique(small, return_inverse=True)
        member = torch.from_numpy(places.reshape(-1).astype(np.int64))
        sums = torch.zeros(len(ids), f.shape[0]).index_add_(0, member, f.flatten(1).T)  # (ids, D)
        # The mean over the mask has the direction of the sum.
        rows = _unit(sums.numpy())
        for i, row in zip(ids, rows):
            if int(i) not in ignored:
                self._rows.append(row)
                self._labels.append(int(i))

    def save(self, path: str | Path) -> None:
        """Writes the bank as an .npz file, beside `path` and renamed into place."""
        arrays = {"features": self.features, "labels": self.labels, "upsample": np.array(self.upsample)}
        write_arrays(path, arrays, compressed=False, durable=True)

    @classmethod
    def load(cls, path: str | Path) -> EmbeddingBank:
        """Reads what `save` wrote; never unpickles.

        Raises:
            MaskwrightError: it is missing, damaged or no bank.
        """
        try:
            state = read_arrays(path, {"features": ("f", "MD"), "labels": ("iu", "M"), "upsample": ("iu", "")})
            if not 1 <= int(state["upsample"]) <= MAX_UPSAMPLE or (state["labels"].astype(np.int64) < 0).any():
                raise Damage("ids or a factor that no bank has")
        except Damage as error:
            raise unreadable(path, error, "an embedding bank, as `save` wrote it", "make the bank again") from error
        bank = cls(int(state["upsample"]))
        bank._rows = list(state["features"].astype(np.float32))
        bank._labels = [int(i) for i in state["labels"]]
        return bank


def vote(similarities: np.ndarray, labels: np.ndarray, classes: int, temperature: float) -> np.ndarray:
    """Votes of neighbours, weighted exp(similarity / temperature).

    Args:
        similarities: (Q, k) cosines.
        labels: (Q, k) ids 0..classes-1.
        classes: number of ids.
        temperature: of the weights, above 0.

    Returns:
        float64 (Q, classes), each row summing to 1.
    """
    # Weights relative to the nearest neighbour give the same shares and cannot overflow.
    weights = np.exp((similarities - similarities[:, :1]).astype(np.float64) / temperature)
    flat = np.arange(len(labels))[:, None] * classes + labels
    votes = np.bincount(flat.reshape(-1), weights.reshape(-1), minlength=len(labels) * classes)
    votes = votes.reshape(len(labels), classes)
    return votes / votes.sum(1, keepdims=True)


class NeighbourVote:
    """Exact nearest neighbours by cosine (faiss flat index) and their vote.

    Args:
        bank_features: (M, D); normalised here.
        bank_labels: ids (M,), not negative.
        k: neighbours; all of the bank where it has fewer.
        temperature: of the weights exp(cosine / temperature).
        classes: number of ids; None takes the largest of the bank plus one.
    """

    def __init__(
        self,
        bank_features: Any,
        bank_labels: Any,
        k: int = NEIGHBOURS,
        temperature: float = TEMPERATURE,
        classes: int | None = None,
    ) -> None:
        import faiss

        features, labels = np.asarray(bank_features), np.asarray(bank_labels, dtype=np.int64)
        if features.ndim != 2 or labels.shape != (len(features),) or len(features) == 0:
            raise MaskwrightError(
                f"a bank of features {features.shape} and labels {labels.shape}",
                "(M, D) and (M,) with M at least 1",
            )
        self.classes = int(labels.max()) + 1 if classes is None else int(classes)
        if labels.min() < 0 or labels.max() >= self.classes:
            raise MaskwrightError(f"labels from {labels.min()} to {labels.max()}", f"0 to {self.classes - 1}")
        if k < 1 or temperature <= 0:
            raise MaskwrightError(f"k {k} and temperature {temperature}", "k at least 1 and temperature above 0")
        self.labels, self.k, self.temperature = labels, min(int(k), len(features)), float(temperature)
        self.index = faiss.IndexFlatIP(features.shape[1])
        self.index.add(_unit(features))

    def probabilities(self, query: Any) -> np.ndarray:
        """Shares of the votes, float64 (Q, classes), for queries (Q, D)."""
        query = np.asarray(query)
        if query.ndim != 2 or query.shape[1] != self.index.d:
            raise MaskwrightError(f"queries of shape {query.shape}", f"(Q, {self.index.d}) as the bank")
        similarities, neighbours = self.index.search(_unit(query), self.k)
        return vote(similarities, self.labels[neighbours], self.classes, self.temperature)

    def __call__(self, query: Any) -> np.ndarray:
        """Ids int64 (Q,) for queries (Q, D); the smaller id wins a tie."""
        query = np.asarray(query)
        parts = [self.probabilities(query[i : i + _CHUNK]).argmax(1) for i in range(0, len(query), _CHUNK)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def distance_matching(
    bank_features: Any,
    bank_labels: Any,
    query_features: Any,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    classes: int | None = None,
) -> np.ndarray:
    """Names each query by the weighted vote of its nearest embeddings.

    Args:
        bank_features: (M, D); normalised here.
        bank_labels: ids (M,).
        query_features: (Q, D); normalised here.
        k: neighbours.
        temperature: of the weights exp(cosine / temperature).
        classes: number of ids; None takes the largest of the bank plus one.

    Returns:
        int64 (Q,).
    """
    return NeighbourVote(bank_features, bank_labels, k, temperature, classes)(query_features)


def predict_by_distance(
    features: Any, size: tuple[int, int], names: NeighbourVote, upsample: int = UPSAMPLE
) -> np.ndarray:
    """Ids of one image: features upsampled, each place named by its neighbours, nearest resize to the image.

    Args:
        features: (D, h, w).
        size: (H, W) of the image.
        names: the bank's vote, `NeighbourVote(bank.features, bank.labels)`.
        upsample: factor before naming, as when the bank was made.

    Returns:
        uint16 (H, W).
    """
    f = _upsampled(features, upsample)
    ids = names(f.flatten(1).T.numpy()).reshape(f.shape[1], f.shape[2])
    return nearest_resize(ids, size).astype(np.uint16)

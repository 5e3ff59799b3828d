"""Spectral embeddings, colour neighbours and superpixels beside scipy, scikit-learn and scikit-image.

One thread on both sides, so that neither is helped or hurt by what else the machine does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import eigsh
from skimage.segmentation import slic as slic_of_skimage
from sklearn.neighbors import NearestNeighbors

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.ops.graphs.affinity import color_knn_affinity, feature_affinity
from maskwright.ops.graphs.spectral import spectral_embedding, subspace_angle
from maskwright.ops.refinement.superpixels import slic

PAIRS = 5


def scene_features(side: int, parts: int = 7, width: int = 384, seed: int = 0) -> torch.Tensor:
    """Patch features (side^2, width) of a made-up scene: regions, slow drifts inside them and noise."""
    g = torch.Generator().manual_seed(seed)
    yy, xx = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    at = torch.rand(parts, 2, generator=g)
    region = ((yy[..., None] - at[:, 0]) ** 2 + (xx[..., None] - at[:, 1]) ** 2).argmin(-1).reshape(-1)
    proto = torch.randn(parts, width, generator=g) + 0.7 * torch.randn(1, width, generator=g)
    drift = torch.nn.functional.interpolate(torch.randn(1, width, 8, 8, generator=g), size=(side, side), mode="bicubic")
    noise = 0.6 * torch.randn(side * side, width, generator=g)
    return proto[region] + 0.5 * drift[0].reshape(width, -1).T + noise


def usual_embedding(w: np.ndarray) -> np.ndarray:
    """The paper's own way: shift-invert on the dense Laplacian."""
    degrees = np.diag(w.sum(1))
    return eigsh(degrees - w, k=PAIRS, sigma=0, which="LM", M=degrees)[1]


def usual_color_affinity(image: np.ndarray) -> sp.csr_matrix:
    """pymatting's construction with the neighbours of scikit-learn."""
    h, w = image.shape[:2]
    n = h * w
    x, y = np.tile(np.linspace(0, 1, w), h), np.repeat(np.linspace(0, 1, h), w)
    rows, columns = [], []
    for k, weight in ((20, 2.0), (10, 0.1)):
        f = np.column_stack([image.reshape(n, 3) / 255.0, weight * x, weight * y])
        found = NearestNeighbors(n_neighbors=k, n_jobs=1).fit(f).kneighbors(f, return_distance=False)
        rows.append(np.repeat(np.arange(n), k))
        columns.append(found.ravel())
    i, j = np.concatenate(rows + columns), np.concatenate(columns + rows)
    return sp.csr_matrix((np.ones(len(i)), (i, j)), (n, n))


def scene_image(h: int, w: int, seed: int = 0) -> np.ndarray:
    """A made-up photograph (h, w, 3) uint8: blurred blobs with texture."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 12, generator=g), size=(h, w), mode="bicubic")
    blobs = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 7, generator=g), size=(h, w), mode="nearest")
    image = 255 * (0.5 * coarse + 0.5 * blobs)[0] + 5 * torch.randn(3, h, w, generator=g)
    return image.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def _embedding(side: int, repeats: int) -> Iterator[Row]:
    w = feature_affinity(scene_features(side))
    for name, matrix in (("float64", w.double().numpy()), ("float32", w.numpy())):
        ours, other = side_by_side(
            lambda: spectral_embedding(w, PAIRS), lambda m=matrix: usual_embedding(m), repeats=repeats
        )
        exact = spectral_embedding(w, PAIRS, "dense").vectors
        angle = float(subspace_angle(spectral_embedding(w, PAIRS).vectors, exact))
        yield Row(
            f"spectral, N {side * side}, {PAIRS} vectors",
            ours,
            f"scipy eigsh(sigma=0), {name}",
            other,
            5.0,
            agrees=f"sine of the angle {angle:.0e}",
        )


def _batch(side: int, count: int) -> Row:
    w = torch.stack([feature_affinity(scene_features(side, 4 + i % 5, seed=i)) for i in range(count)])
    matrices = w.double().numpy()
    ours, other = side_by_side(
        lambda: spectral_embedding(w, PAIRS), lambda: [usual_embedding(m) for m in matrices], repeats=5
    )
    exact = spectral_embedding(w, PAIRS, "dense").vectors
    angle = float(subspace_angle(spectral_embedding(w, PAIRS).vectors, exact).max())
    return Row(
        f"spectral, {count} images of N {side * side}, an image",
        ours / count,
        "scipy eigsh(sigma=0), float64, one by one",
        other / count,
        10.0,
        agrees=f"sine of the angle {angle:.0e}",
    )


def rows() -> list[Row]:
    """The rows of the table."""
    with one_thread():
        table = [*_embedding(28, 9), *_embedding(60, 3), _batch(28, 16)]
        image = scene_image(60, 60)
        ours, other = side_by_side(
            lambda: color_knn_affinity(image, workers=1), lambda: usual_color_affinity(image), repeats=7
        )
        same = abs(color_knn_affinity(image) - usual_color_affinity(image)).nnz == 0
        table.append(
            Row(
                "colour kNN affinity, 60x60",
                ours,
                "scikit-learn neighbours",
                other,
                2.0,
                agrees="equal" if same else "equal but for ties",
            )
        )
        image = scene_image(375, 500)
        ours, other = side_by_side(
            lambda: slic(image, 400), lambda: slic_of_skimage(image, 400, start_label=0), repeats=5
        )
        numbers = slic(image, 400).max() + 1, slic_of_skimage(image, 400, start_label=0).max() + 1
        table.append(
            Row(
                "superpixels, 500x375, about 400",
                ours,
                "scikit-image SLIC",
                other,
                5.0,
                agrees=f"{numbers[0]} and {numbers[1]} superpixels",
            )
        )
    return table

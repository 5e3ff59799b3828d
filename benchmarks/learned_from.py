"""What of photographs should clusters be learned from? `python -m benchmarks.learned_from camvid train val`.

PCA and spherical k-means of EfficientNet-Lite0's features (stages of stride 16 and more, shorter side 320) are learned
from whole photographs, from what lies inside a margin of these, from windows of their maps, from photographs at half
the side, or from random crops, two of half of each side or as many as show as much. Masks are always of whole
photographs, at a longest side of 160 pixels and without a CRF. The table gives mIoU and pixel accuracy after one-to-one
matching, in percent, means over seeds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.matched import matched_counts
from benchmarks.records import data_root
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.evaluate.metrics import miou, pixel_accuracy
from maskwright.models.backbones.build import build_backbone
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.preprocess import Preprocess
from maskwright.ops.clustering.joining import ward_groups
from maskwright.ops.clustering.kmeans import kmeans
from maskwright.ops.clustering.pca import fit_pca
from maskwright.recipes.frozen.features import default_layers, inside, joint_scale

SIDE, LONG, ROWS, RESTARTS = 320, 160, 60_000, 3


class Trial:
    """The features of a data set, and what clusters of parts of them are worth.

    Args:
        learned: photographs that clusters are learned from.
        judged: photographs with masks.
    """

    def __init__(self, learned: Dataset, judged: Dataset) -> None:
        assert judged.classes is not None
        self.learned, self.classes = learned, len(judged.classes)
        backbone = build_backbone("tf_efficientnet_lite0", "package")
        self.encoder = BackboneEncoder(backbone, layers=default_layers(backbone)).eval()
        self.judged = [self.features(judged.image(i), SIDE) for i in range(len(judged))]
        self.masks = [smaller(judged.mask(i)) for i in range(len(judged))]

    @torch.inference_mode()
    def features(self, image: np.ndarray, side: int) -> Tensor:
        """(D, h, w) of a picture (H, W, 3), bfloat16."""
        normalise = self.encoder.backbone.provenance
        preprocess = Preprocess.for_backbone(normalise, short_side=side, multiple_of=self.encoder.multiple_of)
        return self.encoder(preprocess.apply(image)[None])[0].bfloat16()

    def photographs(self, side: int = SIDE) -> list[Tensor]:
        """Of whole photographs."""
        return [self.features(self.learned.image(i), side) for i in range(len(self.learned))]

    def crops(self, share: float) -> list[Tensor]:
        """Of random crops that together show half of each photograph's area, or one of it."""
        found: list[Tensor] = []
        for image in (self.learned.image(i) for i in range(len(self.learned))):
            for part in windows(image, share, len(found)):
                found.append(self.features(part, round(SIDE * share)))
        return found

    def worth(self, maps: Sequence[Tensor], dim: int, whiten: bool, fine: int, seed: int) -> tuple[float, float]:
        """mIoU and accuracy of clusters learned from maps (D, h, w)."""
        draw, each = torch.Generator().manual_seed(seed), max(1, ROWS // len(maps))
        flat = [f.flatten(1).T.float() for f in maps]
        rows = torch.cat([r[torch.randperm(len(r), generator=draw)[:each]] for r in flat])
        energy = joint_scale(rows.std(0), self.encoder)
        pca = fit_pca(rows / energy, dim, whiten=whiten)
        found = kmeans(pca.apply(rows / energy), fine * self.classes, restarts=RESTARTS, seed=seed)
        group = ward_groups(found.centers, self.classes) if fine > 1 else None
        reduced = (pca.apply(f.flatten(1).T.float() / energy).T.unflatten(1, f.shape[1:]) for f in self.judged)
        counts = matched_counts(reduced, self.masks, found.centers, self.classes, group)
        return 100 * miou(counts), 100 * pixel_accuracy(counts)


def windows(image: np.ndarray, share: float, seed: int) -> Iterator[np.ndarray]:
    """Random windows (h, w, ...) of so much of each side of a picture or a map (H, W, ...)."""
    draw = np.random.default_rng(seed)
    height, width = image.shape[:2]
    h, w = max(1, round(share * height)), max(1, round(share * width))
    for _ in range(max(1, round(0.5 / share**2))):
        top, left = draw.integers(0, height - h + 1), draw.integers(0, width - w + 1)
        yield image[top : top + h, left : left + w]


def smaller(mask: np.ndarray) -> np.ndarray:
    """Label ids (H, W) at a longest side of `LONG`."""
    size = [max(1, round(n * LONG / max(mask.shape))) for n in mask.shape]
    large = torch.as_tensor(mask.astype(np.float32))[None, None]
    return F.interpolate(large, size, mode="nearest-exact")[0, 0].long().numpy()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("learned", help="split that clusters are learned from")
    parser.add_argument("judged", help="split whose masks judge them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = api.open_folder(data_root() / options.data)
    trial = Trial(data.split(options.learned), data.split(options.judged))
    whole, half = trial.photographs(), trial.crops(0.5)
    sources = {"whole photographs": whole}
    sources |= {f"without a margin of {m}": [inside(f, m) for f in whole] for m in (0.1, 0.15, 0.2, 0.25, 0.3)}
    cut = [
        torch.as_tensor(part).permute(2, 0, 1)
        for i, f in enumerate(whole)
        for part in windows(f.float().permute(1, 2, 0).numpy(), 0.5, i)
    ]
    sources["windows of half of each side of their maps"] = cut
    sources["photographs at half the side"] = trial.photographs(SIDE // 2)
    sources["crops of half of each side"] = half
    sources["the same without a margin of 0.15"] = [inside(f, 0.15) for f in half]
    sources |= {f"crops of {share} of each side": trial.crops(share) for share in (0.35, 0.7)}
    kinds = [(32, True, 1), (64, True, 1), (32, False, 1), (64, False, 1), (32, False, 2)]
    names = [f"{dim}, {'whitened' if white else 'not whitened'}{', joined' * (fine > 1)}" for dim, white, fine in kinds]
    print(f"| learned from | {' | '.join(names)} |\n|{'---|' * (1 + len(kinds))}")
    for name, maps in sources.items():
        cells = []
        for dim, white, fine in kinds:
            found = [trial.worth(maps, dim, white, fine, int(seed)) for seed in options.seeds.split(",")]
            cells.append(" / ".join(f"{mean:.1f}" for mean in np.mean(found, axis=0)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Multi-scale class maps of a folder beside the plain loop of eight forward passes an image."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.data.folders.folder import Dataset, open_folder
from maskwright.data.training.tag_targets import find_targets
from maskwright.engine.devices import cpu_has_bf16
from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.dense import autocast
from maskwright.models.networks.cam import CamNetwork, activation_maps
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.tags.seeds import CamStore, MultiScale, infer_cams

SCALES = (0.5, 1.0, 1.5, 2.0)
TAGS = 20
IMAGES = 2


def _folder(root: Path) -> Dataset:
    """Photograph-like noise at 375 x 500, with two tags each."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    rows = ["name,tags"]
    for i in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)).resize((500, 375))
        coarse.save(root / "images" / f"{i}.jpg")
        rows.append(f"{i},class {i + 1};class {i + 7}")
    (root / "tags.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("\n".join(["background", *(f"class {k}" for k in range(1, TAGS + 1))]) + "\n")
    return open_folder(root)


def _plain(network: CamNetwork, data: Dataset, i: int, tags: Tensor, preprocess: Preprocess) -> Tensor:
    """Eight passes, each map of every class at the photograph's size and added, as published loops do."""
    image = data.image(i)
    h, w = preprocess.target_size(image.shape[:2])
    m = preprocess.multiple_of
    total = torch.zeros(1, TAGS, *image.shape[:2])
    with torch.no_grad():
        for s in SCALES:
            size = (max(1, int(h * s / m + 0.5)) * m, max(1, int(w * s / m + 0.5)) * m)
            x = preprocess.apply(image, size)[None]
            for flip in (False, True):
                maps = network(x.flip(-1) if flip else x).cams.relu()
                maps = maps.flip(-1) if flip else maps
                total += F.interpolate(maps, image.shape[:2], mode="bilinear", align_corners=False)
    total = total[0][tags.bool()]
    return total / (total.amax((1, 2), keepdim=True) + 1e-5)


def rows() -> list[Row]:
    """Lines of the table."""
    found = []
    root = Path(tempfile.mkdtemp())
    try:
        data = _folder(root / "data")
        targets = find_targets(data, data.classes)  # type: ignore[arg-type]
        torch.manual_seed(0)
        network = CamNetwork(build_backbone("mobilenetv2_100", "random"), TAGS).eval()
        preprocess = Preprocess.for_backbone(network.backbone.provenance, multiple_of=network.multiple_of)
        tags = [targets.multi_hot(item.name) for item in data.items]

        def plain() -> list[Tensor]:
            return [_plain(network, data, i, tags[i], preprocess) for i in range(IMAGES)]

        for precision in ("fp32", "bf16") if cpu_has_bf16() else ("fp32",):
            inference = MultiScale(
                lambda x, y: activation_maps(network, x, y), preprocess, SCALES,
                precision=lambda p=precision: autocast(torch.device("cpu"), p),
            )  # fmt: skip

            def ours(inference: MultiScale = inference) -> CamStore:
                shutil.rmtree(root / "maps", ignore_errors=True)
                store = CamStore(root / "maps")
                infer_cams(data, range(IMAGES), targets, inference, store)
                return store

            with one_thread():
                seconds, other = side_by_side(ours, plain, repeats=2)
                store, expected = ours(), plain()
            gaps = [float((store.read(str(i)).full() - expected[i]).abs().mean()) for i in range(IMAGES)]
            asked = 1.5 if precision == "bf16" or not cpu_has_bf16() else 1.0
            found.append(
                Row(
                    f"class maps 375x500, 4 scales, flips, {TAGS} tags, {precision}", seconds / IMAGES,
                    "eight passes", other / IMAGES, asked, agrees=f"mean difference {max(gaps):.4f}",
                )
            )  # fmt: skip
    finally:
        shutil.rmtree(root)
    return found

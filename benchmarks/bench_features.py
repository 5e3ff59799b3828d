"""Dense features: bf16 with fused attention against timm's eager float32, and a stage without what follows
it."""

from __future__ import annotations

import time
import warnings

import timm
import torch
import torch.nn.functional as F

from benchmarks.common import Row, side_by_side
from maskwright.models.backbones.build import build_backbone

VIT_S16_FLOPS = 2 * (
    196 * 3 * 256 * 384  # patch projection
    + 12 * (197 * 384 * (3 * 384 + 384 + 2 * 4 * 384) + 2 * 197 * 197 * 384)  # blocks: projections, attention
)
"""Multiplications and additions of ViT-S/16 at 224 x 224, one image."""


def bf16_gemm_rate(repeats: int = 7) -> float:
    """FLOP/s of the best bf16 matrix product of the blocks' own size, on the threads of this run."""
    a, b = torch.randn(788, 384).bfloat16(), torch.randn(384, 1536).bfloat16()
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        best = max(best, 5 * 2 * 788 * 384 * 1536 / (time.perf_counter() - start))
    return best


def _vit_row() -> Row:
    torch.manual_seed(0)
    ours = build_backbone("vit_small_patch16_224", "random")
    theirs = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    theirs.load_state_dict(ours.model.state_dict())
    x = torch.randn(4, 3, 224, 224)

    def bf16() -> torch.Tensor:
        return ours.dense(x, precision="bf16")

    def eager() -> torch.Tensor:
        return theirs.forward_features(x)[:, 1:]

    with torch.inference_mode():
        ours_s, other_s = side_by_side(bf16, eager)
        cosine = F.cosine_similarity(bf16().flatten(2).mT, eager(), dim=-1).min().item()
    limit = 4 * VIT_S16_FLOPS / bf16_gemm_rate()
    return Row(
        "dense features, ViT-S/16, 224, batch 4",
        ours_s,
        "timm eager fp32",
        other_s,
        1.7,
        limit,
        f"cosine {cosine:.5f}",
    )


def _cnn_row() -> Row:
    torch.manual_seed(0)
    ours = build_backbone("efficientnet_lite0", "random")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    theirs.load_state_dict(ours.model.state_dict(), strict=False)
    x = torch.randn(4, 3, 320, 432)

    def bf16() -> torch.Tensor:
        return ours.dense(x, 3, precision="bf16")

    def eager() -> torch.Tensor:
        return theirs(x)[3]

    with torch.inference_mode():
        ours_s, other_s = side_by_side(bf16, eager)
        cosine = F.cosine_similarity(bf16(), eager(), dim=1).min().item()
    return Row(
        "dense features, EfficientNet-Lite0 stage 3, 320x432, batch 4",
        ours_s,
        "timm features_only fp32",
        other_s,
        1.7,
        None,
        f"cosine {cosine:.5f}",
    )


def rows() -> list[Row]:
    """Both networks with random weights: time does not depend on them."""
    return [_vit_row(), _cnn_row()]

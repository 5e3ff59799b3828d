"""ResNet38d, the wide residual network of SEAM, AffinityNet and their heirs: pre-activated blocks, dilated to stride 8.

Wu, Shen and van den Hengel, Wider or Deeper: Revisiting the ResNet Model for Visual Recognition, Pattern Recognition
2019, https://arxiv.org/abs/1611.10080 (model A1); dilation as in Ahn and Kwak, CVPR 2018. Modules bear the names that
released checkpoints use.

It is a timm model once this module is imported: `build_backbone("resnet38d", "random")` then works as for any other.

Legend: B batch, (H, W) input size, (h, w) map size.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each behind batch norm and ReLU, beside the input or a projection of it.

    Args:
        width: channels in.
        mid: channels between.
        out: channels out.
        stride: of the first convolution.
        dilation: of the second.
        first_dilation: of the first; that of the second if None.
    """

    def __init__(
        self, width: int, mid: int, out: int, stride: int = 1, dilation: int = 1, first_dilation: int | None = None
    ) -> None:
        super().__init__()
        first = dilation if first_dilation is None else first_dilation
        self.bn_branch2a = nn.BatchNorm2d(width)
        self.conv_branch2a = nn.Conv2d(width, mid, 3, stride, padding=first, dilation=first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(mid)
        self.conv_branch2b1 = nn.Conv2d(mid, out, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv_branch1: nn.Conv2d | None = None
        if width != out or stride != 1:
            self.conv_branch1 = nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input to (output, the normalised and rectified input, which is the feature map of the stage before)."""
        seen = F.relu(self.bn_branch2a(x))
        past = x if self.conv_branch1 is None else self.conv_branch1(seen)
        new = self.conv_branch2a(seen)
        new = self.conv_branch2b1(F.relu(self.bn_branch2b1(new)))
        return past + new, seen


class BottleneckBlock(nn.Module):
    """1x1, dilated 3x3 and 1x1 convolutions of a quarter, a half and the whole of the width, with dropout.

    Args:
        width: channels in.
        out: channels out.
        dilation: of the 3x3 convolution.
        dropout: chance of a channel to be dropped before the second and third convolution in training.
    """

    def __init__(self, width: int, out: int, dilation: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        quarter, half = out // 4, out // 2
        self.bn_branch2a = nn.BatchNorm2d(width)
        self.conv_branch2a = nn.Conv2d(width, quarter, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(quarter, half, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(half, out, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(width, out, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `ResBlock.forward`."""
        seen = F.relu(self.bn_branch2a(x))
        new = self.conv_branch2a(seen)
        new = self.conv_branch2b1(self.dropout_2b1(F.relu(self.bn_branch2b1(new))))
        new = self.conv_branch2b2(self.dropout_2b2(F.relu(self.bn_branch2b2(new))))
        return self.conv_branch1(seen) + new, seen


class ResNet38d(nn.Module):
    """The network without a classifier; its stages are conv2 to conv6 of the papers.

    Args:
        num_classes: 0, as there is no head.
        output_stride: 8, the only one it is made for.
        in_chans: 3.

    Raises:
        ValueError: anything else is asked for.
    """

    def __init__(self, num_classes: int = 0, output_stride: int = 8, in_chans: int = 3, **cfg: Any) -> None:
        super().__init__()
        if num_classes or in_chans != 3 or output_stride != 8:
            raise ValueError(
                f"resnet38d with {num_classes} classes, {in_chans} channels, output stride {output_stride}: "
                "expected 0, 3 and 8"
            )
        self.num_classes = 0
        self.num_features = 4096
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.b2 = ResBlock(64, 128, 128, stride=2)
        self.b2_1 = ResBlock(128, 128, 128)
        self.b2_2 = ResBlock(128, 128, 128)
        self.b3 = ResBlock(128, 256, 256, stride=2)
        self.b3_1 = ResBlock(256, 256, 256)
        self.b3_2 = ResBlock(256, 256, 256)
        self.b4 = ResBlock(256, 512, 512, stride=2)
        for k in range(1, 6):
            self.add_module(f"b4_{k}", ResBlock(512, 512, 512))
        self.b5 = ResBlock(512, 512, 1024, dilation=2, first_dilation=1)
        self.b5_1 = ResBlock(1024, 512, 1024, dilation=2)
        self.b5_2 = ResBlock(1024, 512, 1024, dilation=2)
        self.b6 = BottleneckBlock(1024, 2048, dilation=4, dropout=0.3)
        self.b7 = BottleneckBlock(2048, 4096, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(4096)
        stages = ((128, 2, "b2_2"), (256, 4, "b3_2"), (512, 8, "b4_5"), (1024, 8, "b5_2"), (4096, 8, "bn7"))
        self.feature_info = [{"num_chs": w, "reduction": r, "module": m} for w, r, m in stages]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of stages, each normalised and rectified as the next stage sees it.

        Args:
            x: (B, 3, H, W).
            indices: stages; all if None.
            norm: has no effect: maps are normalised.
            stop_early: run nothing behind the last stage asked for.
            output_fmt: "NCHW".
            intermediates_only: leave the last map out of the result.

        Returns:
            List of (B, D, h, w), or (last map, list).
        """
        wanted = list(range(5)) if indices is None else [k % 5 for k in indices]
        found: dict[int, Tensor] = {}
        # The block whose normalised input is the map of the stage before it.
        opens = {"b3": 0, "b4": 1, "b5": 2, "b6": 3}
        x = self.conv1a(x)
        for name, block in list(self.named_children())[1:-1]:
            stage = opens.get(name)
            if stage is not None and stop_early and intermediates_only and max(wanted) <= stage:
                found[stage] = F.relu(block.bn_branch2a(x))  # type: ignore[operator]
                return [found[k] for k in wanted]
            x, seen = block(x)
            if stage is not None and stage in wanted:
                found[stage] = seen
        found[4] = F.relu(self.bn7(x))
        maps = [found[k] for k in wanted]
        return maps if intermediates_only else (found[4], maps)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to conv6, (B, 4096, h, w)."""
        return self.forward_intermediates(x, [4], intermediates_only=True)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean over the map, (B, 4096)."""
        return x.mean((-2, -1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 4096)."""
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs(
    {
        "resnet38d.untrained": {
            "input_size": (3, 224, 224),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "num_classes": 0,
        }
    }
)


@register_model
def resnet38d(pretrained: bool = False, **options: Any) -> ResNet38d:
    """`ResNet38d` without weights; they come from a file.

    Raises:
        ValueError: weights are asked for by name.
    """
    if pretrained:
        raise ValueError("resnet38d has no weights of its own, expected pretrained=False and a file")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    return ResNet38d(**options)

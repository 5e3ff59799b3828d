"""What stands between a mobile network's last stage and its pooling, as the decoder of a classifier that localises.

Legend: B batch, D width, (h, w) map size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from maskwright.models.backbones.dense import Backbone
from maskwright.models.parts.part import Part

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "SiLU": nn.SiLU,
    "Hardswish": nn.Hardswish,
    "GELU": nn.GELU,
    "Identity": nn.Identity,
}


class PretrainedHead(Part):
    """The 1x1 convolution, batch norm and activation between a mobile network's last stage and its pooling.

    Its channels are what the pretrained classifier saw; the stage before gives a signed bottleneck.

    Args:
        width: D of the stage.
        out: channels.
        activation: a name of `ACTIVATIONS`.
        eps: of the batch norm.
    """

    fields = ("width", "out", "activation", "eps")

    def __init__(self, width: int, out: int, activation: str = "ReLU6", eps: float = 1e-5) -> None:
        super().__init__()
        self.width, self.out, self.activation, self.eps = int(width), int(out), str(activation), float(eps)
        self.conv = nn.Conv2d(self.width, self.out, 1, bias=False)
        self.norm = nn.BatchNorm2d(self.out, eps=self.eps)
        self.act = ACTIVATIONS[self.activation]()

    @classmethod
    def of(cls, backbone: Backbone) -> PretrainedHead | None:
        """A copy of a backbone's own, or None where it has none (or one of another make)."""
        model: Any = backbone.model
        conv, norm = getattr(model, "conv_head", None), getattr(model, "bn2", None)
        if not isinstance(conv, nn.Conv2d) or conv.bias is not None or not isinstance(norm, nn.BatchNorm2d):
            return None
        kind = type(getattr(norm, "act", nn.Identity())).__name__
        if conv.kernel_size != (1, 1) or kind not in ACTIVATIONS or conv.in_channels != backbone.widths[-1]:
            return None
        head = cls(conv.in_channels, conv.out_channels, kind, norm.eps)
        head.conv.load_state_dict(conv.state_dict())
        head.norm.load_state_dict({k: v for k, v in norm.state_dict().items() if k in head.norm.state_dict()})
        return head.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, out, h, w)."""
        return self.act(self.norm(self.conv(x)))

"""A classification network that localises: dense features, a linear classifier at every pixel, and the mean over them.

    backbone (dilated) -> [the pretrained last 1x1 convolution] -> classifier = CAM (B, T, h, w) -> mean = scores (B, T)

Its parts are parts of a segmenter, so that it can be saved like one.

Legend: B batch, D width, T tags, C classes, (H, W) input size, (h, w) map size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.dense import Backbone
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import Identity, LinearClassifier
from maskwright.models.parts.part import Part
from maskwright.models.parts.pretrained_head import PretrainedHead
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.ops.cam import cam, grad_cam, grad_cam_pp

VARIANTS = ("cam", "grad_cam", "grad_cam_pp")
STEMS = ("act1", "bn1", "stem")
"""First parts of the names under which networks list their stem."""
FINE_STRIDE = 8
"""The finer of the two feature levels is no coarser than this, where the network has such a one."""
PAPERS_FROZEN = {"resnet38d": 1}
"""Stages that are frozen where the option says -1, if not two."""


class CamOutput(NamedTuple):
    """What the network makes of images.

    Attributes:
        features: (B, D, h, w), what the classifier sees.
        cams: (B, T, h, w), signed logits of every pixel.
        scores: (B, T), their means: logits of the image's tags.
    """

    features: Tensor
    cams: Tensor
    scores: Tensor


class CamNetwork(nn.Module):
    """Dense features, a classifier without bias at every pixel, mean pooling. Gradients flow to the maps.

    Args:
        backbone: pretrained; it is copied, so that later stages can start from the pretrained weights again.
        tags: T.
        output_stride: 8, 16 or 32: convolutional networks are dilated to keep at least this resolution; None leaves
            them as they are. Transformers keep their patches, and networks that cannot be dilated their stride.
        dropout: chance of a whole channel to be dropped before the classifier in training.
        frozen_stages: the stem and so many stages (blocks) get no gradient, as for `freeze_stages`.

    Raises:
        ValueError: no tags.
    """

    def __init__(
        self,
        backbone: Backbone,
        tags: int,
        output_stride: int | None = 16,
        dropout: float = 0.0,
        frozen_stages: int = 0,
    ) -> None:
        super().__init__()
        if tags < 1:
            raise ValueError("no tags to classify, expected at least one")
        own = copy_backbone(backbone, output_stride)
        self.encoder = BackboneEncoder(own, layers=own.layers - 1)
        head = PretrainedHead.of(own)
        self.decoder: Part = Identity() if head is None else head
        self.width = self.encoder.width if head is None else head.out
        self.drop = nn.Dropout2d(dropout)
        # Kept zero: with it the mean of a map is its score, and what a map says is where, not whether.
        self.classifier = LinearClassifier(self.width, tags)
        nn.init.zeros_(self.classifier.linear.bias)  # type: ignore[arg-type]
        self.classifier.linear.bias.requires_grad_(False)  # type: ignore[union-attr]
        freeze_stages(own, frozen_stages)
        # The backbone's own copy of the head is not used here, and would count as a parameter without gradient.
        for name in ("conv_head", "bn2") if head is not None else ():
            getattr(own.model, name).requires_grad_(False)

    @property
    def tags(self) -> int:
        """T."""
        return self.classifier.classes

    @property
    def stride(self) -> int:
        """Input pixels a cell of the maps."""
        return self.encoder.stride

    @property
    def multiple_of(self) -> int:
        """Input sides should be multiples of this."""
        return self.encoder.multiple_of

    @property
    def backbone(self) -> Backbone:
        """The network's own backbone."""
        return self.encoder.backbone

    @property
    def weight(self) -> Tensor:
        """Weights of the classifier, (T, D)."""
        return self.classifier.linear.weight.flatten(1)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to what the classifier sees, (B, D, h, w)."""
        return self.decoder(self.encoder(x))

    def levels(self, x: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Maps of other layers and the features, in one pass.

        Args:
            x: (B, 3, H, W).
            layers: stages or blocks, negative from the end.
        """
        *maps, last = self.backbone.dense_many(x, [*layers, *self.encoder.layers], precision=self.encoder.precision)
        return maps, self.decoder(last)

    def cams(self, features: Tensor) -> Tensor:
        """Features (B, D, h, w) to signed maps (B, T, h, w)."""
        return cam(self.drop(features), self.weight)

    def forward(self, x: Tensor) -> CamOutput:
        """Images (B, 3, H, W) to features, maps and scores."""
        features = self.features(x)
        cams = self.cams(features)
        return CamOutput(features, cams, pool(cams))

    def freeze_norm(self) -> None:
        """Batch norms use the statistics that they came with: small batches would spoil them."""
        for m in self.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.eval()

    def groups(self, lr: float, encoder_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups: the classifier at `lr`, what is pretrained at `encoder_lr * lr`; vectors not decayed."""
        rated = [(self.encoder, lr * encoder_lr), (self.decoder, lr * encoder_lr), (self.classifier, lr)]
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        for module, rate in rated:
            for p in module.parameters():
                if p.requires_grad:
                    found.setdefault((rate, weight_decay if p.ndim > 1 else 0.0), []).append(p)
        return [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in found.items()]

    def segmenter(
        self, classes: ClassTable, ids: Sequence[int], preprocess: Preprocess, method: str = "cam"
    ) -> Segmenter:
        """The network itself as a segmenter: the class with the largest map; what has no channel has the logit 0, so
        the background is where no class has evidence for itself.

        Args:
            classes: C names.
            ids: class of each of the T maps.
            preprocess: from photograph to input.
            method: its name.
        """
        linear = LinearClassifier(self.width, len(classes))
        with torch.no_grad():
            linear.linear.weight.zero_()
            linear.linear.bias.fill_(0.0)  # type: ignore[union-attr]
            linear.linear.weight[list(ids)] = self.classifier.linear.weight.cpu()
        provenance = self.backbone.provenance
        parts = (copy.deepcopy(self.encoder).cpu(), copy.deepcopy(self.decoder).cpu(), linear)
        return Segmenter(*parts, classes, preprocess, provenance, method).eval()


def pool(cams: Tensor) -> Tensor:
    """Global average pooling of maps (B, T, h, w) to scores (B, T), in fp32."""
    return cams.float().mean((-2, -1))


def copy_backbone(backbone: Backbone, output_stride: int | None = None) -> Backbone:
    """A backbone of its own with the same weights, dilated where asked.

    Args:
        backbone: any.
        output_stride: as for `build_backbone`; transformers, and networks that cannot be dilated, stay as they are.
    """
    if backbone.is_vit or output_stride is None or backbone.strides[-1] <= output_stride:
        return copy.deepcopy(backbone)
    try:
        dilated = build_backbone(backbone.architecture, "random", output_stride)
    except MaskwrightError:  # a network that its package cannot dilate
        return copy.deepcopy(backbone)
    dilated.model.load_state_dict(backbone.model.state_dict())
    dilated.name, dilated.provenance = backbone.name, backbone.provenance
    return dilated.to(next(backbone.parameters()).device)


def attention_levels(backbone: Backbone) -> tuple[int, int]:
    """The finer and the coarser feature level below the last: conv4 and conv5 of the paper.

    On a pyramid the stage before the last, and the one before that, or the deepest one at stride 8 where that is
    coarser; on a transformer the blocks at a half and at three quarters of its depth.
    """
    if backbone.is_vit:
        stages = backbone.stage_layers
        return stages[max(0, len(stages) - 3)], stages[max(0, len(stages) - 2)]
    coarse = max(0, backbone.layers - 2)
    fine = max(0, coarse - 1)
    while fine > 0 and backbone.strides[fine] > FINE_STRIDE:
        fine -= 1
    return fine, coarse


def freeze_stages(backbone: Backbone, stages: int) -> None:
    """No gradient for the stem and the first stages, their norms included.

    Args:
        backbone: any.
        stages: how many beside the stem (blocks of a transformer); 0 freezes nothing, the stem neither. -1 is what the
            papers freeze: two of a ResNet (IRN), one of ResNet-38d (PSA, SEAM), and two of others.
    """
    if stages < 0:
        stages = PAPERS_FROZEN.get(backbone.architecture, 2)
    if stages < 1:
        return
    model: Any = backbone.model
    info = model.feature_info
    records = info if isinstance(info, list) else info.get_dicts()
    # Some networks list what leaves their stem as if it were a stage.
    listed = stages + (str(records[0]["module"]).split(".")[0] in STEMS or records[0]["module"] == "features.norm0")
    last = records[min(listed, len(records)) - 1]["module"]
    modules = list(model.named_modules())
    inside = [k for k, (name, _) in enumerate(modules) if name == last or name.startswith(f"{last}.")]
    for _, module in modules[: max(inside, default=-1) + 1]:
        for p in module.parameters(recurse=False):
            p.requires_grad_(False)


def freeze_norm_weights(module: nn.Module) -> None:
    """No gradient for scales and shifts of batch norms: PSA and SEAM train none of them."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.requires_grad_(False)


def activation_maps(network: CamNetwork, x: Tensor, tags: Tensor, variant: str = "cam", layer: int = -1) -> Tensor:
    """CAM, Grad-CAM or Grad-CAM++ of each tag, in units that do not depend on the size of the image.

    Args:
        network: in evaluation mode.
        x: (B, 3, H, W).
        tags: bool (B, T); gradients are taken for these only.
        variant: a name of `VARIANTS`.
        layer: which stage or block Grad-CAM looks at; -1 is what the classifier sees, whose gradient is known without
            a backward pass.

    Returns:
        (B, T, h, w), not negative, zero for what is not tagged; fp32, no gradient.

    Raises:
        ValueError: an unknown variant or layer.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}, expected one of {', '.join(VARIANTS)}")
    tags = tags.bool().to(x.device)
    if variant == "cam":
        with torch.no_grad():
            maps = network.cams(network.features(x)).float().relu()
        return maps * tags[..., None, None]
    reduce = _grad_cam_by_cell if variant == "grad_cam" else grad_cam_pp
    index = network.backbone.resolve_layer(layer)
    if layer == -1:
        with torch.no_grad():
            a = network.features(x).float()
        g = network.weight.detach().float()[:, :, None, None] / (a.shape[-2] * a.shape[-1])  # (T, D, 1, 1)
        return _reduce_tagged(lambda b, t: reduce(a[b], g[t].expand_as(a[b])), a, tags)
    a, scores = _activations(network, x, index)
    # The k-th tag of every image shares one backward pass: as many passes as the image with most tags has.
    order = torch.argsort(tags.int(), dim=1, descending=True, stable=True)  # (B, T): tagged ones first
    most = int(tags.sum(1).max())
    out = a.new_zeros(len(x), tags.shape[1], *a.shape[-2:])
    rows = torch.arange(len(x), device=x.device)
    for k in range(most):
        has = tags[rows, order[:, k]]
        total = scores[rows, order[:, k]][has].sum()
        (g,) = torch.autograd.grad(total, a, retain_graph=k + 1 < most)
        maps = reduce(a.detach().float(), g.float())
        out[rows[has], order[has, k]] = maps[has].to(out)
    return out.float()


def _grad_cam_by_cell(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM with the sum of the gradients for their mean: the gradient of a mean falls with the number of cells, and
    maps of different sizes could not be added."""
    return grad_cam(activations, gradients) * (gradients.shape[-2] * gradients.shape[-1])


def _reduce_tagged(one: Any, a: Tensor, tags: Tensor) -> Tensor:
    out = a.new_zeros(len(a), tags.shape[1], *a.shape[-2:])
    for b, t in tags.nonzero().tolist():
        out[b, t] = one(b, t)
    return out


def _activations(network: CamNetwork, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Activations (B, D, h, w) of a layer, on the way from the images to the scores (B, T)."""
    x = x.detach().requires_grad_(True)  # so that there is a graph even where all weights are frozen
    backbone: Any = network.backbone
    if not backbone.is_vit:
        # In one precision: a map that is cast on its way out is a copy beside the way to the scores.
        with torch.autocast(x.device.type, enabled=False):
            (a,), features = network.levels(x, [layer])
            return a, pool(cam(features, network.weight))
    # A transformer's map is a rearranged copy of its tokens: split the tokens off and put them back on the way.
    model: Any = backbone.model
    held: list[Tensor] = []
    h, w = backbone.grid((int(x.shape[-2]), int(x.shape[-1])))
    prefix = int(backbone.prefix_tokens)

    def split(module: nn.Module, args: Any, tokens: Tensor) -> Tensor:
        a = tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), -1, h, w)
        held.append(a)
        return torch.cat([tokens[:, :prefix], a.flatten(2).transpose(1, 2)], dim=1)

    handle = model.blocks[layer].register_forward_hook(split)
    try:
        features = network.features(x)
    finally:
        handle.remove()
    return held[0], pool(cam(features, network.weight))

"""CAM, Grad-CAM and Grad-CAM++: where a classifier sees its tags, as pseudo masks for a segmentation network.

Learning Deep Features for Discriminative Localization, Zhou et al., CVPR 2016, https://arxiv.org/abs/1512.04150.
Grad-CAM, Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391.
Grad-CAM++, Chattopadhay et al., WACV 2018, https://arxiv.org/abs/1710.11063.

A classifier that is linear on averaged features can be applied before the average: its logits at each position, M_c =
sum_k w_ck A_k, say where the evidence for class c is. Grad-CAM gets the weights from gradients instead, so that it
works on any layer of any network; Grad-CAM++ weighs positions by higher derivatives, so that several things of a
class count alike. Maps at several sizes and of the mirrored photograph are added, divided by their maximum, and what
no tagged class claims is background. A segmentation network learns from the result.

Deviates: the pipeline is that of the weakly supervised literature (IRN's classifier and scales), as none of the three
papers makes masks. The background threshold is chosen without masks (`threshold_rule`); the literature sweeps it on
the masks of the training images, which is `oracle_threshold` here. On mobile networks the pretrained last 1x1
convolution is kept before the classifier. The seeds go through a dense CRF (`seed_crf`)
before the retraining. Grad-CAM sums gradients where the paper takes their mean, so that maps of several sizes can be
added.

What the originals get wrong: on a head that is linear after average pooling, Grad-CAM at the last layer is CAM up to
a factor, so differences that are reported between the two there are differences of normalisation; another `layer`
makes them two methods. Grad-CAM++ derives its weights for a score exp(y), while code commonly takes the gradient of
y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from maskwright.engine.config import option
from maskwright.models.networks.cam import activation_maps
from maskwright.recipes.tags.pipeline import PipelineConfig, TagMethod


@dataclass(kw_only=True)
class CamConfig(PipelineConfig):
    """Options of `cam`."""


@dataclass(kw_only=True)
class GradCamConfig(PipelineConfig):
    """Options of `grad_cam` and `grad_cam_pp`."""

    layer: int = option(-1, "stage or block whose activations are weighted; -1: what the classifier sees, -2: finer")


class Cam(TagMethod):
    """The classifier's own maps."""

    name: ClassVar[str] = "cam"
    title: ClassVar[str] = "Learning Deep Features for Discriminative Localization"
    venue: ClassVar[str] = "Zhou et al., CVPR 2016"
    link: ClassVar[str] = "https://arxiv.org/abs/1512.04150"
    Config: ClassVar[type] = CamConfig

    def maps(self, network: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """M_c of the tagged classes, positive evidence only."""
        layer = getattr(self.config, "layer", -1)
        return lambda x, tags: activation_maps(network, x, tags, self.name, layer)


class GradCam(Cam):
    """Maps weighted by mean gradients."""

    name: ClassVar[str] = "grad_cam"
    title: ClassVar[str] = "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization"
    venue: ClassVar[str] = "Selvaraju et al., ICCV 2017"
    link: ClassVar[str] = "https://arxiv.org/abs/1610.02391"
    Config: ClassVar[type] = GradCamConfig


class GradCamPP(GradCam):
    """Maps weighted by positive gradients and higher derivatives."""

    name: ClassVar[str] = "grad_cam_pp"
    title: ClassVar[str] = "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional Networks"
    venue: ClassVar[str] = "Chattopadhay et al., WACV 2018"
    link: ClassVar[str] = "https://arxiv.org/abs/1710.11063"

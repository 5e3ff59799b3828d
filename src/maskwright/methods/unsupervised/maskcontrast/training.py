"""The training of MaskContrast: a query and a key network, a queue of prototypes, a saliency head.

Legend: B photographs, D width of embeddings, S side of a view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.augment import photometric
from maskwright.data.training.sources import StoredLabels
from maskwright.engine import seeding
from maskwright.engine.distributed import check_partners, gather_objects, sampler, world_size
from maskwright.engine.loop import Training
from maskwright.methods.unsupervised.maskcontrast.losses import (
    agreement,
    balanced_cross_entropy,
    object_contrast,
    object_prototypes,
)
from maskwright.methods.unsupervised.maskcontrast.views import ObjectStream
from maskwright.models.networks.build import Network
from maskwright.models.parts.heads import Identity
from maskwright.models.parts.salient_objects import SalientDecoder
from maskwright.recipes.banks import FeatureBank
from maskwright.recipes.ema import EMATeacher
from maskwright.recipes.training.network import make_network
from maskwright.recipes.training.setup import CropSetup

if TYPE_CHECKING:
    from maskwright.engine.context import Context


def salient_network(context: Context, config: Any) -> Network:
    """The configured network with both heads behind its decoder; what it ends in are embeddings and saliency."""
    network = make_network(context, config)
    network.decoder = SalientDecoder(network.decoder, network.width, config.contrast.dim, saliency=config.saliency.head)
    network.classifier = Identity()
    network.width = network.decoder.out
    return network


def freeze_first(network: Network, share: float) -> int:
    """Lets the first layers of the encoder as they are, their batch norms in evaluation mode and left alone where
    statistics are retaken; gives how many."""
    layers = network.encoder_layers()
    count = round(share * len(layers))
    kept = {id(p) for layer in layers[:count] for p in layer}
    for parameter in network.encoder.parameters():
        parameter.requires_grad_(id(parameter) not in kept)
    for module in network.encoder.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and own and all(id(p) in kept for p in own):
            module.eval()
            module.track_running_stats = False  # in evaluation mode those that it has still count
    return count


class MaskContrastTraining(Training):
    """Two views of each photograph, the query's object pixels against prototypes of the key's object, of the others'
    and of earlier ones."""

    def __init__(self, context: Any, config: Any, steps: int, objects: StoredLabels) -> None:
        if config.contrast.weight and not config.contrast.queue:
            check_partners(
                "crops.batch", config.crops.batch, "negatives", "contrast.queue=0", "a queue, or a batch of "
            )
        seeding.initialise(context.seed, "train")
        setup = CropSetup(context, config, steps, network=salient_network(context, config))
        super().__init__(setup)
        c = self.config = setup.config
        self.student, self.network, self.device = setup.student, setup.network, setup.device
        self.dim = c.contrast.dim
        if c.freeze > 0:
            freeze_first(setup.network, c.freeze)
        photographs = setup.stream(objects.indices, sampler(context.seed, len(objects.indices), c.crops.batch))
        photographs.jitter = photometric(c.views.recipe)
        area = (c.crops.scale_min, c.crops.scale_max)
        setup.streams["u"] = ObjectStream(photographs, objects.read, area, (c.views.least, c.views.most))
        self.keys = EMATeacher(setup.network, c.contrast.momentum, "own", "train", warm=False)
        self.modules["keys"] = self.keys
        self.queue: FeatureBank | None = None
        if c.contrast.queue:
            self.queue = FeatureBank(c.contrast.queue, self.dim)
            self.queue.add(F.normalize(torch.randn(c.contrast.queue, self.dim), dim=1))
            self.queue.to(setup.device)
            self.modules["queue"] = self.queue

    def before_step(self, step: int) -> None:
        """The key network follows, before it is asked."""
        self.keys.update(self.network)

    def earlier(self, like: Tensor) -> Tensor:
        """Prototypes of the queue (Q, D), the oldest first."""
        return like.new_zeros(0, self.dim) if self.queue is None else self.queue.get()

    def enqueue(self, prototypes: Tensor) -> None:
        """Stores those of all processes, in the order of their numbers."""
        if self.queue is None:
            return
        if world_size() > 1:
            prototypes = torch.cat(gather_objects(prototypes.cpu())).to(self.device)
        self.queue.add(prototypes)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = lambda_c L_c + lambda_s L_s; the step's prototypes are stored once the queue has been read."""
        c, u = self.config, batch["u"]
        q = self.student(u.q).logits  # (B, D [+ 1], S, S)
        with torch.no_grad():
            k = self.student.through(self.keys.module, u.k).logits
        embedding = q[:, : self.dim]
        p = object_prototypes(k[:, : self.dim], u.mask_k)
        images = torch.tensor(u.images, device=p.device)
        contrast = object_contrast(embedding, u.mask_q, p, self.earlier(p), c.contrast.temperature, images)
        self.enqueue(p)
        loss = c.contrast.weight * contrast
        terms = {"contrast": contrast, "agreement": agreement(embedding.detach(), u.mask_q, p, images)}
        if c.saliency.head:
            terms["saliency"] = balanced_cross_entropy(q[:, self.dim], u.mask_q)
            loss = loss + c.saliency.weight * terms["saliency"]
        return {"loss": loss, **terms}

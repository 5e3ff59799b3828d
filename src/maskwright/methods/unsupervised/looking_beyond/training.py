"""The training of `looking_beyond`: pixels of one label attract each other, in whichever photograph they lie.

Legend: B photographs, E width of the network's embedding, D width of projected features, N drawn pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskwright.data.training.augment import photometric
from maskwright.data.training.sources import Labels
from maskwright.engine.distributed import check_partners, sampler
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.looking_beyond.losses import cross_image_contrast, draw_pixels
from maskwright.methods.unsupervised.looking_beyond.options import LookingBeyondConfig
from maskwright.recipes.consistency.representation import labels_at
from maskwright.recipes.training.setup import CropSetup

APART = 1 << 20
"""What ids of superpixels of one photograph are moved by from those of the next: they have nothing in common."""


class LookingBeyondTraining(Training):
    """Crops with auxiliary labels, and a projection beside the network.

    Args:
        context: of the run.
        config: options.
        steps: of the stage.
        labels: auxiliary labels of photographs.
        linked: whether a label means the same in all photographs.

    Raises:
        MaskwrightError: positives are to lie in other photographs, and there are none.
    """

    def __init__(self, context: Any, config: LookingBeyondConfig, steps: int, labels: Labels, linked: bool) -> None:
        if config.contrast.across and linked:
            self.check_across(len(labels.indices), config.crops.batch)
        setup = CropSetup(context, config, steps, dropout=False)
        super().__init__(setup)
        self.config = setup.config
        self.student, self.network = setup.student, setup.network
        c, self.linked = self.config.contrast, linked
        order = sampler(context.seed, len(labels.indices), self.config.crops.batch)
        photographs = setup.stream(labels.indices, order, labels)
        photographs.jitter = photometric(c.recipe)
        setup.streams["u"] = photographs
        projection = nn.Sequential(
            nn.Conv2d(setup.network.width, c.hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(c.hidden, c.width, 1)
        )
        self.projection = setup.learn_too("projection", projection)

    @staticmethod
    def check_across(photographs: int, batch: int) -> None:
        """Raises `MaskwrightError` where a step has no positive in another photograph."""
        if photographs < 2:
            raise MaskwrightError(
                f"contrast.across=true and {photographs} photographs with labels",
                "at least 2: positives are other photographs", "leave contrast.across out",
            )  # fmt: skip
        check_partners("crops.batch", batch, "positives", "contrast.across=true", "a batch of ")

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """The contrast of drawn pixels, and of what they are: how many, of how many labels, how often across
        photographs."""
        c, u = self.config.contrast, batch["u"]
        with self.student.autocast():
            e = self.network.decode(self.network.features(u.weak))
        y = labels_at(u.y, (e.shape[-2], e.shape[-1]))
        image = torch.tensor(u.images, device=e.device)[:, None, None].expand(y.ids.shape)
        ids = y.ids if self.linked else y.ids + APART * image
        at = draw_pixels(ids, y.confidence, y.valid, c.labels_a_step, c.anchors, c.drop, self.linked).to(e.device)
        rows = e.float().permute(0, 2, 3, 1).flatten(0, 2)[at]  # (N, E)
        z = self.projection(rows[..., None, None])[..., 0, 0]  # (N, D)
        labels, images = ids.flatten()[at], image.flatten()[at]
        loss = cross_image_contrast(z, labels, images, c.temperature, c.across and self.linked)
        return {
            "loss": loss + 0 * e.float().sum(),
            "pixels": loss.new_tensor(float(len(at))),
            **linking(labels, images),
        }


def linking(labels: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Of pairs of pixels with one label (N,), the share that lies in two photographs."""
    same = labels[:, None] == labels
    across = same & (images[:, None] != images)
    pairs = (same.sum() - len(labels)).clamp(min=1)
    return {"across": across.sum().float() / pairs}

"""ReDO's players against each other, and their restart where a region vanishes (NeurIPS 2019, arXiv 1905.13539).

Legend: B photographs, K regions, nz numbers of noise a region, S side.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from maskwright.data.training.streams import CropRecipe, Stream
from maskwright.data.training.views import View
from maskwright.engine import seeding
from maskwright.engine.distributed import all_reduce_sum, sampler, world_size
from maskwright.engine.loop import Training
from maskwright.engine.updating import take_step
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.redo.losses import composites, recovery_loss
from maskwright.methods.unsupervised.redo.networks import Judge, RegionGenerator, initialise
from maskwright.models.backbones.dense import autocast
from maskwright.models.parts.regions import RegionClassifier, RegionEncoder
from maskwright.recipes.adversarial.adversary import Adversary, hinge
from maskwright.recipes.clustering_health import ClusteringHealth
from maskwright.recipes.consistency.parts import SECOND
from maskwright.recipes.training.drawing import StreamSetup, to_signed
from maskwright.recipes.training.forward import precision_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskwright.methods.unsupervised.redo.method import RedoConfig

BETAS = (0.0, 0.9)
GREY = (0.5, 0.5, 0.5)
"""Outside a photograph, which is 0 in [-1, 1]."""
PLAYERS = ("encoder", "classifier", "generators", "recovery", "discriminator")


@dataclass(frozen=True)
class CentralSquare(CropRecipe):
    """The central square of a photograph, scaled to the side; nothing is random."""

    def view(self, size: tuple[int, int], random: torch.Generator, centre: tuple[int, int] | None = None) -> View:
        """The same view of an image of `size` (H, W) each time."""
        whole = min(size)
        top, left = (size[0] - whole) // 2, (size[1] - whole) // 2
        return View.identity(size).crop(top, left, whole, whole).resize(self.side, self.side)


def players(config: RedoConfig, regions: int) -> dict[str, nn.Module]:
    """New networks by name, their weights from torch's global generator."""
    c, side = config.networks, config.crops.size
    encoder = RegionEncoder(c.mask_width, c.mask_blocks)
    made: dict[str, nn.Module] = {
        "encoder": encoder,
        "classifier": RegionClassifier(encoder.out, regions, c.temperature),
        "generators": nn.ModuleList(RegionGenerator(c.noise, c.width, side, c.attention) for _ in range(regions)),
        "recovery": Judge(regions * c.noise, c.judge_width, side),
        "discriminator": Judge(1, c.judge_width, side, c.attention),
    }
    initialise(*made.values(), gain=c.gain)
    return made


class Shares(nn.Module):
    """The mean share of each region since it was last asked, and how often everything began anew.

    Args:
        regions: K.
    """

    total: Tensor
    steps: Tensor
    restarts: Tensor

    def __init__(self, regions: int) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(regions))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("restarts", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, masks: Tensor) -> None:
        """Takes the masks (B, K, S, S) of a step, of all processes."""
        self.total += all_reduce_sum(masks.mean((0, 2, 3))) / world_size()
        self.steps += 1

    def take(self) -> Tensor:
        """The means (K,) since the last time; they begin anew."""
        shares = self.total / self.steps.clamp(min=1)
        self.total.zero_()
        self.steps.zero_()
        return shares


class RedoTraining(Training):
    """A step of mask network, generators and recovery against a frozen discriminator, then the discriminator's."""

    must_fall: ClassVar[str] = "recovered"

    def __init__(self, context: Any, config: RedoConfig, steps: int) -> None:
        images = len(context.data)
        if images < 2:
            raise MaskwrightError(
                f"{images} photograph", "at least 2 for redo: real ones beside those that are redrawn",
                "use --method kmeans or deep_spectral on a single one",
            )  # fmt: skip
        setup = StreamSetup(to_signed, context.device)
        super().__init__(setup)
        seeding.initialise(context.seed, "train")
        self.context, self.config, self.steps, self.device = context, config, steps, context.device
        self.precision = precision_of(config.precision, self.device)
        made = players(config, context.classes)
        self.encoder, self.classifier, self.generators, self.recovery = (made[n].to(self.device) for n in PLAYERS[:4])
        c = config.rates
        self.adversary = Adversary(made["discriminator"], self.device, c.discriminator, BETAS)
        masks = chain(self.encoder.parameters(), self.classifier.parameters())
        self.players = torch.optim.Adam(
            [
                {"params": list(self.generators.parameters()), "lr": c.generators},
                {"params": list(self.recovery.parameters()), "lr": c.recovery},
                {"params": list(masks), "lr": c.masks, "weight_decay": c.decay},
            ],
            betas=BETAS,
        )  # fmt: skip
        self.shares = Shares(context.classes).to(self.device)
        self.modules = {**made, "shares": self.shares}
        self.optimizers = {"players": self.players, "discriminator": self.adversary.optimizer}
        crops = CentralSquare(config.crops.size, (1.0, 1.0), config.crops.size)
        orders = (sampler(context.seed, images, config.crops.batch, seed) for seed in (0, SECOND))
        x, real = (Stream(context.data, range(images), order, crops, GREY) for order in orders)
        setup.streams |= {"x": x, "real": real}
        self.health = ClusteringHealth(context.classes, steps, context.note)

    # ------------------------------------------------------------------ restart

    def before_step(self, step: int) -> None:
        """Looks at the regions' shares where that is due; everything begins anew where one has all but vanished."""
        r = self.config.restart
        if not r.below or step == 0 or step % r.every:
            return
        least, regions = float(self.shares.take().min()), self.context.classes
        if least < r.below * 2 / regions and step <= r.until * self.steps:
            self.restart(step, least)

    def restart(self, step: int, least: float) -> None:
        """New weights for all players, the same in all processes, and optimisers that remember nothing."""
        self.shares.restarts += 1
        n = int(self.shares.restarts)
        with torch.random.fork_rng(devices=[]):
            seeding.initialise(self.context.seed, f"restart {n}")
            fresh = players(self.config, self.context.classes)
        for name in PLAYERS:
            self.modules[name].load_state_dict(fresh[name].state_dict())
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        self.health.shares = None
        self.context.note(
            f"Step {step} of {self.steps}: the smallest region has {100 * least:.1f} % of the pixels, so all networks "
            f"begin anew (restart {n})."
        )

    # ------------------------------------------------------------------ the step

    def play(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Masks m (B, K, S, S) of photographs, and what is drawn into the regions (B, K, 3, S, S)."""
        with autocast(self.device, self.precision):
            m = self.classifier(self.encoder(x)).float().softmax(1)
            generators: Any = self.generators
            drawn = [g(m[:, k : k + 1], z[:, k]).float() for k, g in enumerate(generators)]
        return m, torch.stack(drawn, 1)

    def verdicts(self, of: Any, images: Tensor) -> Tensor:
        """What a judge, frozen or not, says of images (B, 3, S, S), in fp32."""
        with autocast(self.device, self.precision):
            y: Tensor = of(images)
        return y.float()

    def player_losses(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        """L_G = - mean D(x'_k) + weight mean (z - Z(sum_k G_k))^2."""
        m, drawn = self.play(x, z)
        with self.adversary.frozen() as d:
            fooled = self.verdicts(d, composites(x, m, drawn)).mean()
        recovered = recovery_loss(z, self.verdicts(self.recovery, drawn.sum(1)).view_as(z))
        self.shares.add(m.detach())
        smallest = m.detach().mean((0, 2, 3)).min()
        loss = -fooled + self.config.recovery * recovered
        terms = {"loss": loss, "fooled": fooled, "recovered": recovered, "smallest": smallest}
        return terms | {"restarts": self.shares.restarts.float(), **self.health(m.detach())}

    def noise(self, x: Tensor) -> Tensor:
        """z (B, K, nz), normal."""
        return torch.randn(len(x), self.context.classes, self.config.networks.noise, device=self.device)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L_G."""
        x = batch["x"].weak
        return self.player_losses(x, self.noise(x))

    def update(self, fabric: Fabric, batch: Any, step: int) -> dict[str, Tensor]:
        """Masks, generators and recovery; then D, on what these make now of the same photographs and noise."""
        x, real = batch["x"].weak, batch["real"].weak
        z = self.noise(x)
        terms = self.player_losses(x, z)
        take_step([self.players], fabric, terms["loss"], self.clip)
        with torch.no_grad():
            fakes = composites(x, *self.play(x, z))
        of = self.adversary.discriminator
        terms["d"] = hinge(self.verdicts(of, real), True) + hinge(self.verdicts(of, fakes), False)
        take_step([self.adversary.optimizer], fabric, terms["d"], self.clip)
        return terms

    def after_step(self, step: int) -> None:
        """Watches for collapse."""
        self.health.after_step(step)

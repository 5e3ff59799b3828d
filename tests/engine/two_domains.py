"""A method with a source, for tests: a linear layer on a frozen backbone, trained on the source's masks and on the
target's photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.sampler import Sampler
from maskwright.engine.checkpoint import CHECKPOINT, load_part, stage_parts
from maskwright.engine.config import option
from maskwright.engine.context import Context
from maskwright.engine.contract import Method, Stage
from maskwright.engine.loop import Training
from maskwright.engine.needs import StreamNeed
from maskwright.engine.opening import open_run
from maskwright.engine.progress import Progress
from maskwright.engine.request import RunRequest
from maskwright.engine.run import run_method
from maskwright.models.parts.heads import Identity, LinearClassifier
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import BackboneEncoder, Segmenter


@dataclass(kw_only=True)
class TwoDomainsConfig:
    """Options."""

    weight: float = option(0.1, "of the entropy on the target", low=0)


class TwoDomainsTraining(Training):
    """Cross-entropy on the source, entropy on the target, and where there is a third data set, on that too."""

    def __init__(self, context: Context, weight: float) -> None:
        self.context, self.weight = context, weight
        provenance = context.backbone.provenance
        self.encoder = BackboneEncoder(context.backbone)
        self.preprocess = Preprocess(provenance.mean, provenance.std, multiple_of=32)
        torch.manual_seed(context.seed)
        self.layer = LinearClassifier(self.encoder.width, context.classes)
        self.modules = {"layer": self.layer}
        self.optimizers = {"sgd": torch.optim.SGD(self.layer.parameters(), lr=0.1)}
        self.sampler = Sampler(len(context.data_of("source")), 1, context.seed)

    def batch(self, indices: Sequence[int], random: torch.Generator) -> tuple[Tensor, Tensor, list[Tensor]]:
        """A photograph of the source with its ids at the size of the features, and one of each other stream."""
        source = self.context.data_of("source")
        x = self.features(source.image(int(indices[0])))
        ids = torch.from_numpy(source.mask(int(indices[0])).astype("int64"))[None, None].float()
        others = []
        for name, data in self.context.streams.items():
            if name != "source":
                k = int(torch.randint(len(data), (1,), generator=random))
                others.append(self.features(data.image(k)))
        return x, F.interpolate(ids, x.shape[-2:])[:, 0].long(), others

    @torch.no_grad()
    def features(self, image: Any) -> Tensor:
        """(1, D, h, w)."""
        return self.encoder(self.preprocess.apply(image)[None])

    def losses(self, batch: tuple[Tensor, Tensor, list[Tensor]], step: int) -> dict[str, Tensor]:
        """The sum, and its terms."""
        x, ids, others = batch
        loss_s = F.cross_entropy(self.layer(x), ids, ignore_index=255)
        loss_t = sum(
            (-(z.softmax(1) * z.log_softmax(1)).sum(1).mean() for z in map(self.layer, others)), x.new_zeros(())
        )
        return {"loss": loss_s + self.weight * loss_t, "source": loss_s, "target": loss_t}


class TwoDomains(Method):
    """Needs a labelled source; reads no label of its target."""

    name: ClassVar[str] = "two_domains"
    title: ClassVar[str] = "A toy"
    venue: ClassVar[str] = "nowhere"
    link: ClassVar[str] = "https://example.org"
    family: ClassVar[str] = "adapt"
    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    Config: ClassVar[type] = TwoDomainsConfig

    def stages(self) -> list[Stage]:
        """One."""
        return [Stage("train", "train", self.train, "a linear layer")]

    def train(self, folder: Path) -> None:
        """Trains the layer, with a checkpoint at every other step."""
        training = TwoDomainsTraining(self.context, self.config.weight)
        self.context.fit(training, "train", folder, self.context.steps or 6, checkpoint_every=2)

    def segmenter(self) -> Segmenter:
        """Encoder and layer."""
        training = TwoDomainsTraining(self.context, self.config.weight)
        path = self.context.run.path / "train" / CHECKPOINT
        load_part(training.layer, stage_parts(path), "module.layer", path)
        return Segmenter(
            encoder=training.encoder,
            decoder=Identity(),
            classifier=training.layer,
            classes=self.context.table,
            preprocess=training.preprocess,
            provenance=self.context.backbone.provenance,
            method=self.name,
        )


class DayAndNight(TwoDomains):
    """One that takes a third, unlabelled data set, and can do without a fourth."""

    name: ClassVar[str] = "day_and_night"
    streams: ClassVar[Mapping[str, StreamNeed]] = {
        "day": StreamNeed(says="unlabelled photographs of the target's places by day"),
        "dusk": StreamNeed(says="more of them at dusk", required=False),
    }


def request(data: Any, out: Path, method: type[Method] = TwoDomains, **options: Any) -> RunRequest:
    """A small run."""
    usual = {"backbone": "mobilenetv3_small_050", "weights": "random", "device": "cpu", "steps": 6}
    quiet = {"progress": Progress(quiet=True)}
    return RunRequest(data=data, method=method, out=out, **(usual | quiet | options))


def run(asked: RunRequest) -> Context:
    """Opens it and runs it to its end."""
    context = open_run(asked)
    try:
        run_method(asked.method, asked.config, context)
    finally:
        context.run.release()
    return context

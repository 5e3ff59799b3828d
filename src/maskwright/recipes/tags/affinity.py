"""Training an affinity of pixels on pairs of sure labels: AffinityNet's features, or IRN's boundaries.

Legend: B batch, S crop side, (h, w) grid of the pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.sources import StoredLabels
from maskwright.data.training.streams import Stream
from maskwright.data.training.tag_targets import TagTargets
from maskwright.data.training.views import View
from maskwright.engine.loop import Training
from maskwright.models.networks.irn import AffinityNet, BoundaryNet
from maskwright.ops.graphs.pair_affinity import affinity_loss, boundary_affinity, feature_affinity, pair_labels
from maskwright.recipes.tags.network import sgd
from maskwright.recipes.tags.training import TagSetup

if TYPE_CHECKING:
    from maskwright.engine.context import Context

RADIUS = {"irn": 10, "psa": 5}
"""Published radius of training pairs, exclusive, in cells: every fourth pixel for IRN, every eighth for PSA."""


def make_affinity_network(context: Context, config: Any, kind: str) -> Any:
    """An untrained `BoundaryNet` or `AffinityNet` on a copy of the run's backbone."""
    stride = config.classifier.output_stride or None
    if kind == "irn":
        return BoundaryNet(context.backbone, stride)
    return AffinityNet(context.backbone, stride, config.classifier.freeze)


class SureStream(Stream):
    """A stream whose labels are read at the grid of the pairs, each cell's from its central pixel.

    Args:
        photographs: the tagged photographs, whose order and recipe these are.
        labels: the sure labels.
        grid: (h, w).
    """

    def __init__(self, photographs: Stream, labels: StoredLabels, grid: tuple[int, int]) -> None:
        p = photographs
        super().__init__(p.data, p.indices, p.order, p.crops, p.mean, labels, tags=p.tags, jitter=p.jitter)
        self.grid = grid

    def label(self, i: int, view: View) -> LabelMap:
        """Labels (h, w) of image `i` as the view sees them."""
        assert self.labels is not None, "the sure labels"
        return self.labels.read(i).through(view.resize(*self.grid))


class PairTraining(Training):
    """Trains an affinity on pairs of sure labels.

    Args:
        context: of the run.
        config: options, a `WalkConfig`.
        targets: what the images are tagged with.
        labels: the sure labels.
        kind: "irn" or "psa".
        steps: of the stage.
    """

    def __init__(
        self, context: Context, config: Any, targets: TagTargets, labels: LabelStore, kind: str, steps: int
    ) -> None:
        setup = TagSetup(
            context, config, targets, steps, lambda *_: make_affinity_network(context, config, kind), stage="affinity"
        )
        super().__init__(setup)
        self.kind, self.targets, self.network, self.autocast = kind, targets, setup.network, setup.autocast
        self.radius = config.affinity.radius or RADIUS[kind]
        side = -(-setup.crop // self.network.stride)
        tagged = {context.data.items[i].name for i in targets.indices(context.data)}
        setup.streams["x"] = SureStream(setup.stream(), StoredLabels(context.data, labels, tagged), (side, side))
        a, c = config.affinity, config.classifier  # the affinity has rates of its own
        groups = self.network.groups(a.lr, c.encoder_lr, c.weight_decay)
        self.optimizers["network"] = sgd(groups, a.lr, a.momentum)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L_aff."""
        x = batch["x"]
        pairs = pair_labels(x.y.ids, x.y.valid, self.targets.background, self.radius)
        with self.autocast():
            out = self.network(x.weak)
        if self.kind == "psa":
            return {"loss": affinity_loss(feature_affinity(out, self.radius), pairs)}
        return {"loss": affinity_loss(boundary_affinity(out.float().sigmoid(), self.radius), pairs)}

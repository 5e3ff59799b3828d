"""The segmenter, what every method ends in: an encoder, a decoder and a classifier, with all that is needed
to use them.

    features(x) -> decode -> classify = logits (B, C, h, w) at feature resolution

Legend: B batch, D width, C classes, (H, W) input size, (h, w) feature-map size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import Identity
from maskwright.models.parts.named_clusters import NamedClusters
from maskwright.models.parts.part import Part
from maskwright.models.parts.table import build_part
from maskwright.models.preprocess import Preprocess
from maskwright.models.provenance import Provenance
from maskwright.models.towers.groupvit.parts import GroupEncoder
from maskwright.models.towers.parts import JointEncoder


class Segmenter(nn.Module):
    """A network, its classes, its preprocessing and where it comes from.

    Args:
        encoder: images (B, 3, H, W) to features, a tensor (B, D, h, w) or a list of them.
        decoder: features to an embedding (B, E, h, w).
        classifier: embedding to logits (B, C, h, w).
        classes: names and colours of the C classes.
        preprocess: from photograph to input.
        provenance: where the encoder's weights come from and what they saw.
        method: name of the method that made it.
        notes: what a reader of the file should know.
    """

    def __init__(
        self,
        encoder: Part,
        decoder: Part | None,
        classifier: Part,
        classes: ClassTable,
        preprocess: Preprocess,
        provenance: Provenance,
        method: str = "",
        notes: str = "",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder if decoder is not None else Identity()
        self.classifier = classifier
        self.classes = classes
        self.preprocess = preprocess
        self.provenance = provenance
        self.method = method
        self.notes = notes
        self.extra: dict[str, Any] = {}
        count = getattr(classifier, "classes", None)
        if isinstance(count, int) and count != len(classes):
            raise ValueError(f"the classifier has {count} classes and the table {len(classes)}")

    def features(self, x: Tensor) -> Any:
        """Normalised images (B, 3, H, W) to features (B, D, h, w), or a list of them for decoders that want
        a pyramid."""
        return self.encoder(x)

    def decode(self, features: Any) -> Tensor:
        """Features to an embedding (B, E, h, w)."""
        return self.decoder(features)

    def classify(self, embedding: Tensor) -> Tensor:
        """Embedding (B, E, h, w) to logits (B, C, h, w)."""
        return self.classifier(embedding)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, C, h, w) at feature resolution."""
        return self.classify(self.decode(self.features(x)))

    @property
    def naming(self) -> NamedClusters | None:
        """Which clusters its classes are made of; None where the classifier tells the classes apart itself."""
        return self.classifier if isinstance(self.classifier, NamedClusters) else None

    def told_apart(self, embedding: Tensor) -> Tensor:
        """Embedding (B, E, h, w) to the logits of what the classifier tells apart: its K clusters where classes are
        made of clusters (B, K, h, w), else its C classes (B, C, h, w)."""
        return self.classify(embedding) if self.naming is None else self.naming.clusters(embedding)

    @property
    def multiple_of(self) -> int:
        """Input sides should be multiples of this."""
        return int(getattr(self.encoder, "multiple_of", 1))

    def to_spec(self) -> dict[str, Any]:
        """The three parts as JSON values."""
        parts = (self.encoder, self.decoder, self.classifier)
        encoder, decoder, classifier = (part.spec() for part in parts)
        return {"encoder": encoder, "decoder": decoder, "classifier": classifier}

    @classmethod
    def from_spec(
        cls,
        spec: Any,
        classes: ClassTable,
        preprocess: Preprocess,
        provenance: Provenance,
        method: str = "",
        notes: str = "",
    ) -> Self:
        """Builds the network with random weights, in evaluation mode; nothing is fetched and no file is read.

        Raises:
            MaskwrightError: unknown parts, arguments that do not fit, or another number of classes than the
                table's.
        """
        if not isinstance(spec, Mapping) or set(spec) != {"encoder", "decoder", "classifier"}:
            raise MaskwrightError("the network's description is incomplete", "encoder, decoder and classifier")
        encoder, decoder, classifier = (build_part(spec[name]) for name in ("encoder", "decoder", "classifier"))
        for part in encoder.modules():
            if isinstance(part, BackboneEncoder | JointEncoder | GroupEncoder):
                part.backbone.provenance = provenance
        try:
            return cls(encoder, decoder, classifier, classes, preprocess, provenance, method, notes).eval()
        except ValueError as error:
            raise MaskwrightError(str(error), "as many classes as the classifier has") from error

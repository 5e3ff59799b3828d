"""What a run ends in: its model with all that a prediction wants to know of the run, its pictures and its page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from maskwright.engine.records import MODEL
from maskwright.models import bundle
from maskwright.models.segmenter import Segmenter
from maskwright.predict.kept import model_key
from maskwright.predict.model import Model

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.contract import Method
    from maskwright.models.parts.part import Part
    from maskwright.models.preprocess import Preprocess


def assembled(
    method: Method, encoder: Part, decoder: Part | None, classifier: Part, preprocess: Preprocess
) -> Segmenter:
    """A segmenter of a method on the run's backbone, in evaluation mode.

    Args:
        method: whose `table` names the classes.
        encoder: images to features.
        decoder: features to an embedding; None: they are it.
        classifier: embedding to logits, one for each class of the table.
        preprocess: from photograph to input.
    """
    provenance = method.context.backbone.provenance
    return Segmenter(encoder, decoder, classifier, method.table, preprocess, provenance, method.name).eval()


def save_model(method: Method) -> Model:
    """Builds the segmenter of a method whose stages are done, and saves it.

    Returns:
        The model. The run's record has its provenance and its key.

    Raises:
        MaskwrightError: as `save_bundle`, or whatever building it raises.
    """
    context, run = method.context, method.context.run
    segmenter = method.segmenter()
    run.save(provenance=segmenter.provenance.to_json())
    if run.record["provenance"] != run.record["backbone"]:
        context.progress.say(f"weights: {segmenter.provenance.summary()}")
    extra = {
        **segmenter.extra,
        "method": run.record["method"],
        "seed": context.seed,
        "data": run.record["data"]["fingerprint"],
        **trained_sizes(context.data),
        "refine": method.refinement,
        "labels_read": context.ledgers.counts(),
        "inputs": {name: one.saw() for name, one in context.inputs.items()},
        "reading": context.data.settled_reading.to_json(),
    }
    if run.writes:
        bundle.save_bundle(run.path / MODEL, segmenter, extra)
    model = Model(segmenter, extra, device=str(context.device))
    model.origin = run.path / MODEL if run.writes else None
    run.save(model_key=model_key(segmenter))
    return model


def trained_sizes(images: Dataset, most: int = 500) -> dict[str, list[int]]:
    """Sizes of the images trained on, which say at what scale larger ones are to be seen (`predict.tiles`): the median
    height and width, and the (H, W) that no more than one in twenty exceeds in area.

    Args:
        images: of the run.
        most: about so many of them are looked at.
    """
    sizes = [images.size(i) for i in range(0, len(images), max(1, len(images) // most))]
    by_area = sorted(sizes, key=lambda s: s[0] * s[1])
    return {
        "image_size": [sorted(s[k] for s in sizes)[len(sizes) // 2] for k in (0, 1)],
        "largest_size": list(by_area[-(-len(sizes) * 19 // 20) - 1]),
    }


class Pages(NamedTuple):
    """What makes the pictures and the page of a finished run; who does lies above this room.

    Attributes:
        previews: called with (run folder, model, images, progress); gives each class's share of the pixels.
        page: called with (run folder, record); writes the page and gives its path.
        clusters: called as `previews` in runs whose classes are clusters: shows what each is, and gives their `share`
            and what place in the frame predicts of them (`places`, `evaluate.places.Places` or None).
        naming: called with the folder of such a run: the line on how its clusters become classes.
    """

    previews: Callable[..., Any]
    page: Callable[..., Path]
    clusters: Callable[..., Any] | None = None
    naming: Callable[[Path], str] | None = None

    def draw(self, method: Method, model: Model) -> None:
        """Makes the pictures of a method's run; its record tells what they show of each class."""
        context, run = method.context, method.context.run
        shares = self.previews(run.path, model, context.data, progress=context.progress)
        if method.terms(method.config).classes_from == "clusters" and self.clusters is not None:
            clusters = self.clusters(run.path, model, context.data, progress=context.progress)
            shares = clusters.share
            run.record.pop("places", None)
            if clusters.places is not None:
                run.record["places"] = clusters.places.to_json()
                context.progress.say(clusters.places.says())
        table = model.segmenter.classes
        run.record["classes"] = [
            {"name": n, "color": [int(v) for v in c], "share": float(s)}
            for n, c, s in zip(table.names, table.colors, shares)
        ]

    def ends(self, method: Method) -> None:
        """Says what is to be done next with the run of a method, where its classes are clusters."""
        if self.naming is not None and method.terms(method.config).classes_from == "clusters":
            method.context.progress.say(self.naming(method.context.run.path))

"""What to label next."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.progress import Progress
    from maskwright.models.segmenter import Segmenter
    from maskwright.predict.model import Model
    from maskwright.predict.suggest import Suggestions

from maskwright.api.opening import load, opened


def suggest(
    model: str | Path | Model,
    data: str | Path | Dataset,
    count: int,
    *,
    by: str = "mixed",
    split: str | None = None,
    labeled: str | Path | None = None,
    regions: int = 0,
    region_size: int = 0,
    out: str | Path | None = None,
    to: str | None = None,
    seed: int = 0,
    device: str = "auto",
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Suggestions:
    """Says which of the images without a mask to label next, and which regions of them.

    Args:
        model: a run folder, `model.safetensors`, or a loaded model. A run folder may hold a second network (a teacher),
            which `disagreement` needs and `mixed` uses.
        data: dataset folder, `layout:path`, or an opened dataset.
        count: images to suggest.
        by: mixed, entropy, margin, confidence, disagreement, coreset or random.
        split: only these images.
        labeled: name of a split, or a file: these images have masks already, also those outside `split`; the others
            have none.
        regions: regions to suggest in each image.
        region_size: their side, pixels; a sixth of the image's shorter side if 0.
        out: folder for suggestions.csv, names.txt, regions.csv and sheet.png.
        to: labelme, cvat, coco or yolo: the folder `out/TO` gets the photographs with the model's masks as outlines,
            for an annotation tool; `convert` brings them back corrected.
        seed: of `random`.
        device: `auto`, `cpu` or `cuda`; a loaded model stays where it is.
        labels, void, range: what the values of the files mean, as for `open_folder`.
        progress: how work shows itself.
        options: further options of `predict.suggest.suggest`.

    Raises:
        MaskwrightError: on bad input, or where a strategy needs two networks and there is one.
    """
    from maskwright.data.examining.understanding import understand
    from maskwright.engine.devices import pick_device
    from maskwright.predict.model import Model
    from maskwright.predict.suggest import suggest as find

    loaded = model if isinstance(model, Model) else load(model, device=pick_device(device))
    other = None
    if not isinstance(model, Model) and by in ("disagreement", "mixed"):
        other = other_network(loaded, Path(model))
        if other is None and by == "disagreement":
            raise MaskwrightError(
                f"{model} holds one network, which agrees with itself", "a run that trained a student and its teacher",
                "give a run folder of mean_teacher, or of another method with a teacher, or choose --by entropy",
            )  # fmt: skip
    images = loaded.read_as_trained(opened(data, labels, void, range))
    everything = images if labeled is None else images.labeled(labeled)
    images = everything if split is None else everything.split(split)
    if labeled is not None:  # those labelled outside the split are known all the same
        rest = (i for i, name in enumerate(everything.names) if everything.has_mask(i) and name not in images)
        images = images.with_items([*images.items, *everything.subset(rest).items])
    images = understand(images, masks=False)
    if other is not None:
        from maskwright.recipes.training.norm_statistics import retake_as_recorded

        retake_as_recorded(other.to(loaded.device), Path(model), images, loaded.device)  # type: ignore[arg-type]
    return find(
        loaded, images, count, by=by, regions=regions, region_size=region_size, out=out, to=to, other=other, seed=seed,
        progress=progress, **options,
    )  # fmt: skip


def other_network(model: Model, run: Path) -> Segmenter | None:
    """The network beside the kept one that the newest training stage with one left in its checkpoint, if any."""
    from maskwright.engine.checkpoint import CHECKPOINT, load_checkpoint
    from maskwright.predict.suggest import second_network

    found = list(run.glob(f"*/{CHECKPOINT}")) if run.is_dir() else []
    for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True):
        other = second_network(model.segmenter, (load_checkpoint(path) or {}).get("parts", {}))
        if other is not None:
            return other
    return None

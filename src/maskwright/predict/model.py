"""A trained model as its user meets it: `predict` for one picture, `predict_folder` for many, `save` and `load`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from maskwright.data.examining.reading import Reading
from maskwright.data.examining.understanding import understand
from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.scan import threaded
from maskwright.data.masking.classes import ClassTable, given_names
from maskwright.data.masking.masks import write_mask
from maskwright.data.pictures.scale import Scale
from maskwright.data.training.tag_targets import find_targets
from maskwright.data.trust.files import file_for
from maskwright.errors import MaskwrightError, stop_if_asked, unknown
from maskwright.models.bundle import load_bundle, save_bundle
from maskwright.models.segmenter import Segmenter
from maskwright.predict.given import Picture, as_picture, gather, join
from maskwright.predict.inference import Prediction, predict_many, predict_probs, smallest_confidence
from maskwright.predict.kept import Record, changed_error, head_of
from maskwright.predict.outputs import Outputs, check_lengths, place_outputs
from maskwright.predict.refine import AUTO, REFINEMENTS, check_refinement
from maskwright.predict.showing import thumbnail
from maskwright.predict.tiles import WHOLE_PIXELS, choose_tile, much_larger, trained_size
from maskwright.predict.writers import overlay, write_confidence, write_overlay

if TYPE_CHECKING:
    from maskwright.predict.export.writing import Exported


@dataclass(frozen=True)
class Result:
    """What a model says about one picture.

    Attributes:
        mask: uint16 (H, W), class ids; `classes.ignore` where the most probable cluster was named void.
        confidence: float32 (H, W) in [0, 1], probability of the predicted class (float16 above 64 million pixels).
        classes: names and colours of the ids.
        tile: pixels of the windows in which the picture was seen; None where it was seen whole.
        photo: the photograph, small, for showing the result; None where it is not known.
    """

    mask: np.ndarray
    confidence: np.ndarray
    classes: ClassTable
    tile: int | None = None
    photo: np.ndarray | None = field(default=None, repr=False, compare=False)

    def shares(self) -> np.ndarray:
        """Share of the area that each class has, float64 (C,); sums to 1, less what has no class."""
        return area_counts(self.mask, len(self.classes)) / self.mask.size

    def overlay(self, image: np.ndarray, strength: float = 0.5) -> np.ndarray:
        """The photograph, uint8 (H, W, 3), tinted with the classes' colours."""
        return overlay(image, self.mask, self.classes, strength)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the mask as an index PNG: palette up to 255 classes, 16 bits above."""
        write_mask(path, self.mask, self.classes)

    def _repr_html_(self) -> str:
        from maskwright.predict.showing import result_html

        return result_html(self)

    def _repr_png_(self) -> bytes:
        from maskwright.predict.showing import result_png

        return result_png(self)


@dataclass
class FolderSummary:
    """What `Model.predict_folder` did.

    Attributes:
        out: the folder written to.
        written: number of masks.
        kept: number of masks that an earlier call had finished.
        skipped: (name, reason) of images that could not be read.
        shares: share of the area of all masks that each class has, float64 (C,).
        seconds: wall time.
        tagged: number of images whose tags limited what was found.
        notices: what was guessed of the images, chosen, or left aside, in sentences; `progress` said them as well.
    """

    out: Path
    written: int = 0
    kept: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    shares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: float = 0.0
    tagged: int = 0
    notices: list[str] = field(default_factory=list)


class Model:
    """A segmenter and what is known about it.

    Args:
        segmenter: the network with classes, preprocessing and provenance.
        extra: further JSON values, saved with it; those of the segmenter if None.
        device: where it runs: "cpu", "cuda", "cuda:1".

    Attributes:
        origin: the file that it was loaded from, or that its run left; None where there is none.

    Raises:
        MaskwrightError: there is no such device.
    """

    origin: Path | None = None

    def __init__(
        self, segmenter: Segmenter, extra: Mapping[str, Any] | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.device = check_device(device)
        if extra is not None:
            segmenter.extra = dict(extra)
        self.segmenter = segmenter.to(self.device).eval()

    @property
    def classes(self) -> ClassTable:
        """Names and colours of the classes."""
        return self.segmenter.classes

    @property
    def extra(self) -> dict[str, Any]:
        """Further values saved with the model."""
        return self.segmenter.extra

    def __repr__(self) -> str:
        made = f" by {self.segmenter.method}" if self.segmenter.method else ""
        return f"Model({len(self.classes)} classes{made}, {self.segmenter.provenance.architecture}, {self.device})"

    def _repr_html_(self) -> str:
        from maskwright.predict.showing import model_html

        return model_html(self)

    @overload
    def predict(
        self, image: Picture, refine: str = ..., tile: int | None = ..., flips: bool = ..., *, overlap: float = ...,
        scales: Sequence[float] = ..., precision: str = ..., only: Sequence[int | str] | None = ...,
        range: str | Iterable[float] | None = ..., settings: dict[str, Any] | None = ..., batch: int = ...,
    ) -> Result: ...  # fmt: skip

    @overload
    def predict(
        self, image: list[Any] | tuple[Any, ...], refine: str = ..., tile: int | None = ..., flips: bool = ..., *,
        overlap: float = ..., scales: Sequence[float] = ..., precision: str = ...,
        only: Sequence[int | str] | None = ..., range: str | Iterable[float] | None = ...,
        settings: dict[str, Any] | None = ..., batch: int = ...,
    ) -> list[Result]: ...  # fmt: skip

    def predict(
        self,
        image: Picture | list[Any] | tuple[Any, ...],
        refine: str = AUTO,
        tile: int | None = None,
        flips: bool = False,
        *,
        overlap: float = 0.25,
        scales: Sequence[float] = (1.0,),
        precision: str = "fp32",
        only: Sequence[int | str] | None = None,
        range: str | Iterable[float] | None = None,
        settings: dict[str, Any] | None = None,
        batch: int = 1,
    ) -> Result | list[Result]:
        """Segments one picture of any size, or each of a list.

        Args:
            image: a file or a Pillow image, turned as its EXIF tag says, or uint8 (H, W, 3) RGB or (H, W) grey, taken
                as it is; or a list of these, which gives a list of results in its order.
            refine: "none", "crf", "guided", or "auto" for what the model's method does.
            tile: see it in windows of this many pixels; 0: whole; None: in windows where the picture is much larger
                than those trained on (`predict.tiles`), and the result's `tile` says so.
            flips: average with the mirrored picture.
            overlap: share of a tile that its neighbour holds too.
            scales: average over the input sizes that these factors give.
            precision: "fp32" or "bf16".
            only: names or ids of the classes that may occur, the background among them where there is one.
            range: (low, high), the stored values that become black and white in a file of more than 8 bits; None: those
                of the model's training, else of the file's type where its values use enough of it.
            settings: options of the refinement.
            batch: of a list, pictures of one size that follow each other and that the network sees together.

        Raises:
            MaskwrightError: the file cannot be read, the array is no picture, nothing says what its values mean, or an
                option is out of range.
        """
        if isinstance(image, list | tuple):
            pictures, limits = image, self.ids(only)
        else:
            pictures, limits = [image], self.ids(only)
        options: dict[str, Any] = {
            "tile": tile, "overlap": overlap, "flips": flips, "scales": scales, "settings": settings,
            "device": self.device, "precision": precision, "dtype": np.uint16,
        }  # fmt: skip
        results: list[Result] = []
        ready = ((str(n), as_picture(p, self.value_range(range))) for n, p in enumerate(pictures))
        for _, many in grouped(ready, check_batch(batch)):
            size = many[0].shape[:2]
            found = predict_many(
                self.segmenter, many, only=[limits] * len(many), refine=self.refinement(refine, size),
                confidence=smallest_confidence(size), **options,
            )  # fmt: skip
            for pixels, one in zip(many, found):
                assert one.confidence is not None
                results.append(Result(one.ids, one.confidence, self.classes, one.tile, thumbnail(pixels)))
        return results if isinstance(image, list | tuple) else results[0]

    def ids(self, only: Sequence[int | str] | None) -> list[int] | None:
        """Ids of classes that are named or numbered; None for None. Raises `MaskwrightError` on an unknown name."""
        if only is None:
            return None
        names = self.classes.names
        if odd := [c for c in only if isinstance(c, str) and c not in names]:
            raise unknown("class", odd[0], names)
        return [names.index(c) if isinstance(c, str) else int(c) for c in only]

    def tagged(self, data: Dataset) -> dict[str, list[int]]:
        """What may occur in each image that has tags: the ids of its tags, and of the class that no tag names.

        Raises:
            MaskwrightError: tags that are no class of the model, or no image with tags.
        """
        targets = find_targets(data, self.classes, background=str(self.extra.get("background", "auto")))
        ground = [] if targets.background is None else [targets.background]
        return {
            name: ground + [targets.ids[t] for t in channels]
            for name, channels in targets.tagged.items()
            if ground or channels
        }

    def refinement(self, asked: str, size: tuple[int, int]) -> str:
        """The refinement to use: as asked, or under `auto` the method's own.

        Very large pictures are not refined unless it is asked for: their tiles would take longer than their masks.
        """
        if asked != AUTO:
            return check_refinement(asked)
        own = str(self.extra.get("refine", "none"))
        return own if own in REFINEMENTS and size[0] * size[1] <= WHOLE_PIXELS else "none"

    def rename(
        self,
        names: Mapping[int | str, str | None],
        table: ClassTable | None = None,
    ) -> Model:
        """The same model with named classes: its clusters, or classes, get names, several may become one, some void.

        The mask is exactly the mask of before with each id replaced; probabilities of what becomes one class are
        summed, and those of void are left out, so that they sum to less than 1 (`predict_mask`, `predict_probs`).

        Args:
            names: for each id, or name, of the present classes a name, or None (or "void") for none.
            table: names and colours of the classes, in the order of their ids; further names come behind it. None: the
                names in the order of their first cluster, whose colour they keep.

        Returns:
            A new model. It shares its network with this one.

        Raises:
            MaskwrightError: a cluster without a name, an unknown one, a name that is a number, or all are void.
        """
        from maskwright.predict.naming import renamed

        return Model(renamed(self.segmenter, names, table), device=self.device)

    def with_names(
        self,
        names: str | os.PathLike[str] | Iterable[str],
        weights: str | os.PathLike[str] | None = None,
        progress: Any = None,
    ) -> Model:
        """The same model with other classes, where its classes are words (`maskclip`, `clip_seg`, `groupvit`).

        Args:
            names: as for `train`: with commas (or semicolons) between, a file with one a line, or a sequence.
            weights: file or folder of the two towers that it was made with; None: the hub's (or its local cache's).
            progress: how work shows itself.

        Returns:
            A new model. It shares its image tower with this one.

        Raises:
            MaskwrightError: its classes are no words, the text tower cannot be had, or names that will not do.
        """
        from maskwright.predict.words import reworded

        place = None if weights is None else os.fspath(weights)
        track = None if progress is None else progress.track
        made, said = reworded(self.segmenter, given_names(names), place, track)
        for sentence in said if progress is not None else ():
            progress.say(sentence)
        model = Model(made, device=self.device)
        model.origin = self.origin
        return model

    def at_level(self, level: str) -> Model:
        """The same model telling the parts that each photograph falls into by itself, where it has such levels (`hsg`).

        Ids are those of one photograph alone, so flips and scales, which are averaged, do not go with it.

        Args:
            level: `segments`, `fine` or `coarse`.

        Returns:
            A new model. It shares its network with this one.

        Raises:
            MaskwrightError: it has no levels, or none of that name.
        """
        from maskwright.predict.levels import at_level

        model = Model(at_level(self.segmenter, level), device=self.device)
        model.origin = self.origin
        return model

    def probabilities(self, image: Picture, **options: Any) -> np.ndarray:
        """Class probabilities of one picture, float32 (C, H, W); options as for `predict_probs`."""
        return predict_probs(self.segmenter, as_picture(image, self.value_range()), device=self.device, **options)

    def value_range(self, said: str | Iterable[float] | None = None) -> tuple[float, float] | None:
        """The range of images of more than 8 bits: what is said, else that of the images it was trained on, or None."""
        if said is not None:
            return Reading.parse(range=said).range
        return Reading.from_json(self.extra.get("reading")).range

    def read_as_trained(self, data: Dataset, range: str | Iterable[float] | None = None) -> Dataset:
        """The data set whose images of more than 8 bits are read as those of the training were, if it had any.

        Args:
            data: the images; what was said of their values goes before.
            range: what is said now.
        """
        if range is not None:
            return data.with_reading(replace(data.reading, range=self.value_range(range)))
        trained = self.value_range()
        if data.reading.range is not None or trained is None:
            return data
        return data.with_scale(Scale(*trained, "the model was trained so"))

    def predict_folder(
        self,
        images: Any,
        out: str | os.PathLike[str],
        *,
        tile: int | None = None,
        refine: str = AUTO,
        flips: bool = False,
        confidence: bool = False,
        overlays: bool = False,
        tags: bool = False,
        overlap: float = 0.25,
        scales: Sequence[float] = (1.0,),
        precision: str = "fp32",
        range: str | Iterable[float] | None = None,
        settings: dict[str, Any] | None = None,
        split: str | None = None,
        batch: int = 1,
        anew: bool = False,
        progress: Any = None,
    ) -> FolderSummary:
        """Writes OUT/NAME.png for every image that can be read; those that cannot are counted and named.

        Masks that the same model made of the same photograph with the same settings are kept: `OUT/predicted.jsonl`
        says which (`predict.kept`). Others are replaced one by one, each at once, so an interrupt costs one batch.

        Args:
            images: a dataset, a folder, a file or a pattern (`photos/*.jpg`); a list of these, or of arrays and Pillow
                images; or {name: picture} (`predict.given`).
            out: the folder to write to, made if missing.
            confidence: write OUT/confidence/NAME.png too, 8 bits, 255 = certain.
            overlays: write OUT/overlays/NAME.jpg too. Where images lie in folders of these names, the folders are
                called confidence-2 and overlays-2.
            tags: in images that have tags nothing else is found than these and the class that no tag names.
            tile, refine, flips, overlap, scales, precision, settings: as for `predict`.
            range: as for `predict`; where neither it nor the training gives one, it is found over all the images.
            split: only the images of this split of the folders.
            batch: images of one size that the network sees together.
            anew: keep nothing, and write over masks that were changed since they were predicted.
            progress: an `engine.progress.Progress`, or a function of (done, total), or None.

        Raises:
            MaskwrightError: masks would be written over images or labels of the dataset, over each other or over masks
                that were changed since, the place cannot be written, an option is out of range, or there are no tags
                that fit the classes.
        """
        if refine != AUTO:
            check_refinement(refine)
        check_batch(batch)
        parts = gather(images, split=split, range=self.value_range(range))
        out = Path(out)
        for part in parts:
            check_out(out, part)
        data = understand(self.read_as_trained(join(parts), range), masks=False)
        outputs = place_outputs(out, data, confidence=confidence, overlays=overlays)
        tagged = self.tagged(data) if tags else {}
        start = time.perf_counter()
        asked = {
            "tile": tile, "refine": refine, "flips": flips, "overlap": overlap, "scales": list(scales),
            "precision": precision, "refinement": settings or {}, "range": data.settled_reading.range,
        }  # fmt: skip
        record, head = Record.read(out), head_of(self.segmenter, asked, self.origin)
        if not anew and (changed := record.changed(data, outputs)):
            raise changed_error(out, changed)
        finished = {} if anew else record.finished(head, data, outputs, tagged)
        notices = [*data.notices, *outputs.notices, *(self.chosen_tiles(data) if tile is None else ())]
        if not anew and (other := record.other(head, data.names)):
            notices.append(other)
        if finished:
            notices.append(f"{len(finished)} of {len(data)} masks were made by this model before and are kept")
        summary = FolderSummary(
            out, kept=len(finished), skipped=list(data.skipped), tagged=len(tagged), notices=notices
        )
        for sentence in notices:
            say(progress, sentence)
        counts, area = np.zeros(len(self.classes), np.int64), 0
        for known in finished.values():
            area += sum(known.values())
            for c, n in known.items():
                if c.isdecimal() and int(c) < len(counts):
                    counts[int(c)] += n
        left = [i for i, name in enumerate(data.names) if name not in finished]
        if batch > 1:  # those of one size follow each other
            sizes = {i: image_size(data, i) or (0, 0) for i in left}
            left.sort(key=sizes.__getitem__)
        todo = data.subset(left)
        digests = {item.name: i for i, item in enumerate(todo.items)}
        if todo.items:
            record.begin(head)
        done = len(finished)
        with Bar(progress, "predict", len(data) if left else 0, done) as show:

            def readable() -> Iterator[tuple[str, np.ndarray]]:
                nonlocal done
                for name, pixels in read_ahead(todo):
                    stop_if_asked()
                    if isinstance(pixels, str):
                        summary.skipped.append((name, pixels))
                        done += 1
                        show(done)
                    else:
                        held = [pixels]
                        del pixels  # this frame waits while the picture is worked on
                        yield name, held.pop()

            for names, many in grouped(readable(), batch):
                size = many[0].shape[:2]
                limits = [tagged.get(name) for name in names]
                options: dict[str, Any] = {
                    "tile": tile, "overlap": overlap, "flips": flips, "scales": scales, "settings": settings,
                    "refine": self.refinement(refine, size), "device": self.device, "precision": precision,
                    "confidence": np.uint8 if confidence else None,
                }  # fmt: skip
                found = predict_many(self.segmenter, many, only=limits, **options)
                while names:
                    name, pixels, one = names.pop(0), many.pop(0), found.pop(0)
                    record.forget(name)
                    over = outputs.files(name)[2]
                    if over is not None:
                        write_overlay(over, pixels, one.ids, self.classes)
                    del pixels  # writing copies a large mask; the picture need not be beside it
                    pixels_of = self._write(one, outputs, name)
                    counts += pixels_of
                    area += one.ids.size
                    of_none = one.ids.size - int(pixels_of.sum())  # counted behind the last class
                    files, of_each = outputs.files(name), [*pixels_of.tolist(), of_none]
                    record.note(name, todo.content_hash(digests[name]), files, tagged.get(name), of_each)
                    summary.written += 1
                    done += 1
                    show(done)
                    del one
        summary.shares = counts / max(1, area)
        summary.seconds = time.perf_counter() - start
        return summary

    def _write(self, found: Prediction, outputs: Outputs, name: str) -> np.ndarray:
        """Writes the confidence map, where one is asked for, and the mask; gives the pixels of each class."""
        mask, sure, _ = outputs.files(name)
        if sure is not None and found.confidence is not None:
            write_confidence(sure, found.confidence)
        write_mask(mask, found.ids, self.classes)
        return area_counts(found.ids, len(self.classes))

    def chosen_tiles(self, data: Dataset) -> list[str]:
        """What to say where images are seen in windows that nobody asked for; nothing where all are seen whole."""
        chosen: list[tuple[tuple[int, int], int, bool]] = []
        for size in threaded(lambda i: image_size(data, i), range(len(data))):
            if size is not None and (tile := choose_tile(self.segmenter, size)) is not None:
                chosen.append((size, tile, much_larger(self.segmenter, size)))
        larger = [(size, tile) for size, tile, than_trained in chosen if than_trained]
        huge = [(size, tile) for size, tile, than_trained in chosen if not than_trained]
        said, trained = [], trained_size(self.segmenter)
        if larger and trained is not None:
            said.append(
                f"{_tiled(larger, len(data))} much larger than those trained on ({trained[0]} x {trained[1]}); "
                "where they show the same views in finer detail, and not more things, --tile none is right: each whole"
            )
        if huge:
            said.append(f"{_tiled(huge, len(data))} too large to be seen whole; --tile none does it all the same")
        return said

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the model into one safetensors file. Raises `MaskwrightError` if the place cannot be written."""
        return save_bundle(Path(path), self.segmenter, self.segmenter.extra)

    def export(self, path: str | os.PathLike[str], format: str = "onnx") -> Exported:
        """Writes the model as a file for other programs, checked against torch; arguments and errors as of
        `predict.export.writing.export`."""
        from maskwright.predict.export.writing import export

        return export(self, path, format)

    def save_pretrained(self, folder: str | os.PathLike[str], license: str | None = None) -> Path:
        """Writes the model and a page about it into a folder that `mw.load` takes; as `predict.sharing` says."""
        from maskwright.predict.sharing import save_pretrained

        return save_pretrained(self, folder, license)

    def push_to_hub(self, name: str, private: bool = False, license: str | None = None, message: str = "") -> str:
        """Uploads the model and a page about it to the model hub; as `predict.sharing` says."""
        from maskwright.predict.sharing import push_to_hub

        return push_to_hub(self, name, private, license, message)


def image_size(data: Dataset, i: int) -> tuple[int, int] | None:
    """(H, W) of image `i`, or None where the file does not say."""
    try:
        return data.size(i)
    except MaskwrightError:
        return None  # it will be skipped, with the reason


def _tiled(chosen: Sequence[tuple[tuple[int, int], int]], total: int) -> str:
    """How many images are tiled, how large they and their tiles are."""
    tile = sorted({tile for _, tile in chosen})
    size = max(size for size, _ in chosen)
    return (
        f"{len(chosen)} of {total} images (up to {size[0]} x {size[1]} pixels) are seen in tiles of "
        f"{' or '.join(map(str, tile))} pixels, because they are"
    )


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Model:
    """Loads what `Model.save` or a training wrote.

    Raises:
        MaskwrightError: the file is missing, damaged or no model of ours, or there is no such device.
    """
    where = check_device(device)
    segmenter = load_bundle(Path(path), where)
    model = Model(segmenter, segmenter.extra, where)
    model.origin = Path(path)
    return model


def check_device(device: str | torch.device) -> torch.device:
    """The device by its name. Raises `MaskwrightError` if torch does not have it here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MaskwrightError(f"device {str(device)!r} cannot be used ({reason})", "auto, cpu or cuda", "") from error
    return found


def area_counts(ids: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each class, int64 (classes,); by bands, because `bincount` copies to eight bytes a pixel."""
    counts = np.zeros(classes, np.int64)
    rows = max(1, (1 << 22) // max(1, ids.shape[1]))
    for top in range(0, len(ids), rows):
        counts += np.bincount(ids[top : top + rows].ravel(), minlength=classes)[:classes]
    return counts


def check_out(out: Path, data: Dataset) -> None:
    """Refuses a folder where masks would lie among the images or replace labels.

    Raises:
        MaskwrightError: it does, or `out` is a file.
    """
    check_lengths(out)
    if out.exists() and not out.is_dir():
        raise MaskwrightError(f"{out} is a file", "a folder for the masks", "choose another --out")
    target = out.resolve()
    taken = {item.image.resolve().parent for item in data.items} | {data.root.resolve() / "images"}
    if target in taken:
        raise MaskwrightError(
            f"{out} is the folder of the images", "another folder for the masks", f"for example --out {out}-masks"
        )
    labels = {item.mask.resolve() for item in data.items if item.mask is not None}
    masks = data.root.resolve() / "masks"
    hidden = masks == target and masks.is_dir() and any(masks.iterdir())
    if hidden or any(file_for(target, name, ".png") in labels for name in data.names):
        raise MaskwrightError(
            f"{out} holds masks that were given as labels", "another folder for predictions", "choose another --out"
        )


def read_ahead(data: Dataset) -> Iterator[tuple[str, np.ndarray | str]]:
    """Names and pictures of a dataset, or the reason instead of a picture; the next is decoded meanwhile.

    Large pictures are read one at a time, so that memory holds one of them.
    """
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        coming: Future[np.ndarray | str] | None = None
        for i, name in enumerate(data.names):
            # In a list that is emptied on the way out, so that this frame keeps no picture its reader has let go.
            picture = [coming.result() if coming is not None else _read(data, i)]
            coming = None
            if i + 1 < len(data) and _small(data, i) and _small(data, i + 1):
                coming = pool.submit(_read, data, i + 1)
            yield name, picture.pop()


def _read(data: Dataset, i: int) -> np.ndarray | str:
    try:
        return data.image(i)
    except MaskwrightError as error:
        return error.found


def _small(data: Dataset, i: int) -> bool:
    try:
        height, width = data.size(i)
    except MaskwrightError:
        return True  # it will fail again, at once
    return height * width <= WHOLE_PIXELS


def grouped(pictures: Iterable[tuple[str, np.ndarray]], batch: int) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Pictures (H, W, 3) that follow each other and have one size, at most so many at a time, with their names."""
    names: list[str] = []
    many: list[np.ndarray] = []
    for name, pixels in pictures:
        if many and (len(many) == batch or many[0].shape != pixels.shape):
            yield names, many
            names, many = [], []
        names.append(name)
        many.append(pixels)
        del pixels
        if batch == 1:  # not held until the next has come
            yield names, many
            names, many = [], []
    if many:
        yield names, many


def check_batch(batch: int) -> int:
    """The number itself. Raises `MaskwrightError` where it is not above 0."""
    if batch < 1:
        raise MaskwrightError(f"batch is {batch}", "1 or more images", "--batch 8 sees eight of one size together")
    return batch


def say(progress: Any, sentence: str) -> None:
    """Says a sentence, by whatever was given to show work."""
    if hasattr(progress, "say"):
        progress.say(sentence)


class Bar:
    """Shows how far the work is, by whatever was given for it; `done` of it was done before."""

    def __init__(self, progress: Any, name: str, total: int, done: int = 0) -> None:
        self.progress, self.name, self.total, self.done = progress, name, total, done
        self.task: Any = None

    def __enter__(self) -> Any:
        if hasattr(self.progress, "task"):
            self.task = self.progress.task(self.name, self.total, self.done)
            return self.task.__enter__().advance_to
        if callable(self.progress):
            return lambda done: self.progress(done, self.total)
        return lambda done: None

    def __exit__(self, *error: Any) -> None:
        if self.task is not None:
            self.task.__exit__(*error)

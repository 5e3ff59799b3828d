"""The montage of a run whose classes are clusters: for each cluster the photographs and the places where it is largest,
so that a person can say what it is. With `map.csv`, where they say it.

Legend: K clusters, N photographs looked at, (H, W) size of a photograph, (h, w) of its small mask.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from maskwright.app.pictures import sample
from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.cluster_map import MAP, ClusterRow, has_names, write_map
from maskwright.data.pictures.images import resize
from maskwright.data.trust.files import write_bytes
from maskwright.evaluate.places import Places, place_share
from maskwright.models.tensors import checksum
from maskwright.ops.refinement.components import bounding_box, largest_component
from maskwright.predict.model import Model, area_counts, read_ahead
from maskwright.predict.writers import boundaries, jpeg, shrink

MONTAGE = "montage.jpg"
COUNT = 96
"""Photographs that are looked at: enough to meet rare clusters, seconds to predict."""
SIDE = 384
"""Pixels of a small mask's longer side."""
WHOLE, CROPS = 3, 3
"""Photographs and crops of a cluster."""
CELL, GAP, LABEL = 168, 6, 172
ROWS = 40
"""Clusters of one picture; more make a second one."""
HOW_TO_READ = (
    "Each row is a cluster: three photographs in which it is large, all else faded, and three places where it is, all "
    "else dimmed; its outline has its colour."
)
PAPER, INK, FAINT = (248, 248, 246), (32, 32, 32), (110, 110, 110)
FADED, DIMMED = 0.75, 0.65
"""How far what is not the cluster fades into grey, in photographs and in crops."""
FULL = 0.75
"""Share of its box that a part fills at least to be shown by this box; of others a crop shows the widest place."""


@dataclass
class Seen:
    """What a model's clusters are like over a sample of photographs.

    Attributes:
        names: of the photographs looked at.
        masks: their small masks (h, w).
        shares: of each cluster in each photograph, float64 (N, K).
        places: mean (row, column) of each cluster in [0, 1], float64 (K, 2); NaN where it does not occur.
    """

    names: list[str]
    masks: list[np.ndarray]
    shares: np.ndarray
    places: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Of each cluster in all of them, float64 (K,)."""
        return self.shares.sum(0) / max(1, len(self.names))


class Clusters(NamedTuple):
    """What a run tells of its clusters.

    Attributes:
        share: of each cluster in the photographs looked at, float64 (K,).
        places: how much of the clustering the place in the frame predicts; None where that cannot be told.
    """

    share: np.ndarray
    places: Places | None


def look(model: Model, data: Dataset, count: int = COUNT, progress: Any = None) -> Seen:
    """Predicts a sample of photographs, spread evenly, without refinement; those that cannot be read are left out."""
    chosen, clusters = data.subset(sample(len(data), count)), len(model.classes)
    names, masks, shares = [], [], []
    mass, places = np.zeros(clusters), np.zeros((clusters, 2))
    pictures = read_ahead(chosen)
    if hasattr(progress, "track"):
        pictures = progress.track(pictures, "clusters", len(chosen))
    for name, pixels in pictures:
        if isinstance(pixels, str):
            continue
        mask = model.predict(pixels, refine="none").mask
        share = area_counts(mask, clusters) / mask.size
        small = shrink(pixels, mask, SIDE)[1]
        for axis in (0, 1):
            places[:, axis] += _mean_place(small, clusters, axis)
        mass += np.bincount(small.ravel(), minlength=clusters)[:clusters] / small.size
        names.append(name)
        masks.append(small.astype(np.uint8 if clusters <= 255 else np.uint16))
        shares.append(share)
    with np.errstate(invalid="ignore", divide="ignore"):
        places /= mass[:, None]
    return Seen(names, masks, np.array(shares).reshape(-1, clusters), places)


def _mean_place(ids: np.ndarray, clusters: int, axis: int) -> np.ndarray:
    """Sum over a cluster's pixels of their place along an axis, in [0, 1], over the mask's pixels; float64 (K,)."""
    place = (np.arange(ids.shape[axis]) + 0.5) / ids.shape[axis]
    weights = np.broadcast_to(place[:, None] if axis == 0 else place[None], ids.shape)
    return np.bincount(ids.ravel(), weights.ravel(), minlength=clusters)[:clusters] / ids.size


def model_id(model: Model) -> str:
    """What a map belongs to: the method, and a checksum of the tensors."""
    return f"{model.segmenter.method or 'model'}-{checksum(model.segmenter.state_dict())}"


def cluster_rows(seen: Seen, table: ClassTable) -> list[ClusterRow]:
    """The rows of the map; what has a name already keeps it."""
    rows = []
    for k, (name, color) in enumerate(zip(table.names, table.colors)):
        row, column = (float(v) for v in seen.places[k])
        place = None if np.isnan(row) else (row, column)
        named = "" if name == f"cluster {k}" else name
        rows.append(ClusterRow(k, float(seen.share[k]), place, (int(color[0]), int(color[1]), int(color[2])), named))
    return rows


def write_clusters(
    run_folder: str | Path, model: Model, data: Dataset, progress: Any = None, table: Path | None = None
) -> Clusters:
    """Writes the map, unless somebody filled in names there, and the montage into a run folder.

    Args:
        run_folder: the run.
        model: what to predict with.
        data: the photographs.
        progress: an `engine.progress.Progress`, or None.
        table: the map's file; map.csv of the run if None.

    Returns:
        Share of each cluster in the photographs looked at, and what place alone predicts of them.

    Raises:
        MaskwrightError: the folder cannot be written.
    """
    folder, seen = Path(run_folder), look(model, data, progress=progress)
    table = folder / MAP if table is None else table
    write_montage(folder, seen, model.classes, data)
    if not table.exists() or not has_names(table):
        write_map(table, cluster_rows(seen, model.classes), model_id(model))
    return Clusters(seen.share, place_share(seen.masks, len(model.classes)))


def naming_command(run_folder: str | Path, table: Path | None = None) -> str:
    """What is typed once the map is filled in."""
    place = Path(run_folder) / MAP if table is None else table
    return f"maskwright name {shlex.quote(str(run_folder))} --map {shlex.quote(str(place))} --out NAMED"


def montage_files(folder: Path) -> list[Path]:
    """The pictures of a run's montage, in order."""
    first, stem = folder / MONTAGE, Path(MONTAGE).stem
    more = sorted(folder.glob(f"{stem}-*.jpg"), key=lambda p: (len(p.name), p.name))
    return [path for path in (first, *more) if path.is_file()]


def write_montage(folder: Path, seen: Seen, table: ClassTable, data: Dataset) -> None:
    """Writes montage.jpg, and montage-2.jpg and so on where there are more than `ROWS` clusters."""
    tiles = _tiles(seen, table, data)
    pages = [range(k, min(k + ROWS, len(table))) for k in range(0, len(table), ROWS)]
    for number, page in enumerate(pages, 1):
        sheet = _sheet(page, seen, table, tiles)
        name = MONTAGE if number == 1 else f"{Path(MONTAGE).stem}-{number}.jpg"
        write_bytes(folder / name, jpeg(np.asarray(sheet), 88), durable=False)
    for old in montage_files(folder)[len(pages) :]:
        old.unlink(missing_ok=True)


def _tiles(seen: Seen, table: ClassTable, data: Dataset) -> dict[int, list[np.ndarray]]:
    """The pictures of each cluster; each photograph is read once more and only once."""
    wanted: dict[int, list[tuple[int, int, bool]]] = {}
    for k in range(len(table)):
        best = [int(i) for i in np.argsort(-seen.shares[:, k], kind="stable") if seen.shares[i, k] > 0]
        for n, i in enumerate(best[:WHOLE]):
            wanted.setdefault(i, []).append((k, n, False))
        # Other photographs for the crops where there are enough: more sides of the cluster.
        rest = best[WHOLE : WHOLE + CROPS]
        for n, i in enumerate([*rest, *best[: CROPS - len(rest)]]):
            wanted.setdefault(i, []).append((k, WHOLE + n, True))
    placed: dict[int, dict[int, np.ndarray]] = {}
    order = sorted(wanted)
    chosen = data.subset(data.index(seen.names[i]) for i in order)
    for i, (_, pixels) in zip(order, read_ahead(chosen)):
        if isinstance(pixels, str):
            continue  # it could be read a moment ago
        for k, n, crop in wanted[i]:
            make = _crop if crop else _whole
            placed.setdefault(k, {})[n] = make(pixels, seen.masks[i] == k, table.colors[k])
    return {k: [tiles[n] for n in sorted(tiles)] for k, tiles in placed.items()}


def _whole(pixels: np.ndarray, inside: np.ndarray, color: np.ndarray) -> np.ndarray:
    """A photograph within a cell, what is not the cluster faded, its outline in the cluster's colour."""
    scale = CELL / max(pixels.shape[:2])
    photo = _resized(pixels, (round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)))
    return _marked(photo, _enlarged(inside, photo.shape[:2]), color, FADED)


def _crop(pixels: np.ndarray, inside: np.ndarray, color: np.ndarray) -> np.ndarray:
    """A square at the largest part of the cluster with its surroundings, which are dimmed."""
    h, w = inside.shape
    centre, side = _square(largest_component(inside))
    side = min(h, w, max(24, min(side, min(h, w) * 2 // 3)))
    corner = [min(max(0, round(c - side / 2)), n - side) for c, n in zip(centre, (h, w))]
    y, x = pixels.shape[0] / h, pixels.shape[1] / w
    top, left = (int(c * s) for c, s in zip(corner, (y, x)))
    bottom, right = (max(t + 1, round((c + side) * s)) for t, c, s in zip((top, left), corner, (y, x)))
    photo = _resized(pixels[top:bottom, left:right], (CELL, CELL))
    part = inside[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    return _marked(photo, _enlarged(part, (CELL, CELL)), color, DIMMED)


def _square(part: np.ndarray) -> tuple[tuple[float, float], int]:
    """Centre (row, column) and side of a square that shows a connected part: its box with a margin, or where it fills
    little of that (grass around a cow) its widest place."""
    box = bounding_box(part)
    assert box is not None
    top, left, bottom, right = box
    if part.sum() >= FULL * (bottom - top) * (right - left):
        return ((top + bottom) / 2, (left + right) / 2), max(bottom - top, right - left) * 5 // 4 + 2
    depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return (float(row), float(column)), round(3 * float(depth.max()))


def _marked(photo: np.ndarray, inside: np.ndarray, color: np.ndarray, faded: float) -> np.ndarray:
    mixed = photo.astype(np.float32)
    grey = mixed.mean(2, keepdims=True) * 0.5 + 110
    mixed = np.where(inside[..., None], mixed, mixed * (1 - faded) + grey * faded)
    mixed[boundaries(inside, 4)] = 255  # a light rim: the colour alone drowns in a picture of its own
    mixed[boundaries(inside, 2)] = color
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    step = max(1, min(pixels.shape[0] // (4 * size[0]), pixels.shape[1] // (4 * size[1])))  # of gigapixel photographs
    return resize(np.ascontiguousarray(pixels[::step, ::step]), (max(1, size[0]), max(1, size[1])))


def _enlarged(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows = ((np.arange(size[0]) + 0.5) * ids.shape[0] / size[0]).astype(int)
    cols = ((np.arange(size[1]) + 0.5) * ids.shape[1] / size[1]).astype(int)
    return ids[rows[:, None], cols]


def _sheet(page: range, seen: Seen, table: ClassTable, tiles: dict[int, list[np.ndarray]]) -> Image.Image:
    columns, row = WHOLE + CROPS, CELL + GAP
    sheet = Image.new("RGB", (LABEL + columns * row + GAP, len(page) * row + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for n, k in enumerate(page):
        y = GAP + n * row
        _label(sheet, draw, (GAP, y), k, seen, table)
        for c, tile in enumerate(tiles.get(k, [])):
            picture = Image.fromarray(tile)
            left = LABEL + c * row + (CELL - picture.width) // 2
            sheet.paste(picture, (left, y + (CELL - picture.height) // 2))
        if n:
            draw.line((GAP, y - GAP // 2, sheet.width - GAP, y - GAP // 2), (222, 222, 216))
    return sheet


def _label(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], k: int, seen: Seen, table: ClassTable
) -> None:
    """Number, colour, share, in how many photographs, and a small frame that shows where it lies."""
    x, y = corner
    large, small = ImageFont.load_default(24), ImageFont.load_default(12)
    color = tuple(int(v) for v in table.colors[k])
    draw.rectangle((x, y + 2, x + 24, y + 26), fill=color, outline=FAINT)
    draw.text((x + 32, y), str(k), INK, large)
    if table.names[k] != f"cluster {k}":
        draw.text((x, y + 32), table.names[k][:22], INK, small)
    among = int((seen.shares[:, k] > 0.005).sum())
    draw.text((x, y + 50), f"{100 * seen.share[k]:.1f} % of the area", INK, small)
    draw.text((x, y + 66), f"in {among} of {len(seen.names)} photographs", FAINT, small)
    if np.isnan(seen.places[k]).any():
        return
    frame = Image.fromarray(_where(seen, k))
    sheet.paste(frame, (x, y + 88))
    draw.rectangle((x, y + 88, x + frame.width - 1, y + 88 + frame.height - 1), outline=FAINT)
    draw.text((x + frame.width + 6, y + 88), "where in", FAINT, small)
    draw.text((x + frame.width + 6, y + 102), "the frame", FAINT, small)


def _where(seen: Seen, k: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """How often a cluster lies at each place of the frame, dark where most often; uint8 (*size, 3)."""
    total = np.zeros(size)
    for i in np.flatnonzero(seen.shares[:, k] > 0):
        total += _enlarged(seen.masks[i], size) == k
    level = 1 - total / max(1.0, total.max())
    return np.repeat((60 + 190 * level)[..., None], 3, axis=2).astype(np.uint8)

"""Situations in which a file does not say what it means, and what each verb does about each.

`SITUATIONS` is the table: a folder, and what doctor, train, evaluate, predict, suggest and Python are to do with it.
The same table is printed on docs/data.md; `python -m benchmarks.matrix` writes it there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.fuzz.inputs import encoded, scene
from benchmarks.fuzz.verbs import command, listening
from PIL import Image

from maskwright import api
from maskwright.data.examining.understanding import understand
from maskwright.data.masking.classes import default_palette, read_classes
from maskwright.data.masking.masks import write_mask
from maskwright.errors import MaskwrightError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data.md"
BEGIN, END = "<!-- situations: python -m benchmarks.matrix writes this -->", "<!-- end of situations -->"
VERBS = ("doctor", "train", "evaluate", "predict", "suggest", "Python")
H, W = 48, 64
COUNT, MASKED = 4, 3
"""Photographs of each folder, and how many of them have a mask."""


# ---------------------------------------------------------------------- what is expected


@dataclass(frozen=True)
class Expect:
    """What a verb is to do.

    Attributes:
        how: "asks" (exit code 2, one line), "says" (a sentence, and goes on), "tells" (either of the two), "reads" (the
            right values, whatever is said), "goes on" (no error).
        words: a pattern that the line or one of the sentences holds, in any case.
        shown: on the page.
        right: of what the verb gave, for "says" and "reads".
    """

    how: str
    words: str = ""
    shown: str = ""
    right: Callable[[Any], bool] | None = None

    def __str__(self) -> str:
        return self.shown or self.how


def asks(words: str, shown: str = "") -> Expect:
    """Exit code 2 and one line."""
    option = re.search(r"--[a-z-]+", words)
    return Expect("asks", words, shown or (f"asks: `{option[0]}`" if option else "asks"))


def says(words: str, shown: str = "", right: Callable[[Any], bool] | None = None) -> Expect:
    """A sentence, and goes on."""
    return Expect("says", words, shown or "says it", right)


def tells(words: str, shown: str = "") -> Expect:
    """One of the two."""
    return Expect("tells", words, shown or "says it or asks")


def reads(right: Callable[[Any], bool] | None = None, shown: str = "") -> Expect:
    """The right values."""
    return Expect("reads", "", shown or "reads it rightly", right)


GOES_ON = Expect("goes on", shown="does not read masks")
NOTHING = None
"""A verb that the situation does not touch."""


@dataclass(frozen=True)
class Situation:
    """One row of the table.

    Attributes:
        name: for the test's id.
        text: what lies there, for the page.
        make: (folder) -> None.
        expects: by verb.
        options: of the verbs that read the folder ("--labels binary255").
        method: that `train` uses.
        truth: of `evaluate`, below the folder.
        python: (folder, model) -> value for the cell "Python".
    """

    name: str
    text: str
    make: Callable[[Path], object]
    expects: dict[str, Expect | None]
    options: tuple[str, ...] = ()
    method: str = "supervised"
    truth: str = "."
    python: Callable[[Path, Any], Any] = field(default=lambda folder, model: first_mask(folder))


def row(
    name: str, text: str, make: Callable[[Path], object], *cells: Expect | None, options: str = "", **more: Any
) -> Situation:
    """A situation; cells in the order of `VERBS`, those left out are not touched."""
    expects = dict(zip(VERBS, [*cells, *[NOTHING] * (len(VERBS) - len(cells))], strict=True))
    return Situation(name, text, make, expects, tuple(options.split()), **more)


# ---------------------------------------------------------------------- folders


def photo(k: int, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """Photograph k, uint8 (H, W, 3)."""
    return scene(k, size)[0]


def truth(k: int, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """0 and 1 where photograph k shows its thing, uint8 (H, W)."""
    return (scene(k, size)[1] > 0).astype(np.uint8)


def put(path: Path, pixels: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> None:
    """Writes a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    path.write_bytes(encoded(image, format, **options))


def folder(
    root: Path,
    *,
    mask: Callable[[int, np.ndarray], np.ndarray | Image.Image] | None = None,
    picture: Callable[[int, np.ndarray], np.ndarray | Image.Image] | None = None,
    suffix: str = ".png",
    images: str = "images/{}",
    masks: str = "masks/{}.png",
    names: tuple[str, ...] = ("p0", "p1", "p2", "p3"),
    classes: tuple[str, ...] = (),
    size: tuple[int, int] = (H, W),
    predicted: str = "predicted/{}.png",
) -> None:
    """A folder of four photographs, three masks and a perfect prediction of each of them.

    Args:
        root: where.
        mask: (number, ids) -> what is stored.
        picture: (number, pixels) -> what is stored.
        suffix: of the photographs.
        images: their path without suffix, with {} for the name.
        masks: path of masks.
        names: of the photographs.
        classes: lines of classes.txt; none is written where there are none.
        size: of all pictures.
        predicted: path of predictions, beside the folder.
    """
    for k, name in enumerate(names):
        pixels, ids = photo(k, size), truth(k, size)
        held = picture(k, pixels) if picture else pixels
        path = root / (images.format(name) + suffix)
        put(path, held, {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF", ".gif": "GIF"}[suffix])
        if k < MASKED:
            put(root / masks.format(name), mask(k, ids) if mask else ids)
            put(root.parent / predicted.format(name), ids)
    if classes:
        (root / "classes.txt").write_text("\n".join(classes) + "\n")


def first_mask(root: Path, **said: Any) -> np.ndarray:
    """The mask of the first photograph that has one, through Python."""
    data = understand(api.open_folder(root, **said), masks=True)
    return data.mask(next(i for i in range(len(data)) if data.has_mask(i)))


def is_truth(found: Any) -> bool:
    """Whether a mask is that of the first photograph."""
    return bool(np.array_equal(found, truth(0)))


def perfect(scores: dict[str, Any]) -> bool:
    """Whether a perfect prediction of three masks was judged as one."""
    return scores["images"] == MASKED and scores["miou"] == pytest.approx(1.0)


def counted(images: int = COUNT, masks: int = MASKED) -> Callable[[Any], bool]:
    """Whether the doctor's report, or a run's record, counts so many images and masks."""

    def right(found: dict[str, Any]) -> bool:
        return (found["images"], found["masks"]) == (images, masks)

    return right


def written(found: list[str]) -> bool:
    """Whether `predict` wrote a mask for each photograph."""
    return len(found) == COUNT


def smooth(k: int, ids: np.ndarray) -> Image.Image:
    """A mask drawn as 0 and 255 whose edges an editor smoothed."""
    large = Image.fromarray(ids * 255).resize((W * 3, H * 3), Image.Resampling.BICUBIC)
    return large.rotate(3, Image.Resampling.BILINEAR).resize((W, H), Image.Resampling.BILINEAR)


def coloured(k: int, ids: np.ndarray) -> np.ndarray:
    """A mask drawn in the first two colours of VOC's palette."""
    return default_palette(21)[ids]


def own_palette(k: int, ids: np.ndarray) -> Image.Image:
    """A palette mask whose order differs from file to file, while its colours do not."""
    colours = [(0, 0, 0), (200, 30, 30), (30, 30, 200)]
    order = [0, 1, 2] if k == 0 else [1, 0, 2]
    image = Image.fromarray(np.argsort(order)[ids].astype(np.uint8))
    image.putpalette([v for i in order for v in colours[i]] + [0] * (253 * 3))
    return image


def two_readings(root: Path) -> None:
    """images/, masks/ and labels/, both of which fit."""
    folder(root)
    for k in range(MASKED):
        put(root / "labels" / f"p{k}.png", 1 - truth(k))


def loose(root: Path) -> None:
    """Two photographs directly in the folder, two in a folder below."""
    for k in range(COUNT):
        put(root / (f"p{k}.png" if k < 2 else f"more/p{k}.png"), photo(k))


def left_aside(root: Path) -> None:
    """Files of formats that are not read, beside others."""
    folder(root)
    (root / "images" / "q.heic").write_bytes(b"\0\0\0\x18ftypheic")
    np.savez(root / "masks" / "q.npz", truth(0))


def masks_alone(root: Path) -> None:
    """Two masks whose photograph is missing."""
    folder(root)
    for name in ("lost_a", "lost_b"):
        put(root / "masks" / f"{name}.png", truth(0))
        put(root.parent / "predicted" / f"{name}.png", 1 - truth(0))


def not_predicted(root: Path) -> None:
    """A mask that nothing was predicted for."""
    folder(root)
    (root.parent / "predicted" / "p2.png").unlink()


def series(root: Path) -> None:
    """Two frames of 16 bits, the second exposed 1 % longer, so that only one of them passes 4095."""
    base = np.random.default_rng(0).integers(1000, 4075, (H, W))
    base[0, 0] = 4075
    for k, gain in enumerate((1.0, 1.01)):
        put(root / "images" / f"p{k}.png", Image.fromarray((base * gain).astype(np.uint16)))


def brightness(root: Path, model: Any) -> list[float]:
    """Mean of each photograph as it is read."""
    data = understand(api.open_folder(root), masks=False)
    return [float(data.image(i).mean()) for i in range(len(data))]


def floats(root: Path) -> None:
    """Floating-point pictures from 0 to 1, one of which holds a value that is none, one a value above 1."""
    for k in range(COUNT):
        pixels = photo(k).mean(2).astype(np.float32) / 255
        if k < 2:
            pixels[3, 3] = (np.nan, 1.02)[k]
        put(root / "images" / f"p{k}.tif", Image.fromarray(pixels), "TIFF")


def twelve_bits(root: Path) -> None:
    """12 bits in files of 16, with one hot pixel in one of them."""
    rng = np.random.default_rng(0)
    for k in range(COUNT):
        pixels = rng.integers(0, 4096, (H, W)).astype(np.uint16)
        if k == 0:
            pixels[5, 5] = 65535
        put(root / "images" / f"p{k}.png", Image.fromarray(pixels))


def fourth_band(root: Path) -> None:
    """Red, green, blue and near infrared in a TIFF that does not say what the fourth band is."""
    tifffile = pytest.importorskip("tifffile")
    for k in range(COUNT):
        bands = np.dstack([photo(k), np.full((H, W), 90, np.uint8)])
        path = root / "images" / f"p{k}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, bands, photometric="rgb", extrasamples=["unspecified"])


def transparent(root: Path) -> None:
    """Photographs whose alpha is 0 everywhere."""
    folder(root, picture=lambda k, x: np.dstack([x, np.zeros((H, W), np.uint8)]))


def near_photo(found: np.ndarray) -> bool:
    """Whether an image is the first photograph."""
    return float(np.abs(found.astype(float) - photo(0)).mean()) < 3


def first_image(root: Path, model: Any) -> np.ndarray:
    """The first photograph as it is read."""
    return understand(api.open_folder(root), masks=False).image(0)


def pages(root: Path) -> None:
    """A TIFF of three pages among photographs."""
    folder(root)
    (root / "images" / "p3.png").unlink()
    frames = [Image.fromarray(photo(k)) for k in (3, 4, 5)]
    put(root / "images" / "p3.tif", frames[0], "TIFF", save_all=True, append_images=frames[1:])


def unturned(root: Path) -> None:
    """Square photographs that their EXIF tag turns by 180 degrees, with masks drawn on them as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 3
    side = 96
    yy, xx = np.mgrid[:side, :side]
    for k in range(COUNT):
        ids = ((yy - 20 - 3 * k) ** 2 + (xx - 24) ** 2 < 14**2).astype(np.uint8)
        pixels = np.where(ids[..., None] > 0, np.uint8(230), np.uint8(40)) * np.ones(3, np.uint8)
        put(root / "images" / f"p{k}.jpg", pixels, "JPEG", quality=95, exif=exif.tobytes())
        if k < MASKED:
            put(root / "masks" / f"p{k}.png", ids)


def turned(root: Path) -> None:
    """Photographs that their EXIF tag turns by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for k in range(COUNT):
        put(root / "images" / f"p{k}.jpg", photo(k), "JPEG", exif=exif.tobytes())


def two_ways_in(root: Path, model: Any) -> bool:
    """Whether a path and a Pillow image give the same mask."""
    path = root / "images" / "p0.jpg"
    a, b = api.load(model).predict(path).mask, api.load(model).predict(Image.open(path)).mask
    return a.shape == b.shape == (W, H) and bool((a == b).mean() > 0.99)


def hidden(root: Path) -> None:
    """What a Mac leaves beside each file."""
    folder(root)
    for path in [*root.rglob("*.png"), *root.parent.glob("predicted/*.png")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(60))


def forms_of_text(root: Path) -> None:
    """Names of photographs with composed letters, of masks and predictions with decomposed ones."""
    names = tuple(f"Café_{k}" for k in range(COUNT))
    folder(root, names=tuple(unicodedata.normalize("NFC", n) for n in names))
    for place in (root / "masks", root.parent / "predicted"):
        for path in [*place.iterdir()]:
            path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))


LONG = tuple("航空写真" * 19 + f"_{k:07d}" for k in range(COUNT))
"""Names of 236 bytes, to which a suffix is added."""


def large(root: Path) -> None:
    """One photograph much larger than those that the model was trained on."""
    for k in range(COUNT):
        put(root / "images" / f"p{k}.png", photo(k) if k else photo(0, (H * 14, W * 14)))


def damage(path: Path) -> None:
    """Flips one bit in the middle of a PNG's pixels."""
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 4 + 2
    length = int.from_bytes(data[at - 10 : at - 6], "big")
    data[at + length // 2] ^= 4
    path.write_bytes(bytes(data))


def damaged_mask(root: Path) -> None:
    """A mask with one flipped bit."""
    folder(root)
    damage(root / "masks" / "p0.png")


def damaged_photo(root: Path) -> None:
    """A photograph with one flipped bit."""
    folder(root)
    damage(root / "images" / "p3.png")


def many_classes(root: Path) -> None:
    """256 classes in 8 bits: 255 is a class."""
    ids = np.arange(H * W).reshape(H, W) % 256
    folder(root, mask=lambda k, _: ids.astype(np.uint8), classes=tuple(f"c{i}" for i in range(256)))
    for k in range(MASKED):
        put(root.parent / "predicted" / f"p{k}.png", ids.astype(np.uint8))


def written_classes(root: Path) -> None:
    """The same, by the project's own writer."""
    many_classes(root)
    table = read_classes(root / "classes.txt")
    ids = (np.arange(H * W).reshape(H, W) % 256).astype(np.uint16)
    for path in (*root.glob("masks/*"), *root.parent.glob("predicted/*")):
        write_mask(path, ids, table)


def layout(images: str, masks: str) -> Callable[[Path], None]:
    """A folder with its parts under these names."""
    inside = "train/" if images.startswith("train/") else ""  # it is part of the images' names
    return lambda root: folder(root, images=images, masks=masks, predicted=f"predicted/{inside}{{}}.png")


def layout_row(name: str, text: str, images: str, masks: str) -> Situation:
    """A usual layout: its masks are masks, and that is said."""
    seen = reads(counted(), "takes its masks as masks")
    return row(
        f"layout-{name}", text, layout(images, masks), seen, seen, reads(perfect), reads(written), GOES_ON,
        reads(is_truth),
    )  # fmt: skip


TWO = ("ground", "thing")
BINARY = asks("--labels", "asks: `--labels`")

SITUATIONS: tuple[Situation, ...] = (
    # A: what values of masks mean
    row("truth-255", "masks drawn as 0 and 255", lambda r: folder(r, mask=lambda k, t: t * 255),
        says("--labels", "names `--labels`"), BINARY, BINARY, reads(written), GOES_ON, asks("labels")),
    row("truth-255-said", "the same, with `--labels binary255`", lambda r: folder(r, mask=lambda k, t: t * 255),
        reads(counted()), reads(counted()), reads(perfect), NOTHING, NOTHING, reads(is_truth),
        options="--labels binary255", python=lambda r, m: first_mask(r, labels="binary255")),
    row("one-255", "one mask of 0 and 255 among masks of 0 and 1",
        lambda r: folder(r, mask=lambda k, t: t * (255 if k == 1 else 1)),
        says("255", "names the mask"), asks("--labels|255"), asks("--labels|255"), reads(written), GOES_ON,
        asks("labels|255")),
    row("all-void", "masks that are 255 everywhere", lambda r: folder(r, mask=lambda k, t: t * 0 + 255, classes=TWO),
        says("no class|void", "says so"), asks("--labels|--void|no class"), asks("--labels|--void|no class"),
        reads(written), GOES_ON, asks("no class|void|labels")),
    row("antialiased", "masks of 0 and 255 with smooth edges", lambda r: folder(r, mask=smooth),
        says("--labels", "names `--labels`"), BINARY, BINARY, reads(written), GOES_ON, asks("labels")),
    row("antialiased-said", "the same, with `--labels binary255`", lambda r: folder(r, mask=smooth),
        reads(counted()), reads(counted()), reads(shown="reads it rightly"), NOTHING, NOTHING,
        reads(lambda ids: set(np.unique(ids)) == {0, 1}), options="--labels binary255",
        python=lambda r, m: first_mask(r, labels="binary255")),
    row("grey-levels", "classes drawn as grey levels 0, 100 and 200",
        lambda r: folder(r, mask=lambda k, t: t * (100 + 100 * (k % 2))),
        says("--labels", "names `--labels`"), BINARY, BINARY, reads(written), GOES_ON, asks("labels")),
    row("void-16", "masks of 16 bits whose void is 255",
        lambda r: folder(r, mask=lambda k, t: np.where(np.eye(H, W) > 0, 255, t).astype(np.uint16), classes=TWO),
        says("--void", "names `--void`"), asks("--void"), asks("--void"), reads(written), GOES_ON, asks("void")),
    row("void-16-said", "the same, with `--void 255`",
        lambda r: folder(r, mask=lambda k, t: np.where(np.eye(H, W) > 0, 255, t).astype(np.uint16), classes=TWO),
        reads(counted()), reads(counted()), reads(perfect), NOTHING, NOTHING,
        reads(lambda ids: int((ids == (255 if ids.dtype == np.uint8 else 65535)).sum()) == min(H, W)),
        options="--void 255", python=lambda r, m: first_mask(r, void=255)),
    row("three-channels", "ids in three equal channels",
        lambda r: folder(r, mask=lambda k, t: np.dstack([t] * 3), classes=TWO),
        says("channel", "says so"), tells("channel"), tells("channel"), reads(written), GOES_ON),
    row("three-channels-said", "the same, with `--labels grey`",
        lambda r: folder(r, mask=lambda k, t: np.dstack([t] * 3), classes=TWO),
        reads(counted()), reads(counted()), reads(perfect), NOTHING, NOTHING, reads(is_truth),
        options="--labels grey", python=lambda r, m: first_mask(r, labels="grey")),
    row("colours", "masks drawn in VOC's colours", lambda r: folder(r, mask=coloured, classes=TWO),
        says("colour", "says so"), asks("--labels|colour", "asks: `--labels colours`"),
        asks("--labels|colour", "asks: `--labels colours`"), reads(written), GOES_ON, asks("colour")),
    row("palettes", "palette masks whose order differs from file to file", lambda r: folder(r, mask=own_palette),
        says("palette", "says so"), asks("palette", "asks: `--labels`"), asks("palette", "asks: `--labels`"),
        reads(written), GOES_ON, asks("palette")),
    row("from-1", "ids counted from 1", lambda r: folder(r, mask=lambda k, t: t + 1, classes=TWO),
        says("from 1|from1", "names `--labels from1`"), asks("from1|from 1", "asks: `--labels`"),
        asks("from1|from 1", "asks: `--labels`"), reads(written), GOES_ON, asks("from1|from 1|class")),
    row("from-1-said", "the same, with `--labels from1`", lambda r: folder(r, mask=lambda k, t: t + 1, classes=TWO),
        reads(counted()), reads(counted()), reads(perfect), NOTHING, NOTHING, reads(is_truth),
        options="--labels from1", python=lambda r, m: first_mask(r, labels="from1")),
    row("other-size", "a mask of another size than its photograph",
        lambda r: folder(r, mask=lambda k, t: t[::2, ::2] if k == 1 else t, classes=TWO),
        says("size", "names the mask"), asks("size|24x32", "asks, names the mask"),
        asks("size|24x32|shape", "asks, names the mask"), reads(written), GOES_ON),
    row("256-classes", "256 classes in 8 bits, where 255 may be a class or void", many_classes,
        says("--void", "names `--void`"), asks("--void"), asks("--void"), reads(written), GOES_ON, asks("void")),
    row("256-classes-said", "the same, with `--void none`", many_classes, reads(counted()), reads(counted()),
        reads(perfect), NOTHING, NOTHING, reads(lambda ids: int(ids.max()) == 255), options="--void none",
        python=lambda r, m: first_mask(r, void="none")),
    row("256-classes-ours", "256 classes in masks that Maskwright wrote", written_classes, reads(counted()),
        reads(counted()), reads(perfect), reads(written), GOES_ON, reads(lambda ids: int(ids.max()) == 255)),
    row("labelme-names", "`__ignore__` and `_background_` as first lines of classes.txt",
        lambda r: folder(r, classes=("__ignore__", "_background_", "thing")),
        says("__ignore__", "says so"), tells("__ignore__"), tells("__ignore__"), reads(written), GOES_ON),
    # B: what lies where
    layout_row("upper-case", "`Images/`, `Masks/`", "Images/{}", "Masks/{}.png"),
    layout_row("voc", "`JPEGImages/`, `SegmentationClass/`", "JPEGImages/{}", "SegmentationClass/{}.png"),
    layout_row("train", "`train/images/`, `train/masks/`", "train/images/{}", "train/masks/{}.png"),
    layout_row("imgs", "`imgs/`, `labels/`", "imgs/{}", "labels/{}.png"),
    layout_row("singular", "`image/`, `mask/`", "image/{}", "mask/{}.png"),
    layout_row("beside", "`NAME_mask.png` beside `NAME.png`", "{}", "{}_mask.png"),
    layout_row("inside", "`NAME_mask.png` in `images/`", "images/{}", "images/{}_mask.png"),
    layout_row("labels", "`images/`, `labels/`", "images/{}", "labels/{}.png"),
    row("two-readings", "`images/`, `masks/` and `labels/`", two_readings,
        tells("labels", "says what was taken, or asks"), tells("labels", "says what was taken, or asks"),
        tells("labels", "says what was taken, or asks"), NOTHING, NOTHING),
    row("loose", "photographs beside folders of photographs", loose, reads(counted(masks=0), "reads all"),
        reads(counted(masks=0), "reads all"), NOTHING, reads(written, "reads all"), NOTHING,
        reads(lambda n: n == COUNT, "reads all"), method="kmeans", python=lambda r, m: len(api.open_folder(r))),
    row("other-formats", "HEIC photographs, NPZ masks", left_aside, says("heic", "names them"),
        says("heic", "names them"), says("heic|npz", "names them"), says("heic", "names them"),
        says("heic", "names them"),
        says("heic", "in `.notices`"), python=lambda r, m: api.open_folder(r).notices),
    row("masks-alone", "masks without a photograph", masks_alone, says("no image|without image", "names them"),
        says("no image|without image", "names them"), says("no image|without image", "names them", perfect)),
    row("not-predicted", "a photograph without a prediction", not_predicted, NOTHING, NOTHING,
        asks("--allow-missing", "asks: `--allow-missing`")),
    # C: scale
    row("series-16", "frames of 16 bits that differ by 1 %", series, says("--range|black", "says the scale"),
        says("--range", "says the scale"), NOTHING, says("--range", "says the scale"),
        says("--range", "says the scale"), reads(lambda m: max(m) < 1.1 * min(m)), method="kmeans", python=brightness),
    row("floats", "floats with NaN, or above 1", floats, says("float|finite|nan|range", "says so"),
        says("--range|float", "says the scale"), NOTHING, says("--range|float", "says the scale"),
        says("--range|float", "says the scale"), reads(lambda m: max(m) < 1.5 * min(m) and min(m) > 20),
        method="kmeans", python=brightness),
    row("twelve-bits", "12 bits in files of 16", twelve_bits, says("12 bits|4095", "says the scale"),
        says("12 bits|4095", "says the scale"), NOTHING, says("12 bits|4095", "says the scale"),
        says("12 bits|4095", "says the scale"), reads(lambda m: all(115 < x < 140 for x in m)),
        method="kmeans", python=brightness),
    # D: channels, pages, orientation
    row("fourth-band", "a fourth band in a TIFF", fourth_band, says("band", "says so"), says("band", "says so"),
        NOTHING, says("band", "says so"), says("band", "says so"), reads(near_photo), method="kmeans",
        python=first_image),
    row("transparent", "photographs that are transparent everywhere", transparent, says("transparen|alpha", "says so"),
        says("transparen|alpha", "says so"), NOTHING, says("transparen|alpha", "says so"),
        says("transparen|alpha", "says so"), reads(near_photo), method="kmeans", python=first_image),
    row("pages", "a TIFF of several pages", pages, says("pages|frames", "says so"), says("pages|frames", "says so"),
        NOTHING, says("pages|frames", "says so"), says("pages|frames", "says so"), method="kmeans"),
    row("unturned-masks", "masks that were not turned with their photographs", unturned,
        says("turn", "says so"), tells("turn"), NOTHING, NOTHING, NOTHING),
    # E: two ways in
    row("exif", "photographs that EXIF turns", turned, reads(lambda d: d["images"] == COUNT), NOTHING, NOTHING,
        reads(written), NOTHING, reads(bool, "path and Pillow image alike"), python=two_ways_in),
    row("hidden", "`._NAME.png` beside each file", hidden, reads(counted()), reads(counted()), reads(perfect),
        reads(written), GOES_ON, reads(is_truth)),
    row("hidden-bare", "the same, judged by a bare folder of masks", hidden, NOTHING, NOTHING, reads(perfect),
        truth="masks"),
    # H: names
    row("nfc-nfd", "names in two forms of Unicode", forms_of_text, reads(counted()), reads(counted()), reads(perfect),
        reads(written), GOES_ON, reads(is_truth)),
    row("long-names", "names of 240 bytes", lambda r: folder(r, names=LONG), reads(counted()), reads(counted()),
        reads(perfect), reads(written), GOES_ON, reads(is_truth)),
    # J: size
    row("large", "a photograph much larger than those trained on", large, NOTHING, NOTHING, NOTHING,
        says("tile|larger|whole", "says what it does, with `--tile`", written), NOTHING, NOTHING),
    # K: damage
    row("damaged-mask", "a mask with one flipped bit", damaged_mask, says("p0", "names it"), tells("p0", "names it"),
        asks("p0", "asks, names it"), reads(written), GOES_ON, asks("p0", "asks, names it")),
    row("damaged-photo", "a photograph with one flipped bit", damaged_photo, says("p3", "names it"),
        says("p3", "leaves it out, names it"), NOTHING, says("p3", "leaves it out, names it"),
        tells("p3|can be read", "leaves it out, says so"), asks("p3", "asks, names it"),
        python=lambda r, m: api.open_folder(r).image(COUNT - 1)),
)  # fmt: skip
"""What lies there, and what each verb does."""


# ---------------------------------------------------------------------- the verbs

TINY = ("--backbone", "test_resnet", "--weights", "random", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A k-means model of two clusters on photographs of 48 x 64, with random weights."""
    root = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKWRIGHT_CACHE", str(root / "cache"))
        for k in range(COUNT):
            put(root / "photos" / "images" / f"p{k}.png", photo(k))
        settings = {"short_side": 32, "dim": 4, "restarts": 1}
        with listening():
            api.train(
                root / "photos", "kmeans", out=root / "run", classes=2, backbone="test_resnet", weights="random",
                device="cpu", settings=settings, report=False,
            )  # fmt: skip
    return root / "run"


def run_doctor(case: Situation, root: Path, model: Path, out: Path) -> tuple[Any, str]:
    """What the doctor counts, and all that it says."""
    import json

    report = json.loads(command("doctor", root, *case.options, "--json").out)
    return report["labels"], command("doctor", root, *case.options).out


def run_train(case: Situation, root: Path, model: Path, out: Path) -> tuple[Any, str]:
    """Images and masks that the run counts, and what it says."""
    import json

    options: dict[str, Any] = dict(zip((o[2:] for o in case.options[::2]), case.options[1::2], strict=True))
    if case.method == "kmeans":
        options |= {"classes": 2, "settings": {"short_side": 32, "dim": 4, "restarts": 1}}
    else:
        options |= {"steps": 1, "settings": {"crop": 32, "batch": 2}}
    with listening() as said:
        api.train(
            root, case.method, out=out / "run", backbone="test_resnet", weights="random", device="cpu", report=False,
            **options,
        )  # fmt: skip
    data = json.loads((out / "run" / "run.json").read_text())["data"]
    return {"images": data["images"], **data["labels_present"]}, "\n".join(said.lines)


def run_evaluate(case: Situation, root: Path, model: Path, out: Path) -> tuple[Any, str]:
    """The scores of a perfect prediction, and what is said of them."""
    import json

    file = out / "scores.json"
    said = command("evaluate", root.parent / "predicted", root / case.truth, *case.options, "--json", file)
    return json.loads(file.read_text()), "\n".join(said.lines)


def run_predict(case: Situation, root: Path, model: Path, out: Path) -> tuple[Any, str]:
    """The masks that are written, and what is said."""
    said = command("predict", model, root, "--out", out / "masks", "--device", "cpu")
    return [p.name for p in (out / "masks").rglob("*.png")], "\n".join(said.lines)


def run_suggest(case: Situation, root: Path, model: Path, out: Path) -> tuple[Any, str]:
    """What is suggested, and what is said."""
    said = command("suggest", model, root, "--count", 1, "--out", out / "suggested", "--device", "cpu")
    return said.out, "\n".join(said.lines)


def run_python(case: Situation, root: Path, model: Path, out: Path) -> tuple[Any, str]:
    """The situation's own value."""
    value = case.python(root, model)
    return value, "\n".join(map(str, value)) if isinstance(value, tuple) else ""


RUN = dict(zip(VERBS, (run_doctor, run_train, run_evaluate, run_predict, run_suggest, run_python), strict=True))


@pytest.mark.parametrize(
    ("case", "verb"),
    [pytest.param(s, v, id=f"{s.name}-{v}") for s in SITUATIONS for v in VERBS if s.expects[v] is not None],
)
def test_situation(case: Situation, verb: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    root, out = tmp_path / "data", tmp_path / "out"
    out.mkdir()
    case.make(root)
    expect = case.expects[verb]
    assert expect is not None
    value: Any = None
    try:
        value, said = RUN[verb](case, root, model, out)
        asked = False
    except MaskwrightError as error:
        said, asked = str(error), True
    said = said.replace(str(tmp_path), "HERE")  # a word in a path answers for nothing
    if expect.how == "asks":
        assert asked, f"went on: {said}"
    elif expect.how != "tells":
        assert not asked, said
    assert "\n" not in said or not asked
    assert re.search(expect.words, said, re.IGNORECASE), said
    if expect.right is not None and not asked:
        assert expect.right(value), value


# ---------------------------------------------------------------------- the page


def markdown() -> str:
    """The table of situations."""
    lines = [f"| what lies there | {' | '.join(VERBS)} |", "|---" * (len(VERBS) + 1) + "|"]
    for case in SITUATIONS:
        cells = [str(case.expects[v]) if case.expects[v] is not None else "" for v in VERBS]
        lines.append(f"| {case.text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(page: Path = PAGE) -> None:
    """Puts the table between the marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{after}", encoding="utf-8")


def test_the_page_holds_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"{BEGIN}\n\n{markdown()}\n\n{END}" in text, "python -m benchmarks.matrix writes it"


def test_rows_are_distinct() -> None:
    names = [case.name for case in SITUATIONS]
    assert len(names) == len(set(names))
    assert all(any(case.expects.values()) for case in SITUATIONS)

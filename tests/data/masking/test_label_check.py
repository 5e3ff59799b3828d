"""What mask values mean: certain ones are read, uncertain ones asked, in the doctor, the verbs and Python alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskwright import api
from maskwright.data.examining.doctor import examine
from maskwright.data.examining.reading import Reading
from maskwright.data.examining.understanding import highest_id, understand
from maskwright.data.folders.folder import open_folder
from maskwright.data.masking import survey as survey_module
from maskwright.data.masking.masks import write_mask
from maskwright.data.pictures.headers import check_png
from maskwright.errors import MaskwrightError

H, W = 48, 64
YY, XX = np.mgrid[:H, :W]
TRUE = [((YY - 24) ** 2 + (XX - 20 - 4 * i) ** 2 < 200).astype(np.uint8) for i in range(4)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))


def write_set(root: Path, draw: Callable[[int, np.ndarray], Image.Image], names: str = "ground\nthing\n") -> Path:
    """Four pictures with the masks that `draw(number, ids)` gives of 0/1 ids; `names` is classes.txt, none if empty."""
    for sub in ("images", "masks"):
        (root / sub).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for i, true in enumerate(TRUE):
        picture = np.where(true[..., None] > 0, (200, 80, 60), (60, 120, 70)) + rng.normal(0, 5, (H, W, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / "images" / f"p{i}.png")
        draw(i, true).save(root / "masks" / f"p{i}.png")
    if names:
        (root / "classes.txt").write_text(names)
    return root


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values)


def palette(true: np.ndarray, colors: list[int]) -> Image.Image:
    image = Image.fromarray(true)
    image.putpalette(colors)
    return image


def smooth(true: np.ndarray) -> np.ndarray:
    drawn = (255 * true).astype(float)
    for _ in range(3):
        for axis in (0, 1):
            drawn = (np.roll(drawn, 1, axis) + 2 * drawn + np.roll(drawn, -1, axis)) / 4
    return drawn.astype(np.uint8)


BLACK_RED, RED_BLACK = [0, 0, 0, 128, 0, 0], [128, 0, 0, 0, 0, 0]

# name: how a mask is drawn, classes.txt, kind of the finding, and what answers it (options, and the right ids)
ASKED = {
    "0 and 255": (lambda i, t: grey(255 * t), "", "binary-mask", {"binary255": None}),
    "0 and 255 with names": (lambda i, t: grey(255 * t), "ground\nthing\n", "binary-mask", {"binary255": None}),
    "0 and 255 in three channels": (
        lambda i, t: grey(np.repeat(255 * t[..., None], 3, 2)), "", "binary-mask", {"binary255": None},
    ),
    "0 and 65535": (lambda i, t: grey(t.astype(np.uint16) * 65535), "", "binary-mask", {"binary255": None}),
    "one of four": (lambda i, t: grey(t * (255 if i == 2 else 1)), "", "binary-mask", {"binary255": None}),
    "smooth": (lambda i, t: grey(smooth(t)), "", "smooth-edges", {"binary255": [(smooth(t) > 127) * 1 for t in TRUE]}),
    "smooth with names": (
        lambda i, t: grey(smooth(t)), "a\nb\n", "smooth-edges", {"binary255": [(smooth(t) > 127) * 1 for t in TRUE]},
    ),
    "drawn levels": (lambda i, t: grey(113 * t), "", "drawn-levels", {"levels": None, "levels:0,113": None}),
    "drawn levels with names": (lambda i, t: grey(113 * t), "a\nb\n", "drawn-levels", {"levels": None}),
    "255 in 16 bits": (
        lambda i, t: grey((t + 254 * (t > 0) * (XX % 2) * (YY > 20)).astype(np.uint16)), "", "void-or-class",
        {"--void 255": [np.where((t > 0) & (XX % 2 > 0) & (YY > 20), 65535, t.astype(int)) for t in TRUE]},
    ),
    "from 1": (lambda i, t: grey(t + 1), "ground\nthing\n", "off-by-one", {"from1": None}),
    "beyond the table": (
        lambda i, t: grey(t + 8 * (YY < 9).astype(np.uint8)), "ground\nthing\n", "id-outside-table",
        {"--void 8,255": [np.where(YY < 9, 255, t) for t in TRUE]},
    ),
    "colours": (
        lambda i, t: grey(np.array([[0, 0, 0], [128, 0, 0]], np.uint8)[t]), "ground\nthing\n", "colour-mask",
        {"colours": None},
    ),
    "palettes": (
        lambda i, t: palette(t ^ (i % 2), RED_BLACK if i % 2 else BLACK_RED), "ground\nthing\n", "palette",
        {"colours": None, "ids": [t ^ (i % 2) for i, t in enumerate(TRUE)]},
    ),
    "palettes without names": (
        lambda i, t: palette(t ^ (i % 2), RED_BLACK if i % 2 else BLACK_RED), "", "palette", {"colours": None},
    ),
    "one value in two colours": (
        lambda i, t: palette(t, [0, 0, 0, 0, 0, 128] if i else [0, 0, 0, 128, 0, 0]), "", "palette", {"ids": None},
    ),
}  # fmt: skip


def reading(option: str) -> Reading:
    return Reading.parse(void=option.split()[1]) if option.startswith("--void") else Reading.parse(option)


@pytest.mark.parametrize("situation", ASKED)
def test_what_is_not_certain_is_asked_and_the_answers_are_right(tmp_path: Path, situation: str) -> None:
    draw, names, kind, answers = ASKED[situation]
    root = write_set(tmp_path / "set", draw, names)
    (found,) = [f for f in examine(root).findings if f.severity == "error"]
    assert found.kind == kind and found.repair
    with pytest.raises(MaskwrightError) as raised:
        understand(open_folder(root), masks=True)
    assert raised.value.found.startswith(found.message) and raised.value.repair == found.repair
    with pytest.raises(MaskwrightError) as in_python:
        open_folder(root).mask(0)
    assert str(in_python.value) == str(raised.value)
    for option, right in answers.items():
        words = option if option.startswith("--") else f"--labels {option}"
        assert words.split(":")[0] in found.repair, (words, found.repair)
        said = reading(option)
        assert examine(root, reading=said).healthy
        data = understand(open_folder(root).with_reading(said), masks=True)
        for i, expected in enumerate(TRUE if right is None else right):
            np.testing.assert_array_equal(data.mask(i), expected, err_msg=f"{option}, mask {i}")


@pytest.mark.parametrize(
    ("kind", "draw"),
    [
        ("ids", lambda i, t: grey(t)),
        ("void beside ids", lambda i, t: grey(np.where((YY < 3) & (i != 1), 255, t).astype(np.uint8))),
        ("one bit", lambda i, t: grey(t > 0)),
        ("one mask of background", lambda i, t: grey(t * (i != 0))),
        ("palette", lambda i, t: palette(t, BLACK_RED)),
        ("16 bits", lambda i, t: grey(np.where(YY < 3, 65535, t.astype(int)).astype(np.uint16))),
    ],
)
def test_what_is_certain_is_read_without_a_word(tmp_path: Path, kind: str, draw) -> None:
    data = understand(open_folder(write_set(tmp_path / "set", draw)), masks=True)
    assert not data.notices, kind
    for i in range(4):
        ids = np.array(draw(i, TRUE[i])).astype(int)
        np.testing.assert_array_equal(data.mask(i), ids)
    assert data.ledger.counts()["train"]["masks"] == 4 and examine(data.root).healthy


def test_three_equal_channels_are_read_and_said(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(np.repeat(t[..., None], 3, 2)))
    data = understand(open_folder(root), masks=True)
    assert "three equal channels" in " ".join(data.notices)
    np.testing.assert_array_equal(data.mask(2), TRUE[2])
    assert data.ledger.counts()["train"]["masks"] == 1, "the check notes nothing"
    (said,) = examine(root).of_kind("grey-mask")
    assert said.severity == "warning"


def test_masks_that_are_all_void(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(np.full_like(t, 255)))
    (found,) = [f for f in examine(root).findings if f.severity == "error"]
    assert found.kind == "void-mask" and found.count == 4
    with pytest.raises(MaskwrightError, match="nothing but values that mean no class"):
        understand(open_folder(root), masks=True)
    root = write_set(tmp_path / "set", lambda i, t: grey(t if i else np.full_like(t, 255)))
    data = understand(open_folder(root), masks=True)
    assert any("1 mask hold" in sentence for sentence in data.notices)


@pytest.mark.parametrize("kind", ["lossy-mask", "float-mask", "mask-pages", "unreadable-mask", "size-mismatch"])
def test_files_that_are_no_masks_stop_a_verb_at_its_start(tmp_path: Path, kind: str) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(t))
    path = root / "masks" / "p3.png"
    path.unlink()
    if kind == "lossy-mask":
        grey(TRUE[3]).save(path.with_suffix(".jpg"))
    elif kind == "float-mask":
        grey(TRUE[3].astype(np.float32)).save(path.with_suffix(".tif"))
    elif kind == "mask-pages":
        grey(TRUE[3]).save(path.with_suffix(".tif"), save_all=True, append_images=[grey(TRUE[2])])
    elif kind == "unreadable-mask":
        grey(TRUE[3]).save(path)
        data = bytearray(path.read_bytes())
        data[data.index(b"IDAT") + 9] ^= 4  # Pillow lets it pass
        path.write_bytes(bytes(data))
        with pytest.raises(SyntaxError):
            check_png(bytes(data))
    else:
        grey(TRUE[3][:-1]).save(path)
    (found,) = [f for f in examine(root).findings if f.severity == "error"]
    assert found.kind == kind and "colour" not in found.message
    with pytest.raises(MaskwrightError, match="p3"):
        understand(open_folder(root), masks=True)
    data = open_folder(root)
    np.testing.assert_array_equal(data.mask(0), TRUE[0])  # what it has to do with the others, it is not
    with pytest.raises(MaskwrightError):
        data.mask(3)
    hidden = open_folder(root).labeled(["p0", "p1"])
    assert understand(hidden, masks=True).rule is not None, "masks that may not be read are not looked at"


def test_a_mask_is_decoded_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(t))
    read: list[str] = []
    plain = survey_module.read_stored
    monkeypatch.setattr(survey_module, "read_stored", lambda path: read.append(path.name) or plain(path))
    monkeypatch.setattr(survey_module, "_SETTLED", -(10**18))
    for _ in range(2):
        understand(open_folder(root), masks=True)
        assert sorted(read) == [f"p{i}.png" for i in range(4)]
    grey((TRUE[1] * 3)[:, ::-1].copy()).save(root / "masks" / "p1.png", compress_level=0)
    with pytest.raises(MaskwrightError, match="3"):
        understand(open_folder(root), masks=True)
    assert read[4:] == ["p1.png"]
    monkeypatch.setattr(survey_module, "_SETTLED", 10**18)  # a file that was written just now may change unseen
    fresh = write_set(tmp_path / "fresh", lambda i, t: grey(t))
    for n in (1, 2):
        del read[:]
        understand(open_folder(fresh), masks=True)
        assert len(read) == 4, n


def test_255_where_there_are_256_classes(tmp_path: Path) -> None:
    names = "".join(f"c{i}\n" for i in range(256))
    root = write_set(tmp_path / "set", lambda i, t: grey(255 * t), names)
    with pytest.raises(MaskwrightError, match="--labels binary255"):
        understand(open_folder(root), masks=True)
    root = write_set(tmp_path / "set", lambda i, t: grey(np.where(YY < 5, 7, 255 * t).astype(np.uint8)), names)
    with pytest.raises(MaskwrightError, match=r"--void none.*--void 255"):
        understand(open_folder(root), masks=True)
    data = understand(open_folder(root).with_reading(Reading.parse(void="none")), masks=True)
    assert data.mask(0).dtype == np.uint16 and set(np.unique(data.mask(0))) == {0, 7, 255}
    data = understand(open_folder(root).with_reading(Reading.parse(void="255")), masks=True)
    assert set(np.unique(data.mask(0))) == {0, 7, 65535} and highest_id(data) == 7
    table = data.classes
    for i in range(4):
        write_mask(root / "masks" / f"p{i}.png", 255 * TRUE[i].astype(int), table)
    scores = api.evaluate(root / "masks", root)
    assert scores.per_class[255]["iou"] == 1 and scores.per_class[0]["iou"] == 1


def test_levels_with_255_ask_what_it_means(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(np.where(YY < 9, 255, 128 * t).astype(np.uint8)), "")
    with pytest.raises(MaskwrightError, match=r"--labels levels --void none.*--labels levels --void 255"):
        understand(open_folder(root), masks=True)
    with pytest.raises(MaskwrightError, match=r"--void none.*--void 255"):
        understand(open_folder(root).with_reading(Reading.parse("levels")), masks=True)
    for void, top in (("none", 2), ("255", 255)):
        data = understand(open_folder(root).with_reading(Reading.parse("levels", void)), masks=True)
        np.testing.assert_array_equal(data.mask(1), np.where(YY < 9, top, TRUE[1]))
        assert "128 = 1" in " ".join(data.notices)
    named = understand(open_folder(root).with_reading(Reading.parse("levels:255,0,128")), masks=True)
    np.testing.assert_array_equal(named.mask(1), np.where(YY < 9, 0, TRUE[1] + 1))


def test_colours_by_the_folders_file(tmp_path: Path) -> None:
    colors = np.array([[10, 20, 30], [200, 200, 0]], np.uint8)
    void = np.array([255, 0, 255], np.uint8)

    def draw(i: int, t: np.ndarray) -> Image.Image:
        return grey(np.where((YY < 4)[..., None], void, colors[t]).astype(np.uint8))

    root = write_set(tmp_path / "set", draw)
    with pytest.raises(MaskwrightError, match=r"colors\.txt, a line 'R G B'.*--labels colours"):
        understand(open_folder(root), masks=True)
    (root / "colors.txt").write_text("10 20 30\n200, 200, 0 thing\n255 0 255 void\n")
    said = Reading.parse("colours")
    data = understand(open_folder(root).with_reading(said), masks=True)
    assert "(200, 200, 0) = 1 thing" in " ".join(data.notices)
    np.testing.assert_array_equal(data.mask(3), np.where(YY < 4, 255, TRUE[3]))
    assert data.classes is not None and data.classes.colors.tolist() == colors.tolist()
    (root / "colors.txt").write_text("10 20 30\n200 200 0\n")
    with pytest.raises(MaskwrightError, match=r"\(255, 0, 255\)"):
        understand(open_folder(root).with_reading(said), masks=True)
    (root / "colors.txt").write_text("10 20 30\n")
    with pytest.raises(MaskwrightError, match="1 colours; expected 2"):
        understand(open_folder(root).with_reading(said), masks=True)


def test_layouts_with_an_encoding_of_their_own_refuse_other_words(tmp_path: Path) -> None:
    for sub in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / sub).mkdir(parents=True)
    grey(np.zeros((H, W, 3), np.uint8)).save(tmp_path / "JPEGImages" / "a.jpg")
    grey(255 * TRUE[0]).save(tmp_path / "SegmentationClass" / "a.png")
    data = api.open_folder(f"voc:{tmp_path}")
    np.testing.assert_array_equal(understand(data, masks=True).mask(0), 255 * TRUE[0])
    with pytest.raises(MaskwrightError, match=r"--labels binary255.*encoding of their own"):
        understand(api.open_folder(f"voc:{tmp_path}", labels="binary255"), masks=True)


@pytest.mark.parametrize("orientation", [2, 3, 4, 6])
def test_masks_on_the_unturned_picture_are_found_by_their_edges(tmp_path: Path, orientation: int) -> None:
    from maskwright.data.pictures.images import orient

    for sub in ("images", "masks"):
        (tmp_path / sub).mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    rng = np.random.default_rng(orientation)
    yy, xx = np.mgrid[:96, :96]
    stored = []
    for i in range(3):
        ids = ((yy - 30 - 5 * i) ** 2 + (xx - 28) ** 2 < 300).astype(np.uint8)
        picture = 60 + 120 * ids[..., None] + rng.normal(0, 6, (96, 96, 3))
        grey(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / "images" / f"p{i}.jpg", exif=exif, quality=95)
        stored.append(ids)
    for right in (False, True):
        for i, ids in enumerate(stored):
            grey(orient(ids, orientation) if right else ids).save(tmp_path / "masks" / f"p{i}.png")
        found = examine(tmp_path).of_kind("mask-not-turned")
        notices = understand(open_folder(tmp_path), masks=True).notices
        assert len(found) == (not right) and any("as it is stored" in n for n in notices) == (not right)
        assert right or (found[0].count == 3 and found[0].severity == "warning")


def test_from1_asks_what_255_means_in_16_bits(tmp_path: Path) -> None:
    """Else 255 became class 254 without a word."""

    def wide(i: int, true: np.ndarray) -> Image.Image:
        ids = 1 + true.astype(np.uint16)
        ids[0] = 255
        return grey(ids)

    root = write_set(tmp_path / "set", wide)
    with pytest.raises(MaskwrightError, match=r"--void 255 .* --void 65535"):
        understand(api.open_folder(root, labels="from1"), masks=True)
    data = understand(api.open_folder(root, labels="from1", void="255"), masks=True)
    expected = np.where(np.arange(H)[:, None] == 0, 65535, TRUE[0].astype(int))
    got = data.mask(0).astype(int)
    assert (np.where(got >= 255, 65535, got) == expected).all()


def test_areas_between_0_and_255_are_said(tmp_path: Path) -> None:
    def three(i: int, true: np.ndarray) -> Image.Image:
        values = 255 * true
        values[:6] = 100
        return grey(values)

    data = understand(api.open_folder(write_set(tmp_path / "set", three), labels="binary255"), masks=True)
    assert any("areas of 100: those below 128 become background" in said for said in data.notices)
    assert (data.mask(0)[6:] == TRUE[0][6:]).all()
    edges = write_set(tmp_path / "edges", lambda i, true: grey(smooth(true).astype(np.uint8)))
    said = understand(api.open_folder(edges, labels="binary255"), masks=True).notices
    assert not any("areas of" in sentence for sentence in said)


def test_values_near_0_and_255_are_offered_as_binary(tmp_path: Path) -> None:
    def nearly(i: int, true: np.ndarray) -> Image.Image:
        values = 255 * true
        values[24, 20:24] = 254
        return grey(values)

    root = write_set(tmp_path / "set", nearly, names="")
    with pytest.raises(MaskwrightError, match="add --labels binary255 if they are drawn in 0 and 255"):
        understand(api.open_folder(root), masks=True)
    data = understand(api.open_folder(root, labels="binary255"), masks=True)
    drawn = TRUE[1].copy()
    drawn[24, 20:24] = 1
    assert (data.mask(1) == drawn).all()

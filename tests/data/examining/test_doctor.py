"""The doctor finds what is wrong, says how to mend it, and finds nothing wrong with a good folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from maskwright.data.examining.doctor import examine
from maskwright.data.examining.findings import Diagnosis
from maskwright.data.examining.phash import Print, detail_of, find_alike, hamming, near_pairs, perceptual_hash
from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import default_palette
from maskwright.errors import MaskwrightError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures that look different, with masks of three classes and two splits."""
    root = tmp_path / "data"
    for sub in ("images", "masks", "splits"):
        (root / sub).mkdir(parents=True)
    for i in range(8):
        photo(i).save(root / "images" / f"p{i}.jpg", quality=92)
        ids = np.zeros((60, 80), np.uint8)
        ids[:20], ids[40:, : 20 + i], ids[0, 0] = 1, 2, 255
        Image.fromarray(ids).save(root / "masks" / f"p{i}.png")
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    (root / "tags.csv").write_text("name,tags\np0,sky;car\np1,road\n")
    (root / "splits" / "train.txt").write_text("".join(f"p{i}\n" for i in range(5)))
    (root / "splits" / "test.txt").write_text("p5\np6\np7")
    return root


def photo(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def kinds(diagnosis: Diagnosis) -> set[str]:
    return {f.kind for f in diagnosis.findings}


def masks(folder: Path) -> list[Path]:
    return sorted((folder / "masks").iterdir())


def rewrite(folder: Path, change) -> None:
    for path in masks(folder):
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


def test_a_good_folder(folder) -> None:
    seen: list[tuple[int, int]] = []
    d = examine(folder, lambda done, total: seen.append((done, total)))
    assert d.findings == () and d.healthy and seen[-1] == (8, 8)
    assert d.labels["images"] == d.labels["masks"] == 8 and d.labels["tags"] == 2 and d.labels["captions"] == 0
    assert d.labels["splits"] == {"test": 3, "train": 5}
    assert d.labels["sizes"] == {"smallest": [60, 80], "median": [60, 80], "largest": [60, 80]}
    rows = d.labels["histogram"]
    assert [r["name"] for r in rows] == ["sky", "road", "car"] and all(r["images"] == 8 for r in rows)
    assert rows[1]["pixels"] == 8 * (20 * 80 - 1) and d.labels["ignored"] == pytest.approx(1 / 4800)
    assert rows[2]["pixels"] == sum(20 * (20 + i) for i in range(8))
    assert sum(r["share"] for r in rows) == pytest.approx(1)
    assert "Nothing is wrong" in d.text() and "histogram" in d.text()
    assert json.loads(json.dumps(d.to_json()))["healthy"] is True


def test_it_leaves_the_ledger_alone(folder) -> None:
    ds = open_folder(folder)
    assert examine(ds).healthy
    assert sum(n for k in ds.ledger.counts().values() for n in k.values()) == 0


def test_bad_images(folder) -> None:
    (folder / "images" / "p0.jpg").write_bytes(b"")
    data = (folder / "images" / "p1.jpg").read_bytes()
    (folder / "images" / "p1.jpg").write_bytes(data[: len(data) // 2])
    (folder / "images" / "p2.jpg").write_text("just words " * 50)
    header = (
        bytes.fromhex("89504e470d0a1a0a0000000d49484452") + (60000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0" + b"\0" * 4
    )
    (folder / "images" / "p3.jpg").unlink()
    (folder / "images" / "p3.png").write_bytes(header)
    d = examine(folder)
    (bad,), (large,) = d.of_kind("unreadable-image"), d.of_kind("image-too-large")
    assert bad.examples == ("p0", "p1", "p2") and bad.severity == "error" and "0 bytes" in bad.message
    assert large.examples == ("p3",) and "3600 million" in large.message
    assert not d.healthy and kinds(d) == {"unreadable-image", "image-too-large"}


def test_masks_and_images_that_do_not_pair(folder) -> None:
    (folder / "masks" / "p0.png").rename(folder / "masks" / "p0_mask.png")
    (folder / "masks" / "p1.png").unlink()
    d = examine(folder)
    (lone,), (bare,) = d.of_kind("mask-without-image"), d.of_kind("image-without-mask")
    assert lone.examples == ("p0_mask.png",) and "1 would match" in lone.message and lone.severity == "warning"
    assert bare.examples == ("p0", "p1") and bare.severity == "note" and "fine" in bare.message
    shutil.rmtree(folder / "masks")
    assert examine(folder).findings == ()


def test_sizes(folder) -> None:
    Image.new("L", (81, 60)).save(folder / "masks" / "p0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(1).save(folder / "images" / "p1.jpg", exif=exif)  # its mask stays 60x80
    photo(2).save(folder / "images" / "p2.jpg", exif=exif)
    Image.new("L", (60, 80)).save(folder / "masks" / "p2.png")  # rightly turned
    d = examine(folder)
    assert kinds(d) == {"size-mismatch", "mask-not-turned"}
    assert d.of_kind("size-mismatch")[0].examples == ("p0",) and "60x81" in d.of_kind("size-mismatch")[0].message
    assert d.of_kind("mask-not-turned")[0].examples == ("p1",)


def test_unreadable_colour_and_lossy_masks(folder) -> None:
    (folder / "masks" / "p0.png").write_bytes(b"")
    palette = default_palette(256)
    Image.fromarray(palette[np.array(Image.open(folder / "masks" / "p1.png"))]).save(folder / "masks" / "p1.png")
    Image.new("L", (80, 60)).save(folder / "masks" / "p2.jpg")
    (folder / "masks" / "p2.png").unlink()
    d = examine(folder)
    assert kinds(d) == {"unreadable-mask", "colour-mask", "lossy-mask"}
    assert "VOC palette" in d.of_kind("colour-mask")[0].message
    Image.new("RGB", (80, 60), (1, 2, 3)).save(folder / "masks" / "p1.png")
    assert "VOC palette" not in examine(folder).of_kind("colour-mask")[0].message


def test_binary_masks(folder) -> None:
    rewrite(folder, lambda ids: np.where(ids == 1, 255, 0).astype(np.uint8))
    (f,) = examine(folder).of_kind("binary-mask")
    assert f.count == 8 and f.severity == "error" and "--labels binary255" in f.repair


def test_off_by_one(folder) -> None:
    rewrite(folder, lambda ids: np.where(ids == 255, 255, ids + 1).astype(np.uint8))
    (f,) = examine(folder).of_kind("off-by-one")
    assert "counted from 1" in f.message and f.count == 8
    rewrite(folder, lambda ids: np.where(ids == 1, 0, ids).astype(np.uint8))
    (f,) = examine(folder).of_kind("off-by-one")
    assert "missing" in f.message


def test_ids_outside_absent_void(folder) -> None:
    rewrite(folder, lambda ids: np.where(ids == 2, 9, ids).astype(np.uint8))
    Image.new("L", (80, 60), 255).save(folder / "masks" / "p7.png")
    d = examine(folder)
    assert "9" in d.of_kind("id-outside-table")[0].message and d.of_kind("id-outside-table")[0].count == 7
    assert d.of_kind("absent-class")[0].examples == ("car",)
    assert d.of_kind("void-mask")[0].examples == ("p7",)
    assert d.labels["histogram"][-1]["name"] == "id 9"
    (folder / "classes.txt").unlink()
    d = examine(folder)
    assert kinds(d) == {"no-classes", "void-mask"} and "up to 9" in d.of_kind("no-classes")[0].message


def test_tables(folder) -> None:
    (folder / "tags.csv").write_text("name,tags\np0,Sky;cra\nghost,sky\n")
    (folder / "captions.csv").write_text("name,caption\np0,a sky\nspirit,nothing\n")
    (folder / "splits" / "val.txt").write_text("")
    (folder / "splits" / "test.txt").write_text("p5\np5\np6\nphantom\n")
    d = examine(folder)
    assert d.of_kind("tags-without-image")[0].examples == ("ghost",)
    assert d.of_kind("captions-without-image")[0].examples == ("spirit",)
    (tag,) = d.of_kind("unknown-tag")
    assert set(tag.examples) == {"Sky", "cra"} and "'Sky' to 'sky'" in tag.repair
    assert d.of_kind("split-missing-image")[0].examples == ("phantom",)
    assert d.of_kind("split-repeats")[0].examples == ("p5",)
    assert d.of_kind("split-empty")[0].examples == ("val",)


def test_damaged_tables_do_not_stop_it(folder) -> None:
    (folder / "tags.csv").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "classes.txt").write_text("a\n\nb\n")
    d = examine(folder)
    assert len(d.of_kind("bad-table")) == 2 and d.labels["images"] == 8


def test_copies_and_leaks(folder) -> None:
    shutil.copy(folder / "images" / "p0.jpg", folder / "images" / "p1.jpg")  # both train
    shutil.copy(folder / "images" / "p2.jpg", folder / "images" / "p5.jpg")  # train and test
    photo(3, (160, 120)).save(folder / "images" / "p6.jpg", quality=40)  # p3 again, larger and worse
    (folder / "masks" / "p6.png").unlink()
    (folder / "splits" / "labeled.txt").write_text("p0\n")
    (folder / "splits" / "all.txt").write_text("".join(f"p{i}\n" for i in range(8)))
    d = examine(folder)
    (copies,), (near,), (leak,) = d.of_kind("duplicate-image"), d.of_kind("near-duplicate"), d.of_kind("leak")
    assert copies.count == 2 and set(copies.examples) == {"p0 = p1", "p2 = p5"}
    assert near.examples == ("p3 ~ p6",) and near.count == 2
    assert leak.count == 2 and leak.severity == "error" and "exact copies: 1" in leak.message
    (folder / "splits" / "test.txt").write_text("p6\np4\n")
    d = examine(folder)
    assert d.of_kind("split-overlap")[0].examples == ("p4",)
    assert d.of_kind("leak")[0].severity == "warning" and d.of_kind("leak")[0].count == 1


def test_two_files_of_one_name(folder) -> None:
    photo(0).save(folder / "images" / "p0.png")
    assert examine(folder).of_kind("left-out")[0].examples == ("p0.png",)


def test_bad_folder(tmp_path) -> None:
    with pytest.raises(MaskwrightError, match="does not exist"):
        examine(tmp_path / "none")


def test_text_names_the_repair(folder) -> None:
    (folder / "images" / "p0.jpg").write_bytes(b"")
    text = examine(folder).text()
    assert "error: 1 images cannot be read" in text and "repair:" in text and text.endswith("1 error")


def test_near_pairs_are_all_pairs() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 60, dtype=np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (60, 5), dtype=np.uint64)
    hashes = np.unique(np.concatenate([base, base ^ flips[:, 0], base ^ np.bitwise_xor.reduce(flips, axis=1)]))
    for bits in (0, 1, 4, 6, 10):
        distance = hamming(hashes[:, None], hashes[None])
        expected = np.argwhere(np.triu(distance <= bits, 1))
        assert np.array_equal(near_pairs(hashes, bits), expected)


def test_hash_survives_resizing_and_recompression(tmp_path) -> None:
    for seed in range(6):
        image = photo(seed, (400, 300))
        first = perceptual_hash(np.array(image))
        image.resize((131, 97), Image.Resampling.LANCZOS).save(tmp_path / "a.jpg", quality=50)
        again = perceptual_hash(np.array(Image.open(tmp_path / "a.jpg")))
        other = perceptual_hash(np.array(photo(seed + 50)))
        assert first.hash is not None and again.hash is not None and other.hash is not None
        assert (first.hash ^ again.hash).bit_count() <= 4 < 15 < (first.hash ^ other.hash).bit_count()


def test_flat_and_missing_pictures_are_not_alike() -> None:
    flat = perceptual_hash(np.full((50, 50, 3), 77, np.uint8))
    assert flat.hash is None
    thumb = np.zeros((16, 16), np.uint8)
    alike = find_alike([flat, flat, None, Print(5, thumb), Print(7, thumb), Print(5, np.eye(16, dtype=np.uint8) * 255)])
    assert alike.groups() == [[3, 4]] and alike.cells[:3].tolist() == [-1, -1, -1]
    assert find_alike([]).groups() == []


def retina(seed: int, side: int = 200) -> np.ndarray:
    """A drawn retina, uint8 (side, side, 3): a disc on black, a bright spot, dark vessels that wind from it."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), (168, 84, 40))
    draw = ImageDraw.Draw(image)
    x0, y0 = side * (0.72 + 0.03 * rng.standard_normal()), side * (0.5 + 0.03 * rng.standard_normal())
    draw.ellipse((x0 - 14, y0 - 14, x0 + 14, y0 + 14), fill=(235, 190, 120))
    for _ in range(16):
        turns = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.2, 40).cumsum()
        x, y = x0 + 5 * np.cos(turns).cumsum(), y0 + 5 * np.sin(turns).cumsum()
        draw.line(list(zip(x, y)), fill=(110, 36, 22), width=int(rng.integers(1, 4)))
    yy, xx = np.mgrid[:side, :side]
    radius = np.hypot(xx - side / 2, yy - side / 2) / (0.47 * side)
    pixels = np.asarray(image) * (1 - 0.35 * radius[..., None] ** 2) + rng.normal(0, 2, (side, side, 1))
    return np.where(radius[..., None] > 1, 2, pixels).clip(0, 255).astype(np.uint8)


def test_different_retinas_are_not_near_duplicates_and_copies_are(tmp_path) -> None:
    """All are a bright disc on black, so that hash and thumbnail say little: detail decides."""
    pictures = [retina(k) for k in range(26)]
    for k, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / f"r{k:02d}.png")
    assert not examine(tmp_path).of_kind("near-duplicate")
    alike = [Print(0x0F0F, np.zeros((16, 16), np.uint8)) for _ in pictures]  # as if all hashes were one
    assert len(find_alike(alike).groups()) == 1
    assert find_alike(alike, detail=lambda i: detail_of(pictures[i])).groups() == []
    smaller = Image.fromarray(pictures[3]).resize((97, 97), Image.Resampling.LANCZOS)
    smaller.save(tmp_path / "smaller.jpg", quality=60)
    Image.fromarray(pictures[7]).save(tmp_path / "again.jpg", quality=40)
    Image.fromarray((pictures[9] * 0.8 + 20).astype(np.uint8)).save(tmp_path / "lighter.png")
    (near,) = examine(tmp_path).of_kind("near-duplicate")
    assert {frozenset(e.split(" ~ ")) for e in near.examples} == {
        frozenset(("r03", "smaller")), frozenset(("r07", "again")), frozenset(("r09", "lighter"))
    }  # fmt: skip
    copied = [*pictures[:4], np.asarray(smaller), pictures[2]]
    grouped = find_alike(alike[:6], detail=lambda i: detail_of(copied[i])).groups()
    assert grouped == [[2, 5], [3, 4]], "two copies among pictures of one hash find each other"

"""Views: coordinates as colours commute with every composition, inverses, overlaps, resampling, random
crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskwright.data.training import crops
from maskwright.data.training.views import (
    NOWHERE,
    View,
    overlap,
    resample,
    sample_points,
    shared_grid,
    transform_points,
)

RELAXED = settings(max_examples=40, deadline=None)


def coordinate_image(h: int, w: int) -> torch.Tensor:
    """Float64 (2, h, w): the x and y of each pixel's centre."""
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    return torch.stack((x, y)).double()


@st.composite
def whole_pixel_steps(draw: st.DrawFn) -> tuple[View, list[tuple]]:
    """A view made of whole-pixel crops, flips and quarter turns, with its list of steps."""
    h, w = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    view, steps = View.identity((h, w)), []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["crop", "hflip", "vflip", "turn"]))
        if kind == "crop":
            step = (
                draw(st.integers(-3, 5)),
                draw(st.integers(-3, 5)),
                draw(st.integers(1, 9)),
                draw(st.integers(1, 9)),
            )
            view = view.crop(*step)
            steps.append(("crop", *step))
        elif kind == "turn":
            k = draw(st.integers(-3, 3))
            view = view.rotate(90 * k, expand=True)
            steps.append(("turn", k))
        else:
            view = getattr(view, kind)()
            steps.append((kind,))
    return view, steps


@st.composite
def any_view(draw: st.DrawFn, size: tuple[int, int] = (40, 50)) -> View:
    view = View.identity(size)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["crop", "hflip", "vflip", "rotate", "resize", "expand"]))
        if kind == "crop":
            view = view.crop(
                draw(st.floats(-5, 20)),
                draw(st.floats(-5, 20)),
                draw(st.integers(8, 40)),
                draw(st.integers(8, 40)),
            )
        elif kind == "resize":
            view = view.resize(draw(st.integers(8, 60)), draw(st.integers(8, 60)))
        elif kind in ("rotate", "expand"):
            view = view.rotate(draw(st.floats(-180, 180)), expand=kind == "expand")
        else:
            view = getattr(view, kind)()
    return view


@RELAXED
@given(whole_pixel_steps())
def test_whole_pixel_views_are_slices_bit_for_bit(made):
    view, steps = made
    h, w = view.source_size
    image = torch.randint(1, 255, (3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(h * 13 + w))
    expected = image
    for step in steps:
        if step[0] == "crop":
            top, left, ch, cw = step[1:]
            padded = F.pad(expected, (20, 20, 20, 20))
            expected = padded[:, 20 + top :, 20 + left :]
            expected = F.pad(expected, (0, 20, 0, 20))[:, :ch, :cw]
        elif step[0] == "turn":
            expected = torch.rot90(expected, step[1], (-2, -1))
        else:
            expected = expected.flip(-1 if step[0] == "hflip" else -2)
    rendered = view.render(image)
    # A crop that goes beyond an earlier crop sees the source again, where slicing twice has only padding.
    kept = expected != 0
    assert rendered.dtype == torch.uint8 and torch.equal(rendered[kept], expected[kept])
    assert view.valid()[kept.all(0)].all()
    assert torch.equal(view.render(image, mode="nearest"), rendered)
    assert not rendered[:, ~view.valid()].any()
    if not any(step[0] == "crop" for step in steps):
        assert view.valid().all() and torch.equal(rendered, expected)


@RELAXED
@given(any_view())
def test_coordinates_as_colours_commute_with_every_composition(view):
    h, w = view.source_size
    rendered = view.render(coordinate_image(h, w), antialias=False, fill=None)
    y, x = torch.meshgrid(torch.arange(view.size[0]) + 0.5, torch.arange(view.size[1]) + 0.5, indexing="ij")
    source = transform_points(view.inverse, torch.stack((x, y), -1).double())
    # Half a pixel from the image's edge the border repeats, and a whole-pixel window does not look beyond
    # itself.
    step = float(view.inverse[:2, :2].abs().sum(1).max())
    corners = view.corners()
    low, high = corners.amin(0) + step / 2 + 1, corners.amax(0) - step / 2 - 1
    low, high = low.clamp(min=0.5), torch.minimum(high, torch.tensor([w - 0.5, h - 0.5], dtype=torch.float64))
    inner = ((source >= low) & (source <= high)).all(-1)
    assert torch.allclose(rendered.permute(1, 2, 0)[inner], source[inner], atol=2e-3)


@RELAXED
@given(any_view())
def test_nearest_takes_the_pixel_that_holds_the_point(view):
    h, w = view.source_size
    index = torch.arange(h * w).reshape(1, h, w)
    rendered = view.render(index, mode="nearest", fill=-1)[0]
    y, x = torch.meshgrid(torch.arange(view.size[0]) + 0.5, torch.arange(view.size[1]) + 0.5, indexing="ij")
    source = torch.floor(transform_points(view.inverse, torch.stack((x, y), -1).double()) + 1e-6).long()
    inside = (source >= 0).all(-1) & (source[..., 0] < w) & (source[..., 1] < h)
    wanted = torch.where(inside, source[..., 1] * w + source[..., 0], -1)
    # Points on the line between two pixels may fall to either side by rounding.
    assert (rendered != wanted).float().mean() < 0.02
    assert torch.equal(rendered >= 0, view.valid())


@RELAXED
@given(any_view(), any_view())
def test_inverse_and_matrix_between_views(a, b):
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(a.inverse @ a.matrix, eye, atol=1e-9)
    assert torch.allclose(a.matrix_to(a), eye, atol=1e-9)
    points = torch.rand(5, 2, dtype=torch.float64) * 30
    there = transform_points(a.matrix_to(b), transform_points(a.matrix, points))
    assert torch.allclose(there, transform_points(b.matrix, points), atol=1e-6)
    back = transform_points(b.matrix_to(a), there)
    assert torch.allclose(back, transform_points(a.matrix, points), atol=1e-3)


def test_inverse_is_exact_for_whole_pixels():
    view = View.identity((37, 53)).crop(3, 7, 20, 30).hflip().vflip().rotate(90, expand=True)
    assert torch.equal(view.inverse @ view.matrix, torch.eye(3, dtype=torch.float64))


@RELAXED
@given(any_view(), any_view())
def test_overlap_area_by_counting(a, b):
    shared = overlap(a, b)
    h, w = a.source_size
    n = 4
    y, x = torch.meshgrid((torch.arange(h * n) + 0.5) / n, (torch.arange(w * n) + 0.5) / n, indexing="ij")
    points = torch.stack((x, y), -1).double()
    inside = torch.ones(h * n, w * n, dtype=torch.bool)
    for view in (a, b):
        p = sample_points(view, points)
        inside &= (p.abs() <= 1).all(-1)
    counted = float(inside.sum()) / n**2
    assert abs((shared.area if shared else 0.0) - counted) <= 0.04 * counted + 12
    if shared:
        assert 0 < shared.iou <= 1 + 1e-9
        for view, box in ((a, shared.box_a), (b, shared.box_b)):
            assert box[0] >= -1e-6 and box[1] >= -1e-6
            assert box[2] <= view.size[1] + 1e-6 and box[3] <= view.size[0] + 1e-6
    assert overlap(a, a) is None or abs(overlap(a, a).iou - 1) < 1e-6


def test_overlap_boxes_of_mirrored_crops():
    base = View.identity((100, 100))
    a, b = base.crop(10, 20, 40, 40), base.crop(30, 30, 40, 40).hflip()
    shared = overlap(a, b)
    assert shared.box_a == (10, 20, 40, 40) and shared.box_b == (10, 0, 40, 20) and shared.area == 600
    assert overlap(a, base.crop(60, 60, 20, 20)) is None
    assert overlap(base.crop(-20, -20, 20, 20), base.crop(-20, -20, 40, 40)) is None


@RELAXED
@given(st.data())
def test_shared_grid_names_the_same_source_points(data):
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    a = crops.random_resized_crop((60, 80), (32, 32), scale=(0.1, 0.6), generator=g)
    b = crops.random_resized_crop((60, 80), (24, 40), scale=(0.1, 0.6), generator=g)
    if data.draw(st.booleans()):
        b = b.vflip()
    in_a, in_b = shared_grid(a, b, 5)
    if overlap(a, b) is None:
        assert (in_a == NOWHERE).all() and (in_b == NOWHERE).all()
        return
    sources = []
    for view, grid in ((a, in_a), (b, in_b)):
        h, w = view.size
        inside = (grid.double() + 1) / 2 * torch.tensor([w, h])
        assert inside.min() >= -1e-3 and (inside <= torch.tensor([w, h]) + 1e-3).all()
        sources.append(transform_points(view.inverse, inside))
    assert torch.allclose(sources[0], sources[1], atol=1e-3)
    assert (sources[0][0, -1, 0] > sources[0][0, 0, 0]) and (sources[0][-1, 0, 1] > sources[0][0, 0, 1])


def test_shared_grid_of_identical_crops_spans_the_crop():
    view = View.identity((20, 30)).crop(2, 3, 10, 10)
    in_a, in_b = shared_grid(view, view.hflip(), 3)
    assert torch.equal(in_a[..., 0], -in_b[..., 0]) and torch.equal(in_a[..., 1], in_b[..., 1])
    assert in_a[0, 0].tolist() == [-1, -1] and in_a[2, 2].tolist() == [1, 1]


@RELAXED
@given(
    any_view(),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(["bilinear", "nearest", "area", "bicubic"]),
)
def test_resample_of_a_view_onto_itself_is_the_identity(view, h, w, mode):
    x = torch.randn(2, 3, h, w)
    out, valid = resample(x, view, view, mode=mode)
    assert torch.equal(out[..., valid], x[..., valid])
    assert torch.equal(valid, view.resize(h, w).valid())
    if bool(valid.all()):
        assert torch.equal(out, x)


@RELAXED
@given(any_view(), any_view())
def test_resample_moves_coordinates(a, b):
    y, x = torch.meshgrid(torch.arange(a.size[0]) + 0.5, torch.arange(a.size[1]) + 0.5, indexing="ij")
    source = transform_points(a.inverse, torch.stack((x, y), -1).double()).permute(2, 0, 1)
    out, valid = resample(source, a, b)
    y, x = torch.meshgrid(torch.arange(b.size[0]) + 0.5, torch.arange(b.size[1]) + 0.5, indexing="ij")
    wanted = transform_points(b.inverse, torch.stack((x, y), -1).double())
    # Within half a pixel of view a's edge the border repeats.
    places = transform_points(a.matrix, wanted)
    inner = valid & (places >= 0.5).all(-1) & (places[..., 0] <= a.size[1] - 0.5) & (places[..., 1] <= a.size[0] - 0.5)
    assert torch.allclose(out.permute(1, 2, 0)[inner], wanted[inner], atol=2e-3)
    assert not out[:, ~valid].any()


def test_area_resampling_is_the_mean_over_cells():
    x = torch.rand(1, 2, 12, 18)
    view = View.identity((12, 18))
    out, valid = resample(x, view, view, (4, 6), mode="area")
    assert valid.all() and torch.allclose(out, F.avg_pool2d(x, 3), atol=1e-6)
    crop = view.crop(3, 6, 6, 6)
    out, _ = resample(x, view, crop, (2, 2), mode="area")
    assert torch.allclose(out, F.avg_pool2d(x[..., 3:9, 6:12], 3), atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(5, 9), (31, 40), (13, 17), (20, 24)])
def test_filter_taps_equal_torch(mode, antialias, size):
    """The explicit taps, reached by resampling, against torch on a whole image, crops cut afterwards."""
    x = torch.rand(1, 3, 20, 24, dtype=torch.float64)
    wanted = F.interpolate(x, size, mode=mode, antialias=antialias, align_corners=False)
    view = View.identity((20, 24)).resize(*size)
    part = view.crop(1, 2, size[0] - 2, size[1] - 3)
    out, _ = resample(x, View.identity((20, 24)), part, mode=mode, antialias=antialias, size=part.size)
    assert torch.allclose(out, wanted[..., 1:-1, 2:-1], atol=1e-6)
    assert torch.allclose(view.render(x, mode=mode, antialias=antialias), wanted, atol=1e-9)


def test_render_equals_torchvision_resized_crop_bit_for_bit():
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    view = View.identity((60, 80)).crop(7, 11, 40, 32).resize(24, 24)
    assert torch.equal(view.render(image), TF.resized_crop(image, 7, 11, 40, 32, [24, 24], antialias=True))
    assert torch.equal(view.hflip().render(image), view.render(image).flip(-1))
    array = view.render(image.permute(1, 2, 0).numpy())
    assert isinstance(array, np.ndarray) and np.array_equal(array, view.render(image).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_read_decodes_what_render_would_show(tmp_path, suffix):
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8))
    image = np.asarray(smooth.resize((160, 96), Image.Resampling.BICUBIC))
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(image).save(path, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))
    base = View.identity((96, 160))
    for view in (
        base.crop(7, 11, 64, 96).resize(16, 24).hflip(),
        base.crop(8, 16, 40, 64).vflip(),
        base.crop(-4, 100, 64, 96).resize(32, 48),
        base.rotate(20),
    ):
        read = view.read(path)
        assert read.shape == (*view.size, 3) and read.dtype == np.uint8
        difference = np.abs(read.astype(int) - view.render(image).astype(int))
        assert difference.max() <= (0 if suffix == "png" else 12)
    with pytest.raises(ValueError, match="source of"):
        View.identity((95, 160)).read(path)


def test_rotation_turns_as_pil_does():
    image = (torch.rand(3, 41, 41) * 255).to(torch.uint8)
    smooth = F.interpolate(F.interpolate(image[None], (9, 9)), (41, 41), mode="bilinear")[0]
    turned = View.identity((41, 41)).rotate(30).render(smooth)
    pil = Image.fromarray(smooth.permute(1, 2, 0).numpy()).rotate(30, Image.Resampling.BILINEAR)
    difference = np.abs(np.asarray(pil).astype(int) - turned.permute(1, 2, 0).numpy().astype(int))
    assert np.quantile(difference[8:-8, 8:-8], 0.99) <= 3
    assert View.identity((41, 41)).rotate(45, expand=True).size == (58, 58)


def test_padding_takes_the_fill_and_is_not_valid():
    image = torch.full((3, 10, 10), 200, dtype=torch.uint8)
    view = View.identity((10, 10)).crop(-5, -5, 20, 20).resize(13, 13)
    out = view.render(image, fill=(1, 2, 3))
    assert (out[:, view.valid()] == 200).all()
    assert (out[:, ~view.valid()] == torch.tensor([[1], [2], [3]])).all() and (~view.valid()).any()


def test_errors_name_the_sizes():
    with pytest.raises(ValueError, match="source of"):
        View.identity((4, 5)).render(torch.zeros(3, 5, 4))
    with pytest.raises(ValueError, match="different sources"):
        overlap(View.identity((4, 5)), View.identity((5, 4)))
    with pytest.raises(ValueError, match="at least one pixel"):
        View.identity((4, 5)).crop(0, 0, 0, 3)
    with pytest.raises(ValueError, match="resampling mode"):
        View.identity((4, 5)).render(torch.zeros(3, 4, 5), mode="best")


@RELAXED
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
def test_random_crops_of_any_image(h, w, seed):
    g = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
    view = crops.random_resized_crop((h, w), (16, 12), generator=g)
    assert view.render(image).shape == (3, 16, 12) and view.valid().all()
    view = crops.random_scale_crop((h, w), (16, 12), generator=g)
    assert view.render(image).shape == (3, 16, 12) and view.valid().any()
    again = crops.random_scale_crop((h, w), (16, 12), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(
        again.matrix,
        crops.random_scale_crop((h, w), (16, 12), generator=torch.Generator().manual_seed(seed)).matrix,
    )


@RELAXED
@given(st.integers(20, 90), st.integers(20, 90), st.integers(0, 10**6))
def test_cac_pairs_lie_on_one_lattice(h, w, seed):
    """Un-flipped overlaps of both crops are equal pixel by pixel (CAC's check)."""
    g = torch.Generator().manual_seed(seed)
    a, b = crops.overlapping_crops((h, w), (32, 32), generator=g)
    between = a.matrix_to(b)
    flips = [view.flipped[0] for view in (a, b)]
    plain = [view.hflip() if flip else view for view, flip in zip((a, b), flips)]
    offset = plain[0].matrix_to(plain[1])[:2, 2]
    assert torch.allclose(offset / 8, (offset / 8).round(), atol=1e-6)
    assert torch.allclose(between[:2, :2].abs(), torch.eye(2, dtype=torch.float64), atol=1e-9)
    image = coordinate_image(h, w)
    first, second = (v.render(image, antialias=False) for v in (a, b))
    first, second = (x.flip(-1) if flip else x for x, flip in zip((first, second), flips))
    dx, dy = (round(float(v)) for v in offset)
    xs, ys = slice(max(0, -dx), 32 - max(0, dx)), slice(max(0, -dy), 32 - max(0, dy))
    xs2, ys2 = slice(max(0, dx), 32 - max(0, -dx)), slice(max(0, dy), 32 - max(0, -dy))
    assert torch.allclose(first[:, ys, xs], second[:, ys2, xs2], atol=0.51 * max(h, w) / 32 + 1e-3)
    shared = (32 - abs(dx)) * (32 - abs(dy))
    assert shared / (2 * 32 * 32 - shared) >= 0.1


def test_multi_crop_overlaps():
    g = torch.Generator().manual_seed(3)
    groups = [(2, (64, 64), (0.25, 1.0)), (4, (32, 32), (0.05, 0.25))]
    for _ in range(20):
        views = crops.multi_crop((90, 120), groups, min_overlap=0.02, min_overlap_others=0.01, tries=200, generator=g)
        assert [v.size for v in views] == [(64, 64)] * 2 + [(32, 32)] * 4
        for view in views[2:]:
            assert all(overlap(view, other).area >= 0.01 * 90 * 120 - 1e-6 for other in views[:2])
        assert overlap(views[0], views[1]).area >= 0.02 * 90 * 120 - 1e-6


def test_random_resized_crop_statistics():
    g = torch.Generator().manual_seed(0)
    areas, flips = [], 0
    for _ in range(600):
        view = crops.random_resized_crop((200, 200), (8, 8), scale=(0.2, 0.6), generator=g)
        areas.append(overlap(view, view).area / 40000)
        flips += view.flipped[0]
    assert abs(np.mean(areas) - 0.4) < 0.02 and min(areas) > 0.19 and max(areas) < 0.61
    assert abs(flips / 600 - 0.5) < 0.08

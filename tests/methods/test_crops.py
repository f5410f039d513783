"""Crops of one picture. In a picture whose colours are its coordinates, a crop says where it was taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from errors import InputError
from methods.crops import CropParameters, Crops
from randomness import generator
from streams.photograph import EMBEDDED, photograph

STILL = {"rotation": 0.0, "shear": 0.0, "colour": 0.0}
SIDE = 256


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    return photograph("flower.jpg", tmp_path_factory.mktemp("nothing"))


@pytest.fixture(scope="module")
def chart():
    """(3, 256, 256): red is the column, green the row, blue always 90."""
    row, column = np.mgrid[:SIDE, :SIDE].astype(np.uint8)
    return np.stack([column, row, np.full_like(row, 90)])


def crops(picture, shape=(3, 16, 16), **about) -> Crops:
    return Crops(picture, shape, CropParameters(**about))


def coordinates(drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Column and row of the chart (pixels, 0 to 255) at each pixel of each crop."""
    pixels = (drawn + 1) * 127.5
    return pixels[:, 0], pixels[:, 1]


def slopes(place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(count,) how a coordinate changes from one column of a crop to the next, and from one row to the next.

    In the middle of the crop, which is not reflected at the picture's edge.
    """
    middle = place[:, 6:10, 6:10]
    return middle.diff(dim=2).mean(dim=(1, 2)), middle.diff(dim=1).mean(dim=(1, 2))


# form


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 8), (3, 12, 20), (3, 600, 600)])
def test_crops_have_the_streams_shape_and_range(shape, flower):
    drawn = crops(flower, shape).draw(6, generator(0))
    assert drawn.shape == (6, *shape) and drawn.dtype == torch.float32
    assert drawn.min() >= -1 and drawn.max() <= 1
    assert drawn.std() > 0.05


def test_the_same_generator_draws_the_same_crops_and_another_one_others(flower):
    one, again, other = (crops(flower).draw(9, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert len(one.unique(dim=0)) == 9


def test_a_grey_crop_is_the_mean_of_the_colours(flower):
    about = {"rotation": 30.0, "shear": 10.0, "colour": 0.0}
    grey, colour = (crops(flower, (channels, 16, 16), **about).draw(20, generator(1)) for channels in (1, 3))
    torch.testing.assert_close(grey, colour.mean(dim=1, keepdim=True), rtol=0, atol=1e-5)
    assert (colour - grey).abs().max() > 0.1


def test_two_channels_are_refused(flower):
    with pytest.raises(InputError, match=r"image: crops of a picture have 1 or 3 channels \(the stream's .* have 2\)"):
        crops(flower, (2, 8, 8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_what_a_cpu_draws(flower):
    cpu, gpu = (
        Crops(flower, (3, 16, 16), CropParameters(), device).draw(64, generator(2)) for device in ("cpu", "cuda")
    )
    assert gpu.is_cuda
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=0, atol=1e-3)


# content


def test_crops_of_one_colour_are_of_that_colour():
    plain = np.stack([np.full((90, 70), level, np.uint8) for level in (10, 100, 250)])
    drawn = crops(plain, largest=1.0, colour=0.0, rotation=90.0, shear=30.0).draw(50, generator(3))
    expected = (torch.tensor([10.0, 100.0, 250.0]) / 127.5 - 1).view(1, 3, 1, 1).expand_as(drawn)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)


def test_colours_are_changed_crop_by_crop():
    plain = np.full((3, 64, 64), 120, np.uint8)
    drawn = crops(plain, colour=0.4).draw(200, generator(3))
    torch.testing.assert_close(drawn, drawn[:, :, :1, :1].expand_as(drawn), rtol=0, atol=1e-5)
    levels = drawn[:, :, 0, 0]
    assert len(levels.unique(dim=0)) == 200
    assert 0.1 < levels.std() < 0.5 and abs(levels.mean() - (120 / 127.5 - 1)) < 0.1
    assert (levels.amax(dim=1) - levels.amin(dim=1)).mean() > 0.05, "the colours are not one grey"


def test_the_mean_over_many_crops_is_near_the_pictures(flower):
    drawn = crops(flower, (3, 8, 8), smallest=0.001, largest=0.05, **STILL).draw(3000, generator(4))
    truth = torch.from_numpy(flower).float().mean(dim=(1, 2)) / 127.5 - 1
    torch.testing.assert_close(drawn.mean(dim=(0, 2, 3)), truth, rtol=0, atol=0.1)


def test_unturned_crops_are_upright_rectangles_inside_the_picture_or_mirrored(chart):
    x, y = coordinates(crops(chart, smallest=0.01, largest=0.5, **STILL).draw(400, generator(5)))
    torch.testing.assert_close(x, x[:, :1].expand_as(x), rtol=0, atol=0.02)  # every row alike
    torch.testing.assert_close(y, y[:, :, :1].expand_as(y), rtol=0, atol=0.02)
    right, _ = slopes(x)
    _, down = slopes(y)
    assert (down > 0).all(), "never upside down"
    assert 0.4 < (right < 0).float().mean() < 0.6, "every second one is mirrored"
    inner = x[:, 0, 4:12]
    torch.testing.assert_close(inner.diff(dim=1), right[:, None].expand(-1, 7), rtol=0, atol=0.05)
    wide, high = right.abs() * 16, down * 16
    for place, extent in ((x, wide), (y, high)):  # the chart's values at a crop's outer edge, half a pixel further
        assert (place.mean(dim=(1, 2)) - extent / 2 > -2).all() and (
            place.mean(dim=(1, 2)) + extent / 2 < SIDE + 1
        ).all()


def test_areas_and_shapes_of_crops_are_as_asked(chart):
    smallest, largest = 0.02, 0.3
    x, y = coordinates(crops(chart, smallest=smallest, largest=largest, **STILL).draw(2000, generator(6)))
    wide, high = slopes(x)[0].abs() * 16, slopes(y)[1] * 16
    area, ratio = wide * high / SIDE**2, wide / high
    assert area.min() > 0.97 * smallest and area.max() < 1.03 * largest
    assert ratio.min() > 0.97 * 3 / 4 and ratio.max() < 1.03 * 4 / 3
    middle = (smallest * largest) ** 0.5  # areas are drawn evenly in their logarithm
    assert 0.45 < (area < middle).float().mean() < 0.55
    assert area.min() < 1.1 * smallest and area.max() > 0.9 * largest


def test_a_crop_of_the_whole_area_reaches_from_edge_to_edge(chart):
    """Its longer side is the picture's; the other one is shorter by the ratio of its sides."""
    x, y = coordinates(crops(chart, smallest=1.0, largest=1.0, **STILL).draw(200, generator(7)))
    wide, high = slopes(x)[0].abs() * 16, slopes(y)[1] * 16
    torch.testing.assert_close(torch.maximum(wide, high), torch.full((200,), float(SIDE)), rtol=0.01, atol=0)
    assert (torch.minimum(wide, high) > 0.98 * SIDE * 3 / 4).all()


def test_a_crop_of_a_pictures_own_shape_and_size_is_the_picture():
    """Where the ratio that was drawn is nearly 1: the picture, or its mirror image."""
    picture = np.random.default_rng(0).integers(0, 256, (3, 4, 4)).repeat(16, axis=1).repeat(16, axis=2)
    picture = picture.astype(np.uint8)
    found = crops(picture, (3, 64, 64), smallest=1.0, largest=1.0, **STILL).draw(300, generator(8))
    truth = torch.from_numpy(picture).float() / 127.5 - 1
    errors = torch.stack([(found - each).abs().mean(dim=(1, 2, 3)) for each in (truth, truth.flip(-1))])
    assert (errors.min(dim=1).values < 0.03).all(), "both are among them"


def test_rotation_and_shear_stay_within_their_bounds_and_keep_the_area(chart):
    """The linear map from a crop's pixels to the picture's: its columns are the crop's sides."""
    about = {"smallest": 0.02, "largest": 0.02, "colour": 0.0}
    for rotation, shear in ((35.0, 0.0), (0.0, 20.0), (35.0, 20.0)):
        x, y = coordinates(crops(chart, rotation=rotation, shear=shear, **about).draw(800, generator(9)))
        inside = ((x > 1) & (x < 254) & (y > 1) & (y < 254)).all(dim=2).all(dim=1)  # nothing is reflected
        assert inside.float().mean() > 0.5
        (xx, xy), (yx, yy) = ([each[inside] for each in slopes(place)] for place in (x, y))
        torch.testing.assert_close(
            (xx * yy - xy * yx).abs() * 256 / SIDE**2, torch.full_like(xx, 0.02), rtol=0.05, atol=0
        )
        turned = torch.atan2(yx * xx.sign(), xx.abs()).rad2deg()
        assert turned.abs().max() < rotation + 2 and (not rotation or turned.abs().max() > 25)
        if not rotation:
            leaning = torch.atan2(xy, yy).rad2deg()
            assert 15 < leaning.abs().max() < shear + 2


def test_large_crops_do_not_alias():
    """Of a fine check pattern a small image shows grey, not black and white."""
    fine = ((np.indices((512, 512)).sum(axis=0) % 2) * 255).astype(np.uint8)
    drawn = crops(np.stack([fine] * 3), (3, 16, 16), smallest=0.5, largest=1.0, **STILL).draw(20, generator(10))
    assert drawn.abs().max() < 0.05


# the picture


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_photographs(name, tmp_path):
    picture = photograph(name, tmp_path)
    assert (picture.shape, picture.dtype) == ((3, 427, 640), np.uint8)
    assert picture.flags.c_contiguous and picture.std() > 30


def test_a_picture_of_ones_own(tmp_path):
    Image.new("L", (5, 3), 77).save(tmp_path / "grey.png")
    Image.new("RGB", (4, 6), (1, 2, 3)).save(tmp_path / "china.png")
    assert np.array_equal(photograph("grey.png", tmp_path), np.full((3, 3, 5), 77, np.uint8))
    assert np.array_equal(photograph("china.png", tmp_path)[:, 5, 3], [1, 2, 3])


def test_a_missing_picture_and_what_is_none_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(
        InputError, match=r"image:rose\.jpg: there is no such file; expected a picture or china\.jpg or"
    ):
        photograph("rose.jpg", tmp_path)
    for name in ("text.jpg", "folder.jpg"):
        with pytest.raises(InputError, match=f"image:{name}: cannot be read as a picture"):
            photograph(name, tmp_path)

"""Crop, flip and cut-out: what each may do to an image, and that draws decide everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from methods.augmentation import Augmentation


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int = 4, channels: int = 2, height: int = 6, width: int = 5) -> torch.Tensor:
    """Images in which every pixel is another number, none of them zero."""
    return torch.arange(1.0, 1 + count * channels * height * width).reshape(count, channels, height, width)


kinds = st.builds(Augmentation, crop=st.integers(0, 4), flip=st.booleans(), cutout=st.integers(0, 4))


@given(kinds, st.integers(0, 100))
def test_the_same_draws_give_the_same_images_and_the_given_ones_stay(kind, seed):
    images = numbered()
    one, other = kind.apply(images, draw(seed)), kind.apply(images, draw(seed))
    assert torch.equal(one, other)
    assert one.shape == images.shape and one.is_contiguous()
    assert torch.equal(images, numbered())


@given(kinds, st.integers(0, 100))
def test_pixels_are_moved_or_blanked_but_never_mixed_between_images_or_channels(kind, seed):
    images = numbered()
    for before, after in zip(images.flatten(0, 1), kind.apply(images, draw(seed)).flatten(0, 1), strict=True):
        kept = after[after != 0]
        assert set(kept.tolist()) <= set(before.flatten().tolist())
        assert len(kept) == len(set(kept.tolist()))


@given(st.integers(1, 4), st.integers(0, 1000))
def test_a_crop_shifts_the_whole_image_by_at_most_the_padding(padding, seed):
    (image,) = numbered(1)
    (moved,) = Augmentation(crop=padding).apply(image[None], draw(seed))
    found = [
        (down, right)
        for down in range(-padding, padding + 1)
        for right in range(-padding, padding + 1)
        if torch.equal(moved, shifted(image, down, right))
    ]
    assert found


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                result[:, row, column] = image[:, row + down, column + right]
    return result


def test_every_shift_occurs():
    images = numbered(1).expand(2000, -1, -1, -1)
    moved = Augmentation(crop=1).apply(images, draw())
    assert len({tuple(image.flatten().tolist()) for image in moved}) == 9


def test_about_half_of_the_images_are_flipped_and_the_others_are_not():
    images = numbered(1000, 1, 2, 3)
    after = Augmentation(flip=True).apply(images, draw())
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(after, images, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(after, images, strict=True)])
    assert (flipped ^ same).all()
    assert 400 < flipped.sum() < 600


@given(st.integers(1, 5), st.integers(0, 1000))
def test_a_cutout_is_one_square_in_all_channels_that_lies_around_a_place_inside(side, seed):
    (image,) = numbered(1)
    (after,) = Augmentation(cutout=side).apply(image[None], draw(seed))
    blank = after == 0
    assert torch.equal(blank[0], blank[1])
    rows, columns = blank[0].any(1).nonzero().flatten(), blank[0].any(0).nonzero().flatten()
    assert 1 <= len(rows) <= side and 1 <= len(columns) <= side
    assert blank[0].sum() == len(rows) * len(columns), "one rectangle: a square that the border may cut"
    assert torch.equal(after[~blank], image[~blank])


def test_nothing_is_done_by_default():
    assert not Augmentation().active
    images = numbered()
    assert Augmentation().apply(images, draw()) is images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [Augmentation(crop=2), Augmentation(flip=True), Augmentation(cutout=3)])
def test_a_gpu_sees_what_a_cpu_sees(kind):
    images = numbered()
    assert torch.equal(kind.apply(images.cuda(), draw()).cpu(), kind.apply(images, draw()))

"""What a domain does to an image, and that nothing but the image's number and the seed decides it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from streams import domain
from streams.parameters import StreamParameters
from streams.stream import build, open_stream

CORRUPTIONS = ["noise", "blur", "contrast", "pixelate"]
KINDS = [{"kind": "rotation"}, {"kind": "permutation"}] + [
    {"kind": "corruption", "corruption": corruption, "severity": 1.0} for corruption in CORRUPTIONS
]
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 16, 12), dtype=np.uint8)
SAMPLES = np.arange(500, 520)


def parameters(about: dict, **others) -> StreamParameters:
    fixed = {"source": "digits", "scenario": "domain-incremental", "clients": 2, "experiences": 5}
    return StreamParameters(**(fixed | {"domain": about} | others))


def changed(about: dict, number: int, images: np.ndarray = IMAGES, samples: np.ndarray = SAMPLES, **others):
    return domain.apply(images, samples, np.full(len(images), number), parameters(about, **others))


@pytest.mark.parametrize("about", KINDS, ids=str)
def test_domain_0_is_the_source_and_all_domains_differ(about):
    assert np.array_equal(changed(about, 0), IMAGES)
    domains = [changed(about, number) for number in range(5)]
    assert all(each.dtype == np.uint8 and each.shape == IMAGES.shape for each in domains)
    for one in range(5):
        for other in range(one):
            assert (domains[one] != domains[other]).mean() > 0.2, (one, other)


@pytest.mark.parametrize("about", KINDS, ids=str)
def test_an_image_looks_the_same_whatever_it_is_loaded_with(about):
    numbers = np.arange(20) % 5
    together = domain.apply(IMAGES, SAMPLES, numbers, parameters(about))
    for n in range(20):
        alone = domain.apply(IMAGES[n : n + 1], SAMPLES[n : n + 1], numbers[n : n + 1], parameters(about))
        assert np.array_equal(alone[0], together[n])
    backwards = domain.apply(IMAGES[::-1], SAMPLES[::-1], numbers[::-1], parameters(about))
    assert np.array_equal(backwards[::-1], together)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruptions_grow(corruption):
    distance = [
        np.abs(changed({"kind": "corruption", "corruption": corruption}, number).astype(int) - IMAGES).mean()
        for number in range(5)
    ]
    assert distance == sorted(distance) and distance[0] == 0 and distance[1] > 1


def test_a_rotation_turns_evenly_up_to_the_angle():
    quarter = changed({"kind": "rotation", "angle": 90}, 4, IMAGES[..., :12, :])
    assert np.array_equal(quarter, np.rot90(IMAGES[..., :12, :], axes=(2, 3)))
    half_way = changed({"kind": "rotation", "angle": 90}, 2)
    assert np.array_equal(half_way[0, 1], ndimage.rotate(IMAGES[0, 1], 45, reshape=False, order=1))


def test_a_permutation_moves_pixels_alike_in_all_channels_and_images():
    moved = changed({"kind": "permutation"}, 3)
    place = np.arange(16 * 12, dtype=np.uint8).reshape(1, 1, 16, 12)
    order = changed({"kind": "permutation"}, 3, place, SAMPLES[:1]).ravel()
    assert sorted(order.tolist()) == list(range(192)) and order.tolist() != list(range(192))
    assert np.array_equal(moved, IMAGES.reshape(20, 3, -1)[..., order].reshape(IMAGES.shape))
    other = changed({"kind": "permutation"}, 3, place, SAMPLES[:1], seed=1).ravel()
    assert order.tolist() != other.tolist()


def test_full_severity_is_what_it_says():
    def at_most(corruption: str) -> np.ndarray:
        return changed({"kind": "corruption", "corruption": corruption, "severity": 1.0}, 4)

    means = IMAGES.mean(axis=(1, 2, 3))
    assert np.array_equal(at_most("contrast"), np.broadcast_to(np.rint(means)[:, None, None, None], IMAGES.shape))
    cells = at_most("pixelate")  # a quarter of the resolution: 16 x 12 becomes 4 x 3 cells of 4 x 4
    wanted = np.rint(IMAGES.reshape(20, 3, 4, 4, 3, 4).mean(axis=(3, 5)))
    assert np.array_equal(cells, wanted.repeat(4, axis=2).repeat(4, axis=3))
    grey = np.full((256, 1, 16, 16), 128, np.uint8)
    about = {"kind": "corruption", "corruption": "noise", "severity": 0.2}
    noise = changed(about, 4, grey, np.arange(256)) - 128.0
    assert abs(noise.mean()) < 1 and abs(noise.std() / (0.2 * 255) - 1) < 0.05
    assert not np.array_equal(noise[0], noise[1])


@pytest.mark.parametrize("order", ["shared", "own"])
def test_a_stream_loads_every_row_in_its_own_domain(tmp_path, order):
    given = parameters({"kind": "permutation"}, overlap=True, order=order, public=0.2, seed=5)
    stream = build("permuted", given, tmp_path)
    met = []
    for client in range(2):
        samples = [stream.samples_of(stream.train(client, experience)) for experience in range(5)]
        assert all(np.array_equal(each, samples[0]) for each in samples)  # the same digits again
        numbers = [int(stream.plan.domain_of(client, experience)) for experience in range(5)]
        assert sorted(numbers) == list(range(5))
        met.append(numbers)
        for experience, number in enumerate(numbers):
            rows = stream.train(client, experience)
            inputs, labels = stream.load(rows)
            source = stream.inputs[samples[0]]
            assert np.array_equal(inputs, domain.apply(source, samples[0], np.full(len(rows), number), given))
            assert np.array_equal(labels, stream.labels[samples[0]])
    assert (met[0] == met[1] == list(range(5))) == (order == "shared")
    inputs, _ = stream.load(stream.public())
    assert np.array_equal(inputs, stream.inputs[stream.samples_of(stream.public())])
    assert np.array_equal(
        open_stream("permuted", tmp_path).load(stream.train(1, 3))[0], stream.load(stream.train(1, 3))[0]
    )

"""Domains: the same images rotated, with their pixels in another order, or corrupted. Domain 0 is the source's.

A changed image depends on its pixels, its number in the source and the stream's parameters alone, not on what is
loaded with it: sums are of whole numbers or along single lines, noise is chosen by the number.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage

from randomness import numpy_generator
from streams.parameters import StreamParameters
from streams.sections import Domain

FIELDS = 256  # of noise; sample n has field n mod FIELDS


def apply(inputs: np.ndarray, samples: np.ndarray, domains: np.ndarray, parameters: StreamParameters) -> np.ndarray:
    """The images as they are in their domains.

    Args:
        inputs: (n, C, H, W) uint8 from the source.
        samples: (n,) int64, their numbers in the source.
        domains: (n,) int64 in 0..experiences-1.
        parameters: with the section `domain`.
    Returns:
        (n, C, H, W) uint8, new unless all domains are 0.
    """
    if not domains.any():
        return inputs
    changed = np.array(inputs)
    for domain in np.unique(domains[domains > 0]).tolist():
        chosen = np.flatnonzero(domains == domain)
        changed[chosen] = _changed(inputs[chosen], samples[chosen], domain, parameters)
    return changed


def title(domain: int, parameters: StreamParameters) -> str:
    """What a person calls a domain: 'rotation 45°', 'noise 0.25'."""
    about = parameters.domain
    if about.kind == "permutation":
        return f"permutation {domain}" if domain else "as is"
    if about.kind == "rotation":
        return f"rotation {_strength(about, domain, parameters):.3g}°"
    return f"{about.corruption} {_strength(about, domain, parameters):.2g}"


def _strength(about: Domain, domain: int, parameters: StreamParameters) -> float:
    """Angle in degrees or severity, evenly from 0 in domain 0 to the most in the last."""
    most = about.angle if about.kind == "rotation" else about.severity
    return most * domain / max(1, parameters.experiences - 1)


def _changed(images: np.ndarray, samples: np.ndarray, domain: int, parameters: StreamParameters) -> np.ndarray:
    about = parameters.domain
    if about.kind == "permutation":
        side = images.shape[2:]
        order = numpy_generator(parameters.seed, "domain", "permutation", domain).permutation(side[0] * side[1])
        return images.reshape(*images.shape[:2], -1)[..., order].reshape(images.shape)
    strength = _strength(about, domain, parameters)
    if about.kind == "rotation":
        return ndimage.rotate(images, strength, axes=(2, 3), reshape=False, order=1)
    if about.corruption == "noise":
        noise = _noise(parameters.seed, images.shape[1:])[samples % FIELDS]
        return _pixels(images + np.float32(255 * strength) * noise)
    if about.corruption == "blur":
        sigma = strength**0.5 * min(images.shape[2:]) / 8  # the variance grows evenly: half a pixel already blurs
        return _pixels(ndimage.gaussian_filter(images.astype(np.float32), (0, 0, sigma, sigma), mode="nearest"))
    if about.corruption == "contrast":
        mean = images.sum(axis=(1, 2, 3), dtype=np.int64) / images[0].size
        mean = mean.reshape(-1, 1, 1, 1)
        return _pixels(mean + (1 - strength) * (images - mean))
    return _pixelated(images, strength)


def _pixelated(images: np.ndarray, severity: float) -> np.ndarray:
    """Means over the cells of a grid with 1 - 3/4 severity of the resolution."""
    sums, size = images.astype(np.int64), 1
    for axis in (2, 3):
        side = images.shape[axis]
        cells = max(1, round(side * (1 - 0.75 * severity)))
        cell = np.arange(side) * cells // side
        sums = np.add.reduceat(sums, np.searchsorted(cell, np.arange(cells)), axis=axis).take(cell, axis=axis)
        size = size * np.bincount(cell)[cell].reshape([-1 if each == axis else 1 for each in range(4)])
    return _pixels(sums / size)


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=4)
def _noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """(FIELDS, *shape) float32 from a standard normal."""
    return numpy_generator(seed, "domain", "noise").standard_normal((FIELDS, *shape), np.float32)

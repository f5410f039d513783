"""Image files as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

UNDECODABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises over a bad file
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def is_grey(file: Path | BinaryIO) -> bool:
    """Whether an image file is grey; only its header is read.

    Raises:
        UNDECODABLE: it is no image, or has more than 8 bits in a channel.
    """
    with Image.open(file) as image:
        return _is_grey(image)


def decoded(file: Path | BinaryIO, grey: bool | None = None) -> np.ndarray:
    """(C, H, W) uint8: one channel if `grey` (None: if the file is grey), else red, green and blue.

    Transparency is dropped.

    Raises:
        UNDECODABLE: it is no image, is cut off, or has more than 8 bits in a channel.
    """
    with Image.open(file) as image:
        if _is_grey(image) if grey is None else grey:
            return np.asarray(image.convert("L"))[None]
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _is_grey(image: Image.Image) -> bool:
    if image.mode not in GREY + COLOUR:  # Pillow would clip 16 bits to 255
        raise ValueError(f"mode {image.mode}, expected 8 bits in a channel")
    return image.mode in GREY

"""One picture as a source of images: a photograph of scikit-learn's, or the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from errors import InputError

EMBEDDED = ("china.jpg", "flower.jpg")  # 640 x 427 pixels, with scikit-learn


def photograph(name: str, root: Path) -> np.ndarray:
    """A picture as (3, height, width) uint8: one of `EMBEDDED`, or a file below the project folder.

    Raises:
        InputError: there is no such file, or it is no picture.
    """
    if name in EMBEDDED:
        from sklearn.datasets import load_sample_image

        return np.ascontiguousarray(load_sample_image(name).transpose(2, 0, 1))
    try:
        with Image.open(root / name) as picture:
            if picture.mode.startswith(("I", "F")):
                raise InputError(f"image:{name}: a picture of 8 bits a colour is needed (got mode {picture.mode})")
            return np.ascontiguousarray(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
    except FileNotFoundError:
        raise InputError(
            f"image:{name}: there is no such file; expected a picture or {' or '.join(EMBEDDED)}"
        ) from None
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"image:{name}: cannot be read as a picture ({error})") from None

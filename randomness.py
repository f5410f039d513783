"""One experiment seed; every stream of randomness is derived from it by name.

    generator(seed, "client", 3, "experience", 1, "round", 2, "batches")

The same names give the same numbers whatever ran before, in which thread, process or machine: nothing here or
elsewhere draws from a global generator, because threads share it and its state depends on the order of work.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream of randomness called `names`: SHA-256 over the experiment seed and the names."""
    text = json.dumps([seed, *names]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator on the CPU: draws are the same on every device, and are moved to the device afterwards."""
    import torch  # here, so that streams can be built without torch

    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the stream of randomness called `names`."""
    return np.random.default_rng(derive(seed, *names))

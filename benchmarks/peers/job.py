"""What the jobs of all frameworks share: the clients' images, the network, the clock, the line that is printed.

100 clients with 50 images of 3 x 32 x 32 each, 5 of each of 10 classes: a class's random pattern of 8 x 8 squares under
random noise, so that the accuracy tells whether a framework has done the work. The network is this project's `cnn` of
width 21, 65,950 parameters; all start from the same values. Peers take images in the layout that PyTorch gives them, as
a network written by hand does; this project's own is faster (models/maps.py), and the loop has it with
`--channels-last`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))  # the last place: frameworks have a `models`, too

from models import Architecture
from models.cnn import CNN
from randomness import generator, numpy_generator

CLIENTS, PER_ROUND, SAMPLES, CLASSES = 100, 50, 50, 10
SHAPE = (3, 32, 32)
WIDTH, BATCH, LEARNING_RATE = 21, 10, 0.05
SIGNAL = 0.8  # share of the pattern in an image, the rest is noise


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Images (clients, samples, channels, height, width), uint8, and labels (clients, samples), int64."""
    draw = numpy_generator(0, "images")
    patterns = draw.integers(0, 256, (CLASSES, SHAPE[0], 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    labels = np.tile(np.arange(SAMPLES) % CLASSES, (CLIENTS, 1))
    images = np.empty((CLIENTS, SAMPLES, *SHAPE), np.uint8)
    for client, own in enumerate(labels):
        images[client] = SIGNAL * patterns[own] + (1 - SIGNAL) * draw.integers(0, 256, (SAMPLES, *SHAPE))
    return images, labels


def clients() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each client's images, float32 in [-1, 1], and labels."""
    images, labels = pixels()
    return [(torch.from_numpy(x).float() / 127.5 - 1, torch.from_numpy(y)) for x, y in zip(images, labels, strict=True)]


class Plain(CNN):
    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


def network(channels_last: bool = False) -> torch.nn.Module:
    """The network with the values that all frameworks start from: those of a run with seed 0."""
    model = (CNN if channels_last else Plain)(SHAPE, CLASSES, WIDTH)
    initial = Architecture("cnn", SHAPE, CLASSES, {"width": WIDTH}).initial(generator(0, "model"))
    model.load_state_dict(initial)
    return model


def arguments(**more: dict) -> argparse.Namespace:
    """The options of every job, and those of one: name -> arguments of `add_argument`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=11, help="the first one warms up and is not counted")
    parser.add_argument("--workers", type=int, default=1)
    for name, about in more.items():
        parser.add_argument(f"--{name}", **about)
    torch.set_num_threads(1)
    return parser.parse_args()


class Clock:
    """Counts the rounds of a job.

    The first round is start-up: frameworks open their workers and torch compiles in it. Processor time is that of this
    process and all that it has started; what ends before the last round is not seen.

    Args:
        launched: another process has started this one, and counts as the job.
    """

    def __init__(self, framework: str, version: str, workers: int, launched: bool = False) -> None:
        self.root = psutil.Process().parent() if launched else psutil.Process()
        self.about = {"framework": framework, "version": version, "workers": workers}
        self.ends: list[float] = []
        self.cpu: list[float] = []

    def round_done(self) -> None:
        self.ends.append(time.time())
        seconds, self.peak = used(self.root)
        self.cpu.append(seconds)

    def report(self, final: torch.nn.Module, rounds: int) -> None:
        """Prints the job's line of JSON.

        Raises:
            RuntimeError: another number of rounds was counted.
        """
        if len(self.ends) != rounds:
            raise RuntimeError(f"{self.about['framework']}: expected {rounds} rounds, counted {len(self.ends)}")
        trained = (rounds - 1) * PER_ROUND
        measured = {
            "clients_per_second": trained / (self.ends[-1] - self.ends[0]),
            "cpu_ms_per_client": 1e3 * (self.cpu[-1] - self.cpu[0]) / trained,
            "start_seconds": self.ends[0] - self.root.create_time(),
            "peak_mib": self.peak,
            "accuracy": accuracy(final),
        }
        print(json.dumps(self.about | measured), flush=True)


def used(root: psutil.Process) -> tuple[float, float]:
    """Seconds of processor time so far, and the sum of the largest memories so far in MiB, of a process and all that it
    has started; pages that processes share are counted in each."""
    seconds, peak = 0.0, 0.0
    for each in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):  # it has just ended
            seconds += sum(each.cpu_times()[:2])
            lines = Path(f"/proc/{each.pid}/status").read_text().splitlines()
            peak += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    return seconds, peak


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    """On all clients' training images."""
    model.eval()
    correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in clients())
    return correct / (CLIENTS * SAMPLES)

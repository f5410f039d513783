"""The table of docs/models.md: every network's options, parameters and time for a batch.

    python benchmarks/networks.py [--batch 32] [--repeats 7]

Images of 3 x 32 x 32 pixels, texts of 512 bytes (about 85 words, of which 64 are read), 100 classes, default options.
The time is the processor's for forward, cross-entropy and backward on one thread, the median over the repeats; networks
take turns, because machines are noisy.
"""

from __future__ import annotations

import argparse
import inspect
import re
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

import models
from randomness import generator

SHAPES = {"image": (3, 32, 32), "text": (512,)}
CLASSES = 100


def inputs(kind: str, batch: int) -> torch.Tensor:
    draw = generator(0, "inputs")
    if kind == "image":
        return torch.rand(batch, *SHAPES[kind], generator=draw) * 2 - 1
    letters = torch.tensor(list(b"abcde "), dtype=torch.uint8)
    return letters[torch.randint(len(letters), (batch, *SHAPES[kind]), generator=draw)]


def source(model: torch.nn.Module) -> str:
    found = re.search(r"Source: (.*)", inspect.getdoc(type(model)), re.DOTALL)
    return " ".join(found[1].split())


def seconds(model: torch.nn.Module, batch: torch.Tensor, labels: torch.Tensor) -> float:
    started = time.process_time()
    F.cross_entropy(model(batch), labels).backward()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    labels = torch.arange(given.batch) % CLASSES
    known = {name: SHAPES.get(models.modality(name)) for name in models.names()}  # none for records of several tasks
    zoo = {name: models.Architecture(name, shape, CLASSES) for name, shape in known.items() if shape}
    built = {name: each.load(each.initial(generator(0, "model"))).train() for name, each in zoo.items()}
    times: dict[str, list[float]] = {name: [] for name in zoo}
    for repeat in range(given.repeats + 1):
        for name, model in built.items():
            took = seconds(model, inputs(zoo[name].modality, given.batch), labels)
            times[name] += [took] if repeat else []  # the first one warms up
    print(f"| name | options and defaults | parameters | ms per batch of {given.batch} | source |")
    print("|---|---|---|---|---|")
    for name, model in built.items():
        options = ", ".join(f"{key} {value}" for key, value in models.check(name, {}).items())
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"| `{name}` | {options} | {count:,} | {1000 * statistics.median(times[name]):.0f} | {source(model)} |")


if __name__ == "__main__":
    main()

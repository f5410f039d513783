"""Whether drawing crops of a picture holds up a consolidation.

    python benchmarks/crops.py [--batch 64] [--repeats 9]

Time of drawing a batch of 3 x 32 x 32 crops of china.jpg against one step of a slim ResNet-18 (forward, backward) on
such a batch, on one thread; both take turns, because machines are noisy. The ratio is the median over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from methods.crops import CropParameters, Crops
from models import Architecture
from randomness import generator
from streams.photograph import photograph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images in a step")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    crops = Crops(photograph("china.jpg", Path()), (3, 32, 32), CropParameters())
    architecture = Architecture("slim_resnet18", (3, 32, 32), 100, {"norm": "batch"})
    model = architecture.load(architecture.initial(generator(0, "model")))
    draw, drawing, stepping = generator(0, "crops"), [], []
    for repeat in range(arguments.repeats + 1):
        start = time.perf_counter()
        images = crops.draw(arguments.batch, draw)
        middle = time.perf_counter()
        model(images).square().mean().backward()
        if repeat:  # the first is torch's own warming up
            drawing.append(middle - start)
            stepping.append(time.perf_counter() - middle)
    ratio = statistics.median(one / other for one, other in zip(drawing, stepping, strict=True))
    print(f"{arguments.batch} crops: {1000 * statistics.median(drawing):.1f} ms")
    print(f"a step of the student: {1000 * statistics.median(stepping):.1f} ms")
    print(f"crops / step: {ratio:.4f}")


if __name__ == "__main__":
    main()

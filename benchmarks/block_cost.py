"""What training a subset of added blocks costs: the cost model against measured step times.

    python benchmarks/block_cost.py [--stream digits-tuning] [--added K] [--batch-size N] [--set KEY=VALUE ...]

For every subset of the added blocks (at most 40, spread over their predicted costs) a step of AdamW is timed, in
interleaved rounds, and the shortest of its times is taken: a busy machine only adds to it. It prints Spearman's rank
correlation of predicted and measured times and what one forward pass of a block takes on this machine, and keeps both
in built/calibration/STREAM.json: simulated times are in such passes, `seconds` there turns them into seconds.

Source of the model: methods/cost.py
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from itertools import combinations
from pathlib import Path

import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from methods.cost import cost
from models.adapted import Adapted
from parameters import experiment
from streams.stream import build
from tasks.files import write_json
from tasks.foundation import open_foundation
from tasks.run import foundation_of
from tasks.site import prepare_process, resolve_device

ROOT = Path(__file__).resolve().parent.parent
MOST = 40  # subsets that are timed


def step(model: Adapted, chosen: tuple[int, ...], batch: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    """Seconds of a step that trains the units `chosen`."""
    for k, unit in enumerate(model.units.values()):
        unit.requires_grad_(k in chosen)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4, fused=True)
    cuda = batch.is_cuda
    started = 0.0
    for number in range(steps + 1):
        if number == 1:  # the first makes the optimizer's state
            torch.cuda.synchronize() if cuda else None
            started = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
    torch.cuda.synchronize() if cuda else None
    return (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stream", default="digits-tuning")
    parser.add_argument("--added", type=int, default=0, help="K; 0: as many as there are blocks")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    arguments = parser.parse_args()
    prepare_process()
    device = resolve_device("auto")
    spec = experiment("fedbe", arguments.stream, 0, arguments.sets, ROOT)
    build(arguments.stream, spec.stream_parameters, ROOT)
    foundation = open_foundation(foundation_of(spec, ROOT).folder, device)
    count = len(Adapted(foundation, 2, "head", 0).blocks)
    model = Adapted(foundation, 10, "blocks", 0, added=arguments.added or count)
    price = cost(model, spec.train)
    units = len(price.places)
    if units < 2:
        parser.error(f"--added must be at least 2: one block leaves nothing to rank (got {units})")
    subsets = [chosen for size in range(1, units + 1) for chosen in combinations(range(units), size)]
    subsets.sort(key=lambda chosen: (price.time(chosen[0], len(chosen)), chosen))
    subsets = [subsets[i * (len(subsets) - 1) // (min(MOST, len(subsets)) - 1)] for i in range(min(MOST, len(subsets)))]
    example = foundation.backbone.example()
    batch = example[:1].repeat(arguments.batch_size, *[1] * (example.dim() - 1))
    labels = torch.zeros(arguments.batch_size, dtype=torch.long, device=batch.device)
    seconds = {chosen: [] for chosen in subsets}
    for _ in range(arguments.repeats):
        for chosen in subsets:
            seconds[chosen].append(step(model, chosen, batch, labels, steps=3))
    predicted = [price.time(chosen[0], len(chosen)) for chosen in subsets]
    measured = [min(seconds[chosen]) for chosen in subsets]
    unit = statistics.median(m / p for m, p in zip(measured, predicted, strict=True))
    rank = float(spearmanr(predicted, measured).statistic)
    print(f"{count} blocks + {units} added, batch {arguments.batch_size}, {device}")
    print(f"{'blocks trained':<24}{'predicted':>10}{'measured':>12}{'ratio':>8}")
    for chosen, p, m in list(zip(subsets, predicted, measured, strict=True))[:: max(1, len(subsets) // 12)]:
        print(f"{','.join(map(str, chosen)):<24}{p:>10.0f}{m * 1e3:>9.1f} ms{m / p / unit:>8.2f}")
    print(f"Spearman {rank:.3f}; one forward pass of a block takes {unit * 1e3:.3f} ms")
    folder = ROOT / "built" / "calibration"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"blocks": count, "added": units, "batch_size": arguments.batch_size, "machine": platform.platform()}
    write_json(folder / f"{arguments.stream}.json", {**about, "device": device, "seconds": unit, "spearman": rank})


if __name__ == "__main__":
    main()

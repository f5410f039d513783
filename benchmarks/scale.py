"""What many clients cost: 100 clients train in each round, of 100, 1,000 or 10,000 that are registered.

    python benchmarks/scale.py [--clients 100 1000 10000] [--active 100] [--method fedavg] [--rounds 5]

Every client has about 15 images (3 x 16 x 16, noise) and one local epoch; the network is a small convolutional one;
everything is on but MLflow. `local` is the other extreme to `fedavg`: every client keeps a model. Each size runs in a
process of its own with one worker process, so that its peak memory is its own. Printed for each size: seconds of a
round (the median) and of the evaluation, peak memory of the run and of its worker, what lies on disk in the end; and
the ratios to the first size. Target: memory and time of a round grow with the active clients, not the registered ones.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

SAMPLES = 15  # training images of a client in the mean; they are dealt by lot

PARAMETERS = """
streams:
  noise: {{source: "parquet:{root}/data", classes: 10, label: label, scenario: class-incremental, clients: {clients},
          experiences: 1, order: shared, partition: {{kind: iid}}, public: 0.0, seed: 0}}
model: {{name: cnn, width: 8}}
train: {{rounds: {rounds}, local_epochs: 1, batch_size: 5, learning_rate: 0.01, clients_per_round: {active}}}
methods: {{{method}: {{}}}}
run: {{runner: processes, workers: 1}}
"""


def images(folder: Path, count: int, draw: np.random.Generator) -> None:
    """`count` images of noise with labels 0 to 9 in turn, as a parquet file at `folder`."""
    import pandas as pd
    from PIL import Image

    rows = []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG", compress_level=1)
        rows.append({"img": {"bytes": file.getvalue(), "path": None}, "label": number % 10})
    pd.DataFrame(rows).to_parquet(folder)


def measure(clients: int, active: int, method: str, rounds: int) -> dict[str, float]:
    """One run in this process."""
    from flows import settings

    settings.apply()

    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.task_runners import ThreadPoolTaskRunner

    from flows.experiment import experiment as flow
    from flows.server import prefect_server
    from parameters import experiment
    from tasks.results import describe, publish, write_results
    from tasks.run import Run

    with tempfile.TemporaryDirectory() as folder, prefect_server() as wait:
        root = Path(folder)
        (root / "data").mkdir()
        draw = np.random.default_rng(0)
        images(root / "data" / "train.parquet", SAMPLES * clients, draw)
        images(root / "data" / "test.parquet", max(clients // 10, 100), draw)
        about = {"root": root, "clients": clients, "rounds": rounds, "active": active, "method": method}
        (root / "params.yaml").write_text(PARAMETERS.format(**about))
        spec = experiment(method, "noise", 0, (), root)
        steps: list[float] = []
        begun = time.perf_counter()
        with Run(spec, root, root / "out", on_progress=lambda *_: steps.append(time.perf_counter())) as run:
            run.workers.wait_until_ready()
            wait()
            opened = time.perf_counter() - begun
            with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                flow.with_options(task_runner=ThreadPoolTaskRunner(max_workers=1))(spec.title, {}, run)
            disk = sum(path.stat().st_size for path in run.folder.path.rglob("*") if path.is_file())
            begun = time.perf_counter()
            publish(run, write_results(run), describe(run))
            published = time.perf_counter() - begun
    # Before the first round everything is evaluated, after the last one again.
    each = [after - before for before, after in pairwise(steps)]
    return {
        "opening": opened,
        "round": statistics.median(each[:rounds]),
        "evaluation": each[-1],
        "results": published,
        "run_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker_memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "disk": disk / 2**20,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clients", type=int, nargs="+", default=[100, 1000, 10000])
    options.add_argument("--active", type=int, default=100)
    options.add_argument("--method", default="fedavg")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--one", type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.active, chosen.method, chosen.rounds)))
        return
    first: dict[str, float] = {}
    for clients in chosen.clients:
        command = [sys.executable, __file__, "--one", str(clients), "--active", str(chosen.active)]
        command += ["--method", chosen.method, "--rounds", str(chosen.rounds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        first = first or found
        times = ", ".join(f"{name} {found[name]:.2f} s" for name in ("opening", "round", "evaluation", "results"))
        sizes = ", ".join(f"{name.replace('_', ' ')} {found[name]:.0f} MiB" for name in found if name not in times)
        ratios = ", ".join(f"{name.replace('_', ' ')} {found[name] / first[name]:.2f}" for name in first)
        print(f"{clients} clients: {times}; {sizes}\n    ratios to {chosen.clients[0]}: {ratios}", flush=True)


if __name__ == "__main__":
    main()

"""What a runner costs: the time of the same experiment with each, as ratios against worker processes.

    python benchmarks/runners.py [--workers 2] [--repeats 3] [--rounds 10] [--runners threads processes dask ray]

FedAvg, 20 clients on digits, a CNN: about 12 ms of training a client, so that what surrounds it shows. Timed is the
flow: Prefect tasks, uploads, checkpoints; the start of workers or local cluster is reported beside it, imports
and the Prefect server's start are outside. Runs are interleaved, because machines are noisy; the first of each runner
warms up and is not counted. All runs must have the same digest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from flows import settings

settings.apply()

from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from flows.experiment import experiment as flow  # noqa: E402
from flows.server import prefect_server  # noqa: E402
from parameters import experiment  # noqa: E402
from tasks.run import Run  # noqa: E402

PARAMETERS = """
streams:
  digits: {source: digits, scenario: class-incremental, clients: 20, experiences: 1, order: shared,
           partition: {kind: iid}, public: 0.0, test: 0.2, seed: 0}
model: {name: cnn, width: 32}
train: {rounds: 10, local_epochs: 2, batch_size: 32, optimizer: sgd, learning_rate: 0.05}
methods: {fedavg: {}}
run: {runner: threads, workers: 2}
"""


def measure(runner: str, workers: int, rounds: int, root: Path) -> tuple[float, float, str]:
    """Seconds of the start and of the flow, and the digest."""
    spec = experiment("fedavg", "digits", 0, [f"train.rounds={rounds}"], root, runner=runner, workers=workers)
    begun = time.perf_counter()
    with Run(spec, root, Path(tempfile.mkdtemp(dir=root)) / "out") as run:
        run.workers.wait_until_ready()
        ready = time.perf_counter()
        flow.with_options(task_runner=ThreadPoolTaskRunner(max_workers=workers))(spec.title, spec.identity(), run)
        return ready - begun, time.perf_counter() - ready, run.digest()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--runners", nargs="+", default=["threads", "processes", "dask", "ray"])
    chosen = options.parse_args()
    runners = list(dict.fromkeys(["processes", *chosen.runners]))
    starts: dict[str, list[float]] = {runner: [] for runner in runners}
    times: dict[str, list[float]] = {runner: [] for runner in runners}
    with (
        tempfile.TemporaryDirectory() as folder,
        prefect_server() as wait,
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        wait()
        root, digests = Path(folder), set()
        (root / "params.yaml").write_text(PARAMETERS)
        for repeat in range(chosen.repeats + 1):
            for runner in runners:
                start, seconds, digest = measure(runner, chosen.workers, chosen.rounds, root)
                digests.add(digest)
                print(f"{runner}: start {start:.2f} s, flow {seconds:.2f} s", flush=True)
                if repeat:
                    starts[runner].append(start)
                    times[runner].append(seconds)
    if len(digests) > 1:
        sys.exit(f"error: not the same result: {sorted(digests)}")
    print(f"with {chosen.workers} workers, {chosen.repeats} interleaved repeats; flow as a ratio to processes:")
    for runner in runners:
        ratios = [mine / theirs for mine, theirs in zip(times[runner], times["processes"], strict=True)]
        print(
            f"{runner:10} {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"start {statistics.median(starts[runner]):.1f} s"
        )


if __name__ == "__main__":
    main()

"""What orchestration costs: the same FedAvg work as a bare single-thread loop and through the flow.

    python benchmarks/orchestration.py [--runner processes|threads] [--workers 2] [--repeats 5] [--rounds 20]
                                       [--epochs 2]

20 clients x 20 rounds on digits, 2 local epochs: 12 ms of training a client. With `--epochs 200 --rounds 2` it is a
second. Targets with 2 processes: at most 0.8 of the loop's time, and 0.55 where a client trains for a second. The bare
loop holds everything in memory and keeps nothing. The flow has everything on: Prefect tasks, uploads written, hashed
and checked, a checkpoint after each round, the journal and MLflow's tracking process. Imports, the Prefect server's and
the workers' start are outside and reported beside it, so are the final figures, metrics and MLflow's artifacts. Repeats
are interleaved, because machines are noisy; the last line is the median of flow / bare over the pairs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

started = time.perf_counter()

from flows import settings  # noqa: E402

settings.apply()

from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from flows.description import tracking_description  # noqa: E402
from flows.experiment import experiment as flow  # noqa: E402
from flows.server import prefect_server  # noqa: E402
from methods import CENTRE, Moment  # noqa: E402
from methods.state import State  # noqa: E402
from methods.training import Client  # noqa: E402
from parameters import Experiment, experiment  # noqa: E402
from tasks.delivery import deliver_all, file_record  # noqa: E402
from tasks.evaluation import accuracy  # noqa: E402
from tasks.results import describe, publish, read_json, write_results  # noqa: E402
from tasks.run import Run  # noqa: E402
from tasks.site import Site, prepare_process  # noqa: E402
from tasks.tracking import Tracker  # noqa: E402

PARAMETERS = """
streams:
  digits: {source: digits, scenario: class-incremental, clients: 20, experiences: 1, order: shared,
           partition: {kind: iid}, public: 0.0, test: 0.2, seed: 0}
model: {name: cnn, width: 32}
train: {rounds: 20, local_epochs: 2, batch_size: 32, optimizer: sgd, learning_rate: 0.05}
methods: {fedavg: {}}
run: {runner: threads, workers: 2}
"""


class InMemory:
    """An upload of the bare loop."""

    def __init__(self, client, samples, message):
        self.client, self.samples, self.message = client, samples, message


def bare(site: Site) -> float:
    """FedAvg as a loop, evaluated before and after as the flow is; returns the final accuracy."""
    method, spec = site.method, site.experiment
    server = method.start()
    held = {client: site.data(client, 0) for client in method.participants}

    def test() -> float:
        data = site.test(-1, 0)
        model = method.predictor("global", server, State(), CENTRE)
        return accuracy(model, data, site.seen(-1, 0))

    test()
    for number in range(spec.train.rounds):
        moment = Moment(0, number)
        sent = method.broadcast(server, method.participants, moment)
        uploads = []
        for client, data in held.items():
            seen = site.classes(client, 0)
            update = method.train(Client(client, moment, spec.seed, data, seen, (), False, State(), sent[client]))
            uploads.append(InMemory(client, len(data), update.message))
        server = method.fuse("all", server, uploads, moment)
    return test()


def through_flow(spec: Experiment, root: Path) -> dict[str, float]:
    """The same through the flow; seconds of each part, and the final accuracy."""
    times: dict[str, float] = {}
    begun = time.perf_counter()
    with Tracker() as tracker, Run(spec, root, Path(tempfile.mkdtemp()) / "out") as run:
        tracker.follow(run.folder.path, root, tracking_description(run))
        run.workers.wait_until_ready()
        if tracker.run_id(60) is None:
            raise RuntimeError("MLflow did not take the run: the benchmark would not be of everything")
        times["start of workers and tracking"] = time.perf_counter() - begun
        begun = time.perf_counter()
        runner = ThreadPoolTaskRunner(max_workers=spec.run.workers)
        flow.with_options(task_runner=runner)(spec.title, spec.identity(), run)
        times["flow"] = time.perf_counter() - begun
        begun = time.perf_counter()
        results = write_results(run)
        metrics = read_json(results / "metrics.json")
        publish(run, results, describe(run) | {"lineage": tracker.lineage})
        times["figures and metrics"] = time.perf_counter() - begun
        begun = time.perf_counter()
        tracker.deliver(file_record(root, run.folder.path, run.out))
        if deliver_all(root):
            raise RuntimeError("MLflow did not take the results: the benchmark would not be of everything")
        times["MLflow's artifacts"] = time.perf_counter() - begun
        times["accuracy"] = metrics["final_average_accuracy"]
    return times


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runner", choices=["threads", "processes"], default="processes")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--epochs", type=int, default=2, help="of local training")
    chosen = options.parse_args()
    print(f"imports: {time.perf_counter() - started:.1f} s")
    prepare_process()
    with tempfile.TemporaryDirectory() as folder, prefect_server() as wait:
        begun = time.perf_counter()
        wait()
        print(f"Prefect server: {time.perf_counter() - begun:.1f} s")
        root = Path(folder)
        (root / "params.yaml").write_text(PARAMETERS)
        work = [f"train.rounds={chosen.rounds}", f"train.local_epochs={chosen.epochs}"]
        spec = experiment("fedavg", "digits", 0, work, root, runner=chosen.runner, workers=chosen.workers)
        with Run(spec, root, root / "warm-up") as run:
            site = run.site
        ratios = []
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            for repeat in range(chosen.repeats + 1):  # the first pair warms up and is not counted
                begun = time.perf_counter()
                accuracy = bare(site)
                loop = time.perf_counter() - begun
                times = through_flow(spec, root)
                if accuracy != times["accuracy"]:
                    sys.exit(f"error: not the same work: accuracy {accuracy} and {times['accuracy']}")
                beside = ", ".join(f"{name} {value:.2f} s" for name, value in times.items() if " " in name)
                print(f"bare {loop:.2f} s, flow {times['flow']:.2f} s ({beside})", flush=True)
                if repeat:
                    ratios.append(times["flow"] / loop)
    print(f"flow / bare with {chosen.workers} {chosen.runner}: {min(ratios):.2f} to {max(ratios):.2f}, median:")
    print(f"{statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()

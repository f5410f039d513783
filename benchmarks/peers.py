"""The same FedAvg job with this project and with its peers: clients per second, and the ratios.

    python benchmarks/peers.py [--repeats 3] [--rounds 11] [--only NAME ...] [--environments FOLDER] [--json FILE]

The work (peers/job.py): 100 clients with 50 images of 3 x 32 x 32, 50 clients in a round, one epoch in batches of 10,
SGD 0.05, a network of 65,950 parameters, one torch thread a worker. Every framework gets an environment of its own in
FOLDER (a temporary one by default; made once, kept where FOLDER is given) with this project's torch beside it; pip
installs the framework there. The jobs take turns, because machines are noisy; the first round of each is its warm-up.

Targets: this project with everything on at least the speed of the loop with 1 worker, at least 1.7 times that with 2
worker processes, at least 5 times Flower with as many workers. Ratios are medians over the repeats, of runs that follow
each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).resolve().parent / "peers"
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
LIMIT = 1200  # seconds of a job; the slowest took two minutes on a busy machine
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


@dataclass(frozen=True)
class Job:
    script: str
    requirement: str = ""  # what pip installs for it; none: this project's own environment is enough
    options: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()  # of several processes


# flwr 1.42 wants a certifi that came out with it; 1.41 is the last that installs beside an older one.
JOBS = {
    "loop": Job("loop.py"),
    "loop-channels-last": Job("loop.py", options=("--channels-last",)),
    "fcl-threads-1": Job("fcl_job.py", options=("--runner", "threads", "--workers", "1")),
    "fcl-1": Job("fcl_job.py", options=("--runner", "processes", "--workers", "1")),
    "fcl-2": Job("fcl_job.py", options=("--runner", "processes", "--workers", "2")),
    "pfl-1": Job("pfl_job.py", "pfl==0.6.0"),
    "pfl-2": Job("pfl_job.py", "pfl==0.6.0", launcher=TORCHRUN),
    "fedlab-1": Job("fedlab_job.py", "fedlab==1.3.0"),
    "fluke-1": Job("fluke_job.py", "fluke-fl==0.8.1"),
    "flower-1": Job("flower_job.py", "flwr[simulation]==1.41.0", ("--workers", "1")),
    "flower-2": Job("flower_job.py", "flwr[simulation]==1.41.0", ("--workers", "2")),
}
# (one, other, target for clients per second of one / of the other)
RATIOS = [
    ("fcl-threads-1", "loop", 1.0),
    ("fcl-1", "loop", 1.0),
    ("fcl-1", "loop-channels-last", None),
    ("fcl-2", "loop", 1.7),
    ("fcl-2", "fcl-1", None),
    ("fcl-1", "pfl-1", None),
    ("fcl-2", "pfl-2", None),
    ("fcl-1", "fedlab-1", None),
    ("fcl-1", "fluke-1", None),
    ("fcl-1", "flower-1", 5.0),
    ("fcl-2", "flower-2", 5.0),
]
COLUMNS = {
    "clients_per_second": "clients/s",
    "cpu_ms_per_client": "CPU ms per client",
    "start_seconds": "start (s)",
    "peak_mib": "peak memory (MiB)",
    "accuracy": "accuracy",
}
DIGITS = {"clients_per_second": 1, "cpu_ms_per_client": 1, "start_seconds": 1, "peak_mib": 0, "accuracy": 3}


def environment(requirement: str, folder: Path) -> Path:
    """The interpreter of an environment with `requirement`, made if need be.

    Raises:
        RuntimeError: pip cannot install it; the message has pip's last words.
    """
    if not requirement:
        return Path(sys.executable)
    place = folder / requirement
    python, done = place / "bin" / "python", place / "installed"
    if done.exists():
        return python
    venv.create(place, clear=True, with_pip=True)
    paths = {name: path.format() for name, path in sysconfig.get_paths().items()}
    packages = place / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "project.pth").write_text(paths["purelib"] + "\n")  # torch, and whatever else fits the requirement
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
    run = subprocess.run(pip, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"pip install {requirement}: {last(run.stderr, 'ERROR')}")
    done.touch()
    return python


def measure(job: Job, python: Path, rounds: int, folder: Path) -> dict:
    """One run of a job: the line that it prints.

    Raises:
        RuntimeError: it failed, or ran past the limit.
    """
    command = [python, *job.launcher, PEERS / job.script, "--rounds", str(rounds), *job.options]
    beside = {"PYTHONPATH": str(PEERS), "PREFECT_HOME": str(folder / "prefect")}
    try:
        run = subprocess.run(
            command, env={**os.environ, **QUIET, **beside}, cwd=folder, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{job.script} did not end within {LIMIT} s") from None
    if run.returncode:
        raise RuntimeError(f"{job.script} ended with status {run.returncode}: {last(run.stderr)}")
    return json.loads(last(run.stdout, "{"))


def last(text: str, start: str = "") -> str:
    """The last line that is not empty and begins with `start`."""
    lines = [line for line in text.splitlines() if line.strip() and line.startswith(start)]
    return lines[-1] if lines else "(it said nothing)"


def table(found: dict[str, list[dict]]) -> None:
    print(f"\n| | version | workers | {' | '.join(COLUMNS.values())} |\n|---|---|---:|{'---:|' * len(COLUMNS)}")
    for runs in filter(None, found.values()):
        cells = [f"{statistics.median(run[name] for run in runs):.{DIGITS[name]}f}" for name in COLUMNS]
        speeds = [run["clients_per_second"] for run in runs]
        cells[0] += f" ({min(speeds):.1f} to {max(speeds):.1f})"
        about = runs[0]
        print(f"| {about['framework']} | {about['version']} | {about['workers']} | {' | '.join(cells)} |")


def ratios(found: dict[str, list[dict]]) -> None:
    """Speeds, and beside them processor time, which a machine that is busy with other work disturbs less."""
    print("\n| | clients/s | least and most | target | CPU time |\n|---|---:|---:|---:|---:|")
    for one, other, target in RATIOS:
        pairs = list(zip(found.get(one, []), found.get(other, []), strict=False))
        if pairs:
            speed = [a["clients_per_second"] / b["clients_per_second"] for a, b in pairs]
            cost = statistics.median(a["cpu_ms_per_client"] / b["cpu_ms_per_client"] for a, b in pairs)
            aim = "" if target is None else f"{target:.1f}"
            spread = f"{min(speed):.2f} to {max(speed):.2f}"
            print(f"| {one} / {other} | {statistics.median(speed):.2f} | {spread} | {aim} | {cost:.2f} |")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--rounds", type=int, default=11, help="of each job, at least 2")
    options.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME", help=", ".join(JOBS))
    options.add_argument("--environments", type=Path, help="where they are kept; default: a temporary folder")
    options.add_argument("--json", type=Path, help="every run's line is added to this file")
    chosen = options.parse_args()
    if chosen.rounds < 2:
        options.error(f"--rounds must be at least 2, the first one is not counted (got {chosen.rounds})")
    found: dict[str, list[dict]] = {name: [] for name in chosen.only}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        folder = chosen.environments or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for repeat in range(chosen.repeats):
            for name in chosen.only:
                if name in failed:
                    continue
                job = JOBS[name]
                try:
                    line = measure(job, environment(job.requirement, folder), chosen.rounds, folder)
                except RuntimeError as error:
                    failed[name] = str(error)
                    print(f"{name}: {error}", flush=True)
                    continue
                found[name].append(line)
                load = os.getloadavg()[0]
                print(f"{repeat + 1} {name}: {line['clients_per_second']:.1f} clients/s, load {load:.1f}", flush=True)
                if chosen.json:
                    with open(chosen.json, "a") as file:
                        file.write(json.dumps({"job": name, "load": load, **line}) + "\n")
    table(found)
    ratios(found)
    for name, reason in failed.items():
        print(f"\nnot measured: {name}: {reason}")


if __name__ == "__main__":
    main()

"""Servers and workers as processes of this one: started together, waited for, ended together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks.comparison_view import COMPARISON, VIEW_TAG, comparison_url

from .server import end_with_parent

START_LIMIT = 90  # seconds
HOST = "127.0.0.1"  # whoever reaches Prefect's API can run code with a worker's rights


# What `fcl serve` tells its worker in the environment: where MLflow shows a local database, and that all ends together.
MLFLOW_UI, SERVED = "FCL_MLFLOW_UI", "FCL_SERVED"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class NotStarted(RuntimeError):
    """A service ended before it answered, or did not answer in time."""


class Services:
    """Use as a context manager: whatever ends the block, all processes end, the last one started first.

    Inside, Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt.
    """

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self.root, self.environment = root, {**os.environ, **environment}
        self._running: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Services:
        for number in SIGNALS:
            signal.signal(number, _interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running.values()):
            stop(process)

    def start(self, name: str, command: Sequence[str], log: Path | None = None, **environment: str) -> None:
        """Starts `python -m COMMAND` in the project's folder; what it says goes to `log`, or nowhere."""
        said = open(log, "a") if log else subprocess.DEVNULL  # noqa: SIM115 - the process has it from here on
        self._running[name] = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.root,
            env={**self.environment, **environment},
            start_new_session=True,  # Ctrl-C is for this process, which ends the others
            preexec_fn=end_with_parent,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        if log:
            said.close()

    def stop(self, name: str) -> None:
        """Ends one of them, and what it started."""
        stop(self._running.pop(name))

    def wait_for(self, name: str, address: str) -> None:
        """Blocks until `address` answers.

        Raises:
            NotStarted: it does not within 90 s, or the process ended.
        """
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and self._running[name].poll() is None:
            if answers(address):
                return
            time.sleep(0.2)
        raise NotStarted(f"the {name} server did not start; is its database in use?")

    def watch(self) -> str:
        """Blocks until one of them ends by itself; its name."""
        while True:
            for name, process in self._running.items():
                if process.poll() is not None:
                    return name
            time.sleep(0.5)


def _interrupt(number: int, frame: object) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave a process behind
    print("\nstopping", flush=True)
    raise KeyboardInterrupt


def stop(process: subprocess.Popen) -> None:
    """Ends a process and those it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def answers(address: str) -> bool:
    """Whether something at `address` answers with a success within 5 s."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


def comparisons(mlflow: str) -> list[tuple[str, str]]:
    """(stream, address of its comparison) for each stream that the MLflow server knows; none where it does not say."""
    ask = urllib.request.Request(
        f"{mlflow.rstrip('/')}/api/2.0/mlflow/experiments/search",
        json.dumps({"max_results": 1000}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(ask, timeout=5) as answer:
            found = json.load(answer).get("experiments", [])
    except (urllib.error.URLError, OSError, ValueError):  # a server with a log-in: its address has been printed
        return []
    streams = [each for each in found if f"{VIEW_TAG}{COMPARISON}" in {tag["key"] for tag in each.get("tags", [])}]
    return sorted((each["name"], comparison_url(mlflow, each["experiment_id"])) for each in streams)


def address_file(root: Path) -> Path:
    """Where a running `fcl serve` of the project says its server's address."""
    return root / "runs" / "serve.json"


def free_port(wanted: int) -> int:
    """`wanted`, or a free port where something else listens there."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return probe.getsockname()[1]
            except OSError:
                continue
    raise RuntimeError("no free local port")


@contextmanager
def user_interfaces(root: Path) -> Iterator[tuple[Services, str, str]]:
    """Prefect's and MLflow's servers on local ports, their addresses printed: (services, Prefect's, MLflow's address).

    Both keep what they know where runs without a server keep it: Prefect's usual database, and `mlflow.db` or
    MLFLOW_TRACKING_URI. Where that is a server there is no need of one here: its address is given.
    """
    prefect = f"http://{HOST}:{free_port(4200)}"
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    remote = store.startswith(("http://", "https://"))
    mlflow = store if remote else f"http://{HOST}:{free_port(5000)}"
    own = {
        "PREFECT_API_URL": f"{prefect}/api",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes, for jobs that nobody here submits
    }
    with Services(root, own) as services:
        services.start("Prefect", ["prefect", "server", "start", "--host", HOST, "--port", prefect.rpartition(":")[2]])
        if not remote:
            where = ("--host", HOST, "--port", mlflow.rpartition(":")[2], "--workers", "1")
            services.start("MLflow", ["mlflow", "server", "--backend-store-uri", store, *where])
        services.wait_for("Prefect", f"{prefect}/api/health")
        print(f"Prefect UI  {prefect}/v2/runs", flush=True)
        if not remote:
            services.wait_for("MLflow", mlflow)
        print(f"MLflow UI   {mlflow}/#/experiments", flush=True)
        for stream, address in comparisons(mlflow):
            print(f"            methods on {stream}: {address}", flush=True)
        yield services, prefect, mlflow

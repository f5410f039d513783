"""Prefect's and MLflow's servers are killed in the middle of a run: back on the same port soon, or gone for good."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PREFECT = (
    "uvicorn",
    "--factory",
    "prefect.server.api.server:create_app",
    "--lifespan",
    "on",
    "--log-level",
    "critical",
)


class Service:
    """A server in a process of its own, which can be killed and started again on the same port and database."""

    def __init__(self, eventually, health: str, *command: str, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.eventually, self.health, self.environment = eventually, health, os.environ | environment
        self.command = [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, env=self.environment, start_new_session=True, **quiet)

    def wait(self) -> None:
        self.eventually(self._answers, f"an answer of {self.command[2]}", pause=0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}{self.health}", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """With the processes that it started."""
        if self.process and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def ask(self, path: str) -> list[dict]:
        request = urllib.request.Request(
            f"{self.url}{path}", data=b'{"limit": 200}', headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture
def place(small_project, tmp_path):
    """A project of its own."""
    return Path(shutil.copytree(small_project, tmp_path / "project"))


@pytest.fixture
def prefect(eventually, tmp_path):
    database = f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}"
    service = Service(eventually, "/api/health", *PREFECT, PREFECT_API_DATABASE_CONNECTION_URL=database)
    yield service
    service.kill()


@pytest.fixture
def mlflow(eventually, tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = ("--backend-store-uri", store, "--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1")
    service = Service(eventually, "/health", "mlflow", "server", *options, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    yield service
    service.kill()


@pytest.fixture
def start_run(place):
    """Starts `fcl run fedavg` in a process of its own."""
    started = []

    def start(*options: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "cli", "run", "fedavg", "--stream", "digits", "--set", "run.device=cpu"]
        process = subprocess.Popen(
            [*command, *options],
            cwd=place,
            env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def moment(place: Path) -> list[int]:
    """The first round that the run's checkpoint does not count."""
    for checkpoint in (place / "runs").glob("digits-*/checkpoint.json"):
        return json.loads(checkpoint.read_text())["progress"]["next"]
    return [0, 0]


def digest(place: Path) -> str:
    return json.loads((place / "results" / "digits" / "fedavg" / "seed-0" / "run.json").read_text())["digest"]


def test_both_servers_are_killed_and_come_back(prefect, mlflow, place, start_run, undisturbed, eventually, monkeypatch):
    from mlflow.tracking import MlflowClient

    from tasks.delivery import deliver_all, records

    for service in (prefect, mlflow):
        service.start()
    for service in (prefect, mlflow):
        service.wait()
    run = start_run(PREFECT_API_URL=f"{prefect.url}/api", MLFLOW_TRACKING_URI=mlflow.url)
    eventually(lambda: moment(place) >= [0, 1], "a round")
    for service in (prefect, mlflow):
        service.kill()
    eventually(lambda: moment(place) >= [1, 0], "rounds without servers")
    for service in (prefect, mlflow):
        service.start()
    said, error = run.communicate()
    assert (run.returncode, error) == (0, ""), said
    assert digest(place) == undisturbed.digest
    for service in (prefect, mlflow):
        service.wait()
    (flow_run,) = prefect.ask("/api/flow_runs/filter")
    assert flow_run["state_name"] == "Completed"

    # What MLflow has not heard is kept, and sent when it is asked for.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
    assert deliver_all(place) == [] and records(place) == []
    client = MlflowClient(mlflow.url)
    (told,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id], "tags.kind = 'seed'")
    assert told.info.status == "FINISHED"
    assert sorted(point.step for point in client.get_metric_history(told.info.run_id, "round/loss")) == list(range(6))
    metrics = json.loads((place / "results" / "digits" / "fedavg" / "seed-0" / "metrics.json").read_text())
    assert {name: told.data.metrics[name] for name in metrics} == pytest.approx(metrics)


def test_a_prefect_server_that_is_gone_for_good_costs_the_ui_its_last_word_and_nothing_else(
    prefect, place, start_run, undisturbed, eventually
):
    prefect.start()
    prefect.wait()
    run = start_run(PREFECT_API_URL=f"{prefect.url}/api", PREFECT_CLIENT_MAX_RETRIES="1")
    eventually(lambda: moment(place) >= [0, 1], "a round")
    prefect.kill()
    said, error = run.communicate()
    assert (run.returncode, error) == (0, ""), said
    assert f"note: the Prefect server at {prefect.url}/api went away and does not show how this run ended" in said
    assert digest(place) == undisturbed.digest

"""Services that a team shares, as docs/services.md says: Prefect and MLflow on a real PostgreSQL, artifacts in S3."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from flows.services import comparisons, stop

DEADLINE = 120  # seconds after which something that must happen has not; no test measures time
BUCKET = "fcl"
KEYS = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16), "AWS_DEFAULT_REGION": "us-east-1"}


def binaries() -> Path | None:
    """The folder of PostgreSQL's server programs, which Debian keeps off the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def process(command: list[str], environment: dict[str, str], answers: str):
    """A server as a process of its own, once it answers at the address `answers`."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True, **quiet)
    try:
        deadline = time.monotonic() + DEADLINE
        while not reached(answers):
            assert server.poll() is None, f"{command} has ended"
            assert time.monotonic() < deadline, f"{command} does not answer"
            time.sleep(0.2)
        yield
    finally:
        stop(server)


def reached(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def postgres():
    """`psql(database, query)` on a PostgreSQL with databases prefect and mlflow; `psql.url(database)`."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    # Not below pytest's own folder, which only its user may enter: PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="fcl-postgres-"))
    password, port = secrets.token_hex(16), free_port()
    (folder / "password").write_text(password)
    as_user: list[str] = []
    if os.getuid() == 0:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        for place in (folder, folder / "password"):
            shutil.chown(place, "postgres", "postgres")

    def call(*command: str) -> None:
        subprocess.run([*as_user, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    call(
        str(programs / "initdb"), "-D", data, "-U", "team", "-A", "scram-sha-256", "--pwfile", str(folder / "password")
    )
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    call(str(programs / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")

    def psql(database: str, query: str) -> str:
        command = [
            str(programs / "psql"),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            "team",
            "-d",
            database,
            "-Atc",
            query,
        ]
        about = {**os.environ, "PGPASSWORD": password}
        return subprocess.run(command, env=about, check=True, capture_output=True, text=True).stdout.strip()

    psql.url = lambda database: f"team:{password}@127.0.0.1:{port}/{database}"
    psql.password = password
    try:
        for name in ("prefect", "mlflow"):
            psql("postgres", f"CREATE DATABASE {name}")
        yield psql
    finally:
        call(str(programs / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def services(postgres, tmp_path_factory):
    """The environment of a user of the team's services, started as docs/services.md says."""
    home = {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect-home"))}
    with ExitStack() as running:
        store, prefect, mlflow = (f"http://127.0.0.1:{free_port()}" for _ in range(3))
        port = store.rpartition(":")[2]
        s3 = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        running.enter_context(process(s3, {}, store))
        urllib.request.urlopen(urllib.request.Request(f"{store}/{BUCKET}", method="PUT")).close()
        about = {"PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{postgres.url('prefect')}", **home}
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        command += ["--port", prefect.rpartition(":")[2]]
        running.enter_context(process(command, about, f"{prefect}/api/health"))
        about = {"MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://{postgres.url('mlflow')}"}
        about |= {"MLFLOW_S3_ENDPOINT_URL": store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **KEYS}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", mlflow.rpartition(":")[2]]
        command += ["--artifacts-destination", f"s3://{BUCKET}/artifacts", "--workers", "1"]
        running.enter_context(process(command, about, f"{mlflow}/health"))
        yield {
            "PREFECT_API_URL": f"{prefect}/api",
            "MLFLOW_TRACKING_URI": mlflow,
            "AWS_ENDPOINT_URL": store,  # of the payload store's
            **KEYS,
            **home,
        }


def test_a_run_on_the_teams_services_is_the_same_and_is_recorded_there(
    services, postgres, workshop, undisturbed, eventually, tmp_path
):
    out = tmp_path / "shared"
    command = [sys.executable, "-m", "cli", "run", "fedavg", "--stream", "digits", "--out", str(out)]
    command += ["--set", f"run.store=s3://{BUCKET}/payloads", "--set", "run.tracking_patience=60"]
    about = {**os.environ, **services, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=workshop, env=about, capture_output=True, text=True, timeout=10 * DEADLINE)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "run.json").read_text())["digest"] == undisturbed.digest

    assert postgres("prefect", "SELECT state_type FROM flow_run") == "COMPLETED"
    assert int(postgres("prefect", "SELECT count(*) FROM task_run")) > 5
    # A run does not wait until MLflow has its files.
    means = (
        "SELECT value FROM latest_metrics JOIN runs USING (run_uuid) WHERE runs.name = 'fedavg-shared' AND key = '{}'"
    )
    eventually(lambda: postgres("mlflow", means.format("seeds")) == "1", "a finished MLflow run", pause=0.5)
    metrics = json.loads((out / "metrics.json").read_text())
    assert float(postgres("mlflow", means.format("forgetting"))) == pytest.approx(metrics["forgetting"])
    assert postgres("mlflow", "SELECT status FROM runs WHERE name = 'fedavg-shared/seed-0'") == "FINISHED"
    aliases = "SELECT alias FROM registered_model_aliases WHERE name = 'digits.fedavg-shared' ORDER BY alias"
    assert postgres("mlflow", aliases).split() == ["best", "newest"]
    told = subprocess.run(
        [sys.executable, "-m", "cli", "compare", "--from", "mlflow"],
        cwd=workshop,
        env=about,
        capture_output=True,
        text=True,
        timeout=10 * DEADLINE,
    )
    assert "fedavg-shared" in told.stdout, told.stderr
    ((stream, address),) = comparisons(services["MLFLOW_TRACKING_URI"])
    experiment = json.loads((out / "run.json").read_text())["mlflow_experiment"]
    assert stream == "digits" and f"/#/experiments/{experiment}/runs?" in address
    code = "import mlflow; print(mlflow.pyfunc.load_model('models:/digits.fedavg-shared@best').metadata.run_id)"
    user = {name: value for name, value in about.items() if name not in KEYS}  # the server hands the files on
    loaded = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=user, capture_output=True, text=True)
    assert loaded.stdout.strip() == json.loads((out / "run.json").read_text())["mlflow_run"], loaded.stderr
    assert int(postgres("mlflow", "SELECT count(*) FROM metrics")) > 5

    import boto3

    keys = {name.lower(): value for name, value in KEYS.items() if "KEY" in name}
    client = boto3.client("s3", endpoint_url=services["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys)
    kept = [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert any(name.endswith("metrics.json") for name in kept)
    assert not any(name.startswith("payloads/") for name in kept)  # a finished run needs none
    for secret in (postgres.password, KEYS["AWS_SECRET_ACCESS_KEY"]):
        for path in [*out.rglob("*"), *(workshop / "runs").rglob("*")]:
            assert not path.is_file() or secret.encode() not in path.read_bytes()
        assert secret not in done.stdout + done.stderr
        for table in ("params", "tags", "model_version_tags"):
            assert not int(postgres("mlflow", f"SELECT count(*) FROM {table} WHERE value LIKE '%{secret}%'"))
        assert not int(postgres("prefect", f"SELECT count(*) FROM flow_run WHERE parameters::text LIKE '%{secret}%'"))

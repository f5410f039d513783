"""The result is the same on Dask and Ray clusters, started for the run or there before it, whose workers are killed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from errors import InputError

TINY = ("train.rounds=1",)
PACKAGES = {"dask": "distributed", "ray": "ray"}
VICTIMS = '''
"""Work that ends its worker."""
import os, pathlib, signal


def die(site, log, times):
    """Notes its process and ends it, the first `times` times; then says how often it died."""
    log = pathlib.Path(log)
    died = len(log.read_text().split()) if log.exists() else 0
    if died < times:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return died


def complain(site):
    raise KeyError("a word of the work's own")
'''


@pytest.fixture(scope="module")
def tiny(play_run):
    """FedLwF, whose clients keep states, on one thread: what the others are compared with."""
    return play_run("fedlwf", *TINY, workers=1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end(process: subprocess.Popen) -> None:
    """A process and all that it started."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else [process]
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


@pytest.fixture(scope="module")
def elsewhere(root):
    """Starts `python -m ...` with the project (or a copy of it) importable, as on a machine of a cluster."""
    started = []

    def start(*arguments: str, project: Path = root, cwd: Path | None = None) -> subprocess.Popen:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command, variables = [sys.executable, "-m", *arguments], os.environ | {"PYTHONPATH": str(project)}
        started.append(subprocess.Popen(command, cwd=cwd or project, env=variables, **quiet))
        return started[-1]

    yield start
    for process in reversed(started):
        end(process)


@pytest.fixture(scope="module")
def dask_worker(elsewhere, tmp_path_factory):
    """Starts a worker of one thread, under a nanny."""

    def start(address: str, project: Path | None = None) -> subprocess.Popen:
        place = tmp_path_factory.mktemp("dask")
        options = ("--nthreads=1", "--no-dashboard", "--memory-limit=0", f"--local-directory={place}")
        return elsewhere("distributed.cli.dask_worker", address, *options, **({"project": project} if project else {}))

    return start


@pytest.fixture(scope="module")
def dask_cluster(elsewhere, dask_worker, eventually):
    """A scheduler and a worker, as a person starts them: (address, the nanny's process)."""
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    address = f"tcp://127.0.0.1:{free_port()}"
    elsewhere("distributed.cli.dask_scheduler", f"--host={address}", "--no-dashboard", "--no-show")
    nanny = dask_worker(address)
    with distributed.Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
    return address, nanny


@pytest.fixture(scope="module")
def ray_cluster(elsewhere, eventually):
    """The address of a Ray head with one CPU."""
    pytest.importorskip("ray", reason="the extra 'cluster' is not installed")
    port = free_port()
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"fcl-test-ray-{os.getpid()}"  # sockets: a path must be short
    options = ("--head", "--block", "--num-cpus=1", "--include-dashboard=false", f"--port={free_port()}")
    options += (f"--ray-client-server-port={port}", "--object-store-memory=80000000", "--disable-usage-stats")

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # a head needs one, and makes none
        elsewhere("ray.scripts.scripts", "start", *options, f"--temp-dir={folder}")
        eventually(answers, "a Ray client server", pause=0.1)
        yield f"ray://127.0.0.1:{port}"
    shutil.rmtree(folder, ignore_errors=True)


def kill_in_the_first_round(victims, killed, eventually):
    """A hook of `play_run` that kills workers while clients train."""

    def during(run):
        def kill():
            eventually(lambda: any((run.folder.path / "store" / "broadcasts").glob("*.safetensors")), "a broadcast")
            for victim in eventually(victims, "a worker to kill"):
                victim.kill()
                killed.append(victim.pid)

        def at(done, total, what):
            if done == 1:
                threading.Thread(target=kill).start()

        return at

    return during


def test_on_a_dask_cluster_whose_worker_is_killed_in_a_round(play_run, tiny, dask_cluster, eventually, assert_same):
    address, nanny = dask_cluster
    killed = []

    def workers():
        family = psutil.Process(nanny.pid).children()
        return [each for each in family if "spawn_main" in " ".join(each.cmdline())]

    during = kill_in_the_first_round(workers, killed, eventually)
    assert_same(play_run("fedlwf", *TINY, runner="dask", address=address, workers=1, during=during), tiny)
    assert len(killed) == 1
    assert nanny.poll() is None, "the cluster was there before the run, and stays"


def test_on_a_ray_cluster_by_its_address(play_run, tiny, ray_cluster, assert_same):
    assert_same(play_run("fedlwf", *TINY, runner="ray", address=ray_cluster, workers=1), tiny)


@pytest.mark.parametrize("runner", PACKAGES)
def test_a_run_that_is_killed_ends_its_cluster_and_goes_on_to_the_same_result(
    runner, play_run, tiny, elsewhere, workshop, new_out, eventually, assert_same
):
    """The cluster was started for the run, with two workers; so is that of the run that goes on.

    Two helpers of Ray are not waited for: for a minute they try to tell its server, which is gone, that it is gone.
    """
    pytest.importorskip(PACKAGES[runner], reason="the extra 'cluster' is not installed")
    from parameters import experiment
    from tasks.run import run_folder

    out = new_out()
    place = run_folder(experiment("fedlwf", "digits", 0, list(TINY), workshop), workshop, out)
    options = ("--set", TINY[0], "--set", "run.device=cpu", "--runner", runner, "--workers", "2", "--out", str(out))
    run = elsewhere("cli", "run", "fedlwf", "--stream", "digits", *options, cwd=workshop)
    eventually(lambda: place.checkpoint.exists() or run.poll() is not None, "a checkpoint")
    family = [each for each in psutil.Process(run.pid).children(recursive=True) if not helps_ray(each)]
    assert len(family) >= 2
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    eventually(lambda: all(map(gone, family)), "the end of all that the run had started")
    assert_same(play_run("fedlwf", *TINY, out=out, resume=True, runner=runner, workers=2), tiny)


def helps_ray(process: psutil.Process) -> bool:
    names = ("DashboardAgent", "dashboard/agent.py", "RuntimeEnvAgent", "runtime_env/agent")
    try:
        return any(name in " ".join(process.cmdline()) for name in names)
    except psutil.NoSuchProcess:
        return False


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def place(workshop, tmp_path):
    """Where an experiment is."""
    from parameters import experiment
    from tasks.site import Place

    return Place(experiment("fedavg", "digits", 0, [], workshop, device="cpu"), workshop, str(tmp_path / "store"))


@pytest.mark.parametrize("runner", PACKAGES)
def test_lost_work_is_done_again_until_it_has_been_lost_three_times(runner, place, tmp_path, monkeypatch):
    pytest.importorskip(PACKAGES[runner], reason="the extra 'cluster' is not installed")
    from tasks.workers import ATTEMPTS, WorkerDied, Workers

    (tmp_path / "victims.py").write_text(VICTIMS)
    monkeypatch.syspath_prepend(str(tmp_path))  # which the workers get, too
    import victims

    logs = [tmp_path / name for name in ("once", "always")]
    with Workers(place, runner, 1) as workers:
        workers.wait_until_ready()
        with pytest.raises(KeyError, match="a word of the work's own"):
            workers.call(victims.complain)
        assert workers.call(victims.die, str(logs[0]), 1) == 1
        with pytest.raises(WorkerDied):
            workers.call(victims.die, str(logs[1]), 99)
    assert [len(set(log.read_text().split())) for log in logs] == [1, ATTEMPTS]


def test_a_worker_with_other_code_is_refused_by_name_and_nothing_is_written(
    play_run, dask_cluster, dask_worker, root, tmp_path, new_out
):
    """A second worker of the cluster has a checkout with one more line."""
    from distributed import Client

    address, _ = dask_cluster
    ignore = shutil.ignore_patterns(".*", "tests", "data", "docs", "built", "results", "runs", "__pycache__")
    copy = shutil.copytree(root, tmp_path / "checkout", ignore=ignore, ignore_dangling_symlinks=True)
    with open(copy / "methods" / "fedavg.py", "a") as file:
        file.write("\nEDITED = True\n")
    out = new_out()
    runs = out.parents[2] / "runs"
    before = {path.name for path in runs.iterdir()}
    other = dask_worker(address, project=copy)
    try:
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        with pytest.raises(InputError, match=rf"project's code on {socket.gethostname()} is \w+, the run's is \w+"):
            play_run("fedlwf", *TINY, out=out, runner="dask", address=address)
    finally:
        end(other)
    assert not out.exists()
    assert {path.name for path in runs.iterdir()} == before


@pytest.mark.parametrize("field", ["python", "torch", "code", "stream", "device"])
def test_what_a_worker_has_otherwise_is_said(place, field):
    from tasks.door import common, objection

    mine = common(place)
    assert objection(place, mine, None) == ""
    said = objection(place, replace(mine, **{field: "other"}), None)
    assert socket.gethostname() in said and getattr(mine, field)[:12] in said and "the run's is other" in said


def test_a_worker_that_does_not_see_the_project_or_the_store_is_told_so(place, tmp_path):
    from tasks.door import common, objection
    from tasks.store import Ref, Store

    mine = common(place)
    nowhere = replace(place, root=tmp_path / "nowhere")
    assert f"does not see the project's folder {nowhere.root}" in objection(nowhere, mine, None)
    assert "does not see what the run writes to the store" in objection(place, mine, Ref("probes", "0" * 64, 16))
    with Store(place.store).probe() as probe:
        assert objection(place, mine, probe) == ""
    assert not Path(place.store).exists(), "the probe leaves nothing behind"


@pytest.fixture
def silent():
    """A port of this machine that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(("runner", "scheme"), [("dask", "tcp"), ("ray", "ray")])
def test_a_wrong_address_is_said_before_anything_is_written(runner, scheme, play_run, new_out, monkeypatch, silent):
    pytest.importorskip(PACKAGES[runner], reason="the extra 'cluster' is not installed")
    if runner == "dask":
        monkeypatch.setattr("tasks.dask_cluster.CONNECT", 1)
    else:
        monkeypatch.setattr("ray.util.client.worker.INITIAL_TIMEOUT_SEC", 1)
        monkeypatch.setattr("ray.util.client.worker.MAX_TIMEOUT_SEC", 1)
    out = new_out()
    for port in (free_port(), silent):
        address = f"{scheme}://127.0.0.1:{port}"
        with pytest.raises(InputError, match=rf"run.address: expected a {runner.title()} .*{address}"):
            play_run("fedlwf", *TINY, out=out, runner=runner, address=address)
    assert not out.exists()


def test_a_silent_scheduler_is_waited_for_no_longer_than_20_seconds():
    from tasks import dask_cluster, ray_cluster

    assert dask_cluster.CONNECT <= 20
    assert ray_cluster.CONNECT <= 20
    assert int(os.environ["RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S"]) * 3 <= 20


@pytest.mark.parametrize("runner", PACKAGES)
def test_without_its_package_a_runner_is_refused_and_the_extra_is_named(runner, fcl, new_out, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[runner], None)  # what an import of a missing package comes to
    status, said, error = fcl("run", "fedavg", "--stream", "digits", "--runner", runner, "--out", new_out())
    assert (status, said) == (2, "")
    assert f"'{runner}' needs the package {PACKAGES[runner]}" in error and "fcl[cluster]" in error


def test_nothing_of_a_cluster_is_imported_before_it_is_chosen():
    code = "import sys, tasks.run, cli; print(*{'dask', 'distributed', 'ray', 's3fs', 'botocore'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert found.stdout.split() == []

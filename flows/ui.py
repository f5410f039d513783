"""`make ui`: the Prefect and MLflow user interfaces on local ports, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress

from parameters import project_root
from tasks.delivery import deliver_all, records

from . import settings


def free_port(wanted: int) -> int:
    """`wanted`, or a free port where something else listens there."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return probe.getsockname()[1]
            except OSError:
                continue
    raise RuntimeError("no free local port")


def answers(url: str, process: subprocess.Popen, limit: float = 90) -> bool:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False


def main() -> int:
    """Starts both servers on this machine only, prints their addresses, stops both on Ctrl-C."""
    settings.apply()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # ended otherwise, it stops both servers as well
    root = project_root()
    if records(root):
        print("sending what MLflow does not have yet (Ctrl-C: not now)", flush=True)
        with suppress(KeyboardInterrupt):
            if kept := deliver_all(root):
                print(f"note: {len(kept)} runs could not be sent; they are kept in runs/untracked", flush=True)
    prefect_port, mlflow_port = free_port(4200), free_port(5000)
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    own = {
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect_port}/api",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes, for jobs that nobody here submits
    }
    servers = {
        "Prefect": (
            f"http://127.0.0.1:{prefect_port}",
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)],
        ),
        "MLflow": (
            f"http://127.0.0.1:{mlflow_port}",
            [
                *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(mlflow_port)),
            ],
        ),
    }
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = {
        name: subprocess.Popen(command, env={**os.environ, **own}, cwd=root, start_new_session=True, **quiet)
        for name, (_, command) in servers.items()
    }
    start_page = {"Prefect": "/runs", "MLflow": "/#/experiments"}
    status = 0
    try:
        for name, (address, _) in servers.items():
            if not answers(address, running[name]):
                print(f"error: the {name} server did not start; is its database in use?", file=sys.stderr)
                return 1
            print(f"{name + ' UI':11} {address}{start_page[name]}", flush=True)
        print("Ctrl-C stops both", flush=True)
        while all(process.poll() is None for process in running.values()):
            time.sleep(0.5)
        status = 1
        print("error: a server stopped by itself", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopping")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave a server behind
        for process in running.values():
            stop(process)
    return status


def stop(process: subprocess.Popen) -> None:
    """Ends a server and the processes it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main())

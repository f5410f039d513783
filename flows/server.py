"""A temporary local Prefect server for runs that have none.

    python -m flows.server COMMAND ...     one server for all runs that COMMAND starts (make repro)

Prefect can start one by itself, but only when the first flow asks for it, which costs 10 to 14 s of waiting; started
here while torch is being imported and with a lower priority than training, it costs about 3.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from . import settings

# What Prefect itself sets for the temporary servers that it starts.
PRIVATE = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
START_LIMIT = 180  # seconds; a loaded machine needs about 10, one on which eight others compute has needed 60


class TemporaryServer:
    """The Prefect API on a free local port, keeping its records in Prefect's usual database."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        application = ["--factory", "flows.application:create", "--lifespan", "on"]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "critical"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *application, *address],
            env={**os.environ, "PREFECT_UI_ENABLED": "0", **PRIVATE},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_step_back,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def wait(self) -> None:
        """Blocks until the server answers."""
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        if self.process.poll() is not None:
            raise RuntimeError(
                f"the temporary Prefect server ended with status {self.process.returncode} before it answered; try "
                "again, or start one with `prefect server start` and set PREFECT_API_URL"
            )
        raise RuntimeError(
            f"the temporary Prefect server did not start within {START_LIMIT} s; start one with `prefect server start` "
            "and set PREFECT_API_URL"
        )

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """This process gets a signal when the one that started it ends, also when that is killed. On Linux only."""
    if _libc:
        _libc.prctl(_PR_SET_PDEATHSIG, number)


def _step_back() -> None:
    """In the server's process: keep out of training's way, leave Ctrl-C to the run that started it, end with it."""
    os.nice(10)
    os.setpgrp()
    end_with_parent()


def _has_server() -> bool:
    """Whether the environment or Prefect's own profile names a server."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
    if not (home / "profiles.toml").exists():
        return False
    from prefect.settings import get_current_settings  # a second's import, only where there may be an answer

    return bool(get_current_settings().api.url)


def deliver() -> None:
    """Sends what Prefect still holds back here: at interpreter exit, when it would do so, the server is gone."""
    if "prefect.events.worker" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        EventsWorker.drain_all(timeout=10)
        APILogWorker.drain_all(timeout=10)


class ServerLost(RuntimeError):
    """The Prefect server went away in the middle of a run, which can be resumed."""


_abandoned = False


def outlast(error: Exception, finished: bool) -> str:
    """What to note of a Prefect server that went away while a run played, and did not come back.

    Args:
        finished: all rounds and evaluations are done; the results do not need the server.
    Raises:
        ServerLost: not all of them are.
    """
    global _abandoned
    _abandoned = True
    what = f"the Prefect server at {os.environ.get('PREFECT_API_URL', 'its address')} went away"
    why = " ".join(f"{type(error).__name__}: {error}".split())
    if not finished:
        raise ServerLost(f"{what} ({why}); start it again and go on with --resume") from error
    return f"{what} and does not show how this run ended ({why})"


def leave(status: int) -> None:
    """Ends this process at once where a server was abandoned.

    At its exit Prefect would try for eight seconds to send each of hundreds of events to a server that is gone.
    """
    if _abandoned:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def prefect_server():
    """Uses the Prefect server that is configured, or a temporary one; yields a function that waits until it answers."""
    if _has_server():
        yield lambda: None
        return
    server = TemporaryServer()
    os.environ["PREFECT_API_URL"] = server.url
    try:
        yield server.wait
    finally:
        del os.environ["PREFECT_API_URL"]
        try:
            if not _abandoned:
                deliver()
        finally:
            server.stop()


def main() -> int:
    """Runs a command with a Prefect server that all runs it starts share."""
    settings.apply()
    with prefect_server() as wait:
        wait()
        return subprocess.run(sys.argv[1:], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

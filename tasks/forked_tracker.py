"""A tracking process as a fork of one that has imported MLflow, which takes no second instead of two."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from . import tracker

POLL = 0.05  # seconds between looks whether it has ended


class Forked:
    """What `tasks.tracking.Tracker` uses of a `subprocess.Popen`."""

    def __init__(self, number: int, orders: int, answers: int) -> None:
        self.number = number
        self.stdin, self.stdout = os.fdopen(orders, "wb", buffering=0), os.fdopen(answers, "rb")
        self.ended = False

    def kill(self) -> None:
        if not self.ended:
            os.kill(self.number, signal.SIGKILL)

    def wait(self, timeout: float = float("inf")) -> None:
        """Blocks until it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.ended:
            self.ended = os.waitpid(self.number, os.WNOHANG)[0] == self.number
            if not self.ended:
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired("tasks.tracker", timeout)
                time.sleep(POLL)


def fork() -> Forked:
    """For a process without threads."""
    (orders, order), (answer, answers) = os.pipe(), os.pipe()
    number = os.fork()
    if number:
        os.close(orders)
        os.close(answers)
        return Forked(number, order, answer)
    status = 1
    try:
        os.setsid()  # Ctrl-C is for the run; the tracker ends when it is told
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for file, place in ((orders, 0), (answers, 1), (os.open(os.devnull, os.O_WRONLY), 2)):
            os.dup2(file, place)
        os.closerange(3, max(orders, order, answer, answers) + 1)
        tracker.main()
        status = 0
    finally:
        os._exit(status)

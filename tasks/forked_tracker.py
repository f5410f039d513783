"""A tracking process as a fork of one that has imported MLflow, which takes no second instead of two."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback

from . import tracker

POLL = 0.05  # seconds between looks whether it has ended


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_NAME = 15  # of prctl(2)


def name_process(name: str) -> None:
    """What `top` shows of this process, at most 15 characters. On Linux only."""
    if _libc:
        _libc.prctl(_PR_SET_NAME, name.encode())


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
    """For a process in which Python has one thread."""
    (orders, order), (answer, answers) = os.pipe(), os.pipe()
    number = os.fork()
    if number:
        os.close(orders)
        os.close(answers)
        return Forked(number, order, answer)
    status = 1
    try:
        name_process("fcl tracker")
        os.setsid()  # Ctrl-C is for the run; the tracker ends when it is told
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for file, place in ((orders, 0), (answers, 1), (os.open(os.devnull, os.O_WRONLY), 2)):
            os.dup2(file, place)
        os.closerange(3, max(orders, order, answer, answers) + 1)
        tracker.main()
        status = 0
    except BaseException:
        traceback.print_exc()  # into the run's tracking.log
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

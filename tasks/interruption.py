"""Ctrl-C and a batch system's SIGTERM, remembered until the run heeds them.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a callback, a finaliser or a library's bare
`except` it is lost, and Prefect drops one that arrives while a flow ends. So the signal also leaves a mark, and a run
looks for it each time it moves on.
"""

from __future__ import annotations

import signal

_received = False


def listen() -> None:
    """From now on SIGINT and SIGTERM raise KeyboardInterrupt, each time, and are remembered; earlier ones are not.

    Raises:
        ValueError: this is not the main thread.
    """
    global _received
    _received = False
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell starts what it puts into the background
            signal.signal(number, _receive)


def _receive(number: int, frame: object) -> None:
    global _received
    _received = True  # no lock: a second signal may arrive in here
    raise KeyboardInterrupt


def received() -> bool:
    """Whether a signal has arrived since `listen`: who waits for something gives up."""
    return _received


def heed() -> None:
    """Does nothing unless a signal has arrived since `listen`.

    Raises:
        KeyboardInterrupt: one has, whatever became of the KeyboardInterrupt that was raised then.
    """
    if _received:
        raise KeyboardInterrupt

"""The tracking process: reports one run to MLflow while it lasts, delivers its results, then what earlier runs kept.

python -m tasks.tracker     follows the orders of `tasks.tracking.Tracker` on its standard input
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from .delivery import deliver, deliver_kept

if TYPE_CHECKING:
    from .reporting import Report

POLL = 0.3  # seconds between looks into the journal
STOP_LIMIT = 10  # seconds in which MLflow must take that a run has stopped


def follow(
    folder: Path, uri: str, orders: SimpleQueue, answer: Callable[[dict[str, Any]], None]
) -> dict[str, str] | None:
    """Reports the run in `folder` while it lasts; its last order, or None: it is gone without one."""
    last, ended, report, deadline = None, False, None, float("inf")
    while True:
        with suppress(Empty):
            order = orders.get(timeout=POLL)
            if order and "deliver" in order:
                return order  # what is not reported yet is in the record
            if not ended:
                ended, last, deadline = True, order, time.monotonic() + (STOP_LIMIT if order else 0)
        if ended and not last and not report:
            return None  # MLflow does not know of the run; a resumed one has a tracker of its own
        try:
            report = report or begin(folder, uri, answer)
            report.catch_up(counted(folder))
            if ended:
                report.stop(last["status"] if last else "KILLED")
                return last
        except Exception as error:  # whatever keeps the tracking server from answering must not end the run
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if time.monotonic() > deadline:
            return last


def begin(folder: Path, uri: str, answer: Callable[[dict[str, Any]], None]) -> Report:
    from .reporting import Report

    about = json.loads((folder / "tracking.json").read_text()) | {"uri": uri}
    known = folder / "mlflow.json"
    return Report(about, folder / "journal.jsonl", json.loads(known.read_text()) if known.exists() else None, answer)


def counted(folder: Path) -> int:
    """Bytes of the journal that the checkpoint counts: what a resumed run would not take back."""
    checkpoint = folder / "checkpoint.json"
    return json.loads(checkpoint.read_text())["progress"]["journal"] if checkpoint.exists() else 0


def read_orders() -> SimpleQueue:
    """The orders as they come; None after the last one."""
    orders: SimpleQueue = SimpleQueue()

    def read() -> None:
        try:
            for line in sys.stdin:
                orders.put(json.loads(line))
        finally:
            orders.put(None)

    threading.Thread(target=read, daemon=True).start()
    return orders


def log_into(folder: Path) -> None:
    """Sends what this process and the libraries say to a file that lies with what it is about."""
    with open(folder / "tracking.log", "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def main() -> None:
    """Follows one run, delivers its results, then sends what earlier runs could not."""
    orders = read_orders()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")

    def answer(known: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # the run is gone
            print(json.dumps(known), file=answers, flush=True)

    gc.disable()  # what is imported stays
    with suppress(Exception):  # said again, and logged, when it is needed
        importlib.import_module("tasks.reporting")
    gc.enable()
    order = orders.get()
    if not order:
        return
    folder, uri = Path(order["follow"]), order["uri"]
    log_into(folder)
    about = json.loads((folder / "tracking.json").read_text())
    os.chdir(about["root"])  # MLflow puts the artifacts of a local database under the current folder
    # The tracker of a killed run ends within a second or so; until then its successor waits here.
    with FileLock(folder.parent / "locks" / f"{folder.name}.tracker.lock"):
        last = follow(folder, uri, orders, answer)
    if not last or "deliver" not in last:
        return
    record, root = Path(last["deliver"]), Path(about["root"])
    with suppress(FileNotFoundError):  # another tracker was faster
        log_into(record)
    os.nice(10)  # the next run may have begun
    deadline = time.monotonic() + about["patience"]
    while not deliver(record, root, uri):
        if time.monotonic() > deadline:
            return
        time.sleep(POLL)
    deliver_kept(root, uri)


if __name__ == "__main__":
    main()

"""MLflow, seen from a run: a process of its own (`tasks/tracker.py`) reports the run, and delivers its results later.

Training never waits for the tracking server and does not fail with it. The journal is the truth, the tracker its
reader. What is to be delivered in the end is filed under `runs/untracked/` (`tasks/delivery.py`), so a tracker that is
killed, or cannot reach MLflow, loses nothing: the next run's tracker sends it.

The tracker follows orders, one JSON object a line: `{"follow": FOLDER}`, then `{"deliver": RECORD}` or
`{"status": "FAILED"}`. The end of the orders tells it that the run is gone. It answers with what is known of the MLflow
run, which lies in the run's folder for when the run is resumed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from .delivery import tracking_uri
from .files import write_json

STOP_LIMIT = 10  # seconds that a run which stops waits until MLflow knows


def spawn() -> subprocess.Popen:
    """A tracking process."""
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.tracker"],
        cwd=Path(__file__).parent.parent,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # until it has the run's folder for its log
        start_new_session=True,  # Ctrl-C is for the run; the tracker ends when it is told
    )


begin = spawn  # flows/nursery.py, which has imported MLflow, puts `tasks.forked_tracker.fork` here


class Tracker:
    """The run's side. Use as a context manager: whatever ends the run, its tracker is told or ends too.

    It starts at once, since it needs two seconds to import MLflow and to open its store.
    """

    def __init__(self) -> None:
        self.process = begin()
        self.lineage = ""  # of a run and its resumptions: names their one MLflow run before MLflow does
        self._folder: Path | None = None
        self._known: dict[str, Any] | None = None
        self._over = False
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._over:
            self._end()

    def follow(self, folder: Path, root: Path, description: dict[str, Any]) -> None:
        """Reports the run in `folder` from now on, or goes on where a killed run's tracker stopped."""
        about = folder / "tracking.json"  # there is one where a run is resumed
        self.lineage = json.loads(about.read_text())["lineage"] if about.exists() else uuid.uuid4().hex
        write_json(about, {**description, "root": str(root), "lineage": self.lineage})
        self._folder = folder
        self._order(follow=str(folder), uri=tracking_uri(root))  # not by way of a file: it may hold a password

    def run_id(self, patience: float) -> str | None:
        """The MLflow run's id; None where MLflow has not answered after `patience` seconds or the tracker has ended."""
        with self._news:
            self._news.wait_for(lambda: self._known or self._over, patience)
            return self._known["run_id"] if self._known else None

    @property
    def experiment_id(self) -> str | None:
        """The id of the MLflow experiment of `run_id`; None where that is."""
        with self._news:
            return self._known["experiment_id"] if self._known else None

    def deliver(self, record: Path) -> None:
        """The run is over, `record` holds what is to be delivered; does not wait."""
        with self._news:
            self._over = True  # the run's folder is about to go: nothing is written into it any more
        if self._known:
            self._order(deliver=str(record))
        else:  # MLflow did not answer: the next run's tracker will try
            self._end()

    def stop(self, status: str) -> None:
        """The run did not finish: MLflow shows it as `status` (FAILED or KILLED) until it is resumed."""
        self._order(status=status)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=STOP_LIMIT)
        self._end()

    def _order(self, **order: str) -> None:
        with suppress(BrokenPipeError):  # it has ended; what it did not do is on file
            self.process.stdin.write(json.dumps(order).encode() + b"\n")

    def _end(self) -> None:
        self._over = True
        self.process.kill()
        self.process.wait()

    def _listen(self) -> None:
        for line in iter(self.process.stdout.readline, b""):
            with self._news:
                if self._over:
                    break
                self._known = json.loads(line)
                write_json(self._folder / "mlflow.json", self._known)
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

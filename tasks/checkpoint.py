"""A run can be killed at any moment and goes on from its last finished round with the same final result.

A run's folder holds `checkpoint.json` (where the run is and the references to every state it needs) and
`journal.jsonl` (what was measured, one JSON line a record). The checkpoint is replaced by an atomic rename after each
round; journal lines that it does not count yet, a torn last line among them, are cut off on resume. In the middle of a
fusion of several jobs there is also `jobs.jsonl`, the jobs that are done (`jobs.py`). No generator state is kept: every
random draw is derived by name from the experiment seed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from errors import InputError
from methods import Moment
from parameters import Experiment

from .files import write_json
from .jobs import JobLog
from .store import Ref

TABLE = "table:"  # before the name of a table in a record's kind


@dataclass
class Progress:
    """Where a run is: `next` is the first round that is not done (after the last round: the evaluation)."""

    next: Moment
    server: Ref
    clients: dict[int, Ref] = field(default_factory=dict)
    evaluated: bool = False  # the untrained model was measured
    journal: int = 0  # bytes of the journal that belong to this progress
    finished: list[int] = field(default_factory=list)  # clients that have taken their last step

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"next": list(self.next), "server": list(self.server)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Progress:
        clients = {int(client): Ref(*ref) for client, ref in value["clients"].items()}
        known = {"next": Moment(*value["next"]), "server": Ref(*value["server"]), "clients": clients}
        return cls(**{**value, **known})


class RunFolder:
    """A run's folder: lock, checkpoint, journal and the log of fusion jobs. Use as a context manager."""

    def __init__(self, path: Path, experiment: Experiment) -> None:
        self.path = path
        self.experiment = experiment
        self._lock = FileLock(path.parent / "locks" / f"{path.name}.lock")
        self._journal: Any = None
        self.jobs = JobLog(path / "jobs.jsonl")

    def __enter__(self) -> RunFolder:
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another fcl run is working on this experiment ({self.path} is locked)") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal:
            self._journal.close()
        self._lock.release()

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.json"

    def check(self, resume: bool) -> Progress | None:
        """The progress of an interrupted run of this experiment, or None: start from the beginning.

        Raises:
            InputError: `resume`, but the interrupted run has other parameters.
        """
        if not resume or not self.checkpoint.exists():
            return None
        saved = json.loads(self.checkpoint.read_text())
        if saved["digest"] == self.experiment.digest:
            return Progress.from_json(saved["progress"])
        if self.experiment.run.resume_mismatch == "restart":
            return None
        changed = ", ".join(differences(saved["experiment"], self.experiment.identity()))
        raise InputError(
            f"--resume: the interrupted run in {self.path} has other parameters ({changed}); repeat them to resume it, "
            "or run without --resume to start over"
        )

    def open(self, resume: bool, basis: dict[str, str]) -> Progress | None:
        """Opens the journal where the progress that `check` found stands, with the jobs done since, or an empty folder.

        Args:
            basis: digests of what the result depends on besides the parameters: stream, code, lock.
        Raises:
            InputError: `resume`, but the interrupted run stood on another basis, or its journal is damaged.
        """
        self.basis = basis
        progress = self.check(resume)
        if progress:
            before = json.loads(self.checkpoint.read_text())["basis"]
            changed = [name for name, digest in basis.items() if before[name] != digest]
            journal = self.path / "journal.jsonl"
            if not journal.exists() or journal.stat().st_size < progress.journal:
                changed.append("journal (it is shorter than the checkpoint says)")
            if changed and self.experiment.run.resume_mismatch == "refuse":
                raise InputError(
                    f"--resume: since the run in {self.path} was interrupted, this has changed: {', '.join(changed)}; "
                    "run without --resume to start over"
                )
            progress = None if changed else progress
        if progress is None:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
        self._journal = open(self.path / "journal.jsonl", "ab")  # noqa: SIM115 - closed by __exit__
        self._journal.truncate(progress.journal if progress else 0)
        self.jobs.load()
        return progress

    def record(self, kind: str, rows: Iterable[dict[str, Any]]) -> None:
        """Appends records to the journal, with the time in ms since 1970; they count once a checkpoint follows.

        Args:
            kind: `table:NAME` for rows of a method's own table, which may have any columns.
        """
        about = {"kind": kind, "time": int(time.time() * 1000)}
        table = kind.startswith(TABLE)
        lines = [json.dumps(about | ({"row": row} if table else row)) + "\n" for row in rows]
        self._journal.write("".join(lines).encode())
        self._journal.flush()

    def save(self, progress: Progress) -> None:
        """Makes `progress`, and the journal so far, what a resumed run starts from."""
        progress.journal = os.fstat(self._journal.fileno()).st_size
        write_json(
            self.checkpoint,
            {
                "digest": self.experiment.digest,
                "basis": self.basis,
                "experiment": self.experiment.identity(),
                "progress": progress.to_json(),
            },
        )
        self.jobs.clear()

    def records(self, kind: str) -> list[dict[str, Any]]:
        """All records of a kind, in the order they were made."""
        chosen = [row for row in self._lines() if row["kind"] == kind]
        return [{key: value for key, value in row.items() if key not in ("kind", "time")} for row in chosen]

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each table `table:NAME` by its name, in the order they were recorded."""
        found: dict[str, list[dict[str, Any]]] = {}
        for line in self._lines():
            if line["kind"].startswith(TABLE):
                found.setdefault(line["kind"].removeprefix(TABLE), []).append(line["row"])
        return found

    def _lines(self) -> list[dict[str, Any]]:
        with open(self.path / "journal.jsonl", "rb") as file:
            return [json.loads(line) for line in file]

    def clean_up(self) -> None:
        """Removes what is left of a run that is over, where anything is."""
        if self.path.exists():
            with self:
                self._journal = open(self.path / "journal.jsonl", "ab")  # noqa: SIM115 - closed by `remove`
                self.remove()

    def remove(self) -> None:
        """The run is over and its results are in place: nothing here is needed any more."""
        self._journal.close()
        self._journal = None
        for path in self.path.iterdir():
            if path.name == "store":
                kept = path / "refused"
                for inner in path.iterdir():
                    if inner != kept:
                        shutil.rmtree(inner)
                if not kept.exists():
                    path.rmdir()
            else:
                path.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The dotted keys in which two parameter trees differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            found += differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if old == new else [f"{key} {old} there, {new} here"]

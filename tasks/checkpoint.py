"""A run can be killed at any moment and goes on from its last finished round with the same final result.

A run's folder holds `checkpoint.json` (where the run is and the references to every state it needs) and
`journal.jsonl` (what was measured, one JSON line a record). The checkpoint is replaced by an atomic rename after each
round; journal lines that it does not count yet, a torn last line among them, are cut off on resume. In the middle of a
fusion of several jobs there is also `jobs.jsonl`, the jobs that are done (`jobs.py`). No generator state is kept: every
random draw is derived by name from the experiment seed.

A power cut loses what is only in memory: states, journal and checkpoint are on the disk (fsync) before
a checkpoint counts. What is damaged all the same, on a disk that lies, is found when the run is resumed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from errors import InputError
from methods import Moment
from parameters import Experiment

from .files import sync, write_json
from .jobs import JobLog
from .patience import patiently
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

    @property
    def states(self) -> set[Ref]:
        """All states that a run needs to go on from here."""
        return {self.server, *self.clients.values()}

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

    def _try(self, attempt: Callable[[], Any]) -> Any:
        return patiently(attempt, str(self.path), self.experiment.run.store_patience)

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.json"

    def check(self, resume: bool) -> Progress | None:
        """The progress of an interrupted run of this experiment, or None: start from the beginning.

        Raises:
            InputError: `resume`, but the interrupted run has other parameters, or its checkpoint cannot be read.
        """
        if not resume or not self.checkpoint.exists():
            return None
        restart = self.experiment.run.resume_mismatch == "restart"
        try:
            saved = json.loads(self.checkpoint.read_text())
            progress = Progress.from_json(saved["progress"])
            digest, experiment, _ = saved["digest"], saved["experiment"], saved["basis"]
        except (ValueError, KeyError, TypeError, AttributeError):
            if restart:
                return None
            raise InputError(
                f"--resume: {self.checkpoint} is damaged: expected the JSON that a run writes after each round; "
                "run without --resume to start over"
            ) from None
        if digest == self.experiment.digest:
            return progress
        if restart:
            return None
        changed = ", ".join(differences(experiment, self.experiment.identity()))
        raise InputError(
            f"--resume: the interrupted run in {self.path} has other parameters ({changed}); repeat them to resume it, "
            "or run without --resume to start over"
        )

    def open(
        self, resume: bool, basis: dict[str, str], damaged: Callable[[Progress], list[str]] = lambda progress: []
    ) -> Progress | None:
        """Opens the journal where the progress that `check` found stands, with the jobs done since, or an empty folder.

        Args:
            basis: digests of what the result depends on besides the parameters: stream, code, lock.
            damaged: names the states of a progress that are missing or not whole.
        Raises:
            InputError: `resume`, but the interrupted run stood on another basis, or its journal or states are damaged.
        """
        self.basis = basis
        progress = self.check(resume)
        if progress:
            before = json.loads(self.checkpoint.read_text())["basis"]
            changed = [name for name, digest in basis.items() if before[name] != digest]
            changed += [*self._journal_damage(progress), *damaged(progress)]
            if changed and self.experiment.run.resume_mismatch == "refuse":
                raise InputError(
                    f"--resume: since the run in {self.path} was interrupted, this has changed: {', '.join(changed)}; "
                    "run without --resume to start over"
                )
            progress = None if changed else progress
        if progress is None:
            shutil.rmtree(self.path, ignore_errors=True)
            self._try(lambda: self.path.mkdir(parents=True, exist_ok=True))
        self._journal = self._open_journal()
        self._journal.truncate(progress.journal if progress else 0)
        sync([self.path.parent])
        self.jobs.load()
        return progress

    def _open_journal(self) -> Any:
        """Unbuffered: what a full disk did not take must not come up again when the file is closed."""
        return self._try(lambda: open(self.path / "journal.jsonl", "ab", buffering=0))

    def _journal_damage(self, progress: Progress) -> list[str]:
        """What is wrong with the part of the journal that `progress` counts, in words."""
        journal = self.path / "journal.jsonl"
        data = journal.read_bytes()[: progress.journal] if journal.exists() else b""
        if len(data) < progress.journal:
            return ["journal (it is shorter than the checkpoint says)"]
        try:
            for line in data.splitlines():
                json.loads(line)
        except ValueError:
            return ["journal (a line of it is no JSON)"]
        return []

    def record(self, kind: str, rows: Iterable[dict[str, Any]]) -> None:
        """Appends records to the journal, with the time in ms since 1970; they count once a checkpoint follows.

        Args:
            kind: `table:NAME` for rows of a method's own table, which may have any columns.
        """
        about = {"kind": kind, "time": int(time.time() * 1000)}
        table = kind.startswith(TABLE)
        lines = [json.dumps(about | ({"row": row} if table else row)) + "\n" for row in rows]
        left = memoryview("".join(lines).encode())
        while left:  # a nearly full disk takes a part
            left = left[self._try(lambda left=left: self._journal.write(left)) :]

    def save(self, progress: Progress, states: Sequence[Path] = ()) -> None:
        """Makes `progress`, and the journal so far, what a resumed run starts from, also after a power cut.

        Args:
            states: the files (and their folders) that `progress` refers to and that are not on the disk yet for sure.
        """
        journal = self.path / "journal.jsonl"
        progress.journal = os.fstat(self._journal.fileno()).st_size
        about = {
            "digest": self.experiment.digest,
            "basis": self.basis,
            "experiment": self.experiment.identity(),
            "progress": progress.to_json(),
        }
        self._try(lambda: write_json(self.checkpoint, about, after=[*states, journal]))
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
                self._journal = self._open_journal()
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

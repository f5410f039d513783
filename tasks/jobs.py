"""Which jobs of a fusion are done: a run that is killed in the middle of a fusion repeats the others only.

A job is a function of the server's state, the admitted uploads, its name and the moment. A digest of these is its key;
the key and the reference to the job's state are a line of `jobs.jsonl` in the run's folder, until the next checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from methods import Moment

from .patience import space_for
from .store import DamagedFile, Ref, Store

if TYPE_CHECKING:  # it brings Prefect, which a run imports while its server starts
    from .upload import Verdict


def job_key(job: str, server: Ref, verdicts: Sequence[Verdict], moment: Moment) -> str:
    """SHA-256 of all that the job's state depends on besides what a resumed run must share with the killed one.

    Args:
        job: its name, one of `Method.fusion_jobs`.
        server: the server's state before the fusion.
        verdicts: on the admitted uploads, in any order.
    """
    uploads = sorted((verdict.client, verdict.file.digest, verdict.samples) for verdict in verdicts)
    return hashlib.sha256(json.dumps([job, server.digest, uploads, moment]).encode()).hexdigest()


class JobLog:
    """The file `jobs.jsonl`. Safe for the threads of one process.

    Attributes:
        damaged: whole lines that `load` could not read; their jobs are done again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        self._found: dict[str, Ref] = {}
        self._lock = threading.Lock()

    def load(self) -> None:
        """Reads what a killed run left, and cuts off a line that it was writing."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        os.truncate(self.path, len(whole))  # else the next line would be glued to the torn one
        for line in whole.splitlines():
            try:
                key, (kind, digest, size) = json.loads(line).popitem()
            except (ValueError, TypeError, KeyError, AttributeError):
                self.damaged += 1
            else:
                self._found[key] = Ref(kind, digest, size)

    def find(self, key: str, store: Store) -> Ref | None:
        """The state of a job that the killed run had done, or None: the job is to be done.

        Raises:
            DamagedFile: the job was done, but its state is not in the store any more, or not intact.
        """
        part = self._found.get(key)
        if part and hashlib.sha256(store.bytes(part)).hexdigest() != part.digest:
            raise DamagedFile(f"{store.url}/{part.name} is damaged: its bytes do not have the SHA-256 of its name")
        return part

    def add(self, key: str, part: Ref) -> None:
        """The job is done and its state is in the store."""
        with self._lock, space_for(str(self.path.parent)), open(self.path, "ab") as file:
            file.write(json.dumps({key: part}).encode() + b"\n")

    def clear(self) -> None:
        """A checkpoint counts the fusion: its jobs are not needed any more."""
        self._found.clear()
        self.damaged = 0
        self.path.unlink(missing_ok=True)

"""A limit to the time that a client may take (`run.timeout`): who hangs is ended, with a trace of where.

A worker process cannot be made to let go of one piece of work, so it ends itself. The watch is CPython's
`faulthandler`, a thread in C that needs no lock of the interpreter: it ends the process also where nothing else in it
moves, and writes where its threads are first. What the process was told to do besides is done again in another.
"""

from __future__ import annotations

import faulthandler
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .patience import space_for
from .workers import ATTEMPTS, WorkerDied, Workers

Assigned = TypeVar("Assigned")
Result = TypeVar("Result")
FIRED = "\nTimeout ("  # what faulthandler begins with


@dataclass(frozen=True)
class Watch:
    """What a worker needs to watch over the clients of one task.

    Attributes:
        seconds: that a client may take, reading and writing included.
        file: which client is being trained, and in the end where it hung.
    """

    seconds: float
    file: str

    @contextmanager
    def over(self, client: int) -> Iterator[None]:
        """In a worker process: ends it where the block takes longer."""
        with space_for(self.file), open(self.file, "w") as file:
            file.write(f"{client}\n")
            file.flush()
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()


class TimeLimit:
    """The limit of a run. Safe for the threads of one process.

    Args:
        seconds: that a client may take.
        folder: the run's, where workers write who hangs. They must see the same file system.
    """

    def __init__(self, seconds: float, folder: Path) -> None:
        self.seconds, self.folder = seconds, folder

    def compute(
        self,
        workers: Workers,
        assignments: Sequence[Assigned],
        function: Callable[..., list[Result]],
        *arguments: Any,
        failed: Callable[[Assigned, str, str], Result],
    ) -> list[Result]:
        """`function(site, assignments, *arguments, watch)` in a worker; who takes too long has failed.

        The others of a task whose process had to end are computed again, each alone. Work whose process ended for
        somebody else's sake is computed again however often that happens.

        Args:
            failed: makes the result of an assignment from the reason and the trace of where it hung.
        """
        results, lost, left = [], 0, [list(assignments)]
        while left:
            group = left.pop(0)
            watch = Watch(self.seconds, str(self.folder / f"watch-{uuid.uuid4().hex}.txt"))
            before = self._fired()
            try:
                results += workers.once(function, group, *arguments, watch)
                Path(watch.file).unlink(missing_ok=True)
                continue
            except WorkerDied:
                said = _read(Path(watch.file))
            if FIRED in said:
                client, trace = said.split("\n", 1)
                hung = next(each for each in group if each.client == int(client))
                reason = f"no answer within {self.seconds:g} s (run.timeout)"
                results.append(failed(hung, reason, trace.strip()))
                left = [[each] for each in group if each is not hung] + left
                continue
            Path(watch.file).unlink(missing_ok=True)
            lost += self._fired() == before
            if lost == ATTEMPTS:
                reason = f"worker processes died {ATTEMPTS} times; were they killed, or is memory short?"
                results += [failed(each, reason, "") for each in group]
            else:
                left.insert(0, group)
        return results

    def _fired(self) -> int:
        """How often anybody of this run has hung; the files go with the run's folder."""
        return sum(FIRED in _read(path) for path in self.folder.glob("watch-*.txt"))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""

"""How far a run is, as a progress artifact in the Prefect UI."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from tasks.run import Run

from .page import key

EVERY = 3.0  # seconds between two updates
LAST = 5.0  # seconds that a run's end waits for the last one


@contextmanager
def shown_progress(run: Run) -> Iterator[None]:
    """Shows `run.on_progress`'s steps while the block lasts.

    A thread of its own tells Prefect, so a round waits neither for the server nor with it; of what happens between two
    updates only the last is told. What cannot be told is noted once, and the run goes on.
    """
    teller = Teller(run)
    terminal = run.on_progress

    def both(done: int, total: int, what: str) -> None:
        terminal(done, total, what)
        teller.tell(done, total, what)

    teller.tell(run.steps_done, run.steps, "the start")
    # The copy knows the server and its client, which Prefect keeps in context variables.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(teller.work,), daemon=True)
    thread.start()
    run.on_progress = both
    try:
        yield
    finally:
        run.on_progress = terminal
        teller.over.set()
        thread.join(LAST)


class Teller:
    """Tells Prefect the last step that it has heard of."""

    def __init__(self, run: Run) -> None:
        self.run, self.flow_run = run, UUID(run.flow_runs[-1])
        self.over = threading.Event()
        self._step: tuple[float, str] = (0.0, "")
        self._artifact: UUID | None = None

    def tell(self, done: int, total: int, what: str) -> None:
        left = f"next: {what}" if done < total else "all rounds are done"
        self._step = round(100 * done / total, 1), f"step {done} of {total}; {left}"

    def work(self) -> None:
        """The thread: tells at once, every few seconds, and at the end."""
        told, last = None, False
        try:
            while not last:
                last = self.over.wait(EVERY) if told else False
                step = self._step
                if step != told:
                    self._send(*step)
                    told = step
        except Exception as error:  # Prefect's and its HTTP client's kinds
            if not self.over.is_set():
                reason = " ".join(str(error).split())
                self.run.note(f"progress is not shown in the Prefect UI ({type(error).__name__}: {reason})")

    def _send(self, percent: float, words: str) -> None:
        client = get_client(sync_client=True)
        if self._artifact is None:
            artifact = ArtifactCreate(
                key=key("progress", self.run.experiment),
                type="progress",
                description=words,
                data=percent,
                flow_run_id=self.flow_run,
            )
            self._artifact = client.create_artifact(artifact).id
        else:
            client.update_artifact(self._artifact, ArtifactUpdate(data=percent, description=words))

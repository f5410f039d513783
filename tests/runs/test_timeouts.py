"""A client that hangs is ended, tried again and left out; the others of its cohort do not suffer.

It hangs for real: the file of its state is a named pipe that nobody writes to, as on a network disk that is gone.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from errors import InputError
from parameters import experiment

HANGING = 1  # the client
SETS = ("run.timeout=4", "run.cohort=3")  # one cohort: the others share its process


class Pipe:
    """The state of the client becomes a pipe when a step is done, and a file again once somebody was ended for it."""

    def __init__(self, eventually, step: int) -> None:
        self.eventually, self.step = eventually, step
        self.fired: list[str] = []

    def __call__(self, run):
        def at(done, total, what):
            if done == self.step:
                state = Path(run.site.store.path, run.progress.clients[HANGING].name)
                self.kept = state.rename(state.with_suffix(".kept"))
                os.mkfifo(state)
                self.healer = threading.Thread(target=self.heal, args=(run.folder.path, state))
                self.healer.start()

        return at

    def heal(self, folder: Path, state: Path) -> None:
        def fired():
            return [text for path in folder.glob("watch-*.txt") if "Timeout (" in (text := path.read_text())]

        self.fired = self.eventually(fired, "the end of the client that hangs", pause=0.02)
        self.kept.rename(state)


@pytest.fixture(scope="module")
def undisturbed_scaffold(play_run):
    return play_run("scaffold")


def test_a_client_that_hangs_once_is_ended_and_tried_again(play_run, undisturbed_scaffold, eventually, assert_same):
    pipe = Pipe(eventually, step=2)
    run = play_run("scaffold", *SETS, runner="processes", workers=1, during=pipe)
    pipe.healer.join()
    (trace,) = pipe.fired
    assert trace.startswith(f"{HANGING}\n") and "store.py" in trace, "where it hung is said"
    assert_same(run, undisturbed_scaffold)
    assert run.json("run.json")["failures"] == []
    assert not run.run_folder.exists()


def test_a_client_that_hangs_in_all_its_tries_is_left_out_of_that_round(play_run, undisturbed_scaffold, eventually):
    pipe = Pipe(eventually, step=2)
    run = play_run("scaffold", *SETS, "run.retries=0", runner="processes", workers=1, during=pipe)
    pipe.healer.join()
    rows = run.rounds.set_index(["experience", "round", "client"])
    (left_out,) = rows[~rows.admitted].index
    assert left_out == (0, 1, HANGING)
    assert rows.loc[left_out].reason == "failed: no answer within 4 s (run.timeout)"
    before = undisturbed_scaffold.rounds.set_index(["experience", "round", "client"])
    for client in (0, 2):
        assert rows.loc[0, 1, client].loss == before.loc[0, 1, client].loss, "the others are as they would have been"
    (failure,) = run.json("run.json")["failures"]
    assert "client 1 failed" in failure and "most recent call first" in failure


@pytest.mark.parametrize("runner", ["threads", None])
def test_threads_cannot_be_ended_so_they_have_no_timeout(workshop, runner):
    with pytest.raises(InputError, match=r"run\.timeout must be null with runner threads: .*runner processes \(got 5"):
        experiment("fedavg", "digits", 0, ["run.timeout=5"], workshop, runner=runner)


def test_processes_have_one(workshop):
    assert experiment("fedavg", "digits", 0, ["run.timeout=5"], workshop, runner="processes").run.timeout == 5

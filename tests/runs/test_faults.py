"""What fails is tried again, then left out, recorded, and the run goes on; or it stops and can be resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from errors import InputError
from methods import Moment, base
from methods.fedavg import FedAvg
from methods.state import Message

CLIENT, MOMENT = 1, Moment(0, 1)  # whose fault it is, and when
CLIENTS = {0, 1, 2}


class Faults:
    """When clients of the method `faulty` fail: `when(client, moment, attempt)`, attempts counted from 1."""

    def __init__(self) -> None:
        self.when = lambda client, moment, attempt: False
        self.attempts: Counter[tuple[int, Moment]] = Counter()
        self._lock = threading.Lock()

    def check(self, client: int, moment: Moment) -> None:
        with self._lock:
            self.attempts[client, moment] += 1
            attempt = self.attempts[client, moment]
        if self.when(client, moment, attempt):
            raise ArithmeticError(f"client {client} is on fire")


@pytest.fixture
def faults():
    """FedAvg whose clients fail when the test says so, as the method `faulty`."""
    faults = Faults()

    @base.register("faulty")
    class Faulty(FedAvg):
        """FedAvg that fails."""

        def train(self, client):
            faults.check(client.id, client.moment)
            return super().train(client)

    yield faults
    del base._methods["faulty"]


def at_the_moment(client: int, moment: Moment, attempt: int) -> bool:
    return (client, moment) == (CLIENT, MOMENT)


def same_models(one, other) -> bool:
    one, other = one.models(), other.models()
    return one.keys() == other.keys() and all(
        torch.equal(one[name][key], other[name][key]) for name in one for key in one[name]
    )


def left_out(run) -> set[tuple[int, int, int]]:
    """(experience, round, client) of all that was not admitted."""
    rows = run.rounds[~run.rounds.admitted]
    return set(zip(rows.experience, rows["round"], rows.client, strict=True))


def test_a_client_that_fails_once_is_tried_again_and_nothing_changes(faults, play_run, undisturbed):
    faults.when = lambda client, moment, attempt: client == CLIENT and attempt == 1
    run = play_run("faulty")
    assert {count for (client, _), count in faults.attempts.items() if client == CLIENT} == {2}
    assert {count for (client, _), count in faults.attempts.items() if client != CLIENT} == {1}
    assert same_models(run, undisturbed)
    assert run.digest == undisturbed.digest
    assert left_out(run) == set()
    assert run.json("run.json")["failures"] == []


def test_a_client_that_goes_on_failing_is_left_out_of_that_round(faults, play_run, undisturbed):
    faults.when = at_the_moment
    run = play_run("faulty", "run.retries=2")
    assert faults.attempts[CLIENT, MOMENT] == 3
    assert left_out(run) == {(*MOMENT, CLIENT)}
    rows = run.rounds.set_index(["experience", "round", "client"])
    row = rows.loc[*MOMENT, CLIENT]
    assert "ArithmeticError: client 1 is on fire" in row.reason
    assert (row.bytes_up, row.samples, row.steps) == (0, 0, 0)
    assert row.bytes_down == rows.loc[*MOMENT, 0].bytes_down, "it had received the model"
    assert set(rows.drop(index=(*MOMENT, CLIENT)).reason) == {""}
    assert run.digest != undisturbed.digest
    (failure,) = run.json("run.json")["failures"]
    assert "client 1" in failure and "Traceback" in failure


def test_a_client_that_always_fails_is_left_out_of_every_round(faults, play_run):
    faults.when = lambda client, moment, attempt: client == CLIENT
    run = play_run("faulty", "run.retries=0")
    assert left_out(run) == {(experience, number, CLIENT) for experience in range(3) for number in range(2)}
    assert run.metrics["refused"] == 6
    assert set(faults.attempts.values()) == {1}


def test_without_any_client_the_run_stops_says_why_and_can_be_resumed(faults, play_run, new_out, undisturbed):
    from tasks.round import RoundFailed

    faults.when = lambda client, moment, attempt: moment == (1, 0)
    out = new_out()
    with pytest.raises(RoundFailed, match=r"experience 1, round 0: 0 of 3 clients were admitted.*client 0 is on fire"):
        play_run("faulty", "run.retries=1", out=out)
    assert not out.exists()
    faults.when = lambda client, moment, attempt: False
    faults.attempts.clear()
    run = play_run("faulty", out=out, resume=True)
    assert min(moment for _, moment in faults.attempts) == (1, 0), "the rounds before are not played again"
    assert run.digest == undisturbed.digest


def test_fewer_clients_than_min_clients_stop_the_run(faults, play_run):
    from tasks.round import RoundFailed

    faults.when = at_the_moment
    with pytest.raises(RoundFailed, match=r"experience 0, round 1: 2 of 3 .*run.min_clients is 3 .*is on fire"):
        play_run("faulty", "run.min_clients=3", "run.retries=0")
    assert left_out(play_run("faulty", "run.min_clients=2", "run.retries=0")) == {(*MOMENT, CLIENT)}


def test_min_clients_counts_at_most_the_clients_of_the_round(play_run):
    assert left_out(play_run("fedavg", "run.min_clients=9")) == set()


# Uploads that are damaged between the client and the server


def overwritten(write, site, number, moment, message, samples, parent):
    file = write(site, number, moment, message, samples, parent)
    Path(site.store.path, file.name).write_bytes(b"garbage")
    return file


def never_stored(write, site, number, moment, message, samples, parent):
    file = write(site, number, moment, message, samples, parent)
    Path(site.store.path, file.name).unlink()
    return file


def not_finite(write, site, number, moment, message, samples, parent):
    poisoned = {name: tensor / 0 for name, tensor in message.tensors.items()}
    return write(site, number, moment, Message(poisoned, message.values), samples, parent)


def of_another_client(write, site, number, moment, message, samples, parent):
    return write(site, 2, moment, message, samples, parent)


DAMAGES = {
    overwritten: "wrong digest",
    never_stored: "nothing was stored",
    not_finite: "not finite",
    of_another_client: "wrong client: expected 1, the header says 2",
}


@pytest.fixture(scope="module")
def without_the_client(play_run):
    """FedAvg in which the client is missing from the one round, told from within: its honest loss of one upload."""
    with pytest.MonkeyPatch.context() as patch:
        damage_upload(patch, never_stored)
        return play_run("fedavg")


def damage_upload(patch: pytest.MonkeyPatch, damage) -> None:
    """The client's upload of the one round is damaged; all others are as they are."""
    from tasks.upload import write_upload

    def write(site, number, moment, *rest):
        if (number, moment) == (CLIENT, MOMENT):
            return damage(write_upload, site, number, moment, *rest)
        return write_upload(site, number, moment, *rest)

    patch.setattr("tasks.training.write_upload", write)


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_upload_is_refused_and_kept_and_the_round_goes_on(
    damage, reason, play_run, monkeypatch, without_the_client
):
    damage_upload(monkeypatch, damage)
    run = play_run("fedavg")
    assert left_out(run) == {(*MOMENT, CLIENT)}
    assert reason in run.rounds.set_index(["experience", "round", "client"]).loc[*MOMENT, CLIENT].reason
    assert run.metrics["refused"] == 1
    assert run.digest == without_the_client.digest
    kept = run.run_folder / "store" / "refused"
    (note,) = kept.glob("*.json")
    told = json.loads(note.read_text())
    assert (told["client"], told["experience"], told["round"]) == (CLIENT, *MOMENT)
    assert reason in told["reason"]
    assert len(list(kept.glob("*.safetensors"))) == (damage is not never_stored)
    assert [path.name for path in run.run_folder.iterdir()] == ["store"], "nothing but what was refused is kept"


def test_a_lost_upload_and_a_failed_client_come_to_the_same(faults, play_run, without_the_client):
    faults.when = at_the_moment
    assert play_run("faulty", "run.retries=0").digest == without_the_client.digest


# Worker processes that die


def test_workers_that_are_killed_cost_nothing_but_time(play_run, undisturbed, eventually, assert_same):
    """The only worker is killed in a round, between two rounds and before an evaluation."""
    killed, killers = [], []

    def kill():
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        killed.append(worker.pid)

    def during(run):
        def kill_in_the_round():
            eventually(lambda: any((run.folder.path / "store" / "broadcasts").glob("*.safetensors")), "a broadcast")
            kill()

        def at(done, total, what):
            if done == 1:
                killers.append(threading.Thread(target=kill_in_the_round))
                killers[0].start()
            if done in (2, 6):
                killers[0].join()
                kill()

        return at

    run = play_run("fedavg", runner="processes", workers=1, during=during)
    assert len(set(killed)) == 3
    assert_same(run, undisturbed)


def test_a_stream_that_is_rebuilt_under_a_run_never_changes_its_result_unnoticed(play_run, undisturbed, assert_same):
    """A person edits the stream in params.yaml and builds it; then a worker dies, and its successor opens it anew."""
    from parameters import experiment
    from streams.stream import build
    from tasks import site

    def during(run):
        def at(done, total, what):
            if done == 3:
                other = experiment("fedavg", "digits", 0, ["streams.digits.seed=1"], run.root)
                build("digits", other.stream_parameters, run.root)
                site._sites.clear()  # as in a process that has just started

        return at

    try:
        run = play_run("fedavg", during=during)
    except (InputError, RuntimeError) as error:
        assert "digits" in str(error)  # to stop is right, too
    else:
        assert_same(run, undisturbed)

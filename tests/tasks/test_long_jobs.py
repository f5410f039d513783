"""Long fusion jobs keep what they have done, and a failed or killed try goes on from there."""

from __future__ import annotations

import json
import math
import uuid

import pytest
import torch

from methods import Moment, State
from methods.consolidation import EVERY
from methods.consolidation_data import Sampled
from tasks.fusion import fuse, fuse_all, work_on
from tasks.jobs import job_key
from tasks.store import Store, encode

TENSORS = {"x": torch.arange(6.0)}
ITERATIONS = 4 * EVERY + 20
SETS = [f"methods.dac.consolidation.iterations={ITERATIONS}", "train.rounds=1", "methods.dac.transfer=false"]


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        yield Store(str(tmp_path / "store"))
        return
    store = Store(f"memory://{uuid.uuid4().hex}")
    yield store
    if store.fs.exists(store.path):
        store.fs.rm(store.path, recursive=True)


def works(store: Store) -> set[str]:
    """Names of what is kept."""
    folder = f"{store.path}/works"
    return {path.rpartition("/")[2] for path in store.fs.ls(folder, detail=False)} if store.fs.exists(folder) else set()


def keep(store: Store, number: int, key: str = "key") -> None:
    store.keep(key, {"x": torch.full((5,), number)}, {"values": {"iteration": number}})


# the store


def test_what_is_kept_is_what_was_kept_last_and_nothing_else_remains(store):
    assert store.kept("key") is None
    for number in range(3):
        keep(store, number)
        found = store.kept("key")
        assert found.header == {"values": {"iteration": number}}
        assert torch.equal(found.tensors["x"], torch.full((5,), number))
        assert len(works(store)) == 2, "the state and which one it is"
    keep(store, 2)
    assert store.kept("key").header["values"] == {"iteration": 2}, "the same state again is not deleted"


def test_works_are_apart_by_their_keys(store):
    for number, key in enumerate(("one", "other")):
        keep(store, number, key)
    assert [store.kept(key).header["values"]["iteration"] for key in ("one", "other")] == [0, 1]
    assert store.kept("third") is None


@pytest.mark.parametrize("damage", ["lost", "garbage", "one bit", "no reference"])
def test_a_damaged_work_is_none_and_can_be_kept_anew(damage, store):
    keep(store, 1)
    (state,) = [name for name in works(store) if name.endswith(".safetensors")]
    path, pointer = f"{store.path}/works/{state}", f"{store.path}/works/key"
    if damage == "lost":
        store.fs.rm(path)
    elif damage == "garbage":
        store.fs.pipe_file(path, b"garbage")
    elif damage == "one bit":
        data = bytearray(store.fs.cat_file(path))
        data[-1] ^= 1
        store.fs.pipe_file(path, bytes(data))
    else:
        store.fs.pipe_file(pointer, b'["works", "ab')
    assert store.kept("key") is None
    keep(store, 2)
    assert store.kept("key").header["values"] == {"iteration": 2}


def test_works_are_cleared_with_the_rest(store):
    keep(store, 1)
    store.keep_only("works", ())
    assert store.kept("key") is None and not works(store)
    keep(store, 1)
    store.clear()
    assert store.kept("key") is None and not works(store)


# a job


class Broken(Exception):
    """Stands for whatever may end a try."""


@pytest.fixture
def draws(monkeypatch):
    """Counts the batches that consolidations draw: one for each iteration and one before the first.

    `draws.limit`: so many, then the try is over.
    """

    class Draws:
        limit, number = math.inf, 0

    counted, draw = Draws(), Sampled.draw

    def count(self, *arguments):
        if counted.number >= counted.limit:
            raise Broken
        counted.number += 1
        return draw(self, *arguments)

    monkeypatch.setattr(Sampled, "draw", count)
    return counted


@pytest.fixture
def arrived(laboratory):
    """(laboratory, verdicts): a second expert has arrived, nothing was done with it yet."""

    def open_one(*sets: str, stream: str = "devices"):
        lab = laboratory("dac", stream, sets=[*SETS, *sets]).play(until=(1, 0))
        return lab, lab.admit(lab.claims(lab.train()))

    return open_one


def job_of(lab) -> str:
    (job,) = lab.site.method.fusion_jobs(range(lab.site.stream.clients), lab.moment)
    return job


def key_of(lab, verdicts) -> str:
    return job_key(job_of(lab), lab.progress.server, verdicts, lab.moment)


def work(lab, verdicts, every: float) -> State:
    return work_on(lab.site, job_of(lab), lab.progress.server, lab.server, verdicts, lab.moment, every)


def test_a_job_that_is_not_disturbed_gives_the_same_whatever_it_keeps(arrived):
    lab, verdicts = arrived()
    never, always = work(lab, verdicts, math.inf), work(lab, verdicts, 0.0)
    kept = lab.site.store.kept(key_of(lab, verdicts))
    assert encode(never.tensors, never.values) == encode(always.tensors, always.values)
    assert kept.header["values"]["work"] == {"iteration": 4 * EVERY}
    again = work(lab, verdicts, 0.0)  # now from what was kept
    assert encode(never.tensors, never.values) == encode(again.tensors, again.values)


def test_a_job_that_keeps_nothing_writes_nothing(arrived):
    lab, verdicts = arrived()
    work(lab, verdicts, math.inf)
    assert not works(lab.site.store)


def test_the_last_state_is_not_kept_since_it_is_the_result(laboratory):
    """A method with a short fusion never writes a work."""
    lab = laboratory("averaging", "devices").play(until=(1, 0))
    verdicts = lab.admit(lab.claims(lab.train()))
    work(lab, verdicts, 0.0)
    assert not works(lab.site.store)


@pytest.mark.parametrize("network", [[], ["model.name=cnn4", "model.width=4", "model.norm=batch"]])
def test_a_try_that_ends_goes_on_from_what_was_kept(network, arrived, draws):
    lab, verdicts = arrived(*network)
    draws.number = 0
    whole = work(lab, verdicts, math.inf)
    assert draws.number == ITERATIONS + 1
    for more, done in ((2 * EVERY + 10, EVERY), (EVERY + 10, EVERY), (2 * EVERY + 10, 2 * EVERY)):
        draws.number, draws.limit = 0, 1 + more  # a state is kept when the next one is there
        with pytest.raises(Broken):
            work(lab, verdicts, 0.0)
        kept = lab.site.store.kept(key_of(lab, verdicts)).header["values"]
        assert (kept["arrived"], kept["work"]) == (0, {"iteration": done})
    draws.number, draws.limit = 0, math.inf
    result = work(lab, verdicts, 0.0)
    assert draws.number == ITERATIONS - done + 1, "what was done is not done again"
    assert encode(result.tensors, result.values) == encode(whole.tensors, whole.values)


def test_several_experts_at_once_go_on_after_those_that_are_added(arrived, draws):
    lab, verdicts = arrived(stream="digits")
    draws.number = 0
    whole = work(lab, verdicts, math.inf)
    assert draws.number == 3 * (ITERATIONS + 1)
    draws.number, draws.limit = 0, 2 * (ITERATIONS + 1) + 1 + 30
    with pytest.raises(Broken):
        work(lab, verdicts, 0.0)
    kept = lab.site.store.kept(key_of(lab, verdicts)).header["values"]
    assert (kept["arrived"], kept["work"]) == (1, {"iteration": 4 * EVERY})
    draws.number, draws.limit = 0, math.inf
    result = work(lab, verdicts, 0.0)
    assert draws.number == ITERATIONS - 4 * EVERY + 1 + ITERATIONS + 1
    assert encode(result.tensors, result.values) == encode(whole.tensors, whole.values)


def test_a_damaged_work_is_begun_anew_with_the_same_result(arrived, draws):
    lab, verdicts = arrived()
    whole = fuse(lab.site, job_of(lab), lab.progress.server, verdicts, lab.moment)
    draws.number, draws.limit = 0, 3 * EVERY
    with pytest.raises(Broken):
        work(lab, verdicts, 0.0)
    store = lab.site.store
    digest = json.loads(store.fs.cat_file(f"{store.path}/works/{key_of(lab, verdicts)}"))[1]
    store.fs.rm(f"{store.path}/works/{digest}.safetensors")
    draws.number, draws.limit = 0, math.inf
    assert fuse(lab.site, job_of(lab), lab.progress.server, verdicts, lab.moment, 0.0) == whole
    assert draws.number == ITERATIONS + 1


def test_work_on_other_uploads_is_not_gone_on_with(arrived):
    lab, verdicts = arrived()
    work(lab, verdicts, 0.0)
    assert lab.site.store.kept(key_of(lab, verdicts))
    (verdict,) = verdicts
    other = [type(verdict)(verdict.client, lab.progress.server, verdict.samples, True)]
    assert lab.site.store.kept(job_key(job_of(lab), lab.progress.server, other, lab.moment)) is None
    assert lab.site.store.kept(job_key(job_of(lab), lab.progress.server, verdicts, Moment(2, 0))) is None


def test_a_state_that_is_not_finite_is_neither_kept_nor_gone_on_with(arrived):
    lab, verdicts = arrived("methods.dac.consolidation.learning_rate=1e30", "methods.dac.consolidation.optimizer=sgd")
    with pytest.raises(RuntimeError, match="holds NaN or infinity"):
        fuse_all(lab.site, lab.progress.server, verdicts, lab.moment, True, 0.0)
    assert not works(lab.site.store)

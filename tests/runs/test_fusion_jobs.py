"""A fusion of several jobs: each is a task, is tried again alone, and is not done again by a resumed run."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from methods import Moment, base
from methods.feddf import FedDF

MODELS = "models=[{name: mlp, width: 16}, {name: mlp, width: 12}]"
SETS = (MODELS, "methods.counted.steps=5", "methods.counted.batch_size=64")  # as feddf in the small project
DONE, OTHER, MOMENT = "model-0", "model-1", Moment(1, 0)  # a job, the one that something happens to, and when
JOBS = {(job, *moment) for job in (DONE, OTHER) for moment in [(e, r) for e in range(3) for r in range(2)]}


class Ledger:
    """What the jobs of the method `counted` do: they are counted, and OTHER at MOMENT does what the test orders.

    It lies in a folder, so that a run in another process can be watched and ordered too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def order(self, what: str) -> None:
        """`hang`, `fail once`, `fail` or ``: nothing."""
        (self.folder / "order").write_text(what)

    def begin(self, job: str, moment: Moment) -> None:
        with open(self.folder / "begun", "a") as file:
            file.write(json.dumps([job, *moment]) + "\n")
        what = (self.folder / "order").read_text() if (job, moment) == (OTHER, MOMENT) else ""
        if what == "hang":
            time.sleep(600)
        if what == "fail" or (what == "fail once" and self.begun()[job, *moment] == 1):
            raise ArithmeticError(f"{job} is on fire")

    def begun(self) -> Counter[tuple[str, int, int]]:
        """How often each job was begun since `forget`."""
        path = self.folder / "begun"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(tuple(json.loads(line)) for line in lines)

    def forget(self) -> None:
        (self.folder / "begun").unlink()

    def register(self) -> None:
        ledger = self

        @base.register("counted")
        class Counted(FedDF):
            """FedDF that keeps a ledger."""

            def fuse(self, job, server, uploads, moment):
                ledger.begin(job, moment)
                return super().fuse(job, server, uploads, moment)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.order("")
    ledger.register()
    yield ledger
    del base._methods["counted"]


@pytest.fixture(scope="module")
def whole(play_run, tmp_path_factory):
    """The run to which nothing happens."""
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    ledger.order("")
    ledger.register()
    run = play_run("counted", *SETS)
    del base._methods["counted"]
    assert ledger.begun() == Counter(JOBS)
    return run


def play_counted(root: Path, out: Path, ledger: Path) -> None:
    """The victim's process."""
    from flows.conduct import play
    from parameters import experiment
    from tasks.run import Run

    Ledger(ledger).register()
    with Run(experiment("counted", "digits", 0, SETS, root, device="cpu"), root, out) as run:
        play(run)


@pytest.fixture
def killed(processes, workshop, new_out, ledger, eventually):
    """(output folder, run folder) of a run that was killed while OTHER was computed and DONE was done."""
    ledger.order("hang")
    out = new_out()
    before = set((workshop / "runs").glob("digits-counted-*"))
    victim = processes.Process(target=play_counted, args=(workshop, out, ledger.folder))
    victim.start()

    def kept():
        assert victim.is_alive(), "the run ended by itself"
        found = set((workshop / "runs").glob("digits-counted-*/jobs.jsonl")) if ledger.begun()[OTHER, *MOMENT] else ()
        return [path.parent for path in found if path.parent not in before and path.read_bytes().endswith(b"\n")]

    try:
        (folder,) = eventually(kept, "a job that is done while the other is computed")
    finally:
        victim.kill()
        victim.join()
    assert victim.exitcode == -signal.SIGKILL
    ledger.order("")
    ledger.forget()
    return out, folder


def left(*without: tuple[str, int, int]) -> Counter[tuple[str, int, int]]:
    """The jobs from MOMENT on, each once."""
    return Counter(job for job in JOBS if job[1:] >= MOMENT and job not in without)


def test_a_killed_fusion_goes_on_with_the_jobs_that_were_not_done(killed, ledger, play_run, whole, assert_same):
    out, folder = killed
    seen = []

    def during(run):
        def at(done, total, what):
            states = {path.stem for path in (folder / "store" / "states").iterdir()}
            wanted = {run.progress.server.digest, *(ref.digest for ref in run.progress.clients.values())}
            seen.append((states == wanted, (folder / "jobs.jsonl").exists()))

        return at

    run = play_run("counted", *SETS, out=out, resume=True, during=during)
    assert ledger.begun() == left((DONE, *MOMENT))
    assert_same(run, whole)
    assert run.json("run.json")["failures"] == []
    assert set(seen) == {(True, False)}, "a checkpoint leaves neither parts of states nor a log of jobs"
    assert not folder.exists()


def test_a_torn_line_and_a_damaged_one_cost_only_their_jobs(killed, ledger, play_run, whole, assert_same):
    out, folder = killed
    log = folder / "jobs.jsonl"
    log.write_bytes(b'{"half a\n[]\n' + log.read_bytes() + b'{"torn')
    run = play_run("counted", *SETS, out=out, resume=True)
    assert ledger.begun() == left((DONE, *MOMENT))
    assert_same(run, whole)
    (failure,) = run.json("run.json")["failures"]
    assert "jobs.jsonl has 2 unreadable lines" in failure


@pytest.mark.parametrize("damage", ["lost", "overwritten"])
def test_a_job_whose_state_is_lost_or_damaged_is_done_again(damage, killed, ledger, play_run, whole, assert_same):
    out, folder = killed
    ((_, digest, _),) = json.loads((folder / "jobs.jsonl").read_text()).values()
    part = folder / "store" / "states" / f"{digest}.safetensors"
    part.unlink() if damage == "lost" else part.write_bytes(b"garbage")
    run = play_run("counted", *SETS, out=out, resume=True)
    assert ledger.begun() == left()
    assert_same(run, whole)
    (failure,) = run.json("run.json")["failures"]
    assert f"experience 1, round 0: {DONE} is fused again" in failure


def test_a_job_that_fails_once_is_tried_again_alone(ledger, play_run, whole, assert_same):
    ledger.order("fail once")
    run = play_run("counted", *SETS)
    assert ledger.begun() == Counter(JOBS) + Counter([(OTHER, *MOMENT)])
    assert_same(run, whole)
    (failure,) = run.json("run.json")["failures"]
    assert failure.startswith("experience 1, round 0: the job 'fuse model-1' failed in 1 of 2 tries\nTraceback")
    assert "ArithmeticError: model-1 is on fire" in failure


def test_a_job_that_goes_on_failing_stops_the_run_which_can_be_resumed(
    ledger, play_run, new_out, workshop, whole, assert_same
):
    from tasks.fusion import FusionFailed

    ledger.order("fail")
    out = new_out()
    said = (
        r"experience 1, round 0: the job 'fuse model-1' failed in 2 of 2 tries \(ArithmeticError: model-1 is on fire\)"
    )
    with pytest.raises(FusionFailed, match=said):
        play_run("counted", *SETS, "run.retries=1", out=out)
    assert not out.exists()
    begun = ledger.begun()
    assert (begun[DONE, *MOMENT], begun[OTHER, *MOMENT]) == (1, 2)
    assert max(moment for _, *moment in begun) == [*MOMENT]
    ledger.order("")
    ledger.forget()
    run = play_run("counted", *SETS, out=out, resume=True)
    assert ledger.begun() == left((DONE, *MOMENT))
    assert_same(run, whole)


def test_jobs_in_worker_processes_give_what_threads_give(play_run, whole):
    assert play_run("feddf", MODELS, runner="processes", workers=2).digest == whole.digest


def test_prefect_shows_a_task_for_each_job_and_how_often_it_ran(ledger, play_run, eventually):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.events.worker import EventsWorker

    ledger.order("fail once")
    run = play_run("counted", *SETS)
    EventsWorker.drain_all(timeout=60)
    flow_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.json("run.json")["prefect_flow_run"]]))
    rounds = [f"round {number} of experience {experience}" for experience in range(3) for number in range(2)]
    names = ("fuse model-0", "fuse model-1", "join 2 parts")
    expected = dict.fromkeys((f"{name} of {each}" for name in names for each in rounds), 1)
    expected["fuse model-1 of round 0 of experience 1"] = 2
    with get_client(sync_client=True) as client:

        def fused():
            tasks = client.read_task_runs(flow_run_filter=flow_run)
            return {task.name: task.run_count for task in tasks if task.name.startswith(names)}

        eventually(lambda: fused() == expected, "all tasks of the fusions", pause=0.2)


def test_what_follows_a_torn_line_can_be_read(tmp_path):
    from tasks.jobs import JobLog
    from tasks.store import Store

    store = Store(str(tmp_path / "store"))
    parts = [store.write("states", bytes([number])) for number in range(2)]
    first, second, third = (JobLog(tmp_path / "jobs.jsonl") for _ in range(3))
    first.add("one", parts[0])
    with open(first.path, "ab") as file:
        file.write(b'{"two": ["sta')
    second.load()
    assert second.find("one", store) == parts[0]
    second.add("two", parts[1])
    third.load()
    assert [third.find(key, store) for key in ("one", "two", "three")] == [*parts, None]
    assert (second.damaged, third.damaged) == (0, 0)
    third.clear()
    assert third.find("one", store) is None and not third.path.exists()


def test_a_job_is_another_one_where_anything_it_depends_on_differs():
    from tasks.jobs import job_key
    from tasks.store import Ref
    from tasks.upload import Verdict

    def key(job="model-0", server="a", uploads=((0, "b", 5), (1, "c", 6)), moment=(0, 1)):
        verdicts = [Verdict(client, Ref("uploads", file, 9), samples, True) for client, file, samples in uploads]
        return job_key(job, Ref("states", server, 9), verdicts, Moment(*moment))

    assert key() == key(uploads=((1, "c", 6), (0, "b", 5))), "uploads count in the order of their clients"
    others = [key(job="model-1"), key(server="d"), key(moment=(1, 1)), key(moment=(0, 0))]
    others += [key(uploads=((0, "b", 5),)), key(uploads=((0, "c", 5), (1, "b", 6)))]
    others += [key(uploads=((0, "b", 5), (1, "c", 7))), key(uploads=((0, "b", 5), (2, "c", 6)))]
    assert len({key(), *others}) == len(others) + 1

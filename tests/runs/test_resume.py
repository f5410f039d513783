"""A run that is killed at any moment and resumed ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

# Rounds long enough to be met: some 200 steps a client. They change nothing else.
SLOW = ("train.batch_size=4", "train.local_epochs=5")
ROUNDS, EXPERIENCES = 2, 3  # of the small project
STEPS = EXPERIENCES * (ROUNDS + 1) + 1


@pytest.fixture(scope="module")
def whole(play_run):
    """The uninterrupted run."""
    return play_run("fedavg", *SLOW)


def play_untracked(root: Path, out: Path, resume: bool, runner: str) -> None:
    """The victim's process: what `fcl run` does, without MLflow, whose import costs more than the whole run."""
    from flows.conduct import play
    from parameters import experiment
    from tasks.run import Run

    spec = experiment(
        "fedavg", "digits", 0, SLOW, root, device="cpu", runner=runner, workers=1 if runner == "processes" else 2
    )
    with Run(spec, root, out, resume) as run:
        play(run)


@pytest.fixture(scope="module")
def victims(processes, workshop, eventually) -> Callable[..., Victim]:
    """Starts a run in a process of its own: `victims(out)`; with `again`, one that resumes that victim's run."""

    def start(out: Path, runner: str = "threads", again: Victim | None = None) -> Victim:
        victim = processes.Process(target=play_untracked, args=(workshop, out, again is not None, runner))
        return Victim(workshop, out, victim, eventually, again and again.folder)

    return start


class Victim:
    """A run in another process, watched through its files until it is killed."""

    def __init__(self, root: Path, out: Path, process, eventually: Callable, folder: Path | None) -> None:
        self.root, self.out, self.process, self.eventually = root, out, process, eventually
        before = self._folders()
        process.start()
        self.folder = folder or self.wait(lambda: self._folders() - before, "a run folder").pop()

    def _folders(self) -> set[Path]:
        return {path for path in (self.root / "runs").glob("digits-*") if path.is_dir()}

    def wait(self, happened, what: str):
        def look():
            assert self.process.is_alive(), f"the run ended by itself before {what}"
            return happened()

        return self.eventually(look, what)

    def steps(self) -> int:
        return steps_done(self.folder)

    def reach(self, steps: int) -> None:
        self.wait(lambda: self.steps() >= steps, f"step {steps}")

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL
        assert not self.out.exists(), "killed too late: the results are in place"


def steps_done(folder: Path) -> int:
    """Rounds and evaluations that the checkpoint counts."""
    try:
        progress = json.loads((folder / "checkpoint.json").read_text())["progress"]
    except FileNotFoundError:
        return 0
    experience, number = progress["next"]
    return experience * (ROUNDS + 1) + number + progress["evaluated"]


def at_the_start(victim: Victim, step: int, delay: float) -> None:
    """As soon as there is a folder, before the first checkpoint."""


def after_a_checkpoint(victim: Victim, step: int, delay: float) -> None:
    victim.reach(step)


def at_a_random_moment(victim: Victim, step: int, delay: float) -> None:
    victim.reach(step)
    time.sleep(delay)


def in_a_round(victim: Victim, step: int, delay: float) -> None:
    victim.reach(step)
    victim.wait(lambda: any((victim.folder / "store" / "uploads").glob("*.safetensors")), "an upload")


def in_an_evaluation(victim: Victim, step: int, delay: float) -> None:
    experience = step % EXPERIENCES
    victim.reach(experience * (ROUNDS + 1) + ROUNDS + 1)  # all rounds are done, their evaluation is next


def while_results_are_written(victim: Victim, step: int, delay: float) -> None:
    victim.wait(lambda: any(victim.out.parent.glob(".*.tmp")), "results")


def tear_journal(folder: Path) -> None:
    """What a machine that loses power may leave: a line that no checkpoint counts, and half a line."""
    with open(folder / "journal.jsonl", "ab") as journal:
        journal.write(b'{"accuracy": 1.0, "client": 0, "kind": "accuracy", "model": "global", "tested": 0}\n')
        journal.write(b'{"accuracy": 0.5, "cli')


def nothing_is_left(folder: Path, out: Path) -> None:
    """Of a finished run there are the results, whole, and nothing else."""
    assert not folder.exists()
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    found = {path.name for path in out.iterdir()}
    assert found == {
        "accuracy.png",
        "accuracy_matrix.parquet",
        "matrix.png",
        "metrics.json",
        "models",
        "rounds.parquet",
        "run.json",
    }


def counted(steps: list[int]):
    """Notes the steps that a run reports as done."""
    return lambda run: lambda done, total, what: steps.append(done)


MOMENTS = [
    at_the_start,
    after_a_checkpoint,
    at_a_random_moment,
    in_a_round,
    in_an_evaluation,
    while_results_are_written,
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(moment, whole, victims, new_out, play_run, assert_same):
    draw = random.Random(moment.__name__)
    step, delay = draw.randrange(1, STEPS - 1), draw.uniform(0, 0.2)
    print(f"killed {moment.__name__}: step {step}, delay {delay:.3f} s")
    out = new_out()
    victim = victims(out)
    moment(victim, step, delay)
    victim.kill()
    done = victim.steps()
    tear_journal(victim.folder)
    reported: list[int] = []
    resumed = play_run("fedavg", *SLOW, out=out, resume=True, during=counted(reported))
    assert reported == list(range(done + 1, STEPS + 1)), "what was done is not done again, and nothing is left out"
    assert_same(resumed, whole)
    nothing_is_left(victim.folder, out)


def test_a_run_on_processes_is_killed_and_goes_on_in_threads(
    whole, victims, new_out, play_run, eventually, assert_same
):
    out = new_out()
    victim = victims(out, runner="processes")
    victim.reach(3)
    children = psutil.Process(victim.process.pid).children(recursive=True)
    assert children
    victim.kill()
    try:
        eventually(lambda: not any(map(alive, children)), "the end of the killed run's workers", within=15)
    finally:
        end(children)
    assert_same(play_run("fedavg", *SLOW, out=out, resume=True), whole)
    nothing_is_left(victim.folder, out)


def test_a_run_is_killed_twice(whole, victims, new_out, play_run, assert_same):
    out = new_out()
    first = victims(out)
    first.reach(2)
    first.kill()
    done = first.steps()
    second = victims(out, again=first)
    second.reach(done + 3)
    second.kill()
    assert_same(play_run("fedavg", *SLOW, out=out, resume=True), whole)
    nothing_is_left(second.folder, out)


def test_a_killed_run_leaves_no_temporary_server(eventually):
    code = "import time; from flows.server import TemporaryServer; print(TemporaryServer().process.pid, flush=True); "
    code += "time.sleep(600)"
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    server = psutil.Process(int(run.stdout.readline()))
    run.kill()
    run.wait()
    run.stdout.close()
    try:
        eventually(lambda: not alive(server), "the end of the killed run's Prefect server", within=15)
    finally:
        end([server])


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        if alive(process):
            process.kill()


# What --resume refuses, restarts or leaves alone


@pytest.fixture
def interrupted(play_run, new_out):
    """The output folder of a run that stopped after its third step."""
    out = new_out()

    def stop(run):
        def at(done, total, what):
            if done == 3:
                raise InterruptedError("stopped by the test")

        return at

    with pytest.raises(InterruptedError):
        play_run("fedavg", out=out, during=stop)
    return out


def test_resume_with_other_parameters_is_refused_and_names_them(interrupted, fcl, play_run, undisturbed, assert_same):
    status, _, error = fcl(
        "run", "fedavg", "--stream", "digits", "--out", interrupted, "--resume", "--set", "train.learning_rate=0.25"
    )
    assert status == 2
    assert "train.learning_rate 0.05 there, 0.25 here" in error
    assert "train.rounds" not in error, "only what changed is named"
    assert_same(play_run("fedavg", out=interrupted, resume=True), undisturbed)


def test_resume_with_other_parameters_starts_over_where_that_is_wanted(interrupted, play_run, assert_same):
    other = ("train.learning_rate=0.25", "run.resume_mismatch=restart")
    reported: list[int] = []
    restarted = play_run("fedavg", *other, out=interrupted, resume=True, during=counted(reported))
    assert reported == list(range(1, STEPS + 1))
    assert_same(restarted, play_run("fedavg", *other))


def test_without_resume_a_run_starts_over(interrupted, play_run, undisturbed, assert_same):
    reported: list[int] = []
    again = play_run("fedavg", out=interrupted, during=counted(reported))
    assert reported == list(range(1, STEPS + 1))
    assert_same(again, undisturbed)
    nothing_is_left(again.run_folder, again.out)


def test_resume_without_anything_to_resume_is_a_run(play_run, undisturbed, assert_same):
    assert_same(play_run("fedavg", resume=True), undisturbed)


def test_resume_of_a_finished_run_computes_nothing(undisturbed, fcl):
    before = contents(undisturbed.out)
    status, said, error = fcl("run", "fedavg", "--stream", "digits", "--out", undisturbed.out, "--resume")
    assert (status, error) == (0, "")
    assert "is finished" in said
    assert contents(undisturbed.out) == before


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_two_runs_of_one_experiment_do_not_meet(workshop, new_out, fcl):
    from parameters import experiment
    from tasks.run import Run

    out = new_out()
    spec = experiment("fedavg", "digits", 0, root=workshop)
    with Run(spec, workshop, out):
        status, _, error = fcl("run", "fedavg", "--stream", "digits", "--out", out)
    assert status == 2
    assert "another fcl run" in error

"""A run that is killed in the middle of a consolidation goes on from the iteration that it kept."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from methods.consolidation import EVERY
from methods.consolidation_data import Sampled

ITERATIONS = 3 * EVERY + 30
SETS = (
    f"methods.dac.consolidation.iterations={ITERATIONS}",
    "train.rounds=1",
    "train.local_epochs=2",
    "methods.dac.transfer=true",
    "run.save_every=0",
)
HANGS = 1 + 3 * EVERY + 10  # batches of the first consolidation that the victim draws; one is not an iteration's
KEPT = 2 * EVERY  # a state is kept when the next one is there
ALL = 2 * (ITERATIONS + 1)  # batches of a whole run: two of its three experts are consolidated


def play_and_hang(root: Path, out: Path, sign: Path) -> None:
    """The victim's process: in the middle of a consolidation it waits to be killed."""
    from flows.conduct import play
    from parameters import experiment
    from tasks.run import Run

    draw, drawn = Sampled.draw, []

    def hang(self, *arguments):
        drawn.append(1)
        if len(drawn) > HANGS:
            sign.touch()
            time.sleep(600)
        return draw(self, *arguments)

    Sampled.draw = hang
    with Run(experiment("dac", "devices", 0, SETS, root, device="cpu"), root, out) as run:
        play(run)


@pytest.fixture(scope="module")
def whole(play_run):
    """The run to which nothing happens."""
    return play_run("dac", *SETS, stream="devices")


@pytest.fixture(scope="module")
def victim(processes, workshop, new_out, eventually, tmp_path_factory):
    """(output folder, run folder, a copy of it) of a run that was killed in its first consolidation."""
    out, sign = new_out(), tmp_path_factory.mktemp("sign") / "hangs"
    before = set((workshop / "runs").glob("devices-dac-*"))
    process = processes.Process(target=play_and_hang, args=(workshop, out, sign))
    process.start()

    def hangs():
        assert process.is_alive(), "the run ended by itself"
        return sign.exists()

    try:
        eventually(hangs, "a consolidation that hangs")
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL and not out.exists()
    (folder,) = set((workshop / "runs").glob("devices-dac-*")) - before
    return out, folder, Path(shutil.copytree(folder, tmp_path_factory.mktemp("victim") / "copy"))


@pytest.fixture
def killed(victim):
    """(output folder, run folder) as the killed run left them."""
    out, folder, copy = victim
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(copy, folder)
    return out, folder


@pytest.fixture
def draws(monkeypatch):
    """Every batch that is drawn in this process."""
    found, draw = [], Sampled.draw

    def count(self, *arguments):
        found.append(1)
        return draw(self, *arguments)

    monkeypatch.setattr(Sampled, "draw", count)
    return found


def state_of(folder: Path) -> Path:
    (state,) = (folder / "store" / "works").glob("*.safetensors")
    return state


def test_a_killed_consolidation_goes_on_from_its_last_kept_iteration(killed, play_run, whole, assert_same, draws):
    from tasks.store import decode

    out, folder = killed
    kept = decode(state_of(folder).read_bytes()).header["values"]
    assert (kept["arrived"], kept["work"]) == (0, {"iteration": KEPT})
    left = []

    def during(run):
        works = folder / "store" / "works"
        return lambda done, total, what: left.append([path.name for path in works.iterdir()] if works.exists() else [])

    run = play_run("dac", *SETS, stream="devices", out=out, resume=True, during=during)
    assert len(draws) == ALL - KEPT
    assert_same(run, whole)
    pd.testing.assert_frame_equal(learning_curves(run), learning_curves(whole), check_exact=True)
    assert run.json("run.json")["failures"] == []
    assert left and not any(left), "a checkpoint leaves no works"
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["lost", "overwritten"])
def test_a_kept_state_that_is_damaged_means_starting_anew(damage, killed, play_run, whole, assert_same, draws):
    out, folder = killed
    state = state_of(folder)
    state.unlink() if damage == "lost" else state.write_bytes(b"garbage")
    run = play_run("dac", *SETS, stream="devices", out=out, resume=True)
    assert len(draws) == ALL
    assert_same(run, whole)
    assert run.json("run.json")["failures"] == []


def test_worker_processes_give_what_threads_give(play_run, whole, assert_same):
    assert_same(play_run("dac", *SETS, stream="devices", runner="processes", workers=1), whole)


def test_a_try_that_fails_is_repeated_from_what_was_kept(play_run, whole, assert_same, draws, monkeypatch):
    draw = Sampled.draw

    def fails_once(self, *arguments):
        if len(draws) == HANGS:
            draws.append(0)
            raise ArithmeticError("once")
        return draw(self, *arguments)

    monkeypatch.setattr(Sampled, "draw", fails_once)
    run = play_run("dac", *SETS, stream="devices")
    assert_same(run, whole)
    assert len(draws) == HANGS + 1 + ALL - KEPT
    (failure,) = run.json("run.json")["failures"]
    assert "failed in 1 of 2 tries" in failure and "ArithmeticError: once" in failure


# results


def learning_curves(run) -> pd.DataFrame:
    return pd.read_parquet(run.out / "learning_curves.parquet")


def test_results_have_learning_curves_and_what_follows_from_them(whole):
    from metrics.experts import consolidation_gap, transfer

    found = learning_curves(whole)
    assert sorted(set(found["experience"])) == [1, 2], "the first device has nothing to start from"
    for _, rows in found.groupby(["client", "experience", "round", "training"]):
        assert rows["epoch"].tolist() == [0, 1, 2]
    assert set(found["training"]) == {"consolidated", "scratch"}
    expected = transfer(found) | consolidation_gap(whole.matrix)
    assert expected.keys() == {"transfer_final", "transfer_area", "consolidation_gap"}
    assert {name: whole.metrics[name] for name in expected} == expected
    assert {"multi-head.final_average_accuracy", "multi-head.forgetting"} <= whole.metrics.keys()
    assert {path.name for path in (whole.out / "models").iterdir()} == {"global.safetensors"}, "one model, kept once"


def test_without_a_second_training_there_are_no_curves(play_run, whole):
    run = play_run("dac", *SETS, "methods.dac.transfer=false", stream="devices")
    assert not (run.out / "learning_curves.parquet").exists()
    assert not [name for name in run.metrics if name.startswith("transfer")]
    assert run.digest == whole.digest
    pd.testing.assert_frame_equal(run.matrix, whole.matrix, check_exact=True)
    assert (
        json.loads((whole.out / "run.json").read_text())["parameter_digest"] != run.json("run.json")["parameter_digest"]
    )

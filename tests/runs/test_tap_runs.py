"""Clients' last steps as tasks: one each, done once, whatever kills the run; and what a run of several tasks leaves."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from methods import base
from methods.tap import TAP
from streams.stream import open_stream
from tasks.serving import Predictor

STREAM, CLIENTS, LAST = "several", 3, 2  # the client whose last step hangs


def register(folder: Path) -> None:
    """The method `counted_tap` keeps a ledger of last steps; where the folder says so, one of them hangs or fails."""

    @base.register("counted_tap", multitask=True)
    class Counted(TAP):
        """TAP that keeps a ledger."""

        def finish(self, client):
            with open(folder / "begun", "a") as file:
                file.write(f"{client.id}\n")
            orders = (folder / "order").read_text() if (folder / "order").exists() else ""
            if client.id == LAST and orders == "hang":
                time.sleep(600)
            if client.id == LAST and (orders == "fail" or (orders == "fail once" and begun(folder).count(LAST) == 1)):
                raise ArithmeticError("on fire")
            return super().finish(client)


def begun(folder: Path) -> list[int]:
    path = folder / "begun"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def ledger(tmp_path):
    register(tmp_path)
    yield tmp_path
    del base._methods["counted_tap"]


@pytest.fixture(scope="module")
def whole(play_run, tmp_path_factory):
    """The run to which nothing happens."""
    folder = tmp_path_factory.mktemp("ledger")
    register(folder)
    run = play_run("counted_tap", stream=STREAM)
    del base._methods["counted_tap"]
    assert sorted(begun(folder)) == list(range(CLIENTS))
    return run


def play_counted(root: Path, out: Path, folder: Path) -> None:
    """The victim's process."""
    from flows.conduct import play
    from parameters import experiment
    from tasks.run import Run

    register(folder)
    with Run(experiment("counted_tap", STREAM, 0, (), root, device="cpu"), root, out) as run:
        play(run)


def test_a_killed_run_repeats_no_last_step_that_was_done(
    server, workshop, new_out, ledger, eventually, play_run, whole, assert_same
):
    (ledger / "order").write_text("hang")
    out, before = new_out(), set((workshop / "runs").glob(f"{STREAM}-counted_tap-*"))
    victim = multiprocessing.get_context("spawn").Process(target=play_counted, args=(workshop, out, ledger))
    victim.start()

    def kept():
        assert victim.is_alive(), "the run ended by itself"
        found = list((workshop / "runs").glob(f"{STREAM}-counted_tap-*/checkpoint.json"))
        done = [json.loads(path.read_text())["progress"]["finished"] for path in found if path.parent not in before]
        return sorted(done[0]) == [0, 1] if done else False

    try:
        eventually(kept, "the last steps of two clients are done")
    finally:
        victim.kill()
        victim.join()
    assert victim.exitcode == -signal.SIGKILL
    (ledger / "order").unlink()
    (ledger / "begun").unlink()
    again = play_run("counted_tap", stream=STREAM, out=out, resume=True)
    assert begun(ledger) == [LAST]
    assert_same(again, whole)


def test_a_last_step_that_fails_is_tried_again_and_then_left_out(ledger, play_run, whole):
    (ledger / "order").write_text("fail once")
    assert play_run("counted_tap", stream=STREAM).digest == whole.digest
    (ledger / "order").write_text("fail")
    (ledger / "begun").unlink()
    run = play_run("counted_tap", stream=STREAM)
    assert begun(ledger).count(LAST) == 3
    assert run.digest != whole.digest
    (failure,) = run.json("run.json")["failures"]
    assert failure.startswith(f"client {LAST} failed in its last step: ArithmeticError: on fire")
    last = run.rounds[run.rounds["round"] == 2].set_index("client")
    assert last["admitted"].to_dict() == {0: True, 1: True, 2: False}


@pytest.fixture(scope="module")
def finished(play_run):
    return play_run("tap", stream=STREAM, track=True)


def test_it_is_the_same_in_processes_with_other_workers_and_as_the_counted_one(finished, play_run, whole):
    assert finished.digest == whole.digest
    for settings in ({"runner": "processes"}, {"workers": 1}, {"workers": 3, "cohort": 1}):
        assert play_run("tap", stream=STREAM, **settings).digest == finished.digest


def test_prefect_has_one_task_for_each_last_step(finished, server):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    flow = finished.json("run.json")["prefect_flow_run"]
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow])))
    assert sorted(each.name for each in found if each.name.startswith("finish")) == [
        f"finish client {client}" for client in range(CLIENTS)
    ]


def test_every_task_has_its_measures(finished):
    table, metrics = pd.read_parquet(finished.out / "tasks.parquet"), finished.metrics
    last = table[(table["trained"] == 0) & (table["model"] == "personal")]
    for (task, measure), rows in last.groupby(["task", "measure"]):
        values = rows.sort_values("client")["value"].tolist()
        assert metrics[f"task.{task}.{measure}"] == pytest.approx(np.mean(values))
        assert metrics[f"task.{task}.{measure}.spread"] == pytest.approx(np.std(values))
        worst = max(values) if measure == "mse" else min(values)
        assert metrics[f"task.{task}.{measure}.worst_decile"] == pytest.approx(worst)
    assert {f"{kind}task.digit.accuracy" for kind in ("", "stage1.", "global.")} <= metrics.keys()


def test_the_results_tell_what_was_replaced(finished):
    table = pd.read_parquet(finished.out / "replacements.parquet")
    assert list(table) == ["experience", "round", "client", "task", "federated", "personal", "replaced"]
    assert len(table) == 2 * 6  # rounds, tasks of clients
    assert table[table["round"] == 0]["replaced"].all()
    assert table[table["round"] == 0]["personal"].isna().all()
    assert (finished.out / "replacements.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_broadcast_is_counted(finished):
    last = finished.rounds[finished.rounds["round"] == 2]
    assert len(last) == CLIENTS
    assert (last["bytes_down"] > 0).all()
    assert (last["bytes_up"] == 0).all()
    assert finished.metrics["bytes_down"] == finished.rounds["bytes_down"].sum()


def test_a_saved_model_of_several_tasks_predicts(finished, workshop):
    saved = Predictor(finished.out / "models" / "personal-2.safetensors")
    stream = open_stream(STREAM, workshop)
    rows = stream.test(2, 0)
    inputs, labels = stream.load(rows)
    probabilities = saved.predict(np.ascontiguousarray(inputs))
    assert probabilities.shape == (len(rows), stream.classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    own = {"digit": range(10), "answer": range(21, 22)}
    for record, row in zip(inputs, probabilities, strict=True):
        assert row.argmax() in own[stream.layout.tasks[record[0]].name]
    assert set(labels) == {label for label in labels if label < 10 or label == 21}


def test_the_comparison_shows_the_tasks(finished, fcl, workshop, play_run):
    play_run("local", stream=STREAM, out=workshop / "results" / STREAM / "local" / "seed-0")
    status, out, err = fcl("compare", "--stream", STREAM)
    assert (status, err) == (0, "")
    for heading in ("digit", "redraw", "phrase", "METEOR", "MSE"):
        assert heading in out


def test_a_run_on_a_foundation_model_leaves_models_that_predict_without_it(play_run, workshop):
    run = play_run("fedavg_ft", "train.rounds=1", stream="taught")
    assert run.json("run.json")["foundation_digest"]
    saved = Predictor(run.out / "models" / "personal-0.safetensors")
    stream = open_stream("taught", workshop)
    inputs, _ = stream.load(stream.test(0, 0))
    assert saved.predict(np.ascontiguousarray(inputs)).shape == (len(inputs), stream.classes)
    assert "task.digit.accuracy" in run.metrics


def test_a_stream_whose_first_task_is_no_class_runs_and_every_client_takes_a_last_step(play_run):
    about = "streams.later.multitask."
    sets = [f"{about}tasks=[redraw,phrase,digit]", f"{about}patterns=[[redraw,phrase],[digit],[phrase]]"]
    run = play_run("fedavg_ft", *sets, "train.rounds=1", stream="later")
    last = run.rounds[run.rounds["round"] == 1]  # clients 1 and 2 have nothing in the second experience
    assert sorted(last["client"]) == [0, 1, 2]
    assert (last["steps"] > 0).all()

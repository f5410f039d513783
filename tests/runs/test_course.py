"""Accuracy after every round, simulated times and a method's own tables: what a run leaves of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

from metrics import provenance

COURSE = "run.course=true"
ROUNDS, EXPERIENCES = 2, 3  # of the small project


@pytest.fixture(scope="module")
def run(play_run):
    return play_run("fedavg", COURSE)


def course(run) -> pd.DataFrame:
    return pd.read_parquet(run.out / "course.parquet")


def test_the_course_changes_nothing_else(run, undisturbed, assert_same):
    assert_same(run, undisturbed)
    assert run.json("run.json")["parameter_digest"] == undisturbed.json("run.json")["parameter_digest"]
    assert not (undisturbed.out / "course.parquet").exists(), "nobody asked for it"


def test_every_round_is_measured_on_each_experience_so_far(run):
    rows = course(run)
    assert list(rows.columns) == ["experience", "round", "tested", "accuracy", "samples"]
    cells = list(zip(rows.experience, rows["round"], rows.tested, strict=True))
    expected = [(a, number, b) for a in range(EXPERIENCES) for number in range(ROUNDS) for b in range(a + 1)]
    assert cells == expected


def test_after_the_last_round_it_is_the_matrix(run):
    rows, matrix = course(run), run.matrix
    last = rows[rows["round"] == ROUNDS - 1].set_index(["experience", "tested"])
    cells = matrix[(matrix.model == "global") & (matrix.tested <= matrix.trained) & (matrix.trained >= 0)]
    cells = cells.set_index(["trained", "tested"]).rename_axis(["experience", "tested"])
    pd.testing.assert_frame_equal(last[["accuracy", "samples"]], cells[["accuracy", "samples"]], check_exact=True)
    earlier = rows[rows["round"] < ROUNDS - 1].set_index(["experience", "tested"])
    assert (earlier.accuracy != last.accuracy).any(), "the model of the round, not of the experience's end"


def test_where_clients_hold_the_main_model_there_is_no_course(play_run):
    assert not (play_run("local", COURSE, "train.rounds=1").out / "course.parquet").exists()


def stopping(step: int):
    """Interrupts a run after so many steps."""

    def during(run):
        def at(done, total, what):
            if done == step:
                raise InterruptedError("stopped by the test")

        return at

    return during


def test_an_interrupted_course_goes_on_where_it_was(play_run, new_out, run, assert_same):
    out = new_out()
    others = set((out.parents[2] / "runs").glob("*/journal.jsonl"))  # of interrupted runs of other tests
    with pytest.raises(InterruptedError):
        play_run("fedavg", COURSE, out=out, during=stopping(4))
    (journal,) = set((out.parents[2] / "runs").glob("*/journal.jsonl")) - others
    with open(journal, "ab") as file:  # a kill after the round was measured and before its checkpoint
        file.write(b'{"kind": "course", "time": 0, "experience": 1, "round": 0, "tested": 0, "accuracy": 2.0}\n')
    again = play_run("fedavg", COURSE, out=out, resume=True)
    assert_same(again, run)
    pd.testing.assert_frame_equal(course(again), course(run), check_exact=True)


def test_a_run_is_resumed_whether_its_course_is_measured_or_not(play_run, new_out, run, assert_same):
    out = new_out()
    with pytest.raises(InterruptedError):
        play_run("fedavg", out=out, during=stopping(4))
    again = play_run("fedavg", COURSE, out=out, resume=True)
    assert_same(again, run)
    whole = course(run)
    later = whole[whole.experience >= 1].reset_index(drop=True)  # three steps are the first experience's
    pd.testing.assert_frame_equal(course(again), later, check_exact=True)


# Simulated time


@pytest.fixture(scope="module")
def timed(play_run, run):
    """Two results of a stream that took a simulated time: client i trains for i + 1, or for twice that."""
    from methods import get

    kind = get("fedavg")
    train = kind.train
    results = run.root / "results" / "timed"
    found = {}
    for method, unit in (("quick", 1.0), ("slow", 2.0)):
        with pytest.MonkeyPatch.context() as patch:

            def with_time(self, client, unit=unit):
                return dataclasses.replace(train(self, client), time=unit * (client.id + 1))

            patch.setattr(kind, "train", with_time)
            found[method] = play_run("fedavg", COURSE, out=results / method / "seed-0")
    return found


def test_simulated_times_are_recorded_and_summed_over_slowest_clients(timed, run):
    assert (run.rounds.simulated == 0).all() and "simulated_time" not in run.metrics, "it has no cost model"
    for outcome, unit in ((timed["quick"], 1.0), (timed["slow"], 2.0)):
        assert outcome.rounds.simulated.tolist() == [unit * (client + 1) for client in outcome.rounds.client]
        assert outcome.metrics["simulated_time"] == ROUNDS * EXPERIENCES * 3 * unit
        assert outcome.digest == run.digest


def test_methods_are_compared_over_their_simulated_times(timed, run, fcl):
    from flows.comparison import compare

    compare("timed", run.root)
    folder = run.root / "comparison" / "timed"
    written = {path.name for path in folder.iterdir()}
    figures = {"accuracy.png", "time.png"}
    assert written == {"table.md", "metrics.json", "runs.json", "accuracy.csv", "time.md", *figures}
    about = json.loads((folder / "runs.json").read_text())
    assert [each["name"] for each in about["runs"]] == ["timed/quick/seed-0", "timed/slow/seed-0"]
    assert all(provenance.read(folder / name) == about for name in figures)
    quick, slow = (folder / "time.md").read_text().splitlines()[2:4]
    assert quick.startswith("| quick | ") and quick.endswith(" | 1.00 |")
    assert slow.startswith("| slow | ") and slow.endswith(" | 2.00 |")
    status, said, _ = fcl("compare", "--stream", "timed")
    assert status == 0 and "time to target" in said and "2.00" in said
    assert "time.png" not in {path.name for path in compared_without(run.root)}


def compared_without(root) -> list:
    """What the stage writes of methods without simulated times."""
    from flows.comparison import compare

    for method in ("quick", "slow"):
        results = root / "results" / "untimed" / method / "seed-0"
        shutil.copytree(root / "results" / "timed" / method / "seed-0", results)
        rounds = pd.read_parquet(results / "rounds.parquet").drop(columns="simulated")  # as before there were any
        rounds.to_parquet(results / "rounds.parquet")
    compare("untimed", root)
    return list((root / "comparison" / "untimed").iterdir())


# A method's own tables


TABLE = [{"round": n, "client": n % 3, "blocks": "0 2", "time": 1.5 * n, "kind": "skewed"} for n in range(250)]


@pytest.fixture(scope="module")
def recorded(play_run):
    """A run in which somebody records a table in its second round."""

    def during(run):
        def at(done, total, what):
            if done == 1:
                run.folder.record("table:who_trains", TABLE)

        return at

    return play_run("fedavg", "train.rounds=1", during=during)


def test_a_table_is_written_as_it_was_recorded(recorded):
    found = pd.read_parquet(recorded.out / "who_trains.parquet")
    pd.testing.assert_frame_equal(found, pd.DataFrame(TABLE), check_dtype=False)
    assert found.columns.tolist() == list(TABLE[0])


def test_prefect_shows_the_beginning_of_a_table(recorded):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    flow_run = recorded.json("run.json")["prefect_flow_run"]
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
    with get_client(sync_client=True) as client:
        (artifact,) = (each for each in client.read_artifacts(artifact_filter=wanted) if each.type == "table")
    assert artifact.key == "who-trains"
    assert json.loads(artifact.data) == TABLE[:200]
    assert "rows 1 to 200 of 250" in artifact.description and "who_trains.parquet" in artifact.description


@pytest.mark.filterwarnings("ignore:Artifact creation outside")
def test_without_a_server_the_table_is_noted_and_the_run_goes_on(tmp_path):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.tables import show_tables

    notes: list[str] = []
    folder = SimpleNamespace(tables=lambda: {"who_trains": TABLE})
    run = SimpleNamespace(folder=folder, experiment=SimpleNamespace(title="a run"), note=notes.append)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):  # the discard port: nothing listens there
        show_tables(run)
    (note,) = notes
    assert note.startswith("the table who_trains is not in the Prefect UI (")

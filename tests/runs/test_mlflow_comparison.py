"""Methods compared in MLflow: a summary over seeds, registered models, and the same table as from results/."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from mlflow.tracking import MlflowClient

import methods
from tasks.delivery import tracking_uri
from tasks.registered import aliases
from tasks.summary_run import refresh, summary_run
from tasks.tracked_runs import collect

TAGS = {"stream": "made-up", "method": "fedavg", "variant": "fedavg"}
ACCURACY = "final_average_accuracy"


# The summary over seeds, kept by several senders at once


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A real MLflow database."""
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}")


@pytest.fixture
def where(client, request):
    """A stream's experiment of the test's own."""
    return client.create_experiment(request.node.name)


def finish(client, where, seed, accuracy, when, experiment="e", before_end=lambda: None):
    """A finished run of a seed, as `tasks.reporting.Report` tells of it, and the summary kept up to date."""
    own = {"kind": "seed", "seed": str(seed), "experiment_digest": experiment, "finished": when}
    run_id = client.create_run(where, tags={**TAGS, **own}).info.run_id
    client.log_metric(run_id, ACCURACY, accuracy)
    client.log_metric(run_id, "round/loss", 1.0)
    client.set_terminated(run_id)
    before_end()
    refresh(client, where, TAGS)
    return run_id


def summaries(client, where):
    return client.search_runs([where], "tags.kind = 'method'")


def current(client, where):
    return {run.info.run_id for run in client.search_runs([where], "tags.current = 'yes'")}


def test_the_summary_has_mean_and_spread_of_the_finished_seeds(client, where):
    runs = [finish(client, where, seed, accuracy, f"1{seed}") for seed, accuracy in enumerate((0.5, 0.7, 0.8))]
    (summary,) = summaries(client, where)
    assert summary.info.status == "FINISHED" and summary.info.run_name == "fedavg"
    told = summary.data.metrics
    assert told == pytest.approx(
        {"seeds": 3, ACCURACY: statistics.fmean((0.5, 0.7, 0.8)), f"{ACCURACY}_std": statistics.stdev((0.5, 0.7, 0.8))}
    )
    assert current(client, where) == set(runs)
    for run_id in runs:
        assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == summary.info.run_id


def test_said_again_nothing_is_written(client, where, monkeypatch):
    finish(client, where, 0, 0.5, "10")
    written = []
    for step in ("log_batch", "set_tag", "create_run", "delete_run", "set_terminated"):
        monkeypatch.setattr(MlflowClient, step, lambda self, *_, step=step, **__: written.append(step))
    refresh(client, where, TAGS)
    assert written == []


def test_a_run_that_is_repeated_counts_instead_of_the_older_one(client, where):
    old, other = finish(client, where, 0, 0.1, "10"), finish(client, where, 1, 0.3, "11")
    new = finish(client, where, 0, 0.5, "12")
    finish(client, where, 1, 0.9, "09")  # delivered late: it was finished before all others
    (summary,) = summaries(client, where)
    assert summary.data.metrics[ACCURACY] == pytest.approx(0.4)
    assert summary.data.metrics["seeds"] == 2
    assert current(client, where) == {new, other}
    assert client.get_run(old).data.tags["current"] == "no"


def test_a_mean_is_over_one_experiment_and_what_is_not_known_any_more_is_not_a_number(client, where):
    for seed in (0, 1):
        finish(client, where, seed, 0.1 + seed, f"1{seed}")
    newest = finish(client, where, 0, 0.6, "12", experiment="with other parameters")
    (summary,) = summaries(client, where)
    assert (summary.data.metrics["seeds"], summary.data.metrics[ACCURACY]) == (1, 0.6)
    assert np.isnan(summary.data.metrics[f"{ACCURACY}_std"])
    assert current(client, where) == {newest}


def test_two_summaries_made_at_the_same_moment_become_one(client, where):
    first = finish(client, where, 0, 0.2, "10")
    (kept,) = summaries(client, where)
    twin = client.create_run(where, tags={**TAGS, "kind": "method"}).info.run_id
    client.set_tag(first, "mlflow.parentRunId", twin)
    finish(client, where, 1, 0.4, "11")
    (summary,) = summaries(client, where)
    assert summary.info.run_id == kept.info.run_id
    assert summary.data.metrics[ACCURACY] == pytest.approx(0.3)
    assert client.get_run(first).data.tags["mlflow.parentRunId"] == kept.info.run_id


def test_a_summary_that_a_user_has_deleted_is_made_again(client, where):
    run_id = finish(client, where, 0, 0.2, "10")
    client.delete_run(summaries(client, where)[0].info.run_id)
    refresh(client, where, TAGS)
    (summary,) = summaries(client, where)
    assert summary.data.metrics[ACCURACY] == 0.2
    assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == summary.info.run_id


def test_who_is_overtaken_while_writing_does_not_bring_back_what_was(client, where, monkeypatch):
    """Another seed ends, and its sender is done, after this one has read the runs and before it writes their mean."""
    finish(client, where, 0, 0.1, "10")
    write, overtaken = MlflowClient.log_batch, []

    def late(self, run_id, metrics=(), **options):
        if metrics and not overtaken:
            overtaken.append(True)
            finish(client, where, 2, 0.9, "12")
        write(self, run_id, metrics=metrics, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", late)
    finish(client, where, 1, 0.2, "11")
    (summary,) = summaries(client, where)
    assert overtaken and summary.data.metrics["seeds"] == 3
    assert summary.data.metrics[ACCURACY] == pytest.approx(0.4)


@pytest.mark.parametrize("steps", range(1, 7))
def test_who_is_killed_between_two_writes_is_made_good(client, where, monkeypatch, steps):
    """A second seed ends where the summary has a twin and one seed; its sender dies after some of its writes."""
    first = finish(client, where, 0, 0.2, "10")
    client.create_run(where, tags={**TAGS, "kind": "method"})
    left = iter(range(steps - 1))

    def last(write):
        def call(self, *arguments, **options):
            write(self, *arguments, **options)
            if next(left, None) is None:
                raise SystemExit

        return call

    def kill():
        for step in ("log_batch", "create_run", "delete_run", "set_terminated"):
            patch.setattr(MlflowClient, step, last(getattr(MlflowClient, step)))

    died = False
    with monkeypatch.context() as patch:
        try:
            finish(client, where, 1, 0.4, "11", before_end=kill)
        except SystemExit:
            died = True
    assert died == (steps <= 4), "the two runs' tags, the twin, the summary's numbers"
    refresh(client, where, TAGS)
    (summary,) = summaries(client, where)
    assert summary.data.metrics[ACCURACY] == pytest.approx(0.3) and summary.data.metrics["seeds"] == 2
    assert first in current(client, where) and len(current(client, where)) == 2
    assert len(client.get_metric_history(summary.info.run_id, ACCURACY)) == 2


def test_runs_that_end_at_once_are_all_in_the_mean(client, where):
    barrier, wrong = threading.Barrier(6), []

    def end(seed):
        try:
            finish(client, where, seed, seed / 10, f"1{seed}", before_end=barrier.wait)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=end, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    (summary,) = summaries(client, where)
    assert summary.data.metrics["seeds"] == 6
    assert summary.data.metrics[ACCURACY] == pytest.approx(0.25)
    assert summary_run(client, where, TAGS) == summary.info.run_id


def test_a_summary_that_another_deletes_meanwhile_is_looked_for_again(client, where, monkeypatch):
    from mlflow.exceptions import MlflowException

    from tasks import summary_run as module

    errors = [MlflowException("must be in the 'active' state. Current state is deleted."), MlflowException("disk full")]
    whole = module._write_differences

    def interrupted(*arguments):
        if len(errors) == 2:
            raise errors.pop(0)
        return whole(*arguments)

    monkeypatch.setattr(module, "_write_differences", interrupted)
    finish(client, where, 0, 0.5, "10")
    (summary,) = summaries(client, where)
    assert summary.data.metrics["seeds"] == 1
    monkeypatch.setattr(module, "_write_differences", lambda *_: (_ for _ in ()).throw(errors[0]))
    with pytest.raises(MlflowException, match="disk full"):
        module.refresh(client, where, TAGS)


# Aliases


def version(number, accuracy=None, stream="s"):
    tags = {"stream_digest": stream} | ({ACCURACY: repr(accuracy)} if accuracy is not None else {})
    return ModelVersion("digits.fedavg", number, 0, tags=[ModelVersionTag(*pair) for pair in tags.items()])


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([], {}),
        ([version(1, 0.5), version(2, 0.7), version(3, 0.6)], {"best": "2", "newest": "3"}),
        ([version(9, 0.5), version(10, 0.5)], {"best": "9", "newest": "10"}),
        ([version(1, 0.9, "another stream"), version(2, 0.1)], {"best": "2", "newest": "2"}),
        ([version(1), version(2)], {"newest": "2"}),
    ],
    ids=["none", "the highest", "of equals the older", "of one stream", "never measured"],
)
def test_best_and_newest(versions, expected):
    assert aliases(versions) == expected


# Whole runs


@pytest.fixture(scope="module")
def home(small_project, tmp_path_factory, play_run):
    """A project with two methods and two seeds in results/ and in MLflow. Client i trains for i + 1, or twice that."""
    root = Path(shutil.copytree(small_project, tmp_path_factory.mktemp("compared") / "project"))
    for method, unit in (("fedavg", 1.0), ("fedprox", 2.0)):
        kind = methods.get(method)
        with pytest.MonkeyPatch.context() as patch:

            def with_time(self, client, unit=unit, train=kind.train):
                return dataclasses.replace(train(self, client), time=unit * (client.id + 1))

            patch.setattr(kind, "train", with_time)
            for seed in (0, 1):
                out = root / "results" / "digits" / method / f"seed-{seed}"
                play_run(method, "train.rounds=1", "run.course=true", seed=seed, out=out, root=root, track=True)
    return root


@pytest.fixture
def say(home, call_fcl):
    """`fcl ARGUMENTS` in that project, or in `root`: (exit status, stdout, stderr)."""
    return lambda *arguments, root=home: call_fcl(root, *arguments)


def test_results_and_mlflow_give_the_same_table(say):
    from_results, from_mlflow = say("compare"), say("compare", "--from", "mlflow")
    assert from_results[0] == 0
    assert "time to target" in from_results[1] and "fedavg" in from_results[1]
    assert from_mlflow == from_results
    assert say("compare", "--from", "mlflow", "--stream", "digits") == from_results


def test_a_try_with_other_parameters_is_a_row_of_its_own(home, play_run, say):
    play_run("fedavg", "train.rounds=1", "train.local_epochs=2", out=home / "results" / "try-1", root=home, track=True)
    assert "fedavg-try-1" not in say("compare")[1]
    assert "fedavg-try-1" in say("compare", "--from", "mlflow")[1]
    found = collect(home, "digits")
    assert found.left_out == {}
    (row,) = found.runs[found.runs.method == "fedavg-try-1"].to_dict("records")
    told = json.loads((home / "results" / "try-1" / "metrics.json").read_text())
    assert {name: row[name] for name in told} == pytest.approx(told)
    tags = MlflowClient(tracking_uri(home)).get_run(found.ids["digits", "fedavg-try-1", 0]).data.tags
    assert tags["command"] == (
        "fcl run fedavg --stream digits --seed 0 --set train.rounds=1 --set train.local_epochs=2 --out results/try-1"
    )


def test_the_registered_model_predicts_in_three_lines_anywhere(home, tmp_path):
    """In another folder, where nothing is known but the address of MLflow."""
    from streams.stream import open_stream
    from tasks.serving import Predictor

    stream = open_stream("digits", home)
    images = np.ascontiguousarray(stream.inputs[stream.test(None, 0)])
    np.save(tmp_path / "images.npy", images)
    code = """
import mlflow, numpy
model = mlflow.pyfunc.load_model("models:/digits.fedavg@best")
numpy.save("probabilities.npy", model.predict(numpy.load("images.npy")))
"""
    about = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(home)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=about, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = [home / "results" / "digits" / "fedavg" / f"seed-{seed}" for seed in (0, 1)]
    accuracies = [json.loads((folder / "metrics.json").read_text())[ACCURACY] for folder in folders]
    best = folders[accuracies.index(max(accuracies))]
    own = Predictor(best / "models" / "global.safetensors").predict(images)
    assert np.array_equal(np.load(tmp_path / "probabilities.npy"), own)


def test_a_version_names_its_run(home):
    client = MlflowClient(tracking_uri(home))
    about = json.loads((home / "results" / "digits" / "fedprox" / "seed-1" / "run.json").read_text())
    newest = client.get_model_version_by_alias("digits.fedprox", "newest")
    assert newest.run_id == about["mlflow_run"]
    assert (newest.tags["run"], newest.tags["seed"], newest.tags["digest"]) == ("fedprox/seed-1", "1", about["digest"])


def test_the_experiment_says_what_the_stream_is_and_carries_the_view(home):
    experiment = MlflowClient(tracking_uri(home)).get_experiment_by_name("digits")
    assert "3 clients, 3 experiences" in experiment.tags["mlflow.note.content"]
    view = json.loads(experiment.tags["mlflow.sharedViewState.comparison"])
    assert view["searchFilter"] == "tags.kind = 'method'"
    found = MlflowClient(tracking_uri(home)).search_runs([experiment.experiment_id], view["searchFilter"])
    shown = {column.split("`")[1] for column in view["selectedColumns"] if column.startswith("metrics.")}
    assert found and all(shown <= set(run.data.metrics) for run in found if run.data.metrics["seeds"] > 1)


def test_where_there_is_nothing_to_compare_one_line_says_so_and_nothing_is_made(say, project, home):
    status, _, error = say("compare", "--from", "mlflow", root=project)
    assert status == 2 and "mlflow.db" in error and len(error.splitlines()) == 1
    assert not (project / "mlflow.db").exists()
    status, _, error = say("compare", "--from", "mlflow", "--stream", "no-such")
    assert status == 2 and "no finished run of stream no-such" in error
    assert say("compare", "--from", "nowhere")[0] == 2

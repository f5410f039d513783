"""A run does not wait until MLflow has its results; nothing is lost and nothing told twice whatever happens to them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from mlflow.tracking import MlflowClient

from tasks.delivery import deliver, deliver_all, deliver_kept, records, tracking_uri
from tasks.tracked_runs import counting, seeds
from tasks.tracking import Tracker

FILES = {"accuracy.png", "accuracy_matrix.parquet", "matrix.png", "metrics.json", "rounds.parquet", "run.json"}


@pytest.fixture(scope="module")
def home(small_project, tmp_path_factory):
    """A project of its own: what is kept in another's would be sent by its runs."""
    return Path(shutil.copytree(small_project, tmp_path_factory.mktemp("delivery") / "project"))


@pytest.fixture(scope="module")
def play_stopped(play_run, home):
    """A run whose tracker stands still when the results are written, and is killed once the run has returned."""

    def play(seed: int, number: signal.Signals = signal.SIGSTOP, **options):
        tracker = Tracker()

        def during(run):
            def at(done, total, what):
                if done == total:
                    assert tracker.run_id(60)
                    os.kill(tracker.process.pid, number)

            return at

        out = home / "results" / str(seed) / "seed"
        with tracker:
            outcome = play_run(
                "local", "train.rounds=1", seed=seed, out=out, root=home, track=tracker, during=during, **options
            )
        tracker.process.kill()
        tracker.process.wait()
        return outcome

    return play


@pytest.fixture(scope="module")
def left(play_stopped, home, tmp_path_factory):
    """Such a run, and its record kept aside: (outcome, copy of the record)."""
    outcome = play_stopped(20)
    (record,) = records(home)
    copy = Path(shutil.copytree(record, tmp_path_factory.mktemp("record") / record.name))
    return outcome, copy


def mlflow_run(root: Path, run_id: str) -> SimpleNamespace:
    client = MlflowClient(tracking_uri(root))
    told = client.get_run(run_id)
    return SimpleNamespace(
        info=told.info,
        metrics=told.data.metrics,
        tags=told.data.tags,
        files={file.path for file in client.list_artifacts(run_id)},
        models=client.search_logged_models([told.info.experiment_id], f"source_run_id = '{run_id}'"),
        outputs=[each.model_id for each in (told.outputs.model_outputs if told.outputs else [])],
        histories={name: client.get_metric_history(run_id, name) for name in told.data.metrics},
    )


def check_complete(root: Path, outcome, run_id: str) -> None:
    """MLflow has the whole run, and each thing once."""
    told = mlflow_run(root, run_id)
    assert told.info.status == "FINISHED"
    assert {name: told.metrics[name] for name in outcome.metrics} == pytest.approx(outcome.metrics)
    assert told.files == FILES
    assert [model.model_id for model in told.models] == told.outputs and len(told.outputs) == 1
    assert told.models[0].status == "READY"
    for name, points in told.histories.items():
        assert len({point.step for point in points}) == len(points), name
    assert len(told.histories["round/seconds"]) == 3
    client = MlflowClient(tracking_uri(root))
    assert [version.run_id for version in client.search_model_versions(f"run_id = '{run_id}'")] == [run_id]
    of_variant = seeds(client, [told.info.experiment_id], told.tags["variant"])
    (summary,) = client.search_runs(
        [told.info.experiment_id], f"tags.kind = 'method' and tags.variant = '{told.tags['variant']}'"
    )
    accuracies = [run.data.metrics["final_average_accuracy"] for run in counting(of_variant)]
    assert summary.data.metrics["seeds"] == len(accuracies)
    assert summary.data.metrics["final_average_accuracy"] == pytest.approx(sum(accuracies) / len(accuracies))
    assert {run.data.tags["mlflow.parentRunId"] for run in of_variant} == {summary.info.run_id}
    model = client.get_registered_model(f"digits.{told.tags['variant']}")
    versions = client.search_model_versions(f"name = '{model.name}'")
    assert str(model.aliases["newest"]) == max((str(each.version) for each in versions), key=int)
    best = max(float(each.tags["final_average_accuracy"]) for each in versions)
    (chosen,) = [each for each in versions if str(each.version) == str(model.aliases["best"])]
    assert float(chosen.tags["final_average_accuracy"]) == best


def test_a_run_files_what_is_to_be_delivered_and_does_not_wait_for_it(left, home):
    outcome, record = left
    run_id = outcome.json("run.json")["mlflow_run"]
    assert outcome.out.exists() and not outcome.run_folder.exists()
    assert {path.name for path in record.iterdir()} >= {"tracking.json", "finish.json", "journal.jsonl", "mlflow.json"}
    finish = json.loads((record / "finish.json").read_text())
    assert finish["results"] == str(outcome.out)
    assert json.loads((record / "mlflow.json").read_text())["run_id"] == run_id
    assert mlflow_run(home, run_id).info.status == "RUNNING"


def test_what_another_process_is_sending_is_left_to_it(left, home):
    (record,) = records(home)
    with FileLock(home / "runs" / "locks" / f"untracked-{record.name}.lock"):
        deliver_kept(home, tracking_uri(home))
        assert records(home) == [record]


def test_who_wants_everything_delivered_waits_for_it(left, home):
    outcome, _ = left
    (record,) = records(home)
    lock = FileLock(home / "runs" / "locks" / f"untracked-{record.name}.lock", thread_local=False)
    lock.acquire()
    waiting = threading.Thread(target=deliver_all, args=(home,))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive() and records(home) == [record]
    lock.release()
    waiting.join()
    assert records(home) == []
    check_complete(home, outcome, outcome.json("run.json")["mlflow_run"])


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["after the run's end", "before it"])
def test_what_a_killed_tracker_left_is_sent_by_the_next_run(number, play_stopped, play_run, home):
    outcome = play_stopped(21 if number == signal.SIGSTOP else 22, number)
    assert len(records(home)) == 1
    play_run("local", "train.rounds=1", seed=23, root=home, out=home / "results" / "next" / "seed", track=True)
    check_complete(home, outcome, outcome.json("run.json")["mlflow_run"])


def test_a_record_does_not_send_the_files_of_a_later_run(play_stopped, play_run, home):
    old = play_stopped(24)
    run_id, metrics = old.json("run.json")["mlflow_run"], old.metrics
    later = play_run("local", "train.rounds=1", seed=24, out=old.out, root=home)
    assert later.json("run.json").get("mlflow_run") is None
    assert deliver_all(home) == []
    told = mlflow_run(home, run_id)
    assert told.info.status == "FINISHED"
    assert {name: told.metrics[name] for name in metrics} == pytest.approx(metrics)
    assert told.files == {"run.json"} and told.models == []
    assert "replaced" in told.tags["results"]
    kept = json.loads(Path(MlflowClient(tracking_uri(home)).download_artifacts(run_id, "run.json")).read_text())
    assert kept["mlflow_run"] == run_id, "run.json is the old run's own"


def test_a_run_killed_between_publication_and_its_end_is_delivered_when_it_is_resumed(play_stopped, home, monkeypatch):
    from rich.console import Console

    import flows.conduct as conduct
    from parameters import experiment

    def killed(*_):
        raise MemoryError("killed by the test")

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(conduct, "file_record", killed)
        play_stopped(25, signal.SIGCONT)
    assert records(home) == []
    out = home / "results" / "25" / "seed"
    told = json.loads((out / "run.json").read_text())
    assert mlflow_run(home, told["mlflow_run"]).info.status == "FAILED"
    spec = experiment("local", "digits", 25, ["train.rounds=1"], home, device="cpu")
    conduct.conduct(spec, home, out, True, Console(quiet=True))
    assert len(records(home)) == 1
    assert deliver_all(home) == []
    outcome = SimpleNamespace(metrics=json.loads((out / "metrics.json").read_text()))
    check_complete(home, outcome, told["mlflow_run"])


STEPS = (
    *("create_run", "log_batch", "log_inputs", "log_dict", "log_artifacts", "create_logged_model", "log_outputs"),
    *("log_model_artifacts", "finalize_logged_model", "create_model_version", "set_logged_model_tags"),
    *("set_registered_model_alias", "set_terminated"),
)


@pytest.mark.parametrize("step", STEPS)
def test_a_delivery_that_ends_anywhere_is_taken_up_again(step, left, home, monkeypatch):
    """The sender dies right after a step, before it can note that it took it; nobody has told MLflow of the run."""
    outcome, copy = left
    record = Path(shutil.copytree(copy, home / "runs" / "untracked" / f"{copy.name}-{step}"))
    lineage = uuid.uuid4().hex
    about = json.loads((record / "tracking.json").read_text())
    (record / "tracking.json").write_text(json.dumps({**about, "lineage": lineage}))
    (record / "mlflow.json").unlink()
    taken = getattr(MlflowClient, step)

    def die(self, *arguments, **options):
        taken(self, *arguments, **options)
        raise SystemExit(f"killed after {step}")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(MlflowClient, step, die)
        deliver(record, home, tracking_uri(home))
    assert records(home) == [record]
    assert deliver(record, home, tracking_uri(home))
    client = MlflowClient(tracking_uri(home))
    where = client.get_experiment_by_name("digits").experiment_id
    (run,) = client.search_runs([where], f"tags.lineage = '{lineage}'")
    check_complete(home, outcome, run.info.run_id)
    assert records(home) == []


def test_a_record_sent_twice_is_told_once(left, home):
    outcome, copy = left
    record = Path(shutil.copytree(copy, home / "runs" / "untracked" / copy.name))
    assert deliver(record, home, tracking_uri(home))
    check_complete(home, outcome, outcome.json("run.json")["mlflow_run"])

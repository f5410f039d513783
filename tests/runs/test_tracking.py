"""What MLflow and Prefect know of a run, and a run whose tracking server does not answer."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture(scope="module")
def remote(small_project, tmp_path_factory):
    """A project of its own, whose first run cannot reach MLflow."""
    return Path(shutil.copytree(small_project, tmp_path_factory.mktemp("remote") / "project"))


@pytest.fixture(scope="module", autouse=True)
def unreachable(server, remote, start_fcl):
    """That run, started before the module's first test: most of its time it waits for MLflow."""
    command = ["run", "local", "--stream", "digits", "--set", "train.rounds=1", "--set", "run.device=cpu"]
    command += ["--set", "run.tracking_patience=10"]
    process = start_fcl(*command, root=remote, MLFLOW_TRACKING_URI=NOWHERE, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def tracked(play_run):
    return play_run("fedavg", track=True, seed=5)


def mlflow_client(root: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


def all_runs(root: Path) -> list:
    client = mlflow_client(root)
    experiment = client.get_experiment_by_name("digits")
    return client.search_runs([experiment.experiment_id], "tags.kind = 'seed'") if experiment else []


@pytest.fixture(scope="module")
def mlflow_run(tracked):
    """The run as MLflow tells it."""
    client = mlflow_client(tracked.root)
    run_id = tracked.json("run.json")["mlflow_run"]
    return SimpleNamespace(id=run_id, client=client, told=client.get_run(run_id))


# MLflow


def test_mlflow_names_the_run(tracked, mlflow_run):
    told = mlflow_run.told
    assert told.info.run_name == "fedavg-seed/seed-5", "its results lie in a folder `seed` of their own"
    assert told.info.status == "FINISHED"
    assert mlflow_run.client.get_experiment(told.info.experiment_id).name == "digits"


def test_mlflow_knows_the_parameters(tracked, mlflow_run):
    params = mlflow_run.told.data.params
    assert (params["method"], params["seed"], params["train.batch_size"], params["model.name"]) == (
        "fedavg",
        "5",
        "16",
        "mlp",
    )
    assert params["stream_parameters.partition.alpha"] == "1.0"
    assert params["run.runner"] == "threads"


def test_mlflow_tags_say_what_was_run(tracked, mlflow_run):
    tags, told = mlflow_run.told.data.tags, tracked.json("run.json")
    for name in ("method", "stream", "digest", "git_commit", "parameter_digest", "stream_digest", "prefect_flow_run"):
        assert tags[name] == told[name], name
    assert tags["seed"] == "5"


def test_mlflow_has_every_round_once(tracked, mlflow_run):
    rounds = tracked.rounds.assign(step=lambda rows: rows.experience * 2 + rows["round"])
    for name in ("bytes_up", "bytes_down", "seconds"):
        sums = rounds.groupby("step")[name].sum()
        assert history(mlflow_run, f"round/{name}") == pytest.approx(sums.to_dict()), name
    assert history(mlflow_run, "round/clients") == dict.fromkeys(range(6), 3)
    assert history(mlflow_run, "round/refused") == dict.fromkeys(range(6), 0)
    weighted = rounds.assign(total=rounds.loss * rounds.samples).groupby("step")[["total", "samples"]].sum()
    assert history(mlflow_run, "round/loss") == pytest.approx((weighted.total / weighted.samples).to_dict())


def history(run: SimpleNamespace, metric: str) -> dict[int, float]:
    """Step -> value; no step is told twice."""
    points = run.client.get_metric_history(run.id, metric)
    found = {point.step: point.value for point in points}
    assert len(found) == len(points), f"{metric} has steps {[point.step for point in points]}"
    return found


def test_mlflow_follows_the_accuracy(tracked, mlflow_run):
    matrix = tracked.matrix
    own = matrix[(matrix.model == "global") & (matrix.trained >= 0)].set_index(["trained", "tested"]).accuracy
    for tested in range(3):
        points = history(mlflow_run, f"global/accuracy_on_experience_{tested}")
        assert points == pytest.approx({trained: own[trained, tested] for trained in range(3)})
    averages = {trained: own[trained][: trained + 1].mean() for trained in range(3)}
    assert history(mlflow_run, "global/average_accuracy") == pytest.approx(averages)


def test_mlflow_final_metrics_are_those_of_the_results(tracked, mlflow_run):
    told = mlflow_run.told.data.metrics
    assert {name: told[name] for name in tracked.metrics} == pytest.approx(tracked.metrics)


def test_mlflow_knows_the_data(tracked, mlflow_run):
    (data,) = mlflow_run.told.inputs.dataset_inputs
    assert data.dataset.name == "digits"
    assert tracked.json("run.json")["stream_digest"].startswith(data.dataset.digest)
    assert len(data.dataset.digest) >= 32


def test_mlflow_holds_tables_and_figures(tracked, mlflow_run, tmp_path):
    names = {found.path for found in mlflow_run.client.list_artifacts(mlflow_run.id)}
    assert names >= {"accuracy_matrix.parquet", "rounds.parquet", "metrics.json", "accuracy.png", "matrix.png"}
    for name in names - {"run.json"}:
        copy = Path(mlflow_run.client.download_artifacts(mlflow_run.id, name, str(tmp_path)))
        assert copy.read_bytes() == (tracked.out / name).read_bytes()


def test_the_model_is_served_by_mlflow(tracked, mlflow_run, workshop):
    import mlflow

    from streams.stream import open_stream
    from tasks.serving import Predictor

    stream = open_stream("digits", workshop)
    samples = stream.test(None, 0)
    images = np.ascontiguousarray(stream.inputs[samples])
    mlflow.set_tracking_uri(f"sqlite:///{workshop / 'mlflow.db'}")
    try:
        uri = f"runs:/{mlflow_run.id}/model"
        model = mlflow.pyfunc.load_model(uri)
        about = mlflow.models.get_model_info(uri)
        example = model.input_example
    finally:
        mlflow.set_tracking_uri(None)
    probabilities = model.predict(images)
    assert probabilities.shape == (len(images), stream.classes)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    own = Predictor(tracked.out / "models" / "global.safetensors").predict(images)
    assert np.array_equal(probabilities, own)
    (inputs,), (outputs,) = about.signature.inputs.inputs, about.signature.outputs.inputs
    assert (inputs.type, tuple(inputs.shape)) == (np.dtype("uint8"), (-1, *stream.shape))
    assert (outputs.type, tuple(outputs.shape)) == (np.dtype("float32"), (-1, stream.classes))
    assert np.asarray(example).shape == (1, *stream.shape)


def test_a_run_that_was_killed_and_resumed_is_one_run_that_ended_well(
    start_fcl, play_run, workshop, new_out, eventually
):
    """Resumed at once, while the killed run's tracker may still be there."""
    out, sets = new_out(), ("train.batch_size=4", "train.local_epochs=5")
    before = {run.info.run_id for run in all_runs(workshop)}
    folders = set((workshop / "runs").glob("digits-fedavg-6-*"))
    options = [part for value in (*sets, "run.device=cpu") for part in ("--set", value)]
    killed = start_fcl("run", "fedavg", "--stream", "digits", "--seed", "6", "--out", out, *options)
    eventually(lambda: set((workshop / "runs").glob("digits-fedavg-6-*/checkpoint.json")) - folders, "a checkpoint")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    resumed = play_run("fedavg", *sets, seed=6, out=out, resume=True, track=True)
    (run,) = [run for run in all_runs(workshop) if run.info.run_id not in before]
    assert run.info.run_id == resumed.json("run.json")["mlflow_run"]
    assert run.info.status == "FINISHED"
    assert {name: run.data.metrics[name] for name in resumed.metrics} == pytest.approx(resumed.metrics)
    found = SimpleNamespace(id=run.info.run_id, client=mlflow_client(workshop))
    assert sorted(history(found, "round/loss")) == list(range(6))
    assert not resumed.run_folder.exists()


def test_a_run_that_fails_is_not_left_running_in_mlflow(play_run, workshop):
    def during(run):
        def at(done, total, what):
            raise InterruptedError("stopped by the test")

        return at

    before = {run.info.run_id for run in all_runs(workshop)}
    with pytest.raises(InterruptedError):
        play_run("fedavg", seed=7, track=True, during=during)
    (run,) = [run for run in all_runs(workshop) if run.info.run_id not in before]
    assert run.info.status == "FAILED"


# A tracking server that does not answer


def test_without_mlflow_a_run_ends_well_says_so_and_is_told_later(unreachable, remote, play_run):
    said, error = unreachable.communicate()
    assert (unreachable.returncode, error) == (0, "")
    assert "MLflow could not be reached" in said and "runs/untracked" in said
    out = remote / "results" / "digits" / "local" / "seed-0"
    results = {path.name for path in out.iterdir()}
    assert results >= {"run.json", "metrics.json", "accuracy_matrix.parquet", "rounds.parquet", "models"}
    assert json.loads((out / "run.json").read_text())["mlflow_run"] is None
    assert len(list((remote / "runs" / "untracked").iterdir())) == 1
    assert not (remote / "mlflow.db").exists()

    # MLflow is where params and environment say it is now: the next run takes the kept records along.
    later = play_run("local", "train.rounds=1", seed=1, root=remote, track=True)
    runs = {run.info.run_name: run for run in all_runs(remote)}
    assert set(runs) == {"local/seed-0", "local-seed/seed-1"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["local-seed/seed-1"].info.run_id == later.json("run.json")["mlflow_run"]
    kept = json.loads((out / "metrics.json").read_text())
    told = runs["local/seed-0"].data.metrics
    assert {name: told[name] for name in kept} == pytest.approx(kept)


# Prefect


def test_prefect_shows_the_run_and_its_tasks_by_name(tracked, eventually):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=60)
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[tracked.json("run.json")["prefect_flow_run"]]))
        (flow_run,) = client.read_flow_runs(flow_run_filter=wanted)
        assert flow_run.name == "fedavg on digits, seed 5"
        assert flow_run.state.name == "Completed"
        assert flow_run.parameters["parameters"]["train"]["batch_size"] == 16

        def completed():
            tasks = client.read_task_runs(flow_run_filter=wanted)
            return {task.name: task.task_inputs for task in tasks if task.state_name == "Completed"}

        # Prefect books task runs behind the flow's back, some time after they have ended.
        rounds = [(experience, number) for experience in range(3) for number in range(2)]
        expected = {f"admit uploads of round {number} of experience {experience}" for experience, number in rounds}
        expected |= {f"fuse uploads of round {number} of experience {experience}" for experience, number in rounds}
        points = ["no training", *(f"experience {experience}" for experience in range(3))]
        expected |= {f"evaluate part {part} of 2 after {point}" for point in points for part in (1, 2)}
        names = set(eventually(lambda: (found := completed()).keys() >= expected and found, "all tasks", pause=0.2))
        for experience, number in rounds:
            suffix = f"round {number} of experience {experience}"
            trained = [name for name in names if name.startswith("train client") and name.endswith(suffix)]
            heads = [
                name.removesuffix(suffix).removeprefix("train clients ").removeprefix("train client ")
                for name in trained
            ]
            assert sorted(int(client) for head in heads for client in head.split(",")) == [0, 1, 2]
        assert {task.state_name for task in client.read_task_runs(flow_run_filter=wanted)} == {"Completed"}

"""Foundation models in whole experiments: results, saved models, resuming, verifying, and what MLflow has of them."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from errors import InputError
from methods.pretraining import all_features
from methods.training import LocalData
from parameters import experiment
from streams.stream import open_stream
from tasks.foundation import build, open_foundation, place
from tasks.run import foundation_of
from tasks.serving import Predictor
from tasks.site import Place, Site

KINDS = ("collaborative", "small", "foundation")


class Stopped(Exception):
    """Ends a run as a kill would: nothing after it is written."""


def client(root: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


@contextmanager
def mlflow_of(root: Path):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def live():
    """What the method itself predicted with at the run's end: filled by `finished`."""
    return {}


@pytest.fixture(scope="module")
def finished(play_run, live):
    """large_small with everything saved; the final predictors are kept before the run's states go."""

    def during(run):
        def at(done, total, what):
            if done == total:
                server = run.site.read(run.progress.server)
                for kind in KINDS:
                    for number in run.site.method.participants:
                        state = run.site.read(run.progress.clients[number])
                        live[kind, number] = run.site.method.predictor(kind, server, state, number).eval()
                live["seen"] = {n: list(run.site.seen(n, 2)) for n in run.site.method.participants}
                live["foundation"] = run.site.foundation

        return at

    return play_run("large_small", track=True, during=during)


@pytest.fixture(scope="module")
def inputs(workshop):
    """uint8 test images of the digits (n, 1, 8, 8)."""
    stream = open_stream("digits", workshop)
    return np.ascontiguousarray(stream.inputs[stream.test(None, 0)])


def probabilities(model: torch.nn.Module, inputs: np.ndarray, seen: list[int]) -> np.ndarray:
    """What a predictor of the method says of raw inputs: a softmax over the classes that the client has met."""
    data = LocalData(inputs, np.zeros(len(inputs), dtype=np.int64))
    with torch.no_grad():
        logits = model(data.batch(torch.arange(len(data))).inputs)
    found = torch.zeros(len(logits), 10)
    found[:, seen] = logits[:, seen].softmax(dim=1)
    return found.numpy()


# saved models


@pytest.mark.parametrize("kind", KINDS)
def test_saved_models_predict_what_the_methods_own_did(finished, live, inputs, kind):
    for number in range(3):
        saved = Predictor(finished.out / "models" / f"{kind}-{number}.safetensors")
        own = probabilities(live[kind, number], inputs, live["seen"][number])
        assert saved.seen == live["seen"][number]
        assert np.array_equal(saved.predict(inputs), own), (kind, number)
    assert own.std() > 0.01, "predictions that say nothing prove nothing"


@pytest.mark.parametrize(
    "sets",
    [
        ("methods.large_small.part=lora", "methods.large_small.rank=2"),
        ("methods.large_small.part=head",),
        ("methods.large_small.fusion=r2",),
        ("methods.large_small.trains=adapter", "model.adapter=4"),
    ],
    ids=["lora", "head", "class means", "adapter of the small model"],
)
def test_every_kind_of_trainable_part_is_saved(play_run, inputs, sets):
    own: dict = {}

    def during(run):
        def at(done, total, what):
            if done == total:
                server, state = run.site.read(run.progress.server), run.site.read(run.progress.clients[0])
                for kind in KINDS:
                    model = run.site.method.predictor(kind, server, state, 0).eval()
                    own[kind] = probabilities(model, inputs, list(run.site.seen(0, 2)))

        return at

    short = ("train.rounds=1", "methods.large_small.surrogate.per_class=4")
    out = play_run("large_small", *short, *sets, during=during).out
    for kind in KINDS:
        assert np.array_equal(Predictor(out / "models" / f"{kind}-0.safetensors").predict(inputs), own[kind]), kind


def test_the_backbone_lies_beside_the_models_once(finished, live):
    folder = finished.out / "models"
    assert {path.name for path in folder.iterdir()} == {
        "backbone",
        *(f"{kind}-{number}.safetensors" for kind in KINDS for number in range(3)),
    }
    saved = open_foundation(folder / "backbone").state_dict()
    assert all(torch.equal(each, saved[name]) for name, each in live["foundation"].state_dict().items())
    assert (
        json.loads((folder / "backbone" / "foundation.json").read_text())["digest"]
        == finished.json("run.json")["foundation_digest"]
    )


def test_mlflow_serves_the_collaborative_model(finished, inputs, live):
    run_id = finished.json("run.json")["mlflow_run"]
    with mlflow_of(finished.root) as mlflow:
        model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    assert np.array_equal(model.predict(inputs), probabilities(live["collaborative", 0], inputs, live["seen"][0]))


# results


def test_results_tell_of_the_general_tasks(finished):
    general = pd.read_parquet(finished.out / "general.parquet")
    assert set(general.task) == {"parity", "above_four"} and set(general.trained) == {-1, 0, 1, 2}
    assert len(general) == 8 and (general.samples == general.samples[0]).all()
    metrics, built = finished.metrics, json.loads((finished.out / "models/backbone/foundation.json").read_text())
    ratios = []
    for task in ("parity", "above_four"):
        course = general[general.task == task].set_index("trained").accuracy
        assert metrics[f"general.{task}.before"] == course[-1]
        assert metrics[f"general.{task}.after"] == course[2]
        ratios.append(course[2] / course[-1])
        assert course[-1] == pytest.approx(built["accuracy"][task], abs=0.1)  # psi begins near the identity
    assert metrics["general_retention"] == pytest.approx(np.mean(ratios))


def test_mlflow_has_the_general_metrics_of_the_run(finished):
    told = client(finished.root).get_run(finished.json("run.json")["mlflow_run"]).data
    names = [name for name in finished.metrics if name.startswith("general")]
    assert len(names) == 5
    assert {name: told.metrics[name] for name in names} == pytest.approx({n: finished.metrics[n] for n in names})
    assert told.params["foundation.source"] == "pretrain"
    assert told.params["foundation.pretraining.epochs"] == "10"


def test_the_runner_does_not_change_the_result(finished, play_run, assert_same):
    """Threads here, where each student's fusion may be any thread's; there two processes that share no memory."""
    other = play_run("large_small", "run.cohort=1", runner="processes", workers=2)
    assert_same(finished, other)
    general = [pd.read_parquet(run.out / "general.parquet") for run in (finished, other)]
    pd.testing.assert_frame_equal(*general, check_exact=True)


def test_the_result_is_verified_and_compared(finished, fcl):
    status, said, error = fcl("verify", finished.out)
    assert (status, error) == (0, "") and finished.digest in said
    shutil.copytree(finished.out, finished.root / "results" / "digits" / "large_small" / "seed-0")
    status, said, error = fcl("compare", "--stream", "digits")
    assert (status, error) == (0, "")
    assert "large_small" in said and f"{100 * finished.metrics['final_average_accuracy']:.1f}" in said


def test_a_result_is_verified_after_the_parameters_have_changed(finished, small_project, tmp_path, monkeypatch, capsys):
    """The foundation model of the result is made again beside the project's present one."""
    import sys

    import cli

    root = Path(shutil.copytree(small_project, tmp_path / "project"))
    shutil.rmtree(root / "built" / "foundations", ignore_errors=True)
    text = (root / "params.yaml").read_text()
    assert "  seed: 0\nmethods:" in text
    (root / "params.yaml").write_text(text.replace("  seed: 0\nmethods:", "  seed: 3\nmethods:"))
    shutil.copytree(finished.out, root / "results" / "kept")
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["fcl", "verify", "results/kept"])
    cli.main()
    assert finished.digest in capsys.readouterr().out
    (again,) = (root / "built" / "foundations").iterdir()
    record = json.loads((again / "foundation.json").read_text())
    assert again.name.startswith("digits-") and record["parameters"]["seed"] == 0
    assert record["digest"] == finished.json("run.json")["foundation_digest"]


# whose foundation model a run works with


def test_methods_without_one_know_nothing_of_it(play_run, small_project, tmp_path):
    root = Path(shutil.copytree(small_project, tmp_path / "project"))
    shutil.rmtree(root / "built" / "foundations", ignore_errors=True)
    run = play_run("fedavg", "train.rounds=1", root=root, out=root / "results" / "one")
    assert not (root / "built" / "foundations").exists()
    assert not (run.out / "general.parquet").exists() and not (run.out / "models" / "backbone").exists()
    assert run.json("run.json")["foundation_digest"] is None
    assert "foundation" not in run.json("run.json")["experiment"]
    spec, other = (experiment("fedavg", "digits", 0, sets, root, device="cpu") for sets in ([], ["foundation.seed=4"]))
    assert spec.digest == other.digest
    mine, others = (
        experiment("large_small", "digits", 0, sets, root, device="cpu") for sets in ([], ["foundation.seed=4"])
    )
    assert mine.digest != others.digest and mine.identity()["foundation"]["seed"] == 0


def test_set_gives_a_run_a_foundation_model_of_its_own(finished, play_run, workshop):
    before = (place("digits", workshop) / "foundation.json").read_bytes()
    other = play_run("large_small", "foundation.seed=7", "train.rounds=1", "methods.large_small.fusion=none")
    assert other.json("run.json")["foundation_digest"] != finished.json("run.json")["foundation_digest"]
    assert (place("digits", workshop) / "foundation.json").read_bytes() == before
    named = [json.loads(path.read_text()) for path in place("digits", workshop).parent.glob("digits-*/foundation.json")]
    (own,) = (each for each in named if each["digest"] == other.json("run.json")["foundation_digest"])
    assert own["parameters"]["seed"] == 7


def test_a_foundation_model_that_is_replaced_under_a_run_is_not_taken(small_project, tmp_path):
    """params.yaml was changed while the run went on, and someone made the new foundation model."""
    root = Path(shutil.copytree(small_project, tmp_path / "project"))
    spec = experiment("large_small", "digits", 0, [], root, device="cpu")
    seat = Place(spec, root, str(tmp_path / "store"), "digits", foundation_of(spec, root).folder.name)
    assert Site(seat).foundation.general.keys() == {"parity", "above_four"}
    changed = spec.foundation.model_copy(update={"seed": 1})
    build("digits", changed, open_stream("digits", root), root)
    with pytest.raises(InputError, match="built/foundations/digits was made again with other parameters while"):
        _ = Site(seat).foundation


def test_another_backbone_is_not_saved_beside_models_that_were_made_with_the_first(play_run, small_project, tmp_path):
    root = Path(shutil.copytree(small_project, tmp_path / "project"))

    def during(run):
        def at(done, total, what):
            if done == total:
                changed = run.experiment.foundation.model_copy(update={"seed": 1})
                build("digits", changed, open_stream("digits", root), root)

        return at

    out = root / "results" / "one"
    with pytest.raises(InputError, match="built/foundations/digits was made again while this run used it"):
        play_run("large_small", "train.rounds=1", root=root, out=out, during=during)
    assert not out.exists()


def interrupt(run):
    def at(done, total, what):
        if done == 3:
            raise Stopped

    return at


def test_a_run_goes_on_with_the_foundation_model_that_it_began_with(finished, play_run, assert_same, new_out):
    out = new_out()
    with pytest.raises(Stopped):
        play_run("large_small", out=out, during=interrupt)
    assert_same(finished, play_run("large_small", out=out, resume=True))


def test_another_foundation_model_in_between_is_refused(play_run, small_project, tmp_path, monkeypatch):
    """The same parameters, yet another file: made by another version, or on another device."""
    import tasks.foundation

    root = Path(shutil.copytree(small_project, tmp_path / "project"))
    out = root / "results" / "one"
    with pytest.raises(Stopped):
        play_run("large_small", root=root, out=out, during=interrupt)
    folder = place("digits", root)
    shutil.rmtree(folder)
    real = tasks.foundation.pretrain

    def elsewhere(*arguments):
        model = real(*arguments)
        with torch.no_grad():
            next(model.parameters()).mul_(1.001)
        return model

    monkeypatch.setattr(tasks.foundation, "pretrain", elsewhere)
    with pytest.raises(InputError, match="foundation"):
        play_run("large_small", root=root, out=out, resume=True)
    monkeypatch.undo()
    shutil.rmtree(folder)
    play_run("large_small", root=root, out=out, resume=True)


# `fcl foundation`


@pytest.fixture(scope="module")
def alone(small_project, tmp_path_factory):
    """A project of its own for `fcl foundation`."""
    return Path(shutil.copytree(small_project, tmp_path_factory.mktemp("alone") / "project"))


@pytest.fixture
def command(alone, call_fcl):
    return partial(call_fcl, alone)


def test_without_mlflow_the_model_is_made_and_a_note_says_so(alone, command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        status, said, error = command("foundation", "digits")
    assert (status, error) == (0, "")
    assert "MLflow was not told" in " ".join(said.split()) and "repeat the command" in " ".join(said.split())
    assert (place("digits", alone) / "foundation.safetensors").exists()


def test_the_command_describes_and_registers_the_model_once(alone, command):
    for _ in range(2):
        status, said, error = command("foundation", "digits")
        assert (status, error) == (0, "") and "note" not in said
    assert "parity" in said and "above_four" in said and "%" in said and "pretrain" in said
    mlflow = client(alone)
    (version,) = mlflow.search_model_versions("name='foundation-digits'")
    run = mlflow.get_run(version.run_id)
    record = json.loads((place("digits", alone) / "foundation.json").read_text())
    assert (run.info.status, run.info.run_name) == ("FINISHED", "pretrain")
    assert run.data.tags["digest"] == record["digest"]
    assert run.data.params["pretraining.epochs"] == "10" and run.data.params["general"] == "['parity', 'above_four']"
    assert run.data.metrics == {f"general/{task}": value for task, value in record["accuracy"].items()}


def test_the_registered_model_gives_the_features(alone, command, inputs):
    command("foundation", "digits")
    with mlflow_of(alone) as mlflow:
        model = mlflow.pyfunc.load_model("models:/foundation-digits/latest")
    data = LocalData(inputs, np.zeros(len(inputs), dtype=np.int64))
    own = all_features(open_foundation(place("digits", alone)), data).numpy()
    assert np.array_equal(model.predict(inputs), own) and own.std() > 0
    (signature,) = model.metadata.signature.inputs.inputs
    assert (signature.type, tuple(signature.shape)) == (np.dtype("uint8"), (-1, 1, 8, 8))


def test_another_model_is_another_version(alone, command):
    command("foundation", "digits")
    text = (alone / "params.yaml").read_text()
    (alone / "params.yaml").write_text(text.replace("    epochs: 10", "    epochs: 9"))
    try:
        assert command("foundation", "digits")[0] == 0
        versions = client(alone).search_model_versions("name='foundation-digits'")
        assert sorted(int(each.version) for each in versions) == [1, 2]
    finally:
        (alone / "params.yaml").write_text(text)
        command("foundation", "digits")
    assert len(client(alone).search_model_versions("name='foundation-digits'")) == 2, "the first is known"


def test_set_makes_the_model_that_a_run_with_the_same_set_finds(alone, command, inputs):
    sets = ["foundation.seed=5", "streams.digits.partition.alpha=0.7"]
    command("foundation", "digits")
    before = (place("digits", alone) / "foundation.json").read_bytes()
    status, said, error = command("foundation", "digits", *[part for each in sets for part in ("--set", each)])
    assert (status, error) == (0, "")
    spec = experiment("large_small", "digits", 0, sets, alone, device="cpu")
    found = foundation_of(spec, alone)
    assert not found.new and found.folder.name in said and found.folder.name.startswith("digits-")
    assert found.record["parameters"]["seed"] == 5
    assert (place("digits", alone) / "foundation.json").read_bytes() == before
    assert f"models:/foundation-{found.folder.name}/1" in said
    with mlflow_of(alone) as mlflow:
        model = mlflow.pyfunc.load_model(f"models:/foundation-{found.folder.name}/1")
    own = all_features(open_foundation(found.folder), LocalData(inputs, np.zeros(len(inputs), dtype=np.int64))).numpy()
    assert np.array_equal(model.predict(inputs), own)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train.rounds=2", "--set train.rounds=2: fcl foundation takes keys of the sections foundation and streams"),
        ("models=[cnn]", "--set models=[cnn]: fcl foundation takes keys of the sections foundation and streams"),
        ("foundation.sed=2", "no key 'foundation.sed'; did you mean seed"),
        (
            "foundation.network={name: vit_tiny, width: 64, heads: 3}",
            "foundation.network.heads must divide foundation.network.width (got 3 heads, width 64)",
        ),
    ],
)
def test_what_the_command_does_not_take_is_refused_in_one_line(command, key, said):
    status, out, error = command("foundation", "digits", "--set", key)
    assert (status, out, error.count("\n")) == (2, "", 1) and error.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("stream", "said"), [("digit", "no stream 'digit'; did you mean digits"), ("", "no stream ''")]
)
def test_an_unknown_stream_is_refused_in_one_line(command, stream, said):
    status, out, error = command("foundation", stream)
    assert (status, out, error.count("\n")) == (2, "", 1) and error.startswith(f"error: {said}")

"""`fcl trace`: from any file back to the run, the parameters and the code; and what no longer agrees is said."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from rich.console import Console

from flows.chain import bibtex, lines
from flows.trace import trace

WRITTEN = ["run.json", "metrics.json", "rounds.parquet", "accuracy.png", "matrix.png", "models/global.safetensors"]


@pytest.fixture
def copy(undisturbed, workshop):
    """A run's folder that a test may change, in the project's results/."""
    place = workshop / "results" / "changed" / "seed"
    yield Path(shutil.copytree(undisturbed.out, place))
    shutil.rmtree(place.parent)


@pytest.mark.parametrize("name", ["", "models", *WRITTEN])
def test_whatever_a_run_wrote_leads_back_to_it(undisturbed, workshop, name):
    told = undisturbed.json("run.json")
    chain = trace(undisturbed.out / name, workshop)
    assert chain["run"]["digest"] == undisturbed.digest
    assert chain["run"]["git_commit"] == chain["code"]["git_commit"] == told["git_commit"]
    assert chain["folder"] == undisturbed.out.relative_to(workshop).as_posix()
    assert chain["stream"] == {"digest": told["stream_digest"], "folder": "built/streams/digits"}
    assert chain["recorded"]["prefect_flow_run"] == told["prefect_flow_run"]
    assert chain["recorded"]["cpus"] >= 1 and chain["recorded"]["versions"]["python"]
    assert chain["doubts"] == []


@pytest.mark.parametrize("name", WRITTEN)
def test_a_copy_elsewhere_leads_back_to_its_run(undisturbed, workshop, tmp_path, name):
    copied = tmp_path / f"figure-3{Path(name).suffix}"
    shutil.copy(undisturbed.out / name, copied)
    if name == "run.json":  # a copy of it says all there is, wherever it lies
        copied = copied.rename(tmp_path / "run.json")
    chain = trace(copied, workshop)
    assert chain["run"]["digest"] == undisturbed.digest
    assert [doubt for doubt in chain["doubts"] if "missing" not in doubt] == []


def test_a_figure_that_was_cut_still_names_its_run_and_is_doubted(undisturbed, workshop, tmp_path):
    with Image.open(undisturbed.out / "accuracy.png") as image:
        kept = PngImagePlugin.PngInfo()
        kept.add_text("fcl", image.text["fcl"])
        image.crop((0, 0, 90, 90)).save(tmp_path / "cut.png", pnginfo=kept)
    chain = trace(tmp_path / "cut.png", workshop)
    assert chain["run"]["digest"] == undisturbed.digest
    (doubt,) = chain["doubts"]
    assert "it was changed" in doubt


def test_a_file_that_was_changed_after_its_run_is_doubted(copy, workshop):
    metrics = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text(json.dumps(metrics | {"forgetting": 0.0}))
    for path in (copy / "metrics.json", copy):
        assert trace(path, workshop)["doubts"] == ["metrics.json was changed after the run"]
    assert trace(copy / "rounds.parquet", workshop)["doubts"] == []
    (copy / "rounds.parquet").unlink()
    assert "rounds.parquet is missing" in trace(copy, workshop)["doubts"]
    (copy / "notes.parquet").write_bytes(b"")
    assert "not one of the files" in trace(copy / "notes.parquet", workshop)["doubts"][0]


def test_a_run_json_that_was_changed_is_doubted(copy, workshop):
    told = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(told | {"digest": "0" * 64}))
    doubts = trace(copy, workshop)["doubts"]
    assert any("accuracy.png names the run" in each for each in doubts)
    assert any("global.safetensors names the run" in each for each in doubts)
    told["experiment"]["train"]["rounds"] = 99
    (copy / "run.json").write_text(json.dumps(told))
    assert any("its parameters have another digest" in each for each in trace(copy, workshop)["doubts"])


def test_another_runs_figure_in_a_runs_folder_is_doubted(copy, play_run, workshop):
    other = play_run("local", "train.rounds=1")
    shutil.copy(other.out / "accuracy.png", copy / "accuracy.png")
    doubts = trace(copy / "accuracy.png", workshop)["doubts"]
    assert any(other.digest in each for each in doubts)


def test_without_its_run_a_figure_says_what_is_written_in_it(undisturbed, project, tmp_path):
    shutil.copy(undisturbed.out / "accuracy.png", tmp_path / "alone.png")
    chain = trace(tmp_path / "alone.png", project)
    assert chain["run"]["digest"] == undisturbed.digest
    assert chain["run"]["git_commit"] == undisturbed.json("run.json")["git_commit"]
    assert chain["recorded"] is None and chain["command"] is None
    assert any("not in results/" in each for each in chain["doubts"])


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["train.rounds=1", "train.learning_rate=1.0e-05"],
        ["streams.digits.clients=2", "streams.digits.partition.alpha=0.3", "model.name=cnn"],
        ["train.clip=1.5", "train.augmentation.flip=true"],
    ],
)
def test_the_command_gives_the_same_experiment(sets, small_project):
    """Parameters that are no longer those of params.yaml are set by it."""
    import shlex

    from flows.commands import again, since
    from parameters import experiment

    method = "fedavg"
    spec = experiment(method, "digits", 3, sets, small_project)
    run = {"method": method, "stream": "digits", "seed": 3, "experiment": spec.identity()}
    run["parameter_digest"] = spec.digest
    assert bool(since(run, small_project)[1]) == bool(sets)
    words = shlex.split(again(run, None, small_project))
    assert words[:7] == ["fcl", "run", "fedavg", "--stream", "digits", "--seed", "3"]
    told = [value for word, value in pairwise(words) if word == "--set"]
    assert experiment(method, "digits", 3, told, small_project).digest == spec.digest
    assert bool(told) == bool(sets)


def test_built_streams_and_their_pictures_are_traced(project, tmp_path):
    from streams.picture import draw
    from streams.stream import open_stream

    stream = open_stream("digits", project)
    draw(stream, tmp_path / "picture.png")
    for path in (stream_folder := project / "built" / "streams" / "digits", stream_folder / "manifest.parquet"):
        chain = trace(path, project)
        assert (chain["what"], chain["command"]) == ("task stream", "fcl stream digits")
        assert chain["stream"] == {"digest": stream.digest, "folder": "built/streams/digits"}
        assert chain["doubts"] == []
    assert trace(tmp_path / "picture.png", project)["stream"]["digest"] == stream.digest
    shutil.copy(project / "built" / "streams" / "devices" / "manifest.parquet", stream_folder / "manifest.parquet")
    (doubt,) = trace(stream_folder, project)["doubts"]
    assert "not the content that stream.json names" in doubt
    shutil.rmtree(stream_folder)
    assert trace(tmp_path / "picture.png", project)["stream"] == {"digest": stream.digest, "folder": None}


def test_foundation_models_are_traced_built_and_in_mlflow(project):
    """Also the copy that MLflow has; and one whose weights were changed is doubted."""
    from flows.foundation import prepare
    from tasks.foundation import WEIGHTS

    prepare("digits", project, Console(quiet=True))
    folder = project / "built" / "foundations" / "digits"
    record = json.loads((folder / "foundation.json").read_text())
    (model,) = [path.parent for path in (project / "mlruns").rglob("MLmodel")]
    for path in (folder, folder / WEIGHTS, model):
        chain = trace(path, project)
        assert chain["foundation"] == {"digest": record["digest"], "folder": "built/foundations/digits"}
        assert chain["stream"] == {"digest": record["stream"], "folder": "built/streams/digits"}
        assert chain["run"] is None and chain["doubts"] == []
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    (doubt,) = trace(folder, project)["doubts"]
    assert "names by digest" in doubt


def test_a_comparison_names_its_runs_and_which_of_them_are_gone(undisturbed, play_run, project, tmp_path):
    from flows.comparison import compare

    other = play_run("local", "train.rounds=1")
    places = {name: project / "results" / "digits" / name / "seed-0" for name in ("fedavg", "local")}
    shutil.copytree(undisturbed.out, places["fedavg"])
    shutil.copytree(other.out, places["local"])
    compare("digits", project)
    folder = project / "comparison" / "digits"
    shutil.copy(folder / "accuracy.png", tmp_path / "slide.png")
    paths = [folder, folder / "table.md", folder / "accuracy.png", tmp_path / "slide.png"]
    for path in paths:
        runs = trace(path, project)["runs"]
        assert [(run["name"], run["digest"], run["now"]) for run in runs] == [
            ("digits/fedavg/seed-0", undisturbed.digest, "same"),
            ("digits/local/seed-0", other.digest, "same"),
        ]
    shutil.rmtree(places["fedavg"])
    shutil.rmtree(places["local"])
    shutil.copytree(undisturbed.out, places["local"])
    assert [run["now"] for run in trace(folder, project)["runs"]] == ["gone", "another"]
    (project / "comparison" / "report.html").write_text("<html></html>")
    assert len(trace(project / "comparison" / "report.html", project)["runs"]) == 2


def test_an_mlflow_model_leads_to_its_run(play_run, workshop):
    run = play_run("fedavg", "train.rounds=1", track=True)
    (model,) = [
        path.parent
        for path in (workshop / "mlruns").rglob("MLmodel")
        if run.json("run.json")["mlflow_run"] in path.read_text()
    ]
    chain = trace(model, workshop)
    assert chain["run"]["digest"] == run.digest
    assert chain["recorded"]["mlflow_run"] == run.json("run.json")["mlflow_run"]
    assert chain["mlflow_model"] in str(model)


def test_the_command_line(undisturbed, fcl, tmp_path):
    status, said, error = fcl("trace", undisturbed.out / "accuracy.png")
    assert (status, error) == (0, "")
    for wanted in (undisturbed.digest, "fcl run fedavg --stream digits --seed 0", "has no stage", "no difference"):
        assert wanted in said
    status, said, _ = fcl("trace", "--json", undisturbed.out)
    assert json.loads(said)["run"]["digest"] == undisturbed.digest
    status, said, _ = fcl("trace", "--cite", undisturbed.out)
    told = undisturbed.json("run.json")
    assert said.startswith("@misc{fcl-" + undisturbed.digest[:12])
    assert told["git_commit"] in said and undisturbed.digest in said and said.count("{") == said.count("}")
    (tmp_path / "letter.png").write_bytes(b"no picture")
    for path in ("nowhere.png", tmp_path / "letter.png", "params.yaml"):
        status, said, error = fcl("trace", path)
        assert (status, said) == (2, "")
        (line,) = error.splitlines()
        assert Path(path).name in line and "expected" in line


def test_every_chain_can_be_said_and_cited(undisturbed, workshop):
    for path in (undisturbed.out, workshop / "built" / "streams" / "digits"):
        chain = trace(path, workshop)
        assert all(label and text for label, text in lines(chain))
        assert bibtex(chain).startswith("@misc{fcl-")
    assert "code: not recorded" in bibtex(chain), "nothing says which code built a stream"

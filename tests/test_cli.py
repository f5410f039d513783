"""The command line: what it prints, what it refuses in one line, and a run from beginning to end without a server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

RUN = "run fedavg --stream digits"
TINY = ["run", "fedavg", "--stream", "tiny"]


@pytest.fixture
def fcl(project, call_fcl):
    """`fcl ARGUMENTS` in the project, or in `cwd`: (exit status, stdout, stderr)."""
    return lambda *arguments, cwd=project: call_fcl(cwd, *arguments)


@pytest.fixture
def refused(fcl, project):
    """The one line in which `fcl ARGUMENTS` refuses its input; asserts that it does, and writes nothing."""

    def call(*arguments: object, **others) -> str:
        before = contents(project)
        status, said, error = fcl(*arguments, **others)
        assert (status, said) == (2, ""), error
        (line,) = error.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in line and "Error:" not in line
        assert contents(project) == before, "something was written"
        return line.removeprefix("error: ")

    return call


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def change(project: Path, **sections) -> None:
    """Changes sections of the project's params.yaml."""
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        params[name] |= values
    path.write_text(yaml.safe_dump(params, sort_keys=False))


# What is refused: the command, and what the line says


WRONG_NAMES = {
    "run fedavgg --stream digits": ["no method 'fedavgg'", "did you mean", "fedavg"],
    "run fedavg --stream digts": ["no stream 'digts'", "did you mean digits"],
    "stream digts": ["no stream 'digts'", "did you mean digits"],
    f"{RUN} --set trian.rounds=1": ["trian", "train"],
    f"{RUN} --set train.roundz=1": ["train.roundz", "rounds"],
    f"{RUN} --set streams.digts.clients=2": ["digts", "did you mean digits"],
    f"{RUN} --set streams.digits.partition.alfa=1": ["streams.digits.partition.alfa", "alpha"],
    f"{RUN} --set streams.alone.clientz=2": ["streams.alone.clientz", "clients"],  # not this run's, and still wrong
    f"{RUN} --set methods.fedawg.mu=1": ["no method 'fedawg'", "did you mean fedavg"],
    f"{RUN} --set methods.fedavg.mu=1": ["methods.fedavg.mu"],
    f"{RUN} --set methods.fedlwf.temprature=1": ["methods.fedlwf.temprature", "temperature"],
    f"{RUN} --set model.name=mpl": ["model.name", "'mpl'", "mlp"],
    f"{RUN} --set model.widht=4": ["model.widht", "width"],
    f"{RUN} --set run.worker=4": ["run.worker", "workers"],
    "rnu fedavg": ["rnu"],
    f"{RUN} --sede 1": ["--sede"],
}
WRONG_VALUES = {
    f"{RUN} --set train.rounds=many": ["train.rounds", "whole number", "'many'"],
    f"{RUN} --set train.rounds=1.5": ["train.rounds", "whole number", "1.5"],
    f"{RUN} --set train.rounds=0": ["train.rounds", "at least 1", "got 0"],
    f"{RUN} --set train.rounds=": ["train.rounds", "None"],
    f"{RUN} --set train.learning_rate=0": ["train.learning_rate", "greater than 0", "got 0"],
    f"{RUN} --set train.learning_rate=.inf": ["train.learning_rate", "finite", "inf"],
    f"{RUN} --set train.optimizer=sdg": ["train.optimizer", "'sgd'", "'sdg'"],
    f"{RUN} --set train.clients_per_round=4": ["train.clients_per_round", "streams.digits.clients = 3", "got 4"],
    f"{RUN} --set streams.digits.partition.alpha=0": ["streams.digits.partition.alpha", "greater than 0", "got 0"],
    f"{RUN} --set streams.digits.partition.alpha=-1": ["streams.digits.partition.alpha", "greater than 0", "got -1"],
    f"{RUN} --set streams.digits.experiences=11": ["experiences", "11", "10 classes"],
    f"{RUN} --set streams.digits.clients=1797 --set streams.digits.partition.min_share=0": ["no training sample"],
    f"{RUN} --set streams.digits.source=digit": ["streams.digits.source", "'digits', 'parquet:PATH'", "'digit'"],
    f"{RUN} --set streams.digits.classes=5": ["data/digits/digits.csv.gz", "row", "outside 0..4"],
    f"{RUN} --set model.width=0": ["model.width", "at least 1", "0"],
    f"{RUN} --set model.width=wide": ["model.width", "whole number", "'wide'"],
    f"{RUN} --set run.cohort=0": ["run.cohort", "at least 1", "got 0"],
    f"{RUN} --set run.device=tpu": ["run.device", "cpu, cuda", "'tpu'"],
    f"{RUN} --set run.device=cuda:99": ["run.device", "cuda:99"],
    f"{RUN} --set run.store=nosuch://bucket": ["run.store", "nosuch"],
    f"{RUN} --runner foo": ["runner", "'threads', 'processes', 'dask' or 'ray'", "'foo'"],
    f"{RUN} --runner dask --address ray://host:10001": ["run.address", "tcp://HOST:8786", "ray://host:10001"],
    f"{RUN} --runner ray --address host:6379": ["run.address", "ray://HOST:10001 or auto", "host:6379"],
    f"{RUN} --address tcp://host:8786": ["run.address", "run.runner is threads", "tcp://host:8786"],
    f"{RUN} --workers 0": ["workers", "at least 1", "got 0"],
    f"{RUN} --workers two": ["--workers", "two"],
    f"{RUN} --seed -1": ["--seed", "0", "-1"],
    f"{RUN} --seed abc": ["--seed", "whole number", "abc"],
}
WRONG_FORMS = {
    f"{RUN} --set train.rounds": ["train.rounds", "KEY=VALUE"],
    f"{RUN} --set =1": ["=1", "KEY=VALUE"],
    f"{RUN} --set train..rounds=1": ["train..rounds", "KEY=VALUE"],
    f"{RUN} --set train.rounds=[1": ["train.rounds", "YAML"],
    f"{RUN} --set train=1": ["train", "single key"],
    f"{RUN} --set streams.digits=1": ["streams.digits", "single key"],
    f"{RUN} --set train.rounds.more=1": ["train.rounds.more", "no keys"],
    "run fedavg": ["--stream"],
    "run --stream digits": ["method"],
    "run fedavg fedlwf --stream digits": ["fedlwf"],
    "verify nowhere": ["nowhere", "run.json"],
    "verify built": ["built", "run.json"],
    "compare": ["no results", "fcl run"],
}


@pytest.mark.parametrize(("command", "said"), (WRONG_NAMES | WRONG_VALUES | WRONG_FORMS).items())
def test_wrong_input_is_refused_in_one_line(refused, command, said):
    line = refused(*command.split())
    assert [part for part in said if part not in line] == [], line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("streams: {digits: [}\n", ["params.yaml", "line 1", "YAML"]),
        ("", ["params.yaml", "expected the sections"]),
        ("- streams\n- train\n", ["params.yaml", "expected the sections"]),
        ("just a text\n", ["params.yaml", "expected the sections"]),
        ("streams: {}\ntrain: {}\n", ["params.yaml", "expected the sections"]),
        ("streams: {digits: 3}\nmodel: {name: mlp}\ntrain: {}\nmethods: {}\nrun: {}\n", ["streams.digits"]),
        ("streams: 3\nmodel: {name: mlp}\ntrain: {}\nmethods: {}\nrun: {}\n", ["streams"]),
    ],
)
def test_a_wrong_params_yaml_is_refused(refused, project, text, said):
    (project / "params.yaml").write_text(text)
    line = refused(*RUN.split())
    assert [part for part in said if part not in line] == [], line


def test_outside_a_project_there_is_no_params_yaml(refused, tmp_path):
    assert "no params.yaml" in refused(*RUN.split(), cwd=tmp_path)


# --out


def test_out_that_holds_something_else_is_refused(refused, project):
    (project / "thesis").mkdir()
    (project / "thesis" / "chapter-1.tex").write_text("Once upon a time")
    line = refused(*RUN.split(), "--out", "thesis")
    assert "thesis" in line and "not empty" in line


def test_out_that_is_a_file_is_refused(refused):
    assert "params.yaml" in refused(*RUN.split(), "--out", "params.yaml")


def test_out_that_holds_another_experiment_is_refused_and_says_what_differs(refused, project):
    from parameters import experiment

    other = experiment("fedavg", "digits", 0, ["train.rounds=7"], project)
    (project / "other").mkdir()
    told = {"parameter_digest": other.digest, "experiment": other.identity(), "digest": "0" * 64}
    (project / "other" / "run.json").write_text(json.dumps(told))
    line = refused(*RUN.split(), "--out", "other")
    assert "another experiment" in line and "train.rounds 7 there, 2 here" in line


# Parquet files


def png(shade: int) -> bytes:
    import io

    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


IMAGES = [{"bytes": png(row), "path": ""} for row in range(40)]
LABELS = [row % 4 for row in range(40)]


@pytest.fixture
def tiny(project):
    """The project with a stream `tiny` of Parquet files; writes them: `tiny(images, labels)`."""
    values = {"source": "parquet:raw", "classes": 4, "clients": 2, "experiences": 2}
    change(project, streams={"tiny": values})
    (project / "raw").mkdir()

    def write(images=IMAGES, labels=LABELS, name: str = "train") -> Path:
        path = project / "raw" / f"{name}.parquet"
        pq.write_table(pa.table({"image": images, "label": labels}), path)
        return path

    return write


def test_a_stream_of_parquet_files_is_built(tiny, fcl):
    tiny()
    status, said, error = fcl("stream", "tiny")
    assert (status, error) == (0, "")
    assert "40 images (1 x 8 x 8), 4 classes, 2 clients, 2 experiences" in said


def test_a_missing_parquet_file_is_refused(tiny, refused):
    line = refused(*TINY)
    assert "raw/train.parquet" in line and "no such file" in line


@pytest.mark.parametrize("kept", [0, 4, 100, -9])
def test_a_truncated_parquet_file_is_refused(tiny, refused, kept):
    path = tiny()
    path.write_bytes(path.read_bytes()[:kept])
    line = refused(*TINY)
    assert "raw/train.parquet" in line and "not a whole Parquet file" in line


@pytest.mark.parametrize("wrong", [4, -1])
def test_labels_out_of_range_are_refused(tiny, refused, wrong):
    tiny(labels=[*LABELS[:17], wrong, *LABELS[18:]])
    assert f"raw/train.parquet, row 17: label {wrong} is outside 0..3" in refused(*TINY)


@pytest.mark.parametrize("data", [b"", b"no image", png(3)[:50]], ids=["empty", "text", "cut off"])
def test_an_undecodable_image_is_refused(tiny, refused, data):
    tiny()
    tiny([*IMAGES[:7], {"bytes": data, "path": ""}, *IMAGES[8:]], name="test")
    assert "raw/test.parquet, row 7: undecodable image" in refused(*TINY)


# What the other commands print


def test_methods_are_listed_with_their_first_sentence(fcl):
    import methods

    status, said, error = fcl("methods")
    assert (status, error) == (0, "")
    lines = said.splitlines()
    assert [line.split()[0] for line in lines] == methods.names()
    assert all(methods.get(line.split()[0]).summary in line for line in lines)


def test_streams_are_listed_with_their_shape(fcl):
    status, said, error = fcl("streams")
    assert (status, error) == (0, "")
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert set(lines) >= {"digits", "alone", "short", "single", "own", "skewed"}
    assert "digits, class-incremental, 3 clients, 3 experiences, dirichlet" in lines["digits"]


def test_a_stream_is_described_and_drawn(fcl, project):
    from streams.stream import open_stream

    status, said, error = fcl("stream", "digits", "--plot", "pictures/digits.png")
    assert (status, error) == (0, "")
    stream = open_stream("digits", project)
    assert stream.digest in said
    assert "1797 images (1 x 8 x 8), 10 classes, 3 clients, 3 experiences" in said
    numbers = [part.strip() for line in said.splitlines() if line.startswith("│") for part in line.split("│")]
    assert str(len(stream.train(1, 2))) in numbers and str(len(stream.test(1, 2))) in numbers
    with Image.open(project / "pictures" / "digits.png") as image:
        image.verify()


def test_a_stream_of_many_clients_is_summed_up(fcl, project):
    growth = {"initial": 60, "join": 20}
    about = {"source": "digits", "clients": 100, "experiences": 3, "growth": growth, "test": 0.3}
    change(project, streams={"many": about})
    status, said, error = fcl("stream", "many")
    assert (status, error) == (0, "")
    rows = [[part.strip() for part in line.strip("│").split("│")] for line in said.splitlines() if line[0] == "│"]
    assert [row[:2] for row in rows] == [["0", "60"], ["1", "80"], ["2", "100"]]
    assert sum(int(row[-2]) for row in rows) == 1797 - round(0.3 * 1797)


def test_compare_shows_mean_and_spread_over_seeds(fcl, project):
    for seed, accuracy in enumerate([0.5, 0.6]):
        folder = project / "results" / "digits" / "fedavg" / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"final_average_accuracy": accuracy, "bytes_up": 2_000_000}))
    for arguments in ((), ("--stream", "digits")):
        status, said, error = fcl("compare", *arguments)
        assert (status, error) == (0, "")
        assert "fedavg" in said and "55.0 ± 7.1" in said
    status, _, error = fcl("compare", "--stream", "cifar100")
    assert status == 2 and "no results" in error


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("--help", ["run", "stream", "compare", "report", "verify", "methods", "streams"]),
        ("run --help", ["--stream", "--seed", "--set", "--out", "--runner", "--address", "--workers", "--resume"]),
        ("stream --help", ["--plot"]),
        ("verify --help", ["DIR"]),
    ],
)
def test_help_helps(fcl, command, said):
    status, text, error = fcl(*command.split())
    assert (status, error) == (0, "")
    assert [part for part in said if part not in text] == []


def test_without_a_command_there_is_help_and_no_empty_error(fcl):
    _, text, error = fcl()
    assert "Usage: " in text + error and "Run one experiment" in text + error
    assert "error: \n" not in error


# A run from beginning to end: without a Prefect server, in processes of its own, interrupted once


@dataclass
class Ended:
    status: int
    said: str
    error: str
    children: list[psutil.Process]


class Desk:
    """Where a user sits: a folder inside a project, no server anywhere."""

    def __init__(self, project: Path, home: Path) -> None:
        self.project = project
        self.folder = project / "notes" / "today"
        self.folder.mkdir(parents=True)
        unset = {"PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_API_DATABASE_CONNECTION_URL"}
        self.environment = {key: value for key, value in os.environ.items() if key not in unset}
        self.environment["PREFECT_HOME"] = str(home)

    def fcl(self, *arguments: object, during=lambda process: None) -> Ended:
        process = subprocess.Popen(
            [str(Path(sysconfig.get_path("scripts")) / "fcl"), *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # As from a terminal, also where a shell has put these tests into the background: then they ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            children = during(process) or []
            said, error = process.communicate(timeout=240)
        finally:
            process.kill()
        return Ended(process.returncode, said, error, children)


@pytest.fixture(scope="module")
def desk(small_project, tmp_path_factory):
    place = tmp_path_factory.mktemp("desk")
    return Desk(Path(shutil.copytree(small_project, place / "project")), place / "prefect")


SLOW = ["--set", "train.batch_size=4", "--set", "train.local_epochs=8", "--set", "run.device=cpu"]
COMMAND = [*RUN.split(), *SLOW]


@pytest.fixture(scope="module")
def interrupted(desk):
    """Ctrl-C after the first checkpoint, to the process that the user started."""

    def ctrl_c(process: subprocess.Popen) -> list[psutil.Process]:
        end = time.monotonic() + 120
        while not list((desk.project / "runs").glob("*/checkpoint.json")):
            assert process.poll() is None and time.monotonic() < end, "no checkpoint"
            time.sleep(0.005)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        return children

    return desk.fcl(*COMMAND, during=ctrl_c)


@pytest.fixture(scope="module")
def resumed(desk, interrupted):
    return desk.fcl(*COMMAND, "--resume")


def test_ctrl_c_ends_a_run_with_one_line_that_tells_how_to_go_on(interrupted, desk):
    assert interrupted.status == 1
    (line,) = interrupted.error.splitlines()
    assert line.startswith("error: ") and "--resume" in line
    assert not (desk.project / "results").exists()


def test_ctrl_c_leaves_no_process(interrupted):
    assert len(interrupted.children) >= 2, "the Prefect server and the tracker"
    left = [child for child in interrupted.children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    _, alive = psutil.wait_procs(left, timeout=20)
    for process in alive:
        process.kill()
    assert alive == []


def test_an_interrupted_run_is_resumed_to_its_end(resumed, desk):
    assert (resumed.status, resumed.error) == (0, "")
    out = desk.project / "results" / "digits" / "fedavg" / "seed-0"
    assert "final average accuracy" in resumed.said and str(out) in resumed.said
    told = json.loads((out / "run.json").read_text())
    assert len(told["mlflow_run"]) == 32 and told["failures"] == []
    assert not (desk.folder / "results").exists(), "results belong to the project, not to where the user sits"
    deadline = time.monotonic() + 120
    while list((desk.project / "runs" / "untracked").iterdir()):  # what MLflow gets after the run's end
        assert time.monotonic() < deadline, "the results never went to MLflow"
        time.sleep(0.1)
    left = {path.name for path in (desk.project / "runs").iterdir() if path.is_dir() and any(path.iterdir())}
    assert left <= {"locks"}


def test_what_was_interrupted_and_resumed_is_verified_by_a_run_in_one_piece(resumed, desk):
    out = desk.project / "results" / "digits" / "fedavg" / "seed-0"
    verified = desk.fcl("verify", os.path.relpath(out, desk.folder))
    assert (verified.status, verified.error) == (0, "")
    assert json.loads((out / "run.json").read_text())["digest"] in verified.said


def test_a_picture_that_cannot_be_written_is_the_users_error(desk, tmp_path):
    ended = desk.fcl("stream", "digits", "--plot", str(tmp_path))
    assert ended.status == 2
    assert f"--plot {tmp_path}: cannot be written" in " ".join(ended.error.split())

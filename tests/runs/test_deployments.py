"""Runs that wait for a worker: `fcl serve`, `fcl submit`, the deployments of prefect.yaml, a worker that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request, urlopen

import pytest
import yaml

from errors import InputError

PROJECT = Path(__file__).resolve().parents[2]
SLOW = ("train.batch_size=4", "train.local_epochs=10")  # long enough to be killed in the middle


class Served:
    """A project of its own with `fcl serve` in it; a new one may be started after the old one has ended."""

    def __init__(self, root: Path, home: Path, eventually) -> None:
        self.root, self.eventually = root, eventually
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
        self.environment |= {"PREFECT_HOME": str(home), "PYTHONPATH": str(PROJECT)}
        self.process: subprocess.Popen | None = None

    def start(self) -> str:
        """Returns what it says until all of it is up."""
        self.process = self.run("serve")
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ctrl-C" in line:
                return "".join(said)
        raise AssertionError("".join(said) + self.process.communicate()[1])

    def run(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "cli", *arguments],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def fcl(self, *arguments: str) -> tuple[int, str, str]:
        process = self.run(*arguments)
        said, errors = process.communicate()
        return process.returncode, said, errors

    def submit(self, *arguments: str) -> str:
        """The flow run's id."""
        status, said, errors = self.fcl("submit", *arguments)
        assert (status, errors) == (0, "")
        return said.split()[-1].rpartition("/")[2]

    @property
    def api(self) -> str:
        return json.loads((self.root / "runs" / "serve.json").read_text())["prefect"]

    def client(self):
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api)

    def flow_run(self, flow_run: str):
        with self.client() as client:
            return client.read_flow_run(flow_run)

    def finished(self, flow_run: str):
        def over():
            found = self.flow_run(flow_run)
            return found if found.state.is_final() else None

        return self.eventually(over, f"the end of {flow_run}", pause=0.2)

    def processes(self) -> dict[int, str]:
        """Everything that came of it: command lines by process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"PREFECT_HOME={self.environment['PREFECT_HOME']}\0".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it has ended, or is another user's
                continue
        return {number: command for number, command in found.items() if command}  # without those that are dead

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = self.process.communicate()
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def served(small_project, tmp_path_factory, eventually):
    root = Path(shutil.copytree(small_project, tmp_path_factory.mktemp("served") / "project"))
    shutil.copy(PROJECT / "prefect.yaml", root)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["run"]["device"] = "cpu"
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    served = Served(root, tmp_path_factory.mktemp("home"), eventually)
    yield served
    if served.process and served.process.poll() is None:
        served.process.kill()
        served.process.communicate()


@pytest.fixture(scope="module")
def first(served):
    """The first `fcl serve`, with an experiment that is queued as soon as it is up."""
    said = served.start()
    return SimpleNamespace(said=said, experiment=served.submit("fedavg", "--stream", "digits"))


@pytest.fixture(scope="module")
def schema(first, served) -> dict:
    with served.client() as client:
        return client.read_deployment_by_name("experiment/default").parameter_openapi_schema["properties"]


def test_without_a_server_submit_says_what_to_do(served):
    status, _, error = served.fcl("submit", "fedavg", "--stream", "digits")
    assert status == 2
    assert "fcl serve" in error and "PREFECT_API_URL" in error


def test_serve_says_where_the_user_interfaces_are(first):
    words = first.said.split()
    for address in (word for word in words if word.startswith("http")):
        with urlopen(Request(address.partition("#")[0], headers={"Accept": "text/html"}), timeout=30) as answer:
            assert answer.status == 200
    assert sum(word.startswith("http://127.0.0.1") for word in words) == 2


def test_a_second_serve_in_the_same_folder_is_refused_and_the_first_goes_on(first, served):
    status, _, errors = served.fcl("serve")
    assert status == 2
    assert "fcl serve is already running" in errors
    assert served.api


def test_all_servers_listen_on_this_machine_only(first, served):
    psutil = pytest.importorskip("psutil")
    listening = [
        connection.laddr.ip
        for number in served.processes()
        for connection in psutil.Process(number).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 2  # Prefect and MLflow
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_the_form_asks_for_methods_and_streams_by_name(schema, served):
    import methods

    assert schema["method"]["enum"] == methods.names()
    assert schema["stream"]["enum"] == list(yaml.safe_load((served.root / "params.yaml").read_text())["streams"])
    assert schema["seed"]["minimum"] == 0
    assert all(schema[name]["description"] for name in schema)


def test_the_form_has_every_knob_with_words_bounds_and_the_value_of_params_yaml(schema, served):
    import methods
    from methods.training import TrainParameters
    from run_parameters import RunParameters

    params = yaml.safe_load((served.root / "params.yaml").read_text())
    tabs = {tab["title"]: tab for part in schema["method_parameters"]["anyOf"] for tab in part["anyOf"]}
    models = {name: methods.get(name).Params for name in methods.names() if methods.get(name).Params.model_fields}
    assert tabs.keys() == models.keys()
    for form, model in ((schema["train"], TrainParameters), (schema["run"], RunParameters)):
        assert form["properties"].keys() == model.model_fields.keys()
    for name, model in models.items():
        assert tabs[name]["properties"].keys() == model.model_fields.keys()
        for field, about in tabs[name]["properties"].items():
            assert model.model_fields[field].description in about["description"]
    rounds = schema["train"]["properties"]["rounds"]
    assert (rounds["type"], rounds["minimum"]) == ("integer", 1)
    assert rounds["description"].endswith(f"default: {params['train']['rounds']}")
    assert schema["train"]["properties"]["momentum"]["exclusiveMaximum"] == 1
    assert schema["train"]["properties"]["optimizer"]["enum"] == ["sgd", "adam", "adamw"]


def test_nothing_in_the_form_is_sent_unless_a_person_fills_it(schema):
    """Else a stream's own values, and params.yaml as it is when the run begins, would not count."""

    def fields(form):
        for field in form.get("properties", {}).values():
            yield field
            yield from fields(field)

    for form in (schema["train"], schema["run"]):
        assert [field for field in fields(form) if "default" in field] == []
    assert (schema["train"]["default"], schema["run"]["default"], schema["method_parameters"]["default"]) == (
        {},
        {},
        {},
    )


def test_prefect_yaml_names_flows_that_take_its_parameters(first, served):
    from prefect.utilities.schema_tools import validate

    described = yaml.safe_load((served.root / "prefect.yaml").read_text())["deployments"]
    with served.client() as client:
        for about in described:
            flow = about["entrypoint"].rpartition(".")[2]
            found = client.read_deployment_by_name(f"{flow}/{about['name']}")
            assert found.work_pool_name == "fcl"
            assert found.tags == about["tags"]
            assert [each.active for each in found.schedules] == [False] * len(about.get("schedules", []))
            if found.parameters:
                validate(found.parameters, found.parameter_openapi_schema, preprocess=False)
        assert client.read_deployment_by_name("experiment/gpu").work_queue_name == "gpu"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"method": "fedavgg"}, ["fedavgg", "did you mean fedavg"]),
        ({"seed": -1}, ["seed", "0 or more", "got -1"]),
        ({"sets": ["train.rounds=0"]}, ["train.rounds", "at least 1", "got 0"]),
        ({"train": {"clients_per_round": 9}}, ["train.clients_per_round", "got 9"]),
        ({"method": "fedprox", "method_parameters": {"weight": 2}}, ["methods.fedprox.weight", "mu"]),
        ({"out": "../elsewhere"}, ["out", "below the project's", "../elsewhere"]),
    ],
)
def test_what_is_wrong_is_refused_before_it_is_queued(first, served, asked, words):
    from flows.submission import Order, submit

    with pytest.raises(InputError) as refused:
        submit(Order(**{"method": "fedavg", "stream": "digits", **asked}), served.root, "default")
    assert [word for word in words if word not in str(refused.value)] == []


def test_an_unknown_deployment_is_refused(first, served):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.submission import Order, submit

    with (
        temporary_settings({PREFECT_API_URL: served.api}),
        pytest.raises(InputError, match=r"no deployment experiment/tpu"),
    ):
        submit(Order("fedavg", "digits"), served.root, "tpu")


def test_sections_of_a_form_mean_what_they_say(served):
    """Whatever a field holds, `--set` reads it back as that."""
    import methods
    from flows.submission import Order

    train = {"learning_rate": 1e-5, "clients_per_round": "all", "augmentation": {"flip": True, "crop": 2}}
    spec = Order("fedavg", "digits", train=train, sets=["train.augmentation.crop=1"]).experiment(served.root)
    assert (spec.train.learning_rate, spec.train.clients_per_round) == (1e-5, "all")
    assert (spec.train.augmentation.flip, spec.train.augmentation.crop) == (True, 1)
    for name in methods.names():
        defaults = methods.get(name).Params().model_dump(mode="json")
        texts = assignments_of(name, defaults)
        assert texts == defaults, name


def assignments_of(method: str, values: dict) -> dict:
    """Values written for `--set` and read again, as a section."""
    from flows.submission import assignments

    found: dict = {}
    for text in assignments(method, values):
        key, _, value = text.partition("=")
        *sections, last = key.split(".")[1:]
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = yaml.safe_load(value)
    return found


@pytest.mark.parametrize("wrong", [{"train": {"rounds": 0}}, {"method": "fedavgg"}, {"run": {"wrokers": 1}}])
def test_the_server_refuses_what_does_not_fit_the_form(first, served, wrong):
    from prefect.exceptions import PrefectHTTPStatusError

    with served.client() as client:
        found = client.read_deployment_by_name("experiment/default")
        with pytest.raises(PrefectHTTPStatusError, match=r"409 Conflict.*Validation failed for field"):
            client.create_flow_run_from_deployment(
                found.id, parameters={"method": "fedavg", "stream": "digits", **wrong}
            )


@pytest.fixture(scope="module")
def wrong_together(first, served) -> str:
    """A flow run whose parameters fit the form, but not each other; as sent by the UI."""
    with served.client() as client:
        found = client.read_deployment_by_name("experiment/default")
        given = {"method": "fedavg", "stream": "digits", "train": {"clients_per_round": 9}, "out": "results/wrong"}
        return str(client.create_flow_run_from_deployment(found.id, parameters=given).id)


def test_a_submitted_run_has_the_digest_of_fcl_run(first, wrong_together, served, undisturbed):
    run = served.finished(first.experiment)
    assert (run.name, run.state.name) == ("fedavg on digits, seed 0", "Completed"), run.state.message
    about = json.loads((served.root / "results" / "digits" / "fedavg" / "seed-0" / "run.json").read_text())
    assert about["digest"] == undisturbed.digest
    assert about["prefect_flow_run"] == first.experiment
    assert "results/digits/fedavg/seed-0" in run.state.message
    with served.client() as client:
        assert client.read_flow_runs(offset=0, limit=50) and {"fcl", "fedavg", "digits"} <= set(run.tags)


def test_the_ui_has_the_progress_and_the_results(first, served):
    from prefect.client.schemas.filters import ArtifactFilter

    served.finished(first.experiment)
    wanted = ArtifactFilter.model_validate({"flow_run_id": {"any_": [first.experiment]}})
    with served.client() as client:
        found = {artifact.type: artifact for artifact in client.read_artifacts(artifact_filter=wanted)}
    assert found["progress"].data == 100
    assert "step" in found["progress"].description
    page = found["markdown"].data
    folder = served.root / "results" / "digits" / "fedavg" / "seed-0"
    metrics, about = json.loads((folder / "metrics.json").read_text()), json.loads((folder / "run.json").read_text())
    assert f"| final average accuracy | {100 * metrics['final_average_accuracy']:.1f} % |" in page
    assert "data:image/png;base64," in page
    assert "results/digits/fedavg/seed-0" in page
    assert f"http://127.0.0.1:{page.partition('](http://127.0.0.1:')[2].partition('/')[0]}/#/experiments/" in page
    assert f"/runs/{about['mlflow_run']})" in page
    assert "runs?workflowType=machine_learning&viewStateShareKey=comparison)" in page


def test_what_does_not_go_together_fails_with_the_sentence_and_writes_nothing(wrong_together, served):
    state = served.finished(wrong_together).state
    assert (state.type.value, state.name) == ("FAILED", "Refused")
    assert state.message.startswith("train.clients_per_round must be 'all' or between 1 and")
    assert not (served.root / "results" / "wrong").exists()


def test_a_killed_worker_ends_serve_and_the_next_one_resumes_its_run(
    first, wrong_together, served, play_run, eventually
):
    served.finished(wrong_together)
    (worker,) = [number for number, command in served.processes().items() if "prefect worker start" in command]
    victim = served.submit("fedavg", "--stream", "digits", "--seed", "3", *(f"--set={each}" for each in SLOW))
    checkpoints = (served.root / "runs").glob
    eventually(lambda: list(checkpoints("digits-fedavg-3-*/checkpoint.json")), "a checkpoint")
    os.kill(worker, signal.SIGKILL)
    _, errors = served.process.communicate()
    assert served.process.returncode == 1
    assert "the worker stopped by itself" in errors
    assert eventually(lambda: not served.processes(), "no process is left")
    assert list(checkpoints("digits-fedavg-3-*/checkpoint.json"))

    served.start()
    run = served.finished(victim)
    assert run.state.name == "Completed", run.state.message
    assert run.run_count == 2
    folder = served.root / "results" / "digits" / "fedavg" / "seed-3"
    assert json.loads((folder / "run.json").read_text())["digest"] == play_run("fedavg", *SLOW, seed=3).digest
    assert served.end() == (0, "")
    assert eventually(lambda: not served.processes(), "no process is left")
    assert not (served.root / "runs" / "serve.json").exists()

"""params.yaml and --set: what wins over what, and one sentence that names the key for all that is wrong."""

from __future__ import annotations

import copy
import re

import pytest
import yaml

import methods
import parameters
from errors import InputError
from parameters import experiment, project_root, read
from run_parameters import RunParameters
from streams.parameters import Partition, StreamParameters
from streams.stream import build


@pytest.fixture
def change(project):
    """Changes params.yaml: `change("train", rounds=7)`, with dotted sections."""

    def put(section: str, **values):
        path = project / "params.yaml"
        params = yaml.safe_load(path.read_text())
        place = params
        for part in section.split(".") if section else ():
            place = place.setdefault(part, {})
        place |= values
        path.write_text(yaml.safe_dump(params))

    return put


def spec(project, *sets, method: str = "fedavg", stream: str = "digits", **run):
    return experiment(method, stream, 0, list(sets), project, **run)


# what wins over what


def test_a_stream_overrides_the_file_and_set_overrides_both(project, change):
    assert spec(project).train.rounds == 2
    change("streams.digits", train={"rounds": 7, "batch_size": 5}, model={"width": 9})
    mine = spec(project)
    assert (mine.train.rounds, mine.train.batch_size, mine.train.local_epochs) == (7, 5, 1)
    assert mine.model == {"name": "mlp", "width": 9, "depth": 2}
    assert spec(project, stream="own").train.rounds == 2
    set_ = spec(project, "train.rounds=3", "model.width=4")
    assert (set_.train.rounds, set_.train.batch_size, set_.model["width"]) == (3, 5, 4)


def test_the_last_set_wins(project):
    assert spec(project, "train.rounds=3", "train.rounds=4").train.rounds == 4


def test_set_reaches_every_section(project):
    mine = spec(
        project,
        "streams.digits.clients=4",
        "streams.digits.partition.alpha=0.3",
        "methods.fedlwf.weight=0.5",
        "run.workers=3",
        "train.optimizer=adam",
        method="fedlwf",
    )
    assert mine.stream_parameters.clients == 4
    assert mine.stream_parameters.partition.alpha == 0.3
    assert mine.stream_parameters.partition.min_share == 0.1
    assert mine.method_parameters == {"temperature": 2.0, "weight": 0.5}
    assert mine.run.workers == 3
    assert mine.train.optimizer == "adam"


def test_what_the_caller_says_of_the_run_wins_and_none_says_nothing(project):
    assert spec(project, "run.workers=3", workers=5).run.workers == 5
    assert spec(project, "run.workers=3", workers=None).run.workers == 3


def test_another_network_in_a_stream_drops_the_options_of_the_first(project, change):
    change("streams.digits", model={"name": "slim_resnet18", "norm": "batch"})
    assert spec(project).model == {"name": "slim_resnet18", "norm": "batch", "width": 20}
    assert spec(project, "model.width=3").model == {"name": "slim_resnet18", "norm": "batch", "width": 3}


def test_another_network_by_set_drops_the_options_of_the_first(project, change):
    assert spec(project, "model.name=cnn").model == {"name": "cnn", "width": 32}, "a width of 16 is the mlp's"
    change("model", depth=3)
    assert spec(project).model == {"name": "mlp", "width": 16, "depth": 3}
    other = spec(project, "model.norm=batch", "model.name=slim_resnet18").model
    assert other == {"name": "slim_resnet18", "norm": "batch", "width": 20}


def test_the_same_network_by_set_keeps_its_options(project):
    assert spec(project, "model.name=mlp").model == {"name": "mlp", "width": 16, "depth": 2}


# identity


def test_the_digest_covers_what_determines_the_result_and_nothing_else(project):
    same = spec(project).digest
    assert spec(project, "run.workers=7", "run.runner=processes", "train.rounds=2").digest == same
    others = {
        spec(project, "train.rounds=3").digest,
        spec(project, "model.width=17").digest,
        spec(project, "streams.digits.seed=5").digest,
        spec(project, method="local").digest,
        spec(project, stream="own").digest,
        experiment("fedavg", "digits", 1, [], project).digest,
    }
    assert same not in others
    assert len(others) == 6


def test_another_methods_parameters_are_not_ones_own(project):
    assert spec(project, "methods.fedlwf.weight=9").digest == spec(project).digest


# what is refused, and how it is said

WRONG = [
    ("streams.digits.partition.alpha=0", "streams.digits.partition.alpha must be greater than 0 (got 0); "),
    ("streams.digits.partition.alpha=-1.5", "streams.digits.partition.alpha must be greater than 0 (got -1.5); "),
    ("streams.digits.partition.alpha=.nan", "streams.digits.partition.alpha must be "),
    ("streams.digits.partition.alpha=.inf", "streams.digits.partition.alpha must be a finite number (got inf)"),
    (
        "streams.digits.partition.kind=pathological",
        "streams.digits.partition.kind must be 'iid', 'dirichlet', 'classes'",
    ),
    ("streams.digits.partition.alpa=1", "no key 'streams.digits.partition.alpa'; did you mean alpha"),
    ("streams.digits.cliens=3", "no key 'streams.digits.cliens'; did you mean clients"),
    ("streams.digits.clients=0", "streams.digits.clients must be at least 1 (got 0); number of clients"),
    ("streams.digits.clients=many", "streams.digits.clients must be a whole number (got 'many')"),
    ("streams.digits.clients=null", "streams.digits.clients must be a whole number (got None)"),
    ("streams.digits.source=digit", "streams.digits.source must be 'digits', 'parquet:PATH', 'csv:PATH', "),
    ("streams.digits.source=folder", "'folder:PATH', 'torchvision:NAME' or 'tasks' (got 'folder')"),
    ("streams.digits.test=1", "streams.digits.test must be less than 1 (got 1)"),
    ("streams.digits.partition.min_share=0.4", "asks for more than a whole class; it can be at most 1/clients"),
    ("streams.digit.clients=3", "no stream 'digit'; did you mean digits?"),
    ("train.rounds=0", "train.rounds must be at least 1 (got 0); communication rounds in each experience"),
    ("train.rounds=1.5", "train.rounds must be a whole number (got 1.5)"),
    ("train.rounds=many", "train.rounds must be a whole number (got 'many')"),
    ("train.rounds=[1]", "train.rounds must be a whole number (got [1])"),
    ("train.learning_rate=0", "train.learning_rate must be greater than 0 (got 0)"),
    ("train.learning_rate=fast", "train.learning_rate must be a number (got 'fast')"),
    ("train.momentum=1", "train.momentum must be less than 1 (got 1)"),
    ("train.optimizer=sdg", "train.optimizer must be 'sgd', 'adam' or 'adamw' (got 'sdg')"),
    ("train.round=3", "no key 'train.round'; did you mean rounds"),
    ("train.clients_per_round=0", "train.clients_per_round must be 'all' or between 1 and streams.digits.clients = 3"),
    ("train.clients_per_round=4", "streams.digits.clients = 3 (got 4)"),
    ("train.clients_per_round=-1", "train.clients_per_round must be 'all' or between 1 and "),
    ("train.clients_per_round=some", "train.clients_per_round must be "),
    ("run.workers=0", "run.workers must be at least 1 (got 0); tasks that compute at the same time"),
    ("run.runner=spark", "run.runner must be 'threads', 'processes', 'dask' or 'ray' (got 'spark')"),
    (
        "run.address=auto",
        "run.address: expected nothing, since run.runner is threads, which has no cluster",
    ),
    ("run.store=s3://key:word@bucket", "run.store: expected a URL without credentials (got s3://... with some)"),
    ("run.worker=2", "no key 'run.worker'; did you mean workers"),
    ("run.cohort=0", "run.cohort must be "),
    ("run.cohort=-3", "run.cohort must be "),
    ("model.name=cnnn", "model.name: no model 'cnnn'; did you mean cnn"),
    ("model.widht=3", "model.widht: model 'mlp' has no option 'widht'; did you mean width"),
    ("model.name=3", "model.name: expected the name of a network (got 3)"),
    ("model.name=null", "model.name: expected the name of a network (got None)"),
    ("methods.fedlwf.weight=-1", "methods.fedlwf.weight must be at least 0 (got -1); weight of the distillation term"),
    ("methods.fedlwf.temp=1", "no key 'methods.fedlwf.temp'; did you mean temperature"),
    ("methods.fedlfw.weight=1", "no method 'fedlfw'; did you mean fedlwf"),
    ("trian.rounds=1", "no key 'trian.rounds'; did you mean train"),
    ("train=3", "--set train: expected a single key, not a whole section"),
    ("methods.fedlwf=3", "--set methods.fedlwf: expected a single key, not a whole section"),
    ("streams.digits=3", "--set streams.digits: expected a single key, not a whole section"),
    ("train.rounds.more=3", "no key 'train.rounds.more': 'rounds' has no keys below it"),
    ("train.rounds", "--set train.rounds: expected KEY=VALUE, for example "),
    ("=3", "--set =3: expected KEY=VALUE"),
    ("train..rounds=3", "--set train..rounds=3: expected KEY=VALUE"),
    ("train.rounds=[1", "--set train.rounds=[1: the value is not valid YAML"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG, ids=[wrong for wrong, _ in WRONG])
def test_what_is_wrong_is_said_in_one_line_that_names_the_key(project, wrong, said):
    with pytest.raises(InputError, match=re.escape(said)) as raised:
        spec(project, wrong, method="fedlwf")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "infinite", ["train.learning_rate", "train.weight_decay", "methods.fedlwf.weight", "methods.fedlwf.temperature"]
)
def test_numbers_are_finite(project, infinite):
    with pytest.raises(InputError, match=rf"{re.escape(infinite)} must be a finite number \(got inf\)"):
        spec(project, f"{infinite}=.inf", method="fedlwf")


@pytest.mark.parametrize("key", ["train.rounds", "train.batch_size", "run.workers", "streams.digits.clients"])
def test_true_is_not_a_number(project, key):
    with pytest.raises(InputError, match=f"{key} must be a whole number"):
        spec(project, f"{key}=true")


def test_an_unknown_method_or_stream_names_the_nearest(project):
    with pytest.raises(InputError, match="no method 'fedavgg'; did you mean fedavg"):
        spec(project, method="fedavgg")
    with pytest.raises(InputError, match=r"no stream 'digit'; did you mean digits\?"):
        spec(project, stream="digit")


def test_more_experiences_than_classes_are_refused_when_the_stream_is_built(project):
    parameters = spec(project, "streams.digits.experiences=11").stream_parameters
    with pytest.raises(InputError, match="experiences 11 is more than the 10 classes of digits; it can be at most 10"):
        build("digits", parameters, project)


def test_a_missing_key_is_named_with_its_meaning(project, change):
    params = yaml.safe_load((project / "params.yaml").read_text())
    del params["streams"]["digits"]["clients"]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError, match=r"streams\.digits\.clients is missing \(number of clients"):
        spec(project)


def test_a_section_of_params_yaml_that_no_method_has_is_refused(project, change):
    """A misspelt section would otherwise be an experiment with defaults."""
    change("methods.fedlwff", weight=3)
    with pytest.raises(InputError, match=r"methods\.fedlwff|no method 'fedlwff'"):
        spec(project, method="fedlwf")


# files that are not parameters


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [1", "params.yaml, line "),
        ("", "params.yaml: expected the sections streams, model, train, methods, run"),
        ("train: {}", "params.yaml: expected the sections streams, model, train, methods, run (got train)"),
        ("[train, model]", "params.yaml: expected the sections "),
        ("5", "params.yaml: expected the sections "),
        ("just words", "params.yaml: expected the sections "),
    ],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path, text, said):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        read(tmp_path)


@pytest.mark.parametrize("section", ["streams", "model", "train", "methods", "run", "streams.digits"])
@pytest.mark.parametrize("value", [None, 5, ["a"]], ids=str)
def test_a_section_that_is_none_is_a_sentence_or_nothing_set(project, section, value):
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    place = params["streams"] if "." in section else params
    place[section.rpartition(".")[2]] = value
    path.write_text(yaml.safe_dump(params))
    try:
        spec(project)
    except InputError as error:
        assert section.rpartition(".")[2] in str(error) or "stream" in str(error)
    else:
        assert value is None, "only an empty section may stand for its defaults"


@pytest.mark.parametrize("section", ["train", "model"])
@pytest.mark.parametrize("value", [5, ["a"], "sgd"], ids=str)
def test_a_streams_own_section_must_be_one(project, change, section, value):
    change("streams.digits", **{section: value})
    with pytest.raises(InputError, match=section):
        spec(project)


def test_the_project_is_found_from_below_and_missed_elsewhere(project, tmp_path):
    (project / "a" / "b").mkdir(parents=True)
    assert project_root(project / "a" / "b") == project.resolve()
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match=r"no params\.yaml in .*elsewhere or above"):
        project_root(tmp_path / "elsewhere")


# params.yaml itself


def test_the_repositorys_parameters_are_valid_for_every_method_and_stream(root, monkeypatch):
    params = read(root)
    monkeypatch.setattr(parameters, "read", lambda *_: copy.deepcopy(params))  # once, not for each of 700 pairs
    for stream in params["streams"]:
        for method in methods.names():
            if params["streams"][stream].get("models") and not methods.get(method).heterogeneous:
                with pytest.raises(InputError, match=f"models: {method} needs one network for all clients"):
                    experiment(method, stream, root=root)
                continue
            if params["streams"][stream]["source"] == "tasks" and not methods.get(method).multitask:
                with pytest.raises(
                    InputError, match=f"clients of stream {stream} have different tasks, which {method}"
                ):
                    experiment(method, stream, root=root)
                continue
            assert experiment(method, stream, root=root).stream == stream


def test_every_method_has_its_section_and_every_section_its_method(root):
    assert set(read(root)["methods"]) == set(methods.names())


def test_the_run_section_lists_every_key_at_its_default(root):
    assert RunParameters().model_dump(mode="json") == read(root)["run"]


@pytest.mark.parametrize("model", [RunParameters, StreamParameters, Partition])
def test_every_parameter_is_described(model):
    assert [key for key, field in model.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("section", ["streams.digits", "model", "train", "run"])
def test_every_key_is_explained_where_it_stands(root, section):
    """Each line of the section that gives a key its value has a comment."""
    lines = (root / "params.yaml").read_text().splitlines()
    start, depth = -1, -1
    for depth, name in enumerate(section.split(".")):
        start = next(n for n, line in enumerate(lines) if n > start and line.startswith(f"{'  ' * depth}{name}:"))
    keys = []
    for line in lines[start + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= 2 * depth:
            break
        if re.match(r"\s+\w+: *[^\s#]", line):
            keys.append(line)
    assert keys
    assert [line for line in keys if "#" not in line] == []


def test_a_key_of_one_stream_leaves_streams_that_share_its_yaml_alone(project):
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["streams"]["other"] = {**params["streams"]["digits"]}
    path.write_text(yaml.safe_dump(params))
    assert "&id" in path.read_text()  # YAML's anchor: both have one partition
    changed = read(project, ["streams.other.partition.alpha=3"])["streams"]
    assert changed["other"]["partition"]["alpha"] == 3 != changed["digits"]["partition"]["alpha"]

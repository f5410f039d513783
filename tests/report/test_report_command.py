"""The command beside a number describes the very experiment that the number is of; `fcl report` writes the page."""

from __future__ import annotations

import json
import shlex
from functools import partial

import pytest
import yaml

ON_DIGITS = [
    ("fedavg", []),
    ("fedavg", ["train.rounds=7", "train.augmentation.flip=true"]),
    ("fedavg", ["model.name=cnn", "model.width=4"]),
    ("fedavg", ["model.width=24", "streams.digits.partition.alpha=3.5", "streams.digits.partition.kind=dirichlet"]),
    ("fedprox", ["methods.fedprox.mu=0.5"]),
    ("local", ["models=[cnn, mlp]"]),
    ("large_small", ["foundation.seed=3", "methods.large_small.surrogate.per_class=3"]),
    ("fedavg", ["faults.drop=0.5"]),
]


@pytest.fixture
def described(project):
    """run.json's part about an experiment of the project, after a round through JSON."""
    from parameters import experiment

    def describe(method: str, sets=(), stream: str = "digits", seed: int = 4):
        spec = experiment(method, stream, seed, sets, project)
        saved = json.loads(json.dumps(spec.identity(), sort_keys=True))
        return spec, {"experiment": saved, "parameter_digest": spec.digest}

    return describe


def understood(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options of `fcl run ...`, and what follows each --set."""
    options, sets = {}, []
    for name, value in zip(words[3::2], words[4::2], strict=True):
        if name == "--set":
            sets.append(value)
        else:
            options[name] = value
    return options, sets


@pytest.mark.parametrize(("method", "sets"), ON_DIGITS)
def test_the_command_describes_the_experiment(project, described, method, sets):
    from flows.commands import repeating
    from parameters import experiment

    spec, about = described(method, sets)
    words = shlex.split(repeating(project)(project / f"results/digits/{method}/seed-4", about))
    assert words[:3] == ["fcl", "run", method]
    options, found = understood(words)
    assert options == {"--stream": "digits", "--seed": "4"}
    assert experiment(method, "digits", 4, found, project).digest == spec.digest
    assert bool(found) == bool(sets)


def test_a_variant_is_run_into_its_folder(project, described):
    from flows.commands import repeating

    _, about = described("fedprox", ["methods.fedprox.mu=0.5"])
    words = shlex.split(repeating(project)(project / "results/digits/fedprox strong/seed-4", about))
    assert understood(words) == (
        {"--stream": "digits", "--seed": "4", "--out": "results/digits/fedprox strong/seed-4"},
        ["methods.fedprox.mu=0.5"],
    )


def test_a_run_with_a_course_is_repeated_with_one(project, described):
    from flows.commands import repeating

    _, about = described("fedavg")
    folder = project / "results/digits/fedavg/seed-4"
    folder.mkdir(parents=True)
    (folder / "course.parquet").touch()
    assert understood(shlex.split(repeating(project)(folder, about)))[1] == ["run.course=true"]


def test_where_params_yaml_knows_it_no_more_it_is_verified_by_its_own_record(project, described):
    from flows.commands import repeating

    _, about = described("fedavg")
    params = yaml.safe_load((project / "params.yaml").read_text())
    del params["streams"]["digits"]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    folder = project / "results/digits/fedavg/seed-4"
    assert repeating(project)(folder, about) == "fcl verify results/digits/fedavg/seed-4"


def test_a_parameter_that_is_gone_is_not_left_out_silently(project, described):
    from flows.commands import repeating

    _, about = described("fedavg")
    about["experiment"]["train"]["gone"] = 1
    assert repeating(project)(project / "results/digits/fedavg/seed-4", about).startswith("fcl verify ")


def test_a_parameter_that_is_new_since_is_not_taken_for_the_runs(project, described):
    """The run was of a project without it: whether its default changes nothing, nobody knows."""
    from flows.commands import repeating

    _, about = described("fedavg")
    del about["experiment"]["train"]["warmup"]
    assert repeating(project)(project / "results/digits/fedavg/seed-4", about).startswith("fcl verify ")


@pytest.fixture
def fcl(project, call_fcl):
    """`fcl ARGUMENTS` in the project: (exit status, stdout, stderr)."""
    return partial(call_fcl, project)


def test_fcl_report_writes_the_page_and_says_where(fcl, project, described, project_tree):
    _, about = described("fedprox", ["methods.fedprox.mu=0.5"], seed=0)
    project_tree.run("fedprox", 0, 0.5, **about)
    project_tree.run("other", 0, 0.4, **about, stream="elsewhere")
    assert fcl("report") == (0, "comparison/report.html\ncomparison/report.md\n", "")
    page = (project / "comparison/report.html").read_text()
    assert "fcl run fedprox --stream digits --seed 0 --set methods.fedprox.mu=0.5" in page
    assert "elsewhere" in page and str(project) not in page
    assert fcl("report", "--stream", "elsewhere")[0] == 0
    assert "results/digits/" not in (project / "comparison/report.md").read_text()


def test_without_results_nothing_is_written(fcl, project):
    status, said, error = fcl("report")
    assert (status, said) == (2, "") and error.startswith("error: no results in ")
    assert not (project / "comparison").exists()

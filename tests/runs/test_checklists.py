"""Checklists say what the runs recorded, and call what none recorded by its name."""

from __future__ import annotations

import json
import shutil
from statistics import fmean, stdev

import pytest
import yaml

from errors import InputError
from flows.checklists import write_checklists
from report.checklist import PAPERS, SECTIONS, checklist


@pytest.fixture(scope="module")
def project(small_project, play_run, tmp_path_factory):
    """Results of dac on two seeds, and of fedavg on one; fedavg on another stream, where dac was not run."""
    root = tmp_path_factory.mktemp("checked") / "project"
    shutil.copytree(small_project, root, ignore=shutil.ignore_patterns("foundations"))
    for stream, method, seed in (
        ("devices", "dac", 0),
        ("devices", "dac", 1),
        ("devices", "fedavg", 0),
        ("digits", "fedavg", 0),
    ):
        out = root / "results" / stream / method / f"seed-{seed}"
        play_run(method, "train.rounds=1", "streams.devices.public=0.2", stream=stream, seed=seed, out=out, root=root)
    return root


def run_json(project, name: str) -> dict:
    return json.loads((project / "results" / "devices" / name / "run.json").read_text())


def test_every_answer_comes_from_the_runs(project):
    page = checklist("dac", project)
    runs = [run_json(project, name) for name in ("dac/seed-0", "dac/seed-1", "fedavg/seed-0")]
    for title, _ in SECTIONS:
        assert f"## {title}" in page
    assert "from 3 runs" in page and "digits" not in page.split("## 5")[0], "that stream is another paper's"
    for run in runs:
        assert run["stream_digest"] in page and run["machine"] in page and run["versions"]["torch"] in page
    assert f"In total {sum(run['seconds'] for run in runs):.0f} s of wall time in 3 runs" in page
    own = [run["seconds"] for run in runs[:2]]
    assert f"| devices | dac | 2 | {fmean(own):.1f} | {sum(own):.1f} |" in page
    assert "| devices | dac | 0, 1 | over 2 runs |" in page and "| devices | fedavg | 0 | none: 1 run |" in page
    chosen = runs[0]["experiment"]["method_parameters"]["consolidation"]["iterations"]
    assert f"consolidation.iterations {chosen}" in page and "rounds 1," in page
    finals = [
        json.loads((project / "results/devices/dac" / f"seed-{seed}" / "metrics.json").read_text()) for seed in (0, 1)
    ]
    values = [100 * each["final_average_accuracy"] for each in finals]
    assert f"{fmean(values):.1f} ± {stdev(values):.1f}" in page


def test_what_no_run_recorded_is_called_so(project):
    page = checklist("dac", project)
    assert "How hyperparameters were chosen: not recorded" in page
    assert "Code: commit not recorded" in page, "this project is not under git"
    assert "requirements.lock with SHA-256 not recorded" not in page, "the lock is the code's"


def test_licences_are_those_of_the_sources_that_were_used(project):
    page = checklist("dac", project)
    assert "`digits` (run.json, `experiment`): Optical Recognition" in page and "CC BY 4.0" in page
    assert "CIFAR" not in page


def test_a_run_more_changes_the_answer(project, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(project, root)
    again = root / "results" / "devices" / "fedavg" / "seed-1"
    shutil.copytree(root / "results" / "devices" / "fedavg" / "seed-0", again)
    told = json.loads((again / "run.json").read_text())
    told["experiment"]["seed"] = 1
    (again / "run.json").write_text(json.dumps(told | {"seed": 1, "gpu": "a GPU", "git_clean": True}))
    page = checklist("dac", root)
    assert "| devices | fedavg | 0, 1 | over 2 runs |" in page and "a GPU" in page and "3 of 4 runs" in page


def test_one_is_written_for_every_paper_also_without_runs(project):
    written = write_checklists(project)
    assert [path.name for path in written] == [f"checklist-{paper}.md" for paper in PAPERS]
    assert [("has no run" in path.read_text()) for path in written] == [paper != "dac" for paper in PAPERS]
    with pytest.raises(InputError, match=r"no paper 'dca'; did you mean dac"):
        checklist("dca", project)


def test_papers_are_methods_of_params_yaml(root):
    assert set(PAPERS) <= set(yaml.safe_load((root / "params.yaml").read_text())["methods"])

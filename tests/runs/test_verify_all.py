"""`fcl verify --all`: every result is run again; what differs is named, what fails does not stop the others."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from contextlib import contextmanager

import pytest

from flows.verification import chosen


@pytest.fixture(scope="module")
def table(small_project, play_run, tmp_path_factory):
    """A project with three results, two methods; copied before it is changed."""
    root = tmp_path_factory.mktemp("table") / "project"
    shutil.copytree(small_project, root, ignore=shutil.ignore_patterns("foundations"))
    for method, seed in (("fedavg", 0), ("fedavg", 1), ("local", 0)):
        out = root / "results" / "digits" / method / f"seed-{seed}"
        play_run(method, "train.rounds=1", seed=seed, out=out, root=root)
    return root


@pytest.fixture
def changed(table, tmp_path):
    return shutil.copytree(table, tmp_path / "project")


@pytest.fixture
def verify(call_fcl, monkeypatch, tmp_path):
    """`fcl verify ARGUMENTS` in a project: (exit status, lines of stdout, stderr); nothing of its own is left."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))

    def call(root, *arguments: str) -> tuple[int, list[str], str]:
        before = {path: path.read_bytes() for name in ("results", "runs") for path in files(root / name)}
        status, said, error = call_fcl(root, "verify", *arguments)
        assert {path: path.read_bytes() for name in ("results", "runs") for path in files(root / name)} == before
        assert not (root / "mlflow.db").exists()
        assert not any(each.name.startswith("fcl-verify-") for each in place.iterdir())
        return status, said.splitlines(), error

    return call


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def change(path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_results_that_come_out_again_are_the_same(table, verify):
    status, said, error = verify(table, "--all")
    assert (status, error) == (0, "")
    assert [line.split()[:2] for line in said[:3]] == [
        ["same", "results/digits/fedavg/seed-0"],
        ["same", "results/digits/fedavg/seed-1"],
        ["same", "results/digits/local/seed-0"],
    ]
    assert said[3] == "of 3 results: 3 same, 0 differs, 0 could not be run"


def test_what_was_tampered_with_is_found_and_the_others_are_run_all_the_same(changed, verify):
    results = changed / "results" / "digits"
    change(results / "fedavg" / "seed-0" / "metrics.json", final_average_accuracy=0.999)
    change(results / "fedavg" / "seed-1" / "run.json", digest="0" * 64)
    (results / "local" / "seed-1").mkdir()
    (results / "local" / "seed-1" / "run.json").write_text("{")
    status, said, error = verify(changed, "--all", "--stream", "digits")
    assert status == 1
    first, second, third, fourth, summary = said
    assert first.startswith("differs") and "final_average_accuracy 0.999" in first
    assert second.startswith("differs") and "0" * 64 in second
    assert third.startswith("same") and "local/seed-0" in third
    assert fourth.startswith("could not be run") and "run.json" in fourth
    assert summary == "of 4 results: 1 same, 2 differs, 1 could not be run"
    (line,) = error.splitlines()
    assert line.startswith("error: ") and "3 of 4" in line


@pytest.mark.parametrize("table_name, column", [("accuracy_matrix", "accuracy"), ("rounds", "bytes_up")])
def test_a_table_that_was_changed_is_found(changed, verify, table_name, column):
    import pandas as pd

    folder = changed / "results" / "digits" / "local" / "seed-0"
    path = folder / f"{table_name}.parquet"
    rows = pd.read_parquet(path)
    rows.loc[0, column] += 1
    rows.to_parquet(path, index=False)
    status, _, error = verify(changed, str(folder))
    assert status == 1 and f"{path.name} has other rows" in error


def test_ctrl_c_ends_it_and_says_how_far_it_came(table, verify, monkeypatch):
    from flows import verification
    from tasks import interruption

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
    runs = []

    @contextmanager
    def second_is_interrupted(console, title):
        runs.append(title)
        yield lambda done, total, what: signal.raise_signal(signal.SIGINT) if len(runs) == 2 else None

    monkeypatch.setattr(verification, "progress_bar", second_is_interrupted)
    monkeypatch.setattr(interruption, "_received", False)  # whatever comes is forgotten after the test
    try:
        status, said, error = verify(table, "--all")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (status, error) == (1, "error: interrupted\n")
    assert said[0].startswith("same") and said[-1].endswith("1 same, 0 differs, 0 could not be run, 2 not reached")
    assert len(runs) == 2


def test_a_sample_is_drawn_by_its_seed(table):
    results = table / "results"
    everything = chosen(results, None, None, 0)
    assert [path.name for path in everything] == ["seed-0", "seed-1", "seed-0"]
    assert chosen(results, "digits", 9, 0) == everything
    draws = [tuple(chosen(results, None, 2, seed)) for seed in range(20)]
    assert all(len(set(draw)) == 2 and set(draw) < set(everything) for draw in draws)
    assert draws == [tuple(chosen(results, None, 2, seed)) for seed in range(20)]
    assert len(set(draws)) == 3, "each pair is drawn by some seed"


def test_what_cannot_be_verified_is_refused_in_one_line(table, verify):
    folder = "results/digits/fedavg/seed-0"
    for arguments, words in (
        ([], ["--all"]),
        ([folder, "--all"], ["--all"]),
        ([folder, "--sample", "2"], ["--sample", "--all"]),
        (["--all", "--sample", "0"], ["--sample", "1 or more", "got 0"]),
        (["--all", "--stream", "nosuch"], ["no results", "nosuch"]),
        (["--all", "--stream", "../digits"], ["--stream", "'../digits'"]),
    ):
        status, said, error = verify(table, *arguments)
        (line,) = error.splitlines()
        assert (status, said) == (2, []) and all(word in line for word in words), line

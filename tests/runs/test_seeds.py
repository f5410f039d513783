"""Several seeds side by side are the runs that each seed is alone."""

import json
import os
import signal
from contextlib import suppress

import psutil

RUN = ("run", "fedavg", "--stream", "digits")


def digest(folder):
    return json.loads((folder / "run.json").read_text())["digest"]


def test_several_seeds_are_what_each_is_alone(workshop, fcl):
    small = ("--set", "train.rounds=1", "--set", "streams.digits.experiences=1")
    status, out, errors = fcl(*RUN, "--seed", "0", "--seed", "1", "--name", "two", *small)
    assert status == 0, errors
    assert "seed 0" in out
    assert "seed 1" in out
    for each in ("0", "1"):
        about = json.loads((workshop / "results" / "digits" / "two" / f"seed-{each}" / "run.json").read_text())
        assert about["mlflow_run"]
    status, _, errors = fcl(*RUN, "--seed", "1", *small)
    assert status == 0, errors
    results = workshop / "results" / "digits"
    assert digest(results / "two" / "seed-1") == digest(results / "fedavg" / "seed-1")
    assert digest(results / "two" / "seed-1") != digest(results / "two" / "seed-0")


def test_wrong_input_is_refused_before_any_seed_starts(workshop, fcl):
    status, out, errors = fcl(
        "run", "fedavg", "--stream", "digits", "--seed", "0", "--seed", "1", "--set", "train.rounds=0"
    )
    assert status == 2
    assert "train.rounds" in errors
    assert "seed 0" not in out


def test_a_name_is_no_path(workshop, fcl):
    for name in ("../x", "a/b", "", ".."):
        status, _, errors = fcl(*RUN, "--name", name)
        assert status == 2
        assert "--name" in errors


def test_seeds_that_hold_another_experiment_are_refused_before_any_starts(workshop, fcl):
    other = ("--name", "another", "--set", "train.rounds=1", "--set", "streams.digits.experiences=1")
    assert fcl(*RUN, "--seed", "1", *other)[0] == 0
    status, _, errors = fcl(*RUN, "--seed", "0", "--seed", "1", "--name", "another", "--set", "train.rounds=2")
    assert status == 2
    assert "holds another experiment" in errors
    assert not (workshop / "results" / "digits" / "another" / "seed-0").exists()


def test_a_seed_that_fails_is_named_and_the_others_finish(workshop, start_fcl, eventually):
    small = ("--set", "train.rounds=1", "--set", "streams.digits.experiences=1", "--name", "partly")
    place = workshop / "results" / "digits" / "partly"
    process = start_fcl(*RUN, "--seed", "0", "--seed", "1", *small)
    kill = eventually(lambda: [each for each in children(process.pid) if each[1] == "fcl seed 0"], "seed 0 has begun")
    os.kill(kill[0][0], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "seed 0 did not finish" in errors
    assert (place / "seed-1" / "run.json").exists()
    assert not (place / "seed-0").exists()


def test_an_interruption_ends_all_seeds_in_order(workshop, start_fcl, eventually):
    process = start_fcl(*RUN, "--seed", "0", "--seed", "1", "--name", "stopped", "--set", "train.rounds=50")
    begun = {"fcl seed 0", "fcl seed 1"}
    eventually(lambda: begun <= {name for _, name in children(process.pid)}, "both seeds have begun")
    process.send_signal(signal.SIGTERM)  # SIGINT is ignored where the tests run in the background
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "interrupted" in errors
    assert not (workshop / "results" / "digits" / "stopped").exists()


def test_seeds_outlive_the_process_they_were_forked_from_in_order(workshop, start_fcl, eventually):
    process = start_fcl(*RUN, "--seed", "0", "--seed", "1", "--name", "orphans", "--set", "train.rounds=50")
    begun = {"fcl seed 0", "fcl seed 1"}
    eventually(lambda: begun <= {name for _, name in children(process.pid)}, "both seeds have begun")
    seeds = [number for number, _ in children(process.pid)]
    (nursery,) = {psutil.Process(number).ppid() for number in seeds}
    os.kill(nursery, signal.SIGKILL)
    out, errors = process.communicate()
    assert process.returncode == 1
    assert "forked from has ended" in out
    assert "seed 0, 1 did not finish" in errors
    assert not any(psutil.pid_exists(number) and psutil.Process(number).status() != "zombie" for number in seeds)


def children(parent: int) -> list[tuple[int, str]]:
    """Processes of single seeds: number and name."""
    found = []
    for each in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.Error):
            found += [(each.pid, each.name())] if each.name().startswith("fcl seed") else []
    return found

"""Several seeds side by side are the runs that each seed is alone."""

import json

RUN = ("run", "fedavg", "--stream", "digits")


def digest(folder):
    return json.loads((folder / "run.json").read_text())["digest"]


def test_several_seeds_are_what_each_is_alone(workshop, fcl):
    small = ("--set", "train.rounds=1", "--set", "streams.digits.experiences=1")
    status, out, errors = fcl(*RUN, "--seed", "0", "--seed", "1", "--name", "two", *small)
    assert status == 0, errors
    assert "seed 0" in out
    assert "seed 1" in out
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

"""Same seed, same parameters: the same result to the last bit, however the work is spread."""

from __future__ import annotations

import pytest


def test_the_same_experiment_twice_has_one_result(undisturbed, play_run, assert_same):
    assert_same(undisturbed, play_run("fedavg"))


def test_the_same_output_folder_can_be_used_again(undisturbed, play_run, new_out, assert_same):
    out = new_out()
    play_run("fedavg", out=out)
    assert_same(undisturbed, play_run("fedavg", out=out))
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(("workers", "cohort"), [(1, "auto"), (4, "1"), (2, "3")])
def test_threads_and_cohorts_do_not_change_a_result(undisturbed, play_run, assert_same, workers, cohort):
    other = play_run("fedavg", f"run.cohort={cohort}", "run.retries=0", "run.min_clients=2", workers=workers)
    assert_same(undisturbed, other)
    told = [run.json("run.json") for run in (undisturbed, other)]
    assert told[0]["parameter_digest"] == told[1]["parameter_digest"], "how the work is done is no part of it"


def test_processes_give_what_threads_give(play_run, assert_same):
    """Also where clients are sampled, and where one thread computes everything that elsewhere two processes share."""
    sampled = play_run("fedavg", "train.clients_per_round=2", workers=1)
    assert set(sampled.rounds.groupby(["experience", "round"]).client.nunique()) == {2}
    assert_same(sampled, play_run("fedavg", "train.clients_per_round=2", runner="processes", workers=2))


def test_another_seed_gives_another_result(undisturbed, play_run):
    other = play_run("fedavg", seed=1)
    assert other.digest != undisturbed.digest
    assert other.json("run.json")["stream_digest"] == undisturbed.json("run.json")["stream_digest"]


@pytest.mark.parametrize("method", ["local", "fedlwf"])
def test_methods_that_keep_states_are_deterministic_too(play_run, assert_same, method):
    assert_same(play_run(method, workers=1), play_run(method, "run.cohort=1", workers=3))

"""Clients that drop out or are slow, simulated: the seed says who, and the round goes on without them."""

from __future__ import annotations

import pytest
import yaml

from errors import InputError
from parameters import experiment

FAULTS = ("faults.drop=0.3", "faults.slow=0.4", "faults.deadline=1.5", "run.min_clients=0")


@pytest.fixture(scope="module")
def faulty(play_run):
    return play_run("fedavg", *FAULTS, workers=1)


@pytest.fixture(scope="module")
def drawn(faulty, workshop) -> list[str]:
    """What happens to the client of each row, asked in another order than the run's."""
    from methods import Moment
    from tasks.simulated_faults import drawn

    spec = experiment("fedavg", "digits", 0, FAULTS, workshop)
    rows = list(faulty.rounds.itertuples())[::-1]
    return [drawn(spec, row.client, Moment(row.experience, row.round)) for row in rows][::-1]


def test_what_is_drawn_happens_and_is_recorded(faulty, drawn):
    rounds = faulty.rounds
    assert {"drop", "slow"} <= set(drawn)
    assert (rounds.fault == "drop").tolist() == [fault == "drop" for fault in drawn]
    slow = rounds[[fault == "slow" for fault in drawn]]
    assert set(slow.fault) <= {"slow", "late"}
    late = rounds[rounds.fault == "late"]
    assert len(late) and not late.admitted.any() and late.reason.str.contains("late, .* of at most").all()
    dropped = rounds[rounds.fault == "drop"]
    assert not dropped.admitted.any() and dropped.reason.eq("simulated: no answer (faults.drop)").all()
    assert (dropped[["bytes_up", "samples", "steps"]] == 0).all(axis=None) and (dropped.bytes_down > 0).all()
    assert rounds[~rounds.fault.isin(["drop", "late"])].admitted.all()


def test_time_is_samples_times_epochs_and_ends_at_the_deadline(faulty, drawn):
    """One local epoch. A slow client takes five times as long; for who is late the round waits until the deadline."""
    rounds = faulty.rounds.assign(drawn=drawn)
    for _, rows in rounds.groupby(["experience", "round"]):
        answered = rows[rows.drawn != "drop"]
        times = answered.samples * answered.drawn.map({"slow": 5, "": 1})
        limit = 1.5 * times.median()
        assert answered.admitted.tolist() == (times <= limit).tolist()
        assert answered.simulated.tolist() == times.clip(upper=limit).tolist()
        assert (rows.simulated[rows.drawn == "drop"] == (limit if len(answered) else 0)).all()


def test_the_shares_are_metrics_and_nothing_counts_as_refused(faulty):
    rounds, metrics = faulty.rounds, faulty.metrics
    for name in ("drop", "slow", "late"):
        assert metrics[f"{name}_share"] == (rounds.fault == name).mean()
    assert metrics["refused"] == 0
    assert metrics["simulated_time"] == rounds.groupby(["experience", "round"]).simulated.max().sum()


def test_workers_and_cohorts_change_nothing(faulty, play_run, assert_same):
    assert_same(faulty, play_run("fedavg", *FAULTS, "run.cohort=1", workers=3))


def test_a_run_that_stops_in_between_goes_on_with_the_same_faults(faulty, play_run, new_out, assert_same):
    out = new_out()

    def stop(run):
        def at(done, total, what):
            if done == 3:
                raise InterruptedError("stopped by the test")

        return at

    with pytest.raises(InterruptedError):
        play_run("fedavg", *FAULTS, out=out, during=stop)
    assert_same(faulty, play_run("fedavg", *FAULTS, out=out, resume=True))


def test_too_few_clients_stop_the_run_and_say_why(play_run):
    from tasks.round import RoundFailed

    with pytest.raises(RoundFailed, match=r"0 of 3 clients were admitted, run.min_clients is 1 \(simulated: no answer"):
        play_run("fedavg", "faults.drop=1")


def test_where_all_drop_out_the_model_stays_as_it_was(play_run):
    run = play_run("fedavg", "faults.drop=1", "run.min_clients=0", "train.rounds=1", stream="short")
    own = run.matrix[run.matrix.model == "global"].set_index(["trained", "tested"]).accuracy
    assert own[-1, 0] == own[0, 0]
    assert run.metrics["drop_share"] == 1


def test_a_method_with_a_cost_model_is_slow_in_its_own_time(play_run):
    small = [f"foundation.network.{key}" for key in ("name=vit_tiny", "width=16", "depth=2", "heads=2", "patch=4")]
    sets = [*small, "train.rounds=1"]
    plain = play_run("head_only", *sets, stream="short").rounds
    slow = play_run("head_only", *sets, "faults.slow=1", "faults.slow_factor=3", stream="short").rounds
    assert (slow.simulated == 3 * plain.simulated).all() and (plain.simulated > 0).all()
    assert set(slow.fault) == {"slow"} and slow.admitted.all()


def test_nothing_happens_to_the_centre(play_run):
    sets = ("train.rounds=1", "faults.drop=1", "faults.deadline=0.1")
    run = play_run("joint", *sets, stream="short")
    assert run.digest == play_run("joint", "train.rounds=1", stream="short").digest
    assert run.rounds.admitted.all()


# parameters


def test_without_faults_nothing_of_them_is_in_an_experiment(workshop, undisturbed):
    without = experiment("fedavg", "digits", 0, ["faults.slow_factor=9"], workshop)
    assert "faults" not in without.identity()
    assert without.digest == undisturbed.json("run.json")["parameter_digest"]
    assert "fault" not in undisturbed.rounds and "drop_share" not in undisturbed.metrics
    assert experiment("fedavg", "digits", 0, ["faults.drop=0.1"], workshop).digest != without.digest


def test_a_stream_may_bring_faults_and_the_command_line_wins(project):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["streams"]["digits"]["faults"] = {"drop": 0.2, "slow": 0.1}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    found = experiment("fedavg", "digits", 0, ["faults.slow=0.3"], project).faults
    assert (found.drop, found.slow) == (0.2, 0.3)
    assert experiment("fedavg", "short", 0, [], project).faults is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("drop=1.5", r"faults\.drop must be at most 1 \(got 1\.5\); share of a round's clients"),
        ("slow_factor=0.5", r"faults\.slow_factor must be at least 1 \(got 0\.5\)"),
        ("deadline=0", r"faults\.deadline must be greater than 0 \(got 0\)"),
        ("dorp=0.5", r"no key 'faults\.dorp'; did you mean drop"),
    ],
)
def test_faults_out_of_range_are_refused(project, value, message):
    with pytest.raises(InputError, match=message):
        experiment("fedavg", "digits", 0, [f"faults.{value}"], project)

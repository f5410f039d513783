"""What an expert loses when it is consolidated, and what its start is worth."""

from __future__ import annotations

import pandas as pd
import pytest

from metrics.experts import consolidation_gap, transfer
from metrics.summary import summarise


def curves(*rows) -> pd.DataFrame:
    """Rows of (client, experience, round, training, epoch, accuracy)."""
    columns = ["client", "experience", "round", "training", "epoch", "accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(samples=10)


def course(training: str, accuracies, client: int = 0, experience: int = 1, number: int = 0) -> list[tuple]:
    return [(client, experience, number, training, epoch, each) for epoch, each in enumerate(accuracies)]


def test_the_gap_is_the_mean_over_experts_of_what_each_loses(measured):
    frame = measured(
        ("trained", 0, 0, 0, 0.9),
        ("received", 0, 0, 0, 0.7),
        ("trained", 1, 1, 1, 0.8),
        ("received", 1, 1, 1, 0.9),
        ("trained", 0, 2, 2, 0.6),
        ("received", 0, 2, 2, 0.1),
    )
    assert consolidation_gap(frame) == {"consolidation_gap": pytest.approx((0.2 - 0.1 + 0.5) / 3)}


def test_the_gap_looks_at_an_expert_on_its_own_experience_right_after_its_consolidation(measured):
    frame = measured(
        ("trained", 0, 0, 0, 0.9),
        ("received", 0, 0, 0, 0.7),
        ("trained", 0, 1, 0, 0.0),  # an earlier experience
        ("received", 0, 1, 0, 0.0),  # later on
        ("received", 1, 0, 0, 0.0),  # a client that trained no expert here
        ("trained", 1, 1, 1, 0.3),  # one whose data the global model was not measured on
        ("global", -1, 0, 0, 0.0),
        ("multi-head", -1, 0, 0, 1.0),
    )
    assert consolidation_gap(frame) == {"consolidation_gap": pytest.approx(0.2)}


@pytest.mark.parametrize("kind", ["trained", "received", "global"])
def test_without_both_kinds_there_is_no_gap(kind, measured):
    assert consolidation_gap(measured((kind, 0, 0, 0, 0.5))) == {}


def test_a_summary_has_the_gap_without_a_prefix(measured, rounds):
    rows = [("global", -1, 0, 0, 0.5), ("trained", 0, 0, 0, 0.75), ("received", 0, 0, 0, 0.5)]
    found = summarise(measured(*rows), rounds, "global")
    assert found["consolidation_gap"] == 0.25
    assert "consolidation_gap" not in summarise(measured(rows[0]), rounds, "global")


def test_transfer_compares_ends_and_areas():
    frame = curves(
        *course("consolidated", [0.5, 0.7, 0.9]),
        *course("scratch", [0.1, 0.3, 0.8]),
        *course("consolidated", [0.2, 0.4, 0.3], client=1, experience=2),
        *course("scratch", [0.2, 0.4, 0.6], client=1, experience=2),
    )
    areas = [0.7 - 0.4, 0.3 - 0.4]
    expected = {"transfer_final": pytest.approx((0.1 - 0.3) / 2), "transfer_area": pytest.approx(sum(areas) / 2)}
    assert transfer(frame) == expected
    assert transfer(frame.sample(frac=1, random_state=0)) == expected, "rows may come in any order"


def test_rounds_of_an_experience_are_trainings_of_their_own():
    frame = curves(
        *course("consolidated", [0.0, 1.0]),
        *course("scratch", [0.0, 0.5]),
        *course("consolidated", [1.0, 1.0], number=1),
        *course("scratch", [0.0, 0.7], number=1),
    )
    assert transfer(frame)["transfer_final"] == pytest.approx((0.5 + 0.3) / 2)


def test_a_training_without_its_counterpart_is_not_compared():
    frame = curves(*course("consolidated", [0.5, 0.7]), *course("scratch", [0.1, 0.3]))
    more = curves(*course("consolidated", [0.0, 0.0], client=1))
    assert transfer(pd.concat([frame, more])) == transfer(frame)
    for only in ("consolidated", "scratch"):
        assert transfer(frame[frame["training"] == only]) == {}
    assert transfer(frame[:0]) == {}
    assert transfer(pd.concat([frame[frame["training"] == "scratch"], more])) == {}

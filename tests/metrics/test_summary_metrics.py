"""Costs, and the summary of a whole run."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.communication import bytes_to_accuracy, costs, cumulative_bytes
from metrics.summary import over_experiences, summarise

R = [[0.6, 0.1], [0.2, 0.8]]  # A = 0.6, 0.5


def test_costs_are_sums_and_a_refused_upload_was_sent_too(rounds):
    assert costs(rounds) == {
        "bytes_up": 408,
        "bytes_down": 1000,
        "samples": 70,
        "steps": 7,
        "client_seconds": 8.0,
        "simulated_seconds": 3.0 + 2.0 + 1.5,
        "refused": 1,
    }


def test_cumulative_bytes_are_up_and_down_by_round(rounds):
    assert cumulative_bytes(rounds).to_dict() == {(0, 0): 600, (1, 0): 1108, (1, 1): 1408}


@pytest.mark.parametrize(("target", "expected"), [(0.0, 600), (0.6, 600), (0.65, 1408), (0.9, None)])
def test_bytes_to_accuracy_end_when_the_average_first_reaches_it(rounds, target, expected):
    assert bytes_to_accuracy(np.array([[0.6, 0.1], [0.6, 0.8]]), rounds, target) == expected


def test_summary_has_every_metric_of_the_main_model_without_prefix(global_model, rounds):
    assert summarise(global_model(R, [0.05, 0.05]), rounds, "global") == pytest.approx(
        {
            "average_incremental_accuracy": 0.55,
            "backward_transfer": -0.4,
            "bytes_down": 1000,
            "bytes_up": 408,
            "client_seconds": 8,
            "final_average_accuracy": 0.5,
            "forgetting": 0.4,
            "forward_transfer": 0.05,
            "learning_accuracy": 0.7,
            "refused": 1,
            "samples": 70,
            "simulated_seconds": 6.5,
            "steps": 7,
        }
    )


def test_summary_prefixes_the_other_kinds_of_model(global_model, measured, rounds):
    frame = pd.concat([global_model(R), measured(("received", 0, 0, 0, 0.4), ("received", 0, 1, 1, 0.5))])
    summary = summarise(frame, rounds, "global")
    assert summary["learning_accuracy"] == pytest.approx(0.7)
    assert summary["received.learning_accuracy"] == pytest.approx(0.45)
    assert "received.final_average_accuracy" not in summary, "nobody tested experience 0 in the end"
    assert summary["personalisation_mean"] == 0.5


def test_summary_leaves_out_what_is_not_defined(global_model, rounds):
    summary = summarise(global_model([[0.6]], [0.1]), rounds, "global")
    assert not {"forgetting", "backward_transfer", "forward_transfer"} & set(summary)
    assert summary["final_average_accuracy"] == 0.6


def test_summary_of_an_untrained_run_is_its_costs(measured, rounds):
    assert summarise(measured(("global", -1, -1, 0, 0.1)), rounds.head(0), "global") == costs(rounds.head(0))


def test_summary_is_sorted_json_with_whole_counts(global_model, rounds):
    summary = summarise(global_model(R), rounds, "global")
    assert list(summary) == sorted(summary)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    counts = {name for name, value in summary.items() if type(value) is int}
    assert counts == {"bytes_up", "bytes_down", "samples", "steps", "refused"}


@settings(deadline=None, max_examples=20)  # each example groups whole frames
@given(st.permutations(range(6)), st.randoms(use_true_random=False))
def test_neither_the_clients_names_nor_the_order_of_rows_matter(measured, rounds, names, random):
    kinds, cells = ("trained", "received", "personal"), [(a, b) for a in (-1, 0, 1) for b in (0, 1)]
    rows = [(kind, client, *cell, random.random()) for kind in kinds for client in range(6) for cell in cells]
    renamed = [(kind, names[client], *rest) for kind, client, *rest in rows]
    random.shuffle(renamed)
    assert summarise(measured(*renamed), rounds, "personal") == summarise(measured(*rows), rounds, "personal")


def test_over_experiences_shows_each_as_it_ended(global_model, rounds):
    course = over_experiences(global_model(R), rounds, "global")
    expected = {
        "experience": [0, 1],
        "average_accuracy": [0.6, 0.5],
        "current_accuracy": [0.6, 0.8],
        "forgetting": [np.nan, 0.4],
        "cumulative_bytes": [600, 1408],
    }
    pd.testing.assert_frame_equal(course, pd.DataFrame(expected))

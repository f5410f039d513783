"""Retention and personalisation: what each client keeps, and gets."""

from __future__ import annotations

import pytest

from metrics.personalisation import personalisation
from metrics.retention import retention


def test_retention_compares_clients_over_time_and_over_fusion(measured):
    frame = measured(
        ("trained", 0, 0, 0, 0.8), ("trained", 0, 1, 0, 0.4), ("trained", 0, 1, 1, 0.5), ("received", 0, 1, 1, 0.4),
        ("trained", 1, 0, 0, 0.5), ("trained", 1, 1, 0, 0.5), ("trained", 1, 1, 1, 1.0), ("received", 1, 1, 1, 0.6),
        ("global", -1, 1, 0, 0.1), ("global", -1, 1, 1, 0.1),
    )  # fmt: skip
    assert retention(frame, "global") == pytest.approx(
        {
            "temporal_retention": (0.4 / 0.8 + 0.5 / 0.5) / 2,
            "temporal_retention_clients": 2,
            "temporal_retention_denominator": (0.8 + 0.5) / 2,
            "spatial_retention": (0.4 / 0.5 + 0.6 / 1.0) / 2,
            "spatial_retention_clients": 2,
            "spatial_retention_denominator": (0.5 + 1.0) / 2,
        }
    )


def test_a_client_that_knew_nothing_counts_in_the_denominator_only(measured):
    frame = measured(
        ("trained", 0, 0, 0, 0.8), ("trained", 0, 1, 0, 0.4),
        ("trained", 1, 0, 0, 0.0), ("trained", 1, 1, 0, 0.5),
        ("trained", 2, 0, 0, 0.4),  # did not take part in the last experience
    )  # fmt: skip
    found = retention(frame, "global")
    assert found["temporal_retention"] == pytest.approx(0.5)
    assert found["temporal_retention_clients"] == 1
    assert found["temporal_retention_denominator"] == pytest.approx(0.4)


def test_no_ratio_where_every_denominator_is_zero(measured):
    frame = measured(("trained", 0, 0, 0, 0.0), ("received", 0, 0, 0, 0.5))
    found = retention(frame, "global")
    assert found["spatial_retention_clients"] == 0
    assert found["spatial_retention_denominator"] == 0
    assert "spatial_retention" not in found


def test_without_fusion_the_own_model_stands_for_both(measured):
    frame = measured(("personal", 0, 0, 0, 0.8), ("personal", 0, 1, 0, 0.2), ("personal", 0, 1, 1, 0.9))
    found = retention(frame, "personal")
    assert (found["temporal_retention"], found["spatial_retention"]) == pytest.approx((0.25, 1))


def test_a_model_for_all_retains_for_nobody_in_particular(measured):
    frame = measured(("global", -1, 0, 0, 0.8))
    assert retention(frame, "global") == {} == personalisation(frame, "global")


def test_personalisation_is_over_clients_of_their_final_average_accuracy(measured):
    frame = measured(
        ("personal", 0, 0, 0, 1.0), ("personal", 0, 1, 0, 0.9), ("personal", 0, 1, 1, 0.7),
        ("personal", 1, 1, 0, 0.4),  # no test sample of experience 1
        ("received", 0, 1, 0, 0.5), ("received", 0, 1, 1, 0.5), ("received", 2, 1, 1, 0.5),
    )  # fmt: skip
    assert personalisation(frame, "personal") == pytest.approx(
        {
            "personalisation_mean": 0.6,
            "personalisation_std": 0.2,
            "personalisation_worst_decile": 0.4,
            "personalisation_gain": 0.8 - 0.5,
        }
    )


def test_without_a_personal_model_a_client_uses_what_it_received(measured):
    found = personalisation(measured(("received", 0, 0, 0, 0.5), ("received", 0, 0, 1, 0.0)), "global")
    assert found == {
        "personalisation_mean": 0.5,
        "personalisation_std": 0.0,
        "personalisation_worst_decile": 0.5,
    }, "experience 1 is not learnt yet, and there is nothing to gain over"


def test_a_method_whose_answer_is_a_clients_own_model_is_measured_by_that(measured):
    frame = measured(("collaborative", 0, 0, 0, 0.9), ("collaborative", 1, 0, 0, 0.5), ("small", 0, 0, 0, 0.1))
    assert personalisation(frame, "collaborative")["personalisation_mean"] == pytest.approx(0.7)


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_the_worst_tenth_is_rounded_up(measured, clients, worst):
    frame = measured(*(("personal", client, 0, 0, client / 100) for client in range(clients)))
    found = personalisation(frame, "personal")["personalisation_worst_decile"]
    assert found == pytest.approx(sum(range(worst)) / worst / 100)

"""Every formula over the accuracy matrix, on a matrix worked out by hand and by its laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metrics import accuracy

R = np.array(
    [
        [0.6, 0.2, 0.1],
        [0.8, 0.9, 0.3],
        [0.7, 0.5, 0.7],
    ]
)
UNTRAINED = np.array([0.1, 0.2, 0.05])


def matrices(smallest=2):
    sizes = st.integers(smallest, 5)
    return sizes.flatmap(lambda size: arrays(float, (size, size), elements=st.floats(0, 1)))


def test_average_accuracy_is_over_the_experiences_so_far():
    assert accuracy.average_accuracy(R, 0) == pytest.approx(0.6)
    assert accuracy.average_accuracy(R, 1) == pytest.approx((0.8 + 0.9) / 2)
    assert accuracy.final_average_accuracy(R) == pytest.approx((0.7 + 0.5 + 0.7) / 3)


def test_average_incremental_accuracy_is_the_mean_of_them():
    assert accuracy.average_incremental_accuracy(R) == pytest.approx((0.6 + 0.85 + 1.9 / 3) / 3)


def test_forgetting_is_from_the_best_ever_not_from_when_it_was_learnt():
    assert accuracy.forgetting(R) == pytest.approx(((0.8 - 0.7) + (0.9 - 0.5)) / 2)


def test_forgetting_leaves_the_last_row_out_of_the_maximum():
    assert accuracy.forgetting(np.array([[0.5, 0.0], [0.8, 0.9]])) == pytest.approx(0.5 - 0.8)


def test_forgetting_leaves_zero_shot_accuracy_out_of_the_maximum():
    assert accuracy.forgetting(np.array([[0.5, 1, 0], [0.5, 0.6, 0], [0.5, 0.6, 0]])) == pytest.approx(0)


def test_backward_transfer_is_from_when_it_was_learnt():
    assert accuracy.backward_transfer(R) == pytest.approx(((0.7 - 0.6) + (0.5 - 0.9)) / 2)


def test_forward_transfer_is_just_before_learning_over_the_untrained_model():
    assert accuracy.forward_transfer(R, UNTRAINED) == pytest.approx(((0.2 - 0.2) + (0.3 - 0.05)) / 2)


def test_learning_accuracy_is_the_diagonal():
    assert accuracy.learning_accuracy(R) == pytest.approx((0.6 + 0.9 + 0.7) / 3)


def test_one_experience_has_no_past_and_no_future():
    one = np.array([[0.7]])
    undefined = [accuracy.forgetting(one), accuracy.backward_transfer(one), accuracy.forward_transfer(one, [0.1])]
    assert np.isnan(undefined).all()
    defined = (accuracy.final_average_accuracy, accuracy.average_incremental_accuracy, accuracy.learning_accuracy)
    assert [metric(one) for metric in defined] == [0.7, 0.7, 0.7]


def test_a_cell_nobody_measured_makes_undefined_what_needs_it():
    holed = R.copy()
    holed[1, 0] = np.nan
    assert np.isnan(accuracy.forgetting(holed))
    assert accuracy.backward_transfer(holed) == accuracy.backward_transfer(R)


def test_matrix_is_the_plain_mean_over_the_clients_measured(measured):
    frame = measured(
        ("personal", 0, 0, 0, 0.2), ("personal", 1, 0, 0, 0.6), ("personal", 0, 1, 0, 0.5), ("other", 0, 1, 1, 1.0)
    )
    frame.loc[0, "samples"] = 1000  # samples are no weights
    np.testing.assert_allclose(accuracy.matrix(frame, "personal"), [[0.4, np.nan], [0.5, np.nan]])


def test_matrix_gives_back_what_was_measured(global_model):
    frame = global_model(R, UNTRAINED)
    np.testing.assert_array_equal(accuracy.matrix(frame, "global"), R)
    np.testing.assert_array_equal(accuracy.untrained(frame, "global"), UNTRAINED)


def test_a_stopped_run_is_judged_on_what_it_has_learnt(global_model):
    stopped = accuracy.matrix(global_model(R[:2], UNTRAINED), "global")
    np.testing.assert_array_equal(stopped, R[:2])
    assert accuracy.final_average_accuracy(stopped) == pytest.approx(0.85)
    assert accuracy.backward_transfer(stopped) == pytest.approx(0.8 - 0.6)
    assert accuracy.forward_transfer(stopped, UNTRAINED) == pytest.approx(0)
    assert accuracy.learning_accuracy(stopped) == pytest.approx((0.6 + 0.9) / 2)


def test_an_unknown_kind_of_model_is_named(global_model):
    with pytest.raises(ValueError, match="no model 'globl' in the accuracy matrix; did you mean global"):
        accuracy.matrix(global_model(R), "globl")


@given(matrices())
def test_what_never_falls_is_never_forgotten(R):
    assert accuracy.forgetting(np.sort(R, axis=0)) <= 0


@given(matrices())
def test_forgetting_is_lost_backward_transfer_when_learning_is_the_peak(R):
    peaked = np.minimum(R, R.diagonal())
    assert accuracy.forgetting(peaked) == -accuracy.backward_transfer(peaked)


@given(matrices())
def test_forgetting_is_at_least_the_backward_transfer_lost(R):
    assert accuracy.forgetting(R) >= -accuracy.backward_transfer(R)


@given(st.integers(2, 6), st.floats(0, 1))
def test_a_constant_matrix_has_one_accuracy_and_no_transfer(size, value):
    R = np.full((size, size), value)
    means = accuracy.final_average_accuracy(R), accuracy.average_incremental_accuracy(R), accuracy.learning_accuracy(R)
    assert means == pytest.approx((value, value, value))
    assert (accuracy.forgetting(R), accuracy.backward_transfer(R), accuracy.forward_transfer(R, R[0])) == (0, 0, 0)


@given(matrices(smallest=1))
def test_accuracies_stay_between_0_and_1(R):
    for metric in (accuracy.final_average_accuracy, accuracy.average_incremental_accuracy, accuracy.learning_accuracy):
        assert 0 <= metric(R) <= 1

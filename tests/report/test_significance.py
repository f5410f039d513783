"""Paired differences over seeds: scipy's p where a test can say something, and the reason where it cannot."""

from __future__ import annotations

from math import isnan

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from report.significance import paired


def frame(**methods: dict[int, float]) -> pd.DataFrame:
    """Accuracies by method and seed on stream `digits`."""
    rows = [
        {"stream": "digits", "method": method, "seed": seed, "accuracy": value}
        for method, runs in methods.items()
        for seed, value in runs.items()
    ]
    return pd.DataFrame(rows)


def numbered(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_p_is_that_of_the_one_sample_test_of_the_differences():
    a, b = (0.9, 0.8, 0.85), (0.7, 0.75, 0.7)
    found = paired(frame(a=numbered(*a), b=numbered(*b)), "digits", "accuracy", "a", "b")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-9)
    assert found.difference == pytest.approx(0.4 / 3)
    assert found.std == pytest.approx(stats.tstd(differences))
    assert found.words == f"p = {found.p:.3f}, 3 seeds"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_the_other_way_round_only_the_sign_changes(values):
    runs = frame(a=numbered(*(x for x, _ in values)), b=numbered(*(y for _, y in values)))
    one, other = (paired(runs, "digits", "accuracy", *names) for names in ("ab", "ba"))
    assert one.difference == -other.difference
    assert one.seeds == other.seeds == len(values)
    assert (one.p is None) == (other.p is None) and (one.p is None or one.p == pytest.approx(other.p))


def test_seeds_are_paired_by_number_and_those_of_one_method_only_are_left_out():
    runs = frame(a={2: 0.5, 0: 0.1, 1: 0.4, 9: 1.0}, b={0: 0.1, 1: 0.3, 2: 0.2, 7: 0.0})
    found = paired(runs, "digits", "accuracy", "a", "b")
    assert found.seeds == 3
    assert found.difference == pytest.approx(0.4 / 3)


@pytest.mark.parametrize("seeds", [1, 2])
def test_two_seeds_or_fewer_have_no_p(seeds):
    runs = frame(a=numbered(*[0.9, 0.7][:seeds]), b=numbered(*[0.5, 0.6][:seeds]))
    found = paired(runs, "digits", "accuracy", "a", "b")
    assert found.p is None
    assert isnan(found.std) == (seeds == 1)
    assert "too few" in found.words and str(seeds) in found.words


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.7), (0.5, 0.7, 0.1)])
def test_the_same_values_are_called_identical(values):
    found = paired(frame(a=numbered(*values), b=numbered(*values)), "digits", "accuracy", "a", "b")
    assert found.identical and found.p is None and found.words.startswith("identical")


def test_a_difference_that_no_seed_changes_has_no_p():
    """Bytes: a t-test would divide by a spread of zero."""
    found = paired(frame(a=numbered(3, 3, 3), b=numbered(1, 1, 1)), "digits", "accuracy", "a", "b")
    assert (found.difference, found.std, found.p) == (2, 0, None)
    assert not found.identical and "constant difference" in found.words


def test_opposite_differences_are_not_identical():
    found = paired(frame(a=numbered(0.5, 0.7), b=numbered(0.7, 0.5)), "digits", "accuracy", "a", "b")
    assert found.difference == 0 and not found.identical


@pytest.mark.parametrize("change", [{"stream": "other"}, {"metric": "unknown"}, {"b": "nobody"}])
def test_nothing_in_common_is_said(change):
    runs = frame(a=numbered(0.5, 0.7), b=numbered(0.7, 0.5))
    found = paired(runs, **({"stream": "digits", "metric": "accuracy", "a": "a", "b": "b"} | change))
    assert found.seeds == 0 and isnan(found.difference) and found.p is None
    assert found.words == "no seed in common"

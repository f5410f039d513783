"""Who trains which blocks: the cost model, the utility and the selection, by closed forms and by trying all subsets."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from methods.allocation import budgets, choose, norm, select, skew, utility
from methods.cost import Cost
from methods.training import cuts, minibatches
from randomness import generator


def subsets(count: int):
    return (chosen for size in range(1, count + 1) for chosen in combinations(range(count), size))


@st.composite
def problems(draw):
    """Utilities, a cost and budgets."""
    units = draw(st.integers(1, 8))
    places = sorted(draw(st.sets(st.integers(0, 20), min_size=units, max_size=units)))
    price = Cost(21, tuple(places), draw(st.floats(0, 10)), draw(st.floats(0, 10)))
    u = draw(st.lists(st.floats(0, 2), min_size=units, max_size=units))
    everything, most = price.all
    return u, price, draw(st.floats(0, 1.1)) * everything, draw(st.floats(0.01, 1.1)) * most + 0.1


@given(problems())
def test_the_selection_is_the_best_of_all_subsets_that_fit(problem):
    u, price, time, memory = problem
    fitting = [
        chosen
        for chosen in subsets(len(u))
        if price.time(chosen[0], len(chosen)) <= time and price.memory(chosen[0], len(chosen)) <= memory
    ]
    found = select(u, price, time, memory)
    if not fitting:
        assert found is None
        return
    assert found in fitting
    best = max(sum(u[k] for k in chosen) for chosen in fitting)
    assert sum(u[k] for k in found) == pytest.approx(best, abs=1e-12)


def test_the_cost_is_the_papers_sum():
    """16 blocks in all, K = 4 on every fourth place: T = forward + from the lowest up + trained."""
    price = Cost(16, (3, 7, 11, 15))
    assert price.time(0, 4) == 16 + 13 + 4
    assert price.time(3, 1) == 16 + 1 + 1  # the top block alone
    assert price.time(0, 1) == 16 + 13 + 1 > price.time(1, 3) == 16 + 9 + 3  # one low block against three high ones
    assert Cost(16, (3, 7, 11, 15), activations=10.0, state=100.0).memory(2, 2) == 5 * 10 + 2 * 100


def test_a_budget_is_a_share_of_the_median_time_of_all_blocks():
    price = Cost(8, (3, 7))
    everything, _ = price.all
    limits = budgets(price, samples=[16, 16, 16], speeds=[1.0, 0.5, 0.25], batch_size=8, kappa=1.0)
    assert limits == pytest.approx([2 * everything, everything, everything / 2])
    halved = budgets(price, samples=[16, 16, 16], speeds=[1.0, 0.5, 0.25], batch_size=8, kappa=0.5)
    assert halved == pytest.approx([each / 2 for each in limits])
    more = budgets(price, samples=[16, 16, 64], speeds=[1.0, 1.0, 1.0], batch_size=8, kappa=1.0)
    assert more == pytest.approx([everything, everything, everything / 4])


@given(st.lists(st.integers(0, 50), min_size=3, max_size=3), st.lists(st.integers(0, 50), min_size=3, max_size=3))
def test_skew_is_a_divergence_in_bits(own, other):
    p, q = torch.tensor(own), torch.tensor(other)
    assert 0 <= skew(p, q) <= 1
    assert skew(p, q) == pytest.approx(skew(q, p), abs=1e-12)
    assert skew(p, p) == 0
    assert skew(3 * p, q) == pytest.approx(skew(p, q), abs=1e-12)  # shares, not counts


def test_skew_has_its_extremes():
    assert skew(torch.tensor([5, 0, 0]), torch.tensor([0, 2, 2])) == pytest.approx(1)
    assert skew(torch.tensor([4, 4]), torch.tensor([40, 40])) == 0
    assert skew(torch.tensor([0, 0]), torch.tensor([1, 2])) == 0  # nothing is known of the client


def test_utility_goes_from_everyones_blocks_to_the_clients_own():
    own, mean, free = torch.tensor([0.0, 4.0]), torch.tensor([1.0, 0.5]), torch.zeros(2)
    assert utility(own, mean, 0.0, free, 0.0).tolist() == [1.0, 0.5]
    assert utility(own, mean, 1.0, free, 0.0).tolist() == [0.0, 1.0]
    assert utility(own, mean, 0.5, free, 0.0).tolist() == [0.5, 0.75]
    covered = utility(own, mean, 0.0, torch.tensor([9.0, 0.0]), 0.1)
    assert covered.tolist() == pytest.approx([1.01, 0.6])  # a block that nobody has yet is worth more
    assert norm(torch.zeros(3)).tolist() == [0, 0, 0]


def test_rules_differ_in_what_they_look_at():
    price, draw = Cost(12, (2, 5, 8, 11)), generator(0, "rule")
    everything, most = price.all
    u = torch.tensor([0.9, 0.1, 0.5, 0.2])

    def blocks(rule, time=everything):
        return choose(rule, u, 0.0, price, time, most, draw).blocks

    assert blocks("all", time=0) == blocks("dynamic") == blocks("compute") == (0, 1, 2, 3)
    assert blocks("data", time=0) == (0, 2)  # the better half, whatever it costs
    tight = price.time(2, 2)
    assert blocks("compute", tight) == (2, 3)
    assert blocks("dynamic", price.time(0, 1)) == (0,)  # worth more than all that fits above it
    assert {blocks("random", price.time(1, 2)) for _ in range(60)} == {(1, 2), (1, 3), (2, 3)}


def test_where_nothing_fits_the_top_block_is_trained_and_said_so():
    found = choose("dynamic", torch.ones(2), 0.25, Cost(4, (1, 3)), 1.0, 1e9, generator(0))
    assert found.blocks == (1,)
    assert not found.fits
    assert found.time > found.time_budget


@given(st.integers(1, 300), st.integers(2, 40))
def test_minibatches_are_counted_as_they_are_made(count, size):
    assert minibatches(count, size) == len(cuts(count, size)) - 1


@given(st.lists(st.floats(0.1, 2.0), min_size=1, max_size=9), st.integers(1, 100))
def test_the_median_client_can_train_all_blocks(speeds, samples):
    """Its budget is the time of all blocks, but for rounding, which must not cost it one."""
    price, speeds = Cost(9, (2, 5, 8)), sorted(speeds)
    limits = budgets(price, [samples] * len(speeds), speeds, 8, 1.0)
    for limit in limits[len(speeds) // 2 :]:
        assert select([1.0] * 3, price, limit, price.all[1]) == (0, 1, 2)

"""Devices that come to the centre one after another: one in each experience, with classes of its own."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from errors import InputError
from streams import scenario
from streams.parameters import StreamParameters
from streams.plan import NEVER
from streams.stream import build


def about(**others) -> StreamParameters:
    base = {"source": "digits", "scenario": "self-centred", "arrival": "round-robin", "clients": 3, "experiences": 6}
    return StreamParameters(**base | others)


def visits(plan) -> list[list[int]]:
    """Who meets a class in each experience."""
    return [[i for i in range(plan.clients) if plan.within(i, t).any()] for t in range(plan.experiences)]


settings = st.fixed_dictionaries(
    {
        "arrival": st.sampled_from(["round-robin", "random"]),
        "order": st.sampled_from(["shared", "own"]),
        "clients": st.integers(1, 5),
        "more": st.integers(0, 6),
        "seed": st.integers(0, 10**6),
    }
)


@given(settings)
def test_one_client_comes_in_every_experience_and_each_as_often_as_in_turn(drawn):
    more, clients = drawn.pop("more"), drawn["clients"]
    found = visits(scenario.plan(about(**drawn, experiences=clients + more), classes=60))
    assert all(len(there) == 1 for there in found)
    turns = [there[0] for there in found]
    in_turn = [t % clients for t in range(clients + more)]
    assert Counter(turns) == Counter(in_turn)
    assert drawn["arrival"] == "random" or turns == in_turn


@given(settings)
def test_a_client_meets_each_of_its_classes_once_and_nobody_else_does(drawn):
    more, clients = drawn.pop("more"), drawn["clients"]
    plan = scenario.plan(about(**drawn, experiences=clients + more), classes=60)
    meets = plan.home != NEVER  # (clients, classes)
    owners = meets.sum(axis=0)
    assert (owners[owners > 1] == clients).all(), "what is left over is everybody's"
    assert (owners > 1).sum() in (0, 60 % clients, 60)
    assert (owners >= 1).all()
    share = 60 // clients
    assert all((meets[i] & (owners == 1)).sum() == share for i in range(clients)) or clients == 1
    for client in range(clients):
        sizes = np.bincount(plan.home[client][meets[client]], minlength=clients + more)
        assert np.ptp(sizes[sizes > 0]) <= 1, "its visits bring as many classes each"


def test_random_arrival_is_drawn_from_the_seed():
    def order(seed):
        return [there[0] for there in visits(scenario.plan(about(arrival="random", experiences=9, seed=seed), 10))]

    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(6)}) > 3
    assert any(order(seed) != [t % 3 for t in range(9)] for seed in range(6))


@pytest.mark.parametrize("arrival", ["round-robin", "random"])
def test_a_built_stream_has_samples_for_the_client_that_comes_and_for_nobody_else(arrival, tmp_path):
    parameters = about(arrival=arrival, partition={"kind": "iid"}, public=0.2)
    stream = build("devices", parameters, tmp_path)
    owner: dict[int, set[int]] = {}
    for t in range(stream.experiences):
        sizes = [len(stream.train(i, t)) for i in range(stream.clients)]
        (there,) = np.flatnonzero(sizes)
        for rows in (stream.train(there, t), stream.test(there, t)):
            assert set(stream.labels_of(rows)) == set(stream.classes_of(there, t)) != set()
        for label in stream.classes_of(there, t):
            owner.setdefault(label, set()).add(there)
        assert all(not stream.classes_of(i, t) for i in range(stream.clients) if i != there)
    assert sorted(map(len, owner.values())) == [1] * 9 + [3], "nine private classes, and one that is left over"
    assert build("again", parameters, tmp_path).digest == stream.digest


def test_a_single_device_is_the_class_incremental_stream():
    alone = scenario.plan(about(clients=1, experiences=5), 10)
    plain = scenario.plan(StreamParameters(source="digits", clients=1, experiences=5), 10)
    assert np.array_equal(alone.home, plain.home)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"scenario": "class-incremental"}, "arrival round-robin is for scenario 'self-centred' only"),
        ({"arrival": "random", "scenario": "blurry"}, "arrival random is for scenario 'self-centred' only"),
        ({"lag": 0.5}, "arrival round-robin says who is there when: it goes with neither growth nor lag"),
        ({"growth": {"initial": 1, "join": 1, "leave": 0}}, "it goes with neither growth nor lag"),
        ({"experiences": 2}, "3 clients need as many experiences or more (got experiences 2)"),
        ({"arrival": "async"}, "'together', 'round-robin' or 'random'"),
    ],
)
def test_what_does_not_go_with_an_arrival_is_refused(wrong, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        about(**wrong)


def test_more_visits_than_classes_are_refused():
    with pytest.raises(InputError) as caught:
        scenario.plan(about(clients=2, experiences=14), 10)
    said = str(caught.value)
    assert said.startswith("experiences 14 is too many: a client that arrives in 7 of them needs as many classes")
    assert "there are 5" in said and "\n" not in said

"""Who is where, when: clients that lag behind, and the classes among which a sample is predicted."""

from __future__ import annotations

import pytest

from errors import InputError
from methods import CENTRE, Moment


@pytest.fixture
def late(laboratory):
    """Three clients, two experiences of five rounds, lags up to 0.9 of an experience."""
    return laboratory("fedavg", "late", sets=["train.rounds=5"]).site


def moments(site):
    for experience in range(site.stream.experiences):
        for number in range(site.rounds_in(experience)):
            yield Moment(experience, number)


def test_every_client_plays_all_its_rounds_once_and_in_order(late):
    all_rounds = [Moment(experience, number) for experience in range(2) for number in range(5)]
    for client in range(3):
        own = [late.own(client, moment) for moment in moments(late)]
        assert [moment for moment in own if moment is not None] == all_rounds


def test_a_client_is_behind_by_its_lag(late):
    lags = [late.lag(client) for client in range(3)]
    assert min(lags) == 0 and max(lags) > 0
    assert lags == [round(late.stream.lag(client) * 5) for client in range(3)]
    for client, lag in enumerate(lags):
        assert [late.own(client, Moment(0, number)) for number in range(lag)] == [None] * lag
        assert late.own(client, Moment(0, lag)) == (0, 0)


def test_clients_are_at_different_experiences_in_the_same_round(late):
    together = [
        {late.own(client, moment).experience for client in range(3)}
        for moment in moments(late)
        if all(late.own(client, moment) for client in range(3))
    ]
    assert {0, 1} in together


def test_the_last_experience_waits_for_the_last_client_and_only_as_long(late):
    assert late.rounds_in(0) == 5
    assert late.rounds_in(1) == 5 + max(late.lag(client) for client in range(3))


def test_a_client_that_lags_trains_on_its_own_experience(laboratory):
    lab = laboratory("fedavg", "late", sets=["train.rounds=5"]).play()
    for moment, trained, _ in lab.rounds:
        for each in trained:
            own = lab.site.own(each.client, moment)
            assert each.samples == len(lab.site.stream.train(each.client, own.experience))


def test_in_step_everyone_is_where_the_federation_is(laboratory):
    site = laboratory("fedavg").site
    for moment in moments(site):
        assert all(site.own(client, moment) == moment for client in (CENTRE, 0, 1, 2))


def test_the_centre_never_lags(late):
    assert late.own(CENTRE, Moment(0, 0)) == (0, 0)


def test_candidates_are_the_classes_met_or_those_of_the_task(laboratory):
    known, told = laboratory("fedavg").site, laboratory("fedavg", "tasks").site
    for client in (0, 1, 2):
        assert known.candidates(client, 0, 2) == known.stream.seen(client, 2)
        assert known.candidates(client, 2, 0) == known.stream.seen(client, 2)
        for trained in range(3):
            for tested in range(3):
                assert told.candidates(client, trained, tested) == told.stream.classes_of(client, tested)
    assert known.candidates(CENTRE, 1, 0) == known.stream.seen_by_all(1)
    assert told.candidates(CENTRE, 2, 0) == told.stream.classes_in(0)


def test_a_task_aware_client_keeps_its_heads_apart(laboratory):
    lab = laboratory("fedavg", "tasks")
    seen = []
    method, train = lab.site.method, lab.site.method.train
    method.train = lambda client: seen.append(client) or train(client)
    lab.play()
    for client in seen:
        experience = client.moment.experience
        own = [lab.site.stream.classes_of(client.id, past) for past in range(experience + 1)]
        assert client.classes == client.candidates == own[-1]
        assert client.old_heads == client.earlier == tuple(own[:-1])
        assert client.known == tuple(sorted({label for classes in own[:-1] for label in classes}))


def test_texts_are_not_augmented(laboratory):
    with pytest.raises(InputError, match=r"train\.augmentation is for images, but the inputs of stream texts are text"):
        laboratory("fedavg", "texts", sets=["train.augmentation.flip=true"])

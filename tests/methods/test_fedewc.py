"""EWC: what is consolidated when, what goes down, and the loss."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from methods import Message, State
from methods.fisher import trainable
from methods.training import cross_entropy
from tasks.store import encode

FEW = "methods.fedewc.fisher_samples=8"


def same_model(one: State, other: State) -> bool:
    return encode(one.part("model"), {}) == encode(other.part("model"), {})


def test_the_first_experience_is_fedavg(laboratory):
    fedewc, fedavg = (laboratory(name).play(until=(1, 0)) for name in ("fedewc", "fedavg"))
    assert same_model(fedewc.server, fedavg.server)
    assert same_model(laboratory("fedewc", "short").play().server, laboratory("fedavg", "short").play().server)


@pytest.mark.parametrize("sets", [(), ("train.clients_per_round=1",)])
def test_without_pull_and_with_all_classes_it_is_fedavg(sets, laboratory, played):
    free = laboratory("fedewc", sets=["methods.fedewc.strength=0", "methods.fedewc.compete=seen", FEW, *sets]).play()
    assert same_model(free.server, played("fedavg", sets=sets).server)


@pytest.mark.parametrize("decay", [1.0, 0.25])
def test_information_adds_up_when_an_experience_ends(decay, laboratory):
    """F* <- gamma F* + F, F the mean of the clients' by samples; theta* is the model."""
    lab, expected = laboratory("fedewc", sets=[f"methods.fedewc.decay={decay}", FEW]), {}
    while not lab.over:
        experience = lab.moment.experience
        lab.play(until=(experience, 1)).play_round()  # the second and last round
        parts = [
            (each.samples, State(lab.site.store.get(each.upload).tensors).part("new")) for each in lab.rounds[-1][1]
        ]
        if experience < 2:
            total = sum(samples for samples, _ in parts)
            for name in trainable(lab.site.method.setting.load(lab.server.part("model"))):
                mean = sum(samples / total * part[name] for samples, part in parts)
                expected[name] = decay * expected.get(name, 0) + mean
        assert lab.server.part("fisher").keys() == expected.keys()
        for name, tensor in lab.server.part("fisher").items():
            torch.testing.assert_close(tensor, expected[name])
        assert not lab.server.part("new")
        assert encode(lab.server.part("previous"), {}) == encode(lab.server.part("model"), {})


def test_information_crosses_once_a_client_and_experience(laboratory):
    lab, down, up = (
        laboratory("fedewc", sets=["train.rounds=3", "train.clients_per_round=2", FEW]).play(),
        Counter(),
        [],
    )
    for moment, trained, _ in lab.rounds:
        for each in trained:
            sent = State(lab.site.store.get(each.broadcast).tensors)
            down[each.client, moment.experience] += bool(sent.part("fisher"))
            assert bool(sent.part("previous")) == (bool(sent.part("fisher")) and moment.round > 0)
            if State(lab.site.store.get(each.upload).tensors).part("new"):
                up.append(moment)
    assert {moment for moment, _, _ in lab.rounds if moment.round == 2 and moment.experience < 2} == set(up)
    assert {count for (_, experience), count in down.items() if experience > 0} == {1}
    assert not any(count for (_, experience), count in down.items() if experience == 0)


@pytest.mark.parametrize("compete", ["current", "seen"])
@pytest.mark.parametrize("until", [(1, 0), (2, 1)])
def test_the_loss_is_the_papers(until, compete, laboratory, client_of):
    strength = 0.01  # so weak that it is nowhere limited
    lab = laboratory("fedewc", sets=[f"methods.fedewc.strength={strength}", f"methods.fedewc.compete={compete}", FEW])
    client = client_of(lab.play(until=until), 0)
    method, batch = lab.site.method, client.data.batch(torch.arange(6))
    model, kept = method.setting.load(client.received.part("model")), State(lab.server.tensors)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    fisher, anchor = kept.part("fisher"), kept.part("previous")
    assert strength * max(each.max() for each in fisher.values()) < 1 / method.setting.train.learning_rate
    by_hand = cross_entropy(model(batch.inputs), batch.labels, client.classes if compete == "current" else client.seen)
    for name, parameter in model.named_parameters():
        by_hand = by_hand + strength / 2 * (fisher[name] * (parameter - anchor[name]).square()).sum()
    torch.testing.assert_close(method.objective(client)(model, batch), by_hand)


def test_a_stronger_pull_leaves_less_way(laboratory):
    """The way from the anchor, each parameter's by what it mattered."""
    ways = []
    for strength in (0, 10, 1000):
        lab = laboratory("fedewc", sets=[f"methods.fedewc.strength={strength}"]).play(until=(1, 1))
        fisher, anchor, model = (lab.server.part(part) for part in ("fisher", "previous", "model"))
        ways.append(sum((each * (model[name] - anchor[name]).square()).sum().item() for name, each in fisher.items()))
    assert ways[0] > ways[1] > ways[2] > 0


def test_negative_information_is_refused(laboratory):
    """It would push instead of pull."""
    lab = laboratory("fedewc", sets=[FEW]).play(until=(0, 1))
    honest = lab.site.store.get(lab.train()[0].upload).tensors
    lab.site.method.check(Message(honest))
    with pytest.raises(ValueError, match=r"at least 0, that of head\.bias is not"):
        lab.site.method.check(Message({**honest, "new.head.bias": -honest["new.head.bias"] - 1}))

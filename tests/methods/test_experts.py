"""Devices and a centre: where experts start, in which order they are added, and the simplest ways of adding them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import methods
from methods import Message, Moment, State
from methods.averaging import LEAST
from methods.experts import Experts
from methods.state import prefixed
from methods.surrogate import mask
from models.experts import Averaged, LeastEntropy
from randomness import generator
from tasks.fusion import uploads_of
from tasks.store import encode

EXPERTS = [name for name in methods.names() if issubclass(methods.get(name), Experts)]
CLASSES = 4


@dataclass(frozen=True)
class Upload:
    client: int
    samples: int
    message: Message


def same(one, other) -> bool:
    return encode(one, {}) == encode(other, {})


def last(states) -> State:
    *_, end = states
    return end


@pytest.fixture
def followed(laboratory):
    """Plays an experiment; keeps all uploads and broadcasts (`experts`, `starts`) and the centre's `models` so far."""

    def play(method: str, stream: str = "digits", *sets: str):
        lab = laboratory(method, stream, sets=list(sets))
        lab.experts, lab.starts, lab.models = {}, [], [lab.server.part("model")]
        remember = lab.site.method.remember

        def noted(before, after, message):
            state = remember(before, after, message)
            lab.models.append(state.part("model"))
            return state

        lab.site.method.remember = noted
        while not lab.over:
            added, moment, trained = lab.server.values["added"], lab.moment, lab.train()
            for each in trained:
                start = lab.site.store.get(each.broadcast)
                lab.experts[moment, each.client] = State(lab.site.store.get(each.upload).tensors)
                lab.starts.append((moment, each.client, added, State(start.tensors).part("model")))
            verdicts = lab.admit(lab.claims(trained))
            lab.advance(trained, verdicts, lab.fuse(verdicts))
        return lab

    return play


# arrival and start


@pytest.mark.parametrize("method", EXPERTS)
def test_every_expert_is_added_once_and_its_classes_are_seen(method, followed):
    lab = followed(method, "digits", "train.clients_per_round=2", "train.rounds=1")
    assert lab.server.values["added"] == len(lab.experts) == 6
    seen = torch.stack([each.tensors["classes"] for each in lab.experts.values()]).any(dim=0)
    assert torch.equal(lab.server.tensors["seen"], seen)
    for (moment, client), each in lab.experts.items():
        assert each.tensors["classes"].nonzero().flatten().tolist() == list(lab.site.classes(client, moment.experience))


def test_experts_that_arrive_together_come_in_an_order_that_is_drawn(followed):
    lab = followed("naive", "digits", "train.rounds=4")
    lasts = set()
    for moment, trained, _ in lab.rounds:
        order = torch.randperm(3, generator=generator(0, "arrival", *moment)).tolist()
        lasts.add(order[-1])
        number = 3 * [each[0] for each in lab.rounds].index(moment)
        for place, client in enumerate(order):
            assert same(lab.models[number + place + 1], lab.experts[moment, trained[client].client].part("model"))
    assert lasts == {0, 1, 2}


def test_a_device_starts_from_the_consolidated_model(followed):
    lab = followed("dac", "devices", "train.rounds=2", "methods.dac.stale=0")
    assert [added for _, _, added, _ in lab.starts] == list(range(6))
    for _, _, added, start in lab.starts:
        assert same(start, lab.models[added])
    assert not any(name.startswith("past") for name in lab.server.tensors)


def test_a_stale_device_starts_from_an_earlier_model_but_never_an_older_one_than_there_is(followed):
    stale = 2
    lab = followed("naive", "alone", "train.rounds=5", f"methods.naive.stale={stale}")
    ages = []
    for _, _, added, start in lab.starts:
        (age,) = [age for age in range(added + 1) if same(start, lab.models[added - age])]
        assert age <= min(stale, max(0, added - 1)), "the untrained model is no expert's start once there is another"
        ages.append(age)
    assert set(ages[3:]) == {0, 1, 2}


def test_the_models_that_are_kept_for_stale_devices_are_the_last_ones(followed):
    lab = followed("averaging", "digits", "train.rounds=1", "methods.averaging.stale=3")
    for age in (1, 2, 3):
        assert same(lab.server.part(f"past-{age}"), lab.models[-1 - age])
    assert not lab.server.part("past-4")


@pytest.mark.parametrize("method", ["dac", "dmc", "naive", "averaging"])
def test_where_an_expert_started_changes_nothing_of_the_rule(method, laboratory):
    """A server that keeps older models adds the same experts to the same model."""
    sets = ["train.rounds=1", f"methods.{method}.stale=2"]
    lab = laboratory(method, "digits", sets=sets).play(until=(1, 0))
    plain = laboratory(method, "digits", sets=["train.rounds=1", f"methods.{method}.stale=0"]).site.method
    uploads, moment = uploads_of(lab.site, lab.admit(lab.claims(lab.train()))), lab.moment
    bare = State({n: t for n, t in lab.server.tensors.items() if not n.startswith("past")}, lab.server.values)
    one = last(lab.site.method.fuse_on("all", lab.server, uploads, moment, None))
    other = last(plain.fuse_on("all", bare, uploads, moment, None))
    assert len(one.tensors) > len(other.tensors)
    assert same(one.part("model"), other.part("model"))


@pytest.mark.parametrize("method", EXPERTS)
def test_an_expert_without_classes_is_refused(method, laboratory):
    lab = laboratory(method, "devices")
    (each,) = lab.train()
    tensors = lab.site.store.get(each.upload).tensors
    lab.site.method.check(Message(tensors))
    with pytest.raises(ValueError, match="classes names none"):
        lab.site.method.check(Message({**tensors, "classes": torch.zeros_like(tensors["classes"])}))


# what the start is worth


def test_trainings_from_the_model_and_from_scratch_are_watched_from_the_second_arrival_on(followed):
    lab = followed("dac", "devices", "train.rounds=1", "train.local_epochs=3", "methods.dac.transfer=true")
    curves = [trained[0].curves for _, trained, _ in lab.rounds]
    assert curves[0] == []
    for t, rows in enumerate(curves[1:], 1):
        expected = [("consolidated", epoch) for epoch in range(4)] + [("scratch", epoch) for epoch in range(4)]
        assert [(row["training"], row["epoch"]) for row in rows] == expected
        assert {(row["client"], row["experience"], row["round"]) for row in rows} == {(t, t, 0)}
        samples = len(lab.site.test(t, t))
        assert all(row["samples"] == samples and 0 <= row["accuracy"] <= 1 for row in rows)
        end = [row["accuracy"] for row in rows if (row["training"], row["epoch"]) == ("consolidated", 3)]
        (own,) = [row for row in lab.rounds[t][1][0].accuracies if row["tested"] == t]
        assert end == [own["accuracy"]], "the last point of the curve is the expert"


@pytest.mark.parametrize("network", [[], ["model.name=cnn4", "model.width=4", "model.norm=batch"]])
def test_watching_changes_nothing_of_the_states(network, laboratory):
    labs = [
        laboratory("dac", "devices", sets=[*network, "train.rounds=1", f"methods.dac.transfer={each}"]).play()
        for each in ("true", "false")
    ]
    assert labs[0].digest == labs[1].digest
    assert labs[0].rows == labs[1].rows and labs[0].bytes == labs[1].bytes
    assert any(each.curves for _, trained, _ in labs[0].rounds for each in trained)
    assert not any(each.curves for _, trained, _ in labs[1].rounds for each in trained)


@pytest.mark.parametrize("method", ["dac", "naive", "ensemble"])
def test_who_is_told_the_experience_is_right_at_least_as_often(method, played):
    """Both are one model; fewer classes compete."""
    rows = played(method, "devices").rows
    found = {
        kind: {(row["trained"], row["tested"]): row["accuracy"] for row in rows if row["model"] == kind}
        for kind in ("global", "multi-head")
    }
    assert found["global"].keys() == found["multi-head"].keys()
    gains = [found["multi-head"][cell] - accuracy for cell, accuracy in found["global"].items()]
    assert min(gains) >= 0 and max(gains) > 0.05


# naive


def test_naive_has_the_last_expert(followed):
    lab = followed("naive", "devices", "train.rounds=1")
    for number, (moment, trained, _) in enumerate(lab.rounds, 1):
        assert same(lab.models[number], lab.experts[moment, trained[0].client].part("model"))


# averaging


@pytest.mark.parametrize("network", [[], ["model.name=cnn4", "model.width=4", "model.norm=batch"]])
def test_the_average_is_the_plain_mean_of_all_experts(network, followed):
    lab = followed("averaging", "devices", "train.rounds=2", *network)
    experts = [each.part("model") for each in lab.experts.values()]
    assert len(experts) == 6
    for count in range(1, 7):
        for name, found in lab.models[count].items():
            each = torch.stack([expert[name] for expert in experts[:count]])
            expected = each.double().mean(dim=0).float() if found.is_floating_point() else each.amax(dim=0)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def by_hand(lab, numbers, informations) -> list[Upload]:
    """Experts whose parameters are all one number, each with Fisher information by half of every tensor."""
    uploads = []
    for client, (number, halves) in enumerate(zip(numbers, informations, strict=True)):
        model = {name: torch.full_like(each, number) for name, each in lab.server.part("model").items()}
        fisher = {name: torch.full_like(each, LEAST) for name, each in model.items()}
        for each in fisher.values():
            each.view(-1)[: each.numel() // 2] += halves[0]
            each.view(-1)[each.numel() // 2 :] += halves[1]
        tensors = {**prefixed("model", model), **prefixed("fisher", fisher), "classes": mask([client], 10)}
        uploads.append(Upload(client, 1, Message(tensors)))
    return uploads


def test_with_information_each_parameter_is_its_experts_who_know(laboratory):
    lab = laboratory("averaging", "devices", sets=["methods.averaging.weights=fisher"])
    method = lab.site.method
    numbers, informations = (1.0, 5.0, 2.0), ((3.0, 0.0), (1.0, 0.0), (0.0, 7.0))
    state = lab.server
    for number, upload in enumerate(by_hand(lab, numbers, informations)):  # one a round: the order is known
        state = last(method.fuse_on("all", state, [upload], Moment(number, 0), None))
    for name, each in state.part("model").items():
        half = each.numel() // 2
        known = [sum(f[side] * n for f, n in zip(informations, numbers, strict=True)) for side in (0, 1)]
        total = [sum(f[side] for f in informations) for side in (0, 1)]
        expected = torch.full_like(each, known[0] / total[0])
        expected.view(-1)[half:] = known[1] / total[1]
        torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-5, msg=name)


def test_where_nobodys_information_says_anything_all_experts_count_alike(laboratory):
    lab = laboratory("averaging", "devices", sets=["methods.averaging.weights=fisher"])
    state = lab.server
    for number, upload in enumerate(by_hand(lab, (1.0, 2.0, 6.0), [(0.0, 0.0)] * 3)):
        state = last(lab.site.method.fuse_on("all", state, [upload], Moment(number, 0), None))
    for each in state.part("model").values():
        torch.testing.assert_close(each, torch.full_like(each, 3.0))


def test_information_is_handed_in_only_where_it_is_asked_for_and_must_be_positive(followed, laboratory):
    plain = followed("averaging", "devices", "train.rounds=1")
    assert not any(each.part("fisher") for each in plain.experts.values())
    weighted = followed("averaging", "devices", "train.rounds=1", "methods.averaging.weights=fisher")
    assert not same(weighted.server.part("model"), plain.server.part("model"))
    for each in weighted.experts.values():
        assert each.part("fisher").keys() == each.part("model").keys()
        assert all((one > 0).all() for one in each.part("fisher").values())
        assert max(one.max() for one in each.part("fisher").values()) > 1e-3
    bad = Message({**each.tensors, "fisher.head.bias": -each.tensors["fisher.head.bias"]})
    with pytest.raises(ValueError, match=r"Fisher information is above 0 \(fisher\.head\.bias holds -"):
        weighted.site.method.check(bad)


# ensembles


class Says(nn.Module):
    """The same logits for whatever comes in."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits.expand(len(inputs), -1)


def asked(kind: type[Averaged], *experts: tuple[list[float], list[int]]) -> Tensor:
    """(classes,) probabilities."""
    known = torch.stack([mask(classes, CLASSES) for _, classes in experts])
    answers = kind([Says(each) for each, _ in experts], known)(torch.zeros(3, 1)).exp()
    assert torch.equal(answers[0], answers[2])
    return answers[0]


def test_an_ensemble_averages_over_experts_what_each_says_about_its_own_classes():
    found = asked(Averaged, ([0.6, 0.2, 9.0, 9.0], [0, 1]), ([9.0, 0.1, 0.1, 9.0], [1, 2]), ([9.0, 9.0, 2.0, 9.0], [2]))
    expected = [0.75 / 3, (0.25 + 0.5) / 3, (0.5 + 1) / 3, 0]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_least_uncertain_expert_decides_alone():
    sure, unsure = ([0.95, 0.05, 1.0, 1.0], [0, 1]), ([1.0, 1.0, 0.6, 0.4], [2, 3])
    for experts in ((sure, unsure), (unsure, sure)):
        torch.testing.assert_close(asked(LeastEntropy, *experts), torch.tensor([0.95, 0.05, 0, 0]), rtol=0, atol=1e-5)
    other = ([1.0, 1.0, 0.01, 0.99], [2, 3])
    torch.testing.assert_close(asked(LeastEntropy, sure, other), torch.tensor([0, 0, 0.01, 0.99]), rtol=0, atol=1e-5)


def test_uncertainty_is_a_share_of_the_greatest_possible_one():
    """Entropies in nats: 0.61 of log 2 for two classes, 0.82 of log 4 for four; the shares say the other order."""
    two, four = ([0.7, 0.3, 1.0, 1.0], [0, 1]), ([0.02, 0.03, 0.8, 0.15], [0, 1, 2, 3])
    entropies = [-sum(p * math.log(p) for p in each) for each in ([0.7, 0.3], [0.02, 0.03, 0.8, 0.15])]
    assert entropies[0] < entropies[1] and entropies[0] / math.log(2) > entropies[1] / math.log(4)
    assert asked(LeastEntropy, two, four).argmax() == 2


def test_an_expert_of_a_single_class_never_decides_against_another():
    single, other = ([1.0, 1.0, 1.0, 1.0], [3]), ([0.52, 0.48, 1.0, 1.0], [0, 1])
    for experts in ((single, other), (other, single)):
        assert asked(LeastEntropy, *experts).argmax() == 0
    assert asked(LeastEntropy, single).argmax() == 3
    assert torch.isfinite(asked(LeastEntropy, single, single).log()).all()


@pytest.mark.parametrize("method", ["ensemble", "min_entropy"])
def test_the_centre_keeps_every_expert_and_every_device_starts_anew(method, followed):
    lab = followed(method, "digits", "train.rounds=1")
    initial = lab.site.method.setting.initial_model()
    assert all(same(start, initial) for _, _, _, start in lab.starts)
    number = 0
    for moment, trained, _ in lab.rounds:
        for place in torch.randperm(len(trained), generator=generator(0, "arrival", *moment)).tolist():
            expert = lab.experts[moment, trained[place].client]
            assert same(lab.server.part(f"expert-{number}"), expert.part("model"))
            assert torch.equal(lab.server.tensors["known"][number], expert.tensors["classes"])
            number += 1
    assert number == len(lab.server.tensors["known"]) == 9
    assert not any(each.curves for _, trained, _ in lab.rounds for each in trained)
    model = lab.site.method.predictor("global", lab.server, State(), -1)
    assert type(model) is lab.site.method.asks and len(model.networks) == 9


def test_the_two_ensembles_differ_in_nothing_but_how_they_are_asked(played):
    one, other = played("ensemble", "devices"), played("min_entropy", "devices")
    assert one.digest == other.digest and one.rows != other.rows


def test_a_stale_lwf_device_hears_of_the_classes_that_its_model_knows(followed):
    lab = followed("lwf", "devices", "train.rounds=1", "methods.lwf.stale=2")
    known = torch.stack([each.tensors["classes"] for each in lab.experts.values()]).cumsum(dim=0) > 0
    for age in (0, 1, 2):
        held = State(lab.site.method.held(lab.server, age))
        assert torch.equal(held.tensors["seen"], known[-1 - age])
        assert same(held.part("model"), lab.models[-1 - age])


def test_transfer_is_measured_before_the_model_knows_the_data(laboratory):
    lab = laboratory("naive", "devices", sets=["train.rounds=2", "methods.naive.transfer=true"]).play()
    rounds = {row["round"] for _, trained, _ in lab.rounds for each in trained for row in each.curves}
    assert rounds == {0}, "in the second round the model has seen them"

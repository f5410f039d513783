"""DER++: what is in the memory, and the loss that rehearses it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from methods.memory import Memory
from methods.training import cross_entropy
from tasks.store import encode

SMALL = "methods.fedder.budget=12"


def same_model(one, other) -> bool:
    return encode(one.part("model"), {}) == encode(other.part("model"), {})


@pytest.mark.parametrize("stream", ["digits", "own", "skewed"])
def test_with_an_empty_memory_it_is_fedavg(stream, played):
    forgetful = played("fedder", stream, sets=["methods.fedder.budget=0"])
    assert forgetful.digest == played("fedavg", stream).digest
    assert forgetful.rows == played("fedavg", stream).rows


def test_the_first_round_is_fedavg(laboratory):
    fedder, fedavg = (laboratory(name).play(until=(0, 1)) for name in ("fedder", "fedavg"))
    assert same_model(fedder.server, fedavg.server)


@pytest.mark.parametrize("sets", [(), ("train.clients_per_round=1", "train.rounds=3")])
def test_the_memory_is_a_few_different_samples_of_the_clients_own(sets, laboratory):
    lab, met = laboratory("fedder", sets=[SMALL, *sets]), {}
    while not lab.over:
        moment = lab.moment
        lab.play_round()
        for each in lab.rounds[-1][1]:
            met.setdefault(each.client, set()).add(moment.experience)
        for client, experiences in met.items():
            rows = {at: lab.site.rows(client, at) for at in experiences}
            kept, stream = Memory.of(lab.client(client)), lab.site.stream
            assert lab.client(client).values["seen"] == sum(map(len, rows.values())), "each sample passes once"
            assert len(kept) == min(12, sum(map(len, rows.values())))
            assert kept["inputs"].dtype == torch.uint8
            places = []
            for image, label, at in zip(kept["inputs"], kept["labels"], kept["experiences"].tolist(), strict=True):
                (place, *_) = [row for row in rows[at] if (stream.inputs[row] == image.numpy()).all()]
                assert stream.labels[place] == label
                places.append(place)
            assert len(set(places)) == len(places)


@pytest.mark.parametrize("refresh", [True, False])
def test_recorded_logits_are_what_the_client_answered_when_it_last_looked(refresh, laboratory):
    """After its last training in an experience (refresh), or after its first."""
    lab = laboratory("fedder", sets=[SMALL, f"methods.fedder.refresh={str(refresh).lower()}", "train.rounds=3"])
    answers = {}
    while not lab.over:
        experience, number = lab.moment
        lab.play_round()
        upload = lab.site.store.get(lab.rounds[-1][1][0].upload)
        if number == 2 if refresh else number == 0:
            answers[experience] = {name.removeprefix("model."): tensor for name, tensor in upload.tensors.items()}
    kept = Memory.of(lab.client(0))
    assert len(set(kept["experiences"].tolist())) > 1
    for experience, tensors in answers.items():
        own = kept.take(kept["experiences"] == experience)
        if len(own):
            model = lab.site.method.setting.load(tensors).eval()
            torch.testing.assert_close(own["logits"], model(own.batch().inputs).detach())


def test_the_loss_is_the_papers(laboratory, client_of):
    """A minibatch as large as the memory draws all of it twice, so that nothing is left to chance."""
    alpha, beta = 0.7, 0.3
    lab = laboratory("fedder", sets=[SMALL, f"methods.fedder.alpha={alpha}", f"methods.fedder.beta={beta}"])
    client = client_of(lab.play(until=(1, 1)), 0)
    method, kept = lab.site.method, Memory.of(client.state)
    model, batch = method.setting.load(client.received.part("model")), client.data.batch(torch.arange(5))
    old = model(kept.batch().inputs)
    by_hand = (
        cross_entropy(model(batch.inputs), batch.labels, client.seen)
        + alpha * (old - kept["logits"]).square().mean()
        + beta * F.cross_entropy(old[:, client.seen], torch.tensor([client.seen.index(y) for y in kept["labels"]]))
    )
    torch.testing.assert_close(method.objective(client)(model, batch), by_hand)


def test_two_draws_are_independent_and_new_in_every_step(laboratory, client_of):
    lab = laboratory("fedder", sets=["train.batch_size=2"]).play(until=(1, 1))
    client = client_of(lab, 0)
    model, batch = lab.site.method.setting.load(client.received.part("model")), client.data.batch(torch.arange(2))
    asked = []
    model.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    loss = lab.site.method.objective(client)
    for _ in range(2):
        loss(model, batch)
    parts = [part for inputs in asked for part in inputs.split(2)]
    assert torch.equal(parts[0], parts[3]), "the current minibatch"
    drawn = [parts[1], parts[2], parts[4], parts[5]]
    assert all(not torch.equal(one, other) for n, one in enumerate(drawn) for other in drawn[:n])


def test_where_the_experience_is_known_old_samples_compete_within_theirs(laboratory, client_of):
    lab = laboratory("fedder", sets=["methods.fedder.alpha=0", "train.batch_size=1000"]).play(until=(1, 0))
    client = replace(client_of(lab, 0), task_aware=True)
    method, kept, (first,) = lab.site.method, Memory.of(client.state), client.earlier
    model, batch = method.setting.load(client.received.part("model")), client.data.batch(torch.arange(4))
    places = torch.tensor([first.index(label) for label in kept["labels"]])
    old = F.cross_entropy(model(kept.batch().inputs)[:, list(first)], places)
    now = cross_entropy(model(batch.inputs), batch.labels, client.classes)
    torch.testing.assert_close(method.objective(client)(model, batch), now + method.params.beta * old)

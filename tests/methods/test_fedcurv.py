"""FedCurv: the sums of curvatures, one's own share of them, and the loss."""

from __future__ import annotations

import pytest
import torch

from methods import State
from methods.fisher import Held, trainable
from tasks.store import encode

FEW = "methods.fedcurv.fisher_samples=8"
WEAK = "methods.fedcurv.strength=0.01"  # nowhere limited


def same_model(one: State, other: State) -> bool:
    return encode(one.part("model"), {}) == encode(other.part("model"), {})


@pytest.mark.parametrize("sets", [(), ("train.clients_per_round=1",)])
def test_without_pull_and_with_all_classes_it_is_fedavg(sets, laboratory, played):
    free = laboratory("fedcurv", sets=["methods.fedcurv.strength=0", "methods.fedcurv.compete=seen", FEW, *sets]).play()
    assert same_model(free.server, played("fedavg", sets=sets).server)


def test_nothing_pulls_in_the_first_round(laboratory):
    fedcurv, fedavg = (laboratory(name).play(until=(0, 1)) for name in ("fedcurv", "fedavg"))
    assert same_model(fedcurv.server, fedavg.server)


def test_nobody_pulls_a_client_that_is_alone_before_it_has_a_past(laboratory):
    """Its own share of the sums is taken off again, up to rounding."""
    fedcurv, fedavg = (
        laboratory(name, "alone", sets=["train.rounds=4"]).play(until=(1, 0)) for name in ("fedcurv", "fedavg")
    )
    for name, tensor in fedavg.server.part("model").items():
        torch.testing.assert_close(fedcurv.server.part("model")[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sets", [(), ("train.clients_per_round=1", "train.rounds=4")])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_servers_sums_are_over_all_clients_that_ever_took_part(sets, decay, laboratory):
    """What a client says when it is admitted counts, also when its round was lost before."""
    lab = laboratory("fedcurv", sets=[FEW, f"methods.fedcurv.decay={decay}", *sets])
    while not lab.over:
        trained = lab.train()
        kept = trained[1:] if lab.moment.round == 0 and len(trained) > 1 else trained
        verdicts = lab.admit(lab.claims(kept))
        lab.advance(kept, verdicts, lab.fuse(verdicts))
        sent = [lab.client(number).part("sent") for number in lab.progress.clients]
        assert sent
        for name in sent[0]:
            torch.testing.assert_close(lab.server.tensors[name], sum(part[name] for part in sent), rtol=1e-4, atol=1e-7)


def own(lab, trained) -> tuple[dict, dict]:
    """I_j and theta_j of one client's first upload."""
    upload = State(lab.site.store.get(trained.upload).tensors)
    return upload.part("information"), upload.part("model")


def gradient(lab, client, model) -> dict[str, torch.Tensor]:
    """Of the pull, which is the method's loss without the loss of a method that does not pull."""
    batch, method = client.data.batch(torch.arange(4)), lab.site.method
    pulled = torch.autograd.grad(method.objective(client)(model, batch), list(model.parameters()))
    plain = super(Held, method).objective(method.competing(client))
    free = torch.autograd.grad(plain(model, batch), list(model.parameters()))
    return {name: one - other for name, one, other in zip(trainable(model), pulled, free, strict=True)}


def moved(method, client):
    model = method.setting.load(client.received.part("model"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5
    return model


def test_the_others_pull_as_in_the_paper(laboratory, client_of):
    """grad = 2 lambda sum_{j != i} I_j (theta - theta_j)"""
    lab = laboratory("fedcurv", sets=[FEW, WEAK]).play(until=(0, 1))
    others = [own(lab, each) for each in lab.rounds[-1][1] if each.client != 1]
    assert len(others) == 2
    client = client_of(lab, 1)
    model = moved(lab.site.method, client)
    for name, found in gradient(lab, client, model).items():
        by_hand = sum(
            2 * 0.01 * information[name] * (model.get_parameter(name) - theta[name]) for information, theta in others
        )
        torch.testing.assert_close(found, by_hand, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
def test_a_clients_own_past_pulls_it_in_the_next_experience(decay, laboratory, client_of):
    lab = laboratory("fedcurv", sets=[FEW, WEAK, "train.rounds=1", f"methods.fedcurv.decay={decay}"]).play(until=(1, 0))
    client, everyone = client_of(lab, 1), [own(lab, each) for each in lab.rounds[-1][1]]
    model = moved(lab.site.method, client)
    for name, found in gradient(lab, client, model).items():
        parts = [
            2 * 0.01 * information[name] * (model.get_parameter(name) - theta[name]) for information, theta in everyone
        ]
        torch.testing.assert_close(found, parts[0] + decay * parts[1] + parts[2], rtol=1e-3, atol=1e-5)


def test_it_sends_three_times_fedavgs_numbers(played):
    lab, plain = played("fedcurv"), played("fedavg")
    for (moment, trained, _), (_, others, _) in zip(lab.rounds, plain.rounds, strict=True):
        for each, other in zip(trained, others, strict=True):
            for kind in ("upload", "broadcast"):
                sizes = [
                    sum(x.numel() for x in run.site.store.get(getattr(who, kind)).tensors.values())
                    for run, who in ((lab, each), (plain, other))
                ]
                assert sizes[0] == sizes[1] * (1 if kind == "broadcast" and moment == (0, 0) else 3)

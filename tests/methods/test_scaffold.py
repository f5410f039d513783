"""SCAFFOLD: control variates are means of gradients, and the server's is the mean of all clients'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from errors import InputError
from methods import State
from methods.local_steps import accumulation
from methods.training import TrainParameters
from tasks.store import encode


def same_model(one: State, other: State) -> bool:
    return encode(one.part("model"), {}) == encode(other.part("model"), {})


def test_the_first_round_is_fedavg_to_the_last_bit_and_the_second_is_not(laboratory):
    scaffold, fedavg = (laboratory(name).play(until=(0, 1)) for name in ("scaffold", "fedavg"))
    assert same_model(scaffold.server, fedavg.server)
    assert not same_model(scaffold.play(until=(1, 0)).server, fedavg.play(until=(1, 0)).server)


def test_with_control_variates_held_at_zero_it_is_fedavg_to_the_last_bit(laboratory, played):
    lab = laboratory("scaffold")
    while not lab.over:
        lab.play_round()
        lab.progress.server = lab.site.write(State({**lab.server.tensors, **lab.site.method.zeros()}))
        lab.progress.clients.clear()
    assert same_model(lab.server, played("fedavg").server)


@pytest.mark.parametrize("sampled", ["all", 1, 2])
def test_the_servers_control_variate_is_the_mean_of_all_clients(sampled, laboratory):
    lab = laboratory("scaffold", sets=[f"train.clients_per_round={sampled}", "train.rounds=3"])
    moved = 0
    while not lab.over:
        trained = lab.train()
        lost = trained[0].client if lab.moment.round == 1 and len(trained) > 1 else None  # it never happened
        kept = [each for each in trained if each.client != lost]
        verdicts = lab.admit(lab.claims(kept))
        lab.advance(kept, verdicts, lab.fuse(verdicts))
        for name, c in lab.server.part("control").items():
            own = [lab.client(number).part("control")[name] for number in lab.progress.clients]  # others have 0
            torch.testing.assert_close(c, sum(own) / 3, rtol=1e-4, atol=1e-6)
            moved += c.abs().sum().item()
    assert moved > 0


def test_after_one_step_a_clients_control_variate_is_its_gradient(laboratory, client_of):
    lab = laboratory("scaffold", sets=["train.batch_size=1000"]).play(until=(1, 0))
    client, method = client_of(lab, 1), lab.site.method
    assert any(c.any() for c in client.state.part("control").values())
    kept = method.train(client).state.part("control")
    model = method.setting.load(client.received.part("model"))
    (batch,) = client.data.batches(1000)
    method.objective(client)(model, batch).backward()
    for name, w in model.named_parameters():
        torch.testing.assert_close(kept[name], w.grad, rtol=1e-3, atol=1e-4)


def test_a_client_steps_along_its_gradient_corrected_by_everyones(laboratory, client_of):
    lab = laboratory("scaffold", sets=["train.batch_size=1000"]).play(until=(0, 1))
    client, method = client_of(lab, 0), lab.site.method
    before, c, own = client.received.part("model"), client.received.part("control"), client.state.part("control")
    after = method.train(client).message.part("model")
    model = method.setting.load(before)
    (batch,) = client.data.batches(1000)
    method.objective(client)(model, batch).backward()
    for name, w in model.named_parameters():
        expected = before[name] - method.setting.train.learning_rate * (w.grad - own[name] + c[name])
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [0.5, 1.5])
def test_the_server_goes_its_own_step_towards_the_mean(step, laboratory):
    labs = [laboratory("fedavg"), laboratory("scaffold", sets=[f"methods.scaffold.server_learning_rate={step}"])]
    start = labs[0].server.part("model")
    mean, reached = (lab.play(until=(0, 1)).server.part("model") for lab in labs)
    for name, x in start.items():
        torch.testing.assert_close(reached[name], x + step * (mean[name] - x))


def test_running_statistics_are_averaged_and_have_no_control_variate(laboratory):
    sets = ["model.name=slim_resnet18", "model.width=2", "model.norm=batch", "train.rounds=1"]
    sets += ["methods.scaffold.server_learning_rate=0.5"]
    lab = laboratory("scaffold", sets=sets).play(until=(0, 0))
    parameters = {name for name, _ in lab.site.method.setting.load(lab.server.part("model")).named_parameters()}
    assert lab.server.part("control").keys() == parameters < lab.server.part("model").keys()
    fedavg = laboratory("fedavg", sets=sets).play(until=(1, 0)).server.part("model")
    for name, tensor in lab.play(until=(1, 0)).server.part("model").items():
        assert torch.equal(tensor, fedavg[name]) == (name not in parameters), name


@given(st.integers(1, 40), st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_accumulation_is_how_far_sgd_goes_along_a_constant_gradient(steps, momentum):
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = TrainParameters(learning_rate=0.1, momentum=momentum).optimizer_for([weight])
    for _ in range(steps):
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()
    assert accumulation(steps, momentum) == pytest.approx(-weight.item() / 0.1)


@pytest.mark.parametrize("name", ["scaffold", "fednova"])
def test_adaptive_optimizers_are_refused(name, laboratory):
    with pytest.raises(InputError, match=f"train.optimizer must be sgd for {name} .got adam"):
        laboratory(name, sets=["train.optimizer=adam"])

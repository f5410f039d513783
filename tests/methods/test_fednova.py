"""FedNova: normalised averaging by hand, with equal steps FedAvg, and bounded against lies."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from methods import Message, Moment, State
from methods.local_steps import accumulation
from tasks.store import encode
from tasks.upload import AdmittedUpload


@dataclass(frozen=True)
class Upload:
    client: int
    samples: int
    message: Message


def fused(method, x: torch.Tensor, sent) -> torch.Tensor:
    """The next model from (samples, steps, model) of each client."""
    uploads = [
        Upload(client, n, Message({"model.w": y, "steps": torch.tensor(steps)}))
        for client, (n, steps, y) in enumerate(sent)
    ]
    return method.fuse("all", State({"model.w": x}), uploads, Moment(0, 0)).tensors["model.w"]


@pytest.fixture(scope="module")
def method(laboratory):
    """One local epoch in batches of 16."""
    return laboratory("fednova").site.method


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_with_equal_steps_it_is_fedavg(momentum, laboratory):
    sets = ["train.batch_size=1000", "train.local_epochs=3", f"train.momentum={momentum}"]
    fednova, fedavg = (laboratory(name, sets=sets).play(until=(0, 2)).server for name in ("fednova", "fedavg"))
    for name, tensor in fedavg.part("model").items():
        torch.testing.assert_close(fednova.part("model")[name], tensor, rtol=1e-5, atol=1e-7)


def test_with_different_steps_it_is_not(laboratory):
    fednova, fedavg = (laboratory(name).play(until=(0, 1)) for name in ("fednova", "fedavg"))
    assert len({each.steps for each in fednova.rounds[0][1]}) > 1
    assert encode(fednova.server.part("model"), {}) != encode(fedavg.server.part("model"), {})


def test_one_client_alone_is_fedavg_to_the_last_bit(played):
    assert encode(played("fednova", "alone").server.part("model"), {}) == encode(
        played("fedavg", "alone").server.part("model"), {}
    )


clients = st.lists(
    st.integers(1, 30).flatmap(lambda steps: st.tuples(st.integers(16 * steps, 500), st.just(steps))),
    min_size=1,
    max_size=6,
)


@given(clients, st.integers(0, 1000))
def test_it_is_the_papers_formula(method, clients, seed):
    draw = torch.Generator().manual_seed(seed)
    x, n = torch.randn(4, generator=draw), sum(samples for samples, _ in clients)
    sent = [(samples, steps, torch.randn(4, generator=draw)) for samples, steps in clients]
    tau_eff = sum(samples / n * steps for samples, steps, _ in sent)
    expected = x - tau_eff * sum(samples / n * (x - y) / steps for samples, steps, y in sent)
    torch.testing.assert_close(fused(method, x, sent), expected, rtol=1e-4, atol=1e-4)


@given(clients)
def test_the_direction_does_not_depend_on_who_takes_more_steps(method, clients):
    """Every client goes steps_i times along a gradient of its own: the mean goes along sum_i p_i g_i."""
    gradients = torch.eye(len(clients), dtype=torch.float64)
    x = torch.zeros(len(clients), dtype=torch.float64)
    moved = fused(method, x, [(n, steps, -steps * g) for (n, steps), g in zip(clients, gradients, strict=True)])
    shares = torch.tensor([n for n, _ in clients], dtype=torch.float64)
    torch.testing.assert_close(moved / moved.sum(), shares / shares.sum())


def test_momentum_counts_as_the_paper_says():
    m, steps = 0.9, 7
    a = [(1 - m ** (steps - k)) / (1 - m) for k in range(steps)]
    assert accumulation(steps, m) == pytest.approx(sum(a))


def test_the_steps_that_clients_took_are_what_the_server_reads(laboratory):
    lab = laboratory("fednova", sets=["train.local_epochs=2", "train.batch_size=7"])
    while not lab.over:
        trained = lab.train()
        verdicts = lab.admit(lab.claims(trained))
        for each, verdict in zip(trained, verdicts, strict=True):
            upload = AdmittedUpload(verdict.client, verdict.samples, lab.site.store, verdict.file)
            assert lab.site.method.steps(upload) == each.steps == upload.message.tensors["steps"].item()
        lab.advance(trained, verdicts, lab.fuse(verdicts))


def test_running_statistics_are_averaged_as_in_fedavg(laboratory):
    """One client has many steps, three have one: rescaled, their smaller variances would add up to a negative one."""
    method = laboratory("fednova", sets=["model.name=slim_resnet18", "model.width=4", "model.norm=batch"]).site.method
    before = method.start()
    (name, *_) = (key for key in before.tensors if key.endswith("running_var"))
    ones, tenths = torch.ones_like(before.tensors[name]), torch.full_like(before.tensors[name], 0.1)
    sizes, now = (1000, 10, 10, 10), State({**before.tensors, name: ones})
    uploads = [
        Upload(client, n, Message({**now.tensors, name: tenths, "steps": torch.tensor(-(-n // 16))}))
        for client, n in enumerate(sizes)
    ]
    torch.testing.assert_close(method.fuse("all", now, uploads, Moment(0, 0)).tensors[name], tenths)


@pytest.mark.parametrize(("said", "counted"), [(10**15, 3), (-(2**63), 1), (0, 1), (4, 3)])
def test_a_lie_about_steps_is_bounded_by_what_the_samples_allow(method, said, counted):
    x, y = torch.zeros(2), torch.tensor([1.0, -2.0])
    lied, bounded = (fused(method, x, [(40, 3, y), (48, steps, y)]) for steps in (said, counted))
    assert torch.equal(lied, bounded)

"""FedProx: no pull is FedAvg, and the pull is its formula."""

import pytest
import torch

from methods.fedavg import FedAvg


def model_of(lab) -> torch.Tensor:
    return torch.cat([w.flatten() for _, w in sorted(lab.server.part("model").items())])


def test_without_pull_it_is_fedavg_to_the_last_bit(laboratory, played):
    assert laboratory("fedprox", sets=["methods.fedprox.mu=0"]).play().digest == played("fedavg").digest


def test_the_pull_grows_with_mu(laboratory):
    def moved(mu: float) -> float:
        lab = laboratory("fedprox", sets=[f"methods.fedprox.mu={mu}"])
        start = model_of(lab)
        return (model_of(lab.play(until=(0, 1))) - start).norm().item()

    distances = [moved(mu) for mu in (0, 1, 10)]
    assert distances[0] > distances[1] > distances[2] > 0


@pytest.mark.parametrize("mu", [0.01, 3.0])
def test_the_gradient_of_the_pull_is_mu_times_the_drift(mu, laboratory, client_of):
    lab = laboratory("fedprox", sets=[f"methods.fedprox.mu={mu}"])
    method, client = lab.site.method, client_of(lab, 0)
    model = method.setting.load(method.setting.architecture.initial(torch.Generator().manual_seed(1)))
    batch = client.data.batch(torch.arange(8))
    pulled, plain = (
        torch.autograd.grad(objective(model, batch), list(model.parameters()))
        for objective in (method.objective(client), FedAvg.objective(method, client))
    )
    received = client.received.part("model")
    for (name, w), one, other in zip(model.named_parameters(), pulled, plain, strict=True):
        torch.testing.assert_close(one - other, mu * (w - received[name]).detach(), rtol=1e-3, atol=1e-5)

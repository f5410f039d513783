"""Fisher information in closed form, and the pull that it gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from methods.fisher import diagonal, pull
from methods.training import LocalData


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(classes: int, bias=None) -> nn.Sequential:
    """Softmax regression on 2 x 2 images, weights 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, classes))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.zeros(classes) if bias is None else torch.as_tensor(bias))
    return model


def images(count: int, value: int | None = None) -> LocalData:
    numbers = np.arange(4 * count) * 37 % 256 if value is None else np.full(4 * count, value)
    return LocalData(numbers.reshape(count, 1, 2, 2).astype(np.uint8), np.zeros(count, np.int64))


def test_of_a_coin_that_falls_evenly():
    """log p_k = log softmax(W x + b): the derivative by b_k is [y = k] - 1/2, squared 1/4 whatever y is."""
    data = images(9)
    inputs = data.batch(torch.arange(9)).inputs.flatten(1)
    fisher = diagonal(linear(2), data, (0, 1), 100, generator())
    torch.testing.assert_close(fisher["1.bias"], torch.full((2,), 0.25))
    torch.testing.assert_close(fisher["1.weight"], inputs.square().mean(0).expand(2, 4) / 4)


def test_it_is_the_variance_of_the_answer():
    """E_y ([y = k] - p_k)^2 = p_k (1 - p_k), whatever the labels are: 4 sigma over 3,000 draws."""
    chances = torch.tensor([0.6, 0.3, 0.1])
    fisher = diagonal(linear(3, chances.log()), images(3000, value=255), (0, 1, 2), 3000, generator())
    squares = (torch.eye(3) - chances).square()  # of each answer
    spread = ((chances @ squares.square()) - (chances @ squares).square()).sqrt() / 3000**0.5
    assert ((fisher["1.bias"] - chances * (1 - chances)).abs() < 4 * spread).all()


def test_other_classes_do_not_matter():
    fisher = diagonal(linear(5), images(6), (1, 3), 100, generator())
    assert fisher["1.bias"].nonzero().flatten().tolist() == [1, 3]
    torch.testing.assert_close(fisher["1.bias"][[1, 3]], torch.full((2,), 0.25))


@pytest.mark.parametrize("samples", [1, 4, 6, 50])
def test_no_more_samples_are_looked_at_than_asked_and_each_once(samples):
    seen, model = [], linear(2)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    diagonal(model, images(6), (0, 1), samples, generator())
    assert [len(each) for each in seen] == [1] * min(samples, 6)
    assert len(torch.cat(seen).unique(dim=0)) == min(samples, 6)


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model[1].bias.requires_grad_(False)
    fisher = diagonal(model, images(5), (0, 1), 5, generator())
    assert fisher.keys() == {"1.weight", "2.weight", "2.bias"}, "what is frozen has no information"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


numbers = st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4)


@given(numbers, numbers, st.lists(st.floats(0, 1e6, width=32), min_size=4, max_size=4), st.floats(0.001, 1))
def test_a_pull_is_a_parabola_and_never_goes_beyond_its_centre(at, centre, stiffness, learning_rate):
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([at]))
    s, c = torch.tensor([stiffness]), torch.tensor([centre])
    before, limited = model.weight.detach().clone(), s.clamp(max=1 / learning_rate)
    value = pull({"weight": s}, {"weight": c}, learning_rate, "cpu")(model)
    torch.testing.assert_close(value, (limited * (before - c).square()).sum() / 2, rtol=1e-4, atol=1e-4)
    value.backward()
    after = before - learning_rate * model.weight.grad
    slack = 1e-4 * (1 + before.abs() + c.abs())
    assert ((after - c).abs() <= (before - c).abs() + slack).all()
    assert ((after - c) * (before - c) >= -slack * slack - slack * (before - c).abs()).all(), "on the side it came from"
    firm = s >= 1 / learning_rate
    torch.testing.assert_close(after[firm], c[firm], rtol=1e-4, atol=1e-4)

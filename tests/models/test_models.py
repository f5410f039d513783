"""Every registered network: shapes, initial values from one generator, and copies that share nothing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from errors import InputError
from models import Architecture, initialise
from randomness import generator

SHAPES = [(1, 8, 8), (3, 32, 32)]
SMALL = {"cnn": {"width": 4}, "mlp": {"width": 8}, "slim_resnet18": {"width": 4}}
every_network = pytest.mark.parametrize("name", models.names())


def small(name: str, shape=(1, 8, 8), **options) -> Architecture:
    return Architecture(name, shape, 10, SMALL.get(name, {}) | options)


def images(shape, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def loaded(architecture: Architecture, seed: int = 0) -> nn.Module:
    return architecture.load(architecture.initial(generator(seed, "model")))


@every_network
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("classes", [1, 10])
def test_images_become_finite_logits(name, shape, classes):
    model = loaded(Architecture(name, shape, classes, SMALL.get(name, {}))).eval()
    for batch in (1, 4):
        logits = model(images(shape, batch))
        assert logits.shape == (batch, classes)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


@every_network
def test_logits_are_the_head_of_the_features(name):
    model = loaded(small(name)).eval()
    features = model.features(images((1, 8, 8)))
    assert features.shape == (3, model.width)
    assert torch.equal(model(images((1, 8, 8))), model.head(features))


@every_network
def test_the_default_options_make_a_network(name):
    model = loaded(Architecture(name, (3, 32, 32), 10))
    assert model(images((3, 32, 32))).shape == (3, 10)


@every_network
def test_a_sample_does_not_see_the_others_of_its_batch(name):
    model, batch = loaded(small(name)).eval(), images((1, 8, 8), 4)
    torch.testing.assert_close(model(batch)[:2], model(batch[:2]))


@every_network
def test_every_parameter_gets_a_gradient(name):
    model = loaded(small(name)).train()
    F.cross_entropy(model(images((1, 8, 8), 8)), torch.arange(8)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


# initial values


@every_network
def test_initial_values_depend_on_the_generator_alone(name):
    architecture = small(name)
    first = architecture.initial(generator(0, "model"))
    torch.manual_seed(5)
    again, other = architecture.initial(generator(0, "model")), architecture.initial(generator(1, "model"))
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_network
def test_initial_values_leave_the_global_generator_alone(name):
    before = torch.get_rng_state()
    loaded(small(name))
    assert torch.equal(torch.get_rng_state(), before)


@every_network
def test_initial_values_are_within_pytorchs_bounds(name):
    """U(-1/sqrt(fan in), 1/sqrt(fan in)) for weights and biases: inside, and reaching towards both ends."""
    model = loaded(small(name, (3, 32, 32)))
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert layers
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert layer.weight.abs().max() <= bound
        if layer.weight.numel() > 500:
            assert layer.weight.min() < -0.95 * bound
            assert layer.weight.max() > 0.95 * bound
            assert layer.weight.mean().abs() < 0.15 * bound
        if layer.bias is not None:
            assert layer.bias.abs().max() <= bound


def test_normalisation_starts_as_the_identity_on_normalised_maps():
    for norm in ("group", "batch"):
        state = small("slim_resnet18", norm=norm).initial(generator(0, "model"))
        weights = [tensor for key, tensor in state.items() if "norm" in key and key.endswith("weight")]
        assert weights
        assert all((tensor == 1).all() for tensor in weights)
        assert all((tensor == 0).all() for key, tensor in state.items() if key.endswith(("running_mean", "tracked")))
        assert all((tensor == 1).all() for key, tensor in state.items() if key.endswith("running_var"))


@pytest.mark.parametrize(
    "layer", [nn.Bilinear(2, 2, 2), nn.Embedding(3, 2), nn.LSTM(2, 2), nn.ConvTranspose2d(1, 1, 2), nn.PReLU()]
)
def test_a_layer_that_is_not_known_is_refused(layer):
    with pytest.raises(TypeError, match=f"does not know the layer {type(layer).__name__}"):
        initialise(nn.Sequential(nn.Linear(2, 2), layer).to("meta"), generator(0, "x"))


def test_layers_without_parameters_need_no_initial_value():
    initialise(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2)), generator(0, "x"))


# loading


@every_network
def test_a_loaded_network_has_the_tensors(name):
    architecture = small(name)
    state = architecture.initial(generator(0, "model"))
    again = architecture.load(state).state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


@every_network
def test_training_a_loaded_network_leaves_the_tensors_and_other_networks_as_they_are(name):
    architecture = small(name, **({"norm": "batch"} if name == "slim_resnet18" else {}))
    state = architecture.initial(generator(0, "model"))
    before = {key: tensor.clone() for key, tensor in state.items()}
    model, other = architecture.load(state).train(), architecture.load(state)
    F.cross_entropy(model(images((1, 8, 8), 8)), torch.arange(8)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert any(not torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    for kept in (state, other.state_dict(), architecture.load(state).state_dict()):
        assert all(torch.equal(kept[key], before[key]) for key in before)


@every_network
def test_missing_and_extra_names_are_refused_by_name(name):
    architecture = small(name)
    state = architecture.initial(generator(0, "model"))
    with pytest.raises((KeyError, ValueError), match=r"head\.weight"):
        architecture.load({key: tensor for key, tensor in state.items() if key != "head.weight"})
    with pytest.raises((KeyError, ValueError), match=r"head\.more"):
        architecture.load(state | {"head.more": torch.zeros(1)})


def test_batch_statistics_move_in_training_and_only_there():
    model = loaded(small("slim_resnet18", norm="batch"))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items() if "running" in key}
    assert before
    model.eval()(images((1, 8, 8), 8))
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    model.train()(images((1, 8, 8), 8))
    assert all(not torch.equal(model.state_dict()[key], before[key]) for key in before)
    assert {tensor.item() for key, tensor in model.state_dict().items() if "num_batches" in key} == {1}


def test_slim_resnet18_of_width_20_has_the_1_1_million_parameters_of_its_paper():
    def count(width: int) -> int:
        model = models.build("slim_resnet18", (3, 32, 32), 100, width=width)
        return sum(parameter.numel() for parameter in model.parameters())

    assert round(count(20) / 1e6, 1) == 1.1
    assert round(count(64) / 1e6, 1) == 11.2


def test_mlp_of_width_200_is_mcmahans_2nn():
    model = models.build("mlp", (1, 28, 28), 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 199_210


# what is refused


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(InputError, match=r"model\.name: no model 'cnnn'; did you mean cnn\?"):
        models.build("cnnn", (1, 8, 8), 10)


@every_network
def test_an_unknown_option_names_the_nearest(name):
    with pytest.raises(InputError, match=rf"model\.widht: model '{name}' has no option 'widht'; did you mean width\?"):
        models.build(name, (1, 8, 8), 10, widht=3)


@pytest.mark.parametrize("option", ["shape", "classes"])
def test_what_the_stream_says_is_no_option(option):
    with pytest.raises(InputError, match=f"has no option '{option}'"):
        models.check("cnn", {option: 3})


@every_network
@pytest.mark.parametrize("value", [0, -1, 1.5, "wide", None, True])
def test_a_width_that_is_no_positive_whole_number_is_refused_by_its_key(name, value):
    with pytest.raises(InputError, match=r"model\.width"):
        models.build(name, (1, 8, 8), 10, width=value)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(InputError, match=r"model\.norm must be 'group' or 'batch' \(got 'layer'\)"):
        models.build("slim_resnet18", (1, 8, 8), 10, norm="layer")


def test_images_too_small_for_a_network_are_refused():
    with pytest.raises(InputError, match=r"cnn needs images of at least 4 x 4 pixels \(got 2 x 8\)"):
        models.build("cnn", (1, 2, 8), 10)

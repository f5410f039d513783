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

SIZES = [(8, 8), (9, 15), (28, 28), (32, 32), (64, 64)]
SMALL = {
    "cnn": {"width": 4},
    "cnn4": {"width": 16},
    "mlp": {"width": 8},
    "mobilenet_v2": {"width": 8},
    "resnet18": {"width": 8},
    "slim_resnet18": {"width": 4},
    "text_transformer": {"vocabulary": 512, "tokens": 12, "width": 16},
    "vgg11": {"width": 8},
    "vit_tiny": {"width": 24, "depth": 2},
}
NAMES = [name for name in models.names() if models.modality(name) != "record"]  # test_multimodal.py has that one
NORMALISED = [name for name in NAMES if "norm" in models.check(name, {})]
every_network = pytest.mark.parametrize("name", NAMES)


def is_text(name: str) -> bool:
    return models.modality(name) == "text"


def shape_of(name: str, channels: int = 1, size: tuple[int, int] = (8, 8)) -> tuple[int, ...]:
    return (size[0] * size[1],) if is_text(name) else (channels, *size)


def small(name: str, shape: tuple[int, ...] = (), classes: int = 10, **options) -> Architecture:
    return Architecture(name, shape or shape_of(name), classes, SMALL[name] | options)


def inputs(name: str, batch: int = 3, shape: tuple[int, ...] = ()) -> torch.Tensor:
    """Images in [-1, 1]; texts of letters, marks and spaces with zeros at the end, as bytes."""
    shape, draw = shape or shape_of(name), torch.Generator().manual_seed(0)
    if not is_text(name):
        return torch.rand(batch, *shape, generator=draw) * 2 - 1
    letters = torch.tensor(list(b"abcdeXYZ.,   "), dtype=torch.uint8)
    texts = letters[torch.randint(len(letters), (batch, *shape), generator=draw)]
    texts[:, -7:] = 0
    return texts


def loaded(architecture: Architecture, seed: int = 0) -> nn.Module:
    return architecture.load(architecture.initial(generator(seed, "model")))


@every_network
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_inputs_become_finite_logits(name, channels, size):
    shape, classes = shape_of(name, channels, size), 1 if size == (9, 15) else 10
    model = loaded(small(name, shape, classes)).eval()
    for batch in (1, 4):
        logits = model(inputs(name, batch, shape))
        assert logits.shape == (batch, classes)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


@every_network
def test_logits_are_the_head_of_the_features(name):
    model = loaded(small(name)).eval()
    features = model.features(inputs(name))
    assert features.shape == (3, model.width)
    assert torch.equal(model(inputs(name)), model.head(features))


@every_network
def test_the_default_options_make_a_network(name):
    shape = shape_of(name, 3, (32, 32))
    model = loaded(Architecture(name, shape, 10))
    assert model(inputs(name, 2, shape)).shape == (2, 10)


@every_network
def test_a_sample_does_not_see_the_others_of_its_batch(name):
    model, batch = loaded(small(name)).eval(), inputs(name, 4)
    torch.testing.assert_close(model(batch)[:2], model(batch[:2]))


@every_network
def test_different_inputs_have_different_features(name):
    features = loaded(small(name)).features(inputs(name, 4))
    assert torch.pdist(features).min() > 1e-4


@every_network
def test_every_parameter_gets_a_gradient(name):
    model = loaded(small(name, features=5)).train()
    F.cross_entropy(model(inputs(name, 8)), torch.arange(8)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


@every_network
def test_the_same_inputs_give_the_same_gradients_to_the_last_bit(name):
    gradients = []
    for _ in range(2):
        model = loaded(small(name)).train()
        F.cross_entropy(model(inputs(name, 8)), torch.arange(8)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@every_network
def test_eight_samples_can_be_learnt_by_heart(name):
    model, batch, labels = loaded(small(name)).train(), inputs(name, 8), torch.arange(8)
    deep = name in ("mobilenet_v2", "vgg11")  # without shortcuts past every block, a rate of 0.01 breaks them
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001 if deep else 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), labels)
        loss.backward()
        optimizer.step()
    assert F.cross_entropy(model.eval()(batch), labels) < 0.1


# the option `features`


@every_network
def test_features_have_the_length_that_was_asked_for(name):
    model = loaded(small(name, features=5))
    assert model.width == model.head.in_features == 5
    features = model.features(inputs(name))
    assert features.shape == (3, 5)
    assert (features < 0).any(), "the last layer is linear"
    torch.testing.assert_close(features, model.projection(model.pooled(inputs(name))))


@every_network
def test_without_it_a_network_is_the_one_it_was(name):
    """The same names; and the body draws its initial values before head and projection do."""
    plain, projected = (small(name, **more).initial(generator(0, "model")) for more in ({}, {"features": 5}))
    assert set(projected) - set(plain) == {"projection.weight", "projection.bias"}
    body = [key for key in plain if not key.startswith("head.")]
    assert all(torch.equal(plain[key], projected[key]) for key in body)
    assert "features" not in models.check(name, {"features": None})
    assert models.check(name, {"features": 5})["features"] == 5


@pytest.mark.parametrize("value", [0, -1, 1.5, "wide", True])
def test_a_length_that_is_no_positive_whole_number_is_refused(value):
    with pytest.raises(InputError, match=r"model\.features must be .* \(got"):
        models.build("cnn", (1, 8, 8), 10, features=value)


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
    model = loaded(small(name, shape_of(name, 3)))
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


@pytest.mark.parametrize("name", NORMALISED)
def test_normalisation_starts_as_the_identity_on_normalised_maps(name):
    for norm, kind in (("group", nn.GroupNorm), ("batch", nn.BatchNorm2d)):
        architecture = small(name, norm=norm)
        state = architecture.initial(generator(0, "model"))
        layers = [layer for layer in architecture.load(state).modules() if isinstance(layer, kind)]
        assert layers
        assert all((layer.weight == 1).all() and (layer.bias == 0).all() for layer in layers)
        assert all((tensor == 0).all() for key, tensor in state.items() if key.endswith(("running_mean", "tracked")))
        assert all((tensor == 1).all() for key, tensor in state.items() if key.endswith("running_var"))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Bilinear(2, 2, 2),
        nn.EmbeddingBag(3, 2),
        nn.LSTM(2, 2),
        nn.ConvTranspose1d(1, 1, 2),
        nn.PReLU(),
        nn.MultiheadAttention(2, 1),
    ],
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
    architecture = small(name, **({"norm": "batch"} if name in NORMALISED else {}))
    state = architecture.initial(generator(0, "model"))
    before = {key: tensor.clone() for key, tensor in state.items()}
    model, other = architecture.load(state).train(), architecture.load(state)
    F.cross_entropy(model(inputs(name, 8)), torch.arange(8)).backward()
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


@pytest.mark.parametrize("name", NORMALISED)
def test_batch_statistics_move_in_training_and_only_there(name):
    model = loaded(small(name, norm="batch"))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items() if "running" in key}
    assert before
    model.eval()(inputs(name, 8))
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    model.train()(inputs(name, 8))
    assert all(not torch.equal(model.state_dict()[key], before[key]) for key in before)
    assert {tensor.item() for key, tensor in model.state_dict().items() if "num_batches" in key} == {1}


# what is refused


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(InputError, match=r"model\.name: no model 'cnnn'; did you mean cnn or cnn4\?"):
        models.build("cnnn", (1, 8, 8), 10)


@every_network
def test_an_unknown_option_names_the_nearest(name):
    with pytest.raises(InputError, match=rf"model\.widht: model '{name}' has no option 'widht'; did you mean width\?"):
        models.build(name, shape_of(name), 10, widht=3)


@pytest.mark.parametrize("option", ["shape", "classes"])
def test_what_the_stream_says_is_no_option(option):
    with pytest.raises(InputError, match=f"has no option '{option}'"):
        models.check("cnn", {option: 3})


@every_network
@pytest.mark.parametrize("value", [0, -1, 1.5, "wide", None, True])
def test_a_width_that_is_no_positive_whole_number_is_refused_by_its_key(name, value):
    with pytest.raises(InputError, match=r"model\.width"):
        models.build(name, shape_of(name), 10, width=value)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(InputError, match=r"model\.norm must be 'group' or 'batch' \(got 'layer'\)"):
        models.build("slim_resnet18", (1, 8, 8), 10, norm="layer")


def test_images_too_small_for_a_network_are_refused():
    with pytest.raises(InputError, match=r"cnn needs images of at least 4 x 4 pixels \(got 2 x 8\)"):
        models.build("cnn", (1, 2, 8), 10)


@every_network
@pytest.mark.parametrize("shape", [(), (64,), (8, 8), (1, 8, 8), (3, 1, 8, 8)], ids=str)
def test_inputs_of_another_kind_are_refused(name, shape):
    if len(shape) == (1 if is_text(name) else 3):
        assert models.build(name, shape, 10).modality == models.modality(name)
        return
    needs = r"texts of shape \(length\)" if is_text(name) else r"images of shape \(channels, height, width\)"
    with pytest.raises(InputError, match=rf"model\.name: {name} needs {needs} \(got inputs of shape \("):
        models.build(name, shape, 10)

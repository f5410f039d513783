"""A body in bfloat16: weights and all that comes out of it stay float32."""

import pytest
import torch

import models
from errors import InputError
from models.stages import Latent
from randomness import generator

OF_ONE_TASK = [name for name in models.names() if models.modality(name) != "record"]
SMALL = {"vit_tiny": {"width": 32, "depth": 2, "heads": 2}, "mobilenet_v2": {"width": 16}, "vgg11": {"width": 8}}


def both(name):
    """The network in float32 and in bfloat16, with the same tensors, and inputs for it."""
    text = models.modality(name) == "text"
    shape = (24,) if text else (3, 16, 16)
    draw = torch.Generator().manual_seed(0)
    inputs = (
        torch.randint(32, 120, (4, *shape), generator=draw).byte() if text else torch.rand(4, *shape, generator=draw)
    )
    found = []
    for precision in ("float32", "bfloat16"):
        options = {**SMALL.get(name, {}), "precision": precision}
        architecture = models.Architecture(name, shape, 5, options)
        found.append(architecture.load(architecture.initial(generator(0, "model"))))
    return *found, inputs


@pytest.mark.parametrize("name", OF_ONE_TASK)
def test_features_and_gradients_are_float32_and_near_those_of_float32(name):
    whole, half, inputs = both(name)
    wanted, got = whole.features(inputs), half.features(inputs)
    assert got.dtype is torch.float32
    assert not torch.equal(got, wanted)
    assert (got - wanted).norm() < 0.05 * wanted.norm()
    for model in (whole, half):
        model(inputs).square().mean().backward()
    assert {kind for each in half.parameters() for kind in (each.dtype, each.grad.dtype)} == {torch.float32}
    one, other = (torch.cat([each.grad.flatten() for each in model.parameters()]) for model in (whole, half))
    assert torch.cosine_similarity(one, other, dim=0) > 0.8


@pytest.mark.parametrize("name", OF_ONE_TASK)
def test_the_same_inputs_give_the_same_bits(name):
    _, half, inputs = both(name)
    assert torch.equal(half(inputs), half(inputs))


@pytest.mark.parametrize("name", OF_ONE_TASK)
def test_the_states_are_those_of_any_precision(name):
    whole, half, _ = both(name)
    assert {key: (each.shape, each.dtype) for key, each in whole.state_dict().items()} == {
        key: (each.shape, each.dtype) for key, each in half.state_dict().items()
    }


def test_latent_outputs_are_float32():
    _, half, inputs = both("slim_resnet18")
    latent, logits = Latent(half, "stages")(inputs)
    assert {each.dtype for each in (*latent, logits)} == {torch.float32}


def test_another_precision_is_refused():
    with pytest.raises(InputError, match=r"model\.precision.*'float32' or 'bfloat16'.*float16"):
        models.check("cnn", {"precision": "float16"})
    with pytest.raises(InputError, match="no option 'precision'"):
        models.check("multimodal", {"precision": "bfloat16"})

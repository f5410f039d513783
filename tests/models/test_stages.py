"""The stages of a network: as many vectors an image as stages, of one width whatever the batch."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import models
from models.stages import FEW, Latent, dimensions, stages
from randomness import generator

IMAGE_NETWORKS = [name for name in models.names() if models.modality(name) == "image"]
OPTIONS = {"mlp": {"width": 12}, "resnet18": {"width": 4}, "vit_tiny": {"depth": 5}}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@cache
def known(name: str):
    """One network for several tests, which only read it."""
    return network(name)


def network(name: str, shape=(1, 8, 8), **options):
    architecture = models.Architecture(name, shape, 10, OPTIONS.get(name, {}) | options)
    return architecture.load(architecture.initial(generator(0, name))).eval()


def pictures(count: int, shape=(1, 8, 8)):
    return torch.rand(count, *shape, generator=generator(1)) * 2 - 1


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_every_network_has_stages_of_constant_width(name):
    model = known(name)
    latent = Latent(model, "stages")
    widths = dimensions(latent, pictures(2))
    assert len(widths) == len(stages(model)) >= 2
    for count in (1, 3):
        vectors, logits = latent(pictures(count))
        assert [tuple(each.shape) for each in vectors] == [(count, width) for width in widths]
        assert torch.equal(logits, model(pictures(count)))


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_the_penultimate_layer_is_the_features(name):
    model = known(name)
    (found,), logits = Latent(model, "penultimate")(pictures(3))
    assert torch.equal(found, model.features(pictures(3)))
    assert torch.equal(logits, model(pictures(3)))


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_every_stage_has_parameters_before_it_and_the_input_is_none(name):
    """Each stage's vector depends on parameters that the one before it does not depend on."""
    model = known(name)
    vectors, _ = Latent(model, "stages")(pictures(3))
    heard: set[str] = set()
    parameters = dict(model.named_parameters())
    for each in vectors:
        weights = torch.rand(each.shape, generator=generator(2))
        gradients = torch.autograd.grad(
            (each * weights).sum(), parameters.values(), retain_graph=True, allow_unused=True
        )
        used = {key for key, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
        assert heard < used
        heard = used


def test_stages_are_pooled_over_places_and_tokens():
    model, x = network("slim_resnet18", width=2), pictures(2)
    vectors = list(Latent(model, "stages")(x)[0])
    maps = torch.relu(model.stem(x))
    for stage, found in zip(model.stages, vectors, strict=True):
        maps = stage(maps)
        torch.testing.assert_close(found, maps.flatten(2).mean(dim=2))
    model = network("vit_tiny")
    tokens: list[torch.Tensor] = []
    model.blocks[-1].register_forward_hook(lambda module, inputs, output: tokens.append(output))
    vectors, _ = Latent(model, "stages")(x)
    torch.testing.assert_close(vectors[-1], tokens[0].mean(dim=1))


@pytest.mark.parametrize(
    ("count", "ends"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 4])]
)
def test_a_row_of_blocks_has_at_most_four_stages_first_to_last(count, ends):
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(count))
    found = stages(model)
    assert [list(model.blocks).index(each) for each in found] == ends
    assert len(found) <= FEW


def test_a_network_that_reads_texts_has_stages_too():
    model = network("text_transformer", (20,), vocabulary=64, tokens=8, width=8, heads=2, depth=2)
    texts = torch.randint(1, 250, (3, 20), generator=generator(3), dtype=torch.uint8)
    vectors, logits = Latent(model, "stages")(texts)
    assert [tuple(each.shape) for each in vectors] == [(3, 8)] * 2
    assert torch.equal(logits, model(texts))


def test_the_widths_are_asked_without_touching_the_network():
    model = network("slim_resnet18", width=2, norm="batch").train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    assert list(dimensions(Latent(model, "stages"), pictures(2))) == [2, 4, 8, 16]
    assert model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())

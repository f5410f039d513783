"""A foundation model with a trainable part: it starts as it was, F never changes, and what it decides by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from errors import InputError
from models.adapted import Adapted, ClassMeans, Collaborative
from models.adapter import Adapter
from models.backbones import untrained
from models.foundation import Foundation, FoundationParameters
from models.initial import initialise
from models.registry import FAR
from randomness import generator

PARTS = ("head", "adapter", "lora")
SHAPE, CLASSES, RANK = (1, 8, 8), 10, 3
NETWORKS = {
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2},
    "mlp": {"name": "mlp", "width": 24, "depth": 2},
}
EVERY_NETWORK = {
    "cnn": {"width": 4},
    "cnn4": {"width": 8},
    "mlp": {"width": 8},
    "mobilenet_v2": {"width": 4},
    "resnet18": {"width": 4},
    "slim_resnet18": {"width": 4},
    "text_transformer": {"vocabulary": 64, "tokens": 8, "width": 8, "heads": 2, "depth": 2},
    "vgg11": {"width": 4},
    "vit_tiny": {"width": 16, "depth": 2, "heads": 2},
}


def foundation_of(network: str = "vit_tiny", seed: int = 0) -> Foundation:
    """Frozen, untrained, with two general heads."""
    backbone = untrained(FoundationParameters(network=NETWORKS[network], seed=seed), SHAPE)
    foundation = Foundation(backbone, {"parity": 2, "above_four": 2})
    for head in foundation.general.values():
        initialise(head, generator(seed, "general"))
    return foundation.requires_grad_(False)


def images(count: int = 12) -> torch.Tensor:
    return torch.rand(count, *SHAPE, generator=generator(0, "images")) * 2 - 1


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in module.state_dict().items()}


def train(adapted: Adapted, steps: int = 5) -> float:
    """Steps of Adam on psi; returns by how much the loss fell."""
    psi, inputs = list(adapted.psi().values()), images()
    labels, adam, losses = torch.arange(len(inputs)) % CLASSES, torch.optim.Adam(psi, lr=0.05), []
    for _ in range(steps):
        losses.append(F.cross_entropy(adapted(inputs), labels))
        adam.zero_grad()
        losses[-1].backward()
        adam.step()
    return (losses[0] - losses[-1]).item()


# psi


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("part", PARTS)
def test_the_trainable_part_starts_as_the_identity(part, network):
    foundation = foundation_of(network)
    adapted, inputs = Adapted(foundation, CLASSES, part, 0, rank=RANK), images()
    assert torch.equal(adapted.features(inputs), foundation.features(inputs))
    for task, model in adapted.general().items():
        assert torch.equal(model(inputs), foundation.general[task](foundation.features(inputs)))


@pytest.mark.parametrize("part", PARTS)
def test_training_psi_moves_psi_alone(part):
    foundation = foundation_of()
    before = snapshot(foundation)
    adapted = Adapted(foundation, CLASSES, part, 0, rank=RANK)
    own = snapshot(adapted)
    assert train(adapted) > 0.01
    assert all(torch.equal(each, before[name]) for name, each in foundation.state_dict().items())
    moved = {name for name, each in adapted.state_dict().items() if not torch.equal(each, own[name])}
    assert moved == set(adapted.psi())
    assert not any(parameter.requires_grad for parameter in foundation.parameters())


def test_what_psi_is_of():
    width = NETWORKS["vit_tiny"]["width"]
    shapes = {
        part: {
            name: tuple(each.shape)
            for name, each in Adapted(foundation_of(), CLASSES, part, 0, rank=RANK).psi().items()
        }
        for part in PARTS
    }
    head = {"head.weight": (CLASSES, width), "head.bias": (CLASSES,)}
    assert shapes["head"] == head
    assert shapes["adapter"] == head | {
        "adapter.down.weight": (RANK, width),
        "adapter.down.bias": (RANK,),
        "adapter.up.weight": (width, RANK),
        "adapter.up.bias": (width,),
    }
    low_rank = {name: shape for name, shape in shapes["lora"].items() if name not in head}
    assert {name: shapes["lora"][name] for name in head} == head
    assert len(low_rank) == 2 * len(foundation_of().backbone.adaptable) > 0
    assert all(shape[0] == RANK if "lora_A" in name else shape[1] == RANK for name, shape in low_rank.items())


@pytest.mark.parametrize("part", PARTS)
def test_psi_is_drawn_from_the_seed_alone(part):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = snapshot(Adapted(foundation_of(), CLASSES, part, 0, rank=RANK))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again, other = (snapshot(Adapted(foundation_of(), CLASSES, part, seed, rank=RANK)) for seed in (0, 1))
    assert all(torch.equal(each, again[name]) for name, each in one.items())
    differ = {name for name, each in one.items() if not torch.equal(each, other[name])}
    assert differ >= {"head.weight", "head.bias"}
    assert (part == "lora") == any("lora_A" in name for name in differ)


@pytest.mark.parametrize("part", PARTS)
def test_psi_alone_carries_what_was_learnt(part):
    taught = Adapted(foundation_of(), CLASSES, part, 0, rank=RANK)
    train(taught)
    fresh, inputs = Adapted(foundation_of(), CLASSES, part, 5, rank=RANK), images()
    assert not torch.equal(fresh(inputs), taught(inputs))
    fresh.load_psi({name: each.detach() for name, each in taught.psi().items()})
    assert torch.equal(fresh(inputs), taught(inputs))


def test_another_psi_is_refused():
    head, adapter = (Adapted(foundation_of(), CLASSES, part, 0, rank=RANK) for part in ("head", "adapter"))
    with pytest.raises(ValueError, match=r"not this psi: adapter\.down\.bias"):
        head.load_psi(dict(adapter.psi()))


@pytest.mark.parametrize("part", ["head", "adapter"])
def test_features_that_were_kept_serve_as_well_as_the_samples(part):
    foundation, inputs = foundation_of(), images()
    adapted = Adapted(foundation, CLASSES, part, 0, rank=RANK)
    train(adapted)
    assert adapted.frozen
    assert torch.equal(adapted.from_features(foundation.features(inputs)), adapted(inputs))


def test_only_lora_changes_features_of_the_backbone():
    lora, inputs = Adapted(foundation_of(), CLASSES, "lora", 0, rank=RANK), images()
    before = lora.foundation.features(inputs)
    train(lora)
    assert not lora.frozen
    assert not torch.equal(lora.foundation.features(inputs), before)
    assert torch.equal(foundation_of().features(inputs), before)


def test_general_heads_see_the_adapted_features():
    adapted, inputs = Adapted(foundation_of(), CLASSES, "adapter", 0, rank=RANK), images()
    train(adapted)
    features = adapted.foundation.features(inputs)
    for task, model in adapted.general().items():
        head = adapted.foundation.general[task]
        assert torch.equal(model(inputs), head(adapted.adapter(features)))
        assert not torch.equal(model(inputs), head(features))


# the adapter and the last stage of a small model


def test_the_adapter_by_hand():
    adapter = initialise(Adapter(5, 2), generator(0, "adapter"))
    h = torch.rand(4, 5, generator=generator(0, "features"))
    assert torch.equal(adapter(h), h)
    with torch.no_grad():
        adapter.up.weight.copy_(torch.rand(5, 2, generator=generator(0, "up")))
        adapter.up.bias.fill_(0.5)
    inner = h @ adapter.down.weight.T + adapter.down.bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    torch.testing.assert_close(adapter(h), h + gelu @ adapter.up.weight.T + 0.5)


def shape_of(name: str) -> tuple[int, ...]:
    return (16,) if models.modality(name) == "text" else SHAPE


@pytest.mark.parametrize("name", [name for name in models.names() if models.modality(name) != "record"])
def test_every_network_may_have_an_adapter_that_starts_as_the_identity(name):
    options = EVERY_NETWORK[name]
    plain, fitted = (models.build(name, shape_of(name), CLASSES, **options, **more) for more in ({}, {"adapter": 3}))
    plain, fitted = (initialise(each, generator(0, "model")).eval() for each in (plain, fitted))
    added = {key for key in fitted.state_dict() if key.startswith("adapter.")}
    assert fitted.state_dict().keys() - added == plain.state_dict().keys()
    assert {key for key in added if "up" in key} == {key for key in added if not fitted.state_dict()[key].any()}
    fitted.load_state_dict({**fitted.state_dict(), **plain.state_dict()})
    draw = generator(0, "inputs")
    inputs = torch.randint(97, 122, (3, 16), generator=draw, dtype=torch.uint8)
    inputs = images(3) if models.modality(name) == "image" else inputs
    assert torch.equal(fitted(inputs), plain(inputs))
    assert torch.equal(fitted.adapter(plain.features(inputs)), fitted.features(inputs))


@pytest.mark.parametrize("features", [None, 6])
@pytest.mark.parametrize("name", [name for name in models.names() if models.modality(name) != "record"])
def test_the_last_stage_is_a_part_of_the_body_that_ends_it(name, features):
    more = {"features": features} if features else {}
    network = models.build(name, shape_of(name), CLASSES, adapter=2, **EVERY_NETWORK[name], **more)
    stage = {id(each) for part in network.last_stage() for each in part.parameters()}
    names = [key for key, each in network.named_parameters() if id(each) in stage]
    body = [key for key, _ in network.named_parameters() if not key.startswith(("head", "adapter"))]
    assert names and set(names) < set(body)
    own = [each for key, each in network.named_parameters() if key in names and not key.startswith("projection")]
    assert any(each.dim() > 1 for each in own)  # more than a normalisation
    assert not any(key.startswith(("head.", "adapter.")) for key in names)
    assert ("projection.weight" in names) == bool(features)
    order = [body.index(key) for key in names]
    assert set(order) == set(range(min(order), len(body)))  # nothing after it is left out


def test_an_adapter_of_no_units_is_refused():
    with pytest.raises(InputError, match=r"model\.adapter"):
        models.check("mlp", {"adapter": 0})


# nearest class mean


def test_class_means_by_hand():
    means = torch.tensor([[2.0, 1.0], [0.0, 1.0], [9.0, 9.0], [1.0, 4.0]])
    known = torch.tensor([True, True, False, True])
    logits = ClassMeans(None, means, known, 0.5).from_features(torch.tensor([[1.0, 5.0], [4.0, 2.0]]))
    centre = (1.0, 2.0)  # of the three known ones
    for row, h in enumerate([(1.0, 5.0), (4.0, 2.0)]):
        for k in (0, 1, 3):
            a, b = ([x - c for x, c in zip(v, centre, strict=True)] for v in (h, means[k].tolist()))
            cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
            assert logits[row, k].item() == pytest.approx(cosine / 0.5, abs=1e-6)
        assert logits[row, 2].item() == FAR


def test_means_of_unknown_classes_are_not_looked_at():
    draw, known = generator(0, "means"), torch.tensor([True, False, True, True])
    means, features = torch.rand(4, 6, generator=draw), torch.rand(5, 6, generator=draw)
    other = torch.where(known[:, None], means, torch.nan)
    one, two = (ClassMeans(None, each, known, 0.1).from_features(features) for each in (means, other))
    assert torch.equal(one, two)


def test_class_means_do_not_care_about_what_all_features_share():
    draw, known = generator(0, "means"), torch.ones(4, dtype=torch.bool)
    means, features = torch.rand(4, 6, generator=draw), torch.rand(5, 6, generator=draw)
    plain = ClassMeans(None, means, known, 0.1).from_features(features)
    shifted = ClassMeans(None, means + 3, known, 0.1).from_features(features + 3)
    torch.testing.assert_close(plain, shifted, atol=1e-4, rtol=1e-4)
    at_means = ClassMeans(None, means, known, 0.1).from_features(means)
    assert at_means.argmax(dim=1).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(at_means.diagonal(), torch.full((4,), 10.0))


# both together


class Constant(nn.Module):
    """The same logits for every input."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(inputs), -1)


OWN = torch.tensor([True, True, False, True, False])
CERTAIN, UNIFORM = torch.tensor([0.0, 0.0, 7.0, 200.0, -3.0]), torch.zeros(5)


def together(small: torch.Tensor, foundation: torch.Tensor, own: torch.Tensor = OWN) -> torch.Tensor:
    """Probabilities over the own classes of one input."""
    return Collaborative(Constant(small), Constant(foundation), own)(torch.zeros(1, 1))[0, own].exp()


@pytest.mark.parametrize("certain_first", [True, False])
def test_where_one_is_certain_and_the_other_knows_nothing_the_certain_one_decides(certain_first):
    pair = (CERTAIN, UNIFORM) if certain_first else (UNIFORM, CERTAIN)
    torch.testing.assert_close(together(*pair), torch.tensor([0.0, 0.0, 1.0]))


def test_it_does_not_matter_which_is_called_small():
    draw = generator(0, "logits")
    for _ in range(5):
        one, other = torch.randn(2, 5, generator=draw) * 3
        torch.testing.assert_close(together(one, other), together(other, one))


def test_two_that_are_equally_sure_count_the_same():
    other = torch.tensor([200.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(together(CERTAIN, other), torch.tensor([0.5, 0.0, 0.5]))
    torch.testing.assert_close(together(UNIFORM, UNIFORM), torch.full((3,), 1 / 3))


def test_the_gate_by_hand():
    small, foundation = torch.tensor([2.0, 0.0, 9.0, 1.0, 9.0]), torch.tensor([0.0, 1.0, -9.0, 0.5, 50.0])
    p, q = ([math.exp(logits[k]) for k in (0, 1, 3)] for logits in (small, foundation))
    p, q = ([each / sum(values) for each in values] for values in (p, q))
    h_p, h_q = (-sum(each * math.log(each) for each in values) for values in (p, q))
    share = h_q / (h_p + h_q)
    expected = torch.tensor([share * a + (1 - share) * b for a, b in zip(p, q, strict=True)])
    torch.testing.assert_close(together(small, foundation), expected)
    torch.testing.assert_close(expected.sum(), torch.tensor(1.0))


def test_classes_that_were_never_met_come_behind_in_the_small_models_order():
    small, foundation = torch.tensor([-90.0, -80.0, 60.0, -70.0, 90.0]), torch.tensor([0.0, 0.0, 99.0, 0.0, 0.0])
    found = Collaborative(Constant(small), Constant(foundation), OWN)(torch.zeros(1, 1))[0]
    assert found[OWN].min() > found[~OWN].max()
    assert found[4] > found[2]
    assert set(found.argsort(descending=True)[3:].tolist()) == {2, 4}

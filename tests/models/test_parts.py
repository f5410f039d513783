"""Parts of a foundation model that learn: which by name and number; it starts as it was, and they alone change."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

from errors import InputError
from models.blocks import stack
from models.sharing import shared_copy

BLOCKS, WIDTH, CLASSES, RANK = 4, 16, 5, 3
PARTS = {
    "head": {},
    "lora": {"rank": RANK},
    "ffa_lora": {"rank": RANK},
    "adapters": {"rank": RANK},
    "biases": {},
    "everything": {},
    "top_blocks": {"added": 2},
}
HEAD = {"head.weight", "head.bias"}


@pytest.fixture(params=PARTS)
def part(request) -> str:
    return request.param


def numbers(parameters) -> int:
    return sum(each.numel() for each in parameters)


def linear_sizes(layers) -> list[tuple[int, int]]:
    """Inputs and outputs of each layer, whichever way its weight lies."""
    sizes = []
    for layer in layers:
        given = layer.out_features if isinstance(layer, nn.Linear) else layer.nf
        sizes.append((layer.weight.numel() // given, given))
    return sizes


def expected_numbers(part: str, data) -> int:
    """Of trainable parameters, without the head."""
    backbone = data.backbone
    adapted = linear_sizes(backbone.get_submodule(name) for name in backbone.adaptable)
    return {
        "head": lambda: 0,
        "lora": lambda: sum(RANK * (inputs + given) for inputs, given in adapted),
        "ffa_lora": lambda: sum(RANK * given for _, given in adapted),
        "adapters": lambda: BLOCKS * (2 * WIDTH * RANK + RANK + WIDTH),
        "biases": lambda: numbers(each for name, each in backbone.named_parameters() if name.endswith("bias")),
        "everything": lambda: numbers(backbone.parameters()),
        "top_blocks": lambda: numbers(each for block in stack(backbone).blocks[-2:] for each in block.parameters()),
    }[part]()


NAMES = {
    "lora": r"foundation\.backbone\..*\.lora_[AB]\.default\.weight",
    "ffa_lora": r"foundation\.backbone\..*\.lora_B\.default\.weight",
    "adapters": r"foundation\.backbone\..*\.\d\.adapter\.(down|up)\.(weight|bias)",
    "biases": r"foundation\.backbone\..*bias",
    "everything": r"foundation\.backbone\..*",
    "top_blocks": r"foundation\.backbone\..*[._][23]\..*",
}


def test_it_starts_as_the_foundation_was(transformer, part):
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns where weights lie the other way round
        model = transformer.adapted(part, **PARTS[part])
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn from the generator that all share"
    with torch.no_grad():
        assert torch.equal(model.features(transformer.inputs), transformer.features)
    assert not any(each.training for each in model.foundation.modules())


def test_what_learns_by_name_and_number(transformer, part):
    psi = transformer.adapted(part, **PARTS[part]).psi()
    own = psi.keys() - HEAD
    assert psi.keys() >= HEAD and (part == "head") == (not own)
    assert all(re.fullmatch(NAMES[part], name) for name in own)
    assert numbers(psi.values()) == expected_numbers(part, transformer) + CLASSES * (WIDTH + 1)


@pytest.mark.parametrize("transformer", ["vit_tiny"], indirect=True)
def test_the_numbers_of_the_tiny_vision_transformer_by_hand(transformer):
    block = 12 * WIDTH**2 + 13 * WIDTH  # attention 4 w^2 + 4 w, MLP 8 w^2 + 5 w, two norms of 2 w
    patches, token, positions, norm = 4 * WIDTH + WIDTH, WIDTH, 17 * WIDTH, 2 * WIDTH
    by_hand = {
        "lora": BLOCKS * RANK * (4 * WIDTH + 2 * WIDTH + 5 * WIDTH + 5 * WIDTH),
        "ffa_lora": BLOCKS * RANK * (3 * WIDTH + WIDTH + 4 * WIDTH + WIDTH),
        "biases": BLOCKS * (2 * WIDTH + 4 * WIDTH + 5 * WIDTH) + 2 * WIDTH,
        "everything": BLOCKS * block + patches + token + positions + norm,
        "top_blocks": 2 * block,
    }
    for part, count in by_hand.items():
        psi = transformer.adapted(part, **PARTS[part]).psi()
        assert numbers(each for name, each in psi.items() if name not in HEAD) == count, part


def test_it_learns_and_the_foundation_does_not(transformer, part):
    one, other = (transformer.adapted(part, **PARTS[part]) for _ in range(2))
    started = {name: each.clone() for name, each in one.psi().items()}
    losses = transformer.train(one)
    assert losses[-1] < losses[0] - 0.01
    assert transformer.is_untouched()
    assert any(not torch.equal(each, started[name]) for name, each in one.psi().items() if name not in HEAD) or (
        part == "head"
    )
    assert all(torch.equal(each, started[name]) for name, each in other.psi().items()), "two share nothing that learns"
    with torch.no_grad():
        assert torch.equal(one.features(transformer.inputs), transformer.features) == (part == "head")


def test_what_does_not_learn_is_the_foundations_own(transformer, part):
    model = transformer.adapted(part, **PARTS[part])
    base = {each.data_ptr() for each in transformer.foundation.parameters()}
    psi = {each.data_ptr() for each in model.psi().values()}
    frozen = {each.data_ptr() for name, each in model.named_parameters() if name not in model.psi()}
    drawn_once = {each.data_ptr() for name, each in model.named_parameters() if part == "ffa_lora" and "lora_A" in name}
    assert frozen - drawn_once <= base and not psi & base
    replaced = {"biases", "everything", "top_blocks"}
    left = numbers(each for name, each in model.named_parameters() if each.data_ptr() in frozen - drawn_once)
    gone = expected_numbers(part, transformer) if part in replaced else 0
    assert left == numbers(transformer.foundation.parameters()) - gone


def test_learnt_values_are_all_that_another_needs(transformer, part):
    taught = transformer.adapted(part, **PARTS[part])
    transformer.train(taught, steps=3)
    fresh = transformer.adapted(**taught.options).load_psi(taught.psi())
    with torch.no_grad():
        assert torch.equal(fresh(transformer.inputs), taught(transformer.inputs))


def test_a_copy_learns_by_itself(transformer, part):
    model = transformer.adapted(part, **PARTS[part])
    copied = shared_copy(model, owns=model.psi().keys().__contains__)
    assert copied.psi().keys() == model.psi().keys()
    transformer.train(copied, steps=2)
    with torch.no_grad():
        assert torch.equal(model.features(transformer.inputs), transformer.features)
        assert not torch.equal(copied(transformer.inputs), model(transformer.inputs))
    before, after = (dict(each.named_parameters()) for each in (model, copied))
    assert all((after[name] is before[name]) == (name not in model.psi()) for name in before)
    assert transformer.is_untouched()


@pytest.mark.parametrize("part", ["lora", "ffa_lora", "adapters"], indirect=True)
def test_it_is_drawn_from_the_seed_alone(transformer, part):
    one, again, other = (transformer.adapted(part, seed=seed, **PARTS[part]).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    own = r"head\..*|.*\.lora_A\.default\.weight|.*\.adapter\.down\.(weight|bias)"
    assert differ == {name for name in one if re.fullmatch(own, name)}


def test_blocks_have_the_names_under_which_they_are_found(transformer, part):
    model = transformer.adapted(part, **PARTS[part])
    assert len(model.blocks) == BLOCKS
    assert all(model.get_submodule(name) is block for name, block in model.blocks.items())
    units = list(model.units)
    assert units == (list(model.blocks)[-2:] if part == "top_blocks" else [])
    if units:
        assert {name for name in model.psi() if not name.startswith(tuple(f"{unit}." for unit in units))} == HEAD


def test_lora_and_ffa_lora_start_from_the_same_a(pretrained):
    data = pretrained("gpt2")
    lora, ffa_lora = (data.adapted(part, rank=RANK).state_dict() for part in ("lora", "ffa_lora"))
    assert lora.keys() == ffa_lora.keys()
    assert all(torch.equal(lora[name], ffa_lora[name]) for name in lora)


# what a network cannot have


def test_a_network_without_biases_is_refused(pretrained):
    with pytest.raises(InputError, match=r"foundation: the network has no biases"):
        pretrained("mistral").adapted("biases")


def test_more_top_blocks_than_there_are_are_refused(pretrained):
    assert len(pretrained("vit_tiny").adapted("top_blocks", added=BLOCKS).units) == BLOCKS
    with pytest.raises(InputError, match=r"added must be at most the network's 4 blocks \(got 5\)"):
        pretrained("vit_tiny").adapted("top_blocks", added=5)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("lora", "no layers for LoRA to adapt"),
        ("ffa_lora", "no layers for LoRA to adapt"),
        ("adapters", "no row of transformer blocks"),
        ("top_blocks", "no row of transformer blocks"),
    ],
)
def test_a_network_that_cannot_have_a_part_is_refused(part, said, pretrained):
    with pytest.raises(InputError, match=said):
        pretrained("resnet18").adapted(part, **PARTS[part])


@pytest.mark.parametrize("part", ["head", "biases", "everything"])
def test_a_network_without_blocks_may_have_these(part, pretrained):
    data = pretrained("resnet18")
    model = data.adapted(part)
    with torch.no_grad():
        assert torch.equal(model.features(data.inputs), data.features)
    losses = data.train(model)
    assert losses[-1] < losses[0] and data.is_untouched()


@pytest.mark.parametrize("part", ["adapters", "blocks", "top_blocks"])
def test_a_block_that_is_run_several_times_still_is(part, pretrained):
    """ALBERT: its configuration's number of layers is not that of its blocks."""
    data = pretrained("albert")
    model = data.adapted(part, **({"added": 1} if part != "adapters" else {"rank": RANK}))
    ran = []
    next(iter(model.blocks.values())).register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        assert torch.equal(model.features(data.inputs), data.features)
    assert len(ran) == BLOCKS

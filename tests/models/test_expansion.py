"""Added blocks: they change nothing until they learn, they learn alone, and they are saved alone."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from errors import InputError
from models import Architecture
from models.blocks import outputs, stack
from models.expansion import AddedBlock, added_blocks, expand, places
from models.sharing import shared_copy
from randomness import generator
from tasks.files import file_digest, write_json
from tasks.foundation import WEIGHTS
from tasks.saved import content, restored
from tasks.store import decode, encode

BLOCKS = 4  # of every network here
POSITIONS = ("interleaved", "top")


def moved(block: AddedBlock) -> None:
    """As training would: everything that an added block may learn has other values."""
    with torch.no_grad():
        for name, each in block.named_parameters():
            each.add_(0.2 * torch.randn(each.shape, generator=generator(1, name)))


def gradients(model, data) -> dict[str, bool]:
    """Of which trainable parameters the gradient is not zero."""
    model.zero_grad()
    F.cross_entropy(model(data.inputs), torch.arange(len(data.inputs))).backward()
    return {name: bool(each.grad.any()) for name, each in model.psi().items()}


# where they stand


@given(split=st.integers(1, 12), added=st.integers(1, 12))
def test_interleaved_blocks_come_after_every_split_th_original(split, added):
    blocks = split * added
    row = ["added" if place in places(blocks, added, "interleaved") else "own" for place in range(blocks + added)]
    assert row == [*["own"] * split, "added"] * added


@given(blocks=st.integers(1, 48), added=st.integers(1, 48))
def test_on_top_they_come_after_all_others(blocks, added):
    assert places(blocks, added, "top") == tuple(range(blocks, blocks + added))


@given(blocks=st.integers(1, 48), added=st.integers(1, 60))
def test_a_number_that_does_not_divide_the_blocks_is_refused(blocks, added):
    if blocks % added:
        with pytest.raises(InputError, match=rf"added must divide the network's {blocks} blocks .* \(got {added}\)"):
            places(blocks, added, "interleaved")
    else:
        assert len(places(blocks, added, "interleaved")) == added


def test_the_network_says_it_as_well(pretrained):
    with pytest.raises(InputError, match=r"added must divide the network's 4 blocks .* \(got 3\); one of 1, 2, 4"):
        expand(pretrained("vit_tiny").backbone, 3)
    assert len(added_blocks(expand(pretrained("vit_tiny").backbone, 3, "top"))) == 3


def test_what_is_no_transformer_is_refused(pretrained):
    with pytest.raises(InputError, match=r"foundation: this network has no row of transformer blocks.*got OwnNetwork"):
        expand(pretrained("resnet18").backbone, 1)


# before training


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("added", [1, 2, 4])
def test_an_expanded_network_computes_exactly_what_it_did(transformer, added, position):
    expanded = expand(transformer.backbone, added, position)
    ran = []
    for place, block in enumerate(stack(expanded).blocks):
        block.register_forward_hook(lambda *_, place=place: ran.append(place))
    with torch.no_grad():
        assert torch.equal(expanded(transformer.inputs), transformer.features)
    assert ran == list(range(BLOCKS + added)), "all of them run, from the bottom"
    at = tuple(place for place, each in enumerate(stack(expanded).blocks) if isinstance(each, AddedBlock))
    assert at == places(BLOCKS, added, position)
    assert {each.gate is not None for each in added_blocks(expanded)} == {transformer.post_norm}
    assert len(stack(transformer.backbone).blocks) == BLOCKS and transformer.is_untouched()


def test_post_norm_blocks_need_the_gate_and_pre_norm_ones_may_have_it(transformer):
    for gated in (True, False):
        expanded = expand(transformer.backbone, 2, gated=gated)
        with torch.no_grad():
            same = torch.equal(expanded(transformer.inputs), transformer.features)
        assert same == (gated or not transformer.post_norm)


@pytest.mark.parametrize("position", POSITIONS)
def test_an_added_block_is_a_copy_of_the_original_below_it(transformer, position):
    row = stack(expand(transformer.backbone, 2, position, gated=transformer.post_norm)).blocks
    below = None
    for block in row:
        if not isinstance(block, AddedBlock):
            below = block
            continue
        zero = [] if transformer.post_norm else [id(each) for out in outputs(block) for each in out.parameters()]
        for name, each in block.block.named_parameters():
            assert not each.any() if id(each) in zero else torch.equal(each, below.get_parameter(name)), name


@pytest.mark.parametrize("name", ["vit_tiny", "text_transformer"])
def test_the_expanded_network_is_its_blocks_one_after_another(name, pretrained):
    """By hand, with blocks that do something."""
    backbone, inputs = pretrained(name).backbone, pretrained(name).inputs
    expanded = expand(backbone, 2, start="random", seed=3)
    arguments, hidden = [], {}
    first, last = stack(backbone).blocks[0], stack(expanded).blocks[-1]
    hooks = [
        first.register_forward_hook(lambda module, given, found: arguments.extend(given)),
        last.register_forward_hook(lambda module, given, found: hidden.update(end=found)),
    ]
    with torch.no_grad():
        backbone(inputs), expanded(inputs)
        for hook in hooks:
            hook.remove()
        tokens, *present = arguments
        own, (low, high) = stack(backbone).blocks, added_blocks(expanded)
        for block in (own[0], own[1], low.block, own[2], own[3], high.block):
            tokens = block(tokens, *present)
    assert torch.equal(hidden["end"], tokens)
    assert not torch.equal(low.block.mlp[0].weight, own[1].mlp[0].weight)


def test_a_block_keeps_the_kind_of_attention_that_its_original_has(pretrained):
    qwen2 = pretrained("qwen2").backbone.network
    windows = ["full_attention"] * 2 + ["sliding_attention"] * 2
    assert qwen2.config.layer_types == windows
    for position, origins in (("interleaved", [0, 1, 1, 2, 3, 3]), ("top", [0, 1, 2, 3, 3, 3])):
        network = expand(pretrained("qwen2").backbone, 2, position).network
        assert network.config.num_hidden_layers == 6
        assert network.config.layer_types == [windows[origin] for origin in origins]
        attentions = [layer.self_attn for layer in network.layers]
        assert [each.layer_type for each in attentions] == network.config.layer_types
    assert qwen2.config.num_hidden_layers == BLOCKS and qwen2.config.layer_types == windows


PROJECTIONS = {
    "vit_tiny": ("attention.outputs", "mlp.2"),
    "text_transformer": ("attention.outputs", "mlp.2"),
    "timm": ("attn.proj", "mlp.fc2"),
    "timm_eva": ("attn.proj", "mlp.fc2"),
    "torchvision": ("self_attention.outputs", "mlp.3"),
    "hf_vit": ("attention.o_proj", "mlp.fc2"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen2": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("self_attn.o_proj", "mlp.down_proj"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "bert": ("attention.output.dense", "output.dense"),
    "distilbert": ("attention.out_lin", "ffn.lin2"),
    "mpnet": ("attention.attn.o", "output.dense"),
}


def test_output_projections_are_what_the_libraries_call_them(transformer):
    row = stack(transformer.backbone)
    for name, block in zip(row.names, row.blocks, strict=True):
        assert transformer.backbone.get_submodule(name) is block
        named = [block.get_submodule(each) for each in PROJECTIONS[transformer.name]]
        assert all(one is other for one, other in zip(outputs(block), named, strict=True))


def test_output_projections_give_whole_tokens():
    """CaiT's attention ends with a layer that mixes its heads."""
    import timm

    with torch.device("meta"):
        block = timm.create_model("cait_xxs24_224", depth=1).blocks[0]
    attention, mlp = outputs(block)
    assert attention is block.attn.proj and mlp is block.mlp.fc2


def test_random_blocks_are_drawn_from_the_seed_alone_and_are_no_identity(transformer):
    before = torch.get_rng_state()
    one, again, other = (
        expand(transformer.backbone, 2, start="random", gated=transformer.post_norm, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        found = [each(transformer.inputs) for each in (one, again, other)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], transformer.features)


# switched on and off


def test_every_added_block_takes_part_and_can_be_switched_off(transformer):
    expanded = expand(transformer.backbone, 2)
    for block in added_blocks(expanded):
        with torch.no_grad():
            if block.gate is not None:
                block.gate.fill_(0.5)
            else:
                outputs(block)[1].weight.fill_(0.1)
            changed = expanded(transformer.inputs)
            assert not torch.equal(changed, transformer.features)
            block.on = False
            assert torch.equal(expanded(transformer.inputs), transformer.features)


def test_all_off_the_base_is_back_however_they_were_trained(transformer):
    expanded = expand(transformer.backbone, 4, gated=transformer.post_norm)
    for block in added_blocks(expanded):
        moved(block)
        block.on = False
    with torch.no_grad():
        off_at_once = expanded(transformer.inputs)
        for block in added_blocks(expanded):
            block.on = True
        on = expanded(transformer.inputs)
        for block in added_blocks(expanded):
            block.on = False
        assert torch.equal(expanded(transformer.inputs), transformer.features)
    assert torch.equal(off_at_once, transformer.features), "before any of them ever ran"
    assert not torch.equal(on, transformer.features)


def test_a_block_that_is_off_costs_nothing_once_it_ran(pretrained):
    expanded, inputs = expand(pretrained("bloom").backbone, 1), pretrained("bloom").inputs
    (block,), ran = added_blocks(expanded), []
    block.block.register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        expanded(inputs)
        block.on = False
        assert torch.equal(expanded(inputs), pretrained("bloom").features)
    assert len(ran) == 1


# training


KEYS = ("key.bias", "attention.k_proj.bias", "k_lin.bias", "attn.k.bias")


def test_first_only_the_output_projections_learn_then_everything(transformer):
    model = transformer.adapted("blocks", added=2)
    inside = {name for name in model.psi() if not name.startswith("head.")}
    if transformer.post_norm:
        first = {name for name in inside if name.endswith(".gate")}
        assert len(first) == 2
    else:
        projections = {
            id(each) for block in model.units.values() for out in outputs(block) for each in out.parameters()
        }
        first = {name for name, each in model.psi().items() if id(each) in projections}
        assert len([name for name in first if name.endswith("weight")]) == 4, "two a block"
    moving = gradients(model, transformer)
    assert {name for name in inside if moving[name]} == first
    transformer.train(model, steps=1)
    moving = gradients(model, transformer)
    still = [name for name in inside if not moving[name]]
    # biases of keys add the same to all scores of a query, which softmax does not see
    assert all(name.endswith(KEYS) for name in still), still


def test_psi_is_the_added_blocks_and_the_head(transformer):
    model = transformer.adapted("blocks", added=2)
    psi, units = model.psi(), model.units
    of_units = {f"{name}.{own}" for name, unit in units.items() for own, _ in unit.named_parameters()}
    assert psi.keys() == of_units | {"head.weight", "head.bias"}
    size = sum(each.numel() for each in stack(transformer.backbone).blocks[0].parameters()) + transformer.post_norm
    assert [sum(each.numel() for each in unit.parameters()) for unit in units.values()] == [size, size]
    for name, unit in model.blocks.items():
        assert model.get_submodule(name) is unit
    assert [name for name in model.blocks if name in units] == list(units)


def test_the_base_is_shared_takes_no_gradient_and_stays(transformer):
    one, other = (transformer.adapted("blocks", added=2) for _ in range(2))
    before = [each.clone() for each in other.psi().values()]
    losses = transformer.train(one)
    assert losses[-1] < losses[0]
    assert transformer.is_untouched()
    base = {each.data_ptr() for each in transformer.foundation.parameters()}
    for model in (one, other):
        frozen = [each for name, each in model.named_parameters() if name not in model.psi()]
        assert {each.data_ptr() for each in frozen} == base, "the very same storage"
        assert not any(each.requires_grad or each.grad is not None for each in frozen)
        assert not base & {each.data_ptr() for each in model.psi().values()}
    assert not {each.data_ptr() for each in one.psi().values()} & {each.data_ptr() for each in other.psi().values()}
    assert all(torch.equal(each, was) for each, was in zip(other.psi().values(), before, strict=True))
    with torch.no_grad():
        assert torch.equal(other.features(transformer.inputs), transformer.features)


def test_blocks_that_are_frozen_stay_while_others_learn(transformer):
    model = transformer.adapted("blocks", added=2)
    low, high = model.units.values()
    low.requires_grad_(False)
    before = {name: each.clone() for name, each in low.state_dict().items()}
    transformer.train(model, steps=2)
    assert all(torch.equal(each, before[name]) for name, each in low.state_dict().items())
    assert all(each.grad is None for each in low.parameters())
    assert any(each.grad is not None and each.grad.any() for each in high.parameters())


def test_a_copy_of_an_expanded_network_shares_the_base_too(transformer):
    model = transformer.adapted("blocks", added=2)
    copied = shared_copy(model, owns=model.psi().keys().__contains__)
    transformer.train(copied, steps=2)
    with torch.no_grad():
        assert torch.equal(model.features(transformer.inputs), transformer.features)
        assert not torch.equal(copied.features(transformer.inputs), transformer.features)
    base = {each.data_ptr() for each in transformer.foundation.parameters()}
    assert {each.data_ptr() for name, each in copied.named_parameters() if name not in copied.psi()} == base


# saved


@pytest.mark.parametrize("transformer", ["vit_tiny", "timm", "timm_eva", "hf_vit", "qwen2", "bert"], indirect=True)
def test_saved_and_loaded_it_is_the_same(transformer, tmp_path):
    foundation, architecture = transformer.foundation, Architecture("mlp", (1, 8, 8), 5, {})
    safetensors.torch.save_file(foundation.state_dict(), tmp_path / WEIGHTS)
    tokenizers = [shutil.copy(path, tmp_path) for path in transformer.folder.iterdir()]
    record = {"backbone": foundation.backbone.description(), "general": {"parity": 2}, "beside": {}}
    assert len(tokenizers) == (foundation.backbone.modality == "text" and transformer.name != "text_transformer")
    write_json(tmp_path / "foundation.json", record | {"digest": file_digest(tmp_path / WEIGHTS)})
    model = transformer.adapted("blocks", added=2)
    transformer.train(model)
    tensors, header = content(model, architecture)
    assert tensors.keys() == model.psi().keys()
    assert header["adapted"]["gated"] is transformer.post_norm
    data = encode(tensors, header)
    numbers = sum(each.numel() for unit in model.units.values() for each in unit.parameters())
    numbers += model.head.weight.numel() + model.head.bias.numel()
    assert 4 * numbers <= len(data) <= 4 * numbers + 200 * (len(tensors) + 20), "nothing of the base"
    read = decode(data)
    again = restored(read.tensors, read.header, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(transformer.inputs), model(transformer.inputs))
        assert torch.equal(again.general()["parity"](transformer.inputs), model.general()["parity"](transformer.inputs))
    assert again.options == model.options == json.loads(json.dumps(model.options))


def test_whether_there_is_a_gate_is_recorded_and_not_found_out_again(transformer):
    """A post-norm network that is told to have none has none."""
    for gated in (True, False):
        model = transformer.adapted("blocks", added=1, gated=gated)
        assert model.options["gated"] is gated
        (unit,) = model.units.values()
        assert (unit.gate is not None) is gated


def test_psi_is_loaded_into_a_fresh_one(transformer):
    taught = transformer.adapted("blocks", added=2, position="top")
    transformer.train(taught)
    fresh = transformer.adapted(**taught.options | {"seed": 7})
    with torch.no_grad():
        assert not torch.equal(fresh(transformer.inputs), taught(transformer.inputs))
        fresh.load_psi(taught.psi())
        assert torch.equal(fresh(transformer.inputs), taught(transformer.inputs))

"""FedWeIT: the decomposition, what is sent of it, and that earlier experiences' weights come through."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import methods
from methods import CENTRE, Message, Moment, State
from methods.base import Setting
from methods.decomposition import Decomposed, Layout
from methods.sparse import Entries, Units, largest, share
from methods.training import TrainParameters
from models import Architecture
from models.experts import MostConfident
from randomness import generator
from tasks.saved import content
from tasks.serving import Predictor
from tasks.store import encode

LAYOUT = Layout({"a.weight": torch.Size([3, 2]), "b.weight": torch.Size([2, 2, 2])})
FRACTIONS = st.floats(0.01, 1)


def draw(seed: int) -> torch.Generator:
    return generator(seed, "test")


def build(**params):
    setting = Setting((Architecture("mlp", (1, 8, 8), 10, {"width": 16}),), TrainParameters(), 0, 3, 3)
    kind = methods.get("fedweit")
    return kind(kind.Params(**params), setting)


# the decomposition


def test_a_layout_is_a_bijection_and_spreads_units_over_their_numbers():
    tensors = {name: torch.randn(shape, generator=draw(0)) for name, shape in LAYOUT.shapes.items()}
    again = LAYOUT.tensors(LAYOUT.vector({**tensors, "bias": torch.ones(3)}))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    spread = LAYOUT.spread(torch.arange(5))
    assert spread.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]


def decomposed(base, mask, adaptive, fixed, knowledge, attention=None):
    model = Decomposed(LAYOUT, Network(), base, mask, adaptive, fixed, knowledge)
    if attention is not None:
        model.attention.data = attention
    return model


class Network(nn.Module):
    """Parameters with the names of LAYOUT, and one that is not decomposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Conv2d(2, 2, (2, 1), bias=False)

    def forward(self, inputs):
        return self.a(inputs).sum() + self.b.weight.sum()


def test_weights_are_the_papers_sum():
    """theta = B * m + A + fixed + sum_j alpha_j A_j, alpha being one number for each weight."""
    base, adaptive, fixed = (torch.randn(14, generator=draw(seed)) for seed in range(3))
    mask, knowledge = torch.randn(5, generator=draw(3)), torch.randn(2, 14, generator=draw(4))
    attention = torch.tensor([[0.5, -1.0], [2.0, 3.0]])
    weights = decomposed(base, mask, adaptive, fixed, knowledge, attention).weights()
    units = LAYOUT.tensors(LAYOUT.spread(mask))
    parts = {key: LAYOUT.tensors(each) for key, each in {"B": base, "A": adaptive, "F": fixed}.items()}
    others = [LAYOUT.tensors(each) for each in knowledge]
    for place, name in enumerate(LAYOUT.shapes):
        expected = parts["B"][name] * units[name] + parts["A"][name] + parts["F"][name]
        expected += attention[0, place] * others[0][name] + attention[1, place] * others[1][name]
        torch.testing.assert_close(weights[name], expected)


def test_only_base_mask_adaptive_attention_and_what_is_not_decomposed_are_trained():
    model = decomposed(torch.zeros(14), torch.ones(5), torch.zeros(14), torch.zeros(14), torch.zeros(2, 14))
    model(torch.ones(1, 2)).backward()
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {"base", "mask", "adaptive", "attention", "network.a.bias"}
    assert all(each.grad is not None for name, each in model.named_parameters() if name in trained)


# what is sent


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30), FRACTIONS)
def test_entries_carry_the_largest_and_nothing_else(numbers, fraction):
    vector = torch.tensor(numbers).float()
    entries = Entries(len(vector), fraction)
    sent = entries.encode(vector)
    count = share(fraction, len(vector))
    assert len(sent["places"]) == len(sent["values"]) == count
    entries.check(sent["places"])
    received = entries.decode(sent)
    kept = torch.zeros(len(vector), dtype=torch.bool).index_fill(0, sent["places"].long(), True)
    assert torch.equal(received, torch.where(kept, vector, 0))
    if count < len(vector):
        assert vector[kept].abs().min() >= vector[~kept].abs().max()


@given(st.integers(0, 99), FRACTIONS)
def test_units_carry_whole_units_of_each_weight_where_the_mask_is_largest(seed, fraction):
    units = Units(LAYOUT, fraction)
    vector, mask = torch.randn(14, generator=draw(seed)), torch.randn(5, generator=draw(seed + 1))
    sent = units.encode(vector, mask)
    units.check(sent["places"])
    assert {name: (each.shape, each.dtype) for name, each in sent.items()} == {
        name: (each.shape, each.dtype) for name, each in units.template().items()
    }
    found, places, tensors = [], sent["places"].split(units.counts), LAYOUT.tensors(vector)
    for own, part, (name, shape) in zip(places, mask.split([3, 2]), LAYOUT.shapes.items(), strict=True):
        assert len(own) == share(fraction, shape[0])
        assert set(own.tolist()) == set(part.abs().argsort(descending=True)[: len(own)].tolist())
        found.append(tensors[name][own.long()].flatten())
    assert torch.equal(sent["values"], torch.cat(found))


BAD = {"out of range": [0, 5], "negative": [-1, 2], "twice": [2, 2], "not ascending": [3, 1]}


@pytest.mark.parametrize("places", BAD.values(), ids=BAD)
def test_places_that_a_liar_sends_are_refused(places):
    with pytest.raises(ValueError, match="do not ascend within 0 to 4"):
        Entries(5, 0.4).check(torch.tensor(places, dtype=torch.int32))


def test_of_equal_entries_the_earlier_is_sent():
    assert largest(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2).tolist() == [1, 2]


@pytest.mark.parametrize(("base", "adaptive"), [(0.7, 0.03), (0.25, 0.5), (1.0, 1.0)])
def test_uploads_cost_what_the_shares_say(base, adaptive, laboratory):
    """An mlp of 64, 16 and 16 units: 4 bytes for each unit's place and each number, 8 for each entry of A."""
    lab = laboratory("fedweit", sets=[f"methods.fedweit.base={base}", f"methods.fedweit.adaptive={adaptive}"])
    lab.play()
    sent = share(base, 16)
    always, sometimes = 4 * (2 * sent + sent * (64 + 16)), 8 * share(adaptive, 16 * (64 + 16))
    for moment, trained, _ in lab.rounds:
        asked = moment.round == 1 and moment.experience < 2
        for each in trained:
            tensors = lab.site.store.get(each.upload).tensors.values()
            numbers = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            assert numbers == always + (sometimes if asked else 0)
            assert 0 < each.upload.size - numbers < 900  # names and the header


# the server


def test_the_base_is_the_mean_of_those_who_sent_a_unit():
    method = build(base=0.1)  # two of 16 units of each weight
    server = method.start()
    uploads = []
    for client, (samples, places) in enumerate([(1, [3, 5, 0, 1]), (3, [5, 9, 0, 1])]):
        values = torch.full_like(method.sent_base.template()["values"], 1.0 + client)
        tensors = {"base.places": torch.tensor(places, dtype=torch.int32), "base.values": values}
        uploads.append(SimpleNamespace(client=client, samples=samples, message=Message(tensors)))
    after = method.fuse("all", server, uploads, Moment(0, 0))
    fused, old = (method.layout.tensors(state.tensors["base"]) for state in (after, server))
    first, second = fused["body.1.weight"], fused["body.3.weight"]
    assert set(first[3].tolist()) == {1.0}
    assert set(first[9].tolist()) == {2.0}
    assert set(first[5].tolist()) == set(second[0].tolist()) == set(second[1].tolist()) == {1.75}
    others = [unit for unit in range(16) if unit not in (3, 5, 9)]
    assert torch.equal(first[others], old["body.1.weight"][others])
    assert torch.equal(second[2:], old["body.3.weight"][2:])


@pytest.mark.parametrize("sampled", ["all", 1])
def test_others_knowledge_goes_down_once_a_client_and_experience(sampled, played):
    sets = ("train.rounds=3", "methods.fedweit.knowledge=3", f"train.clients_per_round={sampled}")
    lab = played("fedweit", sets=sets)
    got, known = set(), {}
    for moment, trained, _ in lab.rounds:
        for each in trained:
            message = lab.site.store.get(each.broadcast)
            parts = State(message.tensors).part("knowledge")
            others = [key for experience, key in known if experience < moment.experience and key[1] != each.client]
            expected = 0 if (moment.experience, each.client) in got else min(3, len(others))
            assert len(parts) == 2 * expected
            for place in range(expected):
                places, values = parts[f"{place}.places"], parts[f"{place}.values"]
                assert any(
                    torch.equal(values, known[experience, key][1]) and torch.equal(places, known[experience, key][0])
                    for experience, key in known
                    if experience < moment.experience and key[1] != each.client
                )
            got.add((moment.experience, each.client))
        for each in trained:
            sent = State(lab.site.store.get(each.upload).tensors).part("adaptive")
            if sent:
                key = (moment.experience, each.client)
                known[moment.experience, key] = (sent["places"], sent["values"])
    assert known


# the client


@given(st.floats(0, 1), st.floats(0.01, 100), st.floats(-1, 1), st.floats(-2, 2))
def test_what_is_kept_of_an_earlier_experience_is_the_least_of_the_objective(sparsity, drift, missing, other):
    method = build(sparsity=sparsity, drift=drift)

    def cost(adaptive: float) -> float:
        return sparsity * abs(adaptive) + drift * (adaptive - missing) ** 2

    best = method.shrunk(torch.tensor([missing], dtype=torch.float64)).item()
    assert cost(best) <= cost(other) + 1e-9


def test_training_starts_at_the_base(laboratory):
    """m = 1, A = 0, alpha = 0: the first network of an experience is the received base with the initial local parts."""
    lab = laboratory("fedweit").play(until=(1, 0))
    method, base = lab.site.method, lab.server.tensors["base"]
    client = SimpleNamespace(moment=Moment(1, 0), state=lab.client(0), received=Message({"base": base}), classes=(3, 4))
    model = method.decomposed(method.opened(client), "1", base)
    plain = method.setting.load({**method.setting.initial_model(), **method.layout.tensors(base)})
    images = torch.randn(4, 1, 8, 8, generator=draw(0))
    assert torch.equal(model(images), plain(images))


@pytest.mark.parametrize("sets", [(), ("train.clients_per_round=1",)])
def test_earlier_experiences_weights_come_through_however_the_base_moves(sets, laboratory):
    """Each participation leaves them where they were, to lambda1 / (2 lambda2) and rounding."""
    lab = laboratory("fedweit", sets=["train.rounds=3", *sets])
    method, before, seen = lab.site.method, {}, 0
    while not lab.over:
        lab.play_round()
        for client in lab.progress.clients:
            state = lab.client(client)
            for s in state.values["classes"]:
                own = State(state.part(s))
                kept = state.tensors["base"] * method.layout.spread(own.tensors["mask"]) + own.tensors["adaptive"]
                if s != max(state.values["classes"], key=int) and (client, s) in before:
                    old, base = before[client, s]
                    torch.testing.assert_close(kept, old, atol=1e-4 / 200 + 1e-6, rtol=0)
                    seen += not torch.allclose(base, state.tensors["base"], atol=1e-3)
                before[client, s] = kept, state.tensors["base"]
    assert seen, "the base should have moved"


def test_earlier_experiences_are_not_forgotten_where_they_are_known(laboratory, played):
    """The networks of earlier experiences predict among their own classes as they did."""
    lab = laboratory("fedweit").play(until=(1, 0))
    images, end = torch.randn(50, 1, 8, 8, generator=draw(0)), played("fedweit")
    for client in range(3):
        classes = lab.client(client).values["classes"]["0"]
        then, now = (
            each.site.method.predictor("personal", each.server, each.client(client), client) for each in (lab, end)
        )
        torch.testing.assert_close(then(images)[:, classes], now(images)[:, classes], atol=1e-3, rtol=1e-3)


# the models


def experts(classes=10):
    architecture = Architecture("mlp", (1, 8, 8), classes, {"width": 16})
    networks = [architecture.load(architecture.initial(draw(seed))).eval() for seed in range(2)]
    known = torch.zeros(2, classes, dtype=torch.bool)
    known[0, [0, 1, 2]], known[1, [2, 3]] = True, True
    return architecture, networks, MostConfident(networks, known)


def test_among_one_networks_classes_alone_it_decides():
    _, networks, model = experts()
    images = torch.randn(20, 1, 8, 8, generator=draw(3))
    logits = model(images)
    torch.testing.assert_close(logits[:, [0, 1]], networks[0](images)[:, [0, 1, 2]].log_softmax(1)[:, :2])
    assert torch.equal(logits[:, [0, 1]].argmax(1), networks[0](images)[:, [0, 1]].argmax(1))
    torch.testing.assert_close(logits[:, 4:], networks[1](images)[:, 4:].log_softmax(1))


def test_the_more_confident_network_decides_about_a_class_of_both():
    _, networks, model = experts()
    images = torch.randn(20, 1, 8, 8, generator=draw(3))
    one, two = (
        networks[0](images)[:, [0, 1, 2]].log_softmax(1)[:, 2],
        networks[1](images)[:, [2, 3]].log_softmax(1)[:, 0],
    )
    torch.testing.assert_close(model(images)[:, 2], torch.maximum(one, two))


def test_every_class_may_be_known():
    _, networks, _ = experts()
    model = MostConfident(networks, torch.ones(2, 10, dtype=torch.bool))
    assert torch.isfinite(model(torch.zeros(3, 1, 8, 8))).all()


def test_a_saved_model_is_rebuilt(tmp_path):
    architecture, _, model = experts()
    tensors, about = content(model, architecture)
    path = tmp_path / "personal-0.safetensors"
    path.write_bytes(encode(tensors, {**about, "seen": [0, 1, 2, 3]}))
    images = torch.randint(0, 256, (20, 1, 8, 8), generator=draw(1), dtype=torch.uint8)
    expected = model(images.float() / 127.5 - 1)[:, :4].softmax(1).detach()
    found = torch.from_numpy(Predictor(path).predict(images.numpy()))
    torch.testing.assert_close(found[:, :4], expected)
    assert not found[:, 4:].any()


def test_a_client_that_never_took_part_has_the_initial_network():
    method = build()
    model = method.predictor("personal", method.start(), method.start_client(0), 0)
    images = torch.randn(4, 1, 8, 8, generator=draw(0))
    assert torch.equal(model(images), method.setting.load(method.setting.initial_model(), CENTRE)(images))


def test_names_say_which_weights_are_decomposed():
    assert set(build().layout.shapes) == {"body.1.weight", "body.3.weight"}

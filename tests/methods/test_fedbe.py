"""FedBE: what the specification says that it is right when, and what its switches and baselines are."""

from __future__ import annotations

from itertools import combinations

import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch.utils.flop_counter import FlopCounterMode

from errors import InputError
from methods import Message, Moment, State
from methods.cost import block_forwards, cost
from methods.state import prefixed
from methods.training import Client, TrainParameters
from metrics.retention import general_retention
from models import backbones
from models.adapted import Adapted
from models.foundation import Foundation, FoundationParameters

ADAM = ("train.optimizer=adamw", "train.learning_rate=0.01")
SKEWED = ("devices.speeds=[1.0, 0.05]", "devices.jitter=0.0")  # the slow ones train the top block alone, if any


def base(lab) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in lab.site.foundation.state_dict().items()}


def blocks_of(lab, client: int) -> list[int]:
    return lab.server.values["choices"][str(client)]["blocks"]


# the specification's points


@pytest.mark.parametrize("position", ["interleaved", "top"])
def test_the_expanded_model_is_the_base_to_the_last_bit_before_training(position, laboratory):
    lab = laboratory("fedbe", sets=[f"methods.fedbe.position={position}"])
    inputs, model = (
        lab.site.every_test.batch(torch.arange(40)).inputs,
        lab.site.method.predictor("global", lab.server, State(), -1),
    )
    with torch.no_grad():
        assert torch.equal(model.features(inputs), lab.site.foundation.features(inputs))


@pytest.mark.parametrize("name", ["fedbe", "fedbe_random", "fedlora", "adapter", "bitfit", "full", "full_fedcurv"])
def test_the_base_is_the_same_to_the_last_bit_after_training(name, laboratory):
    lab = laboratory(name, sets=ADAM)
    before = base(lab)
    lab.play()
    after = lab.site.foundation.state_dict()
    assert all(torch.equal(after[key], each) for key, each in before.items())


def test_with_the_blocks_off_the_base_is_restored_exactly(played):
    lab = played("fedbe", sets=ADAM)
    model, inputs = (
        lab.site.method.predictor("global", lab.server, State(), -1),
        lab.site.every_test.batch(torch.arange(40)).inputs,
    )
    with torch.no_grad():
        assert not torch.equal(model.features(inputs), lab.site.foundation.features(inputs))
        for block in model.units.values():
            block.on = False
        assert torch.equal(model.features(inputs), lab.site.foundation.features(inputs))


def test_unassigned_blocks_are_the_same_to_the_last_bit_after_a_clients_step(laboratory):
    lab = laboratory("fedbe", sets=[*ADAM, *SKEWED])
    lab.train()  # chooses
    method = lab.site.method
    message = next(
        message
        for message in method.broadcast(lab.server, (0, 1, 2), Moment(0, 0)).values()
        if len(message.values["blocks"]) == 1
    )
    data = lab.site.data(0, 0)
    client = Client(0, Moment(0, 0), 0, data, lab.site.classes(0, 0), (), False, State(), message)
    model = method.train(client).model
    chosen = message.values["blocks"]
    for k, (name, block) in enumerate(model.units.items()):
        received = State(message.tensors).part(f"model.{name}")
        same = all(torch.equal(each, received[key]) for key, each in block.state_dict().items())
        assert same == (k not in chosen)


def test_the_aggregation_of_disjoint_blocks_is_their_concatenation(laboratory):
    lab = laboratory("fedbe")
    method, server = lab.site.method, lab.server
    model = server.part("model")

    class Upload:
        def __init__(self, client, samples, tensors):
            self.client, self.samples, self.message = client, samples, Message(tensors)

    one, other = (
        {name: torch.full_like(each, value) for name, each in model.items() if f"{unit}." in name}
        for unit, value in zip(method.units, (1.0, 2.0), strict=True)
    )
    uploads = [Upload(0, 3, prefixed("model", one)), Upload(2, 8, prefixed("model", other))]
    fused = method.fuse("all", server, uploads, Moment(0, 0)).part("model")
    assert all(torch.equal(fused[name], each) for name, each in {**one, **other}.items())
    rest = fused.keys() - one.keys() - other.keys()
    assert rest == {"head.weight", "head.bias"}
    assert all(torch.equal(fused[name], model[name]) for name in rest)  # nobody trained it


def test_blocks_are_averaged_over_those_who_trained_them(laboratory):
    lab = laboratory("fedbe", sets=[*ADAM, *SKEWED])
    method = lab.site.method
    trained = lab.train()
    uploads = {each.client: (each.samples, lab.site.store.get(each.upload).tensors) for each in trained}
    verdicts = lab.admit(lab.claims(trained))
    fused = lab.site.read(lab.fuse(verdicts)).part("model")
    for k, unit in enumerate(method.units):
        name = next(name for name in fused if name.startswith(f"{unit}.") and name.endswith("mlp.2.weight"))
        who = [client for client in uploads if k in blocks_of(lab, client)]
        total = sum(uploads[client][0] for client in who)
        mean = sum(uploads[client][0] / total * uploads[client][1][f"model.{name}"].double() for client in who)
        torch.testing.assert_close(fused[name].double(), mean, atol=1e-7, rtol=1e-5)


def test_the_cost_counts_what_is_trained(laboratory):
    """T of the model that a client trained is the allocation's T; the forward pass alone remains of a head."""
    lab = laboratory("fedbe")
    model, price = lab.site.method.setting.architecture.load(lab.server.part("model")), lab.site.method.cost
    for chosen in ((0, 1), (0,), (1,)):
        for k, block in enumerate(model.units.values()):
            block.requires_grad_(k in chosen)
        assert block_forwards(model) == price.time(chosen[0], len(chosen))
    head = laboratory("head_only")
    assert block_forwards(head.site.method.setting.architecture.template) == 2  # the small project's two blocks
    full = laboratory("full")
    assert block_forwards(full.site.method.setting.architecture.template) == 6


def test_the_cost_is_that_of_any_precision(laboratory):
    """Who trains what must not depend on the copies of the weights that a precision makes."""
    prices = [
        laboratory("fedbe", sets=[f"foundation.network.precision={kind}"]).site.method.cost
        for kind in ("float32", "bfloat16")
    ]
    assert prices[0] == prices[1]


def test_the_cost_ranks_subsets_as_their_operations_do():
    """T(S) against the floating-point operations of a step, counted; benchmarks/block_cost.py measures seconds."""
    parameters = FoundationParameters(network={"name": "vit_tiny", "width": 32, "depth": 6, "heads": 2})
    foundation = Foundation(backbones.untrained(parameters, (1, 8, 8)), {}).requires_grad_(False)
    model = Adapted(foundation, 10, "blocks", 0, added=6)
    price, inputs = cost(model, TrainParameters()), foundation.backbone.example()
    predicted, counted = [], []
    for chosen in (chosen for size in range(1, 7) for chosen in combinations(range(6), size)):
        for k, unit in enumerate(model.units.values()):
            unit.requires_grad_(k in chosen)
        with FlopCounterMode(display=False) as operations:
            model(inputs).sum().backward()
        predicted.append(price.time(chosen[0], len(chosen)))
        counted.append(operations.get_total_flops())
    assert spearmanr(predicted, counted).statistic > 0.99


# what goes up and down


def test_slow_devices_train_and_send_less(laboratory):
    lab = laboratory("fedbe", sets=[*SKEWED, "train.rounds=1"])
    trained = lab.train()
    speeds = [device.speed for device in lab.site.method.setting.devices]
    sizes = {each.client: each.upload.size for each in trained}
    fast, slow = ([client for client in sizes if (speeds[client] == 1) is which] for which in (True, False))
    assert fast
    assert slow
    assert max(sizes[client] for client in slow) < min(sizes[client] for client in fast)
    assert len({each.broadcast.size for each in trained}) <= 2  # everyone gets all blocks; the header differs
    for client in slow:
        assert blocks_of(lab, client) == [1]


def test_scores_are_probed_at_first_and_every_so_often_and_anew_in_an_experience(laboratory):
    lab = laboratory("fedbe", sets=["train.rounds=4", "methods.fedbe.refresh=2"])
    asked = []
    while not lab.over:
        trained = lab.train()
        asked.append([lab.site.store.get(each.broadcast).header["values"]["probes"] for each in trained])
        verdicts = lab.admit(lab.claims(trained))
        lab.advance(trained, verdicts, lab.fuse([each for each in verdicts if each.admitted]))
        if lab.moment == (0, 1):
            stream = lab.site.stream
            labels = torch.from_numpy(stream.labels[stream.samples_of(stream.train(1, 0))])
            assert torch.equal(lab.server.tensors["labels"][1], torch.bincount(labels, minlength=10))
            assert (lab.server.tensors["scores"] > 0).all()
        if lab.moment == (1, 0):
            assert not lab.server.tensors["scores"].any()
    assert asked == [[each] * 3 for each in [True, False, True, False] * 3]


def test_the_table_says_who_trains_what_and_why(played):
    lab = played("fedbe")
    rows = lab.tables["allocation"]
    assert len(rows) == 3 * 2 * 3 * 2  # experiences, rounds, clients, blocks
    assert {row["client"] for row in rows} == {0, 1, 2}
    for row in rows:
        within = row["time"] <= row["time_budget"] * 1.0001 and row["memory"] <= row["memory_budget"] * 1.0001
        assert within == row["fits"]
        assert row["fits"] or not row["trains"] or row["block"] == 1  # the top block where nothing fits
        assert 0 <= row["skew"] <= 1
    assert any(row["trains"] for row in rows)


# identities


def test_all_blocks_to_all_is_fedbe_static(played):
    sets = ["methods.fedbe.allocation=all"]
    one, other = played("fedbe", sets=sets).server, played("fedbe_static").server
    assert all(torch.equal(one.tensors[name], each) for name, each in other.tensors.items())


def test_one_kind_of_device_and_a_wide_budget_is_fedbe_static(played):
    wide = ["methods.fedbe.kappa=1000"]
    one, other = played("fedbe", sets=wide).server.part("model"), played("fedbe_static").server.part("model")
    assert all(torch.equal(one[name], each) for name, each in other.items())


def test_ffa_lora_keeps_its_a(laboratory):
    lab = laboratory("ffa_lora", sets=ADAM)
    assert not any("lora_A" in name for name in lab.server.part("model"))
    fed = laboratory("fedlora", sets=ADAM)
    sent = {name for name in fed.server.part("model") if "lora_" in name}
    assert 2 * sum("lora_B" in name for name in sent) == len(sent)


# reported


def test_frozen_and_added_keep_more_than_all(played):
    """Retention of the general tasks: a head alone forgets nothing, the whole model most."""
    sets = ["train.rounds=5", *ADAM]
    kept = {name: general_retention(pd.DataFrame(played(name, sets=sets).general)) for name in ("head_only", "full")}
    assert kept["head_only"]["general_retention"] == 1
    assert kept["full"]["general_retention"] < 1


def test_simulated_time_is_steps_times_cost_over_speed(played):
    lab = played("full")
    speeds = [device.speed for device in lab.site.method.setting.devices]
    for _, trained, _ in lab.rounds:
        for each in trained:
            assert each.time == pytest.approx(each.steps * 6 / speeds[each.client])


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["methods.fedbe.added=3"], "methods.fedbe.added must divide the network's 2 blocks"),
        (["foundation.network={name: cnn, width: 8}"], "no row of transformer blocks"),
        (["methods.fedbe.expansion=false", "methods.fedbe.unassigned=skipped"], "methods.fedbe.unassigned"),
        (["devices.speeds=[0]"], "devices.speeds"),
        (["devices.jitter=1"], "devices.jitter"),
        (["devices.memory=[1.0, 0.5]"], "one for each of the 3 speeds"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_trained(sets, said, laboratory):
    with pytest.raises(InputError, match=said.replace("(", "\\(")):
        _ = laboratory("fedbe", sets=sets).site.method


@pytest.mark.parametrize(
    ("name", "value"), [("probe.score", 3e38), ("probe.score", -1.0), ("probe.labels", 2**62), ("probe.labels", -1)]
)
def test_a_lie_about_the_data_is_refused(name, value, laboratory):
    lab = laboratory("fedbe")
    template = lab.server.tensors["scores"][0] if name == "probe.score" else lab.server.tensors["labels"][0]
    with pytest.raises(ValueError, match=name):
        lab.site.method.check(Message({name: torch.full_like(template, value)}))


def test_labels_that_are_not_the_samples_do_not_count(laboratory):
    lab = laboratory("fedbe")
    trained = lab.train()

    class Upload:
        client, samples = 0, trained[0].samples

        def __init__(self, labels):
            tensors = lab.site.store.get(trained[0].upload).tensors
            self.message = Message({**tensors, "probe.labels": labels})

    honest = lab.site.store.get(trained[0].upload).tensors["probe.labels"]
    for labels, counts in ((honest, True), (honest + 1, False)):
        fused = lab.site.method.fuse("all", lab.server, [Upload(labels)], Moment(0, 0))
        assert (fused.values["probed"][0] == 0) is counts
        assert bool(fused.tensors["labels"][0].any()) is counts
        assert fused.tensors["samples"][0] == trained[0].samples


@pytest.mark.parametrize("rule", ["all", "random", "compute"])
def test_where_nobody_looks_at_the_data_nobody_is_asked_about_them(rule, played):
    lab = played("fedbe", sets=[f"methods.fedbe.allocation={rule}", "train.rounds=1"])
    assert not lab.server.tensors["labels"].any()
    assert not lab.server.tensors["scores"].any()


@pytest.mark.parametrize(
    "sets",
    [
        ["methods.fedbe.position=top", "methods.fedbe.added=1"],
        ["methods.fedbe.start=random"],
        ["methods.fedbe.expansion=false"],
        ["methods.fedbe.unassigned=skipped", *SKEWED],
        ["methods.fedbe.allocation=data"],
        ["methods.fedbe.allocation=compute"],
        ["methods.fedbe.probes=2", "methods.fedbe.kappa=0.5"],
        ["devices.memory=[1.0, 0.5, 0.3]"],
    ],
)
def test_every_switch_runs_and_changes_something(sets, played):
    switched = played("fedbe", sets=[*sets, "train.rounds=1", "train.clients_per_round=2"])
    plain = played("fedbe", sets=["train.rounds=1", "train.clients_per_round=2"])
    assert (switched.digest, switched.tables) != (plain.digest, plain.tables)


def test_texts_are_fine_tuned_too(played):
    lab = played("fedbe", "texts", sets=ADAM)
    assert lab.over
    assert len(lab.general)

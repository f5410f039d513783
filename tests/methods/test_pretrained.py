"""Networks of several tasks on a frozen foundation model: what stays, what is sent, where it begins."""

from __future__ import annotations

import pytest
import torch

import methods
from errors import InputError
from methods.training import LocalData
from models.components import FUSION

KNOW = [name for name in methods.names() if methods.get(name).multitask]


@pytest.mark.parametrize("name", KNOW)
def test_every_method_that_knows_tasks_trains_it_and_only_what_is_trained_crosses(name, played):
    lab = played(name, "taught")
    whole = lab.site.method.setting.architecture
    for _, trained, _ in lab.rounds:
        for each in trained:
            assert each.steps
            for ref in (each.upload, each.broadcast):
                sent = lab.site.store.get(ref).tensors if ref else {}
                assert {key.removeprefix("model.") for key in sent} <= set(whole.names)
    assert lab.over


@pytest.fixture
def lab(laboratory):
    return laboratory("fedavg", "taught", sets=["train.local_epochs=3"])


def test_it_begins_as_the_foundation_model_to_the_last_bit(lab):
    method, stream = lab.site.method, lab.site.stream
    start = method.predictor("global", lab.server, lab.site.method.start_client(-1), -1).eval()
    teacher = lab.site.foundation.backbone.network
    (batch,) = LocalData(*stream.load(stream.test(None, 0))).batches(10_000)
    with torch.no_grad():
        assert torch.equal(start(batch.inputs), teacher(batch.inputs))


def test_encoders_and_experts_stay_but_for_the_low_rank_matrices(lab):
    lab.play()
    model = lab.site.method.predictor("global", lab.server, lab.site.method.start_client(-1), -1)
    teacher = lab.site.foundation.backbone.network.state_dict()
    frozen = [name for name in model.state_dict() if name in teacher and name.split(".")[0] in ("encoders", "experts")]
    assert frozen
    assert all(torch.equal(model.state_dict()[name], teacher[name]) for name in frozen)
    changed = {name.split(".")[0] for name, each in lab.server.part("model").items() if name in teacher}
    assert changed == {"projection", "transformer", "head"} == {*FUSION, "head"} - {"experts"}
    low = [each for name, each in lab.server.part("model").items() if ".up." in name]
    assert low
    assert all(each.abs().sum() > 0 for each in low)


def test_the_queries_keys_and_values_of_the_encoders_and_both_layers_of_experts_have_them(lab):
    low = {name.rpartition(".up.")[0] for name in lab.site.method.setting.architecture.names if ".up." in name}
    encoders = {name for name in low if name.startswith("encoders.")}
    assert all(name.endswith("attention.inputs") for name in encoders)
    assert {name.split(".")[1] for name in encoders} == {"image", "text"}
    experts = low - encoders
    assert all(name.split(".")[-1] in ("inner", "outer") for name in experts)


def test_the_foundation_model_is_made_of_public_records_alone(laboratory, monkeypatch):
    from streams.stream import Stream

    loaded = []
    plain = Stream.load
    monkeypatch.setattr(Stream, "load", lambda self, rows: loaded.append(set(rows.tolist())) or plain(self, rows))
    lab = laboratory("fedavg", "taught", sets=["foundation.seed=7"])  # one that nobody has made yet
    stream = lab.site.stream
    public, tested = set(stream.public().tolist()), set(stream.test(None, 0).tolist())
    assert public in loaded
    assert all(rows <= public or rows <= tested for rows in loaded)


def test_another_network_than_the_models_is_refused(laboratory):
    with pytest.raises(InputError, match=r"foundation\.network must be the network of section model without its rank"):
        laboratory("fedavg", "taught", sets=["foundation.network.width=16"])


def test_records_need_a_network_of_several_tasks(laboratory):
    sets = ["foundation.network.name=mlp"]
    with pytest.raises(InputError, match=r"foundation\.network\.name: mlp needs images"):
        laboratory("fedavg", "taught", sets=sets)


def test_a_rank_needs_a_public_split(laboratory):
    with pytest.raises(InputError, match=r"streams\.several\.public must be greater than 0"):
        laboratory("fedavg", "several", sets=["model.rank=2", "foundation.network.name=multimodal"])

"""FedProto: prototypes are means, only prototypes cross, old classes keep theirs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from errors import InputError
from methods import Message, Moment, State
from methods.training import cross_entropy
from models.prototypes import NearestPrototype
from tasks.store import encode

CLASSES, WIDTH = 10, 16


@dataclass(frozen=True)
class Upload:
    client: int
    samples: int
    message: Message


@pytest.fixture(scope="module")
def method(laboratory):
    return laboratory("fedproto").site.method


@given(st.lists(st.lists(st.integers(0, 50), min_size=CLASSES, max_size=CLASSES), min_size=1, max_size=5))
def test_global_prototypes_are_means_over_all_samples_and_others_stay(method, counts):
    draw = torch.Generator().manual_seed(0)
    tables = torch.randn(len(counts), CLASSES, WIDTH, generator=draw)
    known = torch.arange(CLASSES) % 2 == 0
    server = State({"prototypes": torch.randn(CLASSES, WIDTH, generator=draw) * known[:, None], "known": known})
    uploads = [
        Upload(client, max(sum(each), 1), Message({"prototypes": table, "counts": torch.tensor(each)}))
        for client, (each, table) in enumerate(zip(counts, tables, strict=True))
    ]
    after = method.fuse("all", server, uploads, Moment(0, 0)).tensors
    for label in range(CLASSES):
        n = sum(each[label] for each in counts)
        mean = sum(each[label] * table[label] for each, table in zip(counts, tables, strict=True))
        expected = mean / n if n else server.tensors["prototypes"][label]
        torch.testing.assert_close(after["prototypes"][label], expected, rtol=1e-4, atol=1e-5)
        assert after["known"][label] == (known[label] or n > 0)


@pytest.mark.parametrize(("said", "counted"), [(10**15, 20), (-7, 0)])
def test_a_lie_about_counts_is_bounded_by_the_clients_samples(method, said, counted):
    def fused(count: int) -> State:
        sent = [(0, 8, torch.ones(CLASSES, WIDTH)), (1, count, torch.zeros(CLASSES, WIDTH))]
        uploads = [
            Upload(client, 20, Message({"prototypes": table, "counts": torch.full((CLASSES,), n)}))
            for client, n, table in sent
        ]
        return method.fuse("all", method.start(), uploads, Moment(0, 0))

    assert torch.equal(fused(said).tensors["prototypes"], fused(counted).tensors["prototypes"])


def test_a_client_sends_the_means_of_its_features(laboratory, client_of):
    lab = laboratory("fedproto").play(until=(1, 0))
    client = client_of(lab, 2)
    update = lab.site.method.train(client)
    model = lab.site.method.setting.load(update.state.part("model")).eval()
    (batch,) = client.data.batches(len(client.data))
    features = model.features(batch.inputs).detach()
    for label in range(CLASSES):
        own = features[batch.labels == label]
        assert update.message.tensors["counts"][label] == len(own)
        mean = own.mean(dim=0) if len(own) else torch.zeros(WIDTH)
        torch.testing.assert_close(update.message.tensors["prototypes"][label], mean, rtol=1e-4, atol=1e-5)


def test_the_loss_adds_the_distance_to_the_known_prototypes(laboratory, client_of):
    lab = laboratory("fedproto", sets=["methods.fedproto.weight=3"])
    method, client = lab.site.method, client_of(lab, 0)
    model = method.setting.load(client.state.part("model"))
    batch = client.data.batch(torch.arange(12))
    plain = cross_entropy(model(batch.inputs), batch.labels, client.candidates)
    assert torch.equal(method.objective(client)(model, batch), plain)  # no prototypes yet
    known = torch.zeros(CLASSES, dtype=torch.bool)
    known[batch.labels[0]] = True
    table = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    taught = replace(client, received=Message({"prototypes": table, "known": known}))
    features = model.features(batch.inputs)
    far = [(f - table[y]).square().mean() for f, y in zip(features, batch.labels.tolist(), strict=True) if known[y]]
    assert 0 < len(far) < 12
    torch.testing.assert_close(method.objective(taught)(model, batch), plain + 3 * sum(far) / 12)


def test_without_the_distance_every_network_is_trained_alone(laboratory, played):
    lab, local = laboratory("fedproto", sets=["methods.fedproto.weight=0"]).play(), played("local")
    for number in range(3):
        assert encode(lab.client(number).tensors, {}) == encode(local.client(number).tensors, {})


def test_prototypes_of_classes_that_are_over_stay(laboratory):
    lab = laboratory("fedproto").play(until=(1, 0))
    before, seen = lab.server.tensors, list(lab.site.seen(-1, 0))
    assert before["known"].nonzero().flatten().tolist() == seen
    after = lab.play().server.tensors
    assert torch.equal(after["prototypes"][seen], before["prototypes"][seen])
    assert after["known"].all()


def test_only_prototypes_cross(played):
    sets = ("models=[{name: mlp, width: 16}, {name: mlp, width: 16, depth: 4}]",)
    lab = played("fedproto", sets=sets)
    names = {"prototypes", "counts"}, {"prototypes", "known"}
    for _, trained, _ in lab.rounds:
        for each in trained:
            for ref, expected in zip((each.upload, each.broadcast), names, strict=True):
                tensors = lab.site.store.get(ref).tensors
                assert tensors.keys() == expected
                assert tensors["prototypes"].shape == (CLASSES, WIDTH)


def test_personal_models_are_the_networks_with_the_nearest_prototype(played):
    lab = played("fedproto")
    personal, head = (lab.site.method.predictor(kind, lab.server, lab.client(1), 1) for kind in ("personal", "head"))
    images = torch.randn(5, *lab.site.stream.shape, generator=torch.Generator().manual_seed(0))
    features = head.features(images)
    assert isinstance(personal, NearestPrototype)
    nearest = torch.cdist(features, lab.server.tensors["prototypes"]).argmin(dim=1)
    assert torch.equal(personal(images).argmax(dim=1), nearest)


def test_features_of_different_lengths_are_refused(laboratory):
    with pytest.raises(InputError, match=r"models\.\*\.features .*16, 24"):
        laboratory("fedproto", sets=["models=[{name: mlp, width: 16}, {name: mlp, width: 24}]"])

"""iCaRL: herded exemplars within a budget, the paper's loss, the nearest mean of everyone's exemplars."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from methods import Message, Moment
from methods.exemplars import unit_features
from methods.memory import Memory, herding

SMALL = "methods.fedicarl.budget=13"


@pytest.mark.parametrize("sets", [(), ("train.clients_per_round=1", "train.rounds=3")])
def test_exemplars_are_the_clients_own_within_the_budget(sets, laboratory):
    lab = laboratory("fedicarl", sets=[SMALL, *sets])
    stream = lab.site.stream
    while not lab.over:
        experience = lab.moment.experience
        lab.play_round()
        for client in lab.progress.clients:
            kept = Memory.of(lab.client(client))
            assert 0 < len(kept) <= 13
            assert kept["experiences"].max() <= experience
            for image, label, at in zip(kept["inputs"], kept["labels"], kept["experiences"].tolist(), strict=True):
                rows = [row for row in lab.site.rows(client, at) if stream.labels[row] == label]
                assert any((stream.inputs[row] == image.numpy()).all() for row in rows)


def test_classes_share_the_budget(played):
    kept = Memory.of(played("fedicarl", "alone", sets=[SMALL]).client(0))
    counts = Counter(kept["labels"].tolist())
    assert len(counts) == 10
    assert sorted(counts.values()) == [1] * 7 + [2] * 3


def test_exemplars_are_herded_in_the_features_of_the_clients_model(laboratory):
    lab = laboratory("fedicarl", sets=[SMALL]).play(until=(0, 2))
    method, stream, rows = lab.site.method, lab.site.stream, lab.site.rows(0, 0)
    upload = Message(lab.site.store.get(lab.rounds[-1][1][0].upload).tensors)
    model = method.setting.load(upload.part("model"))
    kept = Memory.of(lab.client(0))
    for label in set(kept["labels"].tolist()):
        images = torch.from_numpy(stream.inputs[[row for row in rows if stream.labels[row] == label]])
        own = Memory({"inputs": images, "labels": torch.full((len(images),), label)})
        chosen = kept.take(kept["labels"] == label)["inputs"]
        first = herding(unit_features(model, own, "cpu"), len(chosen))
        assert torch.equal(chosen, images[first])
    sums = torch.zeros_like(upload.tensors["exemplars.sums"])
    sums.index_add_(0, kept["labels"], unit_features(model, kept, "cpu"))
    torch.testing.assert_close(upload.tensors["exemplars.sums"], sums)
    assert upload.tensors["exemplars.counts"].tolist() == torch.bincount(kept["labels"], minlength=10).tolist()


def test_the_servers_means_are_those_of_everyones_exemplars(laboratory):
    lab = laboratory("fedicarl", sets=[SMALL]).play(until=(1, 1))
    parts = [lab.site.store.get(each.upload).tensors for each in lab.rounds[-1][1]]
    sums, counts = (sum(part[f"exemplars.{what}"] for part in parts) for what in ("sums", "counts"))
    state = lab.server
    assert torch.equal(state.tensors["exemplars.known"], counts > 0)
    for label in counts.nonzero().flatten().tolist():
        torch.testing.assert_close(state.tensors["exemplars.means"][label], sums[label] / counts[label])


def test_a_class_of_which_nothing_came_keeps_its_mean(laboratory):
    lab = laboratory("fedicarl").play(until=(1, 0))
    before, known = lab.server, lab.server.tensors["exemplars.known"]
    trained = lab.train()
    (upload, *_) = (lab.site.store.get(each.upload) for each in trained)

    class Nothing:
        client, samples = 0, 5
        message = Message(
            {name: torch.zeros_like(x) if "exemplars" in name else x for name, x in upload.tensors.items()}
        )

    after = lab.site.method.fuse("all", before, [Nothing()], Moment(1, 0))
    assert known.any()
    for what in ("means", "known"):
        assert torch.equal(after.tensors[f"exemplars.{what}"], before.tensors[f"exemplars.{what}"])


def test_the_nearest_mean_is_the_prediction(played):
    lab = played("fedicarl")
    method, images = lab.site.method, lab.site.data(0, 2).batch(torch.arange(20)).inputs
    model = method.predictor("global", lab.server, None, -1).eval()
    network = method.predictor("head", lab.server, None, -1).eval()
    features = F.normalize(network.features(images), dim=1)
    distances = torch.cdist(features, F.normalize(lab.server.tensors["exemplars.means"], dim=1))
    assert torch.equal(model(images).argmax(1), distances.argmin(1))


@pytest.mark.parametrize("until", [(0, 1), (1, 0), (2, 1)])
def test_the_loss_is_the_papers(until, laboratory, client_of):
    """One-hot targets for new classes, the last experience's answers for old ones."""
    lab = laboratory("fedicarl").play(until=until)
    client = client_of(lab, 0)
    method, batch = lab.site.method, client.data.batch(torch.arange(6))
    model = method.setting.load(client.received.part("model"))
    logits, by_hand = model(batch.inputs), torch.zeros(())
    for label in client.classes:
        by_hand = by_hand + F.binary_cross_entropy(logits[:, label].sigmoid(), (batch.labels == label).float())
    if client.known:
        before = method.setting.load(method.teacher(client))(batch.inputs).sigmoid()
        for label in client.known:
            by_hand = by_hand + F.binary_cross_entropy(logits[:, label].sigmoid(), before[:, label].detach())
    torch.testing.assert_close(method.objective(client)(model, batch), by_hand)


def test_it_trains_on_the_new_samples_and_on_exemplars_of_earlier_experiences(laboratory):
    lab = laboratory("fedicarl", sets=[SMALL, "train.batch_size=1", "train.rounds=2"])
    while not lab.over:
        moment, before = lab.moment, {client: Memory.of(lab.client(client)) for client in lab.progress.clients}
        lab.play_round()
        for each in lab.rounds[-1][1]:
            earlier = 0
            if each.client in before:
                earlier = int((before[each.client]["experiences"] < moment.experience).sum())
            samples = len(lab.site.rows(each.client, moment.experience)) + earlier
            assert each.steps == samples - 1, "batches of one, but the last of two"
            assert (earlier > 0) == (moment.experience > 0)


@pytest.mark.parametrize("sets", [(), ("train.clients_per_round=1", "train.rounds=3")])
def test_only_the_model_and_the_teacher_go_down(sets, played):
    lab = played("fedicarl", sets=sets)
    for _, trained, _ in lab.rounds:
        for each in trained:
            assert {name.split(".")[0] for name in lab.site.store.get(each.broadcast).tensors} <= {"model", "previous"}


@pytest.mark.parametrize("lie", [("counts", -1.0), ("counts", 0.5), ("counts", 1e9), ("sums", 1e30)])
def test_what_no_exemplars_add_up_to_is_refused(lie, laboratory):
    """Otherwise one client could take a class away from all, or make its mean infinite."""
    lab = laboratory("fedicarl")
    (each, *_) = lab.train()
    content = lab.site.store.get(each.upload)
    method, name = lab.site.method, f"exemplars.{lie[0]}"
    method.check(Message(content.tensors, content.header["values"]))
    changed = content.tensors[name].clone()
    changed[0] = lie[1]
    with pytest.raises(ValueError, match=name):
        method.check(Message({**content.tensors, name: changed}))

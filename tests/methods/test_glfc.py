"""GLFC: each kind of classes counts the same, old classes learn from the old model, exemplars stay within a budget."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from methods.glfc import binary_cross_entropy, compensation, competitors
from methods.memory import Memory
from methods.training import Batch
from tasks.store import encode

scores = st.floats(-20, 20, width=32)


def models(lab) -> bytes:
    return encode(lab.server.part("model"), {})


# gradient compensation


@given(st.lists(st.tuples(scores, st.booleans()), min_size=1, max_size=20))
def test_the_weights_of_each_kind_have_mean_one_and_follow_the_gradient(pairs):
    logits, old = torch.tensor([pair[0] for pair in pairs]), torch.tensor([pair[1] for pair in pairs])
    weights = compensation(logits, old)
    probe = logits.clone().requires_grad_()
    F.binary_cross_entropy_with_logits(probe, torch.ones_like(probe), reduction="sum").backward()
    for kind in (old, ~old):
        if kind.any():
            torch.testing.assert_close(weights[kind].mean(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)
            size = probe.grad[kind].abs()
            torch.testing.assert_close(weights[kind] * size.mean(), size, rtol=1e-3, atol=1e-6)


def test_compensation_by_hand():
    """Gradients of 0.75 and 0.25 among the new, 0.5 alone among the old: weights 1.5, 0.5 and 1."""
    logits = torch.tensor([-torch.tensor(3.0).log(), 0.0, torch.tensor(3.0).log()], requires_grad=True)
    weights = compensation(logits, torch.tensor([False, True, False]))
    torch.testing.assert_close(weights, torch.tensor([1.5, 1.0, 0.5]))
    assert not weights.requires_grad


def test_samples_that_are_learned_perfectly_have_finite_weights():
    assert torch.isfinite(compensation(torch.full((3,), 1e4), torch.tensor([True, False, False]))).all()


# the two losses


def test_the_loss_is_the_papers(laboratory, client_of):
    """Written out in loops for one minibatch of own samples and exemplars."""
    weights = {"compensation": 0.3, "relation": 0.9}
    lab = laboratory("glfc", sets=[f"methods.glfc.{name}={value}" for name, value in weights.items()]).play((1, 1))
    client, setting = client_of(lab, 0), lab.site.method.setting
    kept = Memory.of(client.state)
    kept = kept.take(kept["experiences"] == 0)
    own, exemplars = client.data.batch(torch.arange(6)), kept.take(torch.arange(4)).batch()
    batch = Batch(torch.cat([own.inputs, exemplars.inputs]), torch.cat([own.labels, exemplars.labels]))
    model = setting.load(client.received.part("model"))
    teacher = setting.load(lab.server.part("previous"))
    logits, old = model(batch.inputs).detach().double(), teacher(batch.inputs).detach().double()

    def bce(logit, target) -> float:
        p = 1 / (1 + torch.exp(-logit))
        return float(-(target * p.log() + (1 - target) * (1 - p).log()))

    size = [float(1 - torch.sigmoid(row[label])) for row, label in zip(logits, batch.labels, strict=True)]
    mean = {True: sum(size[:6]) / 6, False: sum(size[6:]) / 4}
    total = 0.0
    for i, (row, label) in enumerate(zip(logits, batch.labels.tolist(), strict=True)):
        for k in client.seen:
            share = size[i] / mean[i < 6]
            total += weights["compensation"] * share * bce(row[k], float(k == label))
            target = torch.sigmoid(old[i, k]) if k in client.known else float(k == label)
            total += weights["relation"] * bce(row[k], target)
    value = lab.site.method.objective(client)(model, batch).item()
    assert value == pytest.approx(total / 10, rel=1e-4)


def test_it_is_plain_while_there_are_no_old_classes(laboratory):
    labs = [
        laboratory("glfc", sets=[f"methods.glfc.{key}=3"]).play(until=(1, 0)) for key in ("compensation", "relation")
    ]
    assert models(labs[0]) == models(labs[1])
    assert models(labs[0].play(until=(1, 1))) != models(labs[1].play(until=(1, 1)))


def test_binary_cross_entropy_is_over_the_given_classes_only():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    binary_cross_entropy(logits, torch.zeros(3, 4), torch.tensor([True, False, True, False])).sum().backward()
    torch.testing.assert_close(logits.grad[:, [0, 2]], logits.detach()[:, [0, 2]].sigmoid())
    assert not logits.grad[:, [1, 3]].any()


@pytest.mark.parametrize("stream", ["digits", "tasks"])
def test_samples_compete_within_their_experience_only_where_it_is_known(stream, laboratory, client_of):
    lab = laboratory("glfc", stream).play(until=(1, 0))
    client = client_of(lab, 1)
    mask = competitors(client, 10)
    heads = [*client.earlier, client.classes]
    for label in range(10):
        rivals = set(mask[label].nonzero().flatten().tolist())
        if client.task_aware:
            assert rivals == {k for head in heads if label in head for k in head}
        else:
            assert rivals == (set(client.seen) if label in client.seen else set())


# exemplars


def test_exemplars_are_the_clients_own_within_the_budget_and_old_ones_are_learned_again(laboratory):
    lab = laboratory("glfc", sets=["methods.glfc.budget=13"])
    stream = lab.site.stream
    while not lab.over:
        experience, before = lab.moment.experience, {number: lab.client(number) for number in lab.progress.clients}
        lab.play_round()
        for each in lab.rounds[-1][1]:
            kept = Memory.of(lab.client(each.client))
            assert 0 < len(kept) <= 13
            assert kept["experiences"].max() <= experience
            own = [row for past in range(experience + 1) for row in lab.site.rows(each.client, past)]
            for image, label in zip(kept["inputs"].numpy(), kept["labels"], strict=True):
                assert any((stream.inputs[row] == image).all() for row in own if stream.labels[row] == label)
            earlier = Memory.of(before[each.client])["experiences"] < experience if before else torch.zeros(0)
            size = lab.experiment.train.batch_size
            samples = each.samples + int(earlier.sum())
            assert each.steps == -(-samples // size) - (samples > size and samples % size == 1)


def test_without_a_budget_nothing_is_kept(played):
    lab = played("glfc", sets=["methods.glfc.budget=0"])
    assert not any(len(Memory.of(lab.client(number))) for number in range(3))

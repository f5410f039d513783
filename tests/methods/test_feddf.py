"""FedDF: the mean of the logits teaches, and only over what somebody has seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from errors import InputError
from methods import Message, Moment
from methods.feddf import draws
from methods.training import LocalData, distillation
from tasks.fusion import uploads_of
from tasks.store import encode

TWO = "models=[{name: mlp, width: 16}, {name: mlp, width: 24, depth: 3}]"


@dataclass(frozen=True)
class Upload:
    client: int
    samples: int
    message: Message


def kept(uploads) -> list[Upload]:
    return [Upload(each.client, each.samples, each.message) for each in uploads]


@pytest.fixture
def round_of(laboratory):
    """(method, server, uploads) of the first round."""

    def play(*sets):
        lab = laboratory("feddf", sets=sets)
        return lab.site.method, lab.server, kept(uploads_of(lab.site, lab.admit(lab.claims(lab.train()))))

    return play


def test_without_distillation_it_is_fedavg_to_the_last_bit(laboratory, played):
    lab = laboratory("feddf", sets=["methods.feddf.steps=0"]).play()
    assert encode(lab.server.part("model-0"), {}) == encode(played("fedavg").server.part("model"), {})


def test_the_teacher_is_the_plain_mean_of_all_clients_logits(round_of):
    method, _, uploads = round_of(TWO)
    public = method.setting.public()
    logits = method.mean_logits(uploads, public)
    rows = torch.arange(0, len(public), 7)
    inputs = public.batch(rows).inputs
    each = [method.setting.load(one.message.part("model"), one.client).eval()(inputs).detach() for one in uploads]
    assert len(each) == 3
    torch.testing.assert_close(logits[rows], torch.stack(each).mean(dim=0))


def test_distillation_brings_every_architecture_nearer_to_the_teacher(round_of):
    far, near = (round_of(TWO, f"methods.feddf.steps={steps}") for steps in (0, 40))
    method, server, uploads = near
    public = method.setting.public()
    teacher = method.mean_logits(uploads, public)
    inputs = public.batch(torch.arange(len(public))).inputs
    jobs = method.fusion_jobs([0, 1, 2], Moment(0, 0))
    assert jobs == ("model-0", "model-1")
    for place, job in enumerate(jobs):
        gaps = []
        for taught in (far[0], method):
            state = taught.fuse(job, server, uploads, Moment(0, 0))
            classes = state.tensors["seen"].nonzero().flatten().tolist()
            student = method.setting.load(state.part(job), place).eval()
            gaps.append(distillation(student(inputs), teacher, classes, 1.0).item())
        assert gaps[1] < 0.7 * gaps[0]


def test_what_nobody_has_seen_does_not_teach(round_of):
    method, server, uploads = round_of()
    seen = uploads[0].message.tensors["seen"]
    assert 0 < seen.sum() < len(seen)

    def shifted(upload: Upload) -> Upload:
        tensors = dict(upload.message.tensors)
        tensors["model.head.bias"] = torch.where(seen, tensors["model.head.bias"], 50.0)
        return replace(upload, message=Message(tensors))

    plain = method.fuse("model-0", server, uploads, Moment(0, 0)).part("model-0")
    other = method.fuse("model-0", server, [shifted(each) for each in uploads], Moment(0, 0)).part("model-0")
    assert torch.equal(plain.pop("head.bias")[seen], other.pop("head.bias")[seen])
    assert encode(plain, {}) == encode(other, {})


def test_the_server_remembers_what_any_client_has_seen(played):
    lab = played("feddf", "own", sets=("train.clients_per_round=1",))
    seen = torch.zeros(10, dtype=torch.bool)
    for moment, trained, _ in lab.rounds:
        seen[list(lab.site.seen(trained[0].client, moment.experience))] = True
    assert torch.equal(lab.server.tensors["seen"], seen)


def test_labels_of_the_public_samples_are_not_looked_at(round_of):
    method, server, uploads = round_of()
    public = method.setting.public()
    public.labels = torch.full_like(public.labels, -1)
    blind = type(method)(method.params, replace(method.setting, public=lambda: public))
    one, other = (each.fuse("model-0", server, uploads, Moment(0, 0)).tensors for each in (method, blind))
    assert encode(one, {}) == encode(other, {})


def test_an_empty_public_split_is_refused(round_of):
    method, _, _ = round_of()
    empty = LocalData(method.setting.public().inputs[:0].numpy(), np.zeros(0, np.int64))
    bare = type(method)(method.params, replace(method.setting, public=lambda: empty))
    with pytest.raises(InputError, match="public split is empty"):
        bare.start()


def test_an_architecture_none_of_whose_clients_took_part_learns_as_well(round_of):
    method, server, uploads = round_of(TWO)
    only_the_first = [upload for upload in uploads if upload.client == 0]
    after = method.fuse("model-1", server, only_the_first, Moment(0, 0))
    assert encode(after.part("model-1"), {}) != encode(server.part("model-1"), {})


def test_personal_is_the_servers_model_of_the_clients_own_architecture(played):
    lab = played("feddf", sets=(TWO,))
    method, server = lab.site.method, lab.server
    for client in range(3):
        model = method.predictor("personal", server, method.start_client(client), client)
        assert encode(model.state_dict(), {}) == encode(server.part(f"model-{client % 2}"), {})
    assert encode(method.predictor("global", server, method.start_client(0), -1).state_dict(), {}) == encode(
        server.part("model-0"), {}
    )


@pytest.mark.parametrize(("count", "size", "steps"), [(10, 4, 5), (3, 8, 2), (1, 2, 3), (7, 7, 3)])
def test_draws_are_full_batches_and_passes_use_every_row_equally(count, size, steps):
    batches = list(draws(count, size, steps, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [size] * steps
    times = torch.bincount(torch.cat(batches), minlength=count)
    assert times.max() - times.min() <= 1


def test_a_client_that_says_it_has_seen_nothing_is_refused(laboratory):
    """Over no classes at all there is nothing to distil."""
    lab = laboratory("feddf", "alone")
    (each,) = lab.train()
    tensors = lab.site.store.get(each.upload).tensors
    lab.site.method.check(Message(tensors))
    with pytest.raises(ValueError, match="seen"):
        lab.site.method.check(Message({**tensors, "seen": torch.zeros_like(tensors["seen"])}))

"""Identities between methods, closed forms of what crosses, and the formulas of local training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import methods
from methods import Message, State
from methods.aggregation import weighted_mean
from methods.base import _methods, register
from methods.fedavg import FedAvg
from methods.training import LocalData, TrainParameters, cross_entropy, distillation, to_float
from tasks.store import encode
from tasks.upload import header


@dataclass(frozen=True)
class Upload:
    client: int
    samples: int
    message: Message


def uploads(*pairs) -> list[Upload]:
    return [
        Upload(client, samples, Message(tensors))
        for client, (samples, tensors) in enumerate((n, {"w": t}) for n, t in pairs)
    ]


def same_model(one: State, other: State) -> bool:
    """Equal models to the last bit."""
    return encode(one.part("model"), {}) == encode(other.part("model"), {})


# the weighted mean


def test_weighted_mean_by_hand():
    mean = weighted_mean(uploads((1, torch.tensor([1.0, 0.0])), (3, torch.tensor([5.0, -4.0]))))
    assert mean["w"].tolist() == [(1 * 1 + 3 * 5) / 4, (3 * -4) / 4]
    assert mean["w"].dtype == torch.float32


def test_integer_buffers_take_the_largest_value():
    mean = weighted_mean(uploads((9, torch.tensor(3)), (1, torch.tensor(7)), (5, torch.tensor(5))))
    assert mean["w"].dtype == torch.int64
    assert mean["w"].item() == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_are_kept(dtype):
    assert weighted_mean(uploads((1, torch.ones(2, dtype=dtype)), (2, torch.ones(2, dtype=dtype))))["w"].dtype == dtype


def test_uploads_are_not_changed():
    given = uploads((1, torch.ones(2)), (1, torch.zeros(2)))
    weighted_mean(given)
    assert [upload.message.tensors["w"].tolist() for upload in given] == [[1, 1], [0, 0]]


floats = st.floats(-(2.0**100), 2.0**100, width=32)
counts = st.integers(1, 10_000)


@given(counts, st.lists(floats, min_size=1, max_size=8))
def test_mean_of_one_upload_is_that_upload_to_the_last_bit(samples, values):
    tensor = torch.tensor(values)
    assert torch.equal(weighted_mean(uploads((samples, tensor)))["w"], tensor)


@given(st.lists(counts, min_size=1, max_size=20), st.lists(floats, min_size=1, max_size=8))
def test_mean_of_equal_uploads_is_each_of_them(samples, values):
    tensor = torch.tensor(values)
    assert torch.equal(weighted_mean(uploads(*((n, tensor) for n in samples)))["w"], tensor)


@given(st.lists(st.tuples(counts, floats), min_size=1, max_size=20))
def test_mean_lies_between_its_uploads(pairs):
    mean = weighted_mean(uploads(*((n, torch.tensor([value])) for n, value in pairs)))["w"].item()
    values = [value for _, value in pairs]
    assert min(values) <= mean <= max(values)


@given(st.lists(st.tuples(counts, floats), min_size=2, max_size=20), st.randoms())
def test_mean_does_not_depend_on_who_is_who(pairs, random):
    def mean(pairs):
        return weighted_mean(uploads(*((n, torch.tensor([value])) for n, value in pairs)))["w"].item()

    shuffled = random.sample(pairs, len(pairs))
    largest = max(abs(value) for _, value in pairs)
    assert mean(shuffled) == pytest.approx(mean(pairs), rel=1e-6, abs=1e-6 * largest + 1e-40)


@given(st.integers(1, 100), counts, floats, floats)
def test_weights_are_proportions(factor, n, one, other):
    small = weighted_mean(uploads((n, torch.tensor([one])), (2 * n, torch.tensor([other]))))["w"]
    large = weighted_mean(uploads((factor * n, torch.tensor([one])), (2 * factor * n, torch.tensor([other]))))["w"]
    torch.testing.assert_close(small, large)


# identities between methods


@pytest.mark.parametrize("name", ["fedavg", "fedlwf", "local", "joint"])
def test_methods_with_one_network_are_compared_from_one_start(name, played):
    lab = played(name)
    method, server = lab.site.method, lab.site.method.start()
    images = torch.randn(4, *lab.site.stream.shape, generator=torch.Generator().manual_seed(0))
    for kind in method.evaluates:
        model = method.predictor(kind, server, method.start_client(0), 0)
        initial = method.setting.load(method.setting.initial_model())
        assert torch.equal(model(images), initial(images))


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("train.optimizer=adam", "train.learning_rate=0.003"),
        ("model.name=slim_resnet18", "model.width=2", "model.norm=batch", "train.rounds=1"),
    ],
    ids=["sgd", "adam", "batchnorm"],
)
def test_fedavg_with_one_client_is_that_client_alone(sets, played):
    assert same_model(played("fedavg", "alone", sets=sets).server, played("local", "alone", sets=sets).client(0))


def test_joint_with_one_client_and_one_experience_is_local_up_to_the_shuffle(played):
    """With one batch an epoch there is no shuffle but the order of a sum."""
    sets = ("train.batch_size=1000", "train.local_epochs=3")
    joint, local = played("joint", "single", sets=sets).client(-1), played("local", "single", sets=sets).client(0)
    for name, tensor in joint.tensors.items():
        torch.testing.assert_close(tensor, local.tensors[name], rtol=1e-4, atol=1e-6)


def test_joint_holds_all_data_so_far(played):
    lab = played("joint")
    stream = lab.site.stream
    for moment, trained, _ in lab.rounds:
        cells = [(client, past) for client in range(stream.clients) for past in range(moment.experience + 1)]
        assert [each.samples for each in trained] == [sum(len(stream.train(*cell)) for cell in cells)]


def test_fedlwf_is_fedavg_in_the_first_experience(laboratory):
    fedavg, fedlwf = (laboratory(name).play(until=(1, 0)) for name in ("fedavg", "fedlwf"))
    assert same_model(fedavg.server, fedlwf.server)
    assert [row for row in fedavg.rows if row["trained"] < 1] == [row for row in fedlwf.rows if row["trained"] < 1]


def test_fedlwf_is_fedavg_on_a_stream_of_one_experience(played):
    assert same_model(played("fedavg", "short").server, played("fedlwf", "short").server)


def test_fedlwf_pulls_only_after_the_first_experience(laboratory):
    free, held = (laboratory("fedlwf", sets=[f"methods.fedlwf.weight={w}"]) for w in (0, 5))
    assert same_model(free.play(until=(1, 0)).server, held.play(until=(1, 0)).server)
    assert not same_model(free.play(until=(1, 1)).server, held.play(until=(1, 1)).server)


def test_fedlwf_teaches_what_the_last_experience_left(laboratory):
    lab = laboratory("fedlwf", sets=["train.rounds=3"]).play(until=(1, 0))
    before = lab.server
    lab.play(until=(1, 2))
    for state in (lab.server, *(lab.client(number) for number in range(3))):
        assert encode(state.part("previous"), {}) == encode(before.part("model"), {})


class InParts(FedAvg):
    """FedAvg whose fusion is one job a layer. theta <- mean"""

    def fusion_jobs(self, clients, moment):
        names = self.setting.architecture.initial(torch.Generator())
        return tuple(sorted({f"model.{name}".rpartition(".")[0] for name in names}))

    def fuse(self, job, server, uploads, moment):
        whole = weighted_mean(uploads)
        return State({name: tensor for name, tensor in whole.items() if name.rpartition(".")[0] == job})

    def join(self, server, parts, moment):
        return State({name: tensor for part in parts.values() for name, tensor in part.tensors.items()})


@pytest.fixture
def in_parts():
    register("in_parts")(InParts)
    yield "in_parts"
    del _methods["in_parts"]
    assert "in_parts" not in methods.names()


def test_fusion_in_several_jobs_is_fusion_in_one(in_parts, laboratory, played):
    lab = laboratory(in_parts)
    method = lab.site.method
    assert len(method.fusion_jobs([], lab.moment)) > 1
    assert lab.play().digest == played("fedavg").digest


# what crosses


def payload(lab, ref) -> int:
    """Bytes of a stored payload that are tensors."""
    data = lab.site.store.bytes(ref)
    return ref.size - 8 - int.from_bytes(data[:8], "little")


def test_fedavg_costs_four_bytes_a_parameter_and_a_header_each_way(played):
    lab = played("fedavg")
    inputs, width, classes = 64, 16, 10
    model = 4 * ((inputs + 1) * width + (width + 1) * width + (width + 1) * classes)
    for moment, trained, verdicts in lab.rounds:
        for each in trained:
            assert payload(lab, each.upload) == payload(lab, each.broadcast) == model
            parameters = lab.site.method.expects(lab.server, each.client, moment)
            empty = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
            said = header(lab.site, each.client, moment, each.samples, each.broadcast.digest, {})
            assert each.upload.size == len(encode(empty, said))
        assert len(verdicts) == len(trained) == 3
    up, down = lab.bytes
    assert up == sum(verdict.file.size for _, _, verdicts in lab.rounds for verdict in verdicts)
    assert down == sum(3 * trained[0].broadcast.size for _, trained, _ in lab.rounds)


@pytest.mark.parametrize("name", ["local", "joint"])
def test_nothing_crosses_where_nothing_should(name, played):
    assert played(name).bytes == (0, 0)


@pytest.mark.parametrize("sampled", ["all", 1, 2])
def test_fedlwf_sends_the_teacher_once_a_client_and_experience_and_only_beside_a_later_model(sampled, played):
    lab = played("fedlwf", sets=("train.rounds=4", f"train.clients_per_round={sampled}"))
    plain = played("fedavg", sets=("train.rounds=4", f"train.clients_per_round={sampled}"))
    model = payload(plain, plain.rounds[0][1][0].broadcast)
    late = Counter()
    taught = set()
    for moment, trained, _ in lab.rounds:
        for each in trained:
            first = (each.client, moment.experience) not in taught
            taught.add((each.client, moment.experience))
            beside = first and moment.experience > 0 and moment.round > 0
            late[moment.experience] += beside
            assert payload(lab, each.broadcast) == model * (2 if beside else 1)
            assert payload(lab, each.upload) == model
    assert (sum(late.values()) == 0) == (sampled == "all")


# the losses


def logits(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_over_all_classes_is_pytorchs():
    scores, labels = logits(8, 5), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    assert torch.equal(cross_entropy(scores, labels, range(5)), F.cross_entropy(scores, labels))


@given(st.sets(st.integers(0, 9), min_size=1, max_size=10), st.data())
def test_cross_entropy_is_over_the_given_classes_only(classes, data):
    classes = data.draw(st.permutations(sorted(classes)))  # any order means the same
    labels = torch.tensor(data.draw(st.lists(st.sampled_from(classes), min_size=1, max_size=6)))
    scores = logits(len(labels), 10).requires_grad_()
    loss = cross_entropy(scores, labels, classes)
    masked = torch.full_like(scores, -torch.inf)
    masked[:, classes] = scores.detach()[:, classes]
    torch.testing.assert_close(loss.detach(), F.cross_entropy(masked, labels))
    loss.backward()
    outside = sorted(set(range(10)) - set(classes))
    assert not scores.grad[:, outside].any()
    assert scores.grad[:, classes].any() == (len(classes) > 1)


@given(st.floats(0.1, 20), st.integers(1, 6))
def test_distillation_of_identical_logits_is_zero(temperature, rows):
    scores = logits(rows, 5)
    assert distillation(scores, scores.clone(), (0, 2, 4), temperature).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0, 7.0])
def test_distillation_is_the_textbook_formula(tau):
    student, teacher, classes = logits(6, 5, 1).double(), logits(6, 5, 2).double(), [0, 1, 3]
    p = torch.exp(teacher[:, classes] / tau) / torch.exp(teacher[:, classes] / tau).sum(1, keepdim=True)
    q = torch.exp(student[:, classes] / tau) / torch.exp(student[:, classes] / tau).sum(1, keepdim=True)
    expected = tau**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation(student, teacher, classes, tau), expected)


@given(st.floats(0.1, 20))
def test_temperature_divides_logits_and_its_square_restores_the_scale(tau):
    student, teacher = logits(4, 5, 1).double(), logits(4, 5, 2).double()
    plain = distillation(student, teacher, range(5), 1.0)
    torch.testing.assert_close(distillation(tau * student, tau * teacher, range(5), tau), tau**2 * plain)


def test_no_gradient_flows_to_the_teacher_or_to_other_classes():
    student, teacher = logits(4, 5, 1).requires_grad_(), logits(4, 5, 2).requires_grad_()
    distillation(student, teacher, (1, 2), 2.0).backward()
    assert teacher.grad is None
    assert not student.grad[:, [0, 3, 4]].any()
    assert student.grad[:, [1, 2]].all()


# local data


def numbered(count: int) -> LocalData:
    return LocalData(np.zeros((count, 1, 1, 1), np.uint8), np.arange(count))


@given(st.integers(0, 70), st.integers(1, 40), st.integers(0, 99))
def test_an_epoch_has_every_sample_once_and_no_batch_of_one_at_its_end(count, size, seed):
    data = numbered(count)
    batches = [batch.labels.tolist() for batch in data.shuffled(size, 1, torch.Generator().manual_seed(seed))]
    assert sorted(label for batch in batches for label in batch) == list(range(count))
    assert all(0 < len(batch) <= size + 1 for batch in batches)
    assert all(len(batch) == size for batch in batches[:-1])
    if batches:
        assert len(batches[-1]) > 1 or count == 1


@given(st.integers(0, 70), st.integers(1, 40))
def test_batches_are_in_stored_order_by_default(count, size):
    labels = [label for batch in numbered(count).batches(size) for label in batch.labels.tolist()]
    assert labels == list(range(count))


def test_each_epoch_has_an_order_of_its_own():
    drawn = [batch.labels.tolist() for batch in numbered(50).shuffled(50, 3, torch.Generator().manual_seed(0))]
    assert len(drawn) == 3
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_images_become_floats_between_minus_one_and_one_and_stay_as_they_are():
    bytes_ = torch.arange(256, dtype=torch.uint8)
    floats = to_float(bytes_)
    assert floats.dtype == torch.float32
    assert (floats[0], floats[-1]) == (-1, 1)
    torch.testing.assert_close(floats.diff(), torch.full((255,), 2 / 255), rtol=0, atol=1e-6)
    assert torch.equal(bytes_, torch.arange(256, dtype=torch.uint8))


# optimizers


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_every_optimizer_goes_down(optimizer):
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    step = TrainParameters(optimizer=optimizer).optimizer_for([weight])
    (weight**2).sum().backward()
    step.step()
    assert 0 < weight.item() < 1


def test_sgd_is_the_formula():
    """w <- w - lr (g + decay w); with momentum the second step adds momentum times the first's direction."""
    lr, momentum, decay = 0.1, 0.9, 0.01
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    train = TrainParameters(learning_rate=lr, momentum=momentum, weight_decay=decay)
    optimizer = train.optimizer_for([weight])
    by_hand, velocity = 1.0, 0.0
    for _ in range(3):
        optimizer.zero_grad()
        (3 * weight).sum().backward()
        optimizer.step()
        velocity = momentum * velocity + 3 + decay * by_hand
        by_hand -= lr * velocity
    assert weight.item() == pytest.approx(by_hand)
